//! Metrics of agent pools: what is there, what is taken, what was asked for and when it came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use spotpool_core::Action;
use spotpool_crds::spot_pool::AgentPoolStatus;
use spotpool_runtime::catalogue::Catalogue;
use strum::VariantNames;

use super::PoolName;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(super) struct AgentPoolName {
    namespace: String,
    pool: String,
    agent_pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Nodes {
    namespace: String,
    pool: String,
    agent_pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Scaled {
    namespace: String,
    pool: String,
    agent_pool: String,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    namespace: String,
    pool: String,
    agent_pool: String,
    class: String,
}

const STATES: [&str; 3] = ["machines", "ready", "evicting"];
const DIRECTIONS: [&str; 2] = ["up", "down"];

type PerAgentPool<T> = Family<AgentPoolName, T>;

#[derive(Clone)]
pub(super) struct AgentPoolMetrics {
    nodes: Family<Nodes, Gauge>,
    avoided: PerAgentPool<Gauge>,
    noticed: PerAgentPool<Counter>,
    without_notice: PerAgentPool<Counter>,
    scaled: Family<Scaled, Counter>,
    errors: Family<Failed, Counter>,
    allocation: Family<AgentPoolName, Histogram, fn() -> Histogram>,
    /// Of which there are series, so that those of one that is not named any more go.
    known: Arc<Mutex<BTreeMap<PoolName, BTreeSet<String>>>>,
}

impl Default for AgentPoolMetrics {
    fn default() -> Self {
        Self {
            nodes: Family::default(),
            avoided: Family::default(),
            noticed: Family::default(),
            without_notice: Family::default(),
            scaled: Family::default(),
            errors: Family::default(),
            allocation: Family::new_with_constructor(|| Histogram::new(exponential_buckets(5.0, 1.5, 14))),
            known: Arc::default(),
        }
    }
}

impl AgentPoolMetrics {
    pub fn register(&self, catalogue: &mut Catalogue) {
        catalogue
            .family("agent_pool_nodes", "Nodes of an agent pool")
            .of_pool()
            .label("agent_pool")
            .label_of("state", "`machines` (all that exist), `ready`, `evicting` (under notice)")
            .unit("nodes")
            .serves("a M1, b M1")
            .metric(self.nodes.clone());
        catalogue
            .family("agent_pool_avoided", "Whether nothing new is asked of an agent pool after an error")
            .of_pool()
            .label("agent_pool")
            .unit("0 or 1")
            .metric(self.avoided.clone());
        catalogue
            .family("evictions_noticed", "Nodes whose VM Azure announced to take")
            .of_pool()
            .label("agent_pool")
            .note("Those that it did not take in the end are counted too")
            .serves("a M1, b M1")
            .metric(self.noticed.clone());
        catalogue
            .family("evictions_without_notice", "Nodes whose VM went without a notice")
            .of_pool()
            .label("agent_pool")
            .note("Once Azure has confirmed it")
            .serves("a M1, b M1")
            .metric(self.without_notice.clone());
        catalogue
            .family("scale_requests", "Requests for another number of machines that were sent to Azure")
            .of_pool()
            .label("agent_pool")
            .label_of("direction", "`up`, `down`")
            .serves("a M9, b M7")
            .metric(self.scaled.clone());
        catalogue
            .family("agent_pool_errors", "Errors of Azure about an agent pool")
            .of_pool()
            .label("agent_pool")
            .label_of("class", "`Conflict`, `Transient`, `Throttled`, `Invalid`, `Denied`, `Capacity`")
            .note("At once, or later for an operation that it had accepted")
            .serves("a M9")
            .metric(self.errors.clone());
        catalogue
            .family("allocation", "From a request for machines until one of them is ready")
            .seconds()
            .of_pool()
            .label("agent_pool")
            .note("By `readiness`, each node by itself; those that were on their way when the operator began are not in it. 5 to 973 s")
            .serves("a M8")
            .metric(self.allocation.clone());
    }

    /// What status says of the agent pools of a SpotPool.
    pub fn tell(&self, name: &PoolName, agent_pools: &[AgentPoolStatus]) {
        let now: BTreeSet<String> = agent_pools.iter().map(|entry| entry.name.clone()).collect();
        let before = self.known().insert(name.clone(), now.clone()).unwrap_or_default();
        for agent_pool in before.difference(&now) {
            self.forget_one(&of(name, agent_pool));
        }
        for entry in agent_pools {
            let labels = of(name, &entry.name);
            for (state, count) in STATES.into_iter().zip([entry.machines, entry.ready, entry.evicting]) {
                self.nodes.get_or_create(&labels.nodes(state)).set(count.into());
            }
            self.avoided.get_or_create(&labels).set(entry.avoided_until.is_some().into());
            if !before.contains(&entry.name) {
                self.begin(&labels);
            }
        }
    }

    /// Counters that begin at zero can be seen to rise the first time something happens.
    fn begin(&self, labels: &AgentPoolName) {
        drop(self.noticed.get_or_create(labels));
        drop(self.without_notice.get_or_create(labels));
        drop(self.allocation.get_or_create(labels));
        for direction in DIRECTIONS {
            drop(self.scaled.get_or_create(&labels.scaled(direction)));
        }
        drop(self.errors.get_or_create(&labels.failed("Capacity")));
    }

    pub fn noticed(&self, name: &PoolName, agent_pool: &str) {
        self.noticed.get_or_create(&of(name, agent_pool)).inc();
    }

    pub fn without_notice(&self, name: &PoolName, agent_pool: &str, count: u32) {
        self.without_notice.get_or_create(&of(name, agent_pool)).inc_by(count.into());
    }

    /// A request that was sent.
    pub fn asked(&self, name: &PoolName, action: &Action) {
        let direction = match action {
            Action::ScaleUp { .. } => "up",
            Action::DeleteMachines { .. } => "down",
            _ => return,
        };
        if let Some(agent_pool) = action.agent_pool() {
            self.scaled.get_or_create(&of(name, agent_pool).scaled(direction)).inc();
        }
    }

    pub fn failed(&self, name: &PoolName, agent_pool: &str, class: &str) {
        self.errors.get_or_create(&of(name, agent_pool).failed(class)).inc();
    }

    pub fn allocated(&self, name: &PoolName, agent_pool: &str, after: Duration) {
        self.allocation.get_or_create(&of(name, agent_pool)).observe(after.as_secs_f64());
    }

    pub fn forget(&self, name: &PoolName) {
        for agent_pool in self.known().remove(name).into_iter().flatten() {
            self.forget_one(&of(name, &agent_pool));
        }
    }

    fn forget_one(&self, labels: &AgentPoolName) {
        for state in STATES {
            self.nodes.remove(&labels.nodes(state));
        }
        self.avoided.remove(labels);
        self.noticed.remove(labels);
        self.without_notice.remove(labels);
        self.allocation.remove(labels);
        for direction in DIRECTIONS {
            self.scaled.remove(&labels.scaled(direction));
        }
        for class in spotpool_azure::Class::VARIANTS {
            self.errors.remove(&labels.failed(class));
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<PoolName, BTreeSet<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(name: &PoolName, agent_pool: &str) -> AgentPoolName {
    let PoolName { namespace, pool } = name.clone();
    AgentPoolName { namespace, pool, agent_pool: agent_pool.to_owned() }
}

impl AgentPoolName {
    fn nodes(&self, state: &'static str) -> Nodes {
        let Self { namespace, pool, agent_pool } = self.clone();
        Nodes { namespace, pool, agent_pool, state }
    }

    fn scaled(&self, direction: &'static str) -> Scaled {
        let Self { namespace, pool, agent_pool } = self.clone();
        Scaled { namespace, pool, agent_pool, direction }
    }

    fn failed(&self, class: &str) -> Failed {
        let Self { namespace, pool, agent_pool } = self.clone();
        Failed { namespace, pool, agent_pool, class: class.to_owned() }
    }
}
