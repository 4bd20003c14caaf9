//! Metrics of objectives. They go on from status after a restart.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use spotpool_core::objective::{Told, WINDOW_NAMES};

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

#[derive(Clone)]
pub(super) struct ObjectiveMetrics {
    burn_rate: Family<PoolWindow, Gauge<f64, AtomicU64>>,
    budget_left: PerPool<Gauge<f64, AtomicU64>>,
    caution: PerPool<Gauge>,
    wanted: PerPool<Counter>,
    ready: PerPool<Counter>,
    outage: PerPool<Counter>,
    time_to_replace: Family<PoolName, Histogram, fn() -> Histogram>,
    drains: Family<Drain, Counter>,
}

impl Default for ObjectiveMetrics {
    fn default() -> Self {
        Self {
            burn_rate: Family::default(),
            budget_left: Family::default(),
            caution: Family::default(),
            wanted: Family::default(),
            ready: Family::default(),
            outage: Family::default(),
            time_to_replace: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(1.0, 2.0, 13))
            }),
            drains: Family::default(),
        }
    }
}

impl ObjectiveMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "objective_burn_rate",
            "How many times as fast as the objective allows units are missing, by window",
            self.burn_rate.clone(),
        );
        registry.register(
            "objective_budget_left_ratio",
            "Share of the error budget that is left; negative once more was missed",
            self.budget_left.clone(),
        );
        registry.register("objective_caution_steps", "Steps of caution, 0 to 5", self.caution.clone());
        registry.register(
            "objective_wanted_unit_seconds",
            "Unit-seconds that counted as wanted",
            self.wanted.clone(),
        );
        registry.register(
            "objective_ready_unit_seconds",
            "Of the wanted unit-seconds, those that were ready",
            self.ready.clone(),
        );
        registry.register(
            "objective_outage_unit_seconds",
            "Unit-seconds that were missing while Azure could not give them; not among the wanted ones",
            self.outage.clone(),
        );
        registry.register_with_unit(
            "time_to_replace",
            "From when units were missing until as many were ready again",
            Unit::Seconds,
            self.time_to_replace.clone(),
        );
        registry.register(
            "notice_drains",
            "Drains of nodes whose VM is taken, by how they ended",
            self.drains.clone(),
        );
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
        if let Some(after) = told.replaced_after {
            self.time_to_replace.get_or_create(name).observe(after.as_secs_f64());
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
        self.time_to_replace.remove(name);
    }
}

fn of(name: &PoolName, window: &'static str) -> PoolWindow {
    PoolWindow { namespace: name.namespace.clone(), pool: name.pool.clone(), window }
}

fn ended(name: &PoolName, result: &'static str) -> Drain {
    Drain { namespace: name.namespace.clone(), pool: name.pool.clone(), result }
}
