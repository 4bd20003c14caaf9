//! Spare spot after a loss: there in case Azure takes more, never paid for on demand, and gone when its time is over.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use jiff::SignedDuration;
use proptest::prelude::*;
use spotpool_core::{Action, Plan, Snapshot, plan};
use spotpool_crds::spot_pool::AfterLoss;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use spotpool_crds::voluntary_drain::DrainReason;
use spotpool_crds::{Duration, Reason, SpotPoolSpec};
use world::{BOOT, World, asked_to_drain, says};

const SPEC: &str = "
replicas: 10
agentPools: [{name: spota, maxNodes: 12}, {name: spotb, maxNodes: 12}, {name: reg, maxNodes: 10}]
fallback: {maxNodes: 10}
failback: {stabilization: 3m, probe: 0s}
standby: {afterLoss: {percent: 20, for: 3h}}
";

fn world() -> World {
    World::new(SPEC, &[Spot, Spot, OnDemand]).with("spota", 5, 0).with("spotb", 5, 0)
}

fn machines(world: &World, role: spotpool_crds::spot_pool::Role) -> usize {
    let of_role = world.pools.iter().filter(|pool| pool.role == role);
    of_role.map(|pool| pool.machines.iter().filter(|machine| machine.noticed_at.is_none()).count()).sum()
}

/// Too little, and the next loss is felt as if there were none; too much, and a large pool pays for each single loss.
#[test]
fn as_much_is_kept_as_was_lost_at_most_the_share_and_standby_counts_towards_it() {
    for (what, replicas, percent, lost, standby, baseline, wanted) in [
        ("nothing was lost", 10, 20, 0, 0, 0, 10),
        ("as much as was lost", 10, 20, 1, 0, 0, 11),
        ("no more than the share", 10, 20, 4, 0, 0, 12),
        ("a share of 15 percent of ten is two", 10, 15, 4, 0, 0, 12),
        ("of three it is one", 3, 15, 2, 0, 0, 4),
        ("of nothing it is nothing", 0, 15, 2, 0, 0, 0),
        ("none", 10, 0, 4, 0, 0, 10),
        ("standby is enough", 10, 20, 2, 2, 0, 12),
        ("standby counts towards it", 10, 20, 2, 1, 0, 12),
        ("more standby stays as it is", 10, 20, 2, 3, 0, 13),
        ("of what should be on spot alone", 10, 20, 4, 0, 5, 6),
        ("nothing should be on spot", 10, 20, 4, 0, 10, 0),
    ] {
        let mut world = world().with("reg", baseline, 0);
        world.spec.replicas = replicas;
        world.spec.standby.units = standby;
        world.spec.standby.after_loss.percent = percent;
        world.spec.on_demand.baseline = baseline as i32;
        world.notice("spota", lost, 30);
        for _ in 0..60 {
            world.reconcile();
            world.pass(60);
        }
        assert_eq!(machines(&world, Spot), wanted, "{what}");
        assert_eq!(machines(&world, OnDemand), baseline as usize, "{what}");
    }
}

/// Whoever sees a node that nobody asked for by number must find out why it is there, and until when.
#[test]
fn it_is_asked_for_with_the_replacement_and_given_back_like_any_spot_node_when_its_time_is_over() {
    let mut world = world();
    assert!(world.reconcile().actions.is_empty());
    let lost_at = world.now;
    world.notice("spota", 1, 30);
    let plan = world.reconcile();
    let asked: u32 = plan.actions.iter().map(new_of(Spot)).sum();
    assert_eq!(asked, 2, "{:?}", plan.actions);
    let told = "1 units of spot more are kept until 2026-01-01T03:00:00Z at most";
    assert!(says(&plan, Reason::StandbyAfterLoss).starts_with(told), "{:?}", plan.steps);
    world.pass(BOOT);
    world.reconcile();
    while world.now < lost_at + SignedDuration::from_mins(179) {
        world.pass(60);
        let plan = world.reconcile();
        let of_spot = asked_to_drain(&plan).into_iter().filter(|node| node.starts_with("spot")).count();
        assert_eq!(of_spot, 0, "given back before its time at {}", world.now);
    }
    assert_eq!((machines(&world, Spot), machines(&world, OnDemand)), (11, 0));
    // The plan asks to be looked at again when that ends: nothing else happens in a pool that is left in peace.
    let plan = world.plan();
    assert_eq!((plan.capacity.wanted, plan.capacity.ready_spot, plan.spot_target), (10, 11, 10));
    assert_eq!(plan.steps[0].reason, Reason::AsWanted);
    assert_eq!(plan.wake, Some(lost_at + SignedDuration::from_hours(3)));
    world.pass(60);
    let plan = world.reconcile();
    assert!(says(&plan, Reason::Stabilizing).contains("1 more than needed"), "{:?}", plan.steps);
    world.pass(180);
    let plan = world.reconcile();
    assert!(
        matches!(&plan.actions[..], [Action::RequestDrain { reason: DrainReason::ScaleDown, .. }]),
        "{:?}",
        plan.actions
    );
    for _ in 0..5 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!(machines(&world, Spot), 10);
    assert!(world.plan().steps.iter().all(|step| step.reason != Reason::StandbyAfterLoss));
}

/// Each loss counts on: an agent pool that loses a node an hour has spare all day.
#[test]
fn another_loss_keeps_it_for_longer() {
    let mut world = world();
    world.reconcile();
    for _ in 0..4 {
        world.notice("spota", 1, 30);
        world.reconcile();
        for _ in 0..120 {
            world.pass(60);
            world.reconcile();
        }
        assert!((11..=12).contains(&machines(&world, Spot)), "{}", machines(&world, Spot));
    }
}

/// Else where Azure has just enough spot, on-demand would stand there for hours for the sake of spare that nobody can give.
#[test]
fn what_nobody_can_give_is_neither_missed_nor_bought_and_holds_no_failback_up() {
    let mut world = world();
    for name in ["spota", "spotb"] {
        world.pool(name).max_nodes = 5;
    }
    world.reconcile();
    world.notice("spota", 2, 30);
    for _ in 0..20 {
        world.reconcile();
        world.pass(60);
    }
    assert_eq!((machines(&world, Spot), machines(&world, OnDemand)), (10, 0));
    let plan = world.reconcile();
    assert_eq!((plan.steps[0].reason, plan.steps[0].message.as_str()), (Reason::AsWanted, "10 of 10 ready"));
    let told = says(&plan, Reason::StandbyAfterLoss);
    assert!(told.contains("2 of them no spot agent pool can take now"), "{told}");
    assert!(plan.steps.iter().all(|step| step.reason != Reason::NoCandidateWithRoom), "{:?}", plan.steps);
}

/// An operator that starts anew has nothing but status.
#[test]
fn a_restart_forgets_nothing() {
    let mut world = world();
    world.reconcile();
    world.notice("spota", 2, 30);
    world.reconcile();
    world.pass(3600);
    world.reconcile();
    world.memory = spotpool_core::Memory::default();
    let plan = world.reconcile();
    assert!(asked_to_drain(&plan).iter().all(|node| !node.starts_with("spot")), "{:?}", plan.actions);
    assert!(says(&plan, Reason::StandbyAfterLoss).starts_with("2 units"));
}

fn new_of(role: spotpool_crds::spot_pool::Role) -> impl Fn(&Action) -> u32 {
    move |action| match action {
        Action::ScaleUp { agent_pool, new, .. } if (agent_pool == "reg") == (role == OnDemand) => *new,
        _ => 0,
    }
}

/// Units of on-demand that the plan asks for, and nodes on demand that it gives back.
fn on_demand(plan: &Plan) -> (u32, usize) {
    let drained = asked_to_drain(plan).into_iter().filter(|node| node.starts_with("reg")).count();
    (plan.actions.iter().map(new_of(OnDemand)).sum(), drained)
}

/// The same without any spare after a loss.
fn without(spec: &SpotPoolSpec, snapshot: &Snapshot, now: jiff::Timestamp) -> Plan {
    let mut spec = spec.clone();
    spec.standby.after_loss.percent = 0;
    plan(&spec, snapshot, now)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// `World::reconcile` asserts besides that no agent pool passes maxNodes and that a plan carried out leaves nothing to do.
    #[test]
    fn spot_never_passes_the_share_and_no_on_demand_is_bought_or_kept_for_it(
        events in proptest::collection::vec((0usize..3, 1usize..6, 0i64..40, 1i64..2000), 1..25),
        replicas in 0i32..12, percent in 0i32..=100, most in 3u32..12, fallback in 0i32..8,
    ) {
        let mut world = world();
        world.spec.replicas = replicas;
        world.spec.standby.after_loss = AfterLoss { percent, lasts: Duration::from_secs(1800) };
        world.spec.fallback.as_mut().unwrap().max_nodes = fallback;
        world.pool("spotb").max_nodes = most.max(5);
        let share = (replicas * percent + 99) / 100;
        for (pool, many, seconds, pass) in events {
            let name = ["spota", "spotb", "reg"][pool];
            if name != "reg" {
                world.notice(name, many, seconds);
            }
            let (snapshot, now) = (world.snapshot(), world.now);
            let (with, without) = (plan(&world.spec, &snapshot, now), without(&world.spec, &snapshot, now));
            let ((bought, returned), (bought_without, returned_without)) = (on_demand(&with), on_demand(&without));
            prop_assert!(bought <= bought_without, "{bought} bought, {bought_without} without");
            prop_assert!(returned >= returned_without, "{returned} returned, {returned_without} without");
            let before = machines(&world, Spot);
            let plan = world.reconcile();
            if plan.actions.iter().map(new_of(Spot)).sum::<u32>() > 0 {
                // One that Azure is deleting is there until then, and nobody counts on it.
                let of_spot = world.pools.iter().filter(|pool| pool.role == Spot).flat_map(|pool| &pool.machines);
                let there = of_spot.filter(|it| it.noticed_at.is_none() && it.drain.is_none()).count();
                prop_assert!(there <= (replicas + share) as usize, "{there} of {replicas} from {before}");
            }
            world.pass(pass);
        }
        // Its time, and what it takes to give them back one by one.
        for _ in 0..100 {
            world.pass(60);
            world.reconcile();
        }
        prop_assert_eq!((machines(&world, Spot), machines(&world, OnDemand)), (replicas as usize, 0));
        prop_assert_eq!(world.plan().wake, None);
    }
}
