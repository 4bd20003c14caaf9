//! Growth waits for a better agent pool that merely has an operation running; what was lost or refused never waits.

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::spot_pool::Role;

use crate::fallback::{carried, lost};
use crate::plan::Situation;
use crate::time::{later, later_by};

/// Without `fallback`: as long as `fallback.growthAfter` is by default.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// What of the missing spot waits for a busy agent pool, and until when.
pub(crate) struct Patience {
    /// Units that wait for nobody.
    pub urgent: u32,
    /// When the rest is urgent too. Standby alone has no such time.
    pub until: Option<Timestamp>,
}

impl Patience {
    /// For `missing` units of spot.
    pub fn of(situation: &Situation<'_>, missing: u32) -> Self {
        let Situation { spec, snapshot, tally, now } = situation;
        let lost = lost(situation);
        let memory = &snapshot.memory;
        let is_growth = tally.wanted > carried(tally) + lost;
        let since = is_growth.then(|| memory.growth_since.unwrap_or(*now));
        let was_refused = snapshot.agent_pools.iter().any(|pool| {
            let refused = pool.refused_at.zip(since);
            pool.role == Ok(Role::Spot) && refused.is_some_and(|(at, since)| at >= since)
        });
        let until = since.map(|since| match &spec.fallback {
            Some(fallback) => later(since, fallback.growth_after),
            None => later_by(since, PATIENCE),
        });
        let is_over = until.is_some_and(|until| until <= *now);
        // While Azure takes nodes nothing waits, standby neither.
        let all = was_refused || is_over || tally.evicting > 0;
        // For what is on its way already nobody needs to be asked again.
        let lost = lost.saturating_sub(tally.spot_have.saturating_sub(tally.spot_ready));
        Self { urgent: if all { missing } else { lost.min(missing) }, until }
    }
}
