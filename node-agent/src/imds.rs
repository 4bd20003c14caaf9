//! Asking Azure's metadata service for the Scheduled Events document, once a second, for ever.

use std::fmt::Write;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_drain::jittered;
use spotpool_runtime::admin::Gate;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use url::Url;

use crate::document::{self, Document, NotUnderstood};
use crate::metrics::{Metrics, Poll};

/// The newest version that is documented.
const PATH: &str = "metadata/scheduledevents?api-version=2020-07-01";
/// A document of a thousand VMs, each with an event of its own, has about 300 KiB.
const LARGEST_DOCUMENT: usize = 1024 * 1024;
/// Azure may take two minutes to switch the service on for a VM that asks for the first time.
const FIRST_ANSWER: Duration = Duration::from_secs(130);
/// Afterwards it answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(2);
/// The longest pause after errors.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Without a good document for this long, the agent is not ready.
const STALE: Duration = Duration::from_secs(10);

/// Why a poll brought no document.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// No connection, or it broke.
    #[error("cannot reach the metadata service: {0}")]
    Unreachable(String),
    /// It does not answer.
    #[error("no answer in {0:?}")]
    Silent(Duration),
    /// It answers with an error.
    #[error("the metadata service answers {0}")]
    Status(u16),
    /// The document is larger than any document is.
    #[error("the document is larger than {LARGEST_DOCUMENT} bytes")]
    TooLarge,
    /// What it answers is no document.
    #[error(transparent)]
    NotUnderstood(#[from] NotUnderstood),
}

impl PollError {
    fn result(&self) -> Poll {
        match self {
            Self::Unreachable(_) => Poll::Unreachable,
            Self::Silent(_) => Poll::Silent,
            Self::Status(429) => Poll::Throttled,
            Self::Status(_) => Poll::Status,
            Self::TooLarge => Poll::TooLarge,
            Self::NotUnderstood(_) => Poll::NotUnderstood,
        }
    }
}

/// A client of the metadata service. It knows no proxy: the address is the VM's own.
pub struct Imds {
    client: Client<HttpConnector, Empty<Bytes>>,
    uri: Uri,
    has_answered: bool,
    last: Bytes,
}

impl Imds {
    /// A client of the service at `endpoint`, which may carry a path prefix.
    pub fn new(endpoint: &Url) -> Result<Self, http::uri::InvalidUri> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let uri = format!("{}/{PATH}", endpoint.as_str().trim_end_matches('/')).parse()?;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Ok(Self { client, uri, has_answered: false, last: Bytes::new() })
    }

    /// How long an answer may take.
    fn patience(&self) -> Duration {
        if self.has_answered { ANSWER } else { FIRST_ANSWER }
    }

    /// The document in `body`, or `None` if it is the last one again.
    fn news(&mut self, body: Bytes) -> Result<Option<Document>, PollError> {
        self.has_answered = true;
        if body == self.last {
            return Ok(None);
        }
        let document = document::parse(&body)?;
        self.last = body;
        Ok(Some(document))
    }

    async fn get(&self) -> Result<Bytes, PollError> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert("metadata", http::HeaderValue::from_static("true"));
        let unreachable = |error: &dyn std::error::Error| PollError::Unreachable(chain(error));
        let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        if response.status() != http::StatusCode::OK {
            return Err(PollError::Status(response.status().as_u16()));
        }
        match Limited::new(response.into_body(), LARGEST_DOCUMENT).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(PollError::TooLarge),
            Err(error) => Err(unreachable(&*error)),
        }
    }
}

/// Polls for ever and sends every document that is another than the last. Polling goes on during drains, at the
/// plain interval while `urgent`; after errors it slows down otherwise, never beyond five seconds.
pub async fn poll(
    mut imds: Imds,
    interval: Duration,
    documents: mpsc::Sender<Document>,
    mut urgent: watch::Receiver<bool>,
    metrics: Metrics,
    gate: Gate,
) {
    let mut good_at = (Instant::now(), None::<Timestamp>);
    let mut pause = interval;
    // One timer for everything, set before it is needed: each timer that is set or moved forward while a request
    // is out costs another wake-up of the program, and these are what an idle agent's CPU time goes into.
    let mut tick = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        let (asked_at, patience) = (Instant::now(), imds.patience());
        let next = asked_at + spread(interval);
        tick.as_mut().reset(next.min(asked_at + patience));
        let answer = {
            let mut get = pin!(imds.get());
            loop {
                tokio::select! {
                    biased;
                    answer = &mut get => break answer,
                    () = &mut tick => {
                        let rest = patience.saturating_sub(asked_at.elapsed());
                        if rest.is_zero() {
                            break Err(PollError::Silent(patience));
                        }
                        tick.as_mut().reset(Instant::now() + interval.min(rest));
                    }
                }
            }
        };
        match answer.and_then(|body| imds.news(body)) {
            Ok(news) => {
                metrics.polled(if news.is_some() { Poll::Changed } else { Poll::Unchanged });
                if pause > interval {
                    tracing::info!("the metadata service works again");
                }
                pause = interval;
                good_at = (Instant::now(), Some(Timestamp::now()));
                gate.open();
                if let Some(document) = news
                    && documents.send(document).await.is_err()
                {
                    return;
                }
            }
            Err(error) => {
                metrics.polled(error.result());
                if pause <= interval {
                    tracing::warn!(%error, reason = %Reason::MetadataNotUnderstood, "no document");
                } else {
                    tracing::debug!(%error, "still no document");
                }
                pause = (pause * 2).min(LONGEST_PAUSE.max(interval));
                if good_at.0.elapsed() > STALE {
                    gate.close(match good_at.1 {
                        Some(since) => format!("no document since {since:.0}"),
                        None => "no document yet".to_owned(),
                    });
                }
            }
        }
        // Under notice every poll counts, however many have failed; a notice that begins shortens a pause.
        loop {
            let is_plain = pause == interval || *urgent.borrow_and_update();
            let next = if is_plain { next } else { asked_at + spread(pause) };
            if tick.deadline() != next {
                tick.as_mut().reset(next);
            }
            tokio::select! {
                () = &mut tick => break,
                changed = urgent.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// A tenth of spread at most: the service allows five requests a second, and notices must not wait.
fn spread(pause: Duration) -> Duration {
    (pause + jittered(pause)) / 2
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
