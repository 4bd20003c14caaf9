//! What holds whatever happens: random evictions, resizes and waits against the model of AKS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use proptest::prelude::*;
use spotpool_core::plan;
use spotpool_crds::Duration;
use spotpool_crds::spot_pool::AfterLoss;
use spotpool_crds::spot_pool::Role::{OnDemand, Spot};
use world::{World, carries_just};

const SPEC: &str = "
replicas: 5
agentPools: [{name: spota, maxNodes: 6}, {name: spotb, maxNodes: 5}, {name: rega, maxNodes: 2}, {name: regb, maxNodes: 4}]
fallback: {maxNodes: 4, growthAfter: 2m}
failback: {stabilization: 3m, minOnDemandLifetime: 5m, maxConcurrent: 2}
";

#[derive(Clone, Debug)]
enum Happens {
    Notice { pool: usize, many: usize, seconds: i64 },
    Pending { pool: usize, many: u32 },
    Resize(i32),
    Pass(i64),
}

impl Happens {
    fn happen(self, world: &mut World) {
        match self {
            Self::Notice { pool, many, seconds } => {
                let name = world.pools[pool].name.clone();
                world.notice(&name, many, seconds);
            }
            Self::Pending { pool, many } => {
                let name = world.pools[pool].name.clone();
                world.pending(&name, many);
            }
            Self::Resize(replicas) => world.spec.replicas = replicas,
            Self::Pass(seconds) => world.pass(seconds),
        }
    }
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0usize..2, 1usize..6, 0i64..40).prop_map(|(pool, many, seconds)| Happens::Notice { pool, many, seconds }),
        1 => (0usize..4, 1u32..4).prop_map(|(pool, many)| Happens::Pending { pool, many }),
        1 => (0i32..9).prop_map(Happens::Resize),
        4 => (1i64..400).prop_map(Happens::Pass),
    ]
}

proptest! {
    /// `World::reconcile` asserts at each step: no pool above maxNodes, no fallback above its limit, busy
    /// pools not written, only drained machines deleted, and that a plan carried out leaves nothing to do.
    #[test]
    fn limits_hold_and_the_pool_recovers(
        events in proptest::collection::vec(happens(), 1..40), follows: bool, baseline in 0i32..4, standby in 0i32..3, percent in 0i32..50,
        units in prop_oneof![Just([1; 4]), prop::array::uniform4(1u32..6)], prices in prop::array::uniform4(0u32..4),
        minimums in prop_oneof![Just([None; 3]), prop::array::uniform3(prop::option::of(0u32..3))],
    ) {
        let mut world = World::new(SPEC, &[Spot, Spot, OnDemand, OnDemand]).with("rega", 1, 1);
        for (name, min) in ["spota", "spotb", "regb"].into_iter().zip(minimums) {
            if let Some(min) = min {
                world = world.with(name, min, 0).autoscaled(name, min, 10);
            }
        }
        for ((pool, units), price) in world.pools.iter_mut().zip(units).zip(prices) {
            pool.units = units;
            // 0 stands for a price that is not known.
            pool.market.hourly_price = (price > 0).then_some(price.into());
        }
        world.count_follows_evictions = follows;
        world.spec.on_demand.baseline = baseline;
        world.spec.standby.units = standby;
        world.spec.standby.after_loss = AfterLoss { percent, lasts: Duration::from_secs(1800) };
        world.reconcile();
        for event in events {
            event.happen(&mut world);
            world.reconcile();
            prop_assert!(world.pools[2].machines.iter().any(|machine| machine.name == "rega-000000"));
        }
        // Nothing more happens: spot carries all, fallback is gone, and nothing is left to do.
        for _ in 0..200 {
            world.pass(60);
            world.reconcile();
        }
        let base = (baseline as u32).max(units[2] + world.pools[3].kept() * units[3]);
        let wanted = world.spec.replicas.max(baseline) as u32;
        carries_just(&world, Spot, wanted.saturating_sub(base) + standby as u32).map_err(TestCaseError::fail)?;
        carries_just(&world, OnDemand, base).map_err(TestCaseError::fail)?;
        for pool in &world.pools {
            prop_assert_eq!(pool.count, pool.machines.len() as u32, "Azure's count of {} stays stale", &pool.name);
        }
        let plan = world.reconcile();
        prop_assert!(plan.actions.is_empty());
        prop_assert_eq!(plan.wake, None);
    }

    #[test]
    fn order_of_inputs_is_irrelevant(events in proptest::collection::vec(happens(), 1..10), seed: u64) {
        let mut world = World::new(SPEC, &[Spot, Spot, OnDemand, OnDemand]);
        for event in events {
            event.happen(&mut world);
            let snapshot = world.snapshot();
            let mut shuffled = snapshot.clone();
            for pool in &mut shuffled.agent_pools {
                let length = pool.nodes.len().max(1);
                pool.nodes.rotate_left((seed % length as u64) as usize);
                pool.nodes.reverse();
                pool.machines.reverse();
            }
            prop_assert_eq!(plan(&world.spec, &snapshot, world.now), plan(&world.spec, &shuffled, world.now));
            world.reconcile();
        }
    }
}
