//! Draining one node: what to do with each pod (pure, [`plan`]) and doing it ([`executor`]). The node's
//! agent uses it, and so can whoever drains in the agent's stead.
//!
//! ```text
//! Pods (a watch, or any other source) ─┐
//! Terms (deadline or notAfter)  ───────┼─► plan, each tick ─► executor ─► Observer, Report
//! answers of the API so far  ──────────┘
//! ```

pub mod answer;
mod budgets;
mod condition;
pub mod edit;
pub mod executor;
pub mod follow;
mod groups;
pub mod holds;
mod jitter;
pub mod kind;
mod known;
pub mod marks;
pub mod node;
pub mod noted;
pub mod npd;
pub mod plan;
pub mod pods;
pub mod report;
mod schedule;
pub mod time;

pub use answer::Answer;
pub use executor::Drain;
pub use holds::Holds;
pub use jitter::jittered;
pub use plan::Terms;
pub use pods::{Controller, Pod, Pods, Tier};
pub use report::{Budget, Ending, Observer, Progress, Report};
