//! What doctor and lint both know of workloads: where their pods may run, and what their budgets let go.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerSpec, MetricSpec};
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, Toleration};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};

/// Key of the label and of the taint that AKS puts on spot nodes; nodes on demand have neither.
pub const SPOT_KEY: &str = "kubernetes.azure.com/scalesetpriority";
/// The label that replaces it: nodes on demand have it, too.
pub const PRIORITY_KEY: &str = "kubernetes.azure.com/priority";
/// Their value on spot nodes.
pub const SPOT_VALUE: &str = "spot";

/// What a workload would run.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// `Deployment`, say.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The labels of its pods.
    pub labels: BTreeMap<String, String>,
    /// The annotations of its pods.
    pub annotations: BTreeMap<String, String>,
    /// How many pods.
    pub replicas: i32,
    /// Its pods.
    pub spec: &'a PodSpec,
}

impl<'a> Workload<'a> {
    /// From what stands in a manifest.
    pub fn of(
        kind: &'static str,
        meta: &ObjectMeta,
        replicas: Option<i32>,
        pods: Option<&ObjectMeta>,
        spec: &'a PodSpec,
    ) -> Self {
        let of_pods = |get: fn(&ObjectMeta) -> &Option<BTreeMap<String, String>>| {
            pods.and_then(|pods| get(pods).clone()).unwrap_or_default()
        };
        Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().or_else(|| meta.generate_name.clone()).unwrap_or_default(),
            labels: of_pods(|pods| &pods.labels),
            annotations: of_pods(|pods| &pods.annotations),
            replicas: replicas.unwrap_or(1),
            spec,
        }
    }

    /// `Deployment batch/web`.
    pub fn about(&self) -> String {
        about(self.kind, &self.namespace, &self.name)
    }

    /// Whether the budget is for its pods.
    pub fn is_under(&self, budget: &PodDisruptionBudget) -> bool {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        let selector: Option<Selector> = selector.and_then(|selector| selector.try_into().ok());
        budget.namespace().unwrap_or_default() == self.namespace
            && selector.is_some_and(|selector| selector.matches(&self.labels))
    }

    /// Whether its pods may be on spot nodes.
    pub fn may_run_on_spot(&self) -> bool {
        self.tolerates_spot() && !avoids_spot(self.spec)
    }

    /// Whether its pods tolerate the taint of spot nodes.
    pub fn tolerates_spot(&self) -> bool {
        tolerates(self.spec.tolerations.as_deref().unwrap_or_default(), SPOT_KEY, SPOT_VALUE)
    }
}

/// `Deployment batch/web`, without a namespace if none is said.
pub fn about(kind: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

/// Whether a taint with effect NoSchedule is tolerated.
pub fn tolerates(tolerations: &[Toleration], key: &str, value: &str) -> bool {
    tolerations.iter().any(|it| {
        let is_key = it.key.as_deref().is_none_or(|it| it.is_empty() || it == key);
        let is_value = it.operator.as_deref() == Some("Exists") || it.value.as_deref() == Some(value);
        let is_effect = it.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "NoSchedule");
        is_key && is_value && is_effect
    })
}

fn required_terms(spec: &PodSpec) -> &[NodeSelectorTerm] {
    let required = spec.affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    });
    required.map_or(&[], |required| &required.node_selector_terms)
}

/// Values that a pod must find in a node's label, by node selector or a required affinity without alternatives.
pub fn required(spec: &PodSpec, key: &str) -> BTreeSet<String> {
    let mut values: BTreeSet<String> = spec
        .node_selector
        .iter()
        .flatten()
        .filter(|(it, _)| *it == key)
        .map(|(_, value)| value.clone())
        .collect();
    if let [term] = required_terms(spec) {
        let expressions = term.match_expressions.iter().flatten();
        let its = expressions.filter(|it| it.key == key && it.operator == "In");
        values.extend(its.flat_map(|it| it.values.clone().unwrap_or_default()));
    }
    values
}

/// The label by which pods ask for spot nodes and no others.
pub fn requires_spot(spec: &PodSpec) -> Option<&'static str> {
    let is_spot = |key: &str| required(spec, key).iter().eq([SPOT_VALUE]);
    [SPOT_KEY, PRIORITY_KEY].into_iter().find(|key| is_spot(key))
}

/// Whether pods stay off spot nodes whatever they tolerate.
pub fn avoids_spot(spec: &PodSpec) -> bool {
    let avoids = |term: &NodeSelectorTerm| {
        term.match_expressions.iter().flatten().any(|it| {
            let has_spot = it.values.iter().flatten().any(|value| value == SPOT_VALUE);
            match it.operator.as_str() {
                "NotIn" => (it.key == SPOT_KEY || it.key == PRIORITY_KEY) && has_spot,
                "In" => (it.key == SPOT_KEY || it.key == PRIORITY_KEY) && !has_spot,
                "DoesNotExist" => it.key == SPOT_KEY,
                _ => false,
            }
        })
    };
    let selector = spec.node_selector.iter().flatten();
    let is_selected = selector
        .into_iter()
        .any(|(key, value)| (key == SPOT_KEY || key == PRIORITY_KEY) && value != SPOT_VALUE);
    let terms = required_terms(spec);
    is_selected || (!terms.is_empty() && terms.iter().all(avoids))
}

/// Whether a budget that wants `desired` of `expected` pods healthy never lets one go.
pub fn never_lets_go(desired: i32, expected: i32) -> bool {
    expected > 0 && desired >= expected
}

/// What is wrong with pods that several budgets select.
pub fn overlap<'a>(budgets: impl IntoIterator<Item = &'a str>) -> String {
    let names = budgets.into_iter().collect::<Vec<_>>().join(" and ");
    format!(
        "budgets {names} all select its pods: Kubernetes refuses every eviction of a pod with more than one"
    )
}

/// The metric by which an HPA would scale a SpotPool wrongly: it multiplies anything but an `AverageValue` of an external or
/// object metric by pods, which a SpotPool does not have.
pub fn unsafe_metric(spec: &HorizontalPodAutoscalerSpec) -> Option<&MetricSpec> {
    let is_safe = |metric: &&MetricSpec| {
        let external = metric.external.as_ref().map(|it| it.target.type_.as_str());
        let target = external.or_else(|| metric.object.as_ref().map(|it| it.target.type_.as_str()));
        target == Some("AverageValue")
    };
    spec.metrics.iter().flatten().find(|metric| !is_safe(metric))
}
