//! What AKS's node problem detector says about this VM, in two conditions on the Node: a second ear on the same
//! metadata service. Pure.
//!
//! Its word counts only while the metadata service is silent for the agent itself. A condition may be minutes old,
//! of an event that was taken back, or left over from before a reboot; a document is always of now.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use spotpool_crds::names;

use crate::kind::{Kind, date_of};
use crate::time::later;

/// How much later than the condition a good poll must be to count more: the detector has read the document that
/// it speaks of some time before it says so.
const FRESHER_BY: Duration = Duration::from_millis(1500);
/// An event that should have happened this long ago and that nobody else speaks of is a leftover.
const STALE_AFTER: Duration = Duration::from_mins(10);

/// A condition of a Node, without its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    #[serde(default)]
    pub reason: Option<String>,
    /// For people, and in the detector's conditions all that there is.
    #[serde(default)]
    pub message: Option<String>,
    /// Since when its status is so.
    #[serde(default)]
    pub last_transition_time: Option<Timestamp>,
}

/// An event that a condition speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Azure's `EventId`, or one made of type and date where the message has none.
    pub id: String,
    /// What will happen.
    pub kind: Kind,
    /// Whether it happens already.
    pub started: bool,
    /// When at the earliest, if the message says.
    pub not_before: Option<Timestamp>,
    /// Since when the condition says so.
    pub since: Timestamp,
}

/// What the metadata service itself has let the agent hear.
#[derive(Clone, Copy, Debug)]
pub struct Hearing {
    /// The last good poll, whether or not the document was another.
    pub heard_at: Option<Timestamp>,
    /// Since when the agent listens.
    pub since: Timestamp,
    /// Without a good poll for this long, the service is silent.
    pub patience: Duration,
    /// When the machine booted, if known.
    pub booted_at: Option<Timestamp>,
}

/// What a claim is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Nobody else speaks: it counts.
    Counts,
    /// Whether the metadata service is silent, is known then.
    WaitUntil(Timestamp),
    /// The metadata service knows better, or it is too old.
    Nothing,
}

/// The events that the conditions speak of.
pub fn claims(conditions: &[Condition]) -> Vec<Claim> {
    let of_detector = [names::PREEMPTION_SCHEDULED_CONDITION, names::VM_EVENT_SCHEDULED_CONDITION];
    let mut claims: Vec<Claim> = Vec::new();
    for condition in conditions {
        if condition.status != "True" || !of_detector.contains(&condition.kind.as_str()) {
            continue;
        }
        let since = condition.last_transition_time.unwrap_or(Timestamp::MIN);
        let message = condition.message.as_deref().unwrap_or_default();
        let mut said = read(message, since);
        if said.is_empty() && condition.kind == names::PREEMPTION_SCHEDULED_CONDITION {
            // Whatever it says in detail, its type says enough.
            said.push(claim(Kind::Preempt, "", message, since));
        }
        for claim in said {
            if !claims.iter().any(|known| known.id == claim.id) {
                claims.push(claim);
            }
        }
    }
    claims
}

impl Claim {
    /// What it is worth now.
    pub fn worth(&self, hearing: &Hearing, now: Timestamp) -> Worth {
        let is_overheard = hearing.heard_at.is_some_and(|heard| heard > later(self.since, FRESHER_BY));
        let is_of_another_boot = hearing.booted_at.is_some_and(|booted| self.since < booted);
        let due = self.not_before.filter(|_| !self.started).map_or(self.since, |due| due.max(self.since));
        if is_overheard || is_of_another_boot || later(due, STALE_AFTER) < now {
            return Worth::Nothing;
        }
        let last = hearing.heard_at.map_or(hearing.since, |heard| heard.max(hearing.since));
        let silent_from = later(last, hearing.patience);
        if now < silent_from { Worth::WaitUntil(silent_from) } else { Worth::Counts }
    }
}

/// `Preempt Scheduled: Sat, 01 Aug 2026 05:41:02 GMT. For more information, see …. EventId: <GUID>`, perhaps more
/// than once; `Preempt Started`, often without a date; `SpotRebalanceRecommendation Advisory: <date>.`
fn read(message: &str, since: Timestamp) -> Vec<Claim> {
    let words: Vec<&str> = message.split_whitespace().collect();
    let head = |at: usize| {
        let (kind, status) = (Kind::read(words[at]), words[at + 1].trim_end_matches([':', '.', ',']));
        let is_head =
            !matches!(kind, Kind::Other(_)) && ["Scheduled", "Started", "Advisory"].contains(&status);
        is_head.then_some((at, kind, status))
    };
    let heads: Vec<_> = (0..words.len().saturating_sub(1)).filter_map(head).collect();
    let ends = heads.iter().skip(1).map(|(at, ..)| *at).chain([words.len()]);
    let said = heads.iter().zip(ends);
    said.map(|((at, kind, status), end)| claim(kind.clone(), status, &words[*at..end].join(" "), since))
        .collect()
}

fn claim(kind: Kind, status: &str, text: &str, since: Timestamp) -> Claim {
    let not_before = date_in(text);
    let id = text.split_whitespace().skip_while(|word| *word != "EventId:").nth(1).unwrap_or_default();
    let id: String =
        id.trim_end_matches(['.', ',', ';']).chars().filter(|c| !c.is_control()).take(200).collect();
    let id = if id.is_empty() { format!("{kind}-{}", not_before.unwrap_or(since)) } else { id };
    let started = status == "Started";
    Claim { id, kind, started, not_before: not_before.filter(|_| !started), since }
}

/// The date after the first colon.
fn date_in(text: &str) -> Option<Timestamp> {
    let rest = text.split_once(':')?.1.trim_start();
    let rfc = rest.find("GMT").and_then(|end| rest.get(..end + 3));
    let iso = rest.split_whitespace().next().map(|word| word.trim_end_matches(['.', ',', ';']));
    rfc.and_then(date_of).or_else(|| iso.and_then(date_of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUID: &str = "C1BF8322-4CBF-4FC4-9C45-B40CF3106D0E";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn condition(kind: &str, status: &str, message: &str) -> Condition {
        serde_json::from_value(serde_json::json!({
            "type": kind, "status": status, "reason": "SpotEvictionIncoming", "message": message,
            "lastHeartbeatTime": "2026-08-01T05:41:00Z", "lastTransitionTime": "2026-08-01T05:40:35Z",
        }))
        .unwrap()
    }

    fn said(message: &str) -> Vec<(String, String, bool, Option<Timestamp>)> {
        let claims = claims(&[condition("VMEventScheduled", "True", message)]);
        claims.into_iter().map(|it| (it.id, it.kind.to_string(), it.started, it.not_before)).collect()
    }

    #[test]
    fn reads_what_the_detector_writes() {
        let due = Some(at("2026-08-01T05:41:02Z"));
        let date = "Sat, 01 Aug 2026 05:41:02 GMT";
        let one = |id: &str, kind: &str, started, due| vec![(id.to_owned(), kind.to_owned(), started, due)];
        for (message, wanted) in [
            (
                format!(
                    "Preempt Scheduled: {date}. For more information, see https://aka.ms/x. EventId: {GUID}"
                ),
                one(GUID, "Preempt", false, due),
            ),
            (format!("Preempt Started. EventId: {GUID}."), one(GUID, "Preempt", true, None)),
            (format!("Preempt Started: {date}. EventId: {GUID}"), one(GUID, "Preempt", true, None)),
            (
                format!("Reboot Scheduled: 2026-08-01T05:41:02Z. EventId: {GUID}"),
                one(GUID, "Reboot", false, due),
            ),
            // Without an id: one that stays the same while the message does.
            (
                format!("SpotRebalanceRecommendation Advisory: {date}."),
                one(
                    "SpotRebalanceRecommendation-2026-08-01T05:41:02Z",
                    "SpotRebalanceRecommendation",
                    false,
                    due,
                ),
            ),
            ("Preempt Started".into(), one("Preempt-2026-08-01T05:40:35Z", "Preempt", true, None)),
            (
                "Redeploy Scheduled: soon".into(),
                one("Redeploy-2026-08-01T05:40:35Z", "Redeploy", false, None),
            ),
            (
                format!("Freeze Scheduled: {date}. EventId: A; Preempt Scheduled: {date}. EventId: B"),
                vec![("A".into(), "Freeze".into(), false, due), ("B".into(), "Preempt".into(), false, due)],
            ),
            ("VM has no scheduled event".into(), vec![]),
            ("Teleport Scheduled: tomorrow".into(), vec![]),
            (String::new(), vec![]),
        ] {
            assert_eq!(said(&message), wanted, "{message}");
        }
    }

    #[test]
    fn only_the_detectors_own_conditions_count_and_only_while_they_are_true() {
        let message = format!("Preempt Scheduled: Sat, 01 Aug 2026 05:41:02 GMT. EventId: {GUID}");
        for (kind, status, wanted) in [
            ("PreemptionScheduled", "True", 1),
            ("PreemptionScheduled", "False", 0),
            ("PreemptionScheduled", "Unknown", 0),
            ("EvictionNoticed", "True", 0),
        ] {
            assert_eq!(claims(&[condition(kind, status, &message)]).len(), wanted, "{kind} {status}");
        }
        // Both say the same event.
        let both = ["PreemptionScheduled", "VMEventScheduled"].map(|kind| condition(kind, "True", &message));
        assert_eq!(claims(&both).len(), 1);
        // One whose words changed is still what its type says.
        let odd = claims(&[condition("PreemptionScheduled", "True", "Eviction ahead")]);
        assert_eq!((&odd[0].kind, odd[0].not_before), (&Kind::Preempt, None));
    }

    #[test]
    fn the_detector_counts_while_the_metadata_service_is_silent_and_no_longer() {
        let since = at("2026-08-01T05:40:35Z");
        let second = |seconds: i64| since + jiff::SignedDuration::from_secs(seconds);
        let claim = |due| Claim {
            id: "A".into(),
            kind: Kind::Preempt,
            started: false,
            not_before: Some(second(due)),
            since,
        };
        let hearing = |heard: Option<i64>| Hearing {
            heard_at: heard.map(second),
            since: second(-3600),
            patience: Duration::from_secs(4),
            booted_at: Some(second(-7200)),
        };
        for (what, claim, hearing, now, wanted) in [
            ("silent for long", claim(30), hearing(Some(-100)), 0, Worth::Counts),
            ("never heard", claim(30), hearing(None), 0, Worth::Counts),
            ("answered a moment ago", claim(30), hearing(Some(-1)), 0, Worth::WaitUntil(second(3))),
            ("silent since", claim(30), hearing(Some(-1)), 3, Worth::Counts),
            // The detector may have asked a little later than we did.
            ("answered in the same second", claim(30), hearing(Some(1)), 6, Worth::Counts),
            ("has answered since", claim(30), hearing(Some(2)), 3, Worth::Nothing),
            ("answered long since, then fell silent", claim(30), hearing(Some(2)), 500, Worth::Nothing),
            ("late, but it may still come", claim(30), hearing(None), 60, Worth::Counts),
            ("should have come long ago", claim(30), hearing(None), 631, Worth::Nothing),
            ("a reboot of tomorrow", claim(86_400), hearing(None), 3600, Worth::Counts),
            (
                "from before the boot",
                claim(30),
                Hearing { booted_at: Some(second(1)), ..hearing(None) },
                20,
                Worth::Nothing,
            ),
            (
                "an agent that has just begun",
                claim(30),
                Hearing { since: second(10), ..hearing(None) },
                10,
                Worth::WaitUntil(second(14)),
            ),
        ] {
            assert_eq!(claim.worth(&hearing, second(now)), wanted, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(
            parts in prop::collection::vec(prop_oneof![
                ".{0,20}",
                Just("Preempt".to_owned()), Just(" Scheduled: ".to_owned()), Just("EventId: ".to_owned()), Just("GMT".to_owned()),
            ], 0..12),
        ) {
            let message = parts.concat();
            for claim in claims(&[condition("PreemptionScheduled", "True", &message)]) {
                prop_assert!(!claim.id.is_empty());
            }
        }
    }
}
