//! What AKS does to an agent pool besides scaling it: upgrades of Kubernetes and node images, a start after a stop.
//!
//! Meanwhile nodes are cordoned, booted anew or stand in for others, which is neither a loss nor a surplus: nothing is
//! bought for them and nothing is given back until it is over. A node that Azure takes away meanwhile is lost all the
//! same.

use spotpool_crds::Reason;

use crate::draft::Draft;
use crate::plan::Situation;
use crate::snapshot::AgentPoolView;

/// What AKS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// An upgrade of Kubernetes or of the node image. Surge nodes are there for its time.
    Upgrading,
    /// A start after a stop.
    Starting,
}

impl Upkeep {
    /// By Azure's `provisioningState`.
    pub fn of(provisioning_state: &str) -> Option<Self> {
        match provisioning_state {
            "Upgrading" | "UpgradingNodeImageVersion" => Some(Self::Upgrading),
            "Starting" => Some(Self::Starting),
            _ => None,
        }
    }
}

/// Machines that count as there and ready in `pool`, although not all of them are: those that stay or come, surge aside.
pub(crate) fn carried(pool: &AgentPoolView) -> Option<u32> {
    pool.upkeep?;
    Some((pool.staying() + pool.creating()).min(pool.count))
}

/// Whether nothing is to be moved now, and says so.
pub(crate) fn explain(situation: &Situation<'_>, draft: &mut Draft) {
    for pool in situation.snapshot.agent_pools.iter().filter(|pool| pool.role.is_ok()) {
        let what = match pool.upkeep {
            Some(Upkeep::Upgrading) => "is being upgraded",
            Some(Upkeep::Starting) => "is being started",
            None => continue,
        };
        let message = format!(
            "{} {what} by AKS: its nodes count as they did, and nothing is given back meanwhile",
            pool.name
        );
        draft.step(Reason::AgentPoolInUpkeep, Some(&pool.name), message);
    }
}

/// Whether AKS is at work on any agent pool.
pub(crate) fn is_under_way(situation: &Situation<'_>) -> bool {
    situation.snapshot.agent_pools.iter().any(|pool| pool.role.is_ok() && pool.upkeep.is_some())
}
