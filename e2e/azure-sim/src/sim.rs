//! The model behind a lock, and the task that moves it on as time passes.
//!
//! Time comes from a [`Clock`]. With [`tokio_clock`], a test under `tokio::time::pause()` has a cloud whose time
//! is tokio's: spawn [`Sim::drive`], send requests to [`crate::server::router`] in the same process, and hours
//! pass in moments.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::model::{Cloud, later};

/// Tells what time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The time of the machine.
pub fn wall_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// `start`, and from then on the time of tokio, which a test may pause and advance. To be called inside a
/// runtime.
pub fn tokio_clock(start: Timestamp) -> Clock {
    let began = tokio::time::Instant::now();
    Arc::new(move || later(start, began.elapsed()))
}

/// A handle on the one running model.
#[derive(Debug, Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    clock: Clock,
    wake: Notify,
    nodes: watch::Sender<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    cloud: Cloud,
    due: Option<Timestamp>,
    last: Timestamp,
}

impl Inner {
    /// The time, kept from running backwards.
    fn now(&mut self, clock: &Clock) -> Timestamp {
        self.last = self.last.max(clock());
        self.last
    }
}

impl Sim {
    /// Puts a model behind the lock, in real time.
    pub fn new(cloud: Cloud) -> Self {
        Self::with_clock(cloud, wall_clock())
    }

    /// Puts a model behind the lock, in the time that the clock tells.
    pub fn with_clock(cloud: Cloud, clock: Clock) -> Self {
        let inner = Inner { cloud, due: None, last: clock() };
        let (inner, wake, nodes) = (Mutex::new(inner), Notify::new(), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { inner, clock, wake, nodes }) }
    }

    /// What time it is for the model.
    pub fn now(&self) -> Timestamp {
        self.look(|_, now| now)
    }

    /// Changes the model, as of now.
    pub fn change<R>(&self, change: impl FnOnce(&mut Cloud, Timestamp) -> R) -> R {
        let (result, due_changed) = {
            let mut inner = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let now = inner.now(&self.shared.clock);
            inner.cloud.advance(now);
            let result = change(&mut inner.cloud, now);
            inner.cloud.advance(now);
            let due = inner.cloud.due(now);
            let due_changed = due != inner.due;
            inner.due = due;
            self.publish(inner.cloud.nodes_version());
            (result, due_changed)
        };
        if due_changed {
            self.shared.wake.notify_one();
        }
        result
    }

    /// Looks at the model, as of now. Whatever `look` changes must not bring anything due.
    pub fn look<R>(&self, look: impl FnOnce(&mut Cloud, Timestamp) -> R) -> R {
        let mut inner = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = inner.now(&self.shared.clock);
        // Most looks are polls between two things that are due: they need not walk every machine.
        if inner.due.is_some_and(|due| due <= now) {
            inner.cloud.advance(now);
            inner.due = inner.cloud.due(now);
            self.publish(inner.cloud.nodes_version());
        }
        look(&mut inner.cloud, now)
    }

    /// Follows changes of the set of Nodes that should exist.
    pub fn nodes_changed(&self) -> watch::Receiver<u64> {
        self.shared.nodes.subscribe()
    }

    /// Moves the model on for ever. Requests move it on too: without this task, what is due happens when the
    /// next of them looks.
    pub async fn drive(&self) {
        loop {
            let wait = self.change(|cloud, now| {
                cloud.due(now).map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default())
            });
            match wait {
                // A moment more than needed: the timer must not fire just before the wall clock is there.
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait + Duration::from_millis(1)) => {}
                    () = self.shared.wake.notified() => {}
                },
                None => self.shared.wake.notified().await,
            }
        }
    }

    fn publish(&self, version: u64) {
        self.shared.nodes.send_if_modified(|seen| {
            let changed = *seen != version;
            *seen = version;
            changed
        });
    }
}
