//! The floor of on-demand over time: it follows what disruption budgets need, slowly, inside its limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use std::sync::Arc;

use proptest::prelude::*;
use spotpool_core::fit::Room;
use spotpool_core::floor::FloorDemand;
use spotpool_core::{Plan, plan};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use world::{BOOT, World};

const SPEC: &str = "
replicas: 4
agentPools: [{name: spota, maxNodes: 6}, {name: reg, maxNodes: 4}]
onDemand: {pdbFloor: {enabled: true, maxUnits: 3}}
fallback: {maxNodes: 2, growthAfter: 5m}
failback: {stabilization: 10m, minOnDemandLifetime: 0s}
";

fn world(needed: u32) -> World {
    let mut world = World::new(SPEC, &[Spot, OnDemand]).with("spota", 4, 0);
    need(&mut world, needed);
    world
}

fn need(world: &mut World, units: u32) {
    world.floor = Some(FloorDemand { units: Some(units), ..FloorDemand::default() });
}

fn kept(plan: &Plan) -> u32 {
    plan.floor.as_ref().unwrap().units
}

fn says(plan: &Plan, reason: Reason) -> bool {
    plan.steps.iter().any(|step| step.reason == reason)
}

#[test]
fn on_demand_is_bought_once_the_need_has_lasted_a_minute_and_is_no_fallback() {
    let mut world = world(2);
    let first = world.reconcile();
    assert!(first.actions.is_empty() && says(&first, Reason::FloorChanging), "{:?}", first.steps);
    assert_eq!(first.wake, Some(world.now + jiff::SignedDuration::from_mins(1)));
    world.pass(59);
    assert_eq!(kept(&world.reconcile()), 0);
    world.pass(1);
    let bought = world.reconcile();
    assert_eq!((kept(&bought), world.launches["reg"], bought.fallback_nodes), (2, 2, 0));
    assert!(says(&bought, Reason::OnDemandBelowFloor));
    world.pass(BOOT);
    world.reconcile();
    assert_eq!(world.ready(OnDemand), 2);
    // Spot beyond what is still wanted of it goes, once that is stable.
    for _ in 0..20 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (2, 2));
}

#[test]
fn a_need_that_comes_and_goes_buys_nothing_and_one_that_rises_gets_what_lasted() {
    let mut world = world(2);
    world.reconcile();
    world.pass(40);
    need(&mut world, 0);
    world.reconcile();
    need(&mut world, 2);
    world.pass(40);
    world.reconcile();
    assert_eq!(world.launches.get("reg"), None, "40 s are no minute, twice neither");
    world.pass(50);
    need(&mut world, 3);
    world.reconcile();
    world.pass(10);
    assert_eq!(kept(&world.reconcile()), 2, "two have lasted, the third has not");
    world.pass(60);
    assert_eq!(kept(&world.reconcile()), 3);
}

#[test]
fn it_is_capped_and_says_by_what() {
    let mut world = world(9);
    world.reconcile();
    world.pass(60);
    let plan = world.reconcile();
    assert_eq!((kept(&plan), plan.floor.as_ref().unwrap().needed), (3, Some(9)));
    assert_eq!(plan.floor.as_ref().unwrap().capped_by, Some(("onDemand.pdbFloor.maxUnits", 3)));
    assert!(says(&plan, Reason::FloorAtLimit));
    world.spec.on_demand.pdb_floor.max_units = Some(1);
    assert_eq!(kept(&world.reconcile()), 1, "a lower limit holds at once");
    world.spec.on_demand.pdb_floor.max_units = Some(20);
    world.pass(61);
    world.reconcile();
    world.pass(61);
    let plan = world.reconcile();
    assert_eq!(kept(&plan), 4, "no more than the on-demand agent pool may have");
    assert_eq!(plan.floor.unwrap().capped_by.unwrap().1, 4);
}

#[test]
fn it_falls_after_stabilization_to_the_most_that_was_needed_meanwhile() {
    let mut world = world(3);
    world.reconcile();
    world.pass(60);
    world.reconcile();
    need(&mut world, 0);
    world.pass(300);
    world.reconcile();
    need(&mut world, 1);
    world.pass(300);
    world.reconcile();
    need(&mut world, 0);
    world.pass(299);
    assert_eq!(kept(&world.reconcile()), 3);
    world.pass(1);
    assert_eq!(kept(&world.reconcile()), 1);
    world.pass(600);
    assert_eq!(kept(&world.reconcile()), 0);
    world.spec.on_demand.pdb_floor.enabled = false;
    assert_eq!(world.reconcile().floor, None);
}

#[test]
fn what_is_not_known_changes_nothing() {
    let mut world = world(2);
    world.reconcile();
    world.pass(60);
    world.reconcile();
    world.floor = Some(FloorDemand::unknown("no node of this size has been seen"));
    world.pass(3600);
    let plan = world.reconcile();
    assert_eq!(kept(&plan), 2);
    let step = plan.steps.iter().skip(1).find(|step| step.reason == Reason::FloorUnknown).unwrap();
    assert!(step.message.contains("no node of this size has been seen"), "{}", step.message);
}

#[test]
fn a_node_whose_pods_have_no_room_is_kept_and_its_pods_are_named() {
    let mut world = World::new(SPEC, &[Spot, OnDemand]).with("spota", 4, 0).with("reg", 1, 0);
    world.reconcile();
    world.room = Some(Arc::new(Room::default()));
    world.pass(601);
    let plan = world.reconcile();
    let step = plan.steps.iter().skip(1).find(|step| step.reason == Reason::PodsDoNotFit).unwrap();
    assert!(step.message.ends_with("is kept: pods have not been read yet"), "{}", step.message);
    assert!(plan.wake.is_some(), "room comes without a word");
    world.room = Some(Arc::new(Room { complete: true, ..Room::default() }));
    world.pass(15);
    assert!(says(&world.reconcile(), Reason::Failback));
}

proptest! {
    /// Whatever is needed, and however that changes: no more than the cap is kept, no fallback is counted for it, and a plan
    /// that is carried out leaves nothing to do (the world checks that at each step).
    #[test]
    fn the_floor_stays_inside_its_limits_and_settles(
        needs in proptest::collection::vec((0u32..8, 1i64..400, 0usize..4), 1..30), most in 0i32..6,
    ) {
        let mut world = world(0);
        world.spec.on_demand.pdb_floor.max_units = Some(most);
        for (needed, seconds, lost) in &needs {
            need(&mut world, *needed);
            if *lost > 0 {
                world.notice("spota", *lost, 30);
            }
            world.pass(*seconds);
            let plan = world.reconcile();
            prop_assert!(kept(&plan) <= most.min(4) as u32);
            prop_assert!(plan.capacity.wanted as u32 >= kept(&plan));
        }
        for _ in 0..100 {
            world.pass(60);
            world.reconcile();
        }
        let last = needs.last().unwrap().0.min(most.min(4) as u32);
        let end = plan(&world.spec, &world.snapshot(), world.now);
        prop_assert!(end.actions.is_empty(), "{:?}", end.actions);
        prop_assert_eq!((kept(&end), world.ready(OnDemand), world.ready(Spot)), (last, last, 4 - last));
    }
}
