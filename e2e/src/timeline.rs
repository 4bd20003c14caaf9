//! Who did what, and when: watches a world and tells it line by line.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use spotpool_azure_sim::client::SimClient;
use spotpool_crds::eviction::{EvictionNotice, Phase};
use spotpool_crds::names;
use tokio::task::JoinHandle;

use crate::objects;

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The simulator, as Azure.
    Azure,
    /// A node agent.
    Agent,
    /// The operator.
    Operator,
    /// Kubernetes itself.
    Kubernetes,
    /// The demo.
    Demo,
}

impl Actor {
    fn label(self) -> (&'static str, &'static str) {
        match self {
            Self::Azure => ("azure", "\x1b[34m"),
            Self::Agent => ("agent", "\x1b[33m"),
            Self::Operator => ("operator", "\x1b[35m"),
            Self::Kubernetes => ("kubernetes", "\x1b[2m"),
            Self::Demo => ("demo", "\x1b[1m"),
        }
    }
}

/// What was seen of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeSeen {
    /// First seen.
    pub appeared: Option<Timestamp>,
    /// Seen ready for pods for the first time.
    pub ready: Option<Timestamp>,
    /// Seen with our notice, cordoned and tainted.
    pub cordoned: Option<Timestamp>,
    /// Seen drained for it.
    pub drained: Option<Timestamp>,
    /// Seen asked to drain by the operator.
    pub asked_to_drain: Option<Timestamp>,
    /// Seen deleted.
    pub gone: Option<Timestamp>,
}

/// What was seen of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodSeen {
    /// Namespace and name.
    pub name: (String, String),
    /// The node it was bound to.
    pub node: Option<String>,
    /// Whether it is Ready now.
    pub ready: bool,
    /// Seen on its way out: for an evicted pod, when its eviction was accepted.
    pub leaving: Option<Timestamp>,
    /// Seen deleted.
    pub gone: Option<Timestamp>,
    /// A DaemonSet's.
    pub of_daemon_set: bool,
    /// Its label `app`.
    pub app: String,
}

/// All that was seen. Times are those at which a watch told of it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By name.
    pub nodes: BTreeMap<String, NodeSeen>,
    /// By uid.
    pub pods: BTreeMap<String, PodSeen>,
    /// How many pods of each `app` were Ready since the clock was set to zero, from when on.
    pub ready_over_time: BTreeMap<String, Vec<(Timestamp, usize)>>,
}

impl Seen {
    /// Ready pods of an `app` now.
    pub fn ready(&self, app: &str) -> usize {
        self.pods.values().filter(|pod| pod.ready && pod.app == app).count()
    }

    /// The fewest of an `app` that were Ready at any moment since then.
    pub fn fewest_ready(&self, app: &str) -> usize {
        self.ready_over_time.get(app).into_iter().flatten().map(|(_, ready)| *ready).min().unwrap_or_default()
    }

    fn count(&mut self, app: &str) {
        let ready = self.ready(app);
        let course = self.ready_over_time.entry(app.to_owned()).or_default();
        if course.last().is_none_or(|(_, last)| *last != ready) {
            course.push((Timestamp::now(), ready));
        }
    }
}

/// A running account. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Timeline(Arc<Inner>);

struct Inner {
    zero: Mutex<Timestamp>,
    seen: Mutex<Seen>,
    print: bool,
    colour: bool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Timeline {
    /// Starts watching. Prints to stdout if `print`, in colour on a terminal.
    pub fn start(client: &Client, sim: &SimClient, namespace: &str, print: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let timeline = Self(Arc::new(Inner {
            zero: Mutex::new(Timestamp::now()),
            seen: Mutex::default(),
            print,
            colour,
            tasks: Mutex::default(),
        }));
        let tasks = vec![
            tokio::spawn(follow(Api::<Node>::all(client.clone()), timeline.clone(), Self::node)),
            tokio::spawn(follow(
                Api::<Pod>::namespaced(client.clone(), namespace),
                timeline.clone(),
                Self::pod,
            )),
            tokio::spawn(follow(
                Api::<Event>::namespaced(client.clone(), namespace),
                timeline.clone(),
                Self::event,
            )),
            tokio::spawn(azure(sim.clone(), timeline.clone())),
        ];
        *timeline.0.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        timeline
    }

    /// Stops watching.
    pub fn stop(&self) {
        for task in self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts seconds from here, and the fewest ready pods.
    pub fn zero(&self, zero: Timestamp) {
        let mut seen = self.lock();
        let apps: Vec<String> = seen.pods.values().map(|pod| pod.app.clone()).collect();
        seen.ready_over_time.clear();
        for app in &apps {
            seen.count(app);
        }
        drop(seen);
        *self.0.zero.lock().unwrap_or_else(PoisonError::into_inner) = zero;
    }

    /// Where seconds are counted from.
    pub fn started(&self) -> Timestamp {
        *self.0.zero.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells something.
    pub fn tell(&self, actor: Actor, at: Timestamp, what: &str) {
        if !self.0.print {
            return;
        }
        let seconds = at.duration_since(self.started()).as_secs_f64();
        let (label, colour) = actor.label();
        if self.0.colour {
            println!("{seconds:>+9.3}s  {colour}{label:<10}\x1b[0m  {what}");
        } else {
            println!("{seconds:>+9.3}s  {label:<10}  {what}");
        }
    }

    fn node(&self, node: Option<&Node>, name: &str, _uid: &str) {
        let now = Timestamp::now();
        let mut seen = self.lock();
        let entry = seen.nodes.entry(name.to_owned()).or_default();
        let mut lines = Vec::new();
        match node {
            None => {
                entry.gone = Some(now);
                lines.push((Actor::Kubernetes, format!("node {name} is gone")));
            }
            Some(node) => {
                entry.appeared.get_or_insert(now);
                if entry.ready.is_none() && objects::takes_pods(node) {
                    entry.ready = Some(now);
                    lines.push((Actor::Kubernetes, format!("node {name} is ready")));
                }
                if node.annotations().contains_key(names::DRAIN_REQUEST_ANNOTATION) {
                    entry.asked_to_drain.get_or_insert(now);
                }
                let notice: Option<EvictionNotice> = node
                    .annotations()
                    .get(names::EVICTION_ANNOTATION)
                    .and_then(|notice| serde_json::from_str(notice).ok());
                if let Some(notice) = notice {
                    if entry.cordoned.is_none() {
                        entry.cordoned = Some(now);
                        let left = notice.deadline.duration_since(now).as_secs_f64();
                        lines.push((
                            Actor::Agent,
                            format!(
                                "{name}: {} noticed, cordoned and tainted, {left:.1} s left",
                                notice.event_type
                            ),
                        ));
                    }
                    if notice.phase == Phase::Drained {
                        entry.drained.get_or_insert(now);
                    }
                    let phase = format!("{:?}", notice.phase);
                    let pods = notice.pods;
                    if notice.phase != Phase::Noticed {
                        let counts = format!(
                            "{} evicted, {} escalated, {} left",
                            pods.evicted, pods.escalated, pods.left
                        );
                        lines.push((Actor::Agent, format!("{name}: {phase}, {counts}")));
                    }
                }
            }
        }
        drop(seen);
        self.tell_new(now, lines);
    }

    /// Node objects change often; a line that was told is not told again.
    fn tell_new(&self, now: Timestamp, lines: Vec<(Actor, String)>) {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        for (actor, line) in lines {
            let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
            if !told.contains(&line) {
                self.tell(actor, now, &line);
                told.push(line);
            }
        }
    }

    fn pod(&self, pod: Option<&Pod>, _name: &str, uid: &str) {
        let now = Timestamp::now();
        let mut seen = self.lock();
        let entry = seen.pods.entry(uid.to_owned()).or_default();
        let Some(pod) = pod else {
            entry.gone = Some(now);
            entry.ready = false;
            entry.leaving.get_or_insert(now);
            let app = entry.app.clone();
            seen.count(&app);
            return;
        };
        entry.name = (pod.namespace().unwrap_or_default(), pod.name_any());
        entry.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        entry.ready = objects::is_ready(pod);
        entry.of_daemon_set = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
        entry.app = pod.labels().get("app").cloned().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            entry.leaving.get_or_insert(now);
        }
        let app = entry.app.clone();
        seen.count(&app);
    }

    fn event(&self, event: Option<&Event>, _name: &str, _uid: &str) {
        let Some(event) = event else { return };
        let actor = match event.reporting_controller.as_deref() {
            Some(names::OPERATOR_FIELD_MANAGER) => Actor::Operator,
            _ => return,
        };
        let (reason, note) =
            (event.reason.clone().unwrap_or_default(), event.note.clone().unwrap_or_default());
        self.tell_new(Timestamp::now(), vec![(actor, format!("{reason}: {note}"))]);
    }
}

async fn follow<K>(api: Api<K>, timeline: Timeline, tell: fn(&Timeline, Option<&K>, &str, &str))
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let mut changes = watcher(api, watcher::Config::default()).default_backoff().boxed();
    loop {
        match changes.try_next().await {
            Ok(Some(watcher::Event::Apply(it) | watcher::Event::InitApply(it))) => {
                tell(&timeline, Some(&it), &it.name_any(), &it.uid().unwrap_or_default());
            }
            Ok(Some(watcher::Event::Delete(it))) => {
                tell(&timeline, None, &it.name_any(), &it.uid().unwrap_or_default());
            }
            Ok(None) => return,
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

/// Tells of writes that reached Azure.
async fn azure(sim: SimClient, timeline: Timeline) {
    let mut told = sim.state().await.map_or(0, |state| state.arm_writes.len());
    loop {
        if let Ok(state) = sim.state().await {
            for write in state.arm_writes.iter().skip(told) {
                let counts = match (write.count_before, write.count_after) {
                    (Some(before), Some(after)) => format!(", count {before} → {after}"),
                    _ => String::new(),
                };
                let what = format!("{} {} answered {}{counts}", write.kind, write.pool, write.status);
                timeline.tell(Actor::Azure, write.at, &what);
            }
            told = state.arm_writes.len();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
