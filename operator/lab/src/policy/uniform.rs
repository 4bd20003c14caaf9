//! The rule of Uniform Progress (NSDI'24), made for a pool: its job has a deadline, a pool has a share of unit-time that must
//! be ready. On-demand comes when the pool is behind it, and goes only when spot is ready and there is slack for two
//! changeovers.

use spotpool_crds::spot_pool::Role;

use crate::cloud::Cloud;
use crate::policy::market::{Shunned, buy, give_back, staying};
use crate::policy::{Decision, Policy};
use crate::scenario::Scenario;

/// The share of the wanted unit-time that is the job.
const SHARE: f64 = 0.99;
const RETRY: i64 = 60;

/// See above.
#[derive(Clone, Debug)]
pub struct Uniform {
    /// Unit-seconds that were ready, and that should have been.
    done: f64,
    expected: f64,
    seen: Option<(i64, u32, u32)>,
    shunned: Shunned,
}

impl Uniform {
    /// Nothing done yet.
    pub fn new(scenario: &Scenario) -> Self {
        Self { done: 0.0, expected: 0.0, seen: None, shunned: Shunned::none(scenario.pools.len()) }
    }
}

impl Policy for Uniform {
    fn name(&self) -> String {
        "Uniform Progress".into()
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        let (now, wanted) = (cloud.now, cloud.wanted());
        let spot_ready = cloud.ready(Role::Spot);
        let ready = (spot_ready + cloud.ready(Role::OnDemand)).min(wanted);
        if let Some((then, was_ready, was_wanted)) = self.seen.replace((now, ready, wanted)) {
            let seconds = (now - then) as f64;
            self.done += f64::from(was_ready) * seconds;
            self.expected += f64::from(was_wanted) * SHARE * seconds;
        }
        self.shunned.after_refusals(cloud, RETRY);
        let mut orders = Vec::new();
        let spot = staying(cloud, Role::Spot);
        let pools = self.shunned.open(cloud, cloud.scenario.cheapest(Role::Spot, now));
        buy(cloud, &pools, wanted.saturating_sub(spot), &mut orders);
        give_back(cloud, Role::Spot, spot.saturating_sub(wanted), &mut orders);

        let on_demand = staying(cloud, Role::OnDemand);
        let missing = wanted.saturating_sub(spot_ready + on_demand);
        let changeover = cloud.scenario.pools.iter().map(|pool| pool.boot).max().unwrap_or_default() as f64;
        let slack = self.done - self.expected;
        let mut wake = self.shunned.next(now);
        if missing > 0 && slack < 0.0 {
            buy(cloud, &cloud.scenario.cheapest(Role::OnDemand, now), missing, &mut orders);
        } else if missing > 0 {
            // Slack melts by what is missing.
            let seconds = slack / f64::from(missing);
            wake = Some(wake.unwrap_or(i64::MAX).min(now + 1 + seconds as i64));
        }
        let needless = (spot_ready + on_demand).saturating_sub(wanted);
        let is_enough = slack > 2.0 * changeover * f64::from(wanted) * SHARE / f64::from(wanted.max(1));
        if needless > 0 && is_enough {
            give_back(cloud, Role::OnDemand, needless, &mut orders);
        }
        Ok(Decision { orders, wake })
    }
}
