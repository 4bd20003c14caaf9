//! What the wanted capacity would cost, were all of it where the spec wants it.

use rust_decimal::Decimal;
use spotpool_crds::spot_pool::Role;

use crate::cost::{Rate, rates};
use crate::placement::share;
use crate::plan::Situation;
use crate::ranking::Rank;
use crate::tally::kept;

/// Costs an hour, at today's prices: kept nodes where they are, the rest of the base on the cheapest on-demand, and all else,
/// standby included, on the spot agent pools that are ranked first, inside `maxNodes`, `maxSharePerPool` and
/// `maxHourlyPrice`. Whether Azure has them now makes no difference. `None` where they cannot hold it, or a price is not
/// even assumed: what would be left out must not read as saved.
pub(crate) fn hourly(situation: &Situation<'_>, ranks: &[Rank]) -> Option<Decimal> {
    let Situation { spec, snapshot, tally, .. } = situation;
    let mut places = Places { rates: rates(snapshot), cost: Decimal::ZERO, machines: Vec::new() };
    places.machines = vec![0; snapshot.agent_pools.len()];
    let mut on_demand = Vec::new();
    let mut base = tally.base;
    for (index, pool) in snapshot.agent_pools.iter().enumerate() {
        if pool.role != Ok(Role::OnDemand) {
            continue;
        }
        let kept = kept(spec, pool);
        places.put(index, kept)?;
        base = base.saturating_sub(kept * pool.units);
        let price = places.rates[index].map(|rate| rate.hourly / Decimal::from(pool.units.max(1)));
        on_demand.push((price.is_none(), price, index));
    }
    on_demand.sort_unstable();
    let most = |index: usize| snapshot.agent_pools[index].most();
    for (_, _, index) in on_demand {
        base = places.fill(situation, index, base, most(index))?;
    }
    let mut missing = tally.spot_target;
    let share = share(&spec.placement, Role::Spot, tally.spot_target);
    let spot = ranks.iter().map(|rank| rank.pool).filter(|index| {
        let pool = &snapshot.agent_pools[*index];
        let too_dear = |price: Decimal| pool.max_hourly_price.is_some_and(|most| price > most);
        pool.role == Ok(Role::Spot) && !places.rates[*index].is_some_and(|rate| too_dear(rate.hourly))
    });
    let spot: Vec<usize> = spot.collect();
    // First each its share, then whatever it holds.
    for share in [share, u32::MAX] {
        for index in &spot {
            let most = most(*index).min(share.div_ceil(snapshot.agent_pools[*index].units.max(1)));
            missing = places.fill(situation, *index, missing, most)?;
        }
    }
    (base == 0 && missing == 0).then_some(places.cost)
}

/// Machines as they are put in their places.
struct Places {
    rates: Vec<Option<Rate>>,
    cost: Decimal,
    /// By agent pool.
    machines: Vec<u32>,
}

impl Places {
    fn put(&mut self, index: usize, machines: u32) -> Option<()> {
        if machines > 0 {
            let price = self.rates[index]?.hourly;
            self.cost = self.cost.saturating_add(price.saturating_mul(Decimal::from(machines)));
            self.machines[index] += machines;
        }
        Some(())
    }

    /// Puts what it can of `units` into an agent pool that holds `most` machines, and gives what is left.
    fn fill(&mut self, situation: &Situation<'_>, index: usize, units: u32, most: u32) -> Option<u32> {
        let each = situation.snapshot.agent_pools[index].units.max(1);
        let machines = units.div_ceil(each).min(most.saturating_sub(self.machines[index]));
        self.put(index, machines)?;
        Some(units.saturating_sub(machines.saturating_mul(each)))
    }
}
