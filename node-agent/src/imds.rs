//! Asking Azure's metadata service for the Scheduled Events document, once a second, for ever.

use std::fmt::Write;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
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
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    has_answered: bool,
    last: Bytes,
    pulse: Pulse,
}

/// When the last good document came, whether or not it was another: to be looked at, without waking anyone.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicI64>);

impl Pulse {
    /// The time of the last good document.
    pub fn last(&self) -> Option<Timestamp> {
        let millis = self.0.load(Ordering::Relaxed);
        Timestamp::from_millisecond(millis).ok().filter(|_| millis != 0)
    }

    fn beat(&self, now: Timestamp) {
        self.0.store(now.as_millisecond(), Ordering::Relaxed);
    }
}

/// Tells the metadata service to go ahead with an event.
#[derive(Clone)]
pub struct Approver {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
}

impl Approver {
    /// Approves. The service answers 200 to a valid id, also again and again.
    pub async fn approve(&self, event_id: &str) -> Result<(), PollError> {
        let body = serde_json::json!({"StartRequests": [{"EventId": event_id}]}).to_string();
        let asked = ask(&self.client, Method::POST, &self.uri, body.into());
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer.map(|_| ()),
            Err(_) => Err(PollError::Silent(ANSWER)),
        }
    }
}

impl Imds {
    /// A client of the service at `endpoint`, which may carry a path prefix.
    pub fn new(endpoint: &Url) -> Result<Self, http::uri::InvalidUri> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let uri = format!("{}/{PATH}", endpoint.as_str().trim_end_matches('/')).parse()?;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Ok(Self { client, uri, has_answered: false, last: Bytes::new(), pulse: Pulse::default() })
    }

    /// When it last answered well.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// To approve events with.
    pub fn approver(&self) -> Approver {
        Approver { client: self.client.clone(), uri: self.uri.clone() }
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
        ask(&self.client, Method::GET, &self.uri, Bytes::new()).await
    }
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    method: Method,
    uri: &Uri,
    body: Bytes,
) -> Result<Bytes, PollError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri.clone();
    request.headers_mut().insert("metadata", http::HeaderValue::from_static("true"));
    let unreachable = |error: &dyn std::error::Error| PollError::Unreachable(chain(error));
    let response = client.request(request).await.map_err(|error| unreachable(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(PollError::Status(response.status().as_u16()));
    }
    match Limited::new(response.into_body(), LARGEST_DOCUMENT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(PollError::TooLarge),
        Err(error) => Err(unreachable(&*error)),
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
    slots: TimerSlots,
) {
    let mut good_at = (Instant::now(), None::<Timestamp>);
    let mut pause = interval;
    // One timer for everything, set before it is needed: each timer that is set or moved forward while a request
    // is out costs another wake-up of the program, and these are what an idle agent's CPU time goes into.
    let mut tick = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        let (asked_at, patience) = (Instant::now(), imds.patience());
        let next = slots.near(asked_at + spread(interval), interval);
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
                let now = Timestamp::now();
                good_at = (Instant::now(), Some(now));
                imds.pulse.beat(now);
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
                pause = longer(pause, interval);
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

/// Moments at which tokio's timer fires with one wake-up. It keeps timers of more than 64 ms in slots of 64 ms,
/// wakes up at the beginning of the slot, and once more at the very time if that is another: of the wake-ups of
/// an idle agent a third.
#[derive(Clone, Copy, Debug)]
pub struct TimerSlots {
    began: Instant,
}

impl TimerSlots {
    const LENGTH: Duration = Duration::from_millis(64);

    /// To be called as the runtime begins.
    pub fn begin() -> Self {
        // Times are rounded up to whole milliseconds after its beginning, which was a moment ago.
        let began = Instant::now();
        Self { began: began.checked_sub(Duration::from_millis(1)).unwrap_or(began) }
    }

    /// The slot nearest to `time`, unless that would move a short interval by much.
    fn near(self, time: Instant, interval: Duration) -> Instant {
        if interval < 10 * Self::LENGTH {
            return time;
        }
        let since = time.saturating_duration_since(self.began) + Self::LENGTH / 2;
        let slots = since.as_millis() / Self::LENGTH.as_millis();
        self.began + Self::LENGTH * u32::try_from(slots).unwrap_or(u32::MAX)
    }
}

/// The pause after one more error.
fn longer(pause: Duration, interval: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE.max(interval))
}

/// A tenth of spread at most: the service allows five requests a second, and notices must not wait.
fn spread(pause: Duration) -> Duration {
    (pause + jittered(pause)) / 2
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use spotpool_runtime::admin::Readiness;
    use spotpool_runtime::catalogue::Catalogue;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const EMPTY: &str = r#"{"DocumentIncarnation":1,"Events":[]}"#;

    /// A metadata service that gives each of `answers` once, one after another, and then hangs. An empty one hangs up.
    async fn service(answers: Vec<String>) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/vm/7/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut request).await {
                    let asked = String::from_utf8_lossy(&request[..read]).to_lowercase();
                    assert!(asked.starts_with("get /vm/7/metadata/scheduledevents?api-version=2020-07-01 "));
                    assert!(asked.contains("metadata: true") && !asked.contains("x-forwarded-for"));
                    match answers.next() {
                        Some(answer) if !answer.is_empty() => {
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                        Some(_) => break,
                        None => std::future::pending().await,
                    }
                }
            }
        });
        url.parse().unwrap()
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_poll_a_second_falls_on_the_timers_slots_and_stays_within_its_spread() {
        let slots = TimerSlots::begin();
        let second = Duration::from_secs(1);
        for _ in 0..1_000 {
            let wanted = Instant::now() + spread(second);
            let near = slots.near(wanted, second);
            assert_eq!(near.duration_since(slots.began).as_nanos() % TimerSlots::LENGTH.as_nanos(), 0);
            let moved = near.max(wanted) - near.min(wanted);
            assert!(moved <= TimerSlots::LENGTH / 2, "moved by {moved:?}");
        }
        let soon = Instant::now() + Duration::from_millis(100);
        assert_eq!(slots.near(soon, Duration::from_millis(100)), soon);
    }

    #[test]
    fn errors_never_slow_polling_down_beyond_five_seconds() {
        for (millis, wanted) in [(100, 5_000), (1_000, 5_000), (4_999, 5_000), (60_000, 60_000)] {
            let interval = Duration::from_millis(millis);
            let pauses: Vec<_> =
                std::iter::successors(Some(interval), |pause| Some(longer(*pause, interval)))
                    .take(20)
                    .collect();
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert_eq!(pauses.last(), Some(&Duration::from_millis(wanted)));
        }
    }

    #[tokio::test]
    async fn an_event_is_approved_in_azures_words_and_a_refusal_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let approver = Imds::new(&url).unwrap().approver();
        let answers = tokio::spawn(async move {
            let mut asked = Vec::new();
            let (mut stream, _) = listener.accept().await.unwrap();
            for status in ["200 OK", "400 Bad Request"] {
                let mut request = vec![0; 4096];
                let mut length = 0;
                // Head and body may come apart.
                while !request[..length].ends_with(b"]}") {
                    length += stream.read(&mut request[length..]).await.unwrap();
                }
                asked.push(String::from_utf8_lossy(&request[..length]).to_lowercase());
                stream.write_all(answer(status, "{}").as_bytes()).await.unwrap();
            }
            asked
        });
        approver.approve("A-1").await.unwrap();
        assert!(matches!(approver.approve("A-1").await, Err(PollError::Status(400))));
        for asked in answers.await.unwrap() {
            assert!(asked.starts_with("post /metadata/scheduledevents?api-version=2020-07-01 "), "{asked}");
            assert!(asked.contains("metadata: true"), "{asked}");
            assert!(asked.ends_with(r#"{"startrequests":[{"eventid":"a-1"}]}"#), "{asked}");
        }
    }

    async fn ask(imds: &mut Imds) -> Result<Option<Document>, PollError> {
        let body = imds.get().await?;
        imds.news(body)
    }

    #[tokio::test]
    async fn every_answer_has_a_meaning() {
        let huge = "x".repeat(LARGEST_DOCUMENT + 1);
        let url = service(vec![
            answer("200 OK", EMPTY),
            answer("200 OK", EMPTY),
            answer("500 Internal Server Error", EMPTY),
            answer("410 Gone", ""),
            answer("429 Too Many Requests", ""),
            answer("200 OK", ""),
            answer("200 OK", "{\"Events\":"),
            answer("200 OK", &huge),
            String::new(),
            answer("200 OK", EMPTY),
        ])
        .await;
        let mut imds = Imds::new(&url).unwrap();
        assert_eq!(ask(&mut imds).await.unwrap().unwrap().incarnation, Some(1));
        assert_eq!(ask(&mut imds).await.unwrap(), None);
        assert!(matches!(ask(&mut imds).await, Err(PollError::Status(500))));
        assert!(matches!(ask(&mut imds).await, Err(PollError::Status(410))));
        assert!(matches!(ask(&mut imds).await, Err(PollError::Status(429))));
        assert!(matches!(ask(&mut imds).await, Err(PollError::NotUnderstood(NotUnderstood::Empty))));
        assert!(matches!(ask(&mut imds).await, Err(PollError::NotUnderstood(_))));
        assert!(matches!(ask(&mut imds).await, Err(PollError::TooLarge)));
        assert!(matches!(ask(&mut imds).await, Err(PollError::Unreachable(_))));
        // None of these is the last document: it still is the one that was understood.
        assert_eq!(ask(&mut imds).await.unwrap(), None);
        let nobody = Imds::new(&"http://127.0.0.1:1".parse().unwrap()).unwrap();
        assert!(matches!(nobody.get().await, Err(PollError::Unreachable(_))));
    }

    #[tokio::test]
    async fn a_poll_that_hangs_is_given_up_and_the_next_goes_on() {
        let event = r#"{"DocumentIncarnation":2,"Events":[{"EventId":"A","EventType":"Preempt"}]}"#;
        let slow = service(vec![answer("200 OK", EMPTY)]).await;
        let mut imds = Imds::new(&slow).unwrap();
        assert!(ask(&mut imds).await.unwrap().is_some());
        // Now it hangs.
        let (documents, mut received) = mpsc::channel(4);
        let (_urgent, is_urgent) = watch::channel(true);
        let readiness = Readiness::default();
        let metrics = Metrics::register(&mut Catalogue::new("spotpool_agent"));
        let polling = poll(
            imds,
            Duration::from_millis(100),
            documents,
            is_urgent,
            metrics,
            readiness.gate("imds"),
            TimerSlots::begin(),
        );
        let polling = tokio::spawn(polling);
        tokio::time::sleep(ANSWER + Duration::from_millis(300)).await;
        assert!(received.try_recv().is_err() && !polling.is_finished());
        polling.abort();

        let quick =
            service(vec![answer("503 Service Unavailable", ""), String::new(), answer("200 OK", event)])
                .await;
        let (documents, mut received) = mpsc::channel(4);
        let (_urgent, is_urgent) = watch::channel(true);
        let metrics = Metrics::register(&mut Catalogue::new("spotpool_agent"));
        let imds = Imds::new(&quick).unwrap();
        tokio::spawn(poll(
            imds,
            Duration::from_millis(100),
            documents,
            is_urgent,
            metrics,
            readiness.gate("imds"),
            TimerSlots::begin(),
        ));
        let document = received.recv().await.unwrap();
        assert_eq!(document.incarnation, Some(2));
        assert_eq!(readiness.waiting(), "");
    }
}
