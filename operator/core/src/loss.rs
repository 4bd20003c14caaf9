//! Nodes that are lost without a notice: how it is known, what is counted, and what becomes of them.
//!
//! A Node that is silent is a sign, and no more: its kubelet may have crashed, the network may be cut. Only Azure knows
//! whether the VM still runs, and only once Azure says that it does not are the node's pods set free: two pods that
//! write to one disk would be worse than one that waits.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{OnDeallocated, Role};

use crate::action::Action;
use crate::draft::Draft;
use crate::plan::Situation;
use crate::snapshot::{AgentPoolView, NodeView};
use crate::time::later_by;

/// A kubelet that restarts, or a node that boots, is not ready for less than this.
const NOT_READY_FOR: SignedDuration = SignedDuration::from_secs(30);
/// Azure, or AKS, mostly cleans up by itself what has failed or should have been deleted.
const LINGERS: SignedDuration = SignedDuration::from_mins(2);
/// A VM that Azure takes back sooner after its node came has brought nothing.
const SHORT_LIVED: SignedDuration = SignedDuration::from_mins(5);
/// For so long nothing is asked of an agent pool whose VMs do not last, where another can take it.
const QUARANTINE: SignedDuration = SignedDuration::from_mins(10);
/// From the loss to the first try to start a deallocated VM; each further one waits twice as long, at most
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(1);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// After so many tries the VM is deleted, and its quota is free: about five hours.
const MOST_RESTARTS: u32 = 10;

/// What a Node shows of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Since when its kubelet is not ready, or not heard.
    pub not_ready_since: Option<Timestamp>,
    /// Whether the cloud provider says that the VM is shut down.
    pub shut_down: bool,
}

impl Signs {
    /// From when on Azure should be asked.
    pub fn suspect_from(&self) -> Option<Timestamp> {
        let since = self.not_ready_since?;
        Some(if self.shut_down { since } else { later_by(since, NOT_READY_FOR) })
    }
}

/// What Azure says of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// It runs, or it is on its way up or down.
    Alive,
    /// It is stopped and off its host; it exists, and uses quota.
    Deallocated,
    /// It could not be made, and does not run.
    Failed,
    /// There is none.
    Gone,
}

/// Azure's answer about one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it says.
    pub state: VmState,
    /// When it was asked.
    pub asked: Timestamp,
}

/// A node whose VM does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when its Node is silent.
    pub since: Timestamp,
    /// What Azure says.
    pub state: VmState,
}

/// Whether a node with these signs is lost, by what Azure said.
pub fn lost(signs: &Signs, word: Option<&Word>, now: Timestamp) -> Option<Lost> {
    let since = signs.not_ready_since?;
    let word = word.filter(|word| word.asked >= since)?;
    let is_suspect = signs.suspect_from().is_some_and(|from| from <= now);
    (is_suspect && word.state != VmState::Alive).then_some(Lost { since, state: word.state })
}

/// How often deallocated VMs of an agent pool were started, and when at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// How often, since there have been any.
    pub count: u32,
    /// When at last.
    pub at: Timestamp,
}

/// Agent pools whose VMs were taken back minutes after they came, and until when nothing is asked of them. Only where
/// another spot agent pool is there to be asked.
pub fn quarantine(pools: &[AgentPoolView], now: Timestamp) -> Vec<(usize, Timestamp)> {
    let until = |pool: &AgentPoolView| {
        let of_node = |node: &NodeView| {
            let at = node.noticed.or(node.lost.map(|lost| lost.since))?;
            (at.duration_since(node.created) < SHORT_LIVED).then(|| later_by(at, QUARANTINE))
        };
        pool.nodes.iter().filter_map(of_node).max().filter(|until| *until > now)
    };
    let is_free = |pool: &AgentPoolView| {
        pool.role == Ok(Role::Spot)
            && until(pool).is_none()
            && pool.avoided_until.is_none_or(|until| until <= now)
            && pool.committed() < pool.most()
    };
    if !pools.iter().any(is_free) {
        return Vec::new();
    }
    let of_spot = pools.iter().enumerate().filter(|(_, pool)| pool.role == Ok(Role::Spot));
    of_spot.filter_map(|(index, pool)| Some((index, until(pool)?))).collect()
}

/// When nodes of `pool` were lost that nobody had announced.
pub(crate) fn unannounced(pool: &AgentPoolView) -> impl Iterator<Item = Timestamp> {
    let silent = |node: &NodeView| node.lost.filter(|_| node.noticed.is_none()).map(|lost| lost.since);
    pool.nodes.iter().filter_map(silent).chain(pool.vanished.iter().copied())
}

/// Sets the pods of lost nodes free, and sees to their machines.
pub(crate) fn decide(situation: &Situation<'_>, draft: &mut Draft) {
    for pool in situation.snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()) {
        for node in &pool.nodes {
            service(node, draft);
        }
        machines(pool, situation.now, draft);
    }
}

/// Out of service while its VM does not run, and only then.
fn service(node: &NodeView, draft: &mut Draft) {
    match (node.lost, node.out_of_service) {
        (Some(lost), false) if lost.state != VmState::Failed => {
            let word = if lost.state == VmState::Gone { "gone" } else { "deallocated" };
            draft.step(
                Reason::OutOfService,
                Some(&node.agent_pool),
                format!("the VM of {} is {word}, says Azure: its pods are set free", node.name),
            );
            draft.actions.push(Action::TakeOutOfService { node: node.name.clone() });
        }
        (None, true) if node.ready => {
            draft.actions.push(Action::ReturnToService { node: node.name.clone() });
        }
        _ => {}
    }
}

/// Deletes the machines of lost nodes that linger, or has Azure start them again.
fn machines(pool: &AgentPoolView, now: Timestamp, draft: &mut Draft) {
    let restarts = pool.on_deallocated == OnDeallocated::Restart
        && pool.restarts.is_none_or(|restarts| restarts.count < MOST_RESTARTS);
    let (mut doomed, mut stopped) = (Vec::new(), Vec::new());
    for node in &pool.nodes {
        let Some(lost) = node.lost.filter(|_| pool.machines.contains(&node.name)) else { continue };
        if lost.state == VmState::Deallocated && pool.role == Ok(Role::Spot) && restarts {
            // First out of service, in a plan before this one: its pods are to be free before it comes back.
            if node.out_of_service {
                stopped.push((node.name.clone(), lost.since));
            }
            continue;
        }
        // What is deallocated by policy stays so until somebody acts; anything else may be on its way out.
        let at_once = lost.state == VmState::Deallocated && pool.deallocates;
        let due = if at_once { lost.since } else { later_by(lost.since, LINGERS) };
        if due <= now {
            doomed.push(node.name.clone());
        } else {
            draft.wake_at(due);
        }
    }
    if let Some(first) = stopped.iter().map(|(_, since)| *since).min() {
        let due = restart_at(pool.restarts, first);
        if due <= now {
            let count = pool.restarts.map_or(0, |restarts| restarts.count) + 1;
            draft.step(
                Reason::RestartDeallocated,
                Some(&pool.name),
                format!(
                    "{} of {} are deallocated and use quota: start them, attempt {count} of {MOST_RESTARTS}",
                    stopped.len(),
                    pool.name
                ),
            );
            draft.restarts.insert(pool.name.clone(), Restarts { count, at: now });
            let nodes = stopped.into_iter().map(|(node, _)| node).collect();
            draft.actions.push(Action::Restart { agent_pool: pool.name.clone(), nodes });
        } else {
            draft.step(
                Reason::RestartDeallocated,
                Some(&pool.name),
                format!(
                    "{} of {} are deallocated and use quota: started again at {due:.0}",
                    stopped.len(),
                    pool.name
                ),
            );
            draft.wake_at(due);
        }
    }
    let written = draft.actions.iter().any(|action| action.agent_pool() == Some(&pool.name));
    if doomed.is_empty() || written || pool.busy {
        return;
    }
    let remaining = pool.existing().saturating_sub(doomed.len() as u32);
    draft.step(
        Reason::LostDeleted,
        Some(&pool.name),
        format!("delete {} of {}: their VMs do not run any more", doomed.join(", "), pool.name),
    );
    let reason = Reason::LostDeleted;
    draft.actions.push(Action::DeleteMachines {
        agent_pool: pool.name.clone(),
        nodes: doomed,
        remaining,
        reason,
    });
}

/// When the next attempt to start deallocated VMs is due.
fn restart_at(last: Option<Restarts>, lost: Timestamp) -> Timestamp {
    let Some(last) = last else { return later_by(lost, FIRST_PAUSE) };
    let pause = FIRST_PAUSE.saturating_mul(1 << last.count.min(16)).min(LONGEST_PAUSE);
    later_by(last.at, pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_node_is_lost_when_it_is_silent_and_azure_says_that_its_vm_does_not_run() {
        let silent = Signs { not_ready_since: Some(at(0)), shut_down: false };
        let shut_down = Signs { shut_down: true, ..silent };
        for (signs, word, now, wanted) in [
            (Signs::default(), Some((VmState::Gone, 40)), 40, None),
            (silent, None, 400, None),
            (silent, Some((VmState::Alive, 40)), 400, None),
            // Asked before the Node fell silent: another life of the VM.
            (silent, Some((VmState::Deallocated, -1)), 400, None),
            (silent, Some((VmState::Gone, 10)), 29, None),
            (silent, Some((VmState::Gone, 31)), 31, Some(VmState::Gone)),
            (silent, Some((VmState::Failed, 31)), 31, Some(VmState::Failed)),
            (shut_down, Some((VmState::Deallocated, 1)), 1, Some(VmState::Deallocated)),
            // A VM that only looks shut down: a taint that somebody forgot.
            (shut_down, Some((VmState::Alive, 1)), 1, None),
        ] {
            let word = word.map(|(state, asked)| Word { state, asked: at(asked) });
            let wanted = wanted.map(|state| Lost { since: at(0), state });
            assert_eq!(lost(&signs, word.as_ref(), at(now)), wanted, "{signs:?} {word:?} at {now}");
        }
    }

    #[test]
    fn attempts_to_restart_come_ever_more_seldom() {
        assert_eq!(restart_at(None, at(0)), at(60));
        for (count, pause) in [(1, 120), (2, 240), (5, 1920), (6, 3600), (30, 3600)] {
            assert_eq!(restart_at(Some(Restarts { count, at: at(7) }), at(0)), at(7 + pause), "{count}");
        }
    }
}
