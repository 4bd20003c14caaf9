//! Azure, made up: no trace of its evictions is public. What is drawn for a seed has the shape of what is known of it (rates of
//! eviction by the hour, losses in groups, notices of 0 to 30 seconds, refusals by size and zone, prices that drift), and the
//! numbers below are our own. Whatever is made of it is called synthetic.

use std::collections::BTreeMap;

use spotpool_crds::spot_pool::Role;

use crate::course::Course;
use crate::dice::Dice;
use crate::scenario::Scenario;

const HOUR: f64 = 3600.0;
/// Ends of the bands in which Azure tells eviction rates by the hour, and the most that we draw beyond the last.
const BANDS: [(f64, f64); 5] = [(0.002, 0.05), (0.05, 0.10), (0.10, 0.15), (0.15, 0.20), (0.20, 0.30)];
/// What a loss takes of an agent pool: a few machines, half of it, all.
const SHARES: [(f64, f64); 3] = [(0.5, 0.15), (0.3, 0.5), (0.2, 1.0)];
/// How likely a loss takes along what is of the same size, and what is in the same zone.
const SAME_SIZE: f64 = 0.25;
const SAME_ZONE: f64 = 0.25;
/// … or all spot of the region.
const REGION: f64 = 0.03;
/// Most of what goes together goes within three minutes.
const TOGETHER: u64 = 180;
/// How likely nothing is given after a loss, and for how many hours on average: mostly, and sometimes.
const CLOSED: f64 = 0.8;
const CLOSED_HOURS: [(f64, f64); 2] = [(0.8, 0.4), (0.2, 3.0)];
/// How often a day a size is not given in a zone though nothing is lost, and for how many hours on average.
const REFUSED_A_DAY: f64 = 0.7;
const REFUSED_HOURS: f64 = 0.7;
/// The same for on-demand: rarely.
const ON_DEMAND_REFUSED_A_DAY: f64 = 0.05;
const ON_DEMAND_REFUSED_HOURS: f64 = 0.3;
/// How often a day a spot price changes, and by how much at most.
const PRICE_CHANGES_A_DAY: f64 = 1.0;
const PRICE_STEP: f64 = 0.1;
/// A spot price stays within these shares of where it began.
const PRICE_RANGE: (f64, f64) = (0.6, 1.8);

/// Gives every agent pool of `scenario` losses, refusals and prices of a seed, for so many seconds.
pub fn draw(scenario: &mut Scenario, seed: u64, seconds: i64) {
    draw_harsh(scenario, seed, seconds, 1.0);
}

/// The same, with so many times as many evictions as the bands have.
pub fn draw_harsh(scenario: &mut Scenario, seed: u64, seconds: i64, harshness: f64) {
    scenario.name = format!("synthetic, seed {seed}");
    (scenario.synthetic, scenario.seed, scenario.seconds) = (true, seed, seconds);
    let mut takes: BTreeMap<usize, Vec<(i64, f64)>> = BTreeMap::new();
    let mut closed: BTreeMap<usize, Vec<(i64, i64)>> = BTreeMap::new();
    for at in 0..scenario.pools.len() {
        let mut dice = Dice::of(seed, at as u64);
        let pool = &mut scenario.pools[at];
        if pool.role == Role::OnDemand {
            closed.insert(at, windows(&mut dice, ON_DEMAND_REFUSED_A_DAY, ON_DEMAND_REFUSED_HOURS, seconds));
            continue;
        }
        let (least, most) = BANDS[dice.below(BANDS.len() as u64) as usize];
        let (least, most) = (least * harshness, most * harshness);
        let rate = least + (most - least) * dice.share();
        // Azure tells the band, not the rate.
        pool.evictions_an_hour = Course::always(f64::midpoint(least, most));
        pool.price = prices(&mut dice, pool.price.at(0).unwrap_or_default(), seconds);
        closed.entry(at).or_default().extend(windows(&mut dice, REFUSED_A_DAY, REFUSED_HOURS, seconds));
        let mean: f64 = SHARES.iter().map(|(likely, share)| likely * share).sum();
        let mut time = 0.0;
        loop {
            time += dice.wait(rate / mean / HOUR);
            if time >= seconds as f64 {
                break;
            }
            let region = dice.share() < REGION;
            let share = drawn(&mut dice, &SHARES);
            for other in 0..scenario.pools.len() {
                let is_near = scenario.pools[other].region == scenario.pools[at].region;
                let goes = region && is_near || goes_along(scenario, at, other, &mut dice);
                if !goes || scenario.pools[other].role == Role::OnDemand {
                    continue;
                }
                let later = if other == at { 0 } else { dice.below(TOGETHER) as i64 };
                let when = time as i64 + 1 + later;
                takes.entry(other).or_default().push((when, share));
                if dice.share() < CLOSED {
                    let hours = drawn(&mut dice, &CLOSED_HOURS);
                    let lasts = dice.wait(1.0 / (hours * HOUR)) as i64;
                    closed.entry(other).or_default().push((when, when + lasts));
                }
            }
        }
    }
    for (at, pool) in scenario.pools.iter_mut().enumerate() {
        let mut of_pool = takes.remove(&at).unwrap_or_default();
        of_pool.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
        pool.takes = of_pool;
        pool.open = opened(closed.remove(&at).unwrap_or_default());
    }
}

fn goes_along(scenario: &Scenario, one: usize, other: usize, dice: &mut Dice) -> bool {
    let (a, b) = (&scenario.pools[one], &scenario.pools[other]);
    let by_size = dice.share() < SAME_SIZE && a.size == b.size;
    let by_zone = dice.share() < SAME_ZONE && a.zones.iter().any(|zone| b.zones.contains(zone));
    one == other || by_size || by_zone
}

fn drawn(dice: &mut Dice, of: &[(f64, f64)]) -> f64 {
    let mut roll = dice.share();
    for (likely, value) in of {
        if roll < *likely {
            return *value;
        }
        roll -= likely;
    }
    of.last().map_or(0.0, |(_, value)| *value)
}

/// Times in which nothing is given.
fn windows(dice: &mut Dice, a_day: f64, hours: f64, seconds: i64) -> Vec<(i64, i64)> {
    let (mut windows, mut time) = (Vec::new(), 0.0);
    loop {
        time += dice.wait(a_day / 24.0 / HOUR);
        if time >= seconds as f64 {
            return windows;
        }
        let lasts = dice.wait(1.0 / (hours * HOUR));
        windows.push((time as i64, (time + lasts) as i64));
    }
}

fn opened(mut closed: Vec<(i64, i64)>) -> Course<bool> {
    closed.sort_unstable();
    let mut steps = vec![(0, true)];
    let mut until = 0;
    for (from, to) in closed {
        if from > until || steps.len() == 1 {
            if steps.len() > 1 {
                steps.push((until, true));
            }
            steps.push((from, false));
        }
        until = until.max(to);
    }
    if steps.len() > 1 {
        steps.push((until, true));
    }
    Course::of(steps)
}

fn prices(dice: &mut Dice, start: f64, seconds: i64) -> Course<f64> {
    let (mut steps, mut price, mut time) = (vec![(0, start)], start, 0.0);
    loop {
        time += dice.wait(PRICE_CHANGES_A_DAY / 24.0 / HOUR);
        if time >= seconds as f64 {
            return Course::of(steps);
        }
        let step = 1.0 + PRICE_STEP * (2.0 * dice.share() - 1.0);
        price = (price * step).clamp(start * PRICE_RANGE.0, start * PRICE_RANGE.1);
        // As Azure quotes them.
        price = (price * 1e5).round() / 1e5;
        steps.push((time as i64, price));
    }
}
