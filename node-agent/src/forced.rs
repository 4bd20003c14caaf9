//! One notice, from the first write to the end or the cancellation: mark the Node, drain it by the deadline, say
//! how it goes. Marking never holds up draining, saying never holds up either.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use spotpool_crds::eviction::{Claimant, Phase, PodCounts, Source};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::{EvictionNotice, Reason, names};
use spotpool_drain::{Answer, Budget, Drain, Ending, Observer, Pod, Progress, Terms};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::document::Kind;
use crate::edit::Edit;
use crate::marks;
use crate::notice::Notice;
use crate::notify;
use crate::telling::{Cause, Telling};

/// The first eviction waits this long for the first try of the cordon, so that successors of evicted pods do not
/// come back; not longer, since a dying VM is the worse of the two.
const CORDON_FIRST: Duration = Duration::from_millis(250);

/// One forced drain that runs.
pub struct Forced {
    /// Its notice; changes are followed.
    pub notice: watch::Sender<Notice>,
    /// Azure took the event back.
    pub cancel: CancellationToken,
    /// Whether everything is done and written that can be.
    pub settled: watch::Sender<bool>,
}

impl Forced {
    /// A drain for `notice`, to be given to [`run`].
    pub fn new(notice: Notice) -> Self {
        Self {
            notice: watch::Sender::new(notice),
            cancel: CancellationToken::new(),
            settled: watch::Sender::new(false),
        }
    }
}

/// What the parts of a flow share.
struct Flow {
    context: Arc<Context>,
    cancel: CancellationToken,
    /// What should stand on the Node.
    wanted: watch::Sender<EvictionNotice>,
    terms: watch::Sender<Terms>,
    relay: watch::Sender<Option<EvictionNotice>>,
    began: Instant,
}

/// Handles a notice. Ends when it was cancelled and the Node is clean again; else it stays, for pods that still come.
pub fn run(
    context: Arc<Context>,
    forced: &Forced,
    relay: watch::Sender<Option<EvictionNotice>>,
) -> impl Future<Output = ()> + use<> {
    let mut notice = forced.notice.subscribe();
    let (cancel, settled) = (forced.cancel.clone(), forced.settled.clone());
    async move {
        let first = notice.borrow_and_update().clone();
        let last = context.node.latest();
        let resumed = last
            .as_ref()
            .and_then(|node| node.notice())
            .filter(|last| last.is_active() && last.event_id == first.event_id);
        let wanted = EvictionNotice {
            by: Claimant::NodeAgent,
            event_id: first.event_id.clone(),
            event_type: Kind::Preempt.label().to_owned(),
            source: Source::Imds,
            response: EventResponse::Drain,
            observed_at: first.observed_at,
            not_before: first.not_before,
            deadline: first.deadline,
            phase: resumed.as_ref().map_or(Phase::Noticed, |last| last.phase),
            pods: resumed.as_ref().map_or_else(PodCounts::default, |last| last.pods),
            cordoned: false,
            boot_id: last.map(|node| node.boot_id().to_owned()).unwrap_or_default(),
            traceparent: None,
            doomed: first.doomed.clone(),
            unfinished: Vec::new(),
        };
        tracing::info!(
            event_id = wanted.event_id, node = context.node.name(), reason = %Reason::SpotEvictionNoticed,
            deadline = %wanted.deadline, resumed = resumed.is_some(), "under notice: cordon and drain"
        );
        let terms =
            Terms::Preempt { noticed: first.observed_at, deadline: first.deadline, policy: context.policy() };
        relay.send_replace(Some(wanted.clone()));
        let flow = Flow {
            context,
            cancel,
            wanted: watch::Sender::new(wanted),
            terms: watch::Sender::new(terms),
            relay,
            began: Instant::now(),
        };
        let tried = CancellationToken::new();
        let cause = Cause::Notice(flow.wanted.subscribe());
        let telling = Telling::new(&flow.context, cause, flow.terms.subscribe(), flow.cancel.clone());
        let ((), condition, (), ()) = tokio::join!(
            biased;
            telling.run(),
            flow.report(&tried, resumed.is_some(), &settled),
            flow.drain(&tried, &telling),
            flow.follow(&mut notice)
        );
        flow.give_back(condition).await;
        settled.send_replace(true);
    }
}

impl Flow {
    /// Keeps terms and report up to date with the notice, until it is cancelled.
    async fn follow(&self, notice: &mut watch::Receiver<Notice>) {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                changed = notice.changed() => if changed.is_err() {
                    return self.cancel.cancelled().await;
                },
            }
            let news = notice.borrow_and_update().clone();
            tracing::info!(
                event_id = news.event_id, node = self.context.node.name(), deadline = %news.deadline,
                started = news.started, "the notice has changed"
            );
            self.wanted.send_modify(|wanted| {
                wanted.event_id.clone_from(&news.event_id);
                wanted.observed_at = news.observed_at;
                wanted.not_before = news.not_before;
                wanted.deadline = news.deadline;
                wanted.doomed.clone_from(&news.doomed);
            });
            self.terms.send_if_modified(|terms| {
                let last = terms.clone();
                if let Terms::Preempt { noticed, deadline, .. } = terms {
                    (*noticed, *deadline) = (news.observed_at, news.deadline);
                }
                last != *terms
            });
        }
    }

    /// Writes the Node: the first marks as fast as can be, then each phase. Gives back the write of the condition.
    async fn report(
        &self,
        tried: &CancellationToken,
        resumed: bool,
        settled: &watch::Sender<bool>,
    ) -> Option<JoinHandle<()>> {
        let mut changes = self.wanted.subscribe();
        // A write that is under way when the event is taken back must end before its marks come off.
        let unless_cancelled = |edit: Edit| if self.cancel.is_cancelled() { Edit::default() } else { edit };
        let node = self
            .context
            .node
            .write(|node| unless_cancelled(marks::notice(node, &self.wanted.borrow())), || tried.cancel())
            .await;
        tried.cancel();
        if self.cancel.is_cancelled() {
            return None;
        }
        let took = self.began.elapsed();
        let cordoned = node.notice().is_some_and(|written| written.cordoned);
        self.wanted.send_modify(|wanted| wanted.cordoned = cordoned);
        let first = changes.borrow_and_update().clone();
        tracing::info!(
            event_id = first.event_id,
            node = self.context.node.name(),
            took_ms = took.as_millis() as u64,
            cordoned,
            "the Node is marked"
        );
        if !resumed {
            self.context.metrics.cordoned(took);
            let note =
                format!("Azure takes this VM back by {:.0}; the node is being drained", first.deadline);
            let uid = node.metadata.uid.as_deref();
            self.context.announcer.node(
                self.context.node.name(),
                uid,
                true,
                Reason::SpotEvictionNoticed,
                note,
            );
        }
        let (own, condition) = (self.context.node.clone(), condition(&first));
        let condition = tokio::spawn(async move { own.write_status(&condition).await });

        let mut told = node.notice().unwrap_or(first);
        loop {
            let wanted = changes.borrow_and_update().clone();
            self.relay.send_replace(Some(wanted.clone()));
            // Numbers alone are no reason to write.
            if (EvictionNotice { pods: told.pods, ..wanted.clone() }) != told {
                self.context.node.write(|_| unless_cancelled(marks::progress(&wanted)), || ()).await;
                told = wanted;
            }
            settled.send_replace(matches!(told.phase, Phase::Drained | Phase::Incomplete));
            tokio::select! {
                () = self.cancel.cancelled() => return Some(condition),
                changed = changes.changed() => if changed.is_err() {
                    return Some(condition);
                },
            }
        }
    }

    /// Drains, and drains again what still comes, until the notice is cancelled.
    async fn drain(&self, tried: &CancellationToken, telling: &Telling) {
        // Elapsed or tried: both are a go.
        let _ = tokio::time::timeout(CORDON_FIRST, tried.cancelled()).await;
        let mut has_ended = false;
        while !self.cancel.is_cancelled() {
            let hears = Hears { flow: self, before: self.wanted.borrow().pods };
            let report = Drain {
                client: &self.context.client,
                pods: self.context.pods.clone(),
                terms: self.terms.subscribe(),
                holds: telling.holds(),
                stop: self.cancel.clone(),
                observer: &hears,
            }
            .run()
            .await;
            let (phase, reason) = match report.ending {
                Ending::Stopped => return,
                Ending::Drained => (Phase::Drained, Reason::DrainCompleted),
                Ending::TimeOver => (Phase::Incomplete, Reason::DrainIncomplete),
            };
            hears.progressed(&report.progress);
            self.wanted.send_modify(|wanted| wanted.phase = phase);
            let wanted = self.wanted.borrow().clone();
            let margin = wanted.deadline.duration_since(Timestamp::now()).as_secs_f64();
            let PodCounts { evicted, escalated, left } = wanted.pods;
            tracing::info!(
                event_id = wanted.event_id, node = self.context.node.name(), %reason, evicted, escalated, left,
                took_ms = self.began.elapsed().as_millis() as u64, margin_s = margin, "drain over"
            );
            for pod in &report.left {
                tracing::warn!(event_id = wanted.event_id, node = self.context.node.name(), %reason, pod, "left on the node");
            }
            if !has_ended {
                has_ended = true;
                self.context.metrics.drained(phase, self.began.elapsed(), margin);
                let is_warning = phase == Phase::Incomplete;
                let note = format!(
                    "{evicted} pods evicted, {escalated} deleted past their disruption budget, {left} left"
                );
                self.context.announcer.node(
                    self.context.node.name(),
                    self.uid().as_deref(),
                    is_warning,
                    reason,
                    note,
                );
            }
            self.until_there_is_more(phase).await;
        }
    }

    /// After a drain that ended well: until pods come. After one that did not: until there is new time.
    async fn until_there_is_more(&self, phase: Phase) {
        let (mut pods, mut terms) = (self.context.pods.clone(), self.terms.subscribe());
        let more = async {
            let lives = if phase == Phase::Drained {
                pods.wait_for(|pods| pods.complete && pods.left() > 0).await.is_ok()
            } else {
                let now = Timestamp::now();
                let has_time =
                    |terms: &Terms| matches!(terms, Terms::Preempt { deadline, .. } if *deadline > now);
                terms.wait_for(has_time).await.is_ok()
            };
            if !lives {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = more => {}
            () = self.cancel.cancelled() => {}
        }
    }

    /// The event was taken back: what is ours comes off.
    async fn give_back(&self, condition: Option<JoinHandle<()>>) {
        if let Some(condition) = condition {
            condition.abort();
            let _ = condition.await; // its end, however it ended
        }
        clean(&self.context).await;
        self.relay.send_replace(None);
    }

    fn uid(&self) -> Option<String> {
        self.context.node.latest()?.metadata.uid.clone()
    }
}

/// Takes the marks of a notice off that holds no longer.
pub async fn clean(context: &Context) {
    // First, since the Node's marks are what would have a next agent do it.
    notify::take_off(context).await;
    let last = context.node.latest().and_then(|node| node.notice());
    let node = context.node.write(marks::cancelled, || ()).await;
    context
        .node
        .write_status(&json!({"status": {"conditions": [
            {"type": names::EVICTION_NOTICED_CONDITION, "$patch": "delete"}
        ]}}))
        .await;
    if let Some(last) = last.filter(EvictionNotice::is_active) {
        let reason = Reason::SpotEvictionCancelled;
        tracing::info!(event_id = last.event_id, node = context.node.name(), %reason, uncordoned = last.cordoned, "the Node is given back");
        let note = if last.cordoned {
            "The announced eviction does not come; the node is uncordoned"
        } else {
            "The announced eviction does not come; the cordon is not ours and stays"
        };
        let uid = node.metadata.uid.as_deref();
        context.announcer.node(context.node.name(), uid, false, reason, note.to_owned());
    }
}

fn condition(notice: &EvictionNotice) -> serde_json::Value {
    let now = format!("{:.0}", Timestamp::now());
    let message = format!(
        "{} announced by Azure, event {}, by {:.0}",
        notice.event_type, notice.event_id, notice.deadline
    );
    json!({"status": {"conditions": [{
        "type": names::EVICTION_NOTICED_CONDITION, "status": "True", "reason": Reason::SpotEvictionNoticed,
        "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}

/// Turns what happens in a drain into numbers, log lines and Events.
struct Hears<'a> {
    flow: &'a Flow,
    before: PodCounts,
}

impl Observer for Hears<'_> {
    fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        self.flow.context.metrics.answered(answer);
        tracing::debug!(pod = format_args!("{}/{}", pod.namespace, pod.name), deleted, ?answer, "answer");
    }

    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let (context, reason) = (&self.flow.context, Reason::DisruptionBudgetOverridden);
        context.metrics.escalated();
        let event_id = self.flow.wanted.borrow().event_id.clone();
        let names: Vec<&str> = budgets.iter().map(|budget| budget.name.as_str()).collect();
        let budget = match names.as_slice() {
            [] => "a disruption budget".to_owned(),
            names => format!("disruption budget {}", names.join(" and ")),
        };
        tracing::warn!(
            event_id, node = context.node.name(), %reason, pod = format_args!("{}/{}", pod.namespace, pod.name), budget,
            "deleted past its disruption budget"
        );
        let note = format!("Deleted although held by {budget}: its VM is about to go (event {event_id})");
        context.announcer.pod(pod, reason, note);
        for budget in budgets {
            let note = format!(
                "Pod {} was deleted all the same: its VM is about to go (event {event_id})",
                pod.name
            );
            context.announcer.budget(&pod.namespace, budget, reason, note);
        }
    }

    fn progressed(&self, progress: &Progress) {
        self.flow.wanted.send_if_modified(|wanted| {
            let pods = PodCounts {
                evicted: self.before.evicted + progress.evicted,
                escalated: self.before.escalated + progress.escalated,
                left: progress.left,
            };
            let phase = match wanted.phase {
                Phase::Noticed if progress.all_asked => Phase::Draining,
                phase => phase,
            };
            let changed = (pods, phase) != (wanted.pods, wanted.phase);
            (wanted.pods, wanted.phase) = (pods, phase);
            changed
        });
    }
}

/// The longest that a drain for `notice` still takes.
pub fn lasts_until(notice: &Notice) -> Timestamp {
    let more = SignedDuration::try_from(spotpool_drain::plan::LEAST_EFFORT * 2).unwrap_or_default();
    notice.deadline.checked_add(more).unwrap_or(Timestamp::MAX)
}
