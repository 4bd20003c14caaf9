//! What one asks of agent pools: pools to add, limits of capacity and quota, failures and operations to come.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FailureKind, millis, optional_millis};

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
