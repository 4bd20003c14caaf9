//! The refusal of AKS's node webhook: what the agent pool declares is not for others to take off.
//!
//! A ValidatingAdmissionPolicy, so that no webhook has to be served. What a pool declares is written on each of
//! its Nodes, where the policy finds it.

use serde_json::{Value, json};

use crate::body::{self, Properties};

/// Annotation of a Node: the taints that its pool declares, as `key=value:Effect,…`.
pub const TAINTS: &str = "azure-sim.spotpool.dev/declared-taints";
/// Annotation of a Node: the labels that its pool declares, as `key=value,…`.
pub const LABELS: &str = "azure-sim.spotpool.dev/declared-labels";

/// What the annotations of a pool's Nodes say.
pub fn annotations(properties: &Properties) -> [(&'static str, String); 2] {
    let labels = properties.get("nodeLabels").and_then(Value::as_object).into_iter().flatten();
    let labels: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    [(TAINTS, body::texts(properties, "nodeTaints").join(",")), (LABELS, labels.join(","))]
}

/// Name of the policy and its binding; one for each cluster that shares a control plane.
pub fn name(cluster: &str) -> String {
    let name: String = cluster
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("azure-sim-{}", name.trim_matches('-'))
}

fn declared(annotation: &str) -> String {
    format!(
        "has(oldObject.metadata.annotations) && '{annotation}' in oldObject.metadata.annotations && oldObject.metadata.annotations['{annotation}'] != '' ? oldObject.metadata.annotations['{annotation}'].split(',') : []"
    )
}

fn taints(object: &str) -> String {
    format!(
        "has({object}.spec) && has({object}.spec.taints) ? {object}.spec.taints.map(t, t.key + (has(t.value) && t.value != '' ? '=' + t.value : '') + ':' + t.effect) : []"
    )
}

fn labels(object: &str) -> String {
    format!(
        "has({object}.metadata.labels) ? {object}.metadata.labels.map(k, k + '=' + {object}.metadata.labels[k]) : []"
    )
}

/// The policy and its binding.
pub fn objects(cluster: &str, label: &str) -> [Value; 2] {
    let name = name(cluster);
    let pool = "oldObject.metadata.labels['kubernetes.azure.com/agentpool']";
    let variable = |name: &str, expression: String| json!({"name": name, "expression": expression});
    let refused = |what: &str, list: &str| {
        json!({
            "expression": format!("variables.{list}.size() == 0"),
            "messageExpression": format!(
                "'{what} delete request \"' + variables.{list}[0] + '\" refused. User is attempting to delete a {} configured on aks node pool \"' + {pool} + '\".'",
                what.to_lowercase()
            ),
        })
    };
    let lost = |declared: &str, before: &str, after: &str| {
        format!("variables.{declared}.filter(d, d in variables.{before} && !(d in variables.{after}))")
    };
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Ignore",
            "matchConstraints": {
                "objectSelector": {"matchLabels": {label: cluster}},
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes"],
                }],
            },
            "variables": [
                variable("declaredTaints", declared(TAINTS)),
                variable("taintsBefore", taints("oldObject")),
                variable("taintsAfter", taints("object")),
                variable("lostTaints", lost("declaredTaints", "taintsBefore", "taintsAfter")),
                variable("declaredLabels", declared(LABELS)),
                variable("labelsBefore", labels("oldObject")),
                variable("labelsAfter", labels("object")),
                variable("lostLabels", lost("declaredLabels", "labelsBefore", "labelsAfter")),
            ],
            "validations": [refused("Taint", "lostTaints"), refused("Label", "lostLabels")],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    [policy, binding]
}
