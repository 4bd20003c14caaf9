//! Telling the pods of a drain: those with a hook are asked and held until they answer, those that want it get the
//! deadline as an annotation. Both go on beside the drain and delay no pod but the one that asked for it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp, Unit};
use kube::Client;
use spotpool_crds::voluntary_drain::DrainRequest;
use spotpool_crds::{EvictionNotice, Reason};
use spotpool_drain::plan::last_call;
use spotpool_drain::pods::Exempt;
use spotpool_drain::{Holds, Pod, Pods, Terms};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::announce::Announcer;
use crate::context::Context;
use crate::hooks::{Caller, Hook, Outcome, Told, ToldPod};
use crate::metrics::Metrics;
use crate::notify;
use crate::trace::Trace;

/// Hooks asked at a time: more than a node has pods.
const MOST_HOOKS: usize = 512;
/// A hook that is asked when it is nearly too late, or past that, gets this, while its pod is already ending.
const LEAST_ASK: Duration = Duration::from_secs(1);
/// What a voluntary drain is called where an event has Azure's type.
const VOLUNTARY: &str = "VoluntaryDrain";

/// What the pods are told of.
pub enum Cause {
    /// An event of Azure, as it stands on the Node.
    Notice(watch::Receiver<EvictionNotice>),
    /// A drain that the operator has asked for.
    Request(DrainRequest),
}

impl Cause {
    fn id(&self) -> String {
        match self {
            Self::Notice(notice) => notice.borrow().event_id.clone(),
            Self::Request(request) => request.id.clone(),
        }
    }

    /// Of the event, or else of the request.
    fn ids(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Notice(_) => (Some(self.id()), None),
            Self::Request(_) => (None, Some(self.id())),
        }
    }

    fn body(&self, pod: ToldPod<'_>) -> Bytes {
        let body = match self {
            Self::Notice(notice) => {
                let notice = notice.borrow();
                let (id, kind) = (&notice.event_id, &notice.event_type);
                serde_json::to_vec(&Told { id, r#type: kind, pod, notice: Some(&notice), drain: None })
            }
            Self::Request(request) => serde_json::to_vec(&Told {
                id: &request.id,
                r#type: VOLUNTARY,
                pod,
                notice: None,
                drain: Some(request),
            }),
        };
        body.unwrap_or_default().into()
    }
}

/// The telling in one drain.
pub struct Telling {
    client: Client,
    pods: watch::Receiver<Pods>,
    announcer: Announcer,
    metrics: Metrics,
    caller: Caller,
    node: String,
    cause: Cause,
    terms: watch::Receiver<Terms>,
    stop: CancellationToken,
    /// Where somebody collects traces, and an event is the cause.
    trace: Option<Trace>,
    holds: watch::Sender<Holds>,
    /// Pods whose hook has answered well.
    prepared: Mutex<HashSet<String>>,
}

impl Telling {
    /// For a drain under `terms`. Pods with a hook are held from here on, so [`Telling::run`] must follow.
    pub fn new(
        context: &Context,
        cause: Cause,
        terms: watch::Receiver<Terms>,
        stop: CancellationToken,
        trace: Option<Trace>,
    ) -> Self {
        let telling = Self {
            client: context.client.clone(),
            pods: context.pods.clone(),
            announcer: context.announcer.clone(),
            metrics: context.metrics.clone(),
            caller: context.hooks.clone(),
            node: context.node.name().to_owned(),
            cause,
            terms,
            stop,
            trace,
            holds: watch::Sender::new(Holds::default()),
            prepared: Mutex::default(),
        };
        telling.hold_all();
        telling
    }

    /// Pods whose hook has not answered.
    pub fn holds(&self) -> watch::Receiver<Holds> {
        self.holds.subscribe()
    }

    /// Whether the pod's hook has answered that it may go.
    pub fn is_prepared(&self, uid: &str) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    /// Tells the pods that are there and those that come, until it is stopped. To be polled before the drain where
    /// both wait for the same pods: a pod that has just appeared must be held before the drain looks at it.
    pub async fn run(&self) {
        tokio::join!(self.ask_hooks(), self.write_deadlines());
    }

    fn hold_all(&self) {
        let pods = self.pods.borrow();
        let is_held =
            |pod: &&Arc<Pod>| self.is_asked(pod) && matches!(Hook::of(pod, self.caller.reach), Ok(Some(_)));
        self.holds.send_replace(pods.iter().filter(is_held).map(|pod| pod.uid.as_str()).collect());
    }

    /// Whether its hook is asked, if it has one. One of a DaemonSet goes with the VM, but stays in a voluntary drain.
    fn is_asked(&self, pod: &Pod) -> bool {
        let goes = match pod.exempt {
            None => true,
            Some(Exempt::DaemonSet) => matches!(self.cause, Cause::Notice(_)),
            Some(Exempt::Mirror | Exempt::Finished) => false,
        };
        goes && !pod.terminating
    }

    async fn ask_hooks(&self) {
        let mut pods = self.pods.clone();
        let mut changes = match &self.cause {
            Cause::Notice(notice) => Some(notice.clone()),
            Cause::Request(_) => None,
        };
        // By UID: for which event a pod was asked, or could not be.
        let mut asked: BTreeMap<String, String> = BTreeMap::new();
        let mut waiting: BTreeSet<String> = BTreeSet::new();
        let mut asking = FuturesUnordered::new();
        loop {
            let id = self.cause.id();
            {
                let known = pods.borrow_and_update();
                asked.retain(|uid, _| known.contains(uid));
                for pod in known.iter().filter(|pod| self.is_asked(pod)) {
                    if asked.get(&pod.uid) == Some(&id) || waiting.contains(&pod.uid) {
                        continue;
                    }
                    match Hook::of(pod, self.caller.reach) {
                        // It has none, or no address yet.
                        Ok(None) => continue,
                        Ok(Some(_)) if asking.len() >= MOST_HOOKS => continue,
                        Ok(Some(hook)) => {
                            waiting.insert(pod.uid.clone());
                            asking.push(self.ask(pod.clone(), hook));
                        }
                        Err(why) => self.heard(pod, &Outcome::Malformed(why), Duration::ZERO),
                    }
                    asked.insert(pod.uid.clone(), id.clone());
                }
            }
            self.holds.send_if_modified(|holds| {
                let now = waiting.iter().map(String::as_str).collect();
                std::mem::replace(holds, now) != *holds
            });
            tokio::select! {
                Some((pod, outcome, took)) = asking.next() => {
                    waiting.remove(&pod.uid);
                    let is_there = pods.borrow().contains(&pod.uid);
                    let outcome = if is_there || outcome == Outcome::Answered { outcome } else { Outcome::Gone };
                    self.heard(&pod, &outcome, took);
                }
                () = changed(&mut pods) => {}
                () = changed_if_any(changes.as_mut()) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Asks one hook and keeps the time.
    async fn ask(&self, pod: Arc<Pod>, hook: Hook) -> (Arc<Pod>, Outcome, Duration) {
        let mut terms = self.terms.clone();
        let began = Instant::now();
        let now = Timestamp::now();
        let latest = self.latest_answer(&pod, began);
        let answer_by = latest.map_or(hook.timeout, |latest| hook.timeout.min(latest - began));
        let told = ToldPod {
            namespace: &pod.namespace,
            name: &pod.name,
            uid: &pod.uid,
            deadline: gone_by(&terms.borrow()),
            answer_by: later(now, answer_by),
        };
        let body = self.cause.body(told);
        let traceparent = self.trace.as_ref().map(Trace::traceparent);
        let mut post = pin!(self.caller.post(&hook, body, traceparent));
        let mut timeout = pin!(tokio::time::sleep(hook.timeout));
        let outcome = loop {
            terms.borrow_and_update();
            let latest = self.latest_answer(&pod, began);
            tokio::select! {
                outcome = &mut post => break outcome,
                () = &mut timeout => break Outcome::Silent(hook.timeout),
                () = until(latest) => break Outcome::TooLate,
                () = changed(&mut terms) => {}
            }
        };
        (pod, outcome, began.elapsed())
    }

    /// Until when an answer counts, whatever the hook's own time; `None` is for ever.
    fn latest_answer(&self, pod: &Pod, began: Instant) -> Option<Instant> {
        let terms = self.terms.borrow();
        let latest = match &*terms {
            Terms::Voluntary { not_after } => Some(*not_after),
            _ => last_call(pod, &terms),
        };
        let rest = Duration::try_from(latest?.duration_since(Timestamp::now())).unwrap_or_default();
        Instant::now().checked_add(rest).map(|latest| latest.max(began + LEAST_ASK))
    }

    fn heard(&self, pod: &Pod, outcome: &Outcome, took: Duration) {
        self.metrics.hook(outcome, took);
        if let Some(trace) = &self.trace {
            trace.hook(pod, outcome, took);
        }
        if *outcome == Outcome::Answered {
            self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid.clone());
        }
        let (node, result) = (&self.node, outcome.label());
        let (event_id, request) = self.cause.ids();
        let name = format_args!("{}/{}", pod.namespace, pod.name);
        let Some(why) = outcome.failure() else {
            tracing::info!(event_id, request, node, pod = name, result, "a pod's hook was asked");
            return;
        };
        let reason = Reason::HookFailed;
        tracing::warn!(event_id, request, node, pod = name, result, %reason, error = why, "a pod's hook has failed; the pod goes");
        let kind = if request.is_some() { "request" } else { "event" };
        let whose = format!("{kind} {}", self.cause.id());
        let note = format!("The hook has failed, the pod goes all the same: {why} ({whose})");
        self.announcer.pod(pod, reason, note);
    }

    async fn write_deadlines(&self) {
        if matches!(self.cause, Cause::Request(_)) {
            return;
        }
        let (mut pods, mut terms) = (self.pods.clone(), self.terms.clone());
        // By UID: what was written last, or tried in vain.
        let mut written: BTreeMap<String, Timestamp> = BTreeMap::new();
        let mut in_flight: BTreeSet<String> = BTreeSet::new();
        let mut writing = FuturesUnordered::new();
        loop {
            let deadline = gone_by(&terms.borrow_and_update());
            let text = deadline.to_string();
            {
                let known = pods.borrow_and_update();
                written.retain(|uid, _| known.contains(uid));
                for pod in known.iter().filter(|pod| notify::is_told(pod)) {
                    let is_told =
                        pod.told.as_ref() == Some(&text) || written.get(&pod.uid) == Some(&deadline);
                    if is_told || in_flight.contains(&pod.uid) || writing.len() >= notify::CONCURRENCY {
                        continue;
                    }
                    in_flight.insert(pod.uid.clone());
                    written.insert(pod.uid.clone(), deadline);
                    writing.push(self.write(pod.clone(), deadline));
                }
            }
            tokio::select! {
                Some(pod) = writing.next() => {
                    in_flight.remove(&pod.uid);
                }
                () = changed(&mut pods) => {}
                () = changed(&mut terms) => {}
                () = self.stop.cancelled() => break,
            }
        }
        // What is still being written must be there before it is taken off.
        let rest = async { while writing.next().await.is_some() {} };
        let _ = tokio::time::timeout(notify::TIMEOUT, rest).await; // in time or not, it is taken off
    }

    async fn write(&self, pod: Arc<Pod>, deadline: Timestamp) -> Arc<Pod> {
        self.metrics.annotated(notify::write(&self.client, &pod, Some(deadline)).await);
        pod
    }
}

/// By when a pod must be gone.
fn gone_by(terms: &Terms) -> Timestamp {
    match terms {
        Terms::Preempt { deadline, policy, .. } | Terms::Planned { deadline, policy } => {
            let reserve = SignedDuration::try_from(Duration::from(policy.reserve)).unwrap_or_default();
            deadline.checked_sub(reserve).unwrap_or(*deadline)
        }
        Terms::Voluntary { not_after } => *not_after,
    }
}

/// Nobody reads nanoseconds.
fn later(now: Timestamp, by: Duration) -> Timestamp {
    let time = SignedDuration::try_from(by).ok().and_then(|by| now.checked_add(by).ok());
    let time = time.unwrap_or(Timestamp::MAX);
    time.round(Unit::Millisecond).unwrap_or(time)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for a change. Whoever makes them may have gone: what is known then still holds.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn changed_if_any<T>(watched: Option<&mut watch::Receiver<T>>) {
    match watched {
        Some(watched) => changed(watched).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
