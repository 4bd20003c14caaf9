//! The ARM side: `agentPools`, their machines, and operations.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, header};
use serde_json::{Value, json};

use crate::api::{ArmWrite, Envelope, Identity, OperationNames, OperationStatus};
use crate::body;
use crate::compute;
use crate::faults;
use crate::model::{Accepted, Admission, Cloud, Conditions, Limit};
use crate::names;
use crate::placement;
use crate::refusal::Refusal;
use crate::reply;
use crate::resource_graph;
use crate::sim::Sim;
use crate::tls::{self, Scheme};

/// What the links to further pages ask for, whatever the request did.
const NEXT_PAGE_VERSION: &str = "2025-03-01";

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    Pools,
    Pool(String),
    Machines(String),
    Machine(String, String),
    DeleteMachines(String),
    Abort(String),
    UpgradeImage(String),
    Compute(compute::Route),
    Operation(String),
    OperationResult(String),
    OtherCluster { group: String, cluster: String },
    OtherSubscription(String),
    ResourceGraph,
    PlacementScores(String),
    Unknown,
}

impl Route {
    /// ARM ignores case in everything but the names it has not seen before.
    fn parse(path: &str, identity: &Identity) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_lowercase()).collect();
        let shape: Vec<&str> = lower.iter().map(String::as_str).collect();
        let (subscription, rest) = match shape.as_slice() {
            ["subscriptions", subscription, rest @ ..] => (subscription, rest),
            ["providers", "microsoft.resourcegraph", "resources"] => return Self::ResourceGraph,
            _ => return Self::Unknown,
        };
        if *subscription != identity.subscription.to_lowercase() {
            return Self::OtherSubscription(segments[1].to_owned());
        }
        match rest {
            [
                "providers",
                "microsoft.containerservice" | "microsoft.compute",
                "locations",
                _,
                "operations" | "operationstatus",
                id,
            ] => Self::Operation((*id).to_owned()),
            ["providers", "microsoft.containerservice", "locations", _, "operationresults", id] => {
                Self::OperationResult((*id).to_owned())
            }
            [
                "providers",
                "microsoft.compute",
                "locations",
                region,
                "placementscores",
                "spot",
                "generate",
            ] => Self::PlacementScores((*region).to_owned()),
            ["resourcegroups", group, "providers", "microsoft.compute", ..]
                if *group == identity.node_resource_group.to_lowercase() =>
            {
                compute::Route::parse(&segments[6..]).map_or(Self::Unknown, Self::Compute)
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
                    [_, "abort"] => Self::Abort(name(9)),
                    [_, "upgradenodeimageversion"] => Self::UpgradeImage(name(9)),
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
            Self::Abort(_) => "abort",
            Self::UpgradeImage(_) => "upgradeNodeImageVersion",
            Self::Compute(_) => "compute",
            Self::Operation(_) => "operation",
            Self::OperationResult(_) => "operationResult",
            Self::ResourceGraph => "resourceGraph",
            Self::PlacementScores(_) => "placementScores",
            Self::OtherCluster { .. } | Self::OtherSubscription(_) | Self::Unknown => "other",
        }
    }

    /// The resource provider's limit that a request counts against.
    fn limit(&self, method: &Method) -> Limit {
        match self {
            Self::Pool(pool) if *method == Method::PUT => Limit::Put(pool.clone()),
            Self::Pool(_) if *method == Method::DELETE => Limit::Shared("DeleteAgentPoolHandler"),
            Self::Pool(_) => Limit::Shared("GetAgentPoolHandler"),
            Self::Pools => Limit::Shared("ListAgentPoolsHandler"),
            Self::Machines(_) => Limit::Shared("ListMachinesHandler"),
            Self::Machine(..) => Limit::Shared("GetMachineHandler"),
            Self::DeleteMachines(_) => Limit::Shared("DeleteMachinesHandler"),
            Self::Abort(_) => Limit::Shared("AbortAgentPoolLatestOperationHandler"),
            Self::UpgradeImage(_) => Limit::Shared("UpgradeAgentPoolNodeImageVersionHandler"),
            Self::Operation(_) | Self::OperationResult(_) => Limit::Operations,
            Self::Compute(_)
            | Self::ResourceGraph
            | Self::PlacementScores(_)
            | Self::OtherCluster { .. }
            | Self::OtherSubscription(_)
            | Self::Unknown => Limit::FrontDoor,
        }
    }
}

/// A request, taken apart.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    route: Route,
    scheme: Option<Extension<Scheme>>,
}

impl Call {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// A parameter of the query, its name in any case.
    pub(crate) fn query(&self, key: &str) -> Option<String> {
        url::form_urlencoded::parse(self.uri.query().unwrap_or_default().as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    }

    /// Where the caller found us, so that links lead back the same way.
    pub(crate) fn base(&self) -> String {
        tls::base(self.scheme, &self.headers)
    }

    /// The URL that was asked for.
    fn url(&self) -> String {
        format!("{}{}", self.base(), self.uri.path_and_query().map_or("/", PathAndQuery::as_str))
    }

    fn conditions(&self) -> Conditions {
        Conditions { if_match: self.header("if-match"), if_none_match: self.header("if-none-match") }
    }

    /// The pool that this call would write to.
    fn written(&self) -> Option<&str> {
        match (&self.method, &self.route) {
            (&Method::PUT | &Method::DELETE, Route::Pool(name))
            | (&Method::POST, Route::DeleteMachines(name) | Route::Abort(name) | Route::UpgradeImage(name)) => {
                Some(name)
            }
            _ => None,
        }
    }
}

/// Answers any request to ARM.
pub async fn handle(
    State(sim): State<Sim>,
    scheme: Option<Extension<Scheme>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (unauthorized, admission, fault, call) = sim.look(|cloud, now| {
        let route = Route::parse(uri.path(), &cloud.identity);
        cloud.count_request(&format!("{method} {}", route.kind()));
        // Nobody's limits are touched by whom the front door does not let in.
        let unauthorized = cloud.tokens.refuse(&method, uri.path(), &headers, now);
        let admission = match &unauthorized {
            Some(_) => Admission { headers: Vec::new(), refused: None },
            None => cloud.admit(&method, &route.limit(&method), now),
        };
        let fault = if unauthorized.is_some() || admission.refused.is_some() {
            None
        } else {
            cloud.faults.strike(faults::Request::Arm { method: method.as_str(), path: uri.path() })
        };
        let call = Call { method, uri, headers, body, route, scheme };
        // A write that never gets through is on record all the same: somebody tried.
        let instead = match (&unauthorized, &admission.refused) {
            (Some(refused), _) => Some(refused.status),
            (None, Some((refusal, _))) => Some(refusal.status),
            (None, None) => fault.as_ref().and_then(reply::instead),
        };
        if let (Some(status), Some(pool)) = (instead, call.written()) {
            let count = cloud.count(pool);
            let write = write(&call, pool, now, count, count, status, Vec::new());
            cloud.record_write(write);
        }
        (unauthorized, admission, fault, call)
    });
    tracing::debug!(method = %call.method, path = call.uri.path(), ?fault, "ARM request");
    let mut response = match (unauthorized, &admission.refused) {
        (Some(refused), _) => refused.response(),
        (None, Some((refusal, retry_after))) => {
            let mut response = reply::refused(refusal);
            reply::set(&mut response, header::RETRY_AFTER.as_str(), &retry_after.to_string());
            response
        }
        (None, None) => reply::under_fault(fault, || answer(&sim, &call)).await,
    };
    for (name, left) in &admission.headers {
        reply::set(&mut response, name, left);
    }
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
    if let Route::Compute(route) = &call.route {
        return compute::respond(sim, call, route);
    }
    let version = call.query("api-version").ok_or_else(|| {
        Refusal::wrapped(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    })?;
    match (&call.method, &call.route) {
        (&Method::POST, Route::ResourceGraph) => return resource_graph::answer(sim, &version, &call.body),
        (&Method::POST, Route::PlacementScores(region)) => {
            return placement::answer(sim, region, &version, &call.body, &call.url());
        }
        _ => {}
    }
    if !body::VERSIONS.contains(&version.as_str()) {
        return Err(sim.look(|cloud, _| Refusal::no_version(&cloud.identity, &version, body::VERSIONS)));
    }
    match (&call.method, &call.route) {
        (&Method::GET, Route::Pools) => {
            let (pools, size, empty) = sim.look(|cloud, _| {
                let switches = &cloud.settings.switches;
                (cloud.list_pools(&version), switches.pools_per_page, switches.last_page_empty)
            });
            Ok(page(call, &pools, size.map(|size| size as usize), empty))
        }
        (&Method::GET, Route::Pool(name)) => {
            let pool = sim.look(|cloud, _| cloud.get_pool(name, &version))?;
            Ok(reply::json_body(200, &pool))
        }
        (&Method::PUT, Route::Pool(name)) => put(sim, call, name, &version),
        (&Method::DELETE, Route::Pool(name)) => {
            let conditions = call.conditions();
            accepted(sim, call, name, |cloud, now| cloud.delete_pool(name, &conditions, now))
        }
        (&Method::POST, Route::DeleteMachines(name)) => {
            let (sent, conditions) = (sent(call)?, call.conditions());
            accepted(sim, call, name, |cloud, now| {
                cloud.delete_machines(name, &sent, &conditions, now).map(Some)
            })
        }
        (&Method::POST, Route::Abort(name)) => accepted(sim, call, name, |cloud, now| cloud.abort(name, now)),
        (&Method::POST, Route::UpgradeImage(name)) => {
            accepted(sim, call, name, |cloud, now| cloud.upgrade_image(name, now).map(Some))
        }
        (&Method::GET, Route::Machines(name)) => {
            let (machines, size, empty) = sim.look(|cloud, _| {
                let switches = &cloud.settings.switches;
                (cloud.machines(name), switches.machines_per_page, switches.last_page_empty)
            });
            Ok(page(call, &machines?, Some(size as usize), empty))
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

/// A page of a list, with a link to the next on an api-version of its own.
fn page(call: &Call, all: &[Value], size: Option<usize>, last_empty: bool) -> Response {
    let skip = call.query("$skipToken").and_then(|token| token.parse().ok()).unwrap_or(0_usize);
    let size = size.unwrap_or(usize::MAX).max(1);
    let here: Vec<&Value> = all.iter().skip(skip).take(size).collect();
    let end = skip + here.len();
    let more = end < all.len() || (last_empty && here.len() == size);
    let mut body = json!({"value": here});
    if more {
        let (base, path) = (call.base(), call.uri.path());
        body["nextLink"] = json!(format!("{base}{path}?api-version={NEXT_PAGE_VERSION}&%24skipToken={end}"));
    }
    reply::json_body(200, &body)
}

fn put(sim: &Sim, call: &Call, name: &str, version: &str) -> Result<Response, Refusal> {
    let sent = sent(call)?;
    let conditions = call.conditions();
    let (result, (answer, retry_after), location) = record(sim, call, name, |cloud, now| {
        let result = cloud.put_pool(name, version, &sent, &conditions, now).map(Some);
        let answer = (cloud.get_pool(name, version), cloud.switches(name).retry_after);
        (result, answer, cloud.identity.clone())
    });
    let Some(accepted) = result? else { return Ok(reply::raw(204, &BTreeMap::new(), Vec::new())) };
    let mut response = reply::json_body(if accepted.created { 201 } else { 200 }, &answer?);
    let url = operation_url(&call.base(), &location, "operations", &accepted);
    reply::set(&mut response, "azure-asyncoperation", &url);
    retry_later(&mut response, retry_after);
    Ok(response)
}

/// A write that is answered 202, or 204 when there is nothing to do.
fn accepted(
    sim: &Sim,
    call: &Call,
    name: &str,
    run: impl FnOnce(&mut Cloud, jiff::Timestamp) -> Result<Option<Accepted>, Refusal>,
) -> Result<Response, Refusal> {
    let (result, retry_after, identity) = record(sim, call, name, |cloud, now| {
        let result = run(cloud, now);
        (result, cloud.switches(name).retry_after, cloud.identity.clone())
    });
    let Some(accepted) = result? else { return Ok(reply::raw(204, &BTreeMap::new(), Vec::new())) };
    let mut response = reply::raw(202, &BTreeMap::new(), Vec::new());
    for (header, kind) in [("location", "operationresults"), ("azure-asyncoperation", "operations")] {
        reply::set(&mut response, header, &operation_url(&call.base(), &identity, kind, &accepted));
    }
    retry_later(&mut response, retry_after);
    Ok(response)
}

fn retry_later(response: &mut Response, seconds: Option<u32>) {
    if let Some(seconds) = seconds {
        reply::set(response, header::RETRY_AFTER.as_str(), &seconds.to_string());
    }
}

/// Runs a write and puts it on record.
fn record<A>(
    sim: &Sim,
    call: &Call,
    name: &str,
    run: impl FnOnce(&mut Cloud, jiff::Timestamp) -> (Result<Option<Accepted>, Refusal>, A, Identity),
) -> (Result<Option<Accepted>, Refusal>, A, Identity) {
    sim.change(|cloud, now| {
        let before = cloud.count(name);
        let ran = run(cloud, now);
        let (status, ordered) = match &ran.0 {
            Ok(None) => (204, Vec::new()),
            Ok(Some(accepted)) if call.method != Method::PUT => (202, accepted.ordered.clone()),
            Ok(Some(accepted)) => (if accepted.created { 201 } else { 200 }, accepted.ordered.clone()),
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

pub(crate) fn operation_url(base: &str, identity: &Identity, kind: &str, accepted: &Accepted) -> String {
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
    let operation = signed(sim, call, id, Clone::clone)?;
    let (names, retry_after) = sim.look(|cloud, _| {
        let switches = cloud.switches(&operation.pool);
        (switches.operation_names, switches.retry_after)
    });
    let name = match names {
        OperationNames::ByteSwapped => names::byte_swapped(&operation.id),
        OperationNames::Same => operation.id.clone(),
    };
    let mut body = json!({"name": name, "status": operation.status, "startTime": operation.started_at});
    if let Some(at) = operation.ended_at {
        body["endTime"] = json!(at);
    }
    if let Some(error) = &operation.error {
        body["error"] = error.clone();
    }
    let mut response = reply::json_body(200, &body);
    if operation.status == OperationStatus::InProgress {
        retry_later(&mut response, retry_after);
    }
    Ok(response)
}

fn operation_result(sim: &Sim, call: &Call, id: &str) -> Result<Response, Refusal> {
    let operation = signed(sim, call, id, Clone::clone)?;
    let none = BTreeMap::new();
    Ok(match operation.status {
        OperationStatus::InProgress => {
            let mut response = reply::raw(202, &none, Vec::new());
            reply::set(&mut response, "location", &call.url());
            retry_later(&mut response, sim.look(|cloud, _| cloud.switches(&operation.pool).retry_after));
            response
        }
        OperationStatus::Succeeded => reply::raw(204, &none, Vec::new()),
        OperationStatus::Failed => reply::json_body(400, &operation.error.unwrap_or(Value::Null)),
        OperationStatus::Canceled => reply::json_body(
            409,
            &Refusal::flat(409, "OperationCanceled", "The operation was canceled.").body(),
        ),
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
