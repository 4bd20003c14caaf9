//! A Node as a plan sees it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_core::loss::Lost;
use spotpool_core::{DrainView, NodeView};
use spotpool_crds::names;
use spotpool_crds::spot_pool::Readiness;
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest, DrainStatus};

use super::doomed::Notices;
use crate::node::{agent_pool_of, annotation, conditions, taints};

/// When a node is, or was, ready for work: its Ready condition, the warm-up, and every start-up taint gone. `None` if
/// that is not known yet.
pub(super) fn warm_at(node: &Node, readiness: &Readiness) -> Option<Timestamp> {
    let ready = conditions(node).find(|it| it.type_ == "Ready" && it.status == "True")?;
    if taints(node).any(|taint| readiness.startup_taints.contains(&taint.key)) {
        return None;
    }
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let warmup = Duration::from(readiness.warmup);
    Some(since.saturating_add(SignedDuration::try_from(warmup).ok()?).unwrap_or(Timestamp::MAX))
}

pub(super) fn node_view(
    node: &Node,
    notices: &Notices,
    is_warm: bool,
    lost: Option<Lost>,
    uid: Option<&str>,
) -> Option<NodeView> {
    let request: Option<DrainRequest> = annotation(node, names::DRAIN_REQUEST_ANNOTATION);
    let status: Option<DrainStatus> = annotation(node, names::DRAIN_STATUS_ANNOTATION);
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let leaving = node.metadata.deletion_timestamp.is_some();
    // A rehearsal is the drill's alone: the node is closed for a moment, and stays.
    let is_drill = |request: &DrainRequest| request.reason == DrainReason::Drill;
    let rehearsed = request.as_ref().is_some_and(is_drill) && is_warm && !leaving;
    let request = request.filter(|request| !is_drill(request));
    Some(NodeView {
        name: node.name_any(),
        agent_pool: agent_pool_of(node)?.to_owned(),
        created: node.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0),
        ready: is_warm && !cordoned && !leaving,
        cordoned: cordoned && !rehearsed,
        rehearsed,
        noticed: notices
            .on(node)
            .filter(|notice| notice.takes_capacity())
            .map(|notice| notice.observed_at)
            .or_else(|| notices.names(node)),
        lost,
        out_of_service: is_out_of_service(node),
        drain: request.map(|request| DrainView {
            not_after: request.not_after,
            phase: status.filter(|status| status.id == request.id).map(|status| status.phase),
            reason: request.reason,
            is_ours: request.spot_pool.is_none() || request.spot_pool.as_deref() == uid,
        }),
        drain_wished: node.annotations().contains_key(names::REQUESTED_DRAIN_ANNOTATION),
    })
}

/// Whether the operator has put it out of service.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    taints(node).any(|taint| {
        taint.key == names::OUT_OF_SERVICE_TAINT
            && taint.value.as_deref() == Some(names::OUT_OF_SERVICE_VALUE)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    fn node(name: &str, instance: u64, annotations: &serde_json::Value) -> Arc<Node> {
        let provider = format!(
            "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/aks-spota-1-vmss/virtualMachines/{instance}"
        );
        let node = json!({
            "metadata": {"name": name, "labels": {names::AGENT_POOL_LABEL: "spota"}, "annotations": annotations},
            "spec": {"providerID": provider},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn eviction(event: &str, phase: &str, doomed: &str) -> serde_json::Value {
        let notice = json!({
            "by": "NodeAgent", "eventId": event, "type": "Preempt", "source": "IMDS", "observedAt": "2026-01-01T00:00:00Z",
            "deadline": "2026-01-01T00:00:30Z", "phase": phase, "cordoned": true, "bootID": "b",
            "doomed": [{"eventId": event, "instances": doomed}]
        });
        json!({names::EVICTION_ANNOTATION: notice.to_string()})
    }

    /// Else machines that are on their way are asked for a second time, of another agent pool.
    fn noticed(nodes: &[Arc<Node>]) -> Vec<bool> {
        let notices = Notices::of(nodes);
        nodes
            .iter()
            .map(|node| node_view(node, &notices, true, None, None).unwrap().noticed.is_some())
            .collect()
    }

    #[test]
    fn one_notice_tells_of_siblings_whose_agent_is_silent() {
        let nodes = [
            node("a", 0, &eviction("E1", "Noticed", "0-1")),
            node("b", 1, &json!({})),
            node("c", 2, &json!({})),
        ];
        assert_eq!(noticed(&nodes), [true, true, false]);
    }

    #[test]
    fn a_cancelled_notice_dooms_nobody() {
        let nodes = [node("a", 0, &eviction("E1", "Cancelled", "0-1")), node("b", 1, &json!({}))];
        assert_eq!(noticed(&nodes), [false, false]);
        // The own agent's word on the same event counts more than a sibling's older document.
        let nodes = [
            node("a", 0, &eviction("E1", "Draining", "0-1")),
            node("b", 1, &eviction("E1", "Cancelled", "")),
        ];
        assert_eq!(noticed(&nodes), [true, false]);
    }

    #[test]
    fn a_node_is_worth_nothing_when_its_vm_goes_or_it_is_emptied_and_is_kept_otherwise() {
        for (kind, response, phase, is_lost) in [
            ("Preempt", "Drain", "Noticed", true),
            // Nobody drains it, its VM goes all the same.
            ("Preempt", "Ignore", "Noticed", true),
            ("Reboot", "Drain", "Draining", true),
            ("Reboot", "Cordon", "Noticed", false),
            ("SpotRebalanceRecommendation", "Ignore", "Noticed", false),
            ("SpotRebalanceRecommendation", "Drain", "Drained", true),
            ("Redeploy", "Drain", "Over", false),
            ("Preempt", "Drain", "Over", false),
        ] {
            let notice = json!({"by": "NodeAgent", "eventId": "E", "type": kind, "source": "IMDS", "response": response,
                "observedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:00:30Z", "phase": phase,
                "cordoned": true, "bootID": "b"});
            let node = node("a", 0, &json!({names::EVICTION_ANNOTATION: notice.to_string()}));
            assert_eq!(noticed(&[node]), [is_lost], "{kind} {response} {phase}");
        }
    }

    #[test]
    fn a_node_is_capacity_once_it_is_warm() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let node = |status: &str, taints: &serde_json::Value| -> Node {
            serde_json::from_value(
                json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
            )
            .unwrap()
        };
        let warming = json!([{"key": "example.com/warming", "effect": "NoSchedule"}]);
        let readiness = |warmup: u64| Readiness {
            warmup: spotpool_crds::Duration::from_secs(warmup),
            startup_taints: vec!["example.com/warming".into()],
        };
        for (status, taints, warmup, warm_from) in [
            ("True", &json!([]), 0, Some("2026-01-01T00:00:00Z")),
            ("True", &json!([]), 30, Some("2026-01-01T00:00:30Z")),
            ("True", &json!([{"key": "other", "effect": "NoSchedule"}]), 0, Some("2026-01-01T00:00:00Z")),
            ("True", &warming, 0, None),
            ("False", &json!([]), 0, None),
            ("Unknown", &json!([]), 0, None),
        ] {
            let warm = warm_at(&node(status, taints), &readiness(warmup));
            assert_eq!(warm, warm_from.map(at), "{status} {taints} {warmup}");
        }
    }

    #[test]
    fn an_annotation_that_is_nonsense_is_no_notice() {
        let nodes = [node("a", 0, &json!({names::EVICTION_ANNOTATION: "{\"phase\": 7"}))];
        assert_eq!(noticed(&nodes), [false]);
    }
}
