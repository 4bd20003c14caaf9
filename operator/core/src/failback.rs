//! Giving back what is no longer needed: on-demand first, one drain after another, never in a hurry.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};

use crate::fit::{self, Fit};
use crate::plan::{Action, Draft, Memory, Relapses, Situation, kept, later};
use crate::ranking::rank;
use crate::snapshot::NodeView;
use crate::units::removable;

/// An agent that has not answered this long after `notAfter` does not live.
const AGENT_SILENCE: SignedDuration = SignedDuration::from_secs(60);

/// Spot that fails within this of the last failback has not come back for good.
const RELAPSE: SignedDuration = SignedDuration::from_hours(1);
/// A relapse is forgotten after this.
const FORGIVEN: SignedDuration = SignedDuration::from_hours(6);
/// Stabilization doubles this often at most.
const MOST_DOUBLINGS: u32 = 5;
/// … and is never longer.
const LONGEST_STABILIZATION: SignedDuration = SignedDuration::from_hours(24);

/// On-demand is bought, or kept that was about to go: soon after some was given back that was too early.
pub(crate) fn note_relapse(situation: &Situation<'_>, draft: &mut Draft) {
    let now = situation.now;
    let soon = RELAPSE.max(stabilization(situation, &draft.memory));
    // One failback, one relapse.
    let Some(at) = draft.memory.failed_back_at.take() else { return };
    if now.duration_since(at) < soon {
        let count = remaining_relapses(draft.memory.relapses.as_ref(), now) + 1;
        draft.memory.relapses = Some(Relapses { count, at: now });
    }
}

/// Relapses that still count: one less every [`FORGIVEN`].
fn remaining_relapses(relapses: Option<&Relapses>, now: Timestamp) -> u32 {
    let Some(relapses) = relapses else { return 0 };
    let forgiven = now.duration_since(relapses.at).as_secs().max(0) / FORGIVEN.as_secs();
    relapses.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
}

/// How long surplus must last: `failback.stabilization`, doubled for each relapse.
fn stabilization(situation: &Situation<'_>, memory: &Memory) -> SignedDuration {
    let base = std::time::Duration::from(situation.spec.failback.stabilization);
    let base = SignedDuration::try_from(base).unwrap_or(LONGEST_STABILIZATION);
    let doublings = remaining_relapses(memory.relapses.as_ref(), situation.now).min(MOST_DOUBLINGS);
    base.saturating_mul(1 << doublings).min(LONGEST_STABILIZATION.max(base))
}

/// The voluntary drains that are under way.
pub(crate) struct Drains<'a> {
    /// Draining or drained, and still asked for.
    open: Vec<(&'a NodeView, Role, u32)>,
    failed: Vec<&'a NodeView>,
}

impl<'a> Drains<'a> {
    pub fn of(situation: &Situation<'a>) -> Self {
        let (snapshot, now) = (situation.snapshot, situation.now);
        let mut drains = Self { open: Vec::new(), failed: Vec::new() };
        for pool in &snapshot.agent_pools {
            let Ok(role) = pool.role else { continue };
            for node in pool.nodes.iter().filter(|node| node.noticed.is_none()) {
                let Some(drain) = &node.drain else { continue };
                let given_up = match drain.phase {
                    Some(DrainPhase::TimedOut | DrainPhase::Cancelled) => true,
                    Some(DrainPhase::Drained) => false,
                    Some(DrainPhase::Draining) | None => {
                        drain.not_after.saturating_add(AGENT_SILENCE).is_ok_and(|end| end < now)
                    }
                };
                if given_up {
                    drains.failed.push(node);
                } else {
                    drains.open.push((node, role, pool.units));
                }
            }
        }
        // Those that have got least far are taken back first.
        drains.open.sort_by_key(|(node, ..)| {
            (node.drain.as_ref().map(|drain| drain.phase == Some(DrainPhase::Drained)), node.name.clone())
        });
        drains
    }

    /// Takes back requests on nodes of `role` until they are worth `needed` units: quicker than any new machine.
    pub fn withdraw(&mut self, role: Role, needed: u32, draft: &mut Draft) -> u32 {
        let mut taken = 0;
        self.open.retain(|(node, of, units)| {
            if *of != role || taken >= needed {
                return true;
            }
            taken += units;
            draft.step(
                Reason::NodeNeededAgain,
                Some(&node.agent_pool),
                format!("{} is needed again", node.name),
            );
            draft
                .actions
                .push(Action::WithdrawDrain { node: node.name.clone(), reason: Reason::NodeNeededAgain });
            false
        });
        taken
    }
}

pub(crate) fn decide(
    situation: &Situation<'_>,
    fallback_wanted: u32,
    drains: &Drains<'_>,
    draft: &mut Draft,
) {
    let now = situation.now;
    for node in &drains.failed {
        let until = later(now, situation.spec.failback.stabilization);
        draft.memory.paused_until = Some(draft.memory.paused_until.map_or(until, |paused| paused.max(until)));
        draft.step(
            Reason::DrainTimedOut,
            Some(&node.agent_pool),
            format!("{} could not be drained in time; its request is withdrawn", node.name),
        );
        draft.actions.push(Action::WithdrawDrain { node: node.name.clone(), reason: Reason::DrainTimedOut });
    }
    draft.memory.paused_until = draft.memory.paused_until.filter(|until| *until > now);

    return_drained(situation, drains, draft);
    request_drains(situation, fallback_wanted, drains, draft);
}

/// Deletes the machines that are drained, all of an agent pool in one request.
fn return_drained(situation: &Situation<'_>, drains: &Drains<'_>, draft: &mut Draft) {
    let (snapshot, now) = (situation.snapshot, situation.now);
    let scaled: BTreeSet<String> = draft
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::ScaleUp { agent_pool, .. } => Some(agent_pool.clone()),
            _ => None,
        })
        .collect();
    for pool in &snapshot.agent_pools {
        let mut nodes: Vec<String> = drains
            .open
            .iter()
            .filter(|(node, ..)| node.agent_pool == pool.name)
            .filter(|(node, ..)| {
                node.drain.as_ref().is_some_and(|drain| drain.phase == Some(DrainPhase::Drained))
            })
            .map(|(node, ..)| node.name.clone())
            .collect();
        if nodes.is_empty() {
            continue;
        }
        nodes.sort();
        let names = nodes.join(", ");
        if pool.busy || scaled.contains(&pool.name) {
            draft.step(
                Reason::AgentPoolBusy,
                Some(&pool.name),
                format!("{names} drained; {} has an operation running", pool.name),
            );
        } else if let Some(until) = pool.avoided_until.filter(|until| *until > now) {
            draft.wake_at(until);
            draft.step(
                Reason::AgentPoolAvoided,
                Some(&pool.name),
                format!("{names} drained; {} is avoided until {until:.0}", pool.name),
            );
        } else {
            draft.step(Reason::ReturnDrained, Some(&pool.name), format!("return {names}"));
            let remaining = pool.existing().saturating_sub(nodes.len() as u32);
            draft.actions.push(Action::DeleteMachines { agent_pool: pool.name.clone(), nodes, remaining });
        }
    }
}

fn request_drains(situation: &Situation<'_>, fallback_wanted: u32, drains: &Drains<'_>, draft: &mut Draft) {
    let Situation { spec, tally, now, .. } = situation;
    let now = *now;
    let candidates = surplus(situation, fallback_wanted);
    if candidates.is_empty() {
        draft.memory.surplus_since = None;
        return;
    }
    // Any node under notice starts the wait anew: spot that is being taken is not stable.
    if tally.evicting > 0 {
        draft.memory.surplus_since = None;
        let message = format!("{} more than needed, kept while Azure takes nodes", candidates.len());
        draft.step(Reason::Stabilizing, None, message);
        return;
    }
    let since = *draft.memory.surplus_since.get_or_insert(now);
    let stable_at = since.saturating_add(stabilization(situation, &draft.memory)).unwrap_or(Timestamp::MAX);
    let from = draft.memory.paused_until.unwrap_or(now).max(stable_at);
    if from > now {
        draft.wake_at(from);
        let relapses = match remaining_relapses(draft.memory.relapses.as_ref(), now) {
            0 => String::new(),
            1 => ", later than usual because spot failed soon after the last failback".to_owned(),
            n => format!(", later than usual because spot failed {n} times soon after a failback"),
        };
        draft.step(
            Reason::Stabilizing,
            None,
            format!("{} more than needed; the first is drained from {from:.0}{relapses}", candidates.len()),
        );
        return;
    }
    // Voluntary: what stays must carry the pool by itself.
    let mut spare = tally.ready().saturating_sub(tally.wanted + tally.standby);
    let returned: usize = draft.actions.iter().map(Action::machines_deleted).sum();
    let under_way = drains.open.len() - returned;
    let mut slots = (spec.failback.max_concurrent.max(1) as usize).saturating_sub(under_way);
    let mut fit = Fit::of(
        situation.snapshot,
        candidates.iter().map(|(node, ..)| *node),
        drains.open.iter().map(|(node, ..)| *node),
    );
    for (node, role, units) in candidates {
        if slots == 0 {
            break;
        }
        let reason = match role {
            Role::OnDemand => DrainReason::Failback,
            Role::Spot => DrainReason::ScaleDown,
        };
        let old_enough = later(node.created, spec.failback.min_on_demand_lifetime);
        if role == Role::OnDemand && old_enough > now {
            draft.wake_at(old_enough);
            draft.step(
                Reason::MinimumLifetime,
                Some(&node.agent_pool),
                format!("{} is kept until {old_enough:.0}, its minimum lifetime", node.name),
            );
            continue;
        }
        let less = if node.ready { units } else { 0 };
        let Some(left) = spare.checked_sub(less) else { continue };
        if role == Role::OnDemand && !fit::allows(&mut fit, node, now, draft) {
            continue;
        }
        spare = left;
        slots -= 1;
        if role == Role::OnDemand {
            draft.memory.failed_back_at = Some(now);
        }
        let step = if role == Role::OnDemand { Reason::Failback } else { Reason::ScaleDown };
        draft.step(step, Some(&node.agent_pool), format!("drain {}: it is no longer needed", node.name));
        draft.actions.push(Action::RequestDrain {
            node: node.name.clone(),
            reason,
            not_after: later(now, spec.failback.drain_timeout),
        });
    }
}

/// Nodes beyond need, in the order in which they go: bought on-demand nodes, oldest first, then spot nodes,
/// those that do not work first, then those of the agent pool that ranks lowest, the youngest first. A node whose
/// units are needed in part is needed.
fn surplus<'a>(situation: &Situation<'a>, fallback_wanted: u32) -> Vec<(&'a NodeView, Role, u32)> {
    let Situation { spec, snapshot, tally, .. } = situation;
    let mut on_demand = Vec::new();
    let mut spot = Vec::new();
    for pool in &snapshot.agent_pools {
        let staying = pool.nodes.iter().filter(|node| node.stays());
        let mut nodes: Vec<_> = staying.map(|node| (node, pool.units)).collect();
        nodes.sort_by(|(a, _), (b, _)| (a.created, &a.name).cmp(&(b.created, &b.name)));
        match pool.role {
            Ok(Role::OnDemand) => {
                // Those found at adoption are the oldest.
                on_demand.extend(nodes.into_iter().skip(kept(spec, pool) as usize));
            }
            Ok(Role::Spot) => spot.extend(nodes),
            Err(_) => {}
        }
    }
    on_demand.sort_by(|(a, _), (b, _)| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let places: HashMap<&str, usize> = rank(&spec.placement, snapshot, Role::Spot, situation.now)
        .into_iter()
        .map(|rank| (snapshot.agent_pools[rank.pool].name.as_str(), rank.position))
        .collect();
    let place = |node: &NodeView| places.get(node.agent_pool.as_str()).copied();
    spot.sort_by(|(a, _), (b, _)| {
        (a.ready, place(b), b.created, &a.name).cmp(&(b.ready, place(a), a.created, &b.name))
    });
    // Nobody goes for a node that is yet to come.
    let there = |role| -> u32 {
        let pools = snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(role));
        pools.map(|pool| pool.staying() * pool.units).sum()
    };
    let too_much_on_demand = there(Role::OnDemand).saturating_sub(tally.base + fallback_wanted);
    let too_much_spot = there(Role::Spot).saturating_sub(tally.spot_target);
    let of = |nodes: Vec<(&'a NodeView, u32)>, role, too_much| {
        let go = removable(nodes.into_iter(), |(_, units)| *units, too_much);
        go.into_iter().map(move |(node, units)| (node, role, units))
    };
    of(on_demand, Role::OnDemand, too_much_on_demand).chain(of(spot, Role::Spot, too_much_spot)).collect()
}
