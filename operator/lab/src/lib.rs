//! The policy lab: what would this SpotPool have cost? The plan that runs in production, and the policies of others, in
//! simulated time over traces of spot that was there or not.

pub mod cloud;
pub mod course;
pub mod dice;
pub mod history;
pub mod input;
pub mod manifest;
pub mod measure;
pub mod optimum;
pub mod policy;
pub mod report;
pub mod scenario;
pub mod simulate;
pub mod study;
pub mod synthetic;
pub mod trace;
pub mod tune;
