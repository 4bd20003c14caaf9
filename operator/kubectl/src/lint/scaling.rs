//! Rules of autoscalers.

use super::manifests::Manifests;
use super::{Finding, Rule, Severity};
use crate::workload::{about, unsafe_metric};

pub(super) fn findings(manifests: &Manifests) -> Vec<Finding> {
    let mut found = Vec::new();
    for it in &manifests.runners {
        let meta = it.object.meta();
        if it.object.replicas().is_some() && manifests.autoscaler(it.object.kind(), meta).is_some() {
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let name = about(it.object.kind(), namespace, meta.name.as_deref().unwrap_or_default());
            let wrong = "it sets replicas, and an autoscaler sets them too: each apply puts them back";
            let fix = "leave replicas out of the manifest";
            found.push(Finding::new(Rule::ReplicasTwice, Severity::Warning, &it.file, name, wrong, fix));
        }
    }
    for it in &manifests.autoscalers {
        let Some(spec) = it.object.spec.as_ref().filter(|it| it.scale_target_ref.kind == "SpotPool") else {
            continue;
        };
        let Some(metric) = unsafe_metric(spec) else { continue };
        let meta = &it.object.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = about("HorizontalPodAutoscaler", namespace, meta.name.as_deref().unwrap_or_default());
        let wrong = format!(
            "its {} metric is no AverageValue of an external or object metric: the HPA multiplies it by pods that a SpotPool does not have",
            metric.type_
        );
        let fix = "use a target of type AverageValue, see docs/how-to/demand.md";
        found.push(Finding::new(Rule::SpotPoolMetric, Severity::Error, &it.file, name, wrong, fix));
    }
    found
}
