//! Events of a SpotPool: what a person would want to know of when it happens.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use spotpool_core::{Action, Plan};
use spotpool_crds::spot_pool::PlanStep;
use spotpool_crds::{Reason, SpotPoolStatus};

use super::act::Outcome;
use super::doomed::Notices;
use super::{agents, money, objective, others};

/// Events of what was done, and of what has changed from `before` to `after`.
///
/// The recorder folds Events of one reason, action and related object into a series and keeps only the first
/// note: what is to be read apart must differ in one of these.
pub(super) fn of_pass(
    before: &SpotPoolStatus,
    after: &SpotPoolStatus,
    plan: &Plan,
    outcome: &Outcome,
) -> Vec<Event> {
    let mut events: Vec<Event> = outcome
        .done
        .iter()
        .map(|action| money::or_shed(plan, action, action_event(action, after, "")))
        .collect();
    events.extend(money::events(before, after, plan));
    // What is planned and not done is told once, when it comes into the plan.
    let is_new = |action: &&Action| {
        let speaks_of_it = |step: &&PlanStep| step.reason == action.reason() && speaks_of(step, action);
        plan.steps.iter().filter(speaks_of_it).any(|step| !before.plan.contains(step))
    };
    let withheld = plan.withheld.iter().filter(is_new);
    events.extend(withheld.map(|action| action_event(action, after, "would have ")));
    let mut event = |type_, reason: Reason, action: String, note: String| {
        events.push(Event { type_, reason: reason.to_string(), note: Some(note), action, secondary: None });
    };
    for pool in &after.agent_pools {
        let old = before.agent_pools.iter().find(|old| old.name == pool.name);
        if let Some(error) = pool
            .last_error
            .as_ref()
            .filter(|error| old.and_then(|old| old.last_error.as_ref()) != Some(error))
        {
            let until = pool
                .avoided_until
                .as_ref()
                .map(|until| format!("; avoided until {:.0}", until.0))
                .unwrap_or_default();
            let reason = [Reason::ScaleUpStalled, Reason::ScaleUpIncomplete]
                .into_iter()
                .find(|reason| error.code == reason.to_string())
                .unwrap_or(Reason::OperationFailed);
            event(
                EventType::Warning,
                reason,
                format!("Azure/{}/{}", pool.name, error.code),
                format!("agent pool {}: {}: {}{until}", pool.name, error.code, error.message),
            );
        }
    }
    let capped = |status: &SpotPoolStatus| status.floor.as_ref().is_some_and(|it| !it.capped_by.is_empty());
    if let Some(floor) = after.floor.as_ref().filter(|_| capped(after) && !capped(before)) {
        let note = format!(
            "disruption budgets need {} on-demand, {} allows less: if all spot goes at once, some of their pods find no room",
            floor.needed.unwrap_or_default(),
            floor.capped_by
        );
        event(EventType::Warning, Reason::FloorAtLimit, "Floor".into(), note);
    }
    for pool in &after.agent_pools {
        let old = before.agent_pools.iter().find(|old| old.name == pool.name);
        let known = old.and_then(|old| old.changed_elsewhere.as_ref());
        if let Some(change) = pool.changed_elsewhere.as_ref().filter(|change| known != Some(change)) {
            let action = format!("Count/{}/{}", pool.name, change.at.0.as_second());
            let (reason, note) = others::changed(&pool.name, change, pool.autoscaler.is_some());
            event(EventType::Warning, reason, action, note);
        }
    }
    let answered = |status: &SpotPoolStatus| status.fallback.request.clone();
    if let Some(request) = answered(after).filter(|request| answered(before).as_ref() != Some(request)) {
        let note = format!("failback was asked for ({}): {}", request.value, request.answer);
        event(EventType::Normal, Reason::FailbackRequested, format!("Answer/{}", request.value), note);
    }
    let bad = [
        ("Stalled", "True"),
        ("OnDemandAvailable", "False"),
        ("CostTagsPresent", "False"),
        ("BudgetExhausted", "True"),
        (agents::CONDITION, "False"),
    ];
    for (kind, bad) in bad {
        let is_bad = |condition: &&Condition| condition.type_ == kind && condition.status == bad;
        let Some(now_bad) = after.conditions.iter().find(is_bad) else { continue };
        if before.conditions.iter().any(|old| is_bad(&old)) {
            continue;
        }
        let (reason, note) = (now_bad.reason.clone(), now_bad.message.clone());
        events.push(Event {
            type_: EventType::Warning,
            reason,
            note: Some(note),
            action: if kind == "Stalled" { "Guard".into() } else { kind.into() },
            secondary: None,
        });
    }
    events.extend(objective::events(before.objective.as_ref(), after.objective.as_ref()));
    events
}

fn speaks_of(step: &PlanStep, action: &Action) -> bool {
    match action {
        Action::RequestDrain { node, .. }
        | Action::WithdrawDrain { node, .. }
        | Action::TakeOutOfService { node }
        | Action::ReturnToService { node } => step.message.contains(node.as_str()),
        Action::Restart { agent_pool, .. } => step.agent_pool.as_ref() == Some(agent_pool),
        _ => step.agent_pool.as_deref() == action.agent_pool(),
    }
}

/// What was done, or with `would` was not, because the SpotPool is in `Observe` or suspended.
fn action_event(action: &Action, status: &SpotPoolStatus, would: &str) -> Event {
    let reason = action.reason();
    let (kind, verb, node, note) = match action {
        Action::ScaleUp { agent_pool, new, count, .. } => {
            let kind = match reason {
                Reason::SpotBelowTarget
                | Reason::StandbyAfterLoss
                | Reason::ReplaceAhead
                | Reason::OnDemandBelowFloor => EventType::Normal,
                _ => EventType::Warning,
            };
            let price = status
                .agent_pools
                .iter()
                .find(|pool| pool.name == *agent_pool)
                .and_then(|pool| pool.price.as_ref());
            let price = price
                .map(|price| format!(", at {} {} an hour each", price.hourly, price.currency))
                .unwrap_or_default();
            let is_autoscaled =
                status.agent_pools.iter().any(|pool| pool.name == *agent_pool && pool.autoscaler.is_some());
            let by = if is_autoscaled { " by its minimum" } else { "" };
            let note =
                format!("asked agent pool {agent_pool} for {new} more nodes, {count} in all{by}{price}");
            (kind, format!("ScaleUp/{agent_pool}"), None, note)
        }
        Action::DeleteMachines { agent_pool, nodes, .. } => {
            // What never was a Node is in no Node's Events.
            let (kind, done, node) = match reason {
                Reason::LostDeleted => (EventType::Normal, "deleted lost", nodes.first()),
                Reason::NeverJoined => (EventType::Warning, "deleted, since they became no Nodes,", None),
                _ => (EventType::Normal, "returned", nodes.first()),
            };
            let note = format!("{done} {} of agent pool {agent_pool}", nodes.join(", "));
            (kind, "DeleteMachines".to_owned(), node, note)
        }
        Action::CorrectCount { agent_pool, count } => {
            let note =
                format!("lowered the count of agent pool {agent_pool} to the {count} machines that exist");
            (EventType::Normal, format!("CorrectCount/{agent_pool}"), None, note)
        }
        Action::CreateAgentPool { agent_pool } => {
            let note = format!("had Azure make agent pool {agent_pool}, without machines");
            (EventType::Normal, format!("CreateAgentPool/{agent_pool}"), None, note)
        }
        Action::SetMinimum { agent_pool, min, .. } => {
            let note = format!("set the minimum of autoscaled agent pool {agent_pool} to {min}");
            (EventType::Normal, format!("SetMinimum/{agent_pool}"), None, note)
        }
        Action::Restart { agent_pool, nodes } => {
            let note = format!("had Azure start {} of agent pool {agent_pool}", nodes.join(", "));
            (EventType::Normal, format!("Restart/{agent_pool}"), nodes.first(), note)
        }
        Action::TakeOutOfService { node } => {
            let note = format!("taken {node} out of service: its VM does not run, its pods are set free");
            (EventType::Warning, "TakeOutOfService".to_owned(), Some(node), note)
        }
        Action::ReturnToService { node } => {
            let note = format!("put {node} in service again");
            (EventType::Normal, "ReturnToService".to_owned(), Some(node), note)
        }
        Action::RequestDrain { node, reason: why, .. } => {
            (EventType::Normal, "Drain".to_owned(), Some(node), format!("asked {node} to drain: {why:?}"))
        }
        Action::WithdrawDrain { node, .. } => {
            let note = format!("withdrew the drain of {node}");
            (EventType::Normal, "WithdrawDrain".to_owned(), Some(node), note)
        }
    };
    let (kind, verb) =
        if would.is_empty() { (kind, verb) } else { (EventType::Normal, format!("Withheld/{verb}")) };
    let note = Some(format!("{would}{note}"));
    let event = Event { type_: kind, reason: reason.to_string(), note, action: verb, secondary: None };
    match node {
        Some(node) => about_node(event, node),
        None => event,
    }
}

/// Which events of Azure a step or an Event of the operator answers, if it does.
pub(super) fn answers(reason: &str, notices: &Notices) -> Option<String> {
    let replaces = [Reason::ReplaceEvicted, Reason::ReplaceAhead, Reason::FallbackForShortfall];
    notices.event_ids().filter(|_| replaces.iter().any(|it| it.as_ref() == reason))
}

/// An Event of the operator, with the events of Azure that it answers.
pub(super) fn naming(event: Event, notices: &Notices) -> Event {
    let note = match (event.note, answers(&event.reason, notices)) {
        (Some(note), Some(ids)) => Some(format!("{note} (event {ids})")),
        (note, _) => note,
    };
    Event { note, ..event }
}

/// An Event about a node.
pub(super) fn about_node(event: Event, node: &str) -> Event {
    let secondary = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    Event { secondary: Some(secondary), ..event }
}

/// An Event of the SpotPool that is about none of its actions.
pub(super) fn event(reason: Reason, is_warning: bool, note: String) -> Event {
    let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
    Event { type_, reason: reason.to_string(), note: Some(note), action: reason.to_string(), secondary: None }
}
