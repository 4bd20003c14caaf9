use proptest::prelude::*;

use super::*;

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
    Terms::Preempt { noticed: at(0), deadline: at(deadline), policy: policy(BlockedByPdb::DeleteAtDeadline) }
}

fn planned(deadline: i64) -> Terms {
    Terms::Planned { deadline: at(deadline), policy: policy(BlockedByPdb::DeleteAtDeadline) }
}

const VOLUNTARY: fn() -> Terms = || Terms::Voluntary { not_after: at(900) };

fn after(asked: Asked) -> Standing {
    Standing { held: false, asked }
}

/// What becomes of `pod` when nothing else is on the node and its own hook is silent or none.
fn alone(pod: &Pod, asked: Asked, terms: &Terms, now: i64) -> Action {
    action(pod, after(asked), pod.tier, terms, at(now))
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
        for terms in [preempt(deadline), planned(deadline)] {
            assert_eq!(
                alone(&pod(asks), Asked::Never, &terms, now),
                Action::Evict { grace: Some(gets) },
                "asks {asks}, now {now}, {terms:?}"
            );
        }
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
        let (terms, pod) = (preempt(deadline), pod(grace));
        assert_eq!(escalates_at(&pod, &terms), Some(at(escalates)), "grace {grace}");
        assert!(matches!(alone(&pod, Asked::Refused, &terms, escalates - 1), Action::Evict { .. }));
        assert!(matches!(alone(&pod, Asked::Refused, &terms, escalates), Action::Escalate { .. }));
        // Only a refusal makes a deletion: a pod that was never asked is asked first.
        assert!(matches!(alone(&pod, Asked::Never, &terms, escalates), Action::Evict { .. }));
    }
}

#[test]
fn a_planned_event_obeys_a_budget_as_long_as_the_pod_can_still_end_in_peace() {
    for (grace, deadline, escalates) in [
        (30, 900, 868),  // deadline - (30 + 2)
        (600, 900, 298), // deadline - (600 + 2)
        (1, 900, 897),   // deadline - (1 + 2)
        (0, 900, 898),
        (600, 300, -302), // heard of too late for its grace: at once
    ] {
        let (terms, pod) = (planned(deadline), pod(grace));
        assert_eq!(escalates_at(&pod, &terms), Some(at(escalates)), "grace {grace}");
        assert!(matches!(alone(&pod, Asked::Refused, &terms, escalates - 1), Action::Evict { .. }));
        assert!(matches!(alone(&pod, Asked::Refused, &terms, escalates), Action::Escalate { .. }));
    }
}

#[test]
fn the_owner_of_a_pod_has_the_last_word_on_budgets() {
    let says = |wish| Pod { blocked_by_pdb: wish, ..pod(30) };
    let (delete, leave) = (Some(BlockedByPdb::DeleteAtDeadline), Some(BlockedByPdb::Leave));
    for (pool, wish, deleted) in [
        (BlockedByPdb::DeleteAtDeadline, None, true),
        (BlockedByPdb::DeleteAtDeadline, leave, false),
        (BlockedByPdb::Leave, None, false),
        (BlockedByPdb::Leave, delete, true),
    ] {
        for terms in [
            Terms::Preempt { noticed: at(0), deadline: at(30), policy: policy(pool) },
            Terms::Planned { deadline: at(30), policy: policy(pool) },
        ] {
            for asked in [Asked::Refused, Asked::Silent] {
                for now in [0, 8, 23, 29, 30, 9000] {
                    let action = alone(&says(wish), asked, &terms, now);
                    assert_eq!(
                        matches!(action, Action::Escalate { .. }),
                        deleted
                            && escalates_at(&says(wish), &terms).is_some_and(|time| at(now) >= time)
                            && (asked == Asked::Refused || now >= 23),
                        "{pool:?} {wish:?} {asked:?} {now} {terms:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_voluntary_drain_never_deletes_and_leaves_each_pod_its_grace() {
    for asked in [Asked::Never, Asked::Yes, Asked::Silent, Asked::Refused] {
        for now in [0, 8, 899, 900, 9000] {
            let pod = Pod { blocked_by_pdb: Some(BlockedByPdb::DeleteAtDeadline), ..pod(30) };
            assert_eq!(alone(&pod, asked, &VOLUNTARY(), now), Action::Evict { grace: None });
        }
    }
}

#[test]
fn silence_is_a_refusal_at_the_last_call_only() {
    let (terms, pod) = (preempt(30), pod(30));
    assert!(matches!(alone(&pod, Asked::Silent, &terms, 22), Action::Evict { .. }));
    assert!(matches!(alone(&pod, Asked::Silent, &terms, 23), Action::Escalate { .. }));
}

#[test]
fn a_tier_is_asked_when_those_before_it_are_gone() {
    let of = |tier| Pod { tier, ..pod(5) };
    let (web, dns, logs) = (of(Tier::Ordinary), of(Tier::SystemCritical), of(Tier::Last));
    let ending = Pod { terminating: true, ..of(Tier::Ordinary) };
    let daemon = Pod { exempt: Some(Exempt::DaemonSet), ..of(Tier::Ordinary) };
    for (left, whose) in [
        (vec![(&logs, Asked::Never), (&dns, Asked::Never), (&web, Asked::Yes)], Tier::Ordinary),
        (vec![(&logs, Asked::Never), (&dns, Asked::Never), (&ending, Asked::Yes)], Tier::Ordinary),
        (vec![(&logs, Asked::Never), (&dns, Asked::Never), (&web, Asked::Gone)], Tier::SystemCritical),
        (vec![(&logs, Asked::Never), (&dns, Asked::Never), (&daemon, Asked::Never)], Tier::SystemCritical),
        (vec![(&logs, Asked::Never)], Tier::Last),
        (vec![], Tier::Ordinary),
    ] {
        assert_eq!(turn(left.clone()), whose, "{left:?}");
    }
}

#[test]
fn a_tier_waits_for_its_turn_only_as_long_as_there_is_time() {
    for (grace, terms, from) in [
        (5, preempt(30), Some(8)),   // notice + escalateAfter
        (25, preempt(30), Some(3)),  // deadline - (25 + 2)
        (30, preempt(30), Some(-2)), // at once
        (5, preempt(10), Some(3)),   // deadline - (5 + 2)
        (1, preempt(3), Some(0)),    // a short notice asks everything at once
        (30, planned(900), Some(868)),
        (30, VOLUNTARY(), None),
    ] {
        let logs = Pod { tier: Tier::Last, ..pod(grace) };
        let ask = |now| action(&logs, after(Asked::Never), Tier::Ordinary, &terms, at(now));
        let later = Action::Later { why: Waits::Turn, until: from.map(at) };
        match from {
            Some(from) => {
                assert_eq!(ask(from - 1), later, "{terms:?}");
                assert!(matches!(ask(from), Action::Evict { .. }), "{terms:?}");
            }
            None => assert_eq!(ask(1_000_000), later),
        }
        // Pods that come later do not call back a request that was made.
        let again = action(&logs, after(Asked::Refused), Tier::Ordinary, &terms, at(-100));
        assert!(matches!(again, Action::Evict { .. }), "{terms:?}");
    }
}

#[test]
fn a_held_pod_waits_for_its_hook_until_it_is_nearly_too_late() {
    for (grace, terms, from) in [
        (30, preempt(30), Some(23)), // deadline - (5 + 2)
        (1, preempt(30), Some(27)),  // deadline - (1 + 2)
        (30, preempt(3), Some(-4)),  // there was never time
        (600, planned(900), Some(893)),
        (30, VOLUNTARY(), None),
    ] {
        let held = Standing { held: true, asked: Asked::Never };
        let ask = |standing, now| action(&pod(grace), standing, Tier::Ordinary, &terms, at(now));
        let later = Action::Later { why: Waits::Hook, until: from.map(at) };
        match from {
            Some(from) => {
                assert_eq!(ask(held, from - 1), later);
                assert!(matches!(ask(held, from), Action::Evict { .. }));
            }
            None => assert_eq!(ask(held, 1_000_000), later),
        }
        assert!(matches!(ask(after(Asked::Never), -100), Action::Evict { .. }), "released");
    }
}

#[test]
fn a_drain_that_is_due_at_once_still_has_a_little_time() {
    for terms in [preempt, planned] {
        assert_eq!(terms(0).gives_up_at(at(0)), at(10));
        assert_eq!(terms(30).gives_up_at(at(0)), at(30));
    }
    assert_eq!(Terms::Voluntary { not_after: at(3) }.gives_up_at(at(0)), at(3));
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let times = (-100i64..100, -100i64..4000, 0u64..700, 0u64..30);
    (times, any::<bool>(), 0..3u8).prop_map(|((noticed, deadline, after, reserve), leave, kind)| {
        let blocked_by_pdb = if leave { BlockedByPdb::Leave } else { BlockedByPdb::DeleteAtDeadline };
        let policy = DrainPolicy {
            blocked_by_pdb,
            escalate_after: Duration::from_secs(after).into(),
            reserve: Duration::from_secs(reserve).into(),
        };
        match kind {
            0 => Terms::Voluntary { not_after: at(deadline) },
            1 => Terms::Planned { deadline: at(deadline), policy },
            _ => Terms::Preempt { noticed: at(noticed), deadline: at(deadline), policy },
        }
    })
}

fn any_pod() -> impl Strategy<Value = Pod> {
    (0u64..10_000, prop::bool::weighted(0.2), 0..8u8, 0..4u8, 0..4u8).prop_map(
        |(grace, terminating, exempt, tier, wish)| Pod {
            terminating,
            exempt: match exempt {
                0 => Some(Exempt::DaemonSet),
                1 => Some(Exempt::Mirror),
                2 => Some(Exempt::Finished),
                _ => None,
            },
            tier: match tier {
                0 => Tier::SystemCritical,
                1 => Tier::Last,
                _ => Tier::Ordinary,
            },
            blocked_by_pdb: match wish {
                0 => Some(BlockedByPdb::Leave),
                1 => Some(BlockedByPdb::DeleteAtDeadline),
                _ => None,
            },
            ..pod(grace)
        },
    )
}

fn any_standing() -> impl Strategy<Value = Standing> {
    let asked =
        prop::sample::select(vec![Asked::Never, Asked::Yes, Asked::Silent, Asked::Refused, Asked::Gone]);
    (any::<bool>(), asked).prop_map(|(held, asked)| Standing { held, asked })
}

fn any_turn() -> impl Strategy<Value = Tier> {
    prop::sample::select(vec![Tier::Ordinary, Tier::SystemCritical, Tier::Last])
}

proptest! {
    #[test]
    fn exempt_ending_and_gone_pods_are_never_asked(
        pod in any_pod(), standing in any_standing(), turn in any_turn(), terms in any_terms(), now in -100i64..5000,
    ) {
        let action = action(&pod, standing, turn, &terms, at(now));
        prop_assert_eq!(pod.exempt.is_some(), matches!(action, Action::Skip(_)));
        let is_over = pod.terminating || standing.asked == Asked::Gone;
        prop_assert_eq!(pod.exempt.is_none() && is_over, action == Action::Wait);
    }

    #[test]
    fn grace_is_at_least_a_second_and_ends_before_the_deadline(
        pod in any_pod(), standing in any_standing(), turn in any_turn(), terms in any_terms(), now in -100i64..5000,
    ) {
        let action = action(&pod, standing, turn, &terms, at(now));
        let (Some((deadline, policy)), Action::Evict { grace: Some(grace) } | Action::Escalate { grace }) =
            (terms.deadline(), action) else { return Ok(()) };
        prop_assert!(grace >= 1);
        prop_assert!(u64::from(grace) <= pod.grace.as_secs().max(1));
        let end = later(at(now), Duration::from_secs(u64::from(grace)));
        prop_assert!(grace == 1 || end <= earlier(deadline, policy.reserve.into()));
    }

    #[test]
    fn a_pod_waits_no_longer_than_it_says_and_is_always_asked_by_the_last_call(
        pod in any_pod(), held: bool, turn in any_turn(), terms in any_terms(), now in -100i64..5000,
    ) {
        let standing = Standing { held, asked: Asked::Never };
        let Action::Later { until, .. } = action(&pod, standing, turn, &terms, at(now)) else { return Ok(()) };
        let Some(until) = until else {
            let is_voluntary = matches!(terms, Terms::Voluntary { .. });
            prop_assert!(is_voluntary);
            return Ok(());
        };
        prop_assert!(until > at(now));
        let call = last_call(&pod, &terms).unwrap();
        prop_assert!(until <= call);
        let at_last = action(&pod, standing, turn, &terms, call);
        let is_asked = matches!(at_last, Action::Evict { .. });
        prop_assert!(is_asked, "{:?}", at_last);
    }

    /// Time alone never takes a step back.
    #[test]
    fn once_asked_always_asked_and_once_deleted_always_deleted(
        pod in any_pod(), standing in any_standing(), turn in any_turn(), terms in any_terms(),
        now in -100i64..5000, more in 0i64..5000,
    ) {
        let progress = |action: Action| match action {
            Action::Skip(_) | Action::Wait => 0,
            Action::Later { .. } => 1,
            Action::Evict { .. } => 2,
            Action::Escalate { .. } => 3,
        };
        let first = action(&pod, standing, turn, &terms, at(now));
        let then = action(&pod, standing, turn, &terms, at(now + more));
        prop_assert!(progress(then) >= progress(first), "{:?}, then {:?}", first, then);
    }

    /// Nor does what happens to the other pods: tiers only ever get their turn earlier than their time.
    #[test]
    fn the_order_of_pods_and_of_their_answers_is_of_no_account(
        pods in prop::collection::vec((any_pod(), any_standing()), 0..12), terms in any_terms(), now in -100i64..5000,
        seed: u64,
    ) {
        let actions = |order: &[usize]| {
            let whose = turn(order.iter().map(|&index| (&pods[index].0, pods[index].1.asked)));
            let mut actions: Vec<_> = order
                .iter()
                .map(|&index| (index, format!("{:?}", action(&pods[index].0, pods[index].1, whose, &terms, at(now)))))
                .collect();
            actions.sort();
            actions
        };
        let given: Vec<usize> = (0..pods.len()).collect();
        let mut shuffled = given.clone();
        shuffled.sort_by_key(|&index| (index as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
        prop_assert_eq!(actions(&given), actions(&shuffled));
    }

    #[test]
    fn nothing_is_deleted_before_its_time_nor_against_its_owners_will(
        pod in any_pod(), standing in any_standing(), turn in any_turn(), terms in any_terms(), now in -100i64..5000,
    ) {
        if let Action::Escalate { .. } = action(&pod, standing, turn, &terms, at(now)) {
            prop_assert!(matches!(standing.asked, Asked::Refused | Asked::Silent));
            prop_assert!(pod.blocked_by_pdb != Some(BlockedByPdb::Leave));
            prop_assert!(escalates_at(&pod, &terms).is_some_and(|time| at(now) >= time));
        }
    }
}

#[test]
fn what_is_left_is_said_before_the_vm_goes() {
    let at_ms = |ms: i64| Timestamp::from_millisecond(NOTICE * 1000 + ms).unwrap();
    for (deadline, says) in [
        (30, 29_000), // half of the reserve of 2 s before it
        (3, 2_000),
        (1, 750), // not before the first answers can be there
        (0, 750),
        (-60, 750),
    ] {
        assert_eq!(preempt(deadline).says_what_is_left_at(at(0)), Some(at_ms(says)), "deadline {deadline}");
    }
    assert_eq!(Terms::Voluntary { not_after: at(900) }.says_what_is_left_at(at(0)), None);
}
