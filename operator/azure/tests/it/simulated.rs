//! The adapter against the simulator, in one process and in simulated time: the whole of each story.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::BodyExt;
use serde_json::json;
use spotpool_azure::{
    AgentPool, AgentPools, ApiVersion, Arm, ArmConfig, AzureError, Class, ClusterId, CreateAgentPool,
    Created, OperationOutcome, OperationUrl, Operations, Priority, Scope, Transport, Urgency,
};
use spotpool_azure_sim::api::{
    BackgroundOperation, Failure, FailureKind, Fault, FaultAction, FaultTarget, Identity, PoolSpec, Settings,
    State, Targets,
};
use spotpool_azure_sim::dice::Dice;
use spotpool_azure_sim::model::Cloud;
use spotpool_azure_sim::sim::{Sim, tokio_clock};
use spotpool_azure_sim::{reply, server};
use tower::ServiceExt;

use crate::scripted::{Answer, seconds};

const SIZE: &str = "Standard_D4s_v5";

/// Calls the simulator as the tower service that it is.
#[derive(Clone)]
struct InProcess(Router);

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl Transport for InProcess {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Answer> {
        let (mut parts, body) = request.into_parts();
        let host = parts.uri.authority().unwrap().as_str().parse().unwrap();
        parts.headers.insert(http::header::HOST, host);
        let request = Request::from_parts(parts, Body::from(body));
        async move {
            let response = self.0.clone().oneshot(request).await.unwrap();
            if reply::is_dropped(&response) {
                return Err(AzureError::new(
                    Class::Transient,
                    "ConnectionFailed",
                    "the connection was closed",
                ));
            }
            let (parts, body) = response.into_parts();
            Ok(http::Response::from_parts(parts, body.collect().await.unwrap().to_bytes()))
        }
        .boxed()
    }
}

struct World {
    sim: Sim,
    transport: InProcess,
    driving: tokio::task::JoinHandle<()>,
    start: jiff::Timestamp,
    begun: tokio::time::Instant,
    arm: Arm,
}

impl Drop for World {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

impl World {
    fn new(settings: Settings, pools: &[PoolSpec]) -> Self {
        let start = "2026-11-21T00:00:00Z".parse().unwrap();
        let mut cloud = Cloud::new(Identity::default(), settings, false, 7);
        for pool in pools {
            cloud.add_pool(pool, start).unwrap();
        }
        let sim = Sim::with_clock(cloud, tokio_clock(start));
        let driver = sim.clone();
        let driving = tokio::spawn(async move { driver.drive().await });
        let begun = tokio::time::Instant::now();
        let transport = InProcess(server::router(sim.clone()));
        let arm = arm(&transport, start, begun);
        Self { sim, transport, driving, start, begun, arm }
    }

    fn spot() -> Self {
        Self::new(Settings::default(), &[PoolSpec::spot("spota", SIZE, 2)])
    }

    fn restart(&mut self) {
        self.arm = arm(&self.transport, self.start, self.begun);
    }

    async fn pool(&self, name: &str) -> AgentPool {
        self.arm.list().await.unwrap().into_iter().find(|pool| pool.name == name).unwrap()
    }

    async fn machines(&self, name: &str) -> Vec<String> {
        self.arm.machines(name).await.unwrap().into_iter().map(|machine| machine.name).collect()
    }

    async fn end_of(&self, operation: Option<OperationUrl>) -> OperationOutcome {
        let url = operation.expect("Azure says where to ask");
        for _ in 0..100 {
            match self.arm.operation(&url).await.unwrap() {
                OperationOutcome::Running(wait) => {
                    tokio::time::sleep(wait.unwrap_or(seconds(5)).max(seconds(1))).await;
                }
                over => return over,
            }
        }
        panic!("the operation does not end")
    }

    fn state(&self) -> State {
        self.sim.look(|cloud, now| cloud.state(now))
    }
}

fn arm(transport: &InProcess, start: jiff::Timestamp, begun: tokio::time::Instant) -> Arm {
    let identity = Identity::default();
    Arm::new(ArmConfig {
        endpoint: "http://arm.test:8080".parse().unwrap(),
        cluster: ClusterId {
            subscription_id: identity.subscription,
            resource_group: identity.resource_group,
            cluster_name: identity.cluster,
        },
        api_version: ApiVersion::default(),
        user_agent: "spotpool-operator/0".into(),
        transport: Arc::new(transport.clone()),
        may_write: Arc::new(|| true),
        clock: Arc::new(move || start.checked_add(begun.elapsed()).unwrap()),
    })
    .unwrap()
}

/// The main job: up by count, down by name.
#[tokio::test(start_paused = true)]
async fn up_by_count_and_down_by_name() {
    let world = World::spot();
    let before = world.pool("spota").await;
    assert_eq!((before.count, before.priority, before.busy()), (2, Priority::Spot, false));
    let accepted = world.arm.scale(&before, 4, Urgency::Emergency).await.unwrap();
    assert!(accepted.agent_pool.unwrap().busy());
    let again = world.arm.scale(&before, 5, Urgency::Emergency).await.unwrap_err();
    assert_eq!(again.class, Class::Conflict, "{again}");
    assert_eq!(world.end_of(accepted.operation).await, OperationOutcome::Succeeded);
    let machines = world.machines("spota").await;
    assert_eq!(machines.len(), 4);
    let stale = world.arm.scale(&before, 5, Urgency::Emergency).await.unwrap_err();
    assert_eq!((stale.class, stale.status), (Class::Conflict, 412), "{stale}");

    let gone = world.arm.delete_machines("spota", &machines[1..2]).await.unwrap();
    assert_eq!(world.end_of(gone.operation).await, OperationOutcome::Succeeded);
    let left = world.machines("spota").await;
    assert_eq!((left.len(), left.contains(&machines[1]), world.pool("spota").await.count), (3, false, 3));
    let unknown = world.arm.delete_machines("spota", &machines[1..2]).await.unwrap_err();
    assert_eq!((unknown.class, unknown.code.as_str()), (Class::Invalid, "InvalidParameter"));
}

/// Each code that the simulator can tell, as Azure tells it: after acceptance or at once.
#[tokio::test(start_paused = true)]
async fn every_failure_is_known_by_its_code_and_reach() {
    for (kind, class, code, scope) in [
        (FailureKind::SkuNotAvailable, Class::Capacity, "SkuNotAvailable", Some(Scope::Size)),
        (FailureKind::AllocationFailed, Class::Capacity, "AllocationFailed", Some(Scope::Size)),
        (FailureKind::ZonalAllocationFailed, Class::Capacity, "ZonalAllocationFailed", Some(Scope::Zone)),
        (
            FailureKind::OverconstrainedAllocationRequest,
            Class::Capacity,
            "OverconstrainedAllocationRequest",
            Some(Scope::Size),
        ),
        (
            FailureKind::OverconstrainedZonalAllocationRequest,
            Class::Capacity,
            "OverconstrainedZonalAllocationRequest",
            Some(Scope::Zone),
        ),
        (FailureKind::QuotaExceeded, Class::Capacity, "QuotaExceeded", Some(Scope::AllSpot)),
        (
            FailureKind::SpotPriceGreaterThanProvidedMaxPrice,
            Class::Capacity,
            "SpotPriceGreaterThanProvidedMaxPrice",
            Some(Scope::AgentPool),
        ),
        (FailureKind::ReconcileVMSSAgentPoolFailed, Class::Capacity, "AllocationFailed", Some(Scope::Size)),
        (FailureKind::AKSOperationPreempted, Class::Conflict, "AKSOperationPreempted", None),
        (FailureKind::AKSOperationPreemptedByDelete, Class::Conflict, "AKSOperationPreemptedByDelete", None),
        (FailureKind::OriginalEtagNotExpect, Class::Conflict, "OriginalEtagNotExpect", None),
        (FailureKind::EtagMismatch, Class::Conflict, "EtagMismatch", None),
        (
            FailureKind::InsufficientVcpuQuota,
            Class::Capacity,
            "ErrCode_InsufficientVCPUQuota",
            Some(Scope::AllSpot),
        ),
        (FailureKind::VMSizeNotSupported, Class::Invalid, "VMSizeNotSupported", Some(Scope::Size)),
        (
            FailureKind::InsufficientSubnetSize,
            Class::Invalid,
            "InsufficientSubnetSize",
            Some(Scope::AgentPool),
        ),
    ] {
        let world = World::spot();
        world.sim.change(|cloud, _| cloud.add_failure(Failure::next("spota", kind.clone())));
        let before = world.pool("spota").await;
        let error = match world.arm.scale(&before, 4, Urgency::Emergency).await {
            Err(error) => error,
            Ok(accepted) => match world.end_of(accepted.operation).await {
                OperationOutcome::Failed(error) => error,
                other => panic!("{kind:?}: {other:?}"),
            },
        };
        let found = (error.class, error.code.as_str(), error.avoid.map(|avoid| avoid.scope));
        assert_eq!(found, (class, code, scope), "{kind:?}: {error}");
        if code == "QuotaExceeded" {
            let quota = error.quota().unwrap();
            assert!(quota.current_limit.is_some() && quota.additional_required.is_some(), "{quota:?}");
        }
    }
}

/// Where evictions leave the count too high, any later write would bring the machines back, paid and unasked.
#[tokio::test(start_paused = true)]
async fn a_stale_count_is_corrected_to_the_machines_that_exist() {
    for e_tags in ["present", "absent"] {
        let mut settings = Settings { count_follows_evictions: false, ..Settings::default() };
        settings.switches = settings.switches.with(&json!({ "eTags": e_tags })).unwrap();
        let world = World::new(settings, &[PoolSpec::spot("spota", SIZE, 4)]);
        tokio::time::sleep(seconds(200)).await;
        world.sim.change(|cloud, now| cloud.kill(&Targets::of_pool("spota", 2), now)).unwrap();
        tokio::time::sleep(seconds(60)).await;
        let stale = world.pool("spota").await;
        assert_eq!((stale.count, stale.etag.is_some()), (4, e_tags == "present"));
        let exist = world.machines("spota").await;
        assert_eq!(exist.len(), 2);
        let lower = world.arm.correct_count(&stale, 1).await.unwrap_err();
        assert_eq!(lower.code, "CountNotCorrected");
        let accepted = world.arm.correct_count(&stale, 2).await.unwrap();
        assert_eq!(world.end_of(accepted.operation).await, OperationOutcome::Succeeded);
        assert_eq!(world.pool("spota").await.count, 2);
        assert_eq!(world.machines("spota").await, exist, "nobody was taken, nobody came back");
    }
}

#[tokio::test(start_paused = true)]
async fn an_autoscaled_pool_has_its_range_moved_and_nothing_else() {
    let auto = PoolSpec::spot("auto", SIZE, 2)
        .property("enableAutoScaling", json!(true))
        .property("minCount", json!(1))
        .property("maxCount", json!(3));
    let world = World::new(Settings::default(), &[auto]);
    let before = world.pool("auto").await;
    assert!(before.autoscaled);
    let accepted = world.arm.set_autoscaler_range(&before, 1, 9, Urgency::Routine).await.unwrap();
    assert_eq!(world.end_of(accepted.operation).await, OperationOutcome::Succeeded);
    let after = world.pool("auto").await;
    assert_eq!((after.min_count, after.max_count, after.count), (Some(1), Some(9), 2));
}

/// A crash between the request and its answer is repeated; it must not buy twice or report AKS's own additions.
#[tokio::test(start_paused = true)]
async fn agent_pools_are_made_once() {
    let world = World::new(
        Settings::default(),
        &[PoolSpec::regular("sys", SIZE, 1).property("mode", json!("System"))],
    );
    let wanted = CreateAgentPool {
        count: 2,
        zones: vec!["1".into(), "2".into()],
        spot_max_price: Some("0.5".parse().unwrap()),
        taints: vec!["batch=yes:NoSchedule".into()],
        ..CreateAgentPool::new("spotnew", Priority::Spot, SIZE)
    };
    let Created::Accepted(accepted) = world.arm.create(&wanted).await.unwrap() else {
        panic!("it was not there")
    };
    assert_eq!(world.end_of(accepted.operation).await, OperationOutcome::Succeeded);
    let Created::AlreadyThere { agent_pool, differences } = world.arm.create(&wanted).await.unwrap() else {
        panic!("made twice")
    };
    assert_eq!((agent_pool.count, agent_pool.spot_max_price), (2, Some(0.5)));
    assert_eq!(differences, []);
    let other = CreateAgentPool { vm_size: "Standard_D8s_v5".into(), ..wanted };
    let Created::AlreadyThere { differences, .. } = world.arm.create(&other).await.unwrap() else {
        panic!("made twice")
    };
    assert_eq!(differences.iter().map(|it| it.property).collect::<Vec<_>>(), ["vmSize"]);
    assert_eq!(world.state().arm_writes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn operations_of_aks_are_waited_out_and_a_preempted_one_is_a_conflict() {
    let world = World::spot();
    let background = |preempt| BackgroundOperation {
        pool: Some("spota".into()),
        kind: "Updating".into(),
        time: Duration::from_mins(2),
        preempt,
    };
    world.sim.change(|cloud, now| cloud.begin_background(&background(false), now)).unwrap();
    let busy = world.pool("spota").await;
    assert!(busy.busy());
    let error = world.arm.scale(&busy, 4, Urgency::Emergency).await.unwrap_err();
    assert_eq!(
        (error.class, error.status, error.code.as_str()),
        (Class::Conflict, 409, "OperationNotAllowed")
    );
    tokio::time::sleep(seconds(200)).await;
    let free = world.pool("spota").await;
    let accepted = world.arm.scale(&free, 4, Urgency::Emergency).await.unwrap();
    world.sim.change(|cloud, now| cloud.begin_background(&background(true), now)).unwrap();
    let OperationOutcome::Failed(error) = world.end_of(accepted.operation).await else {
        panic!("not preempted")
    };
    assert_eq!((error.class, error.code.as_str()), (Class::Conflict, "AKSOperationPreempted"));
}

/// An hour of everything going wrong, with Azure's limits in force and restarts: nothing panics, what we send is
/// never refused for its form, and no bucket of Azure's is run into. A failing seed replays exactly.
#[tokio::test(start_paused = true)]
async fn a_hostile_hour_runs_into_none_of_azures_limits() {
    let seeds = std::env::var("SEED")
        .ok()
        .map_or_else(|| (0..6).collect(), |seed| vec![seed.parse::<u64>().unwrap()]);
    for seed in seeds {
        println!("SEED={seed}");
        hostile_hour(seed).await;
    }
}

async fn hostile_hour(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut pick = move |below: u64| dice.below(below);
    let mut settings = Settings { count_follows_evictions: pick(2) == 0, ..Settings::default() };
    let e_tags = if pick(3) == 0 { "absent" } else { "present" };
    let switches =
        json!({"throttling": true, "eTags": e_tags, "poolsPerPage": 1, "lastPageEmpty": pick(2) == 0});
    settings.switches = settings.switches.with(&switches).unwrap();
    let mut world =
        World::new(settings, &[PoolSpec::spot("spota", SIZE, 3), PoolSpec::spot("spotb", SIZE, 1)]);
    let mut pools = Vec::new();
    let mut operations = Vec::new();
    while world.begun.elapsed() < Duration::from_hours(1) {
        if pick(10) == 0 {
            let action = match pick(4) {
                0 => FaultAction::Hang { time: seconds(5) },
                1 => FaultAction::Answer { status: 503, headers: BTreeMap::new(), body: Vec::new() },
                2 => FaultAction::Delay { time: seconds(3) },
                _ => FaultAction::Drop,
            };
            let target = FaultTarget::arm(["GET", "PUT", "POST"][pick(3) as usize], "");
            world.sim.change(|cloud, _| cloud.faults.add(Fault { target, times: Some(1), action }));
        }
        if pick(20) == 0 {
            let _ = world.sim.change(|cloud, now| cloud.kill(&Targets::of_pool("spota", 1), now));
        }
        if pick(15) == 0 {
            world
                .sim
                .change(|cloud, _| cloud.add_failure(Failure::next("spota", FailureKind::SkuNotAvailable)));
        }
        match pick(12) {
            0..=2 => pools = world.arm.list().await.unwrap_or_default(),
            3 | 4 => drop(world.arm.machines("spota").await),
            5..=8 if !pools.is_empty() => {
                let pool = &pools[pick(pools.len() as u64) as usize];
                let urgency = if pick(2) == 0 { Urgency::Emergency } else { Urgency::Routine };
                if let Ok(accepted) = world.arm.scale(pool, pick(8) as u32, urgency).await {
                    operations.extend(accepted.operation);
                }
            }
            9 => {
                if let Ok(machines) = world.arm.machines("spota").await
                    && let Some(machine) = machines.first()
                {
                    drop(world.arm.delete_machines("spota", std::slice::from_ref(&machine.name)).await);
                }
            }
            10 if pick(4) == 0 => {
                let saved = ["spota", "spotb"].map(|pool| (pool, world.arm.write_budget(pool)));
                // Reads start full again: time for a new process to come up.
                tokio::time::sleep(seconds(30)).await;
                world.restart();
                for (pool, budget) in saved {
                    world.arm.restore_write_budget(pool, budget);
                }
            }
            _ => {
                for operation in &operations {
                    let _ = world.arm.operation(operation).await;
                }
                operations.truncate(3);
            }
        }
        tokio::time::sleep(Duration::from_millis(pick(1_500))).await;
    }
    let state = world.state();
    for bucket in &state.buckets {
        assert_eq!(bucket.exceeded, 0, "SEED={seed}: {bucket:?}");
    }
    for write in &state.arm_writes {
        assert!(!matches!(write.status, 401 | 403 | 404 | 429), "SEED={seed}: {write:?}");
        assert!(write.status != 400 || write.kind == "POST deleteMachines", "SEED={seed}: {write:?}");
    }
    assert!(state.arm_writes.len() > 10, "SEED={seed}: {} writes", state.arm_writes.len());
}
