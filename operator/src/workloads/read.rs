//! What is kept of pods and disruption budgets, and how selectors, amounts and taints are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use spotpool_core::scheduling::{Pod, Requirement, Resources, Taint};

use super::shared::{Labels, label};
use crate::quantity;

/// A pod that runs or shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// As plans see it.
    pub pod: Pod,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its node, once it has one.
    pub node: Option<Arc<str>>,
    /// What keeps it where it is.
    pub stays: Stays,
    /// Whether it has begun to.
    pub runs: bool,
}

/// Whether a pod leaves its node in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It moves.
    No,
    /// It belongs to the node: of a DaemonSet, or static.
    WithNode,
    /// It ends already.
    Ending,
}

/// A disruption budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What its pods are like; absent selects none.
    pub selector: Option<Vec<Requirement>>,
    /// Pods that must be healthy.
    pub desired: i32,
    /// Pods that are.
    pub healthy: i32,
    /// Whether it lets no pod go, and has any.
    pub blocked: bool,
}

/// A label selector as requirements; absent if it is none that Kubernetes would take.
pub fn requirements(selector: &LabelSelector) -> Option<Vec<Requirement>> {
    let equal = selector.match_labels.iter().flatten();
    let mut all: Vec<Requirement> = equal
        .map(|(key, value)| Requirement::In(key.as_str().into(), [value.as_str().into()].into()))
        .collect();
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.iter().flatten().map(String::as_str);
        all.push(requirement(&mut |text| text.into(), &expression.key, &expression.operator, values)?);
    }
    Some(all)
}

/// Whether labels are as required.
pub fn matches(requirements: &[Requirement], labels: &Labels) -> bool {
    requirements.iter().all(|required| required.holds(label(labels, required.key())))
}

pub(super) fn requirement<'a>(
    text: &mut impl FnMut(&str) -> Arc<str>,
    key: &str,
    operator: &str,
    values: impl Iterator<Item = &'a str>,
) -> Option<Requirement> {
    let key = text(key);
    let mut values = values.peekable();
    Some(match operator {
        "In" => Requirement::In(key, values.map(text).collect::<BTreeSet<_>>()),
        "NotIn" => Requirement::NotIn(key, values.map(text).collect::<BTreeSet<_>>()),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        "Gt" => Requirement::Above(key, values.peek()?.parse().ok()?),
        "Lt" => Requirement::Below(key, values.peek()?.parse().ok()?),
        _ => return None,
    })
}

/// What a list of resources says, as one pod asks for it or one node has it.
pub fn resources(amounts: &BTreeMap<String, String>, mut text: impl FnMut(&str) -> Arc<str>) -> Resources {
    let mut resources = Resources::default();
    for (name, amount) in amounts {
        // What cannot be read counts as nothing; the apiserver lets no such thing pass.
        let whole = || quantity::whole(amount).unwrap_or_default();
        match name.as_str() {
            "cpu" => resources.cpu = quantity::thousandths(amount).unwrap_or_default(),
            "memory" => resources.memory = whole(),
            "pods" => resources.pods = whole(),
            _ => resources.other.push((text(name), whole())),
        }
    }
    resources
}

/// A taint, if it keeps pods off.
pub fn taint(key: &str, value: &str, effect: &str) -> Option<Taint> {
    matches!(effect, "NoSchedule" | "NoExecute").then(|| Taint {
        key: key.into(),
        value: value.into(),
        effect: effect.into(),
    })
}
