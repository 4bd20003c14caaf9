//! Row V and AKS's own life: who else has a hand in agent pools is seen and said, and what AKS does to them by itself
//! is neither a loss nor a surplus.

use anyhow::Context;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, VmPhase};
use spotpool_azure_sim::scenario::Action;
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::{OperatorOptions, Stage, eventually, objects, run};

use super::world;

fn says(status: &SpotPoolStatus, kind: &str, value: &str, reason: &str) -> bool {
    let condition = status.conditions.iter().find(|it| it.type_ == kind);
    condition.is_some_and(|it| it.status == value && it.reason == reason)
}

fn act(action: serde_json::Value) -> Action {
    serde_json::from_value(action).unwrap()
}

#[test]
fn a_count_that_somebody_else_sets_is_put_right_and_said() {
    run(async {
        let stage = Stage::set(world().await, "hands").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("handsa", "Standard_D4s_v5", 3)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "handsa", "maxNodes": 6}]);
        let failback = json!({"stabilization": "2s"});
        let spec = json!({"replicas": 3, "agentPools": pools, "failback": failback});
        stage.spot_pool("p", spec).await.unwrap();
        let settled = |status: &SpotPoolStatus| {
            status.ready_replicas == 3 && status.agent_pools[0].provisioning_state == "Succeeded"
        };
        stage.status_is("p", "3 ready", settled).await.unwrap();
        let alone = |status: &SpotPoolStatus| says(status, "SoleOwner", "True", "SoleOwner");
        stage.status_is("p", "nobody else to be seen", alone).await.unwrap();

        // As `az aks nodepool scale` or a `terraform apply` does.
        stage.world.sim.act(&act(json!({"scale": {"pool": "handsa", "count": 5}}))).await.unwrap();
        let seen = |status: &SpotPoolStatus| says(status, "SoleOwner", "False", "CountChangedElsewhere");
        let status = stage.status_is("p", "the change to be seen", seen).await.unwrap();
        let change = status.agent_pools[0].changed_elsewhere.clone().unwrap();
        assert_eq!((change.from, change.to), (3, 5));
        let message = &status.conditions.iter().find(|it| it.type_ == "SoleOwner").unwrap().message;
        assert!(message.contains("from 3 to 5") && message.contains("ignore_changes"), "{message}");

        // No agent runs here to drain what is too much; that it is asked to go is enough.
        let asked = |status: &SpotPoolStatus| !status.fallback.draining.is_empty();
        stage.status_is("p", "the surplus to be asked to go", asked).await.unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn an_upgrade_by_aks_buys_nothing_and_gives_nothing_back() {
    run(async {
        let stage = Stage::set(world().await, "upgrade").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("upgra", "Standard_D4s_v5", 2),
                PoolSpec::regular("upgreg", "Standard_D4s_v5", 2),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let spec = json!({
            "replicas": 4,
            "agentPools": [{"name": "upgra", "maxNodes": 6}, {"name": "upgreg", "maxNodes": 6}],
            "fallback": {"maxNodes": 3, "after": "15s", "growthAfter": "15s"},
            "failback": {"stabilization": "1m", "minOnDemandLifetime": "0s"},
        });
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "4 ready", |status| status.ready_replicas == 4).await.unwrap();

        // A surge node tells the operator that something goes on, and Azure what.
        stage.world.sim.act(&act(json!({"upgrade": {"pool": "upgreg"}}))).await.unwrap();
        let said = |status: &SpotPoolStatus| says(status, "Reconciling", "True", "AgentPoolInUpkeep");
        stage.status_is("p", "the upgrade to be said", said).await.unwrap();
        let over = |status: &SpotPoolStatus| {
            let nodes: i32 = status.agent_pools.iter().map(|pool| pool.machines).sum();
            let is_said = says(status, "Reconciling", "True", "AgentPoolInUpkeep");
            (status.ready_replicas, nodes) == (4, 4) && !is_said
        };
        let status = stage.status_is("p", "the upgrade to be over", over).await.unwrap();
        assert_eq!((status.fallback.nodes, status.fallback.draining.len()), (0, 0));

        // Spot agent pools are upgraded without surge: a node that is not ready is what the operator sees.
        stage.world.sim.act(&act(json!({"upgrade": {"pool": "upgra"}}))).await.unwrap();
        for is_under_way in [true, false] {
            eventually(&format!("the upgrade to be under way: {is_under_way}"), async || {
                let state = stage.world.sim.state().await?;
                let pool = state.pool("upgra").context("no agent pool")?;
                Ok(((pool.provisioning_state != "Succeeded") == is_under_way).then_some(()))
            })
            .await
            .unwrap();
        }
        let status = stage.status_is("p", "4 ready again", over).await.unwrap();
        assert_eq!((status.fallback.nodes, status.fallback.draining.len()), (0, 0));
        let state = stage.world.sim.state().await.unwrap();
        let writes: Vec<_> = state.writes_to("upgra").chain(state.writes_to("upgreg")).collect();
        assert!(writes.is_empty(), "nothing is asked of Azure because of an upgrade: {writes:?}");
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_stopped_agent_pool_is_named_and_used_again_once_it_is_started() {
    run(async {
        let stage = Stage::set(world().await, "stopped").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("stopa", "Standard_D4s_v5", 1),
                PoolSpec::spot("stopb", "Standard_D8s_v5", 1),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "stopa", "maxNodes": 4}, {"name": "stopb", "maxNodes": 4}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        stage.world.sim.act(&act(json!({"stop": "stopa"}))).await.unwrap();
        let named = |status: &SpotPoolStatus| {
            status.plan.iter().any(|step| step.message.contains("stopa is stopped"))
                && status.ready_replicas == 2
        };
        stage.status_is("p", "the stop to be said and the others to stand in", named).await.unwrap();
        stage.world.sim.act(&act(json!({"start": "stopa"}))).await.unwrap();
        let used = |status: &SpotPoolStatus| {
            status.agent_pools.iter().any(|pool| pool.name == "stopa" && pool.unusable.is_none())
        };
        stage.status_is("p", "the agent pool to be used again", used).await.unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_cluster_that_was_stopped_as_a_whole_comes_back_and_nothing_is_bought() {
    run(async {
        let stage = Stage::set(world().await, "night").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("nighta", "Standard_D4s_v5", 2),
                PoolSpec::regular("nightr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "nighta", "maxNodes": 4}, {"name": "nightr", "maxNodes": 2}]);
        let spec = json!({"replicas": 2, "agentPools": pools, "fallback": {"maxNodes": 2, "after": "0s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let established =
            |status: &SpotPoolStatus| status.ready_replicas == 2 && status.capacity.established == 2;
        stage.status_is("p", "2 ready", established).await.unwrap();
        // The control plane is stopped too, and so the operator; it comes back while the nodes boot.
        operator.stop().await.unwrap();
        for pool in ["nighta", "nightr"] {
            stage.world.sim.act(&act(json!({"stop": pool}))).await.unwrap();
        }
        eventually("all nodes to be gone", async || {
            let state = stage.world.sim.state().await?;
            let is_over = state.pool("nighta").is_some_and(|pool| pool.provisioning_state == "Succeeded");
            Ok((is_over && stage.nodes("nighta").await?.is_empty()).then_some(()))
        })
        .await
        .unwrap();
        for pool in ["nighta", "nightr"] {
            stage.world.sim.act(&act(json!({"start": pool}))).await.unwrap();
        }
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let starting = |status: &SpotPoolStatus| {
            status.plan.iter().any(|step| step.message.contains("nighta is being started"))
                && status.ready_replicas == 0
        };
        stage.status_is("p", "the start to be said", starting).await.unwrap();
        stage.status_is("p", "the nodes of before", established).await.unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.vms.iter().filter(|vm| vm.pool == "nightr").count(), 0, "on demand was bought");
        let spot = state.vms_of("nighta").filter(|vm| vm.phase == VmPhase::Running).count();
        assert_eq!(spot, 2);
        operator.stop().await.unwrap();
    });
}

#[test]
fn node_auto_provisioning_beside_a_spot_pool_is_named() {
    run(async {
        let stage = Stage::set(world().await, "nap").await.unwrap();
        let name = "nodepools.karpenter.sh";
        let definitions: Api<CustomResourceDefinition> = Api::all(stage.world.client.clone());
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "metadata": {"name": name},
            "spec": {
                "group": "karpenter.sh", "scope": "Cluster", "names": {"plural": "nodepools", "kind": "NodePool"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        });
        objects::create(&definitions, definition).await.unwrap();
        let served = async || {
            let groups = stage.world.client.list_api_groups().await?;
            Ok(groups.groups.iter().any(|group| group.name == "karpenter.sh").then_some(()))
        };
        eventually("the API to be served", served).await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("napa", "Standard_D4s_v5", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "napa", "maxNodes": 4}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let named = |status: &SpotPoolStatus| says(status, "SoleOwner", "False", "NodeAutoProvisioning");
        let named = stage.status_is("p", "the other provisioner to be named", named).await;
        definitions.delete(name, &DeleteParams::default()).await.unwrap();
        named.unwrap();
        operator.stop().await.unwrap();
    });
}
