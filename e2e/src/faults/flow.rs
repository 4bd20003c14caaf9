//! The lines of watches, as far as faults let them through.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Fault;
use super::apiserver::status;

/// A line, with its end.
pub type Line = io::Result<Bytes>;

/// All watches of one operator. Of Nodes alone events are held back, or hidden; any may break.
pub struct Flow {
    /// How late a stalled watch is, and how long an event stays hidden.
    late: Duration,
    held: Mutex<Held>,
    /// Told when the apiserver goes away.
    gone: watch::Sender<()>,
}

#[derive(Default)]
struct Held {
    stalled_until: Option<Instant>,
    hidden_until: Option<Instant>,
}

impl Flow {
    /// Nothing is held back yet.
    pub fn new(late: Duration) -> Arc<Self> {
        Arc::new(Self { late, held: Mutex::default(), gone: watch::Sender::new(()) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks all watches.
    pub fn tear(&self) {
        self.gone.send_replace(());
    }

    /// Until when something is late or hidden.
    pub fn late_until(&self) -> Option<Instant> {
        let held = self.held();
        held.stalled_until.max(held.hidden_until)
    }

    /// One watch. `strikes` is asked at each event of Nodes which fault strikes there, and absent for other watches.
    pub fn through<F>(
        self: &Arc<Self>,
        lines: BoxStream<'static, Line>,
        strikes: Option<F>,
    ) -> BoxStream<'static, Line>
    where
        F: Fn(&[u8]) -> Option<Fault> + Send + Sync + 'static,
    {
        let begun = (self.clone(), lines, self.gone.subscribe(), strikes);
        stream::unfold(Some(begun), |flow| async move {
            let (flow, mut lines, mut gone, strikes) = flow?;
            loop {
                let line = tokio::select! {
                    line = lines.next() => line?,
                    _ = gone.changed() => return Some((Err(broken()), None)),
                    () = flow.uncovers(), if strikes.is_some() => return Some((Ok(too_old()), None)),
                };
                let (Ok(text), Some(strikes_at)) = (&line, &strikes) else {
                    return Some((line, Some((flow, lines, gone, strikes))));
                };
                let until = Instant::now() + flow.late;
                match strikes_at(text) {
                    Some(Fault::Hide) => {
                        flow.held().hidden_until = Some(until);
                        continue;
                    }
                    Some(Fault::Expire) => return Some((Ok(too_old()), None)),
                    Some(Fault::Disconnect) => return Some((Err(broken()), None)),
                    Some(Fault::Stall) => flow.held().stalled_until = Some(until),
                    _ => {}
                }
                let stalled = flow.held().stalled_until;
                if let Some(until) = stalled {
                    tokio::time::sleep_until(until).await;
                }
                return Some((line, Some((flow, lines, gone, strikes))));
            }
        })
        .boxed()
    }

    /// Until the watch in which an event was hidden begins anew.
    async fn uncovers(&self) {
        let until = self.held().hidden_until;
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
        self.held().hidden_until = None;
    }
}

/// The line that ends a watch whose version is too old.
fn too_old() -> Bytes {
    let gone = status(410, "Expired", "too old resource version");
    (json!({"type": "ERROR", "object": gone}).to_string() + "\n").into()
}

/// What breaks a connection.
pub fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "broken by the test")
}
