//! A typed client of the control API.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{
    BackgroundOperation, Capacity, EventRequest, EventState, Failure, Fault, PoolSpec, Priority, Quota,
    Settings, SettingsPatch, State, Switches, Targets,
};
use crate::model::Invoice;
use crate::scenario::Action;

/// Why the simulator did not do something.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// It could not be reached, or its answer made no sense.
    #[error("the simulator does not answer: {0}")]
    Transport(#[from] reqwest::Error),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// [`SimClient::wait_until`] ran out of time.
    #[error("waited {}s in vain for {what}", .after.as_secs_f32())]
    TimedOut {
        /// What it waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
}

/// Speaks to one running simulator.
#[derive(Debug, Clone)]
pub struct SimClient {
    base: String,
    http: reqwest::Client,
}

impl SimClient {
    /// A client of the simulator at this base URL, such as `http://127.0.0.1:4711`.
    pub fn new(base_url: &str) -> Result<Self, SimError> {
        // Proxies that the environment names have no business between loopback addresses.
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { base: base_url.trim_end_matches('/').to_owned(), http })
    }

    /// The simulator's base URL: also the operator's `--azure-endpoint`.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// A node agent's `--imds-endpoint` for this node.
    pub fn imds_endpoint(&self, node: &str) -> String {
        format!("{}/imds/{node}", self.base)
    }

    /// Everything there is to see.
    pub async fn state(&self) -> Result<State, SimError> {
        self.call(Method::GET, "state", None::<&()>).await
    }

    /// What the machines cost from one time to another; since the first, and until now, unless said otherwise.
    pub async fn invoice(&self, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Invoice, SimError> {
        let ends = [("from", from), ("to", to)];
        let said = ends.iter().filter_map(|(key, at)| at.map(|at| format!("{key}={at}")));
        let query: Vec<String> = said.collect();
        self.call(Method::GET, &format!("invoice?{}", query.join("&")), None::<&()>).await
    }

    /// Adds a pool whose machines run at once.
    pub async fn add_pool(&self, spec: &PoolSpec) -> Result<(), SimError> {
        self.call(Method::POST, "pools", Some(spec)).await
    }

    /// Removes a pool and its machines at once.
    pub async fn remove_pool(&self, name: &str) -> Result<(), SimError> {
        self.call(Method::DELETE, &format!("pools/{name}"), None::<&()>).await
    }

    /// Evicts machines by node or VM name: one Preempt each, in one change of the document.
    pub async fn evict<S: AsRef<str>>(
        &self,
        nodes: &[S],
        notice: Duration,
    ) -> Result<Vec<EventState>, SimError> {
        self.schedule(&EventRequest::new("Preempt", Targets::named(nodes), notice)).await
    }

    /// Evicts that many running machines of a pool, lowest instance ids first.
    pub async fn evict_some(
        &self,
        pool: &str,
        count: u32,
        notice: Duration,
    ) -> Result<Vec<EventState>, SimError> {
        self.schedule(&EventRequest::new("Preempt", Targets::of_pool(pool, count), notice)).await
    }

    /// Puts any events in the documents.
    pub async fn schedule(&self, request: &EventRequest) -> Result<Vec<EventState>, SimError> {
        self.call(Method::POST, "events", Some(request)).await
    }

    /// Cancels the event of this id, or the events that name this machine, and answers their ids.
    pub async fn cancel(&self, event_or_machine: &str) -> Result<Vec<String>, SimError> {
        self.call(Method::DELETE, &format!("events/{event_or_machine}"), None::<&()>).await
    }

    /// Makes machines vanish with no notice at all, and answers their node names.
    pub async fn kill(&self, targets: &Targets) -> Result<Vec<String>, SimError> {
        self.call(Method::POST, "kill", Some(targets)).await
    }

    /// Limits how many machines of a size and priority may exist; `None` lifts the limit.
    pub async fn set_capacity(
        &self,
        vm_size: &str,
        priority: Priority,
        limit: Option<u32>,
    ) -> Result<(), SimError> {
        self.set_capacity_with(&Capacity::of(vm_size, priority, limit)).await
    }

    /// The same, with an error of one's own for operations that run short.
    pub async fn set_capacity_with(&self, capacity: &Capacity) -> Result<(), SimError> {
        self.call(Method::PUT, "capacity", Some(capacity)).await
    }

    /// Breaks something, and answers the fault's id.
    pub async fn add_fault(&self, fault: &Fault) -> Result<u64, SimError> {
        let answer: Value = self.call(Method::POST, "faults", Some(fault)).await?;
        Ok(answer["id"].as_u64().unwrap_or_default())
    }

    /// Clears one fault.
    pub async fn clear_fault(&self, id: u64) -> Result<(), SimError> {
        self.call(Method::DELETE, &format!("faults/{id}"), None::<&()>).await
    }

    /// Clears all faults.
    pub async fn clear_faults(&self) -> Result<(), SimError> {
        self.call(Method::DELETE, "faults", None::<&()>).await
    }

    /// Changes settings from now on, and answers all of them.
    pub async fn change_settings(&self, patch: &SettingsPatch) -> Result<Settings, SimError> {
        self.call(Method::PATCH, "settings", Some(patch)).await
    }

    /// Changes switches of one pool; `null` takes all of its own away.
    pub async fn switch_pool(&self, pool: &str, changes: &Value) -> Result<Switches, SimError> {
        self.call(Method::PATCH, &format!("pools/{pool}/switches"), Some(changes)).await
    }

    /// Changes switches of all pools.
    pub async fn switch(&self, changes: Value) -> Result<Settings, SimError> {
        self.change_settings(&SettingsPatch::switches(changes)).await
    }

    /// Limits the cores of the subscription; `None` lifts the limit.
    pub async fn set_quota(&self, name: &str, limit: Option<u32>) -> Result<(), SimError> {
        self.call(Method::PUT, "quotas", Some(&Quota { name: name.into(), limit })).await
    }

    /// Writes to come fail so.
    pub async fn add_failure(&self, failure: &Failure) -> Result<(), SimError> {
        self.call(Method::POST, "failures", Some(failure)).await
    }

    /// AKS does something of its own accord.
    pub async fn begin_background(&self, operation: &BackgroundOperation) -> Result<(), SimError> {
        self.call(Method::POST, "operations", Some(operation)).await
    }

    /// Does what a step of a scenario says, now.
    pub async fn act(&self, action: &Action) -> Result<(), SimError> {
        self.call(Method::POST, "act", Some(action)).await
    }

    /// Begins a scenario in YAML.
    pub async fn begin_scenario(&self, yaml: &str) -> Result<(), SimError> {
        let request = self.http.post(format!("{}/sim/scenario", self.base)).body(yaml.to_owned());
        Self::read(request.send().await?).await
    }

    /// Polls the state until it is as wanted.
    pub async fn wait_until(
        &self,
        what: &str,
        within: Duration,
        holds: impl Fn(&State) -> bool,
    ) -> Result<State, SimError> {
        let give_up = tokio::time::Instant::now() + within;
        loop {
            let state = self.state().await?;
            if holds(&state) {
                return Ok(state);
            }
            if tokio::time::Instant::now() >= give_up {
                return Err(SimError::TimedOut { what: what.to_owned(), after: within });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, SimError> {
        let mut request = self.http.request(method, format!("{}/sim/{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        Self::read(request.send().await?).await
    }

    async fn read<T: DeserializeOwned>(response: reqwest::Response) -> Result<T, SimError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response.json().await?);
        }
        let text = response.text().await?;
        let said: Value = serde_json::from_str(&text).unwrap_or(json!({"error": text}));
        let message = said["error"].as_str().unwrap_or_default().to_owned();
        Err(SimError::Refused { status: status.as_u16(), message })
    }
}
