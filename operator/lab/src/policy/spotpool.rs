//! SpotPool itself: the plan that runs in production, with what the operator would tell it of the simulated cloud.

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use rust_decimal::prelude::FromPrimitive;
use std::collections::BTreeMap;

use spotpool_core::avoidance::{Failure, avoided_until};
use spotpool_core::signals::{Hours, PriceRise, Signals};
use spotpool_core::{
    Action, AgentPoolView, DrainView, Losses, Market, Memory, NodeView, Plan, Snapshot, plan,
};
use spotpool_crds::spot_pool::{Operation, OperationKind, Role, SpotPoolSpec};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};

use crate::cloud::{Cloud, Fleet, Machine, Order};
use crate::policy::{Decision, Policy};
use crate::scenario::{Pool, Scenario};

/// Every so many plans it is seen whether the order of what they are made from makes a difference.
const TURNED_EVERY: u64 = 64;

/// The real plan.
#[derive(Clone, Debug)]
pub struct SpotPool {
    name: String,
    spec: SpotPoolSpec,
    start: Timestamp,
    memory: Memory,
    losses: BTreeMap<String, Losses>,
    hours: BTreeMap<String, Hours>,
    kept: Vec<Kept>,
    planned: u64,
    /// Whether the last plan may lead to another at once.
    makes_room: bool,
    launched_on_demand: bool,
}

/// What the operator remembers of an agent pool.
#[derive(Clone, Debug, Default)]
struct Kept {
    operation: Option<Operation>,
    ended: Option<Operation>,
    avoided_until: Option<Timestamp>,
    refused_at: Option<Timestamp>,
    /// Until when Azure takes no write of it.
    throttled_until: Option<Timestamp>,
    price: Option<Decimal>,
    rise: Option<PriceRise>,
}

impl SpotPool {
    /// The scenario's own spec.
    pub fn new(scenario: &Scenario) -> Self {
        Self::with(scenario, "SpotPool", scenario.spec.clone())
    }

    /// Another spec of the same agent pools.
    pub fn with(scenario: &Scenario, name: &str, spec: SpotPoolSpec) -> Self {
        Self {
            name: name.into(),
            spec,
            start: scenario.start,
            memory: Memory::default(),
            losses: BTreeMap::new(),
            hours: BTreeMap::new(),
            kept: vec![Kept::default(); scenario.pools.len()],
            planned: 0,
            makes_room: false,
            launched_on_demand: false,
        }
    }

    fn time(&self, second: i64) -> Timestamp {
        self.start.saturating_add(SignedDuration::from_secs(second)).unwrap_or(Timestamp::MAX)
    }

    fn second(&self, time: Timestamp) -> i64 {
        // A wake between two seconds is due in the later one.
        let span = time.duration_since(self.start);
        span.as_secs() + i64::from(span.subsec_nanos() > 0)
    }

    /// What the operator would have heard of since the last time.
    fn hear(&mut self, cloud: &Cloud<'_>) {
        let now = self.time(cloud.now);
        for ((pool, fleet), index) in cloud.pools().zip(0..) {
            let ready_since = |at: Timestamp| {
                fleet.machines.iter().any(|it| it.serves(cloud.now) && self.time(it.node_at) > at)
            };
            let has_come = self.kept[index].refused_at.is_some_and(ready_since);
            let arrived = self.kept[index].operation.as_ref().map(|operation| {
                let came = fleet.machines.iter().filter(|it| it.node_at <= cloud.now);
                came.filter(|it| self.time(it.node_at) > operation.since.0).count() as i32
            });
            let kept = &mut self.kept[index];
            kept.ended = None;
            if has_come {
                kept.refused_at = None;
            }
            if let (Some(operation), Some(arrived)) = (&mut kept.operation, arrived) {
                operation.arrived = operation.arrived.max(arrived);
            }
            if fleet.ended.iter().any(|launch| launch.missing > 0) {
                kept.operation = None;
                kept.refused_at = Some(now);
                kept.avoided_until = Some(avoided_until(Failure::Capacity, None, now));
            } else if fleet.launches.is_empty() && !fleet.is_busy(cloud.now) {
                kept.ended =
                    kept.operation.take().filter(|operation| operation.kind == OperationKind::ScaleUp);
            }
            let price = price(pool, cloud.now);
            if let (Some(from), Some(to)) = (kept.price, price)
                && from != to
            {
                kept.rise = (to > from).then_some(PriceRise { from, to, since: now });
            }
            kept.price = price;
        }
    }

    fn snapshot(&self, cloud: &Cloud<'_>) -> Snapshot {
        let pools =
            cloud.pools().zip(&self.kept).map(|((pool, fleet), kept)| self.view(cloud, pool, fleet, kept));
        let warmup = self.warmup();
        let ready_at = cloud.fleets.iter().flat_map(|fleet| &fleet.machines).map(|it| it.node_at);
        let warming = ready_at.filter(|at| *at <= cloud.now && at + warmup > cloud.now).min();
        Snapshot {
            agent_pools: pools.collect(),
            memory: self.memory.clone(),
            ready_at: warming.map(|at| self.time(at + warmup)),
            currency: "USD".into(),
            ..Snapshot::default()
        }
    }

    fn warmup(&self) -> i64 {
        std::time::Duration::from(self.spec.readiness.warmup).as_secs() as i64
    }

    fn view(&self, cloud: &Cloud<'_>, pool: &Pool, fleet: &Fleet, kept: &Kept) -> AgentPoolView {
        let now = cloud.now;
        let is_node = |machine: &&Machine| machine.node_at <= now;
        let nodes = fleet.machines.iter().filter(is_node).map(|machine| NodeView {
            name: machine.name.clone(),
            agent_pool: pool.name.clone(),
            created: self.time(machine.node_at),
            ready: machine.drain.is_none() && machine.node_at + self.warmup() <= now,
            noticed: machine.noticed.map(|at| self.time(at)),
            drain: machine.drain.map(|drain| DrainView {
                not_after: self.time(drain.not_after),
                phase: Some(if drain.ends <= now { DrainPhase::Drained } else { DrainPhase::Draining }),
                reason: DrainReason::Failback,
                is_ours: true,
            }),
            ..NodeView::default()
        });
        let joining = fleet.machines.iter().filter(|machine| machine.node_at > now);
        let machines = fleet.machines.len() as u32;
        let of_pool = self.spec.agent_pools.iter().find(|it| it.name == pool.name);
        AgentPoolView {
            name: pool.name.clone(),
            max_nodes: pool.max_nodes,
            units: pool.units,
            role: Ok(pool.role),
            count: machines,
            listed: machines,
            machines: fleet.machines.iter().map(|machine| machine.name.clone()).collect(),
            joining: joining.map(|machine| (machine.name.clone(), self.time(machine.asked))).collect(),
            busy: fleet.is_busy(now),
            operation: kept.operation.clone(),
            ended: kept.ended.clone(),
            avoided_until: kept.avoided_until.max(kept.throttled_until),
            unwritable_until: kept.throttled_until,
            refused_at: kept.refused_at,
            vm_size: pool.size.clone(),
            zones: pool.zones.clone(),
            market: Market {
                hourly_price: kept.price,
                evictions_an_hour: pool.evictions_an_hour.at(now).filter(|_| pool.role == Role::Spot),
                ..Market::default()
            },
            max_hourly_price: of_pool.and_then(|it| it.max_hourly_price.as_ref()?.parse().ok()),
            losses: self.losses.get(&pool.name).cloned(),
            signals: Signals {
                price_rise: kept.rise.clone(),
                hours: self.hours.get(&pool.name).cloned(),
                ..Signals::default()
            },
            nodes: nodes.collect(),
            ..AgentPoolView::default()
        }
    }

    fn order(&mut self, action: &Action, cloud: &Cloud<'_>) -> Result<Order, String> {
        let index = |name: &str| {
            let found = cloud.scenario.pools.iter().position(|pool| pool.name == name);
            found.ok_or_else(|| format!("{name} is written and is no agent pool of the SpotPool"))
        };
        let of_node = |node: &str| {
            let has_it = |fleet: &Fleet| fleet.machines.iter().any(|machine| machine.name == node);
            let found = cloud.fleets.iter().position(has_it);
            found.ok_or_else(|| format!("{node} is written and is not there"))
        };
        let now = self.time(cloud.now);
        if let Some(name) = action.agent_pool()
            && cloud.fleets[index(name)?].is_busy(cloud.now)
        {
            return Err(format!("{name} is written while an operation runs: {action:?}"));
        }
        let operation = |kind, count: u32, machines: u32, coming: u32| Operation {
            kind,
            count: count as i32,
            machines: machines as i32,
            coming: coming as i32,
            since: now.into(),
            arrived: 0,
            accepted: true,
        };
        match action {
            Action::ScaleUp { agent_pool, new, coming, count, .. } => {
                let pool = index(agent_pool)?;
                let there = cloud.fleets[pool].machines.len() as u32;
                if *count != there + new {
                    return Err(format!(
                        "count {count} of {agent_pool} is not the {there} that exist and {new} new ones"
                    ));
                }
                self.launched_on_demand |= cloud.scenario.pools[pool].role == Role::OnDemand;
                self.kept[pool].operation = Some(operation(OperationKind::ScaleUp, *count, *new, *coming));
                Ok(Order::Launch { pool, machines: *new })
            }
            Action::DeleteMachines { agent_pool, nodes, remaining, .. } => {
                let pool = index(agent_pool)?;
                let deleted = nodes.len() as u32;
                self.kept[pool].operation =
                    Some(operation(OperationKind::DeleteMachines, *remaining, deleted, 0));
                Ok(Order::Delete { pool, machines: nodes.clone() })
            }
            Action::RequestDrain { node, not_after, .. } => {
                let not_after = self.second(*not_after);
                Ok(Order::Drain { pool: of_node(node)?, machine: node.clone(), not_after })
            }
            Action::WithdrawDrain { node, .. } => {
                Ok(Order::KeepAfterAll { pool: of_node(node)?, machine: node.clone() })
            }
            other => Err(format!("nothing in the simulation asks for {other:?}")),
        }
    }

    /// On-demand machines beyond the smallest that make up the baseline.
    fn check_fallback(&self, cloud: &Cloud<'_>) -> Result<(), String> {
        let base = (self.spec.on_demand.baseline.max(0) as u32).max(self.memory.floor.units);
        let on_demand = cloud.pools().filter(|(pool, _)| pool.role == Role::OnDemand);
        let mut machines: Vec<(u32, f64)> = on_demand
            .flat_map(|(pool, fleet)| {
                vec![(pool.units, pool.price.at(cloud.now).unwrap_or_default()); fleet.machines.len()]
            })
            .collect();
        machines.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
        let mut left = base;
        let is_bought = |(units, _): &&(u32, f64)| {
            let is_needed = left > 0;
            left = left.saturating_sub(*units);
            !is_needed
        };
        let mut prices: Vec<f64> = machines.iter().filter(is_bought).map(|(_, price)| *price).collect();
        prices.sort_by(f64::total_cmp);
        let fallback = self.spec.fallback.as_ref();
        let most = fallback.map_or(0, |it| it.max_nodes.max(0) as usize);
        if prices.len() > most {
            return Err(format!("{} machines stand in for spot, fallback.maxNodes is {most}", prices.len()));
        }
        // The cheapest of all on-demand that it could be: less than the budget bounds, never more.
        let mut all: Vec<f64> = machines.iter().map(|(_, price)| *price).collect();
        all.sort_by(f64::total_cmp);
        let least: f64 = all.iter().take(prices.len()).sum();
        let budget = fallback.and_then(|it| it.hourly_budget.as_ref()?.parse::<f64>().ok());
        match budget.filter(|budget| self.launched_on_demand && least > budget + 1e-9) {
            Some(budget) => Err(format!("{least} an hour is bought, fallback.hourlyBudget is {budget}")),
            None => Ok(()),
        }
    }
}

fn price(pool: &Pool, now: i64) -> Option<Decimal> {
    pool.price.at(now).and_then(Decimal::from_f64).map(|price| price.round_dp(6))
}

/// What the snapshot says of ready nodes is what there is.
fn check_counts(plan: &Plan, cloud: &Cloud<'_>) -> Result<(), String> {
    let ready = (plan.capacity.ready_spot + plan.capacity.ready_on_demand) as u32;
    let there = cloud.ready(Role::Spot) + cloud.ready(Role::OnDemand);
    if ready > there {
        return Err(format!(
            "{ready} units count as ready, {there} are: nodes under notice are worth nothing"
        ));
    }
    Ok(())
}

/// The same, told in the opposite order.
fn turned(mut snapshot: Snapshot) -> Snapshot {
    for pool in &mut snapshot.agent_pools {
        pool.nodes.reverse();
        pool.machines.reverse();
    }
    snapshot
}

impl Policy for SpotPool {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        self.hear(cloud);
        // As an HPA would, through `/scale`.
        self.spec.replicas = cloud.wanted() as i32;
        let (snapshot, now) = (self.snapshot(cloud), self.time(cloud.now));
        let plan = plan(&self.spec, &snapshot, now);
        self.planned += 1;
        if self.planned.is_multiple_of(TURNED_EVERY) {
            let other = spotpool_core::plan(&self.spec, &turned(snapshot), now);
            if other.actions != plan.actions {
                return Err(format!(
                    "{:?} becomes {:?} where nodes come in another order",
                    plan.actions, other.actions
                ));
            }
        }
        check_counts(&plan, cloud)?;
        for stall in &plan.stalls {
            let pool = cloud.scenario.pools.iter().position(|pool| pool.name == stall.agent_pool);
            if let Some(kept) = pool.and_then(|pool| self.kept.get_mut(pool)) {
                kept.refused_at = Some(now);
                kept.avoided_until = Some(avoided_until(Failure::Capacity, None, now));
            }
        }
        self.launched_on_demand = false;
        let mut orders = Vec::new();
        let mut written = Vec::new();
        for action in &plan.actions {
            if let Some(pool) = action.agent_pool() {
                if written.contains(&pool) {
                    return Err(format!("two writes to {pool} in one plan: {:?}", plan.actions));
                }
                written.push(pool);
            }
            orders.push(self.order(action, cloud)?);
        }
        // What is found to have stalled is avoided from now on: there is more to plan.
        let wake = if plan.stalls.is_empty() {
            plan.wake.map(|wake| self.second(wake))
        } else {
            Some(cloud.now + 1)
        };
        // Where a budget or an objective holds, what has gone makes room for what is cheaper.
        let fallback = self.spec.fallback.as_ref();
        let has_budget = fallback.is_some_and(|it| it.hourly_budget.is_some() || it.monthly_budget.is_some());
        self.makes_room = has_budget || self.spec.objective.is_some() || !plan.stalls.is_empty();
        self.memory = plan.memory;
        self.losses = plan.losses;
        self.hours = plan.hours;
        Ok(Decision { orders, wake })
    }

    fn put_off(&mut self, order: &Order, cloud: &Cloud<'_>) {
        let (Order::Launch { pool, .. } | Order::Delete { pool, .. }) = order else { return };
        self.kept[*pool].operation = None;
        let until = cloud.fleets[*pool].throttled_until().map(|until| self.time(until));
        self.kept[*pool].throttled_until = until;
        // The plan had counted on it.
        self.makes_room = true;
    }

    fn check(&mut self, cloud: &Cloud<'_>) -> Result<(), String> {
        self.check_fallback(cloud)?;
        let has_acted = cloud.fleets.iter().zip(&self.kept).any(|(fleet, kept)| {
            kept.operation.as_ref().is_some_and(|operation| operation.since.0 == self.time(cloud.now))
                || fleet.machines.iter().any(|machine| machine.drain.is_some())
        });
        if self.makes_room || !has_acted {
            return Ok(());
        }
        let again = plan(&self.spec, &self.snapshot(cloud), self.time(cloud.now));
        let is_settled = again.actions.is_empty();
        is_settled
            .then_some(())
            .ok_or_else(|| format!("the plan of an applied plan asks for {:?}", again.actions))
    }
}
