//! One test's own corner of a shared world: a namespace, an operator that watches it alone, agent pools.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::{SpotPool, SpotPoolStatus, names};
use spotpool_e2e_cluster::{Program, Supervised, free_port};

use crate::last_words::LastWords;
use crate::objects::{apply, object, takes_pods};
use crate::rights;
use crate::{World, eventually};

const OPERATOR_RBAC: &str = include_str!("../../charts/rendered/operator/rbac.yaml");
const OPERATOR_POLICIES: [&str; 3] = [
    include_str!("../../charts/rendered/operator/own-finalizer.yaml"),
    include_str!("../../charts/rendered/operator/own-nodes.yaml"),
    include_str!("../../charts/rendered/operator/own-pods.yaml"),
];

/// The lease of an operator where a test says nothing of it. Who cannot renew it for two thirds of that ends, as it should, and
/// here no kubelet starts it again: with the default of 15 s a busy machine would decide which test fails.
pub(crate) const LEASE: [&str; 2] = ["--lease-duration", "60s"];

/// A namespace with what an operator needs there.
pub struct Stage<'a> {
    /// The world around it.
    pub world: &'a World,
    /// Name of the namespace, and the beginning of the names of its agent pools.
    pub name: String,
    _last_words: LastWords,
}

/// How an operator is started.
#[derive(Clone, Debug, Default)]
pub struct OperatorOptions {
    /// Its name in the election, and in its log's name.
    pub replica: String,
    /// Where ARM is, if not at the simulator's own address.
    pub azure_endpoint: Option<String>,
    /// The apiserver's address, if not the cluster's own.
    pub kubernetes: Option<String>,
    /// How it signs in to Azure, if at all: as `--azure-credential`.
    pub azure_credential: Option<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}

/// A running operator.
pub struct Operator {
    /// Its process.
    pub process: Arc<Supervised>,
    /// Where it serves `/metrics` and `/readyz`.
    pub admin_url: String,
}

/// The spec without spare after losses, unless it says how much: most tests count machines, and lose some.
pub fn without_spare(mut spec: Value) -> Value {
    let standby = &mut spec["standby"];
    // What is no object the apiserver is to refuse.
    if standby.is_null() || (standby.is_object() && standby["afterLoss"].is_null()) {
        standby["afterLoss"] = json!({"percent": 0});
    }
    spec
}

impl<'a> Stage<'a> {
    /// Sets a stage: at most 8 lower-case letters.
    pub async fn set(world: &'a World, name: &str) -> Result<Self> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        apply(&world.client, &namespace.to_string(), |_| ()).await?;
        // The manifests as they are shipped, for another namespace and beside those of other stages.
        apply(&world.client, OPERATOR_RBAC, |document| {
            rights::take_away(document);
            let metadata = &mut document["metadata"];
            if metadata.get("namespace").is_some() {
                metadata["namespace"] = name.into();
            }
            if document["kind"] == "ClusterRoleBinding" {
                document["metadata"]["name"] = format!("spotpool-operator-{name}").into();
            }
            for subject in document.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
                subject["namespace"] = name.into();
            }
        })
        .await?;
        for policies in OPERATOR_POLICIES {
            apply(&world.client, &policies.replace("spotpool-system", name), |document| {
                for path in ["/metadata/name", "/spec/policyName"] {
                    if let Some(Value::String(policy)) = document.pointer_mut(path) {
                        *policy = format!("{policy}-{name}");
                    }
                }
            })
            .await?;
        }
        Ok(Self::at(world, name))
    }

    /// In a namespace that has all of this already.
    pub fn at(world: &'a World, name: &str) -> Self {
        let last_words = LastWords { dir: world.cluster.dir().to_owned(), stage: name.to_owned() };
        Self { world, name: name.to_owned(), _last_words: last_words }
    }

    /// Adds agent pools whose machines run at once, and waits for their nodes to be ready, agents included.
    pub async fn agent_pools(&self, pools: &[PoolSpec]) -> Result<()> {
        for pool in pools {
            self.world.sim.add_pool(pool).await?;
        }
        for pool in pools {
            self.nodes_ready(&pool.name, pool.count as usize).await?;
        }
        Ok(())
    }

    /// Waits until exactly `count` nodes of an agent pool take pods and have a ready agent.
    pub async fn nodes_ready(&self, agent_pool: &str, count: usize) -> Result<Vec<Node>> {
        eventually(&format!("{count} ready nodes in {agent_pool}"), async || {
            let nodes = self.nodes(agent_pool).await?;
            let ready = nodes.iter().filter(|node| takes_pods(node)).count();
            if nodes.len() != count || ready != count {
                return Ok(None);
            }
            if self.world.agents.is_some() {
                let pods: Api<Pod> =
                    Api::namespaced(self.world.client.clone(), crate::world::SYSTEM_NAMESPACE);
                let pods = pods.list(&ListParams::default()).await?;
                let with_agent = |node: &&Node| {
                    pods.iter().any(|pod| {
                        let on_it = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                        on_it == Some(&node.name_any()) && crate::objects::is_ready(pod)
                    })
                };
                if nodes.iter().filter(with_agent).count() != count {
                    return Ok(None);
                }
            }
            Ok(Some(nodes))
        })
        .await
    }

    /// The nodes of an agent pool, by name.
    pub async fn nodes(&self, agent_pool: &str) -> Result<Vec<Node>> {
        let nodes: Api<Node> = Api::all(self.world.client.clone());
        let selector = format!("{}={agent_pool}", names::AGENT_POOL_LABEL);
        let mut nodes = nodes.list(&ListParams::default().labels(&selector)).await?.items;
        nodes.sort_by_key(ResourceExt::name_any);
        Ok(nodes)
    }

    /// Starts an operator with its own ServiceAccount, for this namespace alone. Does not wait for it.
    pub async fn operator(&self, options: &OperatorOptions) -> Result<Operator> {
        let mut kubeconfig = self.operator_kubeconfig().await?;
        if let Some(server) = &options.kubernetes {
            let text = std::fs::read_to_string(&kubeconfig)?.replace(self.world.cluster.server_url(), server);
            kubeconfig.set_extension(format!("{}.proxied", options.replica));
            std::fs::write(&kubeconfig, text)?;
        }
        let replica = if options.replica.is_empty() { "operator" } else { &options.replica };
        let port = free_port()?;
        let identity = self.world.sim.state().await?.identity;
        let endpoint = options.azure_endpoint.clone().unwrap_or_else(|| self.world.sim.base_url().to_owned());
        let credential = options.azure_credential.as_deref().unwrap_or("none");
        let mut program =
            Program::new(format!("operator {replica} of {}", self.name), &self.world.programs.operator);
        for (name, value) in &options.env {
            program = program.env(name, value);
        }
        let process = program
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--subscription-id", &identity.subscription])
            .args(["--resource-group", &identity.resource_group, "--cluster-name", &identity.cluster])
            .args(["--azure-credential", credential, "--azure-endpoint", &endpoint])
            .args(["--prices-endpoint", &format!("{}/api/retail/prices", self.world.sim.base_url())])
            .args(["--pod-namespace", &self.name, "--pod-name", replica])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(if options.args.iter().any(|arg| arg == LEASE[0]) { &[][..] } else { &LEASE })
            .args(&options.args)
            .log(self.log(replica))
            .spawn()?;
        Ok(Operator { process: Arc::new(process), admin_url: format!("http://127.0.0.1:{port}") })
    }

    /// The log of an operator replica.
    pub fn log(&self, replica: &str) -> PathBuf {
        self.world.cluster.dir().join(format!("log/{}-{replica}.log", self.name))
    }

    /// A kubeconfig that signs in as the operator's ServiceAccount.
    pub async fn operator_kubeconfig(&self) -> Result<PathBuf> {
        let account = "spotpool-operator";
        let accounts: Api<ServiceAccount> = Api::namespaced(self.world.client.clone(), &self.name);
        let request: TokenRequest =
            object(json!({"metadata": {}, "spec": {"audiences": [], "expirationSeconds": 7200}}))?;
        let request = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let token = request.status.context("the apiserver gave no token")?.token;
        let path = self.world.cluster.dir().join(format!("{}-{account}.kubeconfig", self.name));
        self.world.cluster.service_account_kubeconfig(&self.name, account, &token, &path)?;
        Ok(path)
    }

    /// Applies a SpotPool of this spec, [`without_spare`].
    pub async fn spot_pool(&self, name: &str, spec: Value) -> Result<SpotPool> {
        self.spot_pool_as_written(name, without_spare(spec)).await
    }

    /// Applies a SpotPool of this very spec.
    pub async fn spot_pool_as_written(&self, name: &str, spec: Value) -> Result<SpotPool> {
        let pool = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": name, "namespace": self.name}, "spec": spec});
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("e2e").force()
        };
        Ok(self.spot_pools().patch(name, &params, &Patch::Apply(pool)).await?)
    }

    /// The SpotPools here.
    pub fn spot_pools(&self) -> Api<SpotPool> {
        Api::namespaced(self.world.client.clone(), &self.name)
    }

    /// Asks for so many nodes, as an HPA does.
    pub async fn replicas(&self, name: &str, replicas: i32) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.spot_pools().patch_scale(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The status of a SpotPool.
    pub async fn status(&self, name: &str) -> Result<SpotPoolStatus> {
        Ok(self.spot_pools().get(name).await?.status.unwrap_or_default())
    }

    /// Waits until the status is as wanted; on failure tells what it was at last.
    pub async fn status_is(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&SpotPoolStatus) -> bool,
    ) -> Result<SpotPoolStatus> {
        let found = eventually(what, async || Ok(Some(self.status(name).await?).filter(&holds))).await;
        match found {
            Ok(status) => Ok(status),
            Err(error) => {
                let status = serde_json::to_string_pretty(&self.status(name).await?)?;
                Err(error.context(format!("the status of {}/{name} is {status}", self.name)))
            }
        }
    }
}

impl Operator {
    /// Whether it says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("{}/readyz", self.admin_url)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Asks it to end and waits.
    pub async fn stop(&self) -> Result<std::process::ExitStatus> {
        self.process.stop(Duration::from_secs(30)).await
    }
}
