//! Row E: agent pools whose evicted VMs stay, deallocated, and use quota.

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use spotpool_azure_sim::api::{EventRequest, PoolSpec, Targets, VmPhase};
use spotpool_crds::names;
use spotpool_e2e::objects::takes_pods;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::loss::{has_taint, nodes, pod};
use crate::world;

fn deallocates(name: &str, count: u32) -> PoolSpec {
    PoolSpec::spot(name, "Standard_D4s_v5", count).property("scaleSetEvictionPolicy", json!("Deallocate"))
}

#[test]
fn a_deallocated_vm_is_deleted_and_replaced_elsewhere() {
    run(async {
        let stage = Stage::set(world().await, "replace").await.unwrap();
        let sim = &stage.world.sim;
        let pools = [deallocates("replacea", 2), PoolSpec::spot("replaceb", "Standard_D4s_v5", 0)];
        stage.agent_pools(&pools).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "replacea", "maxNodes": 5}, {"name": "replaceb", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        let lost = stage.nodes("replacea").await.unwrap()[0].name_any();
        let pods = pod(&stage, "web", &lost).await;
        let at_once =
            EventRequest::new("Preempt", Targets::named(&[&lost]), std::time::Duration::from_secs(1));
        sim.schedule(&at_once).await.unwrap();
        eventually("the pod to be set free", async || Ok(pods.get_opt("web").await?.is_none().then_some(())))
            .await
            .unwrap();
        eventually("the machine to be deleted", async || {
            let state = sim.state().await?;
            Ok(state.vm(&lost).is_none_or(|vm| vm.phase == VmPhase::Gone).then_some(()))
        })
        .await
        .unwrap();
        stage.status_is("p", "2 ready again", |status| status.ready_replicas == 2).await.unwrap();
        assert_eq!(stage.nodes("replacea").await.unwrap().iter().filter(|node| takes_pods(node)).count(), 1);
        let state = sim.state().await.unwrap();
        assert_eq!(state.pool("replacea").unwrap().count, 1, "its count is free");
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_deallocated_vm_is_started_again_and_its_node_is_clean() {
    run(async {
        let stage = Stage::set(world().await, "restart").await.unwrap();
        let sim = &stage.world.sim;
        stage.agent_pools(&[deallocates("restarta", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        // No room for another: what comes back is this one.
        let pools = json!([{"name": "restarta", "maxNodes": 1, "onDeallocated": "Restart"}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "1 ready", |status| status.ready_replicas == 1).await.unwrap();
        let name = stage.nodes("restarta").await.unwrap()[0].name_any();
        let at_once =
            EventRequest::new("Preempt", Targets::named(&[&name]), std::time::Duration::from_secs(1));
        sim.schedule(&at_once).await.unwrap();
        eventually("the node to be out of service", async || {
            Ok(has_taint(&nodes(&stage).get(&name).await?, names::OUT_OF_SERVICE_TAINT).then_some(()))
        })
        .await
        .unwrap();
        // As its agent left it when the VM went.
        let notice = json!({"by": "NodeAgent", "eventId": "E", "type": "Preempt", "source": "IMDS",
            "observedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:00:30Z", "phase": "Drained",
            "cordoned": true, "bootID": "before"});
        let marks = json!({"metadata": {"annotations": {names::EVICTION_ANNOTATION: notice.to_string()}},
            "spec": {"unschedulable": true}});
        nodes(&stage).patch(&name, &PatchParams::default(), &Patch::Merge(marks)).await.unwrap();
        let status = stage
            .status_is("p", "an attempt to start it", |status| status.agent_pools[0].restarts.is_some())
            .await
            .unwrap();
        assert_eq!(status.agent_pools[0].restarts.as_ref().unwrap().count, 1);
        let status =
            stage.status_is("p", "it to be ready again", |status| status.ready_replicas == 1).await.unwrap();
        assert_eq!(status.agent_pools[0].restarts, None, "nothing is left to start");
        let node = nodes(&stage).get(&name).await.unwrap();
        assert!(takes_pods(&node) && !has_taint(&node, names::OUT_OF_SERVICE_TAINT), "{:?}", node.spec);
        let state = sim.state().await.unwrap();
        assert_eq!((state.vm(&name).unwrap().reboots, state.writes_to("restarta").count()), (1, 0));
        operator.stop().await.unwrap();
    });
}
