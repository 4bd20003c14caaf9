//! How one noticed node is emptied, in every order that the bounds allow, and what the checker finds where agent or
//! operator is wrong.
//!
//! `SPOTPOOL_MODEL=large` checks more: minutes, not seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Instant;

use spotpool_model::eviction::state::{Budget, Names, State};
use spotpool_model::eviction::{
    Bounds, CLEAN, CLOSED, Eviction, LIVES_ON, Mutation, NAMED, NAMES_PODS, ONE, OPERATOR_DRAINS, REPORTED,
    Step, TRUE,
};
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model, Path};

/// One eviction.
const NOTICE: Budget = Budget {
    notices: 1,
    taken_back: 0,
    spared: 0,
    reboots: 0,
    early: 0,
    agent_dies: 0,
    leader_dies: 0,
    lost: 0,
    slow: 0,
    amnesia: 0,
    sibling_goes: 0,
};
const AGENT_DIES: Budget = Budget { agent_dies: 1, ..NOTICE };
/// All that Azure may do beside taking the VM when it said.
const WHIMS: Budget = Budget { taken_back: 1, spared: 1, reboots: 1, early: 1, ..NOTICE };

fn bounds(names: Names, budget: Budget) -> Bounds {
    Bounds { names, cordoned: false, has_agent: true, budget }
}

type Found = Vec<(&'static str, Path<State, Step>)>;

/// Checks everything that can happen; returns what must not and can, with how it comes to that, and what should happen
/// sometimes and does.
fn check(what: &str, bounds: Bounds, mutation: Option<Mutation>) -> (Found, Found) {
    let began = Instant::now();
    let checker = Eviction::new(bounds, mutation).checker();
    // Of a mistake the shortest way is looked for, which one thread goes first.
    let checker = match mutation {
        None => checker.threads(2),
        Some(_) => checker.finish_when(HasDiscoveries::AnyFailures),
    };
    let checker = checker.spawn_bfs().join();
    println!(
        "{what}: {} states, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    let is_wrong = |name: &str| {
        matches!(checker.discovery_classification(name), DiscoveryClassification::Counterexample)
    };
    checker.discoveries().into_iter().partition(|(name, _)| is_wrong(name))
}

/// The steps, short enough to be read.
fn told(found: &Found) -> String {
    let told = |(name, path): &(&str, Path<State, Step>)| {
        let steps: Vec<String> = path.clone().into_actions().iter().map(|step| format!("{step:?}")).collect();
        format!("{name}, after {} steps: {}", steps.len(), steps.join(" "))
    };
    found.iter().map(told).collect::<Vec<_>>().join("\n")
}

/// What stands here is what owners of pods may rely on: none of these faults, at whatever moment, loses a pod of which nobody
/// tells, evicts where nothing threatens, or leaves a node closed that lives on.
#[test]
fn a_noticed_node_is_drained_or_reported_whenever_what_happens() {
    use Names::{Both, Sibling, This};
    let is_large = std::env::var("SPOTPOOL_MODEL").as_deref() == Ok("large");
    let small = [
        ("a notice", bounds(This, NOTICE)),
        ("a notice of which a sibling tells, too", bounds(Both, NOTICE)),
        ("a notice of a sibling alone, and an agent that dies", bounds(Sibling, AGENT_DIES)),
        ("a notice that comes to nothing, or to something else", bounds(This, WHIMS)),
        ("the same of a node that a person has closed", Bounds { cordoned: true, ..bounds(This, WHIMS) }),
        ("a notice, and a metadata service that starts over", bounds(This, Budget { amnesia: 1, ..NOTICE })),
        ("a notice, and a write whose answer is lost", bounds(This, Budget { lost: 1, ..NOTICE })),
        ("a notice, and programs that are slow once", bounds(Both, Budget { slow: 1, ..NOTICE })),
        ("a notice, and an agent that dies", bounds(This, AGENT_DIES)),
        (
            "a notice of which a sibling tells, and an agent that starts late",
            Bounds { has_agent: false, ..bounds(Both, NOTICE) },
        ),
    ];
    let large = [
        ("an agent that dies, and a sibling that tells", bounds(Both, AGENT_DIES)),
        ("… that is taken back", bounds(Both, Budget { taken_back: 1, ..AGENT_DIES })),
        ("… that comes to nothing, or to something else", bounds(Both, Budget { agent_dies: 1, ..WHIMS })),
        ("… and goes itself", bounds(Both, Budget { sibling_goes: 1, ..AGENT_DIES })),
        ("… and a leader that dies", bounds(Both, Budget { leader_dies: 1, ..AGENT_DIES })),
        ("… and a write whose answer is lost", bounds(Both, Budget { lost: 1, ..AGENT_DIES })),
        ("two notices", bounds(Both, Budget { notices: 2, taken_back: 1, ..NOTICE })),
        (
            "two notices, and an agent that dies",
            bounds(This, Budget { notices: 2, taken_back: 1, ..AGENT_DIES }),
        ),
    ];
    let large = large.into_iter().filter(|_| is_large);
    let mut seen = BTreeSet::new();
    for (what, bounds) in small.into_iter().chain(large) {
        let (wrong, right) = check(what, bounds, None);
        assert!(wrong.is_empty(), "{what}\n{}", told(&wrong));
        seen.extend(right.into_iter().map(|(name, _)| name));
    }
    // Where nobody drains, nothing can go wrong.
    assert_eq!(seen, [LIVES_ON, NAMES_PODS, OPERATOR_DRAINS].into());
}

/// A checker that finds nothing in a wrong agent or operator would find nothing in these.
#[test]
fn an_agent_or_an_operator_with_a_mistake_is_found_out() {
    use Names::{Both, This};
    let closed = Bounds { cordoned: true, ..bounds(This, Budget { taken_back: 1, ..NOTICE }) };
    for (mutation, bounds, wanted) in [
        (Mutation::DoneWhenAsked, bounds(This, NOTICE), TRUE),
        (Mutation::SaysAtTheEnd, bounds(This, NOTICE), REPORTED),
        (Mutation::Forgets, bounds(This, AGENT_DIES), CLOSED),
        (Mutation::AgentNotAsked, bounds(Both, NOTICE), ONE),
        (Mutation::ClaimUntested, bounds(Both, AGENT_DIES), ONE),
        (Mutation::EveryCordonIsOurs, closed, CLEAN),
        (Mutation::EveryEventIsOurs, bounds(Names::Sibling, NOTICE), NAMED),
        (Mutation::AnyDocumentTells, bounds(This, Budget { amnesia: 1, ..NOTICE }), CLOSED),
    ] {
        let (found, _) = check(&format!("{mutation:?}"), bounds, Some(mutation));
        println!("{}", told(&found));
        assert!(found.iter().any(|(name, _)| *name == wanted), "{mutation:?} does not show in `{wanted}`");
    }
}
