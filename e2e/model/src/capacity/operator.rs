//! The operator: what it believes of agent pools and when it asks again, the order of its writes, and what becomes of them
//! when it dies. Written down after `agent_pools/`, `controller.rs` and `act.rs`.

use super::state::{
    Act, Answer, AzurePool, Cached, Outcome, Saved, Seen, Sent, State, VmState, Work, Written, Wrong,
};
use super::{Capacity, Mutation};
use crate::time::Time;

impl Capacity {
    pub(super) fn would_list(state: &State) -> bool {
        let Some(cache) = &state.cache else { return true };
        let differs = |(cached, azure): (&Cached, &AzurePool)| {
            let busy = azure.operation.is_some();
            match cached.written {
                Written::Unknown => true,
                Written::Running => !busy,
                Written::Read => !cached.fresh || (cached.count, cached.busy) != (azure.count, busy),
            }
        };
        cache.iter().zip(&state.azure).any(differs)
    }

    pub(super) fn list(&self, state: &mut State) {
        let is_blind = self.is(Mutation::EtagNotCompared);
        let known = state.cache.take();
        let mut cache = Vec::new();
        for (at, azure) in state.azure.iter().enumerate() {
            let busy = azure.operation.is_some();
            let new = Cached {
                count: azure.count,
                busy,
                fresh: true,
                written: Written::Read,
                listed: false,
                failed_at: None,
                stale_since: None,
            };
            let mut cached = known.as_ref().map_or(new, |known| known[at].clone());
            if cached.written == Written::Running && !busy {
                cached.written = Written::Unknown;
                if azure.failed {
                    cached.failed_at = Some(0);
                }
            }
            let settled = cached.written == Written::Unknown;
            if settled {
                cached.written = Written::Read;
            }
            let was_touched = cached.written == Written::Read && !cached.fresh && !is_blind;
            let changed = was_touched || (cached.count, cached.busy) != (azure.count, busy);
            if cached.written == Written::Read {
                (cached.count, cached.busy, cached.fresh) = (azure.count, busy, true);
            }
            if settled || changed {
                cached.listed = false;
            }
            let of_pool = |vm: &&VmState| usize::from(vm.pool) == at;
            let has_nodes = state.vms.iter().filter(of_pool).any(|vm| vm.node.is_some());
            if cached.count == 0 && !cached.busy && !has_nodes {
                cached.listed = true;
                for vm in state.vms.iter_mut().filter(|vm| usize::from(vm.pool) == at) {
                    vm.listed = false;
                }
            }
            cache.push(cached);
        }
        state.cache = Some(cache);
        Self::look_at_counts(state);
    }

    pub(super) fn list_machines(state: &mut State, pool: u8) {
        for vm in state.vms.iter_mut().filter(|vm| vm.pool == pool) {
            (vm.listed, vm.seen_gone) = (vm.exists, false);
        }
        if let Some(cache) = &mut state.cache {
            cache[usize::from(pool)].listed = true;
        }
        Self::look_at_counts(state);
    }

    fn look_at_counts(state: &mut State) {
        for (at, cached) in state.cache.iter_mut().flatten().enumerate() {
            let listed = state.vms.iter().filter(|vm| usize::from(vm.pool) == at && vm.listed).count();
            let settled = cached.written == Written::Read && !cached.busy && cached.listed;
            let is_stale = settled && usize::from(cached.count) > listed;
            cached.stale_since = is_stale.then(|| cached.stale_since.unwrap_or(0));
        }
    }

    /// Whether listing the machines of an agent pool would tell something.
    pub(super) fn is_outdated(state: &State, pool: u8) -> bool {
        let Some(cached) = state.cache.as_ref().map(|cache| &cache[usize::from(pool)]) else { return false };
        let differs = |vm: &VmState| (vm.listed && !vm.seen_gone) != vm.node.is_some();
        let mut of_pool = state.vms.iter().filter(|vm| vm.pool == pool);
        !cached.listed || of_pool.any(|vm| (differs(vm) || vm.seen_gone) && vm.listed != vm.exists)
    }

    fn see(state: &State) -> Seen {
        let seen = |vm: &VmState| VmState { exists: false, doomed: false, ..vm.clone() };
        let mut vms: Vec<VmState> = state.vms.iter().map(seen).collect();
        while vms.last().is_some_and(|vm| vm.node.is_none() && !vm.listed) {
            vms.pop();
        }
        // ETags decide nothing before they are sent.
        let cached = |cached: &Cached| Cached { fresh: false, ..cached.clone() };
        let cache = state.cache.as_ref().map(|cache| cache.iter().map(cached).collect());
        Seen { saved: state.saved.clone(), cache, vms }
    }

    pub(super) fn plan(&self, state: &mut State) {
        let seen = Self::see(state);
        let planned = self.planner.plan(&seen);
        let Some(acts) = &planned.acts else {
            state.ghost.wrong = Some(Wrong::NotModelled);
            return;
        };
        if acts.is_empty() {
            state.saved = planned.intended;
            return;
        }
        let (azure, nodes): (Vec<Act>, Vec<Act>) = acts.iter().cloned().partition(|act| act.pool().is_some());
        let is_fresh = |act: &Act| {
            act.pool().zip(state.cache.as_ref()).is_some_and(|(pool, cache)| cache[usize::from(pool)].fresh)
        };
        let unsent: Vec<_> = azure.into_iter().map(|act| (act.clone(), is_fresh(&act))).collect();
        if !unsent.is_empty() && !self.is(Mutation::NoIntent) {
            state.saved = planned.intended.clone();
        }
        state.work = Some(Work { seen, began: 0, unsent, results: [].into(), nodes });
    }

    pub(super) fn send(&self, state: &mut State) {
        let Some(work) = state.work.as_mut().filter(|work| !work.unsent.is_empty()) else { return };
        let (act, planned) = work.unsent.remove(0);
        let Some(pool) = act.pool() else { return };
        let Some(cache) = &mut state.cache else { return };
        let cached = &mut cache[usize::from(pool)];
        // A list has come since, and knows of a change.
        let is_changed = cached.fresh && !planned && matches!(act, Act::Put { corrects: false, .. });
        if is_changed && !self.is(Mutation::EtagOfNow) {
            work.results.insert(pool, Outcome::Conflict);
            return;
        }
        cached.written = Written::Unknown;
        let (pool_at, azure) = (usize::from(pool), &state.azure[usize::from(pool)]);
        let mut of_pool = state.vms.iter().filter(|vm| usize::from(vm.pool) == pool_at);
        let fresh = match act {
            // From a list of this moment, if the count is above the machines still.
            Act::Put { count, corrects: true, .. } => {
                if azure.operation.is_some() || azure.count <= count {
                    work.results.insert(pool, Outcome::Conflict);
                    return;
                }
                true
            }
            // Where Nodes have gone since their machines were listed, both are read again.
            Act::Put { .. } if of_pool.clone().any(|vm| vm.listed && vm.seen_gone) => {
                let unchanged = azure.count == cached.count
                    && azure.operation.is_some() == cached.busy
                    && of_pool.all(|vm| vm.listed == vm.exists);
                (cached.count, cached.busy, cached.fresh) = (azure.count, azure.operation.is_some(), true);
                if !unchanged {
                    cached.written = Written::Read;
                    work.results.insert(pool, Outcome::Conflict);
                    Self::list_machines(state, pool);
                    return;
                }
                true
            }
            _ => cached.fresh,
        };
        state.wire.push(Sent { act, fresh, orphan: false });
    }

    pub(super) fn write_nodes(state: &mut State, nodes: &[Act]) {
        for act in nodes {
            let (Act::Drain(vm) | Act::Withdraw(vm)) = act else { continue };
            let Some(node) = state.vms[usize::from(*vm)].node.as_mut() else { continue };
            if let Act::Drain(_) = act {
                node.asked = Some(0);
                node.answer = node.answer.map(|answer| Answer { to_this: false, ..answer });
            } else {
                node.asked = None;
            }
        }
    }

    /// What the leader makes of the answer.
    pub(super) fn hear(&self, state: &mut State, sent: &Sent, outcome: Outcome) {
        let is_forgetful = self.is(Mutation::AnyListTells);
        let Some(pool) = sent.act.pool().filter(|_| !sent.orphan) else { return };
        let count = state.azure[usize::from(pool)].count;
        if let Some(work) = &mut state.work {
            work.results.insert(pool, outcome);
        }
        let Some(cached) = state.cache.as_mut().map(|cache| &mut cache[usize::from(pool)]) else { return };
        match outcome {
            Outcome::Accepted => {
                cached.written = Written::Running;
                cached.failed_at = None;
                // A PUT is answered with the agent pool, a deletion is not.
                if matches!(sent.act, Act::Put { .. }) {
                    (cached.count, cached.busy, cached.fresh) = (count, true, true);
                }
            }
            Outcome::Capacity => cached.written = Written::Read,
            Outcome::Conflict | Outcome::Unknown if is_forgetful => {}
            Outcome::Conflict | Outcome::Unknown => cached.written = Written::Unknown,
        }
    }

    pub(super) fn unheard(&self, state: &mut State, sent: &Sent) {
        self.hear(state, sent, Outcome::Unknown);
        let Some(pool) = sent.act.pool().filter(|_| !sent.orphan && self.is(Mutation::UnknownIsRead)) else {
            return;
        };
        if let Some(cache) = &mut state.cache {
            cache[usize::from(pool)].written = Written::Read;
        }
    }

    pub(super) fn report(&self, state: &mut State) {
        let Some(work) = state.work.take() else { return };
        Self::write_nodes(state, &work.nodes);
        let report = self.planner.report(&work.seen, &work.results);
        state.saved = later(&report, work.began);
    }

    /// The leader is gone. What it has sent is on its way, or not.
    pub(super) fn leave(&self, state: &mut State) -> Option<Work> {
        for sent in &mut state.wire {
            sent.orphan = true;
        }
        if !self.bounds.late_deletes {
            state.wire.retain(|sent| !matches!(sent.act, Act::Delete { .. }));
        }
        for vm in &mut state.vms {
            (vm.listed, vm.seen_gone) = (false, false);
        }
        state.cache = None;
        state.work.take()
    }
}

/// What was reckoned at `began`, by the clock of now.
fn later(saved: &Saved, began: Time) -> Saved {
    let mut saved = saved.clone();
    for time in saved.times() {
        *time += began;
    }
    saved
}
