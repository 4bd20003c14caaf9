//! Agent pools as the operator sees them, whatever the wire.

use futures::future::BoxFuture;
use serde_json::Value;

use crate::error::AzureError;

/// What the operator asks of AKS. Futures may be dropped at any point; whether a write landed is then
/// learned by reading.
pub trait AgentPools: Send + Sync {
    /// Every agent pool of the cluster.
    fn list(&self) -> BoxFuture<'_, Result<Vec<AgentPool>, AzureError>>;

    /// Machines of one agent pool.
    fn machines<'a>(&'a self, agent_pool: &'a str) -> BoxFuture<'a, Result<Vec<Machine>, AzureError>>;

    /// Asks for `count` machines, only if the agent pool is still as it was read.
    fn scale<'a>(
        &'a self,
        agent_pool: &'a AgentPool,
        count: u32,
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// Deletes exactly these machines. Names that are gone make Azure refuse the whole request.
    fn delete_machines<'a>(
        &'a self,
        agent_pool: &'a str,
        machines: &'a [String],
    ) -> BoxFuture<'a, Result<Accepted, AzureError>>;

    /// How an accepted operation stands.
    fn operation<'a>(&'a self, url: &'a OperationUrl) -> BoxFuture<'a, Result<OperationOutcome, AzureError>>;
}

/// One agent pool, as read.
#[derive(Clone, Debug)]
pub struct AgentPool {
    /// Its name.
    pub name: String,
    /// Machines that Azure believes are wanted.
    pub count: u32,
    /// Spot or regular.
    pub priority: Priority,
    /// User, System or Gateway.
    pub mode: AgentPoolMode,
    /// Whether the cluster autoscaler has it.
    pub autoscaled: bool,
    /// VM size.
    pub vm_size: String,
    /// Availability zones.
    pub zones: Vec<String>,
    /// `Succeeded`, `Scaling`, …
    pub provisioning_state: String,
    /// For `If-Match`; some releases of AKS leave it out.
    pub etag: Option<String>,
    /// The whole body: a PUT sends back what was read, so that nothing is reset.
    pub(crate) body: Value,
}

impl AgentPool {
    /// Whether a write would be refused because something runs.
    pub fn busy(&self) -> bool {
        !matches!(self.provisioning_state.as_str(), "Succeeded" | "Failed" | "Canceled")
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

/// One machine of an agent pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name, which is the Node's.
    pub name: String,
}

/// A write that Azure has accepted. The work goes on, and may fail later.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Where to ask how it stands, if Azure said.
    pub operation: Option<OperationUrl>,
    /// The agent pool as Azure answered, if it did.
    pub agent_pool: Option<AgentPool>,
}

/// Where to ask how an operation stands: Azure's own URL, followed verbatim. It is signed, so it is never
/// printed.
#[derive(Clone, PartialEq, Eq)]
pub struct OperationUrl(pub(crate) url::Url);

impl std::fmt::Debug for OperationUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OperationUrl({}…)", self.0.path())
    }
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationOutcome {
    /// Still running.
    Running,
    /// Done.
    Succeeded,
    /// Over without success.
    Failed(AzureError),
}
