//! What nodes are worth: a node counts for the units of its agent pool, limits of nodes count machines.

use rust_decimal::Decimal;
use spotpool_crds::spot_pool::Strategy;

/// Of on-demand machines that are paid for, those that stand in for spot: all but the kept ones, and but as many of
/// the others as `base` still needs.
///
/// The smallest are of the base. By any other order a purchase that was inside `fallback.maxNodes` could turn out to
/// be beyond it, once a greater node has come that carries the base alone. Agent pools are told by the units of a node,
/// kept nodes, and machines.
pub(crate) fn beyond(base: u32, pools: impl Iterator<Item = (u32, u32, u32)>) -> u32 {
    let mut uncovered = base;
    let mut others: Vec<(u32, u32)> = Vec::new();
    for (units, kept, committed) in pools {
        let kept = kept.min(committed);
        uncovered = uncovered.saturating_sub(kept * units);
        others.push((units, committed - kept));
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

/// Machines of an on-demand agent pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machines {
    pub units: u32,
    pub kept: u32,
    pub number: u32,
    pub price: Option<Decimal>,
}

/// Those of each agent pool that [`beyond`] counts. Of machines that are worth the same the dearest stand in for spot,
/// and what has no price is dearer than all: what fallback costs must not turn out to be more.
pub(crate) fn standing_in(base: u32, pools: &[Machines]) -> Vec<u32> {
    let kept = |pool: &Machines| pool.kept.min(pool.number);
    let covered: u32 = pools.iter().map(|pool| kept(pool) * pool.units).sum();
    let mut uncovered = base.saturating_sub(covered);
    let mut order: Vec<usize> = (0..pools.len()).collect();
    order.sort_by_key(|index| (pools[*index].units, pools[*index].price.is_none(), pools[*index].price));
    let mut beyond = vec![0; pools.len()];
    for index in order {
        let pool = &pools[index];
        let machines = pool.number - kept(pool);
        let of_base = uncovered.div_ceil(pool.units).min(machines);
        uncovered = uncovered.saturating_sub(of_base * pool.units);
        beyond[index] = machines - of_base;
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

    #[test]
    fn what_the_base_needs_is_no_fallback() {
        // (units, kept, machines) of each agent pool, the base, fallback nodes.
        for (machines, base, wanted) in [
            (vec![(1, 0, 5)], 2, 3),
            (vec![(1, 0, 5)], 0, 5),
            (vec![(1, 3, 5)], 3, 2),
            (vec![(1, 3, 5)], 4, 1),
            (vec![(4, 0, 2)], 1, 1),
            (vec![(4, 0, 2)], 5, 0),
            (vec![(4, 0, 1), (1, 0, 2)], 2, 1),
            (vec![(4, 1, 1), (1, 0, 2)], 4, 2),
            (vec![(4, 0, 1), (1, 0, 2)], 3, 0),
            (vec![(2, 0, 1)], 9, 0),
        ] {
            assert_eq!(beyond(base, machines.iter().copied()), wanted, "{machines:?} of {base}");
            let priced: Vec<Machines> = machines
                .iter()
                .map(|(units, kept, machines)| Machines {
                    units: *units,
                    kept: *kept,
                    number: *machines,
                    price: None,
                })
                .collect();
            assert_eq!(standing_in(base, &priced).iter().sum::<u32>(), wanted, "{machines:?} of {base}");
        }
    }

    #[test]
    fn of_equals_the_dearest_stand_in() {
        let pool = |units, number, price: Option<u32>| Machines {
            units,
            kept: 0,
            number,
            price: price.map(Into::into),
        };
        for (pools, base, wanted) in [
            ([pool(1, 2, Some(5)), pool(1, 2, Some(1))], 1, [2, 1]),
            ([pool(1, 2, Some(5)), pool(1, 2, Some(1))], 3, [1, 0]),
            ([pool(1, 2, None), pool(1, 2, Some(9))], 2, [2, 0]),
            // The smallest are of the base, whatever they cost.
            ([pool(1, 2, Some(9)), pool(4, 1, Some(1))], 2, [0, 1]),
        ] {
            assert_eq!(standing_in(base, &pools), wanted, "{pools:?} of {base}");
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
