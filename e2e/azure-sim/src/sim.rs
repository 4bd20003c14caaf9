//! The model behind a lock, and the task that moves it on as time passes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::model::Cloud;

/// A handle on the one running model.
#[derive(Debug, Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    wake: Notify,
    nodes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    cloud: Cloud,
    due: Option<Timestamp>,
    last: Timestamp,
}

impl Inner {
    /// The clock, kept from running backwards.
    fn now(&mut self) -> Timestamp {
        self.last = self.last.max(Timestamp::now());
        self.last
    }
}

impl Sim {
    /// Puts a model behind the lock.
    pub fn new(cloud: Cloud) -> Self {
        let inner = Inner { cloud, due: None, last: Timestamp::now() };
        let shared = Shared { inner: Mutex::new(inner), wake: Notify::new(), nodes: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Changes the model, as of now.
    pub fn change<R>(&self, change: impl FnOnce(&mut Cloud, Timestamp) -> R) -> R {
        let (result, due_changed) = {
            let mut inner = self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let now = inner.now();
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
        let now = inner.now();
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

    /// Moves the model on for ever.
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
