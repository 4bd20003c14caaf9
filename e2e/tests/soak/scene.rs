//! The world of a soak: nodes that a SpotPool keeps, and veterans whose agents live through all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, SettingsPatch, State};
use spotpool_crds::{EvictionNotice, names};
use spotpool_e2e::objects::{create, marks, takes_pods};
use spotpool_e2e::wait::within;
use spotpool_e2e::{Agents, Operator, OperatorOptions, Stage, World, WorldOptions};

use crate::Soak;

const NAME: &str = "soak";
const SIZE: &str = "Standard_D4s_v5";
/// The SpotPool.
const POOL: &str = "p";
const ON_DEMAND: &str = "soakr";
/// In no SpotPool. They are never evicted: only their agents are tried.
const VETERANS: &str = "soakvet";
pub const VETERAN_NODES: usize = 2;
const FALLBACK: usize = 2;
/// Azure takes 20 writes of an agent pool, then one a minute.
const NODES_OF_A_POOL: u32 = 10;
const FAILBACK_ASKED_EVERY: Duration = Duration::from_secs(3);
/// The marks that a node of a SpotPool keeps.
const KEPT: [&str; 4] =
    [names::POOL_LABEL, names::POOL_NAMESPACE_LABEL, names::POLICY_ANNOTATION, names::EVICTION_ANNOTATION];

/// The world, the SpotPool and its operator.
pub struct Scene {
    pub soak: Soak,
    pub stage: Stage<'static>,
    operator: Mutex<Operator>,
    spot_pools: Vec<String>,
}

/// Of ours.
const KINDS: [&str; 2] = ["spotpools", "evictiondrills"];
/// The operator's and the garbage collector's, which finds new kinds within half a minute.
const WATCHES_OF_A_KIND: i64 = 2;

/// What the apiserver has open for all of its clients, by kind and resource.
#[derive(Clone, Debug)]
pub struct LongRunning(BTreeMap<String, i64>);

impl LongRunning {
    /// Kinds of ours that are not watched yet by all who will.
    fn not_yet_watched(&self) -> Vec<&'static str> {
        let watches =
            |kind: &str| self.0.get(&format!("WATCH {} {kind}", names::GROUP)).copied().unwrap_or(0);
        KINDS.into_iter().filter(|kind| watches(kind) < WATCHES_OF_A_KIND).collect()
    }

    pub fn total(&self) -> i64 {
        self.0.values().sum()
    }

    /// What is open otherwise than `before`.
    fn differences(&self, before: &Self) -> Vec<String> {
        let kinds: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let of = |open: &Self, kind: &str| open.0.get(kind).copied().unwrap_or_default();
        let differs = |kind: &&String| of(self, kind) != of(before, kind);
        let tell = |kind: &String| format!("{kind}: {} before, {} now", of(before, kind), of(self, kind));
        kinds.into_iter().filter(differs).map(tell).collect()
    }
}

impl Scene {
    pub async fn set(soak: Soak) -> Result<Self> {
        let is_long = soak.time > Duration::from_mins(2);
        let poll = if is_long { "1s" } else { "300ms" };
        let options = WorldOptions {
            boot_time: Duration::from_secs(2),
            agent_args: vec![format!("--poll-interval={poll}")],
            ..WorldOptions::default()
        };
        // One world a process: it ends with it.
        let world: &'static World = Box::leak(Box::new(World::start(options).await?));
        let quick = Some(Duration::from_millis(300));
        let settings = SettingsPatch { kill_after: quick, started_for: quick, ..SettingsPatch::default() };
        world.sim.change_settings(&settings).await?;
        if is_long {
            // Probes cost the machine more than the agents do.
            agents_of(world).probe_every(Duration::from_secs(5));
        }
        let stage = Stage::set(world, NAME).await?;
        let count = soak.nodes.div_ceil(NODES_OF_A_POOL).max(4);
        let spot_pools: Vec<String> = (0..count).map(|at| format!("{NAME}{at}")).collect();
        let of_pool = |at: u32| soak.nodes / count + u32::from(at < soak.nodes % count);
        let mut pools: Vec<PoolSpec> =
            spot_pools.iter().zip(0..).map(|(name, at)| PoolSpec::spot(name, SIZE, of_pool(at))).collect();
        pools.push(PoolSpec::regular(ON_DEMAND, SIZE, 0));
        pools.push(PoolSpec::spot(VETERANS, SIZE, VETERAN_NODES as u32));
        // Some at a time: what one agent's start takes must not add up beyond any patience.
        for pools in pools.chunks(4) {
            stage.agent_pools(pools).await?;
        }
        let operator = Mutex::new(stage.operator(&OperatorOptions::default()).await?);
        let scene = Self { soak, stage, operator, spot_pools };
        scene.spot_pool().await?;
        scene.workloads().await?;
        Ok(scene)
    }

    async fn spot_pool(&self) -> Result<()> {
        let pools = self.spot_pools.iter().map(|name| json!({"name": name, "maxNodes": self.soak.nodes}));
        let mut pools: Vec<_> = pools.collect();
        pools.push(json!({"name": ON_DEMAND, "maxNodes": 4}));
        let spec = json!({"replicas": self.soak.nodes, "agentPools": pools,
            "fallback": {"after": "1s", "maxNodes": FALLBACK},
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s", "maxConcurrent": 2}});
        self.stage.spot_pool(POOL, spec).await?;
        Ok(())
    }

    /// Pods that may go and pods that a budget holds, on both kinds of nodes: a held one has its agent follow budgets.
    async fn workloads(&self) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.stage.world.client.clone(), NAME);
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(self.stage.world.client.clone(), NAME);
        let nodes = self.soak.nodes;
        for (name, replicas, operator, unavailable) in [
            ("web", 2 * nodes, "NotIn", json!("100%")),
            ("free", nodes, "NotIn", json!("100%")),
            ("held", 4, "In", json!(0)),
            ("goes", 4, "In", json!("100%")),
        ] {
            let labels = json!({"app": name});
            let terms = json!({"nodeSelectorTerms": [{"matchExpressions":
                [{"key": names::AGENT_POOL_LABEL, "operator": operator, "values": [VETERANS]}]}]});
            let spec = json!({"tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}}],
                "containers": [{"name": "main", "image": "none"}]});
            let template = json!({"metadata": {"labels": labels}, "spec": spec});
            let spec =
                json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template});
            create(&deployments, json!({"metadata": {"name": name}, "spec": spec})).await?;
            let spec = json!({"maxUnavailable": unavailable, "selector": {"matchLabels": labels}});
            create(&budgets, json!({"metadata": {"name": name}, "spec": spec})).await?;
        }
        Ok(())
    }

    pub fn agents(&self) -> &'static Agents {
        agents_of(self.stage.world)
    }

    /// The operator's process, and where it serves `/metrics`.
    pub fn operator(&self) -> (u32, String) {
        let operator = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        (operator.process.id(), operator.admin_url.clone())
    }

    /// Kills the operator and starts another.
    pub async fn operator_dies(&self) -> Result<()> {
        self.operator.lock().unwrap_or_else(PoisonError::into_inner).process.kill()?;
        self.begin_anew().await
    }

    /// It must not have ended by itself, but for one reason: on a machine that is too busy it cannot renew its lease. Then another
    /// one is started, as by a kubelet; says whether.
    pub async fn operator_has_lost_its_lease(&self) -> Result<bool> {
        let process = self.operator.lock().unwrap_or_else(PoisonError::into_inner).process.clone();
        if process.exit_status().is_none() {
            return Ok(false);
        }
        ensure!(process.log_tail().contains("the leader lease is lost"), "it ended: {}", process.log_tail());
        self.begin_anew().await?;
        Ok(true)
    }

    async fn begin_anew(&self) -> Result<()> {
        let next = self.stage.operator(&OperatorOptions::default()).await?;
        *self.operator.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    pub async fn veterans(&self) -> Result<Vec<Node>> {
        self.stage.nodes(VETERANS).await
    }

    /// Spot nodes that take pods.
    pub async fn serving(&self) -> Result<Vec<Node>> {
        let nodes: Api<Node> = Api::all(self.stage.world.client.clone());
        // A new one has no such label yet.
        let selector = format!("{}={POOL},{}!={ON_DEMAND}", names::POOL_LABEL, names::AGENT_POOL_LABEL);
        let mut nodes = nodes.list(&ListParams::default().labels(&selector)).await?.items;
        nodes.retain(takes_pods);
        nodes.sort_by_key(ResourceExt::name_any);
        Ok(nodes)
    }

    /// No limit is exceeded, and every machine that was bought has its `causes`: a node that was to go.
    pub async fn limits_hold(&self, causes: usize) -> Result<()> {
        let state = self.stage.world.sim.state().await?;
        let fallback = state.vms_of(ON_DEMAND).count();
        ensure!(fallback <= FALLBACK, "{fallback} on-demand machines, fallback.maxNodes is {FALLBACK}");
        let bought = self.bought(&state);
        ensure!(bought <= causes, "{bought} spot machines were bought for {causes} that were to go");
        for pool in &self.spot_pools {
            let machines = state.vms_of(pool).count();
            ensure!(machines <= self.soak.nodes as usize, "{pool} has {machines} machines");
        }
        Ok(())
    }

    fn bought(&self, state: &State) -> usize {
        let writes = self.spot_pools.iter().flat_map(|pool| state.writes_to(pool));
        writes.map(|write| write.machines_ordered.len()).sum()
    }

    /// Waits until all is as wanted and no mark is left; returns what the apiserver has open then.
    pub async fn at_rest(&self) -> Result<LongRunning> {
        let (mut unrest, mut asked) = (String::new(), None::<Instant>);
        let patience = Duration::from_secs(90) + self.soak.time / 4;
        let rest = within(patience, "rest", async || {
            // By itself on-demand is given back one node first, and the others minutes later.
            if asked.is_none_or(|asked| asked.elapsed() > FAILBACK_ASKED_EVERY) {
                self.ask_for_failback().await?;
                asked = Some(Instant::now());
            }
            unrest = self.unrest().await?;
            Ok(unrest.is_empty().then_some(()))
        });
        rest.await.with_context(|| unrest.clone())?;
        self.long_running().await
    }

    async fn ask_for_failback(&self) -> Result<()> {
        let wish = json!({names::REQUESTED_FAILBACK_ANNOTATION: format!("{:?}", Instant::now())});
        let patch = Patch::Merge(json!({"metadata": {"annotations": wish}}));
        self.stage.spot_pools().patch(POOL, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The same for the first time: whoever begins to watch later would count as more than before.
    pub async fn at_first_rest(&self) -> Result<LongRunning> {
        self.at_rest().await?;
        let mut missing = Vec::new();
        let watched = within(Duration::from_secs(90), "our kinds to be watched", async || {
            let open = self.long_running().await?;
            missing = open.not_yet_watched();
            Ok(missing.is_empty().then_some(open))
        });
        watched.await.with_context(|| missing.join(", "))
    }

    /// The same, with as much open as `before`: watches that nobody ended would be more.
    pub async fn at_rest_like(&self, before: &LongRunning) -> Result<LongRunning> {
        self.at_rest().await?;
        let mut differences = Vec::new();
        let same = within(Duration::from_secs(20), "watches to be as before", async || {
            let now = self.long_running().await?;
            differences = now.differences(before);
            Ok(differences.is_empty().then_some(now))
        });
        same.await.with_context(|| differences.join("; "))
    }

    /// What is not as it should be in the end.
    async fn unrest(&self) -> Result<String> {
        let status = self.stage.status(POOL).await?;
        let wanted = self.soak.nodes as usize;
        if status.capacity.ready_spot != self.soak.nodes as i32 || status.fallback.nodes != 0 {
            let plan: Vec<_> = status.plan.iter().map(|step| step.message.as_str()).collect();
            return Ok(format!("{:?}, plan {plan:?}", status.capacity));
        }
        let state = self.stage.world.sim.state().await?;
        let up = |pool: &str| state.vms_of(pool).count();
        let spot: usize = self.spot_pools.iter().map(|pool| up(pool)).sum();
        if (spot, up(ON_DEMAND)) != (wanted, 0) {
            return Ok(format!("{spot} spot machines for {wanted}, {} on demand", up(ON_DEMAND)));
        }
        let mut nodes = self.veterans().await?;
        for pool in self.spot_pools.iter().map(String::as_str).chain([ON_DEMAND]) {
            nodes.extend(self.stage.nodes(pool).await?);
        }
        if nodes.len() != wanted + VETERAN_NODES {
            return Ok(format!("{} nodes", nodes.len()));
        }
        let unready = nodes.iter().find(|node| !takes_pods(node));
        let marked = nodes.iter().find_map(|node| Some(format!("{}: {:?}", node.name_any(), left_on(node)?)));
        if let Some(unrest) = marked.or_else(|| unready.map(|node| format!("{} is closed", node.name_any())))
        {
            return Ok(unrest);
        }
        for node in &nodes {
            let ready = self.agents().admin_url(&node.name_any());
            let ready = match ready {
                Some(url) => {
                    reqwest::get(format!("{url}/readyz")).await.is_ok_and(|it| it.status().is_success())
                }
                None => false,
            };
            if !ready {
                return Ok(format!("the agent of {} is not ready", node.name_any()));
            }
        }
        let leads = reqwest::get(format!("{}/metrics", self.operator().1)).await?.text().await?;
        Ok(if leads.contains("spotpool_operator_leader 1") { "" } else { "nobody leads" }.to_owned())
    }

    async fn long_running(&self) -> Result<LongRunning> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = self.stage.world.client.request_text(request).await?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("apiserver_longrunning_requests{"));
        let mut open = BTreeMap::<String, i64>::new();
        for (labels, value) in lines.filter_map(|line| line.rsplit_once(' ')) {
            let value: i64 = value.parse()?;
            if value > 0 {
                let of = |name: &str| {
                    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                    Some(rest.split('"').next()?.to_owned())
                };
                let kind = ["verb", "group", "resource"].map(|name| of(name).unwrap_or_default()).join(" ");
                *open.entry(kind).or_default() += value;
            }
        }
        ensure!(!open.is_empty(), "the apiserver says nothing of long-running requests");
        Ok(LongRunning(open))
    }
}

fn agents_of(world: &World) -> &Agents {
    world.agents.as_ref().expect("agents run here")
}

/// Marks of ours that only a node on its way out has.
fn left_on(node: &Node) -> Option<Vec<String>> {
    let notice = node.annotations().get(names::EVICTION_ANNOTATION);
    let notice: Option<EvictionNotice> = notice.and_then(|text| serde_json::from_str(text).ok());
    let mut left = marks(node);
    left.retain(|mark| !KEPT.contains(&mark.as_str()));
    if notice.is_some_and(|notice| notice.is_active()) {
        left.push(names::EVICTION_ANNOTATION.to_owned());
    }
    if node.labels().contains_key(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL) {
        left.push(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL.to_owned());
    }
    (!left.is_empty()).then_some(left)
}

/// Until when a soak goes on, and how far it is.
#[derive(Clone, Copy)]
pub struct Clock {
    began: Instant,
    time: Duration,
}

impl Clock {
    pub fn start(time: Duration) -> Self {
        Self { began: Instant::now(), time }
    }

    pub fn is_over(self) -> bool {
        self.began.elapsed() >= self.time
    }

    /// 0 to 1.
    pub fn share(self) -> f64 {
        self.began.elapsed().as_secs_f64() / self.time.as_secs_f64()
    }

    pub fn time(self) -> Duration {
        self.time
    }
}
