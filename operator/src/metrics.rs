//! The operator's metrics. Labels come from enums, SpotPool names and agent pool names only.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use spotpool_azure::AzureError;
use spotpool_core::objective::Told;
use spotpool_core::{Plan, Snapshot};
use spotpool_crds::{Reason, SpotPoolStatus};

mod money;
mod objective;

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
struct AgentPoolOf {
    agent_pool: String,
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

/// All of them. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Metrics {
    azure_requests: Family<Request, Counter>,
    actions: Family<Action, Counter>,
    reconciles: Family<Reconcile, Counter>,
    backup_drains: Family<Reconcile, Counter>,
    without_notice: Family<AgentPoolOf, Counter>,
    pool_nodes: Family<PoolNodes, Gauge>,
    floor_units: Family<PoolNodes, Gauge>,
    floor_hourly_cost: Family<PoolName, Gauge<f64, AtomicU64>>,
    blocked_budgets: Family<PoolName, Gauge>,
    objective: ObjectiveMetrics,
    money: MoneyMetrics,
    notice_to_request: Histogram,
    plan: Histogram,
    survey: Histogram,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            azure_requests: Family::default(),
            actions: Family::default(),
            reconciles: Family::default(),
            backup_drains: Family::default(),
            without_notice: Family::default(),
            pool_nodes: Family::default(),
            floor_units: Family::default(),
            floor_hourly_cost: Family::default(),
            blocked_budgets: Family::default(),
            objective: ObjectiveMetrics::default(),
            money: MoneyMetrics::default(),
            notice_to_request: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            plan: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
            survey: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
        };
        let registry = registry.sub_registry_with_prefix("spotpool_operator");
        registry.register("azure_requests", "Requests to Azure by result", metrics.azure_requests.clone());
        registry.register("actions", "Actions carried out by reason", metrics.actions.clone());
        registry.register(
            "backup_drains",
            "Notices that the operator claimed in an agent's stead, and how they ended",
            metrics.backup_drains.clone(),
        );
        registry.register("reconciles", "Reconciliations by result", metrics.reconciles.clone());
        registry.register(
            "evictions_without_notice",
            "Nodes whose VM went without a notice, by agent pool",
            metrics.without_notice.clone(),
        );
        registry.register(
            "pool_nodes",
            "Capacity of a SpotPool by state, in units; fallback in nodes",
            metrics.pool_nodes.clone(),
        );
        registry.register(
            "floor_units",
            "On-demand for disruption budgets: what they need, and what is kept",
            metrics.floor_units.clone(),
        );
        registry.register(
            "floor_hourly_cost",
            "What is kept on demand for disruption budgets alone costs an hour, by list prices",
            metrics.floor_hourly_cost.clone(),
        );
        registry.register(
            "blocked_budgets",
            "Disruption budgets in status that let no pod go",
            metrics.blocked_budgets.clone(),
        );
        metrics.objective.register(registry);
        metrics.money.register(registry);
        registry.register_with_unit(
            "notice_to_request",
            "From an agent's notice to Azure's acceptance of replacement capacity",
            Unit::Seconds,
            metrics.notice_to_request.clone(),
        );
        registry.register_with_unit("plan", "Time to make one plan", Unit::Seconds, metrics.plan.clone());
        registry.register_with_unit(
            "survey",
            "Time to look through pods and disruption budgets for one SpotPool",
            Unit::Seconds,
            metrics.survey.clone(),
        );
        metrics
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
    pub fn lost_without_notice(&self, agent_pool: &str, count: u32) {
        let labels = AgentPoolOf { agent_pool: agent_pool.to_owned() };
        self.without_notice.get_or_create(&labels).inc_by(count.into());
    }

    /// A reconciliation that ended.
    pub fn reconcile(&self, result: &'static str) {
        self.reconciles.get_or_create(&Reconcile { result }).inc();
    }

    /// Replacement was accepted this long after the notice.
    pub fn replacement_requested(&self, seconds: f64) {
        self.notice_to_request.observe(seconds);
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

    /// What disruption budgets mean for a SpotPool. `cost` is what the floor costs an hour beyond what is always there.
    pub fn budgets(&self, namespace: &str, pool: &str, status: &SpotPoolStatus, cost: Option<f64>) {
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
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

    /// What a SpotPool's objective came to, if it has one.
    pub fn objective(&self, namespace: &str, pool: &str, told: Option<&Told>) {
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
        match told {
            Some(told) => self.objective.tell(&name, told),
            None => self.objective.forget(&name),
        }
    }

    /// The drain of a node of the SpotPool under notice has ended so.
    pub fn notice_drain(&self, namespace: &str, pool: &str, result: &'static str) {
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
        self.objective.drained(&name, result);
    }

    /// What a SpotPool costs. What it costs an hour is as of `now`; what is spent in the month is as of the ledger's last
    /// write, as in status, so at most ten minutes old while anything costs.
    pub fn money(&self, namespace: &str, pool: &str, snapshot: &Snapshot, plan: &Plan) {
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
        self.money.tell(&name, snapshot, plan);
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
        let name = PoolName { namespace: namespace.into(), pool: pool.into() };
        self.blocked_budgets.remove(&name);
        self.objective.forget(&name);
        self.objective.forget_drains(&name);
        self.forget_floor(&name);
        self.money.forget(&name);
    }
}
