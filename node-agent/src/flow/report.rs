//! Writing the Node: the first marks as fast as can be, then each phase.

use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::EventResponse;
use tokio_util::sync::CancellationToken;

use super::{Flow, reason};
use crate::condition::Told;
use crate::document::Kind;
use crate::edit::Edit;
use crate::marks;
use crate::node::Node;

impl Flow {
    /// Writes the Node until the event is over. `tried` is cancelled once the first write was tried.
    pub async fn report(&self, tried: &CancellationToken) {
        let mut changes = self.wanted.subscribe();
        // A write that is under way when the event is over must end before its marks come off.
        let unless_over = |edit: Edit| if self.stop.is_cancelled() { Edit::default() } else { edit };
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
        if !self.resumed {
            if first.response != EventResponse::Ignore {
                self.context.metrics.cordoned(took);
            }
            self.tell(&first);
        }

        let mut told = node.notice().unwrap_or(first);
        let mut is_new = false;
        loop {
            let wanted = changes.borrow_and_update().clone();
            self.context.tell(told_as(&wanted));
            let kept = EvictionNotice { cordoned: told.cordoned, ..wanted.clone() };
            // Numbers alone are no reason to write.
            if (EvictionNotice { pods: told.pods, ..kept.clone() }) != told {
                let edit = |node: &Node| {
                    let edit = if is_new { marks::notice(node, &kept) } else { marks::progress(node, &kept) };
                    unless_over(edit)
                };
                let node = self.context.node.write(edit, || ()).await;
                let cordoned = node.notice().is_some_and(|written| written.cordoned);
                told = EvictionNotice { cordoned, ..kept };
                if is_new {
                    self.tell(&told);
                }
            }
            self.wanted.send_if_modified(|wanted| {
                wanted.cordoned = told.cordoned;
                false
            });
            self.relay();
            let is_done = self.wanted.borrow().response != EventResponse::Drain
                || matches!(told.phase, Phase::Drained | Phase::Incomplete);
            self.settled.send_replace(is_done);
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
            }
            is_new = self.wanted.borrow().event_id != told.event_id;
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

/// The notice as the Node's condition says it.
fn told_as(notice: &EvictionNotice) -> Told {
    let message = format!(
        "{} announced by Azure, event {}, by {:.0}",
        notice.event_type, notice.event_id, notice.deadline
    );
    Told::Notice { reason: reason(&Kind::read(&notice.event_type)), message }
}
