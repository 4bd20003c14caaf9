//! Signs that come before a notice: what they change, and what they never do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use proptest::prelude::*;
use spotpool_core::signals::{Band, PriceRise};
use spotpool_core::{Action, Plan, Snapshot, plan};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::EarlySignals;
use spotpool_crds::spot_pool::Role::{self, OnDemand, Spot};
use world::{World, carries_just};

const SPEC: &str = "
replicas: 4
agentPools: [{name: spota, maxNodes: 8}, {name: spotb, maxNodes: 8}, {name: rega, maxNodes: 8}]
placement: {strategy: LowestPrice, maxSharePerPool: 100, earlySignals: {preRaise: 1}}
fallback: {maxNodes: 6}
failback: {stabilization: 3m, minOnDemandLifetime: 5m, probe: 0s}
";

/// Four nodes in spota, ready for hours.
fn four() -> World {
    let mut world = World::new(SPEC, &[Spot, Spot, OnDemand]).with("spota", 4, 0);
    for (name, price) in [("spota", 3), ("spotb", 4), ("rega", 20)] {
        world.pool(name).market.hourly_price = Some(price.into());
    }
    assert!(world.reconcile().actions.is_empty());
    world
}

fn asked(plan: &Plan) -> Vec<(&str, u32, Reason)> {
    let asked = plan.actions.iter().filter_map(|action| match action {
        Action::ScaleUp { agent_pool, new, reason, .. } => Some((agent_pool.as_str(), *new, *reason)),
        _ => None,
    });
    asked.collect()
}

fn says(plan: &Plan, reason: Reason) -> Vec<&str> {
    plan.steps.iter().filter(|step| step.reason == reason).map(|step| step.message.as_str()).collect()
}

#[test]
fn a_node_that_azure_advises_to_leave_is_replaced_ahead_by_spot_elsewhere_while_that_lasts() {
    let mut world = four();
    world.advised.extend(["spota-000000".into(), "spota-000001".into()]);
    // Two are advised, one is allowed.
    let plan = world.reconcile();
    assert_eq!(asked(&plan), [("spotb", 1, Reason::ReplaceAhead)]);
    let dearer = "spota counts as dearer: 2 of 4 nodes advised to move";
    assert_eq!(says(&plan, Reason::EarlySignal), [dearer]);
    assert!(
        says(&plan, Reason::ReplaceAhead).iter().any(|it| it.starts_with("1 units of spot more")),
        "{:?}",
        plan.steps
    );
    world.pass(100);
    assert!(world.reconcile().actions.is_empty());
    assert_eq!(world.ready(Spot), 5);
    // While it lasts, it stays.
    world.pass(3600);
    assert!(world.reconcile().actions.is_empty());

    // It was right: nothing is lost, nothing is bought, and what is advised still is covered.
    world.notice("spota", 1, 30);
    let plan = world.reconcile();
    assert_eq!(asked(&plan), [("spotb", 1, Reason::ReplaceAhead)], "{:?}", plan.steps);
    assert!(plan.memory.lost_since.is_none());
    world.pass(100);
    world.reconcile();
    assert_eq!((world.ready(Spot), world.ready(OnDemand)), (5, 0));

    // It is taken back: what came ahead goes the way of everything that is too much.
    world.advised.clear();
    let plan = world.reconcile();
    assert!(plan.actions.is_empty() && !says(&plan, Reason::Stabilizing).is_empty(), "{:?}", plan.steps);
    for _ in 0..20 {
        world.pass(60);
        world.reconcile();
    }
    assert_eq!(units(&world, Spot), 4);
    assert_eq!(world.launches.get("rega"), None);
}

#[test]
fn nothing_is_asked_ahead_where_it_would_cost_more_than_was_allowed_or_go_the_same_way() {
    type Change = fn(&mut World);
    let cases: [(&str, Change, bool); 7] = [
        ("nothing is different", |_| {}, true),
        ("it is off", |world| world.spec.placement.early_signals = None, false),
        (
            "no unit is allowed",
            |world| world.spec.placement.early_signals = Some(EarlySignals::default()),
            false,
        ),
        ("the others are advised, too", |world| world.advised.extend(["spotb-000000".into()]), false),
        ("the others are full", |world| world.pool("spotb").max_nodes = 1, false),
        ("one node elsewhere is worth more than is allowed", |world| world.pool("spotb").units = 4, false),
        ("an operation runs elsewhere", |world| world.pool("spotb").is_taken = true, false),
    ];
    for (what, change, is_asked) in cases {
        let mut world = four().with("spotb", 1, 0);
        world.spec.replicas = 5;
        world.advised.insert("spota-000000".into());
        change(&mut world);
        if world.pool("spotb").units == 4 {
            world.spec.replicas = 8;
        }
        let plan = world.plan();
        let wanted: &[_] = if is_asked { &[("spotb", 1, Reason::ReplaceAhead)] } else { &[] };
        assert_eq!(asked(&plan), wanted, "{what}: {:?}", plan.steps);
    }
}

/// With `earlySignals` and without: the same snapshot.
fn ranked(world: &World, snapshot: &Snapshot) -> [Plan; 2] {
    let mut off = world.spec.clone();
    off.placement.early_signals = None;
    [plan(&world.spec, snapshot, world.now), plan(&off, snapshot, world.now)]
}

#[test]
fn a_price_that_rose_or_a_band_that_became_worse_moves_the_next_node_elsewhere() {
    let mut world = four();
    world.spec.replicas = 5;
    let first = |snapshot: &Snapshot| ranked(&world, snapshot).map(|plan| asked(&plan)[0].0.to_owned());
    let calm = world.snapshot();
    assert_eq!(first(&calm), ["spota", "spota"]);
    let since = world.now;
    let mut rose = calm.clone();
    let (from, to) = (2.into(), 3.into());
    rose.agent_pools[0].signals.price_rise = Some(PriceRise { from, to, since });
    assert_eq!(first(&rose), ["spotb", "spota"]);
    let why = &ranked(&world, &rose)[0].ranks[1];
    assert!(why.why.ends_with(", price rose from 2 to 3 at 2026-01-01T00:00:00Z"), "{}", why.why);
    let mut worse = calm;
    let (is, was) = ("5-10".to_owned(), Some("0-5".to_owned()));
    worse.agent_pools[0].signals.band = Some(Band { is, was, since, is_worse: true });
    // A quarter dearer is as dear as the other: with a little more, the other it is.
    worse.agent_pools[0].market.hourly_price = Some("3.3".parse().unwrap());
    assert_eq!(first(&worse), ["spotb", "spota"]);
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Advise { pool: usize, many: usize },
    Forget,
    Notice { pool: usize, many: usize, seconds: i64 },
    Resize(i32),
    Pass(i64),
}

fn happens(also_evictions: bool) -> impl Strategy<Value = Happens> {
    let hints = prop_oneof![
        3 => (0usize..2, 1usize..5).prop_map(|(pool, many)| Happens::Advise { pool, many }),
        1 => Just(Happens::Forget),
        4 => (1i64..900).prop_map(Happens::Pass),
    ];
    if !also_evictions {
        return hints.boxed();
    }
    let notice = (0usize..2, 1usize..5, 0i64..40);
    prop_oneof![
        8 => hints,
        2 => notice.prop_map(|(pool, many, seconds)| Happens::Notice { pool, many, seconds }),
        1 => (0i32..9).prop_map(Happens::Resize),
    ]
    .boxed()
}

fn happen(world: &mut World, what: Happens) {
    match what {
        Happens::Advise { pool, many } => {
            let names: Vec<_> =
                world.pools[pool].machines.iter().map(|machine| machine.name.clone()).collect();
            world.advised.extend(names.into_iter().rev().take(many));
        }
        Happens::Forget => world.advised.clear(),
        Happens::Notice { pool, many, seconds } => {
            let name = world.pools[pool].name.clone();
            world.notice(&name, many, seconds);
        }
        Happens::Resize(replicas) => world.spec.replicas = replicas,
        Happens::Pass(seconds) => world.pass(seconds),
    }
}

fn units(world: &World, role: Role) -> u32 {
    let pools = world.pools.iter().filter(|pool| pool.role == role);
    pools.map(|pool| pool.machines.len() as u32 * pool.units).sum()
}

const RANDOM: &str = "
replicas: 5
agentPools: [{name: spota, maxNodes: 9}, {name: spotb, maxNodes: 9}, {name: rega, maxNodes: 4}, {name: regb, maxNodes: 4}]
fallback: {maxNodes: 4, growthAfter: 2m}
failback: {stabilization: 3m, minOnDemandLifetime: 5m, maxConcurrent: 2}
";

fn random(units: [u32; 4], prices: [u32; 4], pre_raise: i32) -> World {
    let mut world = World::new(RANDOM, &[Spot, Spot, OnDemand, OnDemand]);
    for ((pool, units), price) in world.pools.iter_mut().zip(units).zip(prices) {
        pool.units = units;
        pool.market.hourly_price = (price > 0).then_some(price.into());
    }
    world.spec.placement.early_signals = Some(EarlySignals { pre_raise });
    world
}

fn settle(world: &mut World) {
    world.advised.clear();
    for _ in 0..200 {
        world.pass(60);
        world.reconcile();
    }
}

proptest! {
    /// Hints alone: no on-demand for them, ever, and no more spot than `preRaise` allows; once they are gone, so is all
    /// that came for them.
    #[test]
    fn hints_buy_no_on_demand_and_little_spot_and_leave_nothing_behind(
        events in prop::collection::vec(happens(false), 1..30), pre_raise in 0i32..5,
        units_of in prop_oneof![Just([1; 4]), prop::array::uniform4(1u32..6)], prices in prop::array::uniform4(0u32..4),
    ) {
        let mut world = random(units_of, prices, pre_raise);
        world.reconcile();
        settle(&mut world);
        let (before, bought) = (units(&world, Spot), world.launches.clone());
        for event in events {
            happen(&mut world, event);
            // In there: nothing above maxNodes, and a plan that is carried out leaves nothing to do.
            world.reconcile();
            let spot = units(&world, Spot);
            prop_assert!(spot <= before + pre_raise as u32, "{spot} units of spot, {before} before the first hint");
            for pool in ["rega", "regb"] {
                prop_assert_eq!(world.launches.get(pool), bought.get(pool), "{} bought for a hint", pool);
            }
        }
        settle(&mut world);
        carries_just(&world, Spot, 5).map_err(TestCaseError::fail)?;
        prop_assert!(world.reconcile().actions.is_empty());
    }

    /// With evictions and resizes in between, and agent pools that the cluster autoscaler has.
    #[test]
    fn limits_hold_with_hints_among_everything_else(
        events in prop::collection::vec(happens(true), 1..40), pre_raise in 0i32..5, follows: bool,
        units_of in prop_oneof![Just([1; 4]), prop::array::uniform4(1u32..6)], prices in prop::array::uniform4(0u32..4),
        minimum in prop::option::of(0u32..3),
    ) {
        let mut world = random(units_of, prices, pre_raise);
        if let Some(min) = minimum {
            world = world.with("spotb", min, 0).autoscaled("spotb", min, 10);
        }
        world.count_follows_evictions = follows;
        world.reconcile();
        for event in events {
            happen(&mut world, event);
            world.reconcile();
        }
        settle(&mut world);
        carries_just(&world, Spot, world.spec.replicas as u32).map_err(TestCaseError::fail)?;
        carries_just(&world, OnDemand, 0).map_err(TestCaseError::fail)?;
        let plan = world.reconcile();
        prop_assert!(plan.actions.is_empty());
        prop_assert_eq!(plan.wake, None);
    }

    /// A sign never makes an agent pool look better than it did.
    #[test]
    fn signs_make_agent_pools_dearer_and_never_cheaper(
        strategy in prop::sample::select(&["Balanced", "LowestPrice", "LowestEvictionRate"][..]),
        advised in 0usize..4, rise in 1u32..9, losses in 0u32..60, node_hours in 0u32..90, is_worse: bool,
    ) {
        let mut world = four();
        world.spec.placement.strategy = serde_yaml_ng::from_str(strategy).unwrap();
        world.advised.extend((0..advised).map(|index| format!("spota-{index:06}")));
        let mut snapshot = world.snapshot();
        let since = world.now;
        for pool in &mut snapshot.agent_pools {
            pool.signals.price_rise = Some(PriceRise { from: 4.into(), to: rise.into(), since });
            pool.signals.band = Some(Band { is: "b".into(), was: Some("a".into()), since, is_worse });
            let hours = world.hours.get(&pool.name).cloned();
            pool.signals.hours = hours.map(|mut hours| {
                hours.losses[0] = losses;
                hours.node_hours = [node_hours; 24];
                hours
            });
        }
        let [on, off] = ranked(&world, &snapshot);
        for rank in &on.ranks {
            let without = off.ranks.iter().find(|other| other.pool == rank.pool).unwrap();
            prop_assert!(rank.cost >= without.cost, "{rank:?} without: {without:?}");
            prop_assert!(rank.cost <= without.cost || !rank.signals.is_empty(), "{rank:?} says nothing");
        }
    }
}
