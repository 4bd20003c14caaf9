//! Row P: what nodes cost is told by a label of the pods that use them.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Priority};
use spotpool_e2e::objects::object;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::world;

/// Of 16 cores and 64 GiB, and nobody else's price.
const SIZE: &str = "Standard_L16s_v3";
const METRIC: &str = "spotpool_operator_workload_hourly_cost";

/// What each workload costs, by the operator's word.
async fn told(url: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let text = reqwest::get(format!("{url}/metrics")).await?.text().await?;
    let series =
        text.lines().filter_map(|line| line.strip_prefix(METRIC)).filter(|line| line.starts_with('{'));
    let mut told: Vec<(String, f64)> = series
        .map(|series| {
            assert!(series.contains("namespace=\"costs\"") && series.contains("kind=\"spot\""), "{series}");
            let workload = series.split("workload=\"").nth(1).and_then(|rest| rest.split('"').next());
            let value = series.rsplit(' ').next().unwrap_or_default();
            (workload.unwrap_or_default().to_owned(), value.parse().unwrap())
        })
        .collect();
    told.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(told)
}

async fn becomes(url: &str, what: &str, wanted: &[(&str, f64)]) {
    let came = eventually(what, async || {
        let told = told(url).await?;
        let is_right = told.len() == wanted.len()
            && told
                .iter()
                .zip(wanted)
                .all(|((name, cost), (wanted, amount))| name == wanted && (cost - amount).abs() < 1e-6);
        Ok(is_right.then_some(()))
    })
    .await;
    if let Err(error) = came {
        panic!("{error}: {:?}", told(url).await);
    }
}

#[test]
fn what_a_node_costs_is_shared_by_the_workloads_on_it() {
    run(async {
        let stage = Stage::set(world().await, "costs").await.unwrap();
        stage.world.sim.set_price(SIZE, Priority::Spot, Some("1.60")).await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("costsa", SIZE, 1)]).await.unwrap();
        let options =
            OperatorOptions { args: vec!["--cost-label=team".into()], ..OperatorOptions::default() };
        let operator = stage.operator(&options).await.unwrap();
        let url = operator.admin_url.as_str();
        let pools = json!([{"name": "costsa", "maxNodes": 1}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        becomes(url, "the node to be idle", &[("(idle)", 1.6)]).await;

        let node = stage.nodes("costsa").await.unwrap()[0].name_any();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "costs");
        for (name, labels, cpu, memory) in [
            ("red-0", json!({"team": "red"}), "4", "16Gi"),
            ("red-1", json!({"team": "red"}), "4", "16Gi"),
            ("blue", json!({"team": "blue"}), "4", "0"),
            ("other", json!({"app": "web"}), "1", "4Gi"),
        ] {
            let requests = json!({"cpu": cpu, "memory": memory});
            let container = json!({"name": "app", "image": "app", "resources": {"requests": requests}});
            let pod = json!({"metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": node, "containers": [container]}});
            pods.create(&PostParams::default(), &object(pod).unwrap()).await.unwrap();
        }
        // A half, an eighth for a quarter of the CPU alone, a sixteenth.
        let shared = [("(idle)", 0.5), ("(none)", 0.1), ("blue", 0.2), ("red", 0.8)];
        becomes(url, "each to have its share", &shared).await;

        pods.delete("blue", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
            .await
            .unwrap();
        let without = [("(idle)", 0.7), ("(none)", 0.1), ("red", 0.8)];
        becomes(url, "a workload that is gone to cost nothing", &without).await;
        stage.spot_pools().delete("p", &DeleteParams::default()).await.unwrap();
        eventually("the SpotPool to be gone", async || {
            Ok(stage.spot_pools().get_opt("p").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        // Forgotten with the next reconciliation of another.
        let none = json!({"replicas": 0, "agentPools": [{"name": "costsb", "maxNodes": 1}]});
        stage.spot_pool("q", none).await.unwrap();
        becomes(url, "a SpotPool that is gone to cost nothing", &[]).await;
        operator.stop().await.unwrap();
    });
}
