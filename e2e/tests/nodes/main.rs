//! Our images on real nodes: kubelet, containerd and runc, with the charts as they are, and Azure played by the simulator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod images;
mod metadata;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use kube::api::{ListParams, LogParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, VmState};
use spotpool_azure_sim::tokens::{AuthPatch, ClientSpec};
use spotpool_crds::eviction::Phase;
use spotpool_crds::{EvictionNotice, names};
use spotpool_e2e::objects::{apply, create, is_ready};
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{Stage, World, WorldOptions, eventually, run};
use spotpool_e2e_cluster::{Network, PAUSE_IMAGE, RealNode, RealNodeOptions, Tools};

const WEBHOOK: &str = include_str!("workload-identity.yaml");
const JOB: &str = include_str!("../../../docs/examples/checkpointing-job.yaml");
const SCRIPT: &str = include_str!("../../../docs/examples/checkpoint/work.py");
/// `required`: a machine that cannot run real nodes is a failure.
const REQUIRED: &str = "SPOTPOOL_REAL_NODES";
const UNITS: u64 = 120;

/// Whether real nodes can run here. Where they cannot, that must not look like a test that has passed.
fn can_run() -> bool {
    let Some(missing) = Network::missing().or_else(images::missing) else { return true };
    let required = std::env::var(REQUIRED).is_ok_and(|value| value == "required");
    assert!(!required, "{REQUIRED}=required, but {missing}");
    // Not by `eprintln!`, which the test harness keeps to itself.
    let _ = writeln!(
        std::io::stderr(),
        "\n*** NOT RUN: the tests of real nodes, because {missing}.\n\
         *** Nothing was shown of images, kubelets and containers. Set {REQUIRED}=required to make this a failure.\n"
    );
    false
}

/// A control plane with an on-demand node, and the charts installed.
struct Site {
    regular: RealNode,
    world: World,
    network: Network,
}

impl Site {
    /// Everything, and a spot node, which a test may take away.
    async fn start() -> (Self, RealNode) {
        let network = Network::up().unwrap();
        let mut options = WorldOptions {
            agents: false,
            install: false,
            // Replacements are ordered and never come: no kubelet waits for them.
            boot_time: Duration::from_hours(1),
            ..WorldOptions::default()
        };
        options.cluster.kwok = false;
        options.cluster.bind_address = network.address();
        options.cluster.apiserver_args = vec![
            "--feature-gates=MutatingAdmissionPolicy=true".to_owned(),
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true".to_owned(),
        ];
        let images = images::build(PAUSE_IMAGE);
        let world = World::start(options).await.unwrap();
        let pools = [
            PoolSpec::spot("spot", "Standard_D4s_v5", 1),
            PoolSpec::regular("regular", "Standard_D4s_v5", 1),
        ];
        for pool in &pools {
            world.sim.add_pool(pool).await.unwrap();
        }
        let machines = eventually("the machines to be registered", async || {
            let machines = world.sim.state().await?.vms;
            let all = machines.iter().all(|machine| machine.registered_at.is_some());
            Ok((machines.len() == pools.len() && all).then_some(machines))
        })
        .await
        .unwrap();
        let mut nodes = Vec::new();
        for (number, pool) in (1..).zip(&pools) {
            let machine: &VmState = machines.iter().find(|machine| machine.pool == pool.name).unwrap();
            let metadata = metadata::serve(network.address(), world.sim.imds_endpoint(&machine.node)).await;
            let options =
                RealNodeOptions { name: machine.node.clone(), number, images: images.clone(), metadata };
            nodes.push(RealNode::start(&world.cluster, &network, options).await.unwrap());
        }
        let (regular, spot) = (nodes.pop().unwrap(), nodes.pop().unwrap());
        let site = Self { regular, world, network };
        for pool in &pools {
            site.stage().nodes_ready(&pool.name, 1).await.unwrap();
        }
        site.install().await;
        (site, spot)
    }

    fn stage(&self) -> Stage<'_> {
        Stage::at(&self.world, SYSTEM_NAMESPACE)
    }

    /// As docs/install says, with the values that a cluster needs, and no others.
    async fn install(&self) {
        let client = &self.world.client;
        let namespace = json!({"metadata": {"name": SYSTEM_NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
        create(&Api::<Namespace>::all(client.clone()), namespace).await.unwrap();
        let said = |key: &str| self.world.sim_said[key].as_str().unwrap().to_owned();
        let authority = json!({"metadata": {"name": "azure-ca"}, "data": {"ca.crt": said("caPem")}});
        create(&Api::<ConfigMap>::namespaced(client.clone(), SYSTEM_NAMESPACE), authority).await.unwrap();

        // Azure lets in the operator's ServiceAccount and nobody else.
        let identity = ClientSpec {
            issuer: Some("https://kubernetes.default.svc".to_owned()),
            subject: Some(format!("system:serviceaccount:{SYSTEM_NAMESPACE}:spotpool-operator")),
            ..ClientSpec::default()
        };
        let client_id = identity.client_id.clone();
        let auth =
            AuthPatch { require_token: Some(true), clients: Some(vec![identity]), ..AuthPatch::default() };
        self.world.sim.change_auth(&auth).await.unwrap();
        let webhook = WEBHOOK
            .replace("@client@", &client_id)
            .replace("@tenant@", &said("tenantId"))
            .replace("@authority@", &said("authorityHost"));
        apply(client, &webhook, |_| ()).await.unwrap();

        let cluster = self.world.sim.state().await.unwrap().identity;
        let values = [
            "image.registry=localhost".to_owned(),
            "image.pullPolicy=Never".to_owned(),
            format!("azure.subscriptionId={}", cluster.subscription),
            format!("azure.resourceGroup={}", cluster.resource_group),
            format!("azure.clusterName={}", cluster.cluster),
            format!("azure.clientId={client_id}"),
            format!("azure.endpoint={}", said("tlsUrl")),
            format!("azure.pricesEndpoint={}/api/retail/prices", self.world.sim.base_url()),
            "caBundle.configMap=azure-ca".to_owned(),
        ];
        self.helm("spotpool-crds", &[]).await;
        self.helm("spotpool", &values).await;
    }

    async fn helm(&self, chart: &str, values: &[String]) {
        let home = tempfile::tempdir().unwrap();
        let mut helm = Command::new(Tools::helm().await.unwrap());
        helm.args(["install", chart, "--namespace", SYSTEM_NAMESPACE, "--kubeconfig"])
            .arg(self.world.cluster.admin_kubeconfig())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(chart))
            .args(values.iter().flat_map(|value| ["--set", value]));
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(variable, home.path());
        }
        let output = helm.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until so many Pods of one of our programs are Ready.
    async fn ready(&self, program: &str, count: usize) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.world.client.clone(), SYSTEM_NAMESPACE);
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={program}"));
        eventually(&format!("{count} ready Pods of {program}"), async || {
            let pods = pods.list(&ours).await?.items;
            anyhow::ensure!(
                pods.len() == count && pods.iter().all(is_ready),
                "{}",
                serde_json::to_string(&pods.iter().map(|pod| pod.status.clone()).collect::<Vec<_>>())?
            );
            Ok(Some(pods))
        })
        .await
        .unwrap()
    }

    async fn stop(self) {
        drop(self.regular);
        self.world.stop().await.unwrap();
        drop(self.network);
    }
}

/// A folder of this machine that pods write to, which outlives them.
struct Proof(tempfile::TempDir);

impl Proof {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // For whatever user a container has.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }
}

/// A Deployment of one pod on the spot node, which writes down what it hears and takes 2 s to end.
async fn deploy(site: &Site, name: &str, proof: &Proof) {
    let script = format!(
        "trap 'echo SIGTERM >>/proof/{name}; /bin/busybox sleep 2; echo done >>/proof/{name}; exit 0' TERM\n\
         echo started >>/proof/{name}\nwhile :; do /bin/busybox sleep 1000 & wait $!; done"
    );
    let manifest = json!({"apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {"name": name, "namespace": "default"},
    "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 10,
            "automountServiceAccountToken": false,
            "nodeSelector": {names::AGENT_POOL_LABEL: "spot"},
            "tolerations": [{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}],
            "containers": [{"name": "main", "image": PAUSE_IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", script],
                "volumeMounts": [{"name": "proof", "mountPath": "/proof"}]}],
            "volumes": [{"name": "proof", "hostPath": {"path": proof.path()}}],
        }}}});
    apply(&site.world.client, &manifest.to_string(), |_| ()).await.unwrap();
}

/// The Job of docs/how-to/checkpoint.md: as it is, but for its image, which is this machine's Python, and its storage.
async fn job(site: &Site, state: &Proof) {
    let client = &site.world.client;
    let claim = json!({"namespace": "default", "name": "checkpointing-job"});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "state"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "azurefile-csi",
        "hostPath": {"path": state.path()}, "claimRef": claim}});
    let script = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"work.py": SCRIPT},
        "metadata": {"name": "checkpointing-job", "namespace": "default"}});
    for manifest in [volume, script] {
        apply(client, &manifest.to_string(), |_| ()).await.unwrap();
    }
    let prefer = json!([{"weight": 100, "preference": {"matchExpressions": [
        {"key": names::AGENT_POOL_LABEL, "operator": "In", "values": ["spot"]}]}}]);
    apply(client, JOB, |document| {
        document["metadata"]["namespace"] = "default".into();
        if document["kind"] != "Job" {
            return;
        }
        let pod = &mut document["spec"]["template"]["spec"];
        pod["affinity"] =
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": prefer}});
        for (name, path) in [("usr", "/usr"), ("lib", "/lib"), ("lib64", "/lib64")] {
            let host = fs::canonicalize(path).unwrap();
            let volume = json!({"name": name, "hostPath": {"path": host}});
            pod["volumes"].as_array_mut().unwrap().push(volume);
            let mount = json!({"name": name, "mountPath": path, "readOnly": true});
            pod["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
        }
        let container = &mut pod["containers"][0];
        container["image"] = PAUSE_IMAGE.into();
        container["imagePullPolicy"] = "Never".into();
        let environment = container["env"].as_array_mut().unwrap();
        environment.retain(|variable| variable["name"] != "UNITS");
        environment.extend([
            json!({"name": "UNITS", "value": UNITS.to_string()}),
            json!({"name": "UNIT_SECONDS", "value": "0.2"}),
        ]);
    })
    .await
    .unwrap();
}

/// The running pod of a label, other than `last`.
async fn running(site: &Site, label: &str, last: Option<&Pod>) -> Pod {
    let pods: Api<Pod> = Api::namespaced(site.world.client.clone(), "default");
    let of = ListParams::default().labels(label);
    let is_next = |pod: &Pod| last.is_none_or(|last| last.uid() != pod.uid());
    eventually(&format!("a pod of {label} to run"), async || {
        let pods = pods.list(&of).await?.items;
        let statuses: Vec<_> = pods.iter().map(|pod| pod.status.clone()).collect();
        let found = pods.into_iter().find(|pod| is_next(pod) && is_ready(pod));
        anyhow::ensure!(found.is_some(), "{}", serde_json::to_string(&statuses)?);
        Ok(found)
    })
    .await
    .unwrap()
}

/// Follows what a pod's container says, to its end, as `kubectl logs -f` does.
fn follow(site: &Site, pod: &Pod) -> tokio::task::JoinHandle<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(site.world.client.clone(), "default");
    let name = pod.name_any();
    tokio::spawn(async move {
        let following = LogParams { follow: true, ..LogParams::default() };
        let stream = pods.log_stream(&name, &following).await.unwrap();
        stream.lines().try_collect().await.unwrap()
    })
}

fn units(lines: &[String]) -> Vec<u64> {
    lines.iter().filter_map(|line| line.strip_prefix("unit ")?.parse().ok()).collect()
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// What the kernel says of the one process of a program that runs in a container on this node.
fn process(node: &RealNode, comm: &str) -> PathBuf {
    let mut found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_named = fs::read_to_string(path.join("comm")).ok()?.trim_end() == comm;
        let groups = fs::read_to_string(path.join("cgroup")).ok()?;
        (is_named && groups.contains(node.control_group())).then_some(path)
    });
    found.next().unwrap_or_else(|| panic!("no {comm} on {}", node.name()))
}

/// Whether the chart's security context holds, as the kernel has it.
fn is_confined(process: &Path) {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!([value("Uid"), value("Gid")], ["65532", "65532"], "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(set), "0000000000000000", "{status}");
    }
    assert_eq!([value("NoNewPrivs"), value("Seccomp")], ["1", "2"], "{status}");
    let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
}

/// A client with the token that the kubelet has given to an agent.
async fn as_agent(site: &Site, agent: &Path) -> Client {
    let token = agent.join("root/var/run/secrets/kubernetes.io/serviceaccount/token");
    let token = fs::read_to_string(token).unwrap();
    let path = site.world.cluster.dir().join("agent.kubeconfig");
    let account = "spotpool-node-agent";
    site.world.cluster.service_account_kubeconfig(SYSTEM_NAMESPACE, account, &token, &path).unwrap();
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Writes a Node, with these annotations.
async fn annotate(client: &Client, node: &str, annotations: Value) -> kube::Result<Node> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    Api::<Node>::all(client.clone()).patch(node, &PatchParams::default(), &patch).await
}

#[test]
fn our_images_see_an_eviction_through_on_real_nodes() {
    if !can_run() {
        return;
    }
    run(async {
        let (site, machine) = Site::start().await;
        let (client, stage) = (site.world.client.clone(), site.stage());
        let name = machine.name().to_owned();
        let (spot, regular) = (name.as_str(), site.regular.name());

        // All are up as the charts describe them, and the operator is who Azure lets in.
        site.ready("spotpool-node-agent", 2).await;
        let operators = site.ready("spotpool-operator", 2).await;
        assert!(operators.iter().all(|pod| node_of(pod) == regular), "no operator on spot");
        let agent_pools = json!([{"name": "spot", "maxNodes": 2}, {"name": "regular", "maxNodes": 1}]);
        stage.spot_pool("workers", json!({"replicas": 2, "agentPools": agent_pools})).await.unwrap();
        stage.status_is("workers", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        let auth = site.world.sim.auth().await.unwrap();
        assert!(!auth.issued.is_empty() && auth.refused.is_empty(), "{auth:?}");
        for node in [&machine, &site.regular] {
            is_confined(&process(node, "spotpool-node-a"));
        }
        is_confined(&process(&site.regular, "spotpool-operat"));

        // The token of the agent is good for its own Node alone, and not for all of that.
        let agent = as_agent(&site, &process(&machine, "spotpool-node-a")).await;
        annotate(&agent, spot, json!({})).await.unwrap();
        let refused = annotate(&agent, regular, json!({})).await.unwrap_err().to_string();
        assert!(refused.contains("may write only that Node"), "{refused}");
        let foreign = json!({"example.com/by": "the agent"});
        let refused = annotate(&agent, spot, foreign).await.unwrap_err().to_string();
        assert!(refused.contains("may not write these annotations"), "{refused}");

        // Work: one pod that takes its time, one that a budget holds, one that checkpoints.
        let (proof, state) = (Proof::new(), Proof::new());
        deploy(&site, "slow", &proof).await;
        deploy(&site, "held", &proof).await;
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "held", "namespace": "default"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}});
        apply(&client, &budget.to_string(), |_| ()).await.unwrap();
        job(&site, &state).await;
        let held = running(&site, "app=held", None).await;
        running(&site, "app=slow", None).await;
        let first = running(&site, "job-name=checkpointing-job", None).await;
        assert_eq!(node_of(&first), spot);
        let first_said = follow(&site, &first);
        let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
            Api::namespaced(client.clone(), "default");
        eventually("the budget to count its pod", async || {
            let status = budgets.get("held").await?.status.unwrap_or_default();
            Ok((status.current_healthy == 1).then_some(()))
        })
        .await
        .unwrap();

        site.world.sim.evict(&[spot], Duration::from_secs(30)).await.unwrap();
        let nodes: Api<Node> = Api::all(client.clone());
        let notice = eventually("the drain to be over", async || {
            let node = nodes.get(spot).await?;
            let notice = node.annotations().get(names::EVICTION_ANNOTATION).cloned().unwrap_or_default();
            let notice: EvictionNotice = serde_json::from_str(&notice)?;
            anyhow::ensure!(notice.phase == Phase::Drained, "{notice:?}");
            Ok(Some(notice))
        })
        .await
        .unwrap();
        assert_eq!((notice.pods.evicted, notice.pods.escalated, notice.pods.left), (2, 1, 0), "{notice:?}");
        for name in ["slow", "held"] {
            assert_eq!(proof.read(name), "started\nSIGTERM\ndone\n", "{name} had its grace");
        }
        let events: Api<Event> = Api::namespaced(client.clone(), "default");
        let of_held = ListParams::default().fields(&format!("involvedObject.name={}", held.name_any()));
        let told = events.list(&of_held).await.unwrap().items;
        assert!(
            told.iter().any(|event| event.reason.as_deref() == Some("DisruptionBudgetOverridden")),
            "{told:#?}"
        );

        // The VM is taken, and all that is still on it.
        eventually("the Node to be gone", async || Ok(nodes.get_opt(spot).await?.is_none().then_some(())))
            .await
            .unwrap();
        drop(machine);
        let second = running(&site, "job-name=checkpointing-job", Some(&first)).await;
        assert_eq!(node_of(&second), regular);
        let second_said = follow(&site, &second);
        let jobs: Api<Job> = Api::namespaced(client.clone(), "default");
        let status = eventually("the Job to be complete", async || {
            let status = jobs.get("checkpointing-job").await?.status.unwrap_or_default();
            Ok(Some(status).filter(|status| status.completion_time.is_some()))
        })
        .await
        .unwrap();
        assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(1), 0), "{status:?}");
        let (before, after) = (units(&first_said.await.unwrap()), units(&second_said.await.unwrap()));
        assert!(!before.is_empty() && !after.is_empty(), "{before:?} {after:?}");
        assert_eq!([before, after].concat(), (0..UNITS).collect::<Vec<_>>(), "each once, in order");

        // Another was ordered, and Azure let that in.
        let machines = site.world.sim.state().await.unwrap().vms;
        assert!(machines.iter().any(|other| other.pool == "spot" && other.node != spot), "{machines:#?}");
        site.stop().await;
    });
}
