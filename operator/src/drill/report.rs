//! What people see of a drill besides its own words: conditions and Events.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::events::{Event, EventType};
use spotpool_core::drill::News;
use spotpool_crds::drill::{DrillPhase, EvictionDrillStatus};
use spotpool_crds::{EvictionDrill, Reason};

/// The conditions, as kstatus reads them. A scheduled drill that waits is as it should be.
pub fn conditions(drill: &EvictionDrill, status: &EvictionDrillStatus, now: Timestamp) -> Vec<Condition> {
    use DrillPhase::{Aborted, Failed, Pending, Planned, Recovering, Refused, Running, Succeeded};
    let Some(phase) = status.phase else { return Vec::new() };
    let waits_for_its_time = phase == Pending && drill.spec.schedule.is_some();
    let is_ready = matches!(phase, Succeeded | Planned) || waits_for_its_time;
    let is_stalled = matches!(phase, Failed | Aborted | Refused);
    let reason = match phase {
        Pending => Reason::DrillWaits,
        Running => Reason::DrillStarted,
        Recovering => Reason::DrillRecovering,
        Succeeded => Reason::DrillSucceeded,
        Failed => Reason::DrillFailed,
        Aborted => Reason::DrillAborted,
        Refused => Reason::DrillRefused,
        Planned => Reason::DrillPlanned,
    };
    let condition = |kind: &str, holds: bool| {
        let word = if holds { "True" } else { "False" };
        let before = status.conditions.iter().find(|it| it.type_ == kind && it.status == word);
        Condition {
            type_: kind.into(),
            status: word.into(),
            reason: reason.to_string(),
            message: status.message.clone(),
            observed_generation: Some(status.observed_generation),
            last_transition_time: before
                .map_or_else(|| Time(now), |before| before.last_transition_time.clone()),
        }
    };
    vec![
        condition("Ready", is_ready),
        condition("Reconciling", !is_ready && !is_stalled),
        condition("Stalled", is_stalled),
    ]
}

/// An Event; those of one run are told apart from those of the next by their action.
pub fn event(news: &News) -> Event {
    let is_bad = matches!(news.reason, Reason::DrillRefused | Reason::DrillAborted | Reason::DrillFailed);
    Event {
        type_: if is_bad { EventType::Warning } else { EventType::Normal },
        reason: news.reason.to_string(),
        note: Some(news.note.chars().take(1000).collect()),
        action: format!("Drill/{}", news.run),
        secondary: None,
    }
}
