//! Azure's count where it is stale: after evictions it may stay above the machines that exist, and any later
//! change of the agent pool would then bring VMs back that nobody asked for.

use jiff::SignedDuration;
use spotpool_crds::Reason;

use crate::action::Action;
use crate::draft::Draft;
use crate::plan::Situation;
use crate::snapshot::AgentPoolView;

/// Azure's count often follows by itself, a little later.
const STALE_FOR: SignedDuration = SignedDuration::from_mins(2);

/// Lowers counts to the machines that exist, never below, where nothing else is written anyway.
pub(crate) fn correct(situation: &Situation<'_>, draft: &mut Draft) {
    // An autoscaled one's count is the autoscaler's.
    let ours = |pool: &&AgentPoolView| pool.role.is_ok() && !pool.busy && pool.autoscaler.is_none();
    for pool in situation.snapshot.agent_pools.iter().filter(ours) {
        let Some(since) = pool.count_stale_since else { continue };
        let exist = pool.count_with(0);
        let written = draft.actions.iter().any(|action| action.agent_pool() == Some(&pool.name));
        if written || exist >= pool.count {
            continue;
        }
        let due = since.saturating_add(STALE_FOR).unwrap_or(situation.now);
        if due > situation.now {
            draft.wake_at(due);
            continue;
        }
        draft.step(
            Reason::CountCorrected,
            Some(&pool.name),
            format!("Azure counts {} in {}, but {exist} exist: the count is lowered", pool.count, pool.name),
        );
        draft.actions.push(Action::CorrectCount { agent_pool: pool.name.clone(), count: exist });
    }
}
