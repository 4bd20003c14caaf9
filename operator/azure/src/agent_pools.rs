//! Agent pools as the operator sees them, whatever the wire.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;

use crate::error::AzureError;
use crate::throttle::{Urgency, WriteBudget};

/// What the operator asks of AKS. Futures may be dropped at any point; whether a write landed is then
/// learned by reading.
pub trait AgentPools: Send + Sync {
    /// Every agent pool of the cluster.
    fn list(&self) -> BoxFuture<'_, Result<Vec<AgentPool>, AzureError>>;

    /// One agent pool, `None` if it is not there. One request, where a list may have many pages, each of which waits for its turn.
    fn get<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Option<AgentPool>, AzureError>>;

    /// Machines of one agent pool.
    fn machines<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Vec<Machine>, AzureError>>;

    /// Asks for `count` machines, only if the agent pool is still as it was read. Refused for autoscaled ones.
    fn scale<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
        urgency: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// Lowers a count that is higher than the machines that exist, so that no later write brings evicted ones
    /// back. Machines are listed once more before; where there are not just `count`, or the agent pool is
    /// busy, or was read too long ago to know, nothing is written ([`Class::Conflict`](crate::Class)).
    fn correct_count<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// Moves the range of the cluster autoscaler; the count is left to it.
    fn set_autoscaler_range<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        min: u32,
        max: u32,
        urgency: Urgency,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// Deletes exactly these machines. Names that are gone make Azure refuse the whole request.
    fn delete_machines<'a>(
        &'a self,
        agent_pool: &'a str,
        machines: &'a [String],
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// Makes an agent pool, or says in what the one that is there differs. Safe to repeat.
    fn create<'a>(&'a self, wanted: &'a CreateAgentPool) -> BoxFuture<'a, Result<Created, AzureError>>;

    /// How many writes of an agent pool are left, to be kept across restarts.
    fn write_budget(&self, agent_pool: &str) -> WriteBudget;

    /// Takes up what was left before a restart. Without it 10 are assumed.
    fn restore_write_budget(&self, agent_pool: &str, budget: WriteBudget);
}

/// How accepted writes stand.
pub trait Operations: Send + Sync {
    /// Asks Azure once.
    fn operation<'a>(&'a self, url: &'a OperationUrl) -> BoxFuture<'a, Result<OperationOutcome, AzureError>>;
}

/// One agent pool, as read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentPool {
    /// Its name.
    pub name: String,
    /// Machines that Azure believes are wanted.
    pub count: u32,
    /// Spot or regular.
    pub priority: Priority,
    /// User, System or Gateway.
    pub mode: AgentPoolMode,
    /// What its machines are managed by.
    pub kind: AgentPoolKind,
    /// Whether the cluster autoscaler has it.
    pub autoscaled: bool,
    /// The autoscaler's lower bound.
    pub min_count: Option<u32>,
    /// The autoscaler's upper bound.
    pub max_count: Option<u32>,
    /// VM size.
    pub vm_size: String,
    /// Availability zones.
    pub zones: Vec<String>,
    /// What Azure does with an evicted VM; for spot.
    pub eviction_policy: Option<EvictionPolicy>,
    /// The most that is paid for an hour of one VM, in US dollars; `None` without a bound. For spot.
    pub spot_max_price: Option<f64>,
    /// Whether it is stopped: it has no machines then, and none can be asked for.
    pub stopped: bool,
    /// `Succeeded`, `Scaling`, …
    pub provisioning_state: String,
    /// Why the last operation failed, where Azure keeps that.
    pub provisioning_error: Option<AzureError>,
    /// Labels that it gives to its Nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints that it keeps on its Nodes, as `key=value:Effect`.
    pub taints: Vec<String>,
    /// Taints that it gives to new Nodes and then leaves alone.
    pub initialization_taints: Vec<String>,
    /// Node image, such as `AKSUbuntu-2204gen2containerd-202509.23.0`.
    pub node_image_version: Option<String>,
    /// Kubernetes version of its Nodes.
    pub kubernetes_version: Option<String>,
    /// For `If-Match`; some releases of AKS leave it out.
    pub etag: Option<String>,
    /// When it was read.
    pub read_at: Timestamp,
    /// The whole body: a PUT sends back what was read, so that nothing is reset.
    pub(crate) body: Value,
}

impl AgentPool {
    /// As a body that Azure gave at `read_at` describes it, or what is wrong with that.
    pub fn read(body: Value, read_at: Timestamp) -> Result<Self, &'static str> {
        crate::body::agent_pool(body, read_at)
    }

    /// Whether a write would be refused because something runs.
    pub fn busy(&self) -> bool {
        !matches!(self.provisioning_state.as_str(), "Succeeded" | "Failed" | "Canceled")
    }

    /// Its tags, which Azure passes on to its VMs.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let tags = self.body["properties"]["tags"].as_object().into_iter().flatten();
        tags.filter_map(|(tag, value)| Some((tag.clone(), value.as_str()?.to_owned()))).collect()
    }
}

/// What an agent pool sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Spot VMs.
    Spot,
    /// On-demand VMs.
    Regular,
}

/// What an agent pool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentPoolMode {
    /// Workloads.
    User,
    /// The cluster's own pods: never ours to scale.
    System,
    /// Egress gateways: never ours to scale.
    Gateway,
}

/// What manages an agent pool's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentPoolKind {
    /// One scale set.
    VirtualMachineScaleSets,
    /// Single VMs, of one or more sizes.
    VirtualMachines,
    /// An availability set, or what we do not know: never ours to scale.
    Other,
}

/// What Azure does with an evicted VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
pub enum EvictionPolicy {
    /// It is gone.
    #[default]
    Delete,
    /// It stays, stopped; it uses quota and keeps its NotReady Node.
    Deallocate,
}

/// One machine of an agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Its name, which is the Node's.
    pub name: String,
    /// The VM's resource id.
    pub resource_id: Option<String>,
    /// Its zone, if it has one.
    pub zones: Vec<String>,
    /// `Succeeded`, `Creating`, `Deleting`, `Failed`, …, where Azure says.
    pub provisioning_state: Option<String>,
}

impl Machine {
    /// One of which nothing is known but its name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), resource_id: None, zones: Vec::new(), provisioning_state: None }
    }
}

/// A write that Azure has accepted. The work goes on, and may fail later.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// Where to ask how it stands, if Azure said.
    pub operation: Option<OperationUrl>,
    /// The agent pool as Azure answered, if it did.
    pub agent_pool: Option<AgentPool>,
    /// When to ask first, if Azure said.
    pub retry_after: Option<Duration>,
}

/// Where to ask how an operation stands: Azure's own URL, followed verbatim. It is signed, so it is never
/// printed.
#[derive(Clone, PartialEq, Eq)]
pub struct OperationUrl(pub(crate) url::Url);

impl fmt::Debug for OperationUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationUrl({}…)", self.0.path())
    }
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationOutcome {
    /// Still running; Azure may say when to ask again.
    Running(Option<Duration>),
    /// Done.
    Succeeded,
    /// Over without success. Cancelled or superseded ones are of [`Class::Conflict`](crate::Class).
    Failed(AzureError),
    /// Azure does not say any more, or not to us: the agent pool and its machines tell.
    Unknown,
}

/// An agent pool to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateAgentPool {
    /// Lower case letters and digits, at most 12, a letter first.
    pub name: String,
    /// Spot or regular.
    pub priority: Priority,
    /// Machines to begin with.
    pub count: u32,
    /// VM size.
    pub vm_size: String,
    /// Availability zones; none: regional.
    pub zones: Vec<String>,
    /// For spot.
    pub eviction_policy: EvictionPolicy,
    /// For spot; `None`: whatever it costs, up to the on-demand price.
    pub spot_max_price: Option<MaxPrice>,
    /// Labels for its Nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints that stay on its Nodes, as `key=value:Effect`.
    pub taints: Vec<String>,
    /// Taints for new Nodes that workloads may take off. Needs an api-version that has them.
    pub initialization_taints: Vec<String>,
    /// Tags for its VMs.
    pub tags: BTreeMap<String, String>,
    /// Most pods on a Node.
    pub max_pods: Option<u32>,
    /// `Managed` or `Ephemeral`.
    pub os_disk_type: Option<String>,
    /// Size of the OS disk in GiB.
    pub os_disk_size_gb: Option<u32>,
    /// `Ubuntu`, `AzureLinux`, …
    pub os_sku: Option<String>,
    /// Resource id of the subnet for its Nodes, where the cluster brings its own network.
    pub vnet_subnet_id: Option<String>,
}

impl CreateAgentPool {
    /// One with Azure's defaults.
    pub fn new(name: impl Into<String>, priority: Priority, vm_size: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            priority,
            count: 0,
            vm_size: vm_size.into(),
            zones: Vec::new(),
            eviction_policy: EvictionPolicy::Delete,
            spot_max_price: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            initialization_taints: Vec::new(),
            tags: BTreeMap::new(),
            max_pods: None,
            os_disk_type: None,
            os_disk_size_gb: None,
            os_sku: None,
            vnet_subnet_id: None,
        }
    }
}

/// The most that is paid for an hour of one VM, in US dollars: above zero, at most five decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxPrice {
    hundred_thousandths: u64,
}

impl MaxPrice {
    pub(crate) fn as_f64(self) -> f64 {
        // Division of two integers below 2^53 gives the nearest number, which prints with these decimals.
        self.hundred_thousandths as f64 / 100_000.0
    }
}

impl FromStr for MaxPrice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a price must be a number above 0 with at most five decimals, such as 0.18";
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > 7 || !digits(whole) || decimals.len() > 5 || !digits(decimals) {
            return Err(WRONG);
        }
        let hundred_thousandths = format!("{whole}{decimals:0<5}").parse().map_err(|_| WRONG)?;
        if hundred_thousandths == 0 { Err(WRONG) } else { Ok(Self { hundred_thousandths }) }
    }
}

impl fmt::Display for MaxPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

/// What became of a wish for an agent pool.
#[derive(Clone, Debug)]
pub enum Created {
    /// It is being made.
    Accepted(Accepted),
    /// It is there; empty differences: as wanted.
    AlreadyThere {
        /// As read.
        agent_pool: AgentPool,
        /// What is not as wanted. Nothing is done about it.
        differences: Vec<Difference>,
    },
}

/// One property that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Azure's name of the property.
    pub property: &'static str,
    /// What was asked for.
    pub wanted: String,
    /// What is there.
    pub found: String,
    /// Whether only another agent pool could have it otherwise.
    pub immutable: bool,
}
