//! A notice that the operator has claimed, because this agent did not in time, and that no document names here. Pure.
//!
//! A document that names the event has the agent claim it and go on where the operator is. One that does not counts
//! more than what the operator has heard from others, but only if it is surely newer than that.

use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::Phase;

use crate::notice::SPARED_AFTER;
use crate::npd::Hearing;
use crate::time::later;

/// How much newer a good poll must be than what the operator has heard: another VM's clock is not ours.
const FRESHER_BY: Duration = Duration::from_secs(3);

/// What to do about the operator's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// It holds no longer: its marks come off.
    GiveBack(Phase),
    /// It may hold; known then.
    LookAgain(Timestamp),
}

/// What to do about the operator's claim while no document names its event.
pub fn unnamed(notice: &EvictionNotice, boot_id: &str, hearing: &Hearing, now: Timestamp) -> Unnamed {
    let fresh_from = later(notice.observed_at, FRESHER_BY);
    let spared_at = later(notice.deadline, SPARED_AFTER);
    let has_rebooted = notice.boot_id != boot_id && !notice.boot_id.is_empty() && !boot_id.is_empty();
    match hearing.heard_at.filter(|heard| *heard > fresh_from) {
        None => Unnamed::LookAgain(later(now, Duration::from_secs(1)).max(fresh_from)),
        Some(_) if has_rebooted => Unnamed::GiveBack(Phase::Over),
        Some(heard) if heard < notice.deadline => Unnamed::GiveBack(Phase::Cancelled),
        Some(heard) if heard > spared_at => Unnamed::GiveBack(Phase::Over),
        // Its time has come, and the VM may be about to go.
        Some(_) => Unnamed::LookAgain(later(now, Duration::from_secs(1)).max(spared_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
    }

    #[test]
    fn an_older_document_undoes_no_claim_and_a_newer_one_does() {
        let notice: EvictionNotice = serde_json::from_value(serde_json::json!({
            "by": "Operator", "eventId": "E", "type": "Preempt", "source": "IMDS", "observedAt": at(0),
            "notBefore": at(30), "deadline": at(30), "phase": "Draining", "cordoned": true, "bootID": "b",
        }))
        .unwrap();
        for (heard, boot, now, wanted) in [
            (None, "b", 5, Unnamed::LookAgain(at(6))),
            (Some(1), "b", 2, Unnamed::LookAgain(at(3))),
            (Some(4), "b", 5, Unnamed::GiveBack(Phase::Cancelled)),
            (Some(31), "b", 31, Unnamed::LookAgain(at(630))),
            (Some(31), "c", 31, Unnamed::GiveBack(Phase::Over)),
            (Some(631), "b", 631, Unnamed::GiveBack(Phase::Over)),
        ] {
            let hearing = Hearing {
                heard_at: heard.map(at),
                since: at(-60),
                patience: Duration::from_secs(3),
                booted_at: None,
            };
            assert_eq!(
                unnamed(&notice, boot, &hearing, at(now)),
                wanted,
                "heard {heard:?} at {now}, boot {boot}"
            );
        }
    }
}
