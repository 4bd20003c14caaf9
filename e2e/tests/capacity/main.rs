//! The operator against a real apiserver and the simulator: what it asks of Azure, and what it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod adoption;
mod agents;
mod autoscaled;
mod backup_drain;
mod creation;
mod deallocate;
mod demand;
mod external_metrics;
mod failback;
mod flood;
mod floor;
mod hands;
mod leaving;
mod loss;
mod market;
mod metrics;
mod money;
mod objective;
mod others;
mod peers;
mod replacement;
#[path = "../schema/mod.rs"]
mod schema;
mod seen;
mod signals;
mod standby;
mod tags;
mod traces;
mod transitions;
mod units;
mod versions;
mod warm_up;
mod workload_costs;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;
use spotpool_azure_sim::api::{Envelope, Fault, FaultAction, FaultTarget, PoolSpec};
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::collector::Collector;
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};
use spotpool_e2e_cluster::ClusterOptions;
use tokio::sync::OnceCell;

static WORLD: OnceCell<World> = OnceCell::const_new();
static WORLD_WITH_AGENTS: OnceCell<World> = OnceCell::const_new();

async fn world() -> &'static World {
    let mut cluster = ClusterOptions::default();
    cluster.controller_manager_args.push("--horizontal-pod-autoscaler-sync-period=1s".into());
    let options = WorldOptions { agents: false, cluster, ..WorldOptions::default() };
    WORLD.get_or_init(async || World::start(options).await.unwrap()).await
}

static COLLECTOR: OnceCell<Collector> = OnceCell::const_new();

/// Where the agents of [`world_with_agents`] send their spans.
async fn collector() -> &'static Collector {
    COLLECTOR.get_or_init(async || Collector::start().await.unwrap()).await
}

async fn world_with_agents() -> &'static World {
    let agent_args = vec!["--otlp-endpoint".into(), collector().await.endpoint.clone()];
    let options = WorldOptions { agent_args, ..WorldOptions::default() };
    WORLD_WITH_AGENTS.get_or_init(async || World::start(options).await.unwrap()).await
}

#[test]
fn an_agent_pool_that_does_not_exist_is_named_and_the_others_go_on() {
    run(async {
        let stage = Stage::set(world().await, "missing").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("missinga", "Standard_D4s_v5", 0)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "missinga", "maxNodes": 5}, {"name": "nowhere", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let status = stage
            .status_is("p", "the wrong name to show", |status| condition(status, "Stalled") == "True")
            .await
            .unwrap();
        let stalled = status.conditions.iter().find(|it| it.type_ == "Stalled").unwrap();
        assert_eq!(stalled.reason, "AgentPoolNotFound");
        assert!(stalled.message.contains("agent pool nowhere does not exist"), "{}", stalled.message);
        stage
            .status_is("p", "the other agent pool to serve", |status| status.ready_replicas == 1)
            .await
            .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn of_two_spot_pools_the_older_keeps_an_agent_pool() {
    run(async {
        let stage = Stage::set(world().await, "twice").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("twicea", "Standard_D4s_v5", 0)]).await.unwrap();
        let pools = json!([{"name": "twicea", "maxNodes": 5}]);
        let older = stage.spot_pool("older", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        // Creation times are whole seconds.
        eventually("the next second", async || {
            let created = older.metadata.creation_timestamp.as_ref().unwrap().0;
            Ok((jiff::Timestamp::now().as_second() > created.as_second()).then_some(()))
        })
        .await
        .unwrap();
        stage.spot_pool("younger", json!({"replicas": 3, "agentPools": pools})).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let status = stage
            .status_is("younger", "the younger to stall", |status| condition(status, "Stalled") == "True")
            .await
            .unwrap();
        let stalled = status.conditions.iter().find(|it| it.type_ == "Stalled").unwrap();
        assert_eq!(stalled.reason, "AgentPoolClaimed");
        assert!(stalled.message.contains("twice/older"), "{}", stalled.message);
        stage
            .status_is("older", "the older to be served", |status| status.ready_replicas == 1)
            .await
            .unwrap();
        assert_eq!(stage.world.sim.state().await.unwrap().pool("twicea").unwrap().count, 1);
        operator.stop().await.unwrap();
    });
}

#[test]
fn errors_of_azure_are_outlived_without_a_machine_too_many() {
    run(async {
        let stage = Stage::set(world().await, "faults").await.unwrap();
        let error = |status, code: &str, envelope| FaultAction::Error {
            status,
            code: code.into(),
            message: format!("{code} for a test"),
            envelope,
            retry_after: Some(1),
        };
        let nonsense =
            FaultAction::Answer { status: 502, headers: BTreeMap::new(), body: b"<html>".to_vec() };
        let faults = [
            ("PUT", error(409, "OperationNotAllowed", Envelope::Flat)),
            ("PUT", error(412, "PreconditionFailed", Envelope::Flat)),
            ("PUT", error(500, "InternalServerError", Envelope::Wrapped)),
            ("PUT", nonsense),
            ("PUT", FaultAction::body("{\"name\": 7}")),
            ("PUT", FaultAction::Drop),
            ("PUT", FaultAction::ApplyThenDrop { time: Duration::ZERO }),
            ("PUT", FaultAction::Hang { time: Duration::from_mins(1) }),
            ("GET", error(503, "ServiceUnavailable", Envelope::Wrapped)),
            ("GET", FaultAction::body("[]")),
        ];
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let stage = &stage;
        let cases = faults.into_iter().enumerate().map(|(index, (method, action))| async move {
            let (name, what) = (format!("faults{}", (b'a' + index as u8) as char), format!("{action:?}"));
            stage.agent_pools(&[PoolSpec::spot(&name, "Standard_D4s_v5", 0)]).await.unwrap();
            let target = FaultTarget::arm(method, &format!("/agentPools/{name}"));
            stage.world.sim.add_fault(&Fault { target, times: Some(1), action }).await.unwrap();
            let pools = json!([{"name": name, "maxNodes": 20}]);
            stage.spot_pool(&name, json!({"replicas": 2, "agentPools": pools})).await.unwrap();
            stage.status_is(&name, &what, |status| status.ready_replicas == 2).await.unwrap();
            let state = stage.world.sim.state().await.unwrap();
            let ordered: usize = state.writes_to(&name).map(|write| write.machines_ordered.len()).sum();
            assert_eq!((ordered, state.vms_of(&name).count()), (2, 2), "after {what}");
        });
        futures::future::join_all(cases).await;
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_throttled_agent_pool_keeps_its_last_writes_for_emergencies() {
    run(async {
        let stage = Stage::set(world().await, "throttled").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("throttleda", "Standard_D4s_v5", 0)]).await.unwrap();
        let action = FaultAction::Error {
            status: 429,
            code: "Throttled".into(),
            message: "The PutAgentPoolHandler.PUT request limit has been exceeded".into(),
            envelope: Envelope::Flat,
            retry_after: Some(1),
        };
        let target = FaultTarget::arm("PUT", "/agentPools/throttleda");
        stage.world.sim.add_fault(&Fault { target, times: Some(1), action }).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "throttleda", "maxNodes": 4}]);
        stage.spot_pool("throttled", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        // Growth waits until there is more than the reserve again: minutes, not the second that Azure named.
        let status = stage
            .status_is("throttled", "growth to wait for Azure's limit", |status| {
                let Some(pool) = status.agent_pools.first() else { return false };
                let wait = pool.avoided_until.as_ref().map(|until| until.0.duration_since(Timestamp::now()));
                pool.last_error.as_ref().is_some_and(|error| error.code == "Throttled")
                    && wait.is_some_and(|wait| wait.as_secs() > 60)
            })
            .await
            .unwrap();
        assert!(status.agent_pools[0].write_budget.as_ref().unwrap().left <= 1, "Azure's bucket is empty");
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.writes_to("throttleda").filter(|write| write.status == 200).count(), 0);
        operator.stop().await.unwrap();
    });
}

#[test]
fn azure_that_cannot_be_listed_is_said_and_the_loop_goes_on() {
    run(async {
        // An address of its own for this operator, so that only its lists fail.
        let stage = Stage::set(world().await, "listing").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("listinga", "Standard_D4s_v5", 1)]).await.unwrap();
        let nobody = OperatorOptions {
            azure_endpoint: Some("http://127.0.0.1:9".into()),
            ..OperatorOptions::default()
        };
        let operator = stage.operator(&nobody).await.unwrap();
        let pools = json!([{"name": "listinga", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let status = stage
            .status_is("p", "Azure to be out of reach", |status| {
                condition(status, "AzureReachable") == "False"
            })
            .await
            .unwrap();
        let reachable = status.conditions.iter().find(|it| it.type_ == "AzureReachable").unwrap();
        assert!(reachable.message.contains("ConnectionFailed"), "{}", reachable.message);
        operator.stop().await.unwrap();

        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        stage
            .status_is("p", "Azure to be back", |status| {
                condition(status, "AzureReachable") == "True" && status.ready_replicas == 1
            })
            .await
            .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_denied_write_is_explained_with_azures_own_words() {
    run(async {
        let stage = Stage::set(world().await, "denied").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("denieda", "Standard_D4s_v5", 0)]).await.unwrap();
        let action = FaultAction::Error {
            status: 403,
            code: "AuthorizationFailed".into(),
            message: "does not have authorization to perform action 'agentPools/write'".into(),
            envelope: Envelope::Wrapped,
            retry_after: None,
        };
        let target = FaultTarget::arm("PUT", "/agentPools/denieda");
        stage.world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "denieda", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let status = stage
            .status_is("p", "the error in status", |status| {
                status.agent_pools.iter().any(|it| it.last_error.is_some())
            })
            .await
            .unwrap();
        let pool = &status.agent_pools[0];
        let error = pool.last_error.as_ref().unwrap();
        assert_eq!(error.code, "AuthorizationFailed");
        assert!(error.message.contains("agentPools/write") && pool.avoided_until.is_some(), "{pool:?}");
        let writes = stage.world.sim.state().await.unwrap().writes_to("denieda").count();
        assert!(writes <= 1, "{writes} writes: a refusal must not be repeated at once");
        operator.stop().await.unwrap();
    });
}

#[test]
fn observe_explains_and_writes_nothing() {
    run(async {
        let stage = Stage::set(world().await, "observe").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("observea", "Standard_D4s_v5", 1)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "observea", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"mode": "Observe", "replicas": 3, "agentPools": pools})).await.unwrap();
        let planned = |status: &SpotPoolStatus| {
            status.plan.iter().any(|step| step.message.contains("ask observea for 2 more"))
        };
        stage.status_is("p", "the plan to show", planned).await.unwrap();
        assert_eq!(stage.world.sim.state().await.unwrap().writes_to("observea").count(), 0);
        eventually("labels on the node", async || {
            let nodes = stage.nodes("observea").await?;
            Ok(nodes.iter().all(|node| node.labels().contains_key(names::POOL_LABEL)).then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_deleted_spot_pool_leaves_its_machines_and_takes_its_marks_along() {
    run(async {
        let stage = Stage::set(world().await, "retain").await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("retaina", "Standard_D4s_v5", 2)]).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "retaina", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 2, "agentPools": pools})).await.unwrap();
        let marked = async |wanted: bool| {
            eventually(&format!("nodes marked: {wanted}"), async || {
                let nodes = stage.nodes("retaina").await?;
                let marked = |node: &Node| {
                    node.labels().contains_key(names::POOL_LABEL)
                        && node.annotations().contains_key(names::POLICY_ANNOTATION)
                };
                Ok((nodes.len() == 2 && nodes.iter().all(|node| marked(node) == wanted)).then_some(()))
            })
            .await
            .unwrap();
        };
        marked(true).await;
        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        marked(false).await;
        assert_eq!(stage.world.sim.state().await.unwrap().writes_to("retaina").count(), 0);
        operator.stop().await.unwrap();
    });
}

fn condition<'a>(status: &'a SpotPoolStatus, kind: &str) -> &'a str {
    status.conditions.iter().find(|it| it.type_ == kind).map_or("", |it| it.status.as_str())
}
