//! What a Node of AKS looks like.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::CLUSTER_LABEL;
use crate::api::{Identity, Priority, VmState};
use crate::body;
use crate::model::{WantedNode, cores};
use crate::names::Ids;
use crate::node_policy;

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
