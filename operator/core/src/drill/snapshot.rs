//! What a drill looks at, and what it asks for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::voluntary_drain::DrainPhase;

/// What is known when a step is decided.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The drill's uid.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The SpotPool; absent if there is none of that name.
    pub pool: Option<Pool>,
    /// The nodes of the SpotPool's agent pools.
    pub nodes: Vec<Node>,
    /// Nodes of the cluster under an eviction notice.
    pub noticed: Vec<String>,
    /// Disruption budgets of pods on these nodes that have fewer healthy pods than they ask for; absent until workloads have been
    /// read.
    pub unready_budgets: Option<Vec<String>>,
    /// How many pods a drain would move, by node and namespace; absent until workloads have been read.
    pub pods: Option<BTreeMap<String, BTreeMap<String, u32>>>,
    /// Agent pools that take no request now: an operation runs there.
    pub occupied: BTreeSet<String>,
    /// Another drill that is under way.
    pub other: Option<String>,
}

impl Snapshot {
    /// How many pods a drain of this node would move.
    pub(super) fn pods_on(&self, node: &str) -> u32 {
        let pods = self.pods.as_ref().and_then(|pods| pods.get(node));
        pods.map_or(0, |pods| pods.values().sum())
    }
}

/// The SpotPool.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Why it does not act now, in words, if it does not: suspended, only observing, being deleted.
    pub idle: Option<String>,
    /// Units that it wants.
    pub wanted: u32,
    /// Units that are ready, as its status last said.
    pub ready: u32,
    /// Why its objective is in danger, if it is.
    pub burning: Option<String>,
    /// Agent pools that have an operation running.
    pub busy: Vec<String>,
    /// What its machines cost an hour, if that is known.
    pub hourly: Option<Decimal>,
    /// Of what, by ISO 4217.
    pub currency: String,
}

/// A node of the SpotPool.
#[expect(clippy::struct_excessive_bools, reason = "each is seen by itself, in any combination")]
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its VM.
    pub vm: String,
    /// Its agent pool.
    pub agent_pool: String,
    /// Its zone.
    pub zone: String,
    /// What it is worth.
    pub units: u32,
    /// Whether its agent pool is spot.
    pub is_spot: bool,
    /// Whether `target.nodeSelector` selects it.
    pub selected: bool,
    /// Ready for pods: the kubelet says so, and it is neither closed nor under notice nor asked to drain.
    pub ready: bool,
    /// Whether its kubelet is ready.
    pub alive: bool,
    /// Whether it takes no new pods.
    pub closed: bool,
    /// Its notice.
    pub notice: Option<Notice>,
    /// The drain that it is asked for.
    pub request: Option<String>,
    /// Its agent's answer: to which request, how far it is, pods left.
    pub drain: Option<(String, DrainPhase, u32)>,
    /// What holds up its drain, as its agent tells.
    pub held: Vec<String>,
}

/// An eviction notice on a node.
#[derive(Clone, Copy, Debug)]
pub struct Notice {
    /// How far the drain is.
    pub phase: Phase,
    /// Of its pods.
    pub pods: PodCounts,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Have Azure evict the VM of a node.
    Evict {
        /// The node.
        node: String,
        /// Its VM.
        vm: String,
    },
    /// Have AKS delete machines of an agent pool, all in one request: it takes no second one meanwhile.
    Delete {
        /// The agent pool.
        agent_pool: String,
        /// Their nodes.
        machines: Vec<Machine>,
    },
    /// Ask the node's agent to drain it.
    Drain {
        /// The node.
        node: String,
        /// Its uid.
        uid: String,
        /// Names the request.
        request: String,
        /// When the agent gives it back by itself.
        not_after: Timestamp,
    },
    /// Take that back.
    Withdraw {
        /// The node.
        node: String,
        /// Its uid.
        uid: String,
    },
}

/// A machine, by its Node: whoever deletes it sees to it that the Node is still the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The Node, and the machine, as AKS calls both.
    pub node: String,
    /// The Node's uid.
    pub uid: String,
    /// Its VM.
    pub vm: String,
}

/// An Event about the drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Why.
    pub reason: Reason,
    /// In words.
    pub note: String,
    /// Which run.
    pub run: String,
}
