//! What stands between the operator and its servers: counts writes and events, and has the fault strike.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::Response;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use spotpool_azure::Clock;
use tokio::time::Instant;

use super::apiserver::{Change, status};
use super::flow::{Flow, Line};
use super::{AHEAD, BACK, Fault, ON_ITS_WAY, OUTAGE, STALE};
use crate::simulation::refusal;

/// What Azure refuses is not sent again sooner. Real pauses are a little shorter than what timers of milliseconds measure.
const PAUSE: Duration = Duration::from_millis(990);

/// What the operator speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The apiserver.
    Kubernetes,
    /// ARM.
    Azure,
}

impl Server {
    /// How long the operator's clients wait for an answer.
    pub fn patience(self) -> Duration {
        match self {
            Self::Kubernetes => Duration::from_secs(30),
            Self::Azure => Duration::from_secs(20),
        }
    }
}

/// What comes back of a request.
pub enum Passed<T> {
    /// The server's answer.
    Answer(T),
    /// Something between answers, after so many seconds to be tried again.
    Refused(u16, Option<u64>),
    /// The connection breaks.
    Broken,
}

/// Counts begin when it is armed.
pub struct Between {
    clock: Clock,
    state: Mutex<State>,
    watches: Arc<Flow>,
}

#[derive(Default)]
struct State {
    armed: bool,
    fault: Option<(Fault, usize)>,
    struck: bool,
    writes: Vec<String>,
    /// How many events of Nodes were told of.
    events: usize,
    /// Which operator lives; those before are dead.
    alive: u64,
    killed: bool,
    out: Option<(Server, Instant)>,
    refuses: Option<(Server, Instant)>,
    /// When each write was last refused, and those that came again within [`PAUSE`].
    refused: BTreeMap<String, Instant>,
    hasty: Vec<String>,
    version: u64,
    stale_until: Option<Instant>,
    clock_off: SignedDuration,
}

impl Between {
    /// Nothing goes wrong until it is armed.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default(), watches: Flow::new(STALE) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on writes and events count, and `fault` strikes at its own. `version` is the apiserver's.
    pub fn arm(&self, fault: Option<(Fault, usize)>, version: u64) {
        let mut state = self.state();
        (state.armed, state.fault, state.version) = (true, fault, version);
    }

    /// The writes since it was armed.
    pub fn writes(&self) -> Vec<String> {
        self.state().writes.clone()
    }

    /// How many events of Nodes there were since it was armed.
    pub fn events(&self) -> usize {
        self.state().events
    }

    /// Whether the fault has struck and is over.
    pub fn is_over(&self) -> bool {
        let state = self.state();
        let now = Instant::now();
        let (out, refuses) = (state.out.map(|(_, until)| until), state.refuses.map(|(_, until)| until));
        let until = [out, refuses, state.stale_until, self.watches.late_until()];
        let lasts = until.into_iter().flatten().any(|until| until > now);
        (state.struck || state.fault.is_none()) && !lasts && !state.killed
    }

    /// Begins the life of the next operator and ends all before.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.alive += 1;
        state.killed = false;
        state.alive
    }

    /// Whether the operator has to die.
    pub fn is_killed(&self) -> bool {
        self.state().killed
    }

    fn lives(&self, operator: u64) -> bool {
        let state = self.state();
        state.alive == operator && !state.killed
    }

    /// What the operator takes for the time.
    pub fn operators_clock(self: &Arc<Self>) -> Clock {
        let between = self.clone();
        Arc::new(move || {
            let now = (between.clock)();
            now.saturating_add(between.state().clock_off).unwrap_or(now)
        })
    }

    /// The time for everybody else.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The version whose lists are shown, if not the last.
    pub fn shown(&self) -> Option<u64> {
        let state = self.state();
        state.stale_until.filter(|until| *until > Instant::now()).map(|_| state.version)
    }

    fn is_out(&self, server: Server) -> bool {
        self.state().out.is_some_and(|(away, until)| away == server && until > Instant::now())
    }

    /// Writes that were sent to Azure again when they had just been refused.
    pub fn hasty(&self) -> Vec<String> {
        self.state().hasty.clone()
    }

    /// Whether a write is refused because all are.
    fn refuses(&self, server: Server, what: &str) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        if !state.refuses.is_some_and(|(who, until)| who == server && until > now) {
            return false;
        }
        let before = state.refused.insert(what.to_owned(), now);
        if server == Server::Azure && before.is_some_and(|before| now - before < PAUSE) {
            state.hasty.push(what.to_owned());
        }
        true
    }

    /// Which fault strikes at this write.
    fn count(&self, what: String) -> Option<Fault> {
        let mut state = self.state();
        if !state.armed {
            return None;
        }
        state.writes.push(what);
        let now = state.writes.len();
        let (fault, _) = state.fault.filter(|(fault, at)| !fault.is_of_watch() && *at == now)?;
        state.struck = true;
        Some(fault)
    }

    /// Has the operator die.
    pub fn kill(&self) {
        self.state().killed = true;
    }

    /// Has a request carried out by `deliver`, or what becomes of it instead. `write` tells which write it is, if it is one.
    pub async fn pass<T: Send + 'static>(
        &self,
        operator: u64,
        server: Server,
        write: Option<String>,
        deliver: impl Future<Output = T> + Send + 'static,
    ) -> Passed<T> {
        if !self.lives(operator) {
            return std::future::pending().await;
        }
        if self.is_out(server) {
            return Passed::Broken;
        }
        let fault = write.clone().and_then(|what| self.count(what));
        if fault == Some(Fault::Refuse) {
            self.state().refuses = Some((server, Instant::now() + OUTAGE));
        }
        if write.is_some_and(|what| self.refuses(server, &what)) {
            return Passed::Refused(409, None);
        }
        let Some(fault) = fault else { return Passed::Answer(deliver.await) };
        match fault {
            Fault::KillBefore => {
                self.kill();
                std::future::pending().await
            }
            Fault::KillAfter | Fault::StaleAfterKill => {
                deliver.await;
                self.kill();
                if fault == Fault::StaleAfterKill {
                    self.state().stale_until = Some(Instant::now() + STALE);
                }
                std::future::pending().await
            }
            Fault::KillOnItsWay => {
                self.kill();
                tokio::spawn(async move {
                    tokio::time::sleep(ON_ITS_WAY).await;
                    deliver.await;
                });
                std::future::pending().await
            }
            Fault::LoseRequest => Passed::Broken,
            Fault::LoseAnswer => {
                deliver.await;
                Passed::Broken
            }
            Fault::Timeout => {
                deliver.await;
                tokio::time::sleep(server.patience()).await;
                Passed::Broken
            }
            Fault::LandsLate => {
                let late = server.patience() + Duration::from_secs(5);
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    deliver.await;
                });
                tokio::time::sleep(server.patience()).await;
                Passed::Broken
            }
            Fault::Conflict | Fault::Refuse => Passed::Refused(409, None),
            Fault::Throttle => Passed::Refused(429, Some(20)),
            Fault::ServerError => Passed::Refused(500, None),
            Fault::Outage => {
                self.state().out = Some((server, Instant::now() + OUTAGE));
                if server == Server::Kubernetes {
                    self.watches.tear();
                }
                Passed::Broken
            }
            Fault::ClockAhead | Fault::ClockBack => {
                self.state().clock_off = if fault == Fault::ClockAhead { AHEAD } else { -BACK };
                Passed::Answer(deliver.await)
            }
            Fault::Hide | Fault::Stall | Fault::Expire | Fault::Disconnect => Passed::Answer(deliver.await),
        }
    }

    /// The lines of a watch, as far as faults let them through.
    pub fn watch(
        self: &Arc<Self>,
        operator: u64,
        resource: &str,
        changes: BoxStream<'static, Change>,
    ) -> BoxStream<'static, Line> {
        let between = self.clone();
        let lines = changes.then(move |change| {
            let between = between.clone();
            async move {
                if !between.lives(operator) {
                    return std::future::pending().await;
                }
                between.shows(change.version).await;
                Ok((json!({"type": change.kind, "object": *change.object}).to_string() + "\n").into())
            }
        });
        let between = self.clone();
        let strikes = (resource == "nodes").then_some(move |_: &[u8]| between.event());
        self.watches.through(lines.boxed(), strikes)
    }

    /// Which fault strikes at this event.
    fn event(&self) -> Option<Fault> {
        let mut state = self.state();
        if !state.armed {
            return None;
        }
        state.events += 1;
        let now = state.events;
        let (fault, _) = state.fault.filter(|(fault, at)| fault.is_of_watch() && *at == now)?;
        state.struck = true;
        Some(fault)
    }

    /// Until what this version has brought is shown.
    async fn shows(&self, version: u64) {
        while self.shown().is_some_and(|shown| shown < version) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A refusal that something between makes up, in the words of the server that it stands for.
pub fn made_up(server: Server, code: u16, retry_after: Option<u64>) -> Result<Response<Bytes>, http::Error> {
    if server == Server::Azure {
        return Ok(refusal(code, retry_after));
    }
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let mut answer = Response::builder().status(code);
    if let Some(seconds) = retry_after {
        answer = answer.header(http::header::RETRY_AFTER, seconds);
    }
    answer.body(status(code, reason, "made up on the way").to_string().into())
}
