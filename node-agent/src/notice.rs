//! What a document means for this VM. Pure: `(document, seen, identity, now)` in, decisions out.
//!
//! It looks at what a document says, not at how it differs from the last one, so a document that repeats
//! changes nothing and the order of events is irrelevant. Only Preempt is acted upon; other events are told
//! once and left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::eviction::Doomed;
use spotpool_crds::{EvictionNotice, ProviderId};

use crate::document::{Document, Event, Kind};

/// How long a VM is taken to live that will be preempted nobody says when. Azure promises 30 s and often
/// gives less than 10.
pub const ASSUMED_LEAD: Duration = Duration::from_secs(10);

/// The event that this VM is under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Azure's `EventId`.
    pub event_id: String,
    /// When it was first seen.
    pub observed_at: Timestamp,
    /// When Azure acts at the earliest, as announced; absent once started.
    pub not_before: Option<Timestamp>,
    /// Whether Azure has begun.
    pub started: bool,
    /// When the drain must be over. It only ever comes nearer.
    pub deadline: Timestamp,
    /// Every Preempt of the document and the VMs of this scale set that it names.
    pub doomed: Vec<Doomed>,
}

/// What to do about a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This VM is under notice: cordon and drain.
    Begin(Notice),
    /// The same, with changes: nearer, started, or other VMs doomed.
    Change(Notice),
    /// Azure took the event back before it began: give the node back.
    Cancel {
        /// Whose.
        event_id: String,
    },
    /// The event is gone because its time had come: nothing more to do.
    Pass {
        /// Whose.
        event_id: String,
    },
    /// An event of this VM that is not acted upon. Told once.
    Leave {
        /// Whose.
        event_id: String,
        /// What it is.
        kind: Kind,
    },
}

/// What earlier documents said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    incarnation: Option<i64>,
    current: Option<Current>,
    left: BTreeSet<(String, Kind)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Current {
    notice: Notice,
    /// Read from the Node at start-up and not yet met in a document.
    is_hearsay: bool,
    /// The node has booted since: an event that is gone is over, whatever its time.
    has_rebooted: bool,
    /// Gone when its time had come.
    has_passed: bool,
}

impl Seen {
    /// Goes on from what an earlier agent wrote on the Node. Whether it still holds, the first document says.
    pub fn resuming(notice: &EvictionNotice, has_rebooted: bool) -> Self {
        let notice = Notice {
            event_id: notice.event_id.clone(),
            observed_at: notice.observed_at,
            not_before: notice.not_before,
            started: notice.not_before.is_none(),
            deadline: notice.deadline,
            doomed: notice.doomed.clone(),
        };
        let current = Current { notice, is_hearsay: true, has_rebooted, has_passed: false };
        Self { current: Some(current), ..Self::default() }
    }

    /// Whether this VM is, or may be, under notice.
    pub fn is_noticed(&self) -> bool {
        self.current.is_some()
    }

    /// Decides about `document`.
    pub fn read(&mut self, document: &Document, identity: &ProviderId, now: Timestamp) -> Vec<Decision> {
        // An older incarnation, or none, comes from a metadata service that starts over: what it does not
        // name may only not have been named yet.
        let is_newer = match (document.incarnation, self.incarnation) {
            (_, None) => true,
            (Some(this), Some(last)) => this > last,
            (None, Some(_)) => false,
        };
        let knows_all = is_newer && !document.has_nameless;
        self.incarnation = document.incarnation.or(self.incarnation);

        let name = identity.imds_name();
        let is_ours = |event: &&Event| event.resources.iter().any(|vm| vm.eq_ignore_ascii_case(&name));
        let ours = || document.events.iter().filter(is_ours);
        let preempts = || ours().filter(|event| event.kind == Kind::Preempt);
        let urgency = |event: &&Event| (due(event, now), !event.started, event.not_before, event.id.clone());
        let most_urgent = preempts().min_by_key(urgency);

        let mut decisions = self.leave(ours());
        let known = self.current.take().filter(|current| most_urgent.is_none() || !current.has_passed);
        let doomed = doomed(document, identity, known.as_ref().filter(|_| !knows_all));
        self.current = match (known, most_urgent) {
            (None, None) => None,
            (None, Some(event)) => {
                let notice = fresh(event, doomed, now);
                decisions.push(Decision::Begin(notice.clone()));
                Some(Current::met(notice))
            }
            (Some(known), Some(event)) => {
                let last = known.notice;
                // Its first event counts until it is gone, or another is sooner.
                let same = preempts().filter(|event| event.id == last.event_id).min_by_key(urgency);
                let event =
                    same.filter(|same| due(same, now).min(last.deadline) <= due(event, now)).unwrap_or(event);
                let notice = match same {
                    Some(_) => nearer(&last, event, doomed, now),
                    None => fresh(event, doomed, now),
                };
                if known.is_hearsay {
                    decisions.push(Decision::Begin(notice.clone()));
                } else if notice != last {
                    decisions.push(Decision::Change(notice.clone()));
                }
                Some(Current::met(notice))
            }
            (Some(known), None) if known.has_passed || !knows_all || is_unreadable(document, &known) => {
                Some(known)
            }
            (Some(known), None) => {
                let event_id = known.notice.event_id.clone();
                let is_due =
                    known.notice.started || now >= known.notice.not_before.unwrap_or(known.notice.deadline);
                if is_due && !known.has_rebooted {
                    decisions.push(Decision::Pass { event_id });
                    Some(Current { has_passed: true, ..known })
                } else {
                    decisions.push(Decision::Cancel { event_id });
                    None
                }
            }
        };
        decisions
    }

    /// Tells each event of this VM that is not acted upon once.
    fn leave<'a>(&mut self, ours: impl Iterator<Item = &'a Event>) -> Vec<Decision> {
        let others: BTreeSet<(String, Kind)> = ours
            .filter(|event| event.kind != Kind::Preempt)
            .map(|event| (event.id.clone(), event.kind.clone()))
            .collect();
        let told = std::mem::replace(&mut self.left, others.clone());
        others
            .into_iter()
            .filter(|event| !told.contains(event))
            .map(|(event_id, kind)| Decision::Leave { event_id, kind })
            .collect()
    }
}

impl Current {
    fn met(notice: Notice) -> Self {
        Self { notice, is_hearsay: false, has_rebooted: false, has_passed: false }
    }
}

/// The event stands in the document, but what it says cannot be read: it is not gone.
fn is_unreadable(document: &Document, known: &Current) -> bool {
    document.events.iter().any(|event| event.id == known.notice.event_id && event.resources.is_empty())
}

fn fresh(event: &Event, doomed: Vec<Doomed>, now: Timestamp) -> Notice {
    Notice {
        event_id: event.id.clone(),
        observed_at: now,
        not_before: event.not_before,
        started: event.started,
        deadline: due(event, now),
        doomed,
    }
}

/// The notice as `event`, a newer word on it or a more urgent event, changes it: earlier wins.
fn nearer(last: &Notice, event: &Event, doomed: Vec<Doomed>, now: Timestamp) -> Notice {
    let is_same = event.id == last.event_id;
    let started = event.started || (is_same && last.started);
    let announced = match (event.not_before, last.not_before.filter(|_| is_same)) {
        (Some(this), Some(last)) => Some(this.min(last)),
        (this, last) => this.or(last),
    };
    // A date that nobody gives does not move with the clock.
    let is_vague = is_same && !event.started && event.not_before.is_none();
    Notice {
        event_id: event.id.clone(),
        observed_at: last.observed_at,
        not_before: announced.filter(|_| !started),
        started,
        deadline: if is_vague { last.deadline } else { last.deadline.min(due(event, now)) },
        doomed,
    }
}

/// When the VM goes: never before now, now if it has started, soon if nobody says.
fn due(event: &Event, now: Timestamp) -> Timestamp {
    if event.started {
        return now;
    }
    match event.not_before {
        Some(time) => time.max(now),
        None => SignedDuration::try_from(ASSUMED_LEAD)
            .ok()
            .and_then(|lead| now.checked_add(lead).ok())
            .unwrap_or(now),
    }
}

/// The VMs of this scale set that Preempts name. What `known` named stays where the document may not be whole.
fn doomed(document: &Document, identity: &ProviderId, known: Option<&Current>) -> Vec<Doomed> {
    let mut named: BTreeMap<&str, (Option<Timestamp>, BTreeSet<u64>)> = BTreeMap::new();
    for event in document.events.iter().filter(|event| event.kind == Kind::Preempt) {
        let instances: BTreeSet<u64> = event.resources.iter().filter_map(|vm| identity.sibling(vm)).collect();
        if !instances.is_empty() {
            let entry = named.entry(&event.id).or_insert_with(|| (event.not_before, BTreeSet::new()));
            entry.0 = entry.0.min(event.not_before);
            entry.1.extend(instances);
        }
    }
    let mut doomed: BTreeMap<&str, Doomed> = named
        .into_iter()
        .map(|(id, (not_before, instances))| {
            let instances = instances.into_iter().collect();
            (id, Doomed { event_id: id.to_owned(), not_before, instances })
        })
        .collect();
    for known in known.into_iter().flat_map(|known| &known.notice.doomed) {
        doomed.entry(&known.event_id).or_insert_with(|| known.clone());
    }
    doomed.into_values().collect()
}

#[cfg(test)]
mod tests;
