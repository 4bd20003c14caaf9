//! One plan: what to do now, why, what to remember, and when to look again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Capacity, Mode, PlanStep, Role, SpotPoolSpec};

use crate::action::Action;
use crate::after_loss;
use crate::autoscaler::{self, Held};
use crate::caps::{Caps, Money};
use crate::counts;
use crate::creation;
use crate::draft::{Draft, kept_restarts, told};
use crate::failback::{self, Drains};
use crate::fallback::{self, Shortfall};
use crate::floor::{self, Floor};
use crate::leaving::{self, Leaving};
use crate::loss::{self, Restarts};
use crate::memory::Memory;
use crate::objective;
use crate::placement::{Limit, Need, Placement, place};
use crate::planned;
use crate::ranking::{Rank, losses, rank, unannounced_since};
use crate::signals::{self, Hours};
use crate::snapshot::{AgentPoolView, Losses, Snapshot};
use crate::stall::{self, Stall};
use crate::tally::{Tally, kept};
use crate::units;
use crate::upkeep;
use crate::waiting::Patience;
use crate::wishes;

/// The outcome of [`plan()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do. Empty in `Observe` and while suspended.
    pub actions: Vec<Action>,
    /// What would be done if the SpotPool were enforced.
    pub withheld: Vec<Action>,
    /// Why, step by step, without anything that changes while nothing happens.
    pub steps: Vec<PlanStep>,
    /// The capacity in numbers.
    pub capacity: Capacity,
    /// Units that should exist on spot.
    pub spot_target: u32,
    /// On-demand nodes beyond the kept ones, running or on their way.
    pub fallback_nodes: u32,
    /// The on-demand that is kept for disruption budgets, if there is to be any.
    pub floor: Option<Floor>,
    /// What to remember.
    pub memory: Memory,
    /// The agent pools, weighed, best first: spot, then on-demand.
    pub ranks: Vec<Rank>,
    /// Scale-ups that were found to have stalled.
    pub stalls: Vec<Stall>,
    /// Units of on-demand that are due and that nobody can give, with the reasons.
    pub on_demand_short: Option<String>,
    /// What each agent pool has lost lately, by name.
    pub losses: BTreeMap<String, Losses>,
    /// Of these, what nobody had announced and was not counted before.
    pub unannounced: BTreeMap<String, u32>,
    /// What each spot agent pool lost by hour of the day, by name; empty without `placement.earlySignals`.
    pub hours: BTreeMap<String, Hours>,
    /// Attempts to start deallocated machines, by agent pool that has any.
    pub restarts: BTreeMap<String, Restarts>,
    /// When time alone changes the plan.
    pub wake: Option<Timestamp>,
    /// What the SpotPool costs, and how its budgets stand.
    pub money: Money,
    /// How far it is, if the SpotPool is being deleted.
    pub leaving: Option<Leaving>,
    /// What can be told of its objective, if it has one.
    pub objective: Option<objective::Told>,
}

/// All that a decision looks at.
pub(crate) struct Situation<'a> {
    pub spec: &'a SpotPoolSpec,
    pub snapshot: &'a Snapshot,
    pub tally: Tally,
    pub now: Timestamp,
}

/// Decides what to do for one SpotPool.
///
/// In order: spot up to its target; on-demand for the baseline, and for what is lost or refused, inside `fallback`;
/// what is there beyond need is drained and returned, on-demand first, once nothing has happened for a while.
pub fn plan(spec: &SpotPoolSpec, snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut draft = Draft {
        actions: Vec::new(),
        steps: Vec::new(),
        memory: snapshot.memory.clone(),
        restarts: kept_restarts(snapshot),
        wake: None,
    };
    let floor = floor::settle(spec, snapshot, &mut draft.memory, now);
    let floor_units = floor.as_ref().map_or(0, |floor| floor.units);
    if snapshot.leaving {
        let tally = Tally::of(spec, snapshot, floor_units, now);
        return leaving::plan(&Situation { spec, snapshot, tally, now }, floor, draft);
    }
    let granted = wishes::grant_drains(spec, snapshot, now, &mut draft);
    let snapshot = granted.as_ref().unwrap_or(snapshot);
    let mut tally = Tally::of(spec, snapshot, floor_units, now);
    let objective = objective::settle(spec, snapshot, &mut tally, now, &mut draft);
    let situation = Situation { spec, snapshot, tally, now };
    let tally = &situation.tally;
    explain_unusable(spec, snapshot, &mut draft);
    creation::decide(&situation, &mut draft);
    if let Some(floor) = &floor {
        floor::explain(spec, snapshot, floor, &mut draft);
    }
    failback::explain_hindrance(&situation, &mut draft);
    upkeep::explain(&situation, &mut draft);
    if let Some(ready_at) = snapshot.ready_at {
        draft.wake_at(ready_at);
    }

    let caps = Caps::of(&situation, &mut draft);
    let stalls = stall::detect(snapshot, now, &mut draft);

    let mut drains = Drains::of(&situation);
    // Who leaves because it was too much is taken back before anything is asked for ahead.
    let missing_in_all = (tally.spot_wanted() + tally.ahead).saturating_sub(tally.spot_have);
    let regained_spot = drains.withdraw(Role::Spot, missing_in_all, &mut draft);
    let spot_there = tally.spot_have + regained_spot;
    let missing_spot = tally.spot_wanted().saturating_sub(spot_there);
    let missing_of_target = tally.spot_target.saturating_sub(spot_there);
    let patience = Patience::of(&situation, missing_spot);
    let need = Need::spot(missing_spot, tally.spot_wanted(), patience.urgent, &stalls);
    let mut spot = place(&spec.placement, snapshot, &need, now);
    let ahead = signals::place_ahead(&situation, regained_spot, &spot, &stalls);
    let lacking_after_loss = after_loss::leave_out(&mut spot, missing_spot - missing_of_target);
    let spot_reason = match missing_of_target {
        _ if tally.evicting > 0 => Reason::ReplaceEvicted,
        0 => Reason::StandbyAfterLoss,
        _ => Reason::SpotBelowTarget,
    };
    request(&situation, &spot, spot_reason, &mut draft);
    explain_waiting(&situation, &spot, patience.until, &mut draft);
    request(&situation, &ahead.placement, Reason::ReplaceAhead, &mut draft);
    let asked_of_spot = spot.units + ahead.placement.units;

    let shortfall = Shortfall::of(&situation, spot.units + spot.waits() + regained_spot, &mut draft.memory);
    let fallback = fallback::decide(&situation, &shortfall, &mut draft);
    let on_demand_units = fallback.units.max(tally.cautious);
    let missing_on_demand = (tally.base + on_demand_units).saturating_sub(tally.on_demand_have);
    let regainable = caps.regainable(&situation, &drains, missing_on_demand);
    let regained_on_demand = drains.withdraw(Role::OnDemand, regainable, &mut draft);
    let for_base = tally.base_missing().saturating_sub(regained_on_demand);
    let to_buy = missing_on_demand.saturating_sub(regained_on_demand);
    let limit = Limit { spec, for_base, base: tally.base, most: fallback.most, caps: &caps };
    let need = Need::on_demand(to_buy, limit, &stalls);
    let on_demand = place(&spec.placement, snapshot, &need, now);
    let is_fallback = to_buy > for_base && on_demand.units > for_base;
    let is_due = tally.base + fallback.units > tally.on_demand_have + regained_on_demand;
    let reason = match is_fallback {
        true if is_due => Reason::FallbackForShortfall,
        true => Reason::Cautious,
        false if tally.base_is_floor => Reason::OnDemandBelowFloor,
        false => Reason::OnDemandBelowBaseline,
    };
    request(&situation, &on_demand, reason, &mut draft);
    fallback::explain_limit(&situation, &on_demand, &mut draft);
    let mut money = caps.conclude(&situation, &on_demand, is_fallback, &mut draft);
    autoscaler::settle(&situation, &Held::spot(tally, spot_there + asked_of_spot), &mut draft);
    let on_demand_there = tally.on_demand_have + regained_on_demand + on_demand.units;
    autoscaler::settle(&situation, &Held::on_demand(tally, on_demand_there, on_demand_units), &mut draft);
    let on_demand_short = fallback::short(&situation, &on_demand, &mut draft);

    failback::decide(&situation, on_demand_units, &drains, &caps, &mut draft);
    loss::decide(&situation, &mut draft);
    stall::give_back(&situation, &mut draft);
    counts::correct(&situation, &mut draft);

    let fallback_nodes = fallback_nodes(&situation, &on_demand);
    if is_fallback || regained_on_demand > 0 {
        failback::note_relapse(&situation, &mut draft);
    }
    draft.memory.fallback_since = (fallback_nodes > 0).then(|| draft.memory.fallback_since.unwrap_or(now));
    let capacity = capacity(tally, &draft.memory, asked_of_spot + on_demand.units);
    conclude(spec, &capacity, &mut draft);

    let ranks: Vec<Rank> = [Role::Spot, Role::OnDemand]
        .into_iter()
        .flat_map(|role| rank(&spec.placement, snapshot, role, now))
        .collect();
    after_loss::explain(&situation, lacking_after_loss, &mut draft);
    signals::explain(&situation, &ranks, &ahead, &mut draft);
    money.planned = planned::hourly(&situation, &ranks);
    let of_pool = |pool: &AgentPoolView| Some((pool.name.clone(), losses(pool)?));
    let losses = snapshot.agent_pools.iter().filter_map(of_pool).collect();
    let new = |pool: &AgentPoolView| (pool.name.clone(), unannounced_since(pool));
    let unannounced = snapshot.agent_pools.iter().map(new).filter(|(_, count)| *count > 0).collect();

    let (actions, withheld) = draft.hold_back(spec, snapshot);
    Plan {
        actions,
        withheld,
        steps: told(draft.steps),
        capacity,
        spot_target: tally.spot_target,
        fallback_nodes,
        floor,
        memory: draft.memory,
        ranks,
        stalls,
        on_demand_short,
        losses,
        unannounced,
        hours: signals::hours(spec, snapshot, now),
        restarts: draft.restarts,
        wake: draft.wake.filter(|wake| *wake > now),
        money,
        leaving: None,
        objective,
    }
}

pub(crate) fn explain_unusable(spec: &SpotPoolSpec, snapshot: &Snapshot, draft: &mut Draft) {
    for pool in snapshot.agent_pools.iter().filter(|pool| creation::wanted(spec, pool).is_none()) {
        if let Err(reason) = pool.role {
            let why = match reason {
                Reason::AgentPoolNotFound => "does not exist in the cluster",
                Reason::AgentPoolClaimed => "belongs to an older SpotPool",
                Reason::AgentPoolStopped => {
                    "is stopped: start it with az aks nodepool start, or take it off the list"
                }
                Reason::AgentPoolUnsuitable => {
                    "is a System or Gateway pool, or one of single VMs that is autoscaled"
                }
                Reason::AzureUnreachable => "is unknown: Azure has not answered yet",
                _ => "cannot be used",
            };
            draft.step(reason, Some(&pool.name), format!("agent pool {} {why}", pool.name));
        }
    }
}

/// Turns a placement into actions, and says what could not be placed.
fn request(situation: &Situation<'_>, placement: &Placement, reason: Reason, draft: &mut Draft) {
    let snapshot = situation.snapshot;
    for placed in &placement.placed {
        let pool = &snapshot.agent_pools[placed.pool];
        let exist = pool.existing();
        let count = pool.count_with(placed.new);
        let price = pool.market.hourly_price.map(|price| match placed.new {
            1 => format!(", at {price} an hour"),
            new => format!(", each at {price}, together {} an hour", price * Decimal::from(new)),
        });
        let price = price.unwrap_or_default();
        let by = autoscaler::by_minimum(pool, count);
        draft.step(
            reason,
            Some(&pool.name),
            format!("ask {} for {} more ({exist} exist){by}{price}", pool.name, placed.new),
        );
        let coming = pool.without_node();
        let agent_pool = pool.name.clone();
        draft.actions.push(Action::ScaleUp { agent_pool, new: placed.new, coming, count, reason });
    }
    if placement.unplaced == 0 {
        return;
    }
    for (index, reason) in &placement.passed_over {
        let pool = &snapshot.agent_pools[*index];
        if let Some(until) = pool.avoided_until.filter(|_| *reason == Reason::AgentPoolAvoided) {
            draft.wake_at(until);
        }
        draft.step(*reason, Some(&pool.name), why_not(pool, *reason));
    }
    draft.step(
        Reason::NoCandidateWithRoom,
        None,
        format!("{} units wanted that no agent pool can take now", placement.unplaced),
    );
}

/// Why an agent pool is passed over.
pub(crate) fn why_not(pool: &AgentPoolView, reason: Reason) -> String {
    let name = &pool.name;
    match (reason, pool.avoided_until) {
        (Reason::AgentPoolAvoided, Some(until)) => {
            format!("{name} is avoided until {until:.0} after an error")
        }
        (Reason::AgentPoolAvoided, None) => format!("{name} is avoided after an error"),
        (Reason::AgentPoolBusy, _) => format!("{name} has an operation running"),
        (Reason::Probing, _) => format!("{name} had no capacity and is tried with one node first"),
        (Reason::ScaleUpStalled, _) => format!("{name} was asked before, and its machines have not come"),
        (Reason::PriceAboveCeiling, _) => ceiling(pool),
        (Reason::AutoscalerAtMaximum, _) => autoscaler::at_maximum(pool),
        _ => format!("{name} is at its maxNodes of {}", pool.max_nodes),
    }
}

/// On-demand machines beyond the base, those that are asked for now included.
fn fallback_nodes(situation: &Situation<'_>, placement: &Placement) -> u32 {
    let Situation { spec, snapshot, tally, .. } = situation;
    let pools = snapshot.agent_pools.iter().enumerate().filter(|(_, pool)| pool.role == Ok(Role::OnDemand));
    let machines = pools.map(|(index, pool)| {
        let new = placement.placed.iter().find(|placed| placed.pool == index).map_or(0, |placed| placed.new);
        (pool.units, kept(spec, pool), pool.bound_to(new))
    });
    // Whoever replaces a node of the base that leaves is of the base.
    let leaving = tally.base_missing().min(placement.units);
    units::beyond(tally.base + leaving, machines)
}

/// Says for whom growth waits.
fn explain_waiting(
    situation: &Situation<'_>,
    placement: &Placement,
    until: Option<Timestamp>,
    draft: &mut Draft,
) {
    for (index, units) in &placement.waiting {
        let name = &situation.snapshot.agent_pools[*index].name;
        let at_most = until.map(|until| format!(", until {until:.0} at most")).unwrap_or_default();
        let message = format!(
            "{units} units wait for {name}, which has an operation running: others cost more{at_most}"
        );
        draft.step(Reason::WaitingForAgentPool, Some(name), message);
        if let Some(until) = until {
            draft.wake_at(until);
        }
    }
}

fn ceiling(pool: &AgentPoolView) -> String {
    let most = pool.max_hourly_price.unwrap_or_default();
    match pool.market.hourly_price {
        Some(price) => format!("{} costs {price} an hour, its maxHourlyPrice is {most}", pool.name),
        None => format!("the price of {} is not known, its maxHourlyPrice is {most}", pool.name),
    }
}

pub(crate) fn capacity(tally: &Tally, memory: &Memory, asked_now: u32) -> Capacity {
    let [spot, on_demand] = tally.serving_by_role();
    let not_ready = (tally.spot_have + tally.on_demand_have).saturating_sub(tally.ready() + tally.creating);
    Capacity {
        wanted: tally.wanted as i32,
        ready_spot: spot as i32,
        ready_on_demand: on_demand as i32,
        on_the_way: (tally.creating + not_ready + asked_now) as i32,
        evicting: tally.evicting as i32,
        established: memory.established as i32,
        lost_since: memory.lost_since.map(Into::into),
        growth_since: memory.growth_since.map(Into::into),
    }
}

/// The step that sums up, first in the list.
fn conclude(spec: &SpotPoolSpec, capacity: &Capacity, draft: &mut Draft) {
    let ready = capacity.ready_spot + capacity.ready_on_demand;
    let numbers = format!("{ready} of {} ready", capacity.wanted);
    let (reason, message) = if spec.suspend {
        (Reason::Suspended, format!("{numbers}; suspended: nothing is written"))
    } else if spec.mode == Mode::Observe {
        (Reason::Observing, format!("{numbers}; Observe: planned, not done"))
    } else if ready >= capacity.wanted && draft.steps.is_empty() {
        (Reason::AsWanted, numbers)
    } else if ready >= capacity.wanted {
        (draft.steps[0].reason, numbers)
    } else if capacity.on_the_way > 0 {
        (Reason::Progressing, format!("{numbers}, {} on the way", capacity.on_the_way))
    } else {
        (Reason::CapacityShort, numbers)
    };
    draft.steps.insert(0, PlanStep { reason, agent_pool: None, message });
}
