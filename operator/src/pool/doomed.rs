//! What one node's notice tells of others: nodes with a silent agent are known from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_crds::ProviderId;

use super::gather::notice;

/// Instances that notices name, by scale set, with the events.
pub struct Doomed(BTreeMap<String, ScaleSet>);

#[derive(Default)]
struct ScaleSet {
    instances: BTreeMap<u64, BTreeMap<String, Told>>,
    /// Nodes that carry a notice, one that is over included: what they do not name they know nothing of.
    witnesses: BTreeSet<String>,
}

/// What is told of one event of one instance.
pub struct Told {
    /// When the first who tells saw it.
    pub seen: Timestamp,
    /// When Azure acts at the earliest; absent once it has started.
    pub not_before: Option<Timestamp>,
    /// The nodes whose notices say so.
    pub by: BTreeSet<String>,
}

impl Doomed {
    /// From the notices of `nodes`.
    pub fn of(nodes: &[Arc<Node>]) -> Self {
        let mut doomed: BTreeMap<String, ScaleSet> = BTreeMap::new();
        for node in nodes {
            let (Some(notice), Some((scale_set, _))) = (notice(node), instance(node)) else { continue };
            let scale_set = doomed.entry(scale_set).or_default();
            scale_set.witnesses.insert(node.name_any());
            if !notice.is_active() {
                continue;
            }
            for event in notice.doomed {
                for instance in event.instances.iter() {
                    let events = scale_set.instances.entry(instance).or_default();
                    let told = events.entry(event.event_id.clone()).or_insert(Told {
                        seen: notice.observed_at,
                        not_before: event.not_before,
                        by: BTreeSet::new(),
                    });
                    told.seen = notice.observed_at.min(told.seen);
                    told.not_before = event.not_before.min(told.not_before);
                    told.by.insert(node.name_any());
                }
            }
        }
        Self(doomed)
    }

    /// Since when a sibling says that this node is doomed, if its own agent has not said otherwise.
    pub fn names(&self, node: &Node) -> Option<Timestamp> {
        let ended = notice(node).filter(|notice| !notice.is_active()).map(|notice| notice.event_id);
        let events = self.told(node)?.iter();
        events.filter(|(event, _)| Some(*event) != ended.as_ref()).map(|(_, told)| told.seen).min()
    }

    /// What is told of this node, by event.
    pub fn told(&self, node: &Node) -> Option<&BTreeMap<String, Told>> {
        let (scale_set, instance) = instance(node)?;
        self.0.get(&scale_set)?.instances.get(&instance)
    }

    /// Whether one of `nodes` is there and still has a notice on it, so that its silence about a sibling says something.
    pub fn can_tell(&self, of: &Node, nodes: &BTreeSet<String>) -> bool {
        let scale_set = instance(of).and_then(|(scale_set, _)| self.0.get(&scale_set));
        scale_set.is_some_and(|it| nodes.iter().any(|node| it.witnesses.contains(node)))
    }
}

/// Scale set and instance id of a Node's VM. A VM of its own has no siblings.
fn instance(node: &Node) -> Option<(String, u64)> {
    let id: ProviderId = node.spec.as_ref()?.provider_id.as_ref()?.parse().ok()?;
    id.instance()
}
