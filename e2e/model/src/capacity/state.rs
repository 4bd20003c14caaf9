//! All that there is: Azure, the Nodes, what the operator has stored, and what its leader knows and is about.

use std::collections::BTreeMap;

use crate::time::{self, Time};

/// A VM, by its place in [`State::vms`].
pub type Vm = u8;

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Azure's agent pools.
    pub azure: Vec<AzurePool>,
    /// VMs and their Nodes; alike ones in a fixed order.
    pub vms: Vec<VmState>,
    /// The SpotPool's status, as far as a plan reads it.
    pub saved: Saved,
    /// What the leader knows of agent pools. Nothing before its first list.
    pub cache: Option<Vec<Cached>>,
    /// The reconciliation that it is in.
    pub work: Option<Work>,
    /// A leader that was stopped in the middle of one, and may wake up.
    pub frozen: Option<Frozen>,
    /// Requests to Azure that are under way.
    pub wire: Vec<Sent>,
    /// What may still happen.
    pub budget: Budget,
    /// What has happened.
    pub ghost: Ghost,
}

/// An agent pool as Azure has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AzurePool {
    /// Its `count`.
    pub count: u8,
    /// The operation that runs.
    pub operation: Option<AzureOperation>,
    /// Whether the last one failed.
    pub failed: bool,
}

/// An operation that runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AzureOperation {
    /// VMs that it will bring.
    pub makes: u8,
    /// VMs that it deletes.
    pub deletes: Vec<Vm>,
}

/// A VM.
#[expect(clippy::struct_excessive_bools, reason = "each is seen by itself, in any combination")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmState {
    /// Its agent pool.
    pub pool: u8,
    /// Whether it exists.
    pub exists: bool,
    /// Whether Azure has announced to take it.
    pub doomed: bool,
    /// Its Node.
    pub node: Option<Node>,
    /// Whether the leader's last list has it.
    pub listed: bool,
    /// Whether the leader has seen its Node go since.
    pub seen_gone: bool,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// When it was made.
    pub created: Time,
    /// Whether its agent's notice is on it.
    pub noticed: bool,
    /// When the operator asked for its drain, if it did.
    pub asked: Option<Time>,
    /// What the agent answered.
    pub answer: Option<Answer>,
}

/// An agent's answer to a drain request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// Whether it is to the request that stands.
    pub to_this: bool,
    /// Whether the node is empty and closed; else it was given back.
    pub drained: bool,
}

/// Status, as far as a plan reads it and this model has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Saved {
    /// `capacity.established`.
    pub established: u8,
    /// `capacity.lostSince`.
    pub lost_since: Option<Time>,
    /// Whether growth, surplus or fallback began: all that is waited for is over at once.
    pub began: [bool; 3],
    /// By agent pool.
    pub pools: Vec<SavedPool>,
}

/// Status of an agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SavedPool {
    /// Found at adoption.
    pub kept: Option<u8>,
    /// What was asked of Azure.
    pub operation: Option<SavedOperation>,
    /// Its last error.
    pub error: Option<(Fault, Time)>,
    /// Until when it is avoided, and what for.
    pub avoided: Option<(Fault, Time)>,
}

/// What was asked of Azure.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SavedOperation {
    /// `ScaleUp`, or another word of the API.
    pub kind: Kind,
    /// The count.
    pub count: u8,
    /// Machines more or less.
    pub machines: u8,
    /// Machines that were on their way.
    pub coming: u8,
    /// Machines that have become Nodes.
    pub arrived: u8,
    /// When.
    pub since: Time,
    /// Whether Azure said yes.
    pub accepted: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// More machines.
    ScaleUp,
    /// Named machines go.
    Delete,
    /// The count alone.
    Correct,
}

/// Errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Azure has nothing of this size.
    Capacity,
    /// No answer came.
    Transient,
    /// VMs were taken back soon after they came.
    ShortLived,
}

/// What the leader knows of an agent pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cached {
    /// Azure's count.
    pub count: u8,
    /// Whether an operation ran.
    pub busy: bool,
    /// Whether its ETag is still Azure's.
    pub fresh: bool,
    /// How its last write stands.
    pub written: Written,
    /// Whether its machines are known.
    pub listed: bool,
    /// When its last operation failed.
    pub failed_at: Option<Time>,
    /// Since when the count is above its machines.
    pub stale_since: Option<Time>,
}

/// How the leader's last write of an agent pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Written {
    /// What is known was read after it.
    Read,
    /// Only a list can tell.
    Unknown,
    /// Accepted; its operation is asked for by its own URL.
    Running,
}

/// Something that a plan wants done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// PUT of a count.
    Put {
        /// The agent pool.
        pool: u8,
        /// The count.
        count: u8,
        /// Whether only the count is lowered, never a machine added.
        corrects: bool,
    },
    /// Deletion of machines.
    Delete {
        /// The agent pool.
        pool: u8,
        /// The machines.
        vms: Vec<Vm>,
    },
    /// Request for a drain.
    Drain(Vm),
    /// … and its withdrawal.
    Withdraw(Vm),
}

impl Act {
    /// The agent pool that is written, if one is.
    pub fn pool(&self) -> Option<u8> {
        match self {
            Self::Put { pool, .. } | Self::Delete { pool, .. } => Some(*pool),
            Self::Drain(_) | Self::Withdraw(_) => None,
        }
    }
}

/// A reconciliation, after its plan was made and its intentions are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// What it was planned from: the report is made from the same.
    pub seen: Seen,
    /// When that was.
    pub began: Time,
    /// Writes to Azure that are not sent yet, each with whether the ETag that the plan knew is still Azure's.
    pub unsent: Vec<(Act, bool)>,
    /// What came of those that were.
    pub results: BTreeMap<u8, Outcome>,
    /// Writes to Nodes: the last of all.
    pub nodes: Vec<Act>,
}

/// What came of a write to Azure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Accepted.
    Accepted,
    /// Refused: somebody was faster.
    Conflict,
    /// Refused: no capacity.
    Capacity,
    /// No answer.
    Unknown,
}

/// What is left of a leader that was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frozen {
    /// Writes to Azure that it was about to send, each with whether its ETag is still Azure's.
    pub unsent: Vec<(Act, bool)>,
    /// Writes to Nodes.
    pub nodes: Vec<Act>,
}

/// A request to Azure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sent {
    /// What is asked.
    pub act: Act,
    /// Whether the ETag in its `If-Match` is still Azure's.
    pub fresh: bool,
    /// Whether its sender has gone: nobody hears the answer.
    pub orphan: bool,
}

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Status.
    pub saved: Saved,
    /// What is known of agent pools.
    pub cache: Option<Vec<Cached>>,
    /// Nodes, and the machines of the last list.
    pub vms: Vec<VmState>,
}

/// How much may still go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Notices.
    pub notices: u8,
    /// VMs that go without one.
    pub silent: u8,
    /// Notices that are taken back.
    pub spared: u8,
    /// Leaders that die, or lose the lease.
    pub crashes: u8,
    /// Requests or answers that are lost.
    pub lost: u8,
    /// Requests that Azure refuses for want of capacity, and operations that bring nothing.
    pub refused: u8,
    /// Drains that a disruption budget does not let end.
    pub blocked: u8,
    /// Long waits.
    pub waits: u8,
}

/// What has happened, as far as a property asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// Spot VMs that Azure announced to take, or took.
    pub losses: u8,
    /// VMs that were made: spot, on demand.
    pub made: [u8; 2],
    /// What must not happen.
    pub wrong: Option<Wrong>,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// A machine was deleted on whose node pods may run.
    DeletedUndrained,
    /// A count was set below the machines that exist: Azure chose which to delete.
    AzureChose,
    /// The plan did something that this model does not know.
    NotModelled,
}

impl Seen {
    /// Gives what is alike to a plan one form; says what each time was before.
    pub fn settle(&mut self) -> BTreeMap<Time, Time> {
        let mut times = Vec::new();
        in_saved(&mut self.saved, &mut times);
        in_cache(self.cache.as_mut(), &mut times);
        in_vms(&mut self.vms, &mut times);
        time::pass(0, times)
    }
}

impl Saved {
    /// All its times.
    pub fn times(&mut self) -> Vec<&mut Time> {
        let mut times = Vec::new();
        in_saved(self, &mut times);
        times
    }
}

impl State {
    /// Lets `seconds` pass, and gives states that are alike one form.
    pub fn settle(&mut self, seconds: Time) {
        time::pass(seconds, self.times());
        self.forget();
        self.sort();
        self.wire.sort();
    }

    fn times(&mut self) -> Vec<&mut Time> {
        let mut times = Vec::new();
        in_saved(&mut self.saved, &mut times);
        in_cache(self.cache.as_mut(), &mut times);
        in_vms(&mut self.vms, &mut times);
        if let Some(work) = &mut self.work {
            times.push(&mut work.began);
            in_saved(&mut work.seen.saved, &mut times);
            in_cache(work.seen.cache.as_mut(), &mut times);
            in_vms(&mut work.seen.vms, &mut times);
        }
        times
    }

    /// VMs that are gone from everybody's sight.
    fn forget(&mut self) {
        let named = self.named();
        let mut place = 0;
        let keep = |at: usize, vm: &VmState| {
            vm.exists || vm.node.is_some() || vm.listed || named.contains(&(at as Vm))
        };
        let kept: Vec<bool> = self.vms.iter().enumerate().map(|(at, vm)| keep(at, vm)).collect();
        let places: Vec<Vm> = kept
            .iter()
            .map(|kept| {
                place += Vm::from(*kept);
                place.wrapping_sub(1)
            })
            .collect();
        let mut kept = kept.into_iter();
        self.vms.retain(|_| kept.next().unwrap_or(true));
        self.rename(&places);
    }

    /// VMs whose place somebody remembers.
    fn named(&self) -> Vec<Vm> {
        // What was planned from is kept as it was, in its order.
        let planned = self.work.iter().flat_map(|work| 0..work.seen.vms.len() as Vm);
        let deleted = self.azure.iter().filter_map(|pool| pool.operation.as_ref()).flat_map(|it| &it.deletes);
        let sent = self.wire.iter().map(|sent| &sent.act);
        let frozen = self.frozen.iter().flat_map(|it| it.unsent.iter().map(|(act, _)| act).chain(&it.nodes));
        let acts = sent.chain(frozen).flat_map(|act| match act {
            Act::Delete { vms, .. } => vms.clone(),
            Act::Drain(vm) | Act::Withdraw(vm) => vec![*vm],
            Act::Put { .. } => Vec::new(),
        });
        planned.chain(deleted.copied()).chain(acts).collect()
    }

    fn sort(&mut self) {
        // A plan that is being carried out knows them by place.
        if self.work.is_some() {
            return;
        }
        let mut order: Vec<usize> = (0..self.vms.len()).collect();
        order.sort_by(|one, other| self.vms[*one].cmp(&self.vms[*other]));
        let mut places = vec![0; order.len()];
        for (to, from) in order.iter().enumerate() {
            places[*from] = to as Vm;
        }
        self.vms = order.iter().map(|from| self.vms[*from].clone()).collect();
        self.rename(&places);
    }

    fn rename(&mut self, places: &[Vm]) {
        let to = |vm: &mut Vm| *vm = places.get(usize::from(*vm)).copied().unwrap_or(*vm);
        let in_act = |act: &mut Act| match act {
            Act::Delete { vms, .. } => {
                vms.iter_mut().for_each(to);
                vms.sort_unstable();
            }
            Act::Drain(vm) | Act::Withdraw(vm) => to(vm),
            Act::Put { .. } => {}
        };
        for operation in self.azure.iter_mut().filter_map(|pool| pool.operation.as_mut()) {
            operation.deletes.iter_mut().for_each(to);
            operation.deletes.sort_unstable();
        }
        self.wire.iter_mut().for_each(|sent| in_act(&mut sent.act));
        if let Some(work) = &mut self.work {
            work.unsent.iter_mut().map(|(act, _)| act).chain(&mut work.nodes).for_each(in_act);
        }
        if let Some(frozen) = &mut self.frozen {
            frozen.unsent.iter_mut().map(|(act, _)| act).chain(&mut frozen.nodes).for_each(in_act);
        }
    }

    /// VMs of an agent pool that exist.
    pub fn existing(&self, pool: u8) -> u8 {
        self.vms.iter().filter(|vm| vm.pool == pool && vm.exists).count() as u8
    }

    /// Those, and the ones that are being made.
    pub fn committed(&self, pool: u8) -> u8 {
        let operation = self.azure[usize::from(pool)].operation.as_ref();
        self.existing(pool) + operation.map_or(0, |operation| operation.makes)
    }
}

fn in_saved<'a>(saved: &'a mut Saved, times: &mut Vec<&'a mut Time>) {
    times.extend(&mut saved.lost_since);
    for pool in &mut saved.pools {
        times.extend(pool.operation.as_mut().map(|operation| &mut operation.since));
        times.extend(pool.error.as_mut().map(|(_, at)| at));
        times.extend(pool.avoided.as_mut().map(|(_, until)| until));
    }
}

fn in_cache<'a>(cache: Option<&'a mut Vec<Cached>>, times: &mut Vec<&'a mut Time>) {
    for pool in cache.into_iter().flatten() {
        times.extend(&mut pool.failed_at);
        times.extend(&mut pool.stale_since);
    }
}

fn in_vms<'a>(vms: &'a mut [VmState], times: &mut Vec<&'a mut Time>) {
    for node in vms.iter_mut().filter_map(|vm| vm.node.as_mut()) {
        times.push(&mut node.created);
        times.extend(&mut node.asked);
    }
}
