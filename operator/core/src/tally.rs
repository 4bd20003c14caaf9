//! What there is and what there should be, in units.

use jiff::Timestamp;
use spotpool_crds::spot_pool::{Adoption, Role, SpotPoolSpec};

use crate::snapshot::{AgentPoolView, NodeView, Snapshot};
use crate::{after_loss, signals, upkeep};

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
    pub fn of(spec: &SpotPoolSpec, snapshot: &Snapshot, floor: u32, now: Timestamp) -> Self {
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

    /// What is ready in truth, spot and on-demand: what AKS is at work on, or a drill, is not.
    pub fn serving_by_role(&self) -> [u32; 2] {
        let [spot, on_demand] = self.set_apart;
        [self.spot_ready.saturating_sub(spot), self.on_demand_ready.saturating_sub(on_demand)]
    }

    /// Both together.
    pub fn serving(&self) -> u32 {
        self.serving_by_role().iter().sum()
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
