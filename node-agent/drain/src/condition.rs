//! Marking a pod as disrupted before it is deleted, as the API server does by itself when it evicts one: a Job whose
//! `podFailurePolicy` ignores disruptions does not count it as failed.

use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use kube::Client;
use serde_json::json;

use crate::answer::{Answer, ask, path};
use crate::pods::Pod;

/// Kubernetes' own condition type.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Says whose deletion it was, beside Kubernetes' own `EvictionByEvictionAPI`, `DeletionByPodGC`, ….
const REASON: &str = "DeletionBySpotPool";

/// Sets the condition; says whether that is done, or can no longer be.
pub async fn mark(client: &Client, pod: Arc<Pod>) -> bool {
    let now = format!("{:.0}", Timestamp::now());
    let patch = json!({
        // A successor of the same name is refused by it.
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [{
            "type": DISRUPTION_TARGET, "status": "True", "reason": REASON, "lastTransitionTime": now,
            "message": "SpotPool: deleted past its disruption budget, because its VM is about to go",
        }]},
    });
    let answer = ask(
        client,
        Method::PATCH,
        format!("{}/status", path(&pod)),
        "application/strategic-merge-patch+json",
        serde_json::to_vec(&patch),
    )
    .await;
    match &answer {
        Answer::Accepted | Answer::Gone => true,
        answer => {
            tracing::warn!(
                pod = format_args!("{}/{}", pod.namespace, pod.name),
                ?answer,
                "not marked as disrupted"
            );
            false
        }
    }
}
