//! The defaults of SpotPool against the policies of others; `docs/design/policy.md` says where they stand. With more seeds:
//! `SPOTPOOL_LAB_SEEDS=200 cargo test --release -p spotpool-lab --test defaults -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{drawn, here};
use spotpool_lab::measure::Measured;
use spotpool_lab::optimum::least_cost;
use spotpool_lab::scenario::{Scenario, Sources};
use spotpool_lab::study::{dominates, play_baselines};

const SEEDS: u64 = 8;
const DAYS: i64 = 7;

fn traces() -> Vec<Scenario> {
    let (manifest, cloud) = (here("examples/p3.yaml"), here("examples/p3-cloud.yaml"));
    ["p3-trace.csv", "g4dn-trace.csv", "gcloud/v100x1-east1c.txt", "gcloud/a100x1-east1b.txt"]
        .into_iter()
        .map(|name| {
            let path = here("traces/bamboo").join(name);
            let sources = Sources {
                manifest: Some(&manifest),
                cloud: Some(&cloud),
                traces: vec![(Some("spot".into()), &path)],
                ..Sources::default()
            };
            Scenario::read(&sources, 10, 1).unwrap()
        })
        .collect()
}

fn scenarios() -> Vec<Scenario> {
    let seeds = std::env::var("SPOTPOOL_LAB_SEEDS").map_or(SEEDS, |text| text.parse().expect("a number"));
    traces().into_iter().chain((1..=seeds).map(|seed| drawn(seed, DAYS))).collect()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Whoever installs SpotPool as it is must not be worse off than with what others would do, in money and in capacity at once.
#[test]
fn no_policy_of_others_is_both_cheaper_and_more_available_than_the_defaults() {
    let scenarios = scenarios();
    let played = play_baselines(&scenarios).unwrap();
    let mut dominated = Vec::new();
    for (scenario, of) in scenarios.iter().zip(&played) {
        let (ours, others) = of.split_first().unwrap();
        dominated.extend(
            others
                .iter()
                .filter(|it| dominates(it, ours))
                .map(|it| format!("{} by {}", scenario.name, it.policy)),
        );
    }
    tell(&scenarios, &played);
    assert!(dominated.is_empty(), "{dominated:?}");
}

/// What `docs/design/policy.md` says, with `--nocapture`.
fn tell(scenarios: &[Scenario], played: &[Vec<Measured>]) {
    println!("policy, then medians over {} courses: cost / ours, ready - ours in points", scenarios.len());
    for (at, policy) in played[0].iter().enumerate() {
        let cost = median(played.iter().map(|of| of[at].cost / of[0].cost).collect());
        let ready =
            median(played.iter().map(|of| 100.0 * (of[at].availability - of[0].availability)).collect());
        println!("{:28} {cost:.3} {ready:+.3}", policy.policy);
    }
    let gap = scenarios.iter().zip(played).map(|(scenario, of)| of[0].cost / least_cost(scenario) - 1.0);
    println!("above the least cost of full capacity, median: {:.1} %", 100.0 * median(gap.collect()));
}
