//! The scheduled events document of one scale set, and the life of the events in it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::{Map, Value, json};

use crate::api::{EventRequest, EventState};
use crate::model::later;

/// An event in the document.
#[derive(Debug, Clone)]
struct Event {
    state: EventState,
    instances: Vec<u64>,
    not_before_text: Option<String>,
    description: String,
    source: String,
    duration_seconds: i64,
    struck: bool,
}

impl Event {
    /// Whether its machines are gone once it has started.
    fn takes_machines(&self) -> bool {
        matches!(self.state.event_type.as_str(), "Preempt" | "Terminate")
    }
}

/// The document that every machine of a scale set is shown.
#[derive(Debug, Clone, Default)]
pub struct Document {
    incarnation: u64,
    current: Vec<Event>,
    past: Vec<EventState>,
}

/// What events have done to machines: instance ids, with the time of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blows {
    /// They are gone.
    pub killed: Vec<(u64, Timestamp)>,
    /// They have booted again.
    pub rebooted: Vec<(u64, Timestamp)>,
}

/// One event to be: its machines as (instance id, VM name, node name).
#[derive(Debug, Clone)]
pub struct Draft {
    /// GUID in capitals.
    pub event_id: String,
    /// Agent pool.
    pub pool: String,
    /// Instance id, VM name and node name of each machine.
    pub machines: Vec<(u64, String, String)>,
}

impl Document {
    /// `DocumentIncarnation`.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Events that are in the document and that have been, oldest first.
    pub fn states(&self) -> impl Iterator<Item = &EventState> {
        self.past.iter().chain(self.current.iter().map(|event| &event.state))
    }

    /// The event of that id, if it is in the document.
    pub fn current(&self, event_id: &str) -> Option<&EventState> {
        self.current
            .iter()
            .map(|event| &event.state)
            .find(|event| event.event_id.eq_ignore_ascii_case(event_id))
    }

    /// Whether an event that takes machines names this one.
    pub fn dooms(&self, instance: u64) -> bool {
        self.current.iter().any(|event| event.takes_machines() && event.instances.contains(&instance))
    }

    /// Puts events in, all in one change.
    pub fn add(&mut self, drafts: Vec<Draft>, request: &EventRequest, now: Timestamp) -> Vec<EventState> {
        let not_before = later(now, request.notice);
        let mut added = Vec::new();
        for draft in drafts {
            let state = EventState {
                event_id: draft.event_id,
                event_type: request.event_type.clone(),
                status: request.status.clone(),
                pool: draft.pool,
                resources: draft.machines.iter().map(|machine| machine.1.clone()).collect(),
                nodes: draft.machines.iter().map(|machine| machine.2.clone()).collect(),
                scheduled_at: now,
                not_before,
                started_at: (request.status == "Started").then_some(now),
                ended_at: None,
                told_at: BTreeMap::new(),
            };
            added.push(state.clone());
            self.current.push(Event {
                state,
                instances: draft.machines.iter().map(|machine| machine.0).collect(),
                not_before_text: request.not_before_text.clone(),
                description: request.description.clone(),
                source: request.event_source.clone(),
                duration_seconds: request.duration_seconds,
                struck: false,
            });
        }
        if !added.is_empty() {
            self.incarnation += 1;
        }
        added
    }

    /// Takes an event out before it has started; false when it is not there or has started.
    pub fn cancel(&mut self, event_id: &str, now: Timestamp) -> bool {
        let Some(place) = self.current.iter().position(|event| {
            event.state.event_id.eq_ignore_ascii_case(event_id) && event.state.started_at.is_none()
        }) else {
            return false;
        };
        self.retire(place, "Cancelled", now);
        self.incarnation += 1;
        true
    }

    /// The owner of a machine agrees that the event may begin now.
    pub fn approve(&mut self, event_id: &str, now: Timestamp) {
        for event in &mut self.current {
            // Whether approval hastens a Preempt is not documented; here it does not.
            if event.state.event_id.eq_ignore_ascii_case(event_id) && event.state.event_type != "Preempt" {
                event.state.not_before = event.state.not_before.min(now);
            }
        }
    }

    /// A machine is gone for another reason: events that name nothing else go with it.
    pub fn forget(&mut self, instance: u64, exists: impl Fn(u64) -> bool, now: Timestamp) {
        let mut changed = false;
        while let Some(place) = self.current.iter().position(|event| {
            !event.struck
                && event.instances.contains(&instance)
                && !event.instances.iter().any(|&other| other != instance && exists(other))
        }) {
            self.retire(place, "Done", now);
            changed = true;
        }
        self.incarnation += u64::from(changed);
    }

    /// Moves events on; answers what they have done to machines by it.
    pub fn advance(&mut self, now: Timestamp, kill_after: Duration, started_for: Duration) -> Blows {
        let mut started = false;
        let mut blows = Blows::default();
        for event in &mut self.current {
            if event.state.status == "Scheduled" && event.state.not_before <= now {
                event.state.status = "Started".into();
                event.state.started_at = Some(event.state.not_before);
                started = true;
            }
            if let Some(began) = event.state.started_at
                && event.takes_machines()
                && !event.struck
                && later(began, kill_after) <= now
            {
                event.struck = true;
                blows
                    .killed
                    .extend(event.instances.iter().map(|&instance| (instance, later(began, kill_after))));
            }
        }
        self.incarnation += u64::from(started);
        let mut ended = false;
        while let Some(place) = self
            .current
            .iter()
            .position(|event| ends(event, kill_after, started_for).is_some_and(|at| at <= now))
        {
            let event = &self.current[place];
            let at = ends(event, kill_after, started_for).unwrap_or(now);
            if matches!(event.state.event_type.as_str(), "Reboot" | "Redeploy") {
                blows.rebooted.extend(event.instances.iter().map(|&instance| (instance, at)));
            }
            self.retire(place, "Done", at);
            ended = true;
        }
        self.incarnation += u64::from(ended);
        blows
    }

    /// When something happens next.
    pub fn due(&self, kill_after: Duration, started_for: Duration) -> Option<Timestamp> {
        self.current
            .iter()
            .filter_map(|event| {
                if event.state.status == "Scheduled" {
                    return Some(event.state.not_before);
                }
                let kill = event
                    .state
                    .started_at
                    .filter(|_| event.takes_machines() && !event.struck)
                    .map(|began| later(began, kill_after));
                [kill, ends(event, kill_after, started_for)].into_iter().flatten().min()
            })
            .min()
    }

    /// A machine is being answered with the document.
    pub fn told(&mut self, node: &str, now: Timestamp) {
        for event in &mut self.current {
            if !event.state.told_at.contains_key(node) {
                event.state.told_at.insert(node.to_owned(), now);
            }
        }
    }

    /// The document as a machine reads it.
    pub fn json(&self, version: &str) -> Value {
        let events: Vec<Value> = self.current.iter().map(|event| render(event, version)).collect();
        json!({"DocumentIncarnation": self.incarnation, "Events": events})
    }

    fn retire(&mut self, place: usize, status: &str, at: Timestamp) {
        let mut event = self.current.remove(place);
        event.state.status = status.into();
        event.state.ended_at = Some(at);
        self.past.push(event.state);
    }
}

fn ends(event: &Event, kill_after: Duration, started_for: Duration) -> Option<Timestamp> {
    let lasts = if event.takes_machines() { started_for.max(kill_after) } else { started_for };
    event.state.started_at.map(|began| later(began, lasts))
}

fn render(event: &Event, version: &str) -> Value {
    let not_before = if event.state.status == "Started" {
        String::new()
    } else {
        event.not_before_text.clone().unwrap_or_else(|| rfc1123(event.state.not_before))
    };
    let mut fields = Map::from_iter([
        ("EventId".into(), json!(event.state.event_id)),
        ("EventStatus".into(), json!(event.state.status)),
        ("EventType".into(), json!(event.state.event_type)),
        ("ResourceType".into(), json!("VirtualMachine")),
        ("Resources".into(), json!(event.state.resources)),
        ("NotBefore".into(), json!(not_before)),
    ]);
    if version >= "2019-04-01" {
        fields.insert("Description".into(), json!(event.description));
    }
    if version >= "2019-08-01" {
        fields.insert("EventSource".into(), json!(event.source));
    }
    if version >= "2020-07-01" {
        fields.insert("DurationInSeconds".into(), json!(event.duration_seconds));
    }
    Value::Object(fields)
}

/// `Tue, 09 Aug 2022 17:07:32 GMT`.
pub fn rfc1123(at: Timestamp) -> String {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap_or_default()
}
