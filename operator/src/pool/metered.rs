//! What metrics are told of a reconciliation.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use spotpool_core::{Action, Plan};
use spotpool_crds::{SpotPool, SpotPoolStatus};

use super::act::Outcome;
use super::controller::Context;
use super::drains::News;
use super::gather::Gathered;

/// One reconciliation.
pub(super) struct Metered<'a> {
    pub context: &'a Context,
    pub pool: &'a SpotPool,
    pub gathered: &'a Gathered,
    pub plan: &'a Plan,
}

impl Metered<'_> {
    fn name(&self) -> (String, String) {
        (self.pool.namespace().unwrap_or_default(), self.pool.name_any())
    }

    /// What has happened, which stays so if the status cannot be written.
    pub fn count(&self, outcome: &Outcome, news: &News, now: Timestamp) {
        let (metrics, (namespace, pool)) = (&self.context.metrics, self.name());
        for action in &outcome.done {
            metrics.action(action.reason());
        }
        let is_sent = |action: &&Action| {
            let refused = action.agent_pool().and_then(|agent_pool| outcome.failed.get(agent_pool));
            outcome.done.contains(action) || refused.is_some_and(|error| !error.is_local())
        };
        for action in self.plan.actions.iter().filter(is_sent) {
            metrics.asked(&namespace, &pool, action);
        }
        let snapshot = &self.gathered.snapshot;
        let come = {
            let mut memory = self.context.memory();
            memory.entry(self.pool.uid().unwrap_or_default()).or_default().pace.look(snapshot, self.plan, now)
        };
        for name in &news.noticed {
            if let Some(node) = snapshot.nodes().find(|node| node.name == *name) {
                metrics.noticed(&namespace, &pool, &node.agent_pool);
            }
        }
        for end in &news.ended {
            metrics.notice_drain(&namespace, &pool, end);
        }
        // A clock that was set back measures nothing.
        let time = |after: SignedDuration| std::time::Duration::try_from(after).unwrap_or_default();
        if let Some(after) = come.replaced_after {
            let trace =
                self.context.parts.traces.exemplar(&self.pool.uid().unwrap_or_default(), self.gathered);
            metrics.replaced(&namespace, &pool, time(after), trace);
        }
        for (agent_pool, after) in come.allocated {
            metrics.allocated(&namespace, &pool, &agent_pool, time(after));
        }
    }

    /// How things stand by the status that was written.
    pub fn tell(&self, before: &SpotPoolStatus, after: &SpotPoolStatus, floor_cost: Option<f64>) {
        let (metrics, (namespace, pool)) = (&self.context.metrics, self.name());
        metrics.capacity(&namespace, &pool, after);
        metrics.agent_pools(&namespace, &pool, before, after);
        metrics.conditions(&namespace, &pool, after);
        metrics.money(&namespace, &pool, &self.gathered.snapshot, self.plan);
        let by_workload = after.money.as_ref().and_then(|money| money.by_workload.as_ref());
        metrics.workload_month(&namespace, &pool, by_workload);
        metrics.budgets(&namespace, &pool, after, floor_cost);
        metrics.agents(&namespace, &pool, self.gathered.survey.agents.as_ref());
        metrics.objective(&namespace, &pool, self.plan.objective.as_ref());
        for (agent_pool, count) in &self.plan.unannounced {
            metrics.lost_without_notice(&namespace, &pool, agent_pool, *count);
        }
    }
}
