//! Apiserver and etcd die while a node is drained, and come back with what etcd had written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::VmState;
use spotpool_crds::names;
use spotpool_e2e::faults::Wanted;
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{World, WorldOptions, eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::scene::Scene;

/// Long enough that a drain that begins before the servers die can end after they have come back.
const NOTICE: Duration = Duration::from_secs(30);
const AWAY: Duration = Duration::from_secs(4);

/// A pod on the doomed node that its budget holds for some seconds: so the servers die in the middle of the drain.
async fn held_pod(scene: &Scene<'_>) -> Result<(String, Api<Pod>)> {
    let node = scene.stage.nodes(scene.doomed()).await?.first().context("no node")?.name_any();
    let client = scene.stage.world.client.clone();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &scene.stage.name);
    let budget = json!({"metadata": {"name": "held"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}});
    create(&Api::<PodDisruptionBudget>::namespaced(client, &scene.stage.name), budget).await?;
    let pod = json!({"metadata": {"name": "held", "labels": {"app": "held"}}, "spec": {"nodeName": node,
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "none"}]}});
    create(&pods, pod).await?;
    eventually("the pod to run", async || Ok(Some(pods.get("held").await?).filter(is_ready))).await?;
    Ok((node, pods))
}

async fn is_noticed(scene: &Scene<'_>) -> Result<()> {
    eventually("the notice on the node", async || {
        let nodes = scene.stage.nodes(scene.doomed()).await?;
        let is_noticed = nodes.iter().any(|it| it.annotations().contains_key(names::EVICTION_ANNOTATION));
        Ok(is_noticed.then_some(()))
    })
    .await
}

/// The pod is told to go while its VM still runs.
async fn is_drained(scene: &Scene<'_>, pods: &Api<Pod>) -> Result<()> {
    let goes = async || {
        let pod = pods.get_opt("held").await?;
        Ok(pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()).then_some(()))
    };
    eventually("the pod to go", goes).await?;
    let state = scene.stage.world.sim.state().await?;
    ensure!(state.vms_of(scene.doomed()).any(VmState::is_up), "the VM went before its pod");
    Ok(())
}

/// Two evictions at once while those of `dead` are away. Of one, agent and operator are killed at the same moment.
async fn both_evicted(world: &World, round: usize, dead: &[&str]) -> Result<()> {
    let (alone, mut killed) =
        (Scene::set(world, &format!("s{round}x")).await?, Scene::set(world, &format!("s{round}k")).await?);
    let ((_, alone_pods), (node, killed_pods)) = (held_pod(&alone).await?, held_pod(&killed).await?);
    for scene in [&alone, &killed] {
        scene.evict(NOTICE).await?;
    }
    for scene in [&alone, &killed] {
        is_noticed(scene).await?;
    }
    if dead.contains(&"etcd") {
        world.cluster.stop_etcd().await?;
    }
    if dead.contains(&"apiserver") {
        world.cluster.stop_apiserver().await?;
    }
    killed.operator.process.kill()?;
    world.agents.as_ref().context("no agents")?.signal(&node, Signal::SIGKILL)?;
    tokio::time::sleep(AWAY).await;
    world.cluster.start_etcd().await?;
    world.cluster.start_apiserver().await?;
    killed.operator.process.wait().await;
    killed.revive().await?;
    is_drained(&alone, &alone_pods).await?;
    is_drained(&killed, &killed_pods).await?;
    for mut scene in [alone, killed] {
        scene.ends(None).await.with_context(|| scene.stage.name.clone())?;
        scene.strike().await?;
    }
    Ok(())
}

#[test]
fn apiserver_and_etcd_die_in_a_drain_agent_and_operator_with_them_and_the_end_is_the_same() {
    run(async {
        let options = WorldOptions { boot_time: Duration::from_secs(2), ..WorldOptions::default() };
        let world = World::start(options).await.unwrap();
        let is_long = Wanted::read().unwrap().plans.as_deref() == Some("all");
        let rounds: &[&[&str]] = if is_long {
            &[&["etcd", "apiserver"], &["apiserver"], &["etcd"]]
        } else {
            &[&["etcd", "apiserver"]]
        };
        for (round, dead) in rounds.iter().enumerate() {
            both_evicted(&world, round, dead).await.with_context(|| format!("{dead:?} away")).unwrap();
        }
        world.stop().await.unwrap();
    });
}
