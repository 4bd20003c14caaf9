//! A plan while it is being made.

use std::collections::BTreeMap;

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::{Mode, PlanStep, SpotPoolSpec};

use crate::action::Action;
use crate::loss::Restarts;
use crate::memory::Memory;
use crate::snapshot::{AgentPoolView, NodeView, Snapshot};

/// Steps of one reason that are told one by one: status must stay small where a thousand nodes wait for the same.
const TOLD: usize = 20;

/// Collects what the plan is made of while it is being made.
pub(crate) struct Draft {
    pub actions: Vec<Action>,
    pub steps: Vec<PlanStep>,
    pub memory: Memory,
    pub restarts: BTreeMap<String, Restarts>,
    pub wake: Option<Timestamp>,
}

impl Draft {
    pub fn step(&mut self, reason: Reason, agent_pool: Option<&str>, message: impl Into<String>) {
        self.steps.push(PlanStep {
            reason,
            agent_pool: agent_pool.map(str::to_owned),
            message: message.into(),
        });
    }

    /// Takes the request to drain `node` back.
    pub fn withdraw(&mut self, node: &NodeView, reason: Reason, message: impl Into<String>) {
        self.step(reason, Some(&node.agent_pool), message);
        self.actions.push(Action::WithdrawDrain { node: node.name.clone(), reason });
    }

    /// The actions to carry out and those to withhold. What is withheld has not happened: memory does not say so.
    pub fn hold_back(&mut self, spec: &SpotPoolSpec, snapshot: &Snapshot) -> (Vec<Action>, Vec<Action>) {
        let actions = std::mem::take(&mut self.actions);
        if acts(spec) {
            return (actions, Vec::new());
        }
        let before = &snapshot.memory;
        self.memory.failed_back_at = before.failed_back_at;
        self.memory.relapses.clone_from(&before.relapses);
        self.memory.paused_until = before.paused_until;
        self.memory.probe.clone_from(&before.probe);
        self.memory.answered.clone_from(&before.answered);
        self.restarts = kept_restarts(snapshot);
        (Vec::new(), actions)
    }

    pub fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }
}

/// Whether the plan is carried out.
pub(crate) fn acts(spec: &SpotPoolSpec) -> bool {
    spec.mode == Mode::Enforce && !spec.suspend
}

/// `steps`, after the one that sums up of each reason the first ones, and how many more there are.
pub(crate) fn told(steps: Vec<PlanStep>) -> Vec<PlanStep> {
    let mut counts: Vec<(Reason, usize)> = Vec::new();
    let mut steps = steps.into_iter();
    let mut told: Vec<PlanStep> = steps.next().into_iter().collect();
    for step in steps {
        let known = counts.iter().position(|(reason, _)| *reason == step.reason);
        let at = known.unwrap_or(counts.len());
        if known.is_none() {
            counts.push((step.reason, 0));
        }
        counts[at].1 += 1;
        if counts[at].1 <= TOLD {
            told.push(step);
        }
    }
    for (reason, count) in counts.into_iter().filter(|(_, count)| *count > TOLD) {
        let message = format!("{} more like these", count - TOLD);
        told.push(PlanStep { reason, agent_pool: None, message });
    }
    told
}

/// Attempts are remembered as long as there is something to start.
pub(crate) fn kept_restarts(snapshot: &Snapshot) -> BTreeMap<String, Restarts> {
    let kept = |pool: &AgentPoolView| {
        // Started ones are on their way up until they are ready, or deallocated again.
        let is_on = pool.nodes.iter().any(|node| !node.ready && node.drain.is_none());
        Some((pool.name.clone(), pool.restarts.filter(|_| is_on)?))
    };
    snapshot.agent_pools.iter().filter_map(kept).collect()
}
