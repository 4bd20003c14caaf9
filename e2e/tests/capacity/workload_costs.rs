//! Row P: what nodes cost is told by a label of the pods that use them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure::Decimal;
use spotpool_azure_sim::api::{PoolSpec, Priority};
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::objects::object;
use spotpool_e2e::{Operator, OperatorOptions, Stage, eventually, run};

use crate::world;

/// Of 16 cores and 64 GiB, and nobody else's price.
const SIZE: &str = "Standard_L16s_v3";
/// For bills.
const BILLED_SIZE: &str = "Standard_L32s_v3";
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

/// Exactly what an agent pool's month comes to, by team: of this the bills are written.
fn billed(status: &SpotPoolStatus) -> BTreeMap<String, Decimal> {
    let Some(money) = &status.money else { return BTreeMap::new() };
    let (Some(by_workload), Some(ledger)) = (&money.by_workload, &money.ledger) else {
        return BTreeMap::new();
    };
    let spent = by_workload.this_month.spent.iter();
    let spent: BTreeMap<String, Decimal> =
        spent.map(|spend| (spend.workload.clone(), spend.amount.parse().unwrap())).collect();
    let page = &ledger.page.spent;
    let all = [&page.spot, &page.on_demand, &page.fallback].map(|text| text.parse::<Decimal>().unwrap());
    assert_eq!(spent.values().sum::<Decimal>(), all.iter().sum::<Decimal>(), "{by_workload:?} of {page:?}");
    assert_eq!((&by_workload.this_month.month, by_workload.at.0), (&ledger.page.month, ledger.at.0));
    spent
}

#[test]
fn what_a_workload_has_cost_in_the_month_goes_on_over_a_restart() {
    run(async {
        let stage = Stage::set(world().await, "bills").await.unwrap();
        stage.world.sim.set_price(BILLED_SIZE, Priority::Spot, Some("360")).await.unwrap();
        stage.agent_pools(&[PoolSpec::spot("billsa", BILLED_SIZE, 1)]).await.unwrap();
        let node = stage.nodes("billsa").await.unwrap()[0].name_any();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "bills");
        let container = json!({"name": "app", "image": "app", "resources": {"requests": {"cpu": "16"}}});
        let pod = json!({"metadata": {"name": "red", "labels": {"team": "red"}},
            "spec": {"nodeName": node, "containers": [container]}});
        pods.create(&PostParams::default(), &object(pod).unwrap()).await.unwrap();
        let options =
            OperatorOptions { args: vec!["--cost-label=team".into()], ..OperatorOptions::default() };
        let operator = stage.operator(&options).await.unwrap();
        let pools = json!([{"name": "billsa", "maxNodes": 4}]);
        stage.spot_pool("p", json!({"replicas": 1, "agentPools": pools})).await.unwrap();
        let is_red = async |operator: &Operator, metric: &str| {
            eventually(&format!("{metric} of red"), async || {
                let text = reqwest::get(format!("{}/metrics", operator.admin_url)).await?.text().await?;
                let is_it = |line: &str| {
                    line.starts_with(&format!("{metric}{{namespace=\"bills\""))
                        && line.contains("workload=\"red\"")
                };
                Ok(text.lines().any(is_it).then_some(()))
            })
            .await
            .unwrap();
        };
        is_red(&operator, METRIC).await;
        // Another rate has the ledger written.
        let red = |status: &SpotPoolStatus| billed(status).get("red").copied().unwrap_or_default();
        stage.replicas("p", 2).await.unwrap();
        let both = |status: &SpotPoolStatus| {
            let ledger = status.money.as_ref().and_then(|money| money.ledger.as_ref());
            ledger.is_some_and(|ledger| ledger.hourly.spot.parse() == Ok(Decimal::from(720)))
        };
        let first = stage
            .status_is("p", "red to be billed", |status| both(status) && red(status) > Decimal::ZERO)
            .await
            .unwrap();
        is_red(&operator, "spotpool_operator_workload_month_spend").await;
        operator.stop().await.unwrap();

        let operator = stage.operator(&options).await.unwrap();
        is_red(&operator, METRIC).await;
        stage.replicas("p", 3).await.unwrap();
        let second =
            stage.status_is("p", "red to be billed more", |status| red(status) > red(&first)).await.unwrap();
        let unknown = |status: &SpotPoolStatus| billed(status).get("(unknown)").copied().unwrap_or_default();
        assert_eq!(unknown(&second), unknown(&first), "a restart takes from nobody's bill");
        operator.stop().await.unwrap();

        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        stage
            .status_is("p", "no bills without the flag", |status| {
                status.money.as_ref().is_some_and(|money| money.by_workload.is_none())
            })
            .await
            .unwrap();
        operator.stop().await.unwrap();
    });
}
