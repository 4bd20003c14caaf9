//! The whole HTTP surface in one process, on tokio's paused time.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget, Identity, PoolSpec, Settings};
use spotpool_azure_sim::body::pool_id;
use spotpool_azure_sim::model::Cloud;
use spotpool_azure_sim::reply;
use spotpool_azure_sim::server;
use spotpool_azure_sim::sim::{Sim, tokio_clock};
use tower::ServiceExt;

use crate::{SIZE, VERSION};

async fn call(router: &Router, method: Method, uri: &str, body: &Value) -> (u16, Value, bool) {
    let request = Request::builder().method(method).uri(uri).body(Body::from(body.to_string())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, dropped) = (response.status().as_u16(), reply::is_dropped(&response));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null), dropped)
}

/// A test of a simulated day must neither take a day nor see a time of its own making.
#[tokio::test(start_paused = true)]
async fn hours_pass_in_moments_and_delays_are_of_the_same_time() {
    let start = "2026-08-01T00:00:00Z".parse().unwrap();
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 7);
    cloud.add_pool(&PoolSpec::spot("spota", SIZE, 1), start).unwrap();
    let sim = Sim::with_clock(cloud, tokio_clock(start));
    let router = server::router(sim.clone());
    let driver = sim.clone();
    let driving = tokio::spawn(async move { driver.drive().await });
    let url = format!("{}?api-version={VERSION}", pool_id(&Identity::default(), "spota"));

    let put = call(&router, Method::PUT, &url, &json!({"properties": {"count": 2}})).await;
    assert_eq!((put.0, &put.1["properties"]["provisioningState"]), (200, &json!("Scaling")));
    tokio::time::sleep(Duration::from_secs(99)).await;
    let state = |answer: (u16, Value, bool)| answer.1["properties"]["provisioningState"].clone();
    assert_eq!(state(call(&router, Method::GET, &url, &Value::Null).await), "Scaling");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(state(call(&router, Method::GET, &url, &Value::Null).await), "Succeeded");

    let slow = Fault {
        target: FaultTarget::arm("GET", ""),
        times: Some(1),
        action: FaultAction::Hang { time: Duration::from_hours(3) },
    };
    sim.change(|cloud, _| cloud.faults.add(slow));
    let before = sim.now();
    assert!(call(&router, Method::GET, &url, &Value::Null).await.2, "the connection closes");
    assert_eq!(sim.now().duration_since(before).as_hours(), 3);
    driving.abort();
}
