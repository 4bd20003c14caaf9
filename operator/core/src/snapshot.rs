//! What a plan is made from: one consistent view of a SpotPool's nodes and agent pools.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{OnDeallocated, Operation, OperationKind, Role};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};

use crate::autoscaler::Autoscaler;
use crate::fit::Room;
use crate::floor::FloorDemand;
use crate::loss::{Lost, Restarts, VmState};
use crate::memory::Memory;
use crate::signals::Signals;
use crate::stall::{COMES_WITHIN, asked, is_overdue};
use crate::upkeep::Upkeep;
use crate::wishes::Wishes;

/// Everything that [`crate::plan()`] looks at besides the spec and the time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The agent pools of the spec, in its order.
    pub agent_pools: Vec<AgentPoolView>,
    /// What the last plan left to remember.
    pub memory: Memory,
    /// When time alone makes the next node ready.
    pub ready_at: Option<Timestamp>,
    /// The on-demand that disruption budgets need; absent until that has been looked at.
    pub floor: Option<FloorDemand>,
    /// What runs on on-demand nodes, and where there is room; absent where nobody looks at pods.
    pub room: Option<Arc<Room>>,
    /// What a person has said of voluntary moves.
    pub wishes: Wishes,
    /// Whether the SpotPool is being deleted.
    pub leaving: bool,
    /// Whether Azure does not answer, through no fault of ours.
    pub azure_silent: bool,
    /// Of all prices, by ISO 4217.
    pub currency: String,
}

/// One agent pool.
#[derive(Clone, Debug)]
pub struct AgentPoolView {
    /// Its name.
    pub name: String,
    /// Most machines that may exist in it.
    pub max_nodes: u32,
    /// What one of its nodes is worth.
    pub units: u32,
    /// What it sells, or why it must not be used.
    pub role: Result<Role, Reason>,
    /// Azure's `count`. May be stale after evictions: [`Self::machines`] is the truth.
    pub count: u32,
    /// The range of the cluster autoscaler, if that scales it.
    pub autoscaler: Option<Autoscaler>,
    /// Names of the machines that Azure listed and that are not known to be gone since.
    pub machines: Vec<String>,
    /// Since when listed machines have been without a Node, for those of which that is known.
    pub joining: BTreeMap<String, Timestamp>,
    /// Since when Azure's count has been above the machines that it lists, with no operation running.
    pub count_stale_since: Option<Timestamp>,
    /// How many machines Azure listed, those among them whose Node has gone.
    pub listed: u32,
    /// Whether a write would be refused: an operation runs, or its outcome is not known yet.
    pub busy: bool,
    /// What AKS does to it besides scaling.
    pub upkeep: Option<Upkeep>,
    /// What we asked for and have not seen finished.
    pub operation: Option<Operation>,
    /// Machines of a scale-up that was about to be asked for lately, of which nothing is seen: who was to ask may have died
    /// before, or the request may still be on its way.
    pub unanswered: u32,
    /// A scale-up that Azure accepted, and that is over without an error.
    pub ended: Option<Operation>,
    /// Nothing new is asked of it before this time.
    pub avoided_until: Option<Timestamp>,
    /// Nothing at all is written to it before this time.
    pub unwritable_until: Option<Timestamp>,
    /// On-demand nodes found at adoption that failback never takes.
    pub kept: u32,
    /// VM size; empty while Azure has not answered.
    pub vm_size: String,
    /// Availability zones.
    pub zones: Vec<String>,
    /// What is known of its price, evictions and capacity.
    pub market: Market,
    /// The most that a machine may cost an hour.
    pub max_hourly_price: Option<Decimal>,
    /// What was lost here lately.
    pub losses: Option<Losses>,
    /// Early signs that its nodes may be taken.
    pub signals: Signals,
    /// When Azure last had no capacity for it, if no machine has come since: then it is tried with one first.
    pub refused_at: Option<Timestamp>,
    /// When nodes of it went that nobody had announced, and whose Node is not there any more.
    pub vanished: Vec<Timestamp>,
    /// Whether Azure leaves evicted VMs there, deallocated.
    pub deallocates: bool,
    /// What becomes of those.
    pub on_deallocated: OnDeallocated,
    /// How often they were started, if they were.
    pub restarts: Option<Restarts>,
    /// Its nodes, in any order.
    pub nodes: Vec<NodeView>,
}

impl Default for AgentPoolView {
    /// Without a name, machines, room, or an answer of Azure's; its nodes are worth one unit.
    fn default() -> Self {
        Self {
            name: String::new(),
            max_nodes: 0,
            vanished: Vec::new(),
            deallocates: false,
            on_deallocated: OnDeallocated::default(),
            restarts: None,
            units: 1,
            role: Err(Reason::AzureUnreachable),
            count: 0,
            autoscaler: None,
            machines: Vec::new(),
            joining: BTreeMap::new(),
            count_stale_since: None,
            listed: 0,
            busy: false,
            operation: None,
            unanswered: 0,
            ended: None,
            avoided_until: None,
            unwritable_until: None,
            kept: 0,
            vm_size: String::new(),
            zones: Vec::new(),
            market: Market::default(),
            max_hourly_price: None,
            losses: None,
            signals: Signals::default(),
            refused_at: None,
            upkeep: None,
            nodes: Vec::new(),
        }
    }
}

/// What is known of an agent pool's price, evictions and capacity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Market {
    /// Price of one machine an hour, in the operator's currency.
    pub hourly_price: Option<Decimal>,
    /// What it was when it was last known.
    pub last_price: Option<Decimal>,
    /// When the one or the other was read.
    pub read_at: Option<Timestamp>,
    /// Price of a machine of this size on demand.
    pub on_demand_price: Option<Decimal>,
    /// Share of the VMs of this size that Azure evicts in an hour, 0 to 1.
    pub evictions_an_hour: Option<f64>,
    /// How likely Azure thinks that it has capacity.
    pub score: Option<Score>,
}

/// Azure's spot placement score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// The subscription may not have this size here.
    Restricted,
    /// Unlikely.
    Low,
    /// Perhaps.
    Medium,
    /// Likely.
    High,
}

/// Nodes of an agent pool that Azure took or announced to take, fading with time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Losses {
    /// How many, as they counted at `at`.
    pub count: u32,
    /// When the last of them was seen.
    pub at: Timestamp,
}

/// One node. By default without a name, as old as can be, and not ready.
#[expect(clippy::struct_excessive_bools, reason = "each is seen by itself, in any combination")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, which is also its machine's.
    pub name: String,
    /// Its agent pool.
    pub agent_pool: String,
    /// When the Node object was made.
    pub created: Timestamp,
    /// Ready for pods: condition Ready, all that `readiness` asks for, and nobody has cordoned it.
    pub ready: bool,
    /// Whether it takes no new pods, although nothing is known to happen to its VM: somebody has cordoned it.
    pub cordoned: bool,
    /// Whether a drill has closed it for a moment: it is not ready, and nothing is lost.
    pub rehearsed: bool,
    /// Since when it is under notice, by its own agent's word or by a sibling's. Worth nothing from that moment.
    pub noticed: Option<Timestamp>,
    /// Its VM does not run, says Azure.
    pub lost: Option<Lost>,
    /// Whether the operator has put it out of service.
    pub out_of_service: bool,
    /// The voluntary drain that was asked for.
    pub drain: Option<DrainView>,
    /// Whether a person wants it drained and replaced.
    pub drain_wished: bool,
}

/// A voluntary drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainView {
    /// When the agent gives up.
    pub not_after: Timestamp,
    /// The agent's answer to this very request; none yet if absent.
    pub phase: Option<DrainPhase>,
    /// Why it was asked for.
    pub reason: DrainReason,
    /// Whether this SpotPool asked for it, not one that had the node before.
    pub is_ours: bool,
}

impl NodeView {
    /// Whether it counts as capacity that is there or coming: not lost, not under notice, not asked to leave. What
    /// somebody else asked of it before is taken back at once.
    pub fn stays(&self) -> bool {
        let is_asked_to_leave = self.drain.as_ref().is_some_and(|drain| drain.is_ours);
        self.noticed.is_none() && self.lost.is_none() && !is_asked_to_leave
    }

    /// Whether it has come so lately that it is likely to be ready soon.
    pub fn is_booting(&self, now: Timestamp) -> bool {
        self.stays() && !self.ready && !is_overdue(self.created, now)
    }

    /// Whether it is out of use although its VM runs, as far as is known: cordoned by a person, or for an upgrade that
    /// we have not heard of yet.
    pub fn is_set_aside(&self) -> bool {
        self.stays() && self.cordoned
    }

    /// Whether pods can run on it, today and tomorrow.
    pub fn serves(&self) -> bool {
        self.stays() && self.ready
    }
}

/// Nodes that have come since `operation` was asked for: machines of an earlier one that boot meanwhile, too.
pub fn arrived(operation: &Operation, nodes: &[NodeView]) -> u32 {
    // Both times are whole seconds. One that was made in the very second of the request cannot be of it: no VM boots in
    // that, and counting it would ask for one too many.
    nodes.iter().filter(|node| node.created > operation.since.0).count() as u32
}

impl Snapshot {
    /// The nodes of all agent pools.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeView> {
        self.agent_pools.iter().flat_map(|pool| &pool.nodes)
    }
}

impl AgentPoolView {
    /// Nodes that are neither under notice nor asked to leave.
    pub(crate) fn staying(&self) -> u32 {
        self.nodes.iter().filter(|node| node.stays()).count() as u32
    }

    /// What those of its nodes are worth that `count`.
    pub(crate) fn units_of(&self, count: impl Fn(&NodeView) -> bool) -> u32 {
        self.nodes.iter().filter(|node| count(node)).count() as u32 * self.units
    }

    /// Machines that exist: every node that is there, and every listed machine that is no node yet.
    pub(crate) fn existing(&self) -> u32 {
        self.present() + self.without_node()
    }

    /// Nodes whose machine is not known to be gone.
    fn present(&self) -> u32 {
        let is_gone = |node: &&NodeView| node.lost.is_some_and(|lost| lost.state == VmState::Gone);
        (self.nodes.len() - self.nodes.iter().filter(is_gone).count()) as u32 - self.taken()
    }

    /// Nodes under notice whose machine Azure does not list any more: their VM is gone, and the Node goes a little later. With
    /// them, a count would ask for one too many.
    fn taken(&self) -> u32 {
        let noticed = |node: &&NodeView| node.noticed.is_some() && node.lost.is_none();
        // While something runs the list may be older than the machines.
        if self.busy || !self.nodes.iter().any(|node| noticed(&node)) {
            return 0;
        }
        let listed: HashSet<&str> = self.machines.iter().map(String::as_str).collect();
        self.nodes.iter().filter(noticed).filter(|node| !listed.contains(node.name.as_str())).count() as u32
    }

    /// Nodes whose machine Azure charges for: one that is gone, deallocated or was never made costs nothing.
    pub(crate) fn charged(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.iter().filter(|node| node.lost.is_none())
    }

    /// Listed machines that are no node yet.
    pub(crate) fn without_node(&self) -> u32 {
        self.joining_machines().count() as u32
    }

    pub(crate) fn joining_machines(&self) -> impl Iterator<Item = &String> {
        let nodes: HashSet<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        self.machines.iter().filter(move |machine| !nodes.contains(machine.as_str()))
    }

    /// Since when those have been there that should have become nodes by now.
    pub(crate) fn overdue(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        let since = self.joining_machines().filter_map(|machine| self.joining.get(machine).copied());
        since.filter(move |since| is_overdue(*since, now))
    }

    /// When the next of those that are on their way is overdue.
    pub(crate) fn next_overdue(&self, now: Timestamp) -> Option<Timestamp> {
        let machines = self.joining_machines().filter_map(|machine| self.joining.get(machine).copied());
        let operation = self.operation.iter().filter(|operation| operation.kind == OperationKind::ScaleUp);
        let times = machines.chain(operation.map(|operation| operation.since.0));
        times.filter_map(|since| since.checked_add(COMES_WITHIN).ok()).filter(|at| *at > now).min()
    }

    /// Of the machines that `operation` should bring, those that are no nodes.
    pub(crate) fn not_come(&self, operation: &Operation) -> u32 {
        asked(operation).saturating_sub(arrived(operation, &self.nodes))
    }

    /// Machines that are asked for and no node yet, of those that may still be counted on.
    pub(crate) fn arriving(&self, now: Timestamp) -> u32 {
        if self.operation.as_ref().is_some_and(|operation| is_overdue(operation.since.0, now)) {
            return 0;
        }
        self.creating().saturating_sub(self.overdue(now).count() as u32)
    }

    /// Machines that are asked for and no node yet, however long ago that was: they may still come.
    pub(crate) fn creating(&self) -> u32 {
        let listed = self.without_node();
        let asked = match &self.operation {
            // Counted by the nodes that came since: Azure's count falls with evictions meanwhile, or not.
            Some(operation) if operation.kind == OperationKind::ScaleUp => self.not_come(operation),
            // Somebody else's operation: believe Azure's count.
            None if self.busy => self.count.saturating_sub(self.existing()),
            _ => 0,
        };
        listed.max(asked)
    }

    /// The count to ask for so that `new` machines come, and none goes that Azure still knows of: lowering a
    /// count lets Azure choose what to delete. Of an autoscaled agent pool it is the minimum.
    pub(crate) fn count_with(&self, new: u32) -> u32 {
        let count = (self.existing() + new).max(self.count.min(self.listed));
        self.autoscaler.map_or(count, |autoscaler| count.min(autoscaler.max))
    }

    /// Most machines that may exist in it: by the spec, and by the autoscaler.
    pub(crate) fn most(&self) -> u32 {
        self.autoscaler.map_or(self.max_nodes, |autoscaler| autoscaler.max.min(self.max_nodes))
    }

    /// Machines that there may be once `new` ones are asked for: the autoscaler brings what its minimum lacks.
    pub(crate) fn bound_to(&self, new: u32) -> u32 {
        let machines = self.committed() + new;
        self.autoscaler.map_or(machines, |autoscaler| machines.max(autoscaler.min))
    }

    /// Machines that exist or were asked for.
    pub(crate) fn committed(&self) -> u32 {
        let machines = self.present() + self.creating();
        // Surge nodes go by themselves.
        if self.upkeep.is_some() { machines.min(self.count) } else { machines }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    /// Found by the model of the protocol: a first PUT was refused, and the second counted a VM that had gone meanwhile.
    #[test]
    fn a_vm_that_azure_took_is_not_counted_because_its_node_is_still_there() {
        let node = |name: &str, noticed: bool| NodeView {
            name: name.into(),
            noticed: noticed.then_some(Timestamp::UNIX_EPOCH),
            ..NodeView::default()
        };
        let of = |machines: &[&str], busy| AgentPoolView {
            machines: machines.iter().map(|name| (*name).to_owned()).collect(),
            busy,
            nodes: vec![node("a", true), node("b", false), node("c", false)],
            ..AgentPoolView::default()
        };
        for (machines, busy, count) in [
            (&["a", "b", "c"][..], false, 4),
            (&["b", "c"], false, 3),
            // A list that may be old says nothing.
            (&["b", "c"], true, 4),
            // Nobody has said that they go.
            (&[], false, 3),
        ] {
            assert_eq!(of(machines, busy).count_with(1), count, "{machines:?}, busy: {busy}");
        }
    }

    /// Else one machine too many would be asked for, beyond every limit of fallback.
    #[test]
    fn a_node_of_the_very_second_of_a_request_was_there_before_it() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let operation = Operation {
            kind: OperationKind::ScaleUp,
            count: 4,
            machines: 3,
            coming: 0,
            since: now.into(),
            arrived: 0,
            accepted: true,
        };
        let node = |created: &str| NodeView {
            name: created.into(),
            agent_pool: "reg".into(),
            created: created.parse().unwrap(),
            ready: true,
            ..NodeView::default()
        };
        let mut pool = AgentPoolView { operation: Some(operation.clone()), ..AgentPoolView::default() };
        for (created, missing) in
            [("2026-11-21T11:59:59Z", 3), ("2026-11-21T12:00:00Z", 3), ("2026-11-21T12:00:01Z", 2)]
        {
            pool.nodes = vec![node(created)];
            assert_eq!(pool.not_come(&operation), missing, "made at {created}");
            assert_eq!(pool.committed(), 1 + missing, "made at {created}");
        }
    }
}
