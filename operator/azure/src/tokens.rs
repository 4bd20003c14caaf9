//! Azure's tokens: kept, renewed in time, and sent nowhere but to Azure.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use url::{Origin, Url};

use crate::Clock;
use crate::error::{AzureError, Class};
use crate::http::Transport;

/// A token is taken for expired this much before it is: it still has to travel.
const TRAVEL_TIME: SignedDuration = SignedDuration::from_secs(30);
/// The metadata service gives out the same token until shortly before its end: it is not asked again at once.
const LEAST_BETWEEN_RENEWALS: SignedDuration = SignedDuration::from_mins(1);
/// After this many failures in a row the wait no longer doubles: 64 s.
const MOST_DOUBLINGS: u32 = 6;
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// Azure's tokens live for a day at most; a longer life is not believed.
const LONGEST_LIFE: Duration = Duration::from_hours(24);

/// A token or an assertion. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps `secret`.
    pub fn new(secret: impl Into<Arc<str>>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, to be put on the wire and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A fresh token and how long it is good for.
pub(crate) struct Issued {
    pub(crate) secret: Secret,
    pub(crate) life: Duration,
}

/// Whatever makes tokens.
pub(crate) type Issuer = Box<dyn Fn() -> BoxFuture<'static, Result<Issued, AzureError>> + Send + Sync>;

/// Gives tokens for ARM.
///
/// A token is renewed in the background once half of its life is over, so that an outage of Entra ID as long
/// as the other half is not felt. One request for a token is made at a time. After a failure nobody asks again
/// for 1 s, then 2 s, up to 64 s or what Azure says; the answer until then is the failure.
#[derive(Clone)]
pub struct TokenSource(Arc<Shared>);

struct Shared {
    issue: Issuer,
    now: Clock,
    state: Mutex<State>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failure: Option<Failure>,
    renewing: bool,
}

struct Held {
    secret: Secret,
    since: Timestamp,
    renew_at: Timestamp,
    good_until: Timestamp,
}

struct Failure {
    error: AzureError,
    in_a_row: u32,
    until: Timestamp,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").finish_non_exhaustive()
    }
}

impl TokenSource {
    pub(crate) fn new(issue: Issuer, now: Clock) -> Self {
        let (state, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Shared { issue, now, state, asking }))
    }

    /// A token that is good now.
    pub async fn token(&self) -> Result<Secret, AzureError> {
        if let Some(secret) = self.held() {
            return Ok(secret);
        }
        let _asking = self.0.asking.lock().await;
        // Who waited here finds what the one before got.
        match self.held() {
            Some(secret) => Ok(secret),
            None => self.0.ask().await,
        }
    }

    /// Drops `refused`, which Azure would not take, so that the next token is a fresh one. Says whether that is
    /// any use: a token that was just issued would be followed by its like.
    pub fn discard(&self, refused: &Secret) -> bool {
        let now = (self.0.now)();
        let mut state = self.0.state();
        match &state.held {
            Some(held) if held.secret == *refused => {
                let old = now >= held.since + LEAST_BETWEEN_RENEWALS;
                if old {
                    state.held = None;
                }
                old
            }
            // Somebody has renewed it meanwhile, or it ran out.
            _ => true,
        }
    }

    fn held(&self) -> Option<Secret> {
        let now = (self.0.now)();
        let mut state = self.0.state();
        let held = state.held.as_ref().filter(|held| now < held.good_until)?;
        let (secret, due) = (held.secret.clone(), now >= held.renew_at);
        let may_ask = state.failure.as_ref().is_none_or(|failure| now >= failure.until);
        if due && may_ask && !state.renewing {
            state.renewing = true;
            tokio::spawn(renew(Renewal(self.0.clone())));
        }
        Some(secret)
    }
}

/// A renewal in the background; over when it is dropped, however it ends.
struct Renewal(Arc<Shared>);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.state().renewing = false;
    }
}

async fn renew(renewal: Renewal) {
    let shared = &renewal.0;
    let _asking = shared.asking.lock().await;
    if let Err(error) = shared.ask().await {
        tracing::warn!(%error, "the Azure token could not be renewed; the old one is still good for a while");
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self) -> Result<Secret, AzureError> {
        let now = (self.now)();
        if let Some(failure) = self.state().failure.as_ref().filter(|failure| now < failure.until) {
            return Err(failure.error.clone());
        }
        let issued = (self.issue)().await;
        let now = (self.now)();
        let mut state = self.state();
        match issued {
            Ok(Issued { secret, life }) => {
                let life = signed(life.min(LONGEST_LIFE));
                let travel = TRAVEL_TIME.min(life / 10);
                state.held = Some(Held {
                    secret: secret.clone(),
                    since: now,
                    renew_at: now + (life / 2).max(LEAST_BETWEEN_RENEWALS),
                    good_until: now + (life - travel),
                });
                state.failure = None;
                Ok(secret)
            }
            Err(error) => {
                let in_a_row = state.failure.as_ref().map_or(0, |failure| failure.in_a_row) + 1;
                let doubled = Duration::from_secs(1 << (in_a_row - 1).min(MOST_DOUBLINGS));
                let wait = error.retry_after.unwrap_or_default().max(doubled).min(LONGEST_WAIT);
                state.failure = Some(Failure { error: error.clone(), in_a_row, until: now + signed(wait) });
                Err(error)
            }
        }
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Signs what goes to ARM, and lets nothing go anywhere else.
#[derive(Debug)]
pub struct Authorized {
    transport: Arc<dyn Transport>,
    origin: Origin,
    tokens: Option<TokenSource>,
}

impl Authorized {
    /// Requests to `endpoint`'s scheme, host and port, with a token if there is a source of them.
    pub fn new(
        transport: Arc<dyn Transport>,
        endpoint: &Url,
        tokens: Option<TokenSource>,
    ) -> Result<Self, AzureError> {
        if tokens.is_some() && endpoint.scheme() != "https" && !is_loopback(endpoint) {
            let message = format!("no token is sent over {}: {endpoint} must be https", endpoint.scheme());
            return Err(AzureError::new(Class::Invalid, "InvalidRequest", message));
        }
        Ok(Self { transport, origin: endpoint.origin(), tokens })
    }

    async fn signed(&self, request: Request<Bytes>) -> Result<Response<Bytes>, AzureError> {
        let origin = Url::parse(&request.uri().to_string()).map(|url| url.origin());
        if origin.as_ref() != Ok(&self.origin) {
            let message = format!("a request to another host than {}", self.origin.ascii_serialization());
            return Err(AzureError::new(Class::Invalid, "InvalidRequest", message));
        }
        let Some(tokens) = &self.tokens else { return self.transport.execute(request).await };
        let token = tokens.token().await?;
        let answer = self.transport.execute(with_token(request.clone(), &token)?).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !tokens.discard(&token) {
            return Ok(answer);
        }
        // Revoked, or issued before a change of keys: a fresh one may do. Whatever was refused with 401 was not
        // carried out, so writes too may be sent again.
        match tokens.token().await {
            Ok(fresh) if fresh != token => self.transport.execute(with_token(request, &fresh)?).await,
            Ok(_) => Ok(answer),
            Err(error) => Err(error),
        }
    }
}

impl Transport for Authorized {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        self.signed(request).boxed()
    }
}

fn with_token(mut request: Request<Bytes>, token: &Secret) -> Result<Request<Bytes>, AzureError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| AzureError::new(Class::Transient, "NotUnderstood", "the token is no header value"))?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(request)
}

/// Whether `url` is on this machine, where a simulator may be.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests;
