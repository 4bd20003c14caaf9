//! The Kubernetes side: what kubelets and the cloud-controller-manager would do to Node objects.
//!
//! A level-triggered loop. It holds no memory of what it has done that an outage of the apiserver
//! could make wrong: after any error, and now and then, it lists again.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::api::{Identity, KilledPod, Priority, VmState};
use crate::body;
use crate::model::{WantedNode, cores};
use crate::names::Ids;
use crate::node_policy;
use crate::sim::Sim;
use crate::upkeep::Upkeep;

/// Marks the Nodes that are ours to remove. A Node without it is never touched for being unknown.
pub const CLUSTER_LABEL: &str = "azure-sim.spotpool.dev/cluster";

/// How often to look for Nodes that somebody else removed.
const RESYNC: Duration = Duration::from_secs(5);
/// How long to wait after an error.
const RETRY: Duration = Duration::from_millis(500);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes handled at once.
const AT_ONCE: usize = 32;

/// Whatever went wrong at the apiserver; the loop's answer is always to try again.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What the loop needs of Kubernetes.
pub trait NodeApi: Send + Sync {
    /// Names of the Nodes that carry our label.
    fn list(&self, cluster: &str) -> impl Future<Output = Result<HashSet<String>, Failure>> + Send;
    /// Creates a Node; one that exists already is as good.
    fn create(&self, node: Node) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Deletes a Node; one that is not there is as good.
    fn delete(&self, name: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// The pods bound to a Node.
    fn pods(&self, node: &str) -> impl Future<Output = Result<Vec<Pod>, Failure>> + Send;
    /// Deletes a pod with no grace at all.
    fn kill(&self, pod: &Pod) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Evicts a pod; one that a disruption budget keeps is as good, for now.
    fn evict(&self, pod: &Pod) -> impl Future<Output = Result<(), Failure>> + Send;
    /// A Node.
    fn read(&self, name: &str) -> impl Future<Output = Result<Option<Node>, Failure>> + Send;
    /// The Nodes that carry our label.
    fn read_all(&self, cluster: &str) -> impl Future<Output = Result<Vec<Node>, Failure>> + Send;
    /// Merges into a Node.
    fn patch(&self, name: &str, patch: &Value) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Has declared labels and taints kept on Nodes, or no more.
    fn keep_declared(&self, cluster: &str, keep: bool) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Merges into a Node's status; conditions by their type.
    fn patch_status(&self, name: &str, patch: &Value) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// [`NodeApi`] on a real apiserver.
#[derive(Clone)]
pub struct KubeNodes {
    client: Client,
}

impl KubeNodes {
    /// A client of its own: the loop retries, so the client must not.
    pub fn new(mut config: kube::Config) -> Result<Self, kube::Error> {
        config.default_retry = false;
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        Ok(Self { client: Client::try_from(config)? })
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }
}

/// Takes one kind of API error for success.
fn forgive<T>(result: Result<T, kube::Error>, codes: &[u16]) -> Result<(), Failure> {
    match result {
        Err(kube::Error::Api(status)) if codes.contains(&status.code) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

async fn patiently<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}

/// The precondition that keeps a successor of the same name safe.
fn exactly(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version: None }),
        ..DeleteParams::default()
    }
}

impl NodeApi for KubeNodes {
    async fn list(&self, cluster: &str) -> Result<HashSet<String>, Failure> {
        let ours = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
        let nodes = patiently(self.nodes().list_metadata(&ours)).await?;
        Ok(nodes.into_iter().map(|node| node.name_any()).collect())
    }

    async fn create(&self, node: Node) -> Result<(), Failure> {
        forgive(patiently(self.nodes().create(&PostParams::default(), &node)).await, &[409])
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let nodes = self.nodes();
        let Some(node) = patiently(nodes.get_metadata_opt(name)).await? else { return Ok(()) };
        forgive(patiently(nodes.delete(name, &exactly(node.uid()))).await, &[404, 409])
    }

    async fn pods(&self, node: &str) -> Result<Vec<Pod>, Failure> {
        let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods: Api<Pod> = Api::all(self.client.clone());
        Ok(patiently(pods.list(&bound)).await?.items)
    }

    async fn kill(&self, pod: &Pod) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let at_once = exactly(pod.uid()).grace_period(0);
        forgive(patiently(pods.delete(&pod.name_any(), &at_once)).await, &[404, 409])
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let name = pod.name_any();
        // 429 is a disruption budget, 500 two of them: both are tried again.
        forgive(patiently(pods.evict(&name, &EvictParams::default())).await, &[404, 409, 429, 500])
    }

    async fn read(&self, name: &str) -> Result<Option<Node>, Failure> {
        Ok(patiently(self.nodes().get_opt(name)).await?)
    }

    async fn read_all(&self, cluster: &str) -> Result<Vec<Node>, Failure> {
        let ours = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
        Ok(patiently(self.nodes().list(&ours)).await?.items)
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<(), Failure> {
        let nodes = self.nodes();
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        patiently(nodes.patch(name, &params, &patch)).await?;
        Ok(())
    }

    async fn keep_declared(&self, cluster: &str, keep: bool) -> Result<(), Failure> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.client.clone());
        let name = node_policy::name(cluster);
        if !keep {
            let now = DeleteParams::default();
            forgive(patiently(bindings.delete(&name, &now)).await, &[404])?;
            return forgive(patiently(policies.delete(&name, &now)).await, &[404]);
        }
        let [policy, binding] = node_policy::objects(cluster, CLUSTER_LABEL);
        let ours = PatchParams::apply("spotpool-azure-sim").force();
        patiently(policies.patch(&name, &ours, &Patch::Apply(policy))).await?;
        patiently(bindings.patch(&name, &ours, &Patch::Apply(binding))).await?;
        Ok(())
    }

    async fn patch_status(&self, name: &str, patch: &Value) -> Result<(), Failure> {
        let nodes = self.nodes();
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        patiently(nodes.patch_status(name, &params, &patch)).await?;
        Ok(())
    }
}

/// Keeps Nodes as the machines are, for ever.
pub async fn run(sim: Sim, api: impl NodeApi) {
    let mut changed = sim.nodes_changed();
    let mut keeper = Keeper::default();
    loop {
        changed.mark_unchanged();
        let pause = match keeper.pass(&sim, &api).await {
            Ok(()) if keeper.upkeep.draining => RETRY,
            Ok(()) => RESYNC,
            Err(error) => {
                tracing::warn!(error, "Nodes are not as they should be; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => keeper.known = None,
            // The sender lives as long as `sim` does.
            _ = changed.changed() => {}
        }
    }
}

/// What the loop knows between two passes.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Nodes that exist, as far as we know; absent when we must look.
    known: Option<HashSet<String>>,
    /// Whether the Nodes of an earlier simulator have been cleared away.
    started: bool,
    upkeep: Upkeep,
    /// Whether Nodes keep what their pools declare; nobody knows what an earlier simulator left.
    keeps_declared: Option<bool>,
}

impl Keeper {
    /// One pass: removes the Nodes of machines that are gone, creates those of machines that are up.
    /// Goes as far as it can, and answers the first error.
    pub async fn pass(&mut self, sim: &Sim, api: &impl NodeApi) -> Result<(), String> {
        let (identity, wanted, gone) =
            sim.look(|cloud, _| (cloud.identity.clone(), cloud.wanted_nodes(), cloud.gone_nodes()));
        let look = self.known.is_none();
        let known = match self.known.take() {
            Some(known) => known,
            None => api.list(&cluster_label(&identity)).await.map_err(|error| error.to_string())?,
        };
        let names: HashSet<&str> = wanted.iter().map(|node| node.vm.node.as_str()).collect();
        // Instance ids start again with each simulator, so at first even a known name is another's.
        let stale = known.iter().filter(|name| !self.started || !names.contains(name.as_str())).cloned();
        let leaving: HashSet<String> = gone.into_iter().chain(stale).collect();
        // Collected with loops: closures over borrows would leave the future's lifetimes open.
        let mut removals = Vec::new();
        for name in leaving {
            removals.push(remove(sim, api, name));
        }
        let mut creations = Vec::new();
        for node in &wanted {
            // A machine that does not run registers nothing.
            if node.ready && (!self.started || !known.contains(&node.vm.node)) {
                creations.push(create(sim, api, &identity, node));
            }
        }
        let removals = stream::iter(removals).buffer_unordered(AT_ONCE).collect::<Vec<Done>>();
        let creations = stream::iter(creations).buffer_unordered(AT_ONCE).collect::<Vec<Done>>();
        // At first one after the other: the names may be the same.
        let (removed, created) = if self.started {
            futures::join!(removals, creations)
        } else {
            let removed = removals.await;
            if let Some((_, Err(error))) = removed.iter().find(|(_, result)| result.is_err()) {
                return Err(error.clone());
            }
            (removed, creations.await)
        };
        self.started = true;
        let mut known = known;
        let mut problem = None;
        for (name, result) in removed {
            match result {
                Ok(()) => drop(known.remove(&name)),
                Err(error) => problem = Some(format!("removing {name}: {error}")),
            }
        }
        for (name, result) in created {
            match result {
                Ok(()) => {
                    self.upkeep.created(&name);
                    known.insert(name);
                }
                Err(error) => problem = Some(format!("creating {name}: {error}")),
            }
        }
        if let Some(problem) = problem {
            return Err(problem);
        }
        let keep = sim.look(|cloud, _| cloud.settings.switches.refuse_removal);
        if self.keeps_declared != Some(keep) {
            let done = api.keep_declared(&cluster_label(&identity), keep).await;
            // Whoever has no use for policies need not have the right to remove them.
            if keep || self.keeps_declared.is_some() {
                done.map_err(|error| error.to_string())?;
            }
            self.keeps_declared = Some(keep);
        }
        let wanted = sim.look(|cloud, _| cloud.wanted_nodes());
        self.upkeep.pass(sim, api, &identity, &wanted, look).await?;
        self.known = Some(known);
        Ok(())
    }
}

/// A Node's name, and how the work on it went.
type Done = (String, Result<(), String>);

async fn create(sim: &Sim, api: &impl NodeApi, identity: &Identity, wanted: &WantedNode) -> Done {
    let name = wanted.vm.node.clone();
    let created = match node_object(identity, wanted) {
        Ok(node) => api.create(node).await,
        Err(error) => Err(error.into()),
    };
    if created.is_ok() {
        sim.change(|cloud, now| cloud.node_registered(&name, now));
        tracing::info!(node = name, "Node registered");
    }
    (name, created.map_err(|error| error.to_string()))
}

async fn remove(sim: &Sim, api: &impl NodeApi, name: String) -> Done {
    let removed = remove_with_pods(sim, api, &name).await;
    (name, removed.map_err(|error| error.to_string()))
}

/// The machine is gone, and so is the kubelet that would have ended its pods.
async fn remove_with_pods(sim: &Sim, api: &impl NodeApi, name: &str) -> Result<(), Failure> {
    let mut pods = api.pods(name).await?;
    note(sim, name, &pods);
    api.delete(name).await?;
    // The scheduler may have bound more, until the Node was gone.
    let more = api.pods(name).await?;
    note(sim, name, &more);
    let noted: HashSet<Option<String>> = pods.iter().map(ResourceExt::uid).collect();
    pods.extend(more.into_iter().filter(|pod| !noted.contains(&pod.uid())));
    for pod in &pods {
        api.kill(pod).await?;
    }
    sim.change(|cloud, now| cloud.node_removed(name, now));
    tracing::info!(node = name, pods = pods.len(), "Node removed");
    Ok(())
}

pub(crate) fn note(sim: &Sim, node: &str, pods: &[Pod]) {
    let at = sim.now();
    let killed: Vec<KilledPod> = pods
        .iter()
        .filter_map(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
            let ended = matches!(phase.as_str(), "Succeeded" | "Failed");
            (!ended).then(|| KilledPod {
                at,
                node: node.to_owned(),
                namespace: pod.namespace().unwrap_or_default(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                owner_kind: pod
                    .owner_references()
                    .iter()
                    .find(|owner| owner.controller == Some(true))
                    .map(|owner| owner.kind.clone()),
                phase,
                terminating: pod.metadata.deletion_timestamp.is_some(),
            })
        })
        .collect();
    if !killed.is_empty() {
        sim.change(|cloud, _| cloud.pods_killed(killed));
    }
}

/// Label values have at most 63 characters; AKS cuts the group's name too.
pub(crate) fn cluster_label(identity: &Identity) -> String {
    let cut: String = identity.node_resource_group.chars().take(63).collect();
    cut.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()).to_owned()
}

/// The Node that a machine's kubelet registers.
pub fn node_object(identity: &Identity, wanted: &WantedNode) -> Result<Node, serde_json::Error> {
    let (vm, properties) = (&wanted.vm, &wanted.properties);
    let capacity = capacity(&vm.vm_size, properties.get("maxPods").and_then(Value::as_u64).unwrap_or(110));
    let taints: Vec<Value> = ["nodeTaints", "nodeInitializationTaints"]
        .into_iter()
        .flat_map(|key| body::texts(properties, key))
        .filter_map(|text| taint(&text))
        .collect();
    let mut annotations: BTreeMap<&str, String> = node_policy::annotations(properties).into();
    annotations.insert("kwok.x-k8s.io/node", "fake".to_owned());
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": vm.node,
            "labels": labels(identity, wanted),
            "annotations": annotations,
        },
        "spec": {"providerID": vm.provider_id, "taints": taints},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "Hostname", "address": vm.node}],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": boot_id(vm),
                "containerRuntimeVersion": "containerd://1.7.28-1",
                "kernelVersion": "5.15.0-1094-azure",
                "kubeProxyVersion": "",
                "kubeletVersion": format!("v{}", body::KUBERNETES),
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Ubuntu 22.04.5 LTS",
                "systemUUID": "",
            },
        },
    }))
}

/// Another one for each time that the machine boots.
pub(crate) fn boot_id(vm: &VmState) -> String {
    Ids::seeded(vm.created_at.as_nanosecond() as u64 ^ u64::from(vm.reboots)).guid()
}

fn labels(identity: &Identity, wanted: &WantedNode) -> BTreeMap<String, String> {
    let (vm, properties) = (&wanted.vm, &wanted.properties);
    let zone =
        vm.zone.as_ref().map_or_else(|| "0".to_owned(), |zone| format!("{}-{zone}", identity.location));
    let mut labels: BTreeMap<String, String> = [
        ("agentpool", vm.pool.clone()),
        ("kubernetes.azure.com/agentpool", vm.pool.clone()),
        ("kubernetes.azure.com/cluster", cluster_label(identity)),
        ("kubernetes.azure.com/mode", body::text(properties, "mode").to_lowercase()),
        ("kubernetes.azure.com/node-image-version", body::text(properties, "nodeImageVersion").to_owned()),
        ("kubernetes.azure.com/priority", vm.priority.lower().to_owned()),
        ("kubernetes.io/arch", "amd64".to_owned()),
        ("kubernetes.io/hostname", vm.node.clone()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("node.kubernetes.io/instance-type", vm.vm_size.clone()),
        ("topology.kubernetes.io/region", identity.location.clone()),
        ("topology.kubernetes.io/zone", zone),
        ("type", "kwok".to_owned()),
        (CLUSTER_LABEL, cluster_label(identity)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    if vm.priority == Priority::Spot {
        labels.insert(body::SPOT_KEY.to_owned(), "spot".to_owned());
    }
    for (key, value) in properties.get("nodeLabels").and_then(Value::as_object).into_iter().flatten() {
        labels.insert(key.clone(), value.as_str().unwrap_or_default().to_owned());
    }
    labels
}

/// `key=value:Effect` or `key:Effect`.
pub(crate) fn taint(text: &str) -> Option<Value> {
    let (key, effect) = text.rsplit_once(':')?;
    Some(match key.split_once('=') {
        Some((key, value)) => json!({"key": key, "value": value, "effect": effect}),
        None => json!({"key": key, "effect": effect}),
    })
}

/// What a size such as `Standard_D8s_v5` holds, by its family and its first number.
fn capacity(vm_size: &str, max_pods: u64) -> Value {
    let name = vm_size.trim_start_matches("Standard_");
    let cores = cores(vm_size);
    let per_core = match name.chars().next() {
        Some('E' | 'M') => 8,
        Some('F') => 2,
        _ => 4,
    };
    json!({
        "cpu": cores.to_string(),
        "memory": format!("{}Gi", cores * per_core),
        "ephemeral-storage": "128Gi",
        "pods": max_pods.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PoolSpec, Settings, Targets};
    use crate::model::Cloud;
    use jiff::Timestamp;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A cluster that can be away.
    #[derive(Default)]
    struct Fake {
        away: AtomicBool,
        /// Whether a disruption budget keeps every pod.
        budget: AtomicBool,
        nodes: Mutex<BTreeMap<String, Node>>,
        pods: Mutex<Vec<Pod>>,
    }

    impl Fake {
        fn there(&self) -> Result<(), Failure> {
            if self.away.load(Ordering::Relaxed) { Err("connection refused".into()) } else { Ok(()) }
        }

        fn names(&self) -> Vec<String> {
            self.nodes.lock().unwrap().keys().cloned().collect()
        }
    }

    impl NodeApi for Fake {
        async fn list(&self, _: &str) -> Result<HashSet<String>, Failure> {
            self.there().map(|()| self.names().into_iter().collect())
        }
        async fn create(&self, node: Node) -> Result<(), Failure> {
            self.there()?;
            self.nodes.lock().unwrap().insert(node.name_any(), node);
            Ok(())
        }
        async fn delete(&self, name: &str) -> Result<(), Failure> {
            self.there()?;
            self.nodes.lock().unwrap().remove(name);
            Ok(())
        }
        async fn pods(&self, node: &str) -> Result<Vec<Pod>, Failure> {
            self.there()?;
            let on = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
            Ok(self.pods.lock().unwrap().iter().filter(on).cloned().collect())
        }
        async fn kill(&self, pod: &Pod) -> Result<(), Failure> {
            self.there()?;
            self.pods.lock().unwrap().retain(|other| other.uid() != pod.uid());
            Ok(())
        }
        async fn evict(&self, pod: &Pod) -> Result<(), Failure> {
            if self.budget.load(Ordering::Relaxed) { Ok(()) } else { self.kill(pod).await }
        }
        async fn read(&self, name: &str) -> Result<Option<Node>, Failure> {
            self.there().map(|()| self.nodes.lock().unwrap().get(name).cloned())
        }
        async fn read_all(&self, _: &str) -> Result<Vec<Node>, Failure> {
            self.there().map(|()| self.nodes.lock().unwrap().values().cloned().collect())
        }
        async fn patch(&self, name: &str, patch: &Value) -> Result<(), Failure> {
            self.there()?;
            let mut nodes = self.nodes.lock().unwrap();
            let node = nodes.get_mut(name).unwrap();
            let mut value = json!(node);
            merge(&mut value, patch);
            *node = serde_json::from_value(value).unwrap();
            Ok(())
        }
        async fn keep_declared(&self, _: &str, _: bool) -> Result<(), Failure> {
            self.there()
        }
        async fn patch_status(&self, name: &str, patch: &Value) -> Result<(), Failure> {
            self.patch(name, patch).await
        }
    }

    /// A JSON merge patch.
    fn merge(value: &mut Value, patch: &Value) {
        let Some(members) = patch.as_object() else {
            *value = patch.clone();
            return;
        };
        for (key, change) in members {
            if change.is_null() {
                if let Some(object) = value.as_object_mut() {
                    object.remove(key);
                }
            } else {
                merge(&mut value[key], change);
            }
        }
    }

    fn sim(count: u32) -> Sim {
        let mut cloud = Cloud::new(Identity::default(), Settings::default(), true, 1);
        let pool = PoolSpec::spot("spota", "Standard_E8s_v5", count)
            .zones(&["1"])
            .property("nodeLabels", json!({"team": "batch"}))
            .property("nodeTaints", json!(["bare:NoExecute"]));
        cloud.add_pool(&pool, Timestamp::now()).unwrap();
        Sim::new(cloud)
    }

    fn pod(name: &str, node: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn nodes_follow_machines_through_an_outage() {
        let (sim, fake, mut keeper) = (sim(3), Fake::default(), Keeper::default());
        sim.change(|_, _| ()); // boots
        fake.away.store(true, Ordering::Relaxed);
        assert!(keeper.pass(&sim, &fake).await.is_err());
        assert!(sim.look(|cloud, now| cloud.state(now)).vms.iter().all(|vm| vm.registered_at.is_none()));
        fake.away.store(false, Ordering::Relaxed);
        keeper.pass(&sim, &fake).await.unwrap();
        let names = fake.names();
        assert_eq!(names.len(), 3);
        assert!(sim.look(|cloud, now| cloud.state(now)).vms.iter().all(|vm| vm.registered_at.is_some()));

        fake.pods.lock().unwrap().extend([pod("a", &names[0]), pod("b", &names[1])]);
        fake.away.store(true, Ordering::Relaxed);
        sim.change(|cloud, now| cloud.kill(&Targets::named(&names[..1]), now)).unwrap();
        assert!(keeper.pass(&sim, &fake).await.is_err());
        assert_eq!(fake.names().len(), 3);
        fake.away.store(false, Ordering::Relaxed);
        keeper.pass(&sim, &fake).await.unwrap();
        assert_eq!(fake.names(), names[1..]);
        let state = sim.look(|cloud, now| cloud.state(now));
        assert_eq!(state.killed_pods.len(), 1);
        assert_eq!(state.killed_pods[0].owner_kind.as_deref(), Some("ReplicaSet"));
        assert!(!state.killed_pods[0].terminating);
        assert!(state.vm(&names[0]).unwrap().node_removed_at.is_some());
        assert_eq!(fake.pods.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nodes_that_somebody_deleted_come_back_after_a_new_list() {
        let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
        fake.nodes.lock().unwrap().clear();
        keeper.known = None;
        keeper.pass(&sim, &fake).await.unwrap();
        assert_eq!(fake.names().len(), 1);
    }

    #[tokio::test]
    async fn nodes_of_an_earlier_simulator_are_replaced() {
        let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
        sim.change(|_, _| ());
        let name = sim.look(|cloud, now| cloud.state(now)).vms[0].node.clone();
        let old = |name: &str| Node {
            metadata: kube::api::ObjectMeta { name: Some(name.into()), ..<_>::default() },
            ..<_>::default()
        };
        fake.create(old(&name)).await.unwrap();
        fake.create(old("aks-old-1-vmss000000")).await.unwrap();
        keeper.pass(&sim, &fake).await.unwrap();
        assert_eq!(fake.names(), std::slice::from_ref(&name));
        assert!(fake.nodes.lock().unwrap()[&name].spec.is_some());
    }

    fn unschedulable(node: &Node) -> bool {
        node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
    }

    /// Whoever looks at an upgrade must see what AKS shows: a cordon, a drain that respects budgets, another boot.
    #[tokio::test]
    async fn aks_cordons_and_drains_what_it_upgrades_and_the_node_boots_again() {
        let mut cloud = Cloud::new(
            Identity::default(),
            Settings::with_boot_time(std::time::Duration::from_millis(20)),
            true,
            1,
        );
        cloud.add_pool(&PoolSpec::regular("rega", "Standard_D8s_v5", 1), Timestamp::now()).unwrap();
        let (sim, fake, mut keeper) = (Sim::new(cloud), Fake::default(), Keeper::default());
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
        let name = fake.names()[0].clone();
        let of = |name: &str| fake.nodes.lock().unwrap()[name].clone();
        let boot_id = |node: &Node| node.status.clone().unwrap().node_info.unwrap().boot_id;
        let first_boot = boot_id(&of(&name));
        fake.pods.lock().unwrap().push(pod("a", &name));
        fake.budget.store(true, Ordering::Relaxed);
        sim.change(|cloud, now| cloud.upgrade_image("rega", now)).unwrap();
        let pause = || tokio::time::sleep(std::time::Duration::from_millis(30));
        for _ in 0..4 {
            pause().await;
            sim.change(|_, _| ());
            keeper.pass(&sim, &fake).await.unwrap();
        }
        assert_eq!(fake.names().len(), 2, "the surge is there");
        assert!(unschedulable(&of(&name)) && keeper.upkeep.draining, "cordoned, and held up by the budget");
        fake.budget.store(false, Ordering::Relaxed);
        for _ in 0..12 {
            pause().await;
            sim.change(|_, _| ());
            keeper.pass(&sim, &fake).await.unwrap();
        }
        let node = of(&name);
        assert!(fake.pods.lock().unwrap().is_empty());
        assert!(!unschedulable(&node));
        assert_ne!(boot_id(&node), first_boot);
        assert_eq!(node.labels()["type"], "kwok");
        let image = sim.look(|cloud, now| cloud.state(now)).vm(&name).unwrap().image.clone();
        assert_eq!(node.labels()["kubernetes.azure.com/node-image-version"], image);
        assert_eq!(fake.names(), [name], "the surge is gone");
        assert!(sim.look(|cloud, now| cloud.state(now)).killed_pods.is_empty());
    }

    #[tokio::test]
    async fn the_node_of_a_deallocated_machine_stays_and_is_not_ready() {
        let mut cloud = Cloud::new(Identity::default(), Settings::default(), true, 1);
        let policy = PoolSpec::spot("spota", "Standard_D8s_v5", 1)
            .property("scaleSetEvictionPolicy", json!("Deallocate"));
        let start = Timestamp::now();
        cloud.add_pool(&policy, start).unwrap();
        let time = std::sync::Arc::new(Mutex::new(start));
        let clock = time.clone();
        let sim = Sim::with_clock(cloud, std::sync::Arc::new(move || *clock.lock().unwrap()));
        let (fake, mut keeper) = (Fake::default(), Keeper::default());
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
        let name = fake.names()[0].clone();
        fake.pods.lock().unwrap().push(pod("a", &name));
        let request = crate::api::EventRequest::new("Preempt", Targets::of_pool("spota", 1), RETRY);
        sim.change(|cloud, now| cloud.schedule(&request, now)).unwrap();
        *time.lock().unwrap() = crate::model::later(start, RESYNC);
        sim.change(|_, _| ());
        keeper.pass(&sim, &fake).await.unwrap();
        let node = fake.nodes.lock().unwrap()[&name].clone();
        assert!(!node.labels().contains_key("type"), "KWOK plays its kubelet no more");
        let taints = node.spec.clone().unwrap().taints.unwrap();
        assert!(taints.iter().any(|taint| taint.key == "node.cloudprovider.kubernetes.io/shutdown"));
        let condition = node.status.unwrap().conditions.unwrap().remove(0);
        assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("Ready", "Unknown"));
        assert_eq!(fake.pods.lock().unwrap().len(), 1, "its pods stay bound");
        assert_eq!(sim.look(|cloud, now| cloud.state(now)).killed_pods.len(), 1, "and are dead");
    }

    #[tokio::test]
    async fn what_the_pool_declares_is_put_back_and_nothing_else() {
        for switched in [true, false] {
            let (sim, fake, mut keeper) = (sim(1), Fake::default(), Keeper::default());
            sim.change(|cloud, _| {
                cloud.set_pool_switches("spota", &json!({"putBack": switched})).unwrap();
            });
            keeper.pass(&sim, &fake).await.unwrap();
            let name = fake.names()[0].clone();
            let taken = json!({
                "metadata": {"labels": {"team": null, "mine": "yes"}},
                "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
            });
            fake.patch(&name, &taken).await.unwrap();
            keeper.known = None;
            keeper.pass(&sim, &fake).await.unwrap();
            let node = fake.nodes.lock().unwrap()[&name].clone();
            let keys: Vec<String> =
                node.spec.clone().unwrap().taints.unwrap().into_iter().map(|taint| taint.key).collect();
            assert_eq!(node.labels()["mine"], "yes");
            assert_eq!(node.labels().contains_key("team"), switched);
            let all = ["mine", "bare", "kubernetes.azure.com/scalesetpriority"];
            assert_eq!(keys, if switched { &all[..] } else { &all[..1] });
        }
    }

    #[tokio::test]
    async fn a_node_looks_like_one_of_aks() {
        let sim = sim(1);
        sim.change(|_, _| ());
        let wanted = sim.look(|cloud, _| cloud.wanted_nodes());
        let node = node_object(&Identity::default(), &wanted[0]).unwrap();
        let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
        assert_eq!(label("kubernetes.azure.com/agentpool"), "spota");
        assert_eq!(label("kubernetes.azure.com/scalesetpriority"), "spot");
        assert_eq!(label("topology.kubernetes.io/zone"), "eastus-1");
        assert_eq!(label("team"), "batch");
        let spec = node.spec.unwrap();
        let taints: Vec<String> = spec
            .taints
            .unwrap()
            .iter()
            .map(|taint| {
                format!("{}={}:{}", taint.key, taint.value.clone().unwrap_or_default(), taint.effect)
            })
            .collect();
        assert_eq!(taints, ["bare=:NoExecute", "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"]);
        assert!(spec.provider_id.unwrap().starts_with("azure:///subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/mc_spotpool-rg_spotpool-sim_eastus/"));
        let capacity = node.status.unwrap().capacity.unwrap();
        assert_eq!(capacity["cpu"].0, "8");
        assert_eq!(capacity["memory"].0, "64Gi");
    }
}
