//! Pods, disruption budgets and namespaces of the whole cluster, as far as plans look at them: the floor of on-demand that
//! budgets need, budgets that hold their pods, and whether what runs on a node would find room elsewhere.
//!
//! Little is kept of each object, and what many share is kept once: a hundred thousand pods must fit in little memory. A
//! survey of all this is made when something has changed, at most once in [`EVERY`], and never while a plan waits for
//! it, but for the first.

mod agents;
mod costs;
mod drilled;
mod read;
mod shared;
mod survey;
mod usage;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use spotpool_azure::Clock;
use spotpool_crds::SpotPool;

use self::agents::Agents;
pub use self::agents::AgentsTold;
use self::costs::{Bill, Meter};
use self::read::{Budget, Running, Stays};
use self::shared::{Labels, Shared};
pub use self::survey::{BLOCKED_AFTER, Scope, ScopePool, Survey};
pub use self::usage::label_key;
use self::wire::{WireBudget, WireNamespace, WirePod};
use crate::metrics::Metrics;
use crate::pool::gather::Gathered;
use crate::watches::{Nodes, Trigger, backoff};

/// How often what has changed is looked at.
pub const EVERY: Duration = Duration::from_secs(3);
/// Nodes change, too: what has not changed otherwise is looked at after this long.
const ANYWAY: SignedDuration = SignedDuration::from_secs(30);
/// A SpotPool for which no plan was made for so long is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(20);
/// How long a node may be without a ready agent where the operator is not told: rollouts and restarts take that long.
const AGENT_GRACE: SignedDuration = SignedDuration::from_mins(2);
/// Pods in a page of a list: all at once would be hundreds of megabytes of text.
const PAGE: u32 = 500;
/// Pods that have ended are none of our business; to the watch they are gone.
const NOT_ENDED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// By namespace and name.
type Key = (Arc<str>, Box<str>);

/// Who makes a pod anew, by namespace, and kind and name.
pub type Owner = (Arc<str>, Arc<str>);

/// All that is known.
#[derive(Default)]
pub struct Known {
    shared: Shared,
    pods: Listed<u128, Running>,
    agents: Agents,
    budgets: Listed<Key, KnownBudget>,
    namespaces: Listed<Box<str>, Arc<Labels>>,
    /// Since when budgets were blocked when status was last written, until they have been read.
    remembered: HashMap<Key, Timestamp>,
    /// Counts changes.
    version: u64,
}

/// Objects of one kind.
struct Listed<K, V> {
    known: HashMap<K, V>,
    /// The list that is being read.
    incoming: Option<HashMap<K, V>>,
    complete: bool,
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new(), incoming: None, complete: false }
    }
}

impl<K: Eq + Hash, V: PartialEq> Listed<K, V> {
    fn begin(&mut self) {
        self.incoming = Some(HashMap::new());
    }

    fn list(&mut self, key: K, value: V) {
        self.incoming.get_or_insert_default().insert(key, value);
    }

    fn end(&mut self) {
        self.known = self.incoming.take().unwrap_or_default();
        self.complete = true;
    }

    /// Says whether that is new.
    fn put(&mut self, key: K, value: V) -> bool {
        if self.known.get(&key) == Some(&value) {
            return false;
        }
        self.known.insert(key, value);
        true
    }
}

#[derive(PartialEq, Eq)]
struct KnownBudget {
    read: Budget,
    blocked_since: Option<Timestamp>,
}

impl Known {
    fn complete(&self) -> bool {
        self.pods.complete && self.budgets.complete && self.namespaces.complete
    }

    fn pod(&mut self, event: watcher::Event<WirePod>, now: Timestamp) {
        let changed = match event {
            watcher::Event::Init => {
                self.pods.begin();
                self.agents.begin();
                false
            }
            watcher::Event::InitApply(pod) => {
                if let Some(running) = pod.read(&mut self.shared) {
                    self.pods.list(pod.key(), running);
                }
                if let Some(agent) = pod.agent(&mut self.shared) {
                    self.agents.list(pod.key(), agent);
                }
                false
            }
            watcher::Event::InitDone => {
                self.pods.end();
                self.agents.end(now);
                true
            }
            watcher::Event::Apply(pod) => {
                let of_agent = match pod.agent(&mut self.shared) {
                    Some(agent) => self.agents.put(pod.key(), agent, now),
                    None => self.agents.remove(pod.key(), now),
                };
                let running = pod.read(&mut self.shared);
                running.is_some_and(|running| self.pods.put(pod.key(), running)) || of_agent
            }
            watcher::Event::Delete(pod) => {
                let of_agent = self.agents.remove(pod.key(), now);
                self.pods.known.remove(&pod.key()).is_some() || of_agent
            }
        };
        self.version += u64::from(changed);
    }

    fn budget(&mut self, event: watcher::Event<WireBudget>, now: Timestamp) {
        let changed = match event {
            watcher::Event::Init => {
                self.budgets.begin();
                false
            }
            watcher::Event::InitApply(budget) => {
                if let Some(key) = self.key(&budget) {
                    let budget = self.known_budget(&key, budget.read(), now);
                    self.budgets.list(key, budget);
                }
                false
            }
            watcher::Event::InitDone => {
                self.budgets.end();
                self.remembered.clear();
                true
            }
            watcher::Event::Apply(budget) => match self.key(&budget) {
                Some(key) => {
                    let budget = self.known_budget(&key, budget.read(), now);
                    self.budgets.put(key, budget)
                }
                None => false,
            },
            watcher::Event::Delete(budget) => {
                self.key(&budget).is_some_and(|key| self.budgets.known.remove(&key).is_some())
            }
        };
        self.version += u64::from(changed);
    }

    fn namespace(&mut self, event: watcher::Event<WireNamespace>) {
        let changed = match event {
            watcher::Event::Init => {
                self.namespaces.begin();
                false
            }
            watcher::Event::InitApply(namespace) => {
                let labels = namespace.read(&mut self.shared);
                self.namespaces.list(namespace.name_any().into(), labels);
                false
            }
            watcher::Event::InitDone => {
                self.namespaces.end();
                true
            }
            watcher::Event::Apply(namespace) => {
                let labels = namespace.read(&mut self.shared);
                self.namespaces.put(namespace.name_any().into(), labels)
            }
            watcher::Event::Delete(namespace) => {
                self.namespaces.known.remove(namespace.name_any().as_str()).is_some()
            }
        };
        self.version += u64::from(changed);
    }

    fn key(&mut self, budget: &WireBudget) -> Option<Key> {
        let meta = budget.meta();
        Some((self.shared.text(meta.namespace.as_ref()?), meta.name.as_deref()?.into()))
    }

    fn known_budget(&self, key: &Key, read: Budget, now: Timestamp) -> KnownBudget {
        let blocked_since = read.blocked.then(|| {
            let before = self.budgets.known.get(key).and_then(|before| before.blocked_since);
            before.or_else(|| self.remembered.get(key).copied()).unwrap_or(now)
        });
        KnownBudget { read, blocked_since }
    }

    /// Whether a budget has been blocked for long enough since `made`, or a node without an agent for `agent_grace`.
    fn ripens(&self, agent_grace: SignedDuration, made: Timestamp, now: Timestamp) -> bool {
        let since = self.budgets.known.values().filter_map(|budget| budget.blocked_since);
        since.filter_map(|since| since.saturating_add(BLOCKED_AFTER).ok()).any(|at| made < at && at <= now)
            || self.agents.ripens(agent_grace, made, now)
    }
}

struct Surveyed {
    scope: Scope,
    survey: Arc<Survey>,
    /// When it was made, and of what.
    made: (Timestamp, u64),
    /// When it was last asked for.
    asked: Instant,
    /// Whose nodes cost what, once that is known.
    bill: Option<Bill>,
    /// What workloads have come to.
    meter: Meter,
}

/// The workloads of the cluster. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Workloads {
    known: Arc<Mutex<Known>>,
    surveys: Arc<Mutex<BTreeMap<String, Surveyed>>>,
    nodes: Nodes,
    metrics: Metrics,
    options: Options,
    clock: Clock,
}

/// What the operator is told of workloads.
#[derive(Clone, Debug)]
pub struct Options {
    /// The label by whose values costs are told, if any.
    pub cost_label: Option<Arc<str>>,
    /// How long a node may be without a ready agent before that is told.
    pub agent_grace: SignedDuration,
}

impl Workloads {
    /// Starts the watches. The future must be polled for as long as workloads are asked for.
    pub fn watch(
        client: Client,
        nodes: Nodes,
        metrics: Metrics,
        options: Options,
        clock: Clock,
    ) -> (Self, impl Future<Output = Infallible> + Send) {
        let workloads = Self { options, clock, ..Self::unread(nodes, metrics) };
        let config = watcher::Config::default().page_size(PAGE);
        let watches = {
            let pods = watcher(Api::<WirePod>::all(client.clone()), config.clone().fields(NOT_ENDED));
            let budgets = watcher(Api::<WireBudget>::all(client.clone()), config.clone());
            let namespaces = watcher(Api::<WireNamespace>::all(client), config);
            let workloads = workloads.clone();
            async move { Box::pin(workloads.follow(pods, budgets, namespaces)).await }
        };
        (workloads, watches)
    }

    /// Knows nothing yet.
    pub fn unread(nodes: Nodes, metrics: Metrics) -> Self {
        let options = Options { cost_label: None, agent_grace: AGENT_GRACE };
        let clock = Arc::new(Timestamp::now);
        Self { known: Arc::default(), surveys: Arc::default(), nodes, metrics, options, clock }
    }

    /// Takes events in, for ever.
    async fn follow<P, B, N>(&self, pods: P, budgets: B, namespaces: N) -> Infallible
    where
        P: Stream<Item = watcher::Result<watcher::Event<WirePod>>> + Send,
        B: Stream<Item = watcher::Result<watcher::Event<WireBudget>>> + Send,
        N: Stream<Item = watcher::Result<watcher::Event<WireNamespace>>> + Send,
    {
        let pods = each(pods, "Pods", |event| self.known().pod(event, (self.clock)()));
        let budgets = each(budgets, "PodDisruptionBudgets", |event| {
            self.known().budget(event, (self.clock)());
        });
        let namespaces = each(namespaces, "Namespaces", |event| self.known().namespace(event));
        let (never, _, _) = futures::join!(pods, budgets, namespaces);
        never
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn surveys(&self) -> MutexGuard<'_, BTreeMap<String, Surveyed>> {
        self.surveys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what workloads mean for a SpotPool to what was gathered for it.
    pub fn tell(&self, pool: &SpotPool, gathered: &mut Gathered) {
        let scope = scope(pool, gathered);
        let uid = pool.uid().unwrap_or_default();
        let mut surveys = self.surveys();
        let survey = match surveys.get_mut(&uid) {
            Some(surveyed) if surveyed.scope == scope => {
                surveyed.asked = Instant::now();
                surveyed.survey.clone()
            }
            mut known => {
                let meter = known.as_mut().map(|known| std::mem::take(&mut known.meter)).unwrap_or_default();
                if known.is_none() {
                    self.remember(pool);
                }
                let (survey, made) = self.survey(&scope);
                let survey = Arc::new(survey);
                let asked = Instant::now();
                let surveyed = Surveyed { scope, survey: survey.clone(), made, asked, bill: None, meter };
                surveys.insert(uid, surveyed);
                survey
            }
        };
        drop(surveys);
        gathered.snapshot.floor.clone_from(&survey.floor);
        gathered.snapshot.room = Some(survey.room.clone());
        gathered.survey = survey;
    }

    /// Who owns the pods on these nodes that come back elsewhere, and how many pods each has.
    pub fn owners_on(&self, nodes: &BTreeSet<&str>) -> BTreeMap<Owner, usize> {
        let is_there = |pod: &&Running| pod.node.as_deref().is_some_and(|node| nodes.contains(node));
        let moves = |pod: &&Running| {
            let owner = &*pod.pod.owner;
            !owner.is_empty() && !owner.starts_with("DaemonSet/") && !owner.starts_with("Node/")
        };
        let known = self.known();
        let pods = known.pods.known.values().filter(is_there).filter(moves);
        let mut owners: BTreeMap<Owner, usize> = pods.map(|it| (owner(it), 0)).collect();
        if owners.is_empty() {
            return owners;
        }
        // Those that end still run; what comes in their place does not yet.
        for pod in known.pods.known.values().filter(|pod| pod.runs) {
            if let Some(count) = owners.get_mut(&owner(pod)) {
                *count += 1;
            }
        }
        owners
    }

    /// How many pods owners lack that run, of those that each had.
    pub fn lacking(&self, owners: &BTreeMap<Owner, usize>) -> usize {
        let mut lacking = owners.clone();
        for pod in self.known().pods.known.values().filter(|it| it.runs && it.stays == Stays::No) {
            if let Some(count) = lacking.get_mut(&owner(pod)) {
                *count = count.saturating_sub(1);
            }
        }
        lacking.values().sum()
    }

    /// How many pods of these owners do not run, or are still on these nodes: while one ends, its successor may not be there.
    pub fn waiting(&self, owners: &BTreeMap<Owner, usize>, nodes: &BTreeSet<&str>) -> usize {
        let is_left = |pod: &Running| pod.node.as_deref().is_some_and(|node| nodes.contains(node));
        let waits = |pod: &&Running| match pod.stays {
            Stays::No => !pod.runs || is_left(pod),
            Stays::Ending => is_left(pod),
            Stays::WithNode => false,
        };
        let is_owned = |it: &&Running| owners.contains_key(&owner(it));
        self.known().pods.known.values().filter(waits).filter(is_owned).count()
    }

    /// Budgets that status says are blocked have been so since then, whoever has seen it.
    fn remember(&self, pool: &SpotPool) {
        let status = pool.status.iter().flat_map(|status| &status.blocked_budgets);
        let mut known = self.known();
        let unread = !known.budgets.complete;
        for blocked in status {
            let key = (Arc::from(blocked.namespace.as_str()), Box::from(blocked.name.as_str()));
            match known.budgets.known.get_mut(&key) {
                Some(budget) => {
                    budget.blocked_since = budget.blocked_since.map(|since| since.min(blocked.since.0));
                }
                None if unread => {
                    known.remembered.insert(key, blocked.since.0);
                }
                None => {}
            }
        }
    }

    fn survey(&self, scope: &Scope) -> (Survey, (Timestamp, u64)) {
        let (nodes, now) = (self.nodes.all(), (self.clock)());
        let known = self.known();
        let started = Instant::now();
        let mut survey = survey::survey(&known, &nodes, scope, now);
        survey.agents = known.agents.told(&nodes, scope, self.options.agent_grace, now);
        let usage = |key: &Arc<str>| usage::usage(&known, &nodes, scope, key);
        survey.usage = self.options.cost_label.as_ref().and_then(usage);
        self.metrics.surveyed(started.elapsed().as_secs_f64());
        (survey, (now, known.version))
    }

    /// Surveys anew what has changed, for ever. News wakes the plans.
    pub async fn keep_surveyed(&self, trigger: &Trigger) {
        let mut pause = tokio::time::interval(EVERY);
        pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sweep = Instant::now();
        loop {
            pause.tick().await;
            let workloads = self.clone();
            // With many pods it takes tens of milliseconds, which no notice shall wait for.
            let news = tokio::task::spawn_blocking(move || workloads.survey_again());
            if news.await.unwrap_or_default() {
                trigger.fire();
            }
            if sweep.elapsed() > FORGOTTEN_AFTER {
                sweep = Instant::now();
                let mut known = self.known();
                known.shared.sweep();
                known.agents.sweep(&self.nodes.all());
            }
        }
    }

    /// Whether any survey has come out differently.
    fn survey_again(&self) -> bool {
        let now = (self.clock)();
        let due: Vec<(String, Scope)> = {
            let mut surveys = self.surveys();
            surveys.retain(|_, surveyed| surveyed.asked.elapsed() < FORGOTTEN_AFTER);
            let (known, grace) = (self.known(), self.options.agent_grace);
            let is_due = |surveyed: &Surveyed| {
                let (made, version) = surveyed.made;
                version != known.version
                    || now.duration_since(made) > ANYWAY
                    || known.ripens(grace, made, now)
            };
            let due = surveys.iter().filter(|(_, surveyed)| is_due(surveyed));
            due.map(|(uid, surveyed)| (uid.clone(), surveyed.scope.clone())).collect()
        };
        let mut news = false;
        for (uid, scope) in due {
            let (survey, made) = self.survey(&scope);
            let mut surveys = self.surveys();
            let Some(surveyed) = surveys.get_mut(&uid).filter(|it| it.scope == scope) else { continue };
            news |= survey.differs(&surveyed.survey);
            (surveyed.survey, surveyed.made) = (Arc::new(survey), made);
            self.tell_costs(surveyed);
        }
        news
    }
}

fn owner(pod: &Running) -> Owner {
    (pod.pod.namespace.clone(), pod.pod.owner.clone())
}

/// What of a SpotPool a survey depends on.
fn scope(pool: &SpotPool, gathered: &Gathered) -> Scope {
    let of_pool = |view: &spotpool_core::AgentPoolView| {
        let azure = gathered.azure.get(&view.name).map(|known| &known.pool);
        ScopePool {
            name: view.name.clone(),
            role: view.role.ok(),
            vm_size: view.vm_size.clone(),
            units: view.units,
            labels: azure.map(|pool| pool.labels.clone()).unwrap_or_default(),
            taints: azure.map(|pool| pool.taints.clone()).unwrap_or_default(),
        }
    };
    let agent_pools = gathered.snapshot.agent_pools.iter().filter(|view| view.role.is_ok());
    Scope { agent_pools: agent_pools.map(of_pool).collect(), floor: pool.spec.on_demand.pdb_floor.clone() }
}

/// Gives each event to `apply`, for ever.
async fn each<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
    what: &'static str,
    mut apply: impl FnMut(watcher::Event<K>),
) -> Infallible
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(events.backoff(backoff()));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => apply(event),
            Err(error) => tracing::warn!(%error, "the watch of {what} is broken; trying again"),
        }
    }
    // A watch has no end; should one come to have it, what is known stays.
    std::future::pending().await
}

#[cfg(test)]
mod tests;
