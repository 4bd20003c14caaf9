//! The adapter against scripted answers and against the simulator: everything that crosses its interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod budgets;
mod create;
mod fence;
mod operations;
mod reads;
mod round_trip;
mod scripted;
mod secrets;
mod shapes;
mod simulated;
mod writes;
