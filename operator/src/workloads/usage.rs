//! What workloads have of a SpotPool's nodes, told apart by one label of their pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use spotpool_core::allocation::{NONE, Usage, keep_largest};
use spotpool_core::scheduling::Resources;

use super::Known;
use super::shared::label;
use super::survey::{Scope, allocatable};
use crate::node::agent_pool_of;

/// Workloads that are kept apart until it is known which of them cost the most.
const KEPT: usize = 1000;

/// By agent pool; absent while pods have not been read, for nobody would be idle then.
pub fn usage(
    known: &Known,
    nodes: &[Arc<Node>],
    scope: &Scope,
    key: &str,
) -> Option<BTreeMap<String, Usage>> {
    if !known.pods.complete {
        return None;
    }
    let mut usages: BTreeMap<String, Usage> =
        scope.agent_pools.iter().map(|pool| (pool.name.clone(), Usage::default())).collect();
    let mut asked: HashMap<&str, BTreeMap<&str, Resources>> = HashMap::new();
    let ours = |node: &&Arc<Node>| agent_pool_of(node).is_some_and(|name| usages.contains_key(name));
    for node in nodes.iter().filter(ours) {
        asked.insert(node.metadata.name.as_deref().unwrap_or_default(), BTreeMap::new());
    }
    for running in known.pods.known.values() {
        let Some(of_node) = running.node.as_deref().and_then(|node| asked.get_mut(node)) else { continue };
        let workload = label(&running.labels, key).filter(|value| !value.is_empty()).unwrap_or(NONE);
        let requests = &running.pod.shape.requests;
        let all = of_node.entry(workload).or_default();
        all.cpu = all.cpu.saturating_add(requests.cpu);
        all.memory = all.memory.saturating_add(requests.memory);
    }
    // Each name once, however many nodes it is on.
    let mut names: HashMap<&str, Arc<str>> = HashMap::new();
    for workload in asked.values().flat_map(BTreeMap::keys) {
        names.entry(*workload).or_insert_with(|| (*workload).into());
    }
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let usage = agent_pool_of(node).and_then(|agent_pool| usages.get_mut(agent_pool));
        let (Some(usage), Some(of_node)) = (usage, asked.remove(name)) else { continue };
        usage.add_node(
            &allocatable(node),
            of_node.into_iter().map(|(workload, requests)| (&names[workload], requests)),
        );
    }
    keep_largest(&mut usages, KEPT);
    Some(usages)
}

/// A label's key: an optional DNS name and a slash, and a name.
pub fn label_key(text: &str) -> Result<String, String> {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_name = |name: &[u8]| {
        let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        name.len() <= 63 && is_end(name.first()) && is_end(name.last()) && name.iter().all(inner)
    };
    let is_label = |part: &str| {
        let part = part.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        part.len() <= 63 && is_end(part.first()) && is_end(part.last()) && part.iter().all(inner)
    };
    let is_dns = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(is_label);
    let is_key = match text.split_once('/') {
        Some((prefix, name)) => is_dns(prefix) && is_name(name.as_bytes()),
        None => is_name(text.as_bytes()),
    };
    let why = "is no label's key: such as team or example.com/team, at most 63 letters, digits, '-', '_' and '.' \
               after an optional DNS name and a slash";
    is_key.then(|| text.to_owned()).ok_or_else(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_label_is_taken() {
        let long = "a".repeat(63);
        for (text, is_key) in [
            ("team", true),
            ("app.kubernetes.io/name", true),
            ("Team_1.x", true),
            (long.as_str(), true),
            (&format!("{long}b"), false),
            ("", false),
            ("/team", false),
            ("example.com/", false),
            ("a/b/c", false),
            ("Example.com/team", false),
            ("example..com/team", false),
            ("-team", false),
            ("team.", false),
            ("cost centre", false),
            ("team=a", false),
            ("té", false),
        ] {
            assert_eq!(label_key(text).is_ok(), is_key, "{text:?}");
        }
    }
}
