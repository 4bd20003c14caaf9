//! Fixed shares: all on demand, all on spot, half and half.

use spotpool_crds::spot_pool::Role;

use crate::cloud::Cloud;
use crate::policy::market::{Shunned, buy, give_back, staying};
use crate::policy::{Decision, Policy};
use crate::scenario::Scenario;

/// Whoever refused is asked again after this.
const RETRY: i64 = 60;

/// A share on demand, whatever spot does.
#[derive(Clone, Debug)]
pub struct Mix {
    name: &'static str,
    on_demand_percent: u32,
    shunned: Shunned,
}

impl Mix {
    fn of(scenario: &Scenario, name: &'static str, on_demand_percent: u32) -> Self {
        Self { name, on_demand_percent, shunned: Shunned::none(scenario.pools.len()) }
    }

    /// No spot at all.
    pub fn on_demand_only(scenario: &Scenario) -> Self {
        Self::of(scenario, "on-demand only", 100)
    }

    /// No on-demand at all.
    pub fn spot_only(scenario: &Scenario) -> Self {
        Self::of(scenario, "spot only", 0)
    }

    /// As much of the one as of the other.
    pub fn half(scenario: &Scenario) -> Self {
        Self::of(scenario, "half and half", 50)
    }
}

impl Policy for Mix {
    fn name(&self) -> String {
        self.name.into()
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        let (wanted, now) = (cloud.wanted(), cloud.now);
        let on_demand = (wanted * self.on_demand_percent).div_ceil(100);
        self.shunned.after_refusals(cloud, RETRY);
        let mut orders = Vec::new();
        for (role, target) in [(Role::OnDemand, on_demand), (Role::Spot, wanted - on_demand)] {
            let have = staying(cloud, role);
            let pools = self.shunned.open(cloud, cloud.scenario.cheapest(role, now));
            buy(cloud, &pools, target.saturating_sub(have), &mut orders);
            give_back(cloud, role, have.saturating_sub(target), &mut orders);
        }
        Ok(Decision { orders, wake: self.shunned.next(now) })
    }
}
