//! How a SpotPool goes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of on-demand nodes that stand in for spot when the SpotPool is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Every node stays; only our marks are taken off.
    #[default]
    Retain,
    /// On-demand nodes that were bought in the place of spot are drained, disruption budgets kept, and returned; then
    /// the SpotPool goes. Baseline, nodes found at adoption and spot nodes stay.
    ReturnFallback,
}

/// How far a deleted SpotPool is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeavingStatus {
    /// On-demand nodes that are still to be returned.
    pub fallback_nodes: i32,
}
