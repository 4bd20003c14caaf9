//! Policies: SpotPool's own, and those that it is measured against.

use crate::cloud::{Cloud, Order};
use crate::scenario::Scenario;

mod autoscaler;
mod karpenter;
mod market;
mod mix;
mod skyserve;
mod spotpool;
mod uniform;

pub use autoscaler::Autoscaler;
pub use karpenter::Karpenter;
pub use mix::Mix;
pub use skyserve::SkyServe;
pub use spotpool::SpotPool;
pub use uniform::Uniform;

/// What a policy wants.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// To be carried out now, in this order.
    pub orders: Vec<Order>,
    /// When to ask again, even if nothing happens.
    pub wake: Option<i64>,
}

/// Decides what to buy and what to give back.
pub trait Policy {
    /// Its name in reports.
    fn name(&self) -> String;

    /// Asked whenever something has happened. An error is a promise that was broken.
    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String>;

    /// Whether its machines are of agent pools, in which one operation runs at a time.
    fn writes_agent_pools(&self) -> bool {
        true
    }

    /// Azure has not taken an order. Whoever decides by what there is asks again when it can be taken.
    fn put_off(&mut self, _order: &Order, _cloud: &Cloud<'_>) {}

    /// What must hold of the cloud once the orders are carried out.
    fn check(&mut self, _cloud: &Cloud<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All that a scenario is played with: SpotPool first.
pub fn all(scenario: &Scenario) -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(SpotPool::new(scenario)),
        Box::new(Mix::on_demand_only(scenario)),
        Box::new(Mix::spot_only(scenario)),
        Box::new(Mix::half(scenario)),
        Box::new(SkyServe::formula(scenario, 0)),
        Box::new(SkyServe::formula(scenario, 2)),
        Box::new(SkyServe::new(scenario, 2)),
        Box::new(Uniform::new(scenario)),
        Box::new(Autoscaler::new(scenario)),
        Box::new(Karpenter::new(scenario)),
    ]
}
