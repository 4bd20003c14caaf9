//! How drains of nodes whose VM is taken end, each told once: how many of them end in time.

use std::collections::BTreeMap;

use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{PREEMPT, Phase};
use spotpool_crds::spot_pool::EventResponse;

/// The notices that were seen at the last look, by node and event, and whether their end was told.
#[derive(Default)]
pub(super) struct Drains(Option<BTreeMap<(String, String), bool>>);

impl Drains {
    /// Ends that are new: `Drained`, `Incomplete`, or `Gone` where the node was gone before either was said.
    ///
    /// What had ended when it is first looked is not told: whoever led before has.
    pub fn ended<'a>(
        &mut self,
        notices: impl Iterator<Item = (String, &'a EvictionNotice)>,
    ) -> Vec<&'static str> {
        let is_first = self.0.is_none();
        let mut before = self.0.take().unwrap_or_default();
        let mut now = BTreeMap::new();
        let mut ends = Vec::new();
        for (node, notice) in notices {
            if notice.event_type != PREEMPT || notice.response != EventResponse::Drain {
                continue;
            }
            let key = (node, notice.event_id.clone());
            let told = before.remove(&key).unwrap_or_default();
            let end = match notice.phase {
                Phase::Noticed | Phase::Draining => None,
                Phase::Drained => Some("Drained"),
                Phase::Incomplete => Some("Incomplete"),
                Phase::Cancelled | Phase::Over => continue,
            };
            ends.extend(end.filter(|_| !told && !is_first));
            now.insert(key, end.is_some());
        }
        let cut_short = before.values().filter(|told| !**told).count();
        ends.extend(std::iter::repeat_n("Gone", cut_short));
        self.0 = Some(now);
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notice(event: &str, kind: &str, phase: &str) -> EvictionNotice {
        serde_json::from_value(json!({"by": "NodeAgent", "eventId": event, "type": kind, "source": "IMDS",
            "observedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:00:30Z", "phase": phase,
            "cordoned": true, "bootID": "b"}))
        .unwrap()
    }

    #[test]
    fn each_drain_is_told_once_when_it_ends() {
        let mut drains = Drains::default();
        let mut look = |seen: &[(&str, &str, &str)]| {
            let notices: Vec<_> = seen
                .iter()
                .map(|(node, kind, phase)| ((*node).to_owned(), notice("E", kind, phase)))
                .collect();
            drains.ended(notices.iter().map(|(node, notice)| (node.clone(), notice)))
        };
        let none: [&str; 0] = [];
        assert_eq!(look(&[("old", "Preempt", "Drained")]), none, "before this operator led");
        assert_eq!(
            look(&[("old", "Preempt", "Drained"), ("a", "Preempt", "Noticed"), ("b", "Preempt", "Draining")]),
            none
        );
        assert_eq!(look(&[("a", "Preempt", "Drained"), ("b", "Preempt", "Draining")]), ["Drained"]);
        assert_eq!(look(&[("a", "Preempt", "Drained")]), ["Gone"], "b went in mid-drain");
        assert_eq!(look(&[]), none, "a was told");
        assert_eq!(look(&[("c", "Preempt", "Noticed"), ("d", "Reboot", "Drained")]), none);
        assert_eq!(look(&[("c", "Preempt", "Cancelled")]), none);
        assert_eq!(look(&[("e", "Preempt", "Incomplete")]), ["Incomplete"], "it was fast");
    }
}
