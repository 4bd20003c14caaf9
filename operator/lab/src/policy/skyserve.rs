//! SpotHedge, as SkyServe has it (EuroSys'25): so much spot beyond what is wanted, and on-demand for all of it that is not
//! ready.

use spotpool_crds::spot_pool::Role;

use crate::cloud::{Cloud, Fleet, Order};
use crate::policy::market::{Shunned, buy, give_back, staying};
use crate::policy::{Decision, Policy};
use crate::scenario::Scenario;

/// SkyServe's controller looks this often.
const LOOKS_EVERY: i64 = 20;

/// `O = wanted + spare − ready spot`, at most what is wanted.
#[derive(Clone, Debug)]
pub struct SkyServe {
    spare: u32,
    /// With its own rule of placement: agent pools that were preempted come back when fewer than two are left.
    active: Option<Vec<bool>>,
    asked_again: Shunned,
}

impl SkyServe {
    /// The formula alone, placed on the cheapest.
    pub fn formula(scenario: &Scenario, spare: u32) -> Self {
        Self { spare, active: None, asked_again: Shunned::none(scenario.pools.len()) }
    }

    /// With its rule of placement.
    pub fn new(scenario: &Scenario, spare: u32) -> Self {
        Self { active: Some(vec![true; scenario.pools.len()]), ..Self::formula(scenario, spare) }
    }

    fn spot(&mut self, cloud: &Cloud<'_>, units: u32, orders: &mut Vec<Order>) {
        let cheapest = cloud.scenario.cheapest(Role::Spot, cloud.now);
        self.asked_again.after_refusals(cloud, LOOKS_EVERY);
        let Some(active) = &mut self.active else {
            buy(cloud, &self.asked_again.open(cloud, cheapest), units, orders);
            return;
        };
        for (pool, fleet) in cloud.fleets.iter().enumerate() {
            if fleet.lost > 0 || fleet.ended.iter().any(|launch| launch.missing > 0) {
                active[pool] = false;
            }
        }
        if cheapest.iter().filter(|pool| active[**pool]).count() < 2 {
            for pool in &cheapest {
                active[*pool] = true;
            }
        }
        // One after the other: unused ones first, then the cheapest.
        let mut held: Vec<u32> = cloud.fleets.iter().map(Fleet::staying).collect();
        let mut asked = vec![0; held.len()];
        let open = self.asked_again.open(cloud, cheapest);
        let mut missing = units;
        while missing > 0 {
            let has_room = |pool: &&usize| active[**pool] && asked[**pool] < cloud.room(**pool);
            let Some(pool) = open.iter().filter(has_room).min_by_key(|pool| held[**pool] > 0).copied() else {
                break;
            };
            held[pool] += 1;
            asked[pool] += 1;
            missing = missing.saturating_sub(cloud.scenario.pools[pool].units);
        }
        let asked = asked.into_iter().enumerate().filter(|(_, machines)| *machines > 0);
        orders.extend(asked.map(|(pool, machines)| Order::Launch { pool, machines }));
    }
}

impl Policy for SkyServe {
    fn name(&self) -> String {
        match (&self.active, self.spare) {
            (None, spare) => format!("SkyServe's formula, {spare} spare"),
            (Some(_), spare) => format!("SkyServe, {spare} spare"),
        }
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        let wanted = cloud.wanted();
        let target = wanted + self.spare;
        let mut orders = Vec::new();
        let spot = staying(cloud, Role::Spot);
        self.spot(cloud, target.saturating_sub(spot), &mut orders);
        give_back(cloud, Role::Spot, spot.saturating_sub(target), &mut orders);
        let on_demand = target.saturating_sub(cloud.ready(Role::Spot)).min(wanted);
        let have = staying(cloud, Role::OnDemand);
        let pools = cloud.scenario.cheapest(Role::OnDemand, cloud.now);
        buy(cloud, &pools, on_demand.saturating_sub(have), &mut orders);
        give_back(cloud, Role::OnDemand, have.saturating_sub(on_demand), &mut orders);
        let looks_again = (spot < target).then_some(cloud.now + LOOKS_EVERY);
        Ok(Decision { orders, wake: looks_again })
    }
}
