//! ARM's wire for agent pools: `Microsoft.ContainerService/managedClusters/agentPools`.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::header::{HeaderMap, IF_MATCH, LOCATION, RETRY_AFTER};
use reqwest::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::agent_pools::{
    Accepted, AgentPool, AgentPoolMode, AgentPools, Machine, OperationOutcome, OperationUrl, Priority,
};
use crate::error::{AzureError, Class};

/// One GA version for GET and PUT alike: AKS refuses fields that a version does not know.
const API_VERSION: &str = "2025-10-01";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// A page of a list, and how many of them: 100 agent pools of 1,000 machines fit.
const LONGEST_BODY: usize = 16 << 20;
const MOST_PAGES: usize = 100;

/// Which cluster.
#[derive(Clone, Debug)]
pub struct ClusterId {
    /// Subscription id.
    pub subscription_id: String,
    /// Resource group of the cluster (not of its nodes).
    pub resource_group: String,
    /// Name of the managed cluster.
    pub cluster_name: String,
}

/// Asked before each write; a write is refused where it says no. The operator's leader lease.
pub type WriteGate = Arc<dyn Fn() -> bool + Send + Sync>;

/// Agent pools over ARM.
pub struct Arm {
    http: reqwest::Client,
    agent_pools: Url,
    may_write: WriteGate,
}

impl Arm {
    /// A client for one cluster at `endpoint`, such as `https://management.azure.com`.
    pub fn new(
        endpoint: &Url,
        cluster: &ClusterId,
        user_agent: &str,
        may_write: WriteGate,
    ) -> Result<Self, AzureError> {
        let http = reqwest::Client::builder()
            .user_agent(user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| not_sent(&error))?;
        let mut agent_pools = endpoint.clone();
        agent_pools
            .path_segments_mut()
            .map_err(|()| {
                AzureError::new(Class::Invalid, "Endpoint", "the Azure endpoint is no http(s) URL")
            })?
            .pop_if_empty()
            .extend(["subscriptions", &cluster.subscription_id, "resourceGroups", &cluster.resource_group])
            .extend(["providers", "Microsoft.ContainerService", "managedClusters", &cluster.cluster_name])
            .push("agentPools");
        Ok(Self { http, agent_pools, may_write })
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.agent_pools.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url.query_pairs_mut().append_pair("api-version", API_VERSION);
        url
    }

    async fn send(&self, request: Request) -> Result<(StatusCode, HeaderMap, Vec<u8>), AzureError> {
        let write = request.method() != Method::GET;
        // The last moment before the wire: no write is started by one who has lost the lease.
        if write && !(self.may_write)() {
            return Err(AzureError::new(Class::Conflict, "NotLeader", "the leader lease is lost"));
        }
        let mut answer = self.http.execute(request).await.map_err(|error| not_sent(&error))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| not_sent(&error))? {
            if body.len() + chunk.len() > LONGEST_BODY {
                return Err(AzureError::new(
                    Class::Transient,
                    "NotUnderstood",
                    "the answer is larger than 16 MiB",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok((status, headers, body))
        } else {
            let retry_after = headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            Err(AzureError::from_answer(status.as_u16(), retry_after, &body))
        }
    }

    async fn get<T: for<'de> Deserialize<'de>>(&self, url: Url) -> Result<T, AzureError> {
        let (_, _, body) = self.send(Request::new(Method::GET, url)).await?;
        understand(&body)
    }

    async fn pages(&self, first: Url) -> Result<Vec<Value>, AzureError> {
        let mut items = Vec::new();
        let mut next = Some(first);
        for _ in 0..MOST_PAGES {
            let Some(url) = next else { return Ok(items) };
            let page: Page = self.get(url).await?;
            items.extend(page.value);
            next = page.next_link.filter(|link| !link.is_empty()).map(|link| self.link(&link)).transpose()?;
        }
        Err(AzureError::new(Class::Transient, "NotUnderstood", "the list does not end"))
    }

    /// A URL that Azure gave us, to be followed verbatim, but only on Azure's own host: our token goes along.
    fn link(&self, link: &str) -> Result<Url, AzureError> {
        let wrong = |why: &str| AzureError::new(Class::Transient, "NotUnderstood", why);
        let url = Url::parse(link).map_err(|_| wrong("Azure gave a URL that is none"))?;
        if url.origin() == self.agent_pools.origin() {
            Ok(url)
        } else {
            Err(wrong("Azure gave a URL on another host"))
        }
    }

    fn accepted(&self, headers: &HeaderMap, body: &[u8]) -> Accepted {
        let operation = ["azure-asyncoperation", LOCATION.as_str()]
            .iter()
            .find_map(|name| headers.get(*name)?.to_str().ok())
            .and_then(|link| self.link(link).ok())
            .map(OperationUrl);
        let agent_pool = serde_json::from_slice(body).ok().and_then(|body| agent_pool(body).ok());
        Accepted { operation, agent_pool }
    }
}

impl AgentPools for Arm {
    fn list(&self) -> BoxFuture<'_, Result<Vec<AgentPool>, AzureError>> {
        async {
            let mut pools = Vec::new();
            for body in self.pages(self.url(&[])).await? {
                // One agent pool that we cannot read must not hide the others.
                match agent_pool(body) {
                    Ok(pool) => pools.push(pool),
                    Err(why) => tracing::warn!(why, "an agent pool could not be read"),
                }
            }
            Ok(pools)
        }
        .boxed()
    }

    fn machines<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Vec<Machine>, AzureError>> {
        async move {
            let items = self.pages(self.url(&[agent_pool, "machines"])).await?;
            let name = |item: &Value| Some(Machine { name: item.get("name")?.as_str()?.to_owned() });
            Ok(items.iter().filter_map(name).collect())
        }
        .boxed()
    }

    fn scale<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move {
            let mut request = Request::new(Method::PUT, self.url(&[&agent_pool.name]));
            if let Some(etag) = agent_pool.etag.as_ref().and_then(|etag| etag.parse().ok()) {
                request.headers_mut().insert(IF_MATCH, etag);
            }
            set_json(&mut request, &with_count(&agent_pool.body, count));
            let (_, headers, body) = self.send(request).await?;
            Ok(self.accepted(&headers, &body))
        }
        .boxed()
    }

    fn delete_machines<'a>(
        &'a self,
        agent_pool: &'a str,
        machines: &'a [String],
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move {
            let mut request = Request::new(Method::POST, self.url(&[agent_pool, "deleteMachines"]));
            set_json(&mut request, &json!({ "machineNames": machines }));
            let (_, headers, body) = self.send(request).await?;
            Ok(self.accepted(&headers, &body))
        }
        .boxed()
    }

    fn operation<'a>(&'a self, url: &'a OperationUrl) -> BoxFuture<'a, Result<OperationOutcome, AzureError>> {
        async move {
            let (status, _, body) = self.send(Request::new(Method::GET, url.0.clone())).await?;
            // A Location URL answers 202 while it runs and 200 or 204, without a body, when it is done.
            if status == StatusCode::ACCEPTED && body.is_empty() {
                return Ok(OperationOutcome::Running);
            }
            if body.is_empty() {
                return Ok(OperationOutcome::Succeeded);
            }
            let body: Value = understand(&body)?;
            Ok(match body.get("status").and_then(Value::as_str) {
                Some("Succeeded") | None => OperationOutcome::Succeeded,
                Some("Failed" | "Canceled") => {
                    OperationOutcome::Failed(AzureError::from_operation(body.get("error")))
                }
                Some(_) => OperationOutcome::Running,
            })
        }
        .boxed()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Value>,
    next_link: Option<String>,
}

fn set_json(request: &mut Request, body: &Value) {
    let json = reqwest::header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(reqwest::header::CONTENT_TYPE, json);
    *request.body_mut() = Some(body.to_string().into());
}

fn understand<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, AzureError> {
    serde_json::from_slice(body).map_err(|error| {
        AzureError::new(
            Class::Transient,
            "NotUnderstood",
            format!("Azure's answer is not as documented: {error}"),
        )
    })
}

fn not_sent(error: &reqwest::Error) -> AzureError {
    let code = if error.is_timeout() { "Timeout" } else { "ConnectionFailed" };
    // Without the URL: it may be signed.
    let mut message = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = source {
        message = cause.to_string();
        source = cause.source();
    }
    AzureError::new(Class::Transient, code, message)
}

fn agent_pool(body: Value) -> Result<AgentPool, &'static str> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text(body.get("name"));
    if name.is_empty() {
        return Err("it has no name");
    }
    let properties = body.get("properties").filter(|it| it.is_object()).ok_or("it has no properties")?;
    let zones = properties.get("availabilityZones").and_then(Value::as_array);
    let etag = text(properties.get("eTag"));
    Ok(AgentPool {
        count: properties.get("count").and_then(Value::as_u64).unwrap_or(0) as u32,
        priority: if text(properties.get("scaleSetPriority")).eq_ignore_ascii_case("Spot") {
            Priority::Spot
        } else {
            Priority::Regular
        },
        mode: match text(properties.get("mode")).to_ascii_lowercase().as_str() {
            "system" => AgentPoolMode::System,
            "gateway" => AgentPoolMode::Gateway,
            _ => AgentPoolMode::User,
        },
        autoscaled: properties.get("enableAutoScaling").and_then(Value::as_bool).unwrap_or(false),
        vm_size: text(properties.get("vmSize")),
        zones: zones.into_iter().flatten().map(|zone| text(Some(zone))).collect(),
        provisioning_state: text(properties.get("provisioningState")),
        etag: (!etag.is_empty()).then_some(etag),
        name,
        body,
    })
}

/// The body as it was read, with another count and without what is read-only.
fn with_count(body: &Value, count: u32) -> Value {
    let mut body = body.clone();
    if let Some(top) = body.as_object_mut() {
        for read_only in ["id", "name", "type", "systemData"] {
            top.remove(read_only);
        }
    }
    if let Some(properties) = body.get_mut("properties").and_then(Value::as_object_mut) {
        for read_only in
            ["eTag", "provisioningState", "currentOrchestratorVersion", "nodeImageVersion", "status"]
        {
            properties.remove(read_only);
        }
        properties.insert("count".into(), count.into());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_sends_back_everything_but_what_is_read_only() {
        let read = json!({
            "id": "/subscriptions/s/…", "name": "spota", "type": "Microsoft.ContainerService/managedClusters/agentPools",
            "properties": {
                "eTag": "\"1\"", "provisioningState": "Succeeded", "count": 2, "scaleSetPriority": "Spot",
                "aFieldOfTheFuture": {"kept": [1, 2]}, "nodeTaints": ["a=b:NoSchedule"]
            }
        });
        assert_eq!(
            with_count(&read, 5),
            json!({"properties": {"count": 5, "scaleSetPriority": "Spot", "aFieldOfTheFuture": {"kept": [1, 2]}, "nodeTaints": ["a=b:NoSchedule"]}})
        );
        let pool = agent_pool(read).unwrap();
        assert_eq!((pool.count, pool.priority, pool.etag.as_deref()), (2, Priority::Spot, Some("\"1\"")));
        assert!(!pool.busy());
    }

    #[test]
    fn odd_agent_pools_are_told_apart_from_good_ones() {
        assert!(agent_pool(json!({"properties": {}})).is_err());
        assert!(agent_pool(json!({"name": "x"})).is_err());
        let pool = agent_pool(
            json!({"name": "x", "properties": {"mode": "System", "provisioningState": "Scaling"}}),
        )
        .unwrap();
        assert!(pool.busy() && pool.mode == AgentPoolMode::System && pool.priority == Priority::Regular);
    }
}
