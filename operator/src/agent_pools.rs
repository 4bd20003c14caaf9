//! What Azure last said of each agent pool, kept fresh, and the only way in which one is written.
//!
//! Plans are made from this cache, so that a notice costs no read before the write it calls for; `If-Match`
//! tells when the cache was wrong.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_azure::{
    Accepted, AgentPool, AgentPoolKind, AgentPoolMode, AzureError, Class, Clock, CreateAgentPool, Created,
    Machine, OperationOutcome, OperationUrl, Priority, Urgency, WriteBudget,
};
use spotpool_crds::spot_pool::Role;
use spotpool_crds::{Reason, SpotPoolStatus, names};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::market::Facts;
use crate::metrics::Metrics;
use crate::vms::Words;
use crate::watches::{Nodes, Trigger, agent_pool_of, is_ready};

/// How often agent pools are listed while nothing happens: 40 reads an hour out of a bucket that all
/// clusters of the subscription share.
const IDLE: Duration = Duration::from_secs(90);
/// … while an operation runs whose URL we do not have, or something does not fit together.
const UNSETTLED: Duration = Duration::from_secs(5);
/// … at most, after Azure has refused reads: the bucket is not ours alone.
const LONGEST_IDLE: Duration = Duration::from_mins(15);
/// At least so long from the end of one list to the next.
const BETWEEN_LISTS: Duration = Duration::from_secs(1);
/// An agent pool that was asked for is looked for so long; one that is refused later may never be listed.
const APPEARS_WITHIN: Duration = Duration::from_mins(10);
/// How often machines are listed while they and their Nodes do not match.
const RELIST: Duration = Duration::from_secs(30);
/// Machines of several agent pools that are listed within that time are taken in together: a plan that knows half of
/// them spreads over that half. What takes longer, as pages do that wait for their turn, keeps nobody waiting.
const TOGETHER: Duration = Duration::from_secs(10);
/// A write that needs a list waits that long for it, and goes elsewhere then.
const LONGEST_CONFIRMATION: Duration = Duration::from_secs(10);
/// Losses are in status long before this.
const TOLD_FOR: SignedDuration = SignedDuration::from_mins(30);
/// What was read for a write is believed for so long.
const STILL_TRUE: SignedDuration = SignedDuration::from_secs(10);
/// A clock that differs by more from what has passed was set.
const CLOCK_SLIPS: SignedDuration = SignedDuration::from_mins(1);
/// As of other answers that make no sense.
const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// Our code for an agent pool that is not any more as it was planned with.
const CHANGED: &str = "Changed";
/// How often an operation's own URL is asked: what fails mostly fails early, what succeeds takes minutes, and
/// this bucket is shared, too.
const OPERATION: Duration = Duration::from_secs(2);
const LONGEST_OPERATION: Duration = Duration::from_secs(15);

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

#[derive(Clone)]
struct Entry {
    pool: AgentPool,
    /// `None` until they have been listed since the last change.
    machines: Option<Listed>,
    /// Whether they are being listed.
    listing: bool,
    /// When they were last asked for.
    tried: Option<Instant>,
    written: Written,
    /// At which of all beginnings and ends of writes it was written last.
    turn: u64,
    failure: Option<(AzureError, Timestamp)>,
    joining: BTreeMap<String, Joining>,
    count_stale_since: Option<Timestamp>,
    /// When machines of it went that nobody had announced.
    vanished: Vec<Timestamp>,
    /// What was left of its writes after our last one.
    write_budget: Option<WriteBudget>,
}

impl Entry {
    /// Whether Azure counts machines that it does not list, and does nothing about it.
    fn is_count_stale(&self) -> bool {
        let settled = self.written == Written::Read && !self.pool.busy();
        let listed = self.machines.as_ref().map(|listed| listed.names.len());
        // A count is lowered only with If-Match.
        settled
            && self.pool.etag.is_some()
            && listed.is_some_and(|listed| (self.pool.count as usize) > listed)
    }
}

/// When a machine was first listed without a Node.
#[derive(Clone, Copy)]
struct Joining {
    seen: Timestamp,
    at: Instant,
}

impl Joining {
    /// By the clock as it is now: one that was set meanwhile would make a machine that boots an old one, or an old one young.
    fn since(&self, now: Timestamp) -> Timestamp {
        let lasted = SignedDuration::try_from(self.at.elapsed()).unwrap_or(SignedDuration::MAX);
        let was_set = (now.duration_since(self.seen) - lasted).abs() > CLOCK_SLIPS;
        if was_set { now.saturating_sub(lasted).unwrap_or(Timestamp::MIN) } else { self.seen }
    }
}

/// Machines as Azure listed them.
#[derive(Clone)]
struct Listed {
    names: Vec<String>,
    at: Instant,
}

/// Machines that were asked for.
struct Answer {
    agent_pool: String,
    at: Instant,
    /// How many beginnings and ends of writes there were before.
    turn: u64,
    machines: Result<Vec<Machine>, AzureError>,
}

/// Lists of machines that are under way.
type Lists<'a> = FuturesUnordered<BoxFuture<'a, Answer>>;

/// How our last write stands.
#[derive(Clone, PartialEq, Eq)]
enum Written {
    /// What is here was read after it.
    Read,
    /// Only a list that is asked for from now on can tell.
    Unknown,
    /// Azure said where to ask.
    Running(Followed),
}

/// An operation that runs.
#[derive(Clone, PartialEq, Eq)]
struct Followed {
    url: OperationUrl,
    since: Instant,
    /// When to ask how it stands.
    ask_at: Instant,
}

impl Followed {
    fn new(url: OperationUrl, ask_in: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { url, since, ask_at: since + ask_in.unwrap_or(OPERATION) }
    }

    /// It still runs; Azure may have said when to ask again.
    fn ask_again(mut self, ask_in: Option<Duration>) -> Self {
        let ask_in = ask_in.unwrap_or((self.since.elapsed() / 10).clamp(OPERATION, LONGEST_OPERATION));
        self.ask_at = Instant::now() + ask_in.min(LONGEST_IDLE);
        self
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

    /// Asks for `count` machines, reckoned from `planned`: of an autoscaled agent pool as the least that it keeps.
    pub async fn scale(
        &self,
        name: &str,
        planned: &Known,
        count: u32,
        urgency: Urgency,
    ) -> Result<(), AzureError> {
        let pool = self.claim_planned(name, planned)?;
        let outcome = match self.confirm(name, &pool).await {
            Ok(pool) if pool.autoscaled => self.move_minimum(&pool, count, urgency).await,
            Ok(pool) => self.azure.scale(&pool, count, urgency).await,
            Err(error) => Err(error),
        };
        self.metrics.azure_write("scale", &outcome);
        self.settle_put(name, outcome)
    }

    /// Has the cluster autoscaler keep at least `min` machines.
    pub async fn set_minimum(&self, name: &str, min: u32) -> Result<(), AzureError> {
        let pool = self.claim_write(name)?;
        let outcome = match self.confirm(name, &pool).await {
            Ok(pool) => self.move_minimum(&pool, min, Urgency::Routine).await,
            Err(error) => Err(error),
        };
        self.metrics.azure_write("setMinimum", &outcome);
        self.settle_put(name, outcome)
    }

    /// Its maximum goes back as it was read, and is never passed.
    async fn move_minimum(
        &self,
        pool: &AgentPool,
        min: u32,
        urgency: Urgency,
    ) -> Result<Accepted, AzureError> {
        let max = pool.max_count.unwrap_or(min);
        self.azure.set_autoscaler_range(pool, min.min(max), max, urgency).await
    }

    /// A count that is too high brings VMs back that nobody wants, one that is too low lets Azure choose what to
    /// delete. Where ETags do not tell, or Nodes have gone since their machines were listed, both are read again. An
    /// autoscaled agent pool changes by itself, and Azure may refuse a count that is not its own. Returns it as it is.
    async fn confirm(&self, name: &str, pool: &AgentPool) -> Result<AgentPool, AzureError> {
        let is_old = self.now().duration_since(pool.read_at) > STILL_TRUE;
        let doubtful = {
            let state = self.state();
            let entry = state.entries.as_ref().and_then(|entries| entries.get(name));
            entry.is_none_or(|entry| {
                let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
                let may_differ = pool.etag.is_none() || (pool.autoscaled && is_old);
                may_differ || self.existing(entry).count() < listed
            })
        };
        if !doubtful {
            return Ok(pool.clone());
        }
        let at = Instant::now();
        let machines = tokio::time::timeout(LONGEST_CONFIRMATION, self.azure.machines(name)).await;
        let machines =
            machines.map_err(|_| AzureError::over_budget("list of all its machines", UNSETTLED))??;
        let fresh = self.azure.get(name).await?;
        let names: Vec<String> = machines.into_iter().map(|machine| machine.name).collect();
        let mut state = self.state();
        let entry = state.entry(name);
        let (Some(fresh), Some(entry)) = (fresh, entry) else {
            return Err(conflict("AgentPoolGone", "the agent pool is gone"));
        };
        let same = |listed: &Listed| {
            listed.names.iter().collect::<BTreeSet<_>>() == names.iter().collect::<BTreeSet<_>>()
        };
        let unchanged = fresh.count == pool.count
            && fresh.provisioning_state == pool.provisioning_state
            && (fresh.autoscaled, fresh.min_count, fresh.max_count)
                == (pool.autoscaled, pool.min_count, pool.max_count)
            && entry.machines.as_ref().is_some_and(same);
        // What took long to be answered is old by the time it is.
        let age = self.now().duration_since(fresh.read_at);
        entry.machines = Some(Listed { names, at });
        entry.pool = fresh.clone();
        if unchanged && age <= STILL_TRUE { Ok(fresh) } else { Err(conflict(CHANGED, "it has changed")) }
    }

    /// Makes an agent pool that is not listed. One that is there all the same stays as it is, and a list will have it.
    pub async fn create(&self, wanted: &CreateAgentPool) -> Result<(), AzureError> {
        let outcome = self.azure.create(wanted).await;
        self.metrics.azure_write("create", &outcome);
        if let Ok(Created::AlreadyThere { differences, .. }) = &outcome
            && !differences.is_empty()
        {
            tracing::warn!(
                agent_pool = wanted.name,
                ?differences,
                "the agent pool exists, other than the spec would make it"
            );
        }
        if outcome.as_ref().err().is_none_or(AzureError::outcome_unknown) {
            self.state().made.insert(wanted.name.clone(), Instant::now());
            self.refresh.notify_one();
        }
        outcome.map(drop)
    }

    /// Deletes these machines.
    pub async fn delete_machines(&self, name: &str, machines: &[String]) -> Result<(), AzureError> {
        self.claim_write(name)?;
        let outcome = self.azure.delete_machines(name, machines).await;
        self.metrics.azure_write("deleteMachines", &outcome);
        self.settle(name, outcome)
    }

    /// Lowers the count to the `count` machines that exist, if it still is above them.
    pub async fn correct_count(&self, name: &str, count: u32) -> Result<(), AzureError> {
        self.claim_write(name)?;
        let outcome = self.lower_count(name, count).await;
        self.metrics.azure_write("correctCount", &outcome);
        self.settle_put(name, outcome)
    }

    /// As it is this very moment, and with its ETag: whatever comes in between makes Azure refuse.
    async fn lower_count(&self, name: &str, count: u32) -> Result<Accepted, AzureError> {
        match self.azure.get(name).await? {
            Some(pool) if !pool.busy() && pool.etag.is_some() && pool.count > count => {
                self.azure.correct_count(&pool, count).await
            }
            _ => Err(conflict("CountFollowed", "the count is not above the machines any more")),
        }
    }

    /// Claims a write that was reckoned from `planned`. A list may have come since: with its ETag, a count of before would pass.
    fn claim_planned(&self, name: &str, planned: &Known) -> Result<AgentPool, AzureError> {
        let is_same = self.state().entry(name).is_some_and(|entry| {
            let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
            let (now, then) = (&entry.pool, &planned.pool);
            (&now.etag, now.count, &now.provisioning_state, listed)
                == (&then.etag, then.count, &then.provisioning_state, planned.listed)
        });
        if is_same { self.claim_write(name) } else { Err(conflict(CHANGED, "it has changed")) }
    }

    /// Marks the agent pool as written *before* the request goes out: if this future is dropped half-way,
    /// nothing is planned for it until it has been read again.
    fn claim_write(&self, name: &str) -> Result<AgentPool, AzureError> {
        let mut state = self.state();
        let turn = state.next_turn();
        match state.entry(name) {
            Some(entry) if entry.written == Written::Read => {
                (entry.written, entry.turn) = (Written::Unknown, turn);
                Ok(entry.pool.clone())
            }
            _ => Err(conflict("Busy", "another write of ours is under way")),
        }
    }

    /// A PUT of an agent pool is answered with the agent pool, or with where to ask.
    fn settle_put(&self, name: &str, outcome: Result<Accepted, AzureError>) -> Result<(), AzureError> {
        let says_nothing =
            |accepted: &Accepted| accepted.operation.is_none() && accepted.agent_pool.is_none();
        let is_doubtful = outcome.as_ref().is_ok_and(says_nothing);
        self.settle(name, outcome)?;
        if is_doubtful {
            // Perhaps it was not Azure who answered: the next list tells, and nobody may count on machines before.
            let why = "the answer to a write names neither an operation nor an agent pool";
            return Err(AzureError::new(Class::Transient, NOT_UNDERSTOOD, why));
        }
        Ok(())
    }

    fn settle(&self, name: &str, outcome: Result<Accepted, AzureError>) -> Result<(), AzureError> {
        let left = self.azure.write_budget(name);
        let mut state = self.state();
        let turn = state.next_turn();
        if let Some(entry) = state.entry(name) {
            (entry.write_budget, entry.turn) = (Some(left), turn);
            match &outcome {
                Ok(accepted) => {
                    entry.written = match &accepted.operation {
                        Some(url) => Written::Running(Followed::new(url.clone(), accepted.retry_after)),
                        None => Written::Unknown,
                    };
                    if let Some(pool) = &accepted.agent_pool {
                        entry.pool = pool.clone();
                    }
                    entry.failure = None;
                }
                // Just read, and not written.
                Err(error) if error.code == CHANGED => entry.written = Written::Read,
                // Refused for certain: nothing runs. What we knew may be what made it fail.
                Err(error) if !error.outcome_unknown() && error.class != Class::Conflict => {
                    entry.written = Written::Read;
                }
                // Until a read shows how it stands. A list that came while the answer was awaited does not.
                Err(_) => entry.written = Written::Unknown,
            }
        }
        drop(state);
        self.refresh.notify_one();
        outcome.map(drop)
    }

    /// Reads whenever something should be known anew. Ends never.
    pub async fn keep_fresh(&self) {
        let mut listed = None::<Instant>;
        let mut read_again = false;
        let mut late = Lists::new();
        loop {
            let over = self.follow().await;
            let due = listed.is_none_or(|at: Instant| at.elapsed() >= self.interval());
            read_again |= due || over;
            // Several agent pools that change at once are read once.
            let earliest = listed.map_or(Instant::now(), |at| at + BETWEEN_LISTS);
            if read_again && self.quiet().is_none() && earliest <= Instant::now() {
                late.extend(self.read().await);
                listed = Some(Instant::now());
                read_again = false;
            }
            let next_list = self
                .quiet()
                .unwrap_or_else(|| if read_again { earliest } else { Instant::now() + self.interval() });
            let next = self.next_operation().map_or(next_list, |ask_at| ask_at.min(next_list));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.refresh.notified() => read_again |= self.unknown(),
                Some(answer) = late.next() => {
                    self.take_in([answer]);
                    self.trigger.fire();
                }
            };
        }
    }

    /// Until when no list is asked for.
    fn quiet(&self) -> Option<Instant> {
        self.state().quiet_until.filter(|until| *until > Instant::now())
    }

    fn next_operation(&self) -> Option<Instant> {
        self.followed().into_iter().map(|(_, followed)| followed.ask_at).min()
    }

    fn followed(&self) -> Vec<(String, Followed)> {
        let state = self.state();
        let entries = state.entries.iter().flatten();
        let running = |entry: &Entry| match &entry.written {
            Written::Running(followed) => Some(followed.clone()),
            Written::Read | Written::Unknown => None,
        };
        entries.filter_map(|(name, entry)| Some((name.clone(), running(entry)?))).collect()
    }

    /// Whether something was written and only a list can tell how it stands, or a list is missing.
    fn unknown(&self) -> bool {
        let state = self.state();
        let Some(entries) = &state.entries else { return true };
        let is_awaited =
            |(name, at): (&String, &Instant)| at.elapsed() < APPEARS_WITHIN && !entries.contains_key(name);
        if state.made.iter().any(is_awaited) {
            return true;
        }
        entries.iter().any(|(name, entry)| {
            let is_missing = entry.machines.is_none() && !entry.listing && state.wanted.contains(name);
            entry.written == Written::Unknown || is_missing
        })
    }

    /// How long a list stays good.
    fn interval(&self) -> Duration {
        if self.unknown() || self.state().unreachable.is_some() {
            return UNSETTLED;
        }
        let state = self.state();
        match state.unsettled_since {
            // A machine that never becomes a Node must not cost a list every few seconds for ever.
            Some(since) => (since.elapsed() / 5).clamp(UNSETTLED, state.idle),
            None => state.idle,
        }
    }

    fn is_unsettled(&self, state: &State, nodes: &BTreeMap<String, BTreeSet<String>>) -> bool {
        state.entries.iter().flatten().any(|(name, entry)| {
            // While an operation's own URL is asked, lists tell nothing more.
            let followed = matches!(entry.written, Written::Running(_));
            state.wanted.contains(name)
                && !followed
                && (entry.pool.busy() || (!entry.listing && self.differs(entry, nodes.get(name))))
        })
    }

    /// Nodes that Azure may have something to tell of: a machine that no list has named and nobody here has asked for,
    /// as AKS makes for an upgrade; one that is out of use, although it is not ours to go.
    fn odd_nodes(&self, state: &State) -> BTreeSet<String> {
        let mut listed = BTreeMap::new();
        for (name, entry) in state.entries.iter().flatten() {
            if let (Written::Read, Some(machines)) = (&entry.written, &entry.machines)
                && state.wanted.contains(name)
            {
                let machines: HashSet<_> = machines.names.iter().map(String::as_str).collect();
                listed.insert(name.as_str(), machines);
            }
        }
        let is_odd = |node: &Node| {
            let Some(machines) = agent_pool_of(node).and_then(|agent_pool| listed.get(agent_pool)) else {
                return false;
            };
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let goes = [names::EVICTION_ANNOTATION, names::DRAIN_REQUEST_ANNOTATION];
            let goes = goes.iter().any(|mark| node.annotations().contains_key(*mark));
            let is_closed = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
            !machines.contains(name) || (!goes && (is_closed || !is_ready(node)))
        };
        let nodes = self.nodes.all();
        nodes.iter().filter(|node| is_odd(node)).map(|node| node.name_any()).collect()
    }

    /// Whether listed machines and Nodes do not match.
    fn differs(&self, entry: &Entry, nodes: Option<&BTreeSet<String>>) -> bool {
        let listed: BTreeSet<&String> = self.existing(entry).collect();
        let nodes: BTreeSet<&String> = nodes.into_iter().flatten().collect();
        listed != nodes
    }

    /// Asks how the operations stand whose time has come. Whether any is over.
    async fn follow(&self) -> bool {
        let mut over = false;
        let now = Instant::now();
        for (name, followed) in self.followed().into_iter().filter(|(_, followed)| followed.ask_at <= now) {
            let outcome = self.operations.operation(&followed.url).await;
            self.metrics.azure_read("operation", &outcome);
            let (written, failure) = match outcome {
                Ok(OperationOutcome::Running(ask_in)) => (Written::Running(followed.ask_again(ask_in)), None),
                // A list tells the rest.
                Ok(OperationOutcome::Succeeded | OperationOutcome::Unknown) => (Written::Unknown, None),
                Ok(OperationOutcome::Failed(error)) => {
                    tracing::warn!(
                        agent_pool = name,
                        code = error.code,
                        message = error.message,
                        "Azure's operation failed"
                    );
                    (Written::Unknown, Some((error, self.now())))
                }
                // A URL that is refused is of no more use: a list will tell.
                Err(error) if matches!(error.class, Class::Invalid | Class::Denied) => {
                    tracing::warn!(agent_pool = name, %error, "cannot ask how an operation stands");
                    (Written::Unknown, None)
                }
                Err(error) => {
                    tracing::warn!(agent_pool = name, %error, "cannot ask how an operation stands; trying again");
                    (Written::Running(followed.ask_again(error.retry_after)), None)
                }
            };
            over |= written == Written::Unknown;
            if let Some(entry) = self.state().entry(&name) {
                entry.written = written;
                entry.failure = failure.or(entry.failure.take());
            }
        }
        over
    }

    /// A read failed. Nothing that is known is thrown away.
    fn not_read(&self, error: AzureError, what: &'static str) {
        let mut state = self.state();
        state.quiet_until = Some(Instant::now() + pause(&error));
        // Refused here, before the wire: Azure is reachable, we only do not ask.
        if !error.is_local() {
            tracing::warn!(%error, "{what}");
            if error.class == Class::Throttled {
                state.idle = (state.idle * 2).min(LONGEST_IDLE);
            }
            state.unreachable = Some(error);
        }
        drop(state);
        self.trigger.fire();
    }

    /// Lists agent pools, and the machines of those where they may have changed. Returns the lists that take longer.
    async fn read(&self) -> Lists<'_> {
        let turn = self.state().turn;
        let began = Instant::now();
        let listed = self.azure.list().await;
        self.metrics.azure_read("list", &listed);
        let pools = match listed {
            Ok(pools) => pools,
            Err(error) => {
                self.not_read(error, "cannot list agent pools");
                return Lists::new();
            }
        };
        let mut to_list = Vec::new();
        {
            let mut state = self.state();
            state.unreachable = None;
            state.idle = (state.idle * 3 / 4).max(IDLE);
            state.quiet_until = None;
            let mut before = state.entries.take().unwrap_or_default();
            let wanted = state.wanted.clone();
            let nodes = self.nodes.names();
            let mut entries = BTreeMap::new();
            for pool in pools {
                let name = pool.name.clone();
                let mut entry = before.remove(&name).unwrap_or_else(|| Entry {
                    pool: pool.clone(),
                    machines: None,
                    listing: false,
                    tried: None,
                    written: Written::Read,
                    turn,
                    failure: None,
                    joining: BTreeMap::new(),
                    count_stale_since: None,
                    vanished: Vec::new(),
                    write_budget: None,
                });
                // What was written before this list was asked for is in it. What was written, or answered, since may not be.
                let settled = entry.turn <= turn && entry.written == Written::Unknown;
                if settled {
                    entry.written = Written::Read;
                }
                // While our own operation runs its ETag moves along.
                let was_touched = entry.written == Written::Read && entry.pool.etag != pool.etag;
                let changed = was_touched
                    || entry.pool.count != pool.count
                    || entry.pool.provisioning_state != pool.provisioning_state;
                if entry.written == Written::Read {
                    entry.pool = pool;
                }
                let outdated = match &entry.machines {
                    None => true,
                    // Booting and dying take their time, and the watch of Nodes tells most of it.
                    Some(listed) if listed.at.elapsed() >= RELIST => {
                        let gone = self.existing(&entry).count() < listed.names.len();
                        settled || changed || gone || self.differs(&entry, nodes.get(&name))
                    }
                    Some(_) => settled || changed,
                };
                // As most fallback is most of the time: nothing is there to be listed.
                let empty = entry.pool.count == 0 && !entry.pool.busy() && !nodes.contains_key(&name);
                if outdated && empty {
                    entry.machines = Some(Listed { names: Vec::new(), at: began });
                } else if wanted.contains(&name) && outdated {
                    if !entry.listing {
                        to_list.push(name.clone());
                    }
                    // Until they are listed again nothing may be planned from the old ones. A list that only
                    // differs from the Nodes is as good as it was.
                    if settled || changed {
                        entry.machines = None;
                    }
                }
                entries.insert(name, entry);
            }
            state.made.retain(|name, at| !entries.contains_key(name) && at.elapsed() < APPEARS_WITHIN);
            state.entries = Some(entries);
        }
        // Who has waited longest goes first: where not all can be had now, none waits for ever.
        {
            let mut state = self.state();
            let entries = state.entries.get_or_insert_default();
            to_list.sort_by_key(|name| entries.get(name).and_then(|entry| entry.tried));
            for name in &to_list {
                if let Some(entry) = entries.get_mut(name) {
                    (entry.tried, entry.listing) = (Some(Instant::now()), true);
                }
            }
        }
        let mut lists: Lists<'_> = to_list.into_iter().map(|name| self.list_machines(name).boxed()).collect();
        let mut answers = Vec::new();
        let gather = async {
            while let Some(answer) = lists.next().await {
                answers.push(answer);
            }
        };
        let _late = tokio::time::timeout(TOGETHER, gather).await;
        self.take_in(answers);
        {
            let mut state = self.state();
            state.odd_nodes = self.odd_nodes(&state);
        }
        self.trigger.fire();
        lists
    }

    async fn list_machines(&self, agent_pool: String) -> Answer {
        let (at, turn) = (Instant::now(), self.state().turn);
        let machines = self.azure.machines(&agent_pool).await;
        self.metrics.azure_read("machines", &machines);
        Answer { agent_pool, at, turn, machines }
    }

    /// Takes in which machines there are, and compares all with the Nodes.
    fn take_in(&self, answers: impl IntoIterator<Item = Answer>) {
        let mut failed = Vec::new();
        let mut state = self.state();
        for Answer { agent_pool, at, turn, machines } in answers {
            let Some(entry) = state.entry(&agent_pool) else {
                continue;
            };
            entry.listing = false;
            match machines {
                // What has been written since may not be in it.
                Ok(_) if entry.turn > turn => {}
                Ok(machines) => {
                    let names = machines.into_iter().map(|machine| machine.name).collect();
                    entry.machines = Some(Listed { names, at });
                }
                Err(error) => failed.push(error),
            }
        }
        drop(state);
        for error in failed {
            self.not_read(error, "cannot list machines");
        }
        let nodes = self.nodes.names();
        let none = BTreeSet::new();
        let mut state = self.state();
        for (name, entry) in state.entries.iter_mut().flatten() {
            let its = nodes.get(name).unwrap_or(&none);
            let joining = self.existing(entry).filter(|machine| !its.contains(*machine));
            let first = || Joining { seen: self.now(), at: Instant::now() };
            let since = |machine: &String| entry.joining.get(machine).copied().unwrap_or_else(first);
            entry.joining = joining.map(|machine| (machine.clone(), since(machine))).collect();
            if let Some(listed) = &entry.machines {
                let now = self.now();
                let vanished = self.nodes.vanished(name, &listed.names, listed.at);
                entry.vanished.retain(|at| now.duration_since(*at) < TOLD_FOR);
                entry.vanished.extend(std::iter::repeat_n(now, vanished));
            }
            let since = entry.count_stale_since.unwrap_or_else(|| self.now());
            entry.count_stale_since = entry.is_count_stale().then_some(since);
        }
        let since = state.unsettled_since.unwrap_or_else(Instant::now);
        state.unsettled_since = self.is_unsettled(&state, &nodes).then_some(since);
    }
}

/// How long a list waits after one that failed.
fn pause(error: &AzureError) -> Duration {
    let pause = match error.class {
        // Nothing changes until a person has acted.
        Class::Denied | Class::Invalid => Duration::from_secs(30),
        _ => UNSETTLED,
    };
    error.retry_after.unwrap_or(pause).min(LONGEST_IDLE)
}

fn conflict(code: &str, message: &str) -> AzureError {
    AzureError::new(Class::Conflict, code, message)
}

#[cfg(test)]
mod tests;
