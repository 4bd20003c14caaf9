//! Traces: one for each eviction, written by agent and operator together.
//!
//! Nobody has to tell the other which trace is meant: its id is Azure's event id, and ids of spans follow from what they
//! are about. So a program that starts anew, or another leader, goes on with the same trace.

use std::time::Duration;

use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span, status};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

/// Spans that wait to be sent at most; beyond it they are dropped, and counted.
pub(crate) const QUEUE: usize = 4096;

/// Identifies a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The trace of an event of Azure: its id as it is, where that is a UUID, else one that follows from it.
    pub fn of_event(event_id: &str) -> Self {
        let digits: String = event_id.chars().filter(|it| *it != '-').collect();
        match u128::from_str_radix(&digits, 16) {
            Ok(id) if digits.len() == 32 && id != 0 => Self(id.to_be_bytes()),
            _ => Self(first(&Sha256::digest(event_id))),
        }
    }
}

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Identifies a span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// The span of a trace that is about this: the same, whoever asks.
    pub fn of(trace: TraceId, about: &[&str]) -> Self {
        let mut hash = Sha256::new();
        hash.update(trace.0);
        for part in about {
            hash.update(part);
            hash.update([0]);
        }
        Self(first(&hash.finalize()))
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    first
}

/// A place in a trace that spans of others hang on: W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
}

impl Parent {
    /// What all that is done about an event on a node hangs on.
    pub fn of_eviction(event_id: &str, node: &str) -> Self {
        let trace = TraceId::of_event(event_id);
        Self { trace, span: SpanId::of(trace, &["eviction", node]) }
    }

    /// Reads a `traceparent`; `None` if it is none.
    pub fn read(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let _flags = parts.next()?;
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        (trace != 0 && span != 0)
            .then(|| Self { trace: TraceId(trace.to_be_bytes()), span: SpanId(span.to_be_bytes()) })
    }

    /// A span below this, about `about`.
    pub fn child(self, name: impl Into<String>, about: &[&str]) -> Recorded {
        let id = SpanId::of(self.trace, about);
        Recorded::new(self.trace, id, Some(self.span), name.into())
    }

    /// The span itself.
    pub fn itself(self, name: impl Into<String>) -> Recorded {
        Recorded::new(self.trace, self.span, None, name.into())
    }
}

impl std::fmt::Display for Parent {
    /// As a `traceparent`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{}-{:016x}-01", self.trace, u64::from_be_bytes(self.span.0))
    }
}

/// What an attribute says.
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// Seconds, or the like.
    Fraction(f64),
    /// Whether.
    Flag(bool),
    /// Several texts.
    Texts(Vec<String>),
}

macro_rules! value {
    ($($from:ty => |$it:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($it: $from) -> Self {
                $to
            }
        })*
    };
}

value! {
    &str => |text| Self::Text(text.to_owned()),
    String => |text| Self::Text(text),
    u32 => |number| Self::Number(number.into()),
    i64 => |number| Self::Number(number),
    f64 => |number| Self::Fraction(number),
    bool => |flag| Self::Flag(flag),
    Vec<String> => |texts| Self::Texts(texts),
}

impl From<Value> for AnyValue {
    fn from(value: Value) -> Self {
        let text = |text| AnyValue { value: Some(any_value::Value::StringValue(text)) };
        Self {
            value: Some(match value {
                Value::Text(it) => any_value::Value::StringValue(it),
                Value::Number(number) => any_value::Value::IntValue(number),
                Value::Fraction(number) => any_value::Value::DoubleValue(number),
                Value::Flag(flag) => any_value::Value::BoolValue(flag),
                Value::Texts(texts) => {
                    any_value::Value::ArrayValue(ArrayValue { values: texts.into_iter().map(text).collect() })
                }
            }),
        }
    }
}

/// An attribute as OTLP has it.
pub(crate) fn attribute(key: &str, value: impl Into<Value>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value.into().into()), ..KeyValue::default() }
}

/// Where a figure came from: an exemplar's label, by the name that Grafana and others look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TraceLabel {
    trace_id: String,
}

/// A histogram that knows of traces what is in it.
pub type TracedHistogram = HistogramWithExemplars<TraceLabel>;

impl From<TraceId> for TraceLabel {
    fn from(trace: TraceId) -> Self {
        Self { trace_id: trace.to_string() }
    }
}

/// A span, being made.
pub struct Recorded(Span);

impl Recorded {
    fn new(trace: TraceId, id: SpanId, parent: Option<SpanId>, name: String) -> Self {
        Self(Span {
            trace_id: trace.0.to_vec(),
            span_id: id.0.to_vec(),
            parent_span_id: parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
            name,
            kind: SpanKind::Internal.into(),
            ..Span::default()
        })
    }

    /// From when to when. One that would end before it begins, after a clock was set back, takes no time.
    #[must_use]
    pub fn lasting(mut self, from: Timestamp, to: Timestamp) -> Self {
        (self.0.start_time_unix_nano, self.0.end_time_unix_nano) = (nanos(from), nanos(to.max(from)));
        self
    }

    /// It is a request to somebody else.
    #[must_use]
    pub fn request(mut self) -> Self {
        self.0.kind = SpanKind::Client.into();
        self
    }

    /// Says something of it.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.attributes.push(attribute(key, value));
        self
    }

    /// Something happened in it.
    #[must_use]
    pub fn event(mut self, at: Timestamp, name: impl Into<String>, attributes: Vec<(&str, Value)>) -> Self {
        let attributes = attributes.into_iter().map(|(key, value)| attribute(key, value)).collect();
        self.0.events.push(span::Event {
            time_unix_nano: nanos(at),
            name: name.into(),
            attributes,
            ..span::Event::default()
        });
        self
    }

    /// It went wrong.
    #[must_use]
    pub fn failed(mut self, why: impl Into<String>) -> Self {
        self.0.status = Some(Status { message: why.into(), code: status::StatusCode::Error.into() });
        self
    }
}

/// As OTLP has times. None of ours is before 1970.
fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

/// What is on its way to the collector.
pub(crate) enum Item {
    Span(Box<Span>),
    /// Somebody waits until all that was sent before is delivered, or given up.
    Flush(oneshot::Sender<()>),
}

/// Takes spans, without making anyone wait. Cheap to clone; off, it does nothing.
#[derive(Clone, Default)]
pub struct Tracer(pub(crate) Option<mpsc::Sender<Item>>);

impl Tracer {
    /// Whether anybody wants spans: what is needed for them only need not be looked for otherwise.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Has a span sent.
    pub fn send(&self, span: Recorded) {
        if let Some(queue) = &self.0
            && queue.try_send(Item::Span(Box::new(span.0))).is_err()
        {
            tracing::debug!("too many spans wait; one is dropped");
        }
    }

    /// Waits until what was sent is delivered, at most so long: for the end of the program.
    pub async fn flush(&self, at_most: Duration) {
        let Some(queue) = &self.0 else { return };
        let flushed = async {
            let (done, wait) = oneshot::channel();
            if queue.send(Item::Flush(done)).await.is_ok() {
                let _ = wait.await; // an error means that nobody sends any more
            }
        };
        let _ = tokio::time::timeout(at_most, flushed).await; // what is late is lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_found_by_azures_event_id() {
        for (event, wanted) in [
            ("C1BF8322-5BD0-4B8C-9E4A-0D8A9F2C7E11", Some("c1bf83225bd04b8c9e4a0d8a9f2c7e11")),
            ("00000000-0000-0000-0000-000000000000", None), // no trace may be all zeros
            ("npd", None),
        ] {
            let id = TraceId::of_event(event).to_string();
            assert_eq!((id.len(), &id), (32, &TraceId::of_event(event).to_string()));
            assert!(wanted.is_none_or(|wanted| wanted == id), "{id}");
            assert_ne!(id, "0".repeat(32));
        }
        assert_ne!(TraceId::of_event("a"), TraceId::of_event("b"));
    }

    #[test]
    fn what_one_program_writes_another_reads() {
        let parent = Parent::of_eviction("C1BF8322-5BD0-4B8C-9E4A-0D8A9F2C7E11", "aks-spot-1");
        let text = parent.to_string();
        assert!(text.starts_with("00-c1bf83225bd04b8c9e4a0d8a9f2c7e11-") && text.ends_with("-01"), "{text}");
        assert_eq!(Parent::read(&text), Some(parent));
        assert_ne!(parent, Parent::of_eviction("C1BF8322-5BD0-4B8C-9E4A-0D8A9F2C7E11", "aks-spot-2"));
        let zeros = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        for wrong in ["", "00", "ff-1-2-3", "00-zz-zz-01", &zeros, &text[..54], &text[3..]] {
            assert_eq!(
                Parent::read(wrong).map(|it| it.to_string()).filter(|it| it != &text),
                None,
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_negative_time() {
        let parent = Parent::of_eviction("E", "n");
        let at = |nanos| Timestamp::from_nanosecond(nanos).unwrap();
        let span = parent.child("drain", &["drain", "n"]).lasting(at(20), at(10)).0;
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (20, 20));
        assert_eq!(span.parent_span_id, parent.span.0);
    }
}
