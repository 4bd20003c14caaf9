//! Row H: back to spot, slowly, and when people want it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, VmPhase};
use spotpool_crds::voluntary_drain::DrainReason;
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::hands::Hands;
use crate::{condition, world};

/// On-demand was bought for two of three units, and is not wanted any more: it stands in for spot until spot is there.
async fn surplus(stage: &Stage<'_>, failback: Value) {
    let (spot, regular) = (format!("{}a", stage.name), format!("{}r", stage.name));
    let pools = json!([{"name": spot, "maxNodes": 5}, {"name": regular, "maxNodes": 5}]);
    let spec = json!({"replicas": 3, "agentPools": pools, "onDemand": {"baseline": 2}, "fallback": {"maxNodes": 3},
        "failback": failback});
    stage
        .agent_pools(&[
            PoolSpec::spot(&spot, "Standard_D4s_v5", 1),
            PoolSpec::regular(&regular, "Standard_D4s_v5", 0),
        ])
        .await
        .unwrap();
    stage.spot_pool("p", spec).await.unwrap();
    stage
        .status_is("p", "two on demand", |status| {
            status.capacity.ready_spot == 1 && status.capacity.ready_on_demand == 2
        })
        .await
        .unwrap();
    let without = Patch::Merge(json!({"spec": {"onDemand": {"baseline": 0}}}));
    stage.spot_pools().patch("p", &PatchParams::default(), &without).await.unwrap();
}

/// On-demand nodes that were ever bought.
async fn bought(stage: &Stage<'_>) -> usize {
    let (regular, state) = (format!("{}r", stage.name), stage.world.sim.state().await.unwrap());
    state.vms.iter().filter(|vm| vm.pool == regular).count()
}

fn says(status: &SpotPoolStatus, reason: &str) -> bool {
    status.plan.iter().any(|step| step.reason.to_string() == reason)
}

async fn annotate(stage: &Stage<'_>, annotations: Value) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    stage.spot_pools().patch("p", &PatchParams::default(), &patch).await.unwrap();
}

#[test]
fn spot_that_is_back_is_tried_with_one_node_before_the_others_leave() {
    run(async {
        let stage = Stage::set(world().await, "probe").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["probea", "prober"]);
        let failback =
            json!({"stabilization": "2s", "minOnDemandLifetime": "1s", "maxConcurrent": 3, "probe": "6s"});
        surplus(&stage, failback).await;
        let probing = stage
            .status_is("p", "the first to be gone", |status| {
                status.fallback.probe.as_ref().is_some_and(|probe| probe.gone_since.is_some())
            })
            .await
            .unwrap();
        assert!(says(&probing, "FailbackProbe"), "{:?}", probing.plan);
        let first = probing.fallback.probe.unwrap();
        stage
            .status_is("p", "all to be back on spot", |status| {
                status.fallback.nodes == 0 && status.capacity.ready_spot == 3
            })
            .await
            .unwrap();
        let asked = hands.asked();
        let names: Vec<&str> = asked.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names.len(), names[0]), (bought(&stage).await, first.node.as_str()), "{asked:?}");
        // Status keeps whole seconds.
        let follow = first.gone_since.unwrap().0 + SignedDuration::from_secs(5);
        assert!(names.len() > 1 && asked[1..].iter().all(|(_, it)| it.at >= follow), "{follow}: {asked:?}");
        assert!(asked[0].1.last_seen < asked[1].1.at, "the first was gone: {asked:?}");
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.vms_of("probea").filter(|vm| vm.phase == VmPhase::Running).count(), 3);
        operator.stop().await.unwrap();
    });
}

#[test]
fn outside_the_window_no_node_leaves_but_a_person_may_wish_it() {
    run(async {
        let stage = Stage::set(world().await, "window").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["windowa", "windowr"]);
        // Opens in half a year.
        let month = (Timestamp::now() + SignedDuration::from_hours(183 * 24)).strftime("%-m").to_string();
        let window =
            json!({"schedule": format!("0 3 1 {month} *"), "timeZone": "Europe/Berlin", "duration": "4h"});
        let failback = json!({"stabilization": "1s", "minOnDemandLifetime": "1s", "maxConcurrent": 3, "probe": "0s",
            "window": window});
        surplus(&stage, failback).await;
        let closed = stage
            .status_is("p", "the window to be closed", |status| {
                status.capacity.ready_spot == 3 && says(status, "WindowClosed")
            })
            .await
            .unwrap();
        let mut steps = closed.plan.iter().skip(1);
        let step = steps.find(|step| step.reason.to_string() == "WindowClosed").unwrap();
        assert!(step.message.contains("when failback.window opens"), "{}", step.message);

        // One that cannot be followed is said, and nothing leaves either.
        let broken = json!({"spec": {"failback": {"window": {"schedule": "0 25 1 1 *"}}}});
        stage.spot_pools().patch("p", &PatchParams::default(), &Patch::Merge(broken)).await.unwrap();
        let stalled = stage
            .status_is("p", "the mistake to show", |status| condition(status, "Stalled") == "True")
            .await
            .unwrap();
        let stalled = stalled.conditions.into_iter().find(|it| it.type_ == "Stalled").unwrap();
        assert_eq!(stalled.reason, "WindowInvalid");
        assert!(stalled.message.contains("use minute, hour, day of the month"), "{}", stalled.message);
        assert_eq!(hands.asked().len(), 0);

        // A pause holds against a wish.
        annotate(
            &stage,
            json!({names::FAILBACK_PAUSED_ANNOTATION: "true", names::REQUESTED_FAILBACK_ANNOTATION: "1"}),
        )
        .await;
        let refused = stage
            .status_is("p", "the first wish to be answered", |status| {
                status.fallback.request.as_ref().is_some_and(|request| request.value == "1")
            })
            .await
            .unwrap();
        assert!(refused.fallback.request.unwrap().answer.contains("paused by annotation"));
        assert_eq!(hands.asked().len(), 0);
        annotate(
            &stage,
            json!({names::FAILBACK_PAUSED_ANNOTATION: null, names::REQUESTED_FAILBACK_ANNOTATION: "2"}),
        )
        .await;
        let answered = stage
            .status_is("p", "the second wish to be answered", |status| {
                status.fallback.request.as_ref().is_some_and(|request| request.value == "2")
            })
            .await
            .unwrap();
        assert_eq!(
            (answered.fallback.nodes, answered.capacity.ready_spot),
            (0, 3),
            "{:?}",
            answered.fallback
        );
        assert_eq!(hands.asked().len(), bought(&stage).await);
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_node_that_a_person_wants_gone_is_drained_and_replaced() {
    run(async {
        let stage = Stage::set(world().await, "wish").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("wisha", "Standard_D4s_v5", 2)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["wisha"]);
        let pools = json!([{"name": "wisha", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        let nodes: Api<Node> = Api::all(stage.world.client.clone());
        let unwanted = stage.nodes("wisha").await.unwrap().remove(0).name_any();
        let wish =
            Patch::Merge(json!({"metadata": {"annotations": {names::REQUESTED_DRAIN_ANNOTATION: "please"}}}));
        nodes.patch(&unwanted, &PatchParams::default(), &wish).await.unwrap();
        eventually("another node in its place", async || {
            let now = stage.nodes("wisha").await?;
            let ready = stage.status("p").await?.ready_replicas;
            Ok((now.len() == 2 && ready == 2 && now.iter().all(|node| node.name_any() != unwanted))
                .then_some(()))
        })
        .await
        .unwrap();
        let asked = hands.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].0.as_str(), asked[0].1.reason), (unwanted.as_str(), DrainReason::Manual));
        operator.stop().await.unwrap();
    });
}
