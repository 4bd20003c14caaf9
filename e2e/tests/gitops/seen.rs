//! How Flux and Argo CD see SpotPools in every state, as the operator has written them.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, Priority};
use spotpool_crds::{SpotPool, SpotPoolStatus};
use spotpool_e2e::{OperatorOptions, Stage, run};
use spotpool_e2e_cluster::Tools;
use tokio::process::Command;

use crate::{documents, root, said, stage};

/// A SpotPool in one state, and what each should see: Flux, Argo CD, and words of Argo CD's message.
struct State {
    what: &'static str,
    pool: Value,
    flux: &'static str,
    argo: (&'static str, &'static str),
}

fn has(status: &SpotPoolStatus, kind: &str, value: &str) -> bool {
    status.conditions.iter().any(|it| it.type_ == kind && it.status == value)
}

/// The SpotPool, once its status is like this.
async fn when(stage: &Stage<'_>, name: &str, what: &str, holds: impl Fn(&SpotPoolStatus) -> bool) -> Value {
    let looked = |pool: &SpotPool, status: &SpotPoolStatus| {
        Some(status.observed_generation) == pool.metadata.generation
    };
    let pool = spotpool_e2e::eventually(what, async || {
        let pool = stage.spot_pools().get(name).await?;
        let is_it = pool.status.as_ref().is_some_and(|status| looked(&pool, status) && holds(status));
        Ok(is_it.then_some(pool))
    });
    serde_json::to_value(pool.await.unwrap()).unwrap()
}

async fn states(stage: &Stage<'_>) -> Vec<State> {
    let sim = &stage.world.sim;
    let mut states = Vec::new();
    let mut add = |what, pool: &Value, flux, argo| {
        states.push(State { what, pool: pool.clone(), flux, argo });
    };
    let pools = json!([{"name": "seena", "maxNodes": 5}]);
    let spec = json!({"replicas": 1, "agentPools": pools});
    // No operator is there yet.
    stage.spot_pool("p", spec.clone()).await.unwrap();
    let unseen = serde_json::to_value(stage.spot_pools().get("p").await.unwrap()).unwrap();
    add("nobody has looked", &unseen, "InProgress", ("Progressing", "no operator has looked at it yet"));

    let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
    let whole = when(stage, "p", "1 ready", |it| has(it, "Ready", "True") && has(it, "Reconciling", "False"));
    let whole = whole.await;
    add("whole", &whole, "Current", ("Healthy", "1 of 1 ready"));
    let mut changed = whole.clone();
    changed["metadata"]["generation"] = json!(whole["metadata"]["generation"].as_i64().unwrap() + 1);
    add("changed", &changed, "InProgress", ("Progressing", "not looked at its last change"));
    let mut leaving = whole.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
    add("leaving", &leaving, "Terminating", ("Progressing", "being deleted"));

    sim.switch_pool("seena", &json!({"bootTimeMs": 20_000})).await.unwrap();
    stage.replicas("p", 2).await.unwrap();
    let growing = when(stage, "p", "a node on its way", |it| has(it, "Reconciling", "True")).await;
    add("growing", &growing, "InProgress", ("Progressing", "1 of 2 ready"));

    let wrong = json!({"replicas": 1, "agentPools": [{"name": "nowhere", "maxNodes": 1}]});
    stage.spot_pool("wrong", wrong).await.unwrap();
    let stalled = when(stage, "wrong", "it is stalled", |it| has(it, "Stalled", "True")).await;
    add("stalled", &stalled, "Failed", ("Degraded", "agent pool nowhere does not exist"));

    // Nothing to be had, and nothing stands in.
    sim.set_capacity("Standard_E4s_v5", Priority::Spot, Some(0)).await.unwrap();
    let short = json!({"replicas": 1, "agentPools": [{"name": "seenb", "maxNodes": 1}]});
    stage.spot_pool("short", short).await.unwrap();
    let short = when(stage, "short", "it is short of capacity", |it| {
        has(it, "Ready", "False")
            && has(it, "Reconciling", "False")
            && it.agent_pools.iter().any(|it| it.avoided_until.is_some())
    });
    add("short", &short.await, "InProgress", ("Degraded", "0 of 1 ready"));

    let suspend = Patch::Merge(json!({"spec": {"suspend": true}}));
    stage.spot_pools().patch("short", &PatchParams::default(), &suspend).await.unwrap();
    let suspended = serde_json::to_value(stage.spot_pools().get("short").await.unwrap()).unwrap();
    add("suspended", &suspended, "InProgress", ("Suspended", "spec.suspend is true"));
    operator.stop().await.unwrap();
    states
}

/// What each is seen as: status and message.
async fn seen(args: &[&str], objects: &[&Value]) -> Vec<(String, String)> {
    let mut command = Command::new(Tools::gitops().await.unwrap());
    command.args(args);
    let said = said(command, &serde_json::to_string(objects).unwrap()).await;
    assert!(said.good, "{said:?}");
    let answers: Vec<Value> = serde_json::from_str(&said.out).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    answers.iter().map(|answer| (text(&answer["status"]), text(&answer["message"]))).collect()
}

#[test]
fn flux_and_argo_cd_see_the_state_of_a_spot_pool() {
    run(async {
        let stage = stage("seen").await;
        let pools =
            [PoolSpec::spot("seena", "Standard_D4s_v5", 1), PoolSpec::spot("seenb", "Standard_E4s_v5", 0)];
        stage.agent_pools(&pools).await.unwrap();
        let states = states(&stage).await;
        let objects: Vec<&Value> = states.iter().map(|state| &state.pool).collect();
        let by_flux = seen(&["kstatus"], &objects).await;
        let script = root("docs/install/gitops/argocd/health.lua").display().to_string();
        let by_argo = seen(&["lua", &script], &objects).await;
        for (state, (flux, argo)) in states.iter().zip(by_flux.iter().zip(&by_argo)) {
            assert_eq!(flux.0, state.flux, "{}: {flux:?} of {}", state.what, state.pool);
            let (wanted, words) = state.argo;
            assert!(argo.0 == wanted && argo.1.contains(words), "{}: {argo:?} of {}", state.what, state.pool);
        }
    });
}

#[test]
fn argo_cds_config_map_has_the_script_that_is_tested() {
    let read = |file: &str| std::fs::read_to_string(root("docs/install/gitops/argocd").join(file)).unwrap();
    let config = documents(&read("argocd-cm.yaml")).remove(0);
    let key = "resource.customizations.health.spotpool.dev_SpotPool";
    assert_eq!(config["data"][key], json!(read("health.lua")));
}
