//! Sends requests to ARM: gated by the lease, inside the budgets, with ids to find them again.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::Clock;
use crate::error::{AzureError, Class, retry_after};
use crate::http::Transport;
use crate::throttle::{Kind, Throttle};

/// Asked before each write; a write is refused where it says no. The operator's leader lease.
pub type WriteGate = Arc<dyn Fn() -> bool + Send + Sync>;

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// A read waits that long for its turn; then it is refused, so that nobody hangs.
const LONGEST_TURN: Duration = Duration::from_secs(10);
/// … a further page waits longer: what was read of its list would be read again.
const LONGEST_PAGE_TURN: Duration = Duration::from_mins(10);
/// All of a request, whatever the transport's own limits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A GA version of AKS's API: `YYYY-MM-DD`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(String);

impl ApiVersion {
    /// As in the query.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `2025-10-01`: the newest that has reached every region and cloud. Newer ones come monthly and get to the
/// sovereign clouds months later; a version that a region does not know fails every request there, an older
/// one lacks nothing that we use, and GA versions are served for years.
impl Default for ApiVersion {
    fn default() -> Self {
        Self(DEFAULT_API_VERSION.to_owned())
    }
}

/// See [`ApiVersion::default`].
pub const DEFAULT_API_VERSION: &str = "2025-10-01";

impl FromStr for ApiVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let date: Option<jiff::civil::Date> = text.parse().ok();
        match date {
            Some(date) if text.len() == 10 && date.to_string() == text => Ok(Self(text.to_owned())),
            _ => Err(
                "must be the date of a GA version of AKS's API, such as 2025-10-01; preview versions are retired within a year",
            ),
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The way to ARM for one cluster.
pub(crate) struct Wire {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) user_agent: HeaderValue,
    pub(crate) may_write: WriteGate,
    pub(crate) clock: Clock,
    pub(crate) throttle: Mutex<Throttle>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// When a request went out, which is after its turn came; an extension of its answer. What happens later may not be in that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentAt(pub(crate) Timestamp);

impl Wire {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends; an answer that is no success is an error.
    pub(crate) async fn send(
        &self,
        kind: Kind<'_>,
        mut request: Request<Bytes>,
    ) -> Result<Response<Bytes>, AzureError> {
        // No write is started by one who has lost the lease. Writes do not wait for their turn: this is the last
        // moment before the wire.
        if request.method() != Method::GET && !(self.may_write)() {
            return Err(AzureError::new(Class::Conflict, "NotLeader", "the leader lease is lost"));
        }
        self.turn(kind).await?;
        let sent = SentAt(self.now());
        let id = request_id();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(CLIENT_REQUEST_ID, id);
        }
        // Without the query: it may be signed.
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.transport.execute(request)).await;
        let answer = answer.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", REQUEST_TIMEOUT.as_secs());
            Err(AzureError::new(Class::Transient, "Timeout", message))
        });
        let now = self.now();
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%method, path, client_request_id = id, %error, "Azure gave no answer");
                if error.class == Class::Transient {
                    self.throttle().unanswered(now);
                }
                return Err(error);
            }
        };
        let status = answer.status();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        tracing::debug!(
            %method,
            path,
            status = status.as_u16(),
            client_request_id = id,
            correlation_id = header("x-ms-correlation-request-id").unwrap_or_default(),
            request_id = header("x-ms-request-id").unwrap_or_default(),
            "Azure answered"
        );
        match status.as_u16() {
            429 => self.throttle().refused(kind, retry_after(answer.headers()), now),
            500.. => self.throttle().unanswered(now),
            _ => {
                let left = match kind {
                    Kind::Read | Kind::Page | Kind::Status => "x-ms-ratelimit-remaining-subscription-reads",
                    Kind::Delete | Kind::Put(..) => "x-ms-ratelimit-remaining-subscription-writes",
                };
                let left = header(left).and_then(|value| value.parse().ok());
                self.throttle().answered(kind, left, now);
            }
        }
        if status.is_success() {
            answer.extensions_mut().insert(sent);
            return Ok(answer);
        }
        let error = AzureError::from_response(&answer);
        if method != Method::GET {
            // With what Azure's support asks for.
            tracing::info!(
                %method,
                path,
                status = status.as_u16(),
                class = %error.class,
                code = error.code,
                client_request_id = id,
                correlation_id = error.correlation_id().unwrap_or_default(),
                "Azure refused a write"
            );
        }
        Err(error)
    }

    /// Reads wait a little for their turn. Writes never do: their caller has others to send meanwhile.
    async fn turn(&self, kind: Kind<'_>) -> Result<(), AzureError> {
        let mut patience = match kind {
            Kind::Read => LONGEST_TURN,
            Kind::Page => LONGEST_PAGE_TURN,
            Kind::Delete | Kind::Status | Kind::Put(..) => Duration::ZERO,
        };
        loop {
            let taken = self.throttle().take(kind, self.now());
            let Err(wait) = taken else { return Ok(()) };
            if wait > patience {
                return Err(AzureError::over_budget(
                    match kind {
                        Kind::Read | Kind::Page => "read of agent pools",
                        Kind::Delete => "deletion of machines",
                        Kind::Status => "question for an operation",
                        Kind::Put(..) => "write of the agent pool",
                    },
                    wait,
                ));
            }
            // A clock of a test may not move with tokio's.
            patience = patience.saturating_sub(wait.max(Duration::from_millis(100)));
            tokio::time::sleep(wait).await;
        }
    }
}

/// A request without a body; `url` may be one that Azure gave us.
pub(crate) fn request(method: Method, url: &Url) -> Result<Request<Bytes>, AzureError> {
    let request = Request::builder().method(method).uri(url.as_str()).body(Bytes::new());
    request.map_err(|_| AzureError::new(Class::Invalid, "InvalidRequest", "the URL cannot be requested"))
}

/// A request with JSON.
pub(crate) fn json_request(method: Method, url: &Url, body: &Value) -> Result<Request<Bytes>, AzureError> {
    let mut request = request(method, url)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.body_mut() = body.to_string().into();
    Ok(request)
}

/// Parses an answer.
pub(crate) fn understand<T: DeserializeOwned>(body: &[u8]) -> Result<T, AzureError> {
    serde_json::from_slice(body)
        .map_err(|error| not_understood(format!("Azure's answer is not as documented: {error}")))
}

pub(crate) fn not_understood(why: impl AsRef<str>) -> AzureError {
    AzureError::new(Class::Transient, "NotUnderstood", why)
}

/// A random UUID (version 4), for Azure's support and our log. Not a secret.
fn request_id() -> String {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let random = RandomState::new();
    let sent = SENT.fetch_add(1, Ordering::Relaxed);
    let (high, low) = (random.hash_one(sent), random.hash_one(!sent));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        (low >> 48) & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dates_are_api_versions() {
        assert_eq!("2026-08-01".parse::<ApiVersion>().unwrap().as_str(), "2026-08-01");
        assert!(DEFAULT_API_VERSION.parse::<ApiVersion>().is_ok());
        for wrong in [
            "",
            "2026-08",
            "2026-8-1",
            "2026-08-01-preview",
            "2026-02-30",
            "latest",
            "20260801",
            "+02026-08-1",
        ] {
            let error = wrong.parse::<ApiVersion>().unwrap_err();
            assert!(error.contains("2025-10-01"), "{wrong}");
        }
    }

    #[test]
    fn request_ids_are_uuids_and_differ() {
        let (one, other) = (request_id(), request_id());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(one.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
    }
}
