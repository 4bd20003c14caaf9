//! One notice, from the first write to the end: mark the Node as the response wants it, drain it by the deadline,
//! say how it goes, tell Azure to go ahead if asked to. Marking never holds up draining, saying never holds up
//! either.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::eviction::{Claimant, Phase, PodCounts};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::{EvictionNotice, Reason};
use spotpool_drain::Terms;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::condition::Told;
use crate::context::Context;
use crate::document::Kind;
use crate::marks;
use crate::notice::Notice;
use crate::notify;
use crate::telling::{Cause, Telling};
use crate::time::later;
use crate::trace::Trace;

mod acknowledge;
mod drain;
mod report;

/// One flow that runs.
pub struct Running {
    /// Its notice; changes are followed, but the response is the same.
    pub notice: watch::Sender<Notice>,
    /// How it ended, once the event is over.
    pub ended: watch::Sender<Option<Phase>>,
    /// Whether everything is done and written that can be.
    pub settled: watch::Sender<bool>,
    /// The event that Azure was told to go ahead with.
    pub acknowledged: watch::Sender<Option<String>>,
}

impl Running {
    /// A flow for `notice`, to be given to [`run`].
    pub fn new(notice: Notice) -> Self {
        Self {
            notice: watch::Sender::new(notice),
            ended: watch::Sender::new(None),
            settled: watch::Sender::new(false),
            acknowledged: watch::Sender::new(None),
        }
    }
}

/// What the parts of a flow share.
struct Flow {
    context: Arc<Context>,
    /// The event is over.
    stop: CancellationToken,
    notice: watch::Receiver<Notice>,
    /// What should stand on the Node.
    wanted: watch::Sender<EvictionNotice>,
    terms: watch::Sender<Terms>,
    relay: watch::Sender<Option<EvictionNotice>>,
    settled: watch::Sender<bool>,
    acknowledged: watch::Sender<Option<String>>,
    resumed: bool,
    began: Instant,
    /// Where somebody collects traces.
    trace: Option<Trace>,
}

/// Handles a notice. Ends when the event is over and the Node is clean again; until then it stays, for pods that
/// still come.
pub fn run(
    context: Arc<Context>,
    running: &Running,
    relay: watch::Sender<Option<EvictionNotice>>,
) -> impl Future<Output = ()> + use<> {
    let (notice, mut ended) = (running.notice.subscribe(), running.ended.subscribe());
    let (settled, acknowledged) = (running.settled.clone(), running.acknowledged.clone());
    // Shared code knows of no events: what it logs is found by the span. At the highest level, so that no filter takes it out.
    let about = tracing::error_span!("event", event_id = notice.borrow().event_id);
    let flow = async move {
        let first = notice.borrow().clone();
        let last = context.node.latest().and_then(|node| node.notice());
        let resumed = last.filter(|last| last.is_active() && last.event_id == first.event_id);
        let traceparent = resumed.as_ref().and_then(|last| last.traceparent.as_deref());
        let trace = Trace::of(&context.tracer, context.node.name(), &first.event_id, traceparent);
        let wanted = EvictionNotice {
            by: Claimant::NodeAgent,
            event_id: first.event_id.clone(),
            event_type: first.kind.to_string(),
            source: first.source,
            response: first.response,
            observed_at: first.observed_at,
            not_before: first.not_before,
            deadline: first.deadline,
            phase: resumed.as_ref().map_or(Phase::Noticed, |last| last.phase),
            pods: resumed.as_ref().map_or_else(PodCounts::default, |last| last.pods),
            cordoned: false,
            boot_id: first.boot_id.clone(),
            traceparent: trace.as_ref().map(Trace::traceparent),
            doomed: first.doomed.clone(),
            unfinished: resumed.as_ref().map(|last| last.unfinished.clone()).unwrap_or_default(),
        };
        tracing::info!(
            event_id = wanted.event_id, node = context.node.name(), reason = %reason(&first.kind), kind = %first.kind,
            response = ?first.response, source = ?first.source, deadline = %wanted.deadline, resumed = resumed.is_some(),
            "under notice"
        );
        let flow = Flow {
            terms: watch::Sender::new(terms(&first, &context)),
            context,
            stop: CancellationToken::new(),
            notice,
            wanted: watch::Sender::new(wanted),
            relay,
            settled,
            acknowledged,
            resumed: resumed.is_some(),
            began: Instant::now(),
            trace,
        };
        if let Some(trace) = &flow.trace {
            trace.noticed(&flow.wanted.borrow(), Timestamp::now());
        }
        flow.relay();
        let tried = CancellationToken::new();
        let ended = async {
            let phase = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
            flow.stop.cancel();
            phase
        };
        let phase = if first.response == EventResponse::Drain {
            let cause = Cause::Notice(flow.wanted.subscribe());
            let (terms, stop) = (flow.terms.subscribe(), flow.stop.clone());
            let telling = Telling::new(&flow.context, cause, terms, stop, flow.trace.clone());
            let ((), (), (), (), (), phase) = tokio::join!(
                biased;
                telling.run(),
                flow.report(&tried),
                flow.drain(&tried, &telling),
                flow.acknowledge(),
                flow.follow(),
                ended
            );
            phase
        } else {
            tokio::join!(flow.report(&tried), flow.follow(), ended).2
        };
        if let Some(trace) = &flow.trace {
            trace.whole(&flow.wanted.borrow(), phase.unwrap_or(Phase::Cancelled));
        }
        give_back(&flow.context, phase.unwrap_or(Phase::Cancelled)).await;
        flow.relay.send_replace(None);
        flow.settled.send_replace(true);
    };
    flow.instrument(about)
}

impl Flow {
    /// Keeps terms and report up to date with the notice, until the event is over.
    async fn follow(&self) {
        let mut notice = self.notice.clone();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = notice.changed() => if changed.is_err() {
                    return self.stop.cancelled().await;
                },
            }
            let news = notice.borrow_and_update().clone();
            tracing::info!(
                event_id = news.event_id, node = self.context.node.name(), kind = %news.kind, deadline = %news.deadline,
                started = news.started, "the notice has changed"
            );
            self.wanted.send_modify(|wanted| {
                wanted.event_id.clone_from(&news.event_id);
                wanted.event_type = news.kind.to_string();
                wanted.source = news.source;
                wanted.observed_at = news.observed_at;
                wanted.not_before = news.not_before;
                wanted.deadline = news.deadline;
                wanted.boot_id.clone_from(&news.boot_id);
                wanted.doomed.clone_from(&news.doomed);
            });
            let news = terms(&news, &self.context);
            self.terms.send_if_modified(|terms| {
                let has_changed = *terms != news;
                *terms = news;
                has_changed
            });
        }
    }

    /// Lets pods know that they go. A hint, or a cordon, is nothing that a pod should end for.
    fn relay(&self) {
        let told = Some(self.wanted.borrow().clone()).filter(EvictionNotice::takes_capacity);
        self.relay.send_replace(told);
    }

    fn uid(&self) -> Option<String> {
        self.context.node.latest()?.metadata.uid.clone()
    }

    /// An Event on the Node.
    fn announce(&self, is_warning: bool, reason: Reason, note: String) {
        let context = &self.context;
        context.announcer.node(context.node.name(), self.uid().as_deref(), is_warning, reason, note);
    }
}

/// Under which terms the node is drained. A hint is no reason to override anybody's budget.
fn terms(notice: &Notice, context: &Context) -> Terms {
    let (deadline, policy) = (notice.deadline, context.policy());
    match notice.kind {
        Kind::Preempt => Terms::Preempt { noticed: notice.observed_at, deadline, policy },
        Kind::Rebalance => Terms::Voluntary { not_after: deadline },
        _ => Terms::Planned { deadline, policy },
    }
}

/// As what an event is told.
fn reason(kind: &Kind) -> Reason {
    match kind {
        Kind::Preempt => Reason::SpotEvictionNoticed,
        Kind::Rebalance => Reason::RebalanceRecommended,
        _ => Reason::MaintenanceNoticed,
    }
}

/// Takes the marks of a notice off that holds no longer.
pub async fn give_back(context: &Context, phase: Phase) {
    // First, since the Node's marks are what would have a next agent do it.
    notify::take_off(context).await;
    let last = context.node.latest().and_then(|node| node.notice()).filter(EvictionNotice::is_active);
    let node = context.node.write(|node| marks::ended(node, phase), || ()).await;
    context.tell(Told::Nothing);
    let Some(last) = last else { return };
    let reason = match phase {
        Phase::Cancelled if last.event_type == Kind::Preempt.label() => Reason::SpotEvictionCancelled,
        _ => Reason::EventOver,
    };
    let uncordoned = last.cordoned && !node.spec.unschedulable;
    let (event_id, kind) = (&last.event_id, &last.event_type);
    tracing::info!(event_id, kind, node = context.node.name(), %reason, ?phase, uncordoned, "the Node is given back");
    let what = match phase {
        Phase::Cancelled => "does not come",
        _ => "is over",
    };
    let then = match (last.cordoned, node.spec.unschedulable) {
        (true, false) => "the node is uncordoned",
        (false, true) => "the cordon is not ours and stays",
        (true, true) => "the cordon stays as long as others hold it",
        (false, false) => "the node was not cordoned",
    };
    let note = format!("The announced {kind} {what}; {then} (event {event_id})");
    context.announcer.node(context.node.name(), node.metadata.uid.as_deref(), false, reason, note);
}

/// The longest that a drain for `notice` still takes.
pub fn lasts_until(notice: &Notice) -> Timestamp {
    later(notice.deadline, spotpool_drain::plan::LEAST_EFFORT * 2)
}

/// A pause between two looks at something that nobody tells of.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
