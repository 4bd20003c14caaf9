//! Spot that is kept beyond what is wanted while losses are recent: where Azure has just taken VMs, it mostly takes more.
//!
//! Known from the losses that status has anyway: an operator that starts anew keeps it on. Nothing is bought or kept on
//! demand for it, and what cannot be had is neither waited for nor stood in for.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Role, SpotPoolSpec};

use crate::draft::Draft;
use crate::placement::Placement;
use crate::plan::Situation;
use crate::ranking::losses;
use crate::snapshot::Snapshot;
use crate::time::later;

/// Units that agent pools have lost lately, and until when that counts.
fn recent(
    spec: &SpotPoolSpec,
    snapshot: &Snapshot,
    now: Timestamp,
) -> impl Iterator<Item = (u32, Timestamp)> {
    let lasts = spec.standby.after_loss.lasts;
    // One that cannot be used now was spot when it lost nodes, as far as is known.
    let pools = snapshot.agent_pools.iter().filter(|pool| pool.role != Ok(Role::OnDemand));
    let lost = pools.filter_map(move |pool| {
        let losses = losses(pool)?;
        Some((losses.count.saturating_mul(pool.units), later(losses.at, lasts)))
    });
    lost.filter(move |(_, until)| *until > now)
}

/// Units of spot to be kept beyond the target, where `spot` of what is wanted should be on spot.
pub(crate) fn units(spec: &SpotPoolSpec, snapshot: &Snapshot, spot: u32, now: Timestamp) -> u32 {
    let percent = spec.standby.after_loss.percent.clamp(0, 100) as u32;
    let lost = recent(spec, snapshot, now).fold(0u32, |sum, (units, _)| sum.saturating_add(units));
    let most = spot.saturating_mul(percent).div_ceil(100);
    lost.min(most).saturating_sub(spec.standby.units.max(0) as u32)
}

/// What of `placement` could not be placed and is missing after a loss only, of `missing` such units: it is told in a step of its
/// own, and nobody waits for it.
pub(crate) fn leave_out(placement: &mut Placement, missing: u32) -> u32 {
    let lacking = placement.unplaced.min(missing);
    placement.unplaced -= lacking;
    lacking
}

/// Says what is kept, until when, and of how many units nobody has any.
pub(crate) fn explain(situation: &Situation<'_>, lacking: u32, draft: &mut Draft) {
    let Situation { spec, snapshot, tally, now } = situation;
    if tally.after_loss == 0 {
        return;
    }
    let mut last = *now;
    for (_, until) in recent(spec, snapshot, *now) {
        draft.wake_at(until);
        last = last.max(until);
    }
    let more = match lacking {
        0 => String::new(),
        lacking => format!("; {lacking} of them no spot agent pool can take now"),
    };
    let message = format!(
        "{} units of spot more are kept until {last:.0} at most, because spot was lost lately, \
         standby.afterLoss.percent is {}{more}",
        tally.after_loss, spec.standby.after_loss.percent
    );
    draft.step(Reason::StandbyAfterLoss, None, message);
}
