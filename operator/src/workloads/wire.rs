//! Pods, disruption budgets and namespaces as they come over the wire, with only those parts that are looked at: a
//! cluster has a hundred thousand pods, and most of each is of no use here.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};
use spotpool_core::scheduling::{Pod, Resources, Shape, Toleration};
use spotpool_crds::names;

use super::agents::Agent;
use super::read::{Budget, Running, Stays, requirement, requirements, resources};
use super::shared::{Labels, Shared};

/// A Pod on the wire.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
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
        shared.shape(shape)
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
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::policy::v1::PodDisruptionBudget")]
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
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Namespace")]
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
        owner_references: Option<Vec<OwnerReference>>,
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

#[cfg(test)]
mod tests;
