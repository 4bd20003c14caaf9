//! Agent pools that the cluster autoscaler scales. Their minimum is moved, and nothing else of them.
//!
//! What we ask for is held by the minimum. What the autoscaler adds for pending pods counts as capacity, too, but never
//! as surplus: it takes that away itself. Nodes are given back by lowering the minimum, never below the one that people
//! gave the agent pool. Which node goes then, and whether its pods find room, is the autoscaler's to see to.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role;

use crate::action::Action;
use crate::draft::Draft;
use crate::plan::Situation;
use crate::ranking::rank;
use crate::snapshot::{AgentPoolView, NodeView};
use crate::tally::Tally;
use crate::upkeep;

/// The range of the cluster autoscaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autoscaler {
    /// The least that it keeps.
    pub min: u32,
    /// The most that it makes; never changed.
    pub max: u32,
    /// The least that people had it keep.
    pub own_min: u32,
}

/// What of a role is there, and what of it must not be left to the autoscaler.
pub(crate) struct Held {
    role: Role,
    /// Units that stay, are on their way, or are asked for by this plan.
    there: u32,
    /// Units that are held, if there are so many.
    wanted: u32,
    /// Units below which nothing is let go.
    needed: u32,
}

impl Held {
    /// Spot.
    pub fn spot(tally: &Tally, there: u32) -> Self {
        Self { role: Role::Spot, there, wanted: tally.spot_wanted(), needed: tally.spot_target }
    }

    /// On-demand: what stands in for spot is held only where we had to ask for it, so that `fallback.maxNodes` holds.
    pub fn on_demand(tally: &Tally, there: u32, fallback: u32) -> Self {
        Self { role: Role::OnDemand, there, wanted: tally.base, needed: tally.base + fallback }
    }
}

/// Machines of an autoscaled agent pool that need not be held any more.
pub(crate) struct Releasable<'a> {
    pool: &'a AgentPoolView,
    role: Role,
    /// Those that are held.
    held: u32,
    /// Those of them that are not needed.
    pub machines: u32,
}

/// The minimum that this plan leaves.
fn minimum(pool: &AgentPoolView, range: Autoscaler, draft: &Draft) -> u32 {
    let asked = draft.actions.iter().find_map(|action| match action {
        Action::ScaleUp { agent_pool, count, .. } if *agent_pool == pool.name => Some(*count),
        Action::SetMinimum { agent_pool, min, .. } if *agent_pool == pool.name => Some(*min),
        _ => None,
    });
    asked.unwrap_or(range.min)
}

/// Machines that stay whatever the autoscaler does: all of an agent pool that it does not have.
pub(crate) fn held_of(pool: &AgentPoolView, draft: &Draft) -> u32 {
    pool.autoscaler.map_or(u32::MAX, |range| minimum(pool, range, draft))
}

/// Ready units that no minimum holds: the autoscaler may take them at any time, and whoever leaves must not count on them.
pub(crate) fn loose(situation: &Situation<'_>, draft: &Draft) -> u32 {
    let of_pool = |pool: &AgentPoolView| {
        let loose = pool.staying().saturating_sub(held_of(pool, draft)) * pool.units;
        loose.min(pool.units_of(NodeView::serves))
    };
    situation.snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()).map(of_pool).sum()
}

/// The autoscaled agent pools of a role, best first.
fn of_role<'a>(situation: &Situation<'a>, role: Role) -> Vec<(&'a AgentPoolView, Autoscaler)> {
    let Situation { spec, snapshot, now, .. } = situation;
    // The plan of most SpotPools has none.
    if snapshot.agent_pools.iter().all(|pool| pool.autoscaler.is_none()) {
        return Vec::new();
    }
    let ranks = rank(&spec.placement, snapshot, role, *now).into_iter();
    let pools = ranks.map(|rank| &snapshot.agent_pools[rank.pool]);
    pools.filter_map(|pool| Some((pool, pool.autoscaler?))).collect()
}

/// Holds what is there and counted on, so that the autoscaler does not take it while it is idle; and lets go at once what
/// the minimum promises and is not there: the autoscaler would bring it, and nobody needs it.
pub(crate) fn settle(situation: &Situation<'_>, what: &Held, draft: &mut Draft) {
    let now = situation.now;
    let mut pools = Vec::new();
    let mut held = what.there;
    for (pool, range) in of_role(situation, what.role) {
        let new = draft.actions.iter().find_map(|action| match action {
            Action::ScaleUp { agent_pool, new, .. } if *agent_pool == pool.name => Some(*new),
            _ => None,
        });
        let stay = upkeep::carried(pool).unwrap_or_else(|| pool.staying() + pool.arriving(now));
        let have = stay + new.unwrap_or(0);
        let machines = minimum(pool, range, draft).min(have);
        held = held.saturating_sub((have - machines) * pool.units);
        pools.push((pool, range, have, machines));
    }
    for (pool, range, have, machines) in &mut pools {
        let lacking = what.wanted.saturating_sub(held).div_ceil(pool.units);
        let more = (*have).min(pool.most()).saturating_sub(*machines).min(lacking);
        if more == 0 || hindrance(pool, now, draft).is_some() {
            continue;
        }
        *machines += more;
        held += more * pool.units;
        let message = format!(
            "{machines} nodes of {} are counted on: its minimum is raised from {} to that, so that the cluster \
             autoscaler leaves them",
            pool.name, range.min
        );
        set(pool, *machines, Reason::HoldMinimum, message, draft);
    }
    if held < what.needed {
        return;
    }
    for (pool, range, have, machines) in pools {
        let min = range.own_min.max(machines);
        if range.min <= min || hindrance(pool, now, draft).is_some() {
            continue;
        }
        let message = format!(
            "{} of {} remain and are enough with the others: its minimum is lowered from {} to {min}, so that the \
             cluster autoscaler brings no more",
            have, pool.name, range.min
        );
        set(pool, min, Reason::LowerMinimum, message, draft);
    }
}

/// What of `surplus` units is held by minimums, the agent pool that ranks lowest first. Takes it off `surplus`.
pub(crate) fn releasable<'a>(
    situation: &Situation<'a>,
    role: Role,
    surplus: &mut u32,
    draft: &Draft,
) -> Vec<Releasable<'a>> {
    let mut found = Vec::new();
    for (pool, range) in of_role(situation, role).into_iter().rev() {
        let held = minimum(pool, range, draft).min(pool.staying());
        let machines = held.saturating_sub(range.own_min).min(*surplus / pool.units);
        if machines > 0 {
            *surplus -= machines * pool.units;
            found.push(Releasable { pool, role, held, machines });
        }
    }
    found
}

/// Lowers a minimum, as far as `spare` units are ready beyond need; or says why not.
pub(crate) fn release(
    what: &Releasable<'_>,
    spare: &mut u32,
    now: Timestamp,
    draft: &mut Draft,
) -> Result<(), String> {
    let Releasable { pool, role, held, machines } = what;
    let Some(range) = pool.autoscaler else { return Ok(()) };
    if let Some(why) = hindrance(pool, now, draft) {
        draft.step(why, Some(&pool.name), format!("the minimum of {} cannot be lowered now", pool.name));
        return Err(format!("{machines} of {} are kept: nothing can be asked of it now", pool.name));
    }
    let machines = (*machines).min(*spare / pool.units);
    if machines == 0 {
        return Err(format!("{} is kept: what is ready without it would be too little", pool.name));
    }
    *spare -= machines * pool.units;
    if *role == Role::OnDemand {
        draft.memory.failed_back_at = Some(now);
    }
    let min = range.own_min.max(held - machines);
    let message = format!(
        "{machines} nodes of {} are no longer needed: its minimum is lowered from {} to {min}, and the cluster autoscaler \
         takes those that are idle",
        pool.name, range.min
    );
    set(pool, min, Reason::LowerMinimum, message, draft);
    Ok(())
}

fn set(pool: &AgentPoolView, min: u32, reason: Reason, message: String, draft: &mut Draft) {
    draft.step(reason, Some(&pool.name), message);
    draft.actions.push(Action::SetMinimum { agent_pool: pool.name.clone(), min, reason });
}

/// Why the minimum cannot be written now, if so: one write to an agent pool in a plan, and none while one runs.
fn hindrance(pool: &AgentPoolView, now: Timestamp, draft: &mut Draft) -> Option<Reason> {
    let is_written = draft.actions.iter().any(|action| action.agent_pool() == Some(&pool.name));
    if pool.busy || pool.upkeep.is_some() || is_written {
        return Some(Reason::AgentPoolBusy);
    }
    // That Azure has no capacity hinders nobody who asks for none.
    let until = pool.unwritable_until.filter(|until| *until > now)?;
    draft.wake_at(until);
    Some(Reason::AgentPoolAvoided)
}

/// How machines are asked of an autoscaled agent pool, in words.
pub(crate) fn by_minimum(pool: &AgentPoolView, min: u32) -> String {
    let Some(range) = pool.autoscaler else { return String::new() };
    format!(", by a minimum of {min} instead of {}", range.min)
}

/// Why it takes no more, in words.
pub(crate) fn at_maximum(pool: &AgentPoolView) -> String {
    let max = pool.autoscaler.map_or(0, |range| range.max);
    format!(
        "{} is at the cluster autoscaler's maxCount of {max}, below its maxNodes of {}: raise maxCount",
        pool.name, pool.max_nodes
    )
}
