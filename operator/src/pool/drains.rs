//! Nodes whose VM is taken, and how their drains end, each told once: how many of them end in time.

use std::collections::BTreeMap;

use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{PREEMPT, Phase};
use spotpool_crds::spot_pool::{self, EventResponse};

/// The notices that were seen at the last look, by node and event, and whether there is nothing more to tell of them.
#[derive(Default)]
pub(super) struct Drains(Option<BTreeMap<(String, String), bool>>);

/// What is new since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Nodes whose VM is going to be taken, once for each event.
    pub noticed: Vec<String>,
    /// Ends: `Drained`, `Incomplete`, or `Gone` where the node was gone before either was said.
    pub ended: Vec<&'static str>,
}

impl News {
    /// Adds the ends.
    pub fn add_to(&self, drains: &mut spot_pool::Drains) {
        for end in &self.ended {
            let count = if *end == "Drained" { &mut drains.in_time } else { &mut drains.late };
            *count = count.saturating_add(1);
        }
    }
}

impl Drains {
    /// What is new. What was there when it is first looked is not told: whoever led before has.
    pub fn look<'a>(&mut self, notices: impl Iterator<Item = (String, &'a EvictionNotice)>) -> News {
        let is_first = self.0.is_none();
        let mut before = self.0.take().unwrap_or_default();
        let mut now = BTreeMap::new();
        let mut news = News::default();
        for (node, notice) in notices {
            if notice.event_type != PREEMPT || matches!(notice.phase, Phase::Cancelled | Phase::Over) {
                before.remove(&(node, notice.event_id.clone()));
                continue;
            }
            let key = (node, notice.event_id.clone());
            let told = before.remove(&key);
            if told.is_none() && !is_first {
                news.noticed.push(key.0.clone());
            }
            let end = match notice.phase {
                Phase::Drained => Some("Drained"),
                Phase::Incomplete => Some("Incomplete"),
                _ => None,
            };
            let is_drain = notice.response == EventResponse::Drain;
            news.ended.extend(end.filter(|_| is_drain && told != Some(true) && !is_first));
            now.insert(key, end.is_some() || !is_drain);
        }
        let cut_short = before.values().filter(|told| !**told).count();
        news.ended.extend(std::iter::repeat_n("Gone", cut_short));
        self.0 = Some(now);
        news
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
        let (mut drains, mut noticed) = (Drains::default(), Vec::new());
        let mut look = |seen: &[(&str, &str, &str)]| {
            let notices: Vec<_> = seen
                .iter()
                .map(|(node, kind, phase)| ((*node).to_owned(), notice("E", kind, phase)))
                .collect();
            let news = drains.look(notices.iter().map(|(node, notice)| (node.clone(), notice)));
            noticed.extend(news.noticed);
            news.ended
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
        let news = News { noticed: Vec::new(), ended: vec!["Drained", "Gone", "Incomplete", "Drained"] };
        let mut sums = spot_pool::Drains { in_time: 1, late: 0 };
        news.add_to(&mut sums);
        assert_eq!(sums, spot_pool::Drains { in_time: 3, late: 2 });
        assert_eq!(noticed, ["a", "b", "c", "e"], "each once, and none from before this operator led");
    }
}
