//! Which nodes are taken, and in what order of time.

use serde_json::{Value, json};
use spotpool_crds::drill::DrillPhase;

use crate::world::{World, spec};

/// Two agent pools over two zones: `n1` to `n6`, of which `n5` is on-demand and `n6` is not ready.
fn mixed() -> World {
    let mut world = World::new(6);
    for (at, (agent_pool, zone)) in [
        ("spota", "z-1"),
        ("spota", "z-2"),
        ("spotb", "z-1"),
        ("spotb", "z-2"),
        ("rega", "z-1"),
        ("spota", "z-1"),
    ]
    .into_iter()
    .enumerate()
    {
        let node = &mut world.snapshot.nodes[at];
        (node.agent_pool, node.zone) = (agent_pool.into(), zone.into());
        // What the label selector of the spec says of it.
        node.selected = at != 3;
    }
    world.snapshot.nodes[4].is_spot = false;
    world.snapshot.nodes[5].ready = false;
    let pool = world.snapshot.pool.as_mut().unwrap();
    (pool.wanted, pool.ready) = (5, 5);
    world
}

fn taken(world: &World) -> Vec<String> {
    let run = world.status.run.as_ref().unwrap();
    let mut nodes: Vec<String> = run.targets.iter().map(|target| target.node.clone()).collect();
    nodes.sort();
    nodes
}

/// An on-demand node, or one of another team's zone, must not go because a percentage was rounded.
#[test]
fn only_ready_spot_nodes_that_are_as_the_target_says_are_taken() {
    let all = json!({"all": true});
    let target = |more: Value| {
        let mut target = json!({"spotPool": "p"});
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        target
    };
    for (what, amount, target, wanted) in [
        ("all that the selector selects", &all, json!({}), vec!["n1", "n2", "n3"]),
        ("the outage of an agent pool", &all, json!({"agentPools": ["spota"]}), vec!["n1", "n2"]),
        ("the outage of a zone", &all, json!({"zones": ["z-1"]}), vec!["n1", "n3"]),
        ("a zone of an agent pool", &all, json!({"agentPools": ["spotb"], "zones": ["z-1"]}), vec!["n3"]),
    ]
    .map(|(what, amount, more, wanted)| (what, amount, target(more), wanted))
    {
        let mut world = mixed();
        let spec = spec(&json!({"amount": amount, "target": target, "dryRun": true}));
        world.step(&spec, true);
        assert_eq!((world.status.phase, taken(&world)), (Some(DrillPhase::Planned), own(&wanted)), "{what}");
    }
    // Of three that may be.
    for (amount, wanted) in [
        (json!({"count": 1}), 1),
        (json!({"count": 3}), 3),
        (json!({"percent": 100}), 3),
        (json!({"percent": 67}), 2),
        (json!({"percent": 66}), 1),
        (json!({"percent": 1}), 1),
    ] {
        let mut world = mixed();
        world.step(&spec(&json!({"amount": amount, "dryRun": true})), true);
        let run = world.status.run.as_ref().unwrap();
        assert_eq!((run.targets.len(), run.candidates), (wanted, 3), "{amount}");
    }
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// Who asks for one a minute has a minute to look at each.
#[test]
fn nodes_are_taken_at_once_or_so_long_after_each_other_as_is_said() {
    for (stagger, wanted) in [("0s", vec![0, 0, 0]), ("1m", vec![0, 60, 120])] {
        let spec = spec(&json!({"method": "SimulateEviction", "stagger": stagger}));
        let mut world = World::new(3);
        let began = world.now;
        for _ in 0..60 {
            world.step(&spec, true);
            world.pass(5);
        }
        assert_eq!(world.status.phase, Some(DrillPhase::Succeeded), "{stagger}: {:?}", world.status);
        let run = world.status.run.as_ref().unwrap();
        let mut seconds: Vec<i64> = run
            .targets
            .iter()
            .map(|target| target.intended_at.as_ref().unwrap().0.duration_since(began).as_secs())
            .collect();
        seconds.sort_unstable();
        assert_eq!(seconds, wanted, "{stagger}");
    }
}
