//! Early signs that Azure may take spot back: its hint to move away from a VM, a price that rose, an eviction band that
//! became worse, the hours of the day at which an agent pool has lost nodes before.
//!
//! They make an agent pool dearer, never cheaper, and with `preRaise` the first of them keeps some spot more elsewhere
//! while it lasts. Nothing of this is looked at without `placement.earlySignals`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use spotpool_crds::Reason;
use spotpool_crds::SpotPoolSpec;
use spotpool_crds::spot_pool::{Placement as Policy, Role};

use crate::action::Action;
use crate::draft::Draft;
use crate::placement::{Need, Placement, place};
use crate::plan::Situation;
use crate::ranking::{Rank, new_losses};
use crate::snapshot::{AgentPoolView, NodeView, Snapshot};
use crate::stall::Stall;

/// How long a price that rose, or a band that became worse, is news. Bands are of 28 days: later they are just so.
const NEWS_LASTS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A rise by less says nothing: prices are rounded.
const LEAST_RISE: f64 = 1.05;
/// What a rise adds is no more than this, however steep it is: the price itself counts already.
const MOST_RISE: f64 = 1.5;
const WORSE_BAND: f64 = 1.25;
/// What an agent pool costs more when Azure advises to move away from all of its nodes; in proportion for some.
const ADVISED_COSTS: f64 = 1.0;
/// Fewer node-hours at an hour of the day say nothing of it.
const LEAST_NODE_HOURS: u32 = 24;
/// An hour is thought to be like the agent pool's whole day until it has shown otherwise for as many node-hours.
const DAY_WEIGHS: f64 = 24.0;
/// Counts by hour are halved after so long.
const HALVE: SignedDuration = SignedDuration::from_hours(7 * 24);
const HOUR: i64 = 3600;

/// The signs at one agent pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Nodes that Azure advises to move away from.
    pub advised: BTreeSet<String>,
    /// The last change of the price, where it was a rise.
    pub price_rise: Option<PriceRise>,
    /// The eviction band, as it was known last.
    pub band: Option<Band>,
    /// What was lost when.
    pub hours: Option<Hours>,
}

/// A price that rose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceRise {
    /// From this.
    pub from: Decimal,
    /// To this.
    pub to: Decimal,
    /// Since when.
    pub since: Timestamp,
}

/// An eviction band, and the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// The last that was known.
    pub is: String,
    /// Another one that was known before.
    pub was: Option<String>,
    /// When it was first seen.
    pub since: Timestamp,
    /// Whether it is worse than the one before.
    pub is_worse: bool,
}

/// What an agent pool lost by hour of the day, UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Nodes that Azure took or announced to take.
    pub losses: [u32; 24],
    /// One for each node that was there when the hour was first looked at.
    pub node_hours: [u32; 24],
    /// The beginning of the hour that was counted last.
    pub counted: Timestamp,
    /// When all counts were halved at last.
    pub halved: Timestamp,
}

fn hour_of_day(at: Timestamp) -> usize {
    at.as_second().div_euclid(HOUR).rem_euclid(24) as usize
}

impl Hours {
    /// With what `pool` shows now. Changes once an hour, with a loss, and when a week is over.
    pub(crate) fn of(pool: &AgentPoolView, now: Timestamp) -> Self {
        let this = Timestamp::from_second(now.as_second().div_euclid(HOUR) * HOUR).unwrap_or(now);
        let new = || Self { losses: [0; 24], node_hours: [0; 24], counted: Timestamp::MIN, halved: this };
        let mut hours = pool.signals.hours.clone().unwrap_or_else(new);
        hours.fade(now, this);
        if hours.counted < this {
            let there = pool.nodes.iter().filter(|node| node.lost.is_none()).count() as u32;
            let count = &mut hours.node_hours[hour_of_day(this)];
            *count = count.saturating_add(there);
        }
        // A clock that was set back counts on from where it is.
        hours.counted = this;
        for seen in new_losses(pool) {
            let count = &mut hours.losses[hour_of_day(seen)];
            *count = count.saturating_add(1);
        }
        hours
    }

    fn fade(&mut self, now: Timestamp, this: Timestamp) {
        let since = now.duration_since(self.halved).as_secs();
        if since < 0 {
            self.halved = this;
            return;
        }
        let weeks = since / HALVE.as_secs();
        let by = u32::try_from(weeks).unwrap_or(u32::MAX);
        for count in self.losses.iter_mut().chain(&mut self.node_hours) {
            *count = count.checked_shr(by).unwrap_or(0);
        }
        let passed = SignedDuration::from_secs(weeks.saturating_mul(HALVE.as_secs()));
        self.halved = self.halved.saturating_add(passed).unwrap_or(now);
    }

    /// Losses of a node in an hour like that of `now`, with the counts behind it, if there are enough.
    fn rate(&self, now: Timestamp) -> Option<(f64, u32, u32)> {
        let at = hour_of_day(now);
        let (lost, there) = (self.losses[at], self.node_hours[at]);
        if there < LEAST_NODE_HOURS {
            return None;
        }
        let sum = |counts: &[u32; 24]| counts.iter().map(|count| f64::from(*count)).sum::<f64>();
        let day = sum(&self.losses) / sum(&self.node_hours);
        Some(((f64::from(lost) + day * DAY_WEIGHS) / (f64::from(there) + DAY_WEIGHS), lost, there))
    }
}

/// What the signs make of an agent pool's place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weight {
    /// How much dearer it is; 1 at least.
    pub factor: f64,
    /// Evictions an hour: never fewer than without the signs.
    pub rate: f64,
    /// Why, with the numbers; empty if it is as without.
    pub words: String,
}

/// Weighs the signs at a spot agent pool that is thought to lose `rate` of its nodes an hour.
pub(crate) fn weigh(policy: &Policy, pool: &AgentPoolView, rate: f64, now: Timestamp) -> Weight {
    let mut weight = Weight { factor: 1.0, rate, words: String::new() };
    if policy.early_signals.is_none() {
        return weight;
    }
    let mut words = Vec::new();
    let (advised, nodes) = (advised(pool).count(), pool.nodes.len());
    if advised > 0 {
        weight.factor *= 1.0 + ADVISED_COSTS * advised as f64 / nodes as f64;
        words.push(format!("{advised} of {nodes} nodes advised to move"));
    }
    let is_news = |since: Timestamp| since.saturating_add(NEWS_LASTS).is_ok_and(|until| until > now);
    if let Some(rise) = pool.signals.price_rise.as_ref().filter(|rise| is_news(rise.since)) {
        let times = rise.to.checked_div(rise.from).and_then(|times| times.to_f64()).unwrap_or(1.0);
        if times >= LEAST_RISE {
            weight.factor *= times.min(MOST_RISE);
            words.push(format!("price rose from {} to {} at {:.0}", rise.from, rise.to, rise.since));
        }
    }
    if let Some(band) = pool.signals.band.as_ref().filter(|band| band.is_worse && is_news(band.since)) {
        weight.factor *= WORSE_BAND;
        let was = band.was.as_deref().unwrap_or("unknown");
        words.push(format!("eviction band rose from {was} to {}", band.is));
    }
    let own = pool.signals.hours.as_ref().and_then(|hours| hours.rate(now));
    if let Some((own, lost, there)) = own.filter(|(own, ..)| *own > rate) {
        weight.rate = own;
        let hour = hour_of_day(now);
        words.push(format!("{lost} lost in {there} node-hours from {hour:02}:00 UTC on, on other days"));
    }
    weight.words = words.join(", ");
    weight
}

/// Nodes that Azure advises to move away from and does not take yet. Whether we have asked one to leave must not
/// matter: what that changes would be asked for again.
fn advised(pool: &AgentPoolView) -> impl Iterator<Item = &NodeView> {
    let is_there = |node: &&NodeView| node.noticed.is_none() && node.lost.is_none();
    pool.nodes.iter().filter(is_there).filter(|node| pool.signals.advised.contains(&node.name))
}

/// Whether its nodes may go soon, or go already: no place for what is asked for ahead.
pub(crate) fn is_at_risk(pool: &AgentPoolView) -> bool {
    advised(pool).next().is_some()
        || pool.nodes.iter().any(|node| node.noticed.is_some() || node.lost.is_some())
}

/// Units of spot to be kept beyond the target, because so many may go soon; those that are deleted by `actions` aside.
pub(crate) fn ahead(spec: &SpotPoolSpec, pools: &[AgentPoolView], actions: &[Action]) -> u32 {
    let Some(signals) = &spec.placement.early_signals else { return 0 };
    let spot = pools.iter().filter(|pool| pool.role == Ok(Role::Spot));
    let is_deleted = |node: &NodeView| {
        actions.iter().any(
            |action| matches!(action, Action::DeleteMachines { nodes, .. } if nodes.contains(&node.name)),
        )
    };
    let at_risk = |pool: &AgentPoolView| advised(pool).filter(|node| !is_deleted(node)).count() as u32;
    let units: u32 = spot.map(|pool| at_risk(pool) * pool.units).sum();
    units.min(signals.pre_raise.max(0) as u32)
}

/// Spot that is asked for ahead.
pub(crate) struct Ahead {
    /// Of whom.
    pub placement: Placement,
    /// What nobody can give now.
    lacking: u32,
}

/// What is asked for ahead, beside what is asked of `spot` because it lacks. While that cannot all be had, nothing is
/// asked for ahead. What cannot be had ahead is not waited for, and nothing stands in for it.
pub(crate) fn place_ahead(
    situation: &Situation<'_>,
    regained: u32,
    spot: &Placement,
    stalls: &[Stall],
) -> Ahead {
    let Situation { spec, snapshot, tally, now } = situation;
    let wanted = tally.ahead;
    let there = tally.spot_have + regained + spot.units;
    let lacks_more = spot.unplaced + spot.waits() > 0;
    let target = tally.spot_wanted() + wanted;
    let missing = if lacks_more { 0 } else { target.saturating_sub(there) };
    let need = Need::ahead(missing, target, stalls, spot);
    let placement = place(&spec.placement, snapshot, &need, *now);
    let lacking = placement.unplaced;
    let placement = Placement { unplaced: 0, passed_over: Vec::new(), ..placement };
    Ahead { placement, lacking }
}

/// What spot agent pools lost by hour of the day, this plan's count included; what is known of others stays.
pub(crate) fn hours(spec: &SpotPoolSpec, snapshot: &Snapshot, now: Timestamp) -> BTreeMap<String, Hours> {
    if spec.placement.early_signals.is_none() {
        return BTreeMap::new();
    }
    let of_pool = |pool: &AgentPoolView| match pool.role {
        Ok(Role::Spot) => Some((pool.name.clone(), Hours::of(pool, now))),
        _ => Some((pool.name.clone(), pool.signals.hours.clone()?)),
    };
    snapshot.agent_pools.iter().filter_map(of_pool).collect()
}

/// Says what the signs are, and what is done about them.
pub(crate) fn explain(situation: &Situation<'_>, ranks: &[Rank], ahead: &Ahead, draft: &mut Draft) {
    let Situation { spec, snapshot, tally, .. } = situation;
    let Some(signals) = &spec.placement.early_signals else { return };
    for rank in ranks.iter().filter(|rank| !rank.signals.is_empty()) {
        let pool = &snapshot.agent_pools[rank.pool].name;
        draft.step(Reason::EarlySignal, Some(pool), format!("{pool} counts as dearer: {}", rank.signals));
    }
    if tally.ahead == 0 {
        return;
    }
    let more = match ahead.lacking {
        0 => String::new(),
        lacking => format!("; {lacking} of them no other spot agent pool can take now"),
    };
    let message = format!(
        "{} units of spot more are kept elsewhere while Azure advises to move, preRaise is {}{more}",
        tally.ahead, signals.pre_raise
    );
    draft.step(Reason::ReplaceAhead, None, message);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use spotpool_crds::spot_pool::EarlySignals;

    use super::*;
    use crate::snapshot::Losses;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn node(name: &str, noticed: Option<Timestamp>) -> NodeView {
        NodeView {
            name: name.to_owned(),
            agent_pool: "spota".to_owned(),
            created: at("2026-01-01T00:00:00Z"),
            ready: true,
            noticed,
            ..NodeView::default()
        }
    }

    fn pool(nodes: usize, signals: Signals) -> AgentPoolView {
        let nodes = (0..nodes).map(|index| node(&format!("n{index}"), None)).collect();
        AgentPoolView {
            name: "spota".into(),
            role: Ok(Role::Spot),
            nodes,
            signals,
            ..AgentPoolView::default()
        }
    }

    #[test]
    fn each_sign_makes_an_agent_pool_dearer_by_a_stated_factor_and_says_why() {
        let now = at("2026-03-10T13:30:00Z");
        let on = Policy { early_signals: Some(EarlySignals::default()), ..Policy::default() };
        let rise = |from: &str, to: &str, since: &str| Signals {
            price_rise: Some(PriceRise {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                since: at(since),
            }),
            ..Signals::default()
        };
        let band = |is_worse: bool, since: &str| Signals {
            band: Some(Band { is: "5-10".into(), was: Some("0-5".into()), since: at(since), is_worse }),
            ..Signals::default()
        };
        let advised = |names: &[&str]| Signals {
            advised: names.iter().map(|&name| name.to_owned()).collect(),
            ..Signals::default()
        };
        for (signals, factor, words) in [
            (Signals::default(), 1.0, ""),
            (advised(&["n1"]), 1.25, "1 of 4 nodes advised to move"),
            (advised(&["n0", "n1", "n2", "n3"]), 2.0, "4 of 4 nodes advised to move"),
            (advised(&["gone"]), 1.0, ""),
            (
                rise("0.04", "0.05", "2026-03-09T00:00:00Z"),
                1.25,
                "price rose from 0.04 to 0.05 at 2026-03-09T00:00:00Z",
            ),
            (
                rise("0.04", "4", "2026-03-09T00:00:00Z"),
                1.5,
                "price rose from 0.04 to 4 at 2026-03-09T00:00:00Z",
            ),
            (rise("0.04", "0.0419", "2026-03-09T00:00:00Z"), 1.0, ""),
            (rise("0", "0.05", "2026-03-09T00:00:00Z"), 1.0, ""),
            (rise("0.04", "0.05", "2026-03-03T13:30:00Z"), 1.0, ""),
            (band(true, "2026-03-09T00:00:00Z"), 1.25, "eviction band rose from 0-5 to 5-10"),
            (band(true, "2026-03-01T00:00:00Z"), 1.0, ""),
            (band(false, "2026-03-09T00:00:00Z"), 1.0, ""),
        ] {
            let pool = pool(4, signals);
            let weight = weigh(&on, &pool, 0.05, now);
            assert!(
                (weight.factor - factor).abs() < 1e-9,
                "{weight:?}, wanted {factor} of {:?}",
                pool.signals
            );
            assert_eq!((weight.words.as_str(), weight.rate), (words, 0.05));
            let off = weigh(&Policy::default(), &pool, 0.05, now);
            assert_eq!(off, Weight { factor: 1.0, rate: 0.05, words: String::new() });
        }
    }

    #[test]
    fn an_hour_at_which_nodes_were_lost_before_counts_with_its_numbers() {
        let mut hours = Hours {
            losses: [0; 24],
            node_hours: [100; 24],
            counted: at("2026-03-10T13:00:00Z"),
            halved: at("2026-03-08T00:00:00Z"),
        };
        hours.losses[13] = 24;
        let on = Policy { early_signals: Some(EarlySignals::default()), ..Policy::default() };
        let weight = |hours: &Hours, now: &str| {
            let signals = Signals { hours: Some(hours.clone()), ..Signals::default() };
            weigh(&on, &pool(1, signals), 0.1, at(now))
        };
        // 24 losses and a day's 1 % for 24 node-hours more, in 124 node-hours.
        let bad = weight(&hours, "2026-03-10T13:59:59Z");
        assert!((bad.rate - 24.24 / 124.0).abs() < 1e-9, "{bad:?}");
        assert_eq!(bad.words, "24 lost in 100 node-hours from 13:00 UTC on, on other days");
        // Other hours are no worse than is known of the size.
        assert_eq!(weight(&hours, "2026-03-10T14:00:00Z").words, "");
        hours.node_hours[13] = LEAST_NODE_HOURS - 1;
        assert_eq!(weight(&hours, "2026-03-10T13:00:00Z").words, "", "too little is known");
    }

    #[test]
    fn hours_are_counted_once_each_and_losses_once_each_and_all_fade() {
        let mut pool = pool(3, Signals::default());
        let count = |pool: &mut AgentPoolView, now: &str| {
            let hours = Hours::of(pool, at(now));
            pool.signals.hours = Some(hours.clone());
            hours
        };
        let first = count(&mut pool, "2026-03-10T13:20:00Z");
        assert_eq!((first.node_hours[13], first.losses[13]), (3, 0));
        // The same hour again, and half of the next: what is written changes once.
        assert_eq!(count(&mut pool, "2026-03-10T13:59:59Z"), first);
        let second = count(&mut pool, "2026-03-10T14:00:00Z");
        assert_eq!((second.node_hours[13], second.node_hours[14]), (3, 3));
        assert_eq!(count(&mut pool, "2026-03-10T14:30:00Z"), second);
        // Two notices in that hour, seen in the next: they are of the hour in which they came.
        for index in 0..2 {
            pool.nodes[index].noticed = Some(at("2026-03-10T14:59:58Z"));
        }
        let lost = count(&mut pool, "2026-03-10T15:00:01Z");
        assert_eq!((lost.losses[14], lost.losses[15]), (2, 0));
        // Counted as lost, as status remembers it: not again.
        pool.losses = Some(Losses { count: 2, at: at("2026-03-10T14:59:58Z") });
        assert_eq!(count(&mut pool, "2026-03-10T15:10:00Z"), lost);
        // A clock that is set back and on again: no panic, and no hour is lost to it.
        count(&mut pool, "2026-03-09T15:00:00Z");
        pool.nodes.clear();
        let later = count(&mut pool, "2026-03-22T12:59:59Z");
        assert_eq!((later.losses[14], later.node_hours[14]), (1, 1), "{later:?}");
        let later = count(&mut pool, "2036-03-24T13:00:00Z");
        assert_eq!((later.losses, later.node_hours), ([0; 24], [0; 24]));
    }
}
