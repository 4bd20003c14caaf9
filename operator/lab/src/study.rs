//! Several policies through several scenarios.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::measure::Measured;
use crate::policy::{self, Policy};
use crate::scenario::Scenario;
use crate::simulate::{Violation, simulate};

/// Plays every policy through `scenario`.
pub fn play(scenario: &Scenario, policies: Vec<Box<dyn Policy>>) -> Result<Vec<Measured>, Violation> {
    policies.into_iter().map(|mut policy| simulate(scenario, policy.as_mut())).collect()
}

/// Plays what `policies` makes for each scenario, on all cores; results are in the order of the scenarios.
pub fn play_all(
    scenarios: &[Scenario],
    policies: impl Fn(&Scenario) -> Vec<Box<dyn Policy>> + Sync,
) -> Result<Vec<Vec<Measured>>, Violation> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            threads.spawn(|| {
                while let Some((at, scenario)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    scenarios.get(at).map(|scenario| (at, scenario))
                } {
                    let played = play(scenario, policies(scenario));
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, played));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, played)| played).collect()
}

/// Plays all policies.
pub fn play_baselines(scenarios: &[Scenario]) -> Result<Vec<Vec<Measured>>, Violation> {
    play_all(scenarios, policy::all)
}

/// What each policy came to on average: the `at`-th of each scenario.
pub fn means(played: &[Vec<Measured>]) -> Vec<Measured> {
    let policies = played.first().map_or(0, Vec::len);
    (0..policies)
        .filter_map(|at| mean(&played.iter().filter_map(|of| of.get(at)).collect::<Vec<_>>()))
        .collect()
}

fn mean(of: &[&Measured]) -> Option<Measured> {
    let first = *of.first()?;
    if of.len() == 1 {
        return Some(first.clone());
    }
    let many = of.len() as f64;
    let mean = |value: fn(&Measured) -> f64| of.iter().map(|it| value(it)).sum::<f64>() / many;
    let count = |value: fn(&Measured) -> u32| {
        (of.iter().map(|it| f64::from(value(it))).sum::<f64>() / many).round() as u32
    };
    let (cost, on_demand_cost) = (mean(|it| it.cost), mean(|it| it.on_demand_cost));
    let class = |at: usize| of.iter().map(|it| it.ready_distribution[at]).sum::<f64>() / many;
    Some(Measured {
        policy: first.policy.clone(),
        cost,
        on_demand_cost,
        saving_percent: 100.0 * (1.0 - cost / on_demand_cost.max(f64::MIN_POSITIVE)),
        availability: mean(|it| it.availability),
        whole: mean(|it| it.whole),
        ready_distribution: std::array::from_fn(class),
        shortfall_unit_minutes: mean(|it| it.shortfall_unit_minutes),
        on_demand_minutes: mean(|it| it.on_demand_minutes),
        spot_launches: count(|it| it.spot_launches),
        on_demand_launches: count(|it| it.on_demand_launches),
        refusals: count(|it| it.refusals),
        oscillations: count(|it| it.oscillations),
        evictions: count(|it| it.evictions),
        evictions_survived: count(|it| it.evictions_survived),
        ready_at_end: count(|it| it.ready_at_end),
        steps: (of.iter().map(|it| it.steps).sum::<u64>() as f64 / many).round() as u64,
        series: Vec::new(),
    })
}

/// What policies cost and gave over several courses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tradeoff {
    /// How many courses.
    pub courses: usize,
    /// The least that full capacity could have cost, the median, counted as the cost of policies is.
    pub least_cost: f64,
    /// The policies.
    pub policies: Vec<Quartiles>,
}

/// A policy over several courses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quartiles {
    /// Whose.
    pub policy: String,
    /// Lower quartile, median and upper quartile of the cost: of one course itself, of several as multiples of what the first policy
    /// cost in the same course.
    pub cost: [f64; 3],
    /// The same of the availability, 0 to 1.
    pub ready: [f64; 3],
}

/// How policies stand over all courses; `least_costs` are of the same courses.
pub fn tradeoff(played: &[Vec<Measured>], least_costs: &[f64]) -> Tradeoff {
    let unit = |of: &[Measured]| {
        let first = of.first().map_or(1.0, |first| first.cost);
        if played.len() > 1 && first > 0.0 { first } else { 1.0 }
    };
    let least = played.iter().zip(least_costs).map(|(of, least)| least / unit(of));
    let policies = (0..played.first().map_or(0, Vec::len)).map(|at| Quartiles {
        policy: played[0][at].policy.clone(),
        cost: quartiles(played.iter().map(|of| of[at].cost / unit(of))),
        ready: quartiles(played.iter().map(|of| of[at].availability)),
    });
    Tradeoff { courses: played.len(), least_cost: quartiles(least)[1], policies: policies.collect() }
}

fn quartiles(of: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut of: Vec<f64> = of.collect();
    of.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| of.get(of.len() * quarter / 4).copied().unwrap_or_default())
}

/// Of pairs of cost and availability those that no other is both cheaper and more available than: indices, cheapest first.
pub fn frontier(of: &[(f64, f64)]) -> Vec<usize> {
    let mut by_cost: Vec<usize> = (0..of.len()).collect();
    by_cost
        .sort_by(|one, other| of[*one].0.total_cmp(&of[*other].0).then(of[*other].1.total_cmp(&of[*one].1)));
    let mut best = f64::NEG_INFINITY;
    by_cost.retain(|at| {
        let is_better = of[*at].1 > best;
        best = best.max(of[*at].1);
        is_better
    });
    by_cost
}

/// Whether `other` is cheaper and more available than `ours`, each by more than one percent.
pub fn dominates(other: &Measured, ours: &Measured) -> bool {
    other.cost < 0.99 * ours.cost && other.availability > 1.01 * ours.availability
}
