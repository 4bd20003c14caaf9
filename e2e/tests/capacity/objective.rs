//! Row N: the error budget decides how much risk is taken, and says so.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_crds::SpotPoolStatus;
use spotpool_crds::spot_pool::ObjectiveMode;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::hands::Hands;
use crate::world;

fn caution(status: &SpotPoolStatus) -> Option<(ObjectiveMode, i32)> {
    status.objective.as_ref().map(|objective| (objective.mode, objective.caution))
}

fn reason<'a>(status: &'a SpotPoolStatus, kind: &str) -> (&'a str, &'a str) {
    let found = status.conditions.iter().find(|it| it.type_ == kind);
    found.map_or(("", ""), |it| (it.status.as_str(), it.reason.as_str()))
}

/// What a person sees.
async fn get(stage: &Stage<'_>) -> String {
    let output = tokio::process::Command::new(stage.world.cluster.kubectl())
        .arg("--kubeconfig")
        .arg(stage.world.cluster.admin_kubeconfig())
        .args(["--namespace", &stage.name, "get", "spp", "p"])
        .output()
        .await
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// As if all that was measured had been measured so much earlier: hours pass while no operator runs.
async fn pass(stage: &Stage<'_>, hours: i64) {
    fn earlier(value: &mut Value, by: SignedDuration) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(|value| earlier(value, by)),
            Value::String(text) => {
                if let Ok(time) = text.parse::<Timestamp>() {
                    *text = format!("{:.0}", time - by);
                }
            }
            _ => {}
        }
    }
    let status = stage.status("p").await.unwrap();
    let mut objective = serde_json::to_value(status.objective.unwrap()).unwrap();
    earlier(&mut objective, SignedDuration::from_hours(hours));
    let patch = Patch::Merge(json!({"status": {"objective": objective}}));
    stage.spot_pools().patch_status("p", &PatchParams::default(), &patch).await.unwrap();
}

/// Waits for the Event of a change, with its numbers.
async fn told(stage: &Stage<'_>, reason: &str) {
    let events: Api<Event> = Api::namespaced(stage.world.client.clone(), &stage.name);
    eventually(&format!("an Event {reason}"), async || {
        let events = events.list(&ListParams::default()).await?.items;
        let has_numbers = |note: &String| note.contains("of the error budget left");
        let is_it = |event: &&Event| {
            event.reason.as_deref() == Some(reason) && event.note.as_ref().is_some_and(has_numbers)
        };
        Ok(events.iter().find(is_it).map(|_| ()))
    })
    .await
    .unwrap();
}

#[test]
fn a_mass_eviction_burns_the_budget_the_pool_goes_cautious_and_recovers() {
    run(async {
        let stage = Stage::set(world().await, "object").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("objecta", "Standard_D4s_v5", 4),
                PoolSpec::regular("objectr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let _hands = Hands::start(&stage.world.client, &["objecta", "objectr"]);
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "objecta", "maxNodes": 6}, {"name": "objectr", "maxNodes": 4}]);
        // On-demand would be bought in 10 minutes, so that what is bought before is bought out of caution.
        let spec = json!({"replicas": 4, "agentPools": pools,
            "fallback": {"maxNodes": 2, "after": "10m", "growthAfter": "10m"},
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "0s", "probe": "0s"},
            "objective": {"availability": "99.95"}});
        stage.spot_pool("p", spec).await.unwrap();
        let calm = stage
            .status_is("p", "the objective to be kept", |status| {
                reason(status, "ObjectiveMet") == ("True", "ObjectiveKept")
            })
            .await
            .unwrap();
        assert_eq!(
            calm.objective.unwrap().measured.window.to_string(),
            "720h",
            "a month, if nothing is said"
        );
        let shown = get(&stage).await;
        assert!(shown.contains("OBJECTIVE") && shown.contains("100.000% of 99.95%, Normal"), "{shown}");

        // Four of four for the time of a boot, where 1.8 s an hour would be all right.
        stage.world.sim.switch_pool("objecta", &json!({"bootTimeMs": 15_000})).await.unwrap();
        stage.world.sim.kill(&Targets::of_pool("objecta", 4)).await.unwrap();
        let burning = stage
            .status_is("p", "caution", |status| caution(status) == Some((ObjectiveMode::Cautious, 1)))
            .await
            .unwrap();
        assert_eq!(reason(&burning, "ObjectiveMet"), ("True", "ObjectiveBurning"));
        let cautious = stage
            .status_is("p", "on-demand out of caution and spot whole", |status| {
                status.capacity.ready_on_demand == 1 && status.capacity.ready_spot >= 5
            })
            .await
            .unwrap();
        let step = cautious.plan.iter().skip(1).find(|step| step.reason.to_string() == "Cautious").unwrap();
        assert!(step.message.contains("1 units on demand") && step.message.contains("over 1h"), "{step:?}");
        told(&stage, "Cautious").await;
        let shown = get(&stage).await;
        assert!(shown.contains("of 99.95%, Cautious 1/5"), "{shown}");
        let metrics = reqwest::get(format!("{}/metrics", operator.admin_url)).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        for series in [
            "spotpool_operator_objective_caution_steps{namespace=\"object\",pool=\"p\"} 1",
            "spotpool_operator_objective_burn_rate{namespace=\"object\",pool=\"p\",window=\"1h\"}",
            "spotpool_operator_objective_wanted_unit_seconds_total{namespace=\"object\",pool=\"p\"}",
            "spotpool_operator_time_to_replace_seconds_count{namespace=\"object\",pool=\"p\"}",
        ] {
            assert!(metrics.contains(series), "{series} in {metrics}");
        }

        // Another operator knows all of it, and hours later on-demand is still kept: calm has to last.
        operator.stop().await.unwrap();
        pass(&stage, 7).await;
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let calmer = stage
            .status_is("p", "calm", |status| {
                status.objective.as_ref().is_some_and(|objective| objective.calm_since.is_some())
            })
            .await
            .unwrap();
        assert_eq!(caution(&calmer), Some((ObjectiveMode::Cautious, 1)));
        assert_eq!(reason(&calmer, "ObjectiveMet"), ("True", "ObjectiveRecovering"));
        assert_eq!(calmer.capacity.ready_on_demand, 1, "kept until then");
        operator.stop().await.unwrap();
        pass(&stage, 2).await;
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let normal = stage
            .status_is("p", "all to be as before", |status| {
                caution(status) == Some((ObjectiveMode::Normal, 0))
                    && (status.capacity.ready_spot, status.capacity.ready_on_demand) == (4, 0)
            })
            .await
            .unwrap();
        assert_eq!(reason(&normal, "ObjectiveMet"), ("True", "ObjectiveKept"));
        let objective = normal.objective.unwrap();
        assert!(
            objective.budget_left_percent < 100,
            "what was missed is in the month's budget: {objective:?}"
        );
        told(&stage, "ObjectiveRecovered").await;
        let shown = get(&stage).await;
        assert!(shown.contains("of 99.95%, Normal"), "{shown}");
        operator.stop().await.unwrap();
    });
}
