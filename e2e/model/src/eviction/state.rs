//! One node from its notice to its end: the VM in Azure, the Node, its pods, its agent, a sibling that tells of it, and
//! the operator that drains where the agent is silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_drain::plan::Asked;
use spotpool_node_agent::notice::Seen;

use super::cluster::Object;
use crate::time::Time;

/// Pods on the node that a drain moves.
pub const PODS: usize = 3;

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Seconds since the beginning.
    pub now: Time,
    /// What Azure does.
    pub azure: Azure,
    /// The Node as the apiserver has it.
    pub node: Arc<Object>,
    /// Its pods.
    pub pods: [PodState; PODS],
    /// What another node of the scale set tells.
    pub sibling: Sibling,
    /// The agent, while it runs.
    pub agent: Option<Agent>,
    /// The leader, while there is one.
    pub operator: Option<Operator>,
    /// What may still go wrong.
    pub budget: Budget,
    /// What has happened.
    pub ghost: Ghost,
}

/// What Azure does to the VM, and what its metadata service says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Azure {
    /// Grows with each change of the document.
    pub incarnation: u8,
    /// The event that the document names.
    pub event: Option<Event>,
    /// Events so far: when each was announced, and of whom.
    pub announced: Vec<(Time, Names)>,
    /// Whether the VM will be taken, whatever the document says.
    pub dooms: bool,
    /// Whether it is there.
    pub exists: bool,
}

/// An event of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Its place in [`Azure::announced`].
    pub number: u8,
    /// Whom it names.
    pub names: Names,
}

/// Whom an event names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    /// This node's VM alone.
    This,
    /// Both.
    Both,
    /// The sibling's alone.
    Sibling,
}

/// A pod on its way out, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodState {
    /// It runs.
    Runs,
    /// It was told to go.
    Ends,
    /// It is gone.
    Gone,
}

/// What the sibling's Node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sibling {
    /// Nothing: it was never noticed.
    Silent,
    /// It is under this event, which names this node, too, or does not.
    Tells(Event, Time),
    /// Its event is over.
    Over(u8, Time),
    /// It is gone.
    Gone,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    /// What it knows of events.
    pub seen: Seen,
    /// The incarnation of the last document.
    pub read: Option<u8>,
    /// When it last asked for one.
    pub heard: Option<Time>,
    /// Since when it runs.
    pub since: Time,
    /// The Node as it last saw it.
    pub view: Arc<Object>,
    /// The notice that it is at.
    pub flow: Option<Flow>,
    /// How the last event ended whose marks no flow takes off.
    pub ended: Option<Phase>,
    /// Marks without a flow that come off.
    pub tidies: Option<Tidying>,
}

/// A small write of the agent's beside flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tidying {
    /// Takes the marks of a notice off.
    GiveBack(bool),
    /// Takes a cordon off that an earlier notice still owes.
    Owed,
}

/// A notice that is acted upon, by the agent or by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// What should stand on the Node.
    pub wanted: EvictionNotice,
    /// What does, once the first write is through.
    pub told: Option<EvictionNotice>,
    /// How the event ended.
    pub ended: Option<Phase>,
    /// The drain.
    pub drain: Draining,
}

/// A drain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Draining {
    /// When it began.
    pub began: Time,
    /// Whether pods that will be left were named already.
    pub has_said: bool,
    /// Pods of drains before it.
    pub before: PodCounts,
    /// Evictions that were accepted.
    pub evicted: u32,
    /// Deletions that were.
    pub escalated: u32,
    /// What came of asking each pod.
    pub asked: [Asked; PODS],
    /// Whether it is over.
    pub is_over: bool,
}

/// The operator's leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operator {
    /// This node and its sibling as it last saw them.
    pub view: (Arc<Object>, Sibling),
    /// Who told of which event.
    pub heard: BTreeMap<u8, Heard>,
    /// What is under way for this node.
    pub task: Option<Task>,
}

/// What the operator has heard of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heard {
    /// When first.
    pub at: Time,
    /// Of this node itself, of its sibling.
    pub by: [bool; 2],
    /// Since when nobody tells of it any more.
    pub silent_since: Option<Time>,
}

/// Work of the operator on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// The Node as it was last read for it.
    pub base: Arc<Object>,
    /// What is to be done.
    pub work: Work,
}

/// What the operator is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Claims this notice.
    Claim(Box<EvictionNotice>),
    /// Drains.
    Drain(Box<Flow>),
    /// Takes its marks off: taken back, or over.
    GiveBack(bool),
}

/// How much may still go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Events.
    pub notices: u8,
    /// Events that are taken back in time.
    pub taken_back: u8,
    /// VMs that are spared when their time has come.
    pub spared: u8,
    /// VMs that come back with another boot.
    pub reboots: u8,
    /// VMs that go before their time.
    pub early: u8,
    /// Deaths of the agent.
    pub agent_dies: u8,
    /// Deaths of the leader.
    pub leader_dies: u8,
    /// Writes of the Node whose answer is lost.
    pub lost: u8,
    /// Moments that pass though a program has something to do.
    pub slow: u8,
    /// Documents of a metadata service that starts over: older, and empty.
    pub amnesia: u8,
    /// Siblings that go.
    pub sibling_goes: u8,
}

/// What has happened, as far as a property asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// Whether nobody was there to drain, at some time since the last call.
    pub unattended: bool,
    /// Whether the notice of the last event has stood on the Node.
    pub marked: bool,
    /// Writes of the Node in this moment.
    pub writes: u8,
    /// What must not happen.
    pub wrong: Option<Wrong>,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// Its VM has gone with a pod that was not told to go, and that nobody names.
    Unreported,
    /// The Node says `Drained` and a pod is left.
    CalledDrained,
    /// A pod of a node was told to go that no event has named.
    NotNamed,
    /// A node that Azure takes is open to new pods though its agent runs and could know.
    Open,
    /// The operator has claimed what the agent had.
    TakenFromAgent,
    /// Two writers overwrite each other for ever.
    NoRest,
    /// An edit could not be applied at all.
    Unpatchable,
}
