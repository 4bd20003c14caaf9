//! Everything that speaks to Azure, behind [`AgentPools`]. Errors are classified here and nowhere else.

mod agent_pools;
mod arm;
mod error;
mod http;
#[cfg(test)]
mod stub;

pub use agent_pools::{
    Accepted, AgentPool, AgentPoolMode, AgentPools, Machine, OperationOutcome, OperationUrl, Priority,
};
pub use arm::{Arm, ClusterId, WriteGate};
pub use error::{AzureError, Class};
pub use http::{HttpOptions, HttpsTransport, Transport};
