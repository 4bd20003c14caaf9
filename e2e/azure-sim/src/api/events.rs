//! Scheduled events: what one asks for, and what became of it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::millis;

/// Which machines are meant: some by name, or any of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Targets {
    /// Node or VM names.
    #[serde(default)]
    pub names: Vec<String>,
    /// A pool, of which `count` running machines that no event names yet are taken, lowest id first.
    #[serde(default)]
    pub pool: Option<String>,
    /// How many of the pool; all when absent.
    #[serde(default)]
    pub count: Option<u32>,
}

impl Targets {
    /// Machines by node or VM name.
    pub fn named<S: AsRef<str>>(names: &[S]) -> Self {
        Self { names: names.iter().map(|name| name.as_ref().to_owned()).collect(), ..Self::default() }
    }

    /// That many machines of a pool.
    pub fn of_pool(pool: &str, count: u32) -> Self {
        Self { pool: Some(pool.into()), count: Some(count), ..Self::default() }
    }
}

/// An event to put in the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventRequest {
    /// `Preempt`, `Freeze`, `Reboot`, `Redeploy`, `Terminate` or anything else.
    pub event_type: String,
    /// `Scheduled` runs its course; `Started` has begun already; anything else stays until cancelled.
    #[serde(default = "scheduled")]
    pub status: String,
    /// Which machines. One event each, all in one change of the document, unless `together`.
    pub targets: Targets,
    /// One event that names every machine (of a scale set).
    #[serde(default)]
    pub together: bool,
    /// From now to `NotBefore`.
    #[serde(rename = "noticeMs", alias = "notice", with = "millis", default)]
    pub notice: Duration,
    /// `NotBefore` as it should read, if not RFC 1123 of the true time.
    #[serde(default)]
    pub not_before_text: Option<String>,
    /// `Description`.
    #[serde(default)]
    pub description: String,
    /// `EventSource`.
    #[serde(default = "platform")]
    pub event_source: String,
    /// `DurationInSeconds`.
    #[serde(default = "unknown_duration")]
    pub duration_seconds: i64,
}

fn scheduled() -> String {
    "Scheduled".into()
}

fn platform() -> String {
    "Platform".into()
}

fn unknown_duration() -> i64 {
    -1
}

impl EventRequest {
    /// An event of that type with everything else as Azure usually says it.
    pub fn new(event_type: &str, targets: Targets, notice: Duration) -> Self {
        Self {
            event_type: event_type.into(),
            status: scheduled(),
            targets,
            together: false,
            notice,
            not_before_text: None,
            description: String::new(),
            event_source: platform(),
            duration_seconds: unknown_duration(),
        }
    }
}

/// One scheduled event, current or past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventState {
    /// GUID in capitals.
    pub event_id: String,
    /// `Preempt`, `Freeze`, … or anything.
    pub event_type: String,
    /// `Scheduled`, `Started` or anything; `Done` or `Cancelled` once it left the document.
    pub status: String,
    /// Agent pool whose scale set's document carries it.
    pub pool: String,
    /// Decimal names.
    pub resources: Vec<String>,
    /// Node names, in the order of `resources`.
    pub nodes: Vec<String>,
    /// When it was put in the document.
    pub scheduled_at: Timestamp,
    /// When it comes due.
    pub not_before: Timestamp,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it left the document.
    pub ended_at: Option<Timestamp>,
    /// When each machine was first answered with it, by node name.
    pub told_at: BTreeMap<String, Timestamp>,
}

/// A `StartRequests` entry that a machine has posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// When.
    pub at: Timestamp,
    /// Node name of the machine whose metadata address it went to.
    pub node: String,
    /// The event it approved.
    pub event_id: String,
    /// Type of that event, if it is in the document.
    pub event_type: Option<String>,
}
