//! What status says after a plan. Pure: who calls it writes it, if it has changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use spotpool_azure::{AzureError, Class};
use spotpool_core::floor::NAMED;
use spotpool_core::ranking::Rank;
use spotpool_core::{Action, AgentPoolView, Plan};
use spotpool_crds::spot_pool::{
    Adoption, AgentPoolStatus, AutoscalerStatus, BlockedBudget, BudgetFloor, FallbackStatus, FloorStatus,
    LeavingStatus, LossesStatus, MoneyStatus, NextFloor, Operation, PastNeed, Price, ProbeStatus, RankStatus,
    RelapsesStatus, RequestStatus, RestartsStatus, Role, WriteBudget,
};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::act::Outcome;
use super::conditions::conditions;
use super::gather::Gathered;
use super::{bills, money, signals};

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
                operation: operations.get(&view.name).cloned().or_else(|| view.operation.clone()).or_else(|| {
                    // Whoever leads next must know that it may still come.
                    old.and_then(|old| old.operation.clone()).filter(|_| view.unanswered > 0)
                }),
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
            // Who was faster may be the one that led before, with this very request: the next read tells.
            let is_settled = |error: &AzureError| !error.outcome_unknown() && error.class != Class::Conflict;
            if outcome.failed.get(&view.name).is_some_and(is_settled) {
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
