//! Whose a node is, and what happens to it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use spotpool_crds::eviction::{Claimant, EvictionNotice};
use spotpool_crds::voluntary_drain::{DrainRequest, DrainStatus};
use spotpool_crds::{SpotPool, names};

use super::{Section, remedy, render_sections, when};
use crate::cluster::pool_of;
use crate::status::role;
use crate::table::{Tone, cut, paint};

/// A node, explained.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Its name.
    pub node: String,
    /// The SpotPool that has it, `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What it is worth now, in a word.
    pub state: &'static str,
    /// How that is meant.
    #[serde(skip)]
    pub tone: Tone,
    /// Under headings.
    pub sections: Vec<Section>,
}

/// What an annotation says, or that nobody can read it.
pub(crate) fn annotation<T: DeserializeOwned>(node: &Node, key: &str) -> Option<Result<T, String>> {
    let text = node.annotations().get(key)?;
    Some(serde_json::from_str(text).map_err(|error| format!("annotation {key} cannot be read: {error}")))
}

/// Whether a Node is Ready, and since when.
pub(crate) fn readiness(node: &Node) -> Option<(bool, Option<Timestamp>)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status == "True", ready.last_transition_time.as_ref().map(|time| time.0)))
}

/// Whether it takes no new pods.
pub(crate) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default()
}

/// Explains it from what stands on it and on its SpotPool.
pub fn view(node: &Node, pool: Option<&SpotPool>, now: Timestamp) -> View {
    let notice = annotation::<EvictionNotice>(node, names::EVICTION_ANNOTATION);
    let request = annotation::<DrainRequest>(node, names::DRAIN_REQUEST_ANNOTATION);
    let noticed = matches!(&notice, Some(Ok(notice)) if notice.is_active());
    let ready = readiness(node).is_some_and(|(ready, _)| ready);
    let (state, tone) = match () {
        () if noticed => ("under notice", Tone::Bad),
        () if request.is_some() => ("asked to leave", Tone::Warn),
        () if !ready => ("not ready", Tone::Bad),
        () if is_cordoned(node) => ("cordoned", Tone::Warn),
        () => ("at work", Tone::Good),
    };
    let sections = vec![
        Section { about: "Whose it is", says: owner(node, pool, now) },
        Section { about: "What happens to it", says: events(node, notice, request, now) },
        Section { about: "What the operator says of it", says: operator(node, pool) },
    ];
    let of = pool_of(node).map(|(namespace, name)| format!("{namespace}/{name}"));
    View { node: node.name_any(), pool: of, state, tone, sections }
}

/// As text.
pub fn render(view: &View, prose: usize) -> String {
    let name = paint(Tone::Strong, &cut(&format!("Node {}", view.node), prose));
    format!("{name}\nState      {}\n{}", paint(view.tone, view.state), render_sections(&view.sections, prose))
}

fn owner(node: &Node, pool: Option<&SpotPool>, now: Timestamp) -> Vec<String> {
    let mut says = Vec::new();
    let agent_pool = node.labels().get(names::AGENT_POOL_LABEL);
    match (pool_of(node), pool, agent_pool) {
        (Some((namespace, name)), known, _) => {
            says.push(format!("it is of SpotPool {namespace}/{name}"));
            if known.is_none() {
                says.push("that SpotPool does not exist, or you may not read it".into());
            }
        }
        (None, _, Some(agent_pool)) => says.push(format!(
            "it is of no SpotPool: none names agent pool {agent_pool}, or its operator has not labelled the node yet"
        )),
        (None, _, None) => {
            says.push(format!("it is of no SpotPool, and no node of AKS: it lacks label {}", names::AGENT_POOL_LABEL));
        }
    }
    if let Some(agent_pool) = agent_pool {
        let status = pool.and_then(|pool| pool.status.as_ref());
        let known = status.and_then(|status| status.agent_pools.iter().find(|it| it.name == *agent_pool));
        let what = known.map(|known| {
            let price =
                known.price.as_ref().map(|price| format!(", {} {} an hour", price.hourly, price.currency));
            format!(" ({}, {}{})", role(known.role), known.vm_size, price.unwrap_or_default())
        });
        says.push(format!("agent pool {agent_pool}{}", what.unwrap_or_default()));
    }
    if let Some(made) = &node.metadata.creation_timestamp {
        says.push(format!("it joined at {}", when(made.0, now)));
    }
    says
}

fn events(
    node: &Node,
    notice: Option<Result<EvictionNotice, String>>,
    request: Option<Result<DrainRequest, String>>,
    now: Timestamp,
) -> Vec<String> {
    let mut says = Vec::new();
    match readiness(node) {
        Some((true, Some(since))) => says.push(format!("Ready since {}", when(since, now))),
        Some((false, Some(since))) => says.push(format!("not Ready since {}", when(since, now))),
        Some(_) => {}
        None => says.push("its kubelet has not said yet whether it is Ready".into()),
    }
    let has_notice = matches!(&notice, Some(Ok(notice)) if notice.is_active());
    match notice {
        Some(Ok(notice)) => says.extend(told(&notice, now)),
        Some(Err(error)) => says.push(error),
        None => {}
    }
    let has_request = request.is_some();
    match request {
        Some(Ok(request)) => says.push(format!(
            "the operator asked it to drain ({:?}); its agent gives up at {}",
            request.reason,
            when(request.not_after, now)
        )),
        Some(Err(error)) => says.push(error),
        None => {}
    }
    match annotation::<DrainStatus>(node, names::DRAIN_STATUS_ANNOTATION) {
        Some(Ok(status)) => {
            let held = match status.blocking_pdbs.as_slice() {
                [] => String::new(),
                budgets => format!(", held by disruption budgets {}", budgets.join(", ")),
            };
            says.push(format!("its agent answers {:?}: {} pods left{held}", status.phase, status.pods_left));
        }
        Some(Err(error)) => says.push(error),
        None if has_request => says.push("its agent has not answered yet".into()),
        None => {}
    }
    if let Some(wish) = node.annotations().get(names::REQUESTED_DRAIN_ANNOTATION) {
        says.push(format!(
            "a person wishes it drained and replaced (`{wish}`); the operator has not granted that yet"
        ));
    }
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    for taint in taints {
        let what = match taint.key.as_str() {
            names::OUT_OF_SERVICE_TAINT => {
                "its VM does not run: it is out of service, and its pods are set free"
            }
            names::AKS_REMEDIATOR_TAINT => "AKS's own auto-drain has closed it",
            names::AUTOSCALER_DELETION_TAINT => "the cluster autoscaler is about to delete it",
            names::SHUTDOWN_TAINT => "its VM is stopped or deallocated",
            _ => continue,
        };
        says.push(what.into());
    }
    if is_cordoned(node) && !has_notice && !has_request {
        says.push(format!(
            "it is cordoned, not by a notice that holds: `kubectl uncordon {}` opens it",
            node.name_any()
        ));
    }
    says
}

fn told(notice: &EvictionNotice, now: Timestamp) -> Vec<String> {
    let by = match notice.by {
        Claimant::NodeAgent => "its agent",
        Claimant::Operator => "the operator, in its agent's stead",
    };
    let pods = notice.pods;
    let lead = notice.deadline.duration_since(notice.observed_at).as_secs();
    let mut says = vec![
        format!(
            "Azure announced {} (event {}); seen {}, {lead}s before its deadline, by {by}",
            notice.event_type,
            notice.event_id,
            when(notice.observed_at, now)
        ),
        format!(
            "{:?}, response {:?}: {} pods evicted, {} deleted past their budget, {} left; to be over by {}",
            notice.phase,
            notice.response,
            pods.evicted,
            pods.escalated,
            pods.left,
            when(notice.deadline, now)
        ),
    ];
    says.extend(notice.unfinished.iter().take(10).map(|pod| format!("not seen off: {pod}")));
    says
}

fn operator(node: &Node, pool: Option<&SpotPool>) -> Vec<String> {
    let Some(status) = pool.and_then(|pool| pool.status.as_ref()) else { return Vec::new() };
    let name = node.name_any();
    let agent_pool = node.labels().get(names::AGENT_POOL_LABEL);
    let about = status.plan.iter().filter(|step| {
        step.message.contains(&name) || step.agent_pool.is_some() && step.agent_pool.as_ref() == agent_pool
    });
    let mut says: Vec<String> = Vec::new();
    for step in about {
        says.push(format!("{}: {}", step.reason, step.message));
        says.extend(remedy(step.reason).map(|remedy| format!("to change that: {remedy}")));
    }
    if status.fallback.draining.contains(&name) {
        says.push("it is among the nodes that are asked to drain".into());
    }
    if says.is_empty() {
        says.push("nothing is planned for it".into());
    }
    says
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value, reason = "tests read better so")]

    use super::*;
    use serde_json::json;

    fn node(spec: serde_json::Value, annotations: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "aks-spota-1-vmss000000",
            "creationTimestamp": "2026-11-21T11:00:00Z", "annotations": annotations,
            "labels": {"spotpool.dev/pool": "workers", "spotpool.dev/pool-namespace": "batch",
                "kubernetes.azure.com/agentpool": "spota"}},
            "spec": spec, "status": {"conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-11-21T11:01:00Z"}]}}))
        .unwrap()
    }

    fn told(node: &Node) -> (String, &'static str) {
        let view = view(node, None, "2026-11-21T12:00:10Z".parse().unwrap());
        (anstream::adapter::strip_str(&render(&view, 300)).to_string(), view.state)
    }

    #[test]
    fn a_node_under_notice_says_whose_it_is_and_how_far_its_drain_is() {
        let notice = json!({"by": "Operator", "eventId": "E1", "type": "Preempt", "source": "IMDS",
            "observedAt": "2026-11-21T12:00:00Z", "deadline": "2026-11-21T12:00:30Z", "phase": "Draining",
            "pods": {"evicted": 3, "escalated": 1, "left": 2}, "cordoned": true, "bootID": "b"});
        let annotations = json!({names::EVICTION_ANNOTATION: notice.to_string()});
        let (text, state) = told(&node(json!({"unschedulable": true}), annotations));
        assert_eq!(state, "under notice");
        for wanted in [
            "it is of SpotPool batch/workers",
            "Azure announced Preempt (event E1); seen 2026-11-21T12:00:00Z, 10s ago, 30s before its deadline, by the operator",
            "3 pods evicted, 1 deleted past their budget, 2 left; to be over by 2026-11-21T12:00:30Z, in 20s",
        ] {
            assert!(text.contains(wanted), "`{wanted}` is not in\n{text}");
        }
        assert!(!text.contains("kubectl uncordon"), "{text}");
    }

    #[test]
    fn a_cordon_of_nobody_and_an_annotation_of_nonsense_are_told() {
        let (text, state) =
            told(&node(json!({"unschedulable": true}), json!({names::EVICTION_ANNOTATION: "{"})));
        assert_eq!(state, "cordoned");
        assert!(text.contains("kubectl uncordon aks-spota-1-vmss000000"), "{text}");
        assert!(text.contains("annotation spotpool.dev/eviction cannot be read"), "{text}");
        let (text, state) = told(&node(json!({}), json!({names::REQUESTED_DRAIN_ANNOTATION: "please"})));
        assert_eq!(state, "at work");
        assert!(text.contains("a person wishes it drained and replaced (`please`)"), "{text}");
    }
}
