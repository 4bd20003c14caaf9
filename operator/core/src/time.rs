//! Times that are far enough away stay times.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Duration;

pub(crate) fn later(time: Timestamp, by: Duration) -> Timestamp {
    later_by(time, SignedDuration::try_from(std::time::Duration::from(by)).unwrap_or(SignedDuration::MAX))
}

pub(crate) fn later_by(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}
