//! What AKS does to agent pools by itself costs nothing and gives nothing back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[allow(dead_code, reason = "each file uses its part of it")]
mod world;

use jiff::SignedDuration;
use spotpool_core::upkeep::Upkeep;
use spotpool_core::{NodeView, Plan, Snapshot, plan};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use world::World;

const SPEC: &str = "
replicas: 6
agentPools: [{name: spota, maxNodes: 8}, {name: spotb, maxNodes: 8}, {name: reg, maxNodes: 4}]
onDemand: {baseline: 2}
fallback: {maxNodes: 2, growthAfter: 0s}
failback: {stabilization: 0s, minOnDemandLifetime: 0s}
";

fn settled() -> World {
    let mut world =
        World::new(SPEC, &[Spot, Spot, OnDemand]).with("spota", 2, 0).with("spotb", 2, 0).with("reg", 2, 0);
    assert!(world.reconcile().actions.is_empty());
    world
}

/// An upgrade of agent pool `pool` with one surge node, `cordoned` of its own being drained by AKS.
fn upgrading(world: &World, pool: usize, cordoned: usize) -> Snapshot {
    let mut snapshot = world.snapshot();
    let pool = &mut snapshot.agent_pools[pool];
    (pool.upkeep, pool.busy) = (Some(Upkeep::Upgrading), true);
    for node in pool.nodes.iter_mut().take(cordoned) {
        node.ready = false;
    }
    let surge =
        NodeView { name: format!("{}-surge", pool.name), created: world.now, ..pool.nodes[1].clone() };
    pool.machines.push(surge.name.clone());
    pool.nodes.push(surge);
    snapshot
}

fn reasons(plan: &Plan) -> Vec<Reason> {
    plan.steps.iter().map(|step| step.reason).collect()
}

#[test]
fn an_upgrade_is_neither_a_loss_nor_a_surplus_and_is_said() {
    let world = settled();
    for pool in [0, 2] {
        for cordoned in [0, 1, 2] {
            let plan = plan(&world.spec, &upgrading(&world, pool, cordoned), world.now);
            assert_eq!(plan.actions, [], "{cordoned} of agent pool {pool} cordoned");
            assert!(reasons(&plan).contains(&Reason::AgentPoolInUpkeep), "{plan:?}");
            assert_eq!(plan.fallback_nodes, 0, "surge nodes are no fallback");
            let ready = plan.capacity.ready_spot + plan.capacity.ready_on_demand;
            assert!(ready <= 7 - cordoned as i32, "what is not ready is not said to be");
            assert_eq!((plan.memory.lost_since, plan.memory.surplus_since), (None, None));
        }
    }
}

#[test]
fn a_node_that_azure_takes_during_an_upgrade_is_replaced() {
    let world = settled();
    let mut snapshot = upgrading(&world, 0, 1);
    snapshot.agent_pools[1].nodes[0].noticed = Some(world.now);
    let elsewhere = plan(&world.spec, &snapshot, world.now);
    assert!(!elsewhere.actions.is_empty(), "{elsewhere:?}");
    assert!(elsewhere.actions.iter().all(|action| action.agent_pool() != Some("spota")), "it is busy");
    // One of the upgraded agent pool itself, that has no surge.
    let mut snapshot = upgrading(&world, 0, 0);
    let own = &mut snapshot.agent_pools[0];
    own.nodes.truncate(2);
    own.machines.truncate(2);
    own.nodes[0].noticed = Some(world.now);
    let own = plan(&world.spec, &snapshot, world.now);
    assert!(!own.actions.is_empty(), "{own:?}");
}

#[test]
fn nothing_is_given_back_before_the_upgrade_is_over() {
    let mut world = settled();
    world.spec.replicas = 4;
    let held = plan(&world.spec, &upgrading(&world, 1, 1), world.now);
    assert_eq!(held.actions, [], "{held:?}");
    let over = plan(&world.spec, &world.snapshot(), world.now + SignedDuration::from_mins(1));
    assert!(!over.actions.is_empty(), "{over:?}");
}

#[test]
fn a_cordoned_node_is_replaced_on_demand_only_after_two_minutes() {
    let world = settled();
    let mut snapshot = world.snapshot();
    let node = &mut snapshot.agent_pools[0].nodes[0];
    (node.ready, node.cordoned) = (false, true);
    let first = plan(&world.spec, &snapshot, world.now);
    assert_eq!(first.actions, [], "{first:?}");
    assert_eq!(first.wake, Some(world.now + SignedDuration::from_mins(2)));
    snapshot.memory = first.memory;
    let later = plan(&world.spec, &snapshot, world.now + SignedDuration::from_mins(2));
    assert_eq!(later.actions.iter().filter_map(|action| action.agent_pool()).collect::<Vec<_>>(), ["reg"]);
}

#[test]
fn a_cluster_that_starts_again_buys_nothing_for_nodes_that_boot() {
    let mut world = settled();
    world.reconcile();
    let mut snapshot = world.snapshot();
    for pool in &mut snapshot.agent_pools {
        (pool.upkeep, pool.busy) = (Some(Upkeep::Starting), true);
        pool.nodes.clear();
        pool.machines.clear();
        pool.listed = 0;
    }
    let plan = plan(&world.spec, &snapshot, world.now);
    assert_eq!(plan.actions, [], "{plan:?}");
    assert_eq!(plan.capacity.ready_spot + plan.capacity.ready_on_demand, 0);
}
