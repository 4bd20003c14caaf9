//! Writing the Node: the first marks as fast as can be, then each phase.

use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::EventResponse;
use spotpool_drain::jittered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Flow, reason};
use crate::condition::Told;
use crate::document::Kind;
use crate::edit::Edit;
use crate::marks;
use crate::node::Node;
use crate::trace::Trace;

/// How long Events, the condition and progress wait for evictions at most.
const PEOPLE_WAIT: Duration = Duration::from_secs(5);

impl Flow {
    /// Writes the Node until the event is over. `tried` is cancelled once the first write was tried.
    pub async fn report(&self, tried: &CancellationToken) {
        let mut changes = self.wanted.subscribe();
        // A write that is under way when the event is over must end before its marks come off.
        let unless_over = |edit: Edit| if self.stop.is_cancelled() { Edit::default() } else { edit };
        let began = Timestamp::now();
        let mark = |node: &Node| unless_over(marks::notice(node, &self.wanted.borrow()));
        let node = self.context.node.write(mark, || tried.cancel()).await;
        tried.cancel();
        if self.stop.is_cancelled() {
            return;
        }
        let took = self.began.elapsed();
        let first = changes.borrow_and_update().clone();
        let cordoned = node.notice().is_some_and(|written| written.cordoned);
        tracing::info!(
            event_id = first.event_id,
            node = self.context.node.name(),
            took_ms = took.as_millis() as u64,
            cordoned,
            "the Node is marked"
        );
        if let Some(trace) = &self.trace {
            trace.marked(began, cordoned);
        }
        if !self.resumed && first.response != EventResponse::Ignore {
            self.context.metrics.cordoned(took, self.trace.as_ref().map(Trace::exemplar));
        }

        let mut told = node.notice().unwrap_or(first);
        let mut is_news = !self.resumed;
        self.has_written(&told);
        loop {
            self.after_the_evictions(&mut changes, &told).await;
            if self.stop.is_cancelled() {
                return;
            }

            let wanted = changes.borrow_and_update().clone();
            let is_new = wanted.event_id != told.event_id;
            self.context.tell(told_as(&wanted));
            if is_news || is_new {
                self.tell(&wanted);
                is_news = false;
            }
            let kept = EvictionNotice { cordoned: told.cordoned, ..wanted };
            // Numbers alone are no reason to write.
            if (EvictionNotice { pods: told.pods, ..kept.clone() }) != told {
                let edit = |node: &Node| {
                    let edit = if is_new { marks::notice(node, &kept) } else { marks::progress(node, &kept) };
                    unless_over(edit)
                };
                let node = self.context.node.write(edit, || ()).await;
                let cordoned = node.notice().is_some_and(|written| written.cordoned);
                told = EvictionNotice { cordoned, ..kept };
                self.has_written(&told);
            }
            let is_said = |wanted: &EvictionNotice| {
                EvictionNotice { pods: told.pods, cordoned: told.cordoned, ..wanted.clone() } == told
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = changes.wait_for(|wanted| !is_said(wanted)) => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// What stands on the Node is what pods hear, and what an end of this process waits for.
    fn has_written(&self, told: &EvictionNotice) {
        self.wanted.send_if_modified(|wanted| {
            wanted.cordoned = told.cordoned;
            false
        });
        self.relay();
        let is_done = told.response != EventResponse::Drain || is_final(told.phase);
        self.settled.send_replace(is_done);
    }

    /// What people read can wait while pods are asked to go: where many nodes go at once, the apiserver has enough to
    /// do. Until the drain is over, or there is other news, and never long.
    async fn after_the_evictions(
        &self,
        changes: &mut watch::Receiver<EvictionNotice>,
        told: &EvictionNotice,
    ) {
        let left = told.deadline.duration_since(Timestamp::now());
        let longest = Duration::try_from(left).unwrap_or_default() / 4;
        let cannot_wait = |wanted: &EvictionNotice| {
            wanted.response != EventResponse::Drain
                || is_final(wanted.phase)
                || (wanted.event_id.as_str(), wanted.deadline, &wanted.unfinished)
                    != (told.event_id.as_str(), told.deadline, &told.unfinished)
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(jittered(longest.min(PEOPLE_WAIT))) => {}
            // An error means that the flow has ended.
            _ = changes.wait_for(cannot_wait) => {}
        }
    }

    /// Tells people of a notice.
    fn tell(&self, notice: &EvictionNotice) {
        let kind = Kind::read(&notice.event_type);
        let what = match &kind {
            Kind::Preempt => format!("Azure takes this VM back by {:.0}", notice.deadline),
            Kind::Rebalance => "Azure recommends to move away from this spot VM".to_owned(),
            kind => format!("Azure has announced a {kind} of this VM, by {:.0}", notice.deadline),
        };
        let then = match notice.response {
            EventResponse::Ignore => "nothing is done about it, as its policy says",
            EventResponse::Cordon => "the node takes no new pods",
            EventResponse::Drain => "the node is being drained",
        };
        let note = format!("{what}; {then} (event {})", notice.event_id);
        let is_warning = kind == Kind::Preempt || notice.response == EventResponse::Drain;
        self.announce(is_warning, reason(&kind), note);
    }
}

fn is_final(phase: Phase) -> bool {
    matches!(phase, Phase::Drained | Phase::Incomplete)
}

/// The notice as the Node's condition says it.
fn told_as(notice: &EvictionNotice) -> Told {
    let message = format!(
        "{} announced by Azure, event {}, by {:.0}",
        notice.event_type, notice.event_id, notice.deadline
    );
    Told::Notice { reason: reason(&Kind::read(&notice.event_type)), message }
}
