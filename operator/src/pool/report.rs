//! What people see: status and Events. Pure but for the writing, and nothing is written that has not changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use kube::runtime::events::{Event, EventType};
use spotpool_azure::Class;
use spotpool_core::floor::NAMED;
use spotpool_core::ranking::Rank;
use spotpool_core::{Action, AgentPoolView, Plan, creation};
use spotpool_crds::spot_pool::{
    Adoption, AgentPoolStatus, AutoscalerStatus, BlockedBudget, BudgetFloor, CapacityType, FallbackStatus,
    FloorStatus, LeavingStatus, LossesStatus, MoneyStatus, NextFloor, Operation, PastNeed, PlanStep, Price,
    ProbeStatus, RankStatus, RelapsesStatus, RequestStatus, RestartsStatus, Role, WriteBudget,
};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::act::Outcome;
use super::doomed::Notices;
use super::gather::Gathered;
use super::{agents, bills, money, objective, others, signals, tags};

/// The status after a plan, with `operations` that are about to be asked for or were accepted.
pub fn status(
    pool: &SpotPool,
    gathered: &Gathered,
    plan: &Plan,
    operations: &BTreeMap<String, Operation>,
    outcome: &Outcome,
    now: Timestamp,
) -> SpotPoolStatus {
    let before = pool.status.clone().unwrap_or_default();
    let memory = &plan.memory;
    let mut status = SpotPoolStatus {
        observed_generation: pool.metadata.generation.unwrap_or_default(),
        replicas: plan.capacity.wanted,
        ready_replicas: plan.capacity.ready_spot + plan.capacity.ready_on_demand,
        selector: format!(
            "{}={},{}={}",
            names::POOL_LABEL,
            pool.name_any(),
            names::POOL_NAMESPACE_LABEL,
            pool.namespace().unwrap_or_default()
        ),
        capacity: plan.capacity.clone(),
        agent_pools: agent_pools(pool, &before, gathered, plan, operations, outcome, now),
        fallback: FallbackStatus {
            nodes: plan.fallback_nodes as i32,
            since: memory.fallback_since.map(Time),
            surplus_since: memory.surplus_since.map(Time),
            needed: memory.needs.units as i32,
            needed_before: memory
                .needs
                .before
                .iter()
                .map(|past| PastNeed { units: past.units as i32, until: Time(past.until) })
                .collect(),
            draining: draining(gathered, plan),
            paused_until: memory.paused_until.map(Time),
            failed_back_at: memory.failed_back_at.map(Time),
            relapses: memory
                .relapses
                .as_ref()
                .map(|relapses| RelapsesStatus { count: relapses.count as i32, at: Time(relapses.at) }),
            probe: memory.probe.as_ref().map(|probe| ProbeStatus {
                node: probe.node.clone(),
                gone_since: probe.gone_since.map(Time),
            }),
            request: memory.answered.as_ref().map(|answered| RequestStatus {
                value: answered.value.clone(),
                answer: answered.answer.clone(),
            }),
        },
        money: Some(MoneyStatus {
            by_workload: gathered.bills.as_ref().map(bills::status),
            ..money::status(&gathered.snapshot.currency, plan)
        }),
        floor: floor(gathered, plan),
        blocked_budgets: blocked_budgets(&before, gathered),
        objective: memory.objective.clone(),
        leaving: plan.leaving.map(|leaving| LeavingStatus { fallback_nodes: leaving.fallback_nodes as i32 }),
        plan: plan.steps.clone(),
        conditions: Vec::new(),
    };
    status.conditions = conditions(pool, &before, &status, gathered, plan, now);
    status
}

/// The floor as it is kept, and what asks for it.
fn floor(gathered: &Gathered, plan: &Plan) -> Option<FloorStatus> {
    let (floor, kept) = (plan.floor.as_ref()?, &plan.memory.floor);
    let demand = gathered.snapshot.floor.clone().unwrap_or_default();
    let budgets = demand.budgets.into_iter().map(|budget| BudgetFloor {
        namespace: budget.namespace,
        name: budget.name,
        desired_healthy: budget.desired as i32,
        pods: budget.pods as i32,
        units: budget.units as i32,
        barred: budget.barred as i32,
    });
    Some(FloorStatus {
        units: floor.units as i32,
        since: kept.since.map(Time),
        needed: floor.needed.map(|needed| needed as i32),
        capped_by: floor.capped_by.map(|(by, _)| by.to_owned()).unwrap_or_default(),
        next: kept.next.map(|(units, since)| NextFloor { units: units as i32, since: Time(since) }),
        budgets: budgets.collect(),
        budgets_in_all: demand.budgets_in_all as i32,
    })
}

/// What the floor costs an hour beyond the on-demand that is always there, at the lowest price of a unit that is known of
/// an on-demand agent pool of the SpotPool.
pub fn floor_cost(pool: &SpotPool, gathered: &Gathered, plan: &Plan) -> Option<f64> {
    let views = || gathered.snapshot.agent_pools.iter().filter(|view| view.role == Ok(Role::OnDemand));
    let keeps = pool.spec.adoption == Adoption::Keep;
    let kept: u32 = views().filter(|_| keeps).map(|view| view.kept * view.units).sum();
    let always = kept.max(pool.spec.on_demand.baseline.max(0) as u32);
    let units = plan.floor.as_ref()?.units.saturating_sub(always);
    let price = |view: &AgentPoolView| {
        let price: f64 = view.market.hourly_price?.to_string().parse().ok()?;
        Some(price / f64::from(view.units.max(1)))
    };
    Some(f64::from(units) * views().filter_map(price).min_by(f64::total_cmp)?)
}

/// Budgets that hold pods here; as before while they have not been read.
fn blocked_budgets(before: &SpotPoolStatus, gathered: &Gathered) -> Vec<BlockedBudget> {
    let blocked = gathered.survey.blocked.as_ref().unwrap_or(&before.blocked_budgets);
    blocked.iter().take(NAMED).cloned().collect()
}

fn draining(gathered: &Gathered, plan: &Plan) -> Vec<String> {
    let asked = gathered.snapshot.nodes().filter(|node| node.drain.is_some()).map(|node| node.name.clone());
    let mut draining: Vec<String> = asked.collect();
    for action in &plan.actions {
        match action {
            Action::RequestDrain { node, .. } => draining.push(node.clone()),
            Action::WithdrawDrain { node, .. } => draining.retain(|name| name != node),
            _ => {}
        }
    }
    draining.sort();
    draining.dedup();
    draining
}

fn agent_pools(
    pool: &SpotPool,
    before: &SpotPoolStatus,
    gathered: &Gathered,
    plan: &Plan,
    operations: &BTreeMap<String, Operation>,
    outcome: &Outcome,
    now: Timestamp,
) -> Vec<AgentPoolStatus> {
    let mut troubles = gathered.trouble.clone();
    for stall in &plan.stalls {
        troubles.note_stall(stall, now);
    }
    for (agent_pool, error) in &outcome.failed {
        troubles.note(agent_pool, &gathered.azure, error, now);
    }
    gathered
        .snapshot
        .agent_pools
        .iter()
        .map(|view| {
            let old = before.agent_pools.iter().find(|old| old.name == view.name);
            let known = gathered.azure.get(&view.name);
            let nodes = || view.nodes.iter();
            let trouble = troubles.of(&view.name);
            let market = known.map(|known| known.market.clone()).unwrap_or_default();
            let mut entry = AgentPoolStatus {
                name: view.name.clone(),
                role: view.role.ok(),
                vm_size: known
                    .map(|known| known.pool.vm_size.clone())
                    .or_else(|| old.map(|old| old.vm_size.clone()))
                    .unwrap_or_default(),
                zones: known
                    .map(|known| known.pool.zones.clone())
                    .or_else(|| old.map(|old| old.zones.clone()))
                    .unwrap_or_default(),
                count: view.count as i32,
                machines: view.machines.len().max(nodes().count()) as i32,
                ready: nodes().filter(|node| node.serves()).count() as i32,
                evicting: nodes().filter(|node| node.noticed.is_some()).count() as i32,
                // Once known it is remembered while the agent pool cannot be read.
                kept: match view.role {
                    Ok(Role::OnDemand) => Some(view.kept as i32),
                    _ => old.and_then(|old| old.kept),
                },
                provisioning_state: known
                    .map(|known| known.pool.provisioning_state.clone())
                    .unwrap_or_default(),
                operation: operations.get(&view.name).cloned().or_else(|| view.operation.clone()),
                write_budget: known
                    .and_then(|known| known.write_budget)
                    .map(|budget| WriteBudget { left: budget.left as i32, at: Time(budget.at) })
                    .or_else(|| old.and_then(|old| old.write_budget.clone())),
                avoided_for: match trouble.avoided_until {
                    Some(until) if until > now => trouble.avoided_for,
                    _ => String::new(),
                },
                avoided_until: trouble.avoided_until.filter(|until| *until > now).map(Time),
                autoscaler: view.autoscaler.filter(|_| view.role != Err(Reason::AgentPoolClaimed)).map(
                    |range| AutoscalerStatus {
                        min: range.min as i32,
                        max: range.max as i32,
                        own_min: range.own_min as i32,
                    },
                ),
                changed_elsewhere: gathered.others.changes.get(&view.name).cloned(),
                last_error: trouble.last_error,
                // The last that was known is kept: after a restart it stands in until prices are read again.
                price: market.price.as_ref().map(price).or_else(|| {
                    let currency = &gathered.snapshot.currency;
                    old.and_then(|old| old.price.clone()).filter(|price| price.currency == *currency)
                }),
                eviction_band: market.band.map(|band| band.to_string()).unwrap_or_default(),
                placement_score: market.score.map(|score| score.to_string()).unwrap_or_default(),
                rank: rank(gathered, plan, &view.name),
                losses: plan
                    .losses
                    .get(&view.name)
                    .map(|losses| LossesStatus { count: losses.count as i32, at: Time(losses.at) }),
                signals: signals::status(pool, view, plan),
                restarts: plan
                    .restarts
                    .get(&view.name)
                    .map(|restarts| RestartsStatus { count: restarts.count as i32, at: Time(restarts.at) }),
                unusable: view.role.err(),
            };
            let is_scaled = |done: &Action| {
                matches!(done, Action::ScaleUp { agent_pool, .. } if *agent_pool == view.name)
            };
            if let Some(operation) = entry.operation.as_mut().filter(|_| outcome.done.iter().any(is_scaled)) {
                operation.accepted = true;
            }
            if outcome.failed.get(&view.name).is_some_and(|error| !error.outcome_unknown()) {
                entry.operation = None;
            }
            entry
        })
        // Remembered until their minimums are returned.
        .chain(gathered.minimums.iter().filter(|_| !gathered.snapshot.leaving).map(|it| it.entry.clone()))
        .collect()
}

fn price(price: &spotpool_azure::Price) -> Price {
    Price {
        hourly: price.hourly.to_string(),
        currency: price.currency.clone(),
        read_at: Some(Time(price.read_at)),
    }
}

fn rank(gathered: &Gathered, plan: &Plan, agent_pool: &str) -> Option<RankStatus> {
    let named = |rank: &&Rank| gathered.snapshot.agent_pools[rank.pool].name == agent_pool;
    let rank = plan.ranks.iter().find(named)?;
    Some(RankStatus { position: rank.position as i32, why: rank.why.clone() })
}

/// What a condition says.
pub(super) struct Verdict {
    pub kind: &'static str,
    /// `None` is `Unknown`.
    pub status: Option<bool>,
    pub reason: Reason,
    pub message: String,
}

fn conditions(
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

/// Which events of Azure a step or an Event of the operator answers, if it does.
pub fn answers(reason: &str, notices: &Notices) -> Option<String> {
    let replaces = [Reason::ReplaceEvicted, Reason::ReplaceAhead, Reason::FallbackForShortfall];
    notices.event_ids().filter(|_| replaces.iter().any(|it| it.as_ref() == reason))
}

/// An Event of the operator, with the events of Azure that it answers.
pub fn naming(event: Event, notices: &Notices) -> Event {
    let note = match (event.note, answers(&event.reason, notices)) {
        (Some(note), Some(ids)) => Some(format!("{note} (event {ids})")),
        (note, _) => note,
    };
    Event { note, ..event }
}

/// An Event about a node.
pub fn about_node(event: Event, node: &str) -> Event {
    let secondary = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    Event { secondary: Some(secondary), ..event }
}

/// An Event of the SpotPool that is about none of its actions.
pub fn event(reason: Reason, is_warning: bool, note: String) -> Event {
    let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
    Event { type_, reason: reason.to_string(), note: Some(note), action: reason.to_string(), secondary: None }
}

/// Events that a person would want to know of.
///
/// The recorder folds Events of one reason, action and related object into a series and keeps only the first
/// note: what is to be read apart must differ in one of these.
pub fn events(before: &SpotPoolStatus, after: &SpotPoolStatus, plan: &Plan, outcome: &Outcome) -> Vec<Event> {
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
                Reason::SpotBelowTarget | Reason::ReplaceAhead | Reason::OnDemandBelowFloor => {
                    EventType::Normal
                }
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
