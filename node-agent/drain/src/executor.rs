//! Carrying out the plan: many requests at a time over one connection, each pod at its own pace, until the
//! pods are gone or the time is over.
//!
//! It is one loop without tasks of its own: look at pods and answers, see whom to ask next, send that, wait for the
//! next thing to happen.

use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, delete, evict};
use crate::budgets::{Budgets, News};
use crate::condition::mark;
use crate::holds::Holds;
use crate::plan::{Action, Terms};
use crate::pods::Pods;
use crate::report::{Ending, Observer, Progress, Report};
use crate::schedule::{Clock, Heard, Outcome, Request, Schedule};

/// A deletion waits this long for the condition that tells Jobs of it.
const MARK_FIRST: Duration = Duration::from_millis(250);
/// Longest without a look while answers make room, whatever becomes of pods meanwhile.
const HURRY: Duration = Duration::from_millis(50);

/// One drain of one node.
pub struct Drain<'a, O> {
    /// The API, over one connection that retries nothing by itself.
    pub client: &'a Client,
    /// The node's pods, kept up to date by someone.
    pub pods: watch::Receiver<Pods>,
    /// The terms; they may become harder while it runs.
    pub terms: watch::Receiver<Terms>,
    /// Pods that may not be asked yet.
    pub holds: watch::Receiver<Holds>,
    /// Nodes that go at the same time, as far as is known, this one included.
    pub crowd: usize,
    /// Ends it early.
    pub stop: CancellationToken,
    /// Hears what happens.
    pub observer: &'a O,
}

/// A condition that is being set; it goes on although nobody waits for it any more.
type Mark<'a> = Shared<BoxFuture<'a, bool>>;

impl<O: Observer> Drain<'_, O> {
    /// Drains until nothing is left, the time is over, or it is stopped.
    pub async fn run(self) -> Report {
        self.run_by(Clock::start()).await
    }

    async fn run_by(mut self, clock: Clock) -> Report {
        let (mut schedule, mut budgets) = (Schedule::among(self.crowd), Budgets::new());
        let (mut flying, mut marking) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut progress = Progress::default();
        let (mut evicted, mut escalated) = (0, 0);
        let (mut local_storage, mut unmanaged) = (0, 0);
        // Whoever keeps these up to date may go away; what is known then still holds.
        let (mut pods_live, mut terms_live, mut holds_live) = (true, true, true);
        let mut has_said = false;
        loop {
            let terms = self.terms.borrow_and_update().clone();
            let (view, complete) = {
                let (pods, holds) = (self.pods.borrow_and_update(), self.holds.borrow_and_update());
                (schedule.look(&pods, &holds, &terms, &budgets, &clock), pods.complete)
            };
            let seen = Progress { evicted, escalated, ..view.progress };
            if seen != progress {
                progress = seen;
                self.observer.progressed(&progress);
            }
            let gives_up = clock.instant(terms.gives_up_at(clock.began));
            let ending = if self.stop.is_cancelled() {
                Some(Ending::Stopped)
            } else if complete && progress.left == 0 {
                Some(Ending::Drained)
            } else if Instant::now() >= gives_up {
                Some(Ending::TimeOver)
            } else {
                None
            };
            if let Some(ending) = ending {
                let left = schedule.left(&self.pods.borrow(), &self.holds.borrow(), &budgets);
                return Report { ending, progress, left, local_storage, unmanaged };
            }

            let says_at = terms.says_what_is_left_at(clock.began).map(|time| clock.instant(time));
            if !has_said && says_at.is_some_and(|time| time <= Instant::now()) {
                has_said = true;
                let left = schedule.left(&self.pods.borrow(), &self.holds.borrow(), &budgets);
                self.observer.nearly_over(&left);
            }
            for namespace in &view.curious {
                budgets.follow(self.client, namespace);
            }
            for request in view.send {
                let first = request.mark.then(|| mark(self.client, request.pod.clone()).boxed().shared());
                marking.extend(first.clone());
                flying.push(send(self.client, request, first));
            }

            let now = Instant::now();
            let wake = view.wake.map_or(gives_up, |wake| wake.min(gives_up));
            let wake = says_at.filter(|_| !has_said).map_or(wake, |time| wake.min(time));
            let wake = if view.hurries { wake.min(now + HURRY) } else { wake };
            tokio::select! {
                Some(heard) = flying.next() => {
                    // All answers that are there, before the next look at all pods.
                    let mut next = Some(heard);
                    while let Some(heard) = next {
                        self.observer.answered(&heard.pod, heard.deleted, &heard.answer);
                        let pod = heard.pod.clone();
                        let outcome = schedule.heard(heard, &terms, &budgets, &clock);
                        if !matches!(outcome, Outcome::Nothing) {
                            local_storage += u32::from(pod.local_storage);
                            unmanaged += u32::from(pod.is_unmanaged());
                        }
                        match outcome {
                            Outcome::Nothing => {}
                            Outcome::Evicted => evicted += 1,
                            Outcome::Escalated(held_by) => {
                                escalated += 1;
                                self.observer.escalated(&pod, &held_by);
                            }
                        }
                        next = flying.next().now_or_never().flatten();
                    }
                }
                news = budgets.changed() => match news {
                    News::Freed { namespace, name } => schedule.freed(&namespace, &name),
                    News::Selection => schedule.regroup(),
                },
                Some(_) = marking.next() => {}
                // Nothing that a pod does matters as long as others wait for their turn.
                changed = self.pods.changed(), if pods_live && !view.hurries => pods_live = changed.is_ok(),
                changed = self.terms.changed(), if terms_live => terms_live = changed.is_ok(),
                changed = self.holds.changed(), if holds_live => holds_live = changed.is_ok(),
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }
}

async fn send(client: &Client, request: Request, first: Option<Mark<'_>>) -> Heard {
    let Request { pod, action, .. } = request;
    let (deleted, marked, answer) = match action {
        Action::Evict { grace } => (false, false, evict(client, &pod, grace).await),
        Action::Escalate { grace } => {
            let marked = match first {
                Some(first) => tokio::time::timeout(MARK_FIRST, first).await.unwrap_or(false),
                None => false,
            };
            (true, marked, delete(client, &pod, grace).await)
        }
        // Nothing to send; the schedule never asks.
        Action::Skip(_) | Action::Wait | Action::Later { .. } => (false, false, Answer::Accepted),
    };
    Heard { pod, deleted, marked, answer }
}

#[cfg(test)]
mod tests;
