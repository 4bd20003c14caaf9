//! Whose the cost of nodes is: it is shared among the workloads that run on them, by what their pods request.
//!
//! A pod has the mean of its shares of a node's CPU and memory; what nobody requests is idle. Shares are counted in
//! billionths of a node, so that however they are added up they make up whole nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use rust_decimal::Decimal;

use crate::cost::Amounts;
use crate::scheduling::Resources;

/// What nobody requests. No label's value begins so, here and below.
pub const IDLE: &str = "(idle)";
/// Pods without the label.
pub const NONE: &str = "(none)";
/// Workloads that are not told by name.
pub const OTHER: &str = "(other)";
/// Workloads of a SpotPool that are told by name.
pub const NAMED: usize = 50;

const BILLION: u64 = 1_000_000_000;
/// Digits of a share of an amount.
const DIGITS: u32 = 9;

/// What workloads have of the nodes of an agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    nodes: u64,
    /// Billionths of nodes, by workload.
    shares: BTreeMap<Arc<str>, u64>,
}

impl Usage {
    /// Adds a node with `room` for pods, and what the pods of each workload request of it. Of what is not known of a node,
    /// nothing is shared.
    pub fn add_node<'a>(
        &mut self,
        room: &Resources,
        pods: impl IntoIterator<Item = (&'a Arc<str>, Resources)>,
    ) {
        self.nodes += 1;
        let of = |asked: i64, room: i64| {
            let share = u128::from(asked.max(0).unsigned_abs()) * u128::from(BILLION);
            (room > 0).then(|| share / u128::from(room.unsigned_abs()))
        };
        let share = |asked: &Resources| match (of(asked.cpu, room.cpu), of(asked.memory, room.memory)) {
            (Some(cpu), Some(memory)) => u128::midpoint(cpu, memory),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0,
        };
        let shares: Vec<(&Arc<str>, u128)> =
            pods.into_iter().map(|(workload, asked)| (workload, share(&asked))).collect();
        let all: u128 = shares.iter().map(|(_, share)| share).sum();
        for (workload, share) in shares {
            // Static pods ask nobody: together they may request more than there is.
            let share = if all > u128::from(BILLION) { share * u128::from(BILLION) / all } else { share };
            *self.shares.entry(workload.clone()).or_default() += u64::try_from(share).unwrap_or(BILLION);
        }
    }

    /// Keeps the shares of these workloads; all others are one.
    fn keep(&mut self, is_kept: impl Fn(&Arc<str>) -> bool) {
        let (kept, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.shares).into_iter().partition(|(workload, _)| is_kept(workload));
        self.shares = kept;
        let others: u64 = others.values().sum();
        if others > 0 {
            *self.shares.entry(OTHER.into()).or_default() += others;
        }
    }
}

/// Keeps the `most` workloads that have the most of all these agent pools' nodes: a label may have as many values as there
/// are pods.
pub fn keep_largest(usages: &mut BTreeMap<String, Usage>, most: usize) {
    let mut all: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    for (workload, share) in usages.values().flat_map(|usage| &usage.shares) {
        *all.entry(workload.clone()).or_default() += share;
    }
    if all.len() > most {
        let kept = largest(all, most);
        for usage in usages.values_mut() {
            usage.keep(|workload| kept.contains_key(workload));
        }
    }
}

/// Those that have the most, the first by name of equals, and what no label's value is.
pub(crate) fn largest<V: Ord + Copy>(all: BTreeMap<Arc<str>, V>, most: usize) -> BTreeMap<Arc<str>, V> {
    let (mut named, mut kept): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(workload, _)| !workload.starts_with('('));
    named.sort_by(|(a, one), (b, other)| other.cmp(one).then_with(|| a.cmp(b)));
    named.truncate(most);
    kept.append(&mut named);
    kept.into_iter().collect()
}

/// What an agent pool costs an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCost {
    /// Its name.
    pub agent_pool: String,
    /// How much.
    pub hourly: Amounts,
    /// Machines that cost it.
    pub machines: u32,
}

/// Shares what agent pools cost an hour among workloads: [`NAMED`] at most by name, those that cost the most. Machines
/// that are no Nodes yet are idle. The sum is what the agent pools cost.
pub fn allocate(costs: &[PoolCost], usages: &BTreeMap<String, Usage>) -> BTreeMap<Arc<str>, Amounts> {
    let mut all: BTreeMap<Arc<str>, Amounts> = BTreeMap::new();
    let mut add = |workload: &Arc<str>, amounts: &Amounts| {
        let known = all.entry(workload.clone()).or_default();
        *known = known.plus(amounts);
    };
    let (idle, nobody) = (Arc::from(IDLE), Usage::default());
    for cost in costs {
        let usage = usages.get(&cost.agent_pool).unwrap_or(&nobody);
        // Nodes whose VM is gone cost nothing, and their pods are still there for a while.
        let whole = Decimal::from(usage.nodes.max(cost.machines.into()).max(1) * BILLION);
        let mut left = cost.hourly;
        for (workload, share) in &usage.shares {
            let share = Decimal::from(*share);
            let of = |amount: Decimal| (amount.saturating_mul(share) / whole).trunc_with_scale(DIGITS);
            let amounts = cost.hourly.each(of);
            left = left.plus(&amounts.each(|amount| -amount));
            add(workload, &amounts);
        }
        add(&idle, &left);
    }
    let totals = all.iter().map(|(workload, amounts)| (workload.clone(), amounts.total())).collect();
    let kept = largest(totals, NAMED);
    let (mut told, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.into_iter().partition(|(workload, _)| kept.contains_key(workload));
    let others = others.values().fold(Amounts::default(), |all, amounts| all.plus(amounts));
    let other = told.entry(OTHER.into()).or_default();
    *other = other.plus(&others);
    told.retain(|_, amounts| *amounts != Amounts::default());
    told
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn resources(cpu: i64, memory: i64) -> Resources {
        Resources { cpu, memory, ..Resources::default() }
    }

    fn costs(hourly: &[(&str, u32)]) -> Vec<PoolCost> {
        let cost = |(at, (spot, machines)): (usize, &(&str, u32))| PoolCost {
            agent_pool: format!("pool{at}"),
            hourly: Amounts { spot: spot.parse().unwrap(), ..Amounts::default() },
            machines: *machines,
        };
        hourly.iter().enumerate().map(cost).collect()
    }

    #[test]
    fn a_node_is_shared_by_the_mean_of_what_pods_request() {
        let (a, b, none): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "b".into(), NONE.into());
        let room = resources(4000, 16);
        for (what, pods, wanted) in [
            ("nobody is there", vec![], vec![(IDLE, "1")]),
            ("half of both", vec![(&a, resources(2000, 8))], vec![(IDLE, "0.5"), ("a", "0.5")]),
            ("half of the CPU alone", vec![(&a, resources(2000, 0))], vec![(IDLE, "0.75"), ("a", "0.25")]),
            (
                "two workloads, and a pod without the label",
                vec![(&a, resources(2000, 8)), (&b, resources(1000, 4)), (&none, resources(400, 0))],
                vec![(IDLE, "0.2"), (NONE, "0.05"), ("a", "0.5"), ("b", "0.25")],
            ),
            (
                "more than there is",
                vec![(&a, resources(6000, 24)), (&b, resources(2000, 8))],
                vec![("a", "0.75"), ("b", "0.25")],
            ),
            ("a request that is no number", vec![(&a, resources(-5, 0))], vec![(IDLE, "1")]),
        ] {
            let mut usage = Usage::default();
            usage.add_node(&room, pods);
            let usages = BTreeMap::from([("pool0".to_owned(), usage)]);
            let told = allocate(&costs(&[("1", 1)]), &usages);
            let told: Vec<_> =
                told.iter().map(|(of, amounts)| (&**of, amounts.spot.normalize().to_string())).collect();
            let wanted: Vec<_> = wanted.into_iter().map(|(of, amount)| (of, amount.to_owned())).collect();
            assert_eq!(told, wanted, "{what}");
        }
    }

    #[test]
    fn machines_that_are_no_nodes_yet_and_nodes_of_which_nothing_is_known_are_idle() {
        let a: Arc<str> = "a".into();
        let mut usage = Usage::default();
        usage.add_node(&resources(1000, 1000), [(&a, resources(1000, 1000))]);
        usage.add_node(&Resources::default(), [(&a, resources(1000, 1000))]);
        let usages = BTreeMap::from([("pool0".to_owned(), usage)]);
        let told = |machines| allocate(&costs(&[("1", machines)]), &usages)["a"].spot;
        assert_eq!((told(2), told(4)), ("0.5".parse().unwrap(), "0.25".parse().unwrap()));
        // One of the two is gone, and its pods are still to be seen: nobody pays twice.
        assert_eq!(told(1), "0.5".parse().unwrap());
    }

    #[test]
    fn fifty_are_named_those_that_cost_most() {
        let mut usage = Usage::default();
        let names: Vec<Arc<str>> = (0..60).map(|at| format!("team-{at:02}").into()).collect();
        let asks = names.iter().enumerate().map(|(at, name)| (name, resources(10 + at as i64, 0)));
        usage.add_node(&resources(100_000, 0), asks);
        let mut usages = BTreeMap::from([("pool0".to_owned(), usage)]);
        let told = allocate(&costs(&[("100", 1)]), &usages);
        // Idle and the rest besides.
        assert_eq!(
            (told.len(), told.contains_key("team-09"), told.contains_key("team-10")),
            (52, false, true)
        );
        // Ten to nineteen thousandths.
        assert_eq!(told[OTHER].spot.normalize(), "0.145".parse().unwrap());
        keep_largest(&mut usages, 55);
        let again = allocate(&costs(&[("100", 1)]), &usages);
        assert_eq!(again, told, "what is left out early is left out at last");
    }

    proptest! {
        /// Else a team would pay for what another uses, or for what nobody is charged.
        #[test]
        fn workloads_make_up_what_nodes_cost(
            pools in prop::collection::vec((
                (0_u32..100_000, 0_u32..100_000, 0_u32..100_000), 0_u32..30,
                prop::collection::vec((0_i64..9000, 0_i64..9000, prop::collection::vec((0_u8..90, -5_i64..9000, 0_i64..90_000), 0..9)), 0..9),
            ), 0..6),
            most in 1_usize..200,
        ) {
            let (mut costs, mut usages) = (Vec::new(), BTreeMap::new());
            for (at, ((spot, base, fallback), machines, nodes)) in pools.into_iter().enumerate() {
                let amount = |of: u32| Decimal::new(of.into(), 5);
                let hourly = Amounts { spot: amount(spot), base: amount(base), fallback: amount(fallback) };
                let agent_pool = format!("pool{at}");
                costs.push(PoolCost { agent_pool: agent_pool.clone(), hourly, machines });
                let usage: &mut Usage = usages.entry(agent_pool).or_default();
                for (cpu, memory, pods) in nodes {
                    let names: Vec<Arc<str>> = pods.iter().map(|(name, ..)| format!("w{name}").into()).collect();
                    let asked = names.iter().zip(&pods).map(|(name, (_, cpu, memory))| (name, resources(*cpu, *memory)));
                    usage.add_node(&resources(cpu, memory), asked);
                }
            }
            keep_largest(&mut usages, most);
            let told = allocate(&costs, &usages);
            let sum = |all: Vec<Amounts>| all.iter().fold(Amounts::default(), |sum, amounts| sum.plus(amounts));
            prop_assert_eq!(
                sum(told.values().copied().collect()),
                sum(costs.iter().map(|cost| cost.hourly).collect())
            );
            let is_right = |amounts: &Amounts| {
                [amounts.spot, amounts.base, amounts.fallback].iter().all(|amount| *amount >= Decimal::ZERO)
            };
            prop_assert!(told.values().all(is_right), "{:?}", told);
            prop_assert!(told.keys().filter(|name| !name.starts_with('(')).count() <= NAMED);
        }
    }
}
