//! Metrics of objectives. They go on from status after a restart.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use spotpool_core::objective::{Told, WINDOW_NAMES};
use spotpool_runtime::catalogue::Catalogue;

use super::PoolName;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolWindow {
    namespace: String,
    pool: String,
    window: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drain {
    namespace: String,
    pool: String,
    result: &'static str,
}

/// How drains of nodes under notice end.
const RESULTS: [&str; 3] = ["Drained", "Incomplete", "Gone"];

type PerPool<T> = Family<PoolName, T>;

#[derive(Clone, Default)]
pub(super) struct ObjectiveMetrics {
    burn_rate: Family<PoolWindow, Gauge<f64, AtomicU64>>,
    budget_left: PerPool<Gauge<f64, AtomicU64>>,
    caution: PerPool<Gauge>,
    wanted: PerPool<Counter>,
    ready: PerPool<Counter>,
    outage: PerPool<Counter>,
    drains: Family<Drain, Counter>,
}

impl ObjectiveMetrics {
    pub fn register(&self, catalogue: &mut Catalogue) {
        catalogue
            .family("objective_burn_rate", "How many times as fast as the objective allows units are missing")
            .of_pool()
            .label_of("window", "`5m`, `30m`, `1h`, `2h`, `6h`, `1d`, `3d`")
            .note(
                "This and all `objective_…` only where `spec.objective` is set ([objectives](../concepts/objectives.md)); \
                 as of the last plan, every 5 minutes at least",
            )
            .metric(self.burn_rate.clone());
        catalogue
            .family("objective_budget_left_ratio", "Share of the error budget that is left")
            .of_pool()
            .note("Negative once more was missed")
            .metric(self.budget_left.clone());
        catalogue
            .family("objective_caution_steps", "How cautious a SpotPool is")
            .unit("0 to 5")
            .of_pool()
            .metric(self.caution.clone());
        catalogue
            .family("objective_wanted_unit_seconds", "What counted as wanted")
            .unit("unit-seconds")
            .of_pool()
            .note("Kept in status: a restart does not begin anew")
            .serves("b M8")
            .metric(self.wanted.clone());
        catalogue
            .family("objective_ready_unit_seconds", "Of what counted as wanted, what was ready")
            .unit("unit-seconds")
            .of_pool()
            .serves("b M8")
            .metric(self.ready.clone());
        catalogue
            .family("objective_outage_unit_seconds", "What was missing while Azure could not give it")
            .unit("unit-seconds")
            .of_pool()
            .note("Not among what was wanted")
            .metric(self.outage.clone());
        catalogue
            .family("notice_drains", "Drains of nodes whose VM is taken")
            .of_pool()
            .label_of(
                "result",
                "`Drained` (in time), `Incomplete`, `Gone` (the node went before either was said)",
            )
            .note("As the operator saw them end")
            .metric(self.drains.clone());
    }

    pub fn tell(&self, name: &PoolName, told: &Told) {
        for (window, rate) in &told.burn_rates {
            self.burn_rate.get_or_create(&of(name, window)).set(*rate);
        }
        match told.budget_left {
            Some(left) => drop(self.budget_left.get_or_create(name).set(left)),
            None => drop(self.budget_left.remove(name)),
        }
        self.caution.get_or_create(name).set(i64::from(told.caution));
        let sums = told.unit_seconds;
        for (counter, sum) in [
            (&self.wanted, sums.wanted),
            (&self.ready, sums.wanted - sums.missing),
            (&self.outage, sums.outage),
        ] {
            // The sum is kept in status: it is told, not counted.
            counter.get_or_create(name).inner().store(sum.max(0).unsigned_abs(), Ordering::Relaxed);
        }
    }

    /// Counters that begin at zero can be seen to rise the first time something happens.
    pub fn begin(&self, name: &PoolName) {
        for result in RESULTS {
            drop(self.drains.get_or_create(&ended(name, result)));
        }
    }

    pub fn drained(&self, name: &PoolName, result: &'static str) {
        self.drains.get_or_create(&ended(name, result)).inc();
    }

    pub fn forget_drains(&self, name: &PoolName) {
        for result in RESULTS {
            self.drains.remove(&ended(name, result));
        }
    }

    pub fn forget(&self, name: &PoolName) {
        for window in WINDOW_NAMES {
            self.burn_rate.remove(&of(name, window));
        }
        self.budget_left.remove(name);
        self.caution.remove(name);
        for counter in [&self.wanted, &self.ready, &self.outage] {
            counter.remove(name);
        }
    }
}

fn of(name: &PoolName, window: &'static str) -> PoolWindow {
    PoolWindow { namespace: name.namespace.clone(), pool: name.pool.clone(), window }
}

fn ended(name: &PoolName, result: &'static str) -> Drain {
    Drain { namespace: name.namespace.clone(), pool: name.pool.clone(), result }
}
