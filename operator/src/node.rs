//! What is read off a Node.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use spotpool_crds::{EvictionNotice, names};

/// The agent pool of a Node.
pub fn agent_pool_of(node: &Node) -> Option<&str> {
    node.labels().get(names::AGENT_POOL_LABEL).map(String::as_str)
}

/// The conditions of a Node.
pub fn conditions(node: &Node) -> impl Iterator<Item = &NodeCondition> {
    node.status.iter().flat_map(|status| status.conditions.iter().flatten())
}

/// The taints of a Node.
pub fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten())
}

/// Whether the kubelet says Ready.
pub fn is_ready(node: &Node) -> bool {
    conditions(node).any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A Node's boot; empty if not known.
pub fn boot_id(node: &Node) -> &str {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.map_or("", |info| info.boot_id.as_str())
}

/// What an annotation says, if it can be read.
pub fn annotation<T: DeserializeOwned>(node: &Node, key: &str) -> Option<T> {
    let text = node.annotations().get(key)?;
    serde_json::from_str(text)
        .inspect_err(|error| tracing::warn!(node = node.name_any(), key, %error, "annotation not understood"))
        .ok()
}

/// The notice that a Node is under, if it can be read.
pub fn notice(node: &Node) -> Option<EvictionNotice> {
    annotation(node, names::EVICTION_ANNOTATION)
}
