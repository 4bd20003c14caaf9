//! A proxy between one operator and what it writes to, so that a test can stop the world at any write.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use spotpool_e2e_cluster::Supervised;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// What happens at the write that a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spring {
    /// The program is killed and the write is never sent on.
    KillBefore,
    /// The write is sent on, then the program is killed before it hears the answer.
    KillAfter,
    /// The write waits until [`Proxy::release`].
    Hold,
}

/// Paths of what is no write of a plan: leader election, and what Azure has one ask by POST.
const READ: [&str; 3] = ["/leases", "/providers/Microsoft.ResourceGraph/", "/placementScores/"];

/// A write that came by. Leader election and questions do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Method and path.
    pub what: String,
    /// The answer, once there is one.
    pub status: Option<u16>,
}

/// Stands before apiserver and ARM.
pub struct Proxy {
    /// Where the apiserver seems to be.
    pub kubernetes: String,
    /// Where ARM seems to be.
    pub arm: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Trapped>,
    release: Notify,
}

#[derive(Default)]
struct Trapped {
    writes: Vec<Write>,
    /// Counts down with each write.
    trap: Option<(usize, Spring)>,
    victim: Option<Arc<Supervised>>,
    sprung: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Trapped> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Upstream {
    shared: Arc<Shared>,
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

impl Proxy {
    /// Stands before the apiserver of a kubeconfig (which signs in by token) and an ARM address.
    pub async fn start(kubeconfig: &std::path::Path, arm: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.rustls_client_config()?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(https);
        let shared = Arc::new(Shared::default());
        let serve = async |base: String| {
            let upstream = Upstream { shared: shared.clone(), base, client: client.clone() };
            serve(upstream).await
        };
        let kubernetes = serve(config.cluster_url.to_string().trim_end_matches('/').to_owned()).await?;
        let arm = serve(arm.trim_end_matches('/').to_owned()).await?;
        Ok(Self { kubernetes, arm, shared })
    }

    /// Sets a trap for the `nth` write from now on (1 is the next) of `victim`.
    pub fn trap(&self, nth: usize, spring: Spring, victim: Arc<Supervised>) {
        let mut state = self.shared.lock();
        state.trap = Some((nth, spring));
        state.victim = Some(victim);
        state.sprung = false;
    }

    /// Whether the trap has sprung.
    pub fn sprung(&self) -> bool {
        self.shared.lock().sprung
    }

    /// Lets a held write go on.
    pub fn release(&self) {
        self.shared.release.notify_one();
    }

    /// The writes seen since they were taken.
    pub fn writes(&self) -> Vec<Write> {
        self.shared.lock().writes.clone()
    }

    /// Takes the writes seen so far.
    pub fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.shared.lock().writes)
    }
}

async fn serve(upstream: Upstream) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    let app = Router::new().fallback(pass).with_state(upstream);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(format!("http://{address}"))
}

async fn pass(State(upstream): State<Upstream>, request: Request) -> Response {
    match upstream.pass(request).await {
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

impl Upstream {
    async fn pass(&self, mut request: Request) -> Result<Response> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let counts = !request.method().is_safe() && !READ.iter().any(|read| path.contains(read));
        let what = format!("{} {}", request.method(), request.uri().path());
        let (index, spring) = if counts { self.count(what) } else { (None, None) };
        match spring {
            Some(Spring::KillBefore) => {
                self.kill();
                // The answer goes to nobody.
                return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response());
            }
            Some(Spring::Hold) => self.shared.release.notified().await,
            Some(Spring::KillAfter) | None => {}
        }
        *request.uri_mut() = format!("{}{path}", self.base).parse::<Uri>().context("a path that is none")?;
        request.headers_mut().remove(header::HOST);
        let answer = self.client.request(request).await?;
        if let Some(index) = index {
            let mut state = self.shared.lock();
            if let Some(write) = state.writes.get_mut(index) {
                write.status = Some(answer.status().as_u16());
            }
        }
        if spring == Some(Spring::KillAfter) {
            self.kill();
        }
        Ok(answer.map(Body::new).into_response())
    }

    fn count(&self, what: String) -> (Option<usize>, Option<Spring>) {
        let mut state = self.shared.lock();
        state.writes.push(Write { what, status: None });
        let index = Some(state.writes.len() - 1);
        match &mut state.trap {
            Some((1, spring)) => {
                let spring = *spring;
                state.trap = None;
                state.sprung = true;
                (index, Some(spring))
            }
            Some((left, _)) => {
                *left -= 1;
                (index, None)
            }
            None => (index, None),
        }
    }

    fn kill(&self) {
        if let Some(victim) = &self.shared.lock().victim {
            let _ = victim.kill();
        }
    }
}
