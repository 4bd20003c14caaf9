//! What is said of an objective: a condition, and an Event at each change.

use kube::runtime::events::{Event, EventType};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::ObjectiveStatus;

use super::conditions::Verdict;

/// Condition `ObjectiveMet`: whether error budget is left, and why that may not last.
pub(super) fn verdict(objective: &ObjectiveStatus) -> Verdict {
    let (status, reason) = match () {
        () if objective.availability.is_empty() => (None, Reason::ObjectiveUnknown),
        () if is_missed(objective) => (Some(false), Reason::ObjectiveMissed),
        () if objective.caution == 0 => (Some(true), Reason::ObjectiveKept),
        () if objective.calm_since.is_some() => (Some(true), Reason::ObjectiveRecovering),
        () => (Some(true), Reason::ObjectiveBurning),
    };
    Verdict { kind: "ObjectiveMet", status, reason, message: words(objective) }
}

/// Events of changes: caution steps up or down, the budget used up.
pub(super) fn events(before: Option<&ObjectiveStatus>, after: Option<&ObjectiveStatus>) -> Vec<Event> {
    let Some(after) = after else { return Vec::new() };
    let steps = before.map_or(0, |before| before.caution);
    let (type_, reason) = match after.caution {
        now if now > steps => (EventType::Warning, Reason::Cautious),
        0 => (EventType::Normal, Reason::ObjectiveRecovered),
        _ => (EventType::Normal, Reason::ObjectiveRecovering),
    };
    let mut events = Vec::new();
    let mut tell = |type_, reason: Reason, what: String| {
        // Else the second within minutes would be folded into the first, whose numbers are others.
        let action = format!("{what}/{}", after.as_of.0.as_second());
        let note = Some(words(after));
        events.push(Event { type_, reason: reason.to_string(), note, action, secondary: None });
    };
    if after.caution != steps {
        tell(type_, reason, format!("Caution/{}", after.caution));
    }
    if is_missed(after) && !before.is_some_and(is_missed) {
        tell(EventType::Warning, Reason::ObjectiveMissed, "Objective".into());
    }
    events
}

fn is_missed(objective: &ObjectiveStatus) -> bool {
    !objective.availability.is_empty() && objective.budget_left_percent < 0
}

fn words(objective: &ObjectiveStatus) -> String {
    if objective.availability.is_empty() {
        return format!("{}: nothing that was wanted has been measured yet", objective.summary);
    }
    let rates: Vec<String> =
        objective.burn_rates.iter().map(|it| format!("{} over {}", it.rate, it.window)).collect();
    let rates = if rates.is_empty() { "none yet".to_owned() } else { rates.join(", ") };
    format!(
        "{} over {}; {} % of the error budget left, {} unit-minutes; burn rates {rates}",
        objective.summary,
        objective.measured.window,
        objective.budget_left_percent,
        objective.budget_left_unit_minutes,
    )
}
