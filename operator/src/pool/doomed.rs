//! What one node's notice tells of others: nodes with a silent agent are known from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_crds::{EvictionNotice, ProviderId};

use crate::node;

/// Events that are named at most where machines are asked for in the place of nodes that go.
const MOST_NAMED: usize = 5;

/// The notices on nodes, each read once, and the instances that they name.
#[derive(Default)]
pub struct Notices {
    /// By the names of the nodes that they are on.
    written: HashMap<String, EvictionNotice>,
    scale_sets: BTreeMap<String, ScaleSet>,
}

#[derive(Default)]
struct ScaleSet {
    instances: BTreeMap<u64, BTreeMap<String, Told>>,
    /// Nodes that carry a notice, one that is over included: what they do not name they know nothing of.
    witnesses: BTreeSet<Arc<str>>,
}

/// What is told of one event of one instance.
pub struct Told {
    /// When the first who tells saw it.
    pub seen: Timestamp,
    /// When Azure acts at the earliest; absent once it has started.
    pub not_before: Option<Timestamp>,
    /// The nodes whose notices say so.
    pub by: BTreeSet<Arc<str>>,
}

impl Notices {
    /// Those of `nodes`.
    pub fn of(nodes: &[Arc<Node>]) -> Self {
        let mut notices = Self::default();
        for node in nodes {
            let Some(mut notice) = node::notice(node) else { continue };
            let named = std::mem::take(&mut notice.doomed);
            let is_active = notice.is_active();
            let seen = notice.observed_at;
            notices.written.insert(node.name_any(), notice);
            let Some((scale_set, _)) = instance(node) else { continue };
            let witness: Arc<str> = node.name_any().into();
            let scale_set = notices.scale_sets.entry(scale_set).or_default();
            scale_set.witnesses.insert(witness.clone());
            for event in named.into_iter().filter(|_| is_active) {
                for instance in event.instances.iter() {
                    let events = scale_set.instances.entry(instance).or_default();
                    // Each of hundreds may name all the others: a name is copied for the first alone.
                    let told = match events.get_mut(&event.event_id) {
                        Some(told) => told,
                        None => events.entry(event.event_id.clone()).or_insert(Told {
                            seen,
                            not_before: event.not_before,
                            by: BTreeSet::new(),
                        }),
                    };
                    told.seen = seen.min(told.seen);
                    told.not_before = event.not_before.min(told.not_before);
                    told.by.insert(witness.clone());
                }
            }
        }
        notices
    }

    /// The notice on a node. Whom else it names, [`Self::told`] says.
    pub fn on(&self, node: &Node) -> Option<&EvictionNotice> {
        self.written.get(node.metadata.name.as_deref()?)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &EvictionNotice> {
        self.written.values()
    }

    /// The events because of which capacity goes, for people: a few name the others' time well enough.
    pub fn event_ids(&self) -> Option<String> {
        let going = self.all().filter(|notice| notice.takes_capacity());
        let ids: BTreeSet<&str> = going.map(|notice| notice.event_id.as_str()).collect();
        let named: Vec<&str> = ids.into_iter().take(MOST_NAMED).collect();
        (!named.is_empty()).then(|| named.join(" "))
    }

    /// Since when a sibling says that this node is doomed, if its own agent has not said otherwise.
    pub fn names(&self, node: &Node) -> Option<Timestamp> {
        let ended = self.on(node).filter(|notice| !notice.is_active()).map(|notice| &notice.event_id);
        let events = self.told(node)?.iter();
        events.filter(|(event, _)| Some(*event) != ended).map(|(_, told)| told.seen).min()
    }

    /// What is told of this node, by event.
    pub fn told(&self, node: &Node) -> Option<&BTreeMap<String, Told>> {
        if self.scale_sets.is_empty() {
            return None;
        }
        let (scale_set, instance) = instance(node)?;
        self.scale_sets.get(&scale_set)?.instances.get(&instance)
    }

    /// Whether one of `nodes` is there and still has a notice on it, so that its silence about a sibling says something.
    pub fn can_tell(&self, of: &Node, nodes: &BTreeSet<Arc<str>>) -> bool {
        let scale_set = instance(of).and_then(|(scale_set, _)| self.scale_sets.get(&scale_set));
        scale_set.is_some_and(|it| nodes.iter().any(|node| it.witnesses.contains(node)))
    }
}

/// Scale set and instance id of a Node's VM. A VM of its own has no siblings.
fn instance(node: &Node) -> Option<(String, u64)> {
    let id: ProviderId = node.spec.as_ref()?.provider_id.as_ref()?.parse().ok()?;
    id.instance()
}
