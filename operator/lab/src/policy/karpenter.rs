//! Like Karpenter: the cheapest offering, one that is refused or taken is unavailable for an hour, and on-demand is replaced
//! by spot one node at a time once there is a cheaper offering: first the new node, then the old one goes.

use spotpool_crds::spot_pool::Role;

use crate::cloud::{Cloud, Order};
use crate::policy::market::{Shunned, buy, give_back, staying};
use crate::policy::{Decision, Policy};
use crate::scenario::Scenario;

/// How long an offering is unavailable.
const UNAVAILABLE: i64 = 3600;
/// `consolidateAfter`, and how long it is validated.
const CONSOLIDATES_AFTER: i64 = 15;

/// See above.
#[derive(Clone, Debug)]
pub struct Karpenter {
    unavailable: Shunned,
}

impl Karpenter {
    /// All offerings available.
    pub fn new(scenario: &Scenario) -> Self {
        Self { unavailable: Shunned::none(scenario.pools.len()) }
    }
}

impl Policy for Karpenter {
    fn name(&self) -> String {
        "like Karpenter".into()
    }

    /// On AKS it makes single VMs.
    fn writes_agent_pools(&self) -> bool {
        false
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        let (now, wanted) = (cloud.now, cloud.wanted());
        self.unavailable.after_refusals(cloud, UNAVAILABLE);
        for (pool, _) in cloud.fleets.iter().enumerate().filter(|(_, fleet)| fleet.lost > 0) {
            self.unavailable.until(pool, now + UNAVAILABLE);
        }
        let scenario = cloud.scenario;
        let open = |pool: &usize| !self.unavailable.is_shunned(*pool, now);
        let mut offerings: Vec<usize> = [Role::Spot, Role::OnDemand]
            .into_iter()
            .flat_map(|role| scenario.cheapest(role, now))
            .filter(open)
            .collect();
        offerings.sort_by(|one, other| {
            scenario.pools[*one].unit_price(now).total_cmp(&scenario.pools[*other].unit_price(now))
        });
        let (spot, on_demand) = (staying(cloud, Role::Spot), staying(cloud, Role::OnDemand));
        let mut orders = Vec::new();
        let missing = wanted.saturating_sub(spot + on_demand);
        let unasked = buy(cloud, &offerings, missing, &mut orders);
        let ready = cloud.ready(Role::Spot) + cloud.ready(Role::OnDemand);
        let needless = ready.saturating_sub(wanted);
        if needless > 0 {
            let needless = give_back(cloud, Role::OnDemand, needless, &mut orders);
            give_back(cloud, Role::Spot, needless, &mut orders);
        } else if missing == 0 && spot + on_demand == wanted && on_demand > 0 && ready == wanted {
            let dearest = scenario
                .cheapest(Role::OnDemand, now)
                .last()
                .map(|pool| scenario.pools[*pool].unit_price(now));
            let is_cheaper = |pool: &&usize| {
                Some(scenario.pools[**pool].unit_price(now)) < dearest && cloud.room(**pool) > 0
            };
            let spot =
                offerings.iter().filter(|pool| scenario.pools[**pool].role == Role::Spot).find(is_cheaper);
            orders.extend(spot.map(|pool| Order::Launch { pool: *pool, machines: 1 }));
        }
        let again = (unasked > 0).then_some(now + CONSOLIDATES_AFTER);
        Ok(Decision { orders, wake: self.unavailable.next(now).into_iter().chain(again).min() })
    }
}
