//! The operator's metrics. Labels come from enums, SpotPool names and agent pool names; and, at most so many, from the values
//! of the one label of pods that the operator is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use spotpool_azure::AzureError;
use spotpool_core::cost::Amounts;
use spotpool_core::objective::Told;
use spotpool_core::{Plan, Snapshot};
use spotpool_crds::spot_pool::ByWorkload;
use spotpool_crds::{Reason, SpotPoolStatus};
use spotpool_runtime::catalogue::Catalogue;
use spotpool_runtime::trace::{TraceLabel, TracedHistogram};

use crate::workloads::AgentsTold;

mod agent_pools;
mod conditions;
mod money;
mod objective;

use agent_pools::AgentPoolMetrics;
use conditions::ConditionMetrics;
use money::MoneyMetrics;
use objective::ObjectiveMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolNodes {
    namespace: String,
    pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct PoolName {
    namespace: String,
    pool: String,
}

impl PoolName {
    fn of(namespace: &str, pool: &str) -> Self {
        Self { namespace: namespace.to_owned(), pool: pool.to_owned() }
    }
}

/// The operator's metrics begin so.
pub const PREFIX: &str = "spotpool_operator";

/// What they are, without values.
pub fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::new(PREFIX);
    Metrics::register(&mut catalogue);
    catalogue
}

/// All of them. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Metrics {
    azure_requests: Family<Request, Counter>,
    actions: Family<Action, Counter>,
    reconciles: Family<Reconcile, Counter>,
    backup_drains: Family<Reconcile, Counter>,
    drills: Family<Reconcile, Counter>,
    pool_nodes: Family<PoolNodes, Gauge>,
    agent_pools: AgentPoolMetrics,
    time_to_replace: Family<PoolName, TracedHistogram, fn() -> TracedHistogram>,
    floor_units: Family<PoolNodes, Gauge>,
    floor_hourly_cost: Family<PoolName, Gauge<f64, AtomicU64>>,
    blocked_budgets: Family<PoolName, Gauge>,
    nodes_without_agent: Family<PoolName, Gauge>,
    conditions: ConditionMetrics,
    leader: Gauge,
    objective: ObjectiveMetrics,
    money: MoneyMetrics,
    notice_to_request: TracedHistogram,
    plan: Histogram,
    survey: Histogram,
}

impl Metrics {
    /// Describes and registers them.
    pub fn register(catalogue: &mut Catalogue) -> Self {
        let metrics = Self {
            azure_requests: Family::default(),
            actions: Family::default(),
            reconciles: Family::default(),
            backup_drains: Family::default(),
            drills: Family::default(),
            pool_nodes: Family::default(),
            agent_pools: AgentPoolMetrics::default(),
            time_to_replace: Family::new_with_constructor(|| {
                TracedHistogram::new(exponential_buckets(1.0, 2.0, 13))
            }),
            floor_units: Family::default(),
            floor_hourly_cost: Family::default(),
            blocked_budgets: Family::default(),
            nodes_without_agent: Family::default(),
            conditions: ConditionMetrics::default(),
            leader: Gauge::default(),
            objective: ObjectiveMetrics::default(),
            money: MoneyMetrics::default(),
            notice_to_request: TracedHistogram::new(exponential_buckets(0.01, 2.0, 12)),
            plan: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
            survey: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
        };
        metrics.describe(catalogue);
        metrics.begin();
        metrics
    }

    fn describe(&self, catalogue: &mut Catalogue) {
        catalogue
            .family("azure_requests", "Requests to Azure")
            .label_of(
                "operation",
                "`list`, `machines`, `instances`, `operation`, `scale`, `setMinimum`, `correctCount`, `deleteMachines`, \
                 `start`, `create`, `simulateEviction`",
            )
            .label_of(
                "result",
                "`Accepted`, or the class of the error: `Conflict`, `Transient`, `Throttled`, `Invalid`, `Denied`, \
                 `Capacity`",
            )
            .serves("a M9")
            .metric(self.azure_requests.clone());
        catalogue
            .family("actions", "Actions that were carried out")
            .label_of("reason", "a reason as in the SpotPool's plan, such as ReplaceEvicted or Failback")
            .serves("b M7")
            .metric(self.actions.clone());
        catalogue
            .family(
                "backup_drains",
                "Notices that the operator claimed in an agent's stead, and how they ended",
            )
            .label_of("result", "`Claimed`, `Drained`, `Incomplete`, `Cancelled`, `Over`")
            .note("What an agent took over ends in none")
            .metric(self.backup_drains.clone());
        catalogue
            .family("reconciles", "Reconciliations")
            .label_of(
                "result",
                "`Success`, or the class of the error: `Conflict`, `Transient`, `Throttled`, `Invalid`, `Denied`",
            )
            .metric(self.reconciles.clone());
        catalogue
            .family("pool_nodes", "Capacity of a SpotPool, as in its status")
            .unit("units; for `fallback` nodes")
            .of_pool()
            .label_of(
                "state",
                "`wanted`, `ready_spot`, `ready_on_demand`, `on_the_way`, `evicting`, `fallback`",
            )
            .serves("a M6, b M8")
            .metric(self.pool_nodes.clone());
        self.agent_pools.register(catalogue);
        catalogue
            .family("time_to_replace", "From when less was ready than once was until as much was ready again")
            .seconds()
            .of_pool()
            .note("Spot or on-demand. A shortage that began before the operator led is left out. 1 to 4096 s")
            .serves("a M3, b M2, b M9")
            .metric(self.time_to_replace.clone());
        catalogue
            .family("floor_units", "On-demand for disruption budgets: what they need, and what is kept")
            .unit("units")
            .of_pool()
            .label_of("state", "`needed`, `kept`")
            .note("Only where `onDemand.pdbFloor` is enabled")
            .metric(self.floor_units.clone());
        catalogue
            .family("floor_hourly_cost", "What is kept on demand for disruption budgets alone costs")
            .unit("currency an hour")
            .of_pool()
            .note("Beyond baseline and kept nodes, by the list price of the cheapest on-demand agent pool")
            .metric(self.floor_hourly_cost.clone());
        catalogue
            .family("blocked_budgets", "Disruption budgets in status that let no pod go")
            .of_pool()
            .note("At most 20")
            .metric(self.blocked_budgets.clone());
        catalogue
            .family("nodes_without_agent", "Nodes that have had no ready agent for longer than `--agent-grace`")
            .unit("nodes")
            .of_pool()
            .note("Ready Linux nodes that are not under notice. Absent until the operator has watched for so long")
            .metric(self.nodes_without_agent.clone());
        self.conditions.register(catalogue);
        catalogue
            .family("leader", "Whether this replica leads")
            .unit("0 or 1")
            .note("One that loses its lease ends, and begins again with 0")
            .metric(self.leader.clone());
        self.objective.register(catalogue);
        self.money.register(catalogue);
        catalogue
            .family(
                "notice_to_request",
                "From an agent's notice to Azure's acceptance of replacement or fallback",
            )
            .seconds()
            .note("From the newest notice on the SpotPool's nodes, by the agent's clock. 0.01 to 20.48 s")
            .metric(self.notice_to_request.clone());
        catalogue
            .family("plan", "Time to make one plan")
            .seconds()
            .note("0.0001 to 1.6 s")
            .metric(self.plan.clone());
        catalogue
            .family("drills", "Eviction drills that are over")
            .label_of("result", "`Succeeded`, `Failed`, `Aborted`, `Refused`, `Planned`")
            .metric(self.drills.clone());
        catalogue
            .family("survey", "Time to look through pods and disruption budgets for one SpotPool")
            .seconds()
            .note("0.0001 to 1.6 s")
            .metric(self.survey.clone());
    }

    /// Counters that begin at zero can be seen to rise the first time something happens.
    fn begin(&self) {
        for result in ["Success", "Conflict", "Transient", "Throttled", "Invalid", "Denied"] {
            drop(self.reconciles.get_or_create(&Reconcile { result }));
        }
        drop(self.backup_drains.get_or_create(&Reconcile { result: "Claimed" }));
        for result in ["Succeeded", "Failed", "Aborted", "Refused", "Planned"] {
            drop(self.drills.get_or_create(&Reconcile { result }));
        }
    }

    /// This replica leads from now on, until it ends.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// A drill that is over.
    pub fn drill(&self, result: &'static str) {
        self.drills.get_or_create(&Reconcile { result }).inc();
    }

    /// A write to Azure.
    pub fn azure_write<T>(&self, operation: &'static str, outcome: &Result<T, AzureError>) {
        self.azure_read(operation, outcome);
    }

    /// A read of Azure.
    pub fn azure_read<T>(&self, operation: &'static str, outcome: &Result<T, AzureError>) {
        let result = outcome.as_ref().err().map_or("Accepted", |error| error.class.into());
        self.azure_requests.get_or_create(&Request { operation, result }).inc();
    }

    /// An action that was carried out.
    pub fn action(&self, reason: Reason) {
        self.actions.get_or_create(&Action { reason: reason.into() }).inc();
    }

    /// A drain in an agent's stead has begun or ended so.
    pub fn backup_drain(&self, result: &'static str) {
        self.backup_drains.get_or_create(&Reconcile { result }).inc();
    }

    /// VMs of an agent pool went without a notice.
    pub fn lost_without_notice(&self, namespace: &str, pool: &str, agent_pool: &str, count: u32) {
        self.agent_pools.without_notice(&PoolName::of(namespace, pool), agent_pool, count);
    }

    /// Azure announced to take a node of an agent pool.
    pub fn noticed(&self, namespace: &str, pool: &str, agent_pool: &str) {
        self.agent_pools.noticed(&PoolName::of(namespace, pool), agent_pool);
    }

    /// An action was sent to Azure, whatever the answer.
    pub fn asked(&self, namespace: &str, pool: &str, action: &spotpool_core::Action) {
        self.agent_pools.asked(&PoolName::of(namespace, pool), action);
    }

    /// As much is ready again as once was, after so long.
    pub fn replaced(&self, namespace: &str, pool: &str, after: Duration, trace: Option<TraceLabel>) {
        let times = self.time_to_replace.get_or_create(&PoolName::of(namespace, pool));
        times.observe(after.as_secs_f64(), trace, None);
    }

    /// A node is ready that was asked for so long ago.
    pub fn allocated(&self, namespace: &str, pool: &str, agent_pool: &str, after: Duration) {
        self.agent_pools.allocated(&PoolName::of(namespace, pool), agent_pool, after);
    }

    /// Agent pools as the new status has them, and errors that the old one did not have.
    pub fn agent_pools(&self, namespace: &str, pool: &str, before: &SpotPoolStatus, after: &SpotPoolStatus) {
        let name = PoolName::of(namespace, pool);
        self.agent_pools.tell(&name, &after.agent_pools);
        for entry in &after.agent_pools {
            let old = before.agent_pools.iter().find(|old| old.name == entry.name);
            let old = old.and_then(|old| old.last_error.as_ref());
            if let Some(error) = entry.last_error.as_ref().filter(|error| old != Some(error)) {
                self.agent_pools.failed(&name, &entry.name, &error.class);
            }
        }
    }

    /// A reconciliation that ended.
    pub fn reconcile(&self, result: &'static str) {
        self.reconciles.get_or_create(&Reconcile { result }).inc();
    }

    /// Replacement was accepted this long after the notice.
    pub fn replacement_requested(&self, seconds: f64, trace: Option<TraceLabel>) {
        self.notice_to_request.observe(seconds, trace, None);
    }

    /// A plan took this long to make.
    pub fn planned(&self, seconds: f64) {
        self.plan.observe(seconds);
    }

    /// Pods and budgets were looked through in this long.
    pub fn surveyed(&self, seconds: f64) {
        self.survey.observe(seconds);
    }

    /// The capacity of a SpotPool.
    pub fn capacity(&self, namespace: &str, pool: &str, status: &SpotPoolStatus) {
        // There from the start: a first observation in a series that was not there is no rise.
        let name = PoolName::of(namespace, pool);
        drop(self.time_to_replace.get_or_create(&name));
        self.objective.begin(&name);
        let capacity = &status.capacity;
        for (state, nodes) in [
            ("wanted", capacity.wanted),
            ("ready_spot", capacity.ready_spot),
            ("ready_on_demand", capacity.ready_on_demand),
            ("on_the_way", capacity.on_the_way),
            ("evicting", capacity.evicting),
            ("fallback", status.fallback.nodes),
        ] {
            let labels = PoolNodes { namespace: namespace.into(), pool: pool.into(), state };
            self.pool_nodes.get_or_create(&labels).set(i64::from(nodes));
        }
    }

    /// The conditions of a SpotPool.
    pub fn conditions(&self, namespace: &str, pool: &str, status: &SpotPoolStatus) {
        self.conditions.tell(&PoolName::of(namespace, pool), status);
    }

    /// What disruption budgets mean for a SpotPool. `cost` is what the floor costs an hour beyond what is always there.
    pub fn budgets(&self, namespace: &str, pool: &str, status: &SpotPoolStatus, cost: Option<f64>) {
        let name = PoolName::of(namespace, pool);
        self.blocked_budgets.get_or_create(&name).set(status.blocked_budgets.len() as i64);
        let labels = |state| PoolNodes { namespace: namespace.into(), pool: pool.into(), state };
        let Some(floor) = &status.floor else {
            self.forget_floor(&name);
            return;
        };
        self.floor_units.get_or_create(&labels("kept")).set(i64::from(floor.units));
        match floor.needed {
            Some(needed) => drop(self.floor_units.get_or_create(&labels("needed")).set(i64::from(needed))),
            None => drop(self.floor_units.remove(&labels("needed"))),
        }
        match cost {
            Some(cost) => drop(self.floor_hourly_cost.get_or_create(&name).set(cost)),
            None => drop(self.floor_hourly_cost.remove(&name)),
        }
    }

    /// How agents look after a SpotPool's nodes, as far as that is known.
    pub fn agents(&self, namespace: &str, pool: &str, told: Option<&AgentsTold>) {
        if let Some(told) = told {
            self.nodes_without_agent.get_or_create(&PoolName::of(namespace, pool)).set(told.without.into());
        }
    }

    /// What a SpotPool's objective came to, if it has one.
    pub fn objective(&self, namespace: &str, pool: &str, told: Option<&Told>) {
        let name = PoolName::of(namespace, pool);
        match told {
            Some(told) => self.objective.tell(&name, told),
            None => self.objective.forget(&name),
        }
    }

    /// The drain of a node of the SpotPool under notice has ended so.
    pub fn notice_drain(&self, namespace: &str, pool: &str, result: &'static str) {
        let name = PoolName::of(namespace, pool);
        self.objective.drained(&name, result);
    }

    /// What a SpotPool costs. What it costs an hour is as of `now`; what is spent in the month is as of the ledger's last
    /// write, as in status, so at most ten minutes old while anything costs.
    pub fn money(&self, namespace: &str, pool: &str, snapshot: &Snapshot, plan: &Plan) {
        let name = PoolName::of(namespace, pool);
        self.money.tell(&name, snapshot, plan);
    }

    /// What the workloads of a SpotPool cost an hour. Nothing of one that is gone.
    pub fn workload_costs(&self, namespace: &str, pool: &str, costs: &BTreeMap<Arc<str>, Amounts>) {
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
        self.money.tell_workloads(&name, costs);
    }

    /// What the workloads of a SpotPool have cost in the month.
    pub fn workload_month(&self, namespace: &str, pool: &str, told: Option<&ByWorkload>) {
        self.money.tell_month(&PoolName::of(namespace, pool), told);
    }

    fn forget_floor(&self, name: &PoolName) {
        for state in ["needed", "kept"] {
            let (namespace, pool) = (name.namespace.clone(), name.pool.clone());
            self.floor_units.remove(&PoolNodes { namespace, pool, state });
        }
        self.floor_hourly_cost.remove(name);
    }

    /// The SpotPool is gone.
    pub fn forget(&self, namespace: &str, pool: &str) {
        for state in ["wanted", "ready_spot", "ready_on_demand", "on_the_way", "evicting", "fallback"] {
            self.pool_nodes.remove(&PoolNodes { namespace: namespace.into(), pool: pool.into(), state });
        }
        let name = PoolName::of(namespace, pool);
        self.blocked_budgets.remove(&name);
        self.nodes_without_agent.remove(&name);
        self.conditions.forget(&name);
        self.objective.forget(&name);
        self.objective.forget_drains(&name);
        self.forget_floor(&name);
        self.agent_pools.forget(&name);
        self.time_to_replace.remove(&name);
        self.money.forget(&name);
    }
}
