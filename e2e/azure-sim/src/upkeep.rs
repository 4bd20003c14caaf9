//! What happens to Nodes between their registration and their end.
//!
//! Kubelets stop and start again (a machine is deallocated, or gets another image), AKS cordons and drains for
//! upgrades and scale-downs, and puts labels and taints back that the pool declares. AKS also refuses, by a
//! webhook, requests that would take those off; here they are accepted and undone.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use crate::api::{Identity, VmPhase};
use crate::body;
use crate::model::WantedNode;
use crate::node_policy;
use crate::nodes::{self, NodeApi};
use crate::sim::Sim;

/// What the cloud provider puts on the Node of a machine that is stopped or deallocated.
const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";
/// KWOK plays the kubelets of Nodes with this label, of the value `kwok`.
const PLAYED: &str = "type";

/// What a Node was last made to show.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    phase: VmPhase,
    ready: bool,
    cordoned: bool,
    reboots: u32,
}

impl Shown {
    fn wanted(node: &WantedNode) -> Self {
        Self {
            phase: node.vm.phase,
            ready: node.ready,
            cordoned: node.vm.draining_since.is_some(),
            reboots: node.vm.reboots,
        }
    }

    /// A Node that has just been created.
    fn created(node: &WantedNode) -> Self {
        Self { ready: true, cordoned: false, phase: VmPhase::Running, reboots: node.vm.reboots }
    }

    fn same(&self, other: &Self) -> bool {
        (self.ready, self.cordoned, self.reboots) == (other.ready, other.cordoned, other.reboots)
    }
}

/// Looks after the Nodes that exist.
#[derive(Debug, Default)]
pub struct Upkeep {
    shown: HashMap<String, Shown>,
    /// Whether pods are on their way out, so that somebody should look again soon.
    pub draining: bool,
}

impl Upkeep {
    /// One pass over the Nodes of these machines. `look`: also at what others have done to them.
    pub async fn pass(
        &mut self,
        sim: &Sim,
        api: &impl NodeApi,
        identity: &Identity,
        wanted: &[WantedNode],
        look: bool,
    ) -> Result<(), String> {
        self.draining = false;
        let by_name: HashMap<&str, &WantedNode> =
            wanted.iter().map(|node| (node.vm.node.as_str(), node)).collect();
        self.shown.retain(|name, _| by_name.contains_key(name.as_str()));
        let mut problem = None;
        for node in wanted.iter().filter(|node| node.vm.registered_at.is_some()) {
            let name = &node.vm.node;
            let target = Shown::wanted(node);
            let before = self.shown.entry(name.clone()).or_insert_with(|| Shown::created(node)).clone();
            if !before.same(&target) {
                match show(sim, api, identity, node, &before).await {
                    Ok(()) => drop(self.shown.insert(name.clone(), target)),
                    Err(error) => problem = Some(format!("changing {name}: {error}")),
                }
            }
            if node.vm.draining_since.is_some() && node.vm.drained_at.is_none() && node.ready {
                match drain(sim, api, name).await {
                    Ok(left) => self.draining |= left > 0,
                    Err(error) => problem = Some(format!("draining {name}: {error}")),
                }
            }
        }
        if look && wanted.iter().any(|node| node.put_back || !node.ready) {
            match api.read_all(&nodes::cluster_label(identity)).await {
                Ok(found) => {
                    for node in &found {
                        let Some(wanted) = by_name.get(node.name_any().as_str()) else { continue };
                        if let Err(error) = put_back(api, node, wanted).await {
                            problem = Some(format!("putting back {}: {error}", node.name_any()));
                        }
                    }
                }
                Err(error) => problem = Some(format!("reading Nodes: {error}")),
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// A Node was created anew: whatever the one before it showed means nothing.
    pub fn created(&mut self, node: &str) {
        self.shown.remove(node);
    }
}

/// Makes a Node show what its machine does.
async fn show(
    sim: &Sim,
    api: &impl NodeApi,
    identity: &Identity,
    wanted: &WantedNode,
    before: &Shown,
) -> Result<(), nodes::Failure> {
    let name = &wanted.vm.node;
    // Before KWOK takes the Node up again, which writes back what it then finds.
    if wanted.vm.reboots != before.reboots {
        let boot_id = nodes::boot_id(&wanted.vm);
        let kubelet = format!("v{}", body::text(&wanted.properties, "orchestratorVersion"));
        let info = json!({"status": {"nodeInfo": {"bootID": boot_id, "kubeletVersion": kubelet}}});
        api.patch_status(name, &info).await?;
    }
    let Some(node) = api.read(name).await? else { return Ok(()) };
    if before.ready && !wanted.ready {
        // Whatever ran there runs no more; only another image ends its pods in the eyes of Kubernetes too.
        let pods = api.pods(name).await?;
        nodes::note(sim, name, &pods);
        if wanted.vm.phase == VmPhase::Reimaging {
            for pod in &pods {
                api.kill(pod).await?;
            }
        }
    }
    let shutdown = wanted.vm.phase == VmPhase::Deallocated;
    let mut taints: Vec<Value> = taints(&node).into_iter().filter(|taint| taint["key"] != SHUTDOWN).collect();
    if shutdown {
        taints.push(json!({"key": SHUTDOWN, "effect": "NoSchedule"}));
    }
    let image = if wanted.vm.image.is_empty() {
        body::text(&wanted.properties, "nodeImageVersion")
    } else {
        wanted.vm.image.as_str()
    };
    let mut patch = json!({
        "metadata": {
            "resourceVersion": node.resource_version(),
            "labels": {
                PLAYED: if wanted.ready { json!("kwok") } else { Value::Null },
                "kubernetes.azure.com/node-image-version": image,
            },
        },
        "spec": {"taints": taints},
    });
    let cordoned = wanted.vm.draining_since.is_some();
    if cordoned != before.cordoned {
        patch["spec"]["unschedulable"] = json!(cordoned);
    }
    api.patch(name, &patch).await?;
    if before.ready && !wanted.ready {
        not_ready(api, &node).await?;
    }
    tracing::info!(node = name, ready = wanted.ready, cordoned, cluster = identity.cluster, "Node changed");
    Ok(())
}

async fn not_ready(api: &impl NodeApi, node: &Node) -> Result<(), nodes::Failure> {
    let condition = json!({
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
    });
    api.patch_status(&node.name_any(), &json!({"status": {"conditions": [condition]}})).await
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn taints(node: &Node) -> Vec<Value> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.map(|taint| json!(taint)).collect()
}

/// Evicts the pods of a Node, as often as it takes; answers how many are left.
async fn drain(sim: &Sim, api: &impl NodeApi, name: &str) -> Result<usize, nodes::Failure> {
    let pods = api.pods(name).await?;
    let to_go: Vec<&Pod> = pods.iter().filter(|pod| is_drained(pod)).collect();
    for pod in to_go.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        api.evict(pod).await?;
    }
    if to_go.is_empty() {
        sim.change(|cloud, now| cloud.node_drained(name, now));
        tracing::info!(node = name, "Node drained by AKS");
    }
    Ok(to_go.len())
}

/// Whether a drain waits for this pod: not for those of DaemonSets, static ones, and those that have ended.
fn is_drained(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed")
        && !pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet")
        && !pod.annotations().contains_key("kubernetes.io/config.mirror")
}

/// Undoes what others have done to what the pool declares, and to a Node whose kubelet does not run.
async fn put_back(api: &impl NodeApi, node: &Node, wanted: &WantedNode) -> Result<(), nodes::Failure> {
    if !wanted.ready && is_ready(node) {
        not_ready(api, node).await?;
    }
    if !wanted.put_back {
        return Ok(());
    }
    let mut labels = Map::new();
    for (key, value) in wanted.properties.get("nodeLabels").and_then(Value::as_object).into_iter().flatten() {
        if node.labels().get(key).map(String::as_str) != value.as_str() {
            labels.insert(key.clone(), value.clone());
        }
    }
    let mut all = taints(node);
    let missing: Vec<Value> = body::texts(&wanted.properties, "nodeTaints")
        .iter()
        .filter_map(|text| nodes::taint(text))
        .filter(|declared| {
            !all.iter()
                .any(|taint| ["key", "value", "effect"].iter().all(|part| taint[part] == declared[part]))
        })
        .collect();
    let annotations: Map<String, Value> = node_policy::annotations(&wanted.properties)
        .into_iter()
        .filter(|(key, text)| node.annotations().get(*key) != Some(text))
        .map(|(key, text)| (key.to_owned(), json!(text)))
        .collect();
    if labels.is_empty() && missing.is_empty() && annotations.is_empty() {
        return Ok(());
    }
    tracing::info!(node = node.name_any(), ?labels, ?missing, "AKS puts back what the pool declares");
    all.retain(|taint| {
        !missing.iter().any(|new| new["key"] == taint["key"] && new["effect"] == taint["effect"])
    });
    all.extend(missing);
    let patch = json!({
        "metadata": {
            "resourceVersion": node.resource_version(), "labels": labels, "annotations": annotations,
        },
        "spec": {"taints": all},
    });
    api.patch(&node.name_any(), &patch).await
}
