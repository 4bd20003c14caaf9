//! A gateway between one agent and the apiserver, where a test brings about what happens on a cluster's bad days.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http_body_util::BodyExt;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Which requests a trouble is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// All.
    Everything,
    /// Watches, also those that are open.
    Watches,
    /// Writes of Nodes.
    NodeWrites,
    /// Evictions.
    Evictions,
    /// Whatever carries this token.
    Token(String),
}

/// What happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They are answered with this status, and never sent on.
    Refuse {
        /// The status.
        status: u16,
        /// `Retry-After` in seconds.
        retry_after: Option<u32>,
    },
    /// They are sent on, and the answer begins this much later.
    Late(Duration),
    /// They are not sent on until the trouble is over.
    Hold,
    /// They are sent on, and nothing comes back until the trouble is over.
    Mute,
    /// They are sent on, and the connection breaks in the middle of the answer.
    Break,
    /// Watches are told that their version is too old.
    Expire,
}

type Now = Option<(On, Trouble)>;

/// Stands before the apiserver.
pub struct Gateway {
    /// Where it listens, over plain HTTP.
    pub url: String,
    now: watch::Sender<Now>,
    struck: watch::Sender<usize>,
}

impl Gateway {
    /// Stands before the apiserver of a kubeconfig. Whoever comes through signs in by token.
    pub async fn start(kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let base = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        // Nothing of the kubeconfig's own user: the agent's token says who it is.
        config.auth_info = kube::config::AuthInfo::default();
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.rustls_client_config()?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(https);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (now, struck) = (watch::Sender::new(None), watch::Sender::new(0));
        let passage = Passage { now: now.clone(), struck: struck.clone(), base, client };
        let app = Router::new().fallback(pass).with_state(passage);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, now, struck })
    }

    /// Begins a trouble, in place of the last.
    pub fn begin(&self, on: On, trouble: Trouble) {
        self.struck.send_replace(0);
        self.now.send_replace(Some((on, trouble)));
    }

    /// Ends it.
    pub fn end(&self) {
        self.now.send_replace(None);
    }

    /// How many requests and watches it has struck since it began.
    pub fn times(&self) -> usize {
        *self.struck.borrow()
    }

    /// Waits until the trouble has struck this often since it began.
    pub async fn struck(&self, times: usize) -> Result<()> {
        let mut struck = self.struck.subscribe();
        let wait = struck.wait_for(|struck| *struck >= times);
        tokio::time::timeout(crate::wait::GENEROUS, wait)
            .await
            .with_context(|| format!("the trouble has not struck {times} times"))??;
        Ok(())
    }
}

#[derive(Clone)]
struct Passage {
    now: watch::Sender<Now>,
    struck: watch::Sender<usize>,
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

/// What tells requests apart.
struct Asked {
    method: Method,
    path: String,
    is_watch: bool,
    authorization: String,
}

impl Asked {
    fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        Self {
            method: method.clone(),
            path: uri.path().to_owned(),
            is_watch: uri.query().is_some_and(|query| query.contains("watch=true")),
            authorization: authorization.unwrap_or_default().to_owned(),
        }
    }

    fn meets(&self, now: &Now) -> Option<Trouble> {
        let (on, trouble) = now.as_ref()?;
        let is_meant = match on {
            On::Everything => true,
            On::Watches => self.is_watch,
            On::NodeWrites => self.path.contains("/nodes/") && !self.method.is_safe(),
            On::Evictions => self.path.ends_with("/eviction"),
            On::Token(token) => self.authorization == format!("Bearer {token}"),
        };
        is_meant.then(|| trouble.clone())
    }
}

async fn pass(State(passage): State<Passage>, request: Request) -> Response {
    let asked = Asked::of(request.method(), request.uri(), request.headers());
    match passage.pass(request, asked).await {
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

impl Passage {
    async fn pass(self, mut request: Request, asked: Asked) -> Result<Response> {
        let mut now = self.now.subscribe();
        let trouble = asked.meets(&now.borrow_and_update());
        if trouble.is_some() {
            self.struck.send_modify(|struck| *struck += 1);
        }
        match &trouble {
            Some(Trouble::Refuse { status, retry_after }) => return Ok(refusal(*status, *retry_after)),
            Some(Trouble::Expire) => return Ok(Body::from(expired()).into_response()),
            Some(Trouble::Hold) => {
                now.wait_for(|now| asked.meets(now) != Some(Trouble::Hold)).await?;
            }
            _ => {}
        }
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        *request.uri_mut() = format!("{}{path}", self.base).parse::<Uri>().context("a path that is none")?;
        request.headers_mut().remove(header::HOST);
        let answer = self.client.request(request).await?;
        match &trouble {
            Some(Trouble::Late(time)) => tokio::time::sleep(*time).await,
            Some(Trouble::Mute) => {
                now.wait_for(|now| asked.meets(now) != Some(Trouble::Mute)).await?;
            }
            _ => {}
        }
        let (head, body) = answer.into_parts();
        let body = troubled(body.into_data_stream(), now, asked, self.struck);
        Ok(Response::from_parts(head, Body::from_stream(body)))
    }
}

/// The frames of an answer, as far as trouble lets them through.
fn troubled<E: std::error::Error + Send + Sync + 'static>(
    frames: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    now: watch::Receiver<Now>,
    asked: Asked,
    struck: watch::Sender<usize>,
) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
    stream::unfold(Flow::On(frames, now, asked), move |flow| {
        let struck = struck.clone();
        async move {
            let (mut frames, mut now, asked) = match flow {
                Flow::On(frames, now, asked) => (frames, now, asked),
                Flow::Breaks => return Some((Err(broken()), Flow::Ended)),
                Flow::Ended => return None,
            };
            loop {
                let trouble = asked.meets(&now.borrow_and_update());
                match trouble {
                    Some(Trouble::Expire) => return Some((Ok(expired()), Flow::Ended)),
                    Some(Trouble::Break) if asked.is_watch => return Some((Err(broken()), Flow::Ended)),
                    Some(Trouble::Mute) => {
                        struck.send_modify(|struck| *struck += 1);
                        now.changed().await.ok()?;
                        continue;
                    }
                    _ => {}
                }
                let frame = tokio::select! {
                    biased;
                    changed = now.changed() => {
                        changed.ok()?;
                        continue;
                    }
                    frame = frames.next() => frame?,
                };
                return match (frame, trouble) {
                    (Ok(frame), Some(Trouble::Break)) => {
                        Some((Ok(frame.slice(..frame.len() / 2)), Flow::Breaks))
                    }
                    (Ok(frame), _) => Some((Ok(frame), Flow::On(frames, now, asked))),
                    (Err(error), _) => Some((Err(io::Error::other(error)), Flow::Ended)),
                };
            }
        }
    })
}

/// How far an answer is.
enum Flow<F> {
    On(F, watch::Receiver<Now>, Asked),
    /// Half a frame has come through.
    Breaks,
    Ended,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "broken by the test")
}

fn expired() -> Bytes {
    let status = status(410, "Expired", "too old resource version");
    format!("{}\n", json!({"type": "ERROR", "object": status})).into()
}

fn status(code: u16, reason: &str, message: &str) -> serde_json::Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": message})
}

/// In the words of an apiserver.
fn refusal(code: u16, retry_after: Option<u32>) -> Response {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        500 => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
        _ => ("ServiceUnavailable", "the server is currently unable to handle the request"),
    };
    let mut status = status(code, reason, message);
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
    }
    let mut response = axum::Json(status).into_response();
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
