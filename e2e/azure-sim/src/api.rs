//! The vocabulary of the control API: what the server answers and [`crate::client::SimClient`] sends.
//!
//! Times are RFC 3339, durations are whole milliseconds in fields that end in `Ms`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::failures::FailureKind;
pub use crate::switches::{
    Allocation, CountOfAutoscaled, ETags, ImmutableChanges, OperationNames, QuotaRefusal, Switches,
};

/// Durations as whole milliseconds in JSON; a text such as `90s` or `1m30s` is read too.
pub mod millis {
    use std::time::Duration;

    use jiff::SignedDuration;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes a duration as milliseconds.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Either spelling.
    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Spelled {
        Millis(u64),
        Text(String),
    }

    impl Spelled {
        pub(super) fn duration(self) -> Result<Duration, String> {
            match self {
                Self::Millis(millis) => Ok(Duration::from_millis(millis)),
                Self::Text(text) => super::duration(&text),
            }
        }
    }

    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Spelled::deserialize(deserializer)
            .map_err(|_| de::Error::custom("a duration is milliseconds or a text such as 90s or 1m30s"))?
            .duration()
            .map_err(de::Error::custom)
    }

    pub(super) fn parse(text: &str) -> Result<Duration, String> {
        let parsed: SignedDuration =
            text.parse().map_err(|_| format!("`{text}` is no duration such as 30s or 1m30s"))?;
        Duration::try_from(parsed).map_err(|_| format!("`{text}` is negative"))
    }
}

/// A duration such as `30s` or `1m30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    millis::parse(text)
}

/// Optional durations as whole milliseconds in JSON; texts are read too.
pub mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes a duration as milliseconds, or `null`.
    #[allow(clippy::ref_option)] // the signature that serde calls
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<super::millis::Spelled>::deserialize(deserializer)?
            .map(super::millis::Spelled::duration)
            .transpose()
            .map_err(de::Error::custom)
    }
}

/// Which managed cluster the simulator plays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Subscription id.
    pub subscription: String,
    /// Resource group of the managed cluster.
    pub resource_group: String,
    /// Name of the managed cluster.
    pub cluster: String,
    /// Azure region.
    pub location: String,
    /// The resource group that holds the scale sets, `MC_<group>_<cluster>_<location>` unless told.
    pub node_resource_group: String,
}

impl Identity {
    /// An identity with the node resource group that AKS would choose.
    pub fn new(subscription: &str, resource_group: &str, cluster: &str, location: &str) -> Self {
        Self {
            subscription: subscription.into(),
            resource_group: resource_group.into(),
            cluster: cluster.into(),
            location: location.into(),
            node_resource_group: format!("MC_{resource_group}_{cluster}_{location}"),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new("00000000-0000-0000-0000-000000000000", "spotpool-rg", "spotpool-sim", "eastus")
    }
}

/// What a pool's `count` says after some of the asked machines could not be allocated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CountAfterFailure {
    /// It stays as asked, above the machines that exist.
    #[default]
    Asked,
    /// It falls to the machines that exist.
    Existing,
}

/// Times and switches. They may be changed while the simulator runs and hold from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// From the order for a machine until its Node registers.
    #[serde(rename = "bootTimeMs", alias = "bootTime", with = "millis")]
    pub boot_time: Duration,
    /// From the order to delete a machine until it is gone.
    #[serde(rename = "deleteTimeMs", alias = "deleteTime", with = "millis")]
    pub delete_time: Duration,
    /// From acceptance of a write until a lack of capacity shows as a failed operation.
    #[serde(rename = "failTimeMs", alias = "failTime", with = "millis")]
    pub fail_time: Duration,
    /// The least time any operation takes.
    #[serde(rename = "updateTimeMs", alias = "updateTime", with = "millis")]
    pub update_time: Duration,
    /// From `Started` until a machine under Preempt or Terminate is gone.
    #[serde(rename = "killAfterMs", alias = "killAfter", with = "millis")]
    pub kill_after: Duration,
    /// From `Started` until the event vanishes from the document.
    #[serde(rename = "startedForMs", alias = "startedFor", with = "millis")]
    pub started_for: Duration,
    /// How long the first answer about scheduled events takes for each machine.
    #[serde(rename = "imdsFirstAnswerMs", alias = "imdsFirstAnswer", with = "millis")]
    pub imds_first_answer: Duration,
    /// Whether a pool's `count` falls when a machine is evicted.
    pub count_follows_evictions: bool,
    /// What `count` says after a failed allocation.
    pub count_after_failure: CountAfterFailure,
    /// Everything else that can be one way or another.
    #[serde(default)]
    pub switches: Switches,
}

impl Settings {
    /// Azure's pace, scaled to the given boot time (100 s is about right for the real thing).
    pub fn with_boot_time(boot_time: Duration) -> Self {
        Self {
            boot_time,
            delete_time: boot_time.mul_f64(0.3),
            fail_time: boot_time.mul_f64(0.2),
            update_time: boot_time.mul_f64(0.05),
            kill_after: Duration::from_millis(500),
            started_for: Duration::from_secs(2),
            imds_first_answer: Duration::ZERO,
            count_follows_evictions: true,
            count_after_failure: CountAfterFailure::Asked,
            switches: Switches::default(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::with_boot_time(Duration::from_secs(100))
    }
}

/// Spot or on-demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Priority {
    /// Cheap and evictable.
    Spot,
    /// On-demand.
    Regular,
}

impl Priority {
    /// As Kubernetes labels and IMDS spell it.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::Regular => "regular",
        }
    }
}

/// A pool to add with machines that run at once, as if it had always been there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// Agent pool name.
    pub name: String,
    /// VM size, such as `Standard_D8s_v5`.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// Machines to begin with.
    #[serde(default)]
    pub count: u32,
    /// Availability zones, empty for none.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Further members of the ARM body's `properties`, taken as they are.
    #[serde(default)]
    pub properties: BTreeMap<String, Value>,
    /// Switches that this pool has otherwise than the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switches: Option<Value>,
}

impl PoolSpec {
    /// A spot pool.
    pub fn spot(name: &str, vm_size: &str, count: u32) -> Self {
        Self::new(name, vm_size, Priority::Spot, count)
    }

    /// An on-demand pool.
    pub fn regular(name: &str, vm_size: &str, count: u32) -> Self {
        Self::new(name, vm_size, Priority::Regular, count)
    }

    fn new(name: &str, vm_size: &str, priority: Priority, count: u32) -> Self {
        Self {
            name: name.into(),
            vm_size: vm_size.into(),
            priority,
            count,
            zones: Vec::new(),
            properties: BTreeMap::new(),
            switches: None,
        }
    }

    /// The same pool with switches of its own.
    #[must_use]
    pub fn switches(mut self, changes: Value) -> Self {
        self.switches = Some(changes);
        self
    }

    /// The same pool in these availability zones.
    #[must_use]
    pub fn zones(mut self, zones: &[&str]) -> Self {
        self.zones = zones.iter().map(ToString::to_string).collect();
        self
    }

    /// The same pool with one more member of `properties`.
    #[must_use]
    pub fn property(mut self, key: &str, value: Value) -> Self {
        self.properties.insert(key.into(), value);
        self
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

/// One scheduled event, current or past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventState {
    /// GUID in capitals.
    pub event_id: String,
    /// `Preempt`, `Freeze`, … or anything.
    pub event_type: String,
    /// `Scheduled`, `Started` or anything; `Done` or `Cancelled` once it left the document.
    pub status: String,
    /// Agent pool whose scale set's document carries it.
    pub pool: String,
    /// Decimal names.
    pub resources: Vec<String>,
    /// Node names, in the order of `resources`.
    pub nodes: Vec<String>,
    /// When it was put in the document.
    pub scheduled_at: Timestamp,
    /// When it comes due.
    pub not_before: Timestamp,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it left the document.
    pub ended_at: Option<Timestamp>,
    /// When each machine was first answered with it, by node name.
    pub told_at: BTreeMap<String, Timestamp>,
}

/// A `StartRequests` entry that a machine has posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// When.
    pub at: Timestamp,
    /// Node name of the machine whose metadata address it went to.
    pub node: String,
    /// The event it approved.
    pub event_id: String,
    /// Type of that event, if it is in the document.
    pub event_type: Option<String>,
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

/// Machines of one size and priority that may exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capacity {
    /// VM size.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// Only this availability zone; all together when absent.
    #[serde(default)]
    pub zone: Option<String>,
    /// How many machines may exist at once; `null` lifts the limit. Machines that exist stay.
    pub limit: Option<u32>,
    /// The operation's error when it is short, instead of `SkuNotAvailable`.
    #[serde(default)]
    pub error: Option<Value>,
}

impl Capacity {
    /// A limit in all zones together, told as `SkuNotAvailable`.
    pub fn of(vm_size: &str, priority: Priority, limit: Option<u32>) -> Self {
        Self { vm_size: vm_size.into(), priority, zone: None, limit, error: None }
    }
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

/// Cores that the subscription may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quota {
    /// `LowPriorityCores` for spot, a family such as `standardDSv5Family` or `cores` (all) for on-demand.
    pub name: String,
    /// How many; `null` lifts the limit. Machines that exist stay.
    pub limit: Option<u32>,
}

/// A failure that is to befall writes to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// The pool; any when absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// What is said.
    pub error: FailureKind,
    /// How many writes.
    #[serde(default = "once")]
    pub times: u32,
    /// Machines that come all the same, of those ordered.
    #[serde(default)]
    pub allocated: u32,
    /// From acceptance until it fails, if not the setting `failTimeMs`.
    #[serde(rename = "afterMs", alias = "after", with = "optional_millis", default)]
    pub after: Option<Duration>,
}

fn once() -> u32 {
    1
}

impl Failure {
    /// The next write to that pool fails so.
    pub fn next(pool: &str, error: FailureKind) -> Self {
        Self { pool: Some(pool.into()), error, times: 1, allocated: 0, after: None }
    }
}

/// An operation that AKS begins of its own accord.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackgroundOperation {
    /// The pool; the whole cluster when absent, which changes the eTags of all pools.
    #[serde(default)]
    pub pool: Option<String>,
    /// The provisioning state meanwhile.
    #[serde(default = "updating")]
    pub kind: String,
    /// How long it takes.
    #[serde(rename = "forMs", alias = "for", with = "millis")]
    pub time: Duration,
    /// Whether it supersedes an operation that runs on the pool, which then fails with
    /// `AKSOperationPreempted`; else it is refused while one runs.
    #[serde(default)]
    pub preempt: bool,
}

fn updating() -> String {
    "Updating".into()
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

/// Which machines are meant: some by name, or any of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Targets {
    /// Node or VM names.
    #[serde(default)]
    pub names: Vec<String>,
    /// A pool, of which `count` running machines that no event names yet are taken, lowest id first.
    #[serde(default)]
    pub pool: Option<String>,
    /// How many of the pool; all when absent.
    #[serde(default)]
    pub count: Option<u32>,
}

impl Targets {
    /// Machines by node or VM name.
    pub fn named<S: AsRef<str>>(names: &[S]) -> Self {
        Self { names: names.iter().map(|name| name.as_ref().to_owned()).collect(), ..Self::default() }
    }

    /// That many machines of a pool.
    pub fn of_pool(pool: &str, count: u32) -> Self {
        Self { pool: Some(pool.into()), count: Some(count), ..Self::default() }
    }
}

/// An event to put in the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventRequest {
    /// `Preempt`, `Freeze`, `Reboot`, `Redeploy`, `Terminate` or anything else.
    pub event_type: String,
    /// `Scheduled` runs its course; `Started` has begun already; anything else stays until cancelled.
    #[serde(default = "scheduled")]
    pub status: String,
    /// Which machines. One event each, all in one change of the document, unless `together`.
    pub targets: Targets,
    /// One event that names every machine (of a scale set).
    #[serde(default)]
    pub together: bool,
    /// From now to `NotBefore`.
    #[serde(rename = "noticeMs", alias = "notice", with = "millis", default)]
    pub notice: Duration,
    /// `NotBefore` as it should read, if not RFC 1123 of the true time.
    #[serde(default)]
    pub not_before_text: Option<String>,
    /// `Description`.
    #[serde(default)]
    pub description: String,
    /// `EventSource`.
    #[serde(default = "platform")]
    pub event_source: String,
    /// `DurationInSeconds`.
    #[serde(default = "unknown_duration")]
    pub duration_seconds: i64,
}

fn scheduled() -> String {
    "Scheduled".into()
}

fn platform() -> String {
    "Platform".into()
}

fn unknown_duration() -> i64 {
    -1
}

impl EventRequest {
    /// An event of that type with everything else as Azure usually says it.
    pub fn new(event_type: &str, targets: Targets, notice: Duration) -> Self {
        Self {
            event_type: event_type.into(),
            status: scheduled(),
            targets,
            together: false,
            notice,
            not_before_text: None,
            description: String::new(),
            event_source: platform(),
            duration_seconds: unknown_duration(),
        }
    }
}

/// What to break, where, and for how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Requests it strikes.
    pub target: FaultTarget,
    /// How many of them; all until cleared when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens to them.
    pub action: FaultAction,
}

/// Requests that a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "surface", deny_unknown_fields)]
pub enum FaultTarget {
    /// Requests to ARM.
    #[serde(rename_all = "camelCase")]
    Arm {
        /// HTTP method; any when absent.
        #[serde(default)]
        method: Option<String>,
        /// Part of the path, case ignored; any when absent.
        #[serde(default)]
        path_contains: Option<String>,
    },
    /// Requests to metadata services.
    #[serde(rename_all = "camelCase")]
    Imds {
        /// Node name; all machines when absent.
        #[serde(default)]
        node: Option<String>,
        /// Part of the path; any when absent.
        #[serde(default)]
        path_contains: Option<String>,
    },
    /// Requests for tokens at the token endpoint.
    Tokens {},
    /// Requests for retail prices.
    Prices {},
}

impl FaultTarget {
    /// Requests to ARM by method and a part of the path.
    pub fn arm(method: &str, path_contains: &str) -> Self {
        Self::Arm { method: Some(method.into()), path_contains: Some(path_contains.into()) }
    }

    /// Polls for scheduled events of one machine, or of all.
    pub fn scheduled_events(node: Option<&str>) -> Self {
        Self::Imds { node: node.map(Into::into), path_contains: Some("scheduledevents".into()) }
    }
}

/// Which of Azure's two error envelopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Envelope {
    /// The AKS resource provider's `{"code","details","message","subcode"}`.
    Flat,
    /// The ARM front door's `{"error":{"code","message"}}`.
    Wrapped,
}

/// What happens to a request that a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub enum FaultAction {
    /// Answered with these very bytes.
    #[serde(rename_all = "camelCase")]
    Answer {
        /// Status.
        status: u16,
        /// Headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Body, any bytes.
        #[serde(default)]
        body: Vec<u8>,
    },
    /// Answered with an error in one of Azure's envelopes.
    #[serde(rename_all = "camelCase")]
    Error {
        /// Status.
        status: u16,
        /// `code`.
        code: String,
        /// `message`.
        message: String,
        /// Which envelope.
        envelope: Envelope,
        /// `Retry-After` in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Never answered; the connection closes after that long.
    Hang {
        /// How long.
        #[serde(rename = "forMs", alias = "for", with = "millis")]
        time: Duration,
    },
    /// Answered as usual, that much later.
    Delay {
        /// How much later.
        #[serde(rename = "forMs", alias = "for", with = "millis")]
        time: Duration,
    },
    /// The connection closes at once; nothing is applied.
    Drop,
    /// Applied as usual, but the connection closes instead of an answer, after that long.
    ApplyThenDrop {
        /// How long after.
        #[serde(rename = "afterMs", alias = "after", with = "millis", default)]
        time: Duration,
    },
}

impl FaultAction {
    /// A status with an empty body.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: BTreeMap::new(), body: Vec::new() }
    }

    /// 200 with this body.
    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self::Answer {
            status: 200,
            headers: BTreeMap::from([("content-type".into(), "application/json; charset=utf-8".into())]),
            body: body.into(),
        }
    }

    /// 429 as the AKS resource provider says it.
    pub fn throttled(retry_after: u64) -> Self {
        Self::Error {
            status: 429,
            code: "Throttled".into(),
            message: format!(
                "The PutAgentPoolHandler.PUT request limit has been exceeded, please retry again in {retry_after} seconds."
            ),
            envelope: Envelope::Flat,
            retry_after: Some(retry_after),
        }
    }
}

/// A fault in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveFault {
    /// Id, to clear it by.
    pub id: u64,
    /// The fault; `times` is what is left.
    pub fault: Fault,
    /// Requests it has struck.
    pub struck: u64,
}

/// Settings to change; absent ones stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // each is the field of [`Settings`] of that name
pub struct SettingsPatch {
    #[serde(
        rename = "bootTimeMs",
        alias = "bootTime",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub boot_time: Option<Duration>,
    #[serde(
        rename = "deleteTimeMs",
        alias = "deleteTime",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub delete_time: Option<Duration>,
    #[serde(
        rename = "failTimeMs",
        alias = "failTime",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub fail_time: Option<Duration>,
    #[serde(
        rename = "updateTimeMs",
        alias = "updateTime",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub update_time: Option<Duration>,
    #[serde(
        rename = "killAfterMs",
        alias = "killAfter",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub kill_after: Option<Duration>,
    #[serde(
        rename = "startedForMs",
        alias = "startedFor",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub started_for: Option<Duration>,
    #[serde(
        rename = "imdsFirstAnswerMs",
        alias = "imdsFirstAnswer",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub imds_first_answer: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count_follows_evictions: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count_after_failure: Option<CountAfterFailure>,
    /// Switches to change; absent ones stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switches: Option<Value>,
}

impl SettingsPatch {
    /// Changes of switches only.
    pub fn switches(changes: Value) -> Self {
        Self { switches: Some(changes), ..Self::default() }
    }
}
