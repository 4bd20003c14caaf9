//! Agent pools that the spec describes and the cluster does not have.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{CreateAgentPool, OperationKind, SpotPoolSpec};

use crate::action::Action;
use crate::draft::Draft;
use crate::plan::Situation;
use crate::snapshot::AgentPoolView;
use crate::stall::{COMES_WITHIN, is_overdue};
use crate::time::later_by;

/// How an agent pool that Azure does not list is to be made, if it is.
pub fn wanted<'a>(spec: &'a SpotPoolSpec, pool: &AgentPoolView) -> Option<&'a CreateAgentPool> {
    let named = spec.agent_pools.iter().find(|named| named.name == pool.name)?;
    named.create.as_ref().filter(|_| pool.role == Err(Reason::AgentPoolNotFound))
}

/// Has each made once: what was asked for is waited for, and what Azure has refused is asked for again once the agent pool
/// is not avoided any more.
pub(crate) fn decide(situation: &Situation<'_>, draft: &mut Draft) {
    let Situation { spec, snapshot, now, .. } = situation;
    for pool in &snapshot.agent_pools {
        let Some(create) = wanted(spec, pool) else { continue };
        let name = &pool.name;
        let message = match (asked_at(pool, *now), pool.avoided_until.filter(|until| until > now)) {
            (Some(at), _) => {
                draft.wake_at(later_by(at, COMES_WITHIN));
                format!("{name} does not exist, and Azure was asked to make it")
            }
            (None, Some(until)) => {
                draft.wake_at(until);
                format!("{name} does not exist, and could not be made: it is asked for again from {until:.0}")
            }
            (None, None) => {
                draft.actions.push(Action::CreateAgentPool { agent_pool: name.clone() });
                let (size, what) = (&create.vm_size, create.capacity_type);
                format!("{name} does not exist: have it made, of {size}, {what:?}, without machines")
            }
        };
        draft.step(Reason::CreateAgentPool, Some(name), message);
    }
}

/// When it was asked for, as long as it may still appear.
fn asked_at(pool: &AgentPoolView, now: Timestamp) -> Option<Timestamp> {
    let operation = pool.operation.as_ref().filter(|it| it.kind == OperationKind::CreateAgentPool);
    operation.map(|operation| operation.since.0).filter(|since| !is_overdue(*since, now))
}
