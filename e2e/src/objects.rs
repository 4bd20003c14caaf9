//! Kubernetes objects for the harness, from JSON and YAML.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt, discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An object of a known kind from JSON.
pub fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    serde_json::from_value(value).context("the harness wrote an object that is none")
}

/// Creates an object.
pub async fn create<K>(api: &Api<K>, value: Value) -> Result<K>
where
    K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    Ok(api.create(&PostParams::default(), &object(value)?).await?)
}

/// Applies every document of a YAML text, changed by `change` first.
pub async fn apply(client: &Client, yaml: &str, change: impl Fn(&mut Value)) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let mut value: Value = serde::Deserialize::deserialize(document)?;
        if value.is_null() {
            continue;
        }
        change(&mut value);
        let object: DynamicObject = object(value)?;
        let types = object.types.clone().context("a document has no kind")?;
        let gvk = GroupVersionKind::try_from(&types)?;
        // A CRD that was applied a moment ago is served a moment later.
        let (resource, capabilities) =
            crate::eventually(&format!("{} to be served", types.kind), async || {
                Ok(discovery::pinned_kind(client, &gvk).await.ok())
            })
            .await?;
        let api: Api<DynamicObject> = match (capabilities.scope, object.namespace()) {
            (discovery::Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
            (discovery::Scope::Namespaced, Some(namespace)) => {
                Api::namespaced_with(client.clone(), &namespace, &resource)
            }
            (discovery::Scope::Namespaced, None) => Api::default_namespaced_with(client.clone(), &resource),
        };
        let params = PatchParams::apply("spotpool-e2e").force();
        api.patch(&object.name_any(), &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("cannot apply {} {}", types.kind, object.name_any()))?;
    }
    Ok(())
}

/// Whether a Node is Ready and takes pods.
pub fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
    ready && !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// Whether a Pod is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
        && pod.metadata.deletion_timestamp.is_none()
}

/// What stands on a node of ours, and its cordon.
pub fn marks(node: &Node) -> Vec<String> {
    let ours = |key: &&String| key.starts_with("spotpool.dev/");
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).map(|taint| &taint.key);
    let mut marks: Vec<String> =
        node.labels().keys().chain(node.annotations().keys()).chain(taints).filter(ours).cloned().collect();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        marks.push("unschedulable".to_owned());
    }
    marks
}
