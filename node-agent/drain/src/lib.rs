//! Draining one node: what to do with each pod (pure, [`plan`]) and doing it ([`executor`]). The node's
//! agent uses it, and so can whoever drains in the agent's stead.
//!
//! ```text
//! Pods (a watch, or any other source) ─┐
//! Terms (deadline or notAfter)  ───────┼─► plan, each tick ─► executor ─► Observer, Report
//! answers of the API so far  ──────────┘
//! ```

pub mod answer;
pub mod executor;
pub mod follow;
pub mod holds;
mod jitter;
pub mod plan;
pub mod pods;

pub use answer::Answer;
pub use executor::{Budget, Drain, Ending, Observer, Progress, Report};
pub use holds::Holds;
pub use jitter::jittered;
pub use plan::Terms;
pub use pods::{Controller, Pod, Pods, Tier};
