//! What documents, and AKS's node problem detector, mean for this VM. Pure: what they said, the policy, the VM and
//! the time in, decisions out, and when to look again though nothing happens.
//!
//! It looks at what is said, not at how that differs from the last time, so a document that repeats changes
//! nothing and the order of events is irrelevant.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::eviction::{Doomed, Phase, Source};
use spotpool_crds::spot_pool::{EventResponse, Events};
use spotpool_crds::{EvictionNotice, ProviderId};

use crate::document::{Document, Event, Kind};
use crate::npd::{Claim, Hearing, Worth};
use crate::time::later;
use known::{Known, Standing, Told};

mod known;

/// How long a VM is taken to live to which something happens nobody says when. Azure promises 30 s before a
/// Preempt and often gives less than 10.
pub const ASSUMED_LEAD: Duration = Duration::from_secs(10);
/// A hint to move away that names no time to come holds this long: Azure speaks of 30 s to 15 min.
pub const HINT_LASTS: Duration = Duration::from_mins(15);
/// A VM that lives on this long after a Preempt was due, and that no document names any more, was spared.
pub const SPARED_AFTER: Duration = Duration::from_mins(10);
/// The same after a Reboot, Redeploy or Terminate was due: it happened without a trace, or not at all.
pub const OVER_AFTER: Duration = Duration::from_mins(1);
/// While it must be seen whether the metadata service answers again, this often.
const GLANCE: Duration = Duration::from_secs(1);

/// The event that this VM is under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// Azure's `EventId`.
    pub event_id: String,
    /// What will happen.
    pub kind: Kind,
    /// Who says so; the metadata service before the detector.
    pub source: Source,
    /// What is done about it.
    pub response: EventResponse,
    /// Whether Azure is told to go ahead once every VM that it names is drained.
    pub acknowledge: bool,
    /// When the response to it began; for a Preempt or a hint that is when it was first seen.
    pub observed_at: Timestamp,
    /// When Azure acts at the earliest, as announced; absent once started.
    pub not_before: Option<Timestamp>,
    /// Whether Azure has begun.
    pub started: bool,
    /// When the drain must be over. It only ever comes nearer.
    pub deadline: Timestamp,
    /// Boot of the node when the response began.
    pub boot_id: String,
    /// Every VM that it names.
    pub resources: BTreeSet<String>,
    /// Every Preempt of the document and the VMs of this scale set that it names.
    pub doomed: Vec<Doomed>,
}

impl Notice {
    /// Whether this must not wait for the next agent: the VM goes, or something happens to it within a minute.
    pub fn is_urgent(&self, now: Timestamp) -> bool {
        let drains = self.response == EventResponse::Drain;
        let is_near = self.kind.is_planned() && self.deadline < later(now, Duration::from_mins(1));
        drains && (self.kind == Kind::Preempt || is_near)
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// An event of this VM was met for the first time. Told once.
    Tell {
        /// Whose.
        event_id: String,
        /// What it is.
        kind: Kind,
        /// What will be done about it, by the policy of now.
        response: EventResponse,
        /// When that begins.
        begins: Timestamp,
    },
    /// This VM is under notice from now on.
    Begin(Notice),
    /// It still is, with changes: nearer, started, other VMs doomed, or a more urgent event in its place.
    Change(Notice),
    /// The event is gone because its time had come.
    Pass {
        /// Whose.
        event_id: String,
    },
    /// No event is left to act upon: give the node back.
    End {
        /// Whose.
        event_id: String,
        /// `Cancelled`: taken back or put off; `Over`: come and gone.
        phase: Phase,
    },
}

/// What is known of the VM beside events.
#[derive(Clone, Copy, Debug)]
pub struct Vm<'a> {
    /// What to do about events.
    pub policy: &'a Events,
    /// The node's boot.
    pub boot_id: &'a str,
    /// What the node problem detector says.
    pub claims: &'a [Claim],
    /// What the metadata service lets us hear.
    pub hearing: Hearing,
}

/// What was said so far, and what was decided about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    incarnation: Option<i64>,
    events: BTreeMap<String, Known>,
    /// Preempts of the last document in this scale set.
    doomed: Vec<Doomed>,
    /// Events that a document did not name any more; the detector may still speak of them.
    ended: BTreeSet<String>,
    last: Option<Notice>,
    /// Whether [`Decision::Begin`] was said of `last`, or it is only known from the Node.
    has_begun: bool,
}

impl Seen {
    /// Goes on from what an earlier agent wrote on the Node. Whether it still holds, the first document says.
    pub fn resuming(written: &EvictionNotice) -> Self {
        let known = Known::written(written);
        let last = known.notice(&written.event_id, &written.doomed);
        Self {
            events: [(written.event_id.clone(), known)].into(),
            doomed: written.doomed.clone(),
            last,
            ..Self::default()
        }
    }

    /// The event that this VM is, or may be, under.
    pub fn notice(&self) -> Option<&Notice> {
        self.last.as_ref()
    }

    /// Takes `document` in. What follows from it, [`Seen::decide`] says.
    pub fn read(&mut self, document: &Document, identity: &ProviderId, now: Timestamp) {
        // An older incarnation, or none, comes from a metadata service that starts over: what it does not
        // name may only not have been named yet.
        let is_newer = match (document.incarnation, self.incarnation) {
            (_, None) => true,
            (Some(this), Some(last)) => this > last,
            (None, Some(_)) => false,
        };
        let knows_all = is_newer && !document.has_nameless;
        self.incarnation = document.incarnation.or(self.incarnation);
        self.doomed = doomed(document, identity, &self.doomed, knows_all);

        let name = identity.imds_name();
        let is_ours = |event: &&Event| event.resources.iter().any(|vm| vm.eq_ignore_ascii_case(&name));
        let mut named: BTreeMap<&str, Known> = BTreeMap::new();
        for event in document.events.iter().filter(is_ours) {
            let news = Known::said(event, now);
            named.entry(&event.id).and_modify(|known| known.join(&news)).or_insert(news);
        }
        for (id, news) in named {
            self.ended.remove(id);
            match self.events.get_mut(id) {
                Some(known) => known.renew(news),
                None => {
                    self.events.insert(id.to_owned(), news);
                }
            }
        }
        if knows_all {
            // One that cannot be read is not gone.
            let stands = |id: &str| {
                document.events.iter().any(|it| it.id == id && (it.resources.is_empty() || is_ours(&it)))
            };
            for (id, known) in self.events.iter_mut().filter(|(id, _)| !stands(id)) {
                known.vanish(now);
                self.ended.insert(id.clone());
            }
        }
    }

    /// Azure was told to go ahead with this event: when it goes, its time had come.
    pub fn acknowledged(&mut self, event_id: &str) {
        if let Some(known) = self.events.get_mut(event_id) {
            known.acknowledged = true;
        }
    }

    /// Decides what is to be done now, and when to look again.
    pub fn decide(&mut self, vm: &Vm<'_>, now: Timestamp) -> (Vec<Decision>, Option<Timestamp>) {
        let mut decisions = Vec::new();
        let mut look_again = self.listen(vm, now);
        let mut soonest =
            |time: Timestamp| look_again = Some(look_again.map_or(time, |known| known.min(time)));

        let mut ends = BTreeMap::new();
        self.events.retain(|id, known| {
            if let Some(begins) = known.begin(vm, now) {
                soonest(begins);
            }
            if known.is_met() && known.told == Told::Nothing {
                known.told = Told::Met;
                decisions.push(known.tell(id, vm.policy));
            }
            match known.end(vm, now) {
                known::End::Not => true,
                known::End::Perhaps(time) => {
                    if known.told != Told::Passed {
                        known.told = Told::Passed;
                        decisions.push(Decision::Pass { event_id: id.clone() });
                    }
                    // Of what is asked for again and again, nothing is due before the next poll.
                    soonest(time.max(later(now, GLANCE)));
                    true
                }
                known::End::Now(phase) => {
                    ends.insert(id.clone(), phase);
                    false
                }
            }
        });
        decisions.extend(self.follow(&ends));
        (decisions, look_again)
    }

    /// Takes in what the node problem detector says. Gives back when its word may be worth something else.
    fn listen(&mut self, vm: &Vm<'_>, now: Timestamp) -> Option<Timestamp> {
        let mut look_again = None;
        let (mut counts, mut may_count) = (BTreeSet::new(), BTreeSet::new());
        for claim in vm.claims.iter().filter(|claim| !self.ended.contains(&claim.id)) {
            match claim.worth(&vm.hearing, now) {
                Worth::Nothing => {}
                Worth::WaitUntil(time) => {
                    look_again = Some(look_again.map_or(time, |known: Timestamp| known.min(time)));
                    may_count.insert(claim.id.as_str());
                }
                Worth::Counts => {
                    look_again =
                        Some(look_again.map_or(later(now, GLANCE), |known| known.min(later(now, GLANCE))));
                    counts.insert(claim.id.as_str());
                    match self.events.get_mut(&claim.id) {
                        Some(known) => known.confirm(claim),
                        None => {
                            self.events.insert(claim.id.clone(), Known::claimed(claim, now));
                        }
                    }
                }
            }
        }
        for (id, known) in &mut self.events {
            let is_claimed = counts.contains(id.as_str()) || may_count.contains(id.as_str());
            if known.source == Source::NodeProblemDetector && !is_claimed {
                known.vanish(now);
            }
        }
        self.ended.retain(|id| vm.claims.iter().any(|claim| claim.id == *id));
        look_again
    }

    /// From the last notice to the one that holds now. `ends`: events that are over, and how.
    fn follow(&mut self, ends: &BTreeMap<String, Phase>) -> Vec<Decision> {
        let preempts = || {
            let in_force = self.events.values().filter(|known| known.is_met() && known.kind == Kind::Preempt);
            in_force.filter_map(Known::observed_at).min()
        };
        let most_urgent =
            self.events.iter().filter(|(_, known)| known.begun.is_some()).min_by_key(|(id, known)| {
                known.urgency(id.as_str(), self.last.as_ref().map(|last| last.event_id.as_str()))
            });
        let next = most_urgent.and_then(|(id, known)| {
            // What a document no longer names has no news of others either.
            let last = self.last.as_ref().filter(|last| known.is_gone() && last.event_id == *id);
            let mut notice = known.notice(id, last.map_or(&self.doomed, |last| &last.doomed))?;
            if notice.kind == Kind::Preempt {
                // That the VM goes is known since the first of them.
                notice.observed_at =
                    preempts().map_or(notice.observed_at, |first| first.min(notice.observed_at));
            }
            Some((known.standing, notice))
        });
        let last = self.last.take();
        let (decision, has_begun) = match (&last, &next) {
            // Nothing begins for what nobody says now.
            (_, Some((Standing::Hearsay, _))) | (None, None) => (None, false),
            (_, Some((Standing::Gone(_), _))) if !self.has_begun => (None, false),
            (_, Some((_, next))) if !self.has_begun => (Some(Decision::Begin(next.clone())), true),
            (Some(last), Some((_, next))) if next != last => (Some(Decision::Change(next.clone())), true),
            (_, Some(_)) => (None, true),
            (Some(last), None) => {
                let phase = ends.get(&last.event_id).copied().unwrap_or(Phase::Cancelled);
                (Some(Decision::End { event_id: last.event_id.clone(), phase }), false)
            }
        };
        (self.last, self.has_begun) = (next.map(|(_, notice)| notice), has_begun);
        decision.into_iter().collect()
    }
}

/// The response that `policy` wants to events of this type.
fn response(policy: &Events, kind: &Kind) -> EventResponse {
    match kind {
        Kind::Preempt => policy.preempt,
        Kind::Terminate => policy.terminate,
        Kind::Reboot => policy.reboot,
        Kind::Redeploy => policy.redeploy,
        Kind::Freeze => policy.freeze,
        Kind::Rebalance => policy.rebalance,
        Kind::Other(_) => EventResponse::Ignore,
    }
}

/// The VMs of this scale set that Preempts name. What `known` named stays where the document may not be whole.
fn doomed(document: &Document, identity: &ProviderId, known: &[Doomed], knows_all: bool) -> Vec<Doomed> {
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
    let is_unreadable =
        |id: &str| document.events.iter().any(|event| event.id == id && event.resources.is_empty());
    for known in known.iter().filter(|known| !knows_all || is_unreadable(&known.event_id)) {
        doomed.entry(&known.event_id).or_insert_with(|| known.clone());
    }
    doomed.into_values().collect()
}

/// The heavier response first.
fn weight(response: EventResponse) -> Reverse<u8> {
    Reverse(match response {
        EventResponse::Ignore => 0,
        EventResponse::Cordon => 1,
        EventResponse::Drain => 2,
    })
}

#[cfg(test)]
mod tests;
