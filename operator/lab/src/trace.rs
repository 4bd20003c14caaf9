//! What spot there was: traces of others, one's own history.
//!
//! A trace says how many machines an agent pool could hold. What a trace of others says is how many its owner *had*: where
//! that was all that was asked for, there may have been more.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::course::Course;
use crate::history;
use crate::input::{BadInput, in_words};

/// What there was of one agent pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Supply {
    /// Machines that it could hold.
    pub available: Course<u32>,
    /// Price of one an hour, where the trace has it.
    pub price: Option<Course<f64>>,
}

/// A trace, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Trace {
    /// Of one agent pool, whose name the trace does not say.
    Nameless(i64, Supply),
    /// By agent pool.
    Named(i64, BTreeMap<String, Supply>),
    /// What an operator has seen, with what it knows of its agent pools.
    History(Box<history::History>),
}

/// What a 1 means in a trace of zeros and ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[derive(clap::ValueEnum)]
pub enum Polarity {
    /// There was spot.
    Available,
    /// There was none.
    Preempted,
}

/// Reads a trace; `place` is named where it is bad. The form is known by the first character or the first line.
pub fn read(place: &str, text: &str, polarity: Option<Polarity>) -> Result<Trace, BadInput> {
    let first = text.lines().next().unwrap_or_default();
    match first.trim_start().chars().next() {
        None => Err(BadInput::of(place, "is empty: give a trace")),
        Some('{') if first.contains(history::FORMAT) => {
            Ok(Trace::History(Box::new(history::read(place, text)?)))
        }
        Some('{') => json(place, text, polarity),
        Some(_) if first.contains("add") || first.contains("remove") => events(place, text),
        Some(_) if first.contains('-') && first.contains(':') => counts(place, text),
        Some(_) => Err(BadInput::line(
            place,
            1,
            "is in no form that is known: give JSON, `milliseconds,add,node`, `date, time, count`, or spotpool-history/v1",
        )),
    }
}

#[derive(Deserialize)]
struct Document {
    metadata: Metadata,
    data: Option<Vec<u32>>,
    #[serde(default)]
    prices: Option<Vec<f64>>,
    #[serde(default)]
    pools: BTreeMap<String, PoolData>,
}

#[derive(Deserialize)]
struct Metadata {
    gap_seconds: f64,
    #[serde(default)]
    polarity: Option<Polarity>,
}

#[derive(Deserialize)]
struct PoolData {
    data: Vec<u32>,
    #[serde(default)]
    prices: Option<Vec<f64>>,
}

/// A count for each tick, as SkyPilot's traces have it; `pools` by name instead of `data` for several.
fn json(place: &str, text: &str, polarity: Option<Polarity>) -> Result<Trace, BadInput> {
    let document: Document = serde_json::from_str(text).map_err(|error| {
        let what = error.to_string();
        let what = in_words(what.split(" at line ").next().unwrap_or_default());
        let hint = "a trace is {\"metadata\": {\"gap_seconds\": 600}, \"data\": [3, 4]} with a whole number of machines, 0 or \
                    more, for each tick; fill gaps or cut the trace there";
        BadInput::of(
            format!("{place}, line {}, column {}", error.line(), error.column()),
            format!("{what}: {hint}"),
        )
    })?;
    let gap = document.metadata.gap_seconds;
    if !(1.0..=86_400.0).contains(&gap) || gap.fract() != 0.0 {
        return Err(BadInput::of(
            place,
            format!("metadata.gap_seconds is {gap}: set whole seconds from 1 to 86400"),
        ));
    }
    let gap = gap as i64;
    let declared = document.metadata.polarity;
    if let (Some(one), Some(other)) = (declared, polarity)
        && one != other
    {
        return Err(BadInput::of(
            place,
            "metadata.polarity says the opposite of --polarity: leave one of them out",
        ));
    }
    let supply = |name: &str, data: &[u32], prices: Option<&[f64]>| {
        per_tick(place, name, gap, data, prices, declared.or(polarity))
    };
    match (document.data, document.pools.is_empty()) {
        (Some(data), true) => {
            let length = data.len() as i64 * gap;
            Ok(Trace::Nameless(length, supply("data", &data, document.prices.as_deref())?))
        }
        (None, false) => {
            let lengths: BTreeSet<usize> = document.pools.values().map(|pool| pool.data.len()).collect();
            let length = lengths.first().copied().unwrap_or_default() as i64 * gap;
            if lengths.len() > 1 {
                return Err(BadInput::of(
                    place,
                    format!("pools have {lengths:?} ticks: give each of them as many"),
                ));
            }
            let pools = document.pools.iter().map(|(name, pool)| {
                Ok((name.clone(), supply(&format!("pools.{name}"), &pool.data, pool.prices.as_deref())?))
            });
            Ok(Trace::Named(length, pools.collect::<Result<_, BadInput>>()?))
        }
        _ => Err(BadInput::of(place, "has `data` and `pools`, or none of them: give one of them")),
    }
}

fn per_tick(
    place: &str,
    name: &str,
    gap: i64,
    data: &[u32],
    prices: Option<&[f64]>,
    polarity: Option<Polarity>,
) -> Result<Supply, BadInput> {
    let most = data.iter().copied().max().ok_or_else(|| {
        BadInput::of(place, format!("{name} is empty: give a number of machines for each tick"))
    })?;
    let is_inverted = match polarity {
        Some(Polarity::Preempted) if most > 1 => {
            return Err(BadInput::of(
                place,
                format!(
                    "{name} has counts up to {most}, which cannot mean preempted: set polarity to available"
                ),
            ));
        }
        None if most <= 1 => {
            return Err(BadInput::of(
                place,
                format!(
                    "{name} is zeros and ones, and in some traces a 1 means preempted: set metadata.polarity, or give \
                     --polarity, as available or preempted"
                ),
            ));
        }
        polarity => polarity == Some(Polarity::Preempted),
    };
    let ticks = || (0..).map(|tick| tick * gap);
    let counts = data.iter().map(|count| if is_inverted { 1 - count } else { *count });
    let price = prices.map(|prices| {
        if prices.len() != data.len() {
            let what = format!("{name} has {} counts and {} prices: give as many", data.len(), prices.len());
            return Err(BadInput::of(place, what));
        }
        if let Some(at) = prices.iter().position(|price| !price.is_finite() || *price <= 0.0) {
            let what = format!("{name}: price {} of tick {at} is not above 0: correct it", prices[at]);
            return Err(BadInput::of(place, what));
        }
        Ok(Course::of(ticks().zip(prices.iter().copied())))
    });
    Ok(Supply { available: Course::of(ticks().zip(counts)), price: price.transpose()? })
}

/// `milliseconds,add|remove,node`: what its owner had. The first line is where the trace begins.
fn events(place: &str, text: &str) -> Result<Trace, BadInput> {
    let mut nodes: BTreeSet<&str> = BTreeSet::new();
    let (mut steps, mut first, mut last) = (Vec::new(), None, 0);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |what: String| BadInput::line(place, index + 1, what);
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [time, event, node] = fields[..] else {
            return Err(bad(format!("`{line}` has not three fields: write milliseconds,add|remove,node")));
        };
        let time: i64 = time
            .parse()
            .ok()
            .filter(|time| *time >= 0)
            .ok_or_else(|| bad(format!("`{time}` is not a time: write whole milliseconds, 0 or more")))?;
        let first = *first.get_or_insert(time);
        if time < last {
            return Err(bad(format!("{time} comes after {last}: sort the trace by time")));
        }
        last = time;
        let is_new = match event {
            "add" if nodes.insert(node) => true,
            "remove" if nodes.remove(node) => true,
            "add" => return Err(bad(format!("{node} is added a second time: remove it before"))),
            "remove" => {
                let hint = "add it before, or, if the trace has the opposite polarity, swap add and remove";
                return Err(bad(format!("{node} is removed and was not there: {hint}")));
            }
            _ => return Err(bad(format!("`{event}` is not known: write add or remove"))),
        };
        if is_new {
            steps.push(((time - first) / 1000, nodes.len() as u32));
        }
    }
    let length = (last - first.unwrap_or_default()) / 1000;
    one(place, length, steps)
}

/// How far readings may be written ahead of the next ones: each is repeated a minute and two minutes later.
const AHEAD: i64 = 120;

/// `date, time, count`: what its owner had. Where a reading is written ahead, what comes later in the file counts.
fn counts(place: &str, text: &str) -> Result<Trace, BadInput> {
    let mut steps: Vec<(i64, u32)> = Vec::new();
    let mut start = None;
    let mut last = 0;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |what: String| BadInput::line(place, index + 1, what);
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [date, time, count] = fields[..] else {
            return Err(bad(format!("`{line}` has not three fields: write date, time, count")));
        };
        let at: DateTime = format!("{date}T{time}")
            .parse()
            .map_err(|_| bad(format!("`{date}, {time}` is not a time: write 2021-12-10, 13:07:45")))?;
        let at = TimeZone::UTC.to_timestamp(at).map_err(|error| bad(error.to_string()))?.as_second();
        let count: u32 = count.parse().map_err(|_| {
            bad(format!("`{count}` is not a number of machines: write a whole number, 0 or more"))
        })?;
        let at = at - *start.get_or_insert(at);
        if at < last - AHEAD {
            return Err(bad(format!(
                "{date}, {time} is {} seconds before the line above: sort the trace by time",
                last - at
            )));
        }
        last = at;
        while steps.last().is_some_and(|(before, _)| *before > at) {
            steps.pop();
        }
        steps.push((at.max(0), count));
    }
    one(place, last, steps)
}

fn one(place: &str, length: i64, steps: Vec<(i64, u32)>) -> Result<Trace, BadInput> {
    if length <= 0 {
        return Err(BadInput::of(place, "ends when it begins: give a trace that lasts"));
    }
    Ok(Trace::Nameless(length, Supply { available: Course::of(steps), price: None }))
}
