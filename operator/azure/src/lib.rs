//! Everything that speaks to Azure, behind [`AgentPools`]. Errors are classified here and nowhere else.

mod agent_pools;
mod arm;
mod body;
mod cloud;
mod credentials;
mod error;
mod eviction_rates;
mod http;
mod instances;
mod market;
mod pipeline;
mod placement_scores;
mod prices;
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
pub use eviction_rates::{EvictionBand, EvictionRates, PriceHistory, ResourceGraph};
pub use http::{HttpOptions, HttpsTransport, Transport};
pub use instances::{ComputeInstances, Instance, Instances, PowerState, VmId};
pub use market::Known;
pub use placement_scores::{Placement, PlacementScore, PlacementScores, Placements, SpotPlacementScores};
pub use prices::{GivenPrices, Price, PriceSource, Prices, RetailPrices};
pub use rust_decimal::Decimal;
pub use throttle::{RESERVE, Urgency, WriteBudget};
pub use tokens::{Authorized, Secret, TokenSource, is_loopback};
pub use wire::{ApiVersion, DEFAULT_API_VERSION, WriteGate};

/// What time it is. Given in, so that tests and simulations have a time of their own.
pub type Clock = std::sync::Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;
