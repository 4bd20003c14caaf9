//! Machines that were asked for and do not come, though Azure reports no error.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Operation, OperationKind};

use crate::action::Action;
use crate::draft::Draft;
use crate::plan::Situation;
use crate::snapshot::{AgentPoolView, Snapshot};
use crate::time::later_by;

/// AKS nodes need one to three minutes, from the request to the Node.
pub(crate) const COMES_WITHIN: SignedDuration = SignedDuration::from_mins(10);
/// AKS itself gives up on a machine that does not register before that.
const NEVER_JOINS: SignedDuration = SignedDuration::from_mins(30);

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
        let short = (operation.count.max(0) as u32).saturating_sub(pool.existing());
        // None is missing where as many are there as should be: a node that came within two seconds counts as an old one.
        let missing = never_came(pool, operation).saturating_sub(pool.without_node()).min(short);
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

/// Gives machines back that run and have not become Nodes: they are paid for and take places of `maxNodes`, and others were
/// asked for in their stead long ago.
pub(crate) fn give_back(situation: &Situation<'_>, draft: &mut Draft) {
    let now = situation.now;
    for pool in situation.snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()) {
        // The cluster autoscaler deletes by itself what never registers.
        if pool.autoscaler.is_some() || pool.upkeep.is_some() {
            continue;
        }
        let due = |since: Timestamp| later_by(since, NEVER_JOINS);
        let joining = pool.joining_machines().filter_map(|name| Some((name, due(*pool.joining.get(name)?))));
        let (overdue, coming): (Vec<_>, Vec<_>) = joining.partition(|(_, due)| *due <= now);
        if let Some((_, at)) = coming.iter().min_by_key(|(_, due)| *due) {
            draft.wake_at(*at);
        }
        let written = draft.actions.iter().any(|action| action.agent_pool() == Some(&pool.name));
        let barred = pool.unwritable_until.is_some_and(|until| until > now);
        if overdue.is_empty() || written || pool.busy || barred {
            continue;
        }
        let mut nodes: Vec<String> = overdue.into_iter().map(|(name, _)| name.clone()).collect();
        nodes.sort();
        let (names, reason) = (nodes.join(", "), Reason::NeverJoined);
        let message = format!("delete {names}: there for {} min and no Node", NEVER_JOINS.as_mins());
        draft.step(reason, Some(&pool.name), message);
        let remaining = pool.existing().saturating_sub(nodes.len() as u32);
        draft.actions.push(Action::DeleteMachines {
            agent_pool: pool.name.clone(),
            nodes,
            remaining,
            reason,
        });
    }
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
