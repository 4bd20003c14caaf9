//! How far the nodes of a run are, and how many units are ready meanwhile.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rust_decimal::Decimal;
use spotpool_crds::drill::{DrillMethod, DrillRun, ReadyAt, Target, UnitsReady};
use spotpool_crds::eviction::Phase;
use spotpool_crds::voluntary_drain::DrainPhase;

use super::{Draft, Node, note, request_id};

/// Points of [`UnitsReady::course`](spotpool_crds::drill::UnitsReady::course).
const MOST_OF_COURSE: usize = 64;
/// Entries of [`Target::held`].
const MOST_HELD: usize = 3;

/// Counts what was missing since ready units last changed.
pub(super) fn account(units: &mut UnitsReady, now: Timestamp) {
    let missing = i64::from((units.wanted - units.now).max(0));
    let Some(since) = &units.since else { return };
    let seconds = now.duration_since(since.0).as_secs().max(0);
    units.short_unit_seconds += missing * seconds;
    units.short_seconds += missing.min(1) * seconds;
}

impl Draft<'_> {
    /// Takes in what is seen of the nodes of `run`.
    pub(super) fn observe(&self, run: &mut DrillRun) {
        let now = Time(self.now);
        let mut seen = Vec::new();
        let (method, id) = (run.method, run.id.clone());
        for target in run.targets.iter_mut().filter(|target| target.intended_at.is_some()) {
            let node = self.snapshot.nodes.iter().find(|node| node.uid == target.uid);
            let before = target.clone();
            let mut at = |place: &mut Option<Time>, holds: bool, what: &str| {
                if place.is_none() && holds {
                    *place = Some(now.clone());
                    seen.push(format!("{}: {what}", before.node));
                }
            };
            match (method, node) {
                (DrillMethod::SimulateEviction, node) => evicted(target, node, &mut at),
                (DrillMethod::DeleteMachine, node) => {
                    deleted(target, node, self.snapshot.pods_on(&before.node), &mut at);
                }
                (DrillMethod::NoticeOnly, node) => {
                    let is_late = self.rehearsed_until(target) < self.now;
                    rehearsed(target, node, &id, is_late, &mut at);
                }
            }
        }
        self.measure(run);
        self.price(run);
        for what in seen {
            note(run, self.now, what);
        }
    }

    /// Units that are ready, and which nodes have been replaced by that.
    fn measure(&self, run: &mut DrillRun) {
        let (ready, now) = (self.ready_units() as i32, Time(self.now));
        let units = &mut run.units;
        if ready != units.now {
            account(units, self.now);
            (units.now, units.since) = (ready, Some(now.clone()));
            units.lowest = units.lowest.min(ready);
            if units.course.len() >= MOST_OF_COURSE {
                let mut at = 0;
                units.course.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
            }
            units.course.push(ReadyAt { at: now, ready });
        }
        // What is ready again replaces those that were lost first.
        let method = run.method;
        let mut lost: Vec<&mut Target> =
            run.targets.iter_mut().filter(|target| target.lost_at(method).is_some()).collect();
        lost.sort_by_key(|target| target.lost_at(method).map(|at| at.0));
        let gone: i32 = lost.iter().map(|target| target.units).sum();
        let mut back = gone - (units.before.min(units.wanted) - ready).max(0);
        for target in lost {
            back -= target.units;
            let is_gone = method.takes_machines() && target.gone_at.is_some();
            if back >= 0 && is_gone && target.replaced_at.is_none() {
                target.replaced_at = Some(Time(self.now));
            }
        }
    }

    /// What the SpotPool's machines cost by now, where that was known when the run began.
    fn price(&self, run: &mut DrillRun) {
        let (Some(costs), Some((hourly, _))) = (&mut run.hourly_cost, self.hourly()) else { return };
        let highest = costs.highest.parse::<Decimal>().unwrap_or_default();
        costs.now = hourly.to_string();
        costs.highest = highest.max(hourly).to_string();
    }
}

type See<'a> = dyn FnMut(&mut Option<Time>, bool, &str) + 'a;

fn evicted(target: &mut Target, node: Option<&Node>, at: &mut See<'_>) {
    if let Some((node, notice)) = node.and_then(|node| Some((node, node.notice?))) {
        at(&mut target.noticed_at, true, "notice");
        at(&mut target.cordoned_at, node.closed, "closed");
        at(&mut target.drained_at, notice.phase == Phase::Drained, "drained");
        target.pods.evicted = notice.pods.evicted as i32;
        target.pods.escalated = notice.pods.escalated as i32;
        target.pods.left = notice.pods.left as i32;
        hold(target, node);
    }
    // A VM that Azure leaves deallocated keeps its Node.
    let is_gone = node.is_none_or(|node| !node.alive && target.noticed_at.is_some());
    if is_gone && target.noticed_at.is_none() {
        // It went before its notice was seen.
        at(&mut target.noticed_at, true, "went without a notice that was seen");
    }
    at(&mut target.gone_at, is_gone, "gone");
}

/// Nobody has announced it: what was on it when it was last seen at work has ended with it.
fn deleted(target: &mut Target, node: Option<&Node>, pods: u32, at: &mut See<'_>) {
    let is_gone = node.is_none_or(|node| !node.alive);
    if !is_gone {
        target.pods.left = pods as i32;
    }
    at(&mut target.gone_at, is_gone, "gone");
}

/// Keeps what holds up the drain of a node, the first that were told.
fn hold(target: &mut Target, node: &Node) {
    for held in &node.held {
        if target.held.len() < MOST_HELD && !target.held.contains(held) {
            target.held.push(held.clone());
        }
    }
}

fn rehearsed(target: &mut Target, node: Option<&Node>, run: &str, is_late: bool, at: &mut See<'_>) {
    let Some(node) = node else {
        at(&mut target.gone_at, true, "gone in the middle of its rehearsal");
        return;
    };
    let id = request_id(run, &target.node);
    let is_asked = node.request.as_deref() == Some(id.as_str());
    if is_asked {
        at(&mut target.asked_at, true, "asked to drain");
    }
    if let Some((_, phase, left)) = node.drain.as_ref().filter(|(request, ..)| *request == id) {
        at(&mut target.noticed_at, true, "its agent drains");
        at(&mut target.cordoned_at, node.closed, "closed");
        at(&mut target.drained_at, matches!(phase, DrainPhase::Drained | DrainPhase::Cancelled), "drained");
        target.pods.left = *left as i32;
        target.pods.evicted = target.pods.before.saturating_sub(target.pods.left).max(0);
        hold(target, node);
    }
    // An ask that was just taken is not seen on the node yet.
    let was_closed = target.noticed_at.is_some() || is_late;
    let is_open = !is_asked && !node.closed;
    at(&mut target.released_at, was_closed && target.asked_at.is_some() && is_open, "open again");
}
