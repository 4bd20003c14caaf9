//! One plan: what to do now, why, what to remember, and when to look again.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use spotpool_crds::spot_pool::{Adoption, Capacity, Mode, ObjectiveStatus, PlanStep, Role, SpotPoolSpec};
use spotpool_crds::voluntary_drain::DrainReason;
use spotpool_crds::{Duration, Reason};

use crate::after_loss;
use crate::autoscaler::{self, Held};
use crate::caps::{Caps, Money};
use crate::counts;
use crate::creation;
use crate::failback::{self, Drains};
use crate::fallback::{self, Shortfall};
use crate::floor::{self, Floor, FloorMemory};
use crate::leaving;
use crate::ledger::Ledger;
use crate::loss::{self, Restarts};
use crate::need::Needs;
use crate::objective;
use crate::placement::{Limit, Need, Placement, place};
use crate::planned;
use crate::ranking::{Rank, losses, rank, unannounced_since};
use crate::signals::{self, Hours};
use crate::snapshot::{AgentPoolView, Losses, NodeView, Snapshot};
use crate::stall::{self, Stall};
use crate::units;
use crate::upkeep;
use crate::waiting::Patience;
use crate::wishes;

/// One thing to do. At most one write to an agent pool in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// PUT the agent pool with a higher count; an autoscaled one with a minimum of that many.
    ScaleUp {
        /// The agent pool.
        agent_pool: String,
        /// Machines beyond those that exist.
        new: u32,
        /// Machines that exist and have no Node yet.
        coming: u32,
        /// The count to ask for: machines that exist, doomed ones included, and the new ones.
        count: u32,
        /// Why.
        reason: Reason,
    },
    /// Delete drained machines by name.
    DeleteMachines {
        /// The agent pool.
        agent_pool: String,
        /// Names of nodes, which are also the machines' names.
        nodes: Vec<String>,
        /// Machines that remain.
        remaining: u32,
        /// Why.
        reason: Reason,
    },
    /// Have Azure make an agent pool that does not exist, without machines.
    CreateAgentPool {
        /// The agent pool.
        agent_pool: String,
    },
    /// PUT the agent pool with its count lowered to the machines that exist: none is deleted by it.
    CorrectCount {
        /// The agent pool.
        agent_pool: String,
        /// Machines that exist.
        count: u32,
    },
    /// PUT the autoscaled agent pool with another minimum that adds no machine and takes none by itself.
    SetMinimum {
        /// The agent pool.
        agent_pool: String,
        /// The least that the autoscaler keeps from now on.
        min: u32,
        /// Why.
        reason: Reason,
    },
    /// Have Azure start deallocated machines again.
    Restart {
        /// The agent pool.
        agent_pool: String,
        /// Names of nodes.
        nodes: Vec<String>,
    },
    /// Taint the node `out-of-service`: its VM does not run.
    TakeOutOfService {
        /// The node.
        node: String,
    },
    /// Take that taint off.
    ReturnToService {
        /// The node.
        node: String,
    },
    /// Ask the node's agent to drain it, PDBs kept.
    RequestDrain {
        /// The node.
        node: String,
        /// Why.
        reason: DrainReason,
        /// When the agent gives up.
        not_after: Timestamp,
    },
    /// Take the drain request back; the agent gives the node back.
    WithdrawDrain {
        /// The node.
        node: String,
        /// Why.
        reason: Reason,
    },
}

impl Action {
    /// Why.
    pub fn reason(&self) -> Reason {
        match self {
            Self::ScaleUp { reason, .. }
            | Self::SetMinimum { reason, .. }
            | Self::WithdrawDrain { reason, .. }
            | Self::DeleteMachines { reason, .. } => *reason,
            Self::Restart { .. } => Reason::RestartDeallocated,
            Self::TakeOutOfService { .. } | Self::ReturnToService { .. } => Reason::OutOfService,
            Self::CorrectCount { .. } => Reason::CountCorrected,
            Self::CreateAgentPool { .. } => Reason::CreateAgentPool,
            Self::RequestDrain { reason: DrainReason::Failback, .. } => Reason::Failback,
            Self::RequestDrain { reason: DrainReason::Manual, .. } => Reason::ManualDrain,
            Self::RequestDrain { .. } => Reason::ScaleDown,
        }
    }

    /// The agent pool that is written, if one is.
    pub fn agent_pool(&self) -> Option<&str> {
        match self {
            Self::ScaleUp { agent_pool, .. }
            | Self::DeleteMachines { agent_pool, .. }
            | Self::CorrectCount { agent_pool, .. }
            | Self::CreateAgentPool { agent_pool }
            | Self::SetMinimum { agent_pool, .. } => Some(agent_pool),
            // Starting a machine is no write of its agent pool.
            Self::Restart { .. }
            | Self::TakeOutOfService { .. }
            | Self::ReturnToService { .. }
            | Self::RequestDrain { .. }
            | Self::WithdrawDrain { .. } => None,
        }
    }

    pub(crate) fn machines_deleted(&self) -> usize {
        match self {
            Self::DeleteMachines { nodes, .. } => nodes.len(),
            _ => 0,
        }
    }
}

/// What one plan leaves for the next: kept in status, so that it survives restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The most that has been ready at once, at most what is wanted.
    pub established: u32,
    /// Since when established capacity is missing.
    pub lost_since: Option<Timestamp>,
    /// Since when growth waits for capacity.
    pub growth_since: Option<Timestamp>,
    /// Since when more nodes are there than needed.
    pub surplus_since: Option<Timestamp>,
    /// On-demand that is needed, and was lately.
    pub needs: Needs,
    /// No node is asked to drain before this time.
    pub paused_until: Option<Timestamp>,
    /// Since when on-demand stands in for spot.
    pub fallback_since: Option<Timestamp>,
    /// When a node was last given back because spot could carry the load again.
    pub failed_back_at: Option<Timestamp>,
    /// How often spot failed soon after that, and when at last.
    pub relapses: Option<Relapses>,
    /// The on-demand that is kept for disruption budgets.
    pub floor: FloorMemory,
    /// The node that was given back alone, before others follow.
    pub probe: Option<Probe>,
    /// The last wish for failback that was answered.
    pub answered: Option<Answered>,
    /// What was measured of the objective, as status has it.
    pub objective: Option<ObjectiveStatus>,
    /// What has been spent.
    pub ledger: Option<Ledger>,
}

/// The first node that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub node: String,
    /// Since when it is gone, if it is.
    pub gone_since: Option<Timestamp>,
}

/// A wish of a person and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The annotation's value.
    pub value: String,
    /// What came of it, in words.
    pub answer: String,
}

/// How far a SpotPool that is being deleted is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// On-demand nodes that are still to be returned.
    pub fallback_nodes: u32,
    /// Whether it may go.
    pub done: bool,
}

/// How often spot failed soon after on-demand was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relapses {
    /// How often, as it counted at `at`.
    pub count: u32,
    /// When at last.
    pub at: Timestamp,
}

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

/// Counts over the snapshot, in units. Nodes under notice or asked to drain count in none but `evicting`.
pub(crate) struct Tally {
    pub wanted: u32,
    /// On-demand that there should always be: the most of the baseline, what was found at adoption, and the floor.
    pub base: u32,
    /// Whether it is the floor that makes the base so large.
    pub base_is_floor: bool,
    /// Spot beyond what is wanted.
    pub standby: u32,
    pub spot_target: u32,
    /// Spot beyond the target, because some was lost lately.
    pub after_loss: u32,
    /// Spot beyond both, because so much may go soon.
    pub ahead: u32,
    /// Spot that stays, and that is on its way.
    pub spot_have: u32,
    pub spot_ready: u32,
    /// The same for on-demand, those of the base included.
    pub on_demand_have: u32,
    pub on_demand_ready: u32,
    /// On-demand that is asked for or boots.
    pub on_demand_coming: u32,
    pub creating: u32,
    pub evicting: u32,
    /// On-demand beyond the base that there should be out of caution, inside the limits of `fallback`.
    pub cautious: u32,
    /// Whether on-demand is not given back in favour of spot.
    pub keeps_on_demand: bool,
    /// Of what counts as ready, what is not: AKS is at work on it, or a drill rehearses. Spot, then on-demand.
    set_apart: [u32; 2],
}

impl Tally {
    fn of(spec: &SpotPoolSpec, snapshot: &Snapshot, floor: u32, now: Timestamp) -> Self {
        let wanted = (spec.replicas.max(spec.on_demand.baseline).max(0) as u32).max(floor);
        let mut kept_units = 0;
        let mut tally = Self {
            wanted,
            base: 0,
            base_is_floor: false,
            standby: spec.standby.units.max(0) as u32,
            spot_target: 0,
            after_loss: 0,
            ahead: signals::ahead(spec, &snapshot.agent_pools, &[]),
            spot_have: 0,
            spot_ready: 0,
            on_demand_have: 0,
            on_demand_ready: 0,
            on_demand_coming: 0,
            creating: 0,
            evicting: 0,
            cautious: 0,
            keeps_on_demand: false,
            set_apart: [0, 0],
        };
        for pool in &snapshot.agent_pools {
            let (stay, creating) = match upkeep::carried(pool) {
                Some(carried) => (carried * pool.units, 0),
                None => (pool.staying() * pool.units, pool.arriving(now) * pool.units),
            };
            let serving = pool.units_of(NodeView::serves);
            let counted = |node: &NodeView| node.serves() || (node.rehearsed && node.stays());
            let ready = if pool.upkeep.is_some() { stay } else { pool.units_of(counted) };
            tally.evicting += pool.units_of(|node| node.noticed.is_some());
            match pool.role {
                Ok(Role::Spot) => {
                    tally.spot_have += stay + creating;
                    tally.spot_ready += ready;
                    tally.set_apart[0] += ready.saturating_sub(serving);
                }
                Ok(Role::OnDemand) => {
                    kept_units += kept(spec, pool).min(pool.staying()) * pool.units;
                    let booting = match pool.upkeep {
                        Some(_) => 0,
                        None => pool.units_of(|node| node.is_booting(now)),
                    };
                    tally.on_demand_coming += creating + booting;
                    tally.on_demand_have += stay + creating;
                    tally.on_demand_ready += ready;
                    tally.set_apart[1] += ready.saturating_sub(serving);
                }
                Err(_) => continue,
            }
            tally.creating += creating;
        }
        let always = kept_units.max(spec.on_demand.baseline.max(0) as u32);
        tally.base = always.max(floor);
        tally.base_is_floor = floor > always;
        let on_spot = wanted.saturating_sub(tally.base);
        tally.spot_target = on_spot + tally.standby;
        tally.after_loss = after_loss::units(spec, snapshot, on_spot, now);
        tally
    }

    /// Spot that there should be, that beyond the target after a loss included.
    pub fn spot_wanted(&self) -> u32 {
        self.spot_target + self.after_loss
    }

    /// On-demand that the base lacks.
    pub fn base_missing(&self) -> u32 {
        self.base.saturating_sub(self.on_demand_have)
    }

    pub fn ready(&self) -> u32 {
        self.spot_ready + self.on_demand_ready
    }

    /// What is ready in truth: what AKS is at work on, or a drill, is not.
    pub fn serving(&self) -> u32 {
        self.ready().saturating_sub(self.set_apart.iter().sum())
    }
}

/// On-demand nodes of the agent pool that failback never takes.
pub(crate) fn kept(spec: &SpotPoolSpec, pool: &AgentPoolView) -> u32 {
    match spec.adoption {
        // What people have the autoscaler keep stays, whatever we say.
        Adoption::Reclaim if pool.autoscaler.is_none() => 0,
        Adoption::Keep | Adoption::Reclaim => pool.kept,
    }
}

/// Collects what the plan is made of while it is being made.
pub(crate) struct Draft {
    pub actions: Vec<Action>,
    pub steps: Vec<PlanStep>,
    pub memory: Memory,
    pub restarts: BTreeMap<String, Restarts>,
    pub wake: Option<Timestamp>,
}

impl Draft {
    pub fn step(&mut self, reason: Reason, agent_pool: Option<&str>, message: impl Into<String>) {
        self.steps.push(PlanStep {
            reason,
            agent_pool: agent_pool.map(str::to_owned),
            message: message.into(),
        });
    }

    /// Takes the request to drain `node` back.
    pub fn withdraw(&mut self, node: &NodeView, reason: Reason, message: impl Into<String>) {
        self.step(reason, Some(&node.agent_pool), message);
        self.actions.push(Action::WithdrawDrain { node: node.name.clone(), reason });
    }

    /// The actions to carry out and those to withhold. What is withheld has not happened: memory does not say so.
    pub fn hold_back(&mut self, spec: &SpotPoolSpec, snapshot: &Snapshot) -> (Vec<Action>, Vec<Action>) {
        let actions = std::mem::take(&mut self.actions);
        if acts(spec) {
            return (actions, Vec::new());
        }
        let before = &snapshot.memory;
        self.memory.failed_back_at = before.failed_back_at;
        self.memory.relapses.clone_from(&before.relapses);
        self.memory.paused_until = before.paused_until;
        self.memory.probe.clone_from(&before.probe);
        self.memory.answered.clone_from(&before.answered);
        self.restarts = kept_restarts(snapshot);
        (Vec::new(), actions)
    }

    pub fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }
}

/// Whether the plan is carried out.
pub(crate) fn acts(spec: &SpotPoolSpec) -> bool {
    spec.mode == Mode::Enforce && !spec.suspend
}

pub(crate) fn later(time: Timestamp, by: Duration) -> Timestamp {
    later_by(time, SignedDuration::try_from(std::time::Duration::from(by)).unwrap_or(SignedDuration::MAX))
}

pub(crate) fn later_by(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Steps of one reason that are told one by one: status must stay small where a thousand nodes wait for the same.
const TOLD: usize = 20;

/// `steps`, after the one that sums up of each reason the first ones, and how many more there are.
pub(crate) fn told(steps: Vec<PlanStep>) -> Vec<PlanStep> {
    let mut counts: Vec<(Reason, usize)> = Vec::new();
    let mut steps = steps.into_iter();
    let mut told: Vec<PlanStep> = steps.next().into_iter().collect();
    for step in steps {
        let known = counts.iter().position(|(reason, _)| *reason == step.reason);
        let at = known.unwrap_or(counts.len());
        if known.is_none() {
            counts.push((step.reason, 0));
        }
        counts[at].1 += 1;
        if counts[at].1 <= TOLD {
            told.push(step);
        }
    }
    for (reason, count) in counts.into_iter().filter(|(_, count)| *count > TOLD) {
        let message = format!("{} more like these", count - TOLD);
        told.push(PlanStep { reason, agent_pool: None, message });
    }
    told
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

/// Attempts are remembered as long as there is something to start.
fn kept_restarts(snapshot: &Snapshot) -> BTreeMap<String, Restarts> {
    let kept = |pool: &AgentPoolView| {
        // Started ones are on their way up until they are ready, or deallocated again.
        let is_on = pool.nodes.iter().any(|node| !node.ready && node.drain.is_none());
        Some((pool.name.clone(), pool.restarts.filter(|_| is_on)?))
    };
    snapshot.agent_pools.iter().filter_map(kept).collect()
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
    let not_ready = (tally.spot_have + tally.on_demand_have).saturating_sub(tally.ready() + tally.creating);
    Capacity {
        wanted: tally.wanted as i32,
        ready_spot: tally.spot_ready.saturating_sub(tally.set_apart[0]) as i32,
        ready_on_demand: tally.on_demand_ready.saturating_sub(tally.set_apart[1]) as i32,
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
