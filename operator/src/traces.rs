//! What the operator leaves in the traces of evictions: from the notice until as much is ready as was before, and the
//! pods run again. Each pass of a reconciliation tells what it did; between passes it is told what is waited for, so
//! that no time is without a name.
//!
//! Nothing is looked for where nobody collects traces, and nothing is decided by what is kept here: another leader
//! begins with what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use spotpool_core::{Action, Plan};
use spotpool_crds::eviction::{Claimant, PREEMPT, Phase};
use spotpool_crds::spot_pool::{Operation, OperationKind};
use spotpool_crds::{EvictionNotice, SpotPool};
use spotpool_runtime::trace::{Parent, Recorded, TraceId, TraceLabel, Tracer};

use crate::pool::act::Outcome;
use crate::pool::gather::Gathered;
use crate::pool::is_short;
use crate::workloads::{Owner, Workloads};

/// Traces that one SpotPool's recovery is told in at most: each has all of its spans.
const MOST_TRACES: usize = 64;
/// Steps of a plan, and nodes, told at most.
const MOST_TOLD: usize = 64;
/// Notices that are older when they are seen first were handled by whoever was before.
const OLD: SignedDuration = SignedDuration::from_mins(10);
/// What has not come back in so long is told as it is.
const GIVEN_UP: SignedDuration = SignedDuration::from_hours(1);
/// A Job brings a pod back after a pause; a workload that was made smaller never does.
const COMES_BACK: SignedDuration = SignedDuration::from_mins(1);
/// How often pods are looked at once the capacity is there.
const LOOK: Duration = Duration::from_millis(250);
/// Pauses that are not worth a span.
const SHORT: SignedDuration = SignedDuration::from_millis(5);

/// A reconciliation, once it has acted.
pub struct Pass<'a> {
    /// The SpotPool.
    pub pool: &'a SpotPool,
    /// What was known.
    pub gathered: &'a Gathered,
    /// What was planned.
    pub plan: &'a Plan,
    /// What was to be asked of agent pools.
    pub intentions: &'a BTreeMap<String, Operation>,
    /// What came of it.
    pub outcome: &'a Outcome,
    /// When it began, …
    pub began: Timestamp,
    /// … had a plan, …
    pub planned: Timestamp,
    /// … had written down what it was about to do, …
    pub noted: Timestamp,
    /// … and had done it.
    pub acted: Timestamp,
}

/// The traces of all SpotPools.
pub struct Traces {
    tracer: Tracer,
    workloads: Workloads,
    recoveries: Mutex<BTreeMap<String, Recovery>>,
}

/// One SpotPool's way back to what was ready before.
#[derive(Default)]
struct Recovery {
    name: (String, String),
    /// Notices seen at the last look, by node and event.
    known: Option<BTreeSet<(String, String)>>,
    open: BTreeMap<(String, String), Eviction>,
    /// Recovered from, while their drains go on: an agent may tell of them yet, or go with its VM.
    draining: BTreeMap<(String, String), Eviction>,
    /// Of pods that were on these nodes, and how many each had.
    owners: BTreeMap<Owner, usize>,
    /// Since when no pod of theirs that is there waits.
    runs_since: Option<Timestamp>,
    /// Since when agent pools are at work for us.
    asked: BTreeMap<String, (Operation, Timestamp)>,
    /// When agent pools were asked for machines at last.
    sent: BTreeMap<String, Timestamp>,
    /// Nodes that serve.
    serving: BTreeSet<String>,
    /// Since when nothing is under way.
    idle_since: Option<Timestamp>,
    /// Since when as much is ready as was before.
    whole_since: Option<Timestamp>,
}

/// A notice that was not there before.
struct Eviction {
    parent: Parent,
    notice: EvictionNotice,
}

impl Traces {
    /// Of what `workloads` knows of pods.
    pub fn new(tracer: Tracer, workloads: Workloads) -> Self {
        Self { tracer, workloads, recoveries: Mutex::default() }
    }

    fn recoveries(&self) -> MutexGuard<'_, BTreeMap<String, Recovery>> {
        self.recoveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets SpotPools that are gone.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        self.recoveries().retain(|uid, _| is_there(uid));
    }

    /// For figures of a SpotPool: the newest eviction that it recovers from, else the newest notice on its nodes.
    pub fn exemplar(&self, uid: &str, gathered: &Gathered) -> Option<TraceLabel> {
        if !self.tracer.is_on() {
            return None;
        }
        let trace = self.recoveries().get(uid).and_then(|recovery| {
            let newest = recovery.open.values().max_by_key(|eviction| eviction.notice.observed_at)?;
            Some(newest.parent.trace)
        });
        let noticed = || {
            let active = gathered.notices.all().filter(|notice| notice.takes_capacity());
            let newest = active.max_by_key(|notice| notice.observed_at)?;
            Some(TraceId::of_event(&newest.event_id))
        };
        trace.or_else(noticed).map(TraceLabel::from)
    }

    /// Tells what a reconciliation did.
    pub fn passed(&self, pass: &Pass<'_>) {
        if !self.tracer.is_on() {
            return;
        }
        let mut recoveries = self.recoveries();
        let recovery = recoveries.entry(pass.pool.uid().unwrap_or_default()).or_default();
        recovery.name = (pass.pool.namespace().unwrap_or_default(), pass.pool.name_any());
        let is_new = recovery.meet(&self.tracer, pass);
        recovery.see_drains_off(&self.tracer, pass.began);
        if recovery.open.is_empty() {
            recovery.serving = serving(pass);
            return;
        }
        let nodes: BTreeSet<&str> = recovery.open.keys().map(|(node, _)| node.as_str()).collect();
        let owners = self.workloads.owners_on(&nodes);
        for (owner, count) in owners {
            recovery.owners.entry(owner).or_insert(count);
        }
        recovery.tell(&self.tracer, pass, is_new);
        let is_cancelled = |eviction: &Eviction| !eviction.notice.is_active();
        if recovery.open.values().all(is_cancelled) {
            recovery.end(&self.tracer, pass.acted, Some("Azure has taken the event back"));
        } else if recovery.is_old(pass.acted) {
            recovery.end(&self.tracer, pass.acted, Some("not as much is ready as was before"));
        }
    }

    /// Looks whether pods run again, for ever.
    pub async fn keep_looking(&self) -> Infallible {
        if !self.tracer.is_on() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Timestamp::now();
            for recovery in self.recoveries().values_mut() {
                let Some(since) = recovery.whole_since else { continue };
                let nodes = recovery.open.keys().map(|(node, _)| node.as_str()).collect();
                let waiting = self.workloads.waiting(&recovery.owners, &nodes);
                if waiting == 0 {
                    let runs_since = *recovery.runs_since.get_or_insert(now);
                    let lacking = self.workloads.lacking(&recovery.owners);
                    if lacking > 0 && now.duration_since(runs_since) < COMES_BACK {
                        continue;
                    }
                    // What has not come back by then is not wanted any more.
                    let end = if lacking > 0 { runs_since } else { now };
                    recovery.each(&self.tracer, "pods run", &[&since.to_string()], |span| {
                        span.lasting(since, end)
                    });
                    recovery.end(&self.tracer, end, None);
                    continue;
                }
                recovery.runs_since = None;
                if recovery.is_old(now) {
                    let why = format!("{waiting} pods of what ran on lost nodes do not run");
                    recovery.end(&self.tracer, now, Some(&why));
                }
            }
        }
    }
}

fn serving(pass: &Pass<'_>) -> BTreeSet<String> {
    let nodes = pass.gathered.snapshot.nodes().filter(|node| node.serves());
    nodes.map(|node| node.name.clone()).collect()
}

impl Recovery {
    /// Takes in what is said on nodes. Whether there is a notice that was not there before.
    fn meet(&mut self, tracer: &Tracer, pass: &Pass<'_>) -> bool {
        let is_first = self.known.is_none();
        let before = self.known.take().unwrap_or_default();
        let mut known = BTreeSet::new();
        let mut is_new = false;
        for node in &pass.gathered.nodes {
            let name = node.metadata.name.clone().unwrap_or_default();
            let Some(notice) = pass.gathered.notices.on(node).filter(|it| it.event_type == PREEMPT) else {
                continue;
            };
            let key = (name, notice.event_id.clone());
            if let Some(eviction) = self.open.get_mut(&key).or(self.draining.get_mut(&key)) {
                eviction.notice = notice.clone();
            } else if notice.is_active()
                && !before.contains(&key)
                && !(is_first && pass.began.duration_since(notice.observed_at) > OLD)
                && self.open.len() < MOST_TRACES
            {
                is_new = true;
                let parent = notice.traceparent.as_deref().and_then(Parent::read);
                let parent = parent.unwrap_or_else(|| Parent::of_eviction(&key.1, &key.0));
                let seen = parent.child("operator sees it", &["operator sees it", &key.0, &key.1]);
                tracer.send(seen.lasting(notice.observed_at, pass.began).with("k8s.node.name", &*key.0));
                self.open.insert(key.clone(), Eviction { parent, notice: notice.clone() });
                self.whole_since = None;
            }
            known.insert(key);
        }
        self.known = Some(known);
        is_new
    }

    /// Tells the whole of evictions that nobody else will tell: drained by us, or by an agent that has gone.
    fn see_drains_off(&mut self, tracer: &Tracer, now: Timestamp) {
        let known = self.known.as_ref();
        self.draining.retain(|key, eviction| {
            let notice = &eviction.notice;
            let is_there = known.is_some_and(|known| known.contains(key));
            let is_agents = notice.by == Claimant::NodeAgent && notice.traceparent.is_some();
            let is_over = is_over(notice);
            if is_there && !is_over {
                return true;
            }
            if !(is_agents && is_over) {
                tracer.send(untold(&key.0, eviction, now));
            }
            false
        });
    }

    /// Has a span below each trace's first eviction.
    fn each(&self, tracer: &Tracer, name: &str, about: &[&str], make: impl Fn(Recorded) -> Recorded) {
        let mut told: BTreeSet<TraceId> = BTreeSet::new();
        for eviction in self.open.values() {
            if told.insert(eviction.parent.trace) {
                let about: Vec<&str> =
                    [name, &self.name.0, &self.name.1].into_iter().chain(about.iter().copied()).collect();
                let span = make(eviction.parent.child(name, &about));
                tracer.send(
                    span.with("spotpool.namespace", &*self.name.0).with("spotpool.pool", &*self.name.1),
                );
            }
        }
    }

    fn tell(&mut self, tracer: &Tracer, pass: &Pass<'_>, is_new: bool) {
        let at = pass.began.to_string();
        let acts = !pass.plan.actions.is_empty();
        if let Some(since) =
            self.idle_since.filter(|since| (acts || is_new) && pass.began.duration_since(*since) > SHORT)
        {
            self.each(tracer, "wait", &[&since.to_string()], |span| span.lasting(since, pass.began));
        }
        if acts || is_new {
            self.each(tracer, "plan", &[&at], |span| {
                planned(span.lasting(pass.began, pass.planned), pass.plan)
            });
            self.idle_since = None;
        }
        if acts {
            let name = "note what will be asked";
            self.each(tracer, name, &[&at], |span| span.lasting(pass.planned, pass.noted));
        }
        for action in &pass.plan.actions {
            let Some(agent_pool) = action.agent_pool() else { continue };
            let (from, to) = pass.outcome.took.get(agent_pool).copied().unwrap_or((pass.noted, pass.acted));
            self.each(tracer, "ask Azure", &[agent_pool, &at], |span| {
                let span = span
                    .lasting(from, to)
                    .request()
                    .with("spotpool.agent_pool", agent_pool)
                    .with("spotpool.reason", action.reason().to_string());
                let span = match action {
                    Action::ScaleUp { new, count, .. } => {
                        span.with("spotpool.count", *count).with("spotpool.machines", *new)
                    }
                    _ => span,
                };
                match pass.outcome.failed.get(agent_pool) {
                    Some(error) => span
                        .with("error.type", error.code.clone())
                        .failed(format!("{}: {}", error.class, error.message)),
                    None => span,
                }
            });
        }
        self.operations(tracer, pass);
        self.nodes(tracer, pass);
        let is_under_way = !self.asked.is_empty();
        let is_whole = !is_short(pass.plan);
        match (is_whole, self.whole_since) {
            (true, None) => self.whole_since = Some(pass.acted),
            (false, _) => self.whole_since = None,
            (true, Some(_)) => {}
        }
        self.idle_since = if is_under_way || is_whole { None } else { self.idle_since.or(Some(pass.acted)) };
    }

    /// Azure's operations, from its answer until they are over.
    fn operations(&mut self, tracer: &Tracer, pass: &Pass<'_>) {
        let done = pass.outcome.done.iter().filter_map(Action::agent_pool);
        let asked: BTreeSet<&str> = done.collect();
        for pool in &pass.gathered.snapshot.agent_pools {
            let running = pool.operation.as_ref().filter(|operation| operation.accepted);
            let is_over =
                |asked: &(Operation, Timestamp)| running.is_none_or(|running| running.since != asked.0.since);
            if let Some((operation, since)) =
                self.asked.get(&pool.name).filter(|asked| is_over(asked)).cloned()
            {
                self.asked.remove(&pool.name);
                self.operation(tracer, &pool.name, &operation, since, pass.began);
            }
        }
        for (agent_pool, operation) in pass.intentions {
            if asked.contains(agent_pool.as_str()) && operation.kind == OperationKind::ScaleUp {
                let from = pass.outcome.took.get(agent_pool).map_or(pass.acted, |(_, to)| *to);
                self.sent.insert(agent_pool.clone(), from);
                self.asked.insert(agent_pool.clone(), (operation.clone(), from));
            }
        }
    }

    fn operation(
        &self,
        tracer: &Tracer,
        agent_pool: &str,
        operation: &Operation,
        from: Timestamp,
        to: Timestamp,
    ) {
        self.each(tracer, "operation", &[agent_pool, &from.to_string()], |span| {
            span.lasting(from, to)
                .with("spotpool.agent_pool", agent_pool)
                .with("spotpool.operation", format!("{:?}", operation.kind))
        });
    }

    /// Nodes that serve now and did not before.
    fn nodes(&mut self, tracer: &Tracer, pass: &Pass<'_>) {
        let now = serving(pass);
        let come = pass
            .gathered
            .snapshot
            .nodes()
            .filter(|node| now.contains(&node.name) && !self.serving.contains(&node.name));
        for node in come.take(MOST_TOLD) {
            let first = self.first_seen().unwrap_or(node.created);
            let from = self
                .sent
                .get(&node.agent_pool)
                .map_or(node.created, |sent| node.created.min(*sent))
                .max(first);
            self.each(tracer, "node comes", &[&node.name], |span| {
                span.lasting(from, pass.began)
                    .event(node.created, "Node created", Vec::new())
                    .with("k8s.node.name", &*node.name)
                    .with("spotpool.agent_pool", &*node.agent_pool)
            });
        }
        self.serving = now;
    }

    fn first_seen(&self) -> Option<Timestamp> {
        self.open.values().map(|eviction| eviction.notice.observed_at).min()
    }

    fn is_old(&self, now: Timestamp) -> bool {
        let last = self.open.values().map(|eviction| eviction.notice.observed_at).max();
        last.is_some_and(|last| now.duration_since(last) > GIVEN_UP)
    }

    /// Tells the whole, and is ready for what comes next.
    fn end(&mut self, tracer: &Tracer, now: Timestamp, failed: Option<&str>) {
        let first = self.first_seen().unwrap_or(now);
        // Azure may say later that it is done: the capacity is there all the same.
        for (agent_pool, (operation, since)) in &self.asked {
            self.operation(tracer, agent_pool, operation, *since, now);
        }
        let (ready, evictions) = (self.whole_since.unwrap_or(now), self.open.len() as u32);
        self.each(tracer, "recovery", &[&first.to_string()], |span| {
            let span = span
                .lasting(first, now)
                .with("spotpool.evictions", evictions)
                .with("spotpool.ready_after_seconds", ready.duration_since(first).as_secs_f64());
            match failed {
                Some(why) => span.failed(why),
                None => span,
            }
        });
        self.draining.append(&mut self.open);
        self.see_drains_off(tracer, now);
        self.owners.clear();
        self.asked.clear();
        self.sent.clear();
        (self.idle_since, self.whole_since, self.runs_since) = (None, None, None);
    }
}

/// Whether the drain has ended, however it did.
fn is_over(notice: &EvictionNotice) -> bool {
    matches!(notice.phase, Phase::Drained | Phase::Incomplete | Phase::Cancelled | Phase::Over)
}

/// The span that all others hang on, which no agent has told: it writes no traces, or it went with its VM.
fn untold(node: &str, eviction: &Eviction, now: Timestamp) -> Recorded {
    let notice = &eviction.notice;
    let span = eviction
        .parent
        .itself("eviction")
        .lasting(notice.observed_at, notice.deadline.min(now))
        .with("spotpool.event.id", &*notice.event_id)
        .with("spotpool.event.type", &*notice.event_type)
        .with("k8s.node.name", node)
        .with("spotpool.drain.phase", format!("{:?}", notice.phase));
    if is_over(notice) { span } else { span.failed("the node was gone before its drain was over") }
}

fn planned(span: Recorded, plan: &Plan) -> Recorded {
    let reasons: Vec<String> = plan.actions.iter().map(|action| action.reason().to_string()).collect();
    let capacity = &plan.capacity;
    let first = plan.steps.get(1).or(plan.steps.first()).map(|step| step.message.clone());
    let span = span
        .with("spotpool.plan", first.unwrap_or_default())
        .with("spotpool.reasons", reasons)
        .with(
            "spotpool.steps",
            plan.steps.iter().take(MOST_TOLD).map(|step| step.message.clone()).collect::<Vec<_>>(),
        )
        .with("spotpool.capacity.ready_spot", i64::from(capacity.ready_spot))
        .with("spotpool.capacity.ready_on_demand", i64::from(capacity.ready_on_demand))
        .with("spotpool.capacity.established", i64::from(capacity.established));
    span.with("spotpool.actions", plan.actions.len() as u32)
}
