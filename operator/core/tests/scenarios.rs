//! What a pool does, minute by minute.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use spotpool_core::Action;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use world::{BOOT, Fate, World};

const SPEC: &str = "
replicas: 4
agentPools: [{name: spota, maxNodes: 6}, {name: spotb, maxNodes: 6}, {name: reg, maxNodes: 4}]
fallback: {maxNodes: 3, growthAfter: 5m}
failback: {stabilization: 10m, minOnDemandLifetime: 20m}
";

fn world() -> World {
    World::new(SPEC, &[Spot, Spot, OnDemand])
}

fn asked(actions: &[Action]) -> Vec<(&str, u32, u32)> {
    let mut asked: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::ScaleUp { agent_pool, new, count, .. } => Some((agent_pool.as_str(), *new, *count)),
            _ => None,
        })
        .collect();
    asked.sort_unstable();
    asked
}

#[test]
fn a_first_start_spreads_over_spot_and_buys_nothing_while_spot_is_on_its_way() {
    let mut world = world();
    assert_eq!(asked(&world.reconcile().actions), [("spota", 2, 2), ("spotb", 2, 2)]);
    world.pass(BOOT);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty());
    assert_eq!((plan.steps[0].reason, plan.steps[0].message.as_str()), (Reason::AsWanted, "4 of 4 ready"));
    assert_eq!(world.launches.get("reg"), None);
}

#[test]
fn growth_falls_back_after_growth_after() {
    let mut world = world();
    world.pool("spota").max_nodes = 1;
    world.pool("spotb").max_nodes = 1;
    world.spec.replicas = 3;
    // Two can be asked of spot, the third was refused: on-demand at once.
    assert_eq!(asked(&world.reconcile().actions), [("reg", 1, 1), ("spota", 1, 1), ("spotb", 1, 1)]);
}

#[test]
fn at_the_notice_spot_is_replaced_elsewhere_and_on_demand_stands_in() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spota", 2, 30);
    let plan = world.reconcile();
    // spota is losing nodes: its replacements go to spotb; two on-demand cover what is lost until then.
    assert_eq!(asked(&plan.actions), [("reg", 2, 2), ("spotb", 2, 4)]);
    assert_eq!((plan.capacity.evicting, plan.capacity.ready_spot), (2, 2));

    world.pass(30);
    assert!(world.reconcile().actions.is_empty());
    world.pass(30);
    assert!(world.reconcile().actions.is_empty());
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (4, 2));
}

#[test]
fn a_second_wave_goes_where_no_operation_runs() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spota", 2, 30);
    world.reconcile();
    world.pass(1);
    world.notice("spotb", 1, 30);
    let plan = world.reconcile();
    // spotb and reg have an operation running: only spota can take the third now, and the plan says why.
    assert_eq!(asked(&plan.actions), [("spota", 1, 3)]);
    assert!(plan.steps.iter().any(|step| step.reason == Reason::AgentPoolBusy), "{:?}", plan.steps);
}

/// The leader before may have died with this request on its way: Azure takes one of two to the same agent pool, and both of
/// two to different ones.
#[test]
fn what_was_asked_for_without_an_answer_is_asked_for_where_it_was() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spotb", 1, 30);
    let now = world.now;
    let mut snapshot = world.snapshot();
    let elsewhere = spotpool_core::plan(&world.spec, &snapshot, now);
    assert_eq!(asked(&elsewhere.actions), [("reg", 1, 1), ("spota", 1, 3)]);
    snapshot.agent_pools[1].unanswered = 1;
    let again = spotpool_core::plan(&world.spec, &snapshot, now);
    assert_eq!(asked(&again.actions), [("reg", 1, 1), ("spotb", 1, 3)]);
    // No more of them than were asked for, and none if nobody wants them any more.
    world.notice("spotb", 1, 30);
    let mut snapshot = world.snapshot();
    snapshot.agent_pools[1].unanswered = 1;
    let both = spotpool_core::plan(&world.spec, &snapshot, now);
    assert_eq!(asked(&both.actions), [("reg", 2, 2), ("spota", 1, 3), ("spotb", 1, 3)]);
}

#[test]
fn failback_waits_for_stability_and_lifetime_and_goes_one_by_one() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spota", 2, 30);
    world.reconcile();
    world.pass(BOOT);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty() && plan.steps.iter().any(|step| step.reason == Reason::Stabilizing));
    world.pass(601);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty() && plan.steps.iter().any(|step| step.reason == Reason::MinimumLifetime));
    assert_eq!(plan.wake.map(|wake| wake > world.now), Some(true));
    world.pass(600);
    assert!(matches!(world.reconcile().actions[..], [Action::RequestDrain { .. }]));
    world.pass(10);
    assert!(
        matches!(&world.reconcile().actions[..], [Action::DeleteMachines { nodes, .. }] if nodes.len() == 1)
    );
    // The first went alone: the second follows once spot has stayed whole for two minutes.
    world.pass(60);
    assert!(world.reconcile().actions.is_empty());
    world.pass(120);
    assert!(matches!(world.reconcile().actions[..], [Action::RequestDrain { .. }]));
    world.pass(10);
    assert!(matches!(world.reconcile().actions[..], [Action::DeleteMachines { .. }]));
    world.pass(60);
    assert!(world.reconcile().actions.is_empty());
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (4, 0));
}

#[test]
fn a_node_that_is_draining_is_kept_when_spot_is_lost_again() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spota", 2, 30);
    world.reconcile();
    world.pass(BOOT);
    world.reconcile();
    world.pass(1300);
    let draining = match &world.reconcile().actions[..] {
        [Action::RequestDrain { node, .. }] => node.clone(),
        other => panic!("{other:?}"),
    };
    world.notice("spotb", 2, 30);
    let plan = world.reconcile();
    assert!(
        plan.actions.contains(&Action::WithdrawDrain { node: draining, reason: Reason::NodeNeededAgain }),
        "{:?}",
        plan.actions
    );
    assert!(asked(&plan.actions).iter().all(|(pool, ..)| *pool != "reg"), "{:?}", plan.actions);
}

#[test]
fn nodes_found_at_adoption_are_never_taken() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0).with("reg", 2, 2);
    world.spec.replicas = 6;
    for _ in 0..200 {
        let plan = world.reconcile();
        assert!(plan.actions.is_empty(), "{:?}", plan.actions);
        world.pass(60);
    }
    world.spec.adoption = spotpool_crds::spot_pool::Adoption::Reclaim;
    world.spec.replicas = 4;
    let mut returned = 0;
    for _ in 0..200 {
        let plan = world.reconcile();
        returned += plan.actions.iter().filter(|a| matches!(a, Action::DeleteMachines { .. })).count();
        world.pools[2].kept = 0;
        world.pass(60);
    }
    assert_eq!(returned, 2);
}

#[test]
fn a_pool_that_decayed_heals_itself() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.pool("spota").machines.clear();
    assert_eq!(asked(&world.reconcile().actions), [("reg", 2, 2), ("spota", 2, 2)]);
}

#[test]
fn a_count_is_never_lowered_while_azure_still_lists_the_machine() {
    // Somebody deleted a Node object whose VM runs on: one node is missing, two machines are listed.
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.spec.replicas = 4;
    let mut snapshot = world.snapshot();
    let name = snapshot.agent_pools[0].nodes.remove(0).name;
    snapshot.agent_pools[0].machines.retain(|machine| *machine != name);
    world.pool("spotb").max_nodes = 2;
    snapshot.agent_pools[1].max_nodes = 2;
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert!(
        asked(&plan.actions).iter().all(|(pool, _, count)| *pool != "spota" || *count >= 2),
        "{:?}",
        plan.actions
    );
}

#[test]
fn without_fallback_nothing_is_bought_and_the_plan_says_how_to_allow_it() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.spec.fallback = None;
    world.reconcile();
    world.notice("spota", 2, 30);
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("spotb", 2, 4)]);
    let step = plan.steps.iter().find(|step| step.reason == Reason::FallbackAtLimit).unwrap();
    assert!(step.message.contains("spec.fallback.maxNodes"), "{}", step.message);
}

#[test]
fn a_smaller_pool_gives_spot_nodes_back_after_stabilization() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.spec.replicas = 2;
    assert!(world.reconcile().actions.is_empty());
    for _ in 0..40 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!((world.ready(Spot), world.pools[0].machines.len() + world.pools[1].machines.len()), (2, 2));
}

#[test]
fn observe_and_suspend_plan_but_do_nothing() {
    for change in [true, false] {
        let mut world = world();
        if change {
            world.spec.suspend = true;
        } else {
            world.spec.mode = spotpool_crds::spot_pool::Mode::Observe;
        }
        let plan = world.reconcile();
        assert!(plan.actions.is_empty() && plan.withheld.len() == 2);
    }
}

#[test]
fn a_count_that_stays_above_the_machines_is_lowered_and_no_vm_with_it() {
    let mut world = world().with("spota", 4, 0);
    world.reconcile();
    world.count_follows_evictions = false;
    world.pool("spotb").max_nodes = 6;
    world.notice("spota", 2, 30);
    // Replaced in the other agent pool: nothing is ever written to this one for it.
    assert_eq!(asked(&world.reconcile().actions), [("reg", 2, 2), ("spotb", 2, 2)]);
    world.pass(31);
    assert_eq!((world.pool("spota").count, world.pool("spota").machines.len()), (4, 2));
    let plan = world.reconcile();
    assert!(plan.actions.is_empty(), "Azure's count often falls by itself");
    assert!(plan.wake.is_some());
    world.pass(120);
    let plan = world.reconcile();
    assert_eq!(plan.actions, [Action::CorrectCount { agent_pool: "spota".into(), count: 2 }]);
    assert!(plan.steps.iter().any(|step| step.reason == Reason::CountCorrected));
    assert_eq!(world.pool("spota").machines.len(), 2);
}

#[test]
fn a_machine_of_an_earlier_operation_that_becomes_a_node_is_not_one_of_those_asked_for() {
    let mut world = world().with("spota", 1, 0);
    let asked = world.now;
    // One machine boots when its operation is over (cancelled, or superseded), and one more is asked for.
    world.spec.agent_pools.retain(|pool| pool.name == "spota");
    world.pools.retain(|pool| pool.name == "spota");
    world.spec.replicas = 3;
    let mut snapshot = world.snapshot();
    snapshot.agent_pools[0].machines.push("spota-000001".into());
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    let [Action::ScaleUp { new: 1, coming: 1, count: 3, .. }] = plan.actions[..] else {
        panic!("{:?}", plan.actions)
    };
    // It is a Node now; the one that was asked for is not.
    let operation = spotpool_crds::spot_pool::Operation {
        kind: spotpool_crds::spot_pool::OperationKind::ScaleUp,
        count: 3,
        machines: 1,
        coming: 1,
        since: asked.into(),
        arrived: 0,
        accepted: true,
    };
    snapshot.agent_pools[0].busy = true;
    snapshot.agent_pools[0].operation = Some(operation);
    let mut booted = snapshot.agent_pools[0].nodes[0].clone();
    (booted.name, booted.created) = ("spota-000001".into(), asked + jiff::SignedDuration::from_secs(9));
    snapshot.agent_pools[0].nodes.push(booted);
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(plan.capacity.on_the_way, 1, "{:?}", plan.steps);
    assert!(plan.steps.iter().all(|step| step.reason != Reason::NoCandidateWithRoom), "{:?}", plan.steps);
}

#[test]
fn the_baseline_is_bought_at_once_beside_spot_and_is_no_fallback() {
    let mut world = world();
    world.spec.on_demand.baseline = 2;
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("reg", 2, 2), ("spota", 1, 1), ("spotb", 1, 1)]);
    assert!(plan.steps.iter().any(|step| step.reason == Reason::OnDemandBelowBaseline), "{:?}", plan.steps);
    assert_eq!(plan.fallback_nodes, 0);
    world.pass(BOOT);
    assert!(world.reconcile().actions.is_empty());
    // A baseline above the wanted number is what is wanted.
    world.spec.on_demand.baseline = 4;
    world.spec.replicas = 1;
    let plan = world.reconcile();
    assert_eq!((plan.capacity.wanted, plan.spot_target), (4, 0));
    assert_eq!(asked(&plan.actions), [("reg", 2, 4)]);
}

#[test]
fn the_baseline_is_never_given_back_and_leaves_fallback_its_whole_limit() {
    let mut world = world().with("spota", 1, 0).with("spotb", 1, 0).with("reg", 2, 0);
    world.pool("reg").max_nodes = 6;
    world.spec.on_demand.baseline = 2;
    assert!(world.reconcile().actions.is_empty(), "older than any minimum lifetime, and still needed");
    world.notice("spota", 1, 30);
    world.notice("spotb", 1, 30);
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("reg", 2, 4), ("spota", 1, 2), ("spotb", 1, 2)]);
    for _ in 0..60 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (2, 2));
}

#[test]
fn a_baseline_node_that_boots_is_not_bought_twice_and_one_that_is_lost_is_replaced() {
    let mut world = world().with("spota", 2, 0).with("reg", 2, 0);
    world.spec.on_demand.baseline = 2;
    world.reconcile();
    world.notice("reg", 1, 60);
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("reg", 1, 3)]);
    assert_eq!(plan.fallback_nodes, 0, "{:?}", plan.steps);
    world.pass(30);
    assert!(world.reconcile().actions.is_empty());
    // It is there, and not ready yet.
    world.pass(31);
    let mut snapshot = world.snapshot();
    let booting = snapshot.agent_pools[2].nodes.iter_mut().max_by_key(|node| node.created).unwrap();
    booting.ready = false;
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert!(plan.actions.is_empty(), "{:?}", plan.actions);
    // After ten minutes it has stalled: somebody has to stand in.
    world.pass(600);
    let mut snapshot = world.snapshot();
    let stalled = snapshot.agent_pools[2].nodes.iter_mut().max_by_key(|node| node.created).unwrap();
    stalled.ready = false;
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(asked(&plan.actions), [("reg", 1, 3)]);
}

#[test]
fn standby_is_kept_on_spot_and_never_bought_on_demand() {
    let mut world = world();
    world.spec.standby.units = 2;
    assert_eq!(asked(&world.reconcile().actions), [("spota", 3, 3), ("spotb", 3, 3)]);
    world.pass(BOOT);
    let plan = world.reconcile();
    assert!(plan.actions.is_empty());
    assert_eq!((plan.capacity.wanted, plan.capacity.ready_spot), (4, 6));
    // Two are lost: what is wanted is still there, and no on-demand is bought.
    world.notice("spota", 2, 30);
    assert_eq!(asked(&world.reconcile().actions), [("spotb", 2, 5)]);
    // Four are lost: two of them were wanted.
    world.notice("spotb", 2, 30);
    let plan = world.reconcile();
    assert!(asked(&plan.actions).contains(&("reg", 2, 2)), "{:?}", plan.actions);
}

#[test]
fn a_node_that_warms_up_wakes_the_plan_when_it_is_warm() {
    let world = world().with("spota", 2, 0).with("spotb", 2, 0);
    let mut snapshot = world.snapshot();
    let warm_at = world.now + jiff::SignedDuration::from_secs(20);
    snapshot.ready_at = Some(warm_at);
    assert_eq!(spotpool_core::plan(&world.spec, &snapshot, world.now).wake, Some(warm_at));
}

#[test]
fn a_smaller_pool_gives_back_where_it_ranks_lowest() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.spec.replicas = 3;
    let mut snapshot = world.snapshot();
    snapshot.memory.surplus_since = Some(world.now - jiff::SignedDuration::from_hours(1));
    for (pool, price) in snapshot.agent_pools.iter_mut().zip([9, 4]) {
        pool.market.hourly_price = Some(price.into());
    }
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    let [Action::RequestDrain { node, .. }] = &plan.actions[..] else { panic!("{:?}", plan.actions) };
    assert!(node.starts_with("spota"), "{node} goes, though spota is dearer");
}

#[test]
fn nodes_count_for_what_they_are_worth_and_the_cheapest_unit_is_bought() {
    let mut world = world();
    world.spec.replicas = 8;
    for (pool, (units, price)) in world.pools.iter_mut().zip([(1, 10), (4, 36), (2, 50)]) {
        pool.units = units;
        pool.market.hourly_price = Some(price.into());
    }
    world.spec.placement.max_share_per_pool = 100;
    world.spec.placement.strategy = spotpool_crds::spot_pool::Strategy::LowestPrice;
    // 9 a unit is less than 10.
    assert_eq!(asked(&world.reconcile().actions), [("spotb", 2, 2)]);
    world.pass(BOOT);
    assert_eq!(world.reconcile().capacity.ready_spot, 8);
    // One more: of a node of four units three would be paid for and not needed.
    world.spec.replicas = 9;
    assert_eq!(asked(&world.reconcile().actions), [("spota", 1, 1)]);
    world.pass(BOOT);
    world.reconcile();
    // A node of four units goes: two on-demand nodes of two units stand in.
    world.notice("spotb", 1, 30);
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("reg", 2, 2), ("spota", 4, 5)]);
    assert_eq!((plan.capacity.evicting, plan.capacity.ready_spot, plan.capacity.on_the_way), (4, 5, 8));
}

#[test]
fn a_node_that_is_needed_in_part_stays() {
    let mut world = world().with("spota", 2, 0);
    world.pools[0].units = 4;
    world.spec.replicas = 5;
    for _ in 0..40 {
        assert!(world.reconcile().actions.is_empty(), "8 units of 5: none of the two nodes can go");
        world.pass(60);
    }
    world.spec.replicas = 4;
    for _ in 0..40 {
        world.reconcile();
        world.pass(60);
    }
    assert_eq!(world.ready(Spot), 4);
}

#[test]
fn nothing_is_asked_for_that_the_last_node_makes_needless() {
    let mut world = world();
    world.pools[1].units = 4;
    world.pools[0].max_nodes = 3;
    world.spec.replicas = 5;
    world.pools[1].max_nodes = 1;
    // Three of one unit and one of four would be seven: two of the small ones are left out.
    assert_eq!(asked(&world.reconcile().actions), [("spota", 1, 1), ("spotb", 1, 1)]);
}

#[test]
fn fallback_counts_nodes_whatever_they_are_worth() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.pools[2].units = 3;
    world.spec.fallback.as_mut().unwrap().max_nodes = 1;
    world.reconcile();
    world.notice("spota", 2, 30);
    world.notice("spotb", 2, 30);
    let plan = world.reconcile();
    assert!(asked(&plan.actions).contains(&("reg", 1, 1)), "{:?}", plan.actions);
    let limit = plan.steps.iter().find(|step| step.reason == Reason::FallbackAtLimit).unwrap();
    assert_eq!(limit.message, "1 units more should fall back, fallback.maxNodes is 1");
}

/// spota is the cheaper one and has an operation of somebody else running.
fn busy_world() -> World {
    let mut world = world().with("spotb", 1, 0);
    for (pool, price) in world.pools.iter_mut().zip([10, 11, 50]) {
        pool.market.hourly_price = Some(price.into());
    }
    world.spec.placement.max_share_per_pool = 100;
    world.spec.placement.strategy = spotpool_crds::spot_pool::Strategy::LowestPrice;
    world.spec.replicas = 1;
    world.reconcile();
    world.pool("spota").is_taken = true;
    world
}

#[test]
fn growth_waits_for_a_better_agent_pool_that_is_merely_busy_and_buys_nothing_meanwhile() {
    let mut world = busy_world();
    world.spec.replicas = 3;
    let plan = world.reconcile();
    assert!(plan.actions.is_empty(), "{:?}", plan.actions);
    let step = plan.steps.iter().find(|step| step.reason == Reason::WaitingForAgentPool).unwrap();
    assert!(step.message.contains("2 units wait for spota"), "{}", step.message);
    world.pass(100);
    world.pool("spota").is_taken = false;
    assert_eq!(asked(&world.reconcile().actions), [("spota", 2, 2)]);
}

#[test]
fn growth_waits_no_longer_than_growth_after() {
    let mut world = busy_world();
    world.spec.replicas = 3;
    let plan = world.reconcile();
    assert_eq!(plan.wake, Some(world.now + jiff::SignedDuration::from_mins(5)));
    world.pass(299);
    assert!(world.reconcile().actions.is_empty());
    world.pass(1);
    assert_eq!(asked(&world.reconcile().actions), [("reg", 2, 2), ("spotb", 2, 3)]);
}

#[test]
fn what_is_lost_never_waits_for_a_busy_agent_pool() {
    let mut world = busy_world();
    world.notice("spotb", 1, 30);
    let plan = world.reconcile();
    assert_eq!(asked(&plan.actions), [("reg", 1, 1), ("spotb", 1, 2)]);
    assert!(plan.steps.iter().all(|step| step.reason != Reason::WaitingForAgentPool), "{:?}", plan.steps);
}

#[test]
fn growth_that_was_refused_elsewhere_waits_no_more() {
    let mut world = busy_world();
    world.spec.replicas = 3;
    world.reconcile();
    world.pass(10);
    let mut snapshot = world.snapshot();
    snapshot.agent_pools[1].max_nodes = 2;
    let mut other = snapshot.agent_pools[1].clone();
    (other.name, other.nodes, other.machines) = ("spotc".into(), Vec::new(), Vec::new());
    other.refused_at = Some(world.now);
    other.avoided_until = Some(world.now + jiff::SignedDuration::from_mins(10));
    snapshot.agent_pools.push(other);
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    // One of two has room in spotb, none in what was refused: on-demand for the other, now.
    assert_eq!(asked(&plan.actions), [("reg", 1, 1), ("spotb", 1, 2)]);
}

#[test]
fn equal_agent_pools_are_not_waited_for() {
    let mut world = busy_world();
    world.pools[1].market.hourly_price = Some(10.into());
    world.spec.replicas = 3;
    assert_eq!(asked(&world.reconcile().actions), [("spotb", 2, 3)]);
}

#[test]
fn machines_that_do_not_come_are_asked_of_another_agent_pool() {
    let mut world = world();
    world.spec.fallback = None;
    world.reconcile();
    let mut snapshot = world.snapshot();
    // spotb's machines are there, Azure lists none for spota and goes on with its operation.
    world.pass(BOOT);
    snapshot.agent_pools[1] = world.snapshot().agent_pools[1].clone();
    let since = snapshot.agent_pools[0].operation.as_ref().unwrap().since.0;
    snapshot.agent_pools[0].machines.clear();
    let at = |minutes| since + jiff::SignedDuration::from_mins(minutes);
    let early = spotpool_core::plan(&world.spec, &snapshot, at(9));
    assert!(early.actions.is_empty() && early.stalls.is_empty(), "{:?}", early.actions);
    assert_eq!(early.wake, Some(at(10)));
    let plan = spotpool_core::plan(&world.spec, &snapshot, at(10));
    assert_eq!(asked(&plan.actions), [("spotb", 2, 4)]);
    let [stall] = &plan.stalls[..] else { panic!("{:?}", plan.stalls) };
    assert_eq!((stall.agent_pool.as_str(), stall.reason), ("spota", Reason::ScaleUpStalled));
    assert!(stall.message.contains("2 of 2 machines"), "{}", stall.message);
    // Told once.
    snapshot.agent_pools[0].refused_at = Some(at(10));
    let again = spotpool_core::plan(&world.spec, &snapshot, at(11));
    assert!(again.stalls.is_empty() && asked(&again.actions) == [("spotb", 2, 4)]);
}

#[test]
fn an_operation_that_brought_too_few_machines_is_no_reason_to_ask_the_same_again() {
    let mut world = world();
    world.spec.fallback = None;
    world.reconcile();
    world.pass(BOOT);
    let mut snapshot = world.snapshot();
    let lost = snapshot.agent_pools[0].machines.pop().unwrap();
    snapshot.agent_pools[0].nodes.retain(|node| node.name != lost);
    let created = snapshot.agent_pools[0].nodes[0].created;
    snapshot.agent_pools[0].ended = Some(spotpool_crds::spot_pool::Operation {
        kind: spotpool_crds::spot_pool::OperationKind::ScaleUp,
        count: 2,
        machines: 2,
        coming: 0,
        since: created.into(),
        arrived: 0,
        accepted: true,
    });
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(asked(&plan.actions), [("spotb", 1, 3)]);
    assert_eq!(plan.stalls[0].reason, Reason::ScaleUpIncomplete);
    assert!(plan.stalls[0].message.contains("asked for 2 machines"), "{}", plan.stalls[0].message);
}

/// An agent pool would be avoided for minutes for a machine that is there: times are whole seconds, of two clocks.
#[test]
fn a_machine_whose_node_came_in_the_very_second_it_was_asked_for_is_not_missing() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    let mut snapshot = world.snapshot();
    let node = &snapshot.agent_pools[0].nodes[0];
    snapshot.agent_pools[0].ended = Some(spotpool_crds::spot_pool::Operation {
        kind: spotpool_crds::spot_pool::OperationKind::ScaleUp,
        count: 2,
        machines: 1,
        coming: 0,
        since: node.created.into(),
        arrived: 0,
        accepted: true,
    });
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert!(plan.stalls.is_empty() && plan.actions.is_empty(), "{:?} {:?}", plan.stalls, plan.actions);
}

#[test]
fn a_machine_that_never_becomes_a_node_is_replaced_and_still_counts_against_max_nodes() {
    let mut world = world().with("spota", 1, 0).with("spotb", 2, 0);
    world.spec.fallback = None;
    let mut snapshot = world.snapshot();
    snapshot.agent_pools[0].machines.push("spota-000001".into());
    snapshot.agent_pools[0].joining.insert("spota-000001".into(), world.now);
    snapshot.agent_pools[1].max_nodes = 2;
    assert!(spotpool_core::plan(&world.spec, &snapshot, world.now).actions.is_empty());
    world.pass(600);
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert!(plan.actions.is_empty(), "the other one is full: {:?}", plan.actions);
    assert_eq!(plan.stalls[0].reason, Reason::ScaleUpStalled);
    snapshot.agent_pools[1].max_nodes = 6;
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(asked(&plan.actions), [("spotb", 1, 3)]);
    // Later it is tried again with one machine, and the one that lingers takes its place in the limit.
    snapshot.agent_pools[0].refused_at = Some(world.now);
    snapshot.agent_pools[1].max_nodes = 2;
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(asked(&plan.actions), [("spota", 1, 3)]);
    snapshot.agent_pools[0].max_nodes = 2;
    assert!(spotpool_core::plan(&world.spec, &snapshot, world.now).actions.is_empty());
}

#[test]
fn a_machine_that_never_becomes_a_node_is_given_back_after_half_an_hour_and_bought_once() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.pool("reg").fate = Fate::Stuck;
    world.notice("spota", 1, 30);
    assert_eq!(asked(&world.reconcile().actions), [("reg", 1, 1), ("spotb", 1, 3)]);
    let mut deleted = Vec::new();
    for _ in 0..60 {
        world.pass(30);
        for action in world.reconcile().actions {
            if let Action::DeleteMachines { agent_pool, nodes, reason, .. } = action {
                assert_eq!((agent_pool.as_str(), reason), ("reg", Reason::NeverJoined));
                deleted.extend(nodes);
            }
        }
    }
    assert_eq!(deleted.len(), 1, "it is paid for, and of no use: {deleted:?}");
    assert_eq!(world.launches["reg"], 1, "spot was whole again before anything else had to stand in");
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (4, 0));
}

#[test]
fn on_demand_that_nobody_has_is_said_with_what_is_wrong_with_each() {
    let mut world = world().with("spota", 2, 0).with("spotb", 2, 0);
    world.reconcile();
    world.notice("spota", 2, 30);
    let mut snapshot = world.snapshot();
    snapshot.agent_pools[2].avoided_until = Some(world.now + jiff::SignedDuration::from_mins(10));
    let mut next = snapshot.agent_pools[2].clone();
    (next.name, next.avoided_until) = ("regb".into(), None);
    next.max_nodes = 1;
    snapshot.agent_pools.push(next);
    let plan = spotpool_core::plan(&world.spec, &snapshot, world.now);
    assert_eq!(asked(&plan.actions), [("regb", 1, 1), ("spotb", 2, 4)]);
    let short = plan.on_demand_short.unwrap();
    assert!(short.starts_with("1 units short of on-demand: reg is avoided until"), "{short}");
    assert!(plan.steps.iter().any(|step| step.reason == Reason::OnDemandUnavailable), "{:?}", plan.steps);
}
