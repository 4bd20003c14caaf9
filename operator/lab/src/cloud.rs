//! A cloud in simulated time: machines boot, are taken with short notice, and are refused where there are none.

use crate::dice::hash;
use crate::scenario::{Pool, Scenario};
use spotpool_crds::spot_pool::Role;

/// Azure gives 30 seconds of notice at most, and sometimes none.
const LONGEST_NOTICE: u64 = 31;
/// How long the deletion of machines keeps an agent pool busy.
const DELETION: i64 = 30;
/// Writes that Azure takes of an agent pool at once, and after how many seconds one more.
const WRITES: (u32, i64) = (20, 60);

/// A machine. Times are seconds since the start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, and its node's.
    pub name: String,
    serial: u64,
    /// When it was asked for.
    pub asked: i64,
    /// When it is a Ready node.
    pub node_at: i64,
    /// When Azure said that it would take it.
    pub noticed: Option<i64>,
    dies_at: Option<i64>,
    /// The drain that was asked for.
    pub drain: Option<Drain>,
}

/// A voluntary drain.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// When it is empty.
    pub ends: i64,
    /// When whoever asked gives up.
    pub not_after: i64,
    /// Whether it is returned then without another word.
    returns: bool,
}

impl Machine {
    /// Whether it carries pods, today and tomorrow.
    pub fn serves(&self, now: i64) -> bool {
        self.node_at <= now && self.stays()
    }

    /// Whether nobody has asked it to leave.
    pub fn stays(&self) -> bool {
        self.noticed.is_none() && self.drain.is_none()
    }
}

/// A request for machines.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Until when it keeps its agent pool busy.
    pub ends: i64,
    /// Machines that were not given.
    pub missing: u32,
}

/// What Azure says to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is carried out.
    Accepted,
    /// An operation runs in the agent pool (409), or too much was written to it (429): nothing has happened.
    NotNow,
}

/// How many writes Azure takes of an agent pool.
#[derive(Clone, Debug)]
struct Writes {
    left: u32,
    /// Up to when what comes with time has been counted.
    counted: i64,
}

impl Default for Writes {
    fn default() -> Self {
        Self { left: WRITES.0, counted: 0 }
    }
}

impl Writes {
    fn go_on(&mut self, now: i64) {
        let more = (now - self.counted) / WRITES.1;
        self.left = self.left.saturating_add(u32::try_from(more).unwrap_or(u32::MAX)).min(WRITES.0);
        self.counted += more * WRITES.1;
    }

    /// Until when no write is taken, if none is now.
    fn closed_until(&self) -> Option<i64> {
        (self.left == 0).then_some(self.counted + WRITES.1)
    }
}

/// The machines of one agent pool.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Its machines.
    pub machines: Vec<Machine>,
    /// Requests that run.
    pub launches: Vec<Launch>,
    deletes_until: i64,
    writes: Writes,
    /// Requests that have ended at this step.
    pub ended: Vec<Launch>,
    /// Machines that were lost at this step, those that were booting included.
    pub lost: u32,
    created: u64,
}

impl Fleet {
    /// Whether AKS would refuse a write.
    pub fn is_busy(&self, now: i64) -> bool {
        !self.launches.is_empty() || self.deletes_until > now
    }

    /// Until when Azure takes no write because there were too many.
    pub fn throttled_until(&self) -> Option<i64> {
        self.writes.closed_until()
    }

    /// Whether Azure takes a write; counts it if so.
    fn is_written(&mut self, now: i64) -> bool {
        let is_taken = !self.is_busy(now) && self.writes.left > 0;
        self.writes.left -= u32::from(is_taken);
        is_taken
    }

    /// Machines that carry pods.
    pub fn serving(&self, now: i64) -> u32 {
        self.machines.iter().filter(|machine| machine.serves(now)).count() as u32
    }

    /// Azure takes so many: which, is chance, and the same for the same machines.
    fn take(&mut self, machines: u32, now: i64, dies_at: i64, seed: u64) {
        if machines == 0 {
            return;
        }
        let held = self.machines.iter_mut().filter(|machine| machine.noticed.is_none());
        let mut held: Vec<&mut Machine> = held.collect();
        held.sort_by_cached_key(|machine| hash(seed, machine.serial));
        for machine in held.into_iter().take(machines as usize) {
            machine.noticed = Some(now);
            machine.dies_at = Some(dies_at);
        }
        self.lost = machines;
        // Nobody hears of a notice on a machine that is no node yet.
        self.machines.retain(|machine| {
            machine.noticed.is_none() || machine.dies_at > Some(now) && machine.node_at <= now
        });
    }

    /// Machines that carry pods or will.
    pub fn staying(&self) -> u32 {
        self.machines.iter().filter(|machine| machine.stays()).count() as u32
    }
}

/// What a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// New machines.
    Launch {
        /// Index of the agent pool.
        pool: usize,
        /// How many.
        machines: u32,
    },
    /// Drain it and give it back.
    Return {
        /// Index of the agent pool.
        pool: usize,
        /// Its name.
        machine: String,
    },
    /// Drain it.
    Drain {
        /// Index of the agent pool.
        pool: usize,
        /// Its name.
        machine: String,
        /// When to give up.
        not_after: i64,
    },
    /// Drain it no more.
    KeepAfterAll {
        /// Index of the agent pool.
        pool: usize,
        /// Its name.
        machine: String,
    },
    /// Delete drained machines.
    Delete {
        /// Index of the agent pool.
        pool: usize,
        /// Their names.
        machines: Vec<String>,
    },
}

/// All agent pools at one time.
#[derive(Clone, Debug)]
pub struct Cloud<'a> {
    /// What is played.
    pub scenario: &'a Scenario,
    /// Seconds since the start.
    pub now: i64,
    /// By agent pool.
    pub fleets: Vec<Fleet>,
    /// Whether agent pools are written, and so one operation at a time, or machines made one by one without any.
    pub by_agent_pool: bool,
}

impl<'a> Cloud<'a> {
    /// Without a machine.
    pub fn new(scenario: &'a Scenario) -> Self {
        Self { scenario, now: 0, fleets: vec![Fleet::default(); scenario.pools.len()], by_agent_pool: true }
    }

    /// Units that are wanted.
    pub fn wanted(&self) -> u32 {
        self.scenario.demand.at(self.now).unwrap_or_default()
    }

    /// The agent pools with their machines.
    pub fn pools(&self) -> impl Iterator<Item = (&'a Pool, &Fleet)> {
        self.scenario.pools.iter().zip(&self.fleets)
    }

    /// Units of a role, in machines that `count`.
    pub fn units(&self, role: Role, count: impl Fn(&Machine) -> bool) -> u32 {
        let of_role = self.pools().filter(|(pool, _)| pool.role == role);
        of_role
            .map(|(pool, fleet)| fleet.machines.iter().filter(|it| count(it)).count() as u32 * pool.units)
            .sum()
    }

    /// Units of a role that carry pods.
    pub fn ready(&self, role: Role) -> u32 {
        self.units(role, |machine| machine.serves(self.now))
    }

    /// Machines that may still be asked of an agent pool.
    pub fn room(&self, pool: usize) -> u32 {
        self.scenario.pools[pool].max_nodes.saturating_sub(self.fleets[pool].machines.len() as u32)
    }

    /// When something next happens by itself, after `now`.
    pub fn next_event(&self) -> i64 {
        let now = self.now;
        let mut next = self.scenario.demand.next_change(now).unwrap_or(i64::MAX);
        let mut consider = |at: i64| {
            if at > now {
                next = next.min(at);
            }
        };
        for (pool, fleet) in self.pools() {
            let supply = pool.available.as_ref().and_then(|available| available.next_change(now));
            let price = pool.price.next_change(now);
            supply.into_iter().chain(price).for_each(&mut consider);
            let taken = pool.takes.partition_point(|(at, _)| *at <= now);
            pool.takes.get(taken).iter().for_each(|(at, _)| consider(*at));
            consider(fleet.deletes_until);
            fleet.throttled_until().into_iter().for_each(&mut consider);
            fleet.launches.iter().for_each(|launch| consider(launch.ends));
            for machine in &fleet.machines {
                consider(machine.node_at);
                machine.dies_at.into_iter().for_each(&mut consider);
                machine.drain.iter().for_each(|drain| consider(drain.ends));
            }
        }
        next
    }

    /// Goes on to `now`: what was due in between happens.
    pub fn go_on(&mut self, now: i64) {
        let before = std::mem::replace(&mut self.now, now);
        let seed = self.scenario.seed;
        for (at, (pool, fleet)) in self.scenario.pools.iter().zip(&mut self.fleets).enumerate() {
            fleet.ended = fleet.launches.iter().filter(|launch| launch.ends <= now).copied().collect();
            fleet.launches.retain(|launch| launch.ends > now);
            fleet.machines.retain(|machine| machine.dies_at.is_none_or(|dies_at| dies_at > now));
            fleet.writes.go_on(now);
            fleet.lost = 0;
            let held = fleet.machines.iter().filter(|machine| machine.noticed.is_none()).count() as u32;
            let there = pool.available.as_ref().and_then(|it| it.at(now)).unwrap_or(u32::MAX);
            let taken = pool.takes.iter().filter(|(at, _)| (before + 1..=now).contains(at));
            let left = taken.fold(held, |left, (_, share)| left - (f64::from(left) * share).ceil() as u32);
            let notice = (hash(seed ^ 1, now as u64 ^ (at as u64) << 40) % LONGEST_NOTICE) as i64;
            fleet.take(held - left.min(there), now, now + notice, seed ^ (at as u64) << 40);
        }
    }

    /// Whether an agent pool may be asked for machines.
    pub fn takes_writes(&self, pool: usize) -> bool {
        let fleet = &self.fleets[pool];
        !self.by_agent_pool || !fleet.is_busy(self.now) && fleet.throttled_until().is_none()
    }

    /// Deletes what policies have returned and what is empty, all of an agent pool in one request, as soon as Azure takes it.
    pub fn delete_returned(&mut self) {
        let (now, by_agent_pool) = (self.now, self.by_agent_pool);
        for fleet in &mut self.fleets {
            let is_empty =
                |machine: &Machine| machine.drain.is_some_and(|drain| drain.returns && drain.ends <= now);
            if !fleet.machines.iter().any(is_empty) || by_agent_pool && !fleet.is_written(now) {
                continue;
            }
            fleet.machines.retain(|machine| !is_empty(machine));
            if by_agent_pool {
                fleet.deletes_until = now + DELETION;
            }
        }
    }

    /// Carries out an order, or says why nobody could.
    pub fn carry_out(&mut self, order: &Order) -> Result<Answer, String> {
        let now = self.now;
        let (drain, refusal) = (self.scenario.drain, self.scenario.refusal);
        match order {
            Order::Launch { pool: at, machines } => {
                let (pool, fleet) = (&self.scenario.pools[*at], &mut self.fleets[*at]);
                if fleet.machines.len() as u32 + machines > pool.max_nodes {
                    let there = fleet.machines.len();
                    return Err(format!(
                        "{machines} more of {} with {there} pass its maxNodes of {}",
                        pool.name, pool.max_nodes
                    ));
                }
                if self.by_agent_pool && !fleet.is_written(now) {
                    return Ok(Answer::NotNow);
                }
                let held = fleet.machines.iter().filter(|machine| machine.noticed.is_none()).count() as u32;
                let is_open = pool.open.at(now).unwrap_or(true);
                let there =
                    pool.available.as_ref().and_then(|available| available.at(now)).unwrap_or(u32::MAX);
                let given = if is_open { there.saturating_sub(held).min(*machines) } else { 0 };
                for _ in 0..given {
                    fleet.created += 1;
                    fleet.machines.push(Machine {
                        name: format!("{}-{:06}", pool.name, fleet.created),
                        serial: fleet.created,
                        asked: now,
                        node_at: now + pool.boot,
                        noticed: None,
                        dies_at: None,
                        drain: None,
                    });
                }
                let missing = machines - given;
                let booted = if given > 0 { now + pool.boot } else { now };
                let ends = if missing > 0 { booted.max(now + refusal.max(1)) } else { booted };
                fleet.launches.push(Launch { ends, missing });
            }
            Order::Return { pool, machine } => {
                let drain = Drain { ends: now + drain, not_after: i64::MAX, returns: true };
                self.machine(*pool, machine)?.drain = Some(drain);
            }
            Order::Drain { pool, machine, not_after } => {
                let drain = Drain { ends: now + drain, not_after: *not_after, returns: false };
                self.machine(*pool, machine)?.drain = Some(drain);
            }
            Order::KeepAfterAll { pool, machine } => self.machine(*pool, machine)?.drain = None,
            Order::Delete { pool, machines } => {
                for name in machines {
                    if self.machine(*pool, name)?.drain.is_none_or(|drain| drain.ends > now) {
                        return Err(format!("{name} is deleted and not drained"));
                    }
                }
                if !self.fleets[*pool].is_written(now) {
                    return Ok(Answer::NotNow);
                }
                for name in machines {
                    self.fleets[*pool].machines.retain(|machine| machine.name != *name);
                }
                self.fleets[*pool].deletes_until = now + DELETION;
            }
        }
        Ok(Answer::Accepted)
    }

    fn machine(&mut self, pool: usize, name: &str) -> Result<&mut Machine, String> {
        let fleet = &mut self.fleets[pool];
        fleet.machines.iter_mut().find(|it| it.name == name).ok_or_else(|| format!("{name} is not there"))
    }
}
