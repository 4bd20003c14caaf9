//! The notice on the Node: where agent and operator meet in an eviction.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::instances::InstanceRanges;
use crate::skew::known_or;
use crate::spot_pool::EventResponse;

/// Value of annotation `spotpool.dev/eviction`: the Azure event that a node is under and how far its
/// drain is. One writer: whoever is named in `by`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvictionNotice {
    /// Who claimed the notice and drains.
    #[serde(deserialize_with = "claimant")]
    pub by: Claimant,
    /// Azure's `EventId`.
    pub event_id: String,
    /// Azure's `EventType`, such as `Preempt`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Where it was seen.
    #[serde(deserialize_with = "source")]
    pub source: Source,
    /// What the node does about it. Absent in what older agents wrote, who only ever drained.
    #[serde(default = "drain", deserialize_with = "response")]
    pub response: EventResponse,
    /// When it was first seen (agent's clock).
    pub observed_at: Timestamp,
    /// When Azure will act at the earliest; absent once it has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The time by which the drain must be over.
    pub deadline: Timestamp,
    /// How far it is.
    #[serde(deserialize_with = "phase")]
    pub phase: Phase,
    /// What became of the pods so far.
    #[serde(default)]
    pub pods: PodCounts,
    /// Whether the cordon is ours, and so ours to take off.
    pub cordoned: bool,
    /// Boot of the node at the notice: a node that is back with another boot is cleaned.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// W3C trace context, so that agent and operator write one trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Every Preempt of the document that names VMs of this node's scale set, this node's included, so
    /// that one notice tells the operator of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doomed: Vec<Doomed>,
    /// Pods that are left shortly before the deadline, and in phase `Incomplete` those that the drain could not see off:
    /// `namespace/name: why`, at most [`MOST_UNFINISHED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<String>,
}

fn drain() -> EventResponse {
    EventResponse::Drain
}

// Words of a newer program: whatever they mean, the node is under notice and its agent is at it.
fn claimant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Claimant, D::Error> {
    known_or(deserializer, Claimant::NodeAgent)
}
fn source<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Source, D::Error> {
    known_or(deserializer, Source::Imds)
}
fn response<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventResponse, D::Error> {
    known_or(deserializer, EventResponse::Drain)
}
fn phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Phase, D::Error> {
    known_or(deserializer, Phase::Draining)
}

/// Azure's `EventType` of a spot eviction.
pub const PREEMPT: &str = "Preempt";
/// Azure's `EventType` of its early hint.
pub const REBALANCE: &str = "SpotRebalanceRecommendation";

/// Pods named in [`EvictionNotice::unfinished`] at most; the agent's log names all.
pub const MOST_UNFINISHED: usize = 128;

impl EvictionNotice {
    /// Whether the event still holds.
    pub fn is_active(&self) -> bool {
        !matches!(self.phase, Phase::Cancelled | Phase::Over)
    }

    /// Whether it is Azure's hint to move away, and the node is still worth what it was.
    pub fn is_hint(&self) -> bool {
        self.is_active() && self.event_type == REBALANCE && !self.takes_capacity()
    }

    /// Whether the node is worth nothing because of it: its VM goes, or the node is being emptied.
    pub fn takes_capacity(&self) -> bool {
        self.is_active() && (self.event_type == PREEMPT || self.response == EventResponse::Drain)
    }
}

/// Who claimed a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Claimant {
    /// The agent on the node.
    NodeAgent,
    /// The operator, in the agent's stead.
    Operator,
}

/// Where a notice was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// Azure's Instance Metadata Service.
    #[serde(rename = "IMDS")]
    Imds,
    /// A condition that AKS's node problem detector has set on the Node, while the metadata service was silent.
    NodeProblemDetector,
}

/// How far the drain of a noticed node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Cordoned, and the drain begins.
    Noticed,
    /// Every eviction was sent once; pods are ending or blocked.
    Draining,
    /// Nothing is left that a drain moves.
    Drained,
    /// The deadline came with pods left.
    Incomplete,
    /// Azure took the event back.
    Cancelled,
    /// The event has come and gone, and the node is at work again.
    Over,
}

/// What became of the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodCounts {
    /// Evictions that the API accepted.
    pub evicted: u32,
    /// Pods deleted past their disruption budget because the deadline was near.
    pub escalated: u32,
    /// Pods still on the node.
    pub left: u32,
}

/// One Preempt of the document and the instances of this scale set that it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Doomed {
    /// Azure's `EventId`.
    pub event_id: String,
    /// When Azure will act at the earliest; absent once it has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Instance ids, such as `3-9,14`.
    pub instances: InstanceRanges,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_script_on_the_annotation() {
        let notice = EvictionNotice {
            by: Claimant::NodeAgent,
            event_id: "C1BF8322".into(),
            event_type: "Preempt".into(),
            source: Source::Imds,
            response: EventResponse::Drain,
            observed_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            not_before: Some("2026-01-01T00:00:30Z".parse().unwrap()),
            deadline: "2026-01-01T00:00:30Z".parse().unwrap(),
            phase: Phase::Noticed,
            pods: PodCounts::default(),
            cordoned: true,
            boot_id: "b".into(),
            traceparent: None,
            doomed: vec![Doomed {
                event_id: "C1BF8322".into(),
                not_before: None,
                instances: [3, 4, 5, 14].into_iter().collect(),
            }],
            unfinished: Vec::new(),
        };
        let json = serde_json::to_value(&notice).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "by": "NodeAgent", "eventId": "C1BF8322", "type": "Preempt", "source": "IMDS", "response": "Drain",
                "observedAt": "2026-01-01T00:00:00Z", "notBefore": "2026-01-01T00:00:30Z",
                "deadline": "2026-01-01T00:00:30Z", "phase": "Noticed",
                "pods": {"evicted": 0, "escalated": 0, "left": 0}, "cordoned": true, "bootID": "b",
                "doomed": [{"eventId": "C1BF8322", "instances": "3-5,14"}],
            })
        );
        assert_eq!(serde_json::from_value::<EvictionNotice>(json).unwrap(), notice);
    }
}
