//! The ARM side: `agentPools`, their machines, and operations.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, Method, Uri, header};
use serde_json::{Value, json};

use crate::api::{ArmWrite, Envelope, Identity, OperationStatus};
use crate::body;
use crate::faults;
use crate::model::{Accepted, Cloud, Conditions};
use crate::names;
use crate::refusal::Refusal;
use crate::reply;
use crate::sim::Sim;

/// Machines on a page of the machines list.
const PAGE: usize = 100;

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    Pools,
    Pool(String),
    Machines(String),
    Machine(String, String),
    DeleteMachines(String),
    Operation(String),
    OperationResult(String),
    OtherCluster { group: String, cluster: String },
    OtherSubscription(String),
    Unknown,
}

impl Route {
    /// ARM ignores case in everything but the names it has not seen before.
    fn parse(path: &str, identity: &Identity) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_lowercase()).collect();
        let shape: Vec<&str> = lower.iter().map(String::as_str).collect();
        let ["subscriptions", subscription, rest @ ..] = shape.as_slice() else { return Self::Unknown };
        if *subscription != identity.subscription.to_lowercase() {
            return Self::OtherSubscription(segments[1].to_owned());
        }
        match rest {
            ["providers", "microsoft.containerservice", "locations", _, "operations", id] => {
                Self::Operation((*id).to_owned())
            }
            ["providers", "microsoft.containerservice", "locations", _, "operationresults", id] => {
                Self::OperationResult((*id).to_owned())
            }
            [
                "resourcegroups",
                group,
                "providers",
                "microsoft.containerservice",
                "managedclusters",
                cluster,
                "agentpools",
                below @ ..,
            ] => {
                if *group != identity.resource_group.to_lowercase()
                    || *cluster != identity.cluster.to_lowercase()
                {
                    return Self::OtherCluster {
                        group: segments[3].to_owned(),
                        cluster: segments[7].to_owned(),
                    };
                }
                let name = |place: usize| segments.get(place).map(ToString::to_string).unwrap_or_default();
                match below {
                    [] => Self::Pools,
                    [_] => Self::Pool(name(9)),
                    [_, "machines"] => Self::Machines(name(9)),
                    [_, "machines", _] => Self::Machine(name(9), name(11)),
                    [_, "deletemachines"] => Self::DeleteMachines(name(9)),
                    _ => Self::Unknown,
                }
            }
            _ => Self::Unknown,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Pools => "list",
            Self::Pool(_) => "pool",
            Self::Machines(_) | Self::Machine(..) => "machines",
            Self::DeleteMachines(_) => "deleteMachines",
            Self::Operation(_) => "operation",
            Self::OperationResult(_) => "operationResult",
            Self::OtherCluster { .. } | Self::OtherSubscription(_) | Self::Unknown => "other",
        }
    }
}

/// A request, taken apart.
struct Call {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    route: Route,
}

impl Call {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    fn query(&self, key: &str) -> Option<String> {
        url::form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    }

    /// Where the caller found us, so that links lead back the same way.
    fn base(&self) -> String {
        format!("http://{}", self.header(header::HOST.as_str()).unwrap_or_else(|| "127.0.0.1".into()))
    }

    fn conditions(&self) -> Conditions {
        Conditions { if_match: self.header("if-match"), if_none_match: self.header("if-none-match") }
    }

    /// The pool that this call would write to.
    fn written(&self) -> Option<&str> {
        match (&self.method, &self.route) {
            (&Method::PUT, Route::Pool(name)) | (&Method::POST, Route::DeleteMachines(name)) => Some(name),
            _ => None,
        }
    }
}

/// Answers any request to ARM.
pub async fn handle(
    State(sim): State<Sim>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (fault, call) = sim.look(|cloud, now| {
        let route = Route::parse(uri.path(), &cloud.identity);
        cloud.count_request(&format!("{method} {}", route.kind()));
        let fault = cloud.faults.strike(faults::Request::Arm { method: method.as_str(), path: uri.path() });
        let call = Call { method, uri, headers, body, route };
        // A write that a fault swallows is on record all the same: somebody tried.
        if let (Some(status), Some(pool)) = (fault.as_ref().and_then(reply::instead), call.written()) {
            let count = cloud.count(pool);
            let write = write(&call, pool, now, count, count, status, Vec::new());
            cloud.record_write(write);
        }
        (fault, call)
    });
    tracing::debug!(method = %call.method, path = call.uri.path(), ?fault, "ARM request");
    let mut response = reply::under_fault(fault, || answer(&sim, &call)).await;
    let request_id = call.header("x-ms-client-request-id").unwrap_or_else(|| "simulated".into());
    reply::set(&mut response, "x-ms-correlation-request-id", &request_id);
    reply::set(&mut response, "x-ms-request-id", &request_id);
    reply::set(&mut response, "cache-control", "no-cache");
    response
}

fn answer(sim: &Sim, call: &Call) -> Response {
    match respond(sim, call) {
        Ok(response) => response,
        Err(refusal) => reply::refused(&refusal),
    }
}

fn respond(sim: &Sim, call: &Call) -> Result<Response, Refusal> {
    // Operation URLs are followed as they are given, on an api-version of their own.
    match &call.route {
        Route::Operation(id) if call.method == Method::GET => return operation(sim, call, id),
        Route::OperationResult(id) if call.method == Method::GET => return operation_result(sim, call, id),
        Route::OtherSubscription(id) => {
            return Err(Refusal::wrapped(
                404,
                "SubscriptionNotFound",
                format!("The subscription '{id}' could not be found."),
            ));
        }
        Route::OtherCluster { group, cluster } => return Err(Refusal::no_cluster(cluster, group)),
        _ => {}
    }
    let version = call.query("api-version").ok_or_else(|| {
        Refusal::wrapped(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    })?;
    if !body::VERSIONS.contains(&version.as_str()) {
        return Err(sim.look(|cloud, _| Refusal::no_version(&cloud.identity, &version, body::VERSIONS)));
    }
    match (&call.method, &call.route) {
        (&Method::GET, Route::Pools) => {
            let pools = sim.look(|cloud, _| cloud.list_pools(&version));
            Ok(reply::json_body(200, &json!({"value": pools})))
        }
        (&Method::GET, Route::Pool(name)) => {
            let pool = sim.look(|cloud, _| cloud.get_pool(name, &version))?;
            Ok(reply::json_body(200, &pool))
        }
        (&Method::PUT, Route::Pool(name)) => put(sim, call, name, &version),
        (&Method::POST, Route::DeleteMachines(name)) => delete_machines(sim, call, name),
        (&Method::GET, Route::Machines(name)) => {
            let machines = sim.look(|cloud, _| cloud.machines(name))?;
            let skip = call.query("$skipToken").and_then(|token| token.parse().ok()).unwrap_or(0_usize);
            let page: Vec<&Value> = machines.iter().skip(skip).take(PAGE).collect();
            let mut body = json!({"value": page});
            if skip + PAGE < machines.len() {
                let next = format!(
                    "{}{}?api-version={version}&%24skipToken={}",
                    call.base(),
                    call.uri.path(),
                    skip + PAGE
                );
                body["nextLink"] = json!(next);
            }
            Ok(reply::json_body(200, &body))
        }
        (&Method::GET, Route::Machine(pool, name)) => {
            let machines = sim.look(|cloud, _| cloud.machines(pool))?;
            let found = machines.iter().find(|machine| machine["name"] == json!(name));
            found
                .map(|machine| reply::json_body(200, machine))
                .ok_or_else(|| Refusal::flat(404, "NotFound", format!("Could not find the machine: {name}.")))
        }
        (_, Route::Unknown) => Err(Refusal::wrapped(
            404,
            "InvalidResourceType",
            "The resource type could not be found in the namespace 'Microsoft.ContainerService'.",
        )),
        (method, _) => Err(Refusal::wrapped(
            405,
            "MethodNotAllowed",
            format!("The requested resource does not support http method '{method}'."),
        )),
    }
}

fn put(sim: &Sim, call: &Call, name: &str, version: &str) -> Result<Response, Refusal> {
    let sent = sent(call)?;
    let conditions = call.conditions();
    let (result, answer, location) = record(sim, call, name, |cloud, now| {
        let result = cloud.put_pool(name, version, &sent, &conditions, now);
        let answer = cloud.get_pool(name, version);
        (result, answer, cloud.identity.clone())
    });
    let accepted = result?;
    let mut response = reply::json_body(if accepted.created { 201 } else { 200 }, &answer?);
    let url = operation_url(&call.base(), &location, "operations", &accepted);
    reply::set(&mut response, "azure-asyncoperation", &url);
    Ok(response)
}

fn delete_machines(sim: &Sim, call: &Call, name: &str) -> Result<Response, Refusal> {
    let sent = sent(call)?;
    let conditions = call.conditions();
    let (result, (), identity) = record(sim, call, name, |cloud, now| {
        (cloud.delete_machines(name, &sent, &conditions, now), (), cloud.identity.clone())
    });
    let accepted = result?;
    let mut response = reply::raw(202, &std::collections::BTreeMap::new(), Vec::new());
    for (header, kind) in [("location", "operationresults"), ("azure-asyncoperation", "operations")] {
        reply::set(&mut response, header, &operation_url(&call.base(), &identity, kind, &accepted));
    }
    Ok(response)
}

/// Runs a write and puts it on record.
fn record<A>(
    sim: &Sim,
    call: &Call,
    name: &str,
    run: impl FnOnce(&mut Cloud, jiff::Timestamp) -> (Result<Accepted, Refusal>, A, Identity),
) -> (Result<Accepted, Refusal>, A, Identity) {
    sim.change(|cloud, now| {
        let before = cloud.count(name);
        let ran = run(cloud, now);
        let (status, ordered) = match &ran.0 {
            Ok(accepted) if call.method == Method::POST => (202, accepted.ordered.clone()),
            Ok(accepted) => (if accepted.created { 201 } else { 200 }, accepted.ordered.clone()),
            Err(refusal) => (refusal.status, Vec::new()),
        };
        let write = write(call, name, now, before, cloud.count(name), status, ordered);
        tracing::info!(
            kind = write.kind, pool = name, status, before = ?write.count_before, after = ?write.count_after,
            "ARM write"
        );
        cloud.record_write(write);
        ran
    })
}

fn write(
    call: &Call,
    pool: &str,
    at: jiff::Timestamp,
    count_before: Option<u64>,
    count_after: Option<u64>,
    status: u16,
    machines_ordered: Vec<String>,
) -> ArmWrite {
    ArmWrite {
        at,
        kind: format!("{} {}", call.method, call.route.kind()),
        path: call.uri.path().to_owned(),
        pool: pool.to_owned(),
        api_version: call.query("api-version").unwrap_or_default(),
        user_agent: call.header("user-agent"),
        client_request_id: call.header("x-ms-client-request-id"),
        if_match: call.header("if-match"),
        if_none_match: call.header("if-none-match"),
        body: serde_json::from_slice(&call.body).unwrap_or(Value::Null),
        count_before,
        count_after,
        status,
        machines_ordered,
    }
}

fn sent(call: &Call) -> Result<Value, Refusal> {
    serde_json::from_slice(&call.body).map_err(|error| {
        Refusal::wrapped(
            400,
            "InvalidRequestContent",
            format!("The request content was invalid and could not be deserialized: '{error}'."),
        )
    })
}

fn operation_url(base: &str, identity: &Identity, kind: &str, accepted: &Accepted) -> String {
    format!(
        "{base}/subscriptions/{}/providers/Microsoft.ContainerService/locations/{}/{kind}/{}?{}",
        identity.subscription, identity.location, accepted.operation, accepted.signature
    )
}

/// The operation, if the caller repeats its signed query to the letter.
fn signed<R>(
    sim: &Sim,
    call: &Call,
    id: &str,
    read: impl FnOnce(&crate::api::OperationState) -> R,
) -> Result<R, Refusal> {
    sim.look(|cloud, _| {
        let (operation, signature) = cloud.operation(id).ok_or_else(|| {
            Refusal::wrapped(404, "NotFound", format!("The entity was not found: operation {id}."))
        })?;
        if call.uri.query() != Some(signature) {
            return Err(Refusal {
                envelope: Envelope::Wrapped,
                ..Refusal::flat(403, "AuthorizationFailed", "The operation URL's signature is not valid.")
            });
        }
        Ok(read(operation))
    })
}

fn operation(sim: &Sim, call: &Call, id: &str) -> Result<Response, Refusal> {
    let body = signed(sim, call, id, |operation| {
        let mut body = json!({
            "name": names::byte_swapped(&operation.id),
            "status": operation.status,
            "startTime": operation.started_at,
        });
        if let Some(at) = operation.ended_at {
            body["endTime"] = json!(at);
        }
        if let Some(error) = &operation.error {
            body["error"] = error.clone();
        }
        body
    })?;
    Ok(reply::json_body(200, &body))
}

fn operation_result(sim: &Sim, call: &Call, id: &str) -> Result<Response, Refusal> {
    let (status, error) = signed(sim, call, id, |operation| (operation.status, operation.error.clone()))?;
    let none = std::collections::BTreeMap::new();
    Ok(match status {
        OperationStatus::InProgress => {
            let mut response = reply::raw(202, &none, Vec::new());
            reply::set(&mut response, "location", &format!("{}{}", call.base(), call.uri));
            response
        }
        OperationStatus::Succeeded => reply::raw(204, &none, Vec::new()),
        OperationStatus::Failed => reply::json_body(400, &error.unwrap_or(Value::Null)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_whatever_their_case() {
        let identity = Identity::default();
        let parse = |path: &str| Route::parse(path, &identity);
        let id = body::pool_id(&identity, "spota");
        assert_eq!(parse(&id), Route::Pool("spota".into()));
        assert_eq!(parse(&id.to_uppercase().replace("SPOTA", "spota")), Route::Pool("spota".into()));
        assert_eq!(parse(&format!("{id}/deleteMachines")), Route::DeleteMachines("spota".into()));
        assert_eq!(parse(&format!("{id}/machines/m1")), Route::Machine("spota".into(), "m1".into()));
        assert_eq!(parse(&id.replace("/spota", "")), Route::Pools);
        assert_eq!(
            parse(&id.replace("spotpool-sim", "Other")),
            Route::OtherCluster { group: "spotpool-rg".into(), cluster: "Other".into() }
        );
        assert_eq!(parse("/nonsense"), Route::Unknown);
    }
}
