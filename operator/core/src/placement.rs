//! Which agent pools take new machines.

use std::cmp::Ordering;

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::SpotPoolSpec;
use spotpool_crds::spot_pool::{Placement as Policy, Role};

use crate::caps::{Bound, Caps};
use crate::ranking::{Rank, likeness, rank, with_concentration};
use crate::signals;
use crate::snapshot::{AgentPoolView, Snapshot};
use crate::stall::Stall;
use crate::tally::kept;
use crate::units::{beyond, waste};

/// New machines for one agent pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Index of the agent pool.
    pub pool: usize,
    /// How many.
    pub new: u32,
}

/// What is missing of one role.
#[derive(Clone, Debug)]
pub(crate) struct Need<'a> {
    role: Role,
    /// Units that are missing.
    units: u32,
    /// Units of the role that there should be in all.
    target: u32,
    /// Units that wait for no agent pool that has an operation running.
    urgent: u32,
    /// Agent pools that were asked and do not bring what they should.
    stalls: &'a [Stall],
    /// What bounds on-demand, and whose kept nodes are nobody's fallback.
    limit: Option<Limit<'a>>,
    /// Only of agent pools that are none of these, and whose nodes are not at risk, in whole nodes that are worth no more.
    elsewhere: Option<Vec<usize>>,
}

/// The most machines that may stand in for spot.
#[derive(Clone, Debug)]
pub(crate) struct Limit<'a> {
    pub spec: &'a SpotPoolSpec,
    /// Units that the base still lacks: no limit holds for them.
    pub for_base: u32,
    /// Units that are no fallback.
    pub base: u32,
    /// Machines beyond these.
    pub most: u32,
    /// What they may cost.
    pub caps: &'a Caps,
}

impl<'a> Need<'a> {
    /// Spot.
    pub fn spot(units: u32, target: u32, urgent: u32, stalls: &'a [Stall]) -> Self {
        Self { role: Role::Spot, units, target, urgent, stalls, limit: None, elsewhere: None }
    }

    /// Spot ahead of a loss that may come, of agent pools that nothing else is `asked` of. It never waits.
    pub fn ahead(units: u32, target: u32, stalls: &'a [Stall], asked: &Placement) -> Self {
        let asked = asked.placed.iter().map(|placed| placed.pool).collect();
        Self { elsewhere: Some(asked), ..Self::spot(units, target, units, stalls) }
    }

    /// On-demand, inside a limit. It never waits.
    pub fn on_demand(units: u32, limit: Limit<'a>, stalls: &'a [Stall]) -> Self {
        let limit = Some(limit);
        Self { role: Role::OnDemand, units, target: units, urgent: units, stalls, limit, elsewhere: None }
    }
}

/// What could be placed, and why not all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    pub placed: Vec<Placed>,
    /// What the placed machines are worth.
    pub units: u32,
    /// Units that the limit leaves out.
    pub over_limit: u32,
    /// Which limit, and for which agent pool.
    pub bound_by: Option<(Bound, usize)>,
    /// Units of growth that wait for an agent pool with an operation running.
    pub waiting: Vec<(usize, u32)>,
    /// Units that no agent pool can take now.
    pub unplaced: u32,
    /// Agent pools that were passed over, with the reason.
    pub passed_over: Vec<(usize, Reason)>,
}

impl Placement {
    /// Units that wait.
    pub fn waits(&self) -> u32 {
        self.waiting.iter().map(|(_, units)| units).sum()
    }
}

/// Machines on demand that are paid for, against the most that may stand in for spot.
struct Paid<'a> {
    base: u32,
    most: u32,
    caps: &'a Caps,
    pools: Vec<Bought>,
}

/// What of it is of one agent pool.
struct Bought {
    /// Index of the agent pool.
    pool: usize,
    units: u32,
    kept: u32,
    /// Machines that an autoscaler brings in any case.
    least: u32,
    /// Machines, those that are placed here included.
    machines: u32,
}

impl Bought {
    fn with(&self, more: u32) -> u32 {
        (self.machines + more).max(self.least)
    }
}

impl<'a> Paid<'a> {
    fn of(limit: &Limit<'a>, pools: &[AgentPoolView]) -> Self {
        let on_demand = pools.iter().enumerate().filter(|(_, pool)| pool.role == Ok(Role::OnDemand));
        let bought = on_demand.map(|(index, pool)| Bought {
            pool: index,
            units: pool.units,
            kept: kept(limit.spec, pool),
            least: pool.autoscaler.map_or(0, |autoscaler| autoscaler.min),
            machines: pool.committed(),
        });
        Self { base: limit.base, most: limit.most, caps: limit.caps, pools: bought.collect() }
    }

    fn add(&mut self, pool: usize) {
        if let Some(bought) = self.pools.iter_mut().find(|bought| bought.pool == pool) {
            bought.machines += 1;
        }
    }

    /// Tells each candidate whether one machine more of it stays inside the limit.
    fn tell(&self, candidates: &mut [Candidate]) {
        // It depends on the units alone, unless there are fewer machines than there are to be.
        let mut known: Vec<(u32, Option<Bound>)> = Vec::new();
        let evenly = self.pools.iter().all(|bought| bought.machines >= bought.least.max(bought.kept));
        let alike = evenly && !self.caps.hold();
        for candidate in candidates {
            let found = known.iter().find(|(units, _)| alike && *units == candidate.units);
            candidate.bound = found.map_or_else(|| self.bound(candidate.rank.pool), |(_, bound)| *bound);
            if found.is_none() {
                known.push((candidate.units, candidate.bound));
            }
        }
    }

    fn bound(&self, pool: usize) -> Option<Bound> {
        let one = |bought: &Bought| u32::from(bought.pool == pool);
        let machines = self.pools.iter().map(|it| (it.units, it.kept, it.with(one(it))));
        if beyond(self.base, machines) > self.most {
            return Some(Bound::Nodes);
        }
        self.caps.bound(pool, self.pools.iter().map(|it| it.with(one(it))))
    }
}

struct Candidate {
    rank: Rank,
    /// Index among all of the role.
    place: usize,
    /// So many were asked for without an answer.
    unanswered: u32,
    losing: bool,
    /// Has an operation running: cannot be asked now, and may be waited for.
    busy: bool,
    /// The limit that one machine more would pass.
    bound: Option<Bound>,
    /// What one machine is worth.
    units: u32,
    /// Units that stay or are on their way, those placed here included.
    stands: u32,
    /// Units of all agent pools, by how likely they go when one of these goes.
    together: f64,
    room: u32,
    new: u32,
}

/// Gives what is needed, machine after machine, to the best agent pool that can take a write now.
///
/// An agent pool that is losing nodes right now comes last, and one that has its share of the target comes after those
/// that have not. An avoided agent pool is passed over. So is a busy one by what is urgent; the rest waits for it where it
/// is cheaper than all that could be asked now.
pub(crate) fn place(policy: &Policy, snapshot: &Snapshot, need: &Need<'_>, now: Timestamp) -> Placement {
    let mut placement = Placement { unplaced: need.units, ..Placement::default() };
    if need.units == 0 {
        return placement;
    }
    let pools = &snapshot.agent_pools;
    let ranks = rank(policy, snapshot, need.role, now);
    let standing: Vec<(usize, u32)> = ranks
        .iter()
        .map(|rank| {
            let pool = &pools[rank.pool];
            // Whoever is asked to drain stays, now that more is needed.
            let stands = pool.units_of(|node| node.noticed.is_none());
            (rank.pool, stands + pool.arriving(now) * pool.units)
        })
        .collect();
    // Asked again and again below, once for each machine.
    let alike: Vec<Vec<f64>> = standing
        .iter()
        .map(|(one, _)| standing.iter().map(|(other, _)| likeness(&pools[*one], &pools[*other])).collect())
        .collect();
    let mut all: u32 = standing.iter().map(|(_, units)| units).sum();
    let mut candidates = Vec::new();
    for (place, (rank, (_, stands))) in ranks.into_iter().zip(&standing).enumerate() {
        let pool = &pools[rank.pool];
        let is_left_out = |asked: &Vec<usize>| asked.contains(&rank.pool) || signals::is_at_risk(pool);
        if need.elsewhere.as_ref().is_some_and(is_left_out) {
            continue;
        }
        if pool.busy {
            placement.passed_over.push((rank.pool, Reason::AgentPoolBusy));
        }
        match room(pool, need.stalls, now) {
            Ok(room) => candidates.push(Candidate {
                busy: pool.busy,
                bound: None,
                losing: pool.nodes.iter().any(|node| node.noticed.is_some() || node.lost.is_some()),
                unanswered: pool.unanswered,
                units: pool.units,
                stands: *stands,
                place,
                together: standing.iter().zip(&alike[place]).map(|((_, n), like)| like * f64::from(*n)).sum(),
                room,
                new: 0,
                rank,
            }),
            Err(_) if pool.busy => {}
            Err(reason) => placement.passed_over.push((rank.pool, reason)),
        }
    }
    let share = share(policy, need.role, need.target);
    // A thousand machines may have to be placed: what each of them asks must be cheap.
    let mut paid = need.limit.as_ref().map(|limit| (limit.for_base, Paid::of(limit, pools)));
    while placement.unplaced > 0 {
        let missing = placement.unplaced;
        if let Some((_, paid)) = paid.as_ref().filter(|(for_base, _)| placement.units >= *for_base) {
            paid.tell(&mut candidates);
        }
        let cost = |it: &Candidate| {
            let cost = with_concentration(policy, it.rank.cost, it.together, all);
            cost * waste(policy.strategy, it.units, missing)
        };
        // Where the request may still be on its way it is made again: Azure takes one of the two. Of another agent pool it
        // would take both.
        let class =
            |it: &Candidate| (it.new >= it.unanswered, it.losing, it.stands + it.units.min(missing) > share);
        let is_urgent = need.units - missing < need.urgent;
        let open = |it: &&Candidate| it.new < it.room;
        let is_bound = candidates.iter().filter(open).all(|it| it.bound.is_some());
        if is_bound && candidates.iter().any(|it| open(&it)) {
            // Nodes that the one limit would let by are named first.
            let bounds = candidates.iter().filter(open).filter_map(|it| Some((it.bound?, it)));
            let first = bounds.min_by(|(a, one), (b, other)| {
                let by_limit = (*a == Bound::Nodes).cmp(&(*b == Bound::Nodes));
                by_limit.then(one.rank.cost.total_cmp(&other.rank.cost)).then(one.place.cmp(&other.place))
            });
            placement.bound_by = first.map(|(bound, it)| (bound, it.rank.pool));
            placement.over_limit = std::mem::take(&mut placement.unplaced);
            break;
        }
        // Compared by what does not change while nodes are dealt out: else the next plan could see it otherwise.
        let busy = candidates.iter().filter(open).filter(|it| it.busy).map(|it| it.rank.cost);
        let cheapest_busy = busy.min_by(f64::total_cmp).filter(|_| !is_urgent);
        let is_worth_the_wait = |it: &Candidate| cheapest_busy.is_some_and(|busy| busy < it.rank.cost);
        let is_too_much = |it: &Candidate| need.elsewhere.is_some() && it.units > missing;
        let may_be_asked =
            |it: &&Candidate| !it.busy && it.bound.is_none() && !is_worth_the_wait(it) && !is_too_much(it);
        let free = candidates.iter().filter(open).filter(may_be_asked).min_by(|a, b| {
            let by_class = class(a).cmp(&class(b));
            let by_cost = by_class.then_with(|| cost(a).total_cmp(&cost(b)));
            by_cost.then(a.stands.cmp(&b.stands)).then(a.rank.pool.cmp(&b.rank.pool))
        });
        let wait_for = || {
            let busy = candidates.iter().filter(open).filter(|it| it.busy && !is_urgent);
            busy.min_by(|a, b| a.rank.cost.total_cmp(&b.rank.cost).then(a.rank.pool.cmp(&b.rank.pool)))
        };
        let best = free.or_else(wait_for);
        let Some(chosen) = best.and_then(|best| candidates.iter().position(|it| it.place == best.place))
        else {
            break;
        };
        if candidates[chosen].busy {
            let units = candidates[chosen].units.min(missing);
            match placement.waiting.iter_mut().find(|(pool, _)| *pool == candidates[chosen].rank.pool) {
                Some((_, waits)) => *waits += units,
                None => placement.waiting.push((candidates[chosen].rank.pool, units)),
            }
        }
        let units = candidates[chosen].units;
        if let Some((_, paid)) = &mut paid {
            paid.add(candidates[chosen].rank.pool);
        }
        candidates[chosen].new += 1;
        candidates[chosen].stands += units;
        let like = &alike[candidates[chosen].place];
        for candidate in &mut candidates {
            candidate.together += like[candidate.place] * f64::from(units);
        }
        all += units;
        if !candidates[chosen].busy {
            placement.units += units;
        }
        placement.unplaced = missing.saturating_sub(units);
    }
    drop_needless(need, &mut candidates, &mut placement);
    if placement.unplaced > 0 {
        // Full now, and by a limit that only a person can raise.
        let is_full = |it: &&Candidate| {
            let pool = &pools[it.rank.pool];
            is_bound_by_autoscaler(pool) && !it.busy && pool.committed() + it.new >= pool.most()
        };
        let full = candidates.iter().filter(is_full).map(|it| it.rank.pool);
        placement.passed_over.extend(full.map(|pool| (pool, Reason::AutoscalerAtMaximum)));
    }
    placement.placed = candidates
        .into_iter()
        .filter(|candidate| candidate.new > 0 && !candidate.busy)
        .map(|candidate| Placed { pool: candidate.rank.pool, new: candidate.new })
        .collect();
    placement.placed.sort_by_key(|placed| placed.pool);
    placement.passed_over.sort_by_key(|(pool, _)| *pool);
    placement
}

/// The last machine may bring more than was missing: smaller ones that were placed before are not needed then, the
/// dearest first.
fn drop_needless(need: &Need, candidates: &mut [Candidate], placement: &mut Placement) {
    let mut excess = placement.units.saturating_sub(need.units);
    candidates.sort_by(|one, other| {
        let by_cost = (one.losing, one.rank.cost).partial_cmp(&(other.losing, other.rank.cost));
        by_cost.unwrap_or(Ordering::Equal).then(one.rank.pool.cmp(&other.rank.pool)).reverse()
    });
    for candidate in candidates.iter_mut().filter(|candidate| !candidate.busy) {
        let needless = (excess / candidate.units).min(candidate.new);
        candidate.new -= needless;
        excess -= needless * candidate.units;
        placement.units -= needless * candidate.units;
    }
}

/// How many units of `target` one agent pool takes before the others. On-demand is not taken back: no share there.
pub(crate) fn share(policy: &Policy, role: Role, target: u32) -> u32 {
    match role {
        Role::OnDemand => u32::MAX,
        Role::Spot => {
            let percent = policy.max_share_per_pool.clamp(1, 100) as u32;
            (target * percent).div_ceil(100).max(1)
        }
    }
}

/// Whether it is the autoscaler that allows no more.
fn is_bound_by_autoscaler(pool: &AgentPoolView) -> bool {
    pool.autoscaler.is_some_and(|autoscaler| autoscaler.max < pool.max_nodes)
}

/// How many new machines the agent pool may be asked for now, or why none.
fn room(pool: &AgentPoolView, stalls: &[Stall], now: Timestamp) -> Result<u32, Reason> {
    let room = pool.most().saturating_sub(pool.committed());
    let too_dear = |most: Decimal| pool.market.hourly_price.is_none_or(|price| price > most);
    if pool.avoided_until.is_some_and(|until| until > now) {
        Err(Reason::AgentPoolAvoided)
    } else if stalls.iter().any(|stall| stall.agent_pool == pool.name) {
        Err(Reason::ScaleUpStalled)
    } else if pool.max_hourly_price.is_some_and(too_dear) {
        Err(Reason::PriceAboveCeiling)
    } else if room == 0 {
        Err(if is_bound_by_autoscaler(pool) {
            Reason::AutoscalerAtMaximum
        } else {
            Reason::NoCandidateWithRoom
        })
    } else if pool.refused_at.is_none() {
        Ok(room)
    } else if pool.arriving(now) == 0 && !pool.busy {
        // Azure had nothing for it: one machine shows whether that has changed.
        Ok(1)
    } else {
        Err(Reason::Probing)
    }
}
