//! Arithmetic on times that a foreign text may have put anywhere: it stops at the ends of time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// So much after `time`.
pub fn later(time: Timestamp, by: Duration) -> Timestamp {
    signed(by).and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// So much before `time`.
pub fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    signed(by).and_then(|by| time.checked_sub(by).ok()).unwrap_or(Timestamp::MIN)
}

/// From `now` to `time`; nothing if that has passed.
pub fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default()
}

fn signed(by: Duration) -> Option<SignedDuration> {
    SignedDuration::try_from(by).ok()
}
