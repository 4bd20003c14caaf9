//! The charts: what helm makes of them, what it refuses, and what becomes of it on a real control plane.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod helm;
mod install;
mod reference;
mod refusals;
mod rendered;
mod templates;
