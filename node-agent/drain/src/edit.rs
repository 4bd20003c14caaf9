//! What to change on a Node, and the one request that does it. Pure.

use serde_json::{Map, Value, json};
use spotpool_crds::names::{self, EXCLUDE_FROM_LOAD_BALANCERS_VALUE as LABEL_VALUE};

use crate::node::Node;

const EFFECT: &str = "NoSchedule";

/// A set of changes to a Node. Empty by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Our taint.
    pub taint: Taint,
    /// The cordon.
    pub unschedulable: Option<bool>,
    /// The operator's taint that sets the pods of a node free whose VM does not run.
    pub out_of_service: Option<bool>,
    /// The label that takes the node out of cloud load balancers.
    pub excluded: Option<bool>,
    /// Annotations, put or taken off.
    pub annotations: Vec<(&'static str, Option<String>)>,
}

/// What to do with our taint.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Taint {
    /// Nothing.
    #[default]
    Keep,
    /// Put it on with this value.
    Put(String),
    /// Take it off.
    Remove,
}

impl Edit {
    /// Whether `node` is already so.
    pub fn is_done(&self, node: &Node) -> bool {
        self.taints(node).is_none()
            && self.cordon(node).is_none()
            && self.label(node).is_none()
            && self.annotations(node).next().is_none()
    }

    /// As a JSON patch that applies only to the very Node that it was made for, and only while taints, cordon
    /// and notice are as last seen: all have other writers.
    pub fn json_patch(&self, node: &Node) -> Vec<Value> {
        let test = |path: &str, value: &Value| json!({"op": "test", "path": path, "value": value});
        let mut patch = vec![test("/metadata/uid", &json!(node.metadata.uid))];
        // What is to stay as it is is tested as well: a write of ours whose answer never came may have changed it.
        if self.taint != Taint::Keep || self.out_of_service.is_some() {
            // An absent list is tested as null.
            patch.push(test("/spec/taints", &json!(node.spec.taints)));
        }
        if let Some(taints) = self.taints(node) {
            patch.push(put_or_remove("/spec/taints", (!taints.is_empty()).then(|| taints.into())));
        }
        if self.unschedulable.is_some() {
            let last = if node.spec.unschedulable { json!(true) } else { Value::Null };
            patch.push(test("/spec/unschedulable", &last));
        }
        if let Some(cordon) = self.cordon(node) {
            patch.push(put_or_remove("/spec/unschedulable", cordon.then(|| true.into())));
        }
        let annotations: Vec<_> = self.annotations(node).collect();
        if !annotations.is_empty() && node.metadata.annotations.is_none() {
            patch.push(test("/metadata/annotations", &Value::Null));
            patch.push(put_or_remove("/metadata/annotations", Some(json!({}))));
        }
        for (name, value) in annotations {
            let path = pointer("/metadata/annotations/", name);
            if name == names::EVICTION_ANNOTATION {
                // Agent and operator may both claim a notice: whoever is second must see that.
                patch.push(test(&path, &json!(node.annotation(name))));
            }
            patch.push(put_or_remove(&path, value.map(Into::into)));
        }
        if let Some(label) = self.label(node) {
            if node.metadata.labels.is_none() {
                patch.push(test("/metadata/labels", &Value::Null));
                patch.push(put_or_remove("/metadata/labels", Some(json!({}))));
            }
            let path = pointer("/metadata/labels/", names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL);
            patch.push(put_or_remove(&path, Some(label).filter(|label| !label.is_null())));
        }
        patch
    }

    /// As a merge patch that applies only to the very version of the Node that it was made for.
    pub fn merge_patch(&self, node: &Node) -> Value {
        let mut metadata = Map::new();
        metadata.insert("uid".into(), json!(node.metadata.uid));
        metadata.insert("resourceVersion".into(), json!(node.metadata.resource_version));
        let annotations: Map<String, Value> =
            self.annotations(node).map(|(name, value)| (name.to_owned(), json!(value))).collect();
        if !annotations.is_empty() {
            metadata.insert("annotations".into(), annotations.into());
        }
        if let Some(label) = self.label(node) {
            metadata.insert("labels".into(), json!({names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL: label}));
        }
        let mut spec = Map::new();
        if let Some(taints) = self.taints(node) {
            spec.insert("taints".into(), if taints.is_empty() { Value::Null } else { taints.into() });
        }
        if let Some(cordon) = self.cordon(node) {
            spec.insert("unschedulable".into(), if cordon { true.into() } else { Value::Null });
        }
        json!({"metadata": metadata, "spec": spec})
    }

    /// The whole list of taints as it should be, if it is not.
    fn taints(&self, node: &Node) -> Option<Vec<Value>> {
        let last = node.spec.taints.as_deref().unwrap_or_default();
        let mut taints = last.to_vec();
        let has = |taint: &Value, key: &str, value: &str| taint["key"] == key && taint["value"] == value;
        match &self.taint {
            Taint::Keep => {}
            Taint::Put(value) => {
                let is_so = |it: &Value| has(it, names::EVICTING_TAINT, value) && it["effect"] == EFFECT;
                if !taints.iter().any(is_so) {
                    taints.retain(|taint| taint["key"] != names::EVICTING_TAINT);
                    taints.push(json!({"key": names::EVICTING_TAINT, "value": value, "effect": EFFECT}));
                }
            }
            Taint::Remove => taints.retain(|taint| taint["key"] != names::EVICTING_TAINT),
        }
        // With the cordon in the same write the node controller has nothing left to do: where fifty nodes go at once, its
        // reads and writes would come in between their evictions.
        let is_closed = |it: &Value| it["key"] == names::UNSCHEDULABLE_TAINT && it["effect"] == EFFECT;
        match (&self.taint, self.cordon(node)) {
            (Taint::Put(_), Some(true)) if !taints.iter().any(is_closed) => {
                taints.push(json!({"key": names::UNSCHEDULABLE_TAINT, "effect": EFFECT}));
            }
            (Taint::Remove, Some(false)) => taints.retain(|taint| !is_closed(taint)),
            _ => {}
        }
        let (key, value) = (names::OUT_OF_SERVICE_TAINT, names::OUT_OF_SERVICE_VALUE);
        match self.out_of_service {
            Some(true) if !taints.iter().any(|taint| taint["key"] == key) => {
                taints.push(json!({"key": key, "value": value, "effect": "NoExecute"}));
            }
            // One that a person has put stays.
            Some(false) => taints.retain(|taint| !has(taint, key, value)),
            _ => {}
        }
        (taints != last).then_some(taints)
    }

    fn cordon(&self, node: &Node) -> Option<bool> {
        self.unschedulable.filter(|wanted| *wanted != node.spec.unschedulable)
    }

    /// The label as it should be (null: off), if it is not. Others' stay as they are.
    fn label(&self, node: &Node) -> Option<Value> {
        match (self.excluded?, node.label(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL)) {
            (true, None) => Some(LABEL_VALUE.into()),
            (false, Some(LABEL_VALUE)) => Some(Value::Null),
            _ => None,
        }
    }

    fn annotations(&self, node: &Node) -> impl Iterator<Item = (&'static str, Option<String>)> {
        self.annotations.iter().filter(|(name, value)| node.annotation(name) != value.as_deref()).cloned()
    }
}

fn put_or_remove(path: &str, value: Option<Value>) -> Value {
    match value {
        Some(value) => json!({"op": "add", "path": path, "value": value}),
        None => json!({"op": "remove", "path": path}),
    }
}

fn pointer(parent: &str, name: &str) -> String {
    format!("{parent}{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::node;

    fn mark() -> Edit {
        Edit {
            taint: Taint::Put("Preempt".into()),
            unschedulable: Some(true),
            out_of_service: None,
            excluded: Some(true),
            annotations: vec![(names::EVICTION_ANNOTATION, Some("{}".into()))],
        }
    }

    fn clean() -> Edit {
        Edit {
            taint: Taint::Remove,
            unschedulable: Some(false),
            out_of_service: None,
            excluded: Some(false),
            annotations: vec![(names::EVICTION_ANNOTATION, None)],
        }
    }

    #[test]
    fn one_patch_marks_everything_and_tests_what_others_write() {
        let bare = node(&json!({}), &json!({}));
        assert_eq!(
            mark().json_patch(&bare),
            [
                json!({"op": "test", "path": "/metadata/uid", "value": "u"}),
                json!({"op": "test", "path": "/spec/taints", "value": null}),
                json!({"op": "add", "path": "/spec/taints",
                    "value": [{"key": "spotpool.dev/evicting", "value": "Preempt", "effect": "NoSchedule"},
                        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
                json!({"op": "test", "path": "/spec/unschedulable", "value": null}),
                json!({"op": "add", "path": "/spec/unschedulable", "value": true}),
                json!({"op": "test", "path": "/metadata/annotations/spotpool.dev~1eviction", "value": null}),
                json!({"op": "add", "path": "/metadata/annotations/spotpool.dev~1eviction", "value": "{}"}),
                json!({"op": "add", "path": "/metadata/labels/node.kubernetes.io~1exclude-from-external-load-balancers",
                    "value": "spotpool.dev"}),
            ]
        );
        let other =
            json!({"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"});
        let spot = node(&json!({"taints": [other], "unschedulable": true}), &Value::Null);
        let patch = mark().json_patch(&spot);
        assert_eq!(patch[1]["value"], json!([other]));
        assert_eq!(patch[2]["value"][0], other);
        let of_cordon: Vec<_> = patch.iter().filter(|op| op["path"] == "/spec/unschedulable").collect();
        assert_eq!(
            of_cordon,
            [&json!({"op": "test", "path": "/spec/unschedulable", "value": true})],
            "cordoned already"
        );
        assert!(patch.contains(&json!({"op": "test", "path": "/metadata/annotations", "value": null})));
    }

    #[test]
    fn marks_that_seem_to_be_there_are_tested_before_others_are_built_on_them() {
        let ours = json!({"key": "spotpool.dev/evicting", "value": "Preempt", "effect": "NoSchedule"});
        let seems_marked = node(&json!({"taints": [ours], "unschedulable": true}), &json!({}));
        let patch = mark().json_patch(&seems_marked);
        for (path, value) in [("/spec/taints", json!([ours])), ("/spec/unschedulable", json!(true))] {
            assert!(patch.contains(&json!({"op": "test", "path": path, "value": value})), "{patch:?}");
            assert!(!patch.iter().any(|op| op["path"] == path && op["op"] != "test"), "{patch:?}");
        }
    }

    #[test]
    fn a_merge_patch_says_the_same_of_one_version() {
        let other = json!({"key": "a", "effect": "NoExecute"});
        let merge = mark().merge_patch(&node(&json!({"taints": [other]}), &json!({})));
        assert_eq!(merge["metadata"]["resourceVersion"], "7");
        assert_eq!(merge["spec"]["taints"].as_array().unwrap().len(), 3);
        assert_eq!(merge["spec"]["unschedulable"], true);
        assert_eq!(merge["metadata"]["annotations"][names::EVICTION_ANNOTATION], "{}");
    }

    #[test]
    fn cleaning_takes_off_what_is_ours_alone() {
        let ours = json!({"key": "spotpool.dev/evicting", "value": "Preempt", "effect": "NoSchedule"});
        let other = json!({"key": "a", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let closed = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"});
        let marked = node(
            &json!({"taints": [ours, closed, other], "unschedulable": true}),
            &json!({names::EVICTION_ANNOTATION: "{}"}),
        );
        let patch = clean().json_patch(&marked);
        assert_eq!(patch[2], json!({"op": "add", "path": "/spec/taints", "value": [other]}));
        assert_eq!(patch[4], json!({"op": "remove", "path": "/spec/unschedulable"}));
        assert_eq!(
            (&patch[5]["op"], &patch[5]["value"]),
            (&json!("test"), &json!("{}")),
            "the notice as last seen"
        );
        assert_eq!(patch[6]["op"], "remove");
        let alone = node(&json!({"taints": [ours]}), &json!({}));
        assert_eq!(clean().json_patch(&alone)[2], json!({"op": "remove", "path": "/spec/taints"}));
        assert_eq!(clean().merge_patch(&alone)["spec"]["taints"], Value::Null);
        assert!(clean().is_done(&node(&json!({"taints": [other]}), &json!({}))));
        assert!(Edit::default().is_done(&marked));
    }

    #[test]
    fn a_taint_follows_the_event() {
        let ours = json!({"key": "spotpool.dev/evicting", "value": "Reboot", "effect": "NoSchedule"});
        let planned = node(&json!({"taints": [ours]}), &json!({}));
        assert!(Edit { taint: Taint::Put("Reboot".into()), ..Edit::default() }.is_done(&planned));
        let patch = mark().json_patch(&planned);
        assert_eq!(
            patch[2]["value"],
            json!([{"key": "spotpool.dev/evicting", "value": "Preempt", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])
        );
    }

    #[test]
    fn out_of_service_is_put_beside_other_taints_and_only_ours_comes_off() {
        let other = json!({"key": "a", "effect": "NoExecute"});
        let bare = node(&json!({"taints": [other]}), &json!({}));
        let put = Edit { out_of_service: Some(true), ..Edit::default() };
        let ours = json!({"key": "node.kubernetes.io/out-of-service", "value": "spotpool.dev", "effect": "NoExecute"});
        assert_eq!(put.json_patch(&bare)[2]["value"], json!([other, ours]));
        let off = Edit { out_of_service: Some(false), ..Edit::default() };
        assert_eq!(
            off.json_patch(&node(&json!({"taints": [ours, other]}), &json!({})))[2]["value"],
            json!([other])
        );
        let by_hand = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
        let by_hand = node(&json!({"taints": [by_hand]}), &json!({}));
        assert!(put.is_done(&by_hand) && off.is_done(&by_hand));
    }

    #[test]
    fn somebody_elses_label_stays() {
        let mut labelled = node(&json!({}), &json!({}));
        let label = [(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL.to_owned(), "true".to_owned())];
        labelled.metadata.labels = Some(label.into());
        assert!(Edit { excluded: Some(true), ..Edit::default() }.is_done(&labelled));
        assert!(Edit { excluded: Some(false), ..Edit::default() }.is_done(&labelled));
    }
}
