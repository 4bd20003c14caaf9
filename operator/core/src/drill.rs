//! One step of an eviction drill: which nodes to take, whether that may be, what to ask next, and how it went.
//!
//! [`plan()`] is total: it waits or refuses, and says why. The status that it returns is written before its asks are carried out,
//! so that whoever comes after a crash knows what may have been asked.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::drill::{
    DrillMethod, DrillPhase, DrillRun, EvictionDrillSpec, EvictionDrillStatus, Moment, PastRun, Target,
};

use crate::time::{later, later_by};

mod asking;
mod choice;
mod guard;
mod progress;
mod schedule;
mod snapshot;
mod verdict;

pub use snapshot::{Ask, Machine, News, Node, Notice, Pool, Snapshot};

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
    fn wait(&mut self, words: String) {
        self.status.phase = Some(DrillPhase::Pending);
        self.status.message = words;
        self.wake_at(later_by(self.now, LOOK_AGAIN));
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
