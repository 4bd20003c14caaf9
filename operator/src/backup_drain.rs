//! Drains nodes in their agents' stead: claims a notice that no agent has claimed in time, evicts the pods by the
//! deadline, and takes the marks off again when the notice holds no longer. When, [`spotpool_core::backup`] decides.
//!
//! Everything that a successor must know stands on the Node: after a crash the next leader goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use spotpool_core::backup::{Backup, Claim, Named, Noticed, backup};
use spotpool_crds::eviction::{Claimant, PREEMPT, Phase, PodCounts, Source};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::{EventResponse, Mode};
use spotpool_crds::{EvictionNotice, Reason, SpotPool, names};
use spotpool_drain::edit::Edit;
use spotpool_drain::kind::Kind;
use spotpool_drain::node::{Node, NodeHandle};
use spotpool_drain::npd::{self, Condition, Hearing, Worth};
use spotpool_drain::pods::watch_pods;
use spotpool_drain::{Answer, Budget, Drain, Holds, Observer, Pod, Pods, Progress, Terms, marks, noted};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::node::{boot_id, conditions, is_ready};
use crate::pool::doomed::Notices;
use crate::watches::{Nodes, Trigger};

/// Drains that run at a time; each has a watch on its node's pods. Claims do not wait for them: they keep new pods off.
const DRAINS_AT_ONCE: usize = 50;
/// A read that hangs must not hold up a drain.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// What cannot be written for so long is left to the next look.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon it is looked again whether an agent that is ready is still so.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// What an outcome is called in the metric.
const CLAIMED: &str = "Claimed";

/// The operator's drains of nodes whose agents are silent.
pub struct BackupDrains {
    /// A client of its own: watches on pods must not keep other requests waiting.
    client: Client,
    trigger: Trigger,
    metrics: Metrics,
    slots: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who told of a node's events and when: by the node's uid, then by event.
    heard: BTreeMap<String, BTreeMap<String, Heard>>,
    /// What is under way, by the node's uid.
    running: BTreeMap<String, CancellationToken>,
    /// What is to be told as Events, by SpotPool.
    news: BTreeMap<String, Vec<News>>,
}

struct Heard {
    at: Timestamp,
    by: BTreeSet<Arc<str>>,
    silent_since: Option<Timestamp>,
}

/// Something that people should read.
pub struct News {
    /// The node that it is about.
    pub node: String,
    /// What was done, for [Events](../../docs/adr/0009-events.md) to be told apart.
    pub action: &'static str,
    /// Whether it is a warning.
    pub is_warning: bool,
    /// What it says.
    pub note: String,
}

/// One node, to be worked on.
struct Job {
    node: String,
    uid: String,
    spot_pool: String,
    policy: DrainPolicy,
    task: Task,
}

enum Task {
    Claim(Box<EvictionNotice>),
    GoOn,
    GiveBack(Phase),
}

impl BackupDrains {
    /// None under way. `client` must refuse writes when the lease is lost.
    pub fn new(client: Client, trigger: Trigger, metrics: Metrics) -> Arc<Self> {
        let (slots, state) = (Semaphore::new(DRAINS_AT_ONCE), Mutex::default());
        Arc::new(Self { client, trigger, metrics, slots, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to the nodes of `pool`; says when to look again though nothing happens.
    pub fn tend(
        self: &Arc<Self>,
        pool: &SpotPool,
        nodes: &[Arc<core::Node>],
        notices: &Notices,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let may_drain = pool.spec.mode == Mode::Enforce
            && !pool.spec.suspend
            && pool.spec.events.preempt != EventResponse::Ignore;
        let mut wake = None::<Timestamp>;
        let mut jobs = Vec::new();
        for node in nodes {
            let uid = node.uid().unwrap_or_default();
            let written = notices.on(node);
            let (named, silent_since) = self.hear(node, &uid, written, notices, now);
            let ours = written.is_some_and(|it| it.is_active() && it.by == Claimant::Operator);
            if !ours && written.is_some_and(EvictionNotice::is_active) {
                // The agent has claimed it: what runs here for this node is over.
                if let Some(stop) = self.state().running.get(&uid) {
                    stop.cancel();
                }
            }
            if (named.is_empty() && !ours) || node.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let boot_id = boot_id(node);
            let seen =
                Noticed { notice: written, named: &named, silent_since, boot_id, ready: is_ready(node) };
            let task = match backup(&seen, now) {
                Backup::Nothing => continue,
                Backup::LookAgain(time) => {
                    wake = Some(wake.map_or(time, |known| known.min(time)));
                    continue;
                }
                Backup::GiveBack(phase) => Task::GiveBack(phase),
                Backup::Claim(_) | Backup::GoOn if !may_drain => continue,
                Backup::Claim(claim) => {
                    Task::Claim(Box::new(noticed(claim, pool.spec.events.preempt, boot_id)))
                }
                Backup::GoOn => Task::GoOn,
            };
            let (node, spot_pool) = (node.name_any(), pool.uid().unwrap_or_default());
            jobs.push(Job { node, uid, spot_pool, policy: DrainPolicy::from(&pool.spec.drain), task });
        }
        for job in jobs {
            self.begin(job);
        }
        wake
    }

    /// What there is to tell of the nodes of a SpotPool, once.
    pub fn news(&self, pool: &SpotPool) -> Vec<News> {
        self.state().news.remove(&pool.uid().unwrap_or_default()).unwrap_or_default()
    }

    /// What others tell of `node`, and since when they are silent about what the operator has claimed there.
    fn hear(
        &self,
        node: &core::Node,
        uid: &str,
        written: Option<&EvictionNotice>,
        notices: &Notices,
        now: Timestamp,
    ) -> (Vec<Named>, Option<Timestamp>) {
        let mut named = Vec::new();
        let mut state = self.state();
        let mut of_node = state.heard.remove(uid).unwrap_or_default();
        let mut hear = |event_id: &str, source, seen, not_before, by: &BTreeSet<Arc<str>>| {
            let heard = of_node.entry(event_id.to_owned()).or_insert(Heard {
                at: now,
                by: BTreeSet::new(),
                silent_since: None,
            });
            heard.by.extend(by.iter().cloned());
            heard.silent_since = None;
            named.push(Named { event_id: event_id.to_owned(), source, seen, heard: heard.at, not_before });
        };
        for (event, told) in notices.told(node).into_iter().flatten() {
            hear(event, Source::Imds, told.seen, told.not_before, &told.by);
        }
        // Old ones are leftovers; whether the metadata service is silent for its agent, the agent knows.
        let silent =
            Hearing { heard_at: None, since: Timestamp::MIN, patience: Duration::ZERO, booted_at: None };
        let counts = |it: &npd::Claim| it.kind == Kind::Preempt && it.worth(&silent, now) == Worth::Counts;
        for claim in npd::claims(&detected(node)).into_iter().filter(counts) {
            // The detector is a witness by the node's own name.
            let not_before = claim.not_before.filter(|_| !claim.started);
            let by = [node.name_any().into()].into();
            hear(&claim.id, Source::NodeProblemDetector, now, not_before, &by);
        }
        let claimed = written.filter(|it| it.is_active() && it.by == Claimant::Operator);
        let silent_since = claimed.and_then(|claimed| {
            let is_named = named.iter().any(|named| named.event_id == claimed.event_id);
            let heard = of_node.get_mut(&claimed.event_id)?;
            let can_tell = heard.by.contains(node.name_any().as_str()) || notices.can_tell(node, &heard.by);
            if is_named || !can_tell {
                return None;
            }
            Some(*heard.silent_since.get_or_insert(now))
        });
        // What nobody tells of and nobody has claimed is forgotten.
        of_node.retain(|event, _| {
            named.iter().any(|named| named.event_id == *event)
                || claimed.is_some_and(|claimed| claimed.event_id == *event)
        });
        if !of_node.is_empty() {
            state.heard.insert(uid.to_owned(), of_node);
        }
        (named, silent_since)
    }

    /// Nodes that are gone need nothing more.
    pub fn forget_gone(&self, nodes: &Nodes) {
        let mut state = self.state();
        if state.heard.is_empty() && state.running.is_empty() {
            return;
        }
        let alive: BTreeSet<String> = nodes.all().iter().filter_map(|node| node.uid()).collect();
        state.heard.retain(|uid, _| alive.contains(uid));
        for (_, stop) in state.running.iter().filter(|(uid, _)| !alive.contains(*uid)) {
            stop.cancel();
        }
    }

    fn begin(self: &Arc<Self>, job: Job) {
        let stop = CancellationToken::new();
        {
            let mut state = self.state();
            if state.running.contains_key(&job.uid) {
                return;
            }
            state.running.insert(job.uid.clone(), stop.clone());
        }
        let drains = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = drains.work(&job, &stop) => {}
                () = stop.cancelled() => {}
            }
            drains.state().running.remove(&job.uid);
            drains.trigger.fire();
        });
    }

    async fn work(&self, job: &Job, stop: &CancellationToken) {
        let Some(node) = self.read(job).await else { return };
        let (_, watched) = watch::channel(Some(Arc::new(node.clone())));
        let handle = NodeHandle::new(self.client.clone(), names::OPERATOR_FIELD_MANAGER, &job.node, watched);
        match &job.task {
            Task::GiveBack(phase) => self.give_back(job, &handle, *phase).await,
            Task::Claim(wanted) => {
                if wanted.source == Source::NodeProblemDetector && self.has_ready_agent(job).await {
                    // It listens to the metadata service itself, and to the detector where that is silent.
                    tracing::debug!(
                        node = job.node,
                        "the agent is ready and has not claimed what the detector says"
                    );
                    tokio::time::sleep(ASK_AGAIN).await;
                    return;
                }
                let claim = |node: &Node| {
                    if may_claim(node, &wanted.event_id) {
                        marks::notice(node, wanted)
                    } else {
                        Edit::default()
                    }
                };
                let Some(node) = write(&handle, claim).await else { return };
                let Some(claimed) = ours(&node, &wanted.event_id) else { return };
                self.metrics.backup_drain(CLAIMED);
                tracing::warn!(
                    node = job.node, event_id = claimed.event_id, reason = %Reason::BackupDrain, deadline = %claimed.deadline,
                    "no agent has claimed the notice of this node in time: claimed"
                );
                let then = match claimed.response {
                    EventResponse::Drain => "the operator drains it",
                    _ => "the operator has cordoned it",
                };
                let note = format!(
                    "Azure takes node {} back by {:.0} and its agent is silent: {then} (event {})",
                    job.node, claimed.deadline, claimed.event_id
                );
                self.tell(job, "BackupDrain/Claim", true, note);
                if claimed.response == EventResponse::Drain {
                    let about = about(&claimed);
                    self.drain(job, &handle, claimed, stop).instrument(about).await;
                }
            }
            Task::GoOn => {
                let active = node.notice().filter(|it| it.is_active() && it.by == Claimant::Operator);
                let Some(claimed) = active.filter(|it| it.response == EventResponse::Drain) else { return };
                tracing::info!(node = job.node, event_id = claimed.event_id, "goes on with the drain");
                let about = about(&claimed);
                self.drain(job, &handle, claimed, stop).instrument(about).await;
            }
        }
    }

    /// The Node as it is now: what the store shows may be older than a claim.
    async fn read(&self, job: &Job) -> Option<Node> {
        let api = Api::<Node>::all(self.client.clone());
        let read = tokio::time::timeout(READ_TIMEOUT, api.get(&job.node)).await;
        match read {
            Ok(Ok(node)) => Some(node).filter(|node| node.metadata.uid.as_ref() == Some(&job.uid)),
            Ok(Err(error)) => {
                tracing::warn!(node = job.node, %error, "cannot read the Node of a silent agent; trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
                None
            }
            Err(_) => None,
        }
    }

    async fn has_ready_agent(&self, job: &Job) -> bool {
        let agents = ListParams::default()
            .labels(&format!("{}={}", names::APP_NAME_LABEL, names::AGENT_APP_NAME))
            .fields(&format!("spec.nodeName={}", job.node));
        let api = Api::<core::Pod>::all(self.client.clone());
        let is_ready = |pod: &core::Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
        };
        match tokio::time::timeout(READ_TIMEOUT, api.list(&agents)).await {
            Ok(Ok(pods)) => pods.iter().any(is_ready),
            _ => false,
        }
    }

    async fn drain(&self, job: &Job, handle: &NodeHandle, claimed: EvictionNotice, stop: &CancellationToken) {
        let Ok(_slot) = self.slots.acquire().await else { return };
        let (event_id, deadline) = (claimed.event_id.clone(), claimed.deadline);
        let terms = Terms::Preempt { noticed: claimed.observed_at, deadline, policy: job.policy.clone() };
        let (sender, pods) = watch::channel(Pods::default());
        let (_, urgent) = watch::channel(true);
        let wanted = watch::Sender::new(claimed);
        let hears = Hears { node: &job.node, wanted: &wanted, before: wanted.borrow().pods };
        let drain = Drain {
            client: &self.client,
            pods,
            terms: watch::channel(terms).1,
            holds: watch::channel(Holds::default()).1,
            crowd: 1,
            stop: stop.clone(),
            observer: &hears,
        };
        let report = tokio::select! {
            report = drain.run() => report,
            never = watch_pods(self.client.clone(), &job.node, sender, urgent) => match never {},
            never = keep_written(handle, &wanted) => match never {},
        };
        let mut end = wanted.borrow().clone();
        let Some((phase, reason)) = noted::ending(&mut end, hears.before, &report) else { return };
        let PodCounts { evicted, escalated, left } = end.pods;
        let margin_s = deadline.duration_since(Timestamp::now()).as_secs_f64();
        tracing::info!(node = job.node, event_id, %reason, evicted, escalated, left, margin_s, "backup drain over");
        for pod in &report.left {
            tracing::warn!(node = job.node, event_id, %reason, pod, "left on the node");
        }
        self.metrics.backup_drain(phase_name(phase));
        let note = format!(
            "Node {}: {evicted} pods evicted, {escalated} deleted past their disruption budget, {left} left (event {event_id})",
            job.node
        );
        self.tell(job, "BackupDrain/End", phase == Phase::Incomplete, note);
        write(handle, |node| progress(node, &end)).await;
    }

    async fn give_back(&self, job: &Job, handle: &NodeHandle, phase: Phase) {
        let ended = |node: &Node| match node.notice() {
            Some(notice) if notice.by == Claimant::Operator => marks::ended(node, phase),
            _ => Edit::default(),
        };
        if let Some(node) = write(handle, ended).await {
            let event_id = node.notice().map(|notice| notice.event_id).unwrap_or_default();
            tracing::info!(node = job.node, event_id, ?phase, "the operator's marks are taken off");
            self.metrics.backup_drain(phase_name(phase));
            let why = match phase {
                Phase::Cancelled => "Azure does not take it back",
                _ => "it is at work again",
            };
            let note = format!("Node {} is given back: {why} (event {event_id})", job.node);
            self.tell(job, "BackupDrain/GiveBack", false, note);
        }
    }

    fn tell(&self, job: &Job, action: &'static str, is_warning: bool, note: String) {
        let news = News { node: job.node.clone(), action, is_warning, note };
        self.state().news.entry(job.spot_pool.clone()).or_default().push(news);
        self.trigger.fire();
    }
}

/// Writes what changes of the notice, as long as it is the operator's.
async fn keep_written(
    handle: &NodeHandle,
    wanted: &watch::Sender<EvictionNotice>,
) -> std::convert::Infallible {
    let mut changes = wanted.subscribe();
    let mut told = changes.borrow_and_update().clone();
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        let wanted = changes.borrow_and_update().clone();
        // Numbers alone are no reason to write.
        if (EvictionNotice { pods: told.pods, ..wanted.clone() }) != told {
            handle.write(|node| progress(node, &wanted), || ()).await;
            told = wanted;
        }
    }
}

async fn write(handle: &NodeHandle, edit: impl Fn(&Node) -> Edit) -> Option<Arc<Node>> {
    let written = tokio::time::timeout(WRITE_TIMEOUT, handle.write(edit, || ())).await;
    written.inspect_err(|_| tracing::warn!(node = handle.name(), "the Node could not be written")).ok()
}

/// Whether no agent has claimed the event meanwhile, nor said that it is over.
pub fn may_claim(node: &Node, event_id: &str) -> bool {
    node.notice().is_none_or(|notice| match (notice.by, notice.is_active()) {
        (Claimant::NodeAgent, true) => !notice.takes_capacity(),
        (Claimant::NodeAgent, false) => notice.event_id != event_id,
        (Claimant::Operator, is_active) => !is_active,
    })
}

/// The notice of an event, while it is the operator's.
pub fn ours(node: &Node, event_id: &str) -> Option<EvictionNotice> {
    node.notice().filter(|it| it.by == Claimant::Operator && it.is_active() && it.event_id == event_id)
}

/// How far the drain is; nothing once an agent has taken it over.
pub fn progress(node: &Node, wanted: &EvictionNotice) -> Edit {
    if ours(node, &wanted.event_id).is_some() { marks::progress(node, wanted) } else { Edit::default() }
}

/// Shared code knows of no events: what it logs is found by the span.
fn about(claimed: &EvictionNotice) -> tracing::Span {
    tracing::error_span!("event", event_id = claimed.event_id)
}

/// A claim as it is first wanted on the Node.
pub fn noticed(claim: Claim, response: EventResponse, boot_id: &str) -> EvictionNotice {
    EvictionNotice {
        by: Claimant::Operator,
        event_id: claim.event_id,
        event_type: PREEMPT.to_owned(),
        source: claim.source,
        response,
        observed_at: claim.observed_at,
        not_before: claim.not_before,
        deadline: claim.deadline,
        phase: Phase::Noticed,
        pods: PodCounts::default(),
        cordoned: false,
        boot_id: boot_id.to_owned(),
        traceparent: None,
        doomed: Vec::new(),
        unfinished: Vec::new(),
    }
}

/// The Node's conditions as the node problem detector's reader takes them.
fn detected(node: &core::Node) -> Vec<Condition> {
    let of_detector = [names::PREEMPTION_SCHEDULED_CONDITION, names::VM_EVENT_SCHEDULED_CONDITION];
    conditions(node)
        .filter(|it| of_detector.contains(&it.type_.as_str()))
        .map(|it| Condition {
            kind: it.type_.clone(),
            status: it.status.clone(),
            reason: it.reason.clone(),
            message: it.message.clone(),
            last_transition_time: it.last_transition_time.as_ref().map(|time| time.0),
        })
        .collect()
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Drained => "Drained",
        Phase::Incomplete => "Incomplete",
        Phase::Cancelled => "Cancelled",
        Phase::Over => "Over",
        Phase::Noticed | Phase::Draining => CLAIMED,
    }
}

/// Keeps the numbers of the notice up to date.
struct Hears<'a> {
    node: &'a str,
    wanted: &'a watch::Sender<EvictionNotice>,
    before: PodCounts,
}

impl Observer for Hears<'_> {
    fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        let event_id = &self.wanted.borrow().event_id;
        tracing::debug!(
            event_id,
            pod = format_args!("{}/{}", pod.namespace, pod.name),
            deleted,
            ?answer,
            "answer"
        );
    }

    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let names: Vec<&str> = budgets.iter().map(|budget| budget.name.as_str()).collect();
        let event_id = &self.wanted.borrow().event_id;
        tracing::warn!(
            node = self.node, event_id, reason = %Reason::DisruptionBudgetOverridden, pod = format_args!("{}/{}", pod.namespace, pod.name),
            budgets = names.join(", "), "deleted in place of an eviction: its VM is about to go"
        );
    }

    fn nearly_over(&self, left: &[String]) {
        self.wanted.send_modify(|wanted| noted::unfinished(wanted, left));
    }

    fn progressed(&self, progress: &Progress) {
        self.wanted.send_if_modified(|wanted| noted::progress(wanted, self.before, progress));
    }
}
