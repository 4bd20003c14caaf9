//! `SpotPool`: the wanted capacity, the agent pools it may come from, and how to behave when Azure takes
//! spot VMs back.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

mod agent_pool;
mod create;
mod eviction;
mod fallback;
mod floor;
mod leaving;
mod money;
mod objective;
mod placement;
mod signals;
mod status;
mod window;

pub use agent_pool::{AgentPool, OnDeallocated};
pub use create::{CapacityType, CreateAgentPool};
pub use eviction::{BlockedByPdb, Drain, EventResponse, Events};
pub use fallback::{Failback, Fallback};
pub use floor::{BlockedBudget, BudgetFloor, FloorStatus, NextFloor, PdbFloor};
pub use leaving::{DeletionPolicy, LeavingStatus};
pub use money::{
    AgentPoolSpend, AtCap, BudgetStatus, ByWorkload, HourlyCost, LedgerPage, LedgerStatus, MoneyStatus,
    Spend, ToldStatus, WorkloadMonth, WorkloadSpend,
};
pub use objective::{BurnRate, Drains, Measured, Objective, ObjectiveMode, ObjectiveStatus, UnitSeconds};
pub use placement::{AfterLoss, OnDemand, Placement, Readiness, Standby, Strategy};
pub use signals::{BandStatus, EarlySignals, HoursStatus, PriceRiseStatus, SignalsStatus};
pub use status::{
    AgentPoolStatus, AutoscalerStatus, AzureError, Capacity, CountChange, FallbackStatus, LossesStatus,
    Operation, OperationKind, PastNeed, PlanStep, Price, ProbeStatus, RankStatus, RelapsesStatus,
    RequestStatus, RestartsStatus, Role, SpotPoolStatus, WriteBudget,
};
pub use window::Window;

/// A SpotPool keeps a number of nodes ready, on spot VMs as far as Azure has them and on on-demand VMs
/// for what is missing, out of AKS agent pools.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spotpool.dev",
    version = "v1alpha1",
    kind = "SpotPool",
    namespaced,
    shortname = "spp",
    category = "all",
    derive = "PartialEq",
    doc = "A SpotPool keeps a number of nodes ready, on spot VMs as far as Azure has them and on on-demand VMs for what is missing, out of AKS agent pools.",
    status = "SpotPoolStatus",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("a SpotPool's name becomes a node label: use at most 63 characters"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".status.replicas",
        description = "Units of capacity that the pool keeps"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas",
        description = "Units that are ready for pods and not under notice"),
    printcolumn(name = "Spot", type_ = "integer", json_path = ".status.capacity.readySpot",
        description = "Of these, on spot VMs"),
    printcolumn(name = "OnDemand", type_ = "integer", json_path = ".status.capacity.readyOnDemand",
        description = "Of these, on on-demand VMs"),
    printcolumn(name = "Objective", type_ = "string", json_path = ".status.objective.summary",
        description = "What was reached of spec.objective, and how cautious the pool is"),
    printcolumn(name = "Hourly", type_ = "string", json_path = ".status.money.hourly.total",
        description = "What its machines cost an hour"),
    printcolumn(name = "Budget", type_ = "string",
        json_path = ".status.conditions[?(@.type=='BudgetExhausted')].reason",
        description = "Whether fallback is kept from buying by a budget"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message",
        description = "What the pool is doing, and why"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
pub struct SpotPoolSpec {
    /// `Enforce` acts. `Observe` plans and explains in status, and writes nothing to Azure.
    #[serde(default)]
    pub mode: Mode,

    /// Stops all writes to Azure and all drain requests until it is false again. Notices are still handled
    /// by the node agents.
    #[serde(default)]
    pub suspend: bool,

    /// What becomes of on-demand nodes that are there when the pool first sees their agent pool. `Keep`
    /// counts them as capacity that failback never takes; `Reclaim` lets failback take them.
    #[serde(default)]
    pub adoption: Adoption,

    /// Units of capacity wanted, 0 to 5000. A node is worth the `capacityUnits` of its agent pool, which is 1 if
    /// nothing else is said: then this is the number of nodes. HPA and KEDA may set it through `/scale`.
    #[schemars(range(min = 0, max = 5000))]
    pub replicas: i32,

    /// The agent pools this SpotPool may use. Which of them takes a new node is decided by `placement`; the
    /// order here breaks ties.
    /// They must exist, or say how to `create` them; whether one is spot or on-demand is read from Azure. An agent pool
    /// belongs to one SpotPool.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub agent_pools: Vec<AgentPool>,

    /// Which agent pool takes a new node.
    #[serde(default)]
    pub placement: Placement,

    /// On-demand nodes that the pool always has.
    #[serde(default)]
    pub on_demand: OnDemand,

    /// Spot nodes kept ready beyond what is wanted.
    #[serde(default)]
    pub standby: Standby,

    /// When a node counts as capacity.
    #[serde(default)]
    pub readiness: Readiness,

    /// When and how much on-demand may stand in for spot. Without it nothing is ever bought on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,

    /// When and how on-demand is given back once spot is whole again.
    #[serde(default)]
    pub failback: Failback,

    /// What becomes of on-demand nodes that stand in for spot when the SpotPool is deleted. May still be changed while
    /// it goes.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// How nodes under notice are drained.
    #[serde(default)]
    pub drain: Drain,

    /// What nodes do about the events that Azure announces for their VMs.
    #[serde(default)]
    pub events: Events,

    /// How much of what is wanted is to be ready, over time. Without it nothing is measured, and the SpotPool is never
    /// cautious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,

    /// Names of tags that every agent pool should have, so that Azure's bill can be split, such as `[team, cost-center]`. One
    /// that lacks any is told of in condition `CostTagsPresent`; nothing is written to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub cost_tags: Vec<String>,
}

/// Whether the operator acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Act.
    #[default]
    Enforce,
    /// Plan and explain, write nothing to Azure and request no drain.
    Observe,
}

/// What becomes of on-demand nodes found at adoption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Adoption {
    /// They count as capacity and are never returned.
    #[default]
    Keep,
    /// Failback may return them.
    Reclaim,
}

fn no_time() -> Duration {
    Duration::from_secs(0)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_manifest_gets_the_documented_defaults() {
        let spec: SpotPoolSpec = serde_yaml_ng::from_str(
            "replicas: 4\nagentPools: [{name: spota, maxNodes: 8}]\nfallback: {maxNodes: 2}\n",
        )
        .unwrap();
        assert_eq!(spec.mode, Mode::Enforce);
        assert!(!spec.suspend);
        assert_eq!(spec.adoption, Adoption::Keep);
        let fallback = spec.fallback.unwrap();
        assert_eq!(
            (fallback.after, fallback.growth_after),
            (Duration::from_secs(0), Duration::from_secs(300))
        );
        assert_eq!(spec.drain.escalate_after, Duration::from_secs(8));
        assert_eq!(spec.drain.reserve, Duration::from_secs(2));
        assert_eq!(spec.drain.blocked_by_pdb, BlockedByPdb::DeleteAtDeadline);
        assert_eq!(spec.failback.max_concurrent, 1);
        assert_eq!(
            (spec.events.preempt, spec.events.freeze, spec.events.reboot),
            (EventResponse::Drain, EventResponse::Ignore, EventResponse::Drain)
        );
        assert_eq!((spec.events.lead_time, spec.events.acknowledge), (Duration::from_secs(600), false));
    }
}
