//! Taking over what runs already: nothing happens that the plan does not ask for, and it can be watched first.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{GoneReason, PoolSpec};
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::hands::Hands;
use crate::market::is_known;
use crate::{condition, world};

async fn change(stage: &Stage<'_>, node: &str, patch: serde_json::Value) {
    let nodes: Api<Node> = Api::all(stage.world.client.clone());
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[test]
fn pools_are_taken_over_in_mid_flight_and_nothing_else_happens() {
    run(async {
        let stage = Stage::set(world().await, "flight").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("flighta", "Standard_D4s_v5", 3),
                PoolSpec::regular("flightr", "Standard_D4s_v5", 2),
            ])
            .await
            .unwrap();
        // A person has closed a node; a SpotPool of the same name, which is gone, had begun to return another.
        let spot = stage.nodes("flighta").await.unwrap();
        let on_demand = stage.nodes("flightr").await.unwrap();
        let (closed, half_drained) = (spot[0].name_any(), on_demand[0].name_any());
        change(&stage, &closed, json!({"spec": {"unschedulable": true}})).await;
        let request = DrainRequest {
            id: "failback-1".into(),
            reason: DrainReason::Failback,
            voluntary: true,
            not_after: Timestamp::now() + SignedDuration::from_hours(1),
            spot_pool: Some("00000000-0000-0000-0000-000000000000".into()),
        };
        let answer = DrainStatus {
            id: "failback-1".into(),
            phase: DrainPhase::Drained,
            pods_left: 0,
            blocking_pdbs: Vec::new(),
            cordoned: true,
        };
        let left_over = json!({"metadata": {
            "labels": {names::POOL_LABEL: "p", names::POOL_NAMESPACE_LABEL: "flight"},
            "annotations": {
                names::DRAIN_REQUEST_ANNOTATION: serde_json::to_string(&request).unwrap(),
                names::DRAIN_STATUS_ANNOTATION: serde_json::to_string(&answer).unwrap(),
            }},
            "spec": {"unschedulable": true}});
        change(&stage, &half_drained, left_over).await;

        let pools = json!([{"name": "flighta", "maxNodes": 5}, {"name": "flightr", "maxNodes": 5}]);
        stage
            .spot_pool("p", json!({"replicas": 5, "agentPools": pools, "fallback": {"maxNodes": 3}}))
            .await
            .unwrap();
        let _hands = Hands::start(&stage.world.client, &["flighta", "flightr"]);
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let status = stage
            .status_is("p", "all but the closed node to count", |status| status.ready_replicas == 4)
            .await
            .unwrap();
        let regular = status.agent_pools.iter().find(|pool| pool.name == "flightr").unwrap();
        assert_eq!(regular.kept, Some(2), "{regular:?}");
        let nodes = stage.nodes("flightr").await.unwrap();
        let taken_over = nodes.iter().find(|node| node.name_any() == half_drained).unwrap();
        assert!(!taken_over.annotations().contains_key(names::DRAIN_REQUEST_ANNOTATION));
        assert!(!taken_over.spec.as_ref().unwrap().unschedulable.unwrap_or(false), "given back");
        let nodes = stage.nodes("flighta").await.unwrap();
        let still_closed = nodes.iter().find(|node| node.name_any() == closed).unwrap();
        assert_eq!(still_closed.spec.as_ref().unwrap().unschedulable, Some(true), "a person's cordon stays");
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(
            state.writes_to("flighta").chain(state.writes_to("flightr")).count(),
            0,
            "{:?}",
            status.plan
        );
        operator.stop().await.unwrap();
    });
}

#[test]
fn observe_tells_what_it_would_do_and_at_what_price_and_leaves_without_a_trace() {
    run(async {
        let stage = Stage::set(world().await, "watch").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("watcha", "Standard_D8s_v5", 1),
                PoolSpec::regular("watchr", "Standard_D8s_v5", 2),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["watcha", "watchr"]);
        let pools = json!([{"name": "watcha", "maxNodes": 5}, {"name": "watchr", "maxNodes": 5}]);
        let spec = json!({"mode": "Observe", "adoption": "Reclaim", "replicas": 3, "agentPools": pools,
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let notes = async || -> anyhow::Result<Vec<(String, String, String)>> {
            let events: Api<Event> = Api::namespaced(stage.world.client.clone(), &stage.name);
            let text = |text: Option<String>| text.unwrap_or_default();
            let events = events.list(&ListParams::default()).await?.items;
            Ok(events.into_iter().map(|it| (text(it.reason), text(it.action), text(it.note))).collect())
        };
        eventually("the Event of what is withheld", async || {
            let told = notes().await?;
            let asks = "would have asked agent pool watcha for 2 more nodes, 3 in all";
            let tells = |(_, action, note): &&(String, String, String)| {
                action == "Withheld/ScaleUp/watcha" && note.starts_with(asks)
            };
            anyhow::ensure!(told.iter().any(|it| tells(&it)), "{told:?}");
            Ok(Some(()))
        })
        .await
        .unwrap();
        let status = stage
            .status_is("p", "the plan with its price", |status| {
                let step = |message: &str| {
                    message.starts_with("ask watcha for 2 more") && message.ends_with(" an hour")
                };
                status.plan.iter().any(|it| step(&it.message)) && is_known(status)
            })
            .await
            .unwrap();
        assert_eq!(condition(&status, "Ready"), "True");
        // It is told once, and status does not change for nothing.
        let before = stage.spot_pools().get("p").await.unwrap().resource_version();
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert_eq!(stage.spot_pools().get("p").await.unwrap().resource_version(), before);
        assert_eq!(stage.world.sim.state().await.unwrap().writes_to("watcha").count(), 0);
        assert_eq!(hands.asked().len(), 0);

        let pool = stage.spot_pools().get("p").await.unwrap();
        assert_eq!(pool.finalizers().len(), 0, "what only watches holds nothing up");
        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        eventually("marks to be gone", async || {
            let nodes = [stage.nodes("watcha").await?, stage.nodes("watchr").await?].concat();
            Ok(nodes.iter().all(|node| !node.labels().contains_key(names::POOL_LABEL)).then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn reclaim_lets_failback_take_what_was_found() {
    run(async {
        let stage = Stage::set(world().await, "reclaim").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("reclaima", "Standard_D4s_v5", 1),
                PoolSpec::regular("reclaimr", "Standard_D4s_v5", 2),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["reclaima", "reclaimr"]);
        let pools = json!([{"name": "reclaima", "maxNodes": 5}, {"name": "reclaimr", "maxNodes": 5}]);
        let spec = json!({"replicas": 3, "agentPools": pools,
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s", "probe": "1s"}});
        stage.spot_pool("p", spec).await.unwrap();
        stage
            .status_is("p", "what was found to be kept", |status| {
                status.ready_replicas == 3 && status.agent_pools.iter().any(|pool| pool.kept == Some(2))
            })
            .await
            .unwrap();
        assert_eq!(stage.world.sim.state().await.unwrap().writes_to("reclaima").count(), 0);
        let reclaim = Patch::Merge(json!({"spec": {"adoption": "Reclaim"}}));
        stage.spot_pools().patch("p", &PatchParams::default(), &reclaim).await.unwrap();
        stage
            .status_is("p", "all to be on spot", |status| {
                status.capacity.ready_spot == 3
                    && status.capacity.ready_on_demand == 0
                    && status.fallback.nodes == 0
            })
            .await
            .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        let returned = state.vms.iter().filter(|vm| vm.pool == "reclaimr");
        assert!(
            returned.clone().all(|vm| vm.gone_reason == Some(GoneReason::Deleted)) && returned.count() == 2
        );
        assert_eq!(hands.asked().len(), 2, "each was drained before");
        operator.stop().await.unwrap();
    });
}
