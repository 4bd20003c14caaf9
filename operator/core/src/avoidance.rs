//! How long an agent pool is left alone after an error.

use jiff::{SignedDuration, Timestamp};

use crate::time::later_by;

/// What kind of failure Azure reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No capacity or no quota for this size: asked again with one machine, as often as costs a small part of the writes
    /// that AKS allows.
    Capacity,
    /// A limit on requests.
    Throttled,
    /// The request itself was refused (invalid or denied): a person has to act.
    Refused,
    /// Anything that may pass by itself.
    Transient,
}

/// Until when nothing new is asked of the agent pool: `stated` is how long the error itself says.
pub fn avoided_until(failure: Failure, stated: Option<SignedDuration>, now: Timestamp) -> Timestamp {
    let wait = stated.unwrap_or(match failure {
        Failure::Throttled => SignedDuration::from_mins(1),
        Failure::Capacity | Failure::Refused => SignedDuration::from_mins(5),
        Failure::Transient => SignedDuration::from_secs(15),
    });
    // Whatever is stated: short enough to notice that things got better, long enough not to hammer.
    let wait = wait.clamp(SignedDuration::from_secs(1), SignedDuration::from_hours(24));
    later_by(now, wait)
}
