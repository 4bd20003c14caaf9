//! One eviction on a real control plane, with agents and operator as processes, while things go wrong: the end is the same.
//!
//! `points`: at single writes of the operator, and single events of its watch of Nodes. `servers`: apiserver and etcd die in the
//! middle of it, and agent and operator with them. Both take a sample; `SPOTPOOL_FAULT_PLANS=all` has all of them, and the
//! environment is otherwise that of the test `faults`, which does the same in simulated time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod points;
mod scene;
mod servers;
