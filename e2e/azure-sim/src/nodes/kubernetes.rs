//! What the loop asks of Kubernetes.

use std::collections::HashSet;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::CLUSTER_LABEL;
use crate::node_policy;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
