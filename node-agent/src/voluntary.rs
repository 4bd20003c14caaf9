//! A drain that the operator asks for: no hurry, disruption budgets obeyed, the node given back if it does not
//! work out. Everything that must survive a restart stands on the Node.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use spotpool_drain::{Answer, Drain, Ending, Observer, Pod, Progress, Terms};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::edit::Edit;
use crate::marks;
use crate::telling::{Cause, Telling};
use crate::time::later;

/// Progress is written this often at most; an end is written at once.
const WRITE_PAUSE: Duration = Duration::from_secs(2);

/// How long after its time whoever asked for a rehearsal has to take the request back.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(15);

/// When a node that was drained for a rehearsal opens though the request stands: no operator leads then, and pods have no
/// reason to stay away from a VM that goes on.
pub fn opens_at(request: &DrainRequest, status: &DrainStatus) -> Option<Timestamp> {
    let is_rehearsed = request.reason == DrainReason::Drill && status.phase == DrainPhase::Drained;
    is_rehearsed.then(|| later(request.not_after, WITHDRAWN_WITHIN))
}

/// Drains as `request` asks and answers on the Node. `stop` ends it where it is: what then becomes of the Node is
/// decided by what stands on it.
pub async fn run(context: Arc<Context>, request: DrainRequest, stop: CancellationToken) {
    let began = Instant::now();
    let resumed = context
        .node
        .latest()
        .and_then(|node| node.drain_status())
        .is_some_and(|status| status.id == request.id);
    let unless_stopped = |edit: Edit| if stop.is_cancelled() { Edit::default() } else { edit };
    let begin = |node: &crate::node::Node| unless_stopped(marks::drain_begun(node, &request.id));
    let node = context.node.write(begin, || ()).await;
    let Some(status) =
        node.drain_status().filter(|status| status.id == request.id && !status.phase.is_final())
    else {
        return;
    };
    if stop.is_cancelled() {
        return;
    }
    let reason = Reason::VoluntaryDrainStarted;
    tracing::info!(
        request = request.id, asked_for = ?request.reason, node = context.node.name(), %reason, resumed,
        cordoned = status.cordoned, not_after = %request.not_after, "voluntary drain"
    );
    if !resumed {
        let note = format!(
            "Drain asked for ({:?}), within disruption budgets, until {:.0} (request {})",
            request.reason, request.not_after, request.id
        );
        context.announcer.node(context.node.name(), node.metadata.uid.as_deref(), false, reason, note);
    }

    let begun = status.clone();
    let status = watch::Sender::new(status);
    let terms = watch::Sender::new(Terms::Voluntary { not_after: request.not_after });
    let hears = Hears { status: &status, context: &context, request: &request };
    let over = stop.child_token();
    let telling =
        Telling::new(&context, Cause::Request(request.clone()), terms.subscribe(), over.clone(), None);
    let drain = async {
        let report = Drain {
            client: &context.client,
            pods: context.pods.clone(),
            terms: terms.subscribe(),
            holds: telling.holds(),
            crowd: 1,
            stop: stop.clone(),
            observer: &hears,
        }
        .run()
        .await;
        hears.progressed(&report.progress);
        let phase = match report.ending {
            Ending::Drained => DrainPhase::Drained,
            Ending::TimeOver => DrainPhase::TimedOut,
            Ending::Stopped => return,
        };
        let (result, reason) = match phase {
            DrainPhase::Drained => ("drained", Reason::DrainCompleted),
            _ => ("timed_out", Reason::DrainTimedOut),
        };
        context.metrics.drained_voluntarily(result, began.elapsed());
        tracing::info!(request = request.id, node = context.node.name(), %reason, left = report.left.len(), "voluntary drain over");
        for pod in &report.left {
            tracing::warn!(request = request.id, node = context.node.name(), %reason, pod, "left on the node");
        }
        status.send_modify(|status| status.phase = phase);
    };
    let answer = async {
        let mut changes = status.subscribe();
        // What stands on the Node. An empty node may be drained before this is asked for the first time.
        let mut told = begun;
        loop {
            let wanted = changes.borrow_and_update().clone();
            if wanted != told {
                let edit = |node: &crate::node::Node| match wanted.phase {
                    DrainPhase::TimedOut => marks::drain_timed_out(node, &wanted),
                    _ => marks::drain_status(node, &wanted),
                };
                context.node.write(|node| unless_stopped(edit(node)), || ()).await;
            }
            if wanted.phase.is_final() || stop.is_cancelled() {
                return;
            }
            if wanted != told {
                told = wanted;
                let pause = tokio::time::sleep(WRITE_PAUSE);
                tokio::select! {
                    () = pause => {}
                    () = stop.cancelled() => return,
                    _ = changes.wait_for(|status| status.phase.is_final()) => {}
                }
                continue; // what changed meanwhile counts as seen, but has not been told
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    };
    let work = async {
        tokio::join!(drain, answer);
        over.cancel();
    };
    tokio::join!(biased; telling.run(), work);
}

struct Hears<'a> {
    status: &'a watch::Sender<DrainStatus>,
    context: &'a Context,
    request: &'a DrainRequest,
}

impl Observer for Hears<'_> {
    fn answered(&self, pod: &Pod, _: bool, answer: &Answer) {
        self.context.metrics.answered(answer);
        if *answer == Answer::Accepted {
            let (node, DrainRequest { reason, id, .. }) = (self.context.node.name(), self.request);
            let note = format!("Evicted: node {node} is emptied without hurry, {reason:?} (request {id})");
            self.context.announcer.evicted(pod, note);
        }
    }

    fn progressed(&self, progress: &Progress) {
        self.status.send_if_modified(|status| {
            let blocking: Vec<String> = progress.blocking.iter().cloned().collect();
            let changed = (status.pods_left, &status.blocking_pdbs) != (progress.left, &blocking);
            (status.pods_left, status.blocking_pdbs) = (progress.left, blocking);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DrainReason::{Drill, Failback, Manual, Repair, ScaleDown};

    /// A failback that is opened again comes back as a machine that nobody needs; a rehearsal that is not keeps one closed.
    #[test]
    fn only_a_rehearsal_that_was_drained_ends_by_itself() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let opens = |reason, phase| {
            let request = DrainRequest {
                id: "1".into(),
                reason,
                voluntary: true,
                not_after: at("2026-01-01T00:00:30Z"),
                spot_pool: None,
            };
            let status = DrainStatus {
                id: "1".into(),
                phase,
                pods_left: 0,
                blocking_pdbs: Vec::new(),
                cordoned: true,
            };
            opens_at(&request, &status)
        };
        assert_eq!(opens(Drill, DrainPhase::Drained), Some(at("2026-01-01T00:00:45Z")));
        for phase in [DrainPhase::Draining, DrainPhase::TimedOut, DrainPhase::Cancelled] {
            assert_eq!(opens(Drill, phase), None, "{phase:?}");
        }
        for reason in [Failback, ScaleDown, Repair, Manual] {
            assert_eq!(opens(reason, DrainPhase::Drained), None, "{reason:?}");
        }
    }
}
