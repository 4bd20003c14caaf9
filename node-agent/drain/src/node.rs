//! One Node, as whoever drains it sees and writes it: a watch of it, and writes that win in the end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use spotpool_crds::voluntary_drain::{DrainRequest, DrainStatus};
use spotpool_crds::{EvictionNotice, NodePolicy, ProviderId, names};
use tokio::sync::watch;

use crate::edit::Edit;
use crate::follow::follow;
use crate::jittered;
use crate::npd::Condition;

/// A request that hangs must not hold up the next try.
const TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// JSON patches refused on a Node that has not changed, before a merge patch is tried in their place.
const MOST_STUBBORN: u32 = 2;

/// A Node with only those parts of it that a drain needs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Node {
    /// Name, UID, version, and of labels and annotations only those that concern us.
    #[serde(deserialize_with = "few_metadata")]
    pub metadata: ObjectMeta,
    /// See [`Spec`].
    #[serde(default)]
    pub spec: Spec,
    #[serde(default)]
    status: Status,
}

/// Parts of a Node's spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    /// Whether it is cordoned.
    #[serde(default)]
    pub unschedulable: bool,
    /// The taints as they are, word for word: a patch is tested against them.
    pub taints: Option<Vec<Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    node_info: NodeInfo,
    #[serde(default, deserialize_with = "few_conditions")]
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct NodeInfo {
    #[serde(rename = "bootID", default)]
    boot_id: String,
}

const ANNOTATIONS: [&str; 4] = [
    names::EVICTION_ANNOTATION,
    names::POLICY_ANNOTATION,
    names::DRAIN_REQUEST_ANNOTATION,
    names::DRAIN_STATUS_ANNOTATION,
];

const LABELS: [&str; 2] = [names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL, names::AGENT_POOL_LABEL];

/// Of the others the kubelet renews heartbeats that concern nobody here.
const CONDITIONS: [&str; 3] = [
    names::PREEMPTION_SCHEDULED_CONDITION,
    names::VM_EVENT_SCHEDULED_CONDITION,
    names::EVICTION_NOTICED_CONDITION,
];

fn few_conditions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Condition>, D::Error> {
    let mut few: Vec<Condition> = Option::deserialize(deserializer)?.unwrap_or_default();
    few.retain(|condition| CONDITIONS.contains(&condition.kind.as_str()));
    Ok(few)
}

fn few_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Few {
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        annotations: Option<BTreeMap<String, String>>,
        labels: Option<BTreeMap<String, String>>,
    }
    let mut few = Few::deserialize(deserializer)?;
    if let Some(annotations) = &mut few.annotations {
        annotations.retain(|name, _| ANNOTATIONS.contains(&name.as_str()));
    }
    if let Some(labels) = &mut few.labels {
        labels.retain(|name, _| LABELS.contains(&name.as_str()));
    }
    Ok(ObjectMeta {
        name: few.name,
        uid: few.uid,
        resource_version: few.resource_version,
        annotations: few.annotations,
        labels: few.labels,
        ..ObjectMeta::default()
    })
}

impl Resource for Node {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Node {
    /// The VM behind it.
    pub fn identity(&self) -> Result<ProviderId, String> {
        let text = self.spec.provider_id.as_deref().unwrap_or_default();
        text.parse().map_err(|error: spotpool_crds::provider_id::ParseError| error.to_string())
    }

    /// Its boot.
    pub fn boot_id(&self) -> &str {
        &self.status.node_info.boot_id
    }

    /// The conditions that tell of events: ours, and the node problem detector's.
    pub fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }

    /// Whether somebody beside us has closed it for new pods, and will open it again or delete it.
    pub fn is_closed_by_others(&self) -> bool {
        let theirs = [names::AKS_REMEDIATOR_TAINT, names::AUTOSCALER_DELETION_TAINT];
        let taints = self.spec.taints.iter().flatten();
        taints.into_iter().any(|taint| taint["key"].as_str().is_some_and(|key| theirs.contains(&key)))
    }

    /// The notice written on it, whoever wrote it.
    pub fn notice(&self) -> Option<EvictionNotice> {
        self.read(names::EVICTION_ANNOTATION)
    }

    /// What its SpotPool says.
    pub fn policy(&self) -> Option<NodePolicy> {
        self.read(names::POLICY_ANNOTATION)
    }

    /// The drain that the operator asks for.
    pub fn drain_request(&self) -> Option<DrainRequest> {
        self.read(names::DRAIN_REQUEST_ANNOTATION)
    }

    /// What an agent answered.
    pub fn drain_status(&self) -> Option<DrainStatus> {
        self.read(names::DRAIN_STATUS_ANNOTATION)
    }

    /// An annotation as it is.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// A label as it is.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    fn read<T: DeserializeOwned>(&self, annotation: &'static str) -> Option<T> {
        let text = self.annotation(annotation)?;
        serde_json::from_str(text)
            .inspect_err(
                |error| tracing::warn!(annotation, %error, "an annotation on the Node cannot be read"),
            )
            .ok()
    }

    fn version(&self) -> u64 {
        self.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// One Node, to be written. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    api: Api<Node>,
    manager: &'static str,
    name: Arc<str>,
    watched: watch::Receiver<Option<Arc<Node>>>,
    /// What our last write gave back: the watch may be behind it.
    written: Arc<Mutex<Option<Arc<Node>>>>,
}

impl NodeHandle {
    /// The Node `name`, as `watched` (see [`watch_node`]) shows it, written as field manager `manager`.
    pub fn new(
        client: Client,
        manager: &'static str,
        name: &str,
        watched: watch::Receiver<Option<Arc<Node>>>,
    ) -> Self {
        Self { api: Api::all(client), manager, name: name.into(), watched, written: Arc::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest that is known of it.
    pub fn latest(&self) -> Option<Arc<Node>> {
        let watched = self.watched.borrow().clone();
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (watched, written) {
            (Some(watched), Some(written)) if written.version() > watched.version() => Some(written),
            (Some(watched), _) => Some(watched),
            (None, written) => written,
        }
    }

    /// Writes what `edit` wants of the newest Node, again and again until the API takes it or nothing is left
    /// to write. `after_try` hears of each try that has ended.
    pub async fn write(&self, edit: impl Fn(&Node) -> Edit, after_try: impl Fn()) -> Arc<Node> {
        let mut wait = FIRST_WAIT;
        let mut refusals = 0;
        let mut fetched: Option<Arc<Node>> = None;
        loop {
            let Some(base) = fetched.take().or_else(|| self.latest()) else {
                self.first_seen().await;
                continue;
            };
            let wanted = edit(&base);
            if wanted.is_done(&base) {
                return base;
            }
            let tried = self.send(&base, &wanted, refusals >= MOST_STUBBORN).await;
            after_try();
            match tried {
                Ok(node) => return self.wrote(node),
                Err(WriteError::Conflict(why)) => {
                    tracing::debug!(node = %self.name, why, "the Node has changed under a write, trying again");
                    fetched = self.get().await;
                    if fetched.as_ref().is_some_and(|fetched| fetched.version() == base.version()) {
                        refusals += 1;
                    } else if fetched.is_some() {
                        refusals = 0;
                        continue; // a fresh base: nothing to wait for
                    }
                }
                Err(WriteError::Other(why)) => {
                    if wait == FIRST_WAIT {
                        tracing::warn!(node = %self.name, why, "cannot write the Node, trying again");
                    } else {
                        tracing::debug!(node = %self.name, why, "still cannot write the Node");
                    }
                }
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Merges `status` into the Node's status.
    pub async fn write_status(&self, status: &Value) -> Result<(), String> {
        let patch = Patch::Strategic(status);
        let parameters = PatchParams { field_manager: Some(self.manager.into()), ..PatchParams::default() };
        match tokio::time::timeout(TIMEOUT, self.api.patch_status(&self.name, &parameters, &patch)).await {
            Ok(Ok(node)) => {
                self.wrote(node);
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {TIMEOUT:?}")),
        }
    }

    /// Waits until the watch shows another Node.
    pub async fn changed(&mut self) {
        if self.watched.changed().await.is_err() {
            std::future::pending::<()>().await; // the watch has died, and the program with it
        }
    }

    /// Another node, now.
    pub async fn other(&self, name: &str) -> Result<Option<Node>, String> {
        match tokio::time::timeout(TIMEOUT, self.api.get_opt(name)).await {
            Ok(Ok(node)) => Ok(node),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {TIMEOUT:?}")),
        }
    }

    fn wrote(&self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.as_ref().is_none_or(|last| last.version() <= node.version()) {
            *written = Some(node.clone());
        }
        node
    }

    async fn first_seen(&self) {
        let mut watched = self.watched.clone();
        if watched.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await; // the watch has died, and the program with it
        }
    }

    async fn get(&self) -> Option<Arc<Node>> {
        let got = tokio::time::timeout(TIMEOUT, self.api.get(&self.name)).await;
        got.ok()?.ok().map(Arc::new)
    }

    async fn send(&self, base: &Node, edit: &Edit, merges: bool) -> Result<Node, WriteError> {
        let parameters = PatchParams { field_manager: Some(self.manager.into()), ..PatchParams::default() };
        let sent = async {
            if merges {
                let patch = Patch::Merge(edit.merge_patch(base));
                self.api.patch(&self.name, &parameters, &patch).await.map_err(WriteError::from)
            } else {
                let patch = serde_json::from_value(Value::Array(edit.json_patch(base)))
                    .map_err(|error| WriteError::Other(error.to_string()))?;
                self.api
                    .patch(&self.name, &parameters, &Patch::Json::<()>(patch))
                    .await
                    .map_err(WriteError::from)
            }
        };
        match tokio::time::timeout(TIMEOUT, sent).await {
            Ok(result) => result,
            Err(_) => Err(WriteError::Other(format!("no answer in {TIMEOUT:?}"))),
        }
    }
}

enum WriteError {
    /// The Node is not what the patch was made for.
    Conflict(String),
    Other(String),
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 409 | 422) => {
                Self::Conflict(status.message.clone())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Keeps `node` equal to the Node `name`; `None` while there is none. Never ends; `urgent` (a notice is on) makes
/// it come back sooner after an outage.
pub async fn watch_node(
    client: Client,
    name: &str,
    node: watch::Sender<Option<Arc<Node>>>,
    urgent: watch::Receiver<bool>,
) -> Infallible {
    let config = watcher::Config::default().any_semantic().fields(&format!("metadata.name={name}"));
    let mut listed = None;
    let put = |new: Option<Node>| {
        node.send_if_modified(|known| {
            // The kubelet's heartbeats change nothing that matters here, but the version must stay fresh.
            let matters = match (known.as_deref(), &new) {
                (Some(known), Some(new)) => {
                    known.spec != new.spec || known.status != new.status || !same_marks(known, new)
                }
                (None, None) => false,
                _ => true,
            };
            *known = new.map(Arc::new);
            matters
        });
    };
    follow(Api::<Node>::all(client), config, urgent, "node", |event| match event {
        watcher::Event::Init => listed = None,
        watcher::Event::InitApply(node) => listed = Some(node),
        watcher::Event::InitDone => put(listed.take()),
        watcher::Event::Apply(node) => put(Some(node)),
        watcher::Event::Delete(_) => put(None),
    })
    .await
}

fn same_marks(one: &Node, other: &Node) -> bool {
    (&one.metadata.uid, &one.metadata.annotations, &one.metadata.labels)
        == (&other.metadata.uid, &other.metadata.annotations, &other.metadata.labels)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A Node from JSON, as the API sends it.
    pub fn node(spec: &Value, annotations: &Value) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "7", "annotations": annotations,
                "labels": {"kubernetes.io/os": "linux"}, "managedFields": [{"fieldsV1": {"f:x": {}}}]},
            "spec": spec, "status": {"nodeInfo": {"bootID": "boot-1", "kernelVersion": "6"}, "conditions": []},
        }))
        .unwrap()
    }

    #[test]
    fn keeps_what_it_needs_and_no_more() {
        let node = node(
            &serde_json::json!({"providerID": "azure:///x/virtualMachineScaleSets/s/virtualMachines/3", "podCIDR": "10.0.0.0/24"}),
            &serde_json::json!({"spotpool.dev/drain-request": "{}", "volumes.kubernetes.io/x": "true"}),
        );
        assert_eq!(node.identity().unwrap().imds_name(), "s_3");
        assert_eq!(node.boot_id(), "boot-1");
        assert_eq!(node.metadata.annotations.as_ref().unwrap().len(), 1);
        assert_eq!(node.metadata.labels.as_ref().unwrap().len(), 0);
        assert!(node.drain_request().is_none(), "an unreadable annotation is no request");
    }

    /// An API that gives each answer once; what it was asked is kept.
    fn api(answers: Vec<(u16, Value)>) -> (NodeHandle, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answers, log) = (Arc::new(Mutex::new(answers.into_iter())), asked.clone());
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let kind =
                request.headers().get(http::header::CONTENT_TYPE).map_or("", |kind| kind.to_str().unwrap());
            log.lock().unwrap().push(format!("{} {kind}", request.method()));
            let (code, body) = answers.lock().unwrap().next().unwrap();
            let body = kube::client::Body::from(body.to_string().into_bytes());
            async move { Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap()) }
        });
        let base = node(&serde_json::json!({}), &serde_json::json!({}));
        let (_, watched) = watch::channel(Some(Arc::new(base)));
        (NodeHandle::new(Client::new(service, "default"), "test", "n", watched), asked)
    }

    fn refused(code: u16) -> (u16, Value) {
        (code, serde_json::json!({"kind": "Status", "code": code, "message": "no", "status": "Failure"}))
    }

    fn version(version: &str) -> (u16, Value) {
        (
            200,
            serde_json::json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": version}, "spec": {}}),
        )
    }

    fn cordon(_: &Node) -> Edit {
        Edit { unschedulable: Some(true), ..Edit::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_wins_in_the_end() {
        const JSON: &str = "PATCH application/json-patch+json";
        const MERGE: &str = "PATCH application/merge-patch+json";
        for (answers, wanted) in [
            (vec![version("8")], vec![JSON]),
            // Someone else wrote: from the fresh Node, at once.
            (vec![refused(422), version("8"), version("9")], vec![JSON, "GET ", JSON]),
            (vec![refused(409), version("8"), version("9")], vec![JSON, "GET ", JSON]),
            // Nobody wrote and it is refused all the same: the other way.
            (
                vec![refused(422), version("7"), refused(422), version("7"), version("8")],
                vec![JSON, "GET ", JSON, "GET ", MERGE],
            ),
            // No luck, and more of it.
            (vec![refused(503), refused(500), refused(401), refused(403), version("8")], vec![JSON; 5]),
        ] {
            let (own, asked) = api(answers);
            let tries = std::cell::Cell::new(0);
            let node = own.write(cordon, || tries.set(tries.get() + 1)).await;
            assert_eq!(*asked.lock().unwrap(), wanted);
            assert_eq!(tries.get(), wanted.iter().filter(|asked| asked.starts_with("PATCH")).count());
            assert_eq!(own.latest(), Some(node), "what was written is known before the watch shows it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_done_asks_nothing() {
        let (own, asked) = api(Vec::new());
        own.write(|_| Edit { unschedulable: Some(false), ..Edit::default() }, || ()).await;
        assert!(asked.lock().unwrap().is_empty());
    }
}
