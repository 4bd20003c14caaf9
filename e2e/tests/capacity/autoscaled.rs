//! Row V: agent pools that the cluster autoscaler scales. Their minimum is moved, their maximum respected, and nothing
//! else of them is touched. The simulator's autoscaler brings what a minimum lacks, and takes no node away.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{ArmWrite, PoolSpec};
use spotpool_crds::spot_pool::AutoscalerStatus;
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::world;

fn autoscaled(name: &str, count: u32, min: u32, max: u32) -> PoolSpec {
    PoolSpec::spot(name, "Standard_D4s_v5", count)
        .property("enableAutoScaling", json!(true))
        .property("minCount", json!(min))
        .property("maxCount", json!(max))
}

fn range<'a>(status: &'a SpotPoolStatus, agent_pool: &str) -> Option<&'a AutoscalerStatus> {
    status.agent_pools.iter().find(|pool| pool.name == agent_pool)?.autoscaler.as_ref()
}

fn minimum(status: &SpotPoolStatus, agent_pool: &str) -> i32 {
    range(status, agent_pool).map_or(-1, |range| range.min)
}

/// Nothing runs in Azure, and nothing is asked for.
fn is_settled(status: &SpotPoolStatus) -> bool {
    status.agent_pools.iter().all(|pool| pool.operation.is_none() && pool.provisioning_state == "Succeeded")
}

/// As its agent does, and Azure.
async fn evict(stage: &Stage<'_>, node: &str) {
    let notice = json!({"by": "NodeAgent", "eventId": "E", "type": "Preempt", "source": "IMDS",
        "observedAt": jiff::Timestamp::now(), "deadline": jiff::Timestamp::now() + jiff::SignedDuration::from_secs(10),
        "phase": "Drained", "cordoned": true, "bootID": "b"});
    let marks = json!({"metadata": {"annotations": {names::EVICTION_ANNOTATION: notice.to_string()}},
        "spec": {"unschedulable": true}});
    let nodes: Api<Node> = Api::all(stage.world.client.clone());
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(marks)).await.unwrap();
    stage.world.sim.evict(&[node], Duration::from_secs(10)).await.unwrap();
}

async fn writes(stage: &Stage<'_>, agent_pool: &str) -> Vec<ArmWrite> {
    let state = stage.world.sim.state().await.unwrap();
    state.writes_to(agent_pool).filter(|write| write.status < 300).cloned().collect()
}

/// Only minimums were written, inside the range that people gave.
fn assert_only_minimums(writes: &[ArmWrite], own_min: u64, max: u64) {
    for write in writes {
        let properties = &write.body["properties"];
        assert_eq!(write.kind, "PUT pool", "no machine is deleted: {write:?}");
        assert_eq!(properties["count"].as_u64(), write.count_before, "the count is left alone: {write:?}");
        assert_eq!(properties["maxCount"], max, "the maximum is left alone: {write:?}");
        let min = properties["minCount"].as_u64().unwrap();
        assert!((own_min..=max).contains(&min), "{write:?}");
    }
}

fn last_minimum(writes: &[ArmWrite]) -> Option<u64> {
    writes.last()?.body["properties"]["minCount"].as_u64()
}

#[test]
fn capacity_is_asked_for_held_and_returned_by_minimums_alone() {
    run(async {
        let stage = Stage::set(world().await, "auto").await.unwrap();
        stage.agent_pools(&[autoscaled("autoa", 2, 1, 3), autoscaled("autob", 0, 0, 3)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "autoa", "maxNodes": 5}, {"name": "autob", "maxNodes": 5}]);
        let spec = json!({"replicas": 2, "agentPools": pools, "failback": {"stabilization": "2s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let held = |status: &SpotPoolStatus| minimum(status, "autoa") == 2 && is_settled(status);
        let status = stage.status_is("p", "what is counted on to be held", held).await.unwrap();
        assert_eq!((status.ready_replicas, range(&status, "autoa").unwrap().own_min), (2, 1));

        let name = stage.nodes("autoa").await.unwrap()[0].name_any();
        evict(&stage, &name).await;
        let replaced = |status: &SpotPoolStatus| {
            let minimums = (minimum(status, "autoa"), minimum(status, "autob"));
            status.ready_replicas == 2 && minimums == (1, 1) && is_settled(status)
        };
        stage.status_is("p", "the other agent pool to stand in", replaced).await.unwrap();
        eventually("the VM to be gone", async || {
            let state = stage.world.sim.state().await?;
            Ok(state.vms_of("autoa").all(|vm| vm.node != name).then_some(()))
        })
        .await
        .unwrap();

        // One whose VM did not last for five minutes is left alone for a while.
        stage.replicas("p", 7).await.unwrap();
        let bound = |status: &SpotPoolStatus| {
            let said = status.plan.iter().any(|step| {
                step.reason.to_string() == "AutoscalerAtMaximum" && step.message.contains("raise maxCount")
            });
            said && status.ready_replicas == 4 && is_settled(status)
        };
        let status = stage.status_is("p", "the maximum to be reached and said", bound).await.unwrap();
        assert_eq!((minimum(&status, "autoa"), minimum(&status, "autob")), (1, 3));

        stage.replicas("p", 2).await.unwrap();
        let lowered = |status: &SpotPoolStatus| {
            minimum(status, "autoa") + minimum(status, "autob") == 2 && is_settled(status)
        };
        let status = stage.status_is("p", "minimums to be lowered", lowered).await.unwrap();
        assert_eq!(status.fallback.draining, [""; 0]);
        let state = stage.world.sim.state().await.unwrap();
        let left = state.pool("autoa").unwrap().machines + state.pool("autob").unwrap().machines;
        assert_eq!(left, 4, "which of them go is the autoscaler's to decide");

        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        eventually("the SpotPool to be gone", async || {
            Ok(stage.spot_pools().get_opt("p").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        let (a, b) = (writes(&stage, "autoa").await, writes(&stage, "autob").await);
        assert_eq!((last_minimum(&a), last_minimum(&b)), (Some(1), Some(0)), "as people had them");
        assert_only_minimums(&a, 1, 3);
        assert_only_minimums(&b, 0, 3);
        operator.stop().await.unwrap();
    });
}

/// As `terraform apply` writes an agent pool.
async fn put_minimum(stage: &Stage<'_>, agent_pool: &str, min: u32) {
    let sim = &stage.world.sim;
    let identity = sim.state().await.unwrap().identity;
    let url = format!(
        "{}/subscriptions/{}/resourceGroups/{}/providers/Microsoft.ContainerService/managedClusters/{}/agentPools/{agent_pool}?api-version=2025-10-01",
        sim.base_url(),
        identity.subscription,
        identity.resource_group,
        identity.cluster
    );
    let client = reqwest::Client::new();
    eventually("the minimum to be written by hand", async || {
        let read = client.get(&url).send().await?.bytes().await?;
        let mut body: Value = serde_json::from_slice(&read)?;
        let properties = body["properties"].as_object_mut().unwrap();
        properties
            .retain(|key, _| ["count", "maxCount", "vmSize", "enableAutoScaling"].contains(&key.as_str()));
        properties.insert("minCount".into(), json!(min));
        let body = json!({"properties": properties}).to_string();
        let put = client.put(&url).header("content-type", "application/json").body(body).send().await?;
        Ok(put.status().is_success().then_some(()))
    })
    .await
    .unwrap();
}

#[test]
fn a_minimum_set_by_hand_is_said_and_one_of_an_agent_pool_taken_off_is_returned() {
    run(async {
        let stage = Stage::set(world().await, "autoh").await.unwrap();
        stage.agent_pools(&[autoscaled("autohx", 3, 1, 4), autoscaled("autohy", 0, 0, 4)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "autohx", "maxNodes": 5}, {"name": "autohy", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 3, "agentPools": pools})).await.unwrap();
        let held = |status: &SpotPoolStatus| minimum(status, "autohx") == 3 && is_settled(status);
        stage.status_is("p", "what is counted on to be held", held).await.unwrap();

        put_minimum(&stage, "autohx", 0).await;
        // Something to do, so that Azure is read again now and not in a minute and a half.
        stage.replicas("p", 4).await.unwrap();
        let seen = |status: &SpotPoolStatus| {
            let owner = status.conditions.iter().find(|it| it.type_ == "SoleOwner");
            owner.is_some_and(|it| {
                it.reason == "MinimumChangedElsewhere" && it.message.contains("from 3 to 0")
            })
        };
        stage.status_is("p", "the change to be said", seen).await.unwrap();
        let held = |status: &SpotPoolStatus| minimum(status, "autohx") >= 3 && is_settled(status);
        let status = stage.status_is("p", "the minimum to be raised again", held).await.unwrap();
        assert_eq!(range(&status, "autohx").unwrap().own_min, 0, "what was set by hand is people's own");

        let pools = json!([{"name": "autohy", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let released = |status: &SpotPoolStatus| {
            status.agent_pools.iter().all(|pool| pool.name != "autohx") && minimum(status, "autohy") >= 0
        };
        stage.status_is("p", "its minimum to be returned", released).await.unwrap();
        let writes = writes(&stage, "autohx").await;
        assert_eq!(last_minimum(&writes), Some(0));
        assert!(stage.nodes("autohx").await.unwrap().len() >= 3, "its nodes stay");
        operator.stop().await.unwrap();
    });
}

/// They have a range for each size and none as a whole: a count would fight the autoscaler.
#[test]
fn an_autoscaled_agent_pool_of_single_vms_is_left_alone_and_the_others_serve() {
    run(async {
        let stage = Stage::set(world().await, "autosingle").await.unwrap();
        let autoscale = json!({"size": "Standard_D4s_v5", "minCount": 1, "maxCount": 5});
        let single = PoolSpec::spot("autosinglea", "Standard_D4s_v5", 1)
            .property("type", json!("VirtualMachines"))
            .property("virtualMachinesProfile", json!({"scale": {"autoscale": autoscale}}));
        stage.agent_pools(&[single, PoolSpec::spot("autosingleb", "Standard_D4s_v5", 0)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "autosinglea", "maxNodes": 5}, {"name": "autosingleb", "maxNodes": 5}]);
        stage.spot_pool("autosingle", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        let status =
            stage.status_is("autosingle", "the other to serve", |it| it.ready_replicas == 2).await.unwrap();
        let refused = status.agent_pools.iter().find(|pool| pool.name == "autosinglea").unwrap();
        assert_eq!(refused.unusable, Some(spotpool_crds::Reason::AgentPoolUnsuitable));
        let said = status.plan.iter().find(|step| step.agent_pool.as_deref() == Some("autosinglea")).unwrap();
        assert!(said.message.contains("single VMs"), "{}", said.message);
        assert!(writes(&stage, "autosinglea").await.is_empty());
        operator.stop().await.unwrap();
    });
}
