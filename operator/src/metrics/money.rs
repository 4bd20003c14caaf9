//! Metrics of money. As numbers they are only told: what is decided, is decided on decimals.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use spotpool_azure::Decimal;
use spotpool_core::cost::Amounts;
use spotpool_core::spend;
use spotpool_core::{Plan, Snapshot};
use spotpool_crds::spot_pool::ByWorkload;
use spotpool_runtime::catalogue::Catalogue;

use super::PoolName;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    namespace: String,
    pool: String,
    agent_pool: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetFor {
    namespace: String,
    pool: String,
    period: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct UsedBy {
    namespace: String,
    pool: String,
    kind: &'static str,
    workload: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct BilledTo {
    namespace: String,
    pool: String,
    workload: String,
}

/// What money is spent on.
const KINDS: [&str; 3] = ["spot", "on_demand", "fallback"];
const PERIODS: [&str; 2] = ["hour", "month"];
/// Agent pools that are not named any more, as no agent pool can be called.
const OTHERS: &str = "(other)";

const KIND: &str = "`spot`, `on_demand` (the base), `fallback`";
const PERIOD: &str = "`hour`, `month`";

type Amount<L> = Family<L, Gauge<f64, AtomicU64>>;

#[derive(Clone, Default)]
pub(super) struct MoneyMetrics {
    hourly_cost: Amount<Of>,
    on_demand_equivalent: Amount<PoolName>,
    planned: Amount<PoolName>,
    month_spend: Amount<Of>,
    budget: Amount<BudgetFor>,
    budget_left: Amount<BudgetFor>,
    prices_read: Amount<PoolName>,
    workloads: Amount<UsedBy>,
    workload_month: Amount<BilledTo>,
    /// Agent pools of which there are costs, so that those of one that is not named any more go.
    costed: Arc<Mutex<BTreeMap<PoolName, BTreeSet<String>>>>,
    /// Workloads of which there are costs, for the same reason.
    shared: Arc<Mutex<BTreeMap<PoolName, BTreeSet<UsedBy>>>>,
    /// Workloads that have cost something in the month.
    billed: Arc<Mutex<BTreeMap<PoolName, BTreeSet<BilledTo>>>>,
}

impl MoneyMetrics {
    pub fn register(&self, catalogue: &mut Catalogue) {
        catalogue
            .family("hourly_cost", "What the machines of an agent pool cost")
            .unit("currency an hour")
            .of_pool()
            .label("agent_pool")
            .label_of("kind", KIND)
            .note("By list prices, of machines that exist: [what that is](../concepts/money.md)")
            .serves("a M10, b M6")
            .metric(self.hourly_cost.clone());
        catalogue
            .family("on_demand_equivalent_hourly_cost", "What the same machines would cost on demand")
            .unit("currency an hour")
            .of_pool()
            .note("Absent where that is not known of each size")
            .serves("b M6")
            .metric(self.on_demand_equivalent.clone());
        catalogue
            .family("planned_hourly_cost", "What the wanted capacity would cost, were all of it where the spec wants it")
            .unit("currency an hour")
            .of_pool()
            .note("Absent where that does not hold it, or a price is not known: [what that is](../concepts/money.md)")
            .serves("a M10")
            .metric(self.planned.clone());
        catalogue
            .family("month_spend", "What has been spent in this month by UTC")
            .unit("currency")
            .of_pool()
            .label("agent_pool")
            .label_of("kind", KIND)
            .note(
                "Written every 10 minutes or sooner; begins anew with each month. `agent_pool` `(other)` is all that are \
                 not named any more",
            )
            .metric(self.month_spend.clone());
        catalogue
            .family("budget", "What fallback may cost")
            .unit("currency")
            .of_pool()
            .label_of("period", PERIOD)
            .note("Only where there is a budget")
            .metric(self.budget.clone());
        catalogue
            .family("budget_left", "What is left of what fallback may cost")
            .unit("currency")
            .of_pool()
            .label_of("period", PERIOD)
            .note("Only where there is a budget")
            .metric(self.budget_left.clone());
        catalogue
            .family("prices_read_timestamp_seconds", "When the oldest price that counts was read")
            .unit("Unix time")
            .of_pool()
            .metric(self.prices_read.clone());
        catalogue
            .family("workload_hourly_cost", "What workloads cost by what their pods request")
            .unit("currency an hour")
            .of_pool()
            .label_of("kind", KIND)
            .label("workload")
            .note(
                "Only with `--cost-label`: `workload` is a value of that label, at most 50 for each SpotPool, or `(none)`, \
                 `(idle)`, `(other)` ([how](../how-to/cost-allocation.md#by-workload)). As of the last survey of pods",
            )
            .metric(self.workloads.clone());
        catalogue
            .family("workload_month_spend", "What workloads have cost in this month by UTC")
            .unit("currency")
            .of_pool()
            .label("workload")
            .note(
                "Only with `--cost-label`: at most 20 values of that label for each SpotPool, and `(none)`, `(idle)`, `(other)`, \
                 `(unknown)` ([how](../how-to/cost-allocation.md#the-month)). As old as `month_spend`, and adds up to it",
            )
            .metric(self.workload_month.clone());
    }

    pub fn tell(&self, name: &PoolName, snapshot: &Snapshot, plan: &Plan) {
        let costs = &plan.money.costs;
        let agent_pools = snapshot.agent_pools.iter().map(|view| view.name.clone()).collect();
        let before = self.costed().insert(name.clone(), agent_pools);
        for (view, amounts) in snapshot.agent_pools.iter().zip(&costs.pools) {
            for kind in KINDS {
                let amount = float(of_kind(amounts, kind));
                self.hourly_cost.get_or_create(&of(name, &view.name, kind)).set(amount);
            }
        }
        let is_named = |agent_pool: &String| snapshot.agent_pools.iter().any(|view| view.name == *agent_pool);
        self.forget_costs(name, before.into_iter().flatten().filter(|agent_pool| !is_named(agent_pool)));
        set(&self.on_demand_equivalent, name, costs.equivalent.map(float));
        set(&self.planned, name, plan.money.planned.map(float));
        let read_at = plan.money.prices_read_at.map(|at| at.as_second() as f64);
        set(&self.prices_read, name, read_at);
        let spent = plan.memory.ledger.as_ref().map(|ledger| &ledger.page.spent);
        let tell_spent = |agent_pool: &str, spent: Option<Amounts>| {
            for kind in KINDS {
                // Below nothing while a clock is wrong.
                let amount = spent.map(|spent| float(of_kind(&spent, kind).max(Decimal::ZERO)));
                set(&self.month_spend, &of(name, agent_pool, kind), amount);
            }
        };
        for view in &snapshot.agent_pools {
            tell_spent(&view.name, spent.map(|spent| spent.of(&view.name)));
        }
        let others = spent.map(|spent| spent.of(spend::OTHERS));
        tell_spent(OTHERS, others.filter(|others| !others.total().is_zero()));
        let budgets = [plan.money.hourly_budget, plan.money.monthly_budget];
        for (period, budget) in PERIODS.into_iter().zip(budgets) {
            let labels = budget_for(name, period);
            set(&self.budget, &labels, budget.map(|(budget, _)| float(budget)));
            set(&self.budget_left, &labels, budget.map(|(_, left)| float(left)));
        }
    }

    pub fn tell_workloads(&self, name: &PoolName, costs: &BTreeMap<Arc<str>, Amounts>) {
        // Held, so that nothing is told of a SpotPool that is forgotten meanwhile.
        let costed = self.costed();
        if !costed.contains_key(name) {
            return;
        }
        let mut told = BTreeSet::new();
        for (workload, amounts) in costs {
            for kind in KINDS {
                let amount = of_kind(amounts, kind);
                if !amount.is_zero() {
                    let PoolName { namespace, pool } = name.clone();
                    let labels = UsedBy { namespace, pool, kind, workload: workload.clone() };
                    self.workloads.get_or_create(&labels).set(float(amount));
                    told.insert(labels);
                }
            }
        }
        let before = self.shared().insert(name.clone(), told.clone());
        for labels in before.iter().flatten().filter(|labels| !told.contains(labels)) {
            self.workloads.remove(labels);
        }
    }

    pub fn tell_month(&self, name: &PoolName, told: Option<&ByWorkload>) {
        let mut now = BTreeSet::new();
        for spend in told.iter().flat_map(|told| &told.this_month.spent) {
            let PoolName { namespace, pool } = name.clone();
            let labels = BilledTo { namespace, pool, workload: spend.workload.clone() };
            self.workload_month.get_or_create(&labels).set(spend.amount.parse().unwrap_or(f64::NAN));
            now.insert(labels);
        }
        let mut billed = self.billed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = billed.remove(name).unwrap_or_default();
        for labels in before.difference(&now) {
            self.workload_month.remove(labels);
        }
        if !now.is_empty() {
            billed.insert(name.clone(), now);
        }
    }

    fn shared(&self) -> MutexGuard<'_, BTreeMap<PoolName, BTreeSet<UsedBy>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn costed(&self) -> MutexGuard<'_, BTreeMap<PoolName, BTreeSet<String>>> {
        self.costed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_costs(&self, name: &PoolName, agent_pools: impl Iterator<Item = String>) {
        for agent_pool in agent_pools {
            for kind in KINDS {
                self.hourly_cost.remove(&of(name, &agent_pool, kind));
                self.month_spend.remove(&of(name, &agent_pool, kind));
            }
        }
    }

    pub fn forget(&self, name: &PoolName) {
        let agent_pools = self.costed().remove(name);
        for labels in self.shared().remove(name).iter().flatten() {
            self.workloads.remove(labels);
        }
        self.tell_month(name, None);
        let others = [OTHERS.to_owned()];
        self.forget_costs(name, agent_pools.into_iter().flatten().chain(others));
        self.on_demand_equivalent.remove(name);
        self.planned.remove(name);
        self.prices_read.remove(name);
        for period in PERIODS {
            let labels = budget_for(name, period);
            self.budget.remove(&labels);
            self.budget_left.remove(&labels);
        }
    }
}

fn of(name: &PoolName, agent_pool: &str, kind: &'static str) -> Of {
    let PoolName { namespace, pool } = name.clone();
    Of { namespace, pool, agent_pool: agent_pool.to_owned(), kind }
}

fn budget_for(name: &PoolName, period: &'static str) -> BudgetFor {
    let PoolName { namespace, pool } = name.clone();
    BudgetFor { namespace, pool, period }
}

fn of_kind(amounts: &Amounts, kind: &str) -> Decimal {
    match kind {
        "spot" => amounts.spot,
        "fallback" => amounts.fallback,
        _ => amounts.base,
    }
}

fn float(amount: Decimal) -> f64 {
    amount.to_string().parse().unwrap_or(f64::NAN)
}

/// Sets the value, or takes the series away where there is none.
fn set<L>(family: &Amount<L>, labels: &L, value: Option<f64>)
where
    L: Clone + Hash + Eq,
{
    match value {
        Some(value) => drop(family.get_or_create(labels).set(value)),
        None => drop(family.remove(labels)),
    }
}
