//! What becomes of a node that Azure has plans with, and how it is drained.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// How nodes under notice are drained.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// What becomes of a pod whose disruption budget allows no eviction while its VM is about to die:
    /// `DeleteAtDeadline` deletes it while it can still end gracefully, `Leave` lets it die with the VM.
    #[serde(default)]
    pub blocked_by_pdb: BlockedByPdb,

    /// How long after the notice a blocked pod is deleted, 0s to 10m; sooner where the deadline asks for it.
    #[serde(default = "default_escalate_after")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('10m')")
        .message("drain.escalateAfter must be at most 10m"))]
    pub escalate_after: Duration,

    /// Time kept free before the deadline, 0s to 20s.
    #[serde(default = "default_reserve")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('20s')")
        .message("drain.reserve must be at most 20s: Azure gives 30s at best"))]
    pub reserve: Duration,
}

/// What becomes of pods that a disruption budget holds on a dying node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlockedByPdb {
    /// Deleted while they can still end gracefully.
    #[default]
    DeleteAtDeadline,
    /// Left to die with the VM.
    Leave,
}

/// What nodes do about the events that Azure announces for their VMs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    /// The spot VM is taken back, with 30 seconds of notice at best.
    #[serde(default = "drain_response")]
    pub preempt: EventResponse,

    /// The VM is paused for some seconds.
    #[serde(default)]
    pub freeze: EventResponse,

    /// The VM is restarted.
    #[serde(default = "drain_response")]
    pub reboot: EventResponse,

    /// The VM is moved to another host, without its memory and its temporary disk.
    #[serde(default = "drain_response")]
    pub redeploy: EventResponse,

    /// The VM is deleted.
    #[serde(default = "drain_response")]
    pub terminate: EventResponse,

    /// Azure's early hint that the spot VM may be taken back soon (`SpotRebalanceRecommendation`). The operator
    /// hears of it whatever is said here.
    #[serde(default)]
    pub rebalance: EventResponse,

    /// How long before Azure acts at the earliest a node begins to respond to a freeze, reboot, redeploy or
    /// terminate, 0s to 24h. Azure announces some of them days ahead.
    #[serde(default = "default_lead_time")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("events.leadTime must be at most 24h"))]
    pub lead_time: Duration,

    /// Tells Azure to go ahead with a reboot, redeploy, freeze or terminate once every node that the event names
    /// is drained, in place of waiting for its time. Never done for a Preempt.
    #[serde(default)]
    pub acknowledge: bool,
}

/// What a node does about an event.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, strum::EnumString,
)]
pub enum EventResponse {
    /// Nothing.
    #[default]
    Ignore,
    /// Takes no new pods until the event is over.
    Cordon,
    /// Takes no new pods and moves those that it has.
    Drain,
}

fn drain_response() -> EventResponse {
    EventResponse::Drain
}

fn default_lead_time() -> Duration {
    Duration::from_secs(600)
}

fn default_escalate_after() -> Duration {
    Duration::from_secs(8)
}

fn default_reserve() -> Duration {
    Duration::from_secs(2)
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            blocked_by_pdb: BlockedByPdb::default(),
            escalate_after: default_escalate_after(),
            reserve: default_reserve(),
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self {
            preempt: drain_response(),
            freeze: EventResponse::default(),
            reboot: drain_response(),
            redeploy: drain_response(),
            terminate: drain_response(),
            rebalance: EventResponse::default(),
            lead_time: default_lead_time(),
            acknowledge: false,
        }
    }
}
