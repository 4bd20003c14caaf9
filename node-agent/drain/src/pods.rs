//! The pods of a node, with the few facts about each that a drain needs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use spotpool_crds::names;
use spotpool_crds::spot_pool::BlockedByPdb;
use tokio::sync::watch;

use crate::follow::follow;

/// What Kubernetes gives a pod that does not say.
const DEFAULT_GRACE: i64 = 30;
/// The kubelet marks the API's image of a static pod with it.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Annotations that are kept of those of a watched pod; the others can be large.
const KEPT_ANNOTATIONS: [&str; 6] = [
    MIRROR_ANNOTATION,
    names::BLOCKED_BY_PDB_ANNOTATION,
    names::NOTIFY_ANNOTATION,
    names::DEADLINE_ANNOTATION,
    names::HOOK_ANNOTATION,
    names::HOOK_TIMEOUT_ANNOTATION,
];
/// Priority classes whose pods a node needs to work.
const CRITICAL_CLASSES: [&str; 2] = ["system-node-critical", "system-cluster-critical"];
/// The lower of their priorities.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod, as far as a drain cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, as the object says it")]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a successor of the same name is another pod.
    pub uid: String,
    /// Its labels, by which a disruption budget selects it.
    pub labels: BTreeMap<String, String>,
    /// Who makes a new one when it is gone; `None` is nobody.
    pub controller: Option<Controller>,
    /// How long it may take to end.
    pub grace: Duration,
    /// Whether it is ending already.
    pub terminating: bool,
    /// Why a drain leaves it alone, if it does.
    pub exempt: Option<Exempt>,
    /// Before and after which others it is asked to go.
    pub tier: Tier,
    /// What its owner wants instead of the pool's word on pods that a disruption budget holds.
    pub blocked_by_pdb: Option<BlockedByPdb>,
    /// Whether what it keeps on the node's disk is lost with it.
    pub local_storage: bool,
    /// Whether it asked to be told the deadline in an annotation.
    pub notify: bool,
    /// The deadline that an agent has written there.
    pub told: Option<String>,
    /// Its hook, as its owner wrote it.
    pub hook: Option<String>,
    /// How long its hook may take, as its owner wrote it.
    pub hook_timeout: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Whether that is its node's address.
    pub host_network: bool,
    /// What of its annotations could not be read, in words; it counts as not said.
    pub unreadable: Option<String>,
    /// When its kubelet took it on.
    pub started: Option<Timestamp>,
}

/// Pods of a tier are asked to go when those of the tiers before it are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Most pods.
    #[default]
    Ordinary,
    /// The node, or the cluster, needs it to work, says its priority.
    SystemCritical,
    /// Its owner wants it asked after all others, as log shippers do.
    Last,
}

/// Who makes a new pod when this one is gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Controller {
    /// Its kind, such as `ReplicaSet`.
    pub kind: String,
    /// Its UID.
    pub uid: String,
}

/// Why a drain leaves a pod alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr)]
pub enum Exempt {
    /// Its DaemonSet would put it back at once.
    DaemonSet,
    /// A static pod: the API shows only its image.
    Mirror,
    /// It has ended.
    Finished,
}

/// What [`Pod`] is made from beside its metadata.
#[derive(Default)]
struct Facts<'a> {
    grace: Option<i64>,
    priority: Option<i32>,
    priority_class: Option<&'a str>,
    local_storage: bool,
    phase: Option<&'a str>,
    ip: Option<&'a str>,
    host_network: bool,
    started: Option<Timestamp>,
}

impl Pod {
    /// From what a watch or a store holds; `None` for an object without name, namespace or UID, which no
    /// API server sends.
    fn read(meta: &ObjectMeta, facts: &Facts<'_>) -> Option<Self> {
        let annotation = |key: &str| meta.annotations.as_ref()?.get(key);
        let is_controller = |owner: &&OwnerReference| owner.controller == Some(true);
        let owner = meta.owner_references.iter().flatten().find(is_controller);
        let exempt = if matches!(facts.phase, Some("Succeeded" | "Failed")) {
            Some(Exempt::Finished)
        } else if annotation(MIRROR_ANNOTATION).is_some() {
            Some(Exempt::Mirror)
        } else if owner.is_some_and(|owner| owner.kind == "DaemonSet") {
            Some(Exempt::DaemonSet)
        } else {
            None
        };
        let labels = meta.labels.clone().unwrap_or_default();
        let is_last =
            labels.get(names::DRAIN_ORDER_LABEL).is_some_and(|order| order == names::DRAIN_ORDER_LAST);
        let is_critical = facts.priority_class.is_some_and(|class| CRITICAL_CLASSES.contains(&class))
            || facts.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY);
        let tier = match (is_last, is_critical) {
            (true, _) => Tier::Last,
            (false, true) => Tier::SystemCritical,
            (false, false) => Tier::Ordinary,
        };
        let (blocked_by_pdb, unreadable) = match annotation(names::BLOCKED_BY_PDB_ANNOTATION) {
            None => (None, None),
            Some(text) => match text.as_str() {
                "Leave" => (Some(BlockedByPdb::Leave), None),
                "DeleteAtDeadline" => (Some(BlockedByPdb::DeleteAtDeadline), None),
                _ => (None, Some(format!("{}: {text:?}", names::BLOCKED_BY_PDB_ANNOTATION))),
            },
        };
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            controller: owner.map(|owner| Controller { kind: owner.kind.clone(), uid: owner.uid.clone() }),
            grace: Duration::from_secs(u64::try_from(facts.grace.unwrap_or(DEFAULT_GRACE)).unwrap_or(1)),
            terminating: meta.deletion_timestamp.is_some(),
            exempt,
            tier,
            labels,
            blocked_by_pdb,
            local_storage: facts.local_storage,
            notify: annotation(names::NOTIFY_ANNOTATION).is_some_and(|wish| wish == "true"),
            told: annotation(names::DEADLINE_ANNOTATION).cloned(),
            hook: annotation(names::HOOK_ANNOTATION).cloned(),
            hook_timeout: annotation(names::HOOK_TIMEOUT_ANNOTATION).cloned(),
            ip: facts.ip.and_then(|ip| ip.parse().ok()),
            host_network: facts.host_network,
            unreadable,
            started: facts.started,
        })
    }

    /// From a whole pod, as a shared store holds it.
    pub fn from_object(pod: &core::Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let on_disk = |volume: &core::Volume| {
            volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref() != Some("Memory"))
        };
        Self::read(
            &pod.metadata,
            &Facts {
                grace: spec.and_then(|spec| spec.termination_grace_period_seconds),
                priority: spec.and_then(|spec| spec.priority),
                priority_class: spec.and_then(|spec| spec.priority_class_name.as_deref()),
                local_storage: spec.is_some_and(|spec| spec.volumes.iter().flatten().any(on_disk)),
                phase: status.and_then(|status| status.phase.as_deref()),
                ip: status.and_then(|status| status.pod_ip.as_deref()),
                host_network: spec.is_some_and(|spec| spec.host_network == Some(true)),
                started: status.and_then(|status| status.start_time.as_ref()).map(|time| time.0),
            },
        )
    }

    /// Whether a Job made it: then its work is begun anew elsewhere.
    pub fn is_of_job(&self) -> bool {
        self.controller.as_ref().is_some_and(|controller| controller.kind == "Job")
    }

    /// Whether nobody makes a new one when it is gone.
    pub fn is_unmanaged(&self) -> bool {
        self.controller.is_none()
    }
}

/// The pods of one node.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    by_uid: BTreeMap<String, Arc<Pod>>,
    /// Whether all pods are known. A drain does not end before that: no pods known is not no pods.
    pub complete: bool,
}

impl Pods {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_uid.values()
    }

    /// Whether the pod is still there.
    pub fn contains(&self, uid: &str) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// Adds or replaces a pod; says whether anything that a drain cares about changed.
    pub fn put(&mut self, pod: Pod) -> bool {
        if self.by_uid.get(&pod.uid).is_some_and(|known| **known == pod) {
            return false;
        }
        self.by_uid.insert(pod.uid.clone(), Arc::new(pod));
        true
    }

    /// Takes a pod out; says whether it was there.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.by_uid.remove(uid).is_some()
    }

    /// Pods that a drain still has to see off.
    pub fn left(&self) -> usize {
        self.iter().filter(|pod| pod.exempt.is_none()).count()
    }
}

impl FromIterator<Pod> for Pods {
    fn from_iter<I: IntoIterator<Item = Pod>>(pods: I) -> Self {
        Self {
            by_uid: pods.into_iter().map(|pod| (pod.uid.clone(), Arc::new(pod))).collect(),
            complete: true,
        }
    }
}

/// Keeps `pods` equal to the pods of `node`. Started long before a notice, so that a drain begins without a
/// list. Never ends; `urgent` (a notice is on) makes it come back sooner after an outage.
pub async fn watch_pods(
    client: Client,
    node: &str,
    pods: watch::Sender<Pods>,
    urgent: watch::Receiver<bool>,
) -> Infallible {
    let api: Api<WatchedPod> = Api::all(client);
    // Any version will do for the first list: it comes from the API server's cache, by its index of nodes.
    let config = watcher::Config::default().any_semantic().fields(&format!("spec.nodeName={node}"));
    let mut listed: Option<Pods> = None;
    follow(api, config, urgent, "pods", |event| match event {
        watcher::Event::Init => listed = Some(Pods::default()),
        watcher::Event::InitApply(pod) => {
            if let (Some(list), Some(pod)) = (&mut listed, pod.read()) {
                list.put(pod);
            }
        }
        watcher::Event::InitDone => {
            if let Some(mut list) = listed.take() {
                list.complete = true;
                pods.send_replace(list);
            }
        }
        watcher::Event::Apply(pod) => {
            if let Some(pod) = pod.read() {
                pods.send_if_modified(|pods| pods.put(pod));
            }
        }
        watcher::Event::Delete(pod) => {
            if let Some(uid) = &pod.metadata.uid {
                pods.send_if_modified(|pods| pods.remove(uid));
            }
        }
    })
    .await
}

/// A pod with only those parts of it that [`Pod`] is made from, so that a watch holds and parses little.
#[derive(Clone, Debug, Deserialize)]
struct WatchedPod {
    #[serde(deserialize_with = "few_metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WatchedSpec,
    #[serde(default)]
    status: WatchedStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WatchedSpec {
    termination_grace_period_seconds: Option<i64>,
    priority: Option<i32>,
    priority_class_name: Option<String>,
    volumes: Vec<WatchedVolume>,
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WatchedVolume {
    empty_dir: Option<WatchedEmptyDir>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WatchedEmptyDir {
    medium: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WatchedStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    start_time: Option<Time>,
}

impl WatchedPod {
    fn read(&self) -> Option<Pod> {
        let (spec, status) = (&self.spec, &self.status);
        let on_disk =
            |volume: &WatchedVolume| volume.empty_dir.as_ref().is_some_and(|dir| dir.medium != "Memory");
        let facts = Facts {
            grace: spec.termination_grace_period_seconds,
            priority: spec.priority,
            priority_class: spec.priority_class_name.as_deref(),
            local_storage: spec.volumes.iter().any(on_disk),
            phase: status.phase.as_deref(),
            ip: status.pod_ip.as_deref(),
            host_network: spec.host_network,
            started: status.start_time.as_ref().map(|time| time.0),
        };
        Pod::read(&self.metadata, &facts)
    }
}

impl kube::Resource for WatchedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Metadata without managed fields and most annotations, which are most of it.
fn few_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Few {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        #[serde(default, deserialize_with = "few_annotations")]
        annotations: BTreeMap<String, String>,
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let few = Few::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: few.name,
        namespace: few.namespace,
        uid: few.uid,
        resource_version: few.resource_version,
        deletion_timestamp: few.deletion_timestamp,
        annotations: Some(few.annotations),
        labels: few.labels,
        owner_references: few.owner_references,
        ..ObjectMeta::default()
    })
}

fn few_annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut few = BTreeMap::new();
            while let Some(key) = all.next_key::<String>()? {
                if KEPT_ANNOTATIONS.contains(&key.as_str()) {
                    few.insert(key, all.next_value()?);
                } else {
                    all.next_value::<IgnoredAny>()?;
                }
            }
            Ok(few)
        }
    }

    deserializer.deserialize_any(Few)
}

#[cfg(test)]
mod tests;
