//! How long an agent pool is left alone after an error.

use jiff::{SignedDuration, Timestamp};

/// What kind of failure Azure reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No capacity or no quota for this size: asking again soon is useless.
    Capacity,
    /// A limit on requests, with Azure's own word on how long.
    Throttled(Option<SignedDuration>),
    /// The request itself was refused (invalid or denied): a person has to act.
    Refused,
    /// Anything that may pass by itself.
    Transient,
}

/// Until when nothing new is asked of the agent pool.
pub fn avoided_until(failure: Failure, now: Timestamp) -> Timestamp {
    let wait = match failure {
        Failure::Capacity => SignedDuration::from_mins(10),
        Failure::Throttled(retry_after) => retry_after
            .unwrap_or(SignedDuration::from_mins(1))
            .clamp(SignedDuration::from_secs(1), SignedDuration::from_hours(1)),
        Failure::Refused => SignedDuration::from_mins(5),
        Failure::Transient => SignedDuration::from_secs(15),
    };
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}
