//! What Azure last said of each agent pool, kept fresh, and the only way in which one is written.
//!
//! Plans are made from this cache, so that a notice costs no read before the write it calls for; `If-Match`
//! tells when the cache was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use spotpool_azure::{
    Accepted, AgentPool, AgentPoolMode, AzureError, Class, OperationOutcome, OperationUrl, Priority,
};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role;
use tokio::sync::Notify;

use crate::metrics::Metrics;
use crate::watches::{Nodes, Trigger};

/// How often agent pools are listed while nothing happens: 40 reads an hour out of a bucket that all
/// clusters of the subscription share.
const IDLE: Duration = Duration::from_secs(90);
/// … while an operation runs whose URL we do not have, or something does not fit together.
const UNSETTLED: Duration = Duration::from_secs(5);
/// How often an operation's own URL is asked.
const OPERATION: Duration = Duration::from_secs(2);

/// One agent pool as a plan needs it.
#[derive(Clone, Debug)]
pub struct Known {
    /// As Azure answered.
    pub pool: AgentPool,
    /// What it sells, or why it is not for us.
    pub role: Result<Role, Reason>,
    /// Machines that Azure listed and whose Node is not known to be gone.
    pub machines: Vec<String>,
    /// How many it listed.
    pub listed: usize,
    /// Whether a write would be refused, or must not be tried before a read.
    pub busy: bool,
    /// How the last operation of ours failed, if it did.
    pub failure: Option<(AzureError, Timestamp)>,
}

/// What is known of all agent pools at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By name. `None` until Azure has answered once.
    pub pools: Option<BTreeMap<String, Known>>,
    /// Why the last read failed, if it did.
    pub unreachable: Option<AzureError>,
}

/// The cache.
pub struct AgentPools {
    azure: Arc<dyn spotpool_azure::AgentPools>,
    nodes: Nodes,
    trigger: Trigger,
    metrics: Metrics,
    state: Mutex<State>,
    refresh: Notify,
}

#[derive(Default)]
struct State {
    entries: Option<BTreeMap<String, Entry>>,
    unreachable: Option<AzureError>,
    /// Agent pools that SpotPools name: only their machines are read.
    wanted: BTreeSet<String>,
}

#[derive(Clone)]
struct Entry {
    pool: AgentPool,
    /// `None` until they have been listed since the last change.
    machines: Option<Listed>,
    written: Written,
    failure: Option<(AzureError, Timestamp)>,
}

/// Machines as Azure listed them.
#[derive(Clone)]
struct Listed {
    names: Vec<String>,
    at: Instant,
}

/// How our last write stands.
#[derive(Clone, PartialEq, Eq)]
enum Written {
    /// What is here was read after it.
    Read,
    /// Only a list that is asked for from now on can tell.
    Unknown,
    /// Azure said where to ask.
    Running(OperationUrl),
}

impl AgentPools {
    /// An empty cache. [`Self::keep_fresh`] fills it.
    pub fn new(
        azure: Arc<dyn spotpool_azure::AgentPools>,
        nodes: Nodes,
        trigger: Trigger,
        metrics: Metrics,
    ) -> Self {
        Self { azure, nodes, trigger, metrics, state: Mutex::default(), refresh: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now, for the agent pools that `wanted` names.
    pub fn view<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> View {
        let mut state = self.state();
        let before = state.wanted.len();
        state.wanted.extend(wanted.map(str::to_owned));
        if state.wanted.len() != before {
            self.refresh.notify_one();
        }
        let pools = state
            .entries
            .as_ref()
            .map(|entries| entries.iter().map(|(name, entry)| (name.clone(), self.known(entry))).collect());
        View { pools, unreachable: state.unreachable.clone() }
    }

    fn known(&self, entry: &Entry) -> Known {
        let pool = entry.pool.clone();
        let role = match (pool.mode, pool.priority) {
            _ if pool.autoscaled => Err(Reason::AgentPoolUnsuitable),
            (AgentPoolMode::System | AgentPoolMode::Gateway, _) => Err(Reason::AgentPoolUnsuitable),
            (AgentPoolMode::User, Priority::Spot) => Ok(Role::Spot),
            (AgentPoolMode::User, Priority::Regular) => Ok(Role::OnDemand),
        };
        let machines = self.existing(entry).cloned().collect();
        let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
        let busy = pool.busy() || entry.written != Written::Read || entry.machines.is_none();
        Known { pool, role, machines, listed, busy, failure: entry.failure.clone() }
    }

    /// Listed machines that are not known to be gone.
    fn existing<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a String> {
        let listed =
            entry.machines.iter().flat_map(|listed| listed.names.iter().map(|name| (name, listed.at)));
        listed.filter(|(name, at)| !self.nodes.is_gone(name, *at)).map(|(name, _)| name)
    }

    /// Asks for `count` machines.
    pub async fn scale(&self, name: &str, count: u32) -> Result<(), AzureError> {
        let pool = self.claim_write(name)?;
        let outcome = self.azure.scale(&pool, count).await;
        self.metrics.azure_write("scale", &outcome);
        self.settle(name, outcome)
    }

    /// Deletes these machines.
    pub async fn delete_machines(&self, name: &str, machines: &[String]) -> Result<(), AzureError> {
        self.claim_write(name)?;
        let outcome = self.azure.delete_machines(name, machines).await;
        self.metrics.azure_write("deleteMachines", &outcome);
        self.settle(name, outcome)
    }

    /// Marks the agent pool as written *before* the request goes out: if this future is dropped half-way,
    /// nothing is planned for it until it has been read again.
    fn claim_write(&self, name: &str) -> Result<AgentPool, AzureError> {
        let mut state = self.state();
        let entry = state.entries.as_mut().and_then(|entries| entries.get_mut(name));
        match entry {
            Some(entry) if entry.written == Written::Read => {
                entry.written = Written::Unknown;
                Ok(entry.pool.clone())
            }
            _ => Err(AzureError {
                class: Class::Conflict,
                code: "Busy".into(),
                message: "another write of ours is under way".into(),
                status: 0,
                retry_after: None,
            }),
        }
    }

    fn settle(&self, name: &str, outcome: Result<Accepted, AzureError>) -> Result<(), AzureError> {
        if let Some(entry) = self.state().entries.as_mut().and_then(|entries| entries.get_mut(name)) {
            match &outcome {
                Ok(accepted) => {
                    entry.written = accepted.operation.clone().map_or(Written::Unknown, Written::Running);
                    if let Some(pool) = &accepted.agent_pool {
                        entry.pool = pool.clone();
                    }
                    entry.failure = None;
                }
                // Refused for certain: nothing runs. What we knew may be what made it fail.
                Err(error) if !error.outcome_unknown() && error.class != Class::Conflict => {
                    entry.written = Written::Read;
                }
                // Stays marked as written until a read shows how it stands.
                Err(_) => {}
            }
        }
        self.refresh.notify_one();
        outcome.map(drop)
    }

    /// Reads whenever something should be known anew. Ends never.
    pub async fn keep_fresh(&self) {
        let mut listed = None::<Instant>;
        let mut read_again = false;
        loop {
            let operations = self.operations();
            let due = listed.is_none_or(|at: Instant| at.elapsed() >= self.interval());
            let over = self.follow(operations).await;
            if due || over || read_again {
                self.read().await;
                listed = Some(Instant::now());
            }
            let wait = if self.operations().is_empty() { self.interval() } else { OPERATION };
            read_again = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                () = self.refresh.notified() => self.operations().is_empty() || self.unknown(),
            };
        }
    }

    fn operations(&self) -> Vec<(String, OperationUrl)> {
        let state = self.state();
        let entries = state.entries.iter().flatten();
        let running = |entry: &Entry| match &entry.written {
            Written::Running(url) => Some(url.clone()),
            Written::Read | Written::Unknown => None,
        };
        entries.filter_map(|(name, entry)| Some((name.clone(), running(entry)?))).collect()
    }

    /// Whether something was written and only a list can tell how it stands, or a list is missing.
    fn unknown(&self) -> bool {
        let state = self.state();
        let Some(entries) = &state.entries else { return true };
        entries.iter().any(|(name, entry)| {
            entry.written == Written::Unknown || (entry.machines.is_none() && state.wanted.contains(name))
        })
    }

    /// How long a list stays good.
    fn interval(&self) -> Duration {
        if self.unknown() || self.state().unreachable.is_some() {
            return UNSETTLED;
        }
        let state = self.state();
        let unsettled = state.entries.iter().flatten().any(|(name, entry)| {
            // While an operation's own URL is asked, lists tell nothing more.
            let followed = matches!(entry.written, Written::Running(_));
            state.wanted.contains(name) && !followed && (entry.pool.busy() || self.differs(name, entry))
        });
        if unsettled { UNSETTLED } else { IDLE }
    }

    /// Whether listed machines and Nodes do not match.
    fn differs(&self, name: &str, entry: &Entry) -> bool {
        let listed: BTreeSet<&String> = self.existing(entry).collect();
        let nodes = self.nodes.names_of(name);
        listed.len() != nodes.len() || nodes.iter().any(|node| !listed.contains(node))
    }

    /// Asks how operations stand. Whether any is over.
    async fn follow(&self, operations: Vec<(String, OperationUrl)>) -> bool {
        let mut over = false;
        for (name, url) in operations {
            let outcome = self.azure.operation(&url).await;
            let failure = match outcome {
                Ok(OperationOutcome::Running) => continue,
                Ok(OperationOutcome::Succeeded) => None,
                Ok(OperationOutcome::Failed(error)) => {
                    tracing::warn!(
                        agent_pool = name,
                        code = error.code,
                        message = error.message,
                        "Azure's operation failed"
                    );
                    Some((error, Timestamp::now()))
                }
                Err(error) => {
                    tracing::warn!(agent_pool = name, %error, "cannot ask how an operation stands");
                    // A URL that is refused is of no more use: the list will tell.
                    if error.class != Class::Invalid {
                        continue;
                    }
                    None
                }
            };
            over = true;
            if let Some(entry) = self.state().entries.as_mut().and_then(|entries| entries.get_mut(&name)) {
                entry.written = Written::Unknown;
                entry.failure = failure;
            }
        }
        over
    }

    /// Lists agent pools, and the machines of those where they may have changed.
    async fn read(&self) {
        let written_before: BTreeSet<String> = {
            let state = self.state();
            let entries = state.entries.iter().flatten();
            entries
                .filter(|(_, entry)| entry.written == Written::Unknown)
                .map(|(name, _)| name.clone())
                .collect()
        };
        let listed = self.azure.list().await;
        self.metrics.azure_read("list", &listed);
        let pools = match listed {
            Ok(pools) => pools,
            Err(error) => {
                tracing::warn!(%error, "cannot list agent pools");
                self.state().unreachable = Some(error);
                self.trigger.fire();
                return;
            }
        };
        let mut to_list = Vec::new();
        {
            let mut state = self.state();
            state.unreachable = None;
            let mut before = state.entries.take().unwrap_or_default();
            let wanted = state.wanted.clone();
            let mut entries = BTreeMap::new();
            for pool in pools {
                let name = pool.name.clone();
                let mut entry = before.remove(&name).unwrap_or_else(|| Entry {
                    pool: pool.clone(),
                    machines: None,
                    written: Written::Read,
                    failure: None,
                });
                // What was written before this list was asked for is in it; what was written since is not.
                let settled = written_before.contains(&name) && entry.written == Written::Unknown;
                if settled {
                    entry.written = Written::Read;
                }
                let changed = entry.pool.count != pool.count
                    || entry.pool.provisioning_state != pool.provisioning_state;
                if entry.written == Written::Read {
                    entry.pool = pool;
                }
                let outdated = entry.machines.is_none() || settled || changed || self.differs(&name, &entry);
                if wanted.contains(&name) && outdated {
                    to_list.push(name.clone());
                    // Until they are listed again nothing may be planned from the old ones. A list that only
                    // differs from the Nodes is as good as it was.
                    if settled || changed {
                        entry.machines = None;
                    }
                }
                entries.insert(name, entry);
            }
            state.entries = Some(entries);
        }
        for name in to_list {
            let at = Instant::now();
            let machines = self.azure.machines(&name).await;
            self.metrics.azure_read("machines", &machines);
            match machines {
                Ok(machines) => {
                    if let Some(entry) =
                        self.state().entries.as_mut().and_then(|entries| entries.get_mut(&name))
                    {
                        let names = machines.into_iter().map(|machine| machine.name).collect();
                        entry.machines = Some(Listed { names, at });
                    }
                }
                Err(error) => {
                    tracing::warn!(agent_pool = name, %error, "cannot list machines");
                    let mut state = self.state();
                    if let Some(entry) = state.entries.as_mut().and_then(|entries| entries.get_mut(&name)) {
                        entry.machines = None;
                    }
                    state.unreachable = Some(error);
                }
            }
        }
        self.trigger.fire();
    }
}
