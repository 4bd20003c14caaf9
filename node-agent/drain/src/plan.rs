//! What to do with each pod now. Pure: facts and the time in, actions out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::BlockedByPdb;

use crate::pods::{Exempt, Pod};

/// A pod that was told late gets at least this, however little is left: its SIGTERM.
pub const LEAST_GRACE: Duration = Duration::from_secs(1);
/// A blocked pod is deleted while there is still this much for it to end in (or its own grace, if less).
const LAST_CALL: Duration = Duration::from_secs(5);
/// A forced drain goes on this long even if its deadline is nearer or past: the VM often lives a little
/// longer, and pods that hear of it late are better off than pods that never do.
pub const LEAST_EFFORT: Duration = Duration::from_secs(10);

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
}

/// What to do with one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, for this reason.
    Skip(Exempt),
    /// It is ending: wait until it is gone.
    Wait,
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

/// What to do with `pod` now. `refused`: the API's last word on its eviction was no.
pub fn action(pod: &Pod, refused: bool, terms: &Terms, now: Timestamp) -> Action {
    if let Some(exempt) = pod.exempt {
        return Action::Skip(exempt);
    }
    if pod.terminating {
        return Action::Wait;
    }
    match terms {
        Terms::Voluntary { .. } => Action::Evict { grace: None },
        Terms::Preempt { deadline, policy, .. } | Terms::Planned { deadline, policy } => {
            let grace = clamped(pod.grace, *deadline, policy, now);
            match escalates_at(pod, terms) {
                Some(time) if refused && now >= time => Action::Escalate { grace },
                _ => Action::Evict { grace: Some(grace) },
            }
        }
    }
}

/// When `pod` is deleted if a disruption budget holds it until then; `None` is never.
pub fn escalates_at(pod: &Pod, terms: &Terms) -> Option<Timestamp> {
    let (Terms::Preempt { deadline, policy, .. } | Terms::Planned { deadline, policy }) = terms else {
        return None;
    };
    if pod.blocked_by_pdb.unwrap_or(policy.blocked_by_pdb) == BlockedByPdb::Leave {
        return None;
    }
    let last_call = last_call(pod, terms)?;
    Some(match terms {
        Terms::Preempt { noticed, .. } => last_call.min(later(*noticed, policy.escalate_after.into())),
        _ => last_call.min(earlier(*deadline, pod.grace + reserve(policy))),
    })
}

/// When it is nearly too late for `pod`; `None` is never.
pub fn last_call(pod: &Pod, terms: &Terms) -> Option<Timestamp> {
    match terms {
        Terms::Preempt { deadline, policy, .. } | Terms::Planned { deadline, policy } => {
            Some(earlier(*deadline, pod.grace.min(LAST_CALL) + reserve(policy)))
        }
        Terms::Voluntary { .. } => None,
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOTICE: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOTICE + seconds).unwrap()
    }

    fn pod(grace: u64) -> Pod {
        Pod {
            namespace: "default".into(),
            name: "web".into(),
            uid: "1".into(),
            grace: Duration::from_secs(grace),
            ..Pod::default()
        }
    }

    fn policy(blocked_by_pdb: BlockedByPdb) -> DrainPolicy {
        DrainPolicy {
            blocked_by_pdb,
            escalate_after: Duration::from_secs(8).into(),
            reserve: Duration::from_secs(2).into(),
        }
    }

    /// A Preempt noticed at 0 with its VM going at `deadline`.
    fn preempt(deadline: i64) -> Terms {
        Terms::Preempt {
            noticed: at(0),
            deadline: at(deadline),
            policy: policy(BlockedByPdb::DeleteAtDeadline),
        }
    }

    #[test]
    fn grace_is_what_the_pod_asks_or_what_is_left() {
        for (asks, deadline, now, gets) in [
            (5, 30, 0, 5),
            (30, 30, 0, 28),     // 2 s are kept free
            (600, 30, 1, 27),    // asked for ten minutes: told at once, all that is left
            (30, 3, 0, 1),       // short notice
            (30, 30, 29, 1),     // the reserve itself is on
            (30, 0, 0, 1),       // due now: a SIGTERM at least
            (30, -5, 60, 1),     // long past
            (0, 30, 0, 1),       // never zero: that deletes without the kubelet
            (600, 3600, 0, 600), // a clock far ahead must not stretch anything
        ] {
            assert_eq!(
                action(&pod(asks), false, &preempt(deadline), at(now)),
                Action::Evict { grace: Some(gets) },
                "asks {asks}, deadline {deadline}, now {now}"
            );
        }
    }

    #[test]
    fn a_blocked_pod_is_deleted_before_it_is_too_late() {
        for (grace, deadline, escalates) in [
            (30, 30, 8),  // notice + escalateAfter
            (30, 12, 5),  // deadline - (5 + 2)
            (1, 10, 7),   // deadline - (1 + 2)
            (30, 3, -4),  // at once
            (30, 0, -7),  // at once
            (600, 90, 8), // long grace changes nothing: Azure may come early
        ] {
            let terms = preempt(deadline);
            assert_eq!(escalates_at(&pod(grace), &terms), Some(at(escalates)), "grace {grace}");
            assert!(matches!(action(&pod(grace), true, &terms, at(escalates - 1)), Action::Evict { .. }));
            assert!(matches!(action(&pod(grace), true, &terms, at(escalates)), Action::Escalate { .. }));
            // Only a refusal makes a deletion: a pod that was never asked is asked first.
            assert!(matches!(action(&pod(grace), false, &terms, at(escalates)), Action::Evict { .. }));
        }
    }

    #[test]
    fn leave_and_voluntary_never_delete() {
        let leave = Terms::Preempt { noticed: at(0), deadline: at(30), policy: policy(BlockedByPdb::Leave) };
        let voluntary = Terms::Voluntary { not_after: at(900) };
        for now in [0, 8, 29, 30, 900, 9000] {
            assert!(matches!(action(&pod(30), true, &leave, at(now)), Action::Evict { grace: Some(_) }));
            assert_eq!(action(&pod(30), true, &voluntary, at(now)), Action::Evict { grace: None });
        }
    }

    #[test]
    fn a_drain_that_is_due_at_once_still_has_a_little_time() {
        assert_eq!(preempt(0).gives_up_at(at(0)), at(10));
        assert_eq!(preempt(30).gives_up_at(at(0)), at(30));
        assert_eq!(Terms::Voluntary { not_after: at(3) }.gives_up_at(at(0)), at(3));
    }

    fn any_terms() -> impl Strategy<Value = Terms> {
        (-100i64..100, -100i64..4000, 0u64..700, 0u64..30, any::<bool>(), any::<bool>()).prop_map(
            |(noticed, deadline, after, reserve, leave, voluntary)| {
                if voluntary {
                    return Terms::Voluntary { not_after: at(deadline) };
                }
                Terms::Preempt {
                    noticed: at(noticed),
                    deadline: at(deadline),
                    policy: DrainPolicy {
                        blocked_by_pdb: if leave {
                            BlockedByPdb::Leave
                        } else {
                            BlockedByPdb::DeleteAtDeadline
                        },
                        escalate_after: Duration::from_secs(after).into(),
                        reserve: Duration::from_secs(reserve).into(),
                    },
                }
            },
        )
    }

    fn any_pod() -> impl Strategy<Value = Pod> {
        (0u64..10_000, any::<bool>(), 0..6u8).prop_map(|(grace, terminating, exempt)| Pod {
            terminating,
            exempt: match exempt {
                0 => Some(Exempt::DaemonSet),
                1 => Some(Exempt::Mirror),
                2 => Some(Exempt::Finished),
                _ => None,
            },
            ..pod(grace)
        })
    }

    proptest! {
        #[test]
        fn exempt_pods_are_never_touched(pod in any_pod(), refused: bool, terms in any_terms(), now in -100i64..5000) {
            let action = action(&pod, refused, &terms, at(now));
            prop_assert_eq!(pod.exempt.is_some(), matches!(action, Action::Skip(_)));
            prop_assert_eq!(pod.exempt.is_none() && pod.terminating, action == Action::Wait);
        }

        #[test]
        fn grace_is_at_least_a_second_and_ends_before_the_deadline(
            pod in any_pod(), refused: bool, terms in any_terms(), now in -100i64..5000,
        ) {
            let (Terms::Preempt { deadline, policy, .. }, Action::Evict { grace: Some(grace) } | Action::Escalate { grace }) =
                (&terms, action(&pod, refused, &terms, at(now))) else { return Ok(()) };
            prop_assert!(grace >= 1);
            prop_assert!(u64::from(grace) <= pod.grace.as_secs().max(1));
            let end = later(at(now), Duration::from_secs(u64::from(grace)));
            prop_assert!(grace == 1 || end <= earlier(*deadline, policy.reserve.into()));
        }

        #[test]
        fn once_deleted_always_deleted(pod in any_pod(), terms in any_terms(), now in -100i64..5000, more in 0i64..5000) {
            if matches!(action(&pod, true, &terms, at(now)), Action::Escalate { .. }) {
                let is_deleted = matches!(action(&pod, true, &terms, at(now + more)), Action::Escalate { .. });
                prop_assert!(is_deleted);
            }
        }
    }
}
