//! External metrics as KEDA or an adapter for Prometheus serve them: an API to which the apiserver hands on what the HPA
//! controller asks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::json;
use spotpool_e2e::objects::apply;
use spotpool_e2e::{World, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::world;

const API: &str = "/apis/external.metrics.k8s.io/v1beta1";

static METRICS: OnceCell<ExternalMetrics> = OnceCell::const_new();

/// Those of the world that all tests share: a cluster has one server of them.
pub async fn external_metrics() -> &'static ExternalMetrics {
    METRICS.get_or_init(async || ExternalMetrics::serve(world().await).await.unwrap()).await
}

/// One value for each namespace, whatever the metric is called.
#[derive(Clone, Default)]
pub struct ExternalMetrics(Arc<Mutex<BTreeMap<String, Metric>>>);

#[derive(Default)]
struct Metric {
    value: Option<i64>,
    asked: usize,
}

impl ExternalMetrics {
    async fn serve(world: &World) -> Result<Self> {
        let metrics = Self::default();
        let listener = TlsListener::bind().await?;
        let port = listener.local_addr()?.port();
        let app = Router::new()
            .route(API, get(resources))
            .route(&format!("{API}/namespaces/{{namespace}}/{{name}}"), get(value))
            .with_state(metrics.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "external-metrics", "namespace": "default"},
            // No address of a Service leads here, and an endpoint may not be a loopback address.
            "spec": {"type": "ExternalName", "externalName": "localhost"}});
        let api = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {"group": "external.metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"name": "external-metrics", "namespace": "default", "port": port}}});
        for object in [service, api] {
            apply(&world.client, &object.to_string(), |_| ()).await?;
        }
        eventually("the apiserver to hand on external metrics", async || {
            world.client.request_text(http::Request::get(API).body(Vec::new())?).await?;
            Ok(Some(()))
        })
        .await?;
        Ok(metrics)
    }

    /// What is answered from now on.
    pub fn say(&self, namespace: &str, value: i64) {
        self.0.lock().unwrap().entry(namespace.into()).or_default().value = Some(value);
    }

    /// From now on the answer is an error.
    pub fn fail(&self, namespace: &str) {
        self.0.lock().unwrap().entry(namespace.into()).or_default().value = None;
    }

    fn asked(&self, namespace: &str) -> usize {
        self.0.lock().unwrap().get(namespace).map_or(0, |metric| metric.asked)
    }

    /// Waits until the HPA controller has asked three times more: it has then decided twice on what is true now.
    pub async fn asked_again(&self, namespace: &str) {
        let enough = self.asked(namespace) + 3;
        eventually("the HPA controller to ask", async || Ok((self.asked(namespace) >= enough).then_some(())))
            .await
            .unwrap();
    }
}

async fn resources() -> Response {
    Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "external.metrics.k8s.io/v1beta1",
        "resources": [{"name": "jobs", "singularName": "", "namespaced": true, "kind": "ExternalMetricValueList",
            "verbs": ["get"]}]}))
    .into_response()
}

async fn value(
    State(metrics): State<ExternalMetrics>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let mut metrics = metrics.0.lock().unwrap();
    let metric = metrics.entry(namespace).or_default();
    metric.asked += 1;
    let Some(value) = metric.value else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the queue cannot be reached").into_response();
    };
    Json(json!({"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": [{"metricName": name, "metricLabels": {}, "timestamp": format!("{:.0}", Timestamp::now()),
            "value": value.to_string()}]}))
    .into_response()
}

/// The apiserver hands on over TLS only.
struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl TlsListener {
    async fn bind() -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        Ok(Self { tcp, tls: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.tcp).await;
            let handshake = tokio::time::timeout(Duration::from_secs(2), self.tls.accept(stream));
            if let Ok(Ok(stream)) = handshake.await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
