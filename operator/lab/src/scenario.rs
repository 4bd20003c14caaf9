//! What is played: a SpotPool, its agent pools, what spot there is, what is wanted.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use spotpool_crds::spot_pool::{CapacityType, Role, SpotPool, SpotPoolSpec};

use crate::course::Course;
use crate::history::History;
use crate::input::{self, BadInput};
use crate::manifest;
use crate::trace::{self, Polarity, Supply, Trace};

/// One course of things, which every policy meets alike.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in reports.
    pub name: String,
    /// Whether its supply is made up.
    pub synthetic: bool,
    /// When it begins.
    pub start: Timestamp,
    /// How long it lasts, in seconds.
    pub seconds: i64,
    /// Nothing happens between two ticks: what does is seen at the next.
    pub tick: i64,
    /// The SpotPool's spec.
    pub spec: SpotPoolSpec,
    /// Its agent pools, in the order of the spec.
    pub pools: Vec<Pool>,
    /// Units that are wanted.
    pub demand: Course<u32>,
    /// How long Azure takes to say that it has not enough.
    pub refusal: i64,
    /// How long a drain takes.
    pub drain: i64,
    /// Decides which machines go, and with how much notice.
    pub seed: u64,
}

/// An agent pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it sells.
    pub role: Role,
    /// What a node of it is worth.
    pub units: u32,
    /// Most machines.
    pub max_nodes: u32,
    /// VM size, behind its region if there are several: what befalls it in one says nothing of another.
    pub size: String,
    /// Zones, named likewise.
    pub zones: Vec<String>,
    /// Azure region; empty if there is but one.
    pub region: String,
    /// Seconds from the request until a node is Ready.
    pub boot: i64,
    /// Price of a machine an hour.
    pub price: Course<f64>,
    /// Machines that it can hold; any number if absent.
    pub available: Option<Course<u32>>,
    /// Whether Azure gives new machines, as far as it can hold them.
    pub open: Course<bool>,
    /// When Azure takes which share of the machines that there are.
    pub takes: Vec<(i64, f64)>,
    /// Share of the size's VMs that are evicted in an hour, as Azure tells.
    pub evictions_an_hour: Course<f64>,
}

/// What the cloud file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CloudFile {
    #[serde(default = "default_boot")]
    boot_seconds: i64,
    #[serde(default = "default_wait")]
    refusal_seconds: i64,
    #[serde(default = "default_wait")]
    drain_seconds: i64,
    agent_pools: Vec<CloudPool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CloudPool {
    name: String,
    role: Option<Role>,
    #[serde(default)]
    size: String,
    #[serde(default)]
    zones: Vec<String>,
    #[serde(default)]
    region: String,
    hourly_price: f64,
    evictions_an_hour: Option<f64>,
    boot_seconds: Option<i64>,
}

fn default_boot() -> i64 {
    120
}

fn default_wait() -> i64 {
    30
}

/// When nothing else is known: a Thursday, and the first of a month.
fn default_start() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap_or_default()
}

/// What a scenario is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// The SpotPool.
    pub manifest: Option<&'a Path>,
    /// Agent pools, prices, times.
    pub cloud: Option<&'a Path>,
    /// Traces, each with the agent pool that it is of, where it does not say itself.
    pub traces: Vec<(Option<String>, &'a Path)>,
    /// What is wanted: `seconds,units`.
    pub demand: Option<&'a Path>,
    /// What a 1 means in traces of zeros and ones.
    pub polarity: Option<Polarity>,
}

/// Seconds between two ticks, unless somebody says otherwise.
pub const TICK: i64 = 10;

impl Scenario {
    /// Reads all of it.
    pub fn read(sources: &Sources<'_>, tick: i64, seed: u64) -> Result<Self, BadInput> {
        let path = sources
            .manifest
            .ok_or_else(|| BadInput::of("--manifest", "is missing: give the file of a SpotPool"))?;
        let manifest = manifest::read(&path.display().to_string(), &input::read(path)?)?;
        let mut read = Vec::new();
        for (pool, path) in &sources.traces {
            let place = path.display().to_string();
            read.push((
                pool.clone(),
                place.clone(),
                trace::read(&place, &input::read(path)?, sources.polarity)?,
            ));
        }
        let mut scenario = match sources.cloud {
            Some(path) => {
                let place = path.display().to_string();
                let file = serde_yaml_ng::from_str(&input::read(path)?).map_err(|error| {
                    BadInput::of(&place, format!("{error}: docs/how-to/lab.md shows a cloud file"))
                })?;
                Self::of_cloud(&manifest, file, &place)?
            }
            None => match read.iter().find_map(|(_, place, trace)| match trace {
                Trace::History(history) => Some((place, history)),
                _ => None,
            }) {
                Some((place, history)) => Self::of_cloud(&manifest, cloud_of(history), place)?,
                None => {
                    return Err(BadInput::of(
                        "--cloud",
                        "is missing: give a file with role and hourlyPrice of each agent pool, or a history that has them",
                    ));
                }
            },
        };
        (scenario.tick, scenario.seed) = (tick, seed);
        scenario.supply(read)?;
        if let Some(path) = sources.demand {
            scenario.demand = demand(&path.display().to_string(), &input::read(path)?)?;
        }
        Ok(scenario)
    }

    fn of_cloud(manifest: &SpotPool, cloud: CloudFile, place: &str) -> Result<Self, BadInput> {
        let spec = manifest.spec.clone();
        for (what, seconds) in [
            ("bootSeconds", cloud.boot_seconds),
            ("refusalSeconds", cloud.refusal_seconds),
            ("drainSeconds", cloud.drain_seconds),
        ] {
            check_seconds(place, what, seconds)?;
        }
        let mut known: BTreeMap<String, CloudPool> =
            cloud.agent_pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect();
        let mut pools = Vec::new();
        for pool in &spec.agent_pools {
            let Some(facts) = known.remove(&pool.name) else {
                return Err(BadInput::of(
                    place,
                    format!("agent pool {} is missing: add its role and hourlyPrice", pool.name),
                ));
            };
            let planned = pool.create.as_ref().map(|create| match create.capacity_type {
                CapacityType::Spot => Role::Spot,
                CapacityType::OnDemand => Role::OnDemand,
            });
            let role = facts.role.or(planned).ok_or_else(|| {
                BadInput::of(place, format!("the role of {} is missing: write Spot or OnDemand", pool.name))
            })?;
            if !facts.hourly_price.is_finite() || facts.hourly_price <= 0.0 {
                let what =
                    format!("hourlyPrice of {} is {}: give one above 0", pool.name, facts.hourly_price);
                return Err(BadInput::of(place, what));
            }
            let band = facts.evictions_an_hour.unwrap_or(0.05);
            if !(0.0..=1.0).contains(&band) {
                let what = format!("evictionsAnHour of {} is {band}: it is a share, from 0 to 1", pool.name);
                return Err(BadInput::of(place, what));
            }
            let boot = facts.boot_seconds.unwrap_or(cloud.boot_seconds);
            check_seconds(place, &format!("bootSeconds of {}", pool.name), boot)?;
            let boot = boot.max(1);
            let of_region = |name: &str| match facts.region.as_str() {
                "" => name.to_owned(),
                region => format!("{region} {name}"),
            };
            pools.push(Pool {
                name: pool.name.clone(),
                role,
                units: pool.capacity_units.max(1) as u32,
                max_nodes: pool.max_nodes.max(0) as u32,
                size: of_region(&facts.size),
                zones: facts.zones.iter().map(|zone| of_region(zone)).collect(),
                region: facts.region.clone(),
                boot,
                price: Course::always(facts.hourly_price),
                available: None,
                open: Course::always(true),
                takes: Vec::new(),
                evictions_an_hour: Course::always(band),
            });
        }
        if let Some(name) = known.keys().next() {
            return Err(BadInput::of(
                place,
                format!("agent pool {name} is not in the manifest: take it out"),
            ));
        }
        let wanted = spec.replicas.max(spec.on_demand.baseline).max(0) as u32;
        Ok(Self {
            name: String::new(),
            synthetic: false,
            start: default_start(),
            seconds: 0,
            tick: TICK,
            spec,
            pools,
            demand: Course::always(wanted),
            refusal: cloud.refusal_seconds,
            drain: cloud.drain_seconds,
            seed: 0,
        })
    }

    /// Gives agent pools what traces say of them. The scenario lasts as long as the shortest.
    fn supply(&mut self, traces: Vec<(Option<String>, String, Trace)>) -> Result<(), BadInput> {
        let names: Vec<&str> =
            traces.iter().map(|(_, place, _)| place.rsplit('/').next().unwrap_or(place)).collect();
        self.name = names.join(" + ");
        let mut lengths = Vec::new();
        for (name, place, trace) in traces {
            match trace {
                Trace::Nameless(length, supply) => {
                    let name = name.ok_or_else(|| {
                        BadInput::of(&place, "does not say of which agent pool it is: give --trace NAME=FILE")
                    })?;
                    self.pool(&place, &name)?.take(supply);
                    lengths.push(length);
                }
                Trace::Named(length, pools) => {
                    for (name, supply) in pools {
                        self.pool(&place, &name)?.take(supply);
                    }
                    lengths.push(length);
                }
                Trace::History(history) => {
                    self.start = history.header.from;
                    lengths.push(history.header.to.as_second() - history.header.from.as_second());
                    for (name, supply) in history.supply {
                        self.pool(&place, &name)?.take(supply);
                    }
                    for (name, band) in history.bands.into_iter().filter(|(_, band)| !band.steps().is_empty())
                    {
                        self.pool(&place, &name)?.evictions_an_hour = band;
                    }
                }
            }
        }
        if let Some(shortest) = lengths.into_iter().min() {
            self.seconds = shortest;
        }
        Ok(())
    }

    fn pool(&mut self, place: &str, name: &str) -> Result<&mut Pool, BadInput> {
        self.pools.iter_mut().find(|pool| pool.name == name).ok_or_else(|| {
            BadInput::of(
                place,
                format!("agent pool {name} is not in the manifest: name one of its agent pools"),
            )
        })
    }

    /// What happens from one second until another, as a course of its own that begins without a machine.
    #[must_use]
    pub fn part(&self, from: i64, until: i64) -> Self {
        let mut part = self.clone();
        part.name =
            format!("{}, hours {:.1} to {:.1}", self.name, from as f64 / 3600.0, until as f64 / 3600.0);
        part.start = Timestamp::from_second(self.start.as_second() + from).unwrap_or(self.start);
        part.seconds = until - from;
        part.demand = self.demand.between(from, until);
        for pool in &mut part.pools {
            pool.price = pool.price.between(from, until);
            pool.available = pool.available.as_ref().map(|available| available.between(from, until));
            pool.open = pool.open.between(from, until);
            pool.takes.retain(|(at, _)| (from..until).contains(at));
            pool.takes.iter_mut().for_each(|(at, _)| *at -= from);
            pool.evictions_an_hour = pool.evictions_an_hour.between(from, until);
        }
        part
    }

    /// Agent pools of a role, cheapest unit first, by the price at `time`.
    pub fn cheapest(&self, role: Role, time: i64) -> Vec<usize> {
        let mut pools: Vec<usize> = (0..self.pools.len()).filter(|at| self.pools[*at].role == role).collect();
        pools.sort_by(|one, other| {
            self.pools[*one].unit_price(time).total_cmp(&self.pools[*other].unit_price(time))
        });
        pools
    }
}

fn check_seconds(place: &str, what: &str, seconds: i64) -> Result<(), BadInput> {
    if (0..=86_400).contains(&seconds) {
        return Ok(());
    }
    Err(BadInput::of(place, format!("{what} is {seconds}: set 0 to 86400")))
}

fn cloud_of(history: &History) -> CloudFile {
    let pools = history.header.agent_pools.iter().map(|pool| CloudPool {
        name: pool.name.clone(),
        role: Some(pool.role),
        size: pool.size.clone(),
        zones: pool.zones.clone(),
        region: String::new(),
        hourly_price: pool.hourly_price,
        evictions_an_hour: pool.evictions_an_hour,
        boot_seconds: None,
    });
    CloudFile {
        boot_seconds: default_boot(),
        refusal_seconds: default_wait(),
        drain_seconds: default_wait(),
        agent_pools: pools.collect(),
    }
}

impl Pool {
    /// Price of one unit an hour.
    pub fn unit_price(&self, time: i64) -> f64 {
        self.price.at(time).unwrap_or_default() / f64::from(self.units)
    }

    /// Machines that it can hold at `time`.
    pub fn held_at_most(&self, time: i64) -> u32 {
        let there =
            self.available.as_ref().map_or(u32::MAX, |available| available.at(time).unwrap_or_default());
        there.min(self.max_nodes)
    }

    fn take(&mut self, supply: Supply) {
        self.available = Some(supply.available);
        if let Some(price) = supply.price {
            self.price = price;
        }
    }
}

/// `seconds,units`, from second 0 on.
fn demand(place: &str, text: &str) -> Result<Course<u32>, BadInput> {
    let mut steps: Vec<(i64, u32)> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |what: &str| BadInput::line(place, index + 1, what);
        let (at, units) = line.split_once(',').ok_or_else(|| bad("is not `seconds,units`"))?;
        let at: i64 = at.trim().parse().map_err(|_| bad("begins with no whole number of seconds"))?;
        let units: u32 =
            units.trim().parse().map_err(|_| bad("ends with no whole number of units, 0 to 5000"))?;
        if units > 5000 {
            return Err(bad("wants more than 5000 units"));
        }
        match steps.last() {
            None if at != 0 => return Err(bad("is the first and does not begin at second 0")),
            Some((before, _)) if *before >= at => {
                return Err(bad("is not after the line above: sort by time"));
            }
            _ => steps.push((at, units)),
        }
    }
    if steps.is_empty() {
        return Err(BadInput::of(place, "is empty: write `0,12`"));
    }
    Ok(Course::of(steps))
}
