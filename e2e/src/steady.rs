//! Clusters in which nothing happens, for hours of simulated time: what they ask of Azure meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Identity, PoolSpec, Settings};
use spotpool_azure_sim::model::{Cloud, Subscription};

use crate::simulation::Simulation;

const SIZE: &str = "Standard_D4s_v5";
const STEP: Duration = Duration::from_secs(30);
/// From one cluster's start to the next.
const APART: Duration = Duration::from_secs(30);
/// Until everything has been listed once: the operator does not use up the bucket for it.
const START: Duration = Duration::from_mins(15);

/// What to watch.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// Agent pools of each cluster, every second one spot, a machine in each.
    pub agent_pools: usize,
    /// For how long, after all have started.
    pub hours: u32,
    /// Clusters of the one subscription.
    pub clusters: usize,
    /// For how long no request is answered, before the hours that count.
    pub outage: Duration,
}

impl Default for Steady {
    fn default() -> Self {
        Self { agent_pools: 100, hours: 24, clusters: 1, outage: Duration::ZERO }
    }
}

/// What was asked of ARM.
#[derive(Clone, Debug)]
pub struct Asked {
    hours: f64,
    /// By kind.
    pub requests: BTreeMap<String, u64>,
    /// PUTs and deletions.
    pub writes: usize,
    /// Requests for which the subscription's shared bucket had nothing left, since the beginning.
    pub overrun: u64,
    /// The fewest requests that were ever left in it.
    pub lowest: u32,
}

impl Asked {
    /// All GETs of all clusters together.
    pub fn reads_an_hour(&self) -> f64 {
        let reads = self.requests.iter().filter(|(kind, _)| kind.starts_with("GET")).map(|(_, count)| count);
        reads.sum::<u64>() as f64 / self.hours
    }
}

/// A SpotPool's spec for the agent pools of [`cloud`].
pub fn spec(agent_pools: usize) -> Value {
    let pools: Vec<Value> =
        (0..agent_pools).map(|index| json!({"name": name(index), "maxNodes": 5})).collect();
    json!({"replicas": agent_pools, "agentPools": pools, "fallback": {"maxNodes": 5}})
}

fn name(index: usize) -> String {
    format!("pool{index}")
}

/// A cluster of so many agent pools, whose limits on requests count.
pub fn cloud(
    cluster: &str,
    agent_pools: usize,
    subscription: &Subscription,
    start: Timestamp,
) -> Result<Cloud> {
    let identity = Identity::new(&Identity::default().subscription, "spotpool-rg", cluster, "eastus");
    let mut settings = Settings::default();
    settings.switches = settings.switches.with(&json!({"throttling": true})).map_err(anyhow::Error::msg)?;
    let mut cloud = Cloud::new(identity, settings, false, 1).in_subscription(subscription.clone());
    for index in 0..agent_pools {
        let pool = if index % 2 == 0 { PoolSpec::spot } else { PoolSpec::regular };
        cloud.add_pool(&pool(&name(index), SIZE, 1), start)?;
    }
    Ok(cloud)
}

/// Lets the hours pass. To be called on a paused tokio runtime of one thread.
pub async fn run(steady: Steady) -> Result<Asked> {
    let start: Timestamp = "2026-08-01T00:00:00Z".parse()?;
    let subscription = Subscription::default();
    let mut clusters = Vec::new();
    let began = tokio::time::Instant::now();
    for index in 0..steady.clusters {
        // One subscription has one time.
        let start = start + SignedDuration::try_from(began.elapsed())?;
        let cloud = cloud(&format!("cluster-{index}"), steady.agent_pools, &subscription, start)?;
        clusters.push(Simulation::start(cloud, &spec(steady.agent_pools), start, index as u64)?);
        // Nobody installs forty operators in one second.
        pass(&mut clusters, APART).await?;
    }
    pass(&mut clusters, START).await?;
    if !steady.outage.is_zero() {
        for cluster in &clusters {
            cluster.refuse_everything(Some(503));
        }
        pass(&mut clusters, steady.outage).await?;
        for cluster in &clusters {
            cluster.refuse_everything(None);
        }
        pass(&mut clusters, START).await?;
    }
    let before: Vec<BTreeMap<String, u64>> =
        clusters.iter().map(|cluster| cluster.cloud().arm_requests).collect();
    pass(&mut clusters, Duration::from_hours(u64::from(steady.hours))).await?;

    let mut asked = Asked {
        hours: f64::from(steady.hours),
        requests: BTreeMap::new(),
        writes: 0,
        overrun: 0,
        lowest: u32::MAX,
    };
    for (cluster, before) in clusters.iter().zip(before) {
        let state = cluster.cloud();
        for (kind, count) in state.arm_requests {
            *asked.requests.entry(kind.clone()).or_default() +=
                count - before.get(&kind).copied().unwrap_or(0);
        }
        asked.writes += state.arm_writes.len();
        for bucket in state.buckets.iter().filter(|bucket| bucket.name == "shared") {
            asked.overrun = asked.overrun.max(bucket.exceeded);
            asked.lowest = asked.lowest.min(bucket.lowest);
        }
        let status = cluster.pool.status.clone().unwrap_or_default();
        ensure!(status.ready_replicas as usize == steady.agent_pools, "not steady: {:?}", status.plan);
    }
    Ok(asked)
}

async fn pass(clusters: &mut [Simulation], time: Duration) -> Result<()> {
    for _ in 0..time.as_secs() / STEP.as_secs() {
        tokio::time::sleep(STEP).await;
        for cluster in &mut *clusters {
            cluster.step(Duration::ZERO).await?;
        }
    }
    Ok(())
}
