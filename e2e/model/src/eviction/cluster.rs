//! The Node as the apiserver has it, and the metadata service's documents.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node as KubeNode;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, Doomed, Phase, PodCounts, Source};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::{EvictionNotice, ProviderId, names};
use spotpool_drain::edit::Edit;
use spotpool_drain::node::Node;
use spotpool_node_agent::document::{Document, Event as Said, Kind};

use super::Mutation;
use super::state::{Azure, Event, Names, Sibling};
use crate::time::{Time, stamp};

/// The name of the Node, and of its sibling.
pub const NAMES: [&str; 2] = ["n", "sibling"];
/// What Azure gives.
pub const NOTICE: Time = 30;

const INSTANCES: [u64; 2] = [1, 2];
const SCALE_SET: &str = "s";

fn provider_id(at: usize) -> String {
    format!(
        "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/{SCALE_SET}/virtualMachines/{}",
        INSTANCES[at]
    )
}

/// The VM of the node.
pub fn identity() -> ProviderId {
    ProviderId::ScaleSet { scale_set: SCALE_SET.into(), instance: INSTANCES[0] }
}

fn node(at: usize, spec: &Value, annotations: &Value) -> Value {
    let mut node = json!({
        "metadata": {"name": NAMES[at], "uid": NAMES[at], "annotations": annotations, "labels": {}},
        "spec": spec,
        "status": {"nodeInfo": {"bootID": "first"}, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    node["spec"]["providerID"] = provider_id(at).into();
    node
}

/// A Node that nothing has happened to; closed by a person, perhaps.
pub fn bare(cordoned: bool) -> Option<Arc<Object>> {
    let spec = if cordoned { json!({"unschedulable": true}) } else { json!({}) };
    Object::of(node(0, &spec, &json!({})))
}

/// The same after another boot.
pub fn rebooted(node: &Object) -> Option<Arc<Object>> {
    let mut value = node.value.clone();
    value["status"]["nodeInfo"]["bootID"] = "second".into();
    Object::of(value)
}

/// A Node as it is written, and as the programs read it.
#[derive(Debug)]
pub struct Object {
    value: Value,
    hash: u64,
    /// As drains read it.
    pub node: Node,
    /// The notice on it.
    pub notice: Option<EvictionNotice>,
    /// As the operator's watch has it.
    pub watched: Arc<KubeNode>,
}

impl Object {
    fn of(value: Value) -> Option<Arc<Self>> {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let node: Node = serde_json::from_value(value.clone()).ok()?;
        let (notice, watched) = (node.notice(), watched(&value)?);
        Some(Arc::new(Self { hash: hasher.finish(), node, notice, watched, value }))
    }

    /// The notice that it is under.
    pub fn active(&self) -> Option<&EvictionNotice> {
        self.notice.as_ref().filter(|notice| notice.is_active())
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.value == other.value
    }
}

impl Eq for Object {}

impl Hash for Object {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

fn watched(node: &Value) -> Option<Arc<KubeNode>> {
    let mut node = node.clone();
    // What every Node has, and nothing here reads.
    let info = node["status"]["nodeInfo"].as_object_mut()?;
    for field in [
        "architecture",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "kubeletVersion",
        "machineID",
        "operatingSystem",
        "osImage",
        "systemUUID",
    ] {
        info.insert(field.into(), "".into());
    }
    serde_json::from_value(node).ok().map(Arc::new)
}

/// The sibling's Node.
pub fn sibling(sibling: Sibling) -> Option<Arc<KubeNode>> {
    let notice = |event: u8, seen: Time, phase, doomed| EvictionNotice {
        by: Claimant::NodeAgent,
        event_id: event_id(event),
        event_type: Kind::Preempt.to_string(),
        source: Source::Imds,
        response: EventResponse::Drain,
        observed_at: stamp(seen),
        not_before: Some(stamp(seen + NOTICE)),
        deadline: stamp(seen + NOTICE),
        phase,
        pods: PodCounts::default(),
        cordoned: true,
        boot_id: "first".into(),
        traceparent: None,
        doomed,
        unfinished: Vec::new(),
    };
    let notice = match sibling {
        Sibling::Gone => return None,
        Sibling::Silent => None,
        Sibling::Over(event, seen) => Some(notice(event, seen, Phase::Cancelled, Vec::new())),
        Sibling::Tells(event, seen) => {
            let instances =
                INSTANCES.into_iter().filter(|at| *at == INSTANCES[1] || event.names == Names::Both);
            let not_before = Some(stamp(seen + NOTICE));
            let doomed =
                Doomed { event_id: event_id(event.number), not_before, instances: instances.collect() };
            Some(notice(event.number, seen, Phase::Draining, vec![doomed]))
        }
    };
    let annotations = match notice {
        Some(notice) => json!({names::EVICTION_ANNOTATION: serde_json::to_string(&notice).ok()?}),
        None => json!({}),
    };
    watched(&node(1, &json!({}), &annotations))
}

/// The id of an event.
pub fn event_id(number: u8) -> String {
    format!("E{number}")
}

/// The document of now.
pub fn document(azure: &Azure, mutation: Option<Mutation>) -> Document {
    let vm = |at: usize| format!("{SCALE_SET}_{}", INSTANCES[at]);
    let said = |event: &Event| Said {
        id: event_id(event.number),
        kind: Kind::Preempt,
        started: false,
        resources: match event.names {
            Names::This => vec![vm(0)],
            Names::Both => vec![vm(0), vm(1)],
            Names::Sibling if mutation == Some(Mutation::EveryEventIsOurs) => vec![vm(0), vm(1)],
            Names::Sibling => vec![vm(1)],
        },
        not_before: azure.announced.get(usize::from(event.number)).map(|(at, _)| stamp(at + NOTICE)),
    };
    Document {
        incarnation: Some(i64::from(azure.incarnation)),
        events: azure.event.iter().map(said).collect(),
        ..Document::default()
    }
}

/// What a metadata service says that starts over.
pub fn forgetful(mutation: Option<Mutation>, azure: &Azure) -> Document {
    let incarnation = if mutation == Some(Mutation::AnyDocumentTells) { azure.incarnation + 1 } else { 0 };
    Document { incarnation: Some(i64::from(incarnation)), ..Document::default() }
}

/// What came of a write.
pub enum Written {
    /// It stands.
    Landed(Arc<Object>),
    /// The Node is not what it was made for.
    Refused,
    /// It is no patch that anything takes.
    Unpatchable,
}

/// Writes an edit that was made for `base`.
pub fn write(node: &Object, base: &Object, edit: &Edit, mutation: Option<Mutation>) -> Written {
    let mut patch = edit.json_patch(&base.node);
    if mutation == Some(Mutation::ClaimUntested) {
        let of_notice = |step: &Value| step["path"].as_str().is_some_and(|path| path.ends_with("eviction"));
        patch.retain(|step| step["op"] != "test" || !of_notice(step));
    }
    // Kubernetes takes what is absent for null, the library does not.
    let is_null = |step: &Value| step["op"] == "test" && step["value"].is_null();
    let is_there =
        |step: &Value| step["path"].as_str().is_some_and(|path| node.value.pointer(path).is_some());
    if patch.iter().any(|step| is_null(step) && is_there(step)) {
        return Written::Refused;
    }
    patch.retain(|step| !is_null(step));
    let mut value = node.value.clone();
    let patched = serde_json::from_value::<json_patch::Patch>(Value::Array(patch))
        .is_ok_and(|patch| json_patch::patch(&mut value, &patch).is_ok());
    match Object::of(value) {
        Some(written) if patched => Written::Landed(written),
        _ if node == base => Written::Unpatchable,
        _ => Written::Refused,
    }
}
