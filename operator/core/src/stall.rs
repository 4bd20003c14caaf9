//! Machines that were asked for and do not come, though Azure reports no error.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Operation, OperationKind};

use crate::plan::Draft;
use crate::snapshot::{AgentPoolView, Snapshot};

/// AKS nodes need one to three minutes, from the request to the Node.
pub(crate) const COMES_WITHIN: SignedDuration = SignedDuration::from_mins(10);

/// An agent pool whose scale-up does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The agent pool.
    pub agent_pool: String,
    /// What is wrong.
    pub reason: Reason,
    /// In words, with the numbers.
    pub message: String,
}

/// The scale-ups that are found to have stalled by this plan, for the first time.
pub(crate) fn detect(snapshot: &Snapshot, now: Timestamp, draft: &mut Draft) -> Vec<Stall> {
    let mut stalls = Vec::new();
    for pool in snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()) {
        if let Some(at) = pool.next_overdue(now) {
            draft.wake_at(at);
        }
        let Some((reason, since, message)) = of(pool, now) else { continue };
        // Told before, and avoided for it since.
        if pool.refused_at.is_some_and(|at| at >= since) {
            continue;
        }
        draft.step(reason, Some(&pool.name), &message);
        stalls.push(Stall { agent_pool: pool.name.clone(), reason, message });
    }
    stalls
}

fn of(pool: &AgentPoolView, now: Timestamp) -> Option<(Reason, Timestamp, String)> {
    let AgentPoolView { name, operation, ended, .. } = pool;
    if let Some(operation) = operation.as_ref().filter(|operation| is_overdue(operation.since.0, now)) {
        let (asked, missing) = (asked(operation), never_came(pool, operation));
        let since = operation.since.0;
        let message = format!("{missing} of {asked} machines asked of {name} at {since:.0} have not come");
        return (operation.kind == OperationKind::ScaleUp && missing > 0).then_some((
            Reason::ScaleUpStalled,
            since,
            message,
        ));
    }
    if let Some(operation) = ended {
        let asked = asked(operation);
        let missing = never_came(pool, operation).saturating_sub(pool.without_node());
        let since = operation.since.0;
        let message =
            format!("{name} was asked for {asked} machines, its operation is over and {missing} are missing");
        return (missing > 0).then_some((Reason::ScaleUpIncomplete, since, message));
    }
    let overdue: Vec<Timestamp> = pool.overdue(now).collect();
    let since = overdue.iter().min()?;
    let message = format!("{} machines of {name} are there since {since:.0} and no Nodes", overdue.len());
    Some((Reason::ScaleUpStalled, *since, message))
}

/// Those that were never seen: a machine that came and is gone was lost, which says nothing of capacity.
fn never_came(pool: &AgentPoolView, operation: &Operation) -> u32 {
    asked(operation).saturating_sub(operation.arrived.max(0) as u32).min(pool.not_come(operation))
}

pub(crate) fn is_overdue(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= COMES_WITHIN
}

/// Machines that an operation should have brought; those that were on their way before are among them.
pub(crate) fn asked(operation: &Operation) -> u32 {
    (operation.machines.max(0) + operation.coming.max(0)) as u32
}
