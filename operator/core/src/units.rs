//! What nodes are worth: a node counts for the units of its agent pool, limits of nodes count machines.

use spotpool_crds::spot_pool::{SpotPoolSpec, Strategy};

use crate::plan::kept;
use crate::snapshot::AgentPoolView;

/// Of on-demand machines that are paid for, those that stand in for spot: all but the kept ones, and but as many of
/// the others as `base` still needs.
///
/// The smallest are of the base. By any other order a purchase that was inside `fallback.maxNodes` could turn out to
/// be beyond it, once a greater node has come that carries the base alone.
pub(crate) fn fallback_nodes<'a>(
    spec: &SpotPoolSpec,
    on_demand: impl Iterator<Item = &'a AgentPoolView>,
    base: u32,
) -> u32 {
    let mut uncovered = base;
    let mut others: Vec<(u32, u32)> = Vec::new();
    for pool in on_demand {
        let committed = pool.committed();
        let kept = kept(spec, pool).min(committed);
        uncovered = uncovered.saturating_sub(kept * pool.units);
        others.push((pool.units, committed - kept));
    }
    others.sort_unstable();
    let mut beyond = 0;
    for (units, machines) in others {
        let of_base = uncovered.div_ceil(units).min(machines);
        uncovered = uncovered.saturating_sub(of_base * units);
        beyond += machines - of_base;
    }
    beyond
}

/// How much dearer a node is for what it brings: of a node that is worth more than is `missing`, the rest is paid for
/// and not needed.
pub(crate) fn waste(strategy: Strategy, units: u32, missing: u32) -> f64 {
    match strategy {
        Strategy::Balanced | Strategy::LowestPrice => f64::from(units) / f64::from(units.min(missing.max(1))),
        Strategy::LowestEvictionRate | Strategy::Ordered => 1.0,
    }
}

/// Those of `nodes`, in their order, that can go while the others still carry all but `surplus` units.
pub(crate) fn removable<T>(
    nodes: impl Iterator<Item = T>,
    units: impl Fn(&T) -> u32,
    surplus: u32,
) -> Vec<T> {
    let mut left = surplus;
    let mut go = Vec::new();
    for node in nodes {
        if let Some(less) = left.checked_sub(units(&node)) {
            left = less;
            go.push(node);
        }
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(machines: &[(u32, usize, u32)]) -> Vec<AgentPoolView> {
        let pool = |(units, machines, kept): &(u32, usize, u32)| AgentPoolView {
            units: *units,
            kept: *kept,
            machines: (0..*machines).map(|index| format!("m{index}")).collect(),
            ..AgentPoolView::default()
        };
        machines.iter().map(pool).collect()
    }

    #[test]
    fn what_the_base_needs_is_no_fallback() {
        let spec: SpotPoolSpec = serde_yaml_ng::from_str("replicas: 4\nagentPools: []\n").unwrap();
        // (units, machines, kept) of each agent pool, the base, fallback nodes.
        for (machines, base, beyond) in [
            (vec![(1, 5, 0)], 2, 3),
            (vec![(1, 5, 0)], 0, 5),
            (vec![(1, 5, 3)], 3, 2),
            (vec![(1, 5, 3)], 4, 1),
            (vec![(4, 2, 0)], 1, 1),
            (vec![(4, 2, 0)], 5, 0),
            (vec![(4, 1, 0), (1, 2, 0)], 2, 1),
            (vec![(4, 1, 1), (1, 2, 0)], 4, 2),
            (vec![(4, 1, 0), (1, 2, 0)], 3, 0),
            (vec![(2, 1, 0)], 9, 0),
        ] {
            assert_eq!(
                fallback_nodes(&spec, pools(&machines).iter(), base),
                beyond,
                "{machines:?} of {base}"
            );
        }
    }

    #[test]
    fn nobody_goes_whose_units_are_needed() {
        let go = |nodes: &[u32], surplus| removable(nodes.iter().copied(), |units| *units, surplus);
        assert_eq!(go(&[4, 1, 1, 2], 3), [1, 1]);
        assert_eq!(go(&[4], 3), [0; 0]);
        assert_eq!(go(&[1, 4, 2], 7), [1, 4, 2]);
    }
}
