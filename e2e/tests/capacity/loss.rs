//! Row F: VMs that go without a notice. Nobody cleans up behind them, so their pods would wait for minutes, and their
//! capacity for ever.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Targets, VmPhase};
use spotpool_crds::names;
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::world;

pub fn nodes(stage: &Stage<'_>) -> Api<Node> {
    Api::all(stage.world.client.clone())
}

pub fn has_taint(node: &Node, key: &str) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == key)
}

/// A pod on a node, running.
pub async fn pod(stage: &Stage<'_>, name: &str, node: &str) -> Api<Pod> {
    let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), &stage.name);
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}});
    eventually("a pod to be accepted", async || create(&pods, pod.clone()).await.map(Some)).await.unwrap();
    eventually("a pod to run", async || Ok(Some(pods.get(name).await?).filter(is_ready))).await.unwrap();
    pods
}

#[test]
fn a_vm_that_is_gone_frees_its_pods_is_replaced_elsewhere_and_counts_against_its_agent_pool() {
    run(async {
        let stage = Stage::set(world().await, "loss").await.unwrap();
        let sim = &stage.world.sim;
        let pools = [
            PoolSpec::spot("lossa", "Standard_D4s_v5", 2).switches(json!({"leavesNodes": true})),
            PoolSpec::spot("lossb", "Standard_D4s_v5", 0),
        ];
        stage.agent_pools(&pools).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "lossa", "maxNodes": 5}, {"name": "lossb", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        let lost = stage.nodes("lossa").await.unwrap()[0].name_any();
        let pods = pod(&stage, "web", &lost).await;

        // The VM is gone with no notice; its Node stays, silent.
        sim.kill(&Targets::named(&[&lost])).await.unwrap();
        eventually("the pod to be set free", async || Ok(pods.get_opt("web").await?.is_none().then_some(())))
            .await
            .unwrap();
        assert!(has_taint(&nodes(&stage).get(&lost).await.unwrap(), names::OUT_OF_SERVICE_TAINT));
        let status = stage
            .status_is("p", "the replacement, elsewhere", |status| {
                let of = |name: &str| status.agent_pools.iter().find(|pool| pool.name == name);
                status.ready_replicas == 2 && of("lossb").is_some_and(|pool| pool.ready == 1)
            })
            .await
            .unwrap();
        let of_lost = status.agent_pools.iter().find(|pool| pool.name == "lossa").unwrap();
        assert_eq!(of_lost.losses.as_ref().map(|losses| losses.count), Some(1));
        assert!(of_lost.avoided_until.is_some(), "it went minutes after it came: {of_lost:?}");
        let state = sim.state().await.unwrap();
        let alive = state.vms_of("lossa").chain(state.vms_of("lossb")).filter(|vm| vm.phase != VmPhase::Gone);
        assert_eq!(alive.count(), 2, "one for one");
        let counted = "without_notice_total{namespace=\"loss\",pool=\"p\",agent_pool=\"lossa\"} 1";
        eventually("the loss to be counted", async || {
            let metrics = reqwest::get(format!("{}/metrics", operator.admin_url)).await?.text().await?;
            Ok(metrics.contains(counted).then_some(()))
        })
        .await
        .unwrap();

        sim.switch_pool("lossa", &json!({"leavesNodes": false})).await.unwrap();
        eventually("the Node to go", async || {
            Ok(nodes(&stage).get_opt(&lost).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_silent_node_whose_vm_runs_keeps_its_pods() {
    run(async {
        let stage = Stage::set(world().await, "silent").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("silenta", "Standard_D4s_v5", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "silenta", "maxNodes": 1}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "1 ready", |status| status.ready_replicas == 1).await.unwrap();
        let name = stage.nodes("silenta").await.unwrap()[0].name_any();
        let pods = pod(&stage, "web", &name).await;
        // The kubelet falls silent, and not even the shutdown taint that somebody forgot makes the VM dead.
        let silent = json!({"metadata": {"labels": {"type": null}},
            "spec": {"taints": [{"key": names::SHUTDOWN_TAINT, "effect": "NoSchedule"}]}});
        nodes(&stage).patch(&name, &PatchParams::default(), &Patch::Merge(silent)).await.unwrap();
        let condition = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "lastTransitionTime": format!("{:.0}", jiff::Timestamp::now())});
        let status = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        nodes(&stage).patch_status(&name, &PatchParams::default(), &status).await.unwrap();
        stage.status_is("p", "it to be missed", |status| status.ready_replicas == 0).await.unwrap();
        let asked = async || {
            let text = reqwest::get(format!("{}/metrics", operator.admin_url)).await?.text().await?;
            let line = text.lines().find(|line| line.contains("operation=\"instances\"")).map(str::to_owned);
            let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            anyhow::Ok(count.filter(|count| *count >= 2.0))
        };
        eventually("Azure to be asked twice", asked).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!has_taint(&nodes(&stage).get(&name).await.unwrap(), names::OUT_OF_SERVICE_TAINT));
        assert!(pods.get("web").await.unwrap().metadata.deletion_timestamp.is_none());
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.writes_to("silenta").count(), 0, "a VM that runs is not deleted");
        operator.stop().await.unwrap();
    });
}
