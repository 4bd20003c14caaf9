//! Eviction drills, one at a time in the whole cluster: gather → plan → write what may be asked → act → report.

pub mod act;
mod controller;
pub mod gather;
pub mod report;

pub use controller::{Parts, run};
