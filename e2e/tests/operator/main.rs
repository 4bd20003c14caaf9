//! Who may do what: the operator in Azure and in the cluster, its replicas among each other, and people who write SpotPools. Each
//! test has a control plane of its own; most of them wait, so they wait together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod access;
mod admission;
mod leader;
mod rights;
mod roles;
