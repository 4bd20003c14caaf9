//! Which agent pools take new machines.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role;

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
    pool: usize,
    losing: bool,
    staying: u32,
    room: u32,
    new: u32,
}

/// Spreads `wanted` new machines of `role` over the agent pools that can take a write now.
///
/// Losses are correlated, so machines go where the fewest are, and an agent pool that is losing nodes right
/// now comes last. A busy or avoided agent pool is passed over, never waited for: an emergency cannot wait.
pub(crate) fn place(snapshot: &Snapshot, role: Role, wanted: u32, now: Timestamp) -> Placement {
    let mut placement = Placement { unplaced: wanted, ..Placement::default() };
    if wanted == 0 {
        return placement;
    }
    let mut candidates = Vec::new();
    for (index, pool) in snapshot.agent_pools.iter().enumerate().filter(|(_, pool)| pool.role == Ok(role)) {
        let room = pool.max_nodes.saturating_sub(snapshot.committed(pool));
        if let Some(reason) = passed_over(pool, room, now) {
            placement.passed_over.push((index, reason));
            continue;
        }
        candidates.push(Candidate {
            pool: index,
            losing: snapshot.nodes_of(pool).any(|node| node.noticed),
            staying: snapshot.nodes_of(pool).filter(|node| node.stays()).count() as u32
                + snapshot.creating(pool),
            room,
            new: 0,
        });
    }
    while placement.unplaced > 0 {
        let best = candidates
            .iter_mut()
            .filter(|candidate| candidate.new < candidate.room)
            .min_by_key(|candidate| (candidate.losing, candidate.staying + candidate.new, candidate.pool));
        let Some(best) = best else { break };
        best.new += 1;
        placement.unplaced -= 1;
    }
    placement.placed = candidates
        .into_iter()
        .filter(|candidate| candidate.new > 0)
        .map(|candidate| Placed { pool: candidate.pool, new: candidate.new })
        .collect();
    placement
}

fn passed_over(pool: &AgentPoolView, room: u32, now: Timestamp) -> Option<Reason> {
    if pool.avoided_until.is_some_and(|until| until > now) {
        Some(Reason::AgentPoolAvoided)
    } else if pool.busy {
        Some(Reason::AgentPoolBusy)
    } else if room == 0 {
        Some(Reason::NoCandidateWithRoom)
    } else {
        None
    }
}
