//! A collector of traces, as far as reading them goes: OTLP over HTTP, by the official protobuf types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

/// What has been sent.
#[derive(Clone)]
pub struct Collector {
    /// For `--otlp-endpoint`.
    pub endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A span, and which program it is from.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `service.name`.
    pub program: String,
    /// The span.
    pub span: Span,
}

impl Seen {
    /// An attribute, if it is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        text(&self.span.attributes, key)
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

impl Collector {
    /// Listens on a port of its own, for as long as the async runtime lives.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let collector = Self { endpoint: format!("http://{}", listener.local_addr()?), seen: Arc::default() };
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(collector)
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trace of an event of Azure.
    pub fn trace(&self, event_id: &str) -> Trace {
        let id = event_id.replace('-', "").to_lowercase();
        let is_of = |seen: &&Seen| hex(&seen.span.trace_id) == id;
        Trace(self.seen().iter().filter(is_of).cloned().collect())
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, Vec::new());
    };
    if kind != Some("application/x-protobuf") {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Vec::new());
    }
    for of_program in request.resource_spans {
        let resource = of_program.resource.unwrap_or_default();
        let program = text(&resource.attributes, "service.name").unwrap_or_default().to_owned();
        let spans = of_program.scope_spans.into_iter().flat_map(|scope| scope.spans);
        collector.seen().extend(spans.map(|span| Seen { program: program.clone(), span }));
    }
    (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // text takes all
        text
    })
}

/// Spans that only hold others together.
const WHOLES: [&str; 3] = ["eviction", "recovery", "drain"];

/// All spans of one trace, in no order.
pub struct Trace(pub Vec<Seen>);

impl Trace {
    /// Names of spans.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|seen| seen.span.name.as_str()).collect()
    }

    /// The span of that name, if there is one.
    pub fn span(&self, name: &str) -> Option<&Seen> {
        self.0.iter().find(|seen| seen.span.name == name)
    }

    /// Spans whose parent nobody has sent.
    pub fn orphans(&self) -> Vec<&str> {
        let known: BTreeSet<&[u8]> = self.0.iter().map(|seen| seen.span.span_id.as_slice()).collect();
        let is_orphan =
            |span: &&Span| !span.parent_span_id.is_empty() && !known.contains(span.parent_span_id.as_slice());
        self.0.iter().map(|seen| &seen.span).filter(is_orphan).map(|span| span.name.as_str()).collect()
    }

    /// From the notice to the end of the recovery, once that is told: in nanoseconds since 1970.
    pub fn whole(&self) -> Option<(u64, u64)> {
        let recovery = self.span("recovery")?;
        Some((recovery.span.start_time_unix_nano, recovery.span.end_time_unix_nano))
    }

    /// How much of that time some span explains that is no mere whole of others, 0 to 1.
    pub fn explained(&self) -> Option<f64> {
        let (from, to) = self.whole()?;
        let parts = self.0.iter().map(|seen| &seen.span).filter(|span| !WHOLES.contains(&span.name.as_str()));
        let mut times: Vec<(u64, u64)> = parts
            .map(|span| (span.start_time_unix_nano.max(from), span.end_time_unix_nano.min(to)))
            .filter(|(from, to)| from < to)
            .collect();
        times.sort_unstable();
        let (mut explained, mut until) = (0, from);
        for (start, end) in times {
            explained += end.saturating_sub(start.max(until));
            until = until.max(end);
        }
        Some(explained as f64 / (to - from).max(1) as f64)
    }

    /// The trace as a picture of bars, for a terminal.
    pub fn picture(&self, width: usize) -> String {
        let (from, to) = self.whole().unwrap_or_else(|| {
            let times = || self.0.iter().map(|seen| &seen.span);
            let from = times().map(|span| span.start_time_unix_nano).min().unwrap_or_default();
            (from, times().map(|span| span.end_time_unix_nano).max().unwrap_or_default())
        });
        let scale =
            |at: u64| (at.saturating_sub(from) as f64 / (to - from).max(1) as f64 * width as f64) as usize;
        let mut spans: Vec<&Seen> = self.0.iter().collect();
        spans.sort_by_key(|seen| {
            (seen.span.start_time_unix_nano, std::cmp::Reverse(seen.span.end_time_unix_nano))
        });
        let programs: BTreeMap<&str, &str> =
            [("spotpool-node-agent", "agent"), ("spotpool-operator", "operator")].into();
        let mut picture = String::new();
        for seen in spans {
            let span = &seen.span;
            let (start, end) =
                (scale(span.start_time_unix_nano).min(width), scale(span.end_time_unix_nano).min(width));
            let bar = format!("{}{}", " ".repeat(start.min(width - 1)), "█".repeat((end - start).max(1)));
            let seconds = |nanos: u64| nanos as f64 / 1e9;
            let about = ["k8s.pod.name", "k8s.node.name", "spotpool.agent_pool", "spotpool.plan"]
                .iter()
                .find_map(|key| seen.text(key));
            let _ = writeln!(
                picture,
                "{:>+9.3}s {:>8.3}s  {:<9} {:<26} {bar:<width$}  {}",
                seconds(span.start_time_unix_nano.saturating_sub(from)),
                seconds(span.end_time_unix_nano - span.start_time_unix_nano),
                programs.get(seen.program.as_str()).copied().unwrap_or("?"),
                span.name,
                about.unwrap_or_default(),
            ); // text takes all
        }
        picture
    }
}
