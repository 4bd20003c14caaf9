//! What a drill must never do: refused before it begins, ended once it has begun.

use serde_json::{Value, json};
use spotpool_core::drill::Ask;
use spotpool_crds::drill::{DrillPhase, EvictionDrillSpec};

use crate::world::{World, spec};

/// A rehearsal of four nodes, a minute apart, from 10:00 to 10:04, with two of them ready at any time.
fn rehearsal(more: &Value) -> EvictionDrillSpec {
    let mut whole = json!({"stagger": "1m", "notice": "5m", "timeout": "10m", "limits": {"maxNodes": 4,
        "minReadyUnits": 2, "allowedHours": {"schedule": "0 10 * * *", "duration": "4m"}}});
    for (key, value) in more.as_object().unwrap() {
        whole[key] = value.clone();
    }
    spec(&whole)
}

/// What goes wrong, what is said of it before a run and in its middle.
struct Breach {
    what: fn(&mut World),
    refused: &'static str,
    aborted: &'static str,
}

const fn same(what: fn(&mut World), words: &'static str) -> Breach {
    Breach { what, refused: words, aborted: words }
}

const BREACHES: [Breach; 7] = [
    same(
        |world| {
            world.snapshot.pool.as_mut().unwrap().burning = Some("3 % of its error budget are left".into());
        },
        "abort.objectiveBurning: 3 % of its error budget are left",
    ),
    same(
        |world| world.snapshot.unready_budgets = Some(vec!["web/web (1 of 2)".into()]),
        "abort.unreadyBudgets: 1 disruption budgets have fewer healthy pods than they ask for: web/web (1 of 2)",
    ),
    same(
        |world| world.elsewhere = vec!["other-1".into()],
        "abort.realEvictions: 1 nodes are under an eviction notice that the drill did not ask for: other-1",
    ),
    same(
        |world| world.now = "2026-01-06T10:04:00Z".parse().unwrap(),
        "limits.allowedHours: it is 2026-01-06T10:04:00Z, and they begin at 2026-01-07T10:00:00Z",
    ),
    same(
        |world| world.snapshot.pool.as_mut().unwrap().idle = Some("SpotPool p is suspended".into()),
        "SpotPool p is suspended",
    ),
    same(|world| world.snapshot.pool = None, "there is no SpotPool p in this namespace"),
    Breach {
        what: |world| {
            let ready = world.snapshot.nodes.iter_mut().filter(|node| node.ready);
            for node in ready.skip(1) {
                (node.ready, node.alive) = (false, false);
            }
        },
        refused: "1 of 4 units of the SpotPool are ready: a drill begins when all are",
        aborted: "1 units are ready, and limits.minReadyUnits is 2",
    },
];

#[test]
fn a_drill_does_not_begin_where_it_would_have_to_end() {
    for Breach { what, refused, .. } in BREACHES {
        let mut world = World::new(4);
        what(&mut world);
        world.settle();
        let plan = world.step(&rehearsal(&json!({})), true);
        assert_eq!((plan.status.phase, &plan.asks), (Some(DrillPhase::Refused), &Vec::new()), "{refused}");
        assert!(plan.status.message.contains(refused), "{refused} is not in {}", plan.status.message);
    }
}

/// Whoever has trouble enough has back what the drill took of them at once, and not when the notice would have been over.
#[test]
fn a_drill_that_begins_to_go_beyond_a_limit_ends_and_heals() {
    let spec = rehearsal(&json!({}));
    for Breach { what, aborted, .. } in BREACHES {
        let mut world = World::new(4);
        world.step(&spec, true);
        world.pass(10);
        world.step(&spec, true);
        assert_eq!((world.asked(), world.ready()), (1, 3), "one is taken: {:?}", world.status);
        let whole = world.snapshot.pool.clone();
        what(&mut world);
        world.settle();
        let plan = world.step(&spec, true);
        let run = plan.status.run.as_ref().unwrap();
        assert!(run.aborted_at.is_some(), "{aborted}: {:?}", plan.status);
        assert!(run.aborted_for.contains(aborted), "{aborted} is not in {}", run.aborted_for);
        assert!(matches!(plan.asks.as_slice(), [Ask::Withdraw { .. }]), "{aborted}: {:?}", plan.asks);

        // What went wrong goes right again.
        world.snapshot.pool = whole;
        (world.snapshot.unready_budgets, world.elsewhere) = (Some(Vec::new()), Vec::new());
        for node in &mut world.snapshot.nodes {
            (node.ready, node.alive) = (!node.closed, true);
        }
        for _ in 0..10 {
            world.pass(2);
            world.step(&spec, true);
        }
        let message = &world.status.message;
        assert_eq!(
            (world.status.phase, world.ready()),
            (Some(DrillPhase::Aborted), 4),
            "{aborted}: {message}"
        );
        assert!(message.contains(aborted) && message.ends_with("; all is whole again"), "{message}");
        assert_eq!(world.asked(), 1, "{aborted}: nothing more is taken");
    }
}

#[test]
fn a_drill_that_is_changed_or_takes_too_long_ends() {
    let spec = rehearsal(&json!({}));
    let begun = || {
        let mut world = World::new(4);
        world.step(&spec, true);
        world
    };
    let mut changed = begun();
    changed.snapshot.generation = 2;
    changed.step(&spec, true);
    assert!(changed.status.run.unwrap().aborted_for.contains("the drill was changed while it ran"));
    let mut late = begun();
    late.pass(600);
    late.step(&spec, true);
    assert!(late.status.run.unwrap().aborted_for.contains("it was not over within timeout 10m"));
}

/// `maxNodes` and namespaces are known before: there is no run that would have to find out.
#[test]
fn what_would_be_too_much_is_refused_with_the_numbers() {
    let refused = |spec: &EvictionDrillSpec, world: &mut World| {
        let plan = world.step(spec, true);
        assert_eq!((plan.status.phase, plan.asks), (Some(DrillPhase::Refused), Vec::new()));
        plan.status.message
    };
    let message = refused(&rehearsal(&json!({"limits": {"maxNodes": 3}})), &mut World::new(4));
    assert_eq!(message, "it would take 4 nodes, and limits.maxNodes is 3");
    let together = json!({"stagger": "0s", "limits": {"maxNodes": 4, "minReadyUnits": 1}});
    let message = refused(&rehearsal(&together), &mut World::new(4));
    let words = "4 units are ready and it would take 4 of them, and limits.minReadyUnits is 1";
    assert_eq!(message, words);
    let mut strangers = World::new(4);
    let pods = [("batch".to_owned(), 3), ("payments".to_owned(), 2)].into();
    strangers.snapshot.pods = Some([("n2".to_owned(), pods)].into());
    let spec = rehearsal(&json!({"limits": {"maxNodes": 4, "namespaces": ["batch"]}}));
    let message = refused(&spec, &mut strangers);
    assert_eq!(message, "pods would be evicted outside limits.namespaces: 2 in payments");
    // They have gone.
    strangers.snapshot.pods.as_mut().unwrap().clear();
    strangers.snapshot.generation = 2;
    strangers.step(&spec, true);
    assert_eq!(strangers.status.phase, Some(DrillPhase::Running));
}

/// A limit holds for each node by itself, long after the drill was let begin.
#[test]
fn the_next_node_waits_until_it_may_be_taken() {
    let spec = rehearsal(&json!({"method": "SimulateEviction", "notice": null, "stagger": "5s",
        "limits": {"maxNodes": 4, "minReadyUnits": 3}}));
    let mut world = World::new(4);
    let mut least = 4;
    for round in 0..100 {
        world.step(&spec, true);
        least = least.min(world.ready());
        if round == 3 {
            let message = &world.status.message;
            assert_eq!(world.asked(), 1, "{message}");
            assert!(message.contains("and limits.minReadyUnits is 3"), "{message}");
        }
        world.pass(5);
    }
    assert_eq!((world.status.phase, world.asked()), (Some(DrillPhase::Succeeded), 4), "{:?}", world.status);
    assert_eq!(least, 3, "one at a time, though four were to go");
}

/// One of two pods of somebody else on each of these nodes.
fn strangers_on(world: &mut World, nodes: &[String]) {
    let pods = || [("batch".to_owned(), 3), ("payments".to_owned(), 1)].into();
    world.snapshot.pods = Some(nodes.iter().map(|node| (node.clone(), pods())).collect());
}

fn waiting(world: &World) -> Vec<String> {
    let targets = world.status.run.iter().flat_map(|run| &run.targets);
    targets.filter(|target| target.intended_at.is_none()).map(|target| target.node.clone()).collect()
}

/// They were promised that no drill evicts their pods, wherever these go.
#[test]
fn a_node_that_pods_of_others_come_to_is_left_alone_and_another_taken() {
    let spec =
        rehearsal(&json!({"amount": {"count": 2}, "limits": {"maxNodes": 2, "namespaces": ["batch"]}}));
    let mut world = World::new(4);
    world.step(&spec, true);
    let next = waiting(&world);
    assert_eq!((world.asked(), next.len()), (1, 1));
    strangers_on(&mut world, &next);
    world.pass(60);
    world.step(&spec, true);
    let run = world.status.run.as_ref().unwrap();
    assert_eq!((world.asked(), run.targets.len(), run.aborted_at.is_none()), (2, 2, true), "{run:?}");
    assert!(run.targets.iter().all(|target| target.node != next[0]), "{run:?}");
    let told = format!(
        "{} is left alone, {} taken in its stead: pods would be evicted outside limits.namespaces: 1 in payments",
        next[0], run.targets[1].node
    );
    assert!(run.timeline.iter().any(|moment| moment.what == told), "`{told}` is not in {:?}", run.timeline);
    for _ in 0..60 {
        world.pass(10);
        world.step(&spec, true);
    }
    assert_eq!(world.status.phase, Some(DrillPhase::Succeeded), "{:?}", world.status);
}

/// It would wait, with a node closed, for as long as these pods stay.
#[test]
fn a_drill_that_has_no_node_without_pods_of_others_ends_and_heals() {
    let spec =
        rehearsal(&json!({"amount": {"count": 2}, "limits": {"maxNodes": 2, "namespaces": ["batch"]}}));
    let mut world = World::new(3);
    world.step(&spec, true);
    let taken: Vec<String> =
        world.snapshot.nodes.iter().filter(|node| node.closed).map(|node| node.name.clone()).collect();
    let others: Vec<String> = world.snapshot.nodes.iter().map(|node| node.name.clone()).collect();
    strangers_on(&mut world, &others.into_iter().filter(|node| !taken.contains(node)).collect::<Vec<_>>());
    world.pass(50);
    assert!(world.step(&spec, true).asks.is_empty(), "they may have gone until it is time");
    world.pass(10);
    let plan = world.step(&spec, true);
    let words = "pods would be evicted outside limits.namespaces: 1 in payments; no other node may be taken";
    assert_eq!(plan.status.run.as_ref().unwrap().aborted_for, words);
    assert!(matches!(plan.asks.as_slice(), [Ask::Withdraw { .. }]), "{:?}", plan.asks);
    world.pass(2);
    world.step(&spec, true);
    assert_eq!((world.status.phase, world.ready(), world.asked()), (Some(DrillPhase::Aborted), 3, 1));
}

/// The scheduler was faster than the cordon.
#[test]
fn pods_of_others_on_a_node_that_is_being_emptied_end_a_drill_at_once() {
    let spec = rehearsal(&json!({"limits": {"maxNodes": 4, "namespaces": ["batch"]}}));
    let mut world = World::new(4);
    world.step(&spec, true);
    let taken = world.snapshot.nodes.iter_mut().find(|node| node.closed).unwrap();
    let request = taken.request.clone().unwrap();
    taken.drain = Some((request, spotpool_crds::voluntary_drain::DrainPhase::Draining, 4));
    let taken = taken.name.clone();
    strangers_on(&mut world, &[taken]);
    world.pass(1);
    let plan = world.step(&spec, true);
    assert!(matches!(plan.asks.as_slice(), [Ask::Withdraw { .. }]), "{:?}", plan.status);
}

#[test]
fn nodes_with_pods_of_others_are_chosen_last() {
    let spec =
        rehearsal(&json!({"amount": {"count": 2}, "limits": {"maxNodes": 2, "namespaces": ["batch"]}}));
    for free in ["n1", "n2", "n3", "n4"] {
        let mut world = World::new(4);
        let all: Vec<String> = world.snapshot.nodes.iter().map(|node| node.name.clone()).collect();
        let others: Vec<String> = all.into_iter().filter(|node| node != free && node != "n1").collect();
        strangers_on(&mut world, &others);
        world.step(&spec, true);
        let phase = if free == "n1" { DrillPhase::Refused } else { DrillPhase::Running };
        assert_eq!(world.status.phase, Some(phase), "{free}: {:?}", world.status);
    }
}
