//! What a policy cost, and what it gave.

use serde::Serialize;
use spotpool_crds::spot_pool::Role;

use crate::cloud::{Cloud, Order};
use crate::scenario::Scenario;

/// Going back and forth within this is an oscillation.
const OSCILLATION: i64 = 3600;
/// The least ready share of each class of the distribution, in percent.
pub const CLASSES: [u32; 6] = [100, 95, 90, 75, 50, 0];
/// Points of a series: more cannot be seen in a plot.
const POINTS: i64 = 480;

/// What came of one policy in one scenario. Amounts are in the currency of the prices.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Whose.
    pub policy: String,
    /// What all machines cost.
    pub cost: f64,
    /// What is wanted would have cost so much on the cheapest on-demand agent pool.
    pub on_demand_cost: f64,
    /// The cost is so much less, in percent.
    pub saving_percent: f64,
    /// Ready unit-time of what is wanted, at most all of it, 0 to 1.
    pub availability: f64,
    /// Share of the time in which all that is wanted was ready, 0 to 1.
    pub whole: f64,
    /// Share of the time by the ready share: all, 95 %, 90 %, 75 %, 50 % at least, and less.
    pub ready_distribution: [f64; 6],
    /// Unit-minutes that were missing.
    pub shortfall_unit_minutes: f64,
    /// Machine-minutes on demand.
    pub on_demand_minutes: f64,
    /// Spot machines that were asked for.
    pub spot_launches: u32,
    /// On-demand machines that were asked for.
    pub on_demand_launches: u32,
    /// Requests for machines that were not given in full.
    pub refusals: u32,
    /// How often on-demand was bought again within an hour after some was given back.
    pub oscillations: u32,
    /// Machines that were taken.
    pub evictions: u32,
    /// Of these, those after which all that is wanted was still ready.
    pub evictions_survived: u32,
    /// Units that were ready at the end.
    pub ready_at_end: u32,
    /// Steps of the simulation.
    pub steps: u64,
    /// What it was over time.
    #[serde(skip)]
    pub series: Vec<Point>,
}

/// A short time, until the next point of the series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// When it begins, in seconds since the start.
    pub at: i64,
    /// Wanted units, on average.
    pub wanted: f64,
    /// Ready units by agent pool, on average.
    pub ready: Vec<f64>,
    /// What was paid until it begins.
    pub cost: f64,
}

pub(crate) struct Meter<'a> {
    scenario: &'a Scenario,
    reference: usize,
    cost: f64,
    on_demand_cost: f64,
    wanted: f64,
    ready: f64,
    classes: [i64; 6],
    on_demand_seconds: i64,
    launches: [u32; 2],
    refusals: u32,
    oscillations: u32,
    returned_at: Option<i64>,
    evictions: u32,
    survived: u32,
    series: Vec<Point>,
}

impl<'a> Meter<'a> {
    pub fn new(scenario: &'a Scenario) -> Self {
        let cheapest = scenario.cheapest(Role::OnDemand, 0);
        Self {
            scenario,
            reference: cheapest.first().copied().unwrap_or(usize::MAX),
            cost: 0.0,
            on_demand_cost: 0.0,
            wanted: 0.0,
            ready: 0.0,
            classes: [0; 6],
            on_demand_seconds: 0,
            launches: [0; 2],
            refusals: 0,
            oscillations: 0,
            returned_at: None,
            evictions: 0,
            survived: 0,
            series: Vec::new(),
        }
    }

    /// What has happened at this step.
    pub fn see(&mut self, cloud: &Cloud<'_>) {
        let lost: u32 = cloud.fleets.iter().map(|fleet| fleet.lost).sum();
        let is_whole = cloud.ready(Role::Spot) + cloud.ready(Role::OnDemand) >= cloud.wanted();
        self.evictions += lost;
        self.survived += if is_whole { lost } else { 0 };
        let ended = cloud.fleets.iter().flat_map(|fleet| &fleet.ended);
        self.refusals += ended.filter(|launch| launch.missing > 0).count() as u32;
    }

    /// What is asked for.
    pub fn note(&mut self, order: &Order, cloud: &Cloud<'_>) {
        let role = |pool: usize| self.scenario.pools[pool].role;
        match order {
            Order::Launch { pool, machines } if role(*pool) == Role::Spot => self.launches[0] += machines,
            Order::Launch { machines, .. } => {
                self.launches[1] += machines;
                let returned = self.returned_at.take();
                self.oscillations += u32::from(returned.is_some_and(|at| cloud.now - at < OSCILLATION));
            }
            Order::Return { pool, .. } | Order::Delete { pool, .. } if role(*pool) == Role::OnDemand => {
                self.returned_at = Some(cloud.now);
            }
            _ => {}
        }
    }

    /// Nothing changes until `due`.
    pub fn pass(&mut self, cloud: &Cloud<'_>, due: i64) {
        let (seconds, wanted) = (due - cloud.now, cloud.wanted());
        let hours = seconds as f64 / 3600.0;
        let by_pool: Vec<u32> =
            cloud.pools().map(|(pool, fleet)| fleet.serving(cloud.now) * pool.units).collect();
        let ready: u32 = by_pool.iter().sum();
        let before = self.cost;
        for (pool, fleet) in cloud.pools() {
            let machines = fleet.machines.len() as i64;
            self.cost += pool.price.at(cloud.now).unwrap_or_default() * machines as f64 * hours;
            if pool.role == Role::OnDemand {
                self.on_demand_seconds += machines * seconds;
            }
        }
        let hourly = (self.cost - before) / hours.max(f64::MIN_POSITIVE);
        self.draw((cloud.now, due), wanted, &by_pool, |at| {
            before + hourly * (at - cloud.now) as f64 / 3600.0
        });
        if let Some(reference) = self.scenario.pools.get(self.reference) {
            self.on_demand_cost += reference.unit_price(cloud.now) * f64::from(wanted) * hours;
        }
        self.wanted += f64::from(wanted) * seconds as f64;
        self.ready += f64::from(ready.min(wanted)) * seconds as f64;
        let percent = (100 * ready).checked_div(wanted).unwrap_or(100);
        let class = CLASSES.iter().position(|least| percent >= *least).unwrap_or(CLASSES.len() - 1);
        self.classes[class] += seconds;
    }

    /// Adds what holds from one time to another to the points between them.
    fn draw(&mut self, (mut at, due): (i64, i64), wanted: u32, ready: &[u32], cost: impl Fn(i64) -> f64) {
        let seconds = self.scenario.seconds;
        let each = (seconds / POINTS).max(1);
        while at < due {
            let index = at / each;
            let (begin, end) = (index * each, (index * each + each).min(seconds));
            if self.series.len() as i64 <= index {
                let ready = vec![0.0; ready.len()];
                self.series.push(Point { at: begin, wanted: 0.0, ready, cost: cost(at) });
            }
            let until = due.min(end);
            let share = (until - at) as f64 / (end - begin) as f64;
            if let Some(point) = self.series.last_mut() {
                point.wanted += f64::from(wanted) * share;
                point.ready.iter_mut().zip(ready).for_each(|(sum, ready)| *sum += f64::from(*ready) * share);
            }
            at = until;
        }
    }

    pub fn conclude(self, policy: String, steps: u64, ready_at_end: u32) -> Measured {
        let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 1.0 };
        let seconds = self.scenario.seconds as f64;
        Measured {
            policy,
            cost: self.cost,
            on_demand_cost: self.on_demand_cost,
            saving_percent: 100.0 * (1.0 - share(self.cost, self.on_demand_cost)),
            availability: share(self.ready, self.wanted),
            whole: share(self.classes[0] as f64, seconds),
            ready_distribution: self.classes.map(|class| share(class as f64, seconds)),
            shortfall_unit_minutes: (self.wanted - self.ready) / 60.0,
            on_demand_minutes: self.on_demand_seconds as f64 / 60.0,
            spot_launches: self.launches[0],
            on_demand_launches: self.launches[1],
            refusals: self.refusals,
            oscillations: self.oscillations,
            evictions: self.evictions,
            evictions_survived: self.survived,
            ready_at_end,
            steps,
            series: self.series,
        }
    }
}
