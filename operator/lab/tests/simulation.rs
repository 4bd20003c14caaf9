//! What the lab says of a policy is what would have happened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{drawn, example, here, small};
use proptest::prelude::*;
use spotpool_crds::spot_pool::Role;
use spotpool_lab::cloud::{Cloud, Order};
use spotpool_lab::measure::Measured;
use spotpool_lab::optimum::least_cost;
use spotpool_lab::policy::{self, Decision, Mix, Policy, SpotPool};
use spotpool_lab::scenario::{Scenario, Sources};
use spotpool_lab::simulate::simulate;
use spotpool_lab::synthetic;

fn played(scenario: &Scenario, mut policy: impl Policy) -> Measured {
    simulate(scenario, &mut policy).unwrap()
}

fn close(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-6
}

/// The sums of an hour that can be done by hand.
#[test]
fn money_and_minutes_are_those_of_the_course() {
    // Two nodes of spot are there for half of the hour; each boot takes two minutes.
    let scenario = small(2, 120, &[(0, 2), (1800, 0)], 3600);
    let on_demand = played(&scenario, Mix::on_demand_only(&scenario));
    assert!(close(on_demand.cost, 8.0) && close(on_demand.on_demand_cost, 8.0), "{on_demand:?}");
    assert!(close(on_demand.availability, 58.0 / 60.0) && close(on_demand.shortfall_unit_minutes, 4.0));
    assert!(close(on_demand.on_demand_minutes, 120.0) && on_demand.on_demand_launches == 2);

    let spot = played(&scenario, Mix::spot_only(&scenario));
    assert!(close(spot.availability, 28.0 / 60.0), "{spot:?}");
    assert_eq!((spot.evictions, spot.evictions_survived, spot.on_demand_minutes), (2, 0, 0.0));
    // Half an hour, and thirty seconds of notice at most.
    assert!((1.0..1.0 + 2.0 * 30.0 / 3600.0 + 1e-6).contains(&spot.cost), "{spot:?}");

    let ours = played(&scenario, SpotPool::new(&scenario));
    // Two boots of two minutes are missing, and what happens between two ticks is seen ten seconds later.
    assert!(close(ours.availability, 56.0 / 60.0), "{ours:?}");
    assert_eq!((ours.evictions, ours.ready_at_end, ours.on_demand_launches), (2, 2, 2));
}

/// Without it nobody could show to others what he has seen.
#[test]
fn the_same_input_and_seed_give_the_same_bytes() {
    let bytes = |seed| {
        let scenario = drawn(seed, 3);
        let all = policy::all(&scenario).into_iter().map(|mut it| simulate(&scenario, it.as_mut()).unwrap());
        serde_json::to_string(&all.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
}

struct Greedy(u32);

impl Policy for Greedy {
    fn name(&self) -> String {
        "greedy".into()
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        let orders = vec![Order::Launch { pool: 0, machines: self.0 }];
        Ok(Decision { orders, wake: Some(cloud.now + 60) })
    }
}

#[test]
fn whoever_breaks_a_promise_is_told_when() {
    let scenario = small(2, 120, &[(0, 100)], 3600);
    let violation = simulate(&scenario, &mut Greedy(6)).unwrap_err();
    // What it asks for after a minute meets an agent pool that is busy until the first machines have booted.
    assert_eq!((violation.second, violation.step), (60 * 3, 3), "{violation}");
    assert!(violation.what.contains("maxNodes of 16"), "{violation}");
}

/// The lab holds our own plan to what it promises at every step; here over what traces and seeds do to it.
#[test]
fn our_plan_keeps_its_promises() {
    for seed in 0..6 {
        let mut scenario = drawn(seed, 4);
        scenario.spec.on_demand.baseline = (seed % 3) as i32;
        scenario.spec.standby.units = (seed % 2) as i32;
        if let Some(fallback) = scenario.spec.fallback.as_mut().filter(|_| seed > 3) {
            fallback.hourly_budget = Some("2.00".into());
        }
        let measured = played(&scenario, SpotPool::new(&scenario));
        assert!(measured.evictions > 0, "{measured:?}");
    }
}

fn refused(manifest: &str) -> String {
    let folder = std::env::temp_dir().join(format!("spotpool-lab-{}-{}", std::process::id(), manifest.len()));
    std::fs::write(&folder, manifest).unwrap();
    let cloud = here("examples/cloud.yaml");
    let sources = Sources { manifest: Some(&folder), cloud: Some(&cloud), ..Sources::default() };
    let bad = Scenario::read(&sources, 10, 1).unwrap_err().to_string();
    std::fs::remove_file(&folder).unwrap();
    bad
}

#[test]
fn a_spotpool_that_the_api_server_would_refuse_is_refused() {
    let text = std::fs::read_to_string(here("examples/pool.yaml")).unwrap();
    for (from, to, what) in [
        ("replicas: 12", "replicas: -1", "set 0 to 5000"),
        ("replicas: 12", "replicsa: 12\n  replicas: 12", "spec.replicsa is no field"),
        (
            "maxNodes: 12",
            "maxNodes: 12\n    growthAfter: 1s\n    after: 2s",
            "fallback.growthAfter must be at least fallback.after",
        ),
        ("maxNodes: 12", "maxNodes: 12\n    hourlyBudget: none", "such as 6.00"),
        ("regd8,", "regd9,", "regd9 is missing"),
        ("spotd8s2,", "spotd8s1,", "there twice"),
        ("kind: SpotPool", "kind: Spotpool", "one SpotPool"),
    ] {
        let bad = refused(&text.replacen(from, to, 1));
        assert!(bad.contains(what), "{bad} does not say {what}");
    }
}

#[test]
fn what_is_wanted_may_change() {
    use spotpool_lab::course::Course;
    let mut scenario = example();
    scenario.demand = Course::of([(0, 4), (3600, 12), (7200, 2)]);
    let ours = played(&scenario, SpotPool::new(&scenario));
    assert_eq!(ours.ready_at_end, 2, "{ours:?}");
    assert!(ours.availability > 0.98, "{ours:?}");
    assert!(least_cost(&scenario) <= ours.cost);
}

/// All courses of so many spot and on-demand machines, one step after the other.
fn brute(wanted: u32, prices: [f64; 2], spot: &[u32], at: usize, held: [u32; 2]) -> f64 {
    let Some(there) = spot.get(at) else { return 0.0 };
    let mut least = f64::INFINITY;
    for spots in 0..=wanted.min(*there) {
        for others in 0..=wanted {
            // Ready is what was there a step ago and is there.
            let ready = spots.min(held[0]) + others.min(held[1]);
            if at > 0 && ready < wanted {
                continue;
            }
            let paid = f64::from(spots) * prices[0] + f64::from(others) * prices[1];
            least = least.min(paid + brute(wanted, prices, spot, at + 1, [spots, others]));
        }
    }
    least
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Else the gap to the optimum that we state would be one to something else.
    #[test]
    fn the_optimum_is_the_least_of_all_there_is_to_try(
        wanted in 1_u32..3,
        spot in prop::collection::vec(0_u32..4, 2..6),
        price in 1_u32..20,
    ) {
        const STEP: i64 = 3600;
        let mut scenario = small(wanted, STEP, &[], STEP * spot.len() as i64);
        let steps = spot.iter().enumerate().map(|(at, count)| (at as i64 * STEP, *count));
        scenario.pools[0].available = Some(spotpool_lab::course::Course::of(steps));
        let prices = [f64::from(price), 10.0];
        scenario.pools[0].price = spotpool_lab::course::Course::always(prices[0]);
        scenario.pools[1].price = spotpool_lab::course::Course::always(prices[1]);
        let (least, tried) = (least_cost(&scenario), brute(wanted, prices, &spot, 0, [0, 0]));
        prop_assert!(close(least, tried), "{least}, and of all that is tried {tried}");
    }

    /// Nobody who keeps all ready may be cheaper than the least.
    #[test]
    fn nobody_is_cheaper_than_the_optimum(seed in 0_u64..1000) {
        let scenario = drawn(seed, 1);
        let least = least_cost(&scenario);
        let on_demand = played(&scenario, Mix::on_demand_only(&scenario));
        prop_assert!(least <= on_demand.cost + 1e-6);
    }
}

/// Whoever asks what a second region buys must not be told of one that goes down with the first.
#[test]
fn what_takes_all_spot_of_a_region_leaves_another_alone() {
    let hits_of_all = |cloud: &str| {
        let (manifest, cloud) = (here("examples/regions.yaml"), here(cloud));
        let sources = Sources { manifest: Some(&manifest), cloud: Some(&cloud), ..Sources::default() };
        let mut scenario = Scenario::read(&sources, 10, 1).unwrap();
        let mut hits = 0;
        for seed in 0..20 {
            synthetic::draw(&mut scenario, seed, 14 * 86_400);
            let spot: Vec<_> = scenario.pools.iter().filter(|pool| pool.role == Role::Spot).collect();
            let is_hit = |at: i64| {
                spot.iter().all(|pool| pool.takes.iter().any(|(other, _)| (at..at + 180).contains(other)))
            };
            hits += spot[0].takes.iter().filter(|(at, _)| is_hit(*at)).count();
        }
        hits
    };
    assert!(hits_of_all("examples/one-region-cloud.yaml") > 20);
    assert_eq!(hits_of_all("examples/two-regions-cloud.yaml"), 0);
}
