//! Which on-demand goes where it costs more than a budget allows.

use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{AtCap, Role};
use spotpool_crds::voluntary_drain::DrainReason;

use super::{Caps, Pool};
use crate::action::Action;
use crate::draft::Draft;
use crate::failback::Drains;
use crate::plan::Situation;
use crate::snapshot::NodeView;
use crate::tally::kept;
use crate::time::later;
use crate::upkeep;

impl Caps {
    pub(super) fn sheds(&self) -> bool {
        self.at_cap == AtCap::Shed && self.hold()
    }

    /// Of `needed` units those that nodes which are asked to leave may still make up: what was shed is not taken back.
    pub fn regainable(&self, situation: &Situation<'_>, drains: &Drains<'_>, needed: u32) -> u32 {
        if !self.sheds() {
            return needed;
        }
        let mut machines: Vec<u32> = self.pools.iter().map(|pool| pool.staying).collect();
        let mut units = 0;
        for (node, role, worth) in &drains.open {
            let wished = node.drain.as_ref().is_some_and(|drain| drain.reason == DrainReason::Manual);
            if *role != Role::OnDemand || wished {
                continue;
            }
            if units >= needed {
                break;
            }
            self.count(situation, &mut machines, node, 1);
            if self.passed(machines.iter().copied()).is_some() {
                break;
            }
            units += worth;
        }
        units.max(situation.tally.base_missing().min(needed))
    }

    pub(super) fn count(
        &self,
        situation: &Situation<'_>,
        machines: &mut [u32],
        node: &NodeView,
        change: i32,
    ) {
        let of = |pool: &Pool| situation.snapshot.agent_pools[pool.index].name == node.agent_pool;
        if let Some(at) = self.pools.iter().position(of) {
            machines[at] = machines[at].saturating_add_signed(change);
        }
    }

    /// Asks nodes to leave until what stays is within the budgets, the dearest first: voluntarily, and without waiting for
    /// spot, stabilization, a window or minimum lifetimes.
    pub fn shed(&self, situation: &Situation<'_>, drains: &Drains<'_>, draft: &mut Draft) {
        let Situation { spec, snapshot, tally, now } = situation;
        let mut machines: Vec<u32> = self.pools.iter().map(|pool| pool.staying).collect();
        let Some(why) = self.passed(machines.iter().copied()).filter(|_| self.sheds()) else { return };
        if upkeep::is_under_way(situation) {
            return;
        }
        if let Some(until) = draft.memory.paused_until.filter(|until| until > now) {
            draft.wake_at(until);
            let message =
                format!("a drain has failed; the next node over the budget is asked from {until:.0}");
            draft.step(Reason::ShedOverBudget, None, message);
            return;
        }
        let why = self.overspend(why);
        let returned: usize = draft.actions.iter().map(Action::machines_deleted).sum();
        let most = spec.failback.max_concurrent.max(1) as usize;
        let mut slots = most.saturating_sub(drains.open.len().saturating_sub(returned));
        let on_demand = || snapshot.agent_pools.iter().filter(|pool| pool.role == Ok(Role::OnDemand));
        // What is always there stays, and is ready already.
        let staying: u32 = on_demand().map(|pool| pool.staying() * pool.units).sum();
        let mut left = staying.saturating_sub(tally.base);
        let mut waiting = 0;
        for (node, units) in self.dearest_first(situation) {
            if self.passed(machines.iter().copied()).is_none() {
                break;
            }
            let Some(less) = left.checked_sub(units) else { continue };
            left = less;
            self.count(situation, &mut machines, node, -1);
            if slots == 0 {
                waiting += 1;
                continue;
            }
            slots -= 1;
            let message = format!("drain {}: {why}", node.name);
            draft.step(Reason::ShedOverBudget, Some(&node.agent_pool), message);
            draft.actions.push(Action::RequestDrain {
                node: node.name.clone(),
                reason: DrainReason::Failback,
                not_after: later(*now, spec.failback.drain_timeout),
            });
        }
        if waiting > 0 {
            let message =
                format!("{waiting} nodes more are over the budget; failback.maxConcurrent is {most}");
            draft.step(Reason::ShedOverBudget, None, message);
        }
    }

    /// Nodes that may be shed, with their units. The cluster autoscaler chooses by itself who goes of those that it has.
    pub(super) fn dearest_first<'a>(&self, situation: &Situation<'a>) -> Vec<(&'a NodeView, u32)> {
        let Situation { spec, snapshot, .. } = situation;
        let mut nodes = Vec::new();
        for (pool, rate) in snapshot.agent_pools.iter().zip(&self.rates) {
            if pool.role != Ok(Role::OnDemand) || pool.autoscaler.is_some() {
                continue;
            }
            let mut staying: Vec<&NodeView> = pool.nodes.iter().filter(|node| node.stays()).collect();
            staying.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
            let bought = staying.into_iter().skip(kept(spec, pool) as usize);
            nodes.extend(bought.map(|node| (rate.map(|rate| rate.hourly), node, pool.units)));
        }
        nodes.sort_by(|(one, a, _), (other, b, _)| {
            other.cmp(one).then_with(|| (a.created, &a.name).cmp(&(b.created, &b.name)))
        });
        nodes.into_iter().map(|(_, node, units)| (node, units)).collect()
    }
}
