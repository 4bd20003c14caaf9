//! What may happen next if nothing more goes wrong, and what is so after it has happened.

use super::state::{Answer, Frozen, Node, Outcome, Sent, State, Vm, VmState, Wrong};
use super::{Capacity, Mutation, Step};
use crate::time::{LONG, STEP};

impl Capacity {
    /// What the leader, Nodes, agents and Azure do if nothing more goes wrong, most hurried first. `Evict` comes last.
    pub(super) fn next(&self, state: &State, actions: &mut Vec<Step>) {
        for (at, sent) in state.wire.iter().enumerate() {
            actions.push(Step::Arrive(at));
            if !sent.orphan {
                break;
            }
        }
        for (pool, azure) in state.azure.iter().enumerate() {
            if azure.operation.is_some() {
                actions.push(Step::Complete(pool as u8));
            }
        }
        for (at, vm) in state.vms.iter().enumerate() {
            let at = at as Vm;
            let Some(node) = &vm.node else {
                if vm.exists {
                    actions.push(Step::Join(at));
                }
                continue;
            };
            if !vm.exists {
                actions.push(Step::NodeGoes(at));
                continue;
            }
            if vm.doomed != node.noticed {
                actions.push(if vm.doomed { Step::Mark(at) } else { Step::Unmark(at) });
            }
            let is_answered = node.answer.is_some_and(|answer| answer.to_this);
            if node.asked.is_some() && !is_answered && !node.noticed {
                actions.push(Step::Drained(at));
            }
            if node.asked.is_none() && node.answer.is_some() {
                actions.push(Step::Reopen(at));
            }
        }
        if let Some(work) = &state.work
            && state.wire.iter().all(|sent| sent.orphan)
        {
            actions.push(if work.unsent.is_empty() { Step::Report } else { Step::Send });
        }
        if Self::would_list(state) {
            actions.push(Step::List);
        }
        for pool in 0..state.azure.len() as u8 {
            if state.cache.is_some() && Self::is_outdated(state, pool) {
                let step = if self.bounds.skewed_lists { Step::ListMachines(pool) } else { Step::List };
                if !actions.contains(&step) {
                    actions.push(step);
                }
            }
        }
        if state.work.is_none() {
            actions.push(Step::Plan);
        }
        if state.frozen.is_some() {
            actions.push(Step::Thaw);
        }
        for (at, vm) in state.vms.iter().enumerate().filter(|(_, vm)| vm.doomed) {
            if vm.exists {
                actions.push(Step::Evict(at as Vm));
            }
        }
    }

    /// After a notice that takes its course: see [`Bounds::gives_back`](super::Bounds::gives_back).
    pub(super) fn giving_back(&self, mut state: State) -> Option<State> {
        state.budget.notices = 1;
        let mut state = self.step(&state, &Step::Notice(0))?;
        let is_asked = |vm: &VmState| vm.node.as_ref().is_some_and(|node| node.asked.is_some());
        let is_noted = |vm: &VmState| vm.node.as_ref().is_some_and(|node| node.noticed);
        while !state.vms.iter().any(is_asked) {
            let mut steps = Vec::new();
            self.next(&state, &mut steps);
            // Azure takes the VM once that is noted.
            let may_go = state.vms.iter().any(is_noted);
            steps.sort_by_key(|step| !(may_go && matches!(step, Step::Evict(_))));
            state = steps.iter().find_map(|step| self.step(&state, step))?;
        }
        Some(state)
    }

    pub(super) fn step(&self, last: &State, step: &Step) -> Option<State> {
        let mut state = last.clone();
        let mut passed = STEP;
        match *step {
            Step::Notice(vm) => {
                state.budget.notices -= 1;
                state.ghost.losses += 1;
                state.vms[usize::from(vm)].doomed = true;
            }
            Step::Spare(vm) => {
                state.budget.spared -= 1;
                state.vms[usize::from(vm)].doomed = false;
            }
            Step::Evict(vm) => {
                if !state.vms[usize::from(vm)].doomed {
                    state.budget.silent -= 1;
                    state.ghost.losses += 1;
                }
                if self.bounds.count_follows {
                    Self::delete_vm(&mut state, vm);
                } else {
                    // Nothing of the agent pool changes: neither its count nor its ETag.
                    let vm = &mut state.vms[usize::from(vm)];
                    (vm.exists, vm.doomed) = (false, false);
                }
            }
            Step::NodeGoes(vm) => {
                let vm = &mut state.vms[usize::from(vm)];
                vm.node = None;
                vm.seen_gone = vm.listed;
            }
            Step::Join(vm) => {
                let node = Node { created: 0, noticed: false, asked: None, answer: None };
                state.vms[usize::from(vm)].node = Some(node);
            }
            Step::Mark(vm) | Step::Unmark(vm) => {
                let doomed = state.vms[usize::from(vm)].doomed;
                state.vms[usize::from(vm)].node.as_mut()?.noticed = doomed;
            }
            Step::Drained(vm) | Step::TimedOut(vm) => {
                let drained = matches!(step, Step::Drained(_));
                state.budget.blocked -= u8::from(!drained);
                state.vms[usize::from(vm)].node.as_mut()?.answer = Some(Answer { to_this: true, drained });
                // Blocked until its time was over.
                if !drained {
                    passed = LONG;
                }
            }
            Step::Reopen(vm) => state.vms[usize::from(vm)].node.as_mut()?.answer = None,
            Step::Complete(pool) => {
                let operation = state.azure[usize::from(pool)].operation.take()?;
                for vm in operation.deletes {
                    let is_empty = state.vms[usize::from(vm)]
                        .node
                        .as_ref()
                        .is_none_or(|node| node.noticed || node.answer.is_some_and(|answer| answer.drained));
                    if state.vms[usize::from(vm)].exists && !is_empty {
                        state.ghost.wrong = Some(Wrong::DeletedUndrained);
                    }
                    Self::delete_vm(&mut state, vm);
                }
                state.ghost.made[usize::from(!self.is_spot(pool))] += operation.makes;
                for _ in 0..operation.makes {
                    state.vms.push(VmState {
                        pool,
                        exists: true,
                        doomed: false,
                        node: None,
                        listed: false,
                        seen_gone: false,
                    });
                }
                Self::changed(&mut state, pool);
            }
            Step::Fail(pool) => {
                state.budget.refused -= 1;
                state.azure[usize::from(pool)].operation = None;
                state.azure[usize::from(pool)].failed = true;
                Self::changed(&mut state, pool);
            }
            Step::Arrive(at) | Step::ArriveUnheard(at) => {
                let sent = state.wire.remove(at);
                let outcome = self.receive(&mut state, &sent);
                if matches!(step, Step::Arrive(_)) {
                    self.hear(&mut state, &sent, outcome);
                } else {
                    state.budget.lost -= 1;
                    self.unheard(&mut state, &sent);
                }
            }
            Step::Lose(at) => {
                let sent = state.wire.remove(at);
                if !sent.orphan {
                    state.budget.lost -= 1;
                }
                self.unheard(&mut state, &sent);
            }
            Step::Refuse(at) => {
                state.budget.refused -= 1;
                let sent = state.wire.remove(at);
                self.hear(&mut state, &sent, Outcome::Capacity);
            }
            Step::List => {
                self.list(&mut state);
                for pool in 0..state.azure.len() as u8 {
                    if !self.bounds.skewed_lists && Self::is_outdated(&state, pool) {
                        Self::list_machines(&mut state, pool);
                    }
                }
            }
            Step::ListMachines(pool) => Self::list_machines(&mut state, pool),
            Step::Plan => self.plan(&mut state),
            Step::Send => self.send(&mut state),
            Step::Report => self.report(&mut state),
            Step::Crash => {
                state.budget.crashes -= 1;
                self.leave(&mut state);
            }
            Step::Freeze => {
                state.budget.crashes -= 1;
                let work = self.leave(&mut state);
                state.frozen = work.map(|work| Frozen { unsent: work.unsent, nodes: work.nodes });
            }
            Step::Thaw => {
                let frozen = state.frozen.take()?;
                // Every write asks for the lease at the last moment: one that has lost it writes nothing more.
                if self.is(Mutation::NoLease) {
                    for (act, fresh) in frozen.unsent {
                        state.wire.push(Sent { act, fresh, orphan: true });
                    }
                    Self::write_nodes(&mut state, &frozen.nodes);
                }
            }
            Step::Wait => {
                state.budget.waits = state.budget.waits.saturating_sub(1);
                passed = LONG;
            }
        }
        state.settle(passed);
        (state != *last).then_some(state)
    }
}
