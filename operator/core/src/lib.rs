//! The operator's decisions: pure functions of what is known and of `now`. No client, no clock, no async.
//!
//! [`plan()`] is the whole of it. It never fails and never waits; what cannot be done now is a step with a
//! reason and a time at which to look again.

mod action;
mod after_loss;
pub mod allocation;
mod arrivals;
mod autoscaler;
pub mod avoidance;
pub mod backup;
pub mod bills;
pub mod caps;
pub mod claims;
pub mod cost;
mod counts;
pub mod creation;
mod draft;
pub mod drill;
mod failback;
mod fallback;
pub mod fit;
pub mod floor;
mod leaving;
pub mod ledger;
pub mod loss;
mod memory;
mod need;
pub mod objective;
mod placement;
mod plan;
mod planned;
pub mod ranking;
pub mod scheduling;
pub mod signals;
mod snapshot;
pub mod spend;
mod stall;
mod tally;
mod time;
mod units;
pub mod upkeep;
mod waiting;
mod window;
mod wishes;

pub use action::Action;
pub use autoscaler::Autoscaler;
pub use leaving::Leaving;
pub use memory::{Answered, Memory, Probe, Relapses};
pub use need::{Needs, PastNeed};
pub use plan::{Plan, plan};
pub use snapshot::{AgentPoolView, DrainView, Losses, Market, NodeView, Score, Snapshot, arrived};
pub use stall::Stall;
pub use window::{Opening, next_time, opening};
pub use wishes::Wishes;
