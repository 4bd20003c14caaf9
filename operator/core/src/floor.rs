//! The on-demand that disruption budgets need: so much that with every spot node gone there is room for the pods that
//! must be healthy.
//!
//! What is needed comes of [`demand`], once when workloads have changed. What is kept follows it slowly, in
//! `settle`, in each plan.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Role, SpotPoolSpec};

use crate::draft::Draft;
use crate::memory::Memory;
use crate::scheduling::{Bins, Pod, Resources, Taint, largest_first};
use crate::snapshot::Snapshot;
use crate::time::{later, later_by};

/// How long more must be needed before more is kept: a rollout or a restart must buy nothing.
pub const RAISED_AFTER: SignedDuration = SignedDuration::from_mins(1);

/// What a node of an on-demand agent pool offers.
#[derive(Clone, Debug, Default)]
pub struct NodeKind {
    /// The agent pool.
    pub agent_pool: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Taints that it keeps.
    pub taints: Vec<Taint>,
    /// What is left on it for pods once its DaemonSets have theirs.
    pub room: Resources,
    /// What it is worth.
    pub units: u32,
}

/// One disruption budget and its pods.
#[derive(Debug)]
pub struct Budget<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Pods that must be healthy.
    pub desired: u32,
    /// Its pods that run on the SpotPool's nodes, or nowhere yet.
    pub here: Vec<&'a Pod>,
    /// Its pods on on-demand nodes that are not the SpotPool's: these stay, whatever happens to spot.
    pub safe: u32,
}

/// What one budget needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetDemand {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Pods that must be healthy.
    pub desired: u32,
    /// Of these, the pods that need room here.
    pub pods: u32,
    /// What these alone would need.
    pub units: u32,
    /// Pods that may not run on the on-demand nodes, or are too large for them, and would be needed.
    pub barred: u32,
}

/// What all budgets need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorDemand {
    /// On-demand units; absent while it cannot be told.
    pub units: Option<u32>,
    /// Why it cannot be told.
    pub unknown: String,
    /// The budgets that need most, largest first.
    pub budgets: Vec<BudgetDemand>,
    /// How many need anything.
    pub budgets_in_all: u32,
}

/// Budgets that are named one by one.
pub const NAMED: usize = 20;

impl FloorDemand {
    /// It cannot be told.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { unknown: why.into(), ..Self::default() }
    }
}

/// What `budgets` need of nodes of these kinds.
///
/// Of each budget the largest pods are taken, so that any of them has room. A pod under two budgets is counted once. With
/// several kinds it is as much as if all were of the one of which most is needed. What other pods take is not in it:
/// pods that must have this room outrank others by their priority.
pub fn demand<'a>(kinds: &'a [NodeKind], budgets: impl IntoIterator<Item = Budget<'a>>) -> FloorDemand {
    let mut found = Vec::new();
    let mut all: Vec<&Pod> = Vec::new();
    let mut places = Places::of(kinds);
    for budget in budgets {
        let wanted = (budget.desired.saturating_sub(budget.safe) as usize).min(budget.here.len());
        if wanted == 0 {
            continue;
        }
        let mut here = budget.here;
        here.retain(|pod| places.any(pod));
        largest_first(&mut here);
        // Those that may not run here are taken to be the ones that are not needed, as far as that goes.
        let barred = wanted.saturating_sub(here.len());
        here.truncate(wanted);
        let units = places.units(&here);
        all.extend(&here);
        found.push(BudgetDemand {
            namespace: budget.namespace.to_owned(),
            name: budget.name.to_owned(),
            desired: budget.desired,
            pods: here.len() as u32,
            units,
            barred: barred as u32,
        });
    }
    largest_first(&mut all);
    all.dedup_by(|one, other| one.namespace == other.namespace && one.name == other.name);
    let units = places.units(&all);
    found.sort_by(|a, b| {
        (b.units, b.pods, &a.namespace, &a.name).cmp(&(a.units, a.pods, &b.namespace, &b.name))
    });
    let budgets_in_all = found.len() as u32;
    found.truncate(NAMED);
    FloorDemand { units: Some(units), unknown: String::new(), budgets: found, budgets_in_all }
}

/// Which pods may run on which kinds, asked once for each shape.
struct Places<'a> {
    kinds: &'a [NodeKind],
    known: BTreeMap<usize, Vec<bool>>,
}

impl<'a> Places<'a> {
    fn of(kinds: &'a [NodeKind]) -> Self {
        Self { kinds, known: BTreeMap::new() }
    }

    fn on(&mut self, pod: &Pod) -> &[bool] {
        // Shapes are alive, and so are their addresses their own, for as long as the pods are borrowed.
        self.known.entry(Arc::as_ptr(&pod.shape).addr()).or_insert_with(|| {
            let runs = |kind: &NodeKind| {
                let label = |key: &str| kind.labels.get(key).map(String::as_str);
                kind.room.has(&pod.shape.requests) && pod.shape.may_run(label, &kind.taints)
            };
            self.kinds.iter().map(runs).collect()
        })
    }

    fn any(&mut self, pod: &Pod) -> bool {
        self.on(pod).contains(&true)
    }

    /// Units for `pods`, which come largest first.
    fn units(&mut self, pods: &[&Pod]) -> u32 {
        let kinds = self.kinds;
        let mut most = 0;
        for (at, kind) in kinds.iter().enumerate() {
            let mut bins = Bins::of(&kind.room);
            for pod in pods {
                if self.on(pod)[at] {
                    bins.put(pod);
                }
            }
            most = most.max(bins.count() * kind.units);
        }
        most
    }
}

/// The floor between two plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorMemory {
    /// On-demand that is kept.
    pub units: u32,
    /// Since when it is this much.
    pub since: Option<Timestamp>,
    /// What it will be if the need lasts, and since when it has lasted.
    pub next: Option<(u32, Timestamp)>,
}

/// The floor of one plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// On-demand that is kept for budgets.
    pub units: u32,
    /// What they need, if that is known.
    pub needed: Option<u32>,
    /// The field that keeps it below that, and the most that it allows.
    pub capped_by: Option<(&'static str, u32)>,
}

/// Lets the floor follow what is needed: up after [`RAISED_AFTER`], to the least that was needed meanwhile; down after
/// `failback.stabilization`, to the most. `None` if there is to be none.
pub(crate) fn settle(
    spec: &SpotPoolSpec,
    snapshot: &Snapshot,
    memory: &mut Memory,
    now: Timestamp,
) -> Option<Floor> {
    let limits = &spec.on_demand.pdb_floor;
    if !limits.enabled {
        memory.floor = FloorMemory::default();
        return None;
    }
    let held = &mut memory.floor;
    let most = limits.max_units.unwrap_or(0).max(0) as u32;
    // What no agent pool can hold must not be wanted in place of spot.
    let room = snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(Role::OnDemand));
    let room: u32 = room.map(|pool| pool.most() * pool.units).sum();
    let needed = snapshot.floor.as_ref().and_then(|demand| demand.units);
    // Roles are not known while Azure has not answered: the floor stays as it is.
    let roles_known = snapshot.agent_pools.iter().all(|pool| pool.role != Err(Reason::AzureUnreachable));
    let (by, limit) = if roles_known && room < most {
        ("maxNodes of the on-demand agent pools", room)
    } else {
        ("onDemand.pdbFloor.maxUnits", most)
    };
    let capped_by = needed.filter(|needed| *needed > limit).map(|_| (by, limit));
    // A lower limit is somebody's will and holds at once.
    if held.units > limit {
        *held = FloorMemory { units: limit, since: Some(now), next: None };
    }
    let Some(target) = needed.map(|needed| needed.min(limit)).filter(|_| roles_known) else {
        held.next = None;
        return Some(Floor { units: held.units, needed, capped_by });
    };
    let same_way = |(to, _): &(u32, Timestamp)| to.cmp(&held.units) == target.cmp(&held.units);
    let next = held.next.filter(same_way);
    held.next = match target.cmp(&held.units) {
        Ordering::Equal => None,
        Ordering::Greater => next.map(|(to, since)| (to.min(target), since)).or(Some((target, now))),
        Ordering::Less => next.map(|(to, since)| (to.max(target), since)).or(Some((target, now))),
    };
    if let Some((to, since)) = held.next
        && due(spec, held.units, to, since) <= now
    {
        let next = (to != target).then_some((target, now));
        *held = FloorMemory { units: to, since: Some(now), next };
    }
    Some(Floor { units: held.units, needed, capped_by })
}

fn due(spec: &SpotPoolSpec, held: u32, to: u32, since: Timestamp) -> Timestamp {
    if to > held { later_by(since, RAISED_AFTER) } else { later(since, spec.failback.stabilization) }
}

/// Says what the floor waits for, and what it cannot be.
pub(crate) fn explain(spec: &SpotPoolSpec, snapshot: &Snapshot, floor: &Floor, draft: &mut Draft) {
    if let Some((to, since)) = draft.memory.floor.next {
        let at = due(spec, floor.units, to, since);
        draft.wake_at(at);
        let units = floor.units;
        draft.step(
            Reason::FloorChanging,
            None,
            format!("disruption budgets need {to} on-demand, {units} are kept for them; {to} from {at:.0} if that lasts"),
        );
    }
    match (floor.needed, floor.capped_by) {
        (Some(needed), Some((by, limit))) => {
            let message = format!("disruption budgets need {needed} on-demand, {by} allows {limit}");
            draft.step(Reason::FloorAtLimit, None, message);
        }
        (None, _) => {
            let why = snapshot
                .floor
                .as_ref()
                .map_or("pods and budgets have not been read yet", |demand| demand.unknown.as_str());
            let message =
                format!("what disruption budgets need is not known: {why}; {} are kept", floor.units);
            draft.step(Reason::FloorUnknown, None, message);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::Shape;
    use proptest::prelude::*;

    fn pod(name: &str, owner: &str, cpu: i64, apart: bool) -> Pod {
        let requests = Resources { cpu, memory: cpu << 20, pods: 1, other: Vec::new() };
        let shape = Shape { requests, apart, ..Shape::default() };
        Pod { namespace: "shop".into(), name: name.into(), owner: owner.into(), shape: Arc::new(shape) }
    }

    fn kind(cpu: i64, pods: i64) -> NodeKind {
        let room = Resources { cpu, memory: cpu << 20, pods, other: Vec::new() };
        NodeKind { agent_pool: "reg".into(), room, units: 1, ..NodeKind::default() }
    }

    fn budget<'a>(name: &'a str, desired: u32, safe: u32, here: &'a [Pod]) -> Budget<'a> {
        Budget { namespace: "shop", name, desired, here: here.iter().collect(), safe }
    }

    fn pods(count: usize, owner: &str, cpu: i64, apart: bool) -> Vec<Pod> {
        (0..count).map(|index| pod(&format!("{owner}-{index}"), owner, cpu, apart)).collect()
    }

    #[test]
    fn a_budget_needs_room_for_what_must_be_healthy_and_is_not_safe_already() {
        let (web, db, huge) =
            (pods(6, "web", 1000, false), pods(3, "db", 500, true), pods(2, "huge", 9000, false));
        for (what, desired, safe, here, expected) in [
            ("four of six, four a node", 4, 0, &web, (4, 1, 0)),
            ("five do not fit one node", 5, 0, &web, (5, 2, 0)),
            ("two are safe elsewhere", 5, 2, &web, (3, 1, 0)),
            ("all are safe elsewhere", 5, 5, &web, (0, 0, 0)),
            ("no more than are here", 9, 0, &web, (6, 2, 0)),
            ("those that keep apart", 2, 0, &db, (2, 2, 0)),
            ("too large for a node", 1, 0, &huge, (0, 0, 1)),
        ] {
            let found = demand(&[kind(4000, 110)], [budget("b", desired, safe, here)]);
            let got = found.budgets.first().map_or((0, 0, 0), |it| (it.pods, it.units, it.barred));
            assert_eq!((got, found.units), (expected, Some(expected.1)), "{what}");
        }
    }

    #[test]
    fn pods_of_several_budgets_share_nodes_and_count_once() {
        let (web, api) = (pods(2, "web", 1000, false), pods(2, "api", 1000, false));
        let found = demand(&[kind(4000, 110)], [budget("web", 2, 0, &web), budget("api", 2, 0, &api)]);
        assert_eq!(found.units, Some(1), "four CPUs are one node");
        let found = demand(&[kind(4000, 110)], [budget("one", 2, 0, &web), budget("two", 2, 0, &web)]);
        assert_eq!((found.units, found.budgets_in_all), (Some(1), 2));
        let found = demand(&[kind(4000, 2)], [budget("web", 2, 0, &web), budget("api", 2, 0, &api)]);
        assert_eq!(found.units, Some(2), "two pods a node");
    }

    #[test]
    fn with_two_kinds_of_nodes_there_is_enough_whichever_is_bought() {
        let web = pods(4, "web", 2000, false);
        let found = demand(&[kind(8000, 110), kind(4000, 110)], [budget("web", 4, 0, &web)]);
        assert_eq!(found.units, Some(2));
        let gpu = Taint { key: "gpu".into(), value: "".into(), effect: "NoSchedule".into() };
        let closed = NodeKind { taints: vec![gpu], ..kind(2000, 110) };
        let found = demand(&[kind(8000, 110), closed], [budget("web", 4, 0, &web)]);
        assert_eq!(found.units, Some(1), "a kind on which they may not run does not count");
    }

    proptest! {
        /// First-fit decreasing is at most 11/9 of the best packing and a node: nobody pays for more, and nothing that
        /// was promised room lacks it.
        #[test]
        fn every_chosen_pod_has_room_and_not_much_is_bought_in_vain(
            sizes in proptest::collection::vec(1i64..4000, 0..60),
        ) {
            let all: Vec<Pod> =
                sizes.iter().enumerate().map(|(at, cpu)| pod(&at.to_string(), "w", *cpu, false)).collect();
            let units = demand(&[kind(4000, 1000)], [budget("b", 1000, 0, &all)]).units.unwrap();
            let least = (sizes.iter().sum::<i64>() as f64 / 4000.0).ceil();
            prop_assert!(f64::from(units) >= least);
            prop_assert!(f64::from(units) <= least * 2.0, "{units} for {least}");
        }

        #[test]
        fn the_order_of_pods_is_irrelevant(sizes in proptest::collection::vec(1i64..4000, 1..40), turn in 0usize..40) {
            let all: Vec<Pod> =
                sizes.iter().enumerate().map(|(at, cpu)| pod(&at.to_string(), "w", *cpu, at % 5 == 0)).collect();
            let mut turned: Vec<Pod> = all.clone();
            turned.rotate_left(turn % sizes.len());
            let of = |pods: &[Pod]| demand(&[kind(4000, 10)], [budget("b", 20, 0, pods)]);
            prop_assert_eq!(of(&all), of(&turned));
        }
    }
}
