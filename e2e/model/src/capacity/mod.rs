//! Who buys and who deletes: two replicas of the operator under one lease, its stored status, the Nodes with their
//! agents, and Azure.
//!
//! What the operator decides and stores is its own code ([`pass`]). What lies between that and Azure, its cache of agent
//! pools and the order of its writes, is written down in `operator.rs`.

use std::collections::HashSet;
use std::sync::Mutex;

use stateright::{Model, Property};

mod azure;
mod course;
mod end;
mod operator;
pub mod pass;
pub mod state;

use crate::time::LONG;
use pass::Planner;
use state::{Act, AzurePool, Budget, Ghost, Node, Saved, SavedPool, State, Vm, VmState, Wrong};

/// What is checked: how much there is, and how much may go wrong.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of Azure's ways, or of the network's")]
pub struct Bounds {
    /// Nodes wanted, all of them there at the beginning, in the first agent pool.
    pub replicas: u8,
    /// Agent pools.
    pub pools: Vec<PoolBounds>,
    /// `fallback.maxNodes`.
    pub fallback: u8,
    /// What may go wrong.
    pub budget: Budget,
    /// Whether one notice has passed before: spot has come in place of what went, and the on-demand node that stood in meanwhile
    /// has just been asked to drain.
    pub gives_back: bool,
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
        if self.bounds.gives_back {
            let Some(later) = self.giving_back(state) else { return Vec::new() };
            state = later;
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
