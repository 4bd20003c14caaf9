//! Conditions: what stands, in one word and a sentence for people.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use spotpool_azure::Class;
use spotpool_core::{AgentPoolView, Plan, creation};
use spotpool_crds::spot_pool::{CapacityType, Role};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus};

use super::gather::Gathered;
use super::{agents, objective, tags};

/// What a condition says.
pub(super) struct Verdict {
    pub kind: &'static str,
    /// `None` is `Unknown`.
    pub status: Option<bool>,
    pub reason: Reason,
    pub message: String,
}

/// The conditions of `status`. What stands as it did `before` keeps its time.
pub(super) fn conditions(
    pool: &SpotPool,
    before: &SpotPoolStatus,
    status: &SpotPoolStatus,
    gathered: &Gathered,
    plan: &Plan,
    now: Timestamp,
) -> Vec<Condition> {
    let (summary, message) = match plan.steps.first() {
        Some(step) => (step.reason, step.message.clone()),
        None => (Reason::AsWanted, String::new()),
    };
    let stalled = stalled(pool, status, gathered, plan);
    let detail =
        plan.steps.get(1).map(|step| format!("{message}: {}", step.message)).unwrap_or(message.clone());
    let ready = status.ready_replicas >= status.replicas && stalled.is_none();
    let working =
        !plan.actions.is_empty() || status.capacity.on_the_way > 0 || !status.fallback.draining.is_empty();
    let upkeep = plan.steps.iter().find(|step| step.reason == Reason::AgentPoolInUpkeep);
    let fallback = status.fallback.nodes;
    let verdicts = [
        Verdict {
            kind: "Ready",
            status: Some(ready),
            reason: stalled.as_ref().map_or(summary, |(reason, _)| *reason),
            message: stalled.as_ref().map_or(detail, |(_, message)| message.clone()),
        },
        Verdict {
            kind: "Reconciling",
            status: Some(working || upkeep.is_some()),
            reason: match &upkeep {
                Some(step) => step.reason,
                None if working => Reason::Progressing,
                None => Reason::AsWanted,
            },
            message: upkeep.map_or_else(|| message.clone(), |step| step.message.clone()),
        },
        Verdict {
            kind: "Stalled",
            status: Some(stalled.is_some()),
            reason: stalled.as_ref().map_or(Reason::AsWanted, |(reason, _)| *reason),
            message: stalled.map(|(_, message)| message).unwrap_or_default(),
        },
        Verdict {
            kind: "SpotAvailable",
            status: Some(status.capacity.ready_spot >= plan.spot_target as i32),
            reason: if status.capacity.ready_spot >= plan.spot_target as i32 {
                Reason::SpotReady
            } else {
                Reason::CapacityShort
            },
            message: format!("{} of {} ready on spot", status.capacity.ready_spot, plan.spot_target),
        },
        Verdict {
            kind: "FallbackActive",
            status: Some(fallback > 0),
            reason: if fallback > 0 { Reason::OnDemandStandsIn } else { Reason::NoFallback },
            message: format!("{fallback} on-demand nodes stand in for spot"),
        },
        Verdict {
            kind: "OnDemandAvailable",
            status: Some(plan.on_demand_short.is_none()),
            reason: match plan.on_demand_short {
                Some(_) => Reason::OnDemandUnavailable,
                None => Reason::OnDemandAvailable,
            },
            message: plan.on_demand_short.clone().unwrap_or_default(),
        },
        Verdict {
            kind: "BudgetExhausted",
            status: plan.money.exhausted.is,
            reason: plan.money.exhausted.reason,
            message: plan.money.exhausted.message.clone(),
        },
        sole_owner(gathered),
        agents::verdict(before, gathered.survey.agents.as_ref()),
        match &gathered.unreachable {
            Some(error) => Verdict {
                kind: "AzureReachable",
                status: Some(false),
                reason: Reason::AzureUnreachable,
                // What is missing, in Azure's words, and what a person can do about it.
                message: format!("{error} — {}", error.advice),
            },
            None if !gathered.asked => Verdict {
                kind: "AzureReachable",
                status: None,
                reason: Reason::AzureUnreachable,
                message: "Azure has not answered yet".into(),
            },
            None => Verdict {
                kind: "AzureReachable",
                status: Some(true),
                reason: Reason::AzureReachable,
                message: String::new(),
            },
        },
    ];
    let objective = status.objective.as_ref().map(objective::verdict);
    let cost_tags = tags::checked(pool, gathered);
    let cost_tags = cost_tags.map(|(status, reason, message)| Verdict {
        kind: "CostTagsPresent",
        status,
        reason,
        message,
    });
    let verdicts = verdicts.into_iter().chain(objective).chain(cost_tags);
    verdicts.map(|verdict| condition(before, status, verdict, now)).collect()
}

/// Whether nobody else scales what the SpotPool scales.
fn sole_owner(gathered: &Gathered) -> Verdict {
    let seen = gathered.others.seen_first(&gathered.claimed);
    let (reason, message) = seen.clone().unwrap_or((Reason::SoleOwner, String::new()));
    Verdict { kind: "SoleOwner", status: Some(seen.is_none()), reason, message }
}

/// What only a person can mend.
fn stalled(
    pool: &SpotPool,
    status: &SpotPoolStatus,
    gathered: &Gathered,
    plan: &Plan,
) -> Option<(Reason, String)> {
    let views = &gathered.snapshot.agent_pools;
    for view in views {
        match view.role {
            Err(Reason::AgentPoolClaimed) => {
                let by = gathered.claimed.get(&view.name).map_or("another SpotPool", String::as_str);
                let message = format!(
                    "agent pool {} belongs to SpotPool {by}, which is older: remove it from one of the two",
                    view.name
                );
                return Some((Reason::AgentPoolClaimed, message));
            }
            Err(Reason::AgentPoolNotFound) if creation::wanted(&pool.spec, view).is_some() => {
                let entry = status.agent_pools.iter().find(|entry| entry.name == view.name);
                let error = entry.and_then(|entry| entry.last_error.as_ref());
                let for_a_person = [<&str>::from(Class::Invalid), Class::Denied.into()];
                if let Some(error) = error.filter(|error| for_a_person.contains(&error.class.as_str())) {
                    let (name, code, said) = (&view.name, &error.code, &error.message);
                    let message = format!(
                        "agent pool {name} does not exist, and Azure refuses to make it: {code}: {said}"
                    );
                    return Some((Reason::AgentPoolNotFound, message));
                }
            }
            Err(Reason::AgentPoolNotFound) => {
                let message = format!(
                    "agent pool {} does not exist in the cluster: create it or remove it from spec.agentPools",
                    view.name
                );
                return Some((Reason::AgentPoolNotFound, message));
            }
            Err(Reason::AgentPoolUnsuitable) => {
                let message = format!(
                    "agent pool {} is a System or Gateway pool, or one of single VMs (type VirtualMachines) that is \
                     autoscaled: use a User pool, and turn autoscaling off for single VMs",
                    view.name
                );
                return Some((Reason::AgentPoolUnsuitable, message));
            }
            _ => {}
        }
    }
    if let Some(step) = plan.steps.iter().skip(1).find(|step| step.reason == Reason::WindowInvalid) {
        return Some((Reason::WindowInvalid, step.message.clone()));
    }
    let known = views.iter().all(|view| view.role != Err(Reason::AzureUnreachable));
    let sells_spot = |view: &AgentPoolView| {
        view.role == Ok(Role::Spot)
            || creation::wanted(&pool.spec, view).is_some_and(|it| it.capacity_type == CapacityType::Spot)
    };
    (known && !views.iter().any(sells_spot)).then(|| {
        (
            Reason::NoSpotAgentPool,
            "none of the agent pools is a spot pool: name at least one in spec.agentPools".into(),
        )
    })
}

fn condition(
    before: &SpotPoolStatus,
    status: &SpotPoolStatus,
    verdict: Verdict,
    now: Timestamp,
) -> Condition {
    let text = match verdict.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let old = before.conditions.iter().find(|old| old.type_ == verdict.kind && old.status == text);
    Condition {
        type_: verdict.kind.into(),
        status: text.into(),
        reason: verdict.reason.to_string(),
        message: verdict.message,
        observed_generation: Some(status.observed_generation),
        last_transition_time: old.map_or(Time(now), |old| old.last_transition_time.clone()),
    }
}
