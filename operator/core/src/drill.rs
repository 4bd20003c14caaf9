//! One step of an eviction drill: which nodes to take, whether that may be, what to ask next, and how it went.
//!
//! [`plan()`] is total: it waits or refuses, and says why. The status that it returns is written before its asks are carried out,
//! so that whoever comes after a crash knows what may have been asked.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rust_decimal::Decimal;
use spotpool_crds::drill::{
    DrillMethod, DrillPhase, DrillRun, DrillSchedule, EvictionDrillSpec, EvictionDrillStatus, HourlyCosts,
    Moment, PastRun, ReadyAt, Target, UnitsReady,
};
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::voluntary_drain::DrainPhase;
use spotpool_crds::{Duration, Reason};

mod choice;
mod guard;
mod progress;
mod verdict;

/// Where the schedule stands in a spec.
const SCHEDULE: &str = "schedule";
/// A run that is so late is left out: nobody expects it any more.
const TOO_LATE: SignedDuration = SignedDuration::from_mins(10);
/// When it looks again while it waits for what nobody tells it of.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(2);
/// How long nothing is heard of an ask before the same VM is asked for again.
const UNHEARD: SignedDuration = SignedDuration::from_secs(15);
/// How often a VM is asked for at most.
const MOST_ATTEMPTS: i32 = 3;
/// Moments that are kept of a run.
const MOST_MOMENTS: usize = 64;
/// Past runs that are kept.
const MOST_RUNS: usize = 5;
/// Nodes that a sentence names.
const NAMED: usize = 10;

/// What is known when a step is decided.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The drill's uid.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The SpotPool; absent if there is none of that name.
    pub pool: Option<Pool>,
    /// The nodes of the SpotPool's agent pools.
    pub nodes: Vec<Node>,
    /// Nodes of the cluster under an eviction notice.
    pub noticed: Vec<String>,
    /// Disruption budgets of pods on these nodes that have fewer healthy pods than they ask for; absent until workloads have been
    /// read.
    pub unready_budgets: Option<Vec<String>>,
    /// How many pods a drain would move, by node and namespace; absent until workloads have been read.
    pub pods: Option<BTreeMap<String, BTreeMap<String, u32>>>,
    /// Agent pools that take no request now: an operation runs there.
    pub occupied: BTreeSet<String>,
    /// Another drill that is under way.
    pub other: Option<String>,
}

impl Snapshot {
    /// How many pods a drain of this node would move.
    fn pods_on(&self, node: &str) -> u32 {
        let pods = self.pods.as_ref().and_then(|pods| pods.get(node));
        pods.map_or(0, |pods| pods.values().sum())
    }
}

/// The SpotPool.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Why it does not act now, in words, if it does not: suspended, only observing, being deleted.
    pub idle: Option<String>,
    /// Units that it wants.
    pub wanted: u32,
    /// Units that are ready, as its status last said.
    pub ready: u32,
    /// Why its objective is in danger, if it is.
    pub burning: Option<String>,
    /// Agent pools that have an operation running.
    pub busy: Vec<String>,
    /// What its machines cost an hour, if that is known.
    pub hourly: Option<Decimal>,
    /// Of what, by ISO 4217.
    pub currency: String,
}

/// A node of the SpotPool.
#[expect(clippy::struct_excessive_bools, reason = "each is seen by itself, in any combination")]
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its VM.
    pub vm: String,
    /// Its agent pool.
    pub agent_pool: String,
    /// Its zone.
    pub zone: String,
    /// What it is worth.
    pub units: u32,
    /// Whether its agent pool is spot.
    pub is_spot: bool,
    /// Whether `target.nodeSelector` selects it.
    pub selected: bool,
    /// Ready for pods: the kubelet says so, and it is neither closed nor under notice nor asked to drain.
    pub ready: bool,
    /// Whether its kubelet is ready.
    pub alive: bool,
    /// Whether it takes no new pods.
    pub closed: bool,
    /// Its notice.
    pub notice: Option<Notice>,
    /// The drain that it is asked for.
    pub request: Option<String>,
    /// Its agent's answer: to which request, how far it is, pods left.
    pub drain: Option<(String, DrainPhase, u32)>,
    /// What holds up its drain, as its agent tells.
    pub held: Vec<String>,
}

/// An eviction notice on a node.
#[derive(Clone, Copy, Debug)]
pub struct Notice {
    /// How far the drain is.
    pub phase: Phase,
    /// Of its pods.
    pub pods: PodCounts,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Have Azure evict the VM of a node.
    Evict {
        /// The node.
        node: String,
        /// Its VM.
        vm: String,
    },
    /// Have AKS delete machines of an agent pool, all in one request: it takes no second one meanwhile.
    Delete {
        /// The agent pool.
        agent_pool: String,
        /// Their nodes.
        machines: Vec<Machine>,
    },
    /// Ask the node's agent to drain it.
    Drain {
        /// The node.
        node: String,
        /// Its uid.
        uid: String,
        /// Names the request.
        request: String,
        /// When the agent gives it back by itself.
        not_after: Timestamp,
    },
    /// Take that back.
    Withdraw {
        /// The node.
        node: String,
        /// Its uid.
        uid: String,
    },
}

/// A machine, by its Node: whoever deletes it sees to it that the Node is still the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The Node, and the machine, as AKS calls both.
    pub node: String,
    /// The Node's uid.
    pub uid: String,
    /// Its VM.
    pub vm: String,
}

/// An Event about the drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Why.
    pub reason: Reason,
    /// In words.
    pub note: String,
    /// Which run.
    pub run: String,
}

/// The outcome of [`plan()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// To be written first.
    pub status: EvictionDrillStatus,
    /// To be done then.
    pub asks: Vec<Ask>,
    /// To be told.
    pub news: Vec<News>,
    /// When time alone changes the plan.
    pub wake: Option<Timestamp>,
}

/// All that a step looks at, and the status that it makes.
struct Draft<'a> {
    spec: &'a EvictionDrillSpec,
    snapshot: &'a Snapshot,
    status: EvictionDrillStatus,
    asks: Vec<Ask>,
    news: Vec<News>,
    wake: Option<Timestamp>,
    now: Timestamp,
}

/// The next step of one drill.
pub fn plan(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    status: &EvictionDrillStatus,
    now: Timestamp,
) -> Plan {
    let mut draft =
        Draft { spec, snapshot, status: status.clone(), asks: Vec::new(), news: Vec::new(), wake: None, now };
    draft.status.observed_generation = snapshot.generation;
    if status.is_under_way() {
        draft.advance();
    } else {
        draft.begin_if_due();
    }
    let Draft { status, asks, news, wake, .. } = draft;
    Plan { status, asks, news, wake }
}

/// The name of the request by which a run asks for a node.
pub fn request_id(run: &str, node: &str) -> String {
    format!("drill-{run}-{node}")
}

impl Draft<'_> {
    fn begin_if_due(&mut self) {
        let due = match &self.spec.schedule {
            Some(_) => self.scheduled(),
            None => (self.status.ran_generation != self.snapshot.generation)
                .then(|| format!("{}-{}", short(&self.snapshot.uid), self.snapshot.generation)),
        };
        let Some(run) = due else { return };
        if let Some(other) = &self.snapshot.other {
            return self.wait(format!("waits for drill {other}: one runs at a time"));
        }
        if self.snapshot.pods.is_none() || self.snapshot.unready_budgets.is_none() {
            return self.wait("waits until pods and disruption budgets have been read".into());
        }
        self.remember_last();
        self.status.ran_generation = self.snapshot.generation;
        let choice = choice::choose(self.spec, self.snapshot);
        let run = DrillRun {
            id: run,
            method: self.spec.method,
            seed: short(&self.snapshot.uid),
            candidates: choice.candidates as i32,
            targets: choice.targets,
            ..DrillRun::default()
        };
        let mut refusals = guard::hindrances(self.spec, self.snapshot, &run.targets, self.now);
        refusals.extend(choice.refusal);
        refusals.extend(guard::refusals(self.spec, self.snapshot, &run.targets));
        let nodes = self.sentence(&run);
        if !refusals.is_empty() {
            self.status.run = Some(DrillRun { targets: Vec::new(), ..run });
            return self.end(DrillPhase::Refused, Reason::DrillRefused, refusals.join("; "));
        }
        if self.spec.dry_run {
            self.status.run = Some(run);
            let words = format!("would take {nodes}; dryRun: nothing is taken");
            return self.end(DrillPhase::Planned, Reason::DrillPlanned, words);
        }
        let ready = self.ready_units();
        let units = UnitsReady {
            wanted: self.snapshot.pool.as_ref().map_or(0, |pool| pool.wanted) as i32,
            before: ready as i32,
            lowest: ready as i32,
            now: ready as i32,
            since: Some(Time(self.now)),
            course: vec![ReadyAt { at: Time(self.now), ready: ready as i32 }],
            ..UnitsReady::default()
        };
        let hourly_cost = self.hourly().map(|(hourly, currency)| HourlyCosts {
            currency,
            before: hourly.to_string(),
            highest: hourly.to_string(),
            now: hourly.to_string(),
        });
        self.status.run = Some(DrillRun { started_at: Some(Time(self.now)), units, hourly_cost, ..run });
        let words = format!("takes {nodes}");
        self.moment(words.clone());
        self.tell(Reason::DrillStarted, words.clone());
        self.status.phase = Some(DrillPhase::Running);
        self.status.message = words;
        self.advance();
    }

    /// The run that is due by the schedule. Keeps `nextRunAt`.
    fn scheduled(&mut self) -> Option<String> {
        let is_new = self.status.ran_generation != self.snapshot.generation;
        self.status.ran_generation = self.snapshot.generation;
        let schedule = self.spec.schedule.as_ref().filter(|schedule| !schedule.suspend);
        let Some(schedule) = schedule else {
            self.status.next_run_at = None;
            self.wait_for_schedule("its schedule is suspended".into());
            return None;
        };
        let next = crate::next_time(SCHEDULE, &schedule.cron, &schedule.time_zone, self.now);
        let next = match next {
            Ok(next) => next,
            Err(what_to_change) => {
                self.status.next_run_at = None;
                if self.status.message != what_to_change {
                    self.remember_last();
                    self.end(DrillPhase::Refused, Reason::DrillRefused, what_to_change);
                }
                return None;
            }
        };
        // A schedule that was changed is followed from now on.
        let told = self.status.next_run_at.as_ref().map(|at| at.0).filter(|_| !is_new);
        let due = told.and_then(|told| self.due_since(told, schedule));
        let waits = self.snapshot.other.is_some() || !self.is_read();
        if let Some(due) = due.filter(|_| waits) {
            // Whoever waits stays due.
            self.status.next_run_at = Some(Time(due));
        } else {
            self.status.next_run_at = Some(Time(next));
            self.wake_at(next);
        }
        if due.is_none() {
            self.wait_for_schedule(format!("runs next at {next:.0}"));
        }
        due.map(|at| format!("{}-{}", short(&self.snapshot.uid), at.as_second()))
    }

    /// The first time of the schedule since `told` that has come and is not too late.
    fn due_since(&self, told: Timestamp, schedule: &DrillSchedule) -> Option<Timestamp> {
        let from = told.max(self.now.saturating_sub(TOO_LATE).ok()?);
        let before = from.saturating_sub(SignedDuration::from_secs(1)).ok()?;
        let due = crate::next_time(SCHEDULE, &schedule.cron, &schedule.time_zone, before).ok()?;
        Some(due).filter(|due| *due <= self.now)
    }

    fn is_read(&self) -> bool {
        self.snapshot.pods.is_some() && self.snapshot.unready_budgets.is_some()
    }

    /// How the last run went is told until the next, also after one that waited in vain.
    fn wait_for_schedule(&mut self, words: String) {
        let last = self.status.run.as_ref().and_then(|run| Some((run.result?, run.message.clone())));
        let (phase, message) = last.unwrap_or((DrillPhase::Pending, words));
        (self.status.phase, self.status.message) = (Some(phase), message);
    }

    fn wait(&mut self, words: String) {
        self.status.phase = Some(DrillPhase::Pending);
        self.status.message = words;
        self.wake_at(self.now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX));
    }

    /// One step of the run that is under way.
    fn advance(&mut self) {
        let Some(mut run) = self.status.run.take() else { return };
        self.observe(&mut run);
        self.give_up_unheard(&mut run);
        self.status.run = Some(run);
        if !self.is_aborted()
            && let Some(why) = self.breach()
        {
            self.abort(why);
        }
        if !self.is_aborted() {
            self.ask_next();
        }
        if !self.is_aborted() {
            self.ask_again();
        }
        self.withdraw_what_is_over();
        self.conclude();
    }

    fn is_aborted(&self) -> bool {
        self.status.run.as_ref().is_some_and(|run| run.aborted_at.is_some())
    }

    /// Why the run must end before its time, if it must.
    fn breach(&self) -> Option<String> {
        let run = self.status.run.as_ref()?;
        if self.status.ran_generation != self.snapshot.generation {
            return Some("the drill was changed while it ran".into());
        }
        if let Some(target) = run.targets.iter().find(|target| !target.refused.is_empty()) {
            return Some(format!("{} was not taken: {}", target.node, target.refused));
        }
        let timeout = run.started_at.as_ref().map(|at| later(at.0, self.spec.timeout));
        if timeout.is_some_and(|timeout| timeout <= self.now) {
            return Some(format!("it was not over within timeout {}", self.spec.timeout));
        }
        let least = self.spec.limits.min_ready_units.unwrap_or(0).max(0) as u32;
        if self.ready_units() < least {
            return Some(format!(
                "{} units are ready, and limits.minReadyUnits is {least}",
                self.ready_units()
            ));
        }
        let mut hindrances = guard::hindrances(self.spec, self.snapshot, &run.targets, self.now);
        let is_settled = |target: &Target| {
            let is_seen = target.noticed_at.is_some() || target.gone_at.is_some();
            target.intended_at.is_some() && (target.is_answered() || is_seen)
        };
        if run.targets.iter().all(is_settled) {
            // Nothing more is asked for: the hours say nothing about how long nodes take to come back, and budgets lack the pods
            // that have ended with their machine.
            let ends_pods = run.method == DrillMethod::DeleteMachine;
            let is_over =
                |why: &String| why.starts_with(guard::HOURS) || ends_pods && why.starts_with(guard::BUDGETS);
            hindrances.retain(|why| !is_over(why));
        }
        // Whoever was scheduled there before the node was closed.
        let being_emptied = run.targets.iter().filter(|target| {
            target.intended_at.is_some() && target.drained_at.is_none() && !target.is_over(run.method)
        });
        hindrances.extend(guard::strangers(self.spec, self.snapshot, being_emptied));
        (!hindrances.is_empty()).then(|| hindrances.join("; "))
    }

    fn abort(&mut self, why: String) {
        self.moment(format!("aborted: {why}"));
        self.tell(Reason::DrillAborted, why.clone());
        if let Some(run) = &mut self.status.run {
            run.aborted_at = Some(Time(self.now));
            run.aborted_for = why;
        }
    }

    /// Takes another node for each of these that has gone, or has pods of others; says why that cannot be.
    fn choose_instead(&self, run: &mut DrillRun, stage: &[usize]) -> Result<(), String> {
        for at in stage {
            let target = &run.targets[*at];
            let strangers = guard::strangers(self.spec, self.snapshot, std::iter::once(target));
            let is_there = self.snapshot.nodes.iter().any(|node| node.uid == target.uid);
            if strangers.is_none() && is_there {
                continue;
            }
            match (choice::instead(self.spec, self.snapshot, &run.targets, target), strangers) {
                (Some(other), strangers) => {
                    let why = strangers.unwrap_or_else(|| "it has gone".into());
                    let what =
                        format!("{} is left alone, {} taken in its stead: {why}", target.node, other.node);
                    run.targets[*at] = other;
                    note(run, self.now, what);
                }
                (None, Some(strangers)) => return Err(format!("{strangers}; no other node may be taken")),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Asks for the next node, or for all, once it is time and limits allow it.
    fn ask_next(&mut self) {
        let Some(mut run) = self.status.run.take() else { return };
        let last = run.targets.iter().filter_map(|target| target.intended_at.as_ref()).map(|at| at.0).max();
        let due = last.map_or(self.now, |last| later(last, self.spec.stagger));
        let waiting: Vec<usize> =
            (0..run.targets.len()).filter(|at| run.targets[*at].intended_at.is_none()).collect();
        let is_together = Duration::default() == self.spec.stagger;
        let stage = if is_together { waiting.as_slice() } else { &waiting[..waiting.len().min(1)] };
        if due > self.now {
            if !stage.is_empty() {
                self.wake_at(due);
            }
        } else if !stage.is_empty() {
            if let Err(why) = self.choose_instead(&mut run, stage) {
                self.status.run = Some(run);
                return self.abort(why);
            }
            match guard::may_take(self.spec, self.snapshot, &run, stage) {
                Ok(()) => {
                    for at in stage {
                        let target = &mut run.targets[*at];
                        target.intended_at = Some(Time(self.now));
                        target.attempts = 1;
                        target.pods.left = self.snapshot.pods_on(&target.node) as i32;
                        let ask = self.ask_for(&run.id, target);
                        self.ask(ask);
                    }
                }
                Err(why) => {
                    self.status.message = format!("the next node waits: {why}");
                    self.wake_at(self.now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX));
                }
            }
        }
        self.status.run = Some(run);
    }

    fn ask_for(&self, run: &str, target: &Target) -> Ask {
        match self.spec.method {
            DrillMethod::SimulateEviction => Ask::Evict { node: target.node.clone(), vm: target.vm.clone() },
            DrillMethod::DeleteMachine => Ask::Delete {
                agent_pool: target.agent_pool.clone(),
                machines: vec![Machine {
                    node: target.node.clone(),
                    uid: target.uid.clone(),
                    vm: target.vm.clone(),
                }],
            },
            DrillMethod::NoticeOnly => Ask::Drain {
                node: target.node.clone(),
                uid: target.uid.clone(),
                request: request_id(run, &target.node),
                not_after: later(self.now, self.spec.rehearsed_notice()),
            },
        }
    }

    fn ask(&mut self, ask: Ask) {
        if let Ask::Delete { agent_pool, machines } = &ask {
            for asked in &mut self.asks {
                match asked {
                    Ask::Delete { agent_pool: same, machines: all } if same == agent_pool => {
                        return all.extend(machines.iter().cloned());
                    }
                    _ => {}
                }
            }
        }
        self.asks.push(ask);
    }

    /// When a rehearsed node is opened again. One whose first request was lost has its whole time from the one that was heard.
    fn rehearsed_until(&self, target: &Target) -> Timestamp {
        let from = target.asked_at.as_ref().or(target.intended_at.as_ref());
        from.map_or(self.now, |from| later(from.0, self.spec.rehearsed_notice()))
    }

    /// When a target is asked for again of which nothing was heard, if that is so. What AKS does just now may be what was asked.
    fn unheard(&self, target: &Target) -> Option<Timestamp> {
        let intended = target.intended_at.as_ref().map(|at| at.0)?;
        let is_here = self.snapshot.nodes.iter().any(|node| node.uid == target.uid && node.ready);
        let is_unheard = !target.is_answered() && target.noticed_at.is_none() && is_here;
        let again = intended.saturating_add(UNHEARD * target.attempts.max(1)).unwrap_or(Timestamp::MAX);
        (is_unheard && guard::occupied(self.spec, self.snapshot, &[target]).is_none()).then_some(again)
    }

    /// Gives up what was asked for often enough, or not at all any more.
    fn give_up_unheard(&self, run: &mut DrillRun) {
        let is_aborted = run.aborted_at.is_some();
        for target in &mut run.targets {
            let is_due = self.unheard(target).is_some_and(|again| again <= self.now);
            if is_due && (is_aborted || target.attempts >= MOST_ATTEMPTS) {
                target.refused = format!("no answer and no notice, asked {} times", target.attempts);
            }
        }
    }

    /// Asks again for the same VMs where neither an answer nor a sign has come.
    fn ask_again(&mut self) {
        let Some(mut run) = self.status.run.take() else { return };
        for at in 0..run.targets.len() {
            let target = &run.targets[at];
            let Some(again) = self.unheard(target) else { continue };
            if again > self.now {
                self.wake_at(again);
            } else if let Err(why) = guard::may_take(self.spec, self.snapshot, &run, &[]) {
                self.status.message = format!("{} is asked for again later: {why}", target.node);
                self.wake_at(self.now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX));
            } else {
                let ask = self.ask_for(&run.id, target);
                self.ask(ask);
                run.targets[at].attempts += 1;
            }
        }
        self.status.run = Some(run);
    }

    /// Opens rehearsed nodes again whose time is over, and all once the run is aborted.
    fn withdraw_what_is_over(&mut self) {
        let Some(run) = &self.status.run else { return };
        let is_aborted = run.aborted_at.is_some();
        let mut wakes = Vec::new();
        for target in run.targets.iter().filter(|_| run.method == DrillMethod::NoticeOnly) {
            let Some(node) = self.snapshot.nodes.iter().find(|node| node.uid == target.uid) else { continue };
            if node.request.as_deref() != Some(request_id(&run.id, &target.node).as_str()) {
                continue;
            }
            let until = self.rehearsed_until(target);
            if is_aborted || until <= self.now {
                self.asks.push(Ask::Withdraw { node: target.node.clone(), uid: target.uid.clone() });
                wakes.push(self.now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX));
            } else {
                wakes.push(until);
            }
        }
        for at in wakes {
            self.wake_at(at);
        }
    }

    /// Phase and message; the end, once all is whole again.
    fn conclude(&mut self) {
        let Some(run) = self.status.run.clone() else { return };
        let is_aborted = run.aborted_at.is_some();
        let left = run.targets.iter().filter(|target| target.intended_at.is_none()).count();
        let open = run.targets.iter().filter(|target| !target.is_over(run.method)).count();
        let is_whole = run.units.now >= run.units.before.min(run.units.wanted);
        let since = run.aborted_at.as_ref().or(run.started_at.as_ref());
        let give_up = since.map_or(self.now, |at| later(at.0, self.spec.timeout));
        self.wake_at(give_up);
        let heals = is_aborted && give_up > self.now;
        if open == 0 && is_whole && (is_aborted || left == 0) || is_aborted && !heals {
            let verdict = verdict::of(self.spec, &run);
            let (words, held) = verdict::sentence(&verdict);
            let aborted_for = run.aborted_for.clone();
            if let Some(run) = &mut self.status.run {
                run.verdict = verdict;
            }
            return match (is_aborted, held) {
                (true, _) => {
                    let whole = if is_whole { "all is whole again" } else { "not all is whole again" };
                    let words = format!("aborted: {aborted_for}; {whole}");
                    self.moment(format!("over: {whole}"));
                    self.finish(DrillPhase::Aborted, words);
                }
                (false, held) => {
                    let (phase, reason) = if held {
                        (DrillPhase::Succeeded, Reason::DrillSucceeded)
                    } else {
                        (DrillPhase::Failed, Reason::DrillFailed)
                    };
                    self.moment(format!("over: {words}"));
                    self.end(phase, reason, words);
                }
            };
        }
        let asked = run.targets.len() - left;
        let words = format!("{asked} of {} nodes asked for, {open} not over", run.targets.len());
        let (phase, words) = match (is_aborted, left) {
            (true, _) => {
                (DrillPhase::Recovering, format!("aborted: {}; {open} nodes not over", run.aborted_for))
            }
            (false, 0) => (
                DrillPhase::Recovering,
                format!(
                    "{words}; {} of {} units ready",
                    run.units.now,
                    run.units.before.min(run.units.wanted)
                ),
            ),
            (false, _) => (DrillPhase::Running, words),
        };
        let waits = phase == DrillPhase::Running && self.status.message.starts_with("the next node waits");
        self.status.phase = Some(phase);
        if !waits || !self.asks.is_empty() {
            self.status.message = words;
        }
    }

    fn end(&mut self, phase: DrillPhase, reason: Reason, words: String) {
        self.tell(reason, words.clone());
        self.finish(phase, words);
    }

    fn finish(&mut self, phase: DrillPhase, words: String) {
        if let Some(run) = &mut self.status.run {
            progress::account(&mut run.units, self.now);
            run.ended_at = Some(Time(self.now));
            run.result = Some(phase);
            run.message.clone_from(&words);
        }
        self.status.phase = Some(phase);
        self.status.message = words;
    }

    /// Puts the run that is over among those before.
    fn remember_last(&mut self) {
        let Some(run) = self.status.run.take() else { return };
        let (Some(ended_at), Some(result)) = (run.ended_at, run.result) else { return };
        let nodes = run.targets.iter().filter(|target| target.intended_at.is_some()).count() as i32;
        self.status.past_runs.insert(0, PastRun { ended_at, result, message: run.message, nodes });
        self.status.past_runs.truncate(MOST_RUNS);
    }

    fn tell(&mut self, reason: Reason, note: String) {
        let run = self.status.run.as_ref().map(|run| run.id.clone()).unwrap_or_default();
        self.news.push(News { reason, note, run });
    }

    fn moment(&mut self, what: String) {
        if let Some(run) = &mut self.status.run {
            note(run, self.now, what);
        }
    }

    fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    fn sentence(&self, run: &DrillRun) -> String {
        let names: Vec<&str> = run.targets.iter().map(|target| target.node.as_str()).collect();
        format!("{} of {} nodes ({}): {}", names.len(), run.candidates, self.spec.method(), named(&names))
    }

    fn ready_units(&self) -> u32 {
        ready_units(self.snapshot)
    }

    /// What the SpotPool's machines cost an hour, and of what.
    fn hourly(&self) -> Option<(Decimal, String)> {
        let pool = self.snapshot.pool.as_ref()?;
        Some((pool.hourly?, pool.currency.clone()))
    }
}

/// Units that are ready, by the nodes themselves: quicker than the SpotPool's status.
fn ready_units(snapshot: &Snapshot) -> u32 {
    snapshot.nodes.iter().filter(|node| node.ready).map(|node| node.units).sum()
}

fn note(run: &mut DrillRun, at: Timestamp, what: String) {
    if run.timeline.len() + 1 < MOST_MOMENTS {
        run.timeline.push(Moment { at: Time(at), what });
    } else {
        // The last place is for how it ends.
        run.timeline.truncate(MOST_MOMENTS - 1);
        run.timeline.push(Moment { at: Time(at), what });
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    crate::plan::later(time, by)
}

/// The first names, and how many more.
fn named<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Enough of a uid to tell drills apart.
fn short(uid: &str) -> String {
    uid.chars().take(8).collect()
}
