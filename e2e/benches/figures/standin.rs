//! The operator as it is shipped, before stand-ins for the apiserver and Azure that have 5,000 nodes and 100,000 pods. A
//! real apiserver would need hours to be given them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post, put};
use axum::{Json, Router};
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_azure_sim::nodes::node_object;
use spotpool_azure_sim::server::{Options, Server};
use spotpool_crds::{NodePolicy, SpotPoolSpec, names};
use spotpool_e2e::wait::within;
use spotpool_e2e::{Profile, Programs};
use spotpool_e2e_cluster::{Program, Supervised};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// Spot agent pools: the first has twice the nodes of the others.
pub const SPOT_POOLS: usize = 15;
const ON_DEMAND_POOLS: usize = 4;
const NODES_OF_A_POOL: u32 = 250;
/// Nodes of all agent pools.
pub const NODES: usize = 5000;
const READY_ON_SPOT: f64 = 4000.0;
const PODS_OF_A_NODE: usize = 20;
/// Pods of all nodes.
pub const PODS: usize = NODES * PODS_OF_A_NODE;
/// Workloads, each with a disruption budget.
pub const WORKLOADS: usize = 2000;
/// Pods that come and go in a second.
pub const CHURN: usize = 50;
/// On-demand nodes that may stand in for spot.
pub const FALLBACK: usize = 100;
const NAMESPACE: &str = "spotpool-system";
const SIZE: &str = "Standard_D8as_v5";
/// Until everything has been read: the stand-in makes half a gigabyte of text, and of Azure's limit the operator takes few reads.
const READ: Duration = Duration::from_mins(30);
/// Until the simulator has started its machines.
const UP: Duration = Duration::from_mins(1);
/// The metric that counts lists of machines.
const MACHINES_LISTED: (&str, &str) =
    ("spotpool_operator_azure_requests_total{", "operation=\"machines\",result=\"Accepted\"");

/// Whose the nodes are.
pub struct Shape {
    /// Agent pools, by SpotPool.
    spot_pools: BTreeMap<String, Vec<PoolSpec>>,
    /// Further members of each SpotPool's spec.
    spec: Value,
    /// Nodes of the spot agent pools.
    on_spot: f64,
}

impl Shape {
    /// One SpotPool has them all, and a floor for disruption budgets.
    pub fn one() -> Self {
        let spot = (0..SPOT_POOLS).map(|at| {
            let count = if at == 0 { 2 * NODES_OF_A_POOL } else { NODES_OF_A_POOL };
            PoolSpec::spot(&spot_pool(at), SIZE, count)
        });
        let on_demand =
            (0..ON_DEMAND_POOLS).map(|at| PoolSpec::regular(&format!("reg{at}"), SIZE, NODES_OF_A_POOL));
        Self {
            spot_pools: BTreeMap::from([("workers".to_owned(), spot.chain(on_demand).collect())]),
            spec: json!({"replicas": NODES, "fallback": {"maxNodes": FALLBACK},
                "onDemand": {"pdbFloor": {"enabled": true, "maxUnits": 500}}}),
            on_spot: READY_ON_SPOT,
        }
    }

    /// So many SpotPools, each with one agent pool of its own: a cluster has no more than 100.
    pub fn many(count: usize, each: usize) -> Self {
        let of = |at| (format!("workers{at}"), vec![PoolSpec::spot(&spot_pool(at), SIZE, each as u32)]);
        Self {
            spot_pools: (0..count).map(of).collect(),
            spec: json!({"replicas": each, "standby": {"afterLoss": {"percent": 0}}}),
            on_spot: (each * count) as f64,
        }
    }

    fn agent_pools(&self) -> impl Iterator<Item = &PoolSpec> {
        self.spot_pools.values().flatten()
    }

    fn has_floor(&self) -> bool {
        !self.spec["onDemand"].is_null()
    }

    /// The SpotPool of each agent pool.
    fn owners(&self) -> BTreeMap<&str, &str> {
        let mut owners = BTreeMap::new();
        for (name, pools) in &self.spot_pools {
            owners.extend(pools.iter().map(|pool| (pool.name.as_str(), name.as_str())));
        }
        owners
    }
}

/// The operator, and what it sees.
pub struct Scene {
    /// The operator.
    pub operator: Supervised,
    /// Azure.
    pub azure: Server,
    /// The apiserver's objects.
    pub cluster: Arc<Cluster>,
    serving: JoinHandle<std::io::Result<()>>,
    port: u16,
    _dir: TempDir,
}

/// Name of a spot agent pool.
pub fn spot_pool(at: usize) -> String {
    format!("spot{at}")
}

impl Scene {
    /// Starts all and waits until the operator has read everything.
    pub async fn start(shape: Shape, profile: Profile) -> Result<Self> {
        let programs = Programs::build(profile).await?;
        let nodes: u32 = shape.agent_pools().map(|pool| pool.count).sum();
        let pods = nodes as usize * PODS_OF_A_NODE;
        eprintln!("an operator for {nodes} nodes, {pods} pods and {WORKLOADS} disruption budgets …");
        let pools: Vec<PoolSpec> = shape.agent_pools().cloned().collect();
        let count = pools.len();
        let azure = Server::start(Options { pools, ..Options::default() }).await?;
        within(UP, "all machines to be up", async || {
            let up = azure.sim().look(|cloud, _| cloud.wanted_nodes().len());
            Ok((up == nodes as usize).then_some(()))
        })
        .await?;
        let cluster = Arc::new(Cluster::of(&azure, &shape)?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let serving = tokio::spawn(axum::serve(listener, router(cluster.clone())).into_future());

        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}]});
        fs::write(&kubeconfig, config.to_string())?;
        let identity = azure.sim().look(|cloud, _| cloud.identity.clone());
        let port = spotpool_e2e_cluster::free_port()?;
        let operator = Program::new("operator", &programs.operator)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--subscription-id", &identity.subscription, "--resource-group", &identity.resource_group])
            .args(["--cluster-name", &identity.cluster, "--azure-credential", "none"])
            .args(["--azure-endpoint", &azure.url()])
            .args(["--prices-endpoint", &format!("{}/api/retail/prices", azure.url())])
            .args(["--leader-election", "false", "--pod-namespace", NAMESPACE])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .log(dir.path().join("operator.log"))
            .spawn()?;
        let log = dir.path().join("operator.log");
        let scene = Self { operator, azure, cluster, serving, port, _dir: dir };
        let mut last = String::new();
        let read = within(READ, "the operator to have read everything", async || {
            let text = scene.metrics().await?;
            let told = |line: &&str| {
                ["_pool_nodes{", "_floor_", "_reconciles", "_azure_requests"]
                    .iter()
                    .any(|it| line.contains(it))
            };
            last = text.lines().filter(told).collect::<Vec<_>>().join("\n");
            let all = sum(&text, "spotpool_operator_pool_nodes{", "ready_spot") >= shape.on_spot;
            let floor = value(&text, "spotpool_operator_floor_units{", "needed");
            // What Azure's limit on reads makes last longest: agent pools are asked for nothing before.
            let listed = value(&text, MACHINES_LISTED.0, MACHINES_LISTED.1);
            let listed = listed.is_some_and(|lists| lists >= count as f64);
            let has_floor = !shape.has_floor() || floor.is_some_and(|units| units > 0.0);
            Ok((all && listed && has_floor).then_some(()))
        });
        if let Err(error) = read.await {
            let log = fs::read_to_string(log).unwrap_or_default();
            let log: String = log.chars().take(4000).collect();
            return Err(error.context(format!("{last}\n{log}")));
        }
        Ok(scene)
    }

    /// The operator's metrics.
    pub async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://127.0.0.1:{}/metrics", self.port)).await?.text().await?)
    }

    /// Stops all.
    pub async fn stop(self) -> Result<()> {
        self.operator.stop(Duration::from_secs(10)).await?;
        self.serving.abort();
        self.azure.stop().await;
        Ok(())
    }
}

/// The value of the first series of this name with `label` in it.
pub fn value(metrics: &str, name: &str, label: &str) -> Option<f64> {
    let mut lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.next()?.rsplit_once(' ')?.1.parse().ok()
}

/// The sum of all series of this name with `label` in it.
pub fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// The objects, and what the operator has written.
pub struct Cluster {
    nodes: Vec<Value>,
    names: Vec<String>,
    /// What watches of Nodes are told.
    news: broadcast::Sender<Bytes>,
    /// What watches of SpotPools are told.
    pool_news: broadcast::Sender<Bytes>,
    spot_pools: Mutex<BTreeMap<String, Value>>,
    /// Requests by method and resource; those that only read begin with `GET`.
    requests: Mutex<BTreeMap<String, usize>>,
    /// Pods that have come in place of others.
    renewed: Mutex<BTreeMap<usize, u64>>,
}

impl Cluster {
    fn of(azure: &Server, shape: &Shape) -> Result<Self> {
        let owners = shape.owners();
        let mut policies = BTreeMap::new();
        let mut spot_pools = BTreeMap::new();
        for (name, pools) in &shape.spot_pools {
            let mut spec = shape.spec.clone();
            spec["agentPools"] =
                pools.iter().map(|pool| json!({"name": pool.name, "maxNodes": 1000})).collect();
            let typed: SpotPoolSpec = serde_json::from_value(spec.clone())?;
            let policy = NodePolicy::new(name, NAMESPACE, typed.mode, &typed.drain, &typed.events);
            policies.insert(name.as_str(), serde_json::to_string(&policy)?);
            let spot_pool = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "spec": spec,
                "metadata": {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": "1", "generation": 1,
                    "finalizers": [names::FINALIZER], "creationTimestamp": "2026-01-01T00:00:00Z"}});
            spot_pools.insert(name.clone(), spot_pool);
        }
        let (identity, wanted) = azure.sim().look(|cloud, _| (cloud.identity.clone(), cloud.wanted_nodes()));
        let mut nodes = Vec::new();
        for (at, wanted) in wanted.iter().enumerate() {
            let mut node = serde_json::to_value(node_object(&identity, wanted)?)?;
            let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
                "message": "kubelet is posting ready status"});
            let calm = |kind: &str| {
                let mut condition = ready.clone();
                condition["type"] = kind.into();
                condition["status"] = "False".into();
                condition
            };
            // As many as AKS has, with its node problem detector.
            let kinds = [
                "MemoryPressure",
                "DiskPressure",
                "PIDPressure",
                "KernelDeadlock",
                "ReadonlyFilesystem",
                "FrequentKubeletRestart",
                "FrequentDockerRestart",
                "FrequentContainerdRestart",
                "VMEventScheduled",
                "FilesystemCorruptionProblem",
                "KubeletProblem",
                "ContainerRuntimeProblem",
            ];
            let conditions: Vec<Value> =
                [ready.clone()].into_iter().chain(kinds.iter().map(|kind| calm(kind))).collect();
            node["status"]["conditions"] = conditions.into();
            let images: Vec<Value> = (0..50)
                .map(|image| {
                    json!({"names": [format!("registry.example.com/team/service-{image}@sha256:{image:064}")],
                    "sizeBytes": 123_456_789})
                })
                .collect();
            node["status"]["images"] = images.into();
            let metadata = &mut node["metadata"];
            metadata["uid"] = format!("00000000-0000-4000-8000-{at:012x}").into();
            metadata["resourceVersion"] = "1".into();
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
            let agent_pool = metadata["labels"][names::AGENT_POOL_LABEL].as_str().unwrap_or_default();
            let owner = owners.get(agent_pool).copied().unwrap_or_default();
            metadata["labels"][names::POOL_LABEL] = owner.into();
            metadata["labels"][names::POOL_NAMESPACE_LABEL] = NAMESPACE.into();
            metadata["annotations"][names::POLICY_ANNOTATION] = policies.get(owner).cloned().into();
            for label in 0..20 {
                metadata["labels"][format!("kubernetes.azure.com/some-label-of-aks-{label}")] =
                    format!("some-value-{label}").into();
            }
            metadata["managedFields"] = managed_fields();
            nodes.push(node);
        }
        let names =
            nodes.iter().filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect();
        let (news, pool_news) = (broadcast::Sender::new(2 * NODES), broadcast::Sender::new(1000));
        Ok(Self {
            nodes,
            names,
            news,
            pool_news,
            spot_pools: Mutex::new(spot_pools),
            requests: Mutex::default(),
            renewed: Mutex::default(),
        })
    }

    /// What the operator says last of the plans that it has made.
    pub fn plans(&self) -> String {
        let plans: Vec<Value> =
            lock(&self.spot_pools).values().map(|pool| pool["status"]["plan"].clone()).collect();
        Value::from(plans).to_string()
    }

    /// What the operator has asked for since this was asked last.
    pub fn take_requests(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut lock(&self.requests))
    }

    /// Nodes of an agent pool.
    pub fn nodes_of(&self, agent_pool: &str) -> Vec<Value> {
        let of_pool =
            |node: &&Value| node["metadata"]["labels"][names::AGENT_POOL_LABEL].as_str() == Some(agent_pool);
        self.nodes.iter().filter(of_pool).cloned().collect()
    }

    /// Tells watches that a Node is so now.
    pub fn changed(&self, node: &Value) {
        // Nobody watches while the operator connects again; it lists then.
        let _ = self.news.send(modified(node));
    }

    fn pods(&self) -> usize {
        self.nodes.len() * PODS_OF_A_NODE
    }

    /// A pod as Deployments make them: most of it is of no use to the operator.
    fn pod(&self, at: usize) -> Value {
        let turn = lock(&self.renewed).get(&at).copied().unwrap_or_default();
        let (workload, namespace) = (at % WORKLOADS, at % WORKLOADS % 100);
        let name = format!("service-{workload}-6d4cf56db6-{at:05x}{turn}");
        let env: Vec<Value> =
            (0..10).map(|env| json!({"name": format!("SETTING_{env}"), "value": "x".repeat(40)})).collect();
        let container = |name: &str| {
            json!({"name": name, "image": format!("registry.example.com/team/{name}:v1.2.3"), "env": env,
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]})
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": format!("team-{namespace}"), "resourceVersion": "1",
                "uid": format!("{turn:08x}-0000-4000-8000-{at:012x}"), "generateName": format!("service-{workload}-6d4cf56db6-"),
                "labels": {"app.kubernetes.io/name": format!("service-{workload}"), "team": format!("team-{namespace}"),
                    "pod-template-hash": "6d4cf56db6"},
                "annotations": {"checksum/config": "0".repeat(64)},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("service-{workload}-6d4cf56db6"), "uid": format!("owner-{workload}")}],
                "managedFields": managed_fields(),
            },
            "spec": {
                "nodeName": self.names[at % self.names.len()],
                "containers": [container("app"), container("sidecar")],
                "tolerations": [
                    {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
                "volumes": [{"name": "token", "projected": {"sources": []}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    fn renew(&self, at: usize) {
        *lock(&self.renewed).entry(at).or_default() += 1;
    }
}

fn modified(object: &Value) -> Bytes {
    format!("{}\n", json!({"type": "MODIFIED", "object": object})).into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn managed_fields() -> Value {
    let fields: BTreeMap<String, Value> =
        (0..20).map(|at| (format!("f:some-field-{at}"), json!({}))).collect();
    json!([{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:metadata": fields, "f:spec": fields, "f:status": fields}}])
}

fn budget(at: usize) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": format!("service-{at}"), "namespace": format!("team-{}", at % 100), "generation": 1,
            "uid": format!("budget-{at}"), "resourceVersion": "1"},
        "spec": {"minAvailable": 20, "selector": {"matchLabels": {"app.kubernetes.io/name": format!("service-{at}")}}},
        "status": {"observedGeneration": 1, "desiredHealthy": 20, "currentHealthy": 50, "expectedPods": 50,
            "disruptionsAllowed": if at.is_multiple_of(100) { 0 } else { 30 }}})
}

fn router(cluster: Arc<Cluster>) -> Router {
    let spot_pools = "/apis/spotpool.dev/v1alpha1/namespaces/{namespace}/spotpools";
    Router::new()
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{name}", patch(async || Json(json!({"metadata": {"name": "patched"}}))))
        .route("/api/v1/pods", get(pods))
        .route("/api/v1/namespaces", get(namespaces))
        .route("/apis/policy/v1/poddisruptionbudgets", get(budgets))
        .route(spot_pools, get(spot_pools_of))
        .route(&format!("{spot_pools}/{{name}}/status"), put(write_status))
        .route(
            "/apis/spotpool.dev/v1alpha1/namespaces/{namespace}/evictiondrills",
            get(async |Query(params): Params| list(&params, 0, |_| Value::Null)),
        )
        .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(echo).patch(echo))
        .layer(from_fn_with_state(cluster.clone(), count))
        .with_state(cluster)
}

async fn count(State(cluster): State<Arc<Cluster>>, request: Request, next: Next) -> Response {
    let kinds =
        ["spotpools", "evictiondrills", "nodes", "pods", "namespaces", "poddisruptionbudgets", "events"];
    let path = request.uri().path();
    let kind = kinds.iter().find(|kind| path.split('/').any(|part| part == **kind)).unwrap_or(&"others");
    *lock(&cluster.requests).entry(format!("{} {kind}", request.method())).or_default() += 1;
    next.run(request).await
}

type Params = Query<BTreeMap<String, String>>;

/// A page of a list, or a watch in which nothing happens.
fn list(params: &BTreeMap<String, String>, count: usize, item: impl Fn(usize) -> Value) -> Response {
    if params.get("watch").is_some_and(|watch| watch == "true") {
        return Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()).into_response();
    }
    let number = |key: &str| params.get(key).and_then(|text| text.parse::<usize>().ok());
    let from = number("continue").unwrap_or(0);
    let to = count.min(from + number("limit").unwrap_or(count));
    let items: Vec<Value> = (from..to).map(item).collect();
    let mut metadata = json!({"resourceVersion": "1"});
    if to < count {
        metadata["continue"] = to.to_string().into();
    }
    Json(json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})).into_response()
}

async fn nodes(State(cluster): State<Arc<Cluster>>, Query(params): Params) -> Response {
    if !params.contains_key("watch") {
        return list(&params, cluster.nodes.len(), |at| cluster.nodes[at].clone());
    }
    told(&cluster.news)
}

/// A watch that is told what is sent.
fn told(news: &broadcast::Sender<Bytes>) -> Response {
    let news = stream::unfold(news.subscribe(), |mut news| async move {
        let line = news.recv().await.ok()?;
        Some((Ok::<_, Infallible>(line), news))
    });
    Body::from_stream(news).into_response()
}

async fn pods(State(cluster): State<Arc<Cluster>>, Query(params): Params) -> Response {
    if !params.contains_key("watch") {
        return list(&params, cluster.pods(), |at| cluster.pod(at));
    }
    // Pods come and go all the time.
    let churn = stream::unfold(0usize, move |turn| {
        let cluster = cluster.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut lines = String::new();
            for at in (0..CHURN).map(|at| (turn * CHURN + at) * 37 % cluster.pods()) {
                lines.push_str(&json!({"type": "DELETED", "object": cluster.pod(at)}).to_string());
                lines.push('\n');
                cluster.renew(at);
                lines.push_str(&json!({"type": "ADDED", "object": cluster.pod(at)}).to_string());
                lines.push('\n');
            }
            Some((Ok::<_, Infallible>(Bytes::from(lines)), turn + 1))
        }
    });
    Body::from_stream(churn).into_response()
}

async fn namespaces(Query(params): Params) -> Response {
    list(&params, 100, |at| {
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": format!("team-{at}"), "uid": format!("namespace-{at}"), "resourceVersion": "1"}})
    })
}

async fn budgets(Query(params): Params) -> Response {
    list(&params, WORKLOADS, budget)
}

async fn spot_pools_of(State(cluster): State<Arc<Cluster>>, Query(params): Params) -> Response {
    if params.contains_key("watch") {
        return told(&cluster.pool_news);
    }
    let spot_pools: Vec<Value> = lock(&cluster.spot_pools).values().cloned().collect();
    list(&params, spot_pools.len(), |at| spot_pools[at].clone())
}

async fn write_status(State(cluster): State<Arc<Cluster>>, Json(mut written): Json<Value>) -> Json<Value> {
    let mut spot_pools = lock(&cluster.spot_pools);
    let name = written["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let version =
        spot_pools.get(&name).and_then(|known| known["metadata"]["resourceVersion"].as_str()?.parse().ok());
    written["metadata"]["resourceVersion"] = (version.unwrap_or(1u64) + 1).to_string().into();
    spot_pools.insert(name, written.clone());
    let _ = cluster.pool_news.send(modified(&written));
    Json(written)
}

async fn echo(Json(mut event): Json<Value>) -> Json<Value> {
    event["metadata"]["creationTimestamp"] = Timestamp::now().to_string().into();
    Json(event)
}
