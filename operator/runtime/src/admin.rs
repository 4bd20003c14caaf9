//! The admin server: `/livez`, `/readyz`, `/metrics`. It changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::tls::Tls;

/// What readiness waits for. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// Adds something to wait for: closed until its gate is opened.
    pub fn gate(&self, name: &'static str) -> Gate {
        let gate = Gate { name, readiness: self.clone() };
        gate.close("starting");
        gate
    }

    fn set(&self, name: &'static str, closed: Option<String>) -> bool {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(name, closed.clone()) != Some(closed)
    }

    /// What is waited for and why, a line each; empty when ready.
    pub fn waiting(&self) -> String {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter_map(|(name, closed)| closed.as_ref().map(|why| format!("{name}: {why}\n")))
            .collect()
    }
}

/// One thing that readiness waits for.
#[derive(Clone)]
pub struct Gate {
    name: &'static str,
    readiness: Readiness,
}

impl Gate {
    /// It works.
    pub fn open(&self) {
        if self.readiness.set(self.name, None) {
            tracing::info!(gate = self.name, "ready");
        }
    }

    /// It does not.
    pub fn close(&self, why: impl Into<String>) {
        let why = why.into();
        if self.readiness.set(self.name, Some(why.clone())) && why != "starting" {
            tracing::warn!(gate = self.name, why, "not ready");
        }
    }
}

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Serves for as long as it is polled: probes and scrapes go on until the program has ended.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Arc<Registry>,
    tls: Option<Tls>,
) -> Infallible {
    crate::serve::serve(listener, app(readiness, registry), tls).await
}

fn app(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { readiness, registry })
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    match admin.readiness.waiting() {
        waiting if waiting.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        waiting => (StatusCode::SERVICE_UNAVAILABLE, waiting),
    }
}

/// How an exemplar begins. No label value of ours has a brace in it.
const EXEMPLAR: &str = " # {";
const OPEN_METRICS: &str = "application/openmetrics-text";

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &admin.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n").into_response();
    }
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains(OPEN_METRICS) {
        let kind = format!("{OPEN_METRICS}; version=1.0.0; charset=utf-8");
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    } else {
        let kind = "text/plain; version=0.0.4; charset=utf-8".to_owned();
        ([(header::CONTENT_TYPE, kind)], prometheus_text(&text)).into_response()
    }
}

/// OpenMetrics as Prometheus' older text format, which names a counter's family with its `_total` and
/// knows neither units, nor `info`, nor exemplars, nor an end mark.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let counters: Vec<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => {}
            (Some("#"), Some(keyword), Some(name), rest) => {
                let total = if counters.contains(&name) { "_total" } else { "" };
                let rest = match (keyword, rest.unwrap_or_default()) {
                    ("TYPE", "info") => "gauge",
                    ("TYPE", "unknown") => "untyped",
                    (_, rest) => rest,
                };
                let info = if keyword == "TYPE" && open_metrics.contains(&format!("{name}_info{{")) {
                    "_info"
                } else {
                    ""
                };
                let _ = writeln!(text, "# {keyword} {name}{total}{info} {rest}");
            }
            _ => {
                // It has no exemplars either.
                text.push_str(line.split_once(EXEMPLAR).map_or(line, |(sample, _)| sample));
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use tower::ServiceExt;

    #[tokio::test]
    async fn nothing_can_be_changed_here() {
        let app = app(Readiness::default(), Arc::default());
        for path in ["/livez", "/readyz", "/metrics"] {
            for method in ["POST", "PUT", "PATCH", "DELETE"] {
                let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
                let answer = app.clone().oneshot(request).await.unwrap();
                assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            }
        }
        for path in ["/", "/debug/pprof", "/config", "/metrics/", "/../livez"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn readiness_names_what_it_waits_for() {
        let readiness = Readiness::default();
        let (imds, cache) = (readiness.gate("imds"), readiness.gate("cache"));
        cache.open();
        assert_eq!(readiness.waiting(), "imds: starting\n");
        imds.open();
        assert_eq!(readiness.waiting(), "");
        cache.close("no answer for 12 s");
        assert_eq!(readiness.waiting(), "cache: no answer for 12 s\n");
    }

    #[test]
    fn older_scrapers_get_their_format() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total 1\n# HELP c_seconds Time.\n\
                    # TYPE c_seconds histogram\n# UNIT c_seconds seconds\nc_seconds_sum 0.5\n# EOF\n";
        assert_eq!(
            prometheus_text(open),
            "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total 1\n# HELP c_seconds Time.\n\
             # TYPE c_seconds histogram\nc_seconds_sum 0.5\n"
        );
        let exemplar = "c_seconds_bucket{le=\"1.0\"} 1 # {trace_id=\"ab\"} 0.5\n";
        assert_eq!(prometheus_text(exemplar), "c_seconds_bucket{le=\"1.0\"} 1\n");
    }
}
