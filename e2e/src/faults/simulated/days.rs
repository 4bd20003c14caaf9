//! Days of a large SpotPool, in simulated time: evictions at random, waves, notices that are taken back, spot that is not
//! to be had, and operators that die. What adds up is counted before and after.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    Capacity, EventRequest, GoneReason, Identity, PoolSpec, Priority, Settings, Targets, VmPhase,
};
use spotpool_azure_sim::model::Cloud;
use spotpool_crds::names;
use tokio::time::Instant;

use super::{Cluster, FADES, LONGEST, START, TICK};
use crate::faults::courses::Wanted;
use crate::simulation::Dice;

/// Spot agent pools and their sizes.
const SPOT: [(&str, &str); 4] = [
    ("batcha", "Standard_D8s_v5"),
    ("batchb", "Standard_D8as_v5"),
    ("batchc", "Standard_D8ads_v5"),
    ("batchd", "Standard_D8ds_v5"),
];
const ON_DEMAND: (&str, &str) = ("regular", "Standard_D8s_v5");
/// A lone event, or a few.
const FEW: u64 = 4;
/// Trouble comes after at most so many minutes.
const MINUTES: u64 = 40;
/// Bytes with which a member of status may tell of what was lost and tried lately, however much that was.
const REMEMBERED: usize = 2048;
/// While nothing happens.
const CALM: Duration = Duration::from_secs(30);
/// After trouble every moment counts for so long.
const BUSY: Duration = Duration::from_mins(3);

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Days {
    /// Of the dice.
    pub seed: u64,
    /// Simulated time in which things happen.
    pub time: Duration,
    /// Spot nodes that are wanted.
    pub nodes: u32,
}

/// What is held while all is well. Names and times differ; how much it is does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Tasks of the runtime: all are the operator's but for a few that are always there.
    pub tasks: usize,
    /// Watches that the apiserver has open.
    pub watches: usize,
    /// Bytes of each member of the SpotPool's status.
    pub status: BTreeMap<String, usize>,
    /// Marks on Nodes by kind, cordons among them.
    pub marks: BTreeMap<String, usize>,
    /// Objects by resource, Events left out: the apiserver forgets them.
    pub objects: BTreeMap<&'static str, usize>,
}

/// What has happened.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// Machines that Azure took.
    pub taken: usize,
    /// Of them with no notice at all.
    pub unannounced: usize,
    /// Notices that were taken back.
    pub taken_back: usize,
    /// Times in which a size was not to be had.
    pub shortages: usize,
    /// Operators that were killed.
    pub operators_killed: usize,
    /// Machines ordered on spot and on demand.
    pub ordered: (usize, usize),
    /// The most on-demand machines at one time.
    pub most_on_demand: usize,
}

impl Held {
    /// What is more than it was `before`.
    pub fn grown_since(&self, before: &Self) -> Vec<String> {
        let mut grown = Vec::new();
        let mut compare = |what: String, before: usize, now: usize, room: usize| {
            if now > before + room {
                grown.push(format!("{what}: {before} before, {now} now"));
            }
        };
        compare("tasks".to_owned(), before.tasks, self.tasks, 0);
        compare("watches".to_owned(), before.watches, self.watches, 0);
        for (mark, nodes) in &self.marks {
            compare(mark.clone(), before.marks.get(mark).copied().unwrap_or_default(), *nodes, 0);
        }
        for (kind, objects) in &self.objects {
            compare((*kind).to_owned(), before.objects.get(kind).copied().unwrap_or_default(), *objects, 0);
        }
        for (member, bytes) in &self.status {
            compare(
                format!("status.{member}"),
                before.status.get(member).copied().unwrap_or_default(),
                *bytes,
                REMEMBERED,
            );
        }
        grown
    }
}

impl Days {
    fn limit(self) -> u32 {
        self.nodes / 2
    }

    fn fallback(self) -> u32 {
        (self.nodes / 10).max(1)
    }

    fn cloud(self) -> Result<Cloud> {
        let settings = Settings::with_boot_time(Duration::from_mins(1));
        let mut cloud = Cloud::new(Identity::default(), settings, false, self.seed);
        let start = START.parse()?;
        let pools = SPOT.len() as u32;
        for ((name, size), at) in SPOT.into_iter().zip(0..) {
            let count = self.nodes / pools + u32::from(at < self.nodes % pools);
            cloud.add_pool(&PoolSpec::spot(name, size, count), start)?;
        }
        cloud.add_pool(&PoolSpec::regular(ON_DEMAND.0, ON_DEMAND.1, 0), start)?;
        Ok(cloud)
    }

    fn spec(self) -> Value {
        let spot = SPOT.iter().map(|(name, _)| json!({"name": name, "maxNodes": self.limit()}));
        let on_demand = json!({"name": ON_DEMAND.0, "maxNodes": self.fallback()});
        json!({
            "replicas": self.nodes,
            "agentPools": spot.chain([on_demand]).collect::<Vec<_>>(),
            "fallback": {"maxNodes": self.fallback()},
            "failback": {"minOnDemandLifetime": "10m", "maxConcurrent": 4},
        })
    }

    fn whole(self) -> Wanted {
        Wanted { spot: self.nodes, on_demand: 0 }
    }
}

/// Lets them pass, on a paused runtime of one thread. What is held before and after, and what happened between.
pub async fn run(days: Days) -> Result<(Held, Held, Happened)> {
    let mut cluster = Cluster::of(days.cloud()?, &days.spec())?;
    let passed = cluster.days(days).await;
    passed.with_context(|| format!("{days:?}: {}", cluster.story()))
}

impl Cluster {
    async fn days(&mut self, days: Days) -> Result<(Held, Held, Happened)> {
        self.settle(days.whole()).await?;
        self.rest(FADES).await?;
        let before = self.held();
        let mut happened = Happened::default();
        let mut dice = Dice::new(days.seed);
        let mut short: BTreeMap<&str, Instant> = BTreeMap::new();
        let until = Instant::now() + days.time;
        while Instant::now() < until {
            self.trouble(&mut dice, &mut short, &mut happened).await?;
            let calm = Duration::from_secs(60 * dice.below(MINUTES));
            let (began, next) = (Instant::now(), Instant::now() + calm);
            while Instant::now() < next {
                self.tick(if began.elapsed() < BUSY { TICK } else { CALM }).await?;
                self.within_limits(days, &mut happened)?;
                self.have_again(&mut short, Instant::now());
            }
        }
        self.have_again(&mut short, Instant::now() + LONGEST * 100);
        self.settle(days.whole()).await.context("after all trouble")?;
        // What was lost is told for a while.
        self.rest(FADES * 4).await?;
        ensure!(self.is(days.whole()), "what was as wanted did not stay so");
        let reasons = self.state.vms.iter().filter_map(|vm| vm.gone_reason);
        let taken = reasons.filter(|reason| matches!(reason, GoneReason::Evicted | GoneReason::Killed));
        happened.taken = taken.count();
        for write in self.state.arm_writes.iter().filter(|it| it.kind == "PUT pool" && it.status < 300) {
            let ordered = write.machines_ordered.len();
            *(if write.pool == ON_DEMAND.0 { &mut happened.ordered.1 } else { &mut happened.ordered.0 }) +=
                ordered;
        }
        Ok((before, self.held(), happened))
    }

    async fn trouble(
        &mut self,
        dice: &mut Dice,
        short: &mut BTreeMap<&'static str, Instant>,
        happened: &mut Happened,
    ) -> Result<()> {
        let (pool, size) = SPOT[dice.below(SPOT.len() as u64) as usize];
        let there = self.state.vms_of(pool).filter(|vm| vm.phase == VmPhase::Running).count() as u64;
        let notice = Duration::from_secs(dice.below(31));
        let many = match dice.below(100) {
            // A wave takes half of an agent pool.
            0..=4 => there / 2,
            5..=59 => 1 + dice.below(FEW),
            60..=69 => {
                let events = self.evict(pool, 1, Duration::from_secs(30));
                self.tick(TICK * 5).await?;
                for event in &events {
                    happened.taken_back += 1;
                    self.sim.change(|cloud, now| cloud.cancel(event, now).map(drop)).ok();
                }
                return Ok(());
            }
            70..=79 => {
                let many = (1 + dice.below(FEW)).min(there) as u32;
                let killed =
                    self.sim.change(|cloud, now| cloud.kill(&Targets::of_pool(pool, many), now)).ok();
                happened.unannounced += killed.map_or(0, |killed| killed.len());
                return Ok(());
            }
            80..=89 => {
                happened.shortages += 1;
                let most = dice.below(there + 1) as u32;
                self.sim
                    .change(|cloud, _| cloud.set_capacity(Capacity::of(size, Priority::Spot, Some(most))));
                short.insert(size, Instant::now() + Duration::from_secs(60 * dice.below(120)));
                return Ok(());
            }
            _ => {
                happened.operators_killed += 1;
                self.around.between.kill();
                return Ok(());
            }
        };
        self.evict(pool, many.min(there) as u32, notice);
        Ok(())
    }

    /// The events' ids. Fewer than asked for if so many are not there.
    fn evict(&self, pool: &str, many: u32, notice: Duration) -> Vec<String> {
        let request = EventRequest::new("Preempt", Targets::of_pool(pool, many), notice);
        let events = self.sim.change(|cloud, now| cloud.schedule(&request, now)).unwrap_or_default();
        events.into_iter().map(|event| event.event_id).collect()
    }

    /// Sizes whose shortage is over by `now`.
    fn have_again(&self, short: &mut BTreeMap<&'static str, Instant>, now: Instant) {
        short.retain(|size, until| {
            let lasts = *until > now;
            if !lasts {
                self.sim.change(|cloud, _| cloud.set_capacity(Capacity::of(size, Priority::Spot, None)));
            }
            lasts
        });
    }

    fn within_limits(&self, days: Days, happened: &mut Happened) -> Result<()> {
        let count = |pool: &str| self.state.vms_of(pool).filter(|vm| vm.phase != VmPhase::Gone).count();
        for (name, _) in SPOT {
            let machines = count(name);
            ensure!(machines <= days.limit() as usize, "{name} has {machines}, maxNodes is {}", days.limit());
        }
        let machines = count(ON_DEMAND.0);
        ensure!(machines <= days.fallback() as usize, "{machines} on demand, at most {}", days.fallback());
        happened.most_on_demand = happened.most_on_demand.max(machines);
        Ok(())
    }

    fn held(&self) -> Held {
        let pool = self.spot_pool();
        let members = pool["status"].as_object().into_iter().flatten();
        let status = members.map(|(name, value)| (name.clone(), value.to_string().len())).collect();
        let mut marks = BTreeMap::new();
        let nodes = self.around.apiserver.all("nodes");
        for node in &nodes {
            for kind in ["labels", "annotations"] {
                let keys = node["metadata"][kind].as_object().into_iter().flat_map(|marks| marks.keys());
                for key in keys.filter(|key| key.contains(names::GROUP)) {
                    *marks.entry(key.clone()).or_default() += 1;
                }
            }
            if node["spec"]["unschedulable"] == true {
                *marks.entry("unschedulable".to_owned()).or_default() += 1;
            }
            *marks.entry("taints".to_owned()).or_default() +=
                node["spec"]["taints"].as_array().map_or(0, Vec::len);
        }
        let objects = ["nodes", "spotpools", "evictiondrills"];
        Held {
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            watches: self.around.apiserver.watches(),
            status,
            marks,
            objects: objects.map(|kind| (kind, self.around.apiserver.all(kind).len())).into(),
        }
    }
}
