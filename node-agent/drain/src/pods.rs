//! The pods of a node, with the few facts about each that a drain needs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Deserializer};
use tokio::sync::watch;

use crate::follow::follow;

/// What Kubernetes gives a pod that does not say.
const DEFAULT_GRACE: i64 = 30;
/// The kubelet marks the API's image of a static pod with it.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A pod, as far as a drain cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a successor of the same name is another pod.
    pub uid: String,
    /// How long it may take to end.
    pub grace: Duration,
    /// Whether it is ending already.
    pub terminating: bool,
    /// Why a drain leaves it alone, if it does.
    pub exempt: Option<Exempt>,
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

impl Pod {
    /// From what a watch or a store holds; `None` for an object without name, namespace or UID, which no
    /// API server sends.
    fn read(meta: &ObjectMeta, grace: Option<i64>, phase: Option<&str>) -> Option<Self> {
        let controller = |owner: &&OwnerReference| owner.controller == Some(true);
        let owner = meta.owner_references.iter().flatten().find(controller);
        let exempt = if matches!(phase, Some("Succeeded" | "Failed")) {
            Some(Exempt::Finished)
        } else if meta.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR_ANNOTATION)) {
            Some(Exempt::Mirror)
        } else if owner.is_some_and(|owner| owner.kind == "DaemonSet") {
            Some(Exempt::DaemonSet)
        } else {
            None
        };
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            grace: Duration::from_secs(u64::try_from(grace.unwrap_or(DEFAULT_GRACE)).unwrap_or(1)),
            terminating: meta.deletion_timestamp.is_some(),
            exempt,
        })
    }

    /// From a whole pod, as a shared store holds it.
    pub fn from_object(pod: &core::Pod) -> Option<Self> {
        Self::read(
            &pod.metadata,
            pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds),
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
        )
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
#[serde(rename_all = "camelCase")]
struct WatchedSpec {
    termination_grace_period_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct WatchedStatus {
    phase: Option<String>,
}

impl WatchedPod {
    fn read(&self) -> Option<Pod> {
        Pod::read(&self.metadata, self.spec.termination_grace_period_seconds, self.status.phase.as_deref())
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

/// Metadata without managed fields and labels, which are most of it.
fn few_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Few {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        #[serde(default)]
        annotations: FewAnnotations,
        owner_references: Option<Vec<OwnerReference>>,
    }
    #[derive(Default, Deserialize)]
    struct FewAnnotations {
        #[serde(rename = "kubernetes.io/config.mirror")]
        mirror: Option<String>,
    }
    let few = Few::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: few.name,
        namespace: few.namespace,
        uid: few.uid,
        resource_version: few.resource_version,
        deletion_timestamp: few.deletion_timestamp,
        annotations: few
            .annotations
            .mirror
            .map(|mirror| BTreeMap::from([(MIRROR_ANNOTATION.to_owned(), mirror)])),
        owner_references: few.owner_references,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(pod: serde_json::Value) -> Pod {
        let watched: WatchedPod = serde_json::from_value(pod.clone()).unwrap();
        let whole: core::Pod = serde_json::from_value(pod).unwrap();
        let read = watched.read().unwrap();
        assert_eq!(Pod::from_object(&whole).as_ref(), Some(&read));
        read
    }

    #[test]
    fn knows_which_pods_a_drain_leaves_alone() {
        let owner = |kind: &str, controller: bool| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": controller}]);
        let meta = |extra: serde_json::Value| {
            let mut meta = json!({"name": "p", "namespace": "n", "uid": "1"});
            meta.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            meta
        };
        for (pod, exempt) in [
            (json!({"metadata": meta(json!({}))}), None),
            (json!({"metadata": meta(json!({"ownerReferences": owner("ReplicaSet", true)}))}), None),
            (
                json!({"metadata": meta(json!({"ownerReferences": owner("DaemonSet", true)}))}),
                Some(Exempt::DaemonSet),
            ),
            (json!({"metadata": meta(json!({"ownerReferences": owner("DaemonSet", false)}))}), None),
            (
                json!({"metadata": meta(json!({"annotations": {MIRROR_ANNOTATION: "x", "other": "y"}}))}),
                Some(Exempt::Mirror),
            ),
            (json!({"metadata": meta(json!({})), "status": {"phase": "Succeeded"}}), Some(Exempt::Finished)),
            (json!({"metadata": meta(json!({})), "status": {"phase": "Failed"}}), Some(Exempt::Finished)),
            (json!({"metadata": meta(json!({})), "status": {"phase": "Pending"}}), None),
        ] {
            assert_eq!(read(pod.clone()).exempt, exempt, "{pod}");
        }
    }

    #[test]
    fn reads_grace_and_whether_a_pod_ends_already() {
        let pod = read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1",
            "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"terminationGracePeriodSeconds": 5, "containers": []}}));
        assert_eq!((pod.grace.as_secs(), pod.terminating), (5, true));
        assert_eq!(
            read(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"}})).grace.as_secs(),
            30
        );
    }
}
