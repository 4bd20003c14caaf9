//! The operator's parts, for its program and for tests that run them in simulated time. [`operator`] joins
//! them for both.

pub mod agent_pools;
pub mod azure;
pub mod backup_drain;
pub mod drill;
pub mod leader;
pub mod market;
pub mod metrics;
pub mod neighbours;
pub mod node;
pub mod operator;
pub mod pool;
mod quantity;
pub mod traces;
pub mod vms;
pub mod watches;
pub mod workloads;
