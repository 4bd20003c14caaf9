//! What one plan leaves for the next.

use jiff::Timestamp;
use spotpool_crds::spot_pool::ObjectiveStatus;

use crate::floor::FloorMemory;
use crate::ledger::Ledger;
use crate::need::Needs;

/// What one plan leaves for the next: kept in status, so that it survives restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The most that has been ready at once, at most what is wanted.
    pub established: u32,
    /// Since when established capacity is missing.
    pub lost_since: Option<Timestamp>,
    /// Since when growth waits for capacity.
    pub growth_since: Option<Timestamp>,
    /// Since when more nodes are there than needed.
    pub surplus_since: Option<Timestamp>,
    /// On-demand that is needed, and was lately.
    pub needs: Needs,
    /// No node is asked to drain before this time.
    pub paused_until: Option<Timestamp>,
    /// Since when on-demand stands in for spot.
    pub fallback_since: Option<Timestamp>,
    /// When a node was last given back because spot could carry the load again.
    pub failed_back_at: Option<Timestamp>,
    /// How often spot failed soon after that, and when at last.
    pub relapses: Option<Relapses>,
    /// The on-demand that is kept for disruption budgets.
    pub floor: FloorMemory,
    /// The node that was given back alone, before others follow.
    pub probe: Option<Probe>,
    /// The last wish for failback that was answered.
    pub answered: Option<Answered>,
    /// What was measured of the objective, as status has it.
    pub objective: Option<ObjectiveStatus>,
    /// What has been spent.
    pub ledger: Option<Ledger>,
}

/// The first node that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub node: String,
    /// Since when it is gone, if it is.
    pub gone_since: Option<Timestamp>,
}

/// A wish of a person and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The annotation's value.
    pub value: String,
    /// What came of it, in words.
    pub answer: String,
}

/// How often spot failed soon after on-demand was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relapses {
    /// How often, as it counted at `at`.
    pub count: u32,
    /// When at last.
    pub at: Timestamp,
}
