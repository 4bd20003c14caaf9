//! Writes that Azure has refused, and that are not sent again at once: each status of ours wakes the next plan, which would.

use std::collections::BTreeMap;
use std::time::Duration;

use spotpool_core::Action;
use tokio::time::Instant;

/// How long the same write rests. Any other one, as a new notice calls for it, does not wait.
pub(super) const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// The last one of each agent pool, and when it was refused.
#[derive(Default)]
pub(super) struct Refused(BTreeMap<String, (Action, Instant)>);

impl Refused {
    /// Takes in that it was refused now.
    pub fn note(&mut self, action: Action) {
        if let Some(agent_pool) = action.agent_pool().map(str::to_owned) {
            self.0.insert(agent_pool, (action, Instant::now()));
        }
    }

    /// Whether it is to wait.
    pub fn holds(&self, action: &Action) -> bool {
        let last = action.agent_pool().and_then(|agent_pool| self.0.get(agent_pool));
        last.is_some_and(|(refused, at)| refused == action && at.elapsed() < AFTER_REFUSAL)
    }
}
