//! On-demand in the stead of spot: how much, and from when.

use spotpool_crds::{Duration, Reason};

use crate::caps::Bound;
use crate::draft::Draft;
use crate::memory::Memory;
use crate::placement::Placement;
use crate::plan::{Situation, why_not};
use crate::snapshot::NodeView;
use crate::tally::Tally;
use crate::time::later;

/// A node that somebody has cordoned mostly comes back: a person tries something, AKS begins an upgrade of which we hear
/// later. On-demand would take as long to boot.
const SET_ASIDE: Duration = Duration::from_secs(120);

/// What spot, and the on-demand that is always there, do not carry, in units.
pub(crate) struct Shortfall {
    /// Was there once and is not ready now. A spot node on its way counts for nothing until it is Ready.
    pub lost: u32,
    /// Of that, what is there and only cordoned, without any sign that its VM goes.
    pub set_aside: u32,
    /// Never was there, and spot is on its way for it.
    pub growth_on_its_way: u32,
    /// Never was there, and no agent pool could be asked for it.
    pub growth_refused: u32,
}

impl Shortfall {
    /// Measures the shortfall and keeps the clocks of `memory`.
    pub fn of(situation: &Situation<'_>, asked_now: u32, memory: &mut Memory) -> Self {
        let (tally, now) = (&situation.tally, situation.now);
        let lost = lost(situation);
        memory.established = established(situation);
        let growth = tally.wanted.saturating_sub(carried(tally)).saturating_sub(lost);
        let on_its_way = (tally.spot_have + asked_now).saturating_sub(tally.spot_ready);
        let growth_on_its_way = growth.min(on_its_way);
        memory.lost_since = (lost > 0).then(|| memory.lost_since.unwrap_or(now));
        memory.growth_since = (growth > 0).then(|| memory.growth_since.unwrap_or(now));
        let pools = situation.snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok());
        let set_aside: u32 = pools.map(|pool| pool.units_of(NodeView::is_set_aside)).sum();
        let set_aside = set_aside.min(lost);
        Self { lost, set_aside, growth_on_its_way, growth_refused: growth - growth_on_its_way }
    }
}

/// The most that has been ready at once, at most what is wanted.
fn established(situation: &Situation<'_>) -> u32 {
    let tally = &situation.tally;
    situation.snapshot.memory.established.max(tally.ready()).min(tally.wanted)
}

/// What spot, and the on-demand that is always there, carry.
pub(crate) fn carried(tally: &Tally) -> u32 {
    // The base is on-demand already: what of it is on its way would come no sooner as fallback.
    let base = tally.on_demand_ready + tally.on_demand_coming + tally.base_missing();
    tally.spot_ready + base.min(tally.base)
}

/// What was there once and is not carried now.
pub(crate) fn lost(situation: &Situation<'_>) -> u32 {
    established(situation).saturating_sub(carried(&situation.tally))
}

/// How much on-demand there should be beyond the base.
pub(crate) struct Fallback {
    /// Units that should stand in now.
    pub units: u32,
    /// Nodes that may be bought without passing `fallback.maxNodes`, counting all that run or are on their
    /// way, those that leave included.
    pub most: u32,
}

pub(crate) fn decide(situation: &Situation<'_>, shortfall: &Shortfall, draft: &mut Draft) -> Fallback {
    let now = situation.now;
    let short = shortfall.lost + shortfall.growth_on_its_way + shortfall.growth_refused;
    let Some(fallback) = &situation.spec.fallback else {
        if shortfall.lost + shortfall.growth_refused > 0 {
            draft.step(
                Reason::FallbackAtLimit,
                None,
                format!("{short} units short and no fallback configured: set spec.fallback.maxNodes to allow on-demand"),
            );
        }
        return Fallback { units: 0, most: 0 };
    };

    let mut due = 0;
    let parts = [
        (shortfall.lost - shortfall.set_aside, draft.memory.lost_since, fallback.after, "lost"),
        (
            shortfall.set_aside,
            draft.memory.lost_since,
            fallback.after.max(SET_ASIDE),
            "cordoned, their VMs run",
        ),
        (shortfall.growth_refused, draft.memory.growth_since, fallback.after, "refused"),
        (shortfall.growth_on_its_way, draft.memory.growth_since, fallback.growth_after, "growth"),
    ];
    for (units, since, wait, what) in parts.into_iter().filter(|(units, ..)| *units > 0) {
        let from = since.map_or(now, |since| later(since, wait));
        if from <= now {
            due += units;
        } else {
            draft.wake_at(from);
            draft.step(
                Reason::WaitingForSpot,
                None,
                format!("{units} units short ({what}): on-demand from {from:.0} unless spot is ready before"),
            );
        }
    }

    let limit = fallback.max_nodes.max(0) as u32;
    Fallback { units: due, most: limit }
}

/// Says loudly that on-demand is due and nobody has it, and what is wrong with each. One that merely has an operation
/// running will be asked next: then it is too early to say so.
pub(crate) fn short(situation: &Situation<'_>, placement: &Placement, draft: &mut Draft) -> Option<String> {
    let is_busy = placement.passed_over.iter().any(|(_, reason)| *reason == Reason::AgentPoolBusy);
    if placement.unplaced == 0 || is_busy {
        return None;
    }
    let pools = &situation.snapshot.agent_pools;
    let mut why: Vec<String> =
        placement.passed_over.iter().map(|(index, reason)| why_not(&pools[*index], *reason)).collect();
    if why.is_empty() {
        why.push("no agent pool of the SpotPool can take more on demand".into());
    }
    let message = format!("{} units short of on-demand: {}", placement.unplaced, why.join("; "));
    draft.step(Reason::OnDemandUnavailable, None, &message);
    Some(message)
}

/// Says what `fallback.maxNodes` keeps from being bought.
pub(crate) fn explain_limit(situation: &Situation<'_>, placement: &Placement, draft: &mut Draft) {
    let units = placement.over_limit;
    let is_by_nodes = placement.bound_by.is_some_and(|(bound, _)| bound == Bound::Nodes);
    let Some(fallback) = situation.spec.fallback.as_ref().filter(|_| units > 0 && is_by_nodes) else {
        return;
    };
    let limit = fallback.max_nodes;
    let message = format!("{units} units more should fall back, fallback.maxNodes is {limit}");
    draft.step(Reason::FallbackAtLimit, None, message);
}
