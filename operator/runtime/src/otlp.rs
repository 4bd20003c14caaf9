//! Sends spans to a collector: OTLP over HTTP, binary, as the specification has it.
//! <https://opentelemetry.io/docs/specs/otlp/#otlphttp>

use std::convert::Infallible;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::ConfigExt;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::sync::mpsc;

use crate::args::CommonArgs;
use crate::client::extra_roots;
use crate::exit::ConfigError;
use crate::trace::{Item, QUEUE, Tracer, Value, attribute};

/// Where the specification has traces go, below the endpoint.
const PATH: &str = "/v1/traces";
/// Spans in one request at most.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others. A node that is about to go has no time to wait.
const GATHER: Duration = Duration::from_millis(200);
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a batch is tried again where the collector has asked for that, or cannot be reached.
const RETRIES: usize = 4;

/// Reads an endpoint: `http` or `https`, a host, and perhaps a path.
pub fn endpoint(text: &str) -> Result<Uri, String> {
    let wrong = || "must be a URL such as http://collector.monitoring:4318".to_owned();
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| wrong())?;
    if !matches!(uri.scheme_str(), Some("http" | "https"))
        || uri.host().is_none_or(str::is_empty)
        || uri.query().is_some()
    {
        return Err(wrong());
    }
    let mut parts = uri.into_parts();
    let path = parts.path_and_query.as_ref().map_or("", PathAndQuery::as_str).trim_end_matches('/');
    parts.path_and_query = Some(format!("{path}{PATH}").parse().map_err(|_| wrong())?);
    Uri::from_parts(parts).map_err(|_| wrong())
}

/// A tracer, and the task that sends what it is given, for ever. Without `--otlp-endpoint` both do nothing. `about` are
/// attributes of the program's resource, beside its name.
pub fn tracer(
    args: &CommonArgs,
    program: &'static str,
    about: Vec<(&str, Value)>,
) -> Result<(Tracer, impl Future<Output = Infallible> + Send + use<>), ConfigError> {
    let exporter =
        args.otlp_endpoint.clone().map(|to| Exporter::new(args, to, program, about)).transpose()?;
    let (queue, items) = mpsc::channel(QUEUE);
    let tracer = Tracer(exporter.is_some().then_some(queue));
    let send = async move {
        if let Some(exporter) = exporter {
            exporter.run(items).await;
        }
        std::future::pending().await
    };
    Ok((tracer, send))
}

struct Exporter {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    to: Uri,
    resource: Resource,
    program: &'static str,
}

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    #[error("no answer in {TIMEOUT:?}")]
    Silent,
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
}

impl Refused {
    /// Whether the same request may be taken later, by the specification.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent => true,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Request(_) => false,
        }
    }
}

impl Exporter {
    fn new(
        args: &CommonArgs,
        to: Uri,
        program: &'static str,
        about: Vec<(&str, Value)>,
    ) -> Result<Self, ConfigError> {
        // kube knows how to trust: the roots that are given, else the system's.
        let mut config = kube::Config::new(to.clone());
        config.root_cert = Some(extra_roots(args)?).filter(|roots| !roots.is_empty());
        let tls = config
            .rustls_client_config()
            .map_err(|error| ConfigError(format!("--otlp-endpoint: {error}")))?;
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https);
        let mut attributes = vec![
            attribute("service.name", program),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("cloud.provider", "azure"),
            attribute("cloud.platform", "azure.aks"),
        ];
        attributes.extend(about.into_iter().map(|(key, value)| attribute(key, value)));
        let resource = Resource { attributes, ..Resource::default() };
        Ok(Self { client, to, resource, program })
    }

    /// Sends until every tracer is gone.
    async fn run(&self, mut items: mpsc::Receiver<Item>) {
        let mut is_silent = false;
        while let Some(first) = items.recv().await {
            let (mut spans, mut waiting) = (Vec::new(), Vec::new());
            let until = tokio::time::Instant::now() + GATHER;
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    Item::Span(span) => spans.push(*span),
                    Item::Flush(done) => waiting.push(done),
                }
                if spans.len() >= BATCH || !waiting.is_empty() {
                    break;
                }
                next = tokio::time::timeout_at(until, items.recv()).await.ok().flatten();
            }
            if !spans.is_empty() {
                let count = spans.len();
                match self.deliver(spans).await {
                    Ok(()) if is_silent => {
                        is_silent = false;
                        tracing::info!(to = %self.to, "spans are taken again");
                    }
                    Ok(()) => {}
                    // Said once until it works again: each batch would say the same.
                    Err(error) if is_silent => {
                        tracing::debug!(to = %self.to, %error, count, "spans are lost");
                    }
                    Err(error) => {
                        is_silent = true;
                        tracing::warn!(to = %self.to, %error, count, "spans are lost until the collector takes them");
                    }
                }
            }
            for done in waiting {
                let _ = done.send(()); // who has given up does not wait
            }
        }
    }

    async fn deliver(&self, spans: Vec<Span>) -> Result<(), Refused> {
        let scope = InstrumentationScope {
            name: self.program.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let of_us = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![spans],
            ..ResourceSpans::default()
        };
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans: vec![of_us] }.encode_to_vec());
        let backoff = ExponentialBuilder::default().with_min_delay(Duration::from_millis(250)).with_jitter();
        let mut pauses = backoff.with_max_times(RETRIES).build();
        loop {
            match (self.post(body.clone()).await, pauses.next()) {
                (Err(refused), Some(pause)) if refused.may_pass() => tokio::time::sleep(pause).await,
                (end, _) => return end,
            }
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Refused> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.to.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(body))?;
        let answer = tokio::time::timeout(TIMEOUT, self.client.request(request));
        let answer = answer.await.map_err(|_| Refused::Silent)??;
        if answer.status().is_success() { Ok(()) } else { Err(Refused::Status(answer.status())) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::routing::post;
    use jiff::Timestamp;
    use tokio::net::TcpListener;

    use super::*;
    use crate::args::LogFormat;
    use crate::trace::Parent;

    fn args(endpoint: Option<Uri>) -> CommonArgs {
        let (kubeconfig, ca_bundle, tls_cert_file, tls_key_file) = (None, None, None, None);
        let (log_format, log_level, otlp_endpoint) = (LogFormat::Json, String::new(), endpoint);
        CommonArgs {
            kubeconfig,
            ca_bundle,
            tls_cert_file,
            tls_key_file,
            log_format,
            log_level,
            otlp_endpoint,
        }
    }

    #[test]
    fn an_endpoint_is_a_base_to_which_the_path_is_added() {
        for (given, wanted) in [
            ("http://otel:4318", Some("http://otel:4318/v1/traces")),
            ("https://otel.example/", Some("https://otel.example/v1/traces")),
            ("http://otel/tenant/", Some("http://otel/tenant/v1/traces")),
            ("otel:4318", None),
            ("/v1/traces", None),
            ("grpc://otel:4317", None),
            ("http://otel?x=y", None),
            ("", None),
        ] {
            assert_eq!(endpoint(given).ok().map(|uri| uri.to_string()).as_deref(), wanted, "{given}");
        }
    }

    #[tokio::test]
    async fn spans_arrive_although_the_collector_is_busy_at_first_and_nothing_is_done_when_off() {
        let (off, _) = tracer(&args(None), "test", Vec::new()).unwrap();
        assert!(!off.is_on());
        off.send(Parent::of_eviction("E", "n").itself("eviction"));
        off.flush(Duration::from_mins(1)).await;

        let seen: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = endpoint(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let told = seen.clone();
        let app = Router::new().route(
            PATH,
            post(async move |body: Bytes| {
                let mut seen = told.lock().unwrap();
                seen.push(body);
                if seen.len() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, app).await });
        let (tracer, send) = tracer(&args(Some(to)), "test", vec![("k8s.node.name", "n".into())]).unwrap();
        tokio::spawn(send);
        let parent = Parent::of_eviction("E", "n");
        let at = |second| Timestamp::from_second(second).unwrap();
        tracer.send(parent.itself("eviction").lasting(at(1), at(2)));
        tracer.send(
            parent
                .child("drain", &["drain", "n"])
                .lasting(at(1), at(2))
                .with("count", 3_u32)
                .failed("no time"),
        );
        tracer.flush(Duration::from_mins(1)).await;

        let bodies = seen.lock().unwrap().clone();
        assert_eq!(bodies.len(), 2, "refused once, then taken");
        assert_eq!(bodies[0], bodies[1]);
        let request = ExportTraceServiceRequest::decode(bodies[1].clone()).unwrap();
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["eviction", "drain"]);
        assert_eq!(spans[1].parent_span_id, spans[0].span_id);
        let resource = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
        assert!(resource.contains(&attribute("k8s.node.name", "n")));
    }
}
