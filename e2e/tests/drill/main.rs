//! Eviction drills, with everything in place: what they take, what they refuse, how they end, and what of them is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod abort;
mod crash;
mod deleted;
mod evicted;
mod refused;
mod rehearsed;
mod scheduled;
#[path = "../schema/mod.rs"]
mod schema;
mod transitions;

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::drill::DrillPhase;
use spotpool_crds::{EvictionDrill, EvictionDrillStatus, names};
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{Operator, OperatorOptions, Stage, World, WorldOptions, eventually};
use tokio::sync::{OnceCell, RwLock};

static WORLD: OnceCell<World> = OnceCell::const_new();
/// An eviction anywhere in the cluster aborts drills: who has one holds it alone.
static EVICTIONS: RwLock<()> = RwLock::const_new(());

async fn world() -> &'static World {
    WORLD.get_or_init(async || World::start(WorldOptions::default()).await.unwrap()).await
}

/// The notice of evictions that a drill asks for.
const NOTICE: Duration = Duration::from_secs(4);

/// A stage with a SpotPool `p` of so many nodes in agent pool `<name>a`, all ready and known to be; `<name>b` is empty.
async fn whole<'a>(
    world: &'a World,
    name: &str,
    count: u32,
    options: &OperatorOptions,
) -> Result<(Stage<'a>, Operator)> {
    let stage = Stage::set(world, name).await?;
    let (a, b) = (format!("{name}a"), format!("{name}b"));
    let size = "Standard_D4s_v5";
    stage.agent_pools(&[PoolSpec::spot(&a, size, count), PoolSpec::spot(&b, size, 0)]).await?;
    let notice = json!({"simulatedNoticeMs": NOTICE.as_millis()});
    for pool in [&a, &b] {
        world.sim.switch_pool(pool, &notice).await?;
    }
    let operator = stage.operator(options).await?;
    let pools = json!([{"name": a, "maxNodes": 9}, {"name": b, "maxNodes": 9}]);
    stage.spot_pool("p", json!({"replicas": count, "agentPools": pools})).await?;
    let count = i32::try_from(count)?;
    stage
        .status_is("p", "all to be ready", |status| {
            status.ready_replicas == count && status.agent_pools.iter().all(|pool| pool.operation.is_none())
        })
        .await?;
    eventually("labels on the nodes", async || {
        let nodes = stage.nodes(&a).await?;
        Ok(nodes.iter().all(|node| node.labels().contains_key(names::POOL_LABEL)).then_some(()))
    })
    .await?;
    Ok((stage, operator))
}

fn drills(stage: &Stage<'_>) -> Api<EvictionDrill> {
    Api::namespaced(stage.world.client.clone(), &stage.name)
}

/// Applies a drill of SpotPool `p`, of this much besides.
async fn drill(stage: &Stage<'_>, name: &str, spec: Value) -> Result<EvictionDrill> {
    let mut whole = json!({"target": {"spotPool": "p"}, "limits": {"maxNodes": 5}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let drill = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill",
        "metadata": {"name": name, "namespace": stage.name}, "spec": whole});
    let params = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("e2e").force()
    };
    Ok(drills(stage).patch(name, &params, &Patch::Apply(drill)).await?)
}

/// Waits until the drill is as wanted; on failure tells how it was at last.
async fn drill_is(
    stage: &Stage<'_>,
    name: &str,
    what: &str,
    holds: impl Fn(&EvictionDrillStatus) -> bool,
) -> Result<EvictionDrillStatus> {
    let status = async || anyhow::Ok(drills(stage).get(name).await?.status.unwrap_or_default());
    match eventually(what, async || Ok(Some(status().await?).filter(&holds))).await {
        Ok(status) => Ok(status),
        Err(error) => {
            let status = serde_json::to_string_pretty(&status().await?)?;
            Err(error.context(format!("drill {}/{name} is {status}", stage.name)))
        }
    }
}

/// Waits for its end.
async fn over(stage: &Stage<'_>, name: &str) -> Result<EvictionDrillStatus> {
    drill_is(stage, name, "the end of the drill", |status| {
        status.phase.is_some_and(|phase| phase != DrillPhase::Pending && !phase.is_under_way())
    })
    .await
}

/// A pod on a node, that runs.
async fn pod(stage: &Stage<'_>, namespace: &str, node: &str, name: &str) -> Pod {
    let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), namespace);
    let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"nodeName": node,
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "none"}],
        "tolerations": [{"operator": "Exists"}]}});
    create(&pods, pod).await.unwrap();
    eventually("the pod to run", async || Ok(Some(pods.get(name).await?).filter(is_ready))).await.unwrap()
}

/// Whether nothing of a rehearsal is left on a node.
fn is_open(node: &Node) -> bool {
    let has = |key: &str| node.annotations().contains_key(key);
    spotpool_e2e::objects::takes_pods(node)
        && !has(names::DRAIN_REQUEST_ANNOTATION)
        && !has(names::DRAIN_STATUS_ANNOTATION)
}

/// Machines that were ordered for the stage, in all.
async fn ordered(stage: &Stage<'_>) -> usize {
    let state = stage.world.sim.state().await.unwrap();
    let of = |pool: String| state.writes_to(&pool).map(|write| write.machines_ordered.len()).sum::<usize>();
    of(format!("{}a", stage.name)) + of(format!("{}b", stage.name))
}
