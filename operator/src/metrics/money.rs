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
use spotpool_core::{Plan, Snapshot};
use spotpool_runtime::catalogue::Catalogue;

use super::PoolName;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CostOf {
    namespace: String,
    pool: String,
    agent_pool: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpentOn {
    namespace: String,
    pool: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetFor {
    namespace: String,
    pool: String,
    period: &'static str,
}

/// What money is spent on.
const KINDS: [&str; 3] = ["spot", "on_demand", "fallback"];
const PERIODS: [&str; 2] = ["hour", "month"];

const KIND: &str = "`spot`, `on_demand` (the base), `fallback`";
const PERIOD: &str = "`hour`, `month`";

type Amount<L> = Family<L, Gauge<f64, AtomicU64>>;

#[derive(Clone, Default)]
pub(super) struct MoneyMetrics {
    hourly_cost: Amount<CostOf>,
    on_demand_equivalent: Amount<PoolName>,
    month_spend: Amount<SpentOn>,
    budget: Amount<BudgetFor>,
    budget_left: Amount<BudgetFor>,
    prices_read: Amount<PoolName>,
    /// Agent pools of which there are costs, so that those of one that is not named any more go.
    costed: Arc<Mutex<BTreeMap<PoolName, BTreeSet<String>>>>,
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
            .family("month_spend", "What has been spent in this month by UTC")
            .unit("currency")
            .of_pool()
            .label_of("kind", KIND)
            .note("Written every 10 minutes or sooner; begins anew with each month")
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
    }

    pub fn tell(&self, name: &PoolName, snapshot: &Snapshot, plan: &Plan) {
        let costs = &plan.money.costs;
        let agent_pools = snapshot.agent_pools.iter().map(|view| view.name.clone()).collect();
        let before = self.costed().insert(name.clone(), agent_pools);
        for (view, amounts) in snapshot.agent_pools.iter().zip(&costs.pools) {
            for (kind, amount) in of_kinds(amounts) {
                self.hourly_cost.get_or_create(&cost_of(name, &view.name, kind)).set(float(amount));
            }
        }
        let is_named = |agent_pool: &String| snapshot.agent_pools.iter().any(|view| view.name == *agent_pool);
        self.forget_costs(name, before.into_iter().flatten().filter(|agent_pool| !is_named(agent_pool)));
        set(&self.on_demand_equivalent, name, costs.equivalent.map(float));
        let read_at = plan.money.prices_read_at.map(|at| at.as_second() as f64);
        set(&self.prices_read, name, read_at);
        let spent = plan.memory.ledger.as_ref().map(|ledger| ledger.page.spent);
        for kind in KINDS {
            let amount = spent.and_then(|spent| of_kinds(&spent).into_iter().find(|(of, _)| *of == kind));
            set(&self.month_spend, &spent_on(name, kind), amount.map(|(_, amount)| float(amount)));
        }
        let budgets = [plan.money.hourly_budget, plan.money.monthly_budget];
        for (period, budget) in PERIODS.into_iter().zip(budgets) {
            let labels = budget_for(name, period);
            set(&self.budget, &labels, budget.map(|(budget, _)| float(budget)));
            set(&self.budget_left, &labels, budget.map(|(_, left)| float(left)));
        }
    }

    fn costed(&self) -> MutexGuard<'_, BTreeMap<PoolName, BTreeSet<String>>> {
        self.costed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_costs(&self, name: &PoolName, agent_pools: impl Iterator<Item = String>) {
        for agent_pool in agent_pools {
            for kind in KINDS {
                self.hourly_cost.remove(&cost_of(name, &agent_pool, kind));
            }
        }
    }

    pub fn forget(&self, name: &PoolName) {
        let agent_pools = self.costed().remove(name);
        self.forget_costs(name, agent_pools.into_iter().flatten());
        self.on_demand_equivalent.remove(name);
        self.prices_read.remove(name);
        for kind in KINDS {
            self.month_spend.remove(&spent_on(name, kind));
        }
        for period in PERIODS {
            let labels = budget_for(name, period);
            self.budget.remove(&labels);
            self.budget_left.remove(&labels);
        }
    }
}

fn cost_of(name: &PoolName, agent_pool: &str, kind: &'static str) -> CostOf {
    let PoolName { namespace, pool } = name.clone();
    CostOf { namespace, pool, agent_pool: agent_pool.to_owned(), kind }
}

fn spent_on(name: &PoolName, kind: &'static str) -> SpentOn {
    let PoolName { namespace, pool } = name.clone();
    SpentOn { namespace, pool, kind }
}

fn budget_for(name: &PoolName, period: &'static str) -> BudgetFor {
    let PoolName { namespace, pool } = name.clone();
    BudgetFor { namespace, pool, period }
}

fn of_kinds(amounts: &Amounts) -> [(&'static str, Decimal); 3] {
    [(KINDS[0], amounts.spot), (KINDS[1], amounts.base), (KINDS[2], amounts.fallback)]
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
