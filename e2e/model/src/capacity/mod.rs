//! Who buys and who deletes: two replicas of the operator under one lease, its stored status, the Nodes with their
//! agents, and Azure.
//!
//! What the operator decides and stores is its own code ([`pass`]). What lies between that and Azure, its cache of agent
//! pools and the order of its writes, is written down here after `agent_pools.rs`, `controller.rs` and `act.rs`.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use stateright::{Model, Property};

pub mod pass;
pub mod state;

use crate::time::{LONG, STEP};
use pass::Planner;
use state::{
    Act, Answer, AzureOperation, AzurePool, Budget, Cached, Frozen, Ghost, Node, Outcome, Saved, SavedPool,
    Seen, Sent, State, Vm, VmState, Work, Written, Wrong,
};

/// What is checked: how much there is, and how much may go wrong.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Nodes wanted, all of them there at the beginning, in the first agent pool.
    pub replicas: u8,
    /// Agent pools.
    pub pools: Vec<PoolBounds>,
    /// `fallback.maxNodes`.
    pub fallback: u8,
    /// What may go wrong.
    pub budget: Budget,
    /// Whether Azure's count falls when it takes a VM.
    pub count_follows: bool,
    /// Machines that may be made for one loss, beyond one.
    pub slack: u8,
    /// Whether things may happen between a list of agent pools and the lists of their machines.
    pub skewed_lists: bool,
    /// Whether a request to delete may reach Azure after its sender has lost the lease and another leads.
    pub late_deletes: bool,
}

/// An agent pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolBounds {
    /// Spot, or on demand.
    pub spot: bool,
    /// `maxNodes`.
    pub max: u8,
}

/// Something that the operator could do wrong, to see that the checker would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing is stored before Azure is asked.
    NoIntent,
    /// PUTs without `If-Match`.
    NoIfMatch,
    /// Nodes under notice count as capacity.
    NoticedCounts,
    /// Machines are deleted when their drain is asked for.
    DrainNotAwaited,
    /// A leader that lost its lease goes on where it was.
    NoLease,
    /// A count is written with the ETag of the moment, not with that of the plan.
    EtagOfNow,
    /// Machines are listed again when the count has changed, not when the ETag has.
    EtagNotCompared,
    /// A list that comes while the answer to a write is awaited counts as one that came after it.
    AnyListTells,
    /// After a write without an answer what was known before is believed.
    UnknownIsRead,
}

/// For one loss at most one machine is made on spot, and one on demand.
pub const BUYS_ONCE: &str = "one loss, at most one machine on spot and one on demand";
/// No machine is deleted that was not drained or gone.
pub const DELETES_EMPTY: &str = "no machine is deleted that was not drained or gone";
/// `maxNodes` of agent pools and of `fallback`, by what Azure has and makes.
pub const CAPS: &str = "caps hold";
/// The plan does nothing that the model does not know.
pub const KNOWN: &str = "nothing is planned that is not modelled";
/// Once faults stop, capacity that Azure has announced to take is replaced before it goes, and all is on spot in the end.
pub const CONVERGES: &str = "once nothing goes wrong any more, all is well in the end";

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Azure announces that it takes a VM.
    Notice(Vm),
    /// It takes that back.
    Spare(Vm),
    /// A VM goes, announced or not.
    Evict(Vm),
    /// The Node of a VM that is gone is deleted.
    NodeGoes(Vm),
    /// A VM becomes a Node.
    Join(Vm),
    /// The agent marks its Node.
    Mark(Vm),
    /// … and takes its mark off.
    Unmark(Vm),
    /// It has drained its node as asked.
    Drained(Vm),
    /// It could not in time, and gave the node back.
    TimedOut(Vm),
    /// Nobody asks any more: it opens the node.
    Reopen(Vm),
    /// An operation of Azure's ends well.
    Complete(u8),
    /// … or brings nothing.
    Fail(u8),
    /// A request reaches Azure, and its sender hears the answer.
    Arrive(usize),
    /// It reaches Azure, and the answer is lost.
    ArriveUnheard(usize),
    /// It never reaches Azure.
    Lose(usize),
    /// Azure refuses it: no capacity.
    Refuse(usize),
    /// The leader lists agent pools, and asks for operations that it follows.
    List,
    /// It lists the machines of one.
    ListMachines(u8),
    /// It makes a plan and stores what it is about to ask of Azure.
    Plan,
    /// It sends the next write to Azure.
    Send,
    /// It writes Nodes, and its report.
    Report,
    /// It dies. The next one knows what is stored.
    Crash,
    /// It is stopped, and loses the lease.
    Freeze,
    /// One that was stopped goes on.
    Thaw,
    /// A long time passes.
    Wait,
}

/// The model.
pub struct Capacity {
    bounds: Bounds,
    mutation: Option<Mutation>,
    planner: Planner,
    /// States from which all is well in the end, by hash.
    settles: Mutex<HashSet<u64>>,
}

impl Capacity {
    /// Within `bounds`; with something wrong, perhaps.
    pub fn new(bounds: Bounds, mutation: Option<Mutation>) -> Result<Self, String> {
        let planner = Planner::new(&bounds, mutation)?;
        Ok(Self { bounds, mutation, planner, settles: Mutex::default() })
    }

    /// How many plans were made by the operator's code, and how many reports.
    pub fn made(&self) -> (usize, usize) {
        self.planner.made()
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn is_spot(&self, pool: u8) -> bool {
        self.bounds.pools[usize::from(pool)].spot
    }

    /// Whatever has an ETag of this agent pool has an old one now.
    fn changed(state: &mut State, pool: u8) {
        if let Some(cache) = &mut state.cache {
            cache[usize::from(pool)].fresh = false;
        }
        for sent in state.wire.iter_mut().filter(|sent| sent.act.pool() == Some(pool)) {
            sent.fresh = false;
        }
        let unsent = state.work.iter_mut().flat_map(|work| &mut work.unsent);
        for (act, fresh) in unsent.chain(state.frozen.iter_mut().flat_map(|frozen| &mut frozen.unsent)) {
            *fresh &= act.pool() != Some(pool);
        }
    }

    fn delete_vm(state: &mut State, at: Vm) {
        let (pool, exists) = (state.vms[usize::from(at)].pool, state.vms[usize::from(at)].exists);
        if !exists {
            return;
        }
        state.vms[usize::from(at)].exists = false;
        state.vms[usize::from(at)].doomed = false;
        let azure = &mut state.azure[usize::from(pool)];
        azure.count = azure.count.saturating_sub(1);
        Self::changed(state, pool);
    }

    /// What Azure does with a request.
    fn receive(&self, state: &mut State, sent: &Sent) -> Outcome {
        let Some(pool) = sent.act.pool() else { return Outcome::Conflict };
        let existing = state.existing(pool);
        let azure = &mut state.azure[usize::from(pool)];
        if azure.operation.is_some() {
            return Outcome::Conflict;
        }
        match &sent.act {
            Act::Put { count, .. } => {
                if !sent.fresh && !self.is(Mutation::NoIfMatch) {
                    return Outcome::Conflict;
                }
                if *count < existing {
                    state.ghost.wrong = Some(Wrong::AzureChose);
                }
                azure.count = *count;
                let makes = count.saturating_sub(existing);
                azure.operation = Some(AzureOperation { makes, deletes: Vec::new() });
            }
            Act::Delete { vms, .. } => {
                // One that is gone already makes Azure refuse the whole request.
                if vms.iter().any(|vm| !state.vms[usize::from(*vm)].exists) {
                    return Outcome::Conflict;
                }
                azure.operation = Some(AzureOperation { makes: 0, deletes: vms.clone() });
            }
            Act::Drain(_) | Act::Withdraw(_) => return Outcome::Conflict,
        }
        azure.failed = false;
        Self::changed(state, pool);
        Outcome::Accepted
    }

    /// What the leader makes of the answer.
    fn hear(&self, state: &mut State, sent: &Sent, outcome: Outcome) {
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

    fn list(&self, state: &mut State) {
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

    fn list_machines(state: &mut State, pool: u8) {
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
    fn is_outdated(state: &State, pool: u8) -> bool {
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

    fn plan(&self, state: &mut State) {
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

    fn send(&self, state: &mut State) {
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

    fn write_nodes(state: &mut State, nodes: &[Act]) {
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

    fn report(&self, state: &mut State) {
        let Some(work) = state.work.take() else { return };
        Self::write_nodes(state, &work.nodes);
        let report = self.planner.report(&work.seen, &work.results);
        state.saved = later(&report, work.began);
    }

    /// The leader is gone. What it has sent is on its way, or not.
    fn leave(&self, state: &mut State) -> Option<Work> {
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

    /// What the leader, Nodes, agents and Azure do if nothing more goes wrong, most hurried first. `Evict` comes last.
    fn next(&self, state: &State, actions: &mut Vec<Step>) {
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

    fn would_list(state: &State) -> bool {
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

    fn step(&self, last: &State, step: &Step) -> Option<State> {
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

    fn unheard(&self, state: &mut State, sent: &Sent) {
        self.hear(state, sent, Outcome::Unknown);
        let Some(pool) = sent.act.pool().filter(|_| !sent.orphan && self.is(Mutation::UnknownIsRead)) else {
            return;
        };
        if let Some(cache) = &mut state.cache {
            cache[usize::from(pool)].written = Written::Read;
        }
    }

    /// Nodes on which pods are to stay.
    fn staying(state: &State) -> impl Iterator<Item = &VmState> {
        state.vms.iter().filter(|vm| {
            vm.exists
                && vm
                    .node
                    .as_ref()
                    .is_some_and(|node| !node.noticed && node.asked.is_none() && node.answer.is_none())
        })
    }

    /// Whether everything is as it should be: all on spot, nothing more, nothing under way.
    fn is_whole(&self, state: &State) -> bool {
        let spot = Self::staying(state).filter(|vm| self.is_spot(vm.pool)).count();
        spot == usize::from(self.bounds.replicas)
            && state.vms.iter().filter(|vm| vm.exists).count() == spot
            && state.azure.iter().all(|pool| pool.operation.is_none())
            && state.work.is_none()
            && state.wire.is_empty()
    }

    /// From here, if nothing more goes wrong: whether everything is as it should be in the end, and on the way nothing is
    /// missing that could be there before Azure takes what it has announced.
    fn converges(&self, state: &State) -> bool {
        let mut course = Vec::new();
        let mut state = state.clone();
        let mut waits = 0;
        loop {
            // Faults that may still come are not part of where it leads.
            state.budget = Budget::default();
            let hash = hash(&state);
            if self.settles.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
                break;
            }
            if course.len() > 400 {
                return false;
            }
            course.push(hash);
            let mut steps = Vec::new();
            self.next(&state, &mut steps);
            let next = steps.iter().find_map(|step| {
                let is_end = matches!(step, Step::Evict(_));
                if is_end && waits == 0 {
                    return None;
                }
                Some((is_end, self.step(&state, step)?))
            });
            match next {
                Some((is_end, next)) => {
                    if is_end {
                        let ready = Self::staying(&state).count();
                        if ready < usize::from(self.bounds.replicas) {
                            return false;
                        }
                    }
                    waits = 0;
                    state = next;
                }
                // Nothing happens by itself: time alone may change that.
                None if waits == 0 => {
                    waits = 1;
                    if let Some(next) = self.step(&state, &Step::Wait) {
                        state = next;
                    }
                }
                None if self.is_whole(&state) => break,
                None => return false,
            }
        }
        self.settles.lock().unwrap_or_else(PoisonError::into_inner).extend(course);
        true
    }
}

fn hash(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// What was reckoned at `began`, by the clock of now.
fn later(saved: &Saved, began: crate::time::Time) -> Saved {
    let mut saved = saved.clone();
    for time in saved.times() {
        *time += began;
    }
    saved
}

impl Model for Capacity {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let Bounds { replicas, pools, budget, .. } = &self.bounds;
        let vm = VmState {
            pool: 0,
            exists: true,
            doomed: false,
            node: Some(Node { created: -LONG, noticed: false, asked: None, answer: None }),
            listed: false,
            seen_gone: false,
        };
        let azure =
            |at: usize| AzurePool { count: if at == 0 { *replicas } else { 0 }, ..AzurePool::default() };
        let kept = |pool: &PoolBounds| SavedPool { kept: (!pool.spot).then_some(0), ..SavedPool::default() };
        let mut state = State {
            azure: (0..pools.len()).map(azure).collect(),
            vms: vec![vm; usize::from(*replicas)],
            saved: Saved { pools: pools.iter().map(kept).collect(), ..Saved::default() },
            cache: None,
            work: None,
            frozen: None,
            wire: Vec::new(),
            budget: Budget::default(),
            ghost: Ghost::default(),
        };
        // A leader has been there for long.
        for step in [Step::List, Step::ListMachines(0), Step::Plan, Step::Wait] {
            state = self.step(&state, &step).unwrap_or(state);
        }
        state.budget = *budget;
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        if state.ghost.wrong.is_some() {
            return;
        }
        self.next(state, actions);
        let budget = &state.budget;
        for (at, sent) in state.wire.iter().enumerate() {
            if sent.orphan {
                actions.push(Step::Lose(at));
                continue;
            }
            if budget.lost > 0 {
                actions.extend([Step::ArriveUnheard(at), Step::Lose(at)]);
            }
            if budget.refused > 0 && matches!(sent.act, Act::Put { corrects: false, .. }) {
                actions.push(Step::Refuse(at));
            }
        }
        for (pool, azure) in state.azure.iter().enumerate() {
            if budget.refused > 0 && azure.operation.as_ref().is_some_and(|operation| operation.makes > 0) {
                actions.push(Step::Fail(pool as u8));
            }
        }
        for (at, vm) in state.vms.iter().enumerate().filter(|(_, vm)| vm.exists && self.is_spot(vm.pool)) {
            let at = at as Vm;
            if !vm.doomed && budget.notices > 0 {
                actions.push(Step::Notice(at));
            }
            if !vm.doomed && budget.silent > 0 {
                actions.push(Step::Evict(at));
            }
            if vm.doomed && budget.spared > 0 {
                actions.push(Step::Spare(at));
            }
        }
        let blocked = |node: &Node| {
            node.asked.is_some() && !node.answer.is_some_and(|answer| answer.to_this) && !node.noticed
        };
        for (at, vm) in state.vms.iter().enumerate() {
            if budget.blocked > 0 && vm.exists && vm.node.as_ref().is_some_and(blocked) {
                actions.push(Step::TimedOut(at as Vm));
            }
        }
        if budget.crashes > 0 {
            actions.push(Step::Crash);
            if state.work.is_some() && state.frozen.is_none() {
                actions.push(Step::Freeze);
            }
        }
        if budget.waits > 0 {
            actions.push(Step::Wait);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        self.step(last, &step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(BUYS_ONCE, |model: &Self, state: &State| {
                let most = state.ghost.losses * (1 + model.bounds.slack);
                state.ghost.made.iter().all(|made| *made <= most)
            }),
            Property::always(DELETES_EMPTY, |_, state: &State| {
                !matches!(state.ghost.wrong, Some(Wrong::DeletedUndrained | Wrong::AzureChose))
            }),
            Property::always(CAPS, |model: &Self, state: &State| {
                let pools = || model.bounds.pools.iter().enumerate();
                let on_demand = pools().filter(|(_, pool)| !pool.spot);
                pools().all(|(at, pool)| state.committed(at as u8) <= pool.max)
                    && on_demand.map(|(at, _)| state.committed(at as u8)).sum::<u8>() <= model.bounds.fallback
            }),
            Property::always(KNOWN, |_, state: &State| state.ghost.wrong != Some(Wrong::NotModelled)),
            Property::always(CONVERGES, |model: &Self, state: &State| {
                state.ghost.wrong.is_some() || model.converges(state)
            }),
            Property::sometimes("on-demand stands in", |_, state: &State| state.ghost.made[1] > 0),
            Property::sometimes("a machine is deleted", |_, state: &State| {
                let mut operations = state.azure.iter().filter_map(|pool| pool.operation.as_ref());
                operations.any(|operation| !operation.deletes.is_empty())
            }),
        ]
    }
}
