//! The operator uses every right that its manifests give it, and asks for none that they do not.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Envelope, Fault, FaultAction, FaultTarget, PoolSpec, Targets};
use spotpool_e2e::objects::{apply, create, is_ready};
use spotpool_e2e::proxy::{Proxy, Spring};
use spotpool_e2e::rights::{Rights, each_is_missed, granted, right};
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

const RBAC: &str = include_str!("../../../charts/rendered/operator/rbac.yaml");

/// What the operator of a namespace has asked for, and what of it was denied.
fn asked(world: &World, namespace: &str) -> (Rights, Rights) {
    let user = format!("system:serviceaccount:{namespace}:spotpool-operator");
    let log = std::fs::read_to_string(world.cluster.audit_log().unwrap()).unwrap();
    let (mut asked, mut denied) = (Rights::new(), Rights::new());
    for line in log.lines().filter(|line| line.contains(&user)) {
        // The last line may be half written.
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let object = &entry["objectRef"];
        let Some(resource) = object["resource"].as_str() else { continue };
        let sub = object["subresource"].as_str().map(|sub| format!("/{sub}")).unwrap_or_default();
        let group = object["apiGroup"].as_str().unwrap_or_default();
        let right = right(entry["verb"].as_str().unwrap(), group, &format!("{resource}{sub}"));
        if entry["responseStatus"]["code"] == 403 {
            denied.insert(right.clone());
        }
        asked.insert(right);
    }
    (asked, denied)
}

#[test]
fn the_operator_needs_every_right_that_the_chart_gives_it() {
    run(async {
        let mut options = WorldOptions { agents: false, ..WorldOptions::default() };
        options.cluster.audit_log = true;
        let world = World::start(options).await.unwrap();
        tokio::select! {
            () = uses_every_right(&world) => {}
            never = is_denied_nothing(&world) => match never {},
        }
        world.stop().await.unwrap();
    });
}

/// Ten minutes: without any one of the rights the test above fails.
#[test]
#[ignore = "ten minutes: run it after a change of the rights"]
fn each_right_is_missed() {
    each_is_missed(RBAC, "rights::the_operator_needs_every_right_that_the_chart_gives_it").unwrap();
}

/// Ends with the first right that was missing.
async fn is_denied_nothing(world: &World) -> Infallible {
    loop {
        let (_, denied) = asked(world, "rights");
        assert!(denied.is_empty(), "denied: {denied:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn uses_every_right(world: &World) {
    let stage = Stage::set(world, "rights").await.unwrap();
    stage.agent_pools(&[PoolSpec::spot("rightsa", "Standard_D4s_v5", 2)]).await.unwrap();
    let proxy =
        Proxy::start(&stage.operator_kubeconfig().await.unwrap(), world.sim.base_url()).await.unwrap();
    let options = OperatorOptions {
        kubernetes: Some(proxy.kubernetes.clone()),
        azure_endpoint: Some(proxy.arm.clone()),
        ..OperatorOptions::default()
    };
    let operator = stage.operator(&options).await.unwrap();
    let pools = json!([{"name": "rightsa", "maxNodes": 5}]);
    stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
    stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
    let heal = async |what: &str| {
        world.sim.kill(&Targets::of_pool("rightsa", 1)).await.unwrap();
        stage.status_is("p", "the loss", |status| status.ready_replicas == 1).await.unwrap();
        stage.status_is("p", what, |status| status.ready_replicas == 2).await.unwrap();
    };
    // The same Event twice is a patch of the first.
    heal("the first loss made good").await;
    heal("the second loss made good").await;
    // Somebody changes the SpotPool while the report of a refused PUT is on the way: after the intention
    // and the PUT, the third write. The operator must look again rather than forget.
    eventually("calm", async || {
        let state = world.sim.state().await?;
        Ok(state.pool("rightsa").is_some_and(|pool| pool.operation.is_none()).then_some(()))
    })
    .await
    .unwrap();
    let action = FaultAction::Error {
        status: 409,
        code: "OperationNotAllowed".into(),
        message: "Another operation is in progress".into(),
        envelope: Envelope::Flat,
        retry_after: None,
    };
    let target = FaultTarget::arm("PUT", "/agentPools/rightsa");
    world.sim.add_fault(&Fault { target, times: Some(1), action }).await.unwrap();
    proxy.trap(3, Spring::Hold, operator.process.clone());
    world.sim.kill(&Targets::of_pool("rightsa", 1)).await.unwrap();
    eventually("the report to be on its way", async || Ok(proxy.sprung().then_some(()))).await.unwrap();
    let change = Patch::Merge(json!({"metadata": {"annotations": {"example.com/note": "changed"}}}));
    stage.spot_pools().patch("p", &PatchParams::default(), &change).await.unwrap();
    proxy.release();
    stage.status_is("p", "the third loss made good", |status| status.ready_replicas == 2).await.unwrap();

    // A node whose agent does not run is under notice, and a budget holds its pod.
    let node = stage.nodes("rightsa").await.unwrap()[0].name_any();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "rights");
    let pod = json!({"metadata": {"name": "held", "labels": {"app": "held"}}, "spec": {"nodeName": node,
            "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "none"}]}});
    create(&pods, pod).await.unwrap();
    eventually("the pod to run", async || Ok(Some(pods.get("held").await?).filter(is_ready))).await.unwrap();
    let budget = json!({"metadata": {"name": "held"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}});
    create(&Api::<PodDisruptionBudget>::namespaced(world.client.clone(), "rights"), budget).await.unwrap();
    let due = Timestamp::now() + Duration::from_secs(20);
    let message = format!("Preempt Scheduled: {}. EventId: E", due.strftime("%a, %d %b %Y %H:%M:%S GMT"));
    let condition = json!({"type": "PreemptionScheduled", "status": "True", "message": message,
            "lastTransitionTime": format!("{:.0}", Timestamp::now())});
    let condition = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.patch_status(&node, &PatchParams::default(), &condition).await.unwrap();
    eventually("the pod to be gone", async || Ok(pods.get_opt("held").await?.is_none().then_some(())))
        .await
        .unwrap();

    // A drill that only says what it would take.
    let drill = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill",
        "metadata": {"name": "d", "namespace": "rights"},
        "spec": {"target": {"spotPool": "p"}, "amount": {"count": 1}, "limits": {"maxNodes": 1}, "dryRun": true}});
    apply(&world.client, &drill.to_string(), |_| ()).await.unwrap();

    let wanted = granted(RBAC).unwrap();
    eventually("every right to be used", async || {
        let (asked, _) = asked(world, "rights");
        let idle: Vec<_> = wanted.difference(&asked).collect();
        anyhow::ensure!(idle.is_empty(), "never needed: {idle:?}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    let (asked, denied) = asked(world, "rights");
    assert!(denied.is_empty(), "denied: {denied:?}");
    assert_eq!(
        asked.difference(&wanted).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "asked for without a right"
    );
    operator.stop().await.unwrap();
}
