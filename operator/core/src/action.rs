//! One thing to do, and why.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::voluntary_drain::DrainReason;

/// One thing to do. At most one write to an agent pool in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// PUT the agent pool with a higher count; an autoscaled one with a minimum of that many.
    ScaleUp {
        /// The agent pool.
        agent_pool: String,
        /// Machines beyond those that exist.
        new: u32,
        /// Machines that exist and have no Node yet.
        coming: u32,
        /// The count to ask for: machines that exist, doomed ones included, and the new ones.
        count: u32,
        /// Why.
        reason: Reason,
    },
    /// Delete drained machines by name.
    DeleteMachines {
        /// The agent pool.
        agent_pool: String,
        /// Names of nodes, which are also the machines' names.
        nodes: Vec<String>,
        /// Machines that remain.
        remaining: u32,
        /// Why.
        reason: Reason,
    },
    /// Have Azure make an agent pool that does not exist, without machines.
    CreateAgentPool {
        /// The agent pool.
        agent_pool: String,
    },
    /// PUT the agent pool with its count lowered to the machines that exist: none is deleted by it.
    CorrectCount {
        /// The agent pool.
        agent_pool: String,
        /// Machines that exist.
        count: u32,
    },
    /// PUT the autoscaled agent pool with another minimum that adds no machine and takes none by itself.
    SetMinimum {
        /// The agent pool.
        agent_pool: String,
        /// The least that the autoscaler keeps from now on.
        min: u32,
        /// Why.
        reason: Reason,
    },
    /// Have Azure start deallocated machines again.
    Restart {
        /// The agent pool.
        agent_pool: String,
        /// Names of nodes.
        nodes: Vec<String>,
    },
    /// Taint the node `out-of-service`: its VM does not run.
    TakeOutOfService {
        /// The node.
        node: String,
    },
    /// Take that taint off.
    ReturnToService {
        /// The node.
        node: String,
    },
    /// Ask the node's agent to drain it, PDBs kept.
    RequestDrain {
        /// The node.
        node: String,
        /// Why.
        reason: DrainReason,
        /// When the agent gives up.
        not_after: Timestamp,
    },
    /// Take the drain request back; the agent gives the node back.
    WithdrawDrain {
        /// The node.
        node: String,
        /// Why.
        reason: Reason,
    },
}

impl Action {
    /// Why.
    pub fn reason(&self) -> Reason {
        match self {
            Self::ScaleUp { reason, .. }
            | Self::SetMinimum { reason, .. }
            | Self::WithdrawDrain { reason, .. }
            | Self::DeleteMachines { reason, .. } => *reason,
            Self::Restart { .. } => Reason::RestartDeallocated,
            Self::TakeOutOfService { .. } | Self::ReturnToService { .. } => Reason::OutOfService,
            Self::CorrectCount { .. } => Reason::CountCorrected,
            Self::CreateAgentPool { .. } => Reason::CreateAgentPool,
            Self::RequestDrain { reason: DrainReason::Failback, .. } => Reason::Failback,
            Self::RequestDrain { reason: DrainReason::Manual, .. } => Reason::ManualDrain,
            Self::RequestDrain { .. } => Reason::ScaleDown,
        }
    }

    /// The agent pool that is written, if one is.
    pub fn agent_pool(&self) -> Option<&str> {
        match self {
            Self::ScaleUp { agent_pool, .. }
            | Self::DeleteMachines { agent_pool, .. }
            | Self::CorrectCount { agent_pool, .. }
            | Self::CreateAgentPool { agent_pool }
            | Self::SetMinimum { agent_pool, .. } => Some(agent_pool),
            // Starting a machine is no write of its agent pool.
            Self::Restart { .. }
            | Self::TakeOutOfService { .. }
            | Self::ReturnToService { .. }
            | Self::RequestDrain { .. }
            | Self::WithdrawDrain { .. } => None,
        }
    }

    pub(crate) fn machines_deleted(&self) -> usize {
        match self {
            Self::DeleteMachines { nodes, .. } => nodes.len(),
            _ => 0,
        }
    }
}
