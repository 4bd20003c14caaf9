//! Figures, their goals, and their JSON lines.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most this.
    Max(f64),
    /// At least this.
    Min(f64),
    /// Nothing: it is there to be read.
    None,
}

/// One figure of several runs.
#[derive(Debug)]
pub struct Figure {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    runs: Vec<f64>,
    /// The value, if it is not the median of the runs.
    value: Option<f64>,
    more: Map<String, Value>,
}

impl Figure {
    /// A figure whose value is the median of `runs`.
    pub fn new(name: &'static str, unit: &'static str, goal: Goal, runs: Vec<f64>) -> Self {
        Self { name, unit, goal, runs, value: None, more: Map::new() }
    }

    /// The same with a value that is made of the runs in another way.
    pub fn value(mut self, value: f64) -> Self {
        self.value = Some(value);
        self
    }

    /// The same with one more member on its line.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }
}

/// One line, its members in this order.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    value: f64,
    unit: &'static str,
    goal: Value,
    runs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// Prints the figures that are asked for, and counts the goals that are missed.
pub struct Report {
    filter: Option<String>,
    keep: bool,
    missed: u32,
}

impl Report {
    /// A report of the figures whose names contain `filter`; `keep` has them written down for the docs.
    pub fn new(filter: Option<String>, keep: bool) -> Self {
        Self { filter, keep, missed: 0 }
    }

    /// Whether any of these figures is asked for.
    pub fn wants(&self, names: &[&str]) -> bool {
        self.filter.as_ref().is_none_or(|filter| names.iter().any(|name| name.contains(filter)))
    }

    /// Goals missed so far.
    pub fn missed(&self) -> u32 {
        self.missed
    }

    /// Prints a figure if it is asked for.
    pub fn print(&mut self, figure: Figure) {
        if !self.wants(&[figure.name]) {
            return;
        }
        let value = figure.value.unwrap_or_else(|| median(&figure.runs));
        let (goal, met) = match figure.goal {
            Goal::Max(max) => (json!({"max": max}), value <= max),
            Goal::Min(min) => (json!({"min": min}), value >= min),
            Goal::None => (json!({}), true),
        };
        let range = (figure.runs.len() > 1).then(|| {
            let of = |choose: fn(f64, f64) -> f64| figure.runs.iter().copied().reduce(choose).map(rounded);
            (of(f64::min), of(f64::max))
        });
        let line = Line {
            bench: figure.name,
            value: rounded(value),
            unit: figure.unit,
            goal,
            runs: figure.runs.len(),
            min: range.and_then(|range| range.0),
            max: range.and_then(|range| range.1),
            more: figure.more,
        };
        // Numbers and texts always have a JSON form.
        let line = serde_json::to_value(&line).unwrap_or_default();
        println!("{line}");
        if self.keep
            && let Err(error) = spotpool_e2e::benchmarks::keep(&line, jiff::Zoned::now().date())
        {
            eprintln!("  {} cannot be kept: {error:#}", figure.name);
        }
        if !met {
            self.missed += 1;
            eprintln!("  {} misses its goal", figure.name);
        }
    }
}

/// The middle of `values`; of an even number the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Three digits after the point.
pub fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
