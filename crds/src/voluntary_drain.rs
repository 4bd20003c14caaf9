//! The exchange on the Node by which the operator has a node drained without hurry.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::skew::known_or;

/// Value of annotation `spotpool.dev/drain-request`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainRequest {
    /// Names this request; the answer carries it.
    pub id: String,
    /// Why.
    #[serde(deserialize_with = "reason")]
    pub reason: DrainReason,
    /// A voluntary drain never deletes a pod past its disruption budget.
    pub voluntary: bool,
    /// When the agent gives up and gives the node back.
    pub not_after: Timestamp,
    /// Uid of the SpotPool that asks: another one that finds the request takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot_pool: Option<String>,
}

// Words of a newer program: a drain that is asked for is made, and one that is not known to have ended goes on.
fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DrainReason, D::Error> {
    known_or(deserializer, DrainReason::Repair)
}
fn phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DrainPhase, D::Error> {
    known_or(deserializer, DrainPhase::Draining)
}

/// Why a drain is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainReason {
    /// Spot is back; this on-demand node is no longer needed.
    Failback,
    /// The pool wants fewer nodes.
    ScaleDown,
    /// The node is broken.
    Repair,
    /// A game day.
    Drill,
    /// A person asked.
    Manual,
}

/// Value of annotation `spotpool.dev/drain-status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainStatus {
    /// Id of the request.
    pub id: String,
    /// How far it is.
    #[serde(deserialize_with = "phase")]
    pub phase: DrainPhase,
    /// Pods that still have to go.
    pub pods_left: u32,
    /// Disruption budgets that hold pods, `namespace/name`, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocking_pdbs: Vec<String>,
    /// Whether the cordon is ours, and so ours to take off.
    pub cordoned: bool,
}

/// How far a voluntary drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainPhase {
    /// Cordoned; evictions run.
    Draining,
    /// Nothing is left: the machine may be deleted. The cordon stays.
    Drained,
    /// `notAfter` came first; the node was given back.
    TimedOut,
    /// It was drained for a rehearsal, whose time is over, and nobody has taken the request back; the node was given back.
    Cancelled,
}

impl DrainPhase {
    /// Whether the agent is done with the request.
    pub fn is_final(self) -> bool {
        self != Self::Draining
    }
}
