//! The least that full capacity could have cost whoever knew the whole trace beforehand.
//!
//! **The model.** From the first boot on, `wanted` units are ready at every moment. A machine is paid while it boots and while
//! it is there; it boots ahead, so that it is ready when it is needed; draining costs nothing. At a time at most as many units
//! of spot are held as all agent pools together can hold, and they count as ready if as many could be held all through their
//! boot. On-demand is there whenever it is wanted, at the price of the cheapest.
//!
//! **Of what it is the optimum.** With one spot agent pool, one price for each role and a demand that does not change, of
//! exactly this model: a property test compares it with all there is to try. With several, spot may move between agent pools
//! without booting, which no policy can; where the demand changes, booting is free; what Azure takes of machines that it
//! could hold (in synthetic scenarios) is not taken. It is then a lower bound.

use spotpool_crds::spot_pool::Role;

use crate::course::Course;
use crate::scenario::{Pool, Scenario};

/// What a unit of capacity stands on, in bits.
const SPOT: usize = 1;
const ON_DEMAND: usize = 2;
const STATES: [usize; 3] = [SPOT, ON_DEMAND, SPOT | ON_DEMAND];

/// A stretch in which nothing changes.
struct Stretch {
    seconds: f64,
    wanted: u32,
    /// Price a second of each unit of spot that can be ready, cheapest first.
    spot: Vec<f64>,
    on_demand: f64,
}

/// The least cost.
pub fn least_cost(scenario: &Scenario) -> f64 {
    let boots = scenario.pools.iter().map(|pool| pool.boot);
    let boot = boots.min().unwrap_or_default();
    let stretches = stretches(scenario, boot);
    let wanted = stretches.first().map_or(0, |stretch| stretch.wanted);
    let is_steady = stretches.iter().all(|stretch| stretch.wanted == wanted);
    let cheapest = |price: fn(&Stretch) -> Option<f64>| {
        stretches.iter().filter_map(price).filter(|price| price.is_finite()).fold(f64::INFINITY, f64::min)
    };
    let starts = if is_steady { boot as f64 } else { 0.0 };
    // A boot is paid at prices of before: the least that there ever is bounds them.
    let start_cost =
        [cheapest(|it| it.spot.first().copied()) * starts, cheapest(|it| Some(it.on_demand)) * starts];
    let start_cost = start_cost.map(|cost| if cost.is_finite() { cost } else { 0.0 });
    let most = stretches.iter().map(|stretch| stretch.wanted).max().unwrap_or_default();
    // Costs are convex in the units held, and `spot + on-demand ≥ wanted` says the same as: for each k, the k-th unit of
    // spot or the (wanted − k + 1)-th on demand is there. So each k is a problem of its own.
    (1..=most).map(|unit| least_cost_of(unit as usize, &stretches, start_cost)).sum()
}

/// What the `unit`-th costs: a dynamic programme over what it stands on.
fn least_cost_of(unit: usize, stretches: &[Stretch], start_cost: [f64; 2]) -> f64 {
    let starts = |from: usize, to: usize| {
        let new = to & !from;
        let of = |bit: usize, at: usize| if new & bit > 0 { start_cost[at] } else { 0.0 };
        of(SPOT, 0) + of(ON_DEMAND, 1)
    };
    // Before the first stretch nothing is there.
    let mut least = vec![(0, 0.0)];
    for stretch in stretches {
        let spot = stretch.spot.get(unit - 1).copied();
        let states: &[usize] =
            if stretch.wanted as usize >= unit { &STATES } else { &[0, SPOT, ON_DEMAND, SPOT | ON_DEMAND] };
        let next = states.iter().filter(|state| *state & SPOT == 0 || spot.is_some()).map(|state| {
            let price = if state & SPOT > 0 { spot.unwrap_or_default() } else { 0.0 };
            let price = price + if state & ON_DEMAND > 0 { stretch.on_demand } else { 0.0 };
            let before = least.iter().map(|(from, cost)| cost + starts(*from, *state));
            (*state, before.fold(f64::INFINITY, f64::min) + price * stretch.seconds)
        });
        least = next.collect();
    }
    least.into_iter().map(|(_, cost)| cost).fold(f64::INFINITY, f64::min)
}

fn stretches(scenario: &Scenario, boot: i64) -> Vec<Stretch> {
    let mut times = vec![boot, scenario.seconds];
    for pool in &scenario.pools {
        times.extend(pool.price.steps().iter().map(|(at, _)| *at));
        let changes = pool.available.iter().flat_map(Course::steps);
        // What comes is ready one boot later.
        times.extend(changes.flat_map(|(at, _)| [*at, at + boot]));
    }
    times.extend(scenario.demand.steps().iter().map(|(at, _)| *at));
    times.retain(|at| (boot..=scenario.seconds).contains(at));
    times.sort_unstable();
    times.dedup();
    let held = held_in_all(scenario);
    let stretch = |from: i64, to: i64| {
        let on_demand = scenario.cheapest(Role::OnDemand, from).first().copied();
        let ready = least_between(&held, from - boot, from);
        Stretch {
            seconds: (to - from) as f64,
            wanted: scenario.demand.at(from).unwrap_or_default(),
            spot: spot_prices(scenario, from, ready),
            on_demand: on_demand.map_or(f64::INFINITY, |pool| scenario.pools[pool].unit_price(from) / 3600.0),
        }
    };
    times.windows(2).map(|pair| stretch(pair[0], pair[1])).collect()
}

/// Units of spot that all agent pools together can hold, from when.
fn held_in_all(scenario: &Scenario) -> Vec<(i64, u32)> {
    let spot = || scenario.pools.iter().filter(|pool| pool.role == Role::Spot);
    let mut times = vec![0];
    times.extend(spot().flat_map(|pool| pool.available.iter().flat_map(Course::steps)).map(|(at, _)| *at));
    times.sort_unstable();
    times.dedup();
    let held = |at: i64| {
        let of_pool = |pool: &Pool| pool.held_at_most(at) * pool.units;
        spot().map(of_pool).sum()
    };
    times.into_iter().map(|at| (at, held(at))).collect()
}

fn least_between(held: &[(i64, u32)], from: i64, to: i64) -> u32 {
    let first = held.partition_point(|(at, _)| *at <= from).saturating_sub(1);
    held[first..].iter().take_while(|(at, _)| *at <= to).map(|(_, units)| *units).min().unwrap_or_default()
}

/// Prices a second of the cheapest units, as many as are `ready`.
fn spot_prices(scenario: &Scenario, at: i64, ready: u32) -> Vec<f64> {
    let most = scenario.demand.steps().iter().map(|(_, units)| *units).max().unwrap_or_default();
    let mut prices = Vec::new();
    for pool in scenario.cheapest(Role::Spot, at) {
        let pool = &scenario.pools[pool];
        let units = (pool.held_at_most(at) * pool.units).min(most);
        prices.extend(vec![pool.unit_price(at) / 3600.0; units as usize]);
    }
    prices.truncate(ready.min(most) as usize);
    prices
}
