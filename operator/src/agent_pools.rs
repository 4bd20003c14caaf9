//! What Azure last said of each agent pool, kept fresh, and the only way in which one is written.
//!
//! Plans are made from this cache, so that a notice costs no read before the write it calls for; `If-Match`
//! tells when the cache was wrong.

mod due;
mod entry;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use spotpool_azure::{AgentPool, AgentPoolKind, AgentPoolMode, AzureError, Clock, Priority, WriteBudget};
use spotpool_crds::spot_pool::Role;
use spotpool_crds::{Reason, SpotPoolStatus};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::due::IDLE;
use self::entry::{Entry, Written};
use crate::market::Facts;
use crate::metrics::Metrics;
use crate::vms::Words;
use crate::watches::{Nodes, Trigger};

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
    /// Since when listed machines have been without a Node.
    pub joining: BTreeMap<String, Timestamp>,
    /// Since when Azure's count has been above what it lists, with no operation running.
    pub count_stale_since: Option<Timestamp>,
    /// Whether a write would be refused, or must not be tried before a read.
    pub busy: bool,
    /// Whether an operation runs that this process has not begun.
    pub is_others_operation: bool,
    /// The count, or minimum, that our last PUT asked for if it was not answered: it may yet be carried out.
    pub unanswered: Option<u32>,
    /// How the last operation of ours failed, if it did.
    pub failure: Option<(AzureError, Timestamp)>,
    /// When machines of it went that nobody had announced.
    pub vanished: Vec<Timestamp>,
    /// What was left of its writes after our last one.
    pub write_budget: Option<WriteBudget>,
    /// What the market says of it; filled in by [`crate::market::Market::tell`].
    pub market: Facts,
}

impl Known {
    /// The least that the cluster autoscaler keeps.
    pub fn min(&self) -> u32 {
        self.pool.min_count.unwrap_or(0)
    }
}

/// What is known of all agent pools at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By name. `None` until Azure has answered once.
    pub pools: Option<BTreeMap<String, Known>>,
    /// Why the last read failed, if it did.
    pub unreachable: Option<AzureError>,
    /// Whether the cluster has node auto-provisioning; filled in by [`crate::neighbours::Neighbours::tell`].
    pub has_auto_provisioning: bool,
    /// What Azure says of the VMs of silent Nodes; filled in from [`crate::vms::Vms::words`].
    pub words: Words,
    /// Of all prices, by ISO 4217; filled in by [`crate::market::Market::tell`].
    pub currency: String,
}

/// The cache.
pub struct AgentPools {
    azure: Arc<dyn spotpool_azure::AgentPools>,
    operations: Arc<dyn spotpool_azure::Operations>,
    nodes: Nodes,
    trigger: Trigger,
    metrics: Metrics,
    clock: Clock,
    state: Mutex<State>,
    refresh: Notify,
}

struct State {
    entries: Option<BTreeMap<String, Entry>>,
    unreachable: Option<AzureError>,
    /// How long a list stays good while nothing happens.
    idle: Duration,
    /// Lists are not asked for before: Azure's limit on requests is near, or reached.
    quiet_until: Option<Instant>,
    /// Since when an operation runs that we cannot follow, or machines and Nodes do not match.
    unsettled_since: Option<Instant>,
    /// Nodes that were odd at the last list.
    odd_nodes: BTreeSet<String>,
    /// Beginnings and ends of writes so far.
    turn: u64,
    /// Agent pools that SpotPools name: only their machines are read.
    wanted: BTreeSet<String>,
    /// Those whose write budget has been restored, if one was known.
    restored: BTreeSet<String>,
    /// When those were asked for that were not there, until they are listed.
    made: BTreeMap<String, Instant>,
}

impl State {
    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.as_mut()?.get_mut(name)
    }
}
impl AgentPools {
    /// An empty cache. [`Self::keep_fresh`] fills it.
    pub fn new(
        azure: Arc<dyn spotpool_azure::AgentPools>,
        operations: Arc<dyn spotpool_azure::Operations>,
        nodes: Nodes,
        trigger: Trigger,
        metrics: Metrics,
        clock: Clock,
    ) -> Self {
        let state = Mutex::new(State {
            entries: None,
            unreachable: None,
            idle: IDLE,
            quiet_until: None,
            unsettled_since: None,
            odd_nodes: BTreeSet::new(),
            turn: 0,
            wanted: BTreeSet::new(),
            restored: BTreeSet::new(),
            made: BTreeMap::new(),
        });
        Self { azure, operations, nodes, trigger, metrics, clock, state, refresh: Notify::new() }
    }

    /// The time that everything here goes by.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now, for the agent pools that `wanted` names.
    pub fn view<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> View {
        let mut state = self.state();
        let before = state.wanted.len();
        state.wanted.extend(wanted.map(str::to_owned));
        let is_news = state.unsettled_since.is_none() && !self.odd_nodes(&state).is_subset(&state.odd_nodes);
        if is_news {
            state.unsettled_since = Some(Instant::now());
        }
        if is_news || state.wanted.len() != before {
            self.refresh.notify_one();
        }
        let pools = state
            .entries
            .as_ref()
            .map(|entries| entries.iter().map(|(name, entry)| (name.clone(), self.known(entry))).collect());
        View {
            pools,
            unreachable: state.unreachable.clone(),
            has_auto_provisioning: false,
            words: Words::new(),
            currency: String::new(),
        }
    }

    /// Takes up what `status` says was left of writes before a restart.
    pub fn restore_write_budgets(&self, status: &SpotPoolStatus) {
        for agent_pool in &status.agent_pools {
            if !self.state().restored.insert(agent_pool.name.clone()) {
                continue;
            }
            if let Some(budget) = &agent_pool.write_budget {
                let budget = WriteBudget { left: budget.left.max(0) as u32, at: budget.at.0 };
                self.azure.restore_write_budget(&agent_pool.name, budget);
            }
        }
    }

    /// The agent pools that SpotPools name, as Azure last answered.
    pub fn named(&self) -> Vec<AgentPool> {
        let state = self.state();
        let named = state.entries.iter().flatten().filter(|(name, _)| state.wanted.contains(*name));
        named.map(|(_, entry)| entry.pool.clone()).collect()
    }

    /// Agent pools that take no write now, as far as is known.
    pub fn occupied(&self) -> BTreeSet<String> {
        let state = self.state();
        let all = state.entries.iter().flatten();
        all.filter(|(_, entry)| self.known(entry).busy).map(|(name, _)| name.clone()).collect()
    }

    fn known(&self, entry: &Entry) -> Known {
        let pool = entry.pool.clone();
        let role = match (pool.mode, pool.priority) {
            // Single VMs that are autoscaled have a range for each size, and none as a whole.
            _ if pool.autoscaled && pool.max_count.is_none() => Err(Reason::AgentPoolUnsuitable),
            _ if pool.autoscaled && pool.kind != AgentPoolKind::VirtualMachineScaleSets => {
                Err(Reason::AgentPoolUnsuitable)
            }
            (AgentPoolMode::System | AgentPoolMode::Gateway, _) => Err(Reason::AgentPoolUnsuitable),
            (AgentPoolMode::User, _) if pool.stopped => Err(Reason::AgentPoolStopped),
            (AgentPoolMode::User, Priority::Spot) => Ok(Role::Spot),
            (AgentPoolMode::User, Priority::Regular) => Ok(Role::OnDemand),
        };
        let machines = self.existing(entry).cloned().collect();
        let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
        let is_others_operation = pool.busy() && entry.written == Written::Read;
        let busy = pool.busy() || entry.written != Written::Read || entry.machines.is_none();
        let (failure, count_stale_since) = (entry.failure.clone(), entry.count_stale_since);
        let write_budget = entry.write_budget;
        Known {
            pool,
            role,
            machines,
            listed,
            joining: entry.joining.iter().map(|(name, it)| (name.clone(), it.since(self.now()))).collect(),
            count_stale_since,
            busy,
            is_others_operation,
            unanswered: entry.unanswered(),
            failure,
            vanished: entry.vanished.clone(),
            write_budget,
            market: Facts::default(),
        }
    }

    /// Listed machines that are not known to be gone.
    fn existing<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a String> {
        let listed =
            entry.machines.iter().flat_map(|listed| listed.names.iter().map(|name| (name, listed.at)));
        listed.filter(|(name, at)| !self.nodes.is_gone(name, *at)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests;
