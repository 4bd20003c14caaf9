//! Pods, disruption budgets and namespaces as they come over the wire, with only those parts that are looked at: a
//! cluster has a hundred thousand pods, and most of each is of no use here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer};
use spotpool_core::scheduling::{Pod, Requirement, Resources, Shape, Taint, Toleration};
use spotpool_crds::names;

use super::agents::Agent;
use crate::quantity;

/// Labels, sorted by key.
pub type Labels = [(Arc<str>, Arc<str>)];

/// Keeps one copy of what many objects share.
#[derive(Default)]
pub struct Shared {
    texts: HashSet<Arc<str>>,
    shapes: HashSet<Arc<Shape>>,
    labels: HashSet<Arc<Labels>>,
}

impl Shared {
    /// The one copy of a text.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<Labels> {
        let labels: Arc<Labels> =
            labels.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        one(&mut self.labels, labels)
    }

    /// Forgets what nobody has any more.
    pub fn sweep(&mut self) {
        // Shapes and labels hold texts, so they go first.
        self.shapes.retain(|shape| Arc::strong_count(shape) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.texts.shrink_to_fit();
    }
}

fn one<T: Eq + Hash + ?Sized>(known: &mut HashSet<Arc<T>>, value: Arc<T>) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    known.insert(value.clone());
    value
}

/// A pod that runs or shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// As plans see it.
    pub pod: Pod,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its node, once it has one.
    pub node: Option<Arc<str>>,
    /// What keeps it where it is.
    pub stays: Stays,
    /// Whether it has begun to.
    pub runs: bool,
}

/// Whether a pod leaves its node in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It moves.
    No,
    /// It belongs to the node: of a DaemonSet, or static.
    WithNode,
    /// It ends already.
    Ending,
}

/// A disruption budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What its pods are like; absent selects none.
    pub selector: Option<Vec<Requirement>>,
    /// Pods that must be healthy.
    pub desired: i32,
    /// Pods that are.
    pub healthy: i32,
    /// Whether it lets no pod go, and has any.
    pub blocked: bool,
}

/// A label selector as requirements; absent if it is none that Kubernetes would take.
pub fn requirements(selector: &LabelSelector) -> Option<Vec<Requirement>> {
    let equal = selector.match_labels.iter().flatten();
    let mut all: Vec<Requirement> = equal
        .map(|(key, value)| Requirement::In(key.as_str().into(), [value.as_str().into()].into()))
        .collect();
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.iter().flatten().map(String::as_str);
        all.push(requirement(&mut |text| text.into(), &expression.key, &expression.operator, values)?);
    }
    Some(all)
}

/// Whether labels are as required.
pub fn matches(requirements: &[Requirement], labels: &Labels) -> bool {
    requirements.iter().all(|required| required.holds(label(labels, required.key())))
}

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let found = labels.binary_search_by(|(known, _)| (**known).cmp(key));
    found.ok().map(|at| &*labels[at].1)
}

fn requirement<'a>(
    text: &mut impl FnMut(&str) -> Arc<str>,
    key: &str,
    operator: &str,
    values: impl Iterator<Item = &'a str>,
) -> Option<Requirement> {
    let key = text(key);
    let mut values = values.peekable();
    Some(match operator {
        "In" => Requirement::In(key, values.map(text).collect::<BTreeSet<_>>()),
        "NotIn" => Requirement::NotIn(key, values.map(text).collect::<BTreeSet<_>>()),
        "Exists" => Requirement::Exists(key),
        "DoesNotExist" => Requirement::DoesNotExist(key),
        "Gt" => Requirement::Above(key, values.peek()?.parse().ok()?),
        "Lt" => Requirement::Below(key, values.peek()?.parse().ok()?),
        _ => return None,
    })
}

/// What a list of resources says, as one pod asks for it or one node has it.
pub fn resources(amounts: &BTreeMap<String, String>, mut text: impl FnMut(&str) -> Arc<str>) -> Resources {
    let mut resources = Resources::default();
    for (name, amount) in amounts {
        // What cannot be read counts as nothing; the apiserver lets no such thing pass.
        let whole = || quantity::whole(amount).unwrap_or_default();
        match name.as_str() {
            "cpu" => resources.cpu = quantity::thousandths(amount).unwrap_or_default(),
            "memory" => resources.memory = whole(),
            "pods" => resources.pods = whole(),
            _ => resources.other.push((text(name), whole())),
        }
    }
    resources
}

/// A taint, if it keeps pods off.
pub fn taint(key: &str, value: &str, effect: &str) -> Option<Taint> {
    matches!(effect, "NoSchedule" | "NoExecute").then(|| Taint {
        key: key.into(),
        value: value.into(),
        effect: effect.into(),
    })
}

/// A Pod on the wire.
#[derive(Clone, Debug, Deserialize)]
pub struct WirePod {
    #[serde(deserialize_with = "few")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    phase: String,
    conditions: Vec<WireCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSpec {
    node_name: Option<String>,
    containers: Vec<WireContainer>,
    init_containers: Vec<WireContainer>,
    resources: WireResources,
    overhead: BTreeMap<String, String>,
    node_selector: BTreeMap<String, String>,
    affinity: WireAffinity,
    tolerations: Vec<WireToleration>,
    volumes: Vec<WireVolume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireContainer {
    resources: WireResources,
    ports: Vec<WirePort>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireResources {
    requests: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePort {
    host_port: i32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireVolume {
    persistent_volume_claim: Option<serde::de::IgnoredAny>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireToleration {
    key: Option<String>,
    operator: Option<String>,
    value: String,
    effect: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireAffinity {
    node_affinity: WireNodeAffinity,
    pod_anti_affinity: WireAntiAffinity,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireNodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<WireNodeSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireNodeSelector {
    node_selector_terms: Vec<WireTerm>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireTerm {
    match_expressions: Vec<WireExpression>,
    match_fields: Vec<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireExpression {
    key: String,
    operator: String,
    values: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireAntiAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Vec<WireAntiTerm>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireAntiTerm {
    topology_key: String,
}

impl WirePod {
    /// What it is known by: its UID, as the number that it is.
    pub fn key(&self) -> u128 {
        let uid = self.metadata.uid.as_deref().unwrap_or_default();
        let digits = uid.bytes().filter_map(|byte| char::from(byte).to_digit(16));
        digits.fold(0, |number, digit| (number << 4) | u128::from(digit))
    }

    /// It as an agent's, if it is one that has a node. Anybody may give a pod that label, hardly anybody a DaemonSet.
    pub fn agent(&self, shared: &mut Shared) -> Option<Agent> {
        let meta = &self.metadata;
        let label = meta.labels.as_ref().and_then(|labels| labels.get(names::APP_NAME_LABEL));
        let mut owners = meta.owner_references.iter().flatten();
        let is_agent = label.is_some_and(|label| label == names::AGENT_APP_NAME)
            && owners.any(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet");
        let node = self.spec.node_name.as_deref().filter(|_| is_agent)?;
        let mut conditions = self.status.conditions.iter();
        let ready = meta.deletion_timestamp.is_none()
            && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
        Some(Agent { node: shared.text(node), ready })
    }

    /// What is kept of it; absent for an object that no API server sends.
    pub fn read(&self, shared: &mut Shared) -> Option<Running> {
        let meta = &self.metadata;
        let none = BTreeMap::new();
        let labels = meta.labels.as_ref().unwrap_or(&none);
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let stays = match owner.map(|owner| owner.kind.as_str()) {
            _ if meta.deletion_timestamp.is_some() => Stays::Ending,
            Some("DaemonSet" | "Node") => Stays::WithNode,
            _ => Stays::No,
        };
        let owner = owner.map(|owner| {
            // A Deployment's ReplicaSet has its name and the hash of the template.
            let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
            match hash.and_then(|hash| owner.name.strip_suffix(&hash)) {
                Some(deployment) if owner.kind == "ReplicaSet" => format!("Deployment/{deployment}"),
                _ => format!("{}/{}", owner.kind, owner.name),
            }
        });
        let pod = Pod {
            namespace: shared.text(meta.namespace.as_ref()?),
            name: meta.name.as_deref()?.into(),
            owner: shared.text(&owner.unwrap_or_default()),
            shape: self.spec.shape(shared),
        };
        let node = self.spec.node_name.as_ref().map(|node| shared.text(node));
        let runs = self.status.phase == "Running";
        Some(Running { pod, labels: shared.labels(labels), node, stays, runs })
    }
}

impl WireSpec {
    fn shape(&self, shared: &mut Shared) -> Arc<Shape> {
        let is_port = |container: &WireContainer| container.ports.iter().any(|port| port.host_port > 0);
        let by_node = |term: &WireAntiTerm| term.topology_key == "kubernetes.io/hostname";
        let text = |text: &Option<String>, shared: &mut Shared| text.as_ref().map(|it| shared.text(it));
        let tolerations = self.tolerations.iter().map(|toleration| Toleration {
            key: text(&toleration.key, shared).filter(|key| !key.is_empty()),
            value: (toleration.operator.as_deref() != Some("Exists")).then(|| shared.text(&toleration.value)),
            effect: text(&toleration.effect, shared).filter(|effect| !effect.is_empty()),
        });
        let tolerations = tolerations.collect();
        let affinity = self.affinity.node_affinity.required.as_ref().map(|required| {
            // A term that names a node holds on no other; one that cannot be read might not either.
            let terms = required.node_selector_terms.iter().filter(|term| term.match_fields.is_empty());
            let read = |expression: &WireExpression, shared: &mut Shared| {
                let values = expression.values.iter().map(String::as_str);
                requirement(&mut |it| shared.text(it), &expression.key, &expression.operator, values)
            };
            terms
                .filter_map(|term| term.match_expressions.iter().map(|it| read(it, shared)).collect())
                .collect()
        });
        let shape = Shape {
            requests: self.requests(shared),
            selector: self
                .node_selector
                .iter()
                .map(|(key, value)| (shared.text(key), shared.text(value)))
                .collect(),
            affinity,
            tolerations,
            apart: self.containers.iter().any(is_port)
                || self.affinity.pod_anti_affinity.required.iter().any(by_node),
            zonal: self
                .volumes
                .iter()
                .any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()),
        };
        one(&mut shared.shapes, Arc::new(shape))
    }

    /// What the scheduler counts: containers and sidecars together, or an init container with the sidecars before it, if
    /// that is more; what is said for the whole pod goes before both.
    fn requests(&self, shared: &mut Shared) -> Resources {
        let mut of = |amounts: &BTreeMap<String, String>| resources(amounts, |name| shared.text(name));
        let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
        for container in &self.init_containers {
            let asked = of(&container.resources.requests);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&asked);
                starting.raise(&sidecars);
            } else {
                let mut together = sidecars.clone();
                together.add(&asked);
                starting.raise(&together);
            }
        }
        let mut all = sidecars;
        for container in &self.containers {
            all.add(&of(&container.resources.requests));
        }
        all.raise(&starting);
        let whole = of(&self.resources.requests);
        if self.resources.requests.contains_key("cpu") {
            all.cpu = whole.cpu;
        }
        if self.resources.requests.contains_key("memory") {
            all.memory = whole.memory;
        }
        all.add(&of(&self.overhead));
        all.pods = 1;
        all
    }
}

/// A PodDisruptionBudget on the wire.
#[derive(Clone, Debug, Deserialize)]
pub struct WireBudget {
    #[serde(deserialize_with = "few")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WireBudgetSpec,
    #[serde(default)]
    status: WireBudgetStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct WireBudgetSpec {
    selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireBudgetStatus {
    observed_generation: i64,
    disruptions_allowed: i32,
    desired_healthy: i32,
    current_healthy: i32,
    expected_pods: i32,
}

impl WireBudget {
    /// What is kept of it.
    pub fn read(&self) -> Budget {
        let status = &self.status;
        let is_observed = status.observed_generation >= self.metadata.generation.unwrap_or_default();
        Budget {
            selector: self.spec.selector.as_ref().and_then(requirements),
            desired: status.desired_healthy,
            healthy: status.current_healthy,
            blocked: is_observed && status.disruptions_allowed == 0 && status.expected_pods > 0,
        }
    }
}

/// A Namespace on the wire.
#[derive(Clone, Debug, Deserialize)]
pub struct WireNamespace {
    #[serde(deserialize_with = "few")]
    metadata: ObjectMeta,
}

impl WireNamespace {
    /// Its labels.
    pub fn read(&self, shared: &mut Shared) -> Arc<Labels> {
        shared.labels(self.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
    }
}

/// Metadata without managed fields and annotations, which are most of it.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Few {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        generation: Option<i64>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>,
    }
    let few = Few::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: few.name,
        namespace: few.namespace,
        uid: few.uid,
        generation: few.generation,
        resource_version: few.resource_version,
        deletion_timestamp: few.deletion_timestamp,
        labels: few.labels,
        owner_references: few.owner_references,
        ..ObjectMeta::default()
    })
}

macro_rules! resource {
    ($wire:ty, $scope:ty, $group:literal, $kind:literal, $plural:literal) => {
        impl kube::Resource for $wire {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(WirePod, NamespaceResourceScope, "", "Pod", "pods");
resource!(WireBudget, NamespaceResourceScope, "policy", "PodDisruptionBudget", "poddisruptionbudgets");
resource!(WireNamespace, ClusterResourceScope, "", "Namespace", "namespaces");

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(metadata: &Value, spec: &Value) -> Running {
        let mut whole = json!({"name": "p", "namespace": "shop"});
        for (key, value) in metadata.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let wire: WirePod =
            serde_json::from_value(json!({"metadata": whole, "spec": spec, "status": {}})).unwrap();
        wire.read(&mut Shared::default()).unwrap()
    }

    #[test]
    fn requests_are_summed_as_the_scheduler_does() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
        let sidecar = |cpu: &str| {
            let mut container = asks(cpu);
            container["restartPolicy"] = "Always".into();
            container
        };
        for (what, spec, cpu) in [
            ("containers", json!({"containers": [asks("100m"), asks("200m")]}), 300),
            ("nothing asked", json!({"containers": [{}]}), 0),
            (
                "a large init container",
                json!({"containers": [asks("1")], "initContainers": [asks("2"), asks("1")]}),
                2000,
            ),
            (
                "a sidecar stays",
                json!({"containers": [asks("1")], "initContainers": [sidecar("500m"), asks("1")]}),
                1500,
            ),
            (
                "an init container beside a sidecar",
                json!({"containers": [asks("1")], "initContainers": [sidecar("500m"), asks("2")]}),
                2500,
            ),
            ("overhead", json!({"containers": [asks("1")], "overhead": {"cpu": "50m"}}), 1050),
            (
                "for the whole pod",
                json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "3"}}}),
                3000,
            ),
        ] {
            let requests = &pod(&json!({}), &spec).pod.shape.requests;
            assert_eq!((requests.cpu, requests.pods), (cpu, 1), "{what}");
        }
    }

    #[test]
    fn owner_and_whether_it_stays_come_of_its_controller() {
        let owned = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]);
        let hash = json!({"pod-template-hash": "5d9f"});
        for (metadata, owner, stays) in [
            (json!({}), "", Stays::No),
            (
                json!({"ownerReferences": owned("ReplicaSet", "web-5d9f"), "labels": hash}),
                "Deployment/web",
                Stays::No,
            ),
            (
                json!({"ownerReferences": owned("ReplicaSet", "bare"), "labels": hash}),
                "ReplicaSet/bare",
                Stays::No,
            ),
            (json!({"ownerReferences": owned("StatefulSet", "db")}), "StatefulSet/db", Stays::No),
            (json!({"ownerReferences": owned("DaemonSet", "log")}), "DaemonSet/log", Stays::WithNode),
            (json!({"ownerReferences": owned("Node", "n")}), "Node/n", Stays::WithNode),
            (
                json!({"ownerReferences": owned("StatefulSet", "db"), "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                "StatefulSet/db",
                Stays::Ending,
            ),
        ] {
            let read = pod(&metadata, &json!({}));
            assert_eq!((&*read.pod.owner, read.stays), (owner, stays), "{metadata}");
        }
    }

    #[test]
    fn what_ties_a_pod_to_nodes_is_read() {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let affinity = json!({"nodeAffinity": {required: {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["4"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
            {"matchExpressions": [{"key": "gen", "operator": "Unheard"}]}]}}});
        let shape = pod(&json!({}), &json!({"affinity": affinity})).pod.shape;
        assert_eq!(shape.affinity, Some(vec![vec![Requirement::Above("gen".into(), 4)]]), "{shape:?}");

        let anti = |key: &str| json!({"affinity": {"podAntiAffinity": {required: [{"topologyKey": key}]}}});
        for (what, spec, apart, zonal) in [
            ("nothing", json!({}), false, false),
            ("apart by node", anti("kubernetes.io/hostname"), true, false),
            ("apart by zone", anti("topology.kubernetes.io/zone"), false, false),
            ("a host port", json!({"containers": [{"ports": [{"hostPort": 80}]}]}), true, false),
            ("a port", json!({"containers": [{"ports": [{"containerPort": 80}]}]}), false, false),
            (
                "a claim",
                json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
                false,
                true,
            ),
            ("a claim of its own", json!({"volumes": [{"name": "v", "ephemeral": {}}]}), false, true),
            ("scratch", json!({"volumes": [{"name": "v", "emptyDir": {}}]}), false, false),
        ] {
            let shape = pod(&json!({}), &spec).pod.shape;
            assert_eq!((shape.apart, shape.zonal), (apart, zonal), "{what}");
        }
        let spec = json!({"tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute"}]});
        let tolerations = &pod(&json!({}), &spec).pod.shape.tolerations;
        let all = Toleration { key: None, value: None, effect: None };
        let one =
            Toleration { key: Some("a".into()), value: Some("b".into()), effect: Some("NoExecute".into()) };
        assert_eq!(tolerations, &[all, one]);
    }

    #[test]
    fn pods_of_a_workload_share_all_but_their_names_and_what_is_gone_is_forgotten() {
        let mut shared = Shared::default();
        let wire = |name: &str| -> WirePod {
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"nodeName": "n", "nodeSelector": {"disk": "ssd"}}}),
            )
            .unwrap()
        };
        let (a, b) = (wire("a").read(&mut shared).unwrap(), wire("b").read(&mut shared).unwrap());
        assert!(Arc::ptr_eq(&a.pod.shape, &b.pod.shape) && Arc::ptr_eq(&a.labels, &b.labels));
        shared.sweep();
        assert!(!shared.texts.is_empty());
        drop((a, b));
        shared.sweep();
        assert_eq!((shared.texts.len(), shared.shapes.len(), shared.labels.len()), (0, 0, 0));
    }

    #[test]
    fn a_budget_is_blocked_once_its_own_controller_says_so() {
        let budget = |generation, status: Value| -> Budget {
            let wire: WireBudget = serde_json::from_value(json!({
                "metadata": {"name": "b", "namespace": "shop", "generation": generation},
                "spec": {"selector": {"matchLabels": {"app": "web"},
                    "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["test"]}]}},
                "status": status}))
            .unwrap();
            wire.read()
        };
        let status = |observed, allowed, expected| {
            json!({"observedGeneration": observed, "disruptionsAllowed": allowed, "expectedPods": expected,
            "desiredHealthy": 2, "currentHealthy": 2})
        };
        for (generation, status, blocked) in [
            (1, status(1, 0, 2), true),
            (1, status(1, 1, 2), false),
            (2, status(1, 0, 2), false),
            (1, status(1, 0, 0), false),
            (1, json!({}), false),
        ] {
            assert_eq!(budget(generation, status.clone()).blocked, blocked, "{generation} {status}");
        }
        let selector = budget(1, json!({})).selector.unwrap();
        let labels = |pairs: &[(&str, &str)]| -> Arc<Labels> {
            pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
        };
        assert!(matches(&selector, &labels(&[("app", "web")])));
        assert!(!matches(&selector, &labels(&[("app", "web"), ("tier", "test")])));
        assert!(!matches(&selector, &labels(&[("tier", "live")])));
    }
}
