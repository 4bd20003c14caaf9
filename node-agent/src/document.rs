//! Azure's Scheduled Events document, read leniently: each event on its own, so that one that makes no sense
//! hides no other. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use spotpool_drain::kind::{date_of, shortened};

pub use spotpool_drain::kind::Kind;

/// A document, as far as it was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Changes whenever the events do.
    pub incarnation: Option<i64>,
    /// The events that make sense.
    pub events: Vec<Event>,
    /// Whether an event stands in it whose id could not be read: it may be any, so nothing is known to be
    /// gone.
    pub has_nameless: bool,
    /// What was not understood.
    pub oddities: BTreeSet<Oddity>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Azure's `EventId`.
    pub id: String,
    /// What will happen.
    pub kind: Kind,
    /// Whether it happens already.
    pub started: bool,
    /// Names of the VMs that it happens to.
    pub resources: Vec<String>,
    /// When at the earliest; absent once started, or if unreadable.
    pub not_before: Option<Timestamp>,
}

/// Something in a document that was not understood, and did not keep the rest from being understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Oddity {
    /// The document does not say which incarnation it is.
    #[error("DocumentIncarnation is missing or no number")]
    Incarnation,
    /// An event is no object, or lacks what makes it an event.
    #[error("an event cannot be read: {0}")]
    Event(&'static str),
    /// An event's type is not known.
    #[error("unknown EventType `{0}`")]
    Kind(String),
    /// An event's status is not known; it counts as scheduled.
    #[error("unknown EventStatus `{0}`")]
    Status(String),
    /// A date is in no known format.
    #[error("unreadable NotBefore `{0}`")]
    Date(String),
    /// A field is not known.
    #[error("unknown field `{0}`")]
    Field(String),
}

impl Oddity {
    /// As a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Incarnation => "incarnation",
            Self::Event(_) => "event",
            Self::Kind(_) => "type",
            Self::Status(_) => "status",
            Self::Date(_) => "date",
            Self::Field(_) => "field",
        }
    }
}

/// Why something is no Scheduled Events document at all. It says nothing about any VM then; above all it does
/// not say that an event is gone.
#[derive(Debug, thiserror::Error)]
pub enum NotUnderstood {
    /// Nothing came.
    #[error("the document is empty")]
    Empty,
    /// It is no JSON object with a list of `Events`.
    #[error("no Scheduled Events document: {0}")]
    Shape(#[from] serde_json::Error),
}

/// Reads a document.
pub fn parse(body: &[u8]) -> Result<Document, NotUnderstood> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(rename = "DocumentIncarnation", borrow)]
        incarnation: Option<&'a RawValue>,
        #[serde(rename = "Events", borrow)]
        events: Vec<&'a RawValue>,
    }
    if body.trim_ascii().is_empty() {
        return Err(NotUnderstood::Empty);
    }
    let outer: Outer = serde_json::from_slice(body)?;
    let mut document = Document { incarnation: outer.incarnation.and_then(integer), ..Document::default() };
    if document.incarnation.is_none() {
        document.oddities.insert(Oddity::Incarnation);
    }
    for event in outer.events {
        match serde_json::from_str(event.get()) {
            Ok(fields) => document.add(&fields),
            Err(_) => document.skip("it is no object"),
        }
    }
    Ok(document)
}

impl Document {
    fn add(&mut self, fields: &Map<String, Value>) {
        for name in fields.keys() {
            if !KNOWN_FIELDS.contains(&name.as_str()) {
                self.oddities.insert(Oddity::Field(shortened(name)));
            }
        }
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let Some(kind) = text("EventType").map(Kind::read) else {
            // Its id, if it has one, still keeps an event that we know from looking gone.
            return match text("EventId") {
                Some(id) if !id.is_empty() => {
                    self.oddities.insert(Oddity::Event("it has no EventType"));
                    self.push(id, Kind::Other(String::new()), false, Vec::new(), None);
                }
                _ => self.skip("it has no EventType"),
            };
        };
        if let Kind::Other(kind) = &kind {
            self.oddities.insert(Oddity::Kind(kind.clone()));
        }
        let resources = match fields.get("Resources") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(one)) => vec![one.clone()],
            _ => {
                self.oddities.insert(Oddity::Event("it has no Resources"));
                Vec::new()
            }
        };
        let started = match text("EventStatus") {
            Some("Started") => true,
            Some("Scheduled" | "Advisory") => false,
            other => {
                self.oddities.insert(Oddity::Status(shortened(other.unwrap_or_default())));
                false
            }
        };
        let not_before = match fields.get("NotBefore") {
            Some(Value::String(date)) if !date.trim().is_empty() => {
                let read = date_of(date.trim());
                if read.is_none() {
                    self.oddities.insert(Oddity::Date(shortened(date)));
                }
                read
            }
            None | Some(Value::Null | Value::String(_)) => None,
            Some(other) => {
                self.oddities.insert(Oddity::Date(shortened(&other.to_string())));
                None
            }
        };
        let id = text("EventId").filter(|id| !id.is_empty());
        if id.is_none() {
            self.has_nameless = true;
            self.oddities.insert(Oddity::Event("it has no EventId"));
        }
        // A Preempt of this VM is acted upon even if it has no name.
        let not_before = not_before.filter(|_| !started);
        self.push(id.unwrap_or("unnamed"), kind, started, resources, not_before);
    }

    fn push(
        &mut self,
        id: &str,
        kind: Kind,
        started: bool,
        resources: Vec<String>,
        not_before: Option<Timestamp>,
    ) {
        let id = shortened(id);
        self.events.push(Event { id, kind, started, resources, not_before });
    }

    fn skip(&mut self, why: &'static str) {
        self.has_nameless = true;
        self.oddities.insert(Oddity::Event(why));
    }
}

const KNOWN_FIELDS: [&str; 9] = [
    "EventId",
    "EventType",
    "ResourceType",
    "Resources",
    "EventStatus",
    "NotBefore",
    "Description",
    "EventSource",
    "DurationInSeconds",
];

fn integer(raw: &RawValue) -> Option<i64> {
    raw.get().trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_azure_really_sends() {
        let body = br#"{"DocumentIncarnation":1,"Events":[{"EventId":"C1BF8322-4CBF-4FC4-9C45-B40CF3106D0E",
            "EventStatus":"Scheduled","EventType":"Preempt","ResourceType":"VirtualMachine","Resources":["vm-spot"],
            "NotBefore":"Tue, 09 Aug 2022 17:07:32 GMT","Description":"","EventSource":"Platform","DurationInSeconds":-1}]}"#;
        let document = parse(body).unwrap();
        assert_eq!(document.incarnation, Some(1));
        assert!(document.oddities.is_empty() && !document.has_nameless);
        assert_eq!(
            document.events,
            [Event {
                id: "C1BF8322-4CBF-4FC4-9C45-B40CF3106D0E".into(),
                kind: Kind::Preempt,
                started: false,
                resources: vec!["vm-spot".into()],
                not_before: Some(at("2022-08-09T17:07:32Z")),
            }]
        );
        assert_eq!(parse(br#"{"DocumentIncarnation":3,"Events":[]}"#).unwrap().events, []);
    }

    #[test]
    fn reads_the_early_hint() {
        let body = br#"{"DocumentIncarnation":5,"Events":[{"EventId":"R","EventStatus":"Advisory",
            "EventType":"SpotRebalanceRecommendation","ResourceType":"VirtualMachine","Resources":["vm-spot"],
            "NotBefore":"","Description":"","EventSource":"Platform","DurationInSeconds":-1}]}"#;
        let document = parse(body).unwrap();
        assert!(document.oddities.is_empty(), "{:?}", document.oddities);
        assert_eq!((&document.events[0].kind, document.events[0].started), (&Kind::Rebalance, false));
    }

    #[test]
    fn reads_every_date_in_use() {
        for (date, wanted) in [
            (r#""Tue, 09 Aug 2022 17:07:32 GMT""#, Some("2022-08-09T17:07:32Z")),
            (r#""2022-08-09T17:07:32Z""#, Some("2022-08-09T17:07:32Z")),
            (r#""2022-08-09T17:07:32.5+02:00""#, Some("2022-08-09T15:07:32.5Z")),
            (r#""2022-08-09T17:07:32.123456""#, Some("2022-08-09T17:07:32.123456Z")),
            (r#""""#, None),
            ("null", None),
            (r#""tomorrow""#, None),
            ("17", None),
        ] {
            let body = format!(
                r#"{{"DocumentIncarnation":1,"Events":[{{"EventId":"E","EventStatus":"Scheduled","EventType":"Preempt","Resources":["a"],"NotBefore":{date}}}]}}"#
            );
            let document = parse(body.as_bytes()).unwrap();
            assert_eq!(document.events[0].not_before, wanted.map(at), "{date}");
            let is_odd = matches!(date, r#""tomorrow""# | "17");
            assert_eq!(!document.oddities.is_empty(), is_odd, "{date}");
        }
    }

    #[test]
    fn what_is_no_document_is_an_error_and_not_an_empty_one() {
        for body in [
            "",
            "  \n",
            "null",
            "[]",
            "7",
            "{}",
            r#"{"DocumentIncarnation":2}"#,
            r#"{"DocumentIncarnation":2,"Events":null}"#,
            r#"{"DocumentIncarnation":2,"Events":{}}"#,
            r#"{"DocumentIncarnation":2,"Events":[{"EventId":"E""#,
            r#"{"error":"Bad request. api-version is invalid or was not specified in the request."}"#,
            "<html>busy</html>",
            "\u{0}\u{1}",
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn one_bad_event_hides_no_other() {
        let document = parse(
            br#"{"DocumentIncarnation":"9","Events":[ 7, null, {}, {"EventType":5},
            {"EventId":"T","EventType":"Teleport","EventStatus":"Pondered","Resources":["vm_1"],"Colour":"red"},
            {"EventId":"K","Resources":["vm_1"]},
            {"EventType":"Preempt","EventStatus":"Scheduled","Resources":["vm_2",3,"vm_4"]},
            {"EventId":"P","EventType":"Preempt","EventStatus":"Started","Resources":"vm_5","NotBefore":""} ]}"#,
        )
        .unwrap();
        assert_eq!(document.incarnation, Some(9));
        assert!(document.has_nameless);
        let events: Vec<_> = document
            .events
            .iter()
            .map(|event| {
                (event.id.as_str(), event.kind.to_string(), event.started, event.resources.join(" "))
            })
            .collect();
        assert_eq!(
            events,
            [
                ("T", "Teleport".into(), false, "vm_1".into()),
                ("K", String::new(), false, String::new()),
                ("unnamed", "Preempt".into(), false, "vm_2 vm_4".into()),
                ("P", "Preempt".into(), true, "vm_5".into()),
            ]
        );
        for odd in [
            Oddity::Kind("Teleport".into()),
            Oddity::Status("Pondered".into()),
            Oddity::Field("Colour".into()),
            Oddity::Event("it is no object"),
        ] {
            assert!(document.oddities.contains(&odd), "{odd}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            prop::sample::select(&["Events", "DocumentIncarnation"][..]).prop_map(str::to_owned),
            prop::sample::select(&KNOWN_FIELDS[..]).prop_map(str::to_owned),
            ".{0,8}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop::sample::select(&["Preempt", "Started", "Scheduled", "", "vm_1"][..]).prop_map(Value::from),
            ".{0,30}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..8)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&body);
        }

        #[test]
        fn no_json_makes_it_panic(json in any_json()) {
            let _ = parse(json.to_string().as_bytes());
        }

        #[test]
        fn every_readable_event_is_kept(bad in prop::collection::vec(any_json(), 0..6), place in 0usize..7) {
            let good = serde_json::json!({"EventId": "G", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": ["vm_1"]});
            let mut events = bad;
            events.insert(place.min(events.len()), good);
            let document = parse(serde_json::json!({"DocumentIncarnation": 1, "Events": events}).to_string().as_bytes()).unwrap();
            let is_kept = document.events.iter().any(|event| event.id == "G" && event.kind == Kind::Preempt);
            prop_assert!(is_kept);
        }
    }
}
