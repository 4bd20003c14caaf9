//! What a drain leaves in the notice of its node, by whomever it is run.

use spotpool_crds::eviction::{MOST_UNFINISHED, Phase, PodCounts};
use spotpool_crds::{EvictionNotice, Reason};

use crate::report::{Ending, Progress, Report};

/// Takes the numbers over, beside those of drains `before` this one. Whether anything has changed.
pub fn progress(notice: &mut EvictionNotice, before: PodCounts, progress: &Progress) -> bool {
    let pods = PodCounts {
        evicted: before.evicted + progress.evicted,
        escalated: before.escalated + progress.escalated,
        left: progress.left,
    };
    let phase = match notice.phase {
        Phase::Noticed if progress.all_asked => Phase::Draining,
        phase => phase,
    };
    let changed = (pods, phase) != (notice.pods, notice.phase);
    (notice.pods, notice.phase) = (pods, phase);
    changed
}

/// Names pods that are still there.
pub fn unfinished(notice: &mut EvictionNotice, left: &[String]) {
    notice.unfinished = left.iter().take(MOST_UNFINISHED).cloned().collect();
}

/// Notes how the drain ended. Nothing if it was stopped: whoever stopped it says why.
pub fn ending(notice: &mut EvictionNotice, before: PodCounts, report: &Report) -> Option<(Phase, Reason)> {
    let (phase, reason) = match report.ending {
        Ending::Stopped => return None,
        Ending::Drained => (Phase::Drained, Reason::DrainCompleted),
        Ending::TimeOver => (Phase::Incomplete, Reason::DrainIncomplete),
    };
    progress(notice, before, &report.progress);
    notice.phase = phase;
    unfinished(notice, if phase == Phase::Incomplete { &report.left } else { &[] });
    Some((phase, reason))
}
