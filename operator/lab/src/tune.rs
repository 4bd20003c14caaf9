//! Better numbers for a SpotPool: sought on one half of what happens, judged on the other. Of drawn courses that is every second
//! seed; of a trace it is the earlier half, and what comes later judges, as it will on a cluster.

use serde::Serialize;
use spotpool_crds::Duration;
use spotpool_crds::spot_pool::{EarlySignals, SpotPoolSpec, Strategy};

use crate::dice::Dice;
use crate::measure::Measured;
use crate::policy::{Policy, SpotPool};
use crate::scenario::Scenario;
use crate::simulate::Violation;
use crate::study::play_all;

/// How often seeds are drawn again to see how sure a gain is.
const RESAMPLES: usize = 2000;

/// A trace is cut into parts of an hour at least, and into so many at most.
const PARTS: i64 = 40;

const SEEDS: &str = "seeds";

/// Courses to seek in, and others to judge by.
#[derive(Clone, Debug)]
pub struct Halves {
    train: Vec<Scenario>,
    test: Vec<Scenario>,
    /// What one course is, in words.
    unit: &'static str,
}

impl Halves {
    /// Every second course, in turn.
    pub fn of_seeds(scenarios: &[Scenario]) -> Option<Self> {
        let half = |odd: usize| scenarios.iter().skip(odd).step_by(2).cloned().collect();
        Self { train: half(0), test: half(1), unit: SEEDS }.if_enough(1)
    }

    /// The earlier and the later half of one course, in parts, each of which begins without a machine.
    pub fn of_trace(scenario: &Scenario) -> Option<Self> {
        let many = (scenario.seconds / 3600).min(PARTS) / 2 * 2;
        let end = |at: i64| scenario.seconds * at / many;
        let mut train: Vec<Scenario> = (0..many).map(|at| scenario.part(end(at), end(at + 1))).collect();
        let test = train.split_off(train.len() / 2);
        Self { train, test, unit: "parts of the trace" }.if_enough(2)
    }

    fn if_enough(self, least: usize) -> Option<Self> {
        (self.train.len() >= least && self.test.len() >= least).then_some(self)
    }
}

/// One field and what it may be set to.
struct Knob {
    field: &'static str,
    values: &'static [&'static str],
    set: fn(&mut SpotPoolSpec, &str),
}

fn whole(text: &str) -> i32 {
    text.parse().unwrap_or_default()
}

fn duration(text: &str) -> Duration {
    text.parse().unwrap_or_default()
}

/// In the order in which they are tried.
const KNOBS: [Knob; 8] = [
    Knob {
        field: "failback.minOnDemandLifetime",
        values: &["0s", "10m", "20m", "40m", "1h"],
        set: |spec, value| spec.failback.min_on_demand_lifetime = duration(value),
    },
    Knob {
        field: "failback.stabilization",
        values: &["1m", "3m", "5m", "10m", "20m"],
        set: |spec, value| spec.failback.stabilization = duration(value),
    },
    Knob {
        field: "failback.probe",
        values: &["0s", "2m", "10m"],
        set: |spec, value| spec.failback.probe = duration(value),
    },
    Knob {
        field: "failback.maxConcurrent",
        values: &["1", "2", "4"],
        set: |spec, value| spec.failback.max_concurrent = whole(value),
    },
    Knob {
        field: "placement.maxSharePerPool",
        values: &["25", "40", "60", "100"],
        set: |spec, value| spec.placement.max_share_per_pool = whole(value),
    },
    Knob {
        field: "placement.strategy",
        values: &["Balanced", "LowestPrice", "LowestEvictionRate"],
        set: |spec, value| {
            spec.placement.strategy = match value {
                "LowestPrice" => Strategy::LowestPrice,
                "LowestEvictionRate" => Strategy::LowestEvictionRate,
                _ => Strategy::Balanced,
            };
        },
    },
    Knob {
        field: "standby.units",
        values: &["0", "1", "2"],
        set: |spec, value| spec.standby.units = whole(value),
    },
    Knob {
        field: "standby.afterLoss.percent",
        values: &["0", "10", "15", "25"],
        set: |spec, value| spec.standby.after_loss.percent = whole(value),
    },
];

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tuned {
    /// Whether it was sought in made-up courses.
    pub synthetic: bool,
    /// What a missing unit was reckoned at, an hour.
    pub missing_price: f64,
    /// Fields to set, with their values.
    pub proposal: Vec<(String, String)>,
    /// Gain on the courses that it was sought on, in percent of cost and missing units.
    pub gain_in_training_percent: f64,
    /// Gain on the courses that it had not seen.
    pub gain_percent: f64,
    /// With 95 % confidence it lies in between.
    pub between_percent: (f64, f64),
    /// How many courses it was sought on, and judged on.
    pub courses: (usize, usize),
    /// What a course is: seeds, or parts of the trace.
    pub unit: &'static str,
    /// Cost and availability on the unseen courses, before.
    pub before: (f64, f64),
    /// The same with the proposal.
    pub after: (f64, f64),
}

impl Tuned {
    /// Whether the gain could as well be none.
    pub fn is_noise(&self) -> bool {
        self.proposal.is_empty() || self.between_percent.0 <= 0.0
    }

    /// In words.
    pub fn words(&self) -> String {
        let synthetic = if self.synthetic { "SYNTHETIC courses, drawn, not observed. " } else { "" };
        let ((train, test), unit) = (self.courses, self.unit);
        let about = format!(
            "{synthetic}Sought on {train} {unit}, judged on {test} others{}; a missing unit counts {:.3} an hour.\n",
            if self.is_of_trace() { " that come later" } else { "" },
            self.missing_price
        );
        if self.proposal.is_empty() {
            return format!("{about}Nothing that was tried is better than what is set.\n");
        }
        let fields: Vec<String> =
            self.proposal.iter().map(|(field, value)| format!("  spec.{field}: {value}\n")).collect();
        let (least, most) = self.between_percent;
        let verdict = if self.is_noise() {
            "The gain where it was not sought is within noise: better leave things as they are."
        } else if self.gain_percent * 2.0 < self.gain_in_training_percent {
            "Most of the gain was gone where it was not sought: expect less still on your cluster."
        } else {
            "The gain holds where it was not sought."
        };
        let caution = if self.is_of_trace() {
            "\nOne trace is one story, and its parts are not independent: the range is too narrow by an unknown amount."
        } else {
            ""
        };
        format!(
            "{about}{}gain {:.2} % where it was not sought (95 %: {least:.2} to {most:.2}), {:.2} % where it was\n\
             cost {:.2} -> {:.2}, ready {:.3} % -> {:.3} %, on average of these {test}\n{verdict}{caution}\n",
            fields.concat(),
            self.gain_percent,
            self.gain_in_training_percent,
            self.before.0,
            self.after.0,
            self.before.1 * 100.0,
            self.after.1 * 100.0,
        )
    }

    fn is_of_trace(&self) -> bool {
        self.unit != SEEDS
    }
}

/// Cost, and what is missing at `missing_price` an hour.
fn score(of: &Measured, missing_price: f64) -> f64 {
    of.cost + of.shortfall_unit_minutes / 60.0 * missing_price
}

fn played(scenarios: &[Scenario], spec: &SpotPoolSpec) -> Result<Vec<Measured>, Violation> {
    let policies = |scenario: &Scenario| {
        let policy: Box<dyn Policy> = Box::new(SpotPool::with(scenario, "SpotPool", spec.clone()));
        vec![policy]
    };
    Ok(play_all(scenarios, policies)?.into_iter().flatten().collect())
}

fn scores(of: &[Measured], missing_price: f64) -> Vec<f64> {
    of.iter().map(|it| score(it, missing_price)).collect()
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

/// Tries every value of one field after the other, keeps what is best on one half, and judges that on the other.
pub fn tune(halves: &Halves, missing_price: f64) -> Result<Tuned, Violation> {
    let Halves { train, test, unit } = halves;
    let base = train[0].spec.clone();
    let before = mean(&scores(&played(train, &base)?, missing_price));
    let (mut spec, mut best, mut proposal) = (base.clone(), before, Vec::new());
    for knob in &KNOBS {
        for value in knob.values {
            let mut tried = spec.clone();
            (knob.set)(&mut tried, value);
            if tried == spec {
                continue;
            }
            let found = mean(&scores(&played(train, &tried)?, missing_price));
            if found < best {
                (best, spec) = (found, tried);
                proposal.retain(|(field, _)| field != knob.field);
                proposal.push((knob.field.to_owned(), (*value).to_owned()));
            }
        }
    }
    let (old, new) = (played(test, &base)?, played(test, &spec)?);
    let pairs: Vec<(f64, f64)> =
        scores(&old, missing_price).into_iter().zip(scores(&new, missing_price)).collect();
    let gain = |of: &[(f64, f64)]| {
        let (old, new) = of.iter().fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        100.0 * (1.0 - new / old)
    };
    let mut dice = Dice::of(train[0].seed, u64::MAX);
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            gain(&pairs.iter().map(|_| pairs[dice.below(pairs.len() as u64) as usize]).collect::<Vec<_>>())
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let told = |of: &[Measured]| {
        let costs: Vec<f64> = of.iter().map(|it| it.cost).collect();
        let ready: Vec<f64> = of.iter().map(|it| it.availability).collect();
        (mean(&costs), mean(&ready))
    };
    Ok(Tuned {
        synthetic: train.iter().any(|scenario| scenario.synthetic),
        missing_price,
        proposal,
        gain_in_training_percent: 100.0 * (1.0 - best / before),
        gain_percent: gain(&pairs),
        between_percent: (drawn[RESAMPLES / 40], drawn[RESAMPLES - 1 - RESAMPLES / 40]),
        courses: (train.len(), test.len()),
        unit,
        before: told(&old),
        after: told(&new),
    })
}

/// Without parts, one at a time: what each is good for.
pub fn without_parts(spec: &SpotPoolSpec) -> Vec<(&'static str, SpotPoolSpec)> {
    let with = |change: fn(&mut SpotPoolSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        spec
    };
    vec![
        (
            "without spread",
            with(|spec| {
                spec.placement.max_share_per_pool = 100;
                spec.placement.strategy = Strategy::LowestPrice;
            }),
        ),
        ("without spare after losses", with(|spec| spec.standby.after_loss.percent = 0)),
        ("with 1 unit of standby", with(|spec| spec.standby.units = 1)),
        ("with 2 units of standby", with(|spec| spec.standby.units = 2)),
        ("without the failback probe", with(|spec| spec.failback.probe = Duration::from_secs(0))),
        (
            "without minimum lifetime",
            with(|spec| spec.failback.min_on_demand_lifetime = Duration::from_secs(0)),
        ),
        (
            "minimum lifetime 1 h",
            with(|spec| spec.failback.min_on_demand_lifetime = Duration::from_secs(3600)),
        ),
        ("stabilization 2 min", with(|spec| spec.failback.stabilization = Duration::from_secs(120))),
        ("stabilization 30 min", with(|spec| spec.failback.stabilization = Duration::from_secs(1800))),
        ("4 drains at a time", with(|spec| spec.failback.max_concurrent = 4)),
        ("with early signals", with(|spec| spec.placement.early_signals = Some(EarlySignals::default()))),
    ]
}
