//! `kubectl spotpool`: what SpotPools do and why, for people at a terminal. It reads what stands on Kubernetes objects and
//! never speaks to Azure; what it writes are wishes, which the operator checks and answers, and what an uninstalled SpotPool has
//! left behind.
//!
//! Each command gathers objects, makes a view of them, which is pure and what `-o json` prints, and renders the view.

#![allow(clippy::format_push_string, reason = "text for people, once a command: no allocation matters")]

pub mod args;
pub mod cleanup;
pub mod cluster;
pub mod doctor;
pub mod drill;
pub mod error;
pub mod explain;
pub mod history;
pub mod lint;
pub mod output;
pub mod plan;
pub mod reference;
pub mod status;
pub mod table;
pub mod timeline;
pub mod watch;
pub mod wish;
mod workload;

pub use error::Error;
