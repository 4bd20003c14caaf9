//! Something goes wrong at every single write and event of what the operator does: the end is the same, nothing is bought
//! that would not have been, and nothing is written any more once it is reached.
//!
//! `cargo test -p spotpool-e2e --test faults` runs a sample of the crash points of every course, and of all else that may
//! happen to the writes of an eviction. In the environment, `SPOTPOOL_FAULT_SEED=17` chooses another sample,
//! `SPOTPOOL_FAULT_PLANS=kill` all crash points, `=all` or `=failback/timeout` all or those whose names begin so, and
//! `SPOTPOOL_FAULT_PLAN=eviction/kill-after/3` one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod days;
mod simulated;
