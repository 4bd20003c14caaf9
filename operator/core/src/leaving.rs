//! A SpotPool that is being deleted with `deletionPolicy: ReturnFallback`: what was bought in the place of spot is
//! drained and returned, and nothing else is done.

use std::collections::BTreeMap;

use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Mode, PlanStep, Role};
use spotpool_crds::voluntary_drain::DrainReason;

use crate::action::Action;
use crate::caps::Caps;
use crate::draft::{Draft, told};
use crate::failback::{Drains, return_drained};
use crate::floor::Floor;
use crate::plan::{Plan, Situation, capacity, explain_unusable};
use crate::snapshot::NodeView;
use crate::time::later;
use crate::units::removable;

/// How far a SpotPool that is being deleted is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// On-demand nodes that are still to be returned.
    pub fallback_nodes: u32,
    /// Whether it may go.
    pub done: bool,
}

/// Nobody wants this capacity any more, so no clock is waited for: neither stabilization nor window, minimum lifetime or
/// probe. Disruption budgets and `failback.maxConcurrent` hold; a drain that fails is tried again after
/// `failback.stabilization`.
pub(crate) fn plan(situation: &Situation<'_>, floor: Option<Floor>, mut draft: Draft) -> Plan {
    let money = Caps::of(situation, &mut draft).money(situation);
    let Situation { spec, snapshot, tally, now } = situation;
    let now = *now;
    explain_unusable(spec, snapshot, &mut draft);
    let mut drains = Drains::of(situation);
    let fallback = Fallback::of(situation);
    // What drains and is not bought, or is needed for the base, is given back.
    drains.withdraw_all(Reason::Leaving, &mut draft, |node, _| fallback.goes(node));
    drains.clean(situation, &mut draft);
    return_drained(situation, &drains, &mut draft);

    let returned: usize = draft.actions.iter().map(Action::machines_deleted).sum();
    let slots = (spec.failback.max_concurrent.max(1) as usize)
        .saturating_sub(drains.open.len().saturating_sub(returned));
    if let Some(until) = draft.memory.paused_until {
        draft.wake_at(until);
        let message = format!("a drain has failed; the next is tried from {until:.0}");
        draft.step(Reason::ReturningFallback, None, message);
    } else {
        for node in fallback.stay().take(slots) {
            let message = format!("drain {}: its SpotPool is being deleted", node.name);
            draft.step(Reason::Failback, Some(&node.agent_pool), message);
            draft.actions.push(Action::RequestDrain {
                node: node.name.clone(),
                reason: DrainReason::Failback,
                not_after: later(now, spec.failback.drain_timeout),
            });
        }
    }

    let on_demand = || snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(Role::OnDemand));
    // Until Azure has carried it out, a deletion may still fail.
    let in_flight = on_demand().any(|pool| pool.operation.is_some());
    let unknown = snapshot.agent_pools.iter().any(|pool| pool.role == Err(Reason::AzureUnreachable));
    let left = fallback.go.len() as u32;
    let done = left == 0 && drains.open.is_empty() && !in_flight && !unknown && draft.actions.is_empty();
    let (actions, withheld) = draft.hold_back(spec, snapshot);
    let summary = match () {
        () if done => "nothing is left to return; the SpotPool goes".to_owned(),
        () if spec.suspend => format!(
            "{left} fallback nodes to return, and suspended: set suspend to false, or deletionPolicy to Retain to let them be"
        ),
        () if spec.mode == Mode::Observe => format!("{left} fallback nodes; Observe: planned, not done"),
        () => format!(
            "{left} fallback nodes to return before the SpotPool goes; deletionPolicy Retain lets it go at once"
        ),
    };
    draft.steps.insert(0, PlanStep { reason: Reason::ReturningFallback, agent_pool: None, message: summary });
    Plan {
        actions,
        withheld,
        steps: told(draft.steps),
        capacity: capacity(tally, &draft.memory, 0),
        spot_target: tally.spot_target,
        fallback_nodes: left,
        memory: draft.memory,
        floor,
        ranks: Vec::new(),
        stalls: Vec::new(),
        on_demand_short: None,
        losses: BTreeMap::new(),
        unannounced: BTreeMap::new(),
        hours: BTreeMap::new(),
        restarts: draft.restarts,
        wake: draft.wake.filter(|wake| *wake > now),
        money,
        leaving: Some(Leaving { fallback_nodes: left, done }),
        objective: None,
    }
}

/// On-demand nodes that were bought in the place of spot.
struct Fallback<'a> {
    /// In the order in which they go; `None` is one that is still to come.
    go: Vec<Option<&'a NodeView>>,
}

impl<'a> Fallback<'a> {
    fn of(situation: &Situation<'a>) -> Self {
        let (snapshot, tally) = (situation.snapshot, &situation.tally);
        let (mut bought, mut coming) = (Vec::new(), Vec::new());
        let (mut kept, mut committed) = (0, 0);
        let mut base = tally.base;
        for pool in snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(Role::OnDemand)) {
            // Nobody drains these: their minimum is returned, and the autoscaler sees to the rest.
            if pool.autoscaler.is_some() {
                base = base.saturating_sub(pool.staying() * pool.units);
                continue;
            }
            let mut nodes: Vec<&NodeView> = pool.nodes.iter().collect();
            nodes.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
            // Those found at adoption are the oldest, and stay whatever `adoption` says: nobody bought them for us.
            kept += pool.kept.min(nodes.len() as u32) * pool.units;
            committed += pool.committed() * pool.units;
            bought.extend(nodes.into_iter().skip(pool.kept as usize).map(|node| (node, pool.units)));
            coming.extend((0..pool.creating()).map(|_| (None, pool.units)));
        }
        // What goes already first, then the oldest.
        bought
            .sort_by(|(a, _), (b, _)| (a.stays(), a.created, &a.name).cmp(&(b.stays(), b.created, &b.name)));
        let all = bought.into_iter().map(|(node, units)| (Some(node), units)).chain(coming);
        let go = removable(all, |(_, units)| *units, committed.saturating_sub(base.max(kept)));
        Self { go: go.into_iter().map(|(node, _)| node).collect() }
    }

    fn goes(&self, node: &NodeView) -> bool {
        self.go.iter().flatten().any(|going| going.name == node.name)
    }

    /// Those that have not been asked to leave.
    fn stay(&self) -> impl Iterator<Item = &'a NodeView> {
        self.go.iter().copied().flatten().filter(|node| node.stays())
    }
}
