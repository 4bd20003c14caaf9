//! Row I: fallback costs no more than its budgets allow, across restarts, and says what it costs.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Priority};
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::hands::Hands;
use crate::world;

const SIZE: &str = "Standard_L8s_v3";

fn budget(status: &SpotPoolStatus) -> (&str, &str, &str) {
    let condition = status.conditions.iter().find(|it| it.type_ == "BudgetExhausted");
    condition.map_or(("", "", ""), |it| (&it.status, &it.reason, &it.message))
}

fn fallback_cost(status: &SpotPoolStatus) -> &str {
    let hourly = status.money.as_ref().and_then(|money| money.hourly.as_ref());
    hourly.map_or("", |hourly| &hourly.fallback)
}

fn spent(status: &SpotPoolStatus) -> f64 {
    let ledger = status.money.as_ref().and_then(|money| money.ledger.as_ref()).unwrap();
    ledger.page.spent.fallback.parse().unwrap()
}

/// Waits for an Event of this reason and gives its note.
async fn told(stage: &Stage<'_>, reason: &str) -> String {
    let events: Api<Event> = Api::namespaced(stage.world.client.clone(), &stage.name);
    eventually(&format!("an Event {reason}"), async || {
        let events = events.list(&ListParams::default()).await?;
        let event = events.items.into_iter().find(|event| event.reason.as_deref() == Some(reason));
        Ok(event.map(|event| event.note.unwrap_or_default()))
    })
    .await
    .unwrap()
}

/// What `kubectl get spp` shows.
async fn table(stage: &Stage<'_>) -> String {
    let request =
        http::Request::get(format!("/apis/spotpool.dev/v1alpha1/namespaces/{}/spotpools", stage.name));
    let request = request.header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").body(Vec::new());
    stage.world.client.request_text(request.unwrap()).await.unwrap()
}

#[test]
fn fallback_stops_at_its_budget_outlives_a_restart_and_is_returned_when_prices_rise() {
    run(async {
        let stage = Stage::set(world().await, "money").await.unwrap();
        let sim = &stage.world.sim;
        sim.set_price(SIZE, Priority::Regular, Some("0.40")).await.unwrap();
        sim.set_price(SIZE, Priority::Spot, Some("0.10")).await.unwrap();
        // Spot is never to be had.
        sim.set_capacity(SIZE, Priority::Spot, Some(0)).await.unwrap();
        stage
            // The third is nobody's: without any Node the operator does not know the region, and so no price.
            .agent_pools(&[
                PoolSpec::spot("moneya", SIZE, 0),
                PoolSpec::regular("moneyr", SIZE, 0),
                PoolSpec::regular("moneyx", "Standard_D4s_v5", 1),
            ])
            .await
            .unwrap();
        let hands = Hands::start(&stage.world.client, &["moneyr"]);
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "moneya", "maxNodes": 5}, {"name": "moneyr", "maxNodes": 5}]);
        let fallback = json!({"maxNodes": 5, "hourlyBudget": "0.90", "monthlyBudget": "50", "atCap": "Shed"});
        stage
            .spot_pool("p", json!({"replicas": 4, "agentPools": pools, "fallback": fallback}))
            .await
            .unwrap();

        // Two of 0.40 fit into 0.90, and it is said why there are no more.
        let full = stage
            .status_is("p", "two nodes, and the budget to be exhausted", |status| {
                status.capacity.ready_on_demand == 2 && budget(status).0 == "True"
            })
            .await
            .unwrap();
        assert_eq!((full.fallback.nodes, fallback_cost(&full)), (2, "0.8"));
        let (_, reason, message) = budget(&full);
        assert_eq!(reason, "FallbackAtBudget");
        assert!(
            message.contains("costs 0.8 an hour") && message.contains("hourlyBudget is 0.9"),
            "{message}"
        );
        let money = full.money.clone().unwrap();
        assert_eq!((money.currency.as_str(), money.hourly_budget.unwrap().left.as_str()), ("USD", "0.1"));
        assert!(money.prices_read_at.is_some() && money.assumptions.is_empty(), "{:?}", money.assumptions);
        assert!(told(&stage, "FallbackStarting").await.contains("of moneyr, for 0."));
        assert!(told(&stage, "BudgetThreshold").await.contains("% of fallback.hourlyBudget"));
        assert!(told(&stage, "FallbackAtBudget").await.contains("hourlyBudget"));
        let shown = table(&stage).await;
        assert!(shown.contains("\"FallbackAtBudget\"") && shown.contains("\"0.8\""), "{shown}");

        // Another operator finds what was spent, and a price that has risen: one of the two has to go, and stays away.
        operator.stop().await.unwrap();
        let before = stage.status("p").await.unwrap();
        sim.set_price(SIZE, Priority::Regular, Some("0.60")).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let shed = stage
            .status_is("p", "one node to be returned", |status| {
                status.fallback.nodes == 1 && status.fallback.draining.is_empty()
            })
            .await
            .unwrap();
        assert_eq!((fallback_cost(&shed), hands.asked().len()), ("0.6", 1));
        assert!(
            told(&stage, "ShedOverBudget").await.contains("1.2 an hour, 0.3 more than fallback.hourlyBudget")
        );
        assert!(spent(&shed) > spent(&before), "{} spent after {}", spent(&shed), spent(&before));
        assert_eq!(
            sim.state()
                .await
                .unwrap()
                .writes_to("moneyr")
                .filter(|it| !it.machines_ordered.is_empty())
                .map(|it| it.machines_ordered.len())
                .sum::<usize>(),
            2
        );

        // A person lifts it for an hour.
        let until = Timestamp::from_second((Timestamp::now() + SignedDuration::from_hours(1)).as_second());
        let annotations = json!({names::BUDGET_OVERRIDE_ANNOTATION: until.unwrap().to_string()});
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let duty = PatchParams { field_manager: Some("duty".into()), ..PatchParams::default() };
        stage.spot_pools().patch("p", &duty, &patch).await.unwrap();
        let lifted = stage
            .status_is("p", "all to stand in", |status| status.capacity.ready_on_demand == 4)
            .await
            .unwrap();
        assert_eq!((budget(&lifted).0, budget(&lifted).1), ("False", "BudgetOverridden"));
        assert!(told(&stage, "BudgetOverridden").await.ends_with("field manager duty"));
        operator.stop().await.unwrap();
    });
}
