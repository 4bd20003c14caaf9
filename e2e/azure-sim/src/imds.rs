//! The metadata service, one for each machine at `/imds/<node name>`.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Method, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults;
use crate::model::ImdsGate;
use crate::reply;
use crate::sim::Sim;
use crate::tokens;

/// api-versions that `scheduledevents` answers.
const EVENTS_VERSIONS: &[&str] =
    &["2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"];

/// api-versions that `instance` answers, newest first.
const INSTANCE_VERSIONS: &[&str] = &[
    "2025-04-07",
    "2024-07-17",
    "2024-03-15",
    "2023-11-15",
    "2023-07-01",
    "2021-12-13",
    "2021-11-15",
    "2021-11-01",
    "2021-10-01",
    "2021-08-01",
    "2021-05-01",
    "2021-03-01",
    "2021-02-01",
    "2021-01-01",
    "2020-12-01",
    "2020-10-01",
    "2020-09-01",
    "2020-06-01",
    "2019-11-01",
    "2019-08-15",
    "2019-08-01",
    "2019-06-04",
    "2019-06-01",
    "2019-04-30",
    "2019-03-11",
    "2019-02-01",
    "2018-10-01",
    "2018-04-02",
    "2018-02-01",
    "2017-12-01",
    "2017-08-01",
    "2017-04-02",
];

/// Approvals of events by a machine's owner.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Approval {
    start_requests: Vec<StartRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StartRequest {
    event_id: String,
}

/// Answers any request to a machine's metadata service.
pub async fn handle(
    State(sim): State<Sim>,
    Path((node, rest)): Path<(String, String)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = format!("/{rest}");
    let (gate, fault) = sim.look(|cloud, now| {
        let gate = cloud.imds_gate(&node, now);
        let fault = match gate {
            ImdsGate::Open(_) => cloud.faults.strike(faults::Request::Imds { node: &node, path: &path }),
            ImdsGate::Dead | ImdsGate::Throttled => None,
        };
        (gate, fault)
    });
    match gate {
        // The address of a machine that does not run answers nobody.
        ImdsGate::Dead => return reply::dropped(),
        ImdsGate::Throttled => {
            return reply::error(429, "Too many requests. Retry after some time.");
        }
        ImdsGate::Open(wait) if wait > Duration::ZERO => tokio::time::sleep(wait).await,
        ImdsGate::Open(_) => {}
    }
    reply::under_fault(fault, || answer(&sim, &node, &path, &method, &uri, &headers, &body)).await
}

fn answer(
    sim: &Sim,
    node: &str,
    path: &str,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response {
    if headers.contains_key("x-forwarded-for") {
        return reply::error(400, "Bad request. X-Forwarded-For header is not allowed");
    }
    if !headers.get("metadata").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true")) {
        return reply::error(400, "Bad request. Required metadata header not specified");
    }
    let query = |key: &str| {
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    };
    let version = query("api-version").unwrap_or_default();
    let lower = path.trim_end_matches('/').to_lowercase();
    if lower == "/metadata/scheduledevents" {
        if !EVENTS_VERSIONS.contains(&version.as_str()) {
            return bad_version();
        }
        return match *method {
            Method::GET => match sim.look(|cloud, now| {
                cloud.told(node, now);
                cloud.document(node, &version)
            }) {
                Some(document) => reply::json_body(200, &document),
                None => reply::dropped(),
            },
            Method::POST => approve(sim, node, body),
            _ => reply::error(405, "Method not allowed"),
        };
    }
    if lower == "/metadata/identity/oauth2/token" {
        return tokens::managed_identity::answer(sim, method, uri);
    }
    let Some(below) = lower.strip_prefix("/metadata/instance") else {
        return reply::error(404, "Not found");
    };
    if !INSTANCE_VERSIONS.contains(&version.as_str()) {
        return bad_version();
    }
    if method != Method::GET {
        return reply::error(405, "Method not allowed");
    }
    let Some(compute) = sim.look(|cloud, _| cloud.instance(node)) else { return reply::dropped() };
    match below.trim_start_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        [""] => reply::json_body(200, &json!({"compute": compute})),
        ["compute"] => reply::json_body(200, &compute),
        ["compute", leaf] => {
            let found = compute
                .as_object()
                .and_then(|fields| fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(leaf)))
                .and_then(|(_, value)| value.as_str());
            match (found, query("format").as_deref()) {
                (Some(text), Some("text")) => reply::raw(
                    200,
                    &[("content-type".to_owned(), "text/plain; charset=utf-8".to_owned())].into(),
                    text.into(),
                ),
                (Some(_), _) => {
                    reply::error(400, "Bad request. Requested leaf nodes must be accompanied by format=text")
                }
                (None, _) => reply::error(404, "Not found"),
            }
        }
        _ => reply::error(404, "Not found"),
    }
}

fn approve(sim: &Sim, node: &str, body: &Bytes) -> Response {
    let Ok(approval) = serde_json::from_slice::<Approval>(body) else {
        return reply::error(400, "Bad request. The body is malformed");
    };
    let ids: Vec<String> = approval.start_requests.into_iter().map(|request| request.event_id).collect();
    if sim.change(|cloud, now| cloud.acknowledge(node, &ids, now)) {
        reply::json_body(200, &Value::Object(serde_json::Map::new()))
    } else {
        reply::error(400, "Bad request. EventId is not valid")
    }
}

fn bad_version() -> Response {
    reply::json_body(
        400,
        &json!({
            "error": "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
            "newest-versions": &INSTANCE_VERSIONS[..3],
        }),
    )
}
