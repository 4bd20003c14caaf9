//! Objectives over hours and days: what burns the budget, how cautious that makes the pool, and that it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use jiff::SignedDuration;
use proptest::prelude::*;
use spotpool_core::{Action, Plan};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use spotpool_crds::spot_pool::{ObjectiveMode, ObjectiveStatus};
use world::{Fate, World};

const SPEC: &str = "
replicas: 10
agentPools: [{name: spota, maxNodes: 12}, {name: spotb, maxNodes: 12}, {name: reg, maxNodes: 12}]
fallback: {maxNodes: 6, growthAfter: 5m}
failback: {stabilization: 10m, minOnDemandLifetime: 20m, maxConcurrent: 3}
objective: {availability: \"99.5\", window: 720h}
";

/// Ten spot nodes, measured for an hour.
fn world() -> World {
    let mut world = World::new(SPEC, &[Spot, Spot, OnDemand]).with("spota", 5, 0).with("spotb", 5, 0);
    pass(&mut world, 3600, 300);
    world
}

/// Lets time pass, looking every `step` seconds.
fn pass(world: &mut World, seconds: i64, step: i64) -> Plan {
    let mut plan = world.reconcile();
    for _ in 0..seconds / step {
        world.pass(step);
        plan = world.reconcile();
    }
    plan
}

fn evict_all(world: &mut World) {
    world.notice("spota", 20, 30);
    world.notice("spotb", 20, 30);
    world.reconcile();
}

fn objective(world: &World) -> &ObjectiveStatus {
    world.memory.objective.as_ref().unwrap()
}

fn rate(world: &World, window: &str) -> f64 {
    let rates = &objective(world).burn_rates;
    rates.iter().find(|it| it.window == window).unwrap().rate.parse().unwrap()
}

fn says(plan: &Plan, reason: Reason) -> String {
    let step = plan.steps.iter().skip(1).find(|step| step.reason == reason);
    step.unwrap_or_else(|| panic!("no {reason} in {:?}", plan.steps)).message.clone()
}

#[test]
fn a_mass_eviction_makes_it_cautious_and_it_recovers_by_itself() {
    let mut world = world();
    assert_eq!((objective(&world).mode, objective(&world).budget_left_percent), (ObjectiveMode::Normal, 100));
    evict_all(&mut world);
    // Everything boots for a minute: 10 × 60 of 36000 unit-seconds in the hour, allowed are 180.
    let plan = pass(&mut world, 75, 15);
    let now = objective(&world);
    assert_eq!((now.mode, now.caution), (ObjectiveMode::Cautious, 1), "{now:?}");
    assert_eq!(now.measured.unit_seconds.missing, 600);
    assert!((3.32..3.34).contains(&rate(&world, "1h")), "{now:?}");
    assert_eq!(now.last_replacement.unwrap().to_string(), "1m");
    assert!(now.summary.ends_with("Cautious 1/5"), "{}", now.summary);
    assert!(says(&plan, Reason::Cautious).contains("1 units on demand beyond the base, 1 more on standby"));

    // Spot is whole in minutes; on-demand stays.
    pass(&mut world, 3600, 60);
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (11, 6), "{:?}", world.plan().steps);
    assert_eq!(objective(&world).caution, 1);
    let plan = pass(&mut world, 3600, 60);
    assert_eq!(objective(&world).mode, ObjectiveMode::Normal, "{:?}", plan.steps);
    assert!(objective(&world).calm_since.is_none());
    // Back to what the spec says, by the usual way.
    pass(&mut world, 7200, 60);
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (10, 0), "{:?}", world.plan().steps);
}

#[test]
fn while_it_burns_spots_share_sinks_step_by_step_and_never_past_a_limit() {
    let mut world = world();
    let mut seen = vec![0];
    let mut least = world.plan().spot_target;
    for _ in 0..30 {
        evict_all(&mut world);
        for _ in 0..20 {
            let plan = pass(&mut world, 15, 15);
            least = least.min(plan.spot_target);
            let steps = objective(&world).caution;
            if *seen.last().unwrap() != steps {
                seen.push(steps);
            }
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    // A step is a unit, the first comes on top, one is on standby: 10 + 1 − 4.
    assert_eq!(least, 7);
    // World::check saw at each of these that no more than fallback.maxNodes were bought.
    assert!(world.ready(OnDemand) >= 5, "{:?}", world.plan().steps);
    // However bad it was, it ends: 6 hours of the window, one for each step, and the way back.
    pass(&mut world, 14 * 3600, 300);
    let plan = pass(&mut world, 3600, 60);
    assert_eq!(objective(&world).mode, ObjectiveMode::Normal);
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (10, 0), "{:?}", plan.steps);
    // What was missed stays in the budget.
    assert!(objective(&world).budget_left_percent < 100, "{:?}", objective(&world));
}

#[test]
fn caution_buys_ahead_and_for_no_other_reason() {
    let mut world = world();
    // Nothing is bought for what is lost within this time.
    world.spec.fallback.as_mut().unwrap().after = spotpool_crds::Duration::from_secs(3600);
    evict_all(&mut world);
    let mut reasons = Vec::new();
    for _ in 0..10 {
        world.pass(15);
        let plan = world.reconcile();
        let bought = plan.actions.iter().filter(|action| action.agent_pool() == Some("reg"));
        reasons.extend(bought.map(Action::reason));
    }
    assert_eq!(reasons, [Reason::Cautious]);
    assert_eq!(world.ready(OnDemand), 1);
}

#[test]
fn without_fallback_no_on_demand_is_bought_out_of_caution_and_that_is_said() {
    let mut world = world();
    world.spec.fallback = None;
    evict_all(&mut world);
    let plan = pass(&mut world, 600, 15);
    assert_eq!(objective(&world).mode, ObjectiveMode::Cautious);
    assert!(says(&plan, Reason::Cautious).contains("no on-demand, because spec.fallback is not set"));
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (11, 0));
}

#[test]
fn money_bounds_caution_as_any_fallback() {
    let mut world = world();
    for (pool, price) in [("spota", "0.05"), ("spotb", "0.05"), ("reg", "0.20")] {
        world.pool(pool).market.hourly_price = Some(price.parse().unwrap());
    }
    world.spec.fallback.as_mut().unwrap().hourly_budget = Some("0.50".into());
    for _ in 0..12 {
        evict_all(&mut world);
        pass(&mut world, 300, 15);
        assert!(world.pool("reg").machines.len() <= 2, "0.50 an hour is two nodes");
    }
    assert!(objective(&world).caution >= 4, "{:?}", objective(&world));
}

#[test]
fn while_cautious_a_person_may_have_on_demand_back_and_what_nobody_wants_goes() {
    let mut world = world();
    evict_all(&mut world);
    pass(&mut world, 1800, 60);
    assert_eq!((objective(&world).mode, world.ready(OnDemand)), (ObjectiveMode::Cautious, 6));
    world.wishes.requested_failback = Some("now".into());
    pass(&mut world, 600, 15);
    assert_eq!(world.ready(OnDemand), 1, "all but what caution asks for");
    world.spec.replicas = 0;
    pass(&mut world, 3600, 60);
    assert_eq!((world.ready(OnDemand), world.ready(Spot)), (0, 0), "{:?}", world.plan().steps);
}

#[test]
fn a_first_start_is_no_breach_and_growth_that_does_not_come_is_one() {
    let mut world = World::new(SPEC, &[Spot, Spot, OnDemand]);
    world.spec.fallback = None;
    world.reconcile();
    assert_eq!(objective(&world).availability, "", "nothing is known of what never was");
    pass(&mut world, 300, 30);
    assert_eq!((world.ready(Spot), objective(&world).measured.unit_seconds.missing), (10, 0));
    // 14 more, for which there is no room.
    world.spec.replicas = 30;
    for pool in ["spota", "spotb"] {
        world.pool(pool).max_nodes = 8;
    }
    pass(&mut world, 9 * 60, 60);
    assert_eq!((world.ready(Spot), objective(&world).measured.unit_seconds.missing), (16, 0));
    pass(&mut world, 3 * 60, 60);
    assert!(objective(&world).short_since.is_some(), "{:?}", objective(&world));
    pass(&mut world, 10 * 60, 60);
    assert_eq!(objective(&world).mode, ObjectiveMode::Cautious);
    assert_eq!(objective(&world).measured.wanted, 30);
}

#[test]
fn an_operator_that_is_away_forgets_nothing_and_invents_little() {
    let mut world = world();
    evict_all(&mut world);
    // It dies at once. Machines come all the same, and nobody sees them.
    world.pass(1800);
    world.reconcile();
    assert_eq!(objective(&world).measured.unit_seconds.missing, 10 * 1800, "what it saw last holds");
    pass(&mut world, 600, 30);
    let missing = objective(&world).measured.unit_seconds.missing;
    world.pass(100 * 86_400);
    world.reconcile();
    assert_eq!(objective(&world).measured.unit_seconds.missing, missing);
    // A clock that goes back takes nothing away and holds up nothing.
    world.now -= SignedDuration::from_hours(24 * 50);
    world.reconcile();
    assert_eq!(objective(&world).measured.unit_seconds.missing, missing);
}

#[test]
fn what_azure_cannot_give_at_all_is_counted_apart() {
    let course = |without: &[&str]| {
        let mut world = world();
        for pool in without {
            let now = world.now;
            let pool = world.pool(pool);
            pool.refused_at = Some(now);
            pool.avoided_until = Some(now + SignedDuration::from_hours(1));
        }
        // There is room on demand, and the limit keeps it from being bought: a choice.
        world.spec.fallback.as_mut().unwrap().max_nodes = 0;
        evict_all(&mut world);
        pass(&mut world, 1800, 60);
        let sums = objective(&world).measured.unit_seconds;
        (sums.missing, sums.outage, objective(&world).mode)
    };
    // Nothing anywhere, on-demand included: nobody could do better.
    assert_eq!(course(&["spota", "spotb", "reg"]), (0, 18_000, ObjectiveMode::Normal));
    assert_eq!(course(&["spota", "spotb"]), (18_000, 0, ObjectiveMode::Cautious));
}

#[test]
fn status_is_written_when_something_changed_and_seldom_otherwise() {
    let writes = |seconds: i64, step: i64, world: &mut World| {
        let mut writes = 0;
        for _ in 0..seconds / step {
            let before = world.memory.objective.clone();
            world.pass(step);
            world.reconcile();
            writes += u32::from(before != world.memory.objective);
        }
        writes
    };
    let mut world = world();
    let quiet = writes(86_400, 300, &mut world);
    assert!(quiet <= 5, "{quiet} writes in a day on which nothing happened");
    evict_all(&mut world);
    pass(&mut world, 300, 15);
    let burning = writes(3600, 15, &mut world);
    assert!(burning <= 14, "{burning} writes in an hour: figures move every 5 minutes");
}

#[derive(Clone, Debug)]
enum Happens {
    Notice {
        pool: usize,
        many: usize,
        seconds: i64,
    },
    Refused(usize),
    Resize(i32),
    /// Some minutes, during which the operator may be away.
    Pass(i64, bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0usize..2, 1usize..12, 0i64..40).prop_map(|(pool, many, seconds)| Happens::Notice { pool, many, seconds }),
        1 => (0usize..3).prop_map(Happens::Refused),
        1 => (0i32..13).prop_map(Happens::Resize),
        5 => (1i64..2000, any::<bool>()).prop_map(|(seconds, away)| Happens::Pass(seconds, away)),
    ]
}

proptest! {
    /// Every limit holds at each step (`World::reconcile` asserts it), caution moves one step at a time, and once nothing
    /// burns any more the pool is what it would be without an objective.
    #[test]
    fn limits_hold_and_caution_ends(
        events in proptest::collection::vec(happens(), 1..40), most in 0i32..7, availability in 0usize..3,
        units in 1u32..4, standby in 0i32..2,
    ) {
        let mut world = World::new(SPEC, &[Spot, Spot, OnDemand]).with("spota", 5, 0).with("spotb", 5, 0);
        world.spec.fallback.as_mut().unwrap().max_nodes = most;
        world.spec.standby.units = standby;
        world.spec.objective.as_mut().unwrap().availability = ["90", "99.5", "99.99"][availability].into();
        world.pool("reg").units = units;
        world.reconcile();
        let mut steps = 0;
        for event in events {
            match event {
                Happens::Notice { pool, many, seconds } => {
                    let name = world.pools[pool].name.clone();
                    world.notice(&name, many, seconds);
                }
                Happens::Refused(pool) => world.pools[pool].fate = Fate::Refused,
                Happens::Resize(replicas) => world.spec.replicas = replicas,
                Happens::Pass(seconds, true) => world.pass(seconds),
                Happens::Pass(seconds, false) => {
                    for _ in 0..seconds / 60 {
                        world.pass(60);
                        world.reconcile();
                        let now = objective(&world).caution;
                        prop_assert!(now.abs_diff(steps) <= 1);
                        steps = now;
                    }
                }
            }
            world.reconcile();
            steps = objective(&world).caution;
        }
        for pool in &mut world.pools {
            pool.fate = Fate::Good;
        }
        for _ in 0..20 * 12 {
            world.pass(300);
            world.reconcile();
        }
        let plan = world.reconcile();
        prop_assert!(plan.actions.is_empty(), "{:?}", plan.actions);
        prop_assert_eq!(objective(&world).mode, ObjectiveMode::Normal);
        let wanted = (world.spec.replicas + standby) as u32;
        prop_assert_eq!((world.ready(Spot), world.ready(OnDemand)), (wanted, 0), "{:?}", plan.steps);
    }
}
