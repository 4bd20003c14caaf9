//! Row V: demand sets the wish through `/scale`, with Kubernetes' own HPA controller, which signs in as its own
//! ServiceAccount and has no rights but those that Kubernetes gives it.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_crds::{SpotPool, SpotPoolStatus, names};
use spotpool_e2e::objects::{apply, create, is_ready};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::external_metrics::external_metrics;
use crate::versions::Versions;
use crate::world;

/// What the documentation shows.
const EXAMPLE: &str = include_str!("../../../docs/examples/hpa.yaml");

/// Applies the example, for the SpotPool `p` and without its patience: a cut shows as soon as it is decided.
async fn hpa(stage: &Stage<'_>, change: impl Fn(&mut Value)) {
    apply(&stage.world.client, EXAMPLE, |hpa| {
        hpa["metadata"]["namespace"] = stage.name.as_str().into();
        hpa["spec"]["scaleTargetRef"]["name"] = "p".into();
        hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0.into();
        change(hpa);
    })
    .await
    .unwrap();
}

/// Waits until the HPA says why it cannot decide.
async fn undecided(stage: &Stage<'_>, why: &str) {
    let hpas: Api<HorizontalPodAutoscaler> = Api::namespaced(stage.world.client.clone(), &stage.name);
    eventually(&format!("the HPA to say {why}"), async || {
        let status = hpas.get("workers").await?.status.unwrap_or_default();
        let says = |it: &HorizontalPodAutoscalerCondition| {
            it.type_ == "ScalingActive"
                && it.status == "False"
                && it.message.as_ref().is_some_and(|message| message.contains(why))
        };
        Ok(status.conditions.iter().flatten().any(says).then_some(()))
    })
    .await
    .unwrap();
}

async fn wish(stage: &Stage<'_>) -> i32 {
    stage.spot_pools().get("p").await.unwrap().spec.replicas
}

async fn wish_becomes(stage: &Stage<'_>, replicas: i32) {
    eventually(&format!("a wish for {replicas}"), async || {
        Ok((stage.spot_pools().get("p").await?.spec.replicas == replicas).then_some(()))
    })
    .await
    .unwrap();
}

/// Nothing that an HPA reads or writes has been anything else in any version.
fn unmoved(versions: &Versions, replicas: i32) {
    let scale = |version: &SpotPool| {
        (version.spec.replicas, version.status.as_ref().map_or(0, |status| status.replicas))
    };
    let scales: Vec<_> = versions.so_far().iter().map(scale).collect();
    assert!(scales.iter().all(|scale| *scale == (replicas, replicas)), "wished for and kept: {scales:?}");
}

#[test]
fn losing_spot_does_not_cut_what_an_hpa_wishes_for() {
    run(async {
        let stage = Stage::set(world().await, "demand").await.unwrap();
        let metrics = external_metrics().await;
        stage
            .agent_pools(&[
                PoolSpec::spot("demanda", "Standard_D4s_v5", 0),
                PoolSpec::spot("demandb", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let mut spec = json!({"replicas": 2, "placement": {"strategy": "Ordered", "maxSharePerPool": 100},
            "agentPools": [{"name": "demanda", "maxNodes": 20}, {"name": "demandb", "maxNodes": 20}]});
        stage.spot_pool("p", spec.clone()).await.unwrap();
        metrics.say(&stage.name, 120);
        hpa(&stage, |_| ()).await;
        stage.status_is("p", "demand to be met", |status| status.ready_replicas == 12).await.unwrap();

        // What comes in place of the lost takes long enough for the HPA to look at what is left.
        for pool in ["demanda", "demandb"] {
            stage.world.sim.switch_pool(pool, &json!({"bootTimeMs": 12_000})).await.unwrap();
        }
        let versions = Versions::follow(&stage, "p").await;
        // One is within the tenth that an HPA lets pass: if it took 11 for what there is, it would be content with 11.
        // Then half of them.
        for lost in [1, 5] {
            eventually(&format!("the HPA to look while {lost} are missing"), async || {
                stage.world.sim.kill(&Targets::of_pool("demanda", lost)).await?;
                let is_lost = |status: &SpotPoolStatus| status.ready_replicas <= 12 - lost as i32;
                stage.status_is("p", "the loss to show", is_lost).await?;
                metrics.asked_again(&stage.name).await;
                // On a busy machine those that come may be faster than the HPA: then it has seen nothing yet.
                Ok((stage.status("p").await?.ready_replicas < 12).then_some(()))
            })
            .await
            .unwrap();
            unmoved(&versions, 12);
        }
        stage.status_is("p", "demand to be met again", |status| status.ready_replicas == 12).await.unwrap();
        unmoved(&versions, 12);

        // It would have cut the wish if it had had a reason.
        metrics.say(&stage.name, 30);
        wish_becomes(&stage, 3).await;
        // The documented way to change the rest of the spec.
        spec.as_object_mut().unwrap().remove("replicas");
        let applied = stage.spot_pool("p", spec).await.unwrap();
        assert_eq!(applied.spec.replicas, 3, "a manifest without replicas leaves them to the HPA");
        let by_hpa = applied.managed_fields().iter().any(|entry| {
            entry.manager.as_deref() == Some("kube-controller-manager")
                && entry.subresource.as_deref() == Some("scale")
        });
        assert!(by_hpa, "{:?}", applied.managed_fields());
        operator.stop().await.unwrap();
    });
}

/// Shows what the documentation warns of. It is none of SpotPool's doing: an HPA multiplies such a target with the number
/// of ready *pods* that carry the labels of `status.selector`.
#[test]
fn with_the_target_type_value_the_wish_is_stuck_runs_away_and_falls_with_what_is_lost() {
    run(async {
        let stage = Stage::set(world().await, "value").await.unwrap();
        let metrics = external_metrics().await;
        stage
            .agent_pools(&[
                PoolSpec::spot("valuea", "Standard_D4s_v5", 2),
                PoolSpec::spot("valueb", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "valuea", "maxNodes": 20}, {"name": "valueb", "maxNodes": 20}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        // Twice as much as there should be, from the beginning to the end.
        metrics.say(&stage.name, 20);
        hpa(&stage, |hpa| {
            hpa["spec"]["metrics"][0]["external"]["target"] = json!({"type": "Value", "value": "10"});
        })
        .await;
        // A SpotPool has nodes and no pods.
        undecided(&stage, "no pods returned by selector").await;
        assert_eq!(wish(&stage).await, 2, "demand is twice as much, and nothing happens");

        // Pods that carry its labels, for instance because somebody took them for a node selector.
        metrics.fail(&stage.name);
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), &stage.name);
        let mut nodes = Vec::new();
        for (from, to) in [(0, 4), (2, 8)] {
            nodes = [stage.nodes("valuea").await.unwrap(), stage.nodes("valueb").await.unwrap()].concat();
            for (index, node) in nodes.iter().enumerate().skip(from) {
                let pod = json!({"metadata": {"name": format!("worker-{index}"), "labels": {
                        names::POOL_LABEL: "p", names::POOL_NAMESPACE_LABEL: stage.name}},
                    "spec": {"nodeName": node.name_any(), "containers": [{"name": "main", "image": "none"}]}});
                let accepted = async || create(&pods, pod.clone()).await.map(Some);
                let name = eventually("a pod to be accepted", accepted).await.unwrap().name_any();
                eventually("a pod to run", async || Ok(Some(pods.get(&name).await?).filter(is_ready)))
                    .await
                    .unwrap();
            }
            metrics.say(&stage.name, 20);
            wish_becomes(&stage, to).await;
            let ready = format!("{to} ready");
            stage.status_is("p", &ready, |status| status.ready_replicas == to).await.unwrap();
        }

        // Two nodes are lost, and their pods with them.
        let lost: Vec<_> = nodes[..2].iter().map(ResourceExt::name_any).collect();
        stage.world.sim.kill(&Targets::named(&lost)).await.unwrap();
        for index in 0..2 {
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            pods.delete(&format!("worker-{index}"), &at_once).await.unwrap();
        }
        wish_becomes(&stage, 4).await;
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_metric_that_cannot_be_had_leaves_the_wish_and_losses_are_replaced() {
    run(async {
        let stage = Stage::set(world().await, "nometric").await.unwrap();
        let metrics = external_metrics().await;
        stage
            .agent_pools(&[
                PoolSpec::spot("nometrica", "Standard_D4s_v5", 0),
                PoolSpec::spot("nometricb", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "nometrica", "maxNodes": 20}, {"name": "nometricb", "maxNodes": 20}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        metrics.say(&stage.name, 40);
        hpa(&stage, |_| ()).await;
        stage.status_is("p", "demand to be met", |status| status.ready_replicas == 4).await.unwrap();

        let versions = Versions::follow(&stage, "p").await;
        metrics.fail(&stage.name);
        undecided(&stage, "unable to get external metric").await;
        stage.world.sim.kill(&Targets::of_pool("nometrica", 1)).await.unwrap();
        stage.status_is("p", "the loss to show", |status| status.ready_replicas < 4).await.unwrap();
        metrics.asked_again(&stage.name).await;
        stage.status_is("p", "4 ready again", |status| status.ready_replicas == 4).await.unwrap();
        unmoved(&versions, 4);

        metrics.say(&stage.name, 60);
        wish_becomes(&stage, 6).await;
        operator.stop().await.unwrap();
    });
}
