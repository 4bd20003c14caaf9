//! Two spot nodes in agent pools of their own, of which one is evicted: spot and on-demand come, on-demand goes again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, State};
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::objects::marks;
use spotpool_e2e::proxy::Proxy;
use spotpool_e2e::{Operator, OperatorOptions, Stage, World, eventually};

const SIZE: &str = "Standard_D4s_v5";
/// Nothing more may be written for so long once it has ended.
const QUIET: Duration = Duration::from_secs(2);

/// The stage, and the operator behind its proxy.
pub struct Scene<'a> {
    pub stage: Stage<'a>,
    pub proxy: Proxy,
    pub operator: Operator,
    options: OperatorOptions,
    spot: [String; 2],
    on_demand: String,
}

/// How an eviction has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What stands on each node, and whether it is spot.
    nodes: Vec<(bool, Vec<String>)>,
    /// Status and reason of each condition.
    conditions: BTreeMap<String, (String, String)>,
}

impl<'a> Scene<'a> {
    /// Sets it, with all as wanted.
    pub async fn set(world: &'a World, name: &str) -> Result<Self> {
        let stage = Stage::set(world, name).await?;
        let (spot, on_demand) = ([format!("{name}a"), format!("{name}b")], format!("{name}r"));
        stage
            .agent_pools(&[
                PoolSpec::spot(&spot[0], SIZE, 1),
                PoolSpec::spot(&spot[1], SIZE, 1),
                PoolSpec::regular(&on_demand, SIZE, 0),
            ])
            .await?;
        let kubeconfig = stage.operator_kubeconfig().await?;
        let proxy = Proxy::start(&kubeconfig, world.sim.base_url()).await?;
        let options = OperatorOptions {
            kubernetes: Some(proxy.kubernetes.clone()),
            azure_endpoint: Some(proxy.arm.clone()),
            ..OperatorOptions::default()
        };
        let operator = stage.operator(&options).await?;
        let agent_pools: Vec<_> =
            spot.iter().chain([&on_demand]).map(|name| json!({"name": name, "maxNodes": 4})).collect();
        let spec = json!({
            "replicas": 2, "agentPools": agent_pools, "fallback": {"maxNodes": 2},
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s"},
        });
        stage.spot_pool("p", spec).await?;
        let scene = Self { stage, proxy, operator, options, spot, on_demand };
        let calm = async || Ok(scene.ending().await?.filter(Ending::is_whole).map(drop));
        eventually(&format!("{name} to be as wanted"), calm).await?;
        scene.proxy.take_writes();
        scene.proxy.count_events(name);
        Ok(scene)
    }

    /// The agent pool whose node is evicted.
    pub fn doomed(&self) -> &str {
        &self.spot[0]
    }

    /// Has Azure take its node.
    pub async fn evict(&self, notice: Duration) -> Result<()> {
        Ok(self.stage.world.sim.evict_some(&self.spot[0], 1, notice).await.map(drop)?)
    }

    /// As a Deployment does. Whether it had died.
    pub async fn revive(&mut self) -> Result<bool> {
        let has_died = self.operator.process.exit_status().is_some();
        if has_died {
            self.operator = self.stage.operator(&self.options).await?;
        }
        Ok(has_died)
    }

    /// Waits until the eviction is over and all is as in `reference`, or as wanted; nothing is bought or given back that need
    /// not be, and nothing is written any more.
    pub async fn ends(&mut self, reference: Option<&Ending>) -> Result<(Ending, usize)> {
        let mut last = None;
        let end = eventually("the end of the eviction", async || {
            self.revive().await?;
            let state = self.stage.world.sim.state().await?;
            let evicted = state.vms.iter().any(|vm| vm.pool == self.spot[0] && vm.gone_reason.is_some());
            last = self.ending().await?;
            let is_it = |ending: &Ending| reference.map_or(ending.is_whole(), |it| it == ending);
            Ok(last.clone().filter(|ending| evicted && is_it(ending)))
        })
        .await;
        let ending = match end {
            Ok(ending) => ending,
            Err(error) => return Err(error.context(self.story(last.as_ref(), reference).await?)),
        };
        let writes = self.proxy.writes().len();
        self.bought_no_more(&self.stage.world.sim.state().await?)?;
        tokio::time::sleep(QUIET).await;
        let since: Vec<String> =
            self.proxy.writes().into_iter().skip(writes).map(|write| write.what).collect();
        let is_report = |what: &&String| what.ends_with("/status") || what.ends_with("/events");
        let more: Vec<&String> = since.iter().filter(|what| !is_report(what)).collect();
        ensure!(more.is_empty(), "writes go on after the end: {more:?}");
        Ok((ending, writes))
    }

    /// One spot node was lost: one comes, on-demand stands in at most once, and goes again.
    fn bought_no_more(&self, state: &State) -> Result<()> {
        let ordered = |pool: &str| state.writes_to(pool).map(|it| it.machines_ordered.len()).sum::<usize>();
        let is_deletion =
            |it: &&spotpool_azure_sim::api::ArmWrite| it.kind == "POST deleteMachines" && it.status < 300;
        let deletions = |pool: &str| state.writes_to(pool).filter(is_deletion).count();
        let [a, b] = &self.spot;
        let (spot, on_demand) = (ordered(a) + ordered(b), ordered(&self.on_demand));
        ensure!((spot, on_demand <= 1) == (1, true), "ordered {spot} spot and {on_demand} on-demand");
        let given_back = (deletions(a) + deletions(b), deletions(&self.on_demand));
        ensure!(given_back == (0, on_demand), "deletions: {given_back:?}, on-demand ordered: {on_demand}");
        Ok(())
    }

    /// Ends the operator, and takes the agent pools away.
    pub async fn strike(self) -> Result<()> {
        self.operator.stop().await?;
        for agent_pool in self.spot.iter().chain([&self.on_demand]) {
            self.stage.world.sim.remove_pool(agent_pool).await?;
        }
        Ok(())
    }

    /// How it stands; `None` while machines are not as wanted, or something is under way.
    async fn ending(&self) -> Result<Option<Ending>> {
        let state = self.stage.world.sim.state().await?;
        let status = self.stage.status("p").await?;
        let pools = || self.spot.iter().chain([&self.on_demand]);
        let is_idle = |pool: &String| state.pool(pool).is_some_and(|it| it.operation.is_none());
        let machines = |pool: &String| state.vms_of(pool).count();
        let is_calm = status.agent_pools.iter().all(|pool| pool.operation.is_none())
            && status.capacity.ready_spot == 2
            && status.fallback.nodes == 0
            && status.fallback.draining.is_empty();
        if !pools().all(is_idle) || !is_calm || self.spot.iter().map(machines).sum::<usize>() != 2 {
            return Ok(None);
        }
        let mut nodes = Vec::new();
        for pool in pools() {
            let marked = |node: &k8s_openapi::api::core::v1::Node| (*pool != self.on_demand, marks(node));
            nodes.extend(self.stage.nodes(pool).await?.iter().map(marked));
        }
        nodes.sort();
        Ok(Some(Ending { nodes, conditions: conditions(&status) }))
    }

    async fn story(&self, last: Option<&Ending>, reference: Option<&Ending>) -> Result<String> {
        let status = serde_json::to_string(&self.stage.status("p").await?)?;
        let (writes, log) = (self.proxy.writes(), self.operator.process.log_tail());
        Ok(format!("it is {last:?}\nto be {reference:?}\nstatus {status}\nwrites {writes:#?}\nlog {log}"))
    }
}

impl Ending {
    fn is_whole(&self) -> bool {
        let is = |kind: &str, status: &str| self.conditions.get(kind).is_some_and(|it| it.0 == status);
        let is_member = |marks: &Vec<String>| marks.iter().any(|mark| mark == names::POLICY_ANNOTATION);
        is("Ready", "True")
            && is("Reconciling", "False")
            && is("AgentsHealthy", "True")
            && self.nodes.len() == 2
            && self.nodes.iter().all(|(is_spot, marks)| *is_spot && is_member(marks))
    }
}

fn conditions(status: &SpotPoolStatus) -> BTreeMap<String, (String, String)> {
    let told = status.conditions.iter();
    told.map(|it| (it.type_.clone(), (it.status.clone(), it.reason.clone()))).collect()
}
