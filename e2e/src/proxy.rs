//! A proxy between one operator and its servers, so that a test can have something go wrong at any write, or at any event that
//! its watch of Nodes brings.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use spotpool_crds::names;
use spotpool_e2e_cluster::Supervised;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::Fault;
use crate::faults::between::{Server, made_up};
use crate::faults::flow::{Flow, Line, broken};

/// What happens at the write, or event, that a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spring {
    /// One of [`FAULTS`].
    Fault(Fault),
    /// The write waits until [`Proxy::release`].
    Hold,
}

/// Those that can be brought about here.
pub const FAULTS: [Fault; 14] = [
    Fault::KillBefore,
    Fault::KillAfter,
    Fault::LoseRequest,
    Fault::LoseAnswer,
    Fault::Timeout,
    Fault::LandsLate,
    Fault::Conflict,
    Fault::Throttle,
    Fault::ServerError,
    Fault::Outage,
    Fault::Hide,
    Fault::Stall,
    Fault::Expire,
    Fault::Disconnect,
];

/// How long who is away is away, how late a stalled watch is, and how long an event stays hidden.
const AWAY: Duration = Duration::from_secs(5);
/// What comes after its sender has given up comes so much later.
const LATE: Duration = Duration::from_secs(2);
/// Seconds after which something between says to try again.
const RETRY_AFTER: u64 = 3;

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

struct Shared {
    state: Mutex<Trapped>,
    release: Notify,
    watches: Arc<Flow>,
}

#[derive(Default)]
struct Trapped {
    writes: Vec<Write>,
    /// How many events of Nodes were told of whose agent pools' names begin with `prefix`.
    events: usize,
    prefix: String,
    /// Counts down with each write, or each event, whose words hold `of`.
    trap: Option<(usize, Spring)>,
    of: &'static str,
    victim: Option<Arc<Supervised>>,
    sprung: bool,
    /// Who is away, and until when.
    out: Option<(Server, Instant)>,
}

impl Trapped {
    /// What springs at the next write, or event.
    fn next(&mut self, is_event: bool, what: &str) -> Option<Spring> {
        if !what.contains(self.of) {
            return None;
        }
        let is_awaited =
            |spring: &Spring| matches!(spring, Spring::Fault(fault) if fault.is_of_watch()) == is_event;
        let (left, spring) = self.trap.as_mut().filter(|(_, spring)| is_awaited(spring))?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        let spring = *spring;
        self.trap = None;
        self.sprung = true;
        Some(spring)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Trapped> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        if let Some(victim) = &self.lock().victim {
            let _ = victim.kill();
        }
    }

    /// What strikes at this event of the watch of Nodes.
    fn event(&self, line: &[u8]) -> Option<Fault> {
        let mut state = self.lock();
        if state.prefix.is_empty() || !String::from_utf8_lossy(line).contains(&state.prefix) {
            return None;
        }
        state.events += 1;
        match state.next(true, "") {
            Some(Spring::Fault(fault)) => Some(fault),
            _ => None,
        }
    }
}

#[derive(Clone)]
struct Upstream {
    shared: Arc<Shared>,
    server: Server,
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
        let (state, release, watches) = (Mutex::default(), Notify::new(), Flow::new(AWAY));
        let shared = Arc::new(Shared { state, release, watches });
        let serve = async |server: Server, base: String| {
            let upstream = Upstream { shared: shared.clone(), server, base, client: client.clone() };
            serve(upstream).await
        };
        let apiserver = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let kubernetes = serve(Server::Kubernetes, apiserver).await?;
        let arm = serve(Server::Azure, arm.trim_end_matches('/').to_owned()).await?;
        Ok(Self { kubernetes, arm, shared })
    }

    /// Sets a trap for the `nth` write from now on (1 is the next) of `victim`, or event of its Nodes.
    pub fn trap(&self, nth: usize, spring: Spring, victim: Arc<Supervised>) {
        self.trap_of("", nth, spring, victim);
    }

    /// Sets one for the `nth` write whose method and path hold `of`, wherever it comes among others.
    pub fn trap_of(&self, of: &'static str, nth: usize, spring: Spring, victim: Arc<Supervised>) {
        let mut state = self.shared.lock();
        state.trap = Some((nth, spring));
        state.of = of;
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

    /// From now on counts events of the Nodes of agent pools whose names begin so.
    pub fn count_events(&self, agent_pools: &str) {
        let mut state = self.shared.lock();
        state.prefix = format!("\"{}\":\"{agent_pools}", names::AGENT_POOL_LABEL);
        state.events = 0;
    }

    /// How many there were.
    pub fn events(&self) -> usize {
        self.shared.lock().events
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
    async fn pass(&self, request: Request) -> Result<Response> {
        let path = request.uri().path().to_owned();
        let is_write = !request.method().is_safe() && !READ.iter().any(|read| path.contains(read));
        let is_watch = request.method() == Method::GET
            && request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let (index, spring) =
            if is_write { self.count(format!("{} {path}", request.method())) } else { (None, None) };
        if let Some(Spring::Fault(Fault::Outage)) = spring {
            self.shared.lock().out = Some((self.server, Instant::now() + AWAY));
            if self.server == Server::Kubernetes {
                self.shared.watches.tear();
            }
        }
        let out = self.shared.lock().out;
        if out.is_some_and(|(server, until)| server == self.server && Instant::now() < until) {
            return Ok(torn());
        }
        let Some(spring) = spring else { return self.deliver(request, index, is_watch).await };
        match spring {
            Spring::Hold => self.shared.release.notified().await,
            Spring::Fault(Fault::KillBefore) => {
                self.shared.kill();
                // The answer goes to nobody.
                return Ok(torn());
            }
            Spring::Fault(Fault::LoseRequest) => return Ok(torn()),
            Spring::Fault(Fault::LandsLate) => {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await?;
                let late = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(late.server.patience() + LATE).await;
                    let request = Request::from_parts(parts, body.into());
                    // Whatever comes of it, nobody waits for it any more.
                    drop(late.deliver(request, index, false).await);
                });
                return self.no_answer().await;
            }
            Spring::Fault(Fault::Conflict) => return self.refusal(409, None),
            Spring::Fault(Fault::Throttle) => return self.refusal(429, Some(RETRY_AFTER)),
            Spring::Fault(Fault::ServerError) => return self.refusal(500, None),
            Spring::Fault(_) => {}
        }
        let answer = self.deliver(request, index, is_watch).await?;
        match spring {
            Spring::Fault(Fault::KillAfter) => self.shared.kill(),
            Spring::Fault(Fault::LoseAnswer) => return Ok(torn()),
            Spring::Fault(Fault::Timeout) => return self.no_answer().await,
            _ => {}
        }
        Ok(answer)
    }

    async fn deliver(&self, mut request: Request, index: Option<usize>, is_watch: bool) -> Result<Response> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let is_of_nodes = request.uri().path() == "/api/v1/nodes";
        *request.uri_mut() = format!("{}{path}", self.base).parse::<Uri>().context("a path that is none")?;
        // Azure's links lead to where it was asked: so these come by here, too.
        if self.server == Server::Kubernetes {
            request.headers_mut().remove(header::HOST);
        }
        let answer = self.client.request(request).await?.map(Body::new);
        if let Some(index) = index
            && let Some(write) = self.shared.lock().writes.get_mut(index)
        {
            write.status = Some(answer.status().as_u16());
        }
        Ok(if is_watch { self.watched(answer, is_of_nodes) } else { answer })
    }

    fn refusal(&self, status: u16, retry_after: Option<u64>) -> Result<Response> {
        Ok(made_up(self.server, status, retry_after)?.map(Body::from))
    }

    /// Lets the sender wait for longer than it does.
    async fn no_answer(&self) -> Result<Response> {
        tokio::time::sleep(self.server.patience() + LATE).await;
        Ok(torn())
    }

    fn count(&self, what: String) -> (Option<usize>, Option<Spring>) {
        let mut state = self.shared.lock();
        let spring = state.next(false, &what);
        state.writes.push(Write { what, status: None });
        (Some(state.writes.len() - 1), spring)
    }

    /// A watch, line by line, as far as faults let it through.
    fn watched(&self, answer: Response, is_of_nodes: bool) -> Response {
        let (head, body) = answer.into_parts();
        let shared = self.shared.clone();
        let strikes = is_of_nodes.then_some(move |line: &[u8]| shared.event(line));
        Response::from_parts(head, Body::from_stream(self.shared.watches.through(lines(body), strikes)))
    }
}

/// The lines of a body, each with its end.
fn lines(body: Body) -> BoxStream<'static, Line> {
    let flow = (body.into_data_stream(), BytesMut::new());
    stream::unfold(flow, |(mut body, mut read)| async move {
        loop {
            if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line = read.split_to(end + 1).freeze();
                return Some((Ok(line), (body, read)));
            }
            match body.next().await {
                Some(Ok(more)) => read.extend_from_slice(&more),
                Some(Err(error)) => return Some((Err(io::Error::other(error)), (body, read))),
                None if read.is_empty() => return None,
                None => return Some((Ok(read.split().freeze()), (body, read))),
            }
        }
    })
    .boxed()
}

/// The connection breaks before the answer is there in full.
fn torn() -> Response {
    Body::from_stream(stream::iter([Err::<Bytes, _>(broken())])).into_response()
}
