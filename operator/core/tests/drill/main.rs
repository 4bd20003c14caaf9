//! Drills in a world of a few nodes where anything may happen at any time: what they must never do, and how they end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod choice;
mod limits;
mod schedule;
mod world;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use spotpool_core::drill::Ask;
use spotpool_crds::drill::{DrillPhase, EvictionDrillStatus};

use world::{World, spec};

/// What may happen between two steps.
#[derive(Clone, Debug)]
enum Happens {
    Time(i64),
    Unheard,
    RealEviction(usize),
    Budget(bool),
    Burning(bool),
    Suspended(bool),
    Strangers(usize, bool),
    Edited,
    Crashed,
    Other(bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (0_i64..40).prop_map(Happens::Time),
        1 => Just(Happens::Unheard),
        1 => (0_usize..6).prop_map(Happens::RealEviction),
        1 => any::<bool>().prop_map(Happens::Budget),
        1 => any::<bool>().prop_map(Happens::Burning),
        1 => any::<bool>().prop_map(Happens::Suspended),
        1 => (0_usize..6, any::<bool>()).prop_map(|(at, come)| Happens::Strangers(at, come)),
        1 => Just(Happens::Edited),
        1 => Just(Happens::Crashed),
        1 => any::<bool>().prop_map(Happens::Other),
    ]
}

/// The nodes that are to be taken.
fn taken(ask: &Ask) -> Vec<&str> {
    match ask {
        Ask::Evict { node, .. } | Ask::Drain { node, .. } => vec![node],
        Ask::Delete { machines, .. } => machines.iter().map(|machine| machine.node.as_str()).collect(),
        Ask::Withdraw { .. } => Vec::new(),
    }
}

proptest! {
    #[test]
    fn a_drill_never_goes_beyond_its_limits_asks_each_machine_only_and_ends(
        nodes in 1_usize..7,
        most in 1_i32..7,
        least in 0_i32..6,
        stagger in prop_oneof![Just(0), 1_u32..40],
        method in prop_oneof![Just("NoticeOnly"), Just("SimulateEviction"), Just("DeleteMachine")],
        script in prop::collection::vec(happens(), 1..60),
    ) {
        let mut spec = spec(&json!({"method": method, "stagger": format!("{stagger}s"), "timeout": "10m",
            "limits": {"maxNodes": most, "minReadyUnits": least, "namespaces": ["batch"],
                "allowedHours": {"schedule": "0 10 * * *", "duration": "5m"}}}));
        let closes = Timestamp::from_second(1_767_693_900).unwrap(); // 10:05
        let mut world = World::new(nodes);
        let mut aborted = None;
        for what in script {
            let mut heard = true;
            match what {
                Happens::Time(seconds) => world.pass(seconds),
                Happens::Unheard => heard = false,
                Happens::RealEviction(at) if at < world.snapshot.nodes.len() => {
                    let then = world.now + SignedDuration::from_secs(20);
                    world.doom(at, then);
                }
                Happens::RealEviction(_) => {}
                Happens::Budget(bad) => {
                    world.snapshot.unready_budgets = Some(if bad { vec!["a/b (1 of 2)".into()] } else { Vec::new() });
                }
                Happens::Burning(burns) => {
                    world.snapshot.pool.as_mut().unwrap().burning = burns.then(|| "5 % left".into());
                }
                Happens::Suspended(idle) => {
                    world.snapshot.pool.as_mut().unwrap().idle = idle.then(|| "suspended".into());
                }
                Happens::Strangers(at, come) => {
                    if let Some(node) = world.snapshot.nodes.get(at) {
                        let pods = come.then(|| ("payments".to_owned(), 1)).into_iter();
                        world.snapshot.pods.as_mut().unwrap().insert(node.name.clone(), pods.collect());
                    }
                }
                Happens::Edited => {
                    world.snapshot.generation += 1;
                    spec.limits.max_nodes = most;
                }
                // Status is written before anything is asked, and nothing else is remembered.
                Happens::Crashed => {
                    let text = serde_json::to_string(&world.status).unwrap();
                    world.status = serde_json::from_str(&text).unwrap();
                }
                Happens::Other(runs) => world.snapshot.other = runs.then(|| "a/other".into()),
            }
            let (ready, before) = (world.ready(), world.status.clone());
            let hindered = world.snapshot.other.is_some() && !before.is_under_way();
            let troubled = world.snapshot.unready_budgets.as_ref().is_some_and(|it| !it.is_empty())
                || world.snapshot.pool.as_ref().unwrap().burning.is_some()
                || world.snapshot.pool.as_ref().unwrap().idle.is_some();
            let plan = world.step(&spec, heard);
            let nodes: Vec<&str> = plan.asks.iter().flat_map(taken).collect();
            let taken = nodes.len();
            let pods = world.snapshot.pods.as_ref().unwrap();
            let is_strange = |node: &&str| pods.get(*node).is_some_and(|pods| pods.contains_key("payments"));
            prop_assert!(!nodes.iter().any(is_strange), "somebody else's pods are on {nodes:?}");
            if taken > 0 {
                prop_assert!(ready - (taken as u32).min(ready) >= least as u32, "{ready} ready, {taken} taken");
                prop_assert!(world.now < closes, "outside of its hours");
                prop_assert!(!hindered && !troubled, "{hindered} {troubled}");
                prop_assert!(plan.status.run.as_ref().unwrap().aborted_at.is_none());
            }
            prop_assert!(world.asked() <= most as usize, "more than maxNodes");
            let run = plan.status.run.as_ref();
            if let Some(run) = run.filter(|run| run.aborted_at.is_some()) {
                let (id, asked) = aborted.get_or_insert((run.id.clone(), world.asked()));
                if *id == run.id {
                    prop_assert_eq!(*asked, world.asked(), "asked for after it was aborted");
                } else {
                    aborted = Some((run.id.clone(), world.asked()));
                }
            }
            // What was intended is never taken back, and what has ended stays.
            if let (Some(old), Some(new)) = (&before.run, run)
                && old.id == new.id
            {
                for (old, new) in old.targets.iter().zip(&new.targets) {
                    let same = (&old.uid, &old.vm, &old.intended_at) == (&new.uid, &new.vm, &new.intended_at);
                    prop_assert!(old.intended_at.is_none() || same, "{old:?} became {new:?}");
                }
            }
            let text = serde_json::to_string(&plan.status).unwrap();
            prop_assert_eq!(&serde_json::from_str::<EvictionDrillStatus>(&text).unwrap().phase, &plan.status.phase);
        }
        // Once nothing happens any more it ends, and has closed nothing for good.
        world.snapshot.other = None;
        for _ in 0..200 {
            world.pass(10);
            world.step(&spec, true);
        }
        prop_assert!(!world.status.is_under_way(), "{:?}", world.status);
        prop_assert!(world.snapshot.nodes.iter().all(|node| node.request.is_none()), "{:?}", world.snapshot.nodes);
        // One run a generation and none after: nothing is asked by a drill that is over.
        let asked = world.evicted.len();
        world.pass(3600);
        world.step(&spec, true);
        prop_assert_eq!(asked, world.evicted.len());
    }
}

#[test]
fn a_lost_answer_is_asked_again_of_the_same_machine_and_not_for_ever() {
    let spec = spec(&json!({"method": "SimulateEviction", "amount": {"count": 1}}));
    let mut world = World::new(3);
    let mut asks = Vec::new();
    for _ in 0..60 {
        asks.extend(world.step(&spec, false).asks);
        world.pass(5);
    }
    assert_eq!(asks.len(), 3, "{asks:?}");
    assert!(asks.iter().all(|ask| *ask == asks[0]), "{asks:?}");
    assert_eq!(world.status.phase, Some(DrillPhase::Aborted));
    assert!(
        world.status.message.contains("was not taken: no answer and no notice, asked 3 times"),
        "{}",
        world.status.message
    );
}

/// No notice is to come, so that the clock starts when the nodes are gone; and what AKS takes in one request is one request.
#[test]
fn deleted_machines_are_asked_for_together_and_measured_from_when_they_are_gone() {
    let spec = spec(&json!({"method": "DeleteMachine", "amount": {"count": 2},
        "expect": {"replacedWithin": "30s", "minReadyUnits": 1}}));
    let mut world = World::new(3);
    let pods = |count: u32| [("batch".to_owned(), count)].into();
    world.snapshot.pods =
        Some(world.snapshot.nodes.iter().map(|node| (node.name.clone(), pods(2))).collect());
    let asks = world.step(&spec, true).asks;
    let nodes = taken(&asks[0]).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!((asks.len(), nodes.len()), (1, 2), "{asks:?}");
    // Nothing keeps new pods away.
    for node in &nodes {
        world.snapshot.pods.as_mut().unwrap().insert(node.clone(), pods(3));
    }
    world.pass(20);
    world.step(&spec, true);
    for node in world.snapshot.nodes.iter_mut().filter(|node| nodes.contains(&node.name)) {
        (node.ready, node.alive) = (false, false);
    }
    world.settle();
    // Budgets lack what has ended with its machine; nothing is left to be held back.
    world.snapshot.unready_budgets = Some(vec!["web/web (1 of 2)".into()]);
    let silent_at = world.now;
    world.step(&spec, true);
    world.pass(25);
    world.step(&spec, true);
    assert_eq!(world.status.phase, Some(DrillPhase::Succeeded), "{:?}", world.status);
    let run = world.status.run.as_ref().unwrap();
    for target in &run.targets {
        assert_eq!(target.gone_at.as_ref().unwrap().0, silent_at);
        assert_eq!(target.replaced_at.as_ref().unwrap().0.duration_since(silent_at).as_secs(), 25);
        assert!(target.noticed_at.is_none() && target.drained_at.is_none(), "{target:?}");
        assert_eq!((target.pods.before, target.pods.evicted, target.pods.left), (2, 0, 3), "{target:?}");
    }
    let told: Vec<&str> = run.verdict.iter().map(|it| it.expectation.as_str()).collect();
    assert_eq!(
        told,
        ["replacedWithin", "minReadyUnits"],
        "nothing is drained in time where nothing is drained"
    );
    assert_eq!((run.units.short_seconds, run.units.short_unit_seconds), (25, 50));
}

/// A second request would be refused, and its answer taken for Azure's last word.
#[test]
fn the_next_machine_of_an_agent_pool_waits_until_the_last_is_deleted() {
    let spec = spec(&json!({"method": "DeleteMachine", "stagger": "5s"}));
    let mut world = World::new(3);
    let mut asked_at = Vec::new();
    let began = world.now;
    for _ in 0..60 {
        if !world.step(&spec, true).asks.is_empty() {
            asked_at.push(world.now.duration_since(began).as_secs());
        }
        if world.now.duration_since(began).as_secs() == 10 {
            let message = &world.status.message;
            assert_eq!(message, "the next node waits: agent pool spota has an operation running");
        }
        world.pass(5);
    }
    assert_eq!(asked_at, [0, 30, 60], "{:?}", world.status);
    assert_eq!((world.status.phase, world.evicted.len()), (Some(DrillPhase::Succeeded), 3));
}

/// The answer is lost, and the machine takes minutes to go: it is neither asked for again nor given up, and the end waits for it.
#[test]
fn a_deletion_whose_answer_is_lost_is_waited_for_while_the_agent_pool_is_busy() {
    let spec = spec(&json!({"method": "DeleteMachine", "amount": {"count": 1}}));
    let mut world = World::new(3);
    world.step(&spec, false);
    world.snapshot.occupied.insert("spota".into());
    // Aborted meanwhile.
    world.snapshot.generation = 2;
    for _ in 0..10 {
        assert!(world.step(&spec, false).asks.is_empty(), "{:?}", world.status);
        world.now += SignedDuration::from_secs(20);
    }
    assert_eq!(world.status.phase, Some(DrillPhase::Recovering), "{:?}", world.status);
}

/// Else a rehearsal whose first request was lost opens its node before that is empty, and fails.
#[test]
fn a_rehearsed_node_that_is_asked_late_has_its_whole_time() {
    let spec = spec(&json!({"method": "NoticeOnly", "notice": "30s"}));
    let mut world = World::new(1);
    world.step(&spec, false);
    world.pass(31);
    let again = world.step(&spec, true);
    let until = world.now + SignedDuration::from_secs(30);
    assert!(matches!(&*again.asks, [Ask::Drain { not_after, .. }] if *not_after == until), "{again:?}");
    world.pass(1);
    world.step(&spec, true);
    world.pass(28);
    let inside = world.step(&spec, true);
    assert_eq!(inside.asks, []);
    world.pass(2);
    let after = world.step(&spec, true);
    assert!(matches!(&*after.asks, [Ask::Withdraw { .. }]), "{after:?}");
    world.step(&spec, true);
    assert_eq!(world.status.phase, Some(DrillPhase::Succeeded), "{:?}", world.status);
}

#[test]
fn a_dry_run_names_what_is_taken_after_it_and_takes_nothing() {
    let mut spec = spec(&json!({"method": "SimulateEviction", "amount": {"percent": 40}, "dryRun": true}));
    let mut world = World::new(5);
    assert!(world.step(&spec, true).asks.is_empty());
    assert_eq!(world.status.phase, Some(DrillPhase::Planned));
    let would: Vec<String> =
        world.status.run.as_ref().unwrap().targets.iter().map(|target| target.vm.clone()).collect();
    (spec.dry_run, world.snapshot.generation) = (false, 2);
    world.step(&spec, true);
    assert_eq!((world.evicted.clone(), would.len()), (would, 2));
}

#[test]
fn what_did_not_hold_makes_a_drill_fail_and_is_told_with_both_numbers() {
    let spec = spec(&json!({"method": "SimulateEviction", "amount": {"count": 2},
        "expect": {"replacedWithin": "10s", "minReadyUnits": 2, "drainedInTime": true}}));
    let mut world = World::new(3);
    for _ in 0..20 {
        world.step(&spec, true);
        world.pass(5);
    }
    assert_eq!(world.status.phase, Some(DrillPhase::Failed), "{:?}", world.status);
    let message = &world.status.message;
    for wanted in [
        "drainedInTime held (expected every node, was 2 of 2 nodes)",
        "replacedWithin did not hold (expected 10s, was ",
        "minReadyUnits did not hold (expected 2, was 1)",
    ] {
        assert!(message.contains(wanted), "{message}");
    }
    let units = &world.status.run.as_ref().unwrap().units;
    assert!(units.short_unit_seconds >= 50, "two units for half a minute: {units:?}");
    assert_eq!(units.short_unit_seconds, 2 * units.short_seconds, "{units:?}");
}

/// What a game day costs, and who was held, is asked for after it; whoever looks then sees what is now.
#[test]
fn what_it_costs_meanwhile_and_what_held_up_a_drain_are_kept() {
    let spec = spec(&json!({"method": "SimulateEviction", "amount": {"count": 1}}));
    let mut world = World::new(2);
    let cost = |world: &mut World, hourly: &str| {
        let pool = world.snapshot.pool.as_mut().unwrap();
        (pool.hourly, pool.currency) = (Some(hourly.parse().unwrap()), "EUR".into());
    };
    cost(&mut world, "9.50");
    world.step(&spec, true);
    cost(&mut world, "10.20");
    let at = world.snapshot.nodes.iter().position(|node| node.notice.is_some()).unwrap();
    for held in [vec!["a/a: held by a/b"], vec![], vec!["a/a: held by a/b", "a/c", "a/d", "a/e"]] {
        world.snapshot.nodes[at].held = held.into_iter().map(str::to_owned).collect();
        world.pass(5);
        world.step(&spec, true);
    }
    world.pass(30);
    cost(&mut world, "9.70");
    world.step(&spec, true);
    assert_eq!(world.status.phase, Some(DrillPhase::Succeeded), "{:?}", world.status);
    let run = world.status.run.as_ref().unwrap();
    let costs = run.hourly_cost.as_ref().unwrap();
    assert_eq!(
        [&costs.before, &costs.highest, &costs.now, &costs.currency].map(String::as_str),
        ["9.50", "10.20", "9.70", "EUR"]
    );
    assert_eq!(run.targets[0].held, ["a/a: held by a/b", "a/c", "a/d"]);
}
