//! Carries a plan out. Every write is safe to repeat and safe to die after: intentions are in status before
//! Azure is asked, agent pools are written with `If-Match`, nodes with their uid.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure::{AzureError, Class, Urgency};
use spotpool_core::{Action, Plan};
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::{Operation, OperationKind};
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest};
use spotpool_crds::{NodePolicy, Reason, SpotPool, names};
use spotpool_drain::edit::Edit;
use spotpool_drain::marks;
use spotpool_drain::node::{self as drain, NodeHandle};

use super::controller::Context;
use super::gather::Gathered;
use super::{Error, creation};
use crate::agent_pools::{AgentPools, Known};

/// Nodes patched in one go: labels and policies are not urgent.
const NODES_AT_A_TIME: usize = 50;
const PATCHES_AT_ONCE: usize = 8;
/// What cannot be written for so long is planned again.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of the plan's actions.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Actions that were carried out.
    pub done: Vec<Action>,
    /// Agent pools whose write failed.
    pub failed: BTreeMap<String, AzureError>,
    /// The first Kubernetes write that failed; the rest was still tried.
    pub error: Option<Error>,
    /// From when to when each agent pool's write was under way.
    pub took: BTreeMap<String, (Timestamp, Timestamp)>,
}

/// The operations that the plan will start, by agent pool.
pub fn intentions(plan: &Plan, now: Timestamp) -> BTreeMap<String, Operation> {
    // Kubernetes keeps whole seconds. Rounded up, a node that came just before is not taken for a new one.
    let since = Time(Timestamp::from_second(now.as_second() + 1).unwrap_or(now));
    let operation = |action: &Action| {
        let (kind, count, machines, coming) = match action {
            Action::ScaleUp { new, coming, count, .. } => (OperationKind::ScaleUp, *count, *new, *coming),
            Action::DeleteMachines { nodes, remaining, .. } => {
                (OperationKind::DeleteMachines, *remaining, nodes.len() as u32, 0)
            }
            Action::CorrectCount { count, .. } => (OperationKind::CorrectCount, *count, 0, 0),
            Action::SetMinimum { min, .. } => (OperationKind::SetMinimum, *min, 0, 0),
            Action::CreateAgentPool { .. } => (OperationKind::CreateAgentPool, 0, 0, 0),
            Action::Restart { .. }
            | Action::TakeOutOfService { .. }
            | Action::ReturnToService { .. }
            | Action::RequestDrain { .. }
            | Action::WithdrawDrain { .. } => return None,
        };
        let (count, machines, coming) = (count as i32, machines as i32, coming as i32);
        let operation =
            Operation { kind, count, machines, coming, since: since.clone(), arrived: 0, accepted: false };
        Some((action.agent_pool()?.to_owned(), operation))
    };
    plan.actions.iter().filter_map(operation).collect()
}

/// Carries the plan out: agent pools first and all at once, then nodes.
pub async fn act(
    context: &Context,
    pool: &SpotPool,
    gathered: &Gathered,
    plan: &Plan,
    now: Timestamp,
) -> Outcome {
    let mut outcome = write_agent_pools(&context.parts.agent_pools, pool, &gathered.azure, plan).await;
    for action in &outcome.done {
        if let (true, Some(noticed)) = (is_emergency(action), gathered.newest_notice) {
            let since = context.parts.agent_pools.now().duration_since(noticed);
            let trace = context.parts.traces.exemplar(&pool.uid().unwrap_or_default(), gathered);
            context.metrics.replacement_requested(since.as_secs_f64().max(0.0), trace);
        }
    }

    let services = plan.actions.iter().map(|action| service(context, gathered, action));
    for (action, result) in plan.actions.iter().zip(futures::future::join_all(services).await) {
        match result {
            None => {}
            Some(Ok(())) => outcome.done.push(action.clone()),
            Some(Err((agent_pool, error))) => {
                tracing::warn!(agent_pool, class = %error.class, code = error.code, message = error.message, "Azure does not start a VM");
                outcome.failed.insert(agent_pool, error);
            }
        }
    }

    let mut patches = Vec::new();
    for action in &plan.actions {
        if let Some((node, patch)) = drain_patch(pool, gathered, action, now) {
            patches.push((Some(action.clone()), node, patch));
        }
    }
    patches.extend(membership(pool, gathered).into_iter().map(|(node, patch)| (None, node, patch)));
    let nodes: Api<Node> = Api::all(context.client.clone());
    let mut results = futures::stream::iter(patches)
        .map(|(action, node, patch)| patch_node(nodes.clone(), action, node, patch))
        .buffer_unordered(PATCHES_AT_ONCE);
    while let Some((action, result)) = results.next().await {
        match result {
            Ok(node) => {
                context.parts.nodes.note_written(node);
                outcome.done.extend(action);
            }
            // The node is gone, or another node of that name is there: the next plan knows.
            Err(kube::Error::Api(status))
                if status.code == 404 || (status.code == 409 && action.is_none()) => {}
            Err(error) => outcome.error = Some(Error::kubernetes("patch a Node")(error)),
        }
    }
    outcome
}

/// The plan's writes to Azure, all at once: no agent pool waits for another.
pub async fn write_agent_pools(
    agent_pools: &AgentPools,
    pool: &SpotPool,
    planned: &BTreeMap<String, Known>,
    plan: &Plan,
) -> Outcome {
    let writes = plan.actions.iter().filter_map(|action| {
        let agent_pool = action.agent_pool()?;
        Some(async move {
            let began = agent_pools.now();
            let result = match action {
                Action::ScaleUp { count, .. } => {
                    // Growth can wait; capacity that was there and is not cannot.
                    let lost = is_emergency(action) || plan.memory.lost_since.is_some();
                    let urgency = if lost { Urgency::Emergency } else { Urgency::Routine };
                    match planned.get(agent_pool) {
                        Some(planned) => agent_pools.scale(agent_pool, planned, *count, urgency).await,
                        None => {
                            Err(AzureError::new(Class::Conflict, "AgentPoolGone", "the agent pool is gone"))
                        }
                    }
                }
                Action::DeleteMachines { nodes, .. } => agent_pools.delete_machines(agent_pool, nodes).await,
                Action::CorrectCount { count, .. } => agent_pools.correct_count(agent_pool, *count).await,
                Action::SetMinimum { min, .. } => agent_pools.set_minimum(agent_pool, *min).await,
                Action::CreateAgentPool { .. } => match creation::wanted(pool, agent_pool) {
                    Ok(wanted) => agent_pools.create(&wanted).await,
                    Err(error) => Err(error),
                },
                Action::Restart { .. }
                | Action::TakeOutOfService { .. }
                | Action::ReturnToService { .. }
                | Action::RequestDrain { .. }
                | Action::WithdrawDrain { .. } => Ok(()),
            };
            (action, agent_pool, (began, agent_pools.now()), result)
        })
    });
    let mut outcome = Outcome::default();
    for (action, agent_pool, took, result) in futures::future::join_all(writes).await {
        outcome.took.insert(agent_pool.to_owned(), took);
        match result {
            Ok(()) => outcome.done.push(action.clone()),
            Err(mut error) => {
                // A machine that went by itself makes Azure refuse the whole request: read and plan anew.
                if matches!(action, Action::DeleteMachines { .. }) && error.code == "InvalidParameter" {
                    error.class = Class::Conflict;
                }
                tracing::warn!(agent_pool, class = %error.class, code = error.code, message = error.message, "Azure refused a write");
                outcome.failed.insert(agent_pool.to_owned(), error);
            }
        }
    }
    outcome
}

/// Puts a node out of service or back, or has its VM started; `None` for other actions.
async fn service(
    context: &Context,
    gathered: &Gathered,
    action: &Action,
) -> Option<Result<(), (String, AzureError)>> {
    let of_name = |name: &String| gathered.nodes.iter().find(|node| node.name_any() == *name);
    match action {
        Action::TakeOutOfService { node } | Action::ReturnToService { node } => {
            let on = matches!(action, Action::TakeOutOfService { .. });
            let edit = |_: &drain::Node| Edit { out_of_service: Some(on), ..Edit::default() };
            // One that could not be written is planned again.
            write_node(&context.client, of_name(node)?, edit).await.then_some(Ok(()))
        }
        Action::Restart { agent_pool, nodes } => {
            let mut result = Ok(());
            for node in nodes.iter().filter_map(of_name) {
                // Before it runs: its pods would be evicted, and nothing could be scheduled there.
                let clean = |node: &drain::Node| Edit {
                    out_of_service: Some(false),
                    ..marks::ended(node, Phase::Over)
                };
                if !write_node(&context.client, node, clean).await {
                    continue;
                }
                if let Err(error) = context.parts.vms.start(node).await {
                    result = Err((agent_pool.clone(), error));
                    break;
                }
            }
            Some(result)
        }
        _ => None,
    }
}

/// Writes a Node from how it is now: taints have other writers. Whether it is so in the end.
async fn write_node(client: &Client, node: &Node, edit: impl Fn(&drain::Node) -> Edit) -> bool {
    let (name, uid) = (node.name_any(), node.uid());
    let written = async {
        let live = Api::<drain::Node>::all(client.clone()).get(&name).await.ok()?;
        let live = Some(live).filter(|live| live.metadata.uid == uid)?;
        let (_, watched) = tokio::sync::watch::channel(Some(Arc::new(live)));
        let handle = NodeHandle::new(client.clone(), names::OPERATOR_FIELD_MANAGER, &name, watched);
        Some(handle.write(edit, || ()).await)
    };
    matches!(tokio::time::timeout(NODE_TIMEOUT, written).await, Ok(Some(_)))
}

/// Takes deletions of machines that never became Nodes out of the actions where one has, after all: the watch may be late, and
/// pods may run there.
pub async fn spare_nodes(client: &Client, actions: &mut Vec<Action>) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut spared = Vec::new();
    for action in &*actions {
        let Action::DeleteMachines { nodes: machines, reason: Reason::NeverJoined, .. } = action else {
            continue;
        };
        let is_free = async |machine: &String| matches!(nodes.get_opt(machine).await, Ok(None));
        let mut all_free = true;
        for machine in machines {
            all_free &= is_free(machine).await;
        }
        if !all_free {
            spared.push(action.clone());
        }
    }
    actions.retain(|action| !spared.contains(action));
}

/// Whether capacity is short until it is done.
fn is_emergency(action: &Action) -> bool {
    matches!(action, Action::ScaleUp { reason: Reason::ReplaceEvicted | Reason::FallbackForShortfall, .. })
}

async fn patch_node(
    nodes: Api<Node>,
    action: Option<Action>,
    node: String,
    patch: Value,
) -> (Option<Action>, Result<Node, kube::Error>) {
    let manager = Some(names::OPERATOR_FIELD_MANAGER.to_owned());
    let params = PatchParams { field_manager: manager, ..PatchParams::default() };
    (action, nodes.patch(&node, &params, &Patch::Merge(patch)).await)
}

/// The patch for a drain request or its withdrawal. It is for this very node, as it was seen: one that arrives when another
/// has been written in its stead is refused.
fn drain_patch(
    pool: &SpotPool,
    gathered: &Gathered,
    action: &Action,
    now: Timestamp,
) -> Option<(String, Value)> {
    let (node, annotations) = match action {
        Action::RequestDrain { node, reason, not_after } => {
            let id = format!("{}-{}", reason_prefix(*reason), now.as_millisecond());
            let request = DrainRequest {
                id,
                reason: *reason,
                voluntary: true,
                not_after: *not_after,
                spot_pool: pool.uid(),
            };
            let mut annotations =
                json!({names::DRAIN_REQUEST_ANNOTATION: serde_json::to_string(&request).ok()?});
            if *reason == DrainReason::Manual {
                // Answered by the same write, so once.
                annotations[names::REQUESTED_DRAIN_ANNOTATION] = Value::Null;
            }
            (node, annotations)
        }
        Action::WithdrawDrain { node, .. } => (node, json!({names::DRAIN_REQUEST_ANNOTATION: null})),
        _ => return None,
    };
    let seen = gathered.nodes.iter().find(|found| found.name_any() == *node)?;
    let (uid, version) = (seen.uid()?, seen.resource_version());
    let metadata = json!({"uid": uid, "resourceVersion": version, "annotations": annotations});
    Some((node.clone(), json!({ "metadata": metadata })))
}

fn reason_prefix(reason: DrainReason) -> &'static str {
    use DrainReason::{Drill, Failback, Manual, Repair, ScaleDown};
    match reason {
        Failback => "failback",
        ScaleDown => "scaledown",
        Repair => "repair",
        Drill => "drill",
        Manual => "manual",
    }
}

/// Labels and policy for the nodes that lack them.
fn membership(pool: &SpotPool, gathered: &Gathered) -> Vec<(String, Value)> {
    let (name, namespace) = (pool.name_any(), pool.namespace().unwrap_or_default());
    let policy = NodePolicy::new(&name, &namespace, pool.spec.mode, &pool.spec.drain, &pool.spec.events);
    let Ok(policy) = serde_json::to_string(&policy) else { return Vec::new() };
    let lacking = |node: &&std::sync::Arc<Node>| {
        node.labels().get(names::POOL_LABEL) != Some(&name)
            || node.labels().get(names::POOL_NAMESPACE_LABEL) != Some(&namespace)
            || node.annotations().get(names::POLICY_ANNOTATION) != Some(&policy)
    };
    let patch = |node: &std::sync::Arc<Node>| {
        let metadata = json!({
            "uid": node.uid(),
            "labels": {names::POOL_LABEL: &name, names::POOL_NAMESPACE_LABEL: &namespace},
            "annotations": {names::POLICY_ANNOTATION: &policy},
        });
        (node.name_any(), json!({ "metadata": metadata }))
    };
    gathered.nodes.iter().filter(lacking).take(NODES_AT_A_TIME).map(patch).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// An apiserver that answers every read with this.
    fn apiserver(code: u16, body: &Value) -> Client {
        let body = body.to_string().into_bytes();
        let answer = move |_: Request<Body>| {
            let response = Response::builder().status(code).body(Body::from(body.clone())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    /// A VM whose Node came while the watch was behind would be deleted with the pods on it.
    #[tokio::test]
    async fn a_machine_is_not_deleted_for_having_no_node_unless_the_apiserver_says_so_now() {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m1"}});
        let refusal = |code: u16, reason: &str| json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason});
        let deletion = |reason| Action::DeleteMachines {
            agent_pool: "spota".into(),
            nodes: vec!["m1".into()],
            remaining: 1,
            reason,
        };
        for (code, body, is_deleted, why) in [
            (404, refusal(404, "NotFound"), true, "there is none"),
            (200, node, false, "it is there, the watch was late"),
            (403, refusal(403, "Forbidden"), false, "nothing is known"),
        ] {
            let mut actions = vec![deletion(Reason::NeverJoined), deletion(Reason::LostDeleted)];
            spare_nodes(&apiserver(code, &body), &mut actions).await;
            let is_kept = |reason| actions.contains(&deletion(reason));
            assert_eq!(is_kept(Reason::NeverJoined), is_deleted, "{why}");
            assert!(is_kept(Reason::LostDeleted), "that machine has a Node, which is lost");
        }
    }
}
