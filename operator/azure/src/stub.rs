//! Servers for tests: plain ones, and ones that speak TLS by a CA of their own; and a clock that obeys.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Clock;
use crate::error::AzureError;
use crate::http::Transport;

/// Serves until the test ends.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves as `name` with a certificate by `authority`.
pub(crate) async fn serve_tls(authority: &Authority, name: &str, router: Router) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let tls = TlsAcceptor::from(Arc::new(authority.server_config(name)));
    tokio::spawn(async move { axum::serve(TlsListener { tcp, tls }, router).await });
    address
}

/// A CA that nobody trusts unless told.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, as `--ca-bundle` would bring it.
    pub(crate) fn root_der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    fn server_config(&self, name: &str) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap()
    }
}

struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, peer) = self.tcp.accept().await.unwrap();
            // A caller that does not trust us goes away in the handshake.
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

type Reply = dyn Fn(&Request<Bytes>) -> Result<Response<Bytes>, AzureError> + Send + Sync;

/// A transport without a network: what is asked is kept, what is answered is said by a function.
pub(crate) struct Answers {
    reply: Box<Reply>,
    asked: Mutex<Vec<Request<Bytes>>>,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answers")
    }
}

impl Answers {
    pub(crate) fn by(
        reply: impl Fn(&Request<Bytes>) -> Result<Response<Bytes>, AzureError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { reply: Box::new(reply), asked: Mutex::default() })
    }

    pub(crate) fn asked(&self) -> Vec<Request<Bytes>> {
        self.asked.lock().unwrap().clone()
    }
}

impl Transport for Answers {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        self.asked.lock().unwrap().push(request.clone());
        async move { (self.reply)(&request) }.boxed()
    }
}

/// An answer with a status and a body.
pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    Response::builder().status(status).body(body.into()).unwrap()
}

/// A clock that moves when told.
#[derive(Clone)]
pub(crate) struct Hands(Arc<AtomicI64>);

impl Hands {
    /// At noon on a day of 2026.
    pub(crate) fn set() -> Self {
        let noon: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        Self(Arc::new(AtomicI64::new(noon.as_second())))
    }

    pub(crate) fn forward(&self, by: Duration) {
        self.0.fetch_add(by.as_secs() as i64, Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        let hands = self.0.clone();
        Arc::new(move || Timestamp::from_second(hands.load(Ordering::SeqCst)).unwrap())
    }
}

const CHILD: &str = "SPOTPOOL_TEST_CHILD";

/// Whether this process was started by [`in_a_process`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test again in a process of its own, and insists that it passes: for what belongs to a process,
/// such as its environment, which cannot be changed safely, and the state of its logging.
pub(crate) async fn in_a_process(test: &'static str, environment: Vec<(&'static str, String)>) {
    let run = move || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(CHILD, "1")
            .envs(environment)
            .output()
            .unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{test} in a process of its own: {said}");
}
