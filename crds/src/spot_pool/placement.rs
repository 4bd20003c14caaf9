//! Where capacity is looked for, and what is kept beyond what spot carries.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EarlySignals, PdbFloor};
use crate::duration::Duration;

/// Which agent pool takes a new node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// `Balanced` weighs price, evictions and placement score, and spreads over agent pools, sizes and zones;
    /// `LowestPrice` and `LowestEvictionRate` look at that alone; `Ordered` fills agent pools in the order of the
    /// spec. Whatever it says, an agent pool that is losing nodes right now comes last.
    #[serde(default)]
    pub strategy: Strategy,

    /// The most of the wanted spot capacity that one agent pool takes as long as another has room, in percent, 1
    /// to 100. Losses are correlated: what stands together goes together.
    #[serde(default = "default_max_share_per_pool")]
    #[schemars(range(min = 1, max = 100))]
    pub max_share_per_pool: i32,

    /// Signs that come before a notice make an agent pool dearer, and may bring spot elsewhere ahead. Off without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_signals: Option<EarlySignals>,
}

/// What decides between agent pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// Price, what evictions add to it, placement score, and spread.
    #[default]
    Balanced,
    /// The price alone.
    LowestPrice,
    /// Evictions alone: Azure's rate for the size and what was lost here.
    LowestEvictionRate,
    /// The order in the spec.
    Ordered,
}

/// On-demand nodes that the pool always has.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OnDemand {
    /// How many of the wanted units are on on-demand VMs, whatever spot does, 0 to 1000. Where more were found at
    /// adoption and `adoption` is `Keep`, these. They are no fallback: no limit of `fallback` counts them. If it is
    /// more than `replicas`, so many units are wanted.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub baseline: i32,

    /// On-demand nodes kept because disruption budgets ask for pods that must be healthy. Off by default. Like the
    /// baseline they are part of what is wanted and no fallback; what counts is the more of the two.
    #[serde(default)]
    pub pdb_floor: PdbFloor,
}

/// Spot nodes kept ready beyond what is wanted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standby {
    /// How many units, 0 to 1000. When they are lost, no on-demand is bought in their place, and on-demand is given back only
    /// once they are ready again.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub units: i32,

    /// More for a while where Azure has just taken nodes: it mostly takes others soon.
    #[serde(default)]
    pub after_loss: AfterLoss,
}

/// Spot kept beyond what is wanted while losses are recent: as much as was lost, at most a share of what is wanted on spot.
/// Nothing is bought or kept on demand for it, and what no agent pool has room for is not waited for. `standby.units` counts
/// towards it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AfterLoss {
    /// At most this share of what is wanted on spot, in percent, 0 to 100, rounded up to whole units: 15 percent of 3 units is one. `0`
    /// keeps none.
    #[serde(default = "default_after_loss_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,

    /// For how long after the last loss of an agent pool, 1s to 168h.
    #[serde(default = "default_after_loss_lasts", rename = "for")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('168h')")
        .message("standby.afterLoss.for must be 1s to 168h: for no spare after a loss set standby.afterLoss.percent to 0"))]
    pub lasts: Duration,
}

/// When a node counts as capacity: once it is Ready, not cordoned, and all that is said here holds.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// How long it must have been Ready, 0s to 1h.
    #[serde(default = "super::no_time")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')")
        .message("readiness.warmup must be at most 1h"))]
    pub warmup: Duration,

    /// Keys of taints that somebody takes off new nodes when these are ready for work, such as a CNI or a GPU driver.
    /// Put them on the agent pool as `nodeInitializationTaints`: AKS keeps `nodeTaints` on nodes for ever.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 316)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub startup_taints: Vec<String>,
}

fn default_max_share_per_pool() -> i32 {
    60
}

fn default_after_loss_percent() -> i32 {
    15
}

fn default_after_loss_lasts() -> Duration {
    Duration::from_secs(4 * 3600)
}

impl Default for AfterLoss {
    fn default() -> Self {
        Self { percent: default_after_loss_percent(), lasts: default_after_loss_lasts() }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            max_share_per_pool: default_max_share_per_pool(),
            early_signals: None,
        }
    }
}
