//! The operator's brain, the adapter and the simulator in one process and in simulated time: hours pass in
//! moments, and one seed gives one course of events.
//!
//! Everything that speaks to Azure is the real thing, down to bytes of HTTP. Kubernetes is a model: Nodes follow
//! machines, agents answer promptly, status is kept as it would be stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::watcher;
use serde_json::{Value, json};
use spotpool_azure::{
    ApiVersion, Arm, ArmConfig, AzureError, Class, Clock, ClusterId, ResourceGraph, RetailPrices,
    SpotPlacementScores, Transport,
};
use spotpool_azure_sim::api::{EventState, Identity, State};
pub use spotpool_azure_sim::dice::Dice;
use spotpool_azure_sim::model::{Cloud, WantedNode};
use spotpool_azure_sim::nodes::node_object;
use spotpool_azure_sim::sim::{Sim, tokio_clock};
use spotpool_azure_sim::{reply, server};
use spotpool_core::{Action, Plan, plan};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainRequest, DrainStatus};
use spotpool_crds::{SpotPool, SpotPoolStatus, names};
use spotpool_operator::agent_pools::AgentPools;
use spotpool_operator::market::{Market, Sources};
use spotpool_operator::metrics::Metrics;
use spotpool_operator::pool::act::{self, Outcome, write_agent_pools};
use spotpool_operator::pool::gather::gather;
use spotpool_operator::pool::report;
use spotpool_operator::watches::{Nodes, Trigger};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use url::Url;

use crate::stage::without_spare;

/// An agent's drain of a node that holds nothing back.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);

/// Requests go to the simulator's handlers directly, and are tampered with on the way while it is hostile.
pub struct InProcess {
    router: Router,
    dice: Mutex<Dice>,
    hostile: AtomicBool,
    /// The status with which everything is refused; 0: nothing is.
    refuse: AtomicU16,
    refused: AtomicU64,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProcess")
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Arrives, and so does its answer.
    Good,
    /// The same, but the answer is late.
    Slow(Duration),
    /// Never arrives.
    LostRequest,
    /// Is carried out, and nobody hears of it.
    LostAnswer,
    /// The answer is cut in the middle.
    CutAnswer,
    /// Something before Azure answers in its stead.
    Refused(u16, Option<u64>),
}

impl Fate {
    fn cast(dice: &mut Dice) -> Self {
        match dice.below(100) {
            0..=5 => Self::LostRequest,
            6..=12 => Self::LostAnswer,
            13..=15 => Self::CutAnswer,
            16..=19 => Self::Refused(500, None),
            20..=22 => Self::Refused(503, Some(dice.below(20))),
            23..=24 => Self::Refused(429, Some(1 + dice.below(60))),
            25 => Self::Refused(429, None),
            26 => Self::Refused(403, None),
            27 => Self::Refused(401, None),
            28 => Self::Refused(409, None),
            29 => Self::Refused(412, None),
            30..=40 => Self::Slow(Duration::from_millis(dice.below(25_000))),
            _ => Self::Good,
        }
    }
}

impl InProcess {
    fn fate(&self) -> Fate {
        let status = self.refuse.load(Ordering::Relaxed);
        if status != 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Fate::Refused(status, None);
        }
        if !self.hostile.load(Ordering::Relaxed) {
            return Fate::Good;
        }
        Fate::cast(&mut self.dice.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, AzureError> {
        let lost = || Err(AzureError::new(Class::Transient, "ConnectionFailed", "the connection was reset"));
        match self.fate() {
            Fate::Good => deliver(&self.router, request).await,
            Fate::Slow(delay) => {
                let answer = deliver(&self.router, request).await;
                tokio::time::sleep(delay).await;
                answer
            }
            Fate::LostRequest => lost(),
            Fate::LostAnswer => {
                let _ = deliver(&self.router, request).await;
                lost()
            }
            Fate::CutAnswer => {
                let answer = deliver(&self.router, request).await?;
                Ok(answer.map(|body| body.slice(..body.len() / 2)))
            }
            Fate::Refused(status, retry_after) => Ok(refusal(status, retry_after)),
        }
    }
}

/// Has the simulator answer.
pub(crate) async fn deliver(
    router: &Router,
    mut request: Request<Bytes>,
) -> Result<Response<Bytes>, AzureError> {
    // As every HTTP client does; the simulator's links are made of it.
    if let Some(host) = request.uri().authority().and_then(|host| host.as_str().parse().ok()) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    let broken = |why: &str| AzureError::new(Class::Transient, "ConnectionFailed", why);
    let response = match router.clone().oneshot(request.map(Body::from)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if reply::is_dropped(&response) {
        return Err(broken("the connection was closed"));
    }
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| broken(&error.to_string()))?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// Something before Azure answers in its stead.
pub(crate) fn refusal(status: u16, retry_after: Option<u64>) -> Response<Bytes> {
    let code = match status {
        401 => "ExpiredAuthenticationToken",
        403 => "AuthorizationFailed",
        409 => "OperationNotAllowed",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        _ => "ServerError",
    };
    let body = json!({"error": {"code": code, "message": "made up on the way"}}).to_string();
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    answer
}

impl Transport for InProcess {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        self.exchange(request).boxed()
    }
}

/// All that a Node is made of.
#[derive(PartialEq)]
struct Seen {
    wanted: WantedNode,
    event: Option<EventState>,
    /// Whether the drain is over.
    drain: Option<(DrainRequest, bool)>,
}

impl Seen {
    fn node(&self, identity: &Identity) -> Result<Node> {
        let mut node = node_object(identity, &self.wanted)?;
        node.metadata.uid = Some(self.wanted.vm.node.clone());
        // Whole seconds, as the apiserver has them.
        let made = self.wanted.vm.registered_at.map(|at| Timestamp::from_second(at.as_second()));
        node.metadata.creation_timestamp = made.transpose()?.map(Time);
        let annotations = node.metadata.annotations.get_or_insert_default();
        if let Some(event) = &self.event {
            annotations.insert(names::EVICTION_ANNOTATION.into(), notice(event).to_string());
        }
        if let Some((request, drained)) = &self.drain {
            annotations.insert(names::DRAIN_REQUEST_ANNOTATION.into(), serde_json::to_string(request)?);
            let status = DrainStatus {
                id: request.id.clone(),
                phase: if *drained { DrainPhase::Drained } else { DrainPhase::Draining },
                pods_left: u32::from(!drained),
                blocking_pdbs: Vec::new(),
                cordoned: true,
            };
            annotations.insert(names::DRAIN_STATUS_ANNOTATION.into(), serde_json::to_string(&status)?);
            node.spec.get_or_insert_default().unschedulable = Some(true);
        }
        let ready = json!([{"type": "Ready", "status": "True"}]);
        node.status.get_or_insert_default().conditions = serde_json::from_value(ready)?;
        Ok(node)
    }
}

/// A drain that was asked for.
struct Drain {
    request: DrainRequest,
    asked: Timestamp,
}

/// One cluster and one SpotPool. To be used on a paused tokio runtime of one thread.
pub struct Simulation {
    /// The cloud.
    pub sim: Sim,
    /// The SpotPool, its status as stored.
    pub pool: SpotPool,
    /// The way to the simulator.
    pub transport: Arc<InProcess>,
    clock: Clock,
    cluster: ClusterId,
    nodes: Nodes,
    trigger: Trigger,
    told: mpsc::UnboundedSender<watcher::Result<watcher::Event<Node>>>,
    seen: BTreeMap<String, Seen>,
    drains: BTreeMap<String, Drain>,
    has_prices: bool,
    operator: Option<Running>,
    tasks: Vec<JoinHandle<()>>,
}

struct Running {
    agent_pools: Arc<AgentPools>,
    market: Option<Arc<Market>>,
    keeping: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keeping.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Simulation {
    /// The cluster of `cloud`, with an operator for `manifest`, a SpotPool's spec.
    pub fn start(cloud: Cloud, manifest: &Value, start: Timestamp, seed: u64) -> Result<Self> {
        let identity = cloud.identity.clone();
        let clock = tokio_clock(start);
        let sim = Sim::with_clock(cloud, clock.clone());
        let transport = InProcess {
            router: server::router(sim.clone()),
            dice: Mutex::new(Dice::new(seed)),
            hostile: AtomicBool::new(false),
            refuse: AtomicU16::new(0),
            refused: AtomicU64::new(0),
        };
        let trigger = Trigger::default();
        let (told, events) = mpsc::unbounded();
        let (nodes, following) = Nodes::follow(events, trigger.clone());
        let driver = sim.clone();
        let tasks = vec![
            tokio::spawn(async move { driver.drive().await }),
            tokio::spawn(following.for_each(|()| async {})),
        ];
        for event in [watcher::Event::Init, watcher::Event::InitDone] {
            told.unbounded_send(Ok(event))?;
        }
        let pool = serde_json::from_value(json!({
            "apiVersion": "spotpool.dev/v1alpha1",
            "kind": "SpotPool",
            "metadata": {"name": "workers", "namespace": "batch", "uid": "pool", "generation": 1,
                "creationTimestamp": format!("{start:.0}")},
            "spec": without_spare(manifest.clone()),
        }))?;
        let mut simulation = Self {
            sim,
            pool,
            transport: Arc::new(transport),
            clock,
            cluster: ClusterId {
                subscription_id: identity.subscription,
                resource_group: identity.resource_group,
                cluster_name: identity.cluster,
            },
            nodes,
            trigger,
            told,
            seen: BTreeMap::new(),
            drains: BTreeMap::new(),
            has_prices: false,
            operator: None,
            tasks,
        };
        simulation.restart()?;
        Ok(simulation)
    }

    /// Lets the operator read the market as well, which it does not by itself.
    pub fn with_prices(mut self) -> Result<Self> {
        self.has_prices = true;
        self.restart()?;
        Ok(self)
    }

    /// Whether requests are tampered with from now on.
    pub fn hostile(&self, hostile: bool) {
        self.transport.hostile.store(hostile, Ordering::Relaxed);
    }

    /// Refuses every request with this status from now on, or none any more.
    pub fn refuse_everything(&self, status: Option<u16>) {
        self.transport.refuse.store(status.unwrap_or(0), Ordering::Relaxed);
    }

    /// How many requests were refused so.
    pub fn refused(&self) -> u64 {
        self.transport.refused.load(Ordering::Relaxed)
    }

    /// Kills the operator, whatever it is doing, and starts another: all that it knows now is in status.
    pub fn restart(&mut self) -> Result<()> {
        let arm = Arm::new(ArmConfig {
            endpoint: Url::parse("http://arm.simulated/")?,
            cluster: self.cluster.clone(),
            api_version: ApiVersion::default(),
            user_agent: "spotpool-operator/simulated".into(),
            transport: self.transport.clone(),
            may_write: Arc::new(|| true),
            clock: self.clock.clone(),
        })?;
        let arm = Arc::new(arm);
        let agent_pools = Arc::new(AgentPools::new(
            arm.clone(),
            arm,
            self.nodes.clone(),
            self.trigger.clone(),
            Metrics::register(&mut spotpool_operator::metrics::catalogue()),
            self.clock.clone(),
        ));
        let keeper = agent_pools.clone();
        let mut keeping = vec![tokio::spawn(async move { keeper.keep_fresh().await })];
        let market = self.has_prices.then(|| Arc::new(self.market()));
        if let Some(market) = market.clone() {
            let (nodes, keeper, trigger) = (self.nodes.clone(), agent_pools.clone(), self.trigger.clone());
            keeping.push(tokio::spawn(async move { market.keep_fresh(&nodes, &keeper, &trigger).await }));
        }
        self.operator = Some(Running { agent_pools, market, keeping });
        Ok(())
    }

    fn market(&self) -> Market {
        let (transport, clock) = (self.transport.clone(), self.clock.clone());
        let subscription = self.cluster.subscription_id.clone();
        let open = move |region: &str| {
            let transport = || transport.clone() as Arc<dyn Transport>;
            let url = |text: &str| {
                Url::parse(text).map_err(|error| AzureError::new(Class::Invalid, "Url", error.to_string()))
            };
            let arm = url("http://arm.simulated/")?;
            let endpoint = url("http://prices.simulated/api/retail/prices")?;
            let prices = RetailPrices::new(transport(), endpoint, region, "USD", clock.clone())?;
            let rates = ResourceGraph::new(transport(), &arm, &subscription, region, clock.clone())?;
            let scores = SpotPlacementScores::new(transport(), &arm, &subscription, region, clock.clone())?;
            Ok(Sources { prices: Some(Arc::new(prices)), rates: Arc::new(rates), scores: Arc::new(scores) })
        };
        Market::new(Box::new(open), "USD")
    }

    /// The simulated time.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Lets `time` pass, then lets kubelets, agents and the operator do what they would have done.
    pub async fn step(&mut self, time: Duration) -> Result<Option<Plan>> {
        tokio::time::sleep(time).await;
        self.observe()?;
        tokio::task::yield_now().await;
        self.reconcile().await
    }

    /// The same, but the operator dies in the middle of its writes to Azure.
    pub async fn step_and_die(&mut self, time: Duration, after: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.observe()?;
        tokio::task::yield_now().await;
        let _ = tokio::time::timeout(after, self.reconcile()).await;
        self.restart()
    }

    /// Makes Nodes and their annotations what they would be by now, and tells the watch of what has changed.
    fn observe(&mut self) -> Result<()> {
        let (identity, wanted, events, now) = self
            .sim
            .look(|cloud, now| (cloud.identity.clone(), cloud.wanted_nodes(), cloud.state(now).events, now));
        let notices = notices(&events);
        let mut current = BTreeMap::new();
        for wanted in wanted {
            let name = wanted.vm.node.clone();
            let drain = self
                .drains
                .get(&name)
                .map(|drain| (drain.request.clone(), now.duration_since(drain.asked) >= DRAIN));
            let seen = Seen { wanted, event: notices.get(&name).map(|event| (*event).clone()), drain };
            if self.seen.get(&name) != Some(&seen) {
                self.told.unbounded_send(Ok(watcher::Event::Apply(seen.node(&identity)?)))?;
            }
            current.insert(name, seen);
        }
        for (name, seen) in &self.seen {
            if !current.contains_key(name) {
                self.drains.remove(name);
                self.told.unbounded_send(Ok(watcher::Event::Delete(seen.node(&identity)?)))?;
            }
        }
        self.seen = current;
        Ok(())
    }

    /// Guard → gather → plan → act → report, as the controller does it.
    async fn reconcile(&mut self) -> Result<Option<Plan>> {
        let operator = self.operator.as_ref().context("no operator runs")?;
        let (agent_pools, market) = (operator.agent_pools.clone(), operator.market.clone());
        let now = self.now();
        if let Some(status) = &self.pool.status {
            agent_pools.restore_write_budgets(status);
        }
        let mut view = agent_pools.view(self.pool.spec.agent_pools.iter().map(|pool| pool.name.as_str()));
        if let Some(market) = market {
            market.tell(&mut view);
        }
        let gathered = gather(&self.pool, &[Arc::new(self.pool.clone())], &self.nodes.all(), view, now);
        let plan = plan(&self.pool.spec, &gathered.snapshot, now);
        let intentions = act::intentions(&plan, now);
        if !intentions.is_empty() {
            let intended =
                report::status(&self.pool, &gathered, &plan, &intentions, &Outcome::default(), now);
            self.pool.status = Some(as_stored(&intended)?);
        }
        let outcome = write_agent_pools(&agent_pools, &self.pool, &gathered.azure, &plan).await;
        for action in &plan.actions {
            match action {
                Action::RequestDrain { node, reason, not_after } => {
                    let id = format!("{node}-{}", now.as_millisecond());
                    let request = DrainRequest {
                        id,
                        reason: *reason,
                        voluntary: true,
                        not_after: *not_after,
                        spot_pool: None,
                    };
                    self.drains.insert(node.clone(), Drain { request, asked: now });
                }
                Action::WithdrawDrain { node, .. } => {
                    self.drains.remove(node);
                }
                _ => {}
            }
        }
        let status = report::status(&self.pool, &gathered, &plan, &intentions, &outcome, now);
        self.pool.status = Some(as_stored(&status)?);
        Ok(Some(plan))
    }

    /// Everything there is to see in the cloud.
    pub fn cloud(&self) -> State {
        self.sim.look(|cloud, now| cloud.state(now))
    }
}

/// The notice that names each node.
pub(crate) fn notices(events: &[EventState]) -> BTreeMap<String, &EventState> {
    let live = |event: &&EventState| event.event_type == "Preempt" && event.status != "Cancelled";
    let named = |event| -> Vec<(String, &EventState)> {
        let event: &EventState = event;
        event.nodes.iter().map(|node| (node.clone(), event)).collect()
    };
    events.iter().filter(live).flat_map(named).collect()
}

pub(crate) fn notice(event: &EventState) -> Value {
    json!({
        "by": "NodeAgent", "eventId": event.event_id, "type": "Preempt", "source": "IMDS",
        "observedAt": event.scheduled_at, "notBefore": event.not_before, "deadline": event.not_before,
        "phase": "Drained", "cordoned": true, "bootID": "simulated",
    })
}

/// As it comes back from the apiserver, which keeps whole seconds.
fn as_stored(status: &SpotPoolStatus) -> Result<SpotPoolStatus> {
    Ok(serde_json::from_value(serde_json::to_value(status)?)?)
}
