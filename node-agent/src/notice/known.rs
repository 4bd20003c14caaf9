//! One event of this VM: what was said of it, and how far the response to it is.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::{Doomed, Phase, Source};
use spotpool_crds::spot_pool::{EventResponse, Events};

use super::{ASSUMED_LEAD, Decision, HINT_LASTS, Notice, OVER_AFTER, SPARED_AFTER, Vm, response, weight};
use crate::document::{Event, Kind};
use crate::npd::Claim;
use crate::time::{earlier, later};

/// An event of this VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Known {
    pub kind: Kind,
    pub source: Source,
    pub standing: Standing,
    first_seen: Timestamp,
    /// The newest word on when Azure acts at the earliest.
    said: Option<Timestamp>,
    started: bool,
    resources: BTreeSet<String>,
    pub acknowledged: bool,
    pub begun: Option<Begun>,
    pub told: Told,
}

/// What has been told of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Nothing,
    /// That it was met.
    Met,
    /// That it is gone because its time had come.
    Passed,
}

/// Who speaks of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It was read from the Node at start-up, and nobody has said it since.
    Hearsay,
    /// Somebody says it.
    InForce,
    /// Nobody says it any more, since then.
    Gone(Timestamp),
}

/// A response that has begun. What the policy said then holds to its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Begun {
    at: Timestamp,
    response: EventResponse,
    acknowledge: bool,
    /// Unknown if an earlier agent began it.
    lead: Option<Duration>,
    boot_id: String,
    not_before: Option<Timestamp>,
    deadline: Timestamp,
}

/// Whether an event has ended.
pub enum End {
    /// No.
    Not,
    /// Its time had come, and the VM may be about to go: look again then.
    Perhaps(Timestamp),
    /// Yes.
    Now(Phase),
}

impl Known {
    fn new(kind: Kind, source: Source, now: Timestamp) -> Self {
        Self {
            kind,
            source,
            standing: Standing::InForce,
            first_seen: now,
            said: None,
            started: false,
            resources: BTreeSet::new(),
            acknowledged: false,
            begun: None,
            told: Told::Nothing,
        }
    }

    /// As a document says it.
    pub fn said(event: &Event, now: Timestamp) -> Self {
        Self {
            said: event.not_before,
            started: event.started,
            resources: event.resources.iter().cloned().collect(),
            ..Self::new(event.kind.clone(), Source::Imds, now)
        }
    }

    /// As the node problem detector says it.
    pub fn claimed(claim: &Claim, now: Timestamp) -> Self {
        Self {
            said: claim.not_before,
            started: claim.started,
            ..Self::new(claim.kind.clone(), Source::NodeProblemDetector, now)
        }
    }

    /// As an earlier agent wrote it on the Node.
    pub fn written(notice: &EvictionNotice) -> Self {
        let begun = Begun {
            at: notice.observed_at,
            response: notice.response,
            acknowledge: false,
            lead: None,
            boot_id: notice.boot_id.clone(),
            not_before: notice.not_before,
            deadline: notice.deadline,
        };
        Self {
            standing: Standing::Hearsay,
            said: notice.not_before,
            started: notice.not_before.is_none(),
            begun: Some(begun),
            ..Self::new(Kind::read(&notice.event_type), notice.source, notice.observed_at)
        }
    }

    /// The same event stands twice in one document: what is worse of both holds.
    pub fn join(&mut self, other: &Self) {
        self.kind = self.kind.clone().min(other.kind.clone());
        self.started |= other.started;
        self.said = sooner(self.said, other.said);
        self.resources.extend(other.resources.iter().cloned());
    }

    /// A document names it again.
    pub fn renew(&mut self, news: Self) {
        if self.is_gone() {
            *self = news;
            return;
        }
        self.kind = self.kind.clone().min(news.kind);
        self.started |= news.started;
        (self.said, self.resources) = (news.said, news.resources);
        (self.source, self.standing) = (news.source, news.standing);
    }

    /// The node problem detector says it, too.
    pub fn confirm(&mut self, claim: &Claim) {
        if !self.is_gone() {
            self.started |= claim.started;
            self.said = sooner(self.said, claim.not_before);
            self.standing = Standing::InForce;
        }
    }

    /// Whether somebody says it now.
    pub fn is_met(&self) -> bool {
        self.standing == Standing::InForce
    }

    /// Whether somebody did, and nobody does now.
    pub fn is_gone(&self) -> bool {
        matches!(self.standing, Standing::Gone(_))
    }

    /// Nobody says it any more.
    pub fn vanish(&mut self, now: Timestamp) {
        if !self.is_gone() {
            self.standing = Standing::Gone(now);
        }
    }

    pub fn observed_at(&self) -> Option<Timestamp> {
        self.begun.as_ref().map(|begun| begun.at)
    }

    /// When the response to it begins by this policy.
    fn begins(&self, lead: Duration) -> Timestamp {
        match self.said {
            Some(time) if self.kind.is_planned() && !self.started => earlier(time, lead),
            _ => self.first_seen,
        }
    }

    pub fn tell(&self, id: &str, policy: &Events) -> Decision {
        Decision::Tell {
            event_id: id.to_owned(),
            kind: self.kind.clone(),
            response: response(policy, &self.kind),
            begins: self.begins(policy.lead_time.into()),
        }
    }

    /// Begins the response if it is time, and follows what is said since. Gives back when it begins if later.
    pub fn begin(&mut self, vm: &Vm<'_>, now: Timestamp) -> Option<Timestamp> {
        if !self.is_met() {
            return None;
        }
        let lead: Duration = vm.policy.lead_time.into();
        let due = self.due(now);
        let not_before = self.said.filter(|_| !self.started);
        let Some(begun) = &mut self.begun else {
            let response = response(vm.policy, &self.kind);
            // A planned event that is ignored leaves no trace; that the VM goes, or may go, the operator must know.
            let is_ours = match &self.kind {
                Kind::Preempt | Kind::Rebalance => true,
                Kind::Other(_) => false,
                _ => response != EventResponse::Ignore,
            };
            if !is_ours {
                return None;
            }
            let begins = self.begins(lead);
            if now < begins {
                return Some(begins);
            }
            self.begun = Some(Begun {
                at: now,
                response,
                acknowledge: may_be_acknowledged(&self.kind, vm.policy, response),
                lead: Some(lead),
                boot_id: vm.boot_id.to_owned(),
                not_before,
                deadline: due.unwrap_or_else(|| later(now, self.assumed())),
            });
            return None;
        };
        // Earlier wins; one without a date does not move with the clock.
        begun.deadline = due.map_or(begun.deadline, |due| due.min(begun.deadline));
        begun.not_before = sooner(begun.not_before, not_before).filter(|_| !self.started);
        if begun.lead.is_none() {
            begun.acknowledge = may_be_acknowledged(&self.kind, vm.policy, begun.response);
        }
        let lead = lead.max(*begun.lead.get_or_insert(lead));
        // Put off to a time so far ahead that the node has something to do until then.
        let begins = self.begins(lead);
        if now < begins && !self.acknowledged {
            self.begun = None;
            return Some(begins);
        }
        None
    }

    /// When it happens: never before now, now if it has started; unknown if nobody says.
    fn due(&self, now: Timestamp) -> Option<Timestamp> {
        if self.started {
            return Some(now);
        }
        match self.said {
            // Nothing happens at the time of a hint that lies in the past.
            Some(time) if self.kind == Kind::Rebalance => Some(time).filter(|time| *time > now),
            said => said.map(|time| time.max(now)),
        }
    }

    fn assumed(&self) -> Duration {
        if self.kind == Kind::Rebalance { HINT_LASTS } else { ASSUMED_LEAD }
    }

    /// Whether it has ended.
    pub fn end(&self, vm: &Vm<'_>, now: Timestamp) -> End {
        let Standing::Gone(gone) = self.standing else { return End::Not };
        let Some(begun) = &self.begun else { return End::Now(Phase::Cancelled) };
        let has_rebooted = ![begun.boot_id.as_str(), ""].contains(&vm.boot_id) && !begun.boot_id.is_empty();
        let is_due = self.started || self.acknowledged || gone >= begun.not_before.unwrap_or(begun.deadline);
        let lives_on = match &self.kind {
            _ if has_rebooted => return End::Now(Phase::Over),
            Kind::Rebalance => return End::Now(Phase::Over),
            _ if !is_due => return End::Now(Phase::Cancelled),
            Kind::Freeze => return End::Now(Phase::Over),
            Kind::Preempt => SPARED_AFTER,
            _ => OVER_AFTER,
        };
        // Silence proves nothing. Where only the detector spoke, it is the detector who says that it is gone.
        let heard = match self.source {
            Source::Imds => vm.hearing.heard_at,
            Source::NodeProblemDetector => Some(now),
        };
        let over = later(gone, lives_on);
        if heard.is_some_and(|heard| heard >= over) { End::Now(Phase::Over) } else { End::Perhaps(over) }
    }

    /// Order of urgency, most urgent first. `last` is the one that was so until now.
    pub fn urgency<'a>(&self, id: &'a str, last: Option<&str>) -> impl Ord + use<'a> {
        let begun = self.begun.as_ref();
        (
            self.kind != Kind::Preempt,
            !self.is_met(),
            begun.map(|begun| weight(begun.response)),
            begun.map(|begun| begun.deadline),
            !self.started,
            begun.and_then(|begun| begun.not_before),
            last != Some(id),
            id,
        )
    }

    /// As the notice that the VM is under; none while the response has not begun.
    pub fn notice(&self, id: &str, doomed: &[Doomed]) -> Option<Notice> {
        let begun = self.begun.as_ref()?;
        Some(Notice {
            event_id: id.to_owned(),
            kind: self.kind.clone(),
            source: self.source,
            response: begun.response,
            acknowledge: begun.acknowledge,
            observed_at: begun.at,
            not_before: begun.not_before,
            started: self.started,
            deadline: begun.deadline,
            boot_id: begun.boot_id.clone(),
            resources: self.resources.clone(),
            doomed: doomed.to_vec(),
        })
    }
}

/// Whether Azure may be told to go ahead: only with what people wait for, and drain for.
fn may_be_acknowledged(kind: &Kind, policy: &Events, response: EventResponse) -> bool {
    policy.acknowledge && kind.is_planned() && response == EventResponse::Drain
}

fn sooner(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
