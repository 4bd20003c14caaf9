//! What to do with each pod now. Pure: facts and the time in, actions out. Whoever wants to know what becomes of
//! a pod in a drain reads this file.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::BlockedByPdb;

use crate::pods::{Exempt, Pod, Tier};

/// A pod that was told late gets at least this, however little is left: its SIGTERM.
pub const LEAST_GRACE: Duration = Duration::from_secs(1);
/// A blocked pod is deleted while there is still this much for it to end in (or its own grace, if less).
const LAST_CALL: Duration = Duration::from_secs(5);
/// A drain with a deadline goes on this long even if that is nearer or past: the VM often lives a little longer,
/// and pods that hear of it late are better off than pods that never do.
pub const LEAST_EFFORT: Duration = Duration::from_secs(10);
/// The first answers of the API are there after this, unless it is ill.
const FIRST_ANSWERS: Duration = Duration::from_millis(750);
/// This long before its deadline a planned event becomes as pressing as a Preempt.
const NEAR: Duration = Duration::from_mins(1);

/// Under which terms a node is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Azure takes the VM back: it goes at the deadline or sooner, whatever the pods say.
    Preempt {
        /// When the notice was first seen.
        noticed: Timestamp,
        /// When the VM goes.
        deadline: Timestamp,
        /// What becomes of pods that a disruption budget holds, and the time to keep free.
        policy: DrainPolicy,
    },
    /// A freeze, reboot, redeploy or the end of the VM is due at the deadline, and not before.
    Planned {
        /// When it happens.
        deadline: Timestamp,
        /// What becomes of pods that a disruption budget holds, and the time to keep free.
        policy: DrainPolicy,
    },
    /// Nothing is urgent: disruption budgets are obeyed, nothing is deleted.
    Voluntary {
        /// When to give up.
        not_after: Timestamp,
    },
}

impl Terms {
    /// When the drain ends although pods are left, if it began at `began`.
    pub fn gives_up_at(&self, began: Timestamp) -> Timestamp {
        match self {
            Self::Preempt { deadline, .. } | Self::Planned { deadline, .. } => {
                (*deadline).max(later(began, LEAST_EFFORT))
            }
            Self::Voluntary { not_after } => *not_after,
        }
    }

    /// When to say which pods will be left, so that it is written before the VM goes: half of `reserve` before the
    /// deadline, but not before their first answers can be there.
    pub fn says_what_is_left_at(&self, began: Timestamp) -> Option<Timestamp> {
        let (deadline, policy) = self.deadline()?;
        Some(earlier(deadline, reserve(policy) / 2).max(later(began, FIRST_ANSWERS)))
    }

    /// Whether a blocked pod is asked for as often as can be.
    pub fn is_pressing(&self, now: Timestamp) -> bool {
        match self {
            Self::Preempt { .. } => true,
            Self::Planned { deadline, .. } => now >= earlier(*deadline, NEAR),
            Self::Voluntary { .. } => false,
        }
    }

    /// Deadline and policy; a voluntary drain has neither.
    fn deadline(&self) -> Option<(Timestamp, &DrainPolicy)> {
        match self {
            Self::Preempt { deadline, policy, .. } | Self::Planned { deadline, policy } => {
                Some((*deadline, policy))
            }
            Self::Voluntary { .. } => None,
        }
    }
}

/// How a pod stands with the API and with its own hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its own hook has not answered yet.
    pub held: bool,
    /// What came of asking it to go.
    pub asked: Asked,
}

/// What came of asking a pod to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Asked {
    /// It was not asked.
    #[default]
    Never,
    /// It was asked, and nothing speaks against it.
    Yes,
    /// The API has been silent about it for longer than an answer takes.
    Silent,
    /// The API's last word was no.
    Refused,
    /// There is no such pod any more, which the watch has not shown yet.
    Gone,
}

/// What to do with one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, for this reason.
    Skip(Exempt),
    /// It is ending: wait until it is gone.
    Wait,
    /// Not yet.
    Later {
        /// What it waits for.
        why: Waits,
        /// When it is asked all the same; `None` is never.
        until: Option<Timestamp>,
    },
    /// Evict it with this grace, or with its own.
    Evict {
        /// Seconds; `None` is the pod's own.
        grace: Option<u32>,
    },
    /// Delete it although a disruption budget holds it, with this grace in seconds.
    Escalate {
        /// Seconds.
        grace: u32,
    },
}

/// What a pod waits for that could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Its own hook.
    Hook,
    /// Pods of the tiers before its own.
    Turn,
}

/// The tier whose turn it is: the first that has pods left, ending ones included.
pub fn turn<'a>(pods: impl IntoIterator<Item = (&'a Pod, Asked)>) -> Tier {
    let is_left = |(pod, asked): &(&Pod, Asked)| pod.exempt.is_none() && *asked != Asked::Gone;
    pods.into_iter().filter(is_left).map(|(pod, _)| pod.tier).min().unwrap_or_default()
}

/// What to do with `pod` now, when it is `turn`'s turn.
pub fn action(pod: &Pod, standing: Standing, turn: Tier, terms: &Terms, now: Timestamp) -> Action {
    if let Some(exempt) = pod.exempt {
        return Action::Skip(exempt);
    }
    if pod.terminating || standing.asked == Asked::Gone {
        return Action::Wait;
    }
    // Who was asked once stays asked.
    if standing.asked == Asked::Never {
        for (waits, why, until) in [
            (standing.held, Waits::Hook, last_call(pod, terms)),
            (pod.tier > turn, Waits::Turn, out_of_turn_at(pod, terms)),
        ] {
            if waits && until.is_none_or(|until| now < until) {
                return Action::Later { why, until };
            }
        }
    }
    let Some((deadline, policy)) = terms.deadline() else {
        return Action::Evict { grace: None };
    };
    let grace = clamped(pod.grace, deadline, policy, now);
    let due = match standing.asked {
        Asked::Refused => escalates_at(pod, terms),
        // At the last call silence is no better than a no: the server may be waiting for its own turn.
        Asked::Silent if !is_left_alone(pod, policy) => last_call(pod, terms),
        _ => None,
    };
    match due {
        Some(time) if now >= time => Action::Escalate { grace },
        _ => Action::Evict { grace: Some(grace) },
    }
}

/// When `pod` is deleted if a disruption budget holds it until then; `None` is never.
pub fn escalates_at(pod: &Pod, terms: &Terms) -> Option<Timestamp> {
    let (deadline, policy) = terms.deadline()?;
    if is_left_alone(pod, policy) {
        return None;
    }
    let last_call = last_call(pod, terms)?;
    Some(match terms {
        // Azure often comes before the announced time.
        Terms::Preempt { noticed, .. } => last_call.min(later(*noticed, policy.escalate_after.into())),
        // Azure does not, and a budget is obeyed as long as the pod can still end in peace.
        _ => last_call.min(earlier(deadline, pod.grace + reserve(policy))),
    })
}

/// When it is nearly too late for `pod`; `None` is never.
pub fn last_call(pod: &Pod, terms: &Terms) -> Option<Timestamp> {
    let (deadline, policy) = terms.deadline()?;
    Some(earlier(deadline, pod.grace.min(LAST_CALL) + reserve(policy)))
}

/// When `pod` is asked although pods of the tiers before its own are left; `None` is never.
fn out_of_turn_at(pod: &Pod, terms: &Terms) -> Option<Timestamp> {
    let (deadline, policy) = terms.deadline()?;
    let needs_its_grace = earlier(deadline, pod.grace + reserve(policy));
    Some(match terms {
        Terms::Preempt { noticed, .. } => needs_its_grace.min(later(*noticed, policy.escalate_after.into())),
        _ => needs_its_grace,
    })
}

/// Whether a budget is obeyed to the end. The pod's owner has the last word.
fn is_left_alone(pod: &Pod, policy: &DrainPolicy) -> bool {
    pod.blocked_by_pdb.unwrap_or(policy.blocked_by_pdb) == BlockedByPdb::Leave
}

/// The grace that fits into what is left, in whole seconds.
fn clamped(grace: Duration, deadline: Timestamp, policy: &DrainPolicy, now: Timestamp) -> u32 {
    let left = Duration::try_from(earlier(deadline, reserve(policy)).duration_since(now)).unwrap_or_default();
    u32::try_from(grace.min(left).max(LEAST_GRACE).as_secs()).unwrap_or(u32::MAX)
}

fn reserve(policy: &DrainPolicy) -> Duration {
    policy.reserve.into()
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_sub(by).ok()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests;
