//! What a drill must know of workloads: whose pods it would move, and which budgets are in trouble already.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{Stays, matches};
use super::{Known, Workloads};

/// What a drill must know of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drilled {
    /// How many pods a drain would move, by node and namespace.
    pub pods: BTreeMap<String, BTreeMap<String, u32>>,
    /// Disruption budgets of pods on these nodes, or that wait for a node, with fewer healthy pods than they ask for.
    pub unready_budgets: Vec<String>,
}

impl Workloads {
    /// What is known of workloads on these nodes; nothing until all has been read.
    pub fn drilled(&self, nodes: &BTreeSet<&str>) -> Option<Drilled> {
        let known = self.known();
        known.complete().then(|| known.drilled(nodes))
    }
}

impl Known {
    fn drilled(&self, nodes: &BTreeSet<&str>) -> Drilled {
        let mut drilled = Drilled::default();
        for pod in self.pods.known.values().filter(|pod| pod.stays == Stays::No) {
            if let Some(node) = pod.node.as_deref().filter(|node| nodes.contains(node)) {
                let of_node = drilled.pods.entry(node.to_owned()).or_default();
                *of_node.entry(pod.pod.namespace.to_string()).or_default() += 1;
            }
        }
        let unready =
            self.budgets.known.iter().filter(|(_, budget)| budget.read.healthy < budget.read.desired);
        for ((namespace, name), budget) in unready {
            let Some(selector) = &budget.read.selector else { continue };
            // What was evicted waits for a node, and is of the drill all the same.
            let is_concerned = self.pods.known.values().any(|pod| {
                pod.pod.namespace == *namespace
                    && pod.node.as_deref().is_none_or(|node| nodes.contains(node))
                    && matches(selector, &pod.labels)
            });
            if is_concerned {
                let (healthy, desired) = (budget.read.healthy, budget.read.desired);
                drilled.unready_budgets.push(format!("{namespace}/{name} ({healthy} of {desired})"));
            }
        }
        drilled.unready_budgets.sort();
        drilled
    }
}
