//! `doctor` on a cluster where many things are wrong: each is found, by what really stands in the cluster.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::objects::{apply, create};
use spotpool_e2e::{Stage, World, WorldOptions, eventually, run};

use crate::{Plugin, keep_example, soon_silent};

/// A namespace that no operator watches.
const UNWATCHED: &str = "elsewhere";

#[test]
fn the_doctor_finds_each_of_many_things_that_are_wrong() {
    run(async {
        // No agents: that is the first of them.
        let world = World::start(WorldOptions { agents: false, ..WorldOptions::default() }).await.unwrap();
        let stage = Stage::set(&world, "sick").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("sicka", "Standard_D4s_v5", 2),
                PoolSpec::regular("sickr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        seed(&stage).await;
        let plugin = Plugin::new(&world.programs.kubectl_plugin, world.cluster.admin_kubeconfig());

        // While the operator lives, its own word is what is wrong with SpotPools.
        let operator = stage.operator(&soon_silent()).await.unwrap();
        let alive = [
            "agents-installed",
            "flow-control",
            "admission-policies",
            "agent-pools-exist",
            "agent-pools-claimed",
            "spot-room",
            "fallback",
            "fallback-agent-pools",
            "cost-tags",
            "switched-off",
            "failback-paused",
            "budgets-that-block",
            "budgets-of-single-pods",
            "budgets-that-overlap",
            "tolerations",
            "spot-only",
            "autoscalers",
            "cordons",
            "notices",
            "clocks",
        ];
        found(&plugin, &alive).await;

        // It loses its rights and dies.
        let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(world.client.clone());
        bindings.delete("spotpool-operator-sick", &DeleteParams::default()).await.unwrap();
        operator.process.kill().unwrap();
        operator.process.wait().await;
        let pool = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": "unseen", "namespace": UNWATCHED},
            "spec": {"replicas": 1, "agentPools": [{"name": "other", "maxNodes": 1}]}});
        apply(&world.client, &pool.to_string(), |_| ()).await.unwrap();
        denied(&stage).await;
        let dead = ["operator-lease", "operator-rights", "azure-reachable", "azure-permissions", "stalled"];
        let report = found(&plugin, &dead).await;
        let of = |check: &str| -> Value {
            report["findings"].as_array().unwrap().iter().find(|it| it["check"] == check).unwrap().clone()
        };
        assert!(
            of("operator-rights")["wrong"].as_str().unwrap().contains("patch nodes"),
            "{}",
            of("operator-rights")
        );
        for finding in report["findings"].as_array().unwrap() {
            assert!(
                !finding["wrong"].as_str().unwrap().is_empty()
                    && !finding["fix"].as_str().unwrap().is_empty()
            );
        }
        assert!(found(&plugin, &["pools-watched"]).await.is_object(), "it takes a minute until that is sure");
        let said = plugin.run("doctor").await;
        assert_eq!((said.code, said.err.as_str()), (1, ""), "it has said all");
        assert!(said.out.contains("\n      fix: "), "{}", said.out);
        keep_example("doctor-of-a-sick-cluster", &format!("$ kubectl spotpool doctor\n{}", said.out));
        world.stop().await.unwrap();
    });
}

/// Waits until each of these checks has found something, and gives the report.
async fn found(plugin: &Plugin, checks: &[&str]) -> Value {
    eventually("each fault to be found", async || {
        let report = plugin.run("doctor -o json").await.json();
        let found: Vec<&str> =
            report["findings"].as_array().unwrap().iter().map(|it| it["check"].as_str().unwrap()).collect();
        let missing: Vec<_> = checks.iter().filter(|check| !found.contains(check)).collect();
        anyhow::ensure!(missing.is_empty(), "not found: {missing:?} in {found:?}");
        Ok(Some(report))
    })
    .await
    .unwrap()
}

/// What is wrong before anybody looks.
async fn seed(stage: &Stage<'_>) {
    let client = &stage.world.client;
    create(&Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": UNWATCHED}})).await.unwrap();
    let flows: Api<k8s_openapi::api::flowcontrol::v1::FlowSchema> = Api::all(client.clone());
    flows.delete("spotpool-agent-drains", &DeleteParams::default()).await.unwrap();
    let policies: Api<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding> =
        Api::all(client.clone());
    policies.delete("spotpool-agent-own-pods", &DeleteParams::default()).await.unwrap();

    // Its own agent pools; one that is not there; too little room; no tags; nothing to fall back on.
    let pools = json!([{"name": "sicka", "maxNodes": 3}, {"name": "nowhere", "maxNodes": 3}]);
    let spec = json!({"replicas": 9, "agentPools": pools, "costTags": ["team"], "onDemand": {"baseline": 1}});
    let first = stage.spot_pool("first", spec).await.unwrap();
    // Creation times are whole seconds, and the older has the agent pool.
    eventually("the next second", async || {
        let created = first.metadata.creation_timestamp.as_ref().unwrap().0;
        Ok((jiff::Timestamp::now().as_second() > created.as_second()).then_some(()))
    })
    .await
    .unwrap();
    let pools = json!([{"name": "sicka", "maxNodes": 3}]);
    stage.spot_pool("second", json!({"replicas": 1, "agentPools": pools, "suspend": true})).await.unwrap();
    let pause = Patch::Merge(json!({"metadata": {"annotations": {"spotpool.dev/failback-paused": "true"}}}));
    stage.spot_pools().patch("first", &PatchParams::default(), &pause).await.unwrap();
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "demand", "namespace": stage.name}, "spec": {"maxReplicas": 9,
        "scaleTargetRef": {"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "name": "second"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    apply(client, &scaler.to_string(), |_| ()).await.unwrap();

    // Nodes that somebody has cordoned, and one whose notice is of tomorrow.
    let nodes = stage.nodes("sicka").await.unwrap();
    let api: Api<Node> = Api::all(client.clone());
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    api.patch(&nodes[0].name_any(), &PatchParams::default(), &cordon).await.unwrap();
    let notice = json!({"by": "NodeAgent", "eventId": "E", "type": "SpotRebalanceRecommendation", "source": "IMDS",
        "observedAt": "2099-01-01T00:00:00Z", "deadline": "2099-01-01T00:00:30Z", "phase": "Noticed",
        "response": "Ignore", "cordoned": false, "bootID": "b"});
    annotate(&api, &nodes[1].name_any(), "spotpool.dev/eviction", &notice.to_string()).await;
    // Another tool's node, with an annotation that nobody can read.
    let stray = json!({"metadata": {"name": "stray", "annotations": {"spotpool.dev/eviction": "{"}}});
    create(&api, stray).await.unwrap();

    let spot = json!({"kubernetes.azure.com/scalesetpriority": "spot"});
    workload(stage, "intolerant", 2, &json!({"nodeSelector": spot})).await;
    let all = json!([{"operator": "Exists"}]);
    workload(stage, "spotonly", 2, &json!({"nodeSelector": spot, "tolerations": all})).await;
    workload(stage, "alone", 1, &json!({"tolerations": all})).await;
    for (name, app, least) in [("strict", "spotonly", 2), ("lax", "spotonly", 1), ("alone", "alone", 1)] {
        let budget = json!({"metadata": {"name": name},
            "spec": {"minAvailable": least, "selector": {"matchLabels": {"app": app}}}});
        let api: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &stage.name);
        create(&api, budget).await.unwrap();
    }
    // A SpotPool that stands in for spot, so that those who run on spot alone lose by it.
    let pools = json!([{"name": "sickr", "maxNodes": 2}]);
    let spec = json!({"replicas": 0, "agentPools": pools, "fallback": {"maxNodes": 1}});
    stage.spot_pool("third", spec).await.unwrap();
}

async fn annotate(api: &Api<Node>, node: &str, key: &str, value: &str) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
    api.patch(node, &PatchParams::default(), &patch).await.unwrap();
}

async fn workload(stage: &Stage<'_>, name: &str, replicas: i32, pod: &Value) {
    let mut spec = json!({"containers": [{"name": "main", "image": "none"}]});
    spec.as_object_mut().unwrap().extend(pod.as_object().unwrap().clone());
    let deployment = json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}});
    create(&Api::<Deployment>::namespaced(stage.world.client.clone(), &stage.name), deployment)
        .await
        .unwrap();
}

/// As an operator without rights in Azure would have left the status: it is dead by now.
async fn denied(stage: &Stage<'_>) {
    let now = jiff::Timestamp::now();
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "for a test",
            "lastTransitionTime": format!("{now:.0}")})
    };
    let mut pool = stage.spot_pools().get("third").await.unwrap();
    let status = json!({"observedGeneration": 1, "conditions": [
        condition("AzureReachable", "False", "AzureUnreachable"), condition("Stalled", "True", "WindowInvalid")],
        "agentPools": [{"name": "sickr", "role": "OnDemand", "lastError": {"code": "AuthorizationFailed",
            "class": "Denied", "message": "does not have authorization", "time": format!("{now:.0}")}}]});
    pool.status = Some(serde_json::from_value(status).unwrap());
    pool.metadata.managed_fields = None;
    stage.spot_pools().replace_status("third", &PostParams::default(), &pool).await.unwrap();
}
