//! Giving back what is no longer needed: on-demand first, one drain after another, never in a hurry.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{OperationKind, Role, SpotPoolSpec};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};

use crate::action::Action;
use crate::autoscaler::{self, Releasable};
use crate::caps::Caps;
use crate::draft::{Draft, acts};
use crate::fit::{self, Fit};
use crate::memory::{Answered, Probe, Relapses};
use crate::plan::Situation;
use crate::ranking::rank;
use crate::signals;
use crate::snapshot::NodeView;
use crate::tally::kept;
use crate::time::{later, later_by};
use crate::units::removable;
use crate::upkeep;
use crate::window::{Opening, opening};
use crate::wishes::Pause;

/// An agent that has not answered this long after `notAfter` does not live.
const AGENT_SILENCE: SignedDuration = SignedDuration::from_secs(60);

/// Spot that fails within this of the last failback has not come back for good.
const RELAPSE: SignedDuration = SignedDuration::from_hours(1);
/// A relapse is forgotten after this.
const FORGIVEN: SignedDuration = SignedDuration::from_hours(6);

/// On-demand is bought, or kept that was about to go: soon after some was given back that was too early.
pub(crate) fn note_relapse(situation: &Situation<'_>, draft: &mut Draft) {
    let now = situation.now;
    let soon = RELAPSE.max(stabilization(situation.spec));
    // Whoever goes next goes alone again.
    draft.memory.probe = None;
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

/// `failback.stabilization`: how long surplus must last, and for how long a need is remembered.
fn stabilization(spec: &SpotPoolSpec) -> SignedDuration {
    SignedDuration::try_from(std::time::Duration::from(spec.failback.stabilization))
        .unwrap_or(SignedDuration::MAX)
}

/// Where the window stands in a spec.
const FIELD: &str = "failback.window";

/// The voluntary drains that are under way.
pub(crate) struct Drains<'a> {
    /// Draining or drained, and still asked for.
    pub open: Vec<(&'a NodeView, Role, u32)>,
    failed: Vec<&'a NodeView>,
    /// Asked for by another SpotPool, which cannot take them back any more.
    not_ours: Vec<&'a NodeView>,
    /// In agent pools that the cluster autoscaler has: it chooses by itself who goes.
    autoscaled: Vec<&'a NodeView>,
    /// Agent pools of which Azure deletes machines right now.
    deleting: BTreeSet<&'a str>,
}

impl<'a> Drains<'a> {
    pub fn of(situation: &Situation<'a>) -> Self {
        let (snapshot, now) = (situation.snapshot, situation.now);
        let mut drains = Self {
            open: Vec::new(),
            failed: Vec::new(),
            not_ours: Vec::new(),
            autoscaled: Vec::new(),
            deleting: BTreeSet::new(),
        };
        for pool in &snapshot.agent_pools {
            let Ok(role) = pool.role else { continue };
            if pool.operation.as_ref().is_some_and(|it| it.kind == OperationKind::DeleteMachines) {
                drains.deleting.insert(&pool.name);
            }
            for node in pool.nodes.iter().filter(|node| node.noticed.is_none()) {
                let Some(drain) = &node.drain else { continue };
                let given_up = match drain.phase {
                    Some(DrainPhase::TimedOut | DrainPhase::Cancelled) => true,
                    Some(DrainPhase::Drained) => false,
                    Some(DrainPhase::Draining) | None => {
                        drain.not_after.saturating_add(AGENT_SILENCE).is_ok_and(|end| end < now)
                    }
                };
                let is_wished = drain.reason == DrainReason::Manual;
                if !drain.is_ours {
                    drains.not_ours.push(node);
                } else if pool.autoscaler.is_some() && !is_wished {
                    drains.autoscaled.push(node);
                } else if pool.autoscaler.is_some() && drain.phase == Some(DrainPhase::Drained) {
                    // Empty and closed: the autoscaler takes it.
                } else if given_up {
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
        let deleting = &self.deleting;
        self.open.retain(|(node, of, units)| {
            // A person wants that node gone: it is replaced, not kept.
            let wished = node.drain.as_ref().is_some_and(|drain| drain.reason == DrainReason::Manual);
            if *of != role || taken >= needed || wished || is_beyond_recall(node, deleting) {
                return true;
            }
            taken += units;
            draft.withdraw(node, Reason::NodeNeededAgain, format!("{} is needed again", node.name));
            false
        });
        taken
    }

    /// Gives back all nodes but those that `goes_on` names.
    pub fn withdraw_all(
        &mut self,
        reason: Reason,
        draft: &mut Draft,
        mut goes_on: impl FnMut(&NodeView, Role) -> bool,
    ) {
        let deleting = &self.deleting;
        self.open.retain(|(node, role, _)| {
            if goes_on(node, *role) || is_beyond_recall(node, deleting) {
                return true;
            }
            draft.withdraw(node, reason, format!("{} is given back", node.name));
            false
        });
    }

    /// Takes back what has failed and what is not ours; returns one that has failed.
    pub fn clean(&self, situation: &Situation<'_>, draft: &mut Draft) -> Option<&'a NodeView> {
        for node in &self.not_ours {
            let message = format!(
                "{} was asked to drain by a SpotPool that has let go of it; the request is withdrawn",
                node.name
            );
            draft.withdraw(node, Reason::DrainNotOurs, message);
        }
        for node in &self.autoscaled {
            let message = format!("{} is left to the cluster autoscaler, not drained", node.name);
            draft.withdraw(node, Reason::LeftToAutoscaler, message);
        }
        let until = later(situation.now, situation.spec.failback.stabilization);
        for node in &self.failed {
            // What is not withdrawn fails again in every plan: the pause would never end.
            if acts(situation.spec) {
                draft.memory.paused_until =
                    Some(draft.memory.paused_until.map_or(until, |paused| paused.max(until)));
            }
            let message = format!("{} could not be drained in time; its request is withdrawn", node.name);
            draft.withdraw(node, Reason::DrainTimedOut, message);
        }
        draft.memory.paused_until = draft.memory.paused_until.filter(|until| *until > situation.now);
        self.failed.first().copied()
    }
}

/// Whether Azure may be deleting the machine: opened again, its node would take pods that go down with it.
fn is_beyond_recall(node: &NodeView, deleting: &BTreeSet<&str>) -> bool {
    let is_drained = node.drain.as_ref().is_some_and(|drain| drain.phase == Some(DrainPhase::Drained));
    is_drained && deleting.contains(node.agent_pool.as_str())
}

pub(crate) fn decide(
    situation: &Situation<'_>,
    fallback_wanted: u32,
    drains: &Drains<'_>,
    caps: &Caps,
    draft: &mut Draft,
) {
    let failed = drains.clean(situation, draft);
    follow_probe(situation, draft);
    return_drained(situation, drains, draft);
    caps.shed(situation, drains, draft);
    let wish = situation.snapshot.wishes.failback(draft.memory.answered.as_ref()).map(str::to_owned);
    let tally = &situation.tally;
    // Out of caution nothing is given back in favour of spot, unless a person wants it; what nobody wants any more goes.
    let fallback_wanted = match &wish {
        None if tally.keeps_on_demand => fallback_wanted.max(tally.wanted.saturating_sub(tally.base)),
        _ => fallback_wanted,
    };
    let answer = match (failed, request_drains(situation, fallback_wanted, drains, wish.is_some(), draft)) {
        (Some(node), _) => Some(format!("{} could not be drained in time", node.name)),
        (None, answer) => answer,
    };
    if let (Some(value), Some(answer)) = (wish, answer) {
        draft.step(Reason::FailbackRequested, None, format!("failback was asked for: {answer}"));
        draft.memory.answered = Some(Answered { value, answer });
    }
}

/// Keeps the probe's clock: it runs from when its node is gone, and starts anew where spot is not whole.
fn follow_probe(situation: &Situation<'_>, draft: &mut Draft) {
    let Some(probe) = &mut draft.memory.probe else { return };
    let node = situation.snapshot.nodes().find(|node| node.name == probe.node);
    match node {
        None => probe.gone_since = Some(probe.gone_since.unwrap_or(situation.now)),
        // Its request was taken back: it has not gone.
        Some(node) if node.drain.is_none() => draft.memory.probe = None,
        Some(_) => {}
    }
}

/// Deletes the machines that are drained, all of an agent pool in one request.
pub(crate) fn return_drained(situation: &Situation<'_>, drains: &Drains<'_>, draft: &mut Draft) {
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
            // Its machine may be gone for minutes before its Node is: Azure refuses to delete it twice.
            .filter(|(node, ..)| pool.machines.contains(&node.name))
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
        } else if let Some(until) = pool.unwritable_until.filter(|until| *until > now) {
            draft.wake_at(until);
            draft.step(
                Reason::AgentPoolAvoided,
                Some(&pool.name),
                format!("{names} drained; {} is avoided until {until:.0}", pool.name),
            );
        } else {
            draft.step(Reason::ReturnDrained, Some(&pool.name), format!("return {names}"));
            let remaining = pool.existing().saturating_sub(nodes.len() as u32);
            let (agent_pool, reason) = (pool.name.clone(), Reason::ReturnDrained);
            draft.actions.push(Action::DeleteMachines { agent_pool, nodes, remaining, reason });
        }
    }
}

/// Says what keeps every node until a person changes it, also while none is too many.
pub(crate) fn explain_hindrance(situation: &Situation<'_>, draft: &mut Draft) {
    let Situation { spec, snapshot, now, .. } = situation;
    if let Some(Opening::Invalid(what_to_change)) =
        spec.failback.window.as_ref().map(|window| opening(FIELD, window, *now))
    {
        draft.step(Reason::WindowInvalid, None, format!("no node is given back: {what_to_change}"));
    }
    match snapshot.wishes.pause(*now) {
        Pause::No => {}
        Pause::Until(until) => {
            draft.wake_at(until);
            draft.step(Reason::FailbackPaused, None, format!("failback is paused until {until:.0}"));
        }
        Pause::Open(why) => draft.step(Reason::FailbackPaused, None, format!("failback is paused {why}")),
    }
}

/// From when nodes may be asked to leave, if not now, and why; never by itself is [`Timestamp::MAX`].
fn not_before(
    situation: &Situation<'_>,
    stable_at: Timestamp,
    draft: &Draft,
) -> Option<(Timestamp, Reason, String)> {
    let Situation { spec, snapshot, now, .. } = situation;
    let from = draft.memory.paused_until.unwrap_or(*now).max(stable_at).max(*now);
    let (from, reason, why) = match snapshot.wishes.pause(*now) {
        Pause::No if from > *now => (from, Reason::Stabilizing, String::new()),
        Pause::No => (from, Reason::Failback, String::new()),
        Pause::Until(until) if until >= from => {
            (until, Reason::FailbackPaused, ", paused until then".to_owned())
        }
        Pause::Until(_) => (from, Reason::Stabilizing, String::new()),
        Pause::Open(_) => return Some((Timestamp::MAX, Reason::FailbackPaused, String::new())),
    };
    match spec.failback.window.as_ref().map(|window| opening(FIELD, window, from)) {
        None | Some(Opening::Open) => (from > *now).then_some((from, reason, why)),
        Some(Opening::Opens(opens)) => {
            Some((opens, Reason::WindowClosed, ", when failback.window opens".to_owned()))
        }
        Some(Opening::Invalid(_)) => Some((Timestamp::MAX, Reason::WindowInvalid, String::new())),
    }
}

/// Asks surplus nodes to leave. Where a person has asked for it, says what came of it once nothing more is to come.
fn request_drains(
    situation: &Situation<'_>,
    fallback_wanted: u32,
    drains: &Drains<'_>,
    wished: bool,
    draft: &mut Draft,
) -> Option<String> {
    let Situation { spec, snapshot, tally, now } = situation;
    let now = *now;
    let returned: usize = draft.actions.iter().map(Action::machines_deleted).sum();
    let shed = shed(draft);
    let under_way = drains.open.len() - returned + shed.len();
    let is_gone = |surplus: &mut Surplus<'_>| {
        surplus.nodes.retain(|(node, ..)| !shed.contains(&node.name));
        surplus.nodes.is_empty() && surplus.held.is_empty()
    };
    let window = stabilization(spec);
    let needed = tally.base + fallback_wanted;
    if needed > draft.memory.needs.units {
        // Spot does not carry what it did: whoever goes next goes alone again.
        draft.memory.probe = None;
    }
    draft.memory.needs.note(needed, window, now);
    let mut beyond_need = surplus(situation, needed, draft);
    if is_gone(&mut beyond_need) {
        draft.memory.surplus_since = None;
        draft.memory.probe = None;
        return drains.open.is_empty().then(|| "no node is left that is not needed".to_owned());
    }
    let more = format!("{} more than needed", beyond_need.machines());
    // What AKS works at is neither here nor gone: what is too much then is not known.
    if upkeep::is_under_way(situation) {
        draft.memory.surplus_since = None;
        return Some("AKS is at work on an agent pool".to_owned());
    }
    let since = *draft.memory.surplus_since.get_or_insert(now);
    if let Some(until) = draft.memory.needs.less_since() {
        draft.wake_at(later_by(until, window));
    }
    // Where Azure is taking nodes, more may go within seconds.
    if tally.evicting > 0 {
        draft.step(Reason::Stabilizing, None, format!("{more}, kept while Azure takes nodes"));
        return Some(format!("{more}, kept while Azure takes nodes"));
    }
    let mut beyond_window = surplus(situation, draft.memory.needs.most(), draft);
    let needed_until = draft.memory.needs.less_since().filter(|_| is_gone(&mut beyond_window));
    let stable_at = later_by(needed_until.map_or(since, |until| until.max(since)), window);
    let Surplus { nodes: candidates, held } = if wished { beyond_need } else { beyond_window };
    if wished {
        // A person knows better than clocks and calendars, but does not undo what another person has paused.
        if let Pause::Until(_) | Pause::Open(_) = snapshot.wishes.pause(now) {
            return Some(format!("{more}, kept because failback is paused by annotation"));
        }
    } else if let Some((from, reason, why)) = not_before(situation, stable_at, draft) {
        if from < Timestamp::MAX {
            draft.wake_at(from);
            draft.step(reason, None, format!("{more}; the first is drained from {from:.0}{why}"));
        } else {
            draft.step(reason, None, format!("{more}, kept until a person changes that"));
        }
        return None;
    }
    // Voluntary: what stays must carry the pool by itself.
    let carries = tally.ready().saturating_sub(autoscaler::loose(situation, draft));
    let mut spare = carries.saturating_sub(tally.wanted + tally.standby);
    let mut slots = (spec.failback.max_concurrent.max(1) as usize).saturating_sub(under_way);
    let mut fit = Fit::of(
        situation.snapshot,
        candidates.iter().map(|(node, ..)| *node),
        drains.open.iter().map(|(node, ..)| *node),
    );
    let mut probing = Probing::of(situation, draft, wished);
    let mut kept = None;
    let asked_before = draft.actions.len();
    for releasable in &held {
        if let Err(why) = autoscaler::release(releasable, &mut spare, now, draft) {
            kept.get_or_insert(why);
        }
    }
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
            let message = format!("{} is kept until {old_enough:.0}, its minimum lifetime", node.name);
            draft.step(Reason::MinimumLifetime, Some(&node.agent_pool), message.clone());
            kept.get_or_insert(message);
            continue;
        }
        if role == Role::OnDemand && !probing.may_go() {
            continue;
        }
        let less = if node.ready { units } else { 0 };
        let Some(left) = spare.checked_sub(less) else {
            kept.get_or_insert(format!(
                "{} is kept: what is ready without it would be too little",
                node.name
            ));
            continue;
        };
        if role == Role::OnDemand && !fit::allows(&mut fit, node, now, draft) {
            kept.get_or_insert(format!("{} is kept: what runs on it would find no room", node.name));
            continue;
        }
        spare = left;
        slots -= 1;
        if role == Role::OnDemand {
            draft.memory.failed_back_at = Some(now);
            probing.goes(node, draft);
        }
        let step = if role == Role::OnDemand { Reason::Failback } else { Reason::ScaleDown };
        draft.step(step, Some(&node.agent_pool), format!("drain {}: it is no longer needed", node.name));
        draft.actions.push(Action::RequestDrain {
            node: node.name.clone(),
            reason,
            not_after: later(now, spec.failback.drain_timeout),
        });
    }
    probing.explain(draft);
    let idle = under_way == 0 && draft.actions.len() == asked_before;
    kept.filter(|_| idle)
}

/// Nodes that budgets have asked to leave just now.
fn shed(draft: &Draft) -> BTreeSet<String> {
    let asked = draft.actions.iter().filter_map(|action| match action {
        Action::RequestDrain { node, reason: DrainReason::Failback, .. } => Some(node.clone()),
        _ => None,
    });
    asked.collect()
}

/// Whether one goes alone, and who.
enum Probing {
    /// Nobody went yet.
    First,
    /// One is going, or is gone and the others wait until then.
    Wait { node: String, until: Option<Timestamp> },
    /// It went well, or none has to go first.
    Done,
}

impl Probing {
    fn of(situation: &Situation<'_>, draft: &Draft, wished: bool) -> Self {
        let settles = situation.spec.failback.probe;
        if wished || settles == spotpool_crds::Duration::from_secs(0) {
            return Self::Done;
        }
        let Some(probe) = &draft.memory.probe else { return Self::First };
        let until = probe.gone_since.map(|gone| later(gone, settles));
        if until.is_some_and(|until| until <= situation.now) {
            return Self::Done;
        }
        Self::Wait { node: probe.node.clone(), until }
    }

    fn may_go(&self) -> bool {
        !matches!(self, Self::Wait { .. })
    }

    fn goes(&mut self, node: &NodeView, draft: &mut Draft) {
        if matches!(self, Self::First) {
            draft.memory.probe = Some(Probe { node: node.name.clone(), gone_since: None });
            *self = Self::Wait { node: node.name.clone(), until: None };
        }
    }

    fn explain(&self, draft: &mut Draft) {
        let Self::Wait { node, until } = self else { return };
        let message = match until {
            Some(until) => {
                draft.wake_at(*until);
                format!("{node} has gone first; others follow from {until:.0} if spot stays whole")
            }
            None => format!("{node} goes first, alone"),
        };
        draft.step(Reason::FailbackProbe, None, message);
    }
}

/// What is there beyond need.
struct Surplus<'a> {
    /// Nodes that may be asked to drain.
    nodes: Vec<(&'a NodeView, Role, u32)>,
    /// Machines of autoscaled agent pools that need not be held.
    held: Vec<Releasable<'a>>,
}

impl Surplus<'_> {
    fn machines(&self) -> usize {
        self.nodes.len() + self.held.iter().map(|it| it.machines as usize).sum::<usize>()
    }
}

/// Nodes beyond need, in the order in which they go: bought on-demand nodes, oldest first, then spot nodes,
/// those that do not work first, then those of the agent pool that ranks lowest, the youngest first. A node whose
/// units are needed in part is needed. Before any of a role drains, those of autoscaled agent pools are let go.
fn surplus<'a>(situation: &Situation<'a>, on_demand_needed: u32, draft: &Draft) -> Surplus<'a> {
    let Situation { spec, snapshot, tally, .. } = situation;
    let mut on_demand = Vec::new();
    let mut spot = Vec::new();
    for pool in snapshot.agent_pools.iter().filter(|pool| pool.autoscaler.is_none()) {
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
        pools.map(|pool| autoscaler::held_of(pool, draft).min(pool.staying()) * pool.units).sum()
    };
    let mut too_much_on_demand = there(Role::OnDemand).saturating_sub(on_demand_needed);
    let ahead = signals::ahead(spec, &snapshot.agent_pools, &draft.actions);
    let mut too_much_spot = there(Role::Spot).saturating_sub(tally.spot_wanted() + ahead);
    let mut held = autoscaler::releasable(situation, Role::OnDemand, &mut too_much_on_demand, draft);
    held.extend(autoscaler::releasable(situation, Role::Spot, &mut too_much_spot, draft));
    let of = |nodes: Vec<(&'a NodeView, u32)>, role, too_much| {
        let go = removable(nodes.into_iter(), |(_, units)| *units, too_much);
        go.into_iter().map(move |(node, units)| (node, role, units))
    };
    let on_demand = of(on_demand, Role::OnDemand, too_much_on_demand);
    Surplus { nodes: on_demand.chain(of(spot, Role::Spot, too_much_spot)).collect(), held }
}
