//! Who buys and who deletes, in every order that the bounds allow, and what the checker finds where the operator is wrong.
//!
//! `SPOTPOOL_MODEL=large` checks more: minutes, not seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Instant;

use spotpool_model::capacity::state::{Budget, State};
use spotpool_model::capacity::{
    BUYS_ONCE, Bounds, CONVERGES, Capacity, DELETES_EMPTY, Mutation, PoolBounds, Step,
};
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model, Path};

const NONE: Budget =
    Budget { notices: 0, silent: 0, spared: 0, crashes: 0, lost: 0, refused: 0, blocked: 0, waits: 0 };
/// One eviction.
const NOTICE: Budget = Budget { notices: 1, ..NONE };

/// Two nodes are wanted and there, of a spot agent pool; one on demand may stand in.
fn bounds(budget: Budget) -> Bounds {
    let pools = vec![PoolBounds { spot: true, max: 4 }, PoolBounds { spot: false, max: 2 }];
    Bounds {
        replicas: 2,
        pools,
        fallback: 1,
        budget,
        gives_back: false,
        count_follows: true,
        slack: 0,
        skewed_lists: false,
        late_deletes: false,
    }
}

/// The least in which what one program believes and another does can differ: one node on spot, and another agent pool to go to.
fn choice(budget: Budget) -> Bounds {
    let spot = PoolBounds { spot: true, max: 3 };
    let pools = vec![spot, spot, PoolBounds { spot: false, max: 2 }];
    Bounds { replicas: 1, pools, ..bounds(budget) }
}

/// One node on spot has come back, and on-demand is asked to leave.
fn giving_back(budget: Budget) -> Bounds {
    Bounds { replicas: 1, gives_back: true, ..bounds(budget) }
}

type Found = Vec<(&'static str, Path<State, Step>)>;

/// Checks everything that can happen; returns what must not and can, with how it comes to that.
fn check(what: &str, bounds: Bounds, mutation: Option<Mutation>) -> Found {
    let began = Instant::now();
    let model = Capacity::new(bounds, mutation).unwrap();
    // Of a mistake the shortest way is looked for, which one thread goes first.
    let checker = match mutation {
        None => model.checker().threads(2),
        Some(_) => model.checker().finish_when(HasDiscoveries::AnyFailures),
    };
    let checker = checker.spawn_bfs().join();
    assert!(checker.unique_state_count() > 50, "{what}: nothing was looked at");
    println!(
        "{what}: {} states, {} deep, {:?} plans and reports, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        checker.model().made(),
        began.elapsed().as_secs_f64()
    );
    let is_wrong = |name: &str| {
        matches!(checker.discovery_classification(name), DiscoveryClassification::Counterexample)
    };
    checker.discoveries().into_iter().filter(|(name, _)| is_wrong(name)).collect()
}

/// The steps, short enough to be read.
fn told(found: &Found) -> String {
    let told = |(name, path): &(&str, Path<State, Step>)| {
        let steps: Vec<String> = path.clone().into_actions().iter().map(|step| format!("{step:?}")).collect();
        format!("{name}, after {} steps: {}", steps.len(), steps.join(" "))
    };
    found.iter().map(told).collect::<Vec<_>>().join("\n")
}

fn holds(what: &str, bounds: Bounds) {
    let found = check(what, bounds, None);
    assert!(found.is_empty(), "{what}\n{}", told(&found));
}

/// What stands here is what operators may rely on: no fault of this list, at whatever moment, buys twice, deletes what is in
/// use, exceeds a cap or leaves the SpotPool other than it should be.
#[test]
fn nothing_goes_wrong_for_good_whenever_what_happens() {
    let crash = Budget { crashes: 1, ..NOTICE };
    let lost = Budget { lost: 1, ..NOTICE };
    let is_large = std::env::var("SPOTPOOL_MODEL").as_deref() == Ok("large");
    let small = [
        ("a notice", bounds(NOTICE)),
        ("a VM that goes unannounced", bounds(Budget { silent: 1, ..NONE })),
        ("a notice that may be taken back", bounds(Budget { spared: 1, ..NOTICE })),
        ("a notice, and a leader that dies or is stopped and wakes up", bounds(crash)),
        ("a notice, and a request or an answer that is lost", bounds(lost)),
        ("a notice, and Azure without capacity", bounds(Budget { refused: 1, ..NOTICE })),
        ("a notice, and a drain that is blocked", bounds(Budget { blocked: 1, ..NOTICE })),
        ("a notice, and a long wait", bounds(Budget { waits: 1, ..NOTICE })),
        (
            "a notice, and things that happen between two lists",
            Bounds { skewed_lists: true, ..bounds(NOTICE) },
        ),
        (
            "a notice, where Azure's count does not fall",
            Bounds { count_follows: false, slack: 1, ..bounds(NOTICE) },
        ),
        ("a second notice, while on-demand is given back", giving_back(NOTICE)),
        ("a notice with a choice of spot, and a request or an answer that is lost", choice(lost)),
        ("a notice with a choice of spot, and a leader that dies or is stopped and wakes up", choice(crash)),
    ];
    let large = [
        (
            "a second notice while on-demand is given back, and a leader that dies or is stopped and wakes up",
            giving_back(crash),
        ),
        ("two notices", bounds(Budget { notices: 2, ..NONE })),
    ];
    for (what, bounds) in small.into_iter().chain(large.into_iter().filter(|_| is_large)) {
        holds(what, bounds);
    }
}

/// A checker that finds nothing in a wrong operator would find nothing in this one.
#[test]
fn an_operator_with_a_mistake_is_found_out() {
    let crash = Budget { crashes: 1, ..NOTICE };
    let lost = Budget { lost: 1, ..NOTICE };
    for (mutation, bounds, wanted) in [
        (Mutation::NoIfMatch, bounds(NOTICE), BUYS_ONCE),
        (Mutation::NoticedCounts, bounds(NOTICE), CONVERGES),
        (Mutation::DrainNotAwaited, bounds(NOTICE), DELETES_EMPTY),
        (Mutation::EtagOfNow, bounds(NOTICE), BUYS_ONCE),
        (Mutation::EtagNotCompared, bounds(crash), BUYS_ONCE),
        (Mutation::UnknownIsRead, choice(Budget { waits: 1, ..lost }), BUYS_ONCE),
        (Mutation::AnyListTells, choice(Budget { waits: 1, ..lost }), BUYS_ONCE),
        (Mutation::NoLease, giving_back(crash), DELETES_EMPTY),
        (Mutation::NoIntent, choice(crash), BUYS_ONCE),
    ] {
        let found = check(&format!("{mutation:?}"), bounds, Some(mutation));
        println!("{}", told(&found));
        assert!(found.iter().any(|(name, _)| *name == wanted), "{mutation:?} does not show in `{wanted}`");
    }
}
