//! `SpotPool`: the wanted capacity, the agent pools it may come from, and how to behave when Azure takes
//! spot VMs back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::reason::Reason;

mod create;
mod floor;
mod leaving;
mod money;
mod objective;
mod signals;
mod window;

pub use create::{CapacityType, CreateAgentPool};
pub use floor::{BlockedBudget, BudgetFloor, FloorStatus, NextFloor, PdbFloor};
pub use leaving::{DeletionPolicy, LeavingStatus};
pub use money::{
    AgentPoolSpend, AtCap, BudgetStatus, ByWorkload, HourlyCost, LedgerPage, LedgerStatus, MoneyStatus,
    Spend, ToldStatus, WorkloadMonth, WorkloadSpend,
};
pub use objective::{BurnRate, Drains, Measured, Objective, ObjectiveMode, ObjectiveStatus, UnitSeconds};
pub use signals::{BandStatus, EarlySignals, HoursStatus, PriceRiseStatus, SignalsStatus};
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

/// One AKS agent pool.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPool {
    /// Name of the agent pool in AKS: 1 to 12 lower-case letters and digits, a letter first.
    #[schemars(regex(pattern = "^[a-z][a-z0-9]{0,11}$"))]
    pub name: String,

    /// Most machines that may exist in it at any moment, machines under notice included, 0 to 1000.
    #[schemars(range(min = 0, max = 1000))]
    pub max_nodes: i32,

    /// How many units of capacity one node of it is worth, 1 to 100. Where agent pools of several sizes take turns,
    /// say what their nodes are worth to each other, such as 1 for 4 cores and 2 for 8. `replicas`,
    /// `onDemand.baseline` and `standby.units` count units, and agent pools are compared by their price for a unit;
    /// every `maxNodes` counts nodes.
    #[serde(default = "default_capacity_units")]
    #[schemars(range(min = 1, max = 100))]
    pub capacity_units: i32,

    /// The most that one of its VMs may cost an hour, in the operator's currency, such as `"0.18"`. While its
    /// price is higher, or not known, no new node is asked of it. Azure's own maximum price cannot be changed
    /// once an agent pool exists; this can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"), length(max = 13))]
    pub max_hourly_price: Option<String>,

    /// What becomes of a VM that Azure has taken and left deallocated, as agent pools with eviction policy `Deallocate`
    /// have it: it still uses quota. Its capacity is replaced elsewhere at once, either way. `Replace` deletes it;
    /// `Restart` has Azure start it again, after a minute and then ever more seldom, and deletes it after 10 attempts.
    #[serde(default)]
    pub on_deallocated: OnDeallocated,

    /// How the operator makes it where the cluster has no agent pool of this name. Without it, it must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<CreateAgentPool>,
}

/// What becomes of a VM that Azure has deallocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDeallocated {
    /// It is deleted, and its quota is free.
    #[default]
    Replace,
    /// It is started again, as often as is sensible.
    Restart,
}

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
}

/// When a node counts as capacity: once it is Ready, not cordoned, and all that is said here holds.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// How long it must have been Ready, 0s to 1h.
    #[serde(default = "no_time")]
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

/// Limits of on-demand fallback.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("duration(self.growthAfter) >= duration(self.after)")
    .message("growth must not fall back sooner than loss: raise fallback.growthAfter or lower fallback.after"))]
#[x_kube(validation = Rule::new("!has(self.hourlyBudget) || !has(self.monthlyBudget) || !self.hourlyBudget.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') || !self.monthlyBudget.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') || double(self.monthlyBudget) >= double(self.hourlyBudget)")
    .message("fallback.monthlyBudget is less than one hour of fallback.hourlyBudget: raise the one or lower the other"))]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// How long capacity that was lost or refused may be missing before on-demand is bought, 0s to 24h.
    #[serde(default = "default_after")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("fallback.after must be at most 24h"))]
    pub after: Duration,

    /// How long growth and a first start wait for spot that is on its way before on-demand is bought,
    /// 0s to 24h.
    #[serde(default = "default_growth_after")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("fallback.growthAfter must be at most 24h"))]
    pub growth_after: Duration,

    /// Most on-demand nodes bought to stand in for spot, 0 to 1000, running or on their way; nodes kept by
    /// `adoption: Keep` do not count.
    #[schemars(range(min = 0, max = 1000))]
    pub max_nodes: i32,

    /// The most that these nodes may cost an hour together, running, on their way or leaving, in the operator's
    /// currency, such as `"6.00"`. Without it there is no such cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') && self.matches('[1-9]')")
        .message("fallback.hourlyBudget must be an amount above 0, such as 6.00: leave it out for no cap, or set fallback.maxNodes to 0 to buy nothing"))]
    pub hourly_budget: Option<String>,

    /// The most that these nodes may cost in a month by UTC. None is bought unless what is spent, and what every one of
    /// them costs until its `failback.minOnDemandLifetime` is over, fits in. Without it there is no such cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') && self.matches('[1-9]')")
        .message("fallback.monthlyBudget must be an amount above 0, such as 900: leave it out for no cap, or set fallback.maxNodes to 0 to buy nothing"))]
    pub monthly_budget: Option<String>,

    /// What becomes of these nodes when they cost more than a cap allows, because a price rose, a budget was lowered or
    /// the month's is spent: `Hold` keeps them and buys no more, `Shed` returns as many as it takes.
    #[serde(default)]
    pub at_cap: AtCap,
}

/// How on-demand is given back.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failback {
    /// For how long on-demand that spot has replaced is kept, in case spot fails again: as much as was needed at most
    /// within this time stays, 0s to 24h. Nodes that a smaller pool does not need are kept as long.
    #[serde(default = "default_stabilization")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.stabilization must be at most 24h"))]
    pub stabilization: Duration,

    /// How long an on-demand node lives at least, 0s to 24h.
    #[serde(default = "default_min_on_demand_lifetime")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.minOnDemandLifetime must be at most 24h"))]
    pub min_on_demand_lifetime: Duration,

    /// Most nodes drained at a time, 1 to 100.
    #[serde(default = "default_max_concurrent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent: i32,

    /// How long a drain may wait for disruption budgets before the node is given back, 1s to 24h.
    #[serde(default = "default_drain_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("failback.drainTimeout must be 1s to 24h"))]
    pub drain_timeout: Duration,

    /// The first on-demand node goes alone: for how long no more may have been needed since it is gone before others follow,
    /// 0s to 24h. `0s` lets `maxConcurrent` go together from the start.
    #[serde(default = "default_probe")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("failback.probe must be at most 24h"))]
    pub probe: Duration,

    /// When nodes may be asked to leave without need, if not always. A drain that has begun goes on when it closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

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

fn no_time() -> Duration {
    Duration::from_secs(0)
}
fn default_capacity_units() -> i32 {
    1
}
fn default_max_share_per_pool() -> i32 {
    60
}
fn drain_response() -> EventResponse {
    EventResponse::Drain
}
fn default_lead_time() -> Duration {
    Duration::from_secs(600)
}
fn default_after() -> Duration {
    Duration::from_secs(0)
}
fn default_growth_after() -> Duration {
    Duration::from_secs(300)
}
fn default_stabilization() -> Duration {
    Duration::from_secs(180)
}
fn default_min_on_demand_lifetime() -> Duration {
    Duration::from_secs(0)
}
fn default_max_concurrent() -> i32 {
    1
}
fn default_drain_timeout() -> Duration {
    Duration::from_secs(900)
}
fn default_probe() -> Duration {
    Duration::from_secs(120)
}
fn default_escalate_after() -> Duration {
    Duration::from_secs(8)
}
fn default_reserve() -> Duration {
    Duration::from_secs(2)
}

impl Default for Failback {
    fn default() -> Self {
        Self {
            stabilization: default_stabilization(),
            min_on_demand_lifetime: default_min_on_demand_lifetime(),
            max_concurrent: default_max_concurrent(),
            drain_timeout: default_drain_timeout(),
            probe: default_probe(),
            window: None,
        }
    }
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

impl Default for Placement {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            max_share_per_pool: default_max_share_per_pool(),
            early_signals: None,
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

/// What the operator sees, does and plans. Written by the operator alone.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpotPoolStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default)]
    pub observed_generation: i64,

    /// Units of capacity that the pool keeps: the effective wanted number, for `/scale`.
    #[serde(default)]
    pub replicas: i32,

    /// Units on nodes that are ready for pods and not under notice.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Label selector of the pool's nodes, for `/scale`.
    #[serde(default)]
    pub selector: String,

    /// The capacity in numbers.
    #[serde(default)]
    pub capacity: Capacity,

    /// One entry for each agent pool of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub agent_pools: Vec<AgentPoolStatus>,

    /// On-demand nodes that stand in for spot, and their return.
    #[serde(default)]
    pub fallback: FallbackStatus,

    /// What the pool costs, and what the budgets of fallback leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<MoneyStatus>,

    /// The on-demand that disruption budgets need; absent unless `onDemand.pdbFloor` is enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<FloorStatus>,

    /// Disruption budgets with pods on the pool's nodes that have let no pod go for a minute, at most 20. They hold up
    /// failback and scale-down, and a node under notice loses its pods all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "name".into()]))]
    pub blocked_budgets: Vec<BlockedBudget>,

    /// What was measured of `spec.objective`, and what follows from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<ObjectiveStatus>,

    /// How far it is with going, once it is deleted and `deletionPolicy` has something to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingStatus>,

    /// What the last plan does and why, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<PlanStep>,

    /// `Ready`, `Reconciling` and `Stalled` follow kstatus; also `SpotAvailable`, `FallbackActive`,
    /// `OnDemandAvailable`, `BudgetExhausted`, `AzureReachable` and, with `spec.objective`, `ObjectiveMet`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Capacity in units: a node is worth the `capacityUnits` of its agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Wanted.
    #[serde(default)]
    pub wanted: i32,
    /// Ready on spot VMs.
    #[serde(default)]
    pub ready_spot: i32,
    /// Ready on on-demand VMs.
    #[serde(default)]
    pub ready_on_demand: i32,
    /// Asked of Azure and not ready yet, spot and on-demand.
    #[serde(default)]
    pub on_the_way: i32,
    /// Under notice: still there, worth nothing.
    #[serde(default)]
    pub evicting: i32,
    /// The most that has been ready at once, at most what is wanted: what is missing below it was lost, what
    /// is missing above it is growth.
    #[serde(default)]
    pub established: i32,
    /// Since when established capacity is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Time>,
    /// Since when growth waits for capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_since: Option<Time>,
}

/// What is known of one agent pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolStatus {
    /// Its name.
    pub name: String,
    /// Spot or on-demand, from Azure; absent while Azure has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// VM size.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vm_size: String,
    /// Availability zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Azure's `count`.
    #[serde(default)]
    pub count: i32,
    /// Machines that exist.
    #[serde(default)]
    pub machines: i32,
    /// Nodes ready for pods and not under notice.
    #[serde(default)]
    pub ready: i32,
    /// Nodes under notice.
    #[serde(default)]
    pub evicting: i32,
    /// On-demand nodes found at adoption that failback never takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<i32>,
    /// Azure's `provisioningState`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provisioning_state: String,
    /// What we asked of Azure and have not seen finished. Written before the request is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// What our last write left of Azure's limit on writes of an agent pool (20, one more each minute), so that a
    /// restart does not overrun it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_budget: Option<WriteBudget>,
    /// Nothing new is asked of it before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avoided_until: Option<Time>,
    /// What for: `Capacity`, `ShortLived` (its VMs were taken back at once), or the class of another error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub avoided_for: String,
    /// What a machine of it costs an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Share of spot VMs of this size that Azure evicts in an hour, in percent, over 28 days: `0-5` to `20+`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub eviction_band: String,
    /// Azure's spot placement score, the worst of its zones: how likely capacity is there now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub placement_score: String,
    /// Where it stands among the agent pools that sell the same, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<RankStatus>,
    /// Nodes that Azure took or announced to take here lately; they count half every 6 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<LossesStatus>,
    /// Early signs that its nodes may be taken, where `placement.earlySignals` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<SignalsStatus>,
    /// What the cluster autoscaler may do with it; absent where it is not autoscaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<AutoscalerStatus>,
    /// The last change of its count by somebody else, or of an autoscaled one's minimum, for a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_elsewhere: Option<CountChange>,
    /// How often deallocated VMs of it were started, and when at last; absent once there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<RestartsStatus>,
    /// The last error that Azure gave for it, or what went wrong without one: `ScaleUpStalled`, `ScaleUpIncomplete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<AzureError>,
    /// Why it is not used, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub unusable: Option<Reason>,
}

/// A price an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// How much, as a decimal number.
    pub hourly: String,
    /// Of what, by ISO 4217.
    pub currency: String,
    /// When it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<Time>,
}

/// Where an agent pool stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RankStatus {
    /// 1 is the best, before spread is looked at.
    pub position: i32,
    /// What made it so.
    pub why: String,
}

/// Attempts to start deallocated VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestartsStatus {
    /// How many.
    pub count: i32,
    /// When at last.
    pub at: Time,
}

/// The range of the cluster autoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalerStatus {
    /// Azure's `minCount`: SpotPool moves it.
    pub min: i32,
    /// Azure's `maxCount`, which SpotPool never changes.
    pub max: i32,
    /// The minimum that somebody else gave it. It is never lowered below that, and gets it back when it is released.
    pub own_min: i32,
}

/// Losses of an agent pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LossesStatus {
    /// How many, as they counted when the last was seen.
    pub count: i32,
    /// When the last was seen.
    pub at: Time,
}

/// A change of an agent pool's count, or of an autoscaled one's minimum, that SpotPool did not ask for: by a person,
/// Terraform, Bicep, a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountChange {
    /// What it was.
    pub from: i32,
    /// What it became.
    pub to: i32,
    /// When it was seen.
    pub at: Time,
}

/// What an agent pool sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// Spot VMs.
    Spot,
    /// On-demand VMs (Azure's `Regular`).
    OnDemand,
}

/// One operation on an agent pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// What was asked.
    pub kind: OperationKind,
    /// The agent pool's count that was asked for, or the minimum of an autoscaled one; for `DeleteMachines` what is left
    /// after it.
    pub count: i32,
    /// Machines asked for beyond those that existed; for `DeleteMachines` those to delete.
    pub machines: i32,
    /// Machines that were on their way already: as many of the next Nodes are not those asked for here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub coming: i32,
    /// When.
    pub since: Time,
    /// The most of them that were Nodes at a time. One that has gone since was there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub arrived: i32,
    /// Whether Azure said that it will do it: then what does not come was not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Writes left at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WriteBudget {
    /// Writes that were left.
    pub left: i32,
    /// When that was so.
    pub at: Time,
}

/// Kinds of operations on an agent pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// PUT of the agent pool with a higher count; of an autoscaled one with a minimum that adds machines.
    ScaleUp,
    /// POST deleteMachines.
    DeleteMachines,
    /// PUT of the agent pool with its count lowered to the machines that exist.
    CorrectCount,
    /// PUT of an autoscaled agent pool with another minimum, which adds no machine.
    SetMinimum,
    /// PUT of an agent pool that does not exist, without machines.
    CreateAgentPool,
}

/// An error as Azure gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AzureError {
    /// Azure's code, such as `SkuNotAvailable`.
    pub code: String,
    /// What kind of error that is: `Capacity`, `Throttled`, `Denied`, `Invalid` or `Transient`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub class: String,
    /// Azure's message, shortened.
    pub message: String,
    /// When it was given.
    pub time: Time,
}

/// On-demand nodes that stand in for spot.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackStatus {
    /// How many exist or are on their way.
    #[serde(default)]
    pub nodes: i32,
    /// Since when there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Since when more nodes are there than needed: none is asked to drain before `failback.stabilization` is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surplus_since: Option<Time>,
    /// Units of on-demand that are needed, those that are always there included.
    #[serde(default)]
    pub needed: i32,
    /// What was needed before, where it was more, the highest first: it is kept until `failback.stabilization` is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed_before: Vec<PastNeed>,
    /// Nodes that have been asked to drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub draining: Vec<String>,
    /// No node is asked to drain before this time, because the last drain failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Time>,
    /// When a node was last asked to drain because spot could carry the load again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_back_at: Option<Time>,
    /// How often on-demand was needed again within an hour of that; one is forgotten every 6 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relapses: Option<RelapsesStatus>,
    /// The node that was asked to leave alone, before others follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeStatus>,
    /// The last value of annotation `spotpool.dev/requested-failback` that was answered, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestStatus>,
}

/// On-demand that was needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastNeed {
    /// How much.
    pub units: i32,
    /// When it was last needed.
    pub until: Time,
}

/// The first node that is given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// Its name.
    pub node: String,
    /// Since when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<Time>,
}

/// A person's wish, answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// The annotation's value.
    pub value: String,
    /// What came of it.
    pub answer: String,
}

/// How often spot failed soon after on-demand was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RelapsesStatus {
    /// How often, as it counted then.
    pub count: i32,
    /// When at last.
    pub at: Time,
}

/// One step of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStep {
    /// Why. Any text in the schema, so that a newer operator can write to an older CRD.
    #[schemars(with = "String")]
    pub reason: Reason,
    /// The agent pool it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool: Option<String>,
    /// In words.
    pub message: String,
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
