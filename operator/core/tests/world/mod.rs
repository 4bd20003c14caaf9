//! A small model of AKS and of the agents, in which plans are carried out in simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use spotpool_core::avoidance::{Failure, avoided_until};
use spotpool_core::fit::Room;
use spotpool_core::floor::FloorDemand;
use spotpool_core::signals::{Hours, Signals};
use spotpool_core::{
    Action, AgentPoolView, Autoscaler, DrainView, Losses, Market, Memory, NodeView, Plan, Snapshot, Wishes,
    plan,
};
use spotpool_crds::spot_pool::{Operation, OperationKind, Role};
use spotpool_crds::told::{self, Author};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason};
use spotpool_crds::{Reason, SpotPoolSpec};

pub const BOOT: i64 = 60;
const DRAIN: i64 = 5;
/// The cluster autoscaler makes good what its minimum lacks after this …
const RESTORES: i64 = 60;
/// … and takes idle nodes beyond it after this.
const IDLE: i64 = 600;

/// Random numbers of one seed: SplitMix64.
#[allow(dead_code, reason = "only random courses roll")]
pub struct Dice(pub u64);

#[allow(dead_code, reason = "only random courses roll")]
impl Dice {
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// The nodes that the plan asks to drain.
#[allow(dead_code, reason = "not every test looks at drains")]
pub fn asked_to_drain(plan: &Plan) -> Vec<&str> {
    let asked = plan.actions.iter().filter_map(|action| match action {
        Action::RequestDrain { node, .. } => Some(node.as_str()),
        _ => None,
    });
    asked.collect()
}

/// All that the plan says for this reason.
#[allow(dead_code, reason = "not every test reads the plan's words")]
pub fn says(plan: &Plan, reason: Reason) -> String {
    let said: Vec<&str> =
        plan.steps.iter().filter(|step| step.reason == reason).map(|step| step.message.as_str()).collect();
    assert!(!said.is_empty(), "no {reason} in {:?}", plan.steps);
    said.join("; ")
}

/// What is there beyond need is less than any one node: each that could go is needed at least in part.
#[allow(dead_code, reason = "only random courses end so")]
pub fn carries_just(world: &World, role: Role, wanted: u32) -> Result<(), String> {
    let ready = world.ready(role);
    if ready < wanted {
        return Err(format!("{ready} of {wanted} {role:?} ready: {:#?}", world.plan().steps));
    }
    let of_role = world.pools.iter().filter(|pool| pool.role == role);
    for pool in of_role.filter(|pool| pool.machines.len() as u32 > pool.kept()) {
        if ready - pool.units >= wanted {
            return Err(format!("a node of {} is not needed: {ready} of {wanted}", pool.name));
        }
    }
    Ok(())
}

/// What becomes of the next scale-up of an agent pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test has its own course")]
pub enum Fate {
    /// All comes.
    Good,
    /// Refused at once: no capacity.
    Refused,
    /// Accepted; so many machines come, then the operation fails: no capacity.
    Fails(u32),
    /// Accepted; so many machines come, and nobody says that the others do not.
    Incomplete(u32),
    /// Accepted, and the machines come, and the last never becomes a Node.
    Stuck,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub asked_at: Timestamp,
    pub node_at: Timestamp,
    pub noticed_at: Option<Timestamp>,
    pub dies_at: Option<Timestamp>,
    pub drain: Option<(Timestamp, Timestamp)>,
    /// When its drain was taken back: its agent opens it after that, not in the same instant.
    pub taken_back_at: Option<Timestamp>,
    /// Of the drain.
    pub reason: DrainReason,
    /// Whether another SpotPool had asked for it.
    pub foreign: bool,
    /// Whether no pod leaves.
    pub blocked: bool,
    /// Whether a person wants it drained.
    pub wished: bool,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub role: Role,
    pub max_nodes: u32,
    pub units: u32,
    pub kept: u32,
    pub machines: Vec<Machine>,
    pub operation: Option<(Operation, Timestamp)>,
    pub created: u32,
    pub count: u32,
    pub market: Market,
    /// Somebody else's operation runs.
    pub is_taken: bool,
    pub fate: Fate,
    /// The fate of the operation that runs.
    pub running: Fate,
    pub ended: Option<Operation>,
    pub avoided_until: Option<Timestamp>,
    pub refused_at: Option<Timestamp>,
    pub vm_size: String,
    pub zones: Vec<String>,
    /// Since when `count` has been above the machines, with no operation running.
    pub stale_since: Option<Timestamp>,
    /// The cluster autoscaler's range. No pod keeps it from taking a node beyond its minimum.
    pub autoscaler: Option<Autoscaler>,
    /// Since when it has more machines than its minimum, or fewer.
    pub uneven: Option<(std::cmp::Ordering, Timestamp)>,
}

pub struct World {
    pub spec: SpotPoolSpec,
    pub now: Timestamp,
    pub pools: Vec<Pool>,
    pub memory: Memory,
    pub wishes: Wishes,
    pub leaving: bool,
    pub losses: BTreeMap<String, Losses>,
    /// Nodes that Azure advises to move away from.
    pub advised: BTreeSet<String>,
    pub hours: BTreeMap<String, Hours>,
    /// Whether Azure's count falls when a VM is evicted.
    pub count_follows_evictions: bool,
    pub launches: BTreeMap<String, u32>,
    /// Rounds of one reconciliation, each after a refusal.
    pub rounds: usize,
    /// What disruption budgets need.
    pub floor: Option<FloorDemand>,
    /// What runs where; nobody looks at it if absent.
    pub room: Option<Arc<Room>>,
    /// By how many seconds the operator's clock is ahead of everybody else's.
    pub skew: i64,
}

impl World {
    pub fn new(yaml: &str, roles: &[Role]) -> Self {
        let mut spec: SpotPoolSpec = serde_yaml(yaml);
        // Most tests count machines: only those that say so have spare after a loss.
        if !yaml.contains("afterLoss") {
            spec.standby.after_loss.percent = 0;
        }
        let pools = spec
            .agent_pools
            .iter()
            .zip(roles)
            .map(|(pool, role)| Pool {
                name: pool.name.clone(),
                role: *role,
                max_nodes: pool.max_nodes as u32,
                units: pool.capacity_units as u32,
                kept: 0,
                machines: Vec::new(),
                operation: None,
                created: 0,
                count: 0,
                market: Market::default(),
                is_taken: false,
                fate: Fate::Good,
                running: Fate::Good,
                ended: None,
                avoided_until: None,
                refused_at: None,
                vm_size: String::new(),
                zones: Vec::new(),
                stale_since: None,
                autoscaler: None,
                uneven: None,
            })
            .collect();
        Self {
            spec,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            pools,
            memory: Memory::default(),
            wishes: Wishes::default(),
            leaving: false,
            losses: BTreeMap::new(),
            advised: BTreeSet::new(),
            hours: BTreeMap::new(),
            count_follows_evictions: true,
            launches: BTreeMap::new(),
            rounds: 0,
            floor: None,
            room: None,
            skew: 0,
        }
    }

    pub fn pool(&mut self, name: &str) -> &mut Pool {
        self.pools.iter_mut().find(|pool| pool.name == name).unwrap()
    }

    /// Machines that are there from the start, ready.
    pub fn with(mut self, pool: &str, machines: u32, kept: u32) -> Self {
        let now = self.now - SignedDuration::from_hours(10);
        let pool = self.pool(pool);
        for _ in 0..machines {
            pool.launch(now);
        }
        pool.kept = kept;
        self
    }

    /// Hands an agent pool to the cluster autoscaler.
    #[allow(dead_code, reason = "each test has its own course")]
    pub fn autoscaled(mut self, pool: &str, min: u32, max: u32) -> Self {
        self.pool(pool).autoscaler = Some(Autoscaler { min, max, own_min: min });
        self
    }

    /// The cluster autoscaler makes nodes for pods that are pending.
    #[allow(dead_code, reason = "each test has its own course")]
    pub fn pending(&mut self, pool: &str, many: u32) {
        let now = self.now;
        let pool = self.pool(pool);
        let Some(range) = pool.autoscaler.filter(|_| pool.operation.is_none() && !pool.is_taken) else {
            return;
        };
        for _ in 0..many.min(range.max.saturating_sub(pool.machines.len() as u32)) {
            pool.launch(now + SignedDuration::from_secs(BOOT));
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            memory: self.memory.clone(),
            floor: self.floor.clone(),
            room: self.room.clone(),
            wishes: self.wishes.clone(),
            leaving: self.leaving,
            ..Snapshot::default()
        };
        for pool in &self.pools {
            let mut nodes = Vec::new();
            for machine in pool.machines.iter().filter(|machine| machine.node_at <= self.now) {
                nodes.push(NodeView {
                    lost: None,
                    out_of_service: false,
                    name: machine.name.clone(),
                    agent_pool: pool.name.clone(),
                    created: machine.node_at,
                    ready: machine.is_open(self.now),
                    rehearsed: false,
                    // Until its agent opens it again.
                    cordoned: machine.taken_back_at.is_some_and(|at| at >= self.now),
                    noticed: machine.noticed_at,
                    drain: machine.drain.map(|(asked, not_after)| DrainView {
                        not_after,
                        phase: Some(if machine.blocked && not_after <= self.now {
                            DrainPhase::TimedOut
                        } else if !machine.blocked && asked + SignedDuration::from_secs(DRAIN) <= self.now {
                            DrainPhase::Drained
                        } else {
                            DrainPhase::Draining
                        }),
                        reason: machine.reason,
                        is_ours: !machine.foreign,
                    }),
                    drain_wished: machine.wished,
                });
            }
            let joining = pool.machines.iter().filter(|machine| machine.node_at > self.now);
            let came = |at: &Timestamp| nodes.iter().any(|node: &NodeView| node.ready && node.created > *at);
            snapshot.agent_pools.push(AgentPoolView {
                joining: joining.map(|machine| (machine.name.clone(), machine.asked_at)).collect(),
                ended: pool.ended.clone(),
                avoided_until: pool.avoided_until,
                refused_at: pool.refused_at.filter(|at| !came(at)),
                vm_size: pool.vm_size.clone(),
                zones: pool.zones.clone(),
                name: pool.name.clone(),
                max_nodes: pool.max_nodes,
                units: pool.units,
                role: Ok(pool.role),
                count: pool.count,
                machines: pool.machines.iter().map(|machine| machine.name.clone()).collect(),
                count_stale_since: pool.stale_since,
                listed: pool.machines.len() as u32,
                busy: pool.operation.is_some() || pool.is_taken,
                operation: pool.operation.as_ref().map(|(operation, _)| operation.clone()),
                kept: pool.kept(),
                autoscaler: pool.autoscaler,
                market: pool.market.clone(),
                losses: self.losses.get(&pool.name).cloned(),
                signals: Signals {
                    advised: self.advised.clone(),
                    hours: self.hours.get(&pool.name).cloned(),
                    ..Signals::default()
                },
                nodes,
                ..AgentPoolView::default()
            });
        }
        snapshot
    }

    /// Plans, carries the plan out, and checks what must always hold.
    pub fn reconcile(&mut self) -> Plan {
        let plan = self.plan();
        let written: Vec<&str> = plan.actions.iter().filter_map(Action::agent_pool).collect();
        let agent_pools: BTreeSet<&str> = written.iter().copied().collect();
        assert_eq!(written.len(), agent_pools.len(), "two writes to one agent pool: {:?}", plan.actions);
        let mut refused = !plan.stalls.is_empty();
        for pool in &mut self.pools {
            pool.ended = None;
        }
        let now = self.now;
        for pool in &mut self.pools {
            if let Some((operation, _)) = &mut pool.operation {
                let since = operation.since.0;
                let came = pool.machines.iter().filter(|it| it.node_at >= since && it.node_at <= now).count();
                operation.arrived = operation.arrived.max(came as i32);
            }
        }
        for stall in &plan.stalls {
            let now = self.now;
            self.pool(&stall.agent_pool).refuse(now);
        }
        for action in &plan.actions {
            // Each is told in an Event.
            let reason = action.reason();
            assert!(
                told::find(Author::Operator, "SpotPool", reason.as_ref()).is_some(),
                "{reason} is in no reference"
            );
            let is_refused =
                |pool: &Pool| action.agent_pool() == Some(&pool.name) && pool.fate == Fate::Refused;
            if matches!(action, Action::ScaleUp { .. }) && self.pools.iter().any(is_refused) {
                let now = self.now;
                self.pool(action.agent_pool().unwrap()).refuse(now);
                refused = true;
            } else {
                self.carry_out(action);
            }
        }
        self.memory = plan.memory.clone();
        self.losses = plan.losses.clone();
        self.hours = plan.hours.clone();
        let on_demand =
            |name: &String| self.pools.iter().any(|it| it.name == *name && it.role == Role::OnDemand);
        let launch =
            |action: &Action| matches!(action, Action::ScaleUp { agent_pool, .. } if on_demand(agent_pool));
        self.check(plan.actions.iter().any(launch));
        if refused {
            self.rounds += 1;
            assert!(self.rounds <= 2 * self.pools.len(), "an endless loop: {:?}", plan.actions);
            let plan = self.reconcile();
            self.rounds = 0;
            return plan;
        }
        let again = self.plan();
        // Machines that are returned for the sake of a budget leave room in it for cheaper ones.
        let fallback = self.spec.fallback.as_ref();
        let has_budget = fallback.is_some_and(|it| it.hourly_budget.is_some() || it.monthly_budget.is_some());
        // So does spot for on-demand that is returned although caution would keep it.
        let is_cautious = self.spec.objective.is_some();
        let makes_room = has_budget
            && plan.actions.iter().any(|action| match action {
                Action::DeleteMachines { .. } => true,
                Action::RequestDrain { .. } => is_cautious,
                _ => false,
            });
        assert!(
            again.actions.is_empty() || makes_room,
            "plan of an applied plan: {:?} after {:?}",
            again.actions,
            plan.actions
        );
        plan
    }

    pub fn plan(&self) -> Plan {
        plan(&self.spec, &self.snapshot(), self.clock())
    }

    /// The time by the operator's clock.
    pub fn clock(&self) -> Timestamp {
        self.now + SignedDuration::from_secs(self.skew)
    }

    fn carry_out(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::ScaleUp { agent_pool, new, coming, count, .. } => {
                *self.launches.entry(agent_pool.clone()).or_default() += new;
                let pool = self.pool(agent_pool);
                assert!(pool.operation.is_none(), "{agent_pool} is busy");
                assert_eq!(
                    *count,
                    pool.machines.len() as u32 + new,
                    "count is machines that exist and new ones"
                );
                let come = match pool.fate {
                    Fate::Fails(most) | Fate::Incomplete(most) => most.min(*new),
                    _ => *new,
                };
                for _ in 0..come {
                    pool.launch(now + SignedDuration::from_secs(BOOT));
                }
                if let (Fate::Stuck, Some(last)) = (pool.fate, pool.machines.last_mut()) {
                    last.node_at = Timestamp::MAX;
                }
                if let Some(range) = &mut pool.autoscaler {
                    assert!(*count <= range.max, "{agent_pool} above the autoscaler's maximum");
                    range.min = *count;
                }
                pool.running = std::mem::replace(&mut pool.fate, Fate::Good);
                let (machines, count) = (*new as i32, *count as i32);
                let operation = Operation {
                    kind: OperationKind::ScaleUp,
                    count,
                    machines,
                    coming: *coming as i32,
                    since: now.into(),
                    arrived: 0,
                    accepted: true,
                };
                pool.operation = Some((operation, now + SignedDuration::from_secs(BOOT)));
                pool.count = count as u32;
            }
            Action::DeleteMachines { agent_pool, nodes, .. } => {
                let pool = self.pool(agent_pool);
                assert!(pool.operation.is_none(), "{agent_pool} is busy");
                assert!(pool.autoscaler.is_none(), "machines of {agent_pool} are the autoscaler's");
                for node in nodes {
                    let at = pool.machines.iter().position(|machine| machine.name == *node).unwrap();
                    let machine = pool.machines.remove(at);
                    if machine.node_at == Timestamp::MAX {
                        let there = now.duration_since(machine.asked_at);
                        assert!(there >= SignedDuration::from_mins(30), "{node} may still become a Node");
                        continue;
                    }
                    let (asked, _) = machine.drain.expect("only drained machines are deleted");
                    assert!(asked + SignedDuration::from_secs(DRAIN) <= now, "{node} is still draining");
                }
                pool.count = pool.machines.len() as u32;
                let (count, machines) = (pool.count as i32, nodes.len() as i32);
                let operation = Operation {
                    kind: OperationKind::DeleteMachines,
                    count,
                    machines,
                    coming: 0,
                    since: now.into(),
                    arrived: 0,
                    accepted: true,
                };
                pool.operation = Some((operation, now + SignedDuration::from_secs(30)));
            }
            Action::CorrectCount { agent_pool, count } => {
                let pool = self.pool(agent_pool);
                assert!(pool.operation.is_none(), "{agent_pool} is busy");
                assert_eq!(*count, pool.machines.len() as u32, "a count falls to the machines that exist");
                assert!(pool.autoscaler.is_none(), "the count of {agent_pool} is the autoscaler's");
                pool.count = *count;
                pool.stale_since = None;
                let operation = Operation {
                    kind: OperationKind::CorrectCount,
                    count: *count as i32,
                    machines: 0,
                    coming: 0,
                    since: now.into(),
                    arrived: 0,
                    accepted: true,
                };
                pool.operation = Some((operation, now + SignedDuration::from_secs(30)));
            }
            Action::SetMinimum { agent_pool, min, .. } => {
                let pool = self.pool(agent_pool);
                assert!(pool.operation.is_none(), "{agent_pool} is busy");
                let machines = pool.machines.len() as u32;
                let range = pool.autoscaler.as_mut().expect("a range");
                assert_ne!(*min, range.min, "nothing is changed");
                assert!(*min >= range.own_min, "{agent_pool} below its own minimum");
                assert!(*min <= range.min.max(machines), "that would bring machines");
                range.min = *min;
                let operation = Operation {
                    kind: OperationKind::SetMinimum,
                    count: *min as i32,
                    machines: 0,
                    coming: 0,
                    since: now.into(),
                    arrived: 0,
                    accepted: true,
                };
                pool.operation = Some((operation, now + SignedDuration::from_secs(30)));
            }
            Action::RequestDrain { node, not_after, reason } => {
                let of = |pool: &&Pool| pool.machines.iter().any(|machine| machine.name == *node);
                let pool = self.pools.iter().find(of).unwrap();
                assert!(
                    pool.autoscaler.is_none() || *reason == DrainReason::Manual,
                    "{node} is the autoscaler's"
                );
                let machine = self.machine(node);
                machine.drain = Some((now, *not_after));
                machine.reason = *reason;
                machine.wished &= *reason != DrainReason::Manual;
            }
            Action::WithdrawDrain { node, .. } => {
                let machine = self.machine(node);
                machine.drain = None;
                machine.taken_back_at = Some(now);
                machine.foreign = false;
            }
            Action::CreateAgentPool { .. } => panic!("every agent pool is there: {action:?}"),
            Action::Restart { .. } | Action::TakeOutOfService { .. } | Action::ReturnToService { .. } => {
                panic!("no VM is lost without a notice here: {action:?}")
            }
        }
    }

    pub fn machine(&mut self, name: &str) -> &mut Machine {
        self.pools
            .iter_mut()
            .flat_map(|pool| &mut pool.machines)
            .find(|machine| machine.name == name)
            .unwrap()
    }

    fn check(&self, launched: bool) {
        for pool in &self.pools {
            // What the autoscaler makes for pods is not ours.
            let (machines, most) = match pool.autoscaler {
                Some(range) => (range.min, pool.max_nodes.min(range.max).max(range.own_min)),
                None => (pool.machines.len() as u32, pool.max_nodes.max(pool.kept)),
            };
            assert!(machines <= most, "{} above maxNodes", pool.name);
        }
        // What was kept for budgets that need less now is beyond the limit until it has gone.
        if self.floor.is_some() && !launched {
            return;
        }
        let bought = self.bought();
        let limit = self.spec.fallback.as_ref().map_or(0, |fallback| fallback.max_nodes);
        assert!(bought <= limit as u32, "{bought} bought, {limit} allowed");
    }

    /// On-demand machines beyond those kept and the smallest of the others that make up the baseline.
    fn bought(&self) -> u32 {
        let on_demand = || self.pools.iter().filter(|pool| pool.role == Role::OnDemand);
        let kept: u32 = on_demand().map(|pool| pool.kept() * pool.units).sum();
        let base = (self.spec.on_demand.baseline as u32).max(self.memory.floor.units);
        let mut baseline = base.saturating_sub(kept);
        let others = |pool: &Pool| {
            let machines = pool.machines.len() as u32;
            let ours = pool.autoscaler.map_or(machines, |range| range.min.min(machines));
            vec![pool.units; ours.saturating_sub(pool.kept()) as usize]
        };
        let mut others: Vec<u32> = on_demand().flat_map(others).collect();
        others.sort_unstable();
        let is_bought = |units: &&u32| {
            let needed = baseline > 0;
            baseline = baseline.saturating_sub(**units);
            !needed
        };
        others.iter().filter(is_bought).count() as u32
    }

    /// A notice for up to `many` of the pool's nodes.
    pub fn notice(&mut self, pool: &str, many: usize, seconds: i64) {
        let now = self.now;
        let healthy = |machine: &&mut Machine| machine.dies_at.is_none() && machine.node_at <= now;
        for machine in self.pool(pool).machines.iter_mut().filter(healthy).take(many) {
            machine.noticed_at = Some(now);
            machine.dies_at = Some(now + SignedDuration::from_secs(seconds));
        }
    }

    pub fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        let (now, follows) = (self.now, self.count_follows_evictions);
        for pool in &mut self.pools {
            let before = pool.machines.len();
            pool.machines.retain(|machine| machine.dies_at.is_none_or(|at| at > now));
            if follows || pool.autoscaler.is_some() {
                pool.count -= (before - pool.machines.len()) as u32;
            }
            if let Some((operation, _)) = pool.operation.take_if(|(_, ends)| *ends <= now) {
                match std::mem::replace(&mut pool.running, Fate::Good) {
                    Fate::Fails(_) => pool.refuse(now),
                    _ if operation.kind == OperationKind::ScaleUp => pool.ended = Some(operation),
                    _ => {}
                }
            }
            pool.autoscale(now);
            let stale = pool.operation.is_none() && pool.count > pool.machines.len() as u32;
            pool.stale_since = stale.then(|| pool.stale_since.unwrap_or(now));
        }
    }

    /// Units that are ready.
    pub fn ready(&self, role: Role) -> u32 {
        let serving = |machine: &&Machine| {
            machine.node_at <= self.now && machine.dies_at.is_none() && machine.is_open(self.now)
        };
        let pools = self.pools.iter().filter(|pool| pool.role == role);
        pools.map(|pool| pool.machines.iter().filter(serving).count() as u32 * pool.units).sum()
    }
}

impl Machine {
    fn is_open(&self, now: Timestamp) -> bool {
        self.drain.is_none() && self.taken_back_at.is_none_or(|at| at < now)
    }
}

impl Pool {
    /// On-demand that is never given back.
    pub fn kept(&self) -> u32 {
        self.autoscaler.map_or(self.kept, |range| range.own_min.min(self.machines.len() as u32))
    }

    /// What the cluster autoscaler does by itself.
    fn autoscale(&mut self, now: Timestamp) {
        let Some(range) = self.autoscaler.filter(|_| self.operation.is_none() && !self.is_taken) else {
            return;
        };
        self.count = self.machines.len() as u32;
        let side = self.count.cmp(&range.min);
        let since = self.uneven.filter(|(known, _)| *known == side).map_or(now, |(_, since)| since);
        self.uneven = Some((side, since));
        let lasted = now.duration_since(since).as_secs();
        if side.is_lt() && lasted >= RESTORES {
            for _ in self.count..range.min {
                self.launch(now + SignedDuration::from_secs(BOOT));
            }
        }
        if side.is_gt() && lasted >= IDLE {
            let mut surplus = self.count - range.min;
            self.machines.reverse();
            self.machines.retain(|machine| {
                let goes = surplus > 0 && machine.dies_at.is_none() && machine.node_at <= now;
                surplus -= u32::from(goes);
                !goes
            });
            self.machines.reverse();
        }
        self.count = self.machines.len() as u32;
    }

    /// As an error of capacity is remembered.
    fn refuse(&mut self, now: Timestamp) {
        self.fate = Fate::Good;
        self.refused_at = Some(now);
        self.avoided_until = Some(avoided_until(Failure::Capacity, None, now));
    }

    fn launch(&mut self, node_at: Timestamp) {
        let name = format!("{}-{:06}", self.name, self.created);
        self.created += 1;
        let asked_at = node_at - SignedDuration::from_secs(BOOT);
        self.machines.push(Machine {
            name,
            asked_at,
            node_at,
            noticed_at: None,
            dies_at: None,
            drain: None,
            taken_back_at: None,
            reason: DrainReason::Failback,
            foreign: false,
            blocked: false,
            wished: false,
        });
        self.count = self.machines.len() as u32;
    }
}

fn serde_yaml(yaml: &str) -> SpotPoolSpec {
    serde_yaml_ng::from_str(yaml).unwrap()
}
