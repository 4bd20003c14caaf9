//! What the policies of others have in common: whom to ask, and for how long not to.

use spotpool_crds::spot_pool::Role;

use crate::cloud::{Cloud, Machine, Order};

/// Units that a fleet has or will have.
pub(super) fn staying(cloud: &Cloud<'_>, role: Role) -> u32 {
    cloud.units(role, Machine::stays)
}

/// Orders for `units`, from `pools` in their order as far as each has room and takes a write; tells what could not be
/// ordered.
pub(super) fn buy(cloud: &Cloud<'_>, pools: &[usize], mut units: u32, orders: &mut Vec<Order>) -> u32 {
    for pool in pools.iter().filter(|pool| cloud.takes_writes(**pool)) {
        let worth = cloud.scenario.pools[*pool].units;
        let machines = units.div_ceil(worth).min(cloud.room(*pool));
        if machines > 0 {
            orders.push(Order::Launch { pool: *pool, machines });
            units = units.saturating_sub(machines * worth);
        }
    }
    units
}

/// Gives back machines of `role` that are worth no more than `units`: the dearest, then those that came last. Tells what is
/// left.
pub(super) fn give_back(cloud: &Cloud<'_>, role: Role, mut units: u32, orders: &mut Vec<Order>) -> u32 {
    let mut pools = cloud.scenario.cheapest(role, cloud.now);
    pools.reverse();
    for pool in pools {
        let worth = cloud.scenario.pools[pool].units;
        for machine in cloud.fleets[pool].machines.iter().rev().filter(|machine| machine.stays()) {
            if units < worth {
                break;
            }
            units -= worth;
            orders.push(Order::Return { pool, machine: machine.name.clone() });
        }
    }
    units
}

/// Until when each agent pool is not asked.
#[derive(Clone, Debug)]
pub(super) struct Shunned(Vec<i64>);

impl Shunned {
    pub fn none(pools: usize) -> Self {
        Self(vec![0; pools])
    }

    pub fn until(&mut self, pool: usize, time: i64) {
        self.0[pool] = self.0[pool].max(time);
    }

    pub fn is_shunned(&self, pool: usize, now: i64) -> bool {
        self.0[pool] > now
    }

    /// When the next of them may be asked again.
    pub fn next(&self, now: i64) -> Option<i64> {
        self.0.iter().copied().filter(|until| *until > now).min()
    }

    /// Of `pools`, those that may be asked now.
    pub fn open(&self, cloud: &Cloud<'_>, pools: Vec<usize>) -> Vec<usize> {
        let is_open = |pool: &usize| !self.is_shunned(*pool, cloud.now) && cloud.takes_writes(*pool);
        pools.into_iter().filter(is_open).collect()
    }

    /// Shuns whoever has refused at this step, for so long.
    pub fn after_refusals(&mut self, cloud: &Cloud<'_>, seconds: i64) {
        for (pool, fleet) in cloud.fleets.iter().enumerate() {
            if fleet.ended.iter().any(|launch| launch.missing > 0) {
                self.until(pool, cloud.now + seconds);
            }
        }
    }
}
