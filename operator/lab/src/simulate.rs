//! One policy through one scenario.

use spotpool_crds::spot_pool::Role;

use crate::cloud::{Answer, Cloud};
use crate::measure::{Measured, Meter};
use crate::policy::Policy;
use crate::scenario::Scenario;

/// What must always hold did not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{policy} at second {second} of {scenario} (step {step}): {what}")]
pub struct Violation {
    /// Whose.
    pub policy: String,
    /// Where.
    pub scenario: String,
    /// When.
    pub second: i64,
    /// The how manieth step of the simulation.
    pub step: u64,
    /// What.
    pub what: String,
}

/// Plays `policy` through `scenario`. Nothing is looked at between two events: a policy says when it wants to be asked again.
pub fn simulate(scenario: &Scenario, policy: &mut dyn Policy) -> Result<Measured, Violation> {
    let mut cloud = Cloud::new(scenario);
    cloud.by_agent_pool = policy.writes_agent_pools();
    let mut meter = Meter::new(scenario);
    let mut steps = 0;
    let mut due = 0;
    while due < scenario.seconds {
        cloud.go_on(due);
        meter.see(&cloud);
        let wake = step(policy, &mut cloud, &mut meter).map_err(|what| Violation {
            policy: policy.name(),
            scenario: scenario.name.clone(),
            second: due,
            step: steps,
            what,
        })?;
        let next = cloud.next_event().min(wake.unwrap_or(i64::MAX)).max(cloud.now + 1);
        // What happens between two ticks is seen at the next.
        let next = next.saturating_add(scenario.tick - 1) / scenario.tick * scenario.tick;
        due = next.min(scenario.seconds);
        meter.pass(&cloud, due);
        steps += 1;
    }
    Ok(meter.conclude(policy.name(), steps, cloud.ready(Role::Spot) + cloud.ready(Role::OnDemand)))
}

/// Asks the policy and does what it says; tells when to ask again.
fn step(
    policy: &mut dyn Policy,
    cloud: &mut Cloud<'_>,
    meter: &mut Meter<'_>,
) -> Result<Option<i64>, String> {
    let decision = policy.decide(cloud)?;
    for order in &decision.orders {
        match cloud.carry_out(order)? {
            Answer::Accepted => meter.note(order, cloud),
            Answer::NotNow => policy.put_off(order, cloud),
        }
    }
    // What is asked for goes before what is returned.
    cloud.delete_returned();
    policy.check(cloud).map_err(|what| format!("{what}, after {:?}", decision.orders))?;
    Ok(decision.wake)
}
