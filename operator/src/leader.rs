//! One leader at a time, by a Lease of our own that fences itself.
//!
//! No lease crate gives up when it cannot renew; ours counts on the monotonic clock from the moment before
//! the last renewal was *sent*, so that the leader knows it has lost before anybody else can win. Writes ask
//! [`Leadership::holds`] at the last moment; one already on the wire is fenced by its resourceVersion or
//! `If-Match`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio_util::sync::CancellationToken;

/// Whether this process may write. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Leadership(Arc<Mutex<Option<Instant>>>);

impl Leadership {
    /// For a single replica without election.
    pub fn always() -> Self {
        // Far enough: a century.
        Self(Arc::new(Mutex::new(Instant::now().checked_add(Duration::from_hours(24 * 365 * 100)))))
    }

    /// Whether the lease is held at this very moment.
    pub fn holds(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn until(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// The leader has lost its lease. The process must end: what runs belongs to a leader.
#[derive(Debug, thiserror::Error)]
#[error("the leader lease is lost: {0}")]
pub struct LeaseLost(String);

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    leadership: Leadership,
}

impl Elector {
    /// `duration`: how long others wait after the last renewal before they take over. The leader itself gives
    /// up after two thirds of it.
    pub fn new(
        api: Api<Lease>,
        name: &str,
        identity: String,
        duration: Duration,
        leadership: Leadership,
    ) -> Self {
        Self { api, name: name.to_owned(), identity, duration, leadership }
    }

    fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    fn retry_period(&self) -> Duration {
        self.duration / 8
    }

    /// Waits until this process leads. `None` if `shutdown` came first.
    pub async fn acquire(&self, shutdown: &CancellationToken) -> Option<Lease> {
        // Another holder's lease is over when it has not changed for its duration on *our* clock.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(Some(lease)) => {
                    tracing::info!(identity = self.identity, "leading");
                    return Some(lease);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot reach the leader lease"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.retry_period()) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn try_acquire(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Lease>, kube::Error> {
        let sent = Instant::now();
        let Some(current) = self.timely(self.api.get_opt(&self.name)).await? else {
            let lease = self.ours(None);
            let lease = self.timely(self.api.create(&PostParams::default(), &lease)).await;
            return self.taken(lease, sent);
        };
        let spec = current.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity {
            let version = current.metadata.resource_version.clone().unwrap_or_default();
            let theirs = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(1) as u64);
            match seen {
                Some((last, since)) if *last == version => {
                    if since.elapsed() < theirs.max(self.duration) {
                        return Ok(None);
                    }
                    tracing::info!(holder, "the leader has not renewed its lease: taking over");
                }
                _ => {
                    *seen = Some((version, Instant::now()));
                    return Ok(None);
                }
            }
        }
        let lease = self.ours(Some(&current));
        let lease = self.timely(self.api.replace(&self.name, &PostParams::default(), &lease)).await;
        self.taken(lease, sent)
    }

    fn taken(&self, lease: Result<Lease, kube::Error>, sent: Instant) -> Result<Option<Lease>, kube::Error> {
        match lease {
            Ok(lease) => {
                self.leadership.until(Some(sent + self.renew_deadline()));
                Ok(Some(lease))
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until the lease is lost, or gives it back at `shutdown`.
    pub async fn keep(&self, mut lease: Lease, shutdown: &CancellationToken) -> Result<(), LeaseLost> {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.retry_period()) => {}
                () = shutdown.cancelled() => {
                    self.release(lease).await;
                    return Ok(());
                }
            }
            let sent = Instant::now();
            if !self.leadership.holds() {
                return Err(LeaseLost(format!("not renewed for {:?}", renewed.elapsed())));
            }
            let renewal = self.ours(Some(&lease));
            match self.timely(self.api.replace(&self.name, &PostParams::default(), &renewal)).await {
                Ok(renewal) => {
                    lease = renewal;
                    renewed = sent;
                    self.leadership.until(Some(sent + self.renew_deadline()));
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    // Either somebody took it, or a renewal of ours landed although its answer was lost.
                    let current = self.timely(self.api.get(&self.name)).await;
                    match current {
                        Ok(current) if holder(&current) == Some(&self.identity) => lease = current,
                        Ok(current) => {
                            self.leadership.until(None);
                            return Err(LeaseLost(format!(
                                "{} has it",
                                holder(&current).unwrap_or("nobody")
                            )));
                        }
                        Err(error) => tracing::warn!(%error, "cannot read the leader lease"),
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot renew the leader lease"),
            }
        }
    }

    /// Lets the next leader begin at once. Nothing of ours may be written any more when this is called.
    async fn release(&self, lease: Lease) {
        self.leadership.until(None);
        let mut lease = self.ours(Some(&lease));
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        if let Err(error) = self.timely(self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            tracing::warn!(%error, "the leader lease could not be given back; the next leader waits for it");
        }
    }

    fn ours(&self, current: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = current.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!mine && current.is_some());
        Lease {
            metadata: current.map_or_else(
                || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.duration.as_secs().max(1) as i32),
                acquire_time: if mine { before.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    /// A request that hangs must not eat the time in which another could renew.
    async fn timely<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        tokio::time::timeout(self.duration / 4, request)
            .await
            .unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}
