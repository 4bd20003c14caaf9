//! The cluster as the operator sees it: one shared store of the agent pools' Nodes, and a trigger that fires
//! when something changes that a plan looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, NodeSystemInfo};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, ExponentialBackoff, watcher};
use kube::{Api, Client, ResourceExt};
use spotpool_crds::names;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::node::{agent_pool_of, boot_id, conditions, is_ready};

/// Several notices of one moment become one plan. Short: it is on the way from notice to replacement.
const COALESCE: Duration = Duration::from_millis(20);
/// Azure may go on listing a machine for so long after its Node is gone. One that it lists later than that
/// exists: somebody has deleted the Node object alone.
const LINGERS: Duration = Duration::from_mins(2);
/// Lists are much younger than this.
const REMEMBER_GONE: Duration = Duration::from_mins(30);

/// Reconnects quickly: while a watch is down notices are not seen.
pub fn backoff() -> ExponentialBackoff {
    let quick = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter();
    ExponentialBackoff::from(quick)
}

/// Wakes every SpotPool's reconciliation. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Trigger(Arc<Notify>);

impl Trigger {
    /// Something changed.
    pub fn fire(&self) {
        self.0.notify_one();
    }

    /// Passes what fires on to each of `listeners`, at most once in a moment (20 ms).
    pub async fn run(self, listeners: Vec<mpsc::UnboundedSender<()>>) {
        loop {
            self.0.notified().await;
            tokio::time::sleep(COALESCE).await;
            for listener in &listeners {
                // A controller that ended has ended the process; nobody is left to tell.
                let _ = listener.unbounded_send(());
            }
        }
    }
}

/// The Nodes of the cluster's agent pools.
#[derive(Clone)]
pub struct Nodes {
    store: Store<Node>,
    /// As our own last write left them, until the watch has told of it.
    written: Arc<Mutex<BTreeMap<String, Arc<Node>>>>,
    gone: Arc<Mutex<BTreeMap<String, Gone>>>,
}

/// A Node that was here and is not any more.
struct Gone {
    at: Instant,
    /// Its agent pool, if nobody had announced or asked for it, and it has not been told yet.
    vanished_from: Option<String>,
}

impl Nodes {
    /// Starts the watch. The stream must be polled for as long as the store is used.
    pub fn watch(client: Client, trigger: Trigger) -> (Self, impl Stream<Item = ()> + Send + 'static) {
        let config = watcher::Config::default().labels(names::AGENT_POOL_LABEL);
        Self::follow(watcher(Api::<Node>::all(client), config).backoff(backoff()), trigger)
    }

    /// The same for any source of events.
    pub fn follow<S>(events: S, trigger: Trigger) -> (Self, impl Stream<Item = ()> + Send + 'static)
    where
        S: Stream<Item = watcher::Result<watcher::Event<Node>>> + Send + 'static,
    {
        let (store, writer) = reflector::store();
        let nodes = Self { store, written: Arc::default(), gone: Arc::default() };
        let seen = nodes.clone();
        let mut digests = BTreeMap::new();
        let stream = events.modify(slim).reflect(writer).map(move |event| match event {
            Ok(event) => {
                if seen.observe(&event, &mut digests) {
                    trigger.fire();
                }
            }
            Err(error) => tracing::warn!(%error, "the watch of Nodes is broken; trying again"),
        });
        (nodes, stream)
    }

    /// Waits until the store has been filled once.
    pub async fn ready(&self) {
        // An error means that the watch has ended, and with it the process.
        let _ = self.store.wait_until_ready().await;
    }

    /// All Nodes.
    pub fn all(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.store.state();
        let written = self.written();
        if !written.is_empty() {
            for node in &mut nodes {
                if let Some(ours) = written.get(&node.name_any()) {
                    *node = ours.clone();
                }
            }
        }
        nodes
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a Node in as a write of ours has left it: the watch may be late, and what was asked would be asked again.
    pub fn note_written(&self, mut node: Node) {
        // Locked before the store is asked: what the watch tells in between would never take it out again.
        let mut written = self.written();
        let seen = self.store.get(&ObjectRef::from_obj(&node));
        if seen.is_some_and(|seen| is_newer(&node, &seen)) {
            slim(&mut node);
            written.insert(node.name_any(), Arc::new(node));
        }
    }

    /// Forgets what we wrote of a Node once the watch has told as much.
    fn catch_up(&self, seen: &Node) {
        let mut written = self.written();
        if written.get(&seen.name_any()).is_some_and(|ours| !is_newer(ours, seen)) {
            written.remove(&seen.name_any());
        }
    }

    /// Names of the Nodes, by agent pool.
    pub fn names(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in self.all() {
            let Some(agent_pool) = agent_pool_of(&node) else { continue };
            names.entry(agent_pool.to_owned()).or_default().insert(node.name_any());
        }
        names
    }

    /// Whether a machine that Azure listed at `listed` is gone, because its Node was here and is not any more.
    pub fn is_gone(&self, name: &str, listed: Instant) -> bool {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.get(name).is_some_and(|gone| listed < gone.at + LINGERS)
    }

    /// How many Nodes of `agent_pool` went unannounced whose machines are not among those `listed` since. Each is told once.
    pub fn vanished(&self, agent_pool: &str, listed: &[String], at: Instant) -> usize {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (name, gone) in gone.iter_mut() {
            let is_its = gone.vanished_from.as_deref() == Some(agent_pool);
            if is_its && gone.at < at && !listed.contains(name) {
                gone.vanished_from = None;
                count += 1;
            }
        }
        count
    }

    /// Keeps digests and the gone names up to date; tells whether a plan could come out differently.
    fn observe(&self, event: &watcher::Event<Node>, digests: &mut BTreeMap<String, u64>) -> bool {
        match event {
            watcher::Event::Apply(node) => {
                self.catch_up(node);
                let digest = digest(node);
                digests.insert(node.name_any(), digest) != Some(digest)
            }
            watcher::Event::Delete(node) => {
                self.written().remove(&node.name_any());
                self.mark_gone(node.name_any(), vanished_from(node));
                digests.remove(&node.name_any()).is_some()
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => false,
            watcher::Event::InitDone => {
                for node in self.store.state() {
                    self.catch_up(&node);
                }
                let now: BTreeMap<String, u64> =
                    self.all().iter().map(|node| (node.name_any(), digest(node))).collect();
                for name in digests.keys().filter(|name| !now.contains_key(*name)) {
                    self.written().remove(name);
                    self.mark_gone(name.clone(), None);
                }
                std::mem::replace(digests, now) != *digests
            }
        }
    }

    fn mark_gone(&self, name: String, vanished_from: Option<String>) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|_, gone| gone.at.elapsed() < REMEMBER_GONE);
        gone.insert(name, Gone { at: Instant::now(), vanished_from });
    }
}

/// Whether `node` is the same Node at a later time. Versions of one resource are numbers that grow.
fn is_newer(node: &Node, than: &Node) -> bool {
    let version = |node: &Node| node.resource_version().and_then(|version| version.parse::<u64>().ok());
    node.uid() == than.uid() && version(node).zip(version(than)).is_some_and(|(this, that)| this > that)
}

/// The agent pool of a Node that nobody had announced to go: no notice, no drain, not even a cordon, as AKS, the cluster
/// autoscaler and people leave it on what they take away; and that was not known to be lost.
fn vanished_from(node: &Node) -> Option<String> {
    let spec = node.spec.as_ref()?;
    let cordoned = spec.unschedulable.unwrap_or(false);
    let marks = [names::EVICTION_ANNOTATION, names::DRAIN_REQUEST_ANNOTATION];
    let is_marked = marks.iter().any(|mark| node.annotations().contains_key(*mark));
    let taints = spec.taints.iter().flatten();
    let is_out = taints.into_iter().any(|taint| taint.key == names::OUT_OF_SERVICE_TAINT);
    if cordoned || is_marked || is_out { None } else { agent_pool_of(node).map(str::to_owned) }
}

/// Conditions that anything here looks at. Nodes of AKS have a dozen others.
const CONDITIONS: [&str; 3] =
    ["Ready", names::PREEMPTION_SCHEDULED_CONDITION, names::VM_EVENT_SCHEDULED_CONDITION];

/// Drops what no plan looks at: 5,000 Nodes must fit in little memory.
fn slim(node: &mut Node) {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| CONDITIONS.contains(&condition.type_.as_str()));
            conditions.shrink_to_fit();
        }
        status.images = None;
        status.volumes_in_use = None;
        status.volumes_attached = None;
        status.node_info =
            status.node_info.take().map(|info| NodeSystemInfo { boot_id: info.boot_id, ..<_>::default() });
        status.addresses = None;
        status.capacity = None;
        status.daemon_endpoints = None;
    }
}

/// A hash of exactly what plans read, so that heartbeats wake nobody.
fn digest(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.uid().hash(&mut hasher);
    agent_pool_of(node).hash(&mut hasher);
    node.metadata.deletion_timestamp.is_some().hash(&mut hasher);
    is_ready(node).hash(&mut hasher);
    boot_id(node).hash(&mut hasher);
    let of_detector = [names::PREEMPTION_SCHEDULED_CONDITION, names::VM_EVENT_SCHEDULED_CONDITION];
    for condition in conditions(node).filter(|it| of_detector.contains(&it.type_.as_str())) {
        (&condition.type_, &condition.status, &condition.message).hash(&mut hasher);
    }
    for label in [names::POOL_LABEL, names::POOL_NAMESPACE_LABEL] {
        node.labels().get(label).hash(&mut hasher);
    }
    for annotation in [
        names::EVICTION_ANNOTATION,
        names::POLICY_ANNOTATION,
        names::DRAIN_REQUEST_ANNOTATION,
        names::DRAIN_STATUS_ANNOTATION,
    ] {
        node.annotations().get(annotation).hash(&mut hasher);
    }
    if let Some(spec) = &node.spec {
        spec.unschedulable.hash(&mut hasher);
        spec.provider_id.hash(&mut hasher);
        for taint in spec.taints.iter().flatten() {
            (&taint.key, &taint.value).hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn node(version: u64, drain: Option<&str>) -> Node {
        let metadata = json!({"name": "a", "uid": "a", "resourceVersion": version.to_string(),
            "labels": {names::AGENT_POOL_LABEL: "spota"}, "annotations": {names::DRAIN_REQUEST_ANNOTATION: drain.unwrap_or_default()}});
        let metadata = serde_json::from_value(metadata).unwrap();
        Node { metadata, ..Node::default() }
    }

    fn drain(nodes: &Nodes) -> String {
        nodes.all()[0].annotations()[names::DRAIN_REQUEST_ANNOTATION].clone()
    }

    #[test]
    fn what_we_have_asked_of_a_node_is_known_before_its_watch_tells_and_no_longer() {
        let (sender, events) = mpsc::unbounded();
        let (nodes, stream) = Nodes::follow(events, Trigger::default());
        let mut stream = Box::pin(stream);
        let mut tell = |event| {
            sender.unbounded_send(Ok(event)).unwrap();
            while stream.next().now_or_never().is_some() {}
        };
        tell(watcher::Event::Init);
        tell(watcher::Event::InitApply(node(5, None)));
        tell(watcher::Event::InitDone);
        nodes.note_written(node(7, Some("ours")));
        assert_eq!(drain(&nodes), "ours", "or the next plan asks again, by another name");
        tell(watcher::Event::Apply(node(6, None)));
        assert_eq!(drain(&nodes), "ours", "the watch is behind");
        tell(watcher::Event::Apply(node(8, Some("somebody's"))));
        assert_eq!(drain(&nodes), "somebody's");
        nodes.note_written(node(7, Some("ours")));
        assert_eq!(drain(&nodes), "somebody's", "an answer that came late is old");
        nodes.note_written(node(9, Some("ours")));
        tell(watcher::Event::Delete(node(8, None)));
        assert!(nodes.all().is_empty());
        tell(watcher::Event::Apply(node(10, None)));
        assert_eq!(drain(&nodes), "", "a new Node begins anew");
    }
}
