//! Which agent pool is the better place for the next machine, and why.
//!
//! A candidate's *effective cost* is its price an hour for a unit of capacity times what evictions add to it:
//! `price × (1 + evictions an hour × EVICTION_COSTS) × score`. Evictions an hour are Azure's band for the size,
//! corrected by what was lost here lately. Losses are correlated, so `Balanced` also makes each further machine
//! dearer the more of the capacity already stands where the same failure would take it.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use spotpool_crds::spot_pool::{Placement as Policy, Role, Strategy};

use crate::loss;
use crate::signals::{self, Weight};
use crate::snapshot::{AgentPoolView, Losses, Score, Snapshot};

/// What one eviction costs, in hours of the node's price: on-demand in its stead for its minimum lifetime, the boot
/// of two nodes, and work done again.
const EVICTION_COSTS: f64 = 2.0;
/// Azure's band weighs as much as this many hours of one node of our own.
const BAND_WEIGHS: f64 = 50.0;
/// Our own losses count half after this long, a quarter after twice as long, and so on.
const LOSSES_HALVE: SignedDuration = SignedDuration::from_hours(6);
/// So many seconds of each node at most are behind the losses that still count: 6 h / ln 2.
const LOSSES_SPAN: i64 = 31_163;
/// How long an agent pool that has just lost nodes is thought the worse of, beyond its history: most VMs that Azure
/// takes together go within minutes.
pub const DISTRUST: SignedDuration = SignedDuration::from_mins(30);
const DISTRUSTED: f64 = 2.0;
/// Agent pools of the same size, or in a zone of the one that lost nodes.
const SIBLING_DISTRUSTED: f64 = 1.25;
/// How much dearer a machine is when all other capacity would go with it.
const CONCENTRATION_COSTS: f64 = 1.0;
/// Without a band: the middle one.
const UNKNOWN_RATE: f64 = 0.125;

/// One candidate, weighed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank {
    /// Index of the agent pool in the snapshot.
    pub pool: usize,
    /// By what it is compared: an effective price an hour, evictions an hour, or its place in the spec.
    pub cost: f64,
    /// Best is 1.
    pub position: usize,
    /// In words, without what changes while nothing happens.
    pub why: String,
    /// The early signs behind it, if there are any.
    pub signals: String,
}

/// Weighs the agent pools of `role`, best first.
pub(crate) fn rank(policy: &Policy, snapshot: &Snapshot, role: Role, now: Timestamp) -> Vec<Rank> {
    let of_role = || snapshot.agent_pools.iter().enumerate().filter(move |(_, pool)| pool.role == Ok(role));
    let dearest = of_role().filter_map(|(_, pool)| unit_price(pool)).max();
    let mut ranks: Vec<Rank> = of_role()
        .map(|(index, pool)| {
            let facts = Facts::of(policy, snapshot, pool, role, dearest, now);
            let cost = match policy.strategy {
                Strategy::Ordered => index as f64,
                Strategy::LowestPrice => facts.price * facts.distrust * facts.early,
                Strategy::LowestEvictionRate => facts.rate * facts.distrust * facts.early,
                Strategy::Balanced => {
                    let trust = facts.distrust * facts.early;
                    facts.price * (1.0 + facts.rate * EVICTION_COSTS) * facts.score * trust
                }
            };
            let why = facts.words(pool, role);
            Rank { pool: index, cost, position: 0, why, signals: facts.signals }
        })
        .collect();
    ranks.sort_by(|one, other| one.cost.total_cmp(&other.cost).then(one.pool.cmp(&other.pool)));
    for (index, rank) in ranks.iter_mut().enumerate() {
        rank.position = index + 1;
    }
    ranks
}

/// Price of one unit an hour.
fn unit_price(pool: &AgentPoolView) -> Option<Decimal> {
    Some(pool.market.hourly_price? / Decimal::from(pool.units))
}

/// What one more unit costs where `together` of `all` units would go with it.
pub(crate) fn with_concentration(policy: &Policy, cost: f64, together: f64, all: u32) -> f64 {
    if policy.strategy != Strategy::Balanced || all == 0 {
        return cost;
    }
    cost * (1.0 + CONCENTRATION_COSTS * together / f64::from(all))
}

/// How likely two agent pools are to lose machines together, 0 to 1.
pub(crate) fn likeness(one: &AgentPoolView, other: &AgentPoolView) -> f64 {
    if one.name == other.name {
        return 1.0;
    }
    match (same_size(one, other), share_zones(one, other)) {
        (true, true) => 0.75,
        (true, false) | (false, true) => 0.25,
        (false, false) => 0.0,
    }
}

fn same_size(one: &AgentPoolView, other: &AgentPoolView) -> bool {
    !one.vm_size.is_empty() && one.vm_size.eq_ignore_ascii_case(&other.vm_size)
}

/// Agent pools without zones are anywhere in the region, and so in nobody's zone in particular.
fn share_zones(one: &AgentPoolView, other: &AgentPoolView) -> bool {
    one.zones.iter().any(|zone| other.zones.contains(zone))
}

/// Losses that still count at `now`: halved every six hours, in whole steps, so that nothing changes in between.
pub fn remaining_losses(losses: &Losses, now: Timestamp) -> u32 {
    // At fixed hours, whenever the last loss was: else a pool that loses nodes more often would never be forgiven any.
    let spans = |time: Timestamp| time.as_second().div_euclid(LOSSES_HALVE.as_secs());
    let halvings = (spans(now) - spans(losses.at)).max(0);
    losses.count.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0)
}

/// The losses of an agent pool after the notices of its nodes, and those that came without: each counts once, by the
/// second in which it was seen.
pub(crate) fn losses(pool: &AgentPoolView) -> Option<Losses> {
    let last = pool.losses.clone();
    let new = new_losses(pool);
    let Some(at) = new.iter().max().copied() else { return last };
    let before = last.map_or(0, |last| remaining_losses(&last, at));
    Some(Losses { count: before + new.len() as u32, at })
}

/// When nodes were lost that have not been counted before.
pub(crate) fn new_losses(pool: &AgentPoolView) -> Vec<Timestamp> {
    let seen = pool.nodes.iter().filter_map(|node| node.noticed).chain(loss::unannounced(pool));
    seen.filter(|seen| is_new(pool, *seen)).collect()
}

/// How many losses that nobody had announced are counted now for the first time.
pub(crate) fn unannounced_since(pool: &AgentPoolView) -> u32 {
    loss::unannounced(pool).filter(|seen| is_new(pool, *seen)).count() as u32
}

fn is_new(pool: &AgentPoolView, seen: Timestamp) -> bool {
    pool.losses.as_ref().is_none_or(|last| seen.as_second() > last.at.as_second())
}

fn is_distrusted(pool: &AgentPoolView, now: Timestamp) -> bool {
    pool.losses
        .as_ref()
        .is_some_and(|losses| losses.at.saturating_add(DISTRUST).is_ok_and(|until| until > now))
}

/// What a candidate's cost is made from.
struct Facts {
    price: f64,
    is_price_assumed: bool,
    rate: f64,
    lost: u32,
    score: f64,
    distrust: f64,
    /// What early signs make of it.
    early: f64,
    signals: String,
}

impl Facts {
    fn of(
        policy: &Policy,
        snapshot: &Snapshot,
        pool: &AgentPoolView,
        role: Role,
        dearest: Option<Decimal>,
        now: Timestamp,
    ) -> Self {
        // A price that nobody knows is the highest of those that are known, never zero.
        let price = unit_price(pool).or(dearest).and_then(|price| price.to_f64()).unwrap_or(1.0);
        let is_price_assumed = pool.market.hourly_price.is_none();
        if role == Role::OnDemand {
            let signals = String::new();
            return Self {
                price,
                is_price_assumed,
                rate: 0.0,
                lost: 0,
                score: 1.0,
                distrust: 1.0,
                early: 1.0,
                signals,
            };
        }
        let lost = pool.losses.as_ref().map_or(0, |losses| remaining_losses(losses, now));
        // Whole seconds: a sum of floats would depend on the order of the nodes.
        let age = |created: Timestamp| now.duration_since(created).as_secs().clamp(0, LOSSES_SPAN);
        let hours = pool.nodes.iter().map(|node| age(node.created)).sum::<i64>() as f64 / 3600.0;
        let band = pool.market.evictions_an_hour.unwrap_or(UNKNOWN_RATE);
        let distrust = if is_distrusted(pool, now) {
            DISTRUSTED
        } else if snapshot.agent_pools.iter().any(|other| {
            other.name != pool.name
                && other.role == Ok(Role::Spot)
                && is_distrusted(other, now)
                && (same_size(pool, other) || share_zones(pool, other))
        }) {
            SIBLING_DISTRUSTED
        } else {
            1.0
        };
        let rate = (band * BAND_WEIGHS + f64::from(lost)) / (BAND_WEIGHS + hours);
        let Weight { factor, rate, words } = signals::weigh(policy, pool, rate, now);
        Self {
            price,
            is_price_assumed,
            rate,
            lost,
            score: match pool.market.score {
                Some(Score::High) => 1.0,
                Some(Score::Medium) | None => 1.1,
                Some(Score::Low) => 1.5,
                Some(Score::Restricted) => 3.0,
            },
            distrust,
            early: factor,
            signals: words,
        }
    }

    fn words(&self, pool: &AgentPoolView, role: Role) -> String {
        let mut words = match pool.market.hourly_price {
            Some(price) if pool.units > 1 => format!("{price} an hour for {} units", pool.units),
            Some(price) => format!("{price} an hour"),
            None if self.is_price_assumed => "price not known".to_owned(),
            None => String::new(),
        };
        if role == Role::OnDemand {
            return words;
        }
        let _ = match pool.market.evictions_an_hour {
            Some(rate) => write!(words, ", about {:.1} % evicted an hour", rate * 100.0),
            None => write!(words, ", eviction rate not known"),
        };
        if let Some(score) = pool.market.score {
            let _ = write!(words, ", placement score {score:?}");
        }
        if self.lost > 0 {
            let _ = write!(words, ", {} lost here lately", self.lost);
        }
        if self.distrust >= DISTRUSTED {
            words.push_str(", distrusted after losing nodes");
        } else if self.distrust > 1.0 {
            words.push_str(", near an agent pool that has just lost nodes");
        }
        if !self.signals.is_empty() {
            let _ = write!(words, ", {}", self.signals);
        }
        words
    }
}
