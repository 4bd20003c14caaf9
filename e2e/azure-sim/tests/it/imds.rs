//! The metadata services over HTTP.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{EventRequest, Fault, FaultAction, FaultTarget, SettingsPatch, Targets};

use crate::{Answer, Bench};

const EVENTS: &str = "metadata/scheduledevents?api-version=2020-07-01";

async fn ask(bench: &Bench, node: &str, path: &str) -> Answer {
    let url = format!("{}/{path}", bench.client.imds_endpoint(node));
    bench.send(Method::GET, &url, &[("Metadata", "true")], None).await
}

#[tokio::test]
async fn requests_must_be_well_formed() {
    let bench = Bench::start().await;
    let node = &bench.nodes("spota").await[0];
    let url = format!("{}/{EVENTS}", bench.client.imds_endpoint(node));
    assert_eq!(bench.get(&url).await.status, 400);
    let forwarded = [("Metadata", "true"), ("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(bench.send(Method::GET, &url, &forwarded, None).await.status, 400);
    let bad = ask(&bench, node, "metadata/scheduledevents?api-version=latest").await;
    assert_eq!(bad.status, 400);
    assert!(bad.body["error"].as_str().unwrap().starts_with("Bad request. api-version is invalid"));
    assert_eq!(bad.body["newest-versions"][0], "2025-04-07");
    assert_eq!(ask(&bench, node, "metadata/nothing").await.status, 404);
}

#[tokio::test]
async fn the_document_is_shared_by_the_scale_set() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    let empty = ask(&bench, &nodes[0], EVENTS).await;
    assert_eq!(empty.body, json!({"DocumentIncarnation": 0, "Events": []}));
    let events = bench.client.evict(&nodes[..1], Duration::from_secs(30)).await.unwrap();
    let document = ask(&bench, &nodes[1], EVENTS).await.body;
    assert_eq!(document["DocumentIncarnation"], 1);
    let event = &document["Events"][0];
    let state = bench.client.state().await.unwrap();
    let vm = state.vm(&nodes[0]).unwrap().name.clone();
    assert_eq!(event["Resources"], json!([vm]));
    assert_eq!(state.events[0].told_at.keys().collect::<Vec<_>>(), [&nodes[1]]);
    assert!(state.events[0].told_at[&nodes[1]] >= state.events[0].scheduled_at);
    assert_eq!(event["EventId"], json!(events[0].event_id));
    assert!(event["NotBefore"].as_str().unwrap().ends_with(" GMT"));
    let old = ask(&bench, &nodes[1], "metadata/scheduledevents?api-version=2017-11-01").await.body;
    assert_eq!(old["Events"][0]["DurationInSeconds"], Value::Null);
    assert!(bench.client.evict(&nodes[..1], Duration::ZERO).await.is_err(), "once is enough");
    assert!(bench.client.evict(&["nobody"], Duration::ZERO).await.is_err());

    assert_eq!(bench.client.cancel(&nodes[0]).await.unwrap(), [events[0].event_id.clone()]);
    assert_eq!(ask(&bench, &nodes[0], EVENTS).await.body, json!({"DocumentIncarnation": 2, "Events": []}));
}

#[tokio::test]
async fn a_machine_that_is_gone_answers_no_more() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    bench.client.evict_some("spota", 1, Duration::ZERO).await.unwrap();
    let gone = |state: &spotpool_azure_sim::api::State| state.vms_of("spota").count() == 1;
    let state = bench.client.wait_until("one machine to go", Duration::from_secs(5), gone).await.unwrap();
    assert_eq!(state.pool("spota").unwrap().count, 1);
    let url = format!("{}/{EVENTS}", bench.client.imds_endpoint(&nodes[0]));
    assert!(bench.http.get(&url).header("Metadata", "true").send().await.is_err());
    assert_eq!(ask(&bench, &nodes[1], EVENTS).await.status, 200);
}

#[tokio::test]
async fn approvals_are_answered_and_recorded() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    let freeze = EventRequest::new("Freeze", Targets::named(&nodes), Duration::from_mins(15));
    let events = bench.client.schedule(&EventRequest { together: true, ..freeze }).await.unwrap();
    assert_eq!((events.len(), events[0].nodes.len()), (1, 2));
    let url = format!("{}/{EVENTS}", bench.client.imds_endpoint(&nodes[1]));
    let post =
        async |body: Value| bench.send(Method::POST, &url, &[("Metadata", "true")], Some(&body)).await.status;
    assert_eq!(post(json!({"Start": []})).await, 400);
    assert_eq!(post(json!({"StartRequests": [{"EventId": "unknown"}]})).await, 400);
    let good = json!({"StartRequests": [{"EventId": events[0].event_id}]});
    assert_eq!(post(good.clone()).await, 200);
    assert_eq!(post(good).await, 200);
    let state = bench.client.state().await.unwrap();
    assert_eq!(state.events[0].status, "Started");
    let last = state.acks.last().unwrap();
    assert_eq!((last.node.as_str(), last.event_type.as_deref()), (nodes[1].as_str(), Some("Freeze")));
}

#[tokio::test]
async fn more_than_five_requests_a_second_are_too_many() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    let began = Instant::now();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(ask(&bench, &nodes[0], EVENTS).await.status);
    }
    // Only a test that was held up for a whole second may see the sixth answered.
    assert!(
        statuses == [200, 200, 200, 200, 200, 429] || began.elapsed() > Duration::from_secs(1),
        "{statuses:?}"
    );
    assert_eq!(ask(&bench, &nodes[1], EVENTS).await.status, 200, "another machine has a limit of its own");
}

#[tokio::test]
async fn faults_strike_one_machine_or_all() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    let bytes = FaultAction::body(vec![0xff, 0xfe, b'{']);
    let one = Fault { target: FaultTarget::scheduled_events(Some(&nodes[0])), times: Some(1), action: bytes };
    bench.client.add_fault(&one).await.unwrap();
    let raw = ask(&bench, &nodes[0], EVENTS).await;
    assert_eq!((raw.status, raw.body), (200, json!("\u{fffd}\u{fffd}{")));
    assert_eq!(ask(&bench, &nodes[0], EVENTS).await.body["Events"], json!([]));

    let all =
        Fault { target: FaultTarget::scheduled_events(None), times: None, action: FaultAction::status(410) };
    bench.client.add_fault(&all).await.unwrap();
    for node in &nodes {
        assert_eq!(ask(&bench, node, EVENTS).await.status, 410);
    }
    bench.client.clear_faults().await.unwrap();
    let slow = FaultAction::Delay { time: Duration::from_millis(150) };
    bench
        .client
        .add_fault(&Fault { target: FaultTarget::scheduled_events(None), times: Some(1), action: slow })
        .await
        .unwrap();
    let began = Instant::now();
    assert_eq!(ask(&bench, &nodes[1], EVENTS).await.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn the_first_answer_may_take_its_time() {
    let bench = Bench::start().await;
    let nodes = bench.nodes("spota").await;
    let patch =
        SettingsPatch { imds_first_answer: Some(Duration::from_millis(150)), ..SettingsPatch::default() };
    bench.client.change_settings(&patch).await.unwrap();
    for node in &nodes {
        let began = Instant::now();
        ask(&bench, node, EVENTS).await;
        assert!(began.elapsed() >= Duration::from_millis(150));
    }
}

#[tokio::test]
async fn a_machine_knows_itself() {
    let bench = Bench::start().await;
    let node = &bench.nodes("spota").await[0];
    let compute = ask(&bench, node, "metadata/instance/compute?api-version=2021-02-01").await.body;
    assert_eq!(compute["priority"], "Spot");
    assert_eq!(compute["evictionPolicy"], "Delete");
    assert_eq!(compute["resourceGroupName"], "MC_spotpool-rg_spotpool-sim_eastus");
    assert_eq!(compute["osProfile"]["computerName"], json!(node));
    assert_eq!(compute["zone"], "");
    let leaf = ask(&bench, node, "metadata/instance/compute/name?api-version=2021-02-01&format=text").await;
    assert_eq!(leaf.body, compute["name"]);
    assert!(leaf.body.as_str().unwrap().ends_with("-vmss_0"));
    assert_eq!(ask(&bench, node, "metadata/instance/compute/name?api-version=2021-02-01").await.status, 400);
}
