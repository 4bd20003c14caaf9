//! Carrying out the plan: many requests at a time over one connection, each pod at its own pace, until the
//! pods are gone or the time is over.
//!
//! It is one loop without tasks of its own: look at pods and answers, ask [`plan`] what each pod needs now,
//! send what is due, wait for the next thing to happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, delete, evict};
use crate::holds::Holds;
use crate::jitter::jittered;
use crate::plan::{self, Action, Terms};
use crate::pods::{Pod, Pods};

/// Requests in flight at a time. More gain nothing without a disruption budget and lose with one, where the
/// server retries conflicts with itself.
pub const CONCURRENCY: usize = 32;
/// A blocked pod is asked for this often when its VM is about to go: at most three times a second.
const BLOCKED_FORCED: Duration = Duration::from_millis(420);
/// First and longest wait of a blocked pod in a voluntary drain.
const BLOCKED_VOLUNTARY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// First and longest wait after no answer, and after a refusal.
const UNAVAILABLE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Longest wait that flow control may ask for in a forced drain.
const LONGEST_THROTTLE: Duration = Duration::from_secs(1);
/// An accepted pod that does not begin to end is asked for again: the watch may be behind, or a webhook
/// may have answered.
const ACCEPTED: Duration = Duration::from_secs(5);
/// As good as any later time, and cannot overflow an instant.
const ABOUT_A_YEAR: Duration = Duration::from_secs(1 << 25);
/// Budgets named in reports.
const MOST_BUDGETS: usize = 10;

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
    /// Ends it early.
    pub stop: CancellationToken,
    /// Hears what happens.
    pub observer: &'a O,
}

/// Hears what happens in a drain.
pub trait Observer {
    /// The API answered a request for `pod`; `deleted` tells an escalation from an eviction.
    fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        let _ = (pod, deleted, answer);
    }
    /// `pod` was deleted although `budgets`, of its namespace, held it; none are given if the API did not say.
    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let _ = (pod, budgets);
    }
    /// The numbers changed.
    fn progressed(&self, progress: &Progress) {
        let _ = progress;
    }
}

/// A disruption budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its name.
    pub name: String,
    /// Its UID, if it was read.
    pub uid: Option<String>,
}

/// How far a drain is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Evictions that the API accepted.
    pub evicted: u32,
    /// Deletions past a disruption budget that the API accepted.
    pub escalated: u32,
    /// Pods that still have to go.
    pub left: u32,
    /// Whether every pod has been asked to go at least once.
    pub all_asked: bool,
    /// Disruption budgets that hold pods now, as `namespace/name`.
    pub blocking: BTreeSet<String>,
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why it ended.
    pub ending: Ending,
    /// The last numbers.
    pub progress: Progress,
    /// Pods that are still there, `namespace/name: why`.
    pub left: Vec<String>,
    /// Of those that went: pods that kept something on the node's disk.
    pub local_storage: u32,
    /// Of those that went: pods that nobody makes anew.
    pub unmanaged: u32,
}

/// Why a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is left that a drain moves.
    Drained,
    /// The time is over and pods are left.
    TimeOver,
    /// It was stopped.
    Stopped,
}

/// What is known of a pod beside what the API shows.
#[derive(Default)]
struct Asked {
    in_flight: bool,
    answers: u32,
    accepted: bool,
    escalating: bool,
    last: Option<Answer>,
    pause: Duration,
    next: Option<Instant>,
}

impl Asked {
    /// Whether the API no longer knows the pod, which the watch may not have shown yet.
    fn is_gone(&self) -> bool {
        self.last == Some(Answer::Gone)
    }

    /// The budget that held the pod at last, if it is known by name.
    fn held_by(&self) -> Option<Budget> {
        match &self.last {
            Some(Answer::Blocked { pdb: Some(name) }) => Some(Budget { name: name.clone(), uid: None }),
            _ => None,
        }
    }

    /// Whether the API's last word was no. Silence is not a no, and does not undo one.
    fn is_refused(&self) -> bool {
        matches!(self.last, Some(Answer::Blocked { .. } | Answer::Refused(_)))
    }

    fn heard(&mut self, answer: Answer, is_forced: bool) {
        let doubled =
            |(first, longest): (Duration, Duration), last: Duration| (last * 2).clamp(first, longest);
        self.in_flight = false;
        self.answers += 1;
        let pause = match &answer {
            Answer::Accepted | Answer::Gone => ACCEPTED,
            Answer::Blocked { .. } if is_forced => BLOCKED_FORCED,
            Answer::Blocked { .. } => doubled(BLOCKED_VOLUNTARY, self.pause),
            Answer::Throttled { after } if is_forced => after.unwrap_or(UNAVAILABLE.1).min(LONGEST_THROTTLE),
            Answer::Throttled { after } => after.unwrap_or(LONGEST_THROTTLE),
            Answer::Unavailable(_) | Answer::Refused(_) => doubled(UNAVAILABLE, self.pause),
        };
        self.pause = pause;
        self.next = Some(Instant::now() + jittered(pause));
        if !(matches!(answer, Answer::Unavailable(_) | Answer::Throttled { .. }) && self.is_refused()) {
            self.last = Some(answer);
        }
    }
}

/// Wall-clock time that a correction of the node's clock does not bend during a drain.
struct Clock {
    began: Timestamp,
    since: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        self.began.checked_add(passed).unwrap_or(Timestamp::MAX)
    }

    fn instant(&self, time: Timestamp) -> Instant {
        let ahead = Duration::try_from(time.duration_since(self.began)).unwrap_or_default();
        self.since + ahead.min(ABOUT_A_YEAR)
    }
}

impl<O: Observer> Drain<'_, O> {
    /// Drains until nothing is left, the time is over, or it is stopped.
    pub async fn run(mut self) -> Report {
        let clock = Clock { began: Timestamp::now(), since: Instant::now() };
        let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
        let mut flying = FuturesUnordered::new();
        let mut progress = Progress::default();
        let (mut evicted, mut escalated) = (0, 0);
        let (mut local_storage, mut unmanaged) = (0, 0);
        // Whoever keeps pods or terms up to date may go away; what is known then still holds.
        let (mut pods_live, mut terms_live) = (true, true);
        loop {
            let terms = self.terms.borrow_and_update().clone();
            let view = {
                let pods = self.pods.borrow_and_update();
                asked.retain(|uid, known| known.in_flight || pods.contains(uid));
                View::new(&pods, &mut asked, &terms, &clock)
            };

            let seen = Progress { evicted, escalated, ..view.progress.clone() };
            if seen != progress {
                progress = seen;
                self.observer.progressed(&progress);
            }
            let gives_up = clock.instant(terms.gives_up_at(clock.began));
            let ending = if self.stop.is_cancelled() {
                Some(Ending::Stopped)
            } else if view.complete && progress.left == 0 {
                Some(Ending::Drained)
            } else if Instant::now() >= gives_up {
                Some(Ending::TimeOver)
            } else {
                None
            };
            if let Some(ending) = ending {
                return Report { ending, progress, left: self.still_there(&asked), local_storage, unmanaged };
            }

            let room = CONCURRENCY.saturating_sub(flying.len());
            let has_more = view.due.len() > room;
            for (pod, action) in view.due.into_iter().take(room) {
                let known = asked.entry(pod.uid.clone()).or_default();
                known.in_flight = true;
                known.escalating = matches!(action, Action::Escalate { .. });
                flying.push(send(self.client, pod, action));
            }

            let wake = view.wake.map_or(gives_up, |wake| wake.min(gives_up));
            tokio::select! {
                Some(heard) = flying.next() => {
                    let is_forced = !matches!(terms, Terms::Voluntary { .. });
                    // All answers that are there, before the next look at all pods.
                    let mut next = Some(heard);
                    while let Some((pod, deleted, answer)) = next {
                        let known = asked.entry(pod.uid.clone()).or_default();
                        self.observer.answered(&pod, deleted, &answer);
                        if answer == Answer::Accepted && !known.accepted {
                            known.accepted = true;
                            local_storage += u32::from(pod.local_storage);
                            unmanaged += u32::from(pod.is_unmanaged());
                            if deleted {
                                escalated += 1;
                                self.observer.escalated(&pod, known.held_by().as_slice());
                            } else {
                                evicted += 1;
                            }
                        }
                        known.heard(answer, is_forced);
                        next = flying.next().now_or_never().flatten();
                    }
                }
                // Nothing that a pod does matters as long as others wait for their turn.
                changed = self.pods.changed(), if pods_live && !has_more => pods_live = changed.is_ok(),
                changed = self.terms.changed(), if terms_live => terms_live = changed.is_ok(),
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn still_there(&self, asked: &BTreeMap<String, Asked>) -> Vec<String> {
        let pods = self.pods.borrow();
        pods.iter()
            .filter(|pod| pod.exempt.is_none())
            .filter_map(|pod| {
                let known = asked.get(&pod.uid);
                if known.is_some_and(Asked::is_gone) {
                    return None;
                }
                let why = if pod.terminating {
                    "still ending".to_owned()
                } else {
                    match known.and_then(|known| known.last.as_ref()) {
                        Some(Answer::Blocked { pdb: Some(pdb) }) => {
                            format!("held by disruption budget {pdb}")
                        }
                        Some(Answer::Blocked { pdb: None }) => "held by a disruption budget".to_owned(),
                        Some(Answer::Refused(why) | Answer::Unavailable(why)) => why.clone(),
                        Some(Answer::Throttled { .. }) => "the API server asked to wait".to_owned(),
                        Some(Answer::Accepted | Answer::Gone) => "not seen to end".to_owned(),
                        None => "never asked".to_owned(),
                    }
                };
                Some(format!("{}/{}: {why}", pod.namespace, pod.name))
            })
            .collect()
    }
}

/// All pods at one moment.
struct View {
    complete: bool,
    progress: Progress,
    /// What may be sent now: pods never asked before first, and of these the slowest to end.
    due: Vec<(Arc<Pod>, Action)>,
    /// When something else becomes due without anything happening.
    wake: Option<Instant>,
}

impl View {
    fn new(pods: &Pods, asked: &mut BTreeMap<String, Asked>, terms: &Terms, clock: &Clock) -> Self {
        let (now, tick) = (clock.now(), Instant::now());
        let mut view = Self {
            complete: pods.complete,
            progress: Progress { all_asked: pods.complete, ..Progress::default() },
            due: Vec::new(),
            wake: None,
        };
        let mut due = Vec::new();
        for pod in pods.iter() {
            let known = asked.get(&pod.uid);
            if known.is_some_and(Asked::is_gone) {
                continue;
            }
            let refused = known.is_some_and(Asked::is_refused);
            let action = plan::action(pod, refused, terms, now);
            match action {
                Action::Skip(_) => continue,
                Action::Wait => {
                    view.progress.left += 1;
                    continue;
                }
                Action::Evict { .. } | Action::Escalate { .. } => view.progress.left += 1,
            }
            let Some(known) = known else {
                view.progress.all_asked = false;
                due.push((0, pod, action));
                continue;
            };
            view.progress.all_asked &= known.answers > 0;
            if let Some(Answer::Blocked { pdb: Some(pdb) }) = &known.last
                && view.progress.blocking.len() < MOST_BUDGETS
            {
                view.progress.blocking.insert(format!("{}/{pdb}", pod.namespace));
            }
            if known.in_flight {
                continue;
            }
            // The first deletion does not wait for the next turn of a blocked eviction.
            let turns = matches!(action, Action::Escalate { .. }) && !known.escalating;
            let escalates = refused
                .then(|| plan::escalates_at(pod, terms))
                .flatten()
                .filter(|time| *time > now)
                .map(|time| clock.instant(time));
            match known.next {
                Some(next) if next > tick && !turns => {
                    let next = escalates.map_or(next, |time| time.min(next));
                    view.wake = Some(view.wake.map_or(next, |wake| wake.min(next)));
                }
                _ => due.push((known.answers, pod, action)),
            }
        }
        due.sort_by_key(|(answers, pod, _)| (*answers > 0, Reverse(pod.grace)));
        view.due = due.into_iter().map(|(_, pod, action)| (pod.clone(), action)).collect();
        view
    }
}

async fn send(client: &Client, pod: Arc<Pod>, action: Action) -> (Arc<Pod>, bool, Answer) {
    match action {
        Action::Evict { grace } => {
            let answer = evict(client, &pod, grace).await;
            (pod, false, answer)
        }
        Action::Escalate { grace } => {
            let answer = delete(client, &pod, grace).await;
            (pod, true, answer)
        }
        // Nothing to send; the executor never asks.
        Action::Skip(_) | Action::Wait => (pod, false, Answer::Accepted),
    }
}

#[cfg(test)]
mod tests;
