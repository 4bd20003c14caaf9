//! What a SpotPool is found to be.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{BlockedBudget, FloorStatus, LeavingStatus, MoneyStatus, ObjectiveStatus, SignalsStatus};
use crate::reason::Reason;
use crate::skew::{known, known_or};

// Words of a newer operator, which a rollback leaves here.
fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Role>, D::Error> {
    known(deserializer)
}
fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
    known_or(deserializer, Reason::Unknown)
}
fn unusable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reason>, D::Error> {
    reason(deserializer).map(Some)
}
/// It neither adds machines nor takes any: how many there are, Azure's next list tells.
fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OperationKind, D::Error> {
    known_or(deserializer, OperationKind::CorrectCount)
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
    #[serde(default, deserialize_with = "role", skip_serializing_if = "Option::is_none")]
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
    #[serde(default, deserialize_with = "unusable", skip_serializing_if = "Option::is_none")]
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
    #[serde(deserialize_with = "kind")]
    pub kind: OperationKind,
    /// The agent pool's count that was asked for, or the minimum of an autoscaled one; for `DeleteMachines` what is left
    /// after it.
    pub count: i32,
    /// Machines asked for beyond those that existed; for `DeleteMachines` those to delete.
    pub machines: i32,
    /// Machines that were on their way already: as many of the next Nodes are not those asked for here.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub coming: i32,
    /// When.
    pub since: Time,
    /// The most of them that were Nodes at a time. One that has gone since was there.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub arrived: i32,
    /// Whether Azure said that it will do it: then what does not come was not given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accepted: bool,
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
    #[serde(deserialize_with = "reason")]
    #[schemars(with = "String")]
    pub reason: Reason,
    /// The agent pool it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pool: Option<String>,
    /// In words.
    pub message: String,
}
