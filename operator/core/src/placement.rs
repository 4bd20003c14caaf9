//! Which agent pools take new machines.

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Placement as Policy, Role};

use crate::ranking::{Rank, likeness, rank, with_concentration};
use crate::snapshot::{AgentPoolView, Snapshot};

/// New machines for one agent pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Index of the agent pool.
    pub pool: usize,
    /// How many.
    pub new: u32,
}

/// What could be placed, and why not all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    pub placed: Vec<Placed>,
    /// What no agent pool can take now.
    pub unplaced: u32,
    /// Agent pools that were passed over, with the reason.
    pub passed_over: Vec<(usize, Reason)>,
}

impl Placement {
    pub fn total(&self) -> u32 {
        self.placed.iter().map(|placed| placed.new).sum()
    }
}

struct Candidate {
    rank: Rank,
    losing: bool,
    /// Machines that stay or are on their way, those placed here included.
    stands: u32,
    /// Machines of all agent pools, by how likely they go when one of these goes.
    together: f64,
    room: u32,
    new: u32,
}

/// Gives `wanted` new machines of `role`, one after another, to the best agent pool that can take a write now;
/// `target` is how many of the role there should be in all.
///
/// An agent pool that is losing nodes right now comes last, and one that has its share of `target` comes after those
/// that have not. A busy or avoided agent pool is passed over, never waited for: an emergency cannot wait.
pub(crate) fn place(
    policy: &Policy,
    snapshot: &Snapshot,
    role: Role,
    wanted: u32,
    target: u32,
    now: Timestamp,
) -> Placement {
    let mut placement = Placement { unplaced: wanted, ..Placement::default() };
    if wanted == 0 {
        return placement;
    }
    let pools = &snapshot.agent_pools;
    let ranks = rank(policy, snapshot, role, now);
    let standing: Vec<(usize, u32)> = ranks
        .iter()
        .map(|rank| {
            let pool = &pools[rank.pool];
            let staying = pool.staying();
            (rank.pool, staying + pool.creating())
        })
        .collect();
    let mut all: u32 = standing.iter().map(|(_, machines)| machines).sum();
    let mut candidates = Vec::new();
    for (rank, (_, stands)) in ranks.into_iter().zip(&standing) {
        let pool = &pools[rank.pool];
        let committed = pool.committed();
        match room(pool, committed, pool.creating(), now) {
            Ok(room) => candidates.push(Candidate {
                losing: pool.nodes.iter().any(|node| node.noticed.is_some()),
                stands: *stands,
                together: standing
                    .iter()
                    .map(|(other, n)| likeness(pool, &pools[*other]) * f64::from(*n))
                    .sum(),
                room,
                new: 0,
                rank,
            }),
            Err(reason) => placement.passed_over.push((rank.pool, reason)),
        }
    }
    let share = share(policy, role, target);
    while placement.unplaced > 0 {
        let cost = |it: &Candidate| with_concentration(policy, it.rank.cost, it.together, all);
        let class = |it: &Candidate| (it.losing, it.stands >= share);
        let best =
            candidates.iter().enumerate().filter(|(_, it)| it.new < it.room).min_by(|(_, a), (_, b)| {
                let by_class = class(a).cmp(&class(b));
                let by_cost = by_class.then_with(|| cost(a).total_cmp(&cost(b)));
                by_cost.then(a.stands.cmp(&b.stands)).then(a.rank.pool.cmp(&b.rank.pool))
            });
        let Some(chosen) = best.map(|(index, _)| index) else { break };
        candidates[chosen].new += 1;
        candidates[chosen].stands += 1;
        let own = &pools[candidates[chosen].rank.pool];
        for candidate in &mut candidates {
            candidate.together += likeness(&pools[candidate.rank.pool], own);
        }
        all += 1;
        placement.unplaced -= 1;
    }
    placement.placed = candidates
        .into_iter()
        .filter(|candidate| candidate.new > 0)
        .map(|candidate| Placed { pool: candidate.rank.pool, new: candidate.new })
        .collect();
    placement.placed.sort_by_key(|placed| placed.pool);
    placement.passed_over.sort_by_key(|(pool, _)| *pool);
    placement
}

/// How many of `target` one agent pool takes before the others. On-demand is not taken back: no share there.
fn share(policy: &Policy, role: Role, target: u32) -> u32 {
    match role {
        Role::OnDemand => u32::MAX,
        Role::Spot => {
            let percent = policy.max_share_per_pool.clamp(1, 100) as u32;
            (target * percent).div_ceil(100).max(1)
        }
    }
}

/// How many new machines the agent pool may be asked for now, or why none.
fn room(pool: &AgentPoolView, committed: u32, creating: u32, now: Timestamp) -> Result<u32, Reason> {
    let room = pool.max_nodes.saturating_sub(committed);
    let too_dear = |most: Decimal| pool.market.hourly_price.is_none_or(|price| price > most);
    if pool.avoided_until.is_some_and(|until| until > now) {
        Err(Reason::AgentPoolAvoided)
    } else if pool.busy {
        Err(Reason::AgentPoolBusy)
    } else if pool.max_hourly_price.is_some_and(too_dear) {
        Err(Reason::PriceAboveCeiling)
    } else if room == 0 {
        Err(Reason::NoCandidateWithRoom)
    } else if pool.refused_at.is_none() {
        Ok(room)
    } else if creating == 0 {
        // Azure had nothing for it: one machine shows whether that has changed.
        Ok(1)
    } else {
        Err(Reason::Probing)
    }
}
