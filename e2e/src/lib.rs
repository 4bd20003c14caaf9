//! The harness of demo, tests and benches: our programs as real processes, on a real control plane, with the
//! simulator in Azure's place.

pub mod agents;
mod asked;
pub mod benchmarks;
pub mod collector;
pub mod dashboards;
pub mod drawing;
pub mod faults;
pub mod gateway;
pub mod installed;
mod last_words;
pub mod objects;
pub mod picture;
pub mod processes;
pub mod programs;
pub mod prometheus;
pub mod proxy;
pub mod rights;
pub mod runtime;
pub mod simulation;
pub mod stage;
pub mod steady;
pub mod timeline;
pub mod wait;
pub mod wire;
pub mod world;

pub use agents::Agents;
pub use asked::asked;
pub use programs::{Profile, Programs};
pub use runtime::run;
pub use stage::{Operator, OperatorOptions, Stage};
pub use wait::eventually;
pub use world::{World, WorldOptions};
