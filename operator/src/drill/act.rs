//! Asks what a step of a drill wants asked. What becomes of it is noted in status; what is not known is asked again by the next
//! steps, of the same machine.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure::Class;
use spotpool_core::drill::{Ask, Machine};
use spotpool_crds::drill::{DrillRun, Target};
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest};
use tokio::time::timeout;

use super::Parts;
use super::controller::PATIENCE;
use crate::agent_pools::AgentPools;
use crate::vms::Vms;

/// Where a drain request stands in a Node, as JSON patches have it.
const REQUEST: &str = "/metadata/annotations/spotpool.dev~1drain-request";

/// What became of one ask.
#[derive(Clone)]
enum Answer {
    /// It was taken.
    Taken,
    /// It was refused, and would be again.
    Refused(String),
    /// Nothing is known, or it will be asked anew.
    Unknown,
}

/// Asks all at once, and notes in `run` what became of it.
pub async fn act(client: &Client, parts: &Parts, nodes: &[Arc<Node>], asks: &[Ask], run: &mut DrillRun) {
    let answers = futures::future::join_all(asks.iter().map(|ask| one(client, parts, nodes, ask))).await;
    let now = Time((parts.clock)());
    for (ask, answer) in asks.iter().zip(answers) {
        let of: Vec<&String> = match ask {
            Ask::Evict { node, .. } | Ask::Drain { node, .. } => vec![node],
            Ask::Delete { machines, .. } => machines.iter().map(|machine| &machine.node).collect(),
            Ask::Withdraw { .. } => continue,
        };
        for target in run.targets.iter_mut().filter(|target| of.contains(&&target.node)) {
            note(target, answer.clone(), &now);
        }
    }
}

fn note(target: &mut Target, answer: Answer, now: &Time) {
    match answer {
        Answer::Taken => target.asked_at = Some(now.clone()),
        Answer::Refused(why) => target.refused = why,
        Answer::Unknown => {}
    }
}

async fn one(client: &Client, parts: &Parts, nodes: &[Arc<Node>], ask: &Ask) -> Answer {
    match ask {
        Ask::Evict { node, vm } => evict(&parts.vms, node, vm).await,
        Ask::Delete { agent_pool, machines } => delete(&parts.agent_pools, nodes, agent_pool, machines).await,
        Ask::Drain { node, uid, request, not_after } => {
            let request = DrainRequest {
                id: request.clone(),
                reason: DrainReason::Drill,
                voluntary: true,
                not_after: *not_after,
                spot_pool: None,
            };
            let Ok(text) = serde_json::to_string(&request) else { return Answer::Unknown };
            // Whoever else has asked for a drain meanwhile is not overruled: an absent value is tested as null.
            let patch = json!([is_node(uid), {"op": "test", "path": REQUEST, "value": null},
                {"op": "add", "path": REQUEST, "value": text}]);
            write(client, node, patch).await
        }
        Ask::Withdraw { node, uid } => {
            let found = nodes.iter().find(|it| it.uid().as_deref() == Some(uid.as_str()));
            let Some(text) = found.and_then(|it| it.annotations().get(names::DRAIN_REQUEST_ANNOTATION))
            else {
                return Answer::Unknown;
            };
            withdraw(client, node, uid, text).await
        }
    }
}

async fn evict(vms: &Vms, node: &str, vm: &str) -> Answer {
    let Ok(answer) = timeout(PATIENCE, vms.simulate_eviction(vm)).await else {
        tracing::warn!(node, vm, "no answer from Azure to a drill within {PATIENCE:?}");
        return Answer::Unknown;
    };
    match answer {
        Ok(()) => {
            tracing::info!(node, vm, "Azure will evict this VM, for a drill");
            Answer::Taken
        }
        Err(error) => {
            tracing::warn!(node, vm, class = %error.class, code = error.code, message = error.message, "Azure does not evict for a drill");
            match error.class {
                Class::Denied | Class::Invalid | Class::Capacity => Answer::Refused(error.to_string()),
                Class::Conflict if !error.is_local() => Answer::Refused(error.to_string()),
                Class::Conflict | Class::Transient | Class::Throttled => Answer::Unknown,
            }
        }
    }
}

async fn delete(
    agent_pools: &AgentPools,
    nodes: &[Arc<Node>],
    agent_pool: &str,
    machines: &[Machine],
) -> Answer {
    let is_same = |machine: &Machine| {
        nodes.iter().any(|node| {
            let vm = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref());
            node.uid().as_deref() == Some(machine.uid.as_str()) && vm == Some(machine.vm.as_str())
        })
    };
    // AKS goes by names alone.
    if let Some(other) = machines.iter().find(|machine| !is_same(machine)) {
        return Answer::Refused(format!("{} is not the node any more that was chosen", other.node));
    }
    let names: Vec<String> = machines.iter().map(|machine| machine.node.clone()).collect();
    match agent_pools.delete_machines(agent_pool, &names).await {
        Ok(()) => {
            tracing::info!(agent_pool, machines = ?names, "AKS deletes these machines, for a drill");
            Answer::Taken
        }
        Err(error) => {
            tracing::warn!(agent_pool, class = %error.class, code = error.code, message = error.message, "AKS does not delete for a drill");
            match error.class {
                // One of them is gone, or was asked for already: their Nodes will tell.
                Class::Invalid if error.code == "InvalidParameter" => Answer::Unknown,
                Class::Denied | Class::Invalid | Class::Capacity => Answer::Refused(error.to_string()),
                Class::Conflict | Class::Transient | Class::Throttled => Answer::Unknown,
            }
        }
    }
}

/// Takes a drain request back, if it is still the one of this text; the agent opens the node.
pub async fn withdraw_stray(client: &Client, node: &Node, text: &str) {
    withdraw(client, &node.name_any(), &node.uid().unwrap_or_default(), text).await;
}

async fn withdraw(client: &Client, node: &str, uid: &str, text: &str) -> Answer {
    let patch = json!([is_node(uid), {"op": "test", "path": REQUEST, "value": text},
        {"op": "remove", "path": REQUEST}]);
    write(client, node, patch).await
}

fn is_node(uid: &str) -> Value {
    json!({"op": "test", "path": "/metadata/uid", "value": uid})
}

async fn write(client: &Client, node: &str, patch: Value) -> Answer {
    let params = PatchParams {
        field_manager: Some(names::OPERATOR_FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = match serde_json::from_value(patch) {
        Ok(patch) => Patch::<Node>::Json(patch),
        Err(error) => return Answer::Refused(error.to_string()),
    };
    match Api::<Node>::all(client.clone()).patch(node, &params, &patch).await {
        Ok(_) => Answer::Taken,
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => Answer::Refused(status.message),
        // Gone, or not as it was: the next step sees how it is.
        Err(error) => {
            tracing::debug!(node, %error, "a drill's write of a Node did not come off");
            Answer::Unknown
        }
    }
}
