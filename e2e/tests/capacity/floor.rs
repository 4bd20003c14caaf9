//! Row J, disruption budgets: on-demand that is kept for them, those that hold their pods, and pods that must have room
//! before their node is given back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::spot_pool::{BlockedBudget, FloorStatus};
use spotpool_crds::{Reason, SpotPoolStatus, names};
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::world;

const SIZE: &str = "Standard_D4s_v5";

fn pod_spec(cpu: &str, agent_pools: &[&str]) -> Value {
    let required = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": names::AGENT_POOL_LABEL, "operator": "In", "values": agent_pools}]}]});
    json!({
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
        "tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}],
        "containers": [{"name": "app", "image": "app", "resources": {"requests": {"cpu": cpu}}}],
    })
}

fn floor(status: &SpotPoolStatus) -> FloorStatus {
    status.floor.clone().unwrap_or_default()
}

/// Waits longer than other tests: the floor follows after a minute.
async fn slowly(stage: &Stage<'_>, what: &str, holds: impl Fn(&SpotPoolStatus) -> bool) -> SpotPoolStatus {
    let deadline = Timestamp::now() + SignedDuration::from_mins(3);
    loop {
        let status = stage.status("p").await.unwrap();
        if holds(&status) {
            return status;
        }
        assert!(Timestamp::now() < deadline, "waited in vain for {what}: {status:#?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[test]
fn a_budget_that_lasts_gets_on_demand_up_to_its_cap_and_loses_it_again() {
    run(async {
        let stage = Stage::set(world().await, "floor").await.unwrap();
        stage
            .agent_pools(&[PoolSpec::spot("floora", SIZE, 3), PoolSpec::regular("floorr", SIZE, 0)])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "floora", "maxNodes": 5}, {"name": "floorr", "maxNodes": 5}]);
        let spec = json!({"replicas": 3, "agentPools": pools, "fallback": {"maxNodes": 0},
            "onDemand": {"pdbFloor": {"enabled": true, "maxUnits": 2,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "floor"}}}},
            "failback": {"stabilization": "10s", "minOnDemandLifetime": "0s", "maxConcurrent": 3}});
        stage.spot_pool("p", spec).await.unwrap();
        let start = stage.status_is("p", "3 ready", |status| status.ready_replicas == 3).await.unwrap();
        assert_eq!(floor(&start).units, 0);

        // Two to a node of four CPUs: five that must be healthy need three nodes.
        let deployments: Api<Deployment> = Api::namespaced(stage.world.client.clone(), "floor");
        let labels = json!({"app": "web"});
        let template =
            json!({"metadata": {"labels": labels}, "spec": pod_spec("1500m", &["floora", "floorr"])});
        let web = json!({"replicas": 5, "selector": {"matchLabels": labels}, "template": template});
        create(&deployments, json!({"metadata": {"name": "web"}, "spec": web})).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "floor");
        eventually("five pods to run", async || {
            let ready = pods.list(&ListParams::default()).await?.iter().filter(|pod| is_ready(pod)).count();
            Ok((ready == 5).then_some(()))
        })
        .await
        .unwrap();
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(stage.world.client.clone(), "floor");
        let asked = Timestamp::now();
        let budget = json!({"minAvailable": 5, "selector": {"matchLabels": labels}});
        create(&budgets, json!({"metadata": {"name": "web"}, "spec": budget})).await.unwrap();

        let seen =
            stage.status_is("p", "the need to show", |status| floor(status).needed == Some(3)).await.unwrap();
        let (now, next) = (floor(&seen), floor(&seen).next.unwrap());
        assert_eq!((now.units, next.units, now.capped_by.as_str()), (0, 2, "onDemand.pdbFloor.maxUnits"));
        assert_eq!((now.budgets[0].name.as_str(), now.budgets[0].desired_healthy), ("web", 5));
        assert_eq!((now.budgets[0].pods, now.budgets[0].units, now.budgets_in_all), (5, 3, 1));
        assert_eq!(seen.capacity.ready_on_demand, 0);
        assert!(seen.plan.iter().any(|step| step.reason == Reason::FloorAtLimit), "{:?}", seen.plan);

        let kept = slowly(&stage, "on-demand for the budget", |status| {
            floor(status).units == 2 && status.capacity.ready_on_demand == 2
        })
        .await;
        let raised = floor(&kept).since.unwrap().0;
        assert!(
            raised.duration_since(asked) >= SignedDuration::from_secs(58),
            "raised {raised}, asked {asked}"
        );
        assert_eq!(
            (kept.fallback.nodes, kept.replicas),
            (0, 3),
            "the floor is no fallback and part of what is wanted"
        );
        let blocked =
            slowly(&stage, "the budget to be told of", |status| !status.blocked_budgets.is_empty()).await;
        let BlockedBudget { namespace, name, owner, desired_healthy, pods, .. } = &blocked.blocked_budgets[0];
        assert_eq!((namespace.as_str(), name.as_str(), owner.as_str()), ("floor", "web", "Deployment/web"));
        assert_eq!((*desired_healthy, *pods), (5, 5));

        let metrics = reqwest::get(format!("{}/metrics", operator.admin_url)).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let series = metrics
            .lines()
            .find(|line| line.starts_with("spotpool_operator_floor_units") && line.contains("\"kept\""));
        assert!(series.is_some_and(|series| series.ends_with(" 2")), "{series:?}");

        let fewer = Patch::Merge(json!({"spec": {"minAvailable": 2}}));
        budgets.patch("web", &PatchParams::default(), &fewer).await.unwrap();
        let lowered = slowly(&stage, "less to be kept", |status| floor(status).units == 1).await;
        assert_eq!((floor(&lowered).needed, floor(&lowered).capped_by.as_str()), (Some(1), ""));
        slowly(&stage, "the budget to be free", |status| status.blocked_budgets.is_empty()).await;
        let drained = slowly(&stage, "what is too much to be drained", |status| {
            status.fallback.draining.iter().any(|node| node.contains("floorr"))
        })
        .await;
        assert_eq!(drained.fallback.draining.iter().filter(|node| node.contains("floorr")).count(), 1);
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_failback_whose_pods_have_no_room_is_not_begun_and_says_which() {
    run(async {
        let stage = Stage::set(world().await, "fit").await.unwrap();
        stage
            .agent_pools(&[PoolSpec::spot("fita", SIZE, 1), PoolSpec::regular("fitr", SIZE, 1)])
            .await
            .unwrap();
        let spot = stage.nodes("fita").await.unwrap()[0].name_any();
        let on_demand = stage.nodes("fitr").await.unwrap()[0].name_any();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "fit");
        for (name, node) in [("filler", &spot), ("heavy", &on_demand)] {
            let mut spec = pod_spec("3", &["fita", "fitr"]);
            spec["nodeName"] = node.as_str().into();
            create(&pods, json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
        }
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "fita", "maxNodes": 1}, {"name": "fitr", "maxNodes": 1}]);
        let spec = json!({"replicas": 1, "adoption": "Reclaim", "agentPools": pools,
            "failback": {"stabilization": "0s", "minOnDemandLifetime": "0s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let kept = stage
            .status_is("p", "the node to be kept", |status| {
                status.plan.iter().any(|step| {
                    step.reason == Reason::PodsDoNotFit
                        && step.message.contains("for pod fit/heavy (3000m CPU")
                })
            })
            .await
            .unwrap();
        assert!(kept.fallback.draining.is_empty(), "{:?}", kept.fallback);
        let requested = async || {
            let nodes = stage.nodes("fitr").await.unwrap();
            nodes.iter().any(|node| node.annotations().contains_key(names::DRAIN_REQUEST_ANNOTATION))
        };
        assert!(!requested().await);

        pods.delete("filler", &DeleteParams::default().grace_period(0)).await.unwrap();
        stage
            .status_is("p", "the node to be drained once there is room", |status| {
                status.fallback.draining == [on_demand.clone()]
            })
            .await
            .unwrap();
        assert!(requested().await);
        operator.stop().await.unwrap();
    });
}
