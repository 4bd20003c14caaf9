//! What an operator has seen of its agent pools: `spotpool-history/v1`, JSON by the line.
//!
//! The first line says of which time and which agent pools it is:
//! `{"format":"spotpool-history/v1","from":"2026-01-01T00:00:00Z","to":"2026-01-08T00:00:00Z","agentPools":[{"name":"spotd8a",
//! "role":"Spot","size":"Standard_D8s_v5","zones":["1"],"hourlyPrice":0.11,"nodes":4}]}`. Each other line is one event:
//! `{"at":"…","agentPool":"spotd8a","event":"lost","nodes":2}`, also `arrived` and `returned` (given back, not lost) with `nodes`,
//! `refused` with `asked` and `got`, `price` with `hourlyPrice`, `band` with `evictionsAnHour`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use spotpool_crds::spot_pool::Role;

use crate::course::Course;
use crate::input::BadInput;
use crate::trace::Supply;

/// How the first line begins to say what it is.
pub const FORMAT: &str = "spotpool-history/v1";

/// After a loss or a refusal nobody knows how much there is, until something comes, or so many seconds have gone.
const NEWS_LASTS: i64 = 3600;
/// More than anybody asks for.
const PLENTY: u32 = 100_000;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub to: Timestamp,
    /// Of what.
    pub agent_pools: Vec<KnownPool>,
}

/// What is known of an agent pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KnownPool {
    /// Its name.
    pub name: String,
    /// What it sells.
    pub role: Role,
    /// Its VM size.
    #[serde(default)]
    pub size: String,
    /// Its zones.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Price of a machine at the beginning.
    pub hourly_price: f64,
    /// Share of its VMs that Azure evicts in an hour, at the beginning.
    #[serde(default)]
    pub evictions_an_hour: Option<f64>,
    /// Nodes that it had at the beginning.
    #[serde(default)]
    pub nodes: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    at: Timestamp,
    agent_pool: String,
    #[serde(flatten)]
    event: Event,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Event {
    Lost { nodes: u32 },
    Arrived { nodes: u32 },
    Returned { nodes: u32 },
    Refused { asked: u32, got: u32 },
    Price { hourly_price: f64 },
    Band { evictions_an_hour: f64 },
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The first line.
    pub header: Header,
    /// What that says of supply.
    pub supply: BTreeMap<String, Supply>,
    /// Eviction bands as they were known.
    pub bands: BTreeMap<String, Course<f64>>,
}

struct Seen {
    held: u32,
    available: Vec<(i64, u32)>,
    price: Vec<(i64, f64)>,
    band: Vec<(i64, f64)>,
    news_until: Option<i64>,
}

impl Seen {
    /// News that is old says nothing any more.
    fn forget(&mut self, now: i64) {
        if let Some(until) = self.news_until.take_if(|until| *until <= now) {
            self.available.push((until, PLENTY));
        }
    }

    /// So many are gone, of as many at least; else says how many there are.
    fn leave(&mut self, nodes: u32) -> Result<(), u32> {
        self.held = self.held.checked_sub(nodes).ok_or(self.held)?;
        Ok(())
    }

    fn no_more_than(&mut self, now: i64, machines: u32) {
        self.available.push((now, machines));
        self.news_until = Some(now + NEWS_LASTS);
    }
}

/// Reads a history. What was lost or refused is not there until something arrives, or nothing was heard for an hour: a
/// history cannot say how much there was beyond what was asked for.
pub fn read(place: &str, text: &str) -> Result<History, BadInput> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (at, first) = lines.next().unwrap_or((0, ""));
    let header: Header = serde_json::from_str(first).map_err(|error| {
        BadInput::line(place, at + 1, format!("{error}: the first line says format, from, to and agentPools"))
    })?;
    if header.format != FORMAT {
        return Err(BadInput::line(
            place,
            1,
            format!("format is `{}`: only {FORMAT} is known", header.format),
        ));
    }
    let length = header.to.as_second() - header.from.as_second();
    if length <= 0 {
        return Err(BadInput::line(
            place,
            1,
            "`to` is not after `from`: give the time that the history covers",
        ));
    }
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    for pool in &header.agent_pools {
        let band = pool.evictions_an_hour.map(|band| (0, band));
        let (available, price) = (vec![(0, PLENTY)], vec![(0, pool.hourly_price)]);
        if pool.hourly_price <= 0.0 {
            return Err(BadInput::line(
                place,
                1,
                format!("hourlyPrice of {} is not above 0: correct it", pool.name),
            ));
        }
        let known =
            Seen { held: pool.nodes, available, price, band: band.into_iter().collect(), news_until: None };
        if seen.insert(&pool.name, known).is_some() {
            return Err(BadInput::line(
                place,
                1,
                format!("{} is there twice: name each agent pool once", pool.name),
            ));
        }
    }
    let mut last = 0;
    for (index, line) in lines {
        let bad = |what: String| BadInput::line(place, index + 1, what);
        let Line { at, agent_pool, event } = serde_json::from_str(line)
            .map_err(|error| bad(format!("{error}: see docs/how-to/lab.md for the events")))?;
        let now = at.as_second() - header.from.as_second();
        if !(last..=length).contains(&now) {
            return Err(bad(format!(
                "{at} is before the line above or outside from and to: sort the events by time"
            )));
        }
        last = now;
        let Some(pool) = seen.get_mut(agent_pool.as_str()) else {
            return Err(bad(format!("{agent_pool} is not in agentPools of the first line: add it there")));
        };
        pool.forget(now);
        match event {
            Event::Lost { nodes } => {
                pool.leave(nodes).map_err(|has| {
                    bad(format!("{nodes} nodes of {agent_pool} are lost, and it has {has}: add what arrived"))
                })?;
                let held = pool.held;
                pool.no_more_than(now, held);
            }
            Event::Returned { nodes } => {
                pool.leave(nodes).map_err(|has| {
                    bad(format!(
                        "{nodes} nodes of {agent_pool} are returned, and it has {has}: add what arrived"
                    ))
                })?;
            }
            Event::Arrived { nodes } => {
                pool.held += nodes;
                pool.news_until = None;
                pool.available.push((now, PLENTY));
            }
            Event::Refused { asked, got } if got <= asked => {
                let held = pool.held + got;
                pool.no_more_than(now, held);
            }
            Event::Refused { asked, got } => {
                return Err(bad(format!("{got} of {asked} were got: `got` is at most `asked`")));
            }
            Event::Price { hourly_price } if hourly_price > 0.0 => pool.price.push((now, hourly_price)),
            Event::Price { hourly_price } => {
                return Err(bad(format!("hourlyPrice {hourly_price} is not above 0: correct it")));
            }
            Event::Band { evictions_an_hour } if (0.0..=1.0).contains(&evictions_an_hour) => {
                pool.band.push((now, evictions_an_hour));
            }
            Event::Band { evictions_an_hour } => {
                return Err(bad(format!("evictionsAnHour {evictions_an_hour} is no share: write 0 to 1")));
            }
        }
    }
    let (mut supply, mut bands) = (BTreeMap::new(), BTreeMap::new());
    for (name, mut pool) in seen {
        pool.forget(length);
        bands.insert(name.to_owned(), Course::of(pool.band));
        let known = Supply { available: Course::of(pool.available), price: Some(Course::of(pool.price)) };
        supply.insert(name.to_owned(), known);
    }
    Ok(History { header, supply, bands })
}
