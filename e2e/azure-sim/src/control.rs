//! The control API under `/sim/`: what tests and people do to the simulated cloud.

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::Response;
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{
    BackgroundOperation, Capacity, EventRequest, Failure, Fault, PoolSpec, Quota, SettingsPatch, Targets,
};
use crate::model::Refused;
use crate::reply;
use crate::scenario::{Action, Scenario};
use crate::sim::Sim;

/// A fault may carry a document that is too large on purpose, each byte of it as a number.
const LARGEST_REQUEST: usize = 64 * 1024 * 1024;

/// The routes of the control API.
pub fn routes() -> Router<Sim> {
    Router::new()
        .route("/sim/state", get(state))
        .route("/sim/invoice", get(invoice))
        .route("/sim/pools", post(add_pool))
        .route("/sim/pools/{name}", delete(remove_pool))
        .route("/sim/events", post(schedule))
        .route("/sim/events/{what}", delete(cancel))
        .route("/sim/kill", post(kill))
        .route("/sim/capacity", put(set_capacity))
        .route("/sim/faults", post(add_fault).delete(clear_faults))
        .route("/sim/faults/{id}", delete(clear_fault))
        .route("/sim/settings", patch(patch_settings))
        .route("/sim/pools/{name}/switches", patch(patch_pool_switches))
        .route("/sim/quotas", put(set_quota))
        .route("/sim/failures", post(add_failure).delete(clear_failures))
        .route("/sim/operations", post(begin_operation))
        .route("/sim/scenario", post(begin_scenario))
        .route("/sim/act", post(act))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
}

fn answer<T: Serialize>(result: Result<T, Refused>) -> Response {
    match result {
        Ok(body) => reply::json_body(200, &json!(body)),
        Err(refused @ Refused::NotFound(_)) => reply::error(404, &refused.to_string()),
        Err(refused @ Refused::Invalid(_)) => reply::error(400, &refused.to_string()),
    }
}

async fn state(State(sim): State<Sim>) -> Response {
    let state = sim.look(|cloud, now| cloud.state(now));
    answer(Ok(state))
}

/// Which time an invoice is of.
#[derive(Debug, Deserialize)]
struct Range {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

async fn invoice(State(sim): State<Sim>, Query(range): Query<Range>) -> Response {
    answer(sim.look(|cloud, now| cloud.invoice(range.from, range.to, now)))
}

async fn add_pool(State(sim): State<Sim>, Json(spec): Json<PoolSpec>) -> Response {
    answer(sim.change(|cloud, now| cloud.add_pool(&spec, now)))
}

async fn remove_pool(State(sim): State<Sim>, Path(name): Path<String>) -> Response {
    answer(sim.change(|cloud, now| cloud.remove_pool(&name, now)))
}

async fn schedule(State(sim): State<Sim>, Json(request): Json<EventRequest>) -> Response {
    let result = sim.change(|cloud, now| cloud.schedule(&request, now));
    if let Ok(events) = &result {
        for event in events {
            tracing::info!(
                r#type = event.event_type, nodes = ?event.nodes, not_before = %event.not_before, "event scheduled"
            );
        }
    }
    answer(result)
}

async fn cancel(State(sim): State<Sim>, Path(what): Path<String>) -> Response {
    answer(sim.change(|cloud, now| cloud.cancel(&what, now)))
}

async fn kill(State(sim): State<Sim>, Json(targets): Json<Targets>) -> Response {
    answer(sim.change(|cloud, now| cloud.kill(&targets, now)))
}

async fn set_capacity(State(sim): State<Sim>, Json(capacity): Json<Capacity>) -> Response {
    sim.change(|cloud, _| cloud.set_capacity(capacity));
    answer(Ok(()))
}

async fn add_fault(State(sim): State<Sim>, Json(fault): Json<Fault>) -> Response {
    let id = sim.change(|cloud, _| cloud.faults.add(fault));
    answer(Ok(json!({"id": id})))
}

async fn clear_faults(State(sim): State<Sim>) -> Response {
    sim.change(|cloud, _| cloud.faults.clear_all());
    answer(Ok(()))
}

async fn clear_fault(State(sim): State<Sim>, Path(id): Path<u64>) -> Response {
    let cleared = sim.change(|cloud, _| cloud.faults.clear(id));
    answer(cleared.then_some(()).ok_or_else(|| Refused::NotFound(format!("no fault {id} in force"))))
}

async fn patch_settings(State(sim): State<Sim>, Json(patch): Json<SettingsPatch>) -> Response {
    answer(sim.change(|cloud, _| cloud.patch_settings(&patch).map(|()| cloud.settings.clone())))
}

async fn patch_pool_switches(
    State(sim): State<Sim>,
    Path(name): Path<String>,
    Json(changes): Json<Value>,
) -> Response {
    answer(
        sim.change(|cloud, _| {
            cloud.set_pool_switches(&name, &changes).map(|()| cloud.switches(&name).clone())
        }),
    )
}

async fn set_quota(State(sim): State<Sim>, Json(quota): Json<Quota>) -> Response {
    sim.change(|cloud, _| cloud.set_quota(quota));
    answer(Ok(()))
}

async fn add_failure(State(sim): State<Sim>, Json(failure): Json<Failure>) -> Response {
    sim.change(|cloud, _| cloud.add_failure(failure));
    answer(Ok(()))
}

async fn clear_failures(State(sim): State<Sim>) -> Response {
    sim.change(|cloud, _| cloud.clear_failures());
    answer(Ok(()))
}

async fn begin_operation(State(sim): State<Sim>, Json(operation): Json<BackgroundOperation>) -> Response {
    answer(sim.change(|cloud, now| cloud.begin_background(&operation, now)))
}

/// The body is YAML, of which JSON is a part.
async fn begin_scenario(State(sim): State<Sim>, text: String) -> Response {
    let scenario = match Scenario::parse(&text) {
        Ok(scenario) => scenario,
        Err(bad) => return reply::error(400, &bad.to_string()),
    };
    answer(sim.change(|cloud, now| cloud.begin_scenario(&scenario, now)))
}

async fn act(State(sim): State<Sim>, Json(action): Json<Action>) -> Response {
    answer(sim.change(|cloud, now| cloud.act(action, now)))
}
