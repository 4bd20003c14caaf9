//! Everything that speaks to Azure, behind [`AgentPools`]. Errors are classified here and nowhere else.

mod agent_pools;
mod arm;
mod body;
mod cloud;
mod credentials;
mod error;
mod http;
mod pipeline;
#[cfg(test)]
mod stub;
mod throttle;
mod tokens;
mod wire;

pub use agent_pools::{
    Accepted, AgentPool, AgentPoolKind, AgentPoolMode, AgentPools, CreateAgentPool, Created, Difference,
    EvictionPolicy, Machine, MaxPrice, OperationOutcome, OperationUrl, Operations, Priority,
};
pub use arm::{Arm, ArmConfig, ClusterId};
pub use cloud::Cloud;
pub use credentials::CredentialKind;
pub use error::{Avoid, AzureError, Class, MissingAction, Quota, Scope};
pub use http::{HttpOptions, HttpsTransport, Transport};
pub use throttle::{Kind, RESERVE, Throttle, Urgency, WriteBudget};
pub use tokens::{Authorized, Secret, TokenSource, is_loopback};
pub use wire::{ApiVersion, DEFAULT_API_VERSION, WriteGate};

/// What time it is. Given in, so that tests and simulations have a time of their own.
pub type Clock = std::sync::Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;
