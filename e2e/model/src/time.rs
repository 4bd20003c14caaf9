//! Logical time. What is stored in a state is in seconds from its own now: the past is below zero.
//!
//! Times that lie in the same order, at gaps of the same kind, are the same to a plan: gaps have two lengths, so that
//! states do not differ by how many steps ago something was.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// Seconds from now.
pub type Time = i32;

/// What one step takes: enough to tell who was first, in the whole seconds that Kubernetes keeps.
pub const STEP: Time = 2;
/// A short gap.
const SHORT: Time = 10;
/// A gap that is longer than anything waits: boot, drains, pauses after an error.
pub const LONG: Time = 700;
/// From here a gap is a long one.
const IS_LONG: Time = 60;

/// Noon of a day that is far from the ends of its month: no month's budget begins anew.
const NOON: Timestamp = Timestamp::constant(1_768_478_400, 0);

/// As the programs have it.
pub fn stamp(time: Time) -> Timestamp {
    NOON.saturating_add(SignedDuration::from_secs(time.into())).unwrap_or(NOON)
}

/// And back.
pub fn time(stamp: Timestamp) -> Time {
    Time::try_from(stamp.duration_since(NOON).as_secs()).unwrap_or(-LONG)
}

/// Lets so much pass, and gives every gap between two times, now among them, its usual length.
///
/// Says what each was before.
pub fn pass(seconds: Time, times: Vec<&mut Time>) -> BTreeMap<Time, Time> {
    let mut known: BTreeMap<Time, Time> = [(seconds, 0)].into();
    known.extend(times.iter().map(|time| (**time, 0)));
    let sorted: Vec<Time> = known.keys().copied().collect();
    let gap = |from: Time, to: Time| if to - from >= IS_LONG { LONG } else { SHORT };
    let mut at = 0;
    for pair in sorted.windows(2).rev().filter(|pair| pair[1] <= seconds) {
        at -= gap(pair[0], pair[1]);
        known.insert(pair[0], at);
    }
    at = 0;
    for pair in sorted.windows(2).filter(|pair| pair[0] >= seconds) {
        at += gap(pair[0], pair[1]);
        known.insert(pair[1], at);
    }
    for time in times {
        *time = known.get(time).copied().unwrap_or_default();
    }
    known.into_iter().map(|(before, after)| (after, before)).collect()
}
