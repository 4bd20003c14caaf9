//! Something goes wrong at every single write and event of what the operator does: the end is the same, nothing is bought
//! that would not have been, and nothing is written any more once it is reached.
//!
//! `cargo test -p spotpool-e2e --test faults` runs a sample of the crash points of every course, and of all else that may
//! happen to the writes of an eviction. In the environment, `SPOTPOOL_FAULT_SEED=17` chooses another sample,
//! `SPOTPOOL_FAULT_PLANS=kill` all crash points, `=all` or `=failback/timeout` all or those whose names begin so, and
//! `SPOTPOOL_FAULT_PLAN=eviction/kill-after/3` one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod simulated;

use spotpool_e2e::faults::Plan;

/// The one plan that is asked for.
fn wanted_plan() -> Option<Plan> {
    std::env::var("SPOTPOOL_FAULT_PLAN").ok().map(|plan| plan.parse().unwrap())
}

/// What the plans that are asked for have in their names.
fn wanted() -> Option<String> {
    std::env::var("SPOTPOOL_FAULT_PLANS").ok()
}

fn seed() -> u64 {
    std::env::var("SPOTPOOL_FAULT_SEED")
        .map_or(1, |seed| seed.parse().expect("SPOTPOOL_FAULT_SEED is no number"))
}
