//! ARM's wire for agent pools: `Microsoft.ContainerService/managedClusters/agentPools`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION};
use http::{Method, Response, StatusCode};
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::Clock;
use crate::agent_pools::{
    Accepted, AgentPool, AgentPools, CreateAgentPool, Created, Machine, OperationOutcome, OperationUrl,
    Operations,
};
use crate::body;
use crate::error::{AzureError, Class, retry_after};
use crate::http::Transport;
use crate::pipeline;
use crate::throttle::{Kind, Throttle, Urgency, WriteBudget};
use crate::wire::{ApiVersion, Wire, WriteGate, json_request, not_understood, request, understand};

/// 100 agent pools, 1,000 machines each.
const MOST_PAGES: usize = 100;
/// How often a page is asked for that Azure does not give.
const TRIES_OF_A_PAGE: u32 = 5;
/// A body this old without an ETag may have been changed by somebody: a count is not lowered by it.
const STILL_TRUE: SignedDuration = SignedDuration::from_secs(30);
/// GA versions up to here do not have it.
const NO_INITIALIZATION_TAINTS: &str = "2026-08-01";

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

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.subscription_id, self.resource_group, self.cluster_name)
    }
}

/// What [`Arm`] needs.
pub struct ArmConfig {
    /// Such as `https://management.azure.com`.
    pub endpoint: Url,
    /// Which cluster.
    pub cluster: ClusterId,
    /// One version for reads and writes.
    pub api_version: ApiVersion,
    /// Who asks.
    pub user_agent: String,
    /// The way out; adds the token.
    pub transport: Arc<dyn Transport>,
    /// Asked before each write.
    pub may_write: WriteGate,
    /// What time it is.
    pub clock: Clock,
}

/// Agent pools over ARM.
pub struct Arm {
    wire: Arc<Wire>,
    endpoint: Url,
    cluster: ClusterId,
    version: ApiVersion,
    agent_pools: Url,
    /// Agent pools whose writes are refused as long as the body has their initialization taints.
    without_initialization_taints: Mutex<BTreeSet<String>>,
}

impl Arm {
    /// A client for one cluster.
    pub fn new(config: ArmConfig) -> Result<Self, AzureError> {
        let ArmConfig { endpoint, cluster, api_version, user_agent, transport, may_write, clock } = config;
        let refused = |why: &str| AzureError::new(Class::Invalid, "InvalidRequest", why);
        let parts = [&cluster.subscription_id, &cluster.resource_group, &cluster.cluster_name];
        if parts.iter().any(|part| !is_one_segment(part)) {
            return Err(refused("subscription, resource group and cluster must be plain names"));
        }
        let user_agent = HeaderValue::from_str(&user_agent)
            .map_err(|_| refused("the user agent must be printable ASCII"))?;
        let mut agent_pools = endpoint.clone();
        agent_pools
            .path_segments_mut()
            .map_err(|()| refused("the Azure endpoint is no http(s) URL"))?
            .pop_if_empty()
            .extend(["subscriptions", parts[0], "resourceGroups", parts[1]])
            .extend(["providers", "Microsoft.ContainerService", "managedClusters", parts[2], "agentPools"]);
        let throttle = Mutex::new(Throttle::new(&cluster.to_string()));
        Ok(Self {
            wire: Arc::new(Wire { transport, user_agent, may_write, clock, throttle }),
            endpoint,
            cluster,
            version: api_version,
            agent_pools,
            without_initialization_taints: Mutex::default(),
        })
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.agent_pools.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        url.query_pairs_mut().append_pair("api-version", self.version.as_str());
        url
    }

    async fn read(&self, url: &Url) -> Result<Bytes, AzureError> {
        Ok(self.wire.send(Kind::Read, request(Method::GET, url)?).await?.into_body())
    }

    /// All items of a list that begins with `first`.
    async fn pages(&self, first: Bytes) -> Result<Vec<Value>, AzureError> {
        let mut items = Vec::new();
        let mut page: Page = understand(&first)?;
        for _ in 0..MOST_PAGES {
            items.append(&mut page.value);
            match page.next_link.filter(|link| !link.is_empty()) {
                Some(link) => page = understand(&self.further(&self.link(&link)?).await?)?,
                None => return Ok(items),
            }
        }
        Err(not_understood("the list does not end"))
    }

    /// A further page. It is asked for again where the first page would not be: what was read before it would be lost.
    async fn further(&self, url: &Url) -> Result<Bytes, AzureError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.wire.send(Kind::Page, request(Method::GET, url)?).await {
                Ok(answer) => return Ok(answer.into_body()),
                // The wait is the throttle's: it has heard of the refusal.
                Err(error)
                    if tries < TRIES_OF_A_PAGE
                        && !error.is_local()
                        && matches!(error.class, Class::Throttled | Class::Transient) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A URL that Azure gave us, to be followed verbatim, but only on Azure's own host: our token goes along.
    fn link(&self, link: &str) -> Result<Url, AzureError> {
        let url = Url::parse(link).map_err(|_| not_understood("Azure gave a URL that is none"))?;
        if url.origin() == self.agent_pools.origin() {
            Ok(url)
        } else {
            Err(not_understood("Azure gave a URL on another host"))
        }
    }

    async fn list_machines(&self, agent_pool: &str) -> Result<Vec<Machine>, AzureError> {
        let first = self.read(&self.url(&[agent_pool, "machines"])).await?;
        Ok(self.pages(first).await?.iter().filter_map(machine).collect())
    }

    fn accepted(&self, answer: &Response<Bytes>) -> Accepted {
        let headers = answer.headers();
        let operation = ["azure-asyncoperation", "operation-location", LOCATION.as_str()]
            .iter()
            .find_map(|name| headers.get(*name)?.to_str().ok())
            .and_then(|link| match self.link(link) {
                Ok(url) => Some(OperationUrl(url)),
                Err(error) => {
                    tracing::warn!(%error, "cannot follow an operation; the agent pool will tell how it stands");
                    None
                }
            });
        let agent_pool = serde_json::from_slice(answer.body())
            .ok()
            .and_then(|body| body::agent_pool(body, self.wire.now()).ok());
        Accepted { operation, agent_pool, retry_after: retry_after(headers) }
    }

    /// Writes `body` over what `pool` was read as.
    async fn put(&self, pool: &AgentPool, body: Value, urgency: Urgency) -> Result<Accepted, AzureError> {
        let etag = pool.etag.as_ref().and_then(|etag| HeaderValue::from_str(etag).ok());
        let condition = etag.map(|etag| (IF_MATCH, etag));
        let mut body = body;
        let blocked = || self.without_initialization_taints.lock().unwrap_or_else(PoisonError::into_inner);
        if blocked().contains(&pool.name) {
            body = body::without_initialization_taints(&body).unwrap_or(body);
        }
        let kind = Kind::Put(&pool.name, urgency);
        match self.put_once(kind, &pool.name, &body, condition.clone()).await {
            Err(error)
                if error.class == Class::Invalid
                    && error.message.to_ascii_lowercase().contains("nodeinitializationtaints") =>
            {
                let Some(without) = body::without_initialization_taints(&body) else { return Err(error) };
                let accepted = self.put_once(kind, &pool.name, &without, condition).await?;
                blocked().insert(pool.name.clone());
                Ok(accepted)
            }
            outcome => outcome,
        }
    }

    async fn put_once(
        &self,
        kind: Kind<'_>,
        agent_pool: &str,
        body: &Value,
        condition: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Accepted, AzureError> {
        let mut request = json_request(Method::PUT, &self.url(&[agent_pool]), body)?;
        request.headers_mut().extend(condition);
        Ok(self.accepted(&self.wire.send(kind, request).await?))
    }

    async fn read_one(&self, agent_pool: &str) -> Result<AgentPool, AzureError> {
        let read =
            pipeline::get(&self.wire, &self.endpoint, &self.cluster, &self.version, agent_pool).await?;
        body::agent_pool(understand(&read.body)?, read.at).map_err(not_understood)
    }
}

impl AgentPools for Arm {
    fn list(&self) -> BoxFuture<'_, Result<Vec<AgentPool>, AzureError>> {
        async {
            let first = pipeline::list(&self.wire, &self.endpoint, &self.cluster, &self.version).await?;
            let mut pools = Vec::new();
            for body in self.pages(first.body).await? {
                // One agent pool that we cannot read must not hide the others.
                match body::agent_pool(body, first.at) {
                    Ok(pool) => pools.push(pool),
                    Err(why) => tracing::warn!(why, "an agent pool could not be read"),
                }
            }
            Ok(pools)
        }
        .boxed()
    }

    fn get<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Option<AgentPool>, AzureError>> {
        async move {
            match self.read_one(agent_pool).await {
                Err(error) if error.status == 404 && error.code != "ResourceGroupNotFound" => Ok(None),
                read => read.map(Some),
            }
        }
        .boxed()
    }

    fn machines<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Vec<Machine>, AzureError>> {
        self.list_machines(agent_pool).boxed()
    }

    fn scale<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
        urgency: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move { self.put(agent_pool, body::with_count(agent_pool, count)?, urgency).await }.boxed()
    }

    fn correct_count<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move {
            let not_now = |why: &str| AzureError::new(Class::Conflict, "CountNotCorrected", why);
            if count >= agent_pool.count {
                return Err(not_now("Azure's count is not above it"));
            }
            if agent_pool.busy() {
                return Err(not_now("an operation runs on the agent pool"));
            }
            let body = body::with_count(agent_pool, count)?;
            // Where further pages have to wait, the count is corrected another time.
            let machines =
                tokio::time::timeout(STILL_TRUE.unsigned_abs(), self.list_machines(&agent_pool.name));
            let machines = machines.await.map_err(|_| not_now("its machines are not listed in time"))??.len();
            // Fewer would be filled up again, more would be deleted.
            if machines != count as usize {
                return Err(not_now("another number of machines exists"));
            }
            let age = self.wire.now().duration_since(agent_pool.read_at);
            if agent_pool.etag.is_none() && age > STILL_TRUE {
                return Err(not_now("the agent pool was read too long ago, and has no ETag"));
            }
            self.put(agent_pool, body, Urgency::Routine).await
        }
        .boxed()
    }

    fn set_autoscaler_range<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        min: u32,
        max: u32,
        urgency: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move { self.put(agent_pool, body::with_range(agent_pool, min, max)?, urgency).await }.boxed()
    }

    fn delete_machines<'a>(
        &'a self,
        agent_pool: &'a str,
        machines: &'a [String],
    ) -> BoxFuture<'a, Result<Accepted, AzureError>> {
        async move {
            if machines.is_empty() {
                return Err(AzureError::new(Class::Invalid, "InvalidRequest", "no machines to delete"));
            }
            let url = self.url(&[agent_pool, "deleteMachines"]);
            let request = json_request(Method::POST, &url, &json!({ "machineNames": machines }))?;
            Ok(self.accepted(&self.wire.send(Kind::Delete, request).await?))
        }
        .boxed()
    }

    fn create<'a>(&'a self, wanted: &'a CreateAgentPool) -> BoxFuture<'a, Result<Created, AzureError>> {
        async move {
            if !wanted.initialization_taints.is_empty() && self.version.as_str() <= NO_INITIALIZATION_TAINTS {
                let why = format!("API version {} does not have nodeInitializationTaints", self.version);
                return Err(AzureError::new(Class::Invalid, "InvalidRequest", why));
            }
            let body = body::of(wanted)?;
            // Read first: a version without ETags would take the PUT as an update.
            if let Some(agent_pool) = self.get(&wanted.name).await? {
                let differences = body::differences(wanted, &agent_pool);
                return Ok(Created::AlreadyThere { agent_pool, differences });
            }
            let kind = Kind::Put(&wanted.name, Urgency::Routine);
            let absent = Some((IF_NONE_MATCH, HeaderValue::from_static("*")));
            match self.put_once(kind, &wanted.name, &body, absent).await {
                Ok(accepted) => Ok(Created::Accepted(accepted)),
                // Somebody made it in between.
                Err(error) if error.status == 412 => {
                    let agent_pool = self.read_one(&wanted.name).await?;
                    let differences = body::differences(wanted, &agent_pool);
                    Ok(Created::AlreadyThere { agent_pool, differences })
                }
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn write_budget(&self, agent_pool: &str) -> WriteBudget {
        self.wire.throttle().write_budget(agent_pool, self.wire.now())
    }

    fn restore_write_budget(&self, agent_pool: &str, budget: WriteBudget) {
        self.wire.throttle().restore(agent_pool, budget, self.wire.now());
    }
}

impl Operations for Arm {
    fn operation<'a>(&'a self, url: &'a OperationUrl) -> BoxFuture<'a, Result<OperationOutcome, AzureError>> {
        async move {
            let answer = match self.wire.send(Kind::Status, request(Method::GET, &url.0)?).await {
                Ok(answer) => answer,
                // Expired, unknown or not for us: the truth is in the agent pool and its machines.
                Err(error) if matches!(error.status, 400 | 403 | 404 | 410) => {
                    tracing::warn!(%error, "Azure does not say how an operation stands; the agent pool will");
                    return Ok(OperationOutcome::Unknown);
                }
                Err(error) => return Err(error),
            };
            outcome(answer.status(), answer.headers(), answer.body())
        }
        .boxed()
    }
}

/// A status URL answers 200 with a status; a Location URL 202 while it runs, 200 or 204 once it is done.
fn outcome(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<OperationOutcome, AzureError> {
    if body.is_empty() {
        return Ok(if status == StatusCode::ACCEPTED {
            OperationOutcome::Running(retry_after(headers))
        } else {
            OperationOutcome::Succeeded
        });
    }
    let body: Value = understand(body)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    // A Location URL may end with the resource itself.
    let resource = text(body.pointer("/properties/provisioningState"));
    let said = text(body.get("status"));
    Ok(match if said.is_empty() { resource.as_str() } else { said.as_str() } {
        "succeeded" => OperationOutcome::Succeeded,
        "" if status != StatusCode::ACCEPTED => OperationOutcome::Succeeded,
        "failed" => {
            let error = body.get("error").or_else(|| body.pointer("/properties/status/provisioningError"));
            OperationOutcome::Failed(AzureError::from_operation(error.filter(|error| !error.is_null())))
        }
        "canceled" | "cancelled" => {
            let why = "the operation was cancelled";
            OperationOutcome::Failed(AzureError::new(Class::Conflict, "OperationCanceled", why))
        }
        _ => OperationOutcome::Running(retry_after(headers)),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    value: Vec<Value>,
    next_link: Option<String>,
}

fn machine(item: &Value) -> Option<Machine> {
    let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let zones = item.get("zones").and_then(Value::as_array).into_iter().flatten();
    Some(Machine {
        name: text("/name").filter(|name| !name.is_empty())?,
        resource_id: text("/properties/resourceId"),
        zones: zones.filter_map(|zone| zone.as_str().map(str::to_owned)).collect(),
        provisioning_state: text("/properties/provisioningState"),
    })
}

fn is_one_segment(part: &str) -> bool {
    let plain = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | '?' | '#' | '%');
    !part.is_empty() && part != "." && part != ".." && part.chars().all(plain)
}
