//! When the operator drains a node in its agent's stead, and when it gives it back.
//!
//! A notice belongs to the node's agent. Where nobody has claimed it in time (the agent has not started yet, has
//! crashed, is cut off), its pods would die with the VM: then the operator claims it. An agent that wakes up later takes
//! over by claiming it in turn, and the operator lets go.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Claimant, Phase, Source};

use crate::time::later_by;

/// How long the agent has to claim a notice. It needs a second to poll and some milliseconds to write.
pub const CLAIMED_WITHIN: SignedDuration = SignedDuration::from_secs(2);
/// Without any word on when Azure acts, a VM is taken to live this long: less than 10 s is often all that is given.
const ASSUMED_LEAD: SignedDuration = SignedDuration::from_secs(10);
/// Whoever named the event must have been silent about it for this long: siblings do not write in the same moment.
const SILENT_FOR: SignedDuration = SignedDuration::from_secs(3);
/// A node that is Ready this long after its VM was to go was spared.
const SPARED_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// A Preempt of a node, as others than its own agent tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Azure's `EventId`.
    pub event_id: String,
    /// Who tells.
    pub source: Source,
    /// When they first saw it, by their clock.
    pub seen: Timestamp,
    /// When the operator first heard of it.
    pub heard: Timestamp,
    /// When Azure acts at the earliest; absent once it has started.
    pub not_before: Option<Timestamp>,
}

/// A node, as far as its notice goes.
#[derive(Clone, Debug)]
pub struct Noticed<'a> {
    /// The notice written on it, whoever wrote it.
    pub notice: Option<&'a EvictionNotice>,
    /// Preempts that others tell of.
    pub named: &'a [Named],
    /// Since when all who told of the claimed event, and are there to tell, do so no longer.
    pub silent_since: Option<Timestamp>,
    /// Its boot; empty if not known.
    pub boot_id: &'a str,
    /// Whether its kubelet says Ready.
    pub ready: bool,
}

/// What to do about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backup {
    /// Nothing.
    Nothing,
    /// Look again then, if nothing happens before.
    LookAgain(Timestamp),
    /// Claim the notice and drain.
    Claim(Claim),
    /// The claim is the operator's, of before a restart perhaps: go on with the drain.
    GoOn,
    /// The operator's claim holds no longer: its marks come off.
    GiveBack(Phase),
}

/// A notice to be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Azure's `EventId`.
    pub event_id: String,
    /// Who told of it.
    pub source: Source,
    /// When they first saw it.
    pub observed_at: Timestamp,
    /// When Azure acts at the earliest, as announced.
    pub not_before: Option<Timestamp>,
    /// The time by which the drain must be over.
    pub deadline: Timestamp,
}

/// Decides about one node.
pub fn backup(node: &Noticed<'_>, now: Timestamp) -> Backup {
    match node.notice.filter(|notice| notice.is_active()) {
        Some(notice) if notice.by == Claimant::Operator => return claimed(notice, node, now),
        // Being drained already, or about to be, or its VM goes and its policy is to let it.
        Some(notice) if notice.takes_capacity() => return Backup::Nothing,
        _ => {}
    }
    // The agent's own word on an event counts more than a sibling's older document.
    let is_over = |named: &Named| {
        node.notice.is_some_and(|notice| {
            let by_us_and_taken_back = notice.by == Claimant::Operator && notice.phase == Phase::Cancelled;
            notice.event_id == named.event_id && !notice.is_active() && !by_us_and_taken_back
        })
    };
    // The metadata service, by way of a sibling, before the detector.
    let order = |named: &&Named| (named.source == Source::NodeProblemDetector, named.heard);
    let first = node.named.iter().filter(|named| !is_over(named)).min_by_key(order);
    let Some(first) = first else { return Backup::Nothing };
    let due = later_by(first.heard, CLAIMED_WITHIN);
    if now < due {
        return Backup::LookAgain(due);
    }
    Backup::Claim(Claim {
        event_id: first.event_id.clone(),
        source: first.source,
        observed_at: first.seen,
        not_before: first.not_before,
        deadline: first.not_before.unwrap_or_else(|| later_by(first.heard, ASSUMED_LEAD)),
    })
}

fn claimed(notice: &EvictionNotice, node: &Noticed<'_>, now: Timestamp) -> Backup {
    let has_rebooted =
        notice.boot_id != node.boot_id && !notice.boot_id.is_empty() && !node.boot_id.is_empty();
    let spared_at = later_by(notice.deadline, SPARED_AFTER);
    let silent = node.silent_since.map(|since| later_by(since, SILENT_FOR));
    // Once its time has come, that nobody names it any more means that it happens.
    let taken_back_at = silent.filter(|_| node.silent_since < Some(notice.deadline));
    if has_rebooted && node.ready {
        Backup::GiveBack(Phase::Over)
    } else if taken_back_at.is_some_and(|at| at <= now) {
        Backup::GiveBack(Phase::Cancelled)
    } else if node.ready && spared_at <= now {
        Backup::GiveBack(Phase::Over)
    } else if matches!(notice.phase, Phase::Noticed | Phase::Draining) {
        Backup::GoOn
    } else {
        Backup::LookAgain(taken_back_at.unwrap_or(spared_at).max(later_by(now, SILENT_FOR)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spotpool_crds::spot_pool::EventResponse;

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    fn named(event: &str) -> Named {
        let (source, not_before) = (Source::Imds, Some(at(30)));
        Named { event_id: event.into(), source, seen: at(0), heard: at(1), not_before }
    }

    fn notice(by: Claimant, phase: Phase) -> EvictionNotice {
        EvictionNotice {
            by,
            event_id: "E".into(),
            event_type: "Preempt".into(),
            source: Source::Imds,
            response: EventResponse::Drain,
            observed_at: at(0),
            not_before: Some(at(30)),
            deadline: at(30),
            phase,
            pods: <_>::default(),
            cordoned: true,
            boot_id: "b".into(),
            traceparent: None,
            doomed: Vec::new(),
            unfinished: Vec::new(),
        }
    }

    fn decide(notice: Option<&EvictionNotice>, named: &[Named], now: i64) -> Backup {
        backup(&Noticed { notice, named, silent_since: None, boot_id: "b", ready: true }, at(now))
    }

    #[test]
    fn the_agent_has_two_seconds_and_its_word_counts() {
        let claim = Backup::Claim(Claim {
            event_id: "E".into(),
            source: Source::Imds,
            observed_at: at(0),
            not_before: Some(at(30)),
            deadline: at(30),
        });
        assert_eq!(decide(None, &[], 9), Backup::Nothing);
        assert_eq!(decide(None, &[named("E")], 2), Backup::LookAgain(at(3)));
        assert_eq!(decide(None, &[named("E")], 3), claim);
        for (by, phase, wanted) in [
            (Claimant::NodeAgent, Phase::Noticed, Backup::Nothing),
            (Claimant::NodeAgent, Phase::Incomplete, Backup::Nothing),
            (Claimant::NodeAgent, Phase::Cancelled, Backup::Nothing),
            (Claimant::NodeAgent, Phase::Over, Backup::Nothing),
            (Claimant::Operator, Phase::Over, Backup::Nothing),
            // Taken back too soon: it is named again.
            (Claimant::Operator, Phase::Cancelled, claim.clone()),
        ] {
            assert_eq!(decide(Some(&notice(by, phase)), &[named("E")], 3), wanted, "{by:?} {phase:?}");
        }
        // What the agent said of another event says nothing of this one.
        let other = EvictionNotice { event_id: "F".into(), ..notice(Claimant::NodeAgent, Phase::Over) };
        assert_eq!(decide(Some(&other), &[named("E")], 3), claim);
        let hint = EvictionNotice {
            event_type: "Freeze".into(),
            response: EventResponse::Ignore,
            ..notice(Claimant::NodeAgent, Phase::Noticed)
        };
        assert_eq!(decide(Some(&hint), &[named("E")], 3), claim);
        let started = Named { not_before: None, ..named("E") };
        let Backup::Claim(claim) = decide(None, &[started], 3) else { panic!("not claimed") };
        assert_eq!(claim.deadline, at(11));
    }

    #[test]
    fn a_claim_is_carried_on_until_it_holds_no_longer() {
        use Phase::{Drained, Draining, Incomplete, Noticed as Begun};
        let decide = |phase, silent: Option<i64>, boot_id, ready, now| {
            let notice = notice(Claimant::Operator, phase);
            let silent_since = silent.map(at);
            backup(&Noticed { notice: Some(&notice), named: &[], silent_since, boot_id, ready }, at(now))
        };
        for (phase, silent, boot, ready, now, wanted) in [
            (Begun, None, "b", true, 5, Backup::GoOn),
            (Draining, None, "", true, 5, Backup::GoOn),
            (Draining, Some(4), "b", true, 5, Backup::GoOn),
            (Draining, Some(4), "b", true, 7, Backup::GiveBack(Phase::Cancelled)),
            (Drained, Some(4), "b", true, 5, Backup::LookAgain(at(8))),
            // Gone from documents because its time has come.
            (Drained, Some(31), "b", true, 40, Backup::LookAgain(at(630))),
            (Incomplete, None, "b", true, 629, Backup::LookAgain(at(632))),
            (Drained, None, "b", true, 630, Backup::GiveBack(Phase::Over)),
            (Drained, None, "b", false, 630, Backup::LookAgain(at(633))),
            (Drained, None, "c", true, 50, Backup::GiveBack(Phase::Over)),
            (Drained, None, "c", false, 50, Backup::LookAgain(at(630))),
        ] {
            let got = decide(phase, silent, boot, ready, now);
            assert_eq!(got, wanted, "{phase:?}, silent {silent:?}, boot {boot}, ready {ready}, at {now}");
        }
    }
}
