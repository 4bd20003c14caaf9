//! How a SpotPool goes, and an agent pool that is taken off its list: what people had stays, and nothing of ours.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{GoneReason, PoolSpec};
use spotpool_crds::{SpotPool, names};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::hands::Hands;
use crate::world;

const HOW_TO_LEAVE: &str = include_str!("../../../docs/how-to/leave.md");

fn is_marked(node: &Node) -> bool {
    node.labels().keys().chain(node.annotations().keys()).any(|key| {
        [
            names::POOL_LABEL,
            names::POOL_NAMESPACE_LABEL,
            names::POLICY_ANNOTATION,
            names::DRAIN_REQUEST_ANNOTATION,
        ]
        .contains(&key.as_str())
    })
}

async fn unmarked(stage: &Stage<'_>, agent_pool: &str, count: usize) {
    eventually(&format!("{count} unmarked nodes in {agent_pool}"), async || {
        let nodes = stage.nodes(agent_pool).await?;
        Ok((nodes.len() == count && !nodes.iter().any(is_marked)).then_some(()))
    })
    .await
    .unwrap();
}

async fn gone(stage: &Stage<'_>) {
    eventually("the SpotPool to be gone", async || {
        Ok(stage.spot_pools().get_opt("p").await?.is_none().then_some(()))
    })
    .await
    .unwrap();
}

async fn held(stage: &Stage<'_>) {
    eventually("the finalizer", async || {
        let pool = stage.spot_pools().get("p").await?;
        Ok(pool.finalizers().iter().any(|it| it == names::FINALIZER).then_some(()))
    })
    .await
    .unwrap();
}

async fn change(stage: &Stage<'_>, patch: Value) -> SpotPool {
    stage.spot_pools().patch("p", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

async fn delete(stage: &Stage<'_>) {
    stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
}

/// One spot node, one on-demand node that was found, and two that were bought for growth that spot refused.
async fn with_fallback(stage: &Stage<'_>, more: Value) {
    let (spot, regular) = (format!("{}a", stage.name), format!("{}r", stage.name));
    stage
        .agent_pools(&[
            PoolSpec::spot(&spot, "Standard_D4s_v5", 1),
            PoolSpec::regular(&regular, "Standard_D4s_v5", 1),
        ])
        .await
        .unwrap();
    let pools = json!([{"name": spot, "maxNodes": 1}, {"name": regular, "maxNodes": 5}]);
    let mut spec = json!({"replicas": 4, "agentPools": pools, "fallback": {"maxNodes": 2}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    stage.spot_pool("p", spec).await.unwrap();
    stage
        .status_is("p", "on-demand to stand in", |status| {
            status.ready_replicas == 4 && status.fallback.nodes == 2
        })
        .await
        .unwrap();
    eventually("all nodes to be marked", async || {
        let nodes = [stage.nodes(&spot).await?, stage.nodes(&regular).await?].concat();
        Ok((nodes.len() == 4 && nodes.iter().all(is_marked)).then_some(()))
    })
    .await
    .unwrap();
    held(stage).await;
}

#[test]
fn deleted_under_retain_every_node_stays_and_an_open_drain_is_taken_back() {
    run(async {
        let stage = Stage::set(world().await, "retain2").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["retain2a", "retain2r"]);
        hands.empty_nodes(false);
        with_fallback(&stage, json!({"failback": {"stabilization": "1s", "minOnDemandLifetime": "1s"}}))
            .await;
        stage.replicas("p", 3).await.unwrap();
        eventually("a node to be asked to drain", async || Ok((!hands.asked().is_empty()).then_some(())))
            .await
            .unwrap();
        delete(&stage).await;
        gone(&stage).await;
        unmarked(&stage, "retain2a", 1).await;
        unmarked(&stage, "retain2r", 3).await;
        eventually("the node to be given back", async || {
            let nodes = stage.nodes("retain2r").await?;
            let open = |node: &Node| !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
            Ok(nodes.iter().all(open).then_some(()))
        })
        .await
        .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert!(state.writes_to("retain2r").all(|write| write.kind != "DELETE machines"));
        assert_eq!(state.vms_of("retain2r").count() + state.vms_of("retain2a").count(), 4);
        operator.stop().await.unwrap();
    });
}

#[test]
fn deleted_with_return_fallback_what_was_bought_is_returned_whoever_dies_meanwhile() {
    run(async {
        let stage = Stage::set(world().await, "return").await.unwrap();
        let mut operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["returna", "returnr"]);
        hands.empty_nodes(false);
        with_fallback(&stage, json!({"deletionPolicy": "ReturnFallback"})).await;
        let found = stage.nodes("returnr").await.unwrap();
        let found =
            found.iter().min_by_key(|node| node.metadata.creation_timestamp.clone().unwrap().0).unwrap();
        delete(&stage).await;
        let status =
            stage.status_is("p", "the return to begin", |status| status.leaving.is_some()).await.unwrap();
        assert_eq!(status.leaving.unwrap().fallback_nodes, 2);
        assert_eq!(status.plan[0].reason.to_string(), "ReturningFallback", "{:?}", status.plan);
        eventually("the first drain", async || Ok((hands.asked().len() == 1).then_some(()))).await.unwrap();
        operator.process.signal(Signal::SIGKILL).unwrap();
        hands.empty_nodes(true);
        operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        gone(&stage).await;
        unmarked(&stage, "returna", 1).await;
        unmarked(&stage, "returnr", 1).await;
        assert_eq!(stage.nodes("returnr").await.unwrap()[0].name_any(), found.name_any());
        let state = stage.world.sim.state().await.unwrap();
        let returned = state.vms.iter().filter(|vm| vm.gone_reason == Some(GoneReason::Deleted));
        let mut returned: Vec<_> =
            returned.filter(|vm| vm.pool == "returnr").map(|vm| vm.node.clone()).collect();
        let mut drained: Vec<_> = hands.asked().into_iter().map(|(name, _)| name).collect();
        returned.sort();
        drained.sort();
        assert_eq!((returned.len(), &returned), (2, &drained), "only drained nodes, and only those bought");
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_return_that_takes_too_long_is_ended_by_retain() {
    run(async {
        let stage = Stage::set(world().await, "enough").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["enougha", "enoughr"]);
        hands.empty_nodes(false);
        with_fallback(&stage, json!({"deletionPolicy": "ReturnFallback"})).await;
        delete(&stage).await;
        eventually("a drain that does not end", async || Ok((hands.asked().len() == 1).then_some(())))
            .await
            .unwrap();
        change(&stage, json!({"spec": {"deletionPolicy": "Retain"}})).await;
        gone(&stage).await;
        unmarked(&stage, "enoughr", 3).await;
        assert_eq!(stage.world.sim.state().await.unwrap().vms_of("enoughr").count(), 3);
        operator.stop().await.unwrap();
    });
}

#[test]
fn an_agent_pool_taken_off_the_list_is_released() {
    run(async {
        let stage = Stage::set(world().await, "release").await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let hands = Hands::start(&stage.world.client, &["releasea", "releaser"]);
        hands.empty_nodes(false);
        with_fallback(&stage, json!({"failback": {"stabilization": "1s", "minOnDemandLifetime": "1s"}}))
            .await;
        stage.replicas("p", 3).await.unwrap();
        eventually("a node to be asked to drain", async || Ok((!hands.asked().is_empty()).then_some(())))
            .await
            .unwrap();
        change(&stage, json!({"spec": {"replicas": 1, "agentPools": [{"name": "releasea", "maxNodes": 1}]}}))
            .await;
        unmarked(&stage, "releaser", 3).await;
        assert!(stage.nodes("releasea").await.unwrap().iter().all(is_marked), "the other is still ours");
        assert_eq!(stage.world.sim.state().await.unwrap().vms_of("releaser").count(), 3);
        operator.stop().await.unwrap();
    });
}

#[test]
fn without_an_operator_the_documented_command_lets_a_spot_pool_go() {
    run(async {
        let stage = Stage::set(world().await, "alone").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("alonea", "Standard_D4s_v5", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "alonea", "maxNodes": 2}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        held(&stage).await;
        eventually("the mark", async || Ok(stage.nodes("alonea").await?.iter().all(is_marked).then_some(())))
            .await
            .unwrap();
        operator.stop().await.unwrap();
        delete(&stage).await;
        assert!(stage.spot_pools().get("p").await.unwrap().metadata.deletion_timestamp.is_some());

        let patch = r#"{"metadata":{"finalizers":null}}"#;
        let command = format!("kubectl patch spotpool NAME -n NAMESPACE --type=merge -p '{patch}'");
        assert!(HOW_TO_LEAVE.contains(&command), "the page must give this very command: {command}");
        change(&stage, serde_json::from_str(patch).unwrap()).await;
        gone(&stage).await;
        assert_eq!(stage.world.sim.state().await.unwrap().vms_of("alonea").count(), 1);
        // What is left on nodes does no harm, and an operator that comes back takes it off.
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        unmarked(&stage, "alonea", 1).await;
        operator.stop().await.unwrap();
    });
}

#[test]
fn of_a_spot_pool_the_operator_may_write_its_finalizer_alone() {
    run(async {
        let stage = Stage::set(world().await, "ownfin").await.unwrap();
        let pools = json!([{"name": "nowhere", "maxNodes": 2}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let kubeconfig =
            kube::config::Kubeconfig::read_from(stage.operator_kubeconfig().await.unwrap()).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
        let client = kube::Client::try_from(config.await.unwrap()).unwrap();
        let as_operator = kube::Api::<SpotPool>::namespaced(client, &stage.name);
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let attempt = async |patch: &Value| as_operator.patch("p", &params, &Patch::Merge(patch)).await;
        let others = json!({"metadata": {"finalizers": ["example.com/other"]}});
        // A policy takes a moment to be in force.
        for patch in [
            json!({"spec": {"replicas": 2}}),
            json!({"metadata": {"annotations": {names::FAILBACK_PAUSED_ANNOTATION: "true"}}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            others,
        ] {
            let refusal =
                eventually(&format!("{patch} to be refused"), async || Ok(attempt(&patch).await.err()))
                    .await
                    .unwrap();
            assert!(refusal.to_string().contains("may write only its finalizer"), "{patch}: {refusal}");
        }
        attempt(&json!({"metadata": {"finalizers": [names::FINALIZER]}})).await.unwrap();
    });
}
