//! Courses of events, each run once undisturbed as the reference, and then with a fault.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Capacity, EventRequest, Identity, PoolSpec, Priority, Settings, Targets};
use spotpool_azure_sim::model::Cloud;
use spotpool_azure_sim::scenario::{Action, UpgradePool};
use strum::{Display, EnumIter, EnumString};

use super::simulated::Cluster;

/// Spot machines that are wanted.
pub const WANTED: u32 = 4;
/// On-demand machines that may stand in for them.
pub const FALLBACK: u32 = 3;
/// Agent pools of the SpotPool: name, size, `maxNodes`.
pub const POOLS: [(&str, &str, u32); 3] =
    [("spota", "Standard_D8s_v5", 6), ("spotb", "Standard_D8as_v5", 6), ("rega", "Standard_D8s_v5", 5)];
/// One that is none of its business.
pub const FOREIGN: &str = "foreign";
const NOTICE: Duration = Duration::from_secs(30);
/// Minutes after the course has begun.
const REHEARSED_AT: &str = "10 0 * * *";

/// What happens.
#[derive(Clone, Copy, Debug, Display, EnumIter, EnumString, PartialEq, Eq, PartialOrd, Ord)]
#[strum(serialize_all = "kebab-case")]
pub enum Course {
    /// One node gets a notice; spot and on-demand come, on-demand goes again.
    Eviction,
    /// All nodes of an agent pool get one at the same moment.
    MassEviction,
    /// Two nodes get one while there is no spot to be had: on-demand stays in their stead.
    Fallback,
    /// Spot is to be had again: on-demand is drained and given back.
    Failback,
    /// AKS upgrades an agent pool's node image, machine by machine.
    Upgrade,
    /// Azure evicts a node because a drill asks it to.
    Drill,
    /// A drill closes a node, has it drained and opens it again, when its schedule says so.
    Rehearsal,
}

impl Course {
    /// What is there before anything happens.
    pub fn cloud(self) -> Result<Cloud> {
        let settings = Settings::with_boot_time(Duration::from_secs(20));
        let mut cloud = Cloud::new(Identity::default(), settings, false, 7);
        let start = super::simulated::START.parse()?;
        cloud.add_pool(&PoolSpec::spot(POOLS[0].0, POOLS[0].1, 3), start)?;
        cloud.add_pool(&PoolSpec::spot(POOLS[1].0, POOLS[1].1, 1), start)?;
        cloud.add_pool(&PoolSpec::regular(POOLS[2].0, POOLS[2].1, 0), start)?;
        cloud.add_pool(&PoolSpec::spot(FOREIGN, POOLS[0].1, 1), start)?;
        Ok(cloud)
    }

    /// The SpotPool's spec.
    pub fn spec(self) -> Value {
        let pools: Vec<Value> =
            POOLS.iter().map(|(name, _, most)| json!({"name": name, "maxNodes": most})).collect();
        json!({
            "replicas": WANTED,
            "agentPools": pools,
            "fallback": {"maxNodes": FALLBACK, "growthAfter": "2m"},
            "failback": {"stabilization": "30s", "minOnDemandLifetime": "30s"},
            "standby": {"afterLoss": {"percent": 0}},
        })
    }

    /// The spec of the course's EvictionDrill, if it is about one.
    pub fn drill(self) -> Option<Value> {
        let mut spec = json!({
            "target": {"spotPool": "workers"}, "amount": {"count": 1}, "limits": {"maxNodes": 1, "minReadyUnits": WANTED - 1},
        });
        match self {
            Self::Drill => spec["method"] = "SimulateEviction".into(),
            Self::Rehearsal => spec["schedule"] = json!({"cron": REHEARSED_AT}),
            _ => return None,
        }
        Some(spec)
    }

    /// Brings about what comes before the course.
    pub async fn prepare(self, cluster: &mut Cluster) -> Result<()> {
        cluster.settle(Wanted { spot: WANTED, on_demand: 0 }).await?;
        if self == Self::Failback {
            lose_two(cluster);
            cluster.settle(self.before()).await?;
        }
        Ok(())
    }

    fn before(self) -> Wanted {
        match self {
            Self::Failback => Self::Fallback.end(),
            _ => Wanted { spot: WANTED, on_demand: 0 },
        }
    }

    /// Lets it begin.
    pub fn begin(self, cluster: &Cluster) {
        match self {
            Self::Eviction => evict(cluster, 1),
            Self::MassEviction => evict(cluster, 3),
            Self::Fallback => lose_two(cluster),
            Self::Failback => spot_is_there(cluster, None),
            Self::Upgrade => cluster.sim.change(|cloud, now| {
                let upgrade = UpgradePool { pool: POOLS[0].0.into(), kubernetes: None };
                // It is there and idle.
                drop(cloud.act(Action::Upgrade(upgrade), now));
            }),
            // Their drills begin by themselves.
            Self::Drill | Self::Rehearsal => {}
        }
    }

    /// How it ends.
    pub fn end(self) -> Wanted {
        match self {
            Self::Fallback => Wanted { spot: WANTED - 2, on_demand: 2 },
            _ => Wanted { spot: WANTED, on_demand: 0 },
        }
    }

    /// Whether nothing more is written once it has ended. Spot that is not to be had is asked for again and again.
    pub fn ends_quietly(self) -> bool {
        self != Self::Fallback
    }
}

/// How many machines run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Spot.
    pub spot: u32,
    /// On-demand.
    pub on_demand: u32,
}

fn evict(cluster: &Cluster, many: u32) {
    cluster.sim.change(|cloud, now| {
        // So many are there.
        drop(cloud.schedule(&EventRequest::new("Preempt", Targets::of_pool(POOLS[0].0, many), NOTICE), now));
    });
}

fn spot_is_there(cluster: &Cluster, most: Option<u32>) {
    cluster.sim.change(|cloud, _| {
        for (_, size, _) in &POOLS[..2] {
            cloud.set_capacity(Capacity::of(size, Priority::Spot, most));
        }
    });
}

fn lose_two(cluster: &Cluster) {
    spot_is_there(cluster, Some(0));
    evict(cluster, 2);
}
