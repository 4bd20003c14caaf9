//! Agent pools that the cluster autoscaler scales: we move their minimum, respect their maximum, and touch nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use jiff::SignedDuration;
use spotpool_core::{Action, Autoscaler, Plan};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use spotpool_crds::voluntary_drain::DrainReason;
use world::World;

const ALONE: &str = "
replicas: 3
agentPools: [{name: auto, maxNodes: 8}]
failback: {stabilization: 10m}
";

fn minimum(world: &mut World, pool: &str) -> u32 {
    world.pool(pool).autoscaler.unwrap().min
}

fn machines(world: &mut World, pool: &str) -> usize {
    world.pool(pool).machines.len()
}

fn says(plan: &Plan, reason: Reason, text: &str) -> bool {
    plan.steps.iter().any(|step| step.reason == reason && step.message.contains(text))
}

/// Lets time pass, in steps of ten seconds, with a plan after each.
fn pass(world: &mut World, seconds: i64) -> Vec<Action> {
    let mut actions = Vec::new();
    for _ in 0..seconds / 10 {
        world.pass(10);
        actions.extend(world.reconcile().actions);
    }
    actions
}

#[test]
fn machines_are_asked_for_by_the_minimum_at_the_notice_and_not_twice() {
    let mut world = World::new(ALONE, &[Spot]).with("auto", 3, 0).autoscaled("auto", 3, 9);
    assert_eq!(world.reconcile().actions, []);
    world.notice("auto", 2, 30);
    let plan = world.reconcile();
    let Action::ScaleUp { new: 2, count: 5, .. } = plan.actions[0] else { panic!("{:?}", plan.actions) };
    assert!(says(&plan, Reason::ReplaceEvicted, "by a minimum of 5 instead of 3"), "{:?}", plan.steps);
    // Once the two have gone, the autoscaler would bring them again.
    let actions = pass(&mut world, 1200);
    let lowered = Action::SetMinimum { agent_pool: "auto".into(), min: 3, reason: Reason::LowerMinimum };
    assert_eq!(actions, [lowered]);
    assert_eq!((machines(&mut world, "auto"), minimum(&mut world, "auto")), (3, 3));
}

#[test]
fn what_another_agent_pool_replaces_is_not_brought_back_by_the_autoscaler() {
    let spec = "
replicas: 3
agentPools: [{name: auto, maxNodes: 8}, {name: other, maxNodes: 8}]
";
    let mut world = World::new(spec, &[Spot, Spot]).with("auto", 3, 0).autoscaled("auto", 1, 9);
    let held = Action::SetMinimum { agent_pool: "auto".into(), min: 3, reason: Reason::HoldMinimum };
    assert_eq!(world.reconcile().actions, [held]);
    pass(&mut world, 60);
    world.notice("auto", 2, 30);
    let plan = world.reconcile();
    let lowered = Action::SetMinimum { agent_pool: "auto".into(), min: 1, reason: Reason::LowerMinimum };
    assert!(
        matches!(&plan.actions[0], Action::ScaleUp { agent_pool, new: 2, .. } if agent_pool == "other"),
        "{:?}",
        plan.actions
    );
    assert_eq!(plan.actions[1..], [lowered]);
    assert_eq!(pass(&mut world, 1200), []);
    assert_eq!((machines(&mut world, "auto"), machines(&mut world, "other")), (1, 2));
}

#[test]
fn the_autoscalers_maximum_is_a_limit_that_is_said() {
    let mut world = World::new(ALONE, &[Spot]).autoscaled("auto", 0, 2);
    let plan = world.reconcile();
    let Action::ScaleUp { new: 2, count: 2, .. } = plan.actions[0] else { panic!("{:?}", plan.actions) };
    assert!(says(&plan, Reason::AutoscalerAtMaximum, "maxCount of 2"), "{:?}", plan.steps);
    pass(&mut world, 120);
    let plan = world.reconcile();
    assert!(says(&plan, Reason::AutoscalerAtMaximum, "raise maxCount"), "{:?}", plan.steps);
    assert_eq!(world.pool("auto").autoscaler, Some(Autoscaler { min: 2, max: 2, own_min: 0 }));
}

#[test]
fn surplus_is_given_back_by_the_minimum_alone_and_not_below_peoples_own() {
    let mut world = World::new(ALONE, &[Spot]).with("auto", 1, 0).autoscaled("auto", 1, 9);
    world.spec.replicas = 5;
    world.reconcile();
    pass(&mut world, 120);
    assert_eq!((machines(&mut world, "auto"), minimum(&mut world, "auto")), (5, 5));
    world.spec.replicas = 0;
    let plan = world.reconcile();
    assert!(says(&plan, Reason::Stabilizing, "4 more than needed"), "{:?}", plan.steps);
    assert_eq!(pass(&mut world, 590), [], "not before it has lasted");
    let actions = pass(&mut world, 1200);
    let lowered = Action::SetMinimum { agent_pool: "auto".into(), min: 1, reason: Reason::LowerMinimum };
    assert_eq!(actions, [lowered], "no drain, no deletion");
    assert_eq!(machines(&mut world, "auto"), 1, "the autoscaler has taken what was idle");
}

#[test]
fn what_the_autoscaler_makes_for_pods_is_capacity_and_no_surplus() {
    let spec = "
replicas: 4
agentPools: [{name: auto, maxNodes: 8}, {name: other, maxNodes: 8}]
failback: {stabilization: 1m}
";
    let mut world =
        World::new(spec, &[Spot, Spot]).with("other", 4, 0).with("auto", 0, 0).autoscaled("auto", 0, 9);
    assert_eq!(world.reconcile().actions, []);
    world.pending("auto", 3);
    assert_eq!(pass(&mut world, 300), [], "no node of the other agent pool goes because of them");
    assert_eq!(world.ready(Spot), 7);
    // Two are lost: three others carry that, and are held from now on, as far as they are needed.
    world.notice("other", 2, 30);
    let plan = world.reconcile();
    let held = Action::SetMinimum { agent_pool: "auto".into(), min: 2, reason: Reason::HoldMinimum };
    assert_eq!(plan.actions, [held], "{:?}", plan.steps);
    pass(&mut world, 1800);
    assert_eq!((machines(&mut world, "auto"), machines(&mut world, "other")), (2, 2));
}

#[test]
fn on_demand_is_bought_and_given_back_by_the_minimum_within_its_limit() {
    let spec = "
replicas: 4
agentPools: [{name: spot, maxNodes: 4}, {name: reg, maxNodes: 8}]
fallback: {maxNodes: 2}
failback: {stabilization: 5m, minOnDemandLifetime: 0s}
";
    let mut world = World::new(spec, &[Spot, OnDemand]).with("spot", 4, 0).autoscaled("reg", 0, 9);
    world.reconcile();
    world.notice("spot", 3, 30);
    let plan = world.reconcile();
    let bought = |action: &Action| matches!(action, Action::ScaleUp { agent_pool, count: 2, .. } if agent_pool == "reg");
    assert!(plan.actions.iter().any(bought), "{:?}", plan.actions);
    pass(&mut world, 60);
    assert_eq!(minimum(&mut world, "reg"), 2);
    let actions = pass(&mut world, 1800);
    let lowered = Action::SetMinimum { agent_pool: "reg".into(), min: 0, reason: Reason::LowerMinimum };
    assert!(actions.contains(&lowered), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::RequestDrain { .. })));
    assert_eq!((machines(&mut world, "reg"), world.ready(Spot)), (0, 4));
    assert!(world.memory.failed_back_at.is_some(), "spot that fails soon after that is a relapse");
}

#[test]
fn a_drain_of_an_agent_pool_that_is_autoscaled_meanwhile_is_taken_back() {
    let mut world = World::new(ALONE, &[Spot]).with("auto", 4, 0).autoscaled("auto", 3, 9);
    let (now, name) = (world.now, world.pool("auto").machines[0].name.clone());
    world.machine(&name).drain =
        Some((now - SignedDuration::from_mins(1), now + SignedDuration::from_mins(9)));
    world.machine(&name).reason = DrainReason::ScaleDown;
    let plan = world.reconcile();
    let taken_back = Action::WithdrawDrain { node: name, reason: Reason::LeftToAutoscaler };
    assert_eq!(plan.actions, [taken_back]);
}

/// What the autoscaler takes in its own time would be counted on until then: with two of eight gone, six would have to do.
#[test]
fn nobody_leaves_on_the_strength_of_what_the_autoscaler_may_take() {
    let spec = "
replicas: 6
agentPools: [{name: spot, maxNodes: 12}, {name: reg, maxNodes: 1}, {name: auto, maxNodes: 4}]
standby: {units: 1}
fallback: {maxNodes: 4}
failback: {stabilization: 3m, probe: 0s}
";
    let mut world = World::new(spec, &[Spot, OnDemand, OnDemand]).with("spot", 7, 0).autoscaled("auto", 0, 9);
    world.reconcile();
    world.notice("spot", 3, 0);
    world.reconcile();
    assert_eq!((machines(&mut world, "reg"), machines(&mut world, "auto")), (1, 1));
    assert_eq!(pass(&mut world, 220), []);
    world.notice("spot", 1, 0);
    world.reconcile();
    // Seven are to be ready, eight are, and one of them the autoscaler may take from now on.
    let lowered = Action::SetMinimum { agent_pool: "auto".into(), min: 0, reason: Reason::LowerMinimum };
    assert_eq!(pass(&mut world, 50), [lowered]);
    let after = pass(&mut world, 60);
    assert!(matches!(&after[0], Action::RequestDrain { node, .. } if node.starts_with("reg")), "{after:?}");
    pass(&mut world, 900);
    let left = ["spot", "reg", "auto"].map(|name| machines(&mut world, name));
    assert_eq!(left, [7, 0, 0]);
}
