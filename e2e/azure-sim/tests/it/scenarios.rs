//! Scenarios: the example that is given to people, and how a timeline is played.

use std::time::Duration;

use serde_json::json;
use spotpool_azure_sim::api::{FailureKind, Identity, PoolSpec, Settings, VmPhase};
use spotpool_azure_sim::model::{Cloud, later};
use spotpool_azure_sim::scenario::{Action, Scenario, Step};

use crate::azure::Azure;
use crate::{Bench, SIZE};

const EXAMPLE: &str = include_str!("../../scenarios/hostile-hour.yaml");

fn play(step: Duration) -> Cloud {
    let scenario = Scenario::parse(EXAMPLE).unwrap();
    let start = "2026-08-01T00:00:00Z".parse().unwrap();
    let seed = scenario.seed.unwrap();
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, seed);
    cloud.begin_scenario(&scenario, start).unwrap();
    let mut now = start;
    while now < later(start, Duration::from_hours(1)) {
        now = later(now, step);
        cloud.advance(now);
    }
    cloud
}

/// The example is what people begin with: it must be understood, and everything in it must happen.
#[test]
fn the_example_is_played_to_its_end_and_the_same_each_time() {
    let end = "2026-08-01T01:00:00Z".parse().unwrap();
    let state = play(Duration::from_secs(10)).state(end);
    assert_eq!(state.timeline.len(), 37);
    for step in &state.timeline {
        assert_eq!(step.done_at, Some(step.at), "{step:?}");
    }
    let failed: Vec<_> = state.timeline.iter().filter(|step| step.error.is_some()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(state.faults.is_empty());
    assert_eq!(
        state.vms_of("spotd8b").filter(|vm| vm.phase == VmPhase::Running).count(),
        2,
        "it was started again"
    );
    assert!(state.operations.iter().any(|operation| operation.background));
    let again = play(Duration::from_secs(10)).state(end);
    assert_eq!(json!(state), json!(again), "one seed, one story");
    let coarse = play(Duration::from_mins(5)).state(end);
    let done = |state: &spotpool_azure_sim::api::State| -> Vec<_> {
        state.timeline.iter().map(|step| (step.at, step.done_at, step.error.clone())).collect()
    };
    assert_eq!(done(&state), done(&coarse), "whoever looks seldom sees the same happen at the same time");
}

#[test]
fn steps_happen_at_their_time_however_far_time_jumps() {
    let mut azure = Azure::with(&[PoolSpec::spot("spota", SIZE, 3)]);
    let text = "timeline:
      - {at: 10s, evict: {pool: spota, count: 1, notice: 30s}}
      - {at: 15s, evict: {pool: spota, count: 1, notice: 30s, cancelAfter: 5s}}
      - {at: 20s, stop: absent}";
    let start = azure.now;
    azure.cloud.begin_scenario(&Scenario::parse(text).unwrap(), start).unwrap();
    assert_eq!(azure.cloud.due(start), Some(later(start, Duration::from_secs(10))));
    azure.pass(3600);
    let state = azure.state();
    let gone = state.vms.iter().find(|vm| vm.phase == VmPhase::Gone).unwrap();
    assert_eq!(
        gone.gone_at,
        Some(later(start, Duration::from_millis(40_500))),
        "10 s, the notice, and the blow"
    );
    assert_eq!(azure.vms("spota").len(), 2);
    assert_eq!(state.events.iter().filter(|event| event.status == "Cancelled").count(), 1);
    assert_eq!(state.timeline[2].error.as_deref(), Some("no agent pool absent"));
}

#[tokio::test]
async fn scenarios_and_single_steps_come_over_http_too() {
    let bench = Bench::start().await;
    let bad = bench.client.begin_scenario("timeline: [{at: 1s, evct: {}}]").await.unwrap_err().to_string();
    assert!(bad.contains("step 1 of the timeline: unknown variant `evct`"), "{bad}");
    bench
        .client
        .begin_scenario("{pools: [{name: regb, vmSize: Standard_D8s_v5, priority: Regular}], timeline: [{at: 0s, scale: {pool: regb, count: 1}}]}")
        .await
        .unwrap();
    let scaled =
        |state: &spotpool_azure_sim::api::State| state.pool("regb").is_some_and(|pool| pool.count == 1);
    bench.client.wait_until("the scale of the scenario", Duration::from_secs(10), scaled).await.unwrap();

    let step = Step::now("failure: {pool: spota, error: AllocationFailed}").unwrap();
    assert!(matches!(&step, Action::Failure(failure) if failure.error == FailureKind::AllocationFailed));
    bench.client.act(&step).await.unwrap();
    let asked = bench.put("spota", json!({"count": 3})).await;
    assert_eq!(bench.follow(&asked).await["error"]["code"], "AllocationFailed");
    assert!(bench.client.act(&Action::Stop("absent".into())).await.is_err());
    assert!(Step::now("stop").is_err());
}

/// A switch that nobody can read about might as well not be there.
#[test]
fn every_switch_and_action_is_in_the_readme() {
    let readme = include_str!("../../README.md");
    let switches = json!(spotpool_azure_sim::api::Switches::default());
    for key in switches.as_object().unwrap().keys() {
        let name = key.trim_end_matches("Ms");
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
    let unknown = Step::now("nonsense: {}").unwrap_err().to_string();
    let actions: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
    assert!(actions.len() > 20, "{unknown}");
    for action in actions {
        assert!(readme.contains(&format!("`{action}")), "{action}");
    }
}
