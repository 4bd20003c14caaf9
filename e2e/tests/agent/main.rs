//! The node agent, really running with its Pod's token and the chart's rights, against a real control plane and
//! the simulator, with no operator. Each test says what a user would lose without it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod budgets;
mod coexistence;
mod corner;
mod crowd;
mod faults;
mod jobs;
mod matrix;
mod metadata;
mod notice;
mod npd;
mod oracle;
mod planned;
mod restarts;
mod rights;
mod stolen;
mod telling;
mod voluntary;
