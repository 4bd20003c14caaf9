//! Everything there is to see.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Ack, ActiveFault, Capacity, EventState, Failure, Identity, Priority, Quota, Settings};

/// Everything there is to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The simulator's clock.
    pub now: Timestamp,
    /// Which cluster it plays.
    pub identity: Identity,
    /// Times and switches.
    pub settings: Settings,
    /// Agent pools by name.
    pub pools: Vec<PoolState>,
    /// Machines by pool and instance id, gone ones included.
    pub vms: Vec<VmState>,
    /// Operations, oldest first.
    pub operations: Vec<OperationState>,
    /// Events, oldest first.
    pub events: Vec<EventState>,
    /// Limits set.
    pub capacity: Vec<Capacity>,
    /// Faults in force.
    pub faults: Vec<ActiveFault>,
    /// ARM requests by method and kind, such as `PUT pool` or `GET list`.
    pub arm_requests: BTreeMap<String, u64>,
    /// Writes to ARM, oldest first.
    pub arm_writes: Vec<ArmWrite>,
    /// Events that machines have approved, oldest first.
    pub acks: Vec<Ack>,
    /// Pods that went with their machine.
    pub killed_pods: Vec<KilledPod>,
    /// Token buckets: what is left, and who ran into them.
    #[serde(default)]
    pub buckets: Vec<BucketState>,
    /// Quotas set.
    #[serde(default)]
    pub quotas: Vec<Quota>,
    /// Failures that wait for their write.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// The operation of AKS on the whole cluster, if one runs.
    #[serde(default)]
    pub cluster_operation: Option<String>,
    /// The scenario, step by step.
    #[serde(default)]
    pub timeline: Vec<StepState>,
}

impl State {
    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&PoolState> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// The machine of that node or VM name.
    pub fn vm(&self, name: &str) -> Option<&VmState> {
        self.vms.iter().find(|vm| vm.node == name || vm.name == name)
    }

    /// Machines of that pool that are not gone.
    pub fn vms_of<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a VmState> + 'a {
        self.vms.iter().filter(move |vm| vm.pool == pool && vm.phase != VmPhase::Gone)
    }

    /// The token bucket of that name.
    pub fn bucket(&self, name: &str) -> Option<&BucketState> {
        self.buckets.iter().find(|bucket| bucket.name == name)
    }

    /// Writes to that pool, oldest first.
    pub fn writes_to<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a ArmWrite> + 'a {
        self.arm_writes.iter().filter(move |write| write.pool == pool)
    }
}

/// One agent pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolState {
    /// Agent pool name.
    pub name: String,
    /// Its scale set.
    pub vmss: String,
    /// VM size.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// The count that ARM shows.
    pub count: u64,
    /// Machines that exist and are not being deleted.
    pub machines: u64,
    /// Availability zones.
    pub zones: Vec<String>,
    /// As ARM shows it.
    pub provisioning_state: String,
    /// As ARM shows it.
    pub e_tag: String,
    /// Id of the operation that runs.
    pub operation: Option<String>,
    /// Incarnation of the scale set's scheduled events document.
    pub incarnation: u64,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmState {
    /// Decimal name, as IMDS says it: `aks-spota-12345678-vmss_10`.
    pub name: String,
    /// Node name: `aks-spota-12345678-vmss00000a`.
    pub node: String,
    /// Instance id in the scale set.
    pub instance_id: u64,
    /// Agent pool.
    pub pool: String,
    /// `spec.providerID` of its Node.
    pub provider_id: String,
    /// VM size.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// Availability zone.
    pub zone: Option<String>,
    /// Where it is in its life.
    pub phase: VmPhase,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When it booted or will.
    pub boots_at: Timestamp,
    /// When its Node object was seen to exist.
    pub registered_at: Option<Timestamp>,
    /// When it went.
    pub gone_at: Option<Timestamp>,
    /// Why it went.
    pub gone_reason: Option<GoneReason>,
    /// When its Node object was seen to be away again.
    pub node_removed_at: Option<Timestamp>,
    /// Metadata requests it has made.
    pub imds_requests: u64,
    /// Times it has booted after the first.
    #[serde(default)]
    pub reboots: u32,
    /// Its node image.
    #[serde(default)]
    pub image: String,
    /// Since when AKS has it cordoned and drains it.
    #[serde(default)]
    pub draining_since: Option<Timestamp>,
    /// When its pods were seen to have left.
    #[serde(default)]
    pub drained_at: Option<Timestamp>,
}

impl VmState {
    /// Booted and not gone.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, VmPhase::Running | VmPhase::Deleting)
    }
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmPhase {
    /// Ordered, not booted.
    Creating,
    /// Booted; its Node exists or is about to.
    Running,
    /// Gets another image in place; its Node stays, and is not ready.
    Reimaging,
    /// Evicted under the policy `Deallocate`: it exists, uses quota and does not run.
    Deallocated,
    /// Ordered to go; still runs.
    Deleting,
    /// Gone for good.
    Gone,
}

/// Why a machine is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoneReason {
    /// Preempt or Terminate came due.
    Evicted,
    /// It vanished with no notice at all.
    Killed,
    /// `count` was lowered.
    ScaledDown,
    /// `deleteMachines` named it.
    Deleted,
    /// Its pool was removed.
    PoolRemoved,
    /// Its pool was stopped.
    PoolStopped,
    /// It was there for the time of an upgrade only.
    SurgeOver,
}

/// A pod that was still bound to a machine when the machine went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KilledPod {
    /// When it was found.
    pub at: Timestamp,
    /// Node it ran on.
    pub node: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Kind of its controller, such as `ReplicaSet` or `DaemonSet`.
    pub owner_kind: Option<String>,
    /// `status.phase`.
    pub phase: String,
    /// Whether it was already on its way out.
    pub terminating: bool,
}

/// One long-running operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationState {
    /// Id, as in the status URL.
    pub id: String,
    /// Agent pool.
    pub pool: String,
    /// The pool's provisioning state meanwhile, such as `Creating`, `Scaling` or `Updating`.
    pub kind: String,
    /// Whether AKS began it of its own accord.
    #[serde(default)]
    pub background: bool,
    /// How it stands.
    pub status: OperationStatus,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// `{code, message, details}` once it failed.
    pub error: Option<Value>,
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationStatus {
    /// Running.
    InProgress,
    /// Done.
    Succeeded,
    /// Failed; `error` says why.
    Failed,
    /// Aborted.
    Canceled,
}

/// One write to ARM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmWrite {
    /// When it arrived.
    pub at: Timestamp,
    /// `PUT pool` or `POST deleteMachines`.
    pub kind: String,
    /// Path.
    pub path: String,
    /// Agent pool.
    pub pool: String,
    /// `api-version`.
    pub api_version: String,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// `x-ms-client-request-id`.
    pub client_request_id: Option<String>,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// The request's JSON body.
    pub body: Value,
    /// The pool's count before.
    pub count_before: Option<u64>,
    /// The pool's count after.
    pub count_after: Option<u64>,
    /// Status of the answer, also of one that a fault kept from the caller.
    pub status: u16,
    /// Machines that this write ordered, by node name.
    pub machines_ordered: Vec<String>,
}

/// One token bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketState {
    /// `put/<pool>`, `shared`, `operations`, `armReads`, `armWrites`, `armDeletes` or `armGlobal…`.
    pub name: String,
    /// Tokens when full.
    pub size: u32,
    /// Tokens left.
    pub level: u32,
    /// The fewest that were ever left.
    pub lowest: u32,
    /// Requests that had a token, also those of other clusters of the subscription.
    pub taken: u64,
    /// Requests for which there was none: refused with 429 if throttling is on.
    pub exceeded: u64,
}

/// A step of a scenario, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepState {
    /// When it is due.
    pub at: Timestamp,
    /// What it does, as the scenario says it.
    pub action: Value,
    /// When it was done.
    pub done_at: Option<Timestamp>,
    /// Why it could not be done.
    pub error: Option<String>,
}
