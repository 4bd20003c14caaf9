//! What tests may rely on in a cluster of ours. They share one, and the last of them leaves it to the watchdog.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spotpool_e2e_cluster::{Cluster, ClusterOptions, NODE_AGENT_NAME, STOP_AFTER_ANNOTATION};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard};

const GENEROUS: Duration = Duration::from_mins(2);

/// The test that takes the API server away has it alone.
static SHARED: OnceCell<RwLock<Cluster>> = OnceCell::const_new();

async fn lock() -> &'static RwLock<Cluster> {
    SHARED.get_or_init(async || RwLock::new(Cluster::start(ClusterOptions::default()).await.unwrap())).await
}

async fn shared() -> RwLockReadGuard<'static, Cluster> {
    lock().await.read().await
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    api.create(&PostParams::default(), &object(value)).await.unwrap()
}

async fn eventually(what: &str, check: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !check().await {
        assert!(began.elapsed() < GENEROUS, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A namespace, and a node of the same name onto which `on` puts its pods.
async fn stage(client: &Client, name: &str) {
    create::<Namespace>(&Api::all(client.clone()), json!({"metadata": {"name": name}})).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let labels = json!({"type": "kwok", "stage": name});
    create(&nodes, json!({"metadata": {"name": name, "labels": labels}})).await;
    eventually("the node to be Ready", async || {
        let status = nodes.get(name).await.unwrap().status.unwrap_or_default();
        status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True")
    })
    .await;
}

fn on(stage: &str, mut spec: Value) -> Value {
    spec["nodeSelector"] = json!({"stage": stage});
    spec["containers"] = json!([{"name": "main", "image": "none"}]);
    spec
}

async fn deploy(client: &Client, stage: &str, replicas: usize) -> Vec<Pod> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), stage);
    let labels = json!({"app": "web"});
    let template = json!({"metadata": {"labels": labels}, "spec": on(stage, json!({}))});
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template});
    create(&deployments, json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), stage);
    let list = async || pods.list(&ListParams::default()).await.unwrap().items;
    eventually("the pods to be Running", async || {
        list().await.iter().filter(|pod| running(pod)).count() == replicas
    })
    .await;
    list().await
}

fn running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

#[tokio::test]
async fn a_deployment_runs_on_a_kwok_node() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    stage(&client, "runs").await;
    for pod in deploy(&client, "runs", 10).await {
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("runs"));
    }
    // The programs know their version: without it, this fails.
    let version = std::process::Command::new(cluster.kubectl())
        .arg("--kubeconfig")
        .arg(cluster.admin_kubeconfig())
        .args(["version", "--output=json"])
        .output()
        .unwrap();
    assert!(version.status.success(), "{version:?}");
}

#[tokio::test]
async fn pods_of_the_node_agent_are_left_to_the_harness() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    stage(&client, "agents").await;
    let pods: Api<Pod> = Api::namespaced(client, "agents");
    let labels = json!({"app.kubernetes.io/name": NODE_AGENT_NAME});
    create(&pods, json!({"metadata": {"name": "agent", "labels": labels}, "spec": on("agents", json!({}))}))
        .await;
    eventually("the agent's pod to be scheduled", async || {
        pods.get("agent").await.unwrap().spec.unwrap().node_name.is_some()
    })
    .await;
    create(&pods, json!({"metadata": {"name": "other"}, "spec": on("agents", json!({}))})).await;
    eventually("a later pod to be Running", async || running(&pods.get("other").await.unwrap())).await;
    assert!(!running(&pods.get("agent").await.unwrap()));
}

#[tokio::test]
async fn who_has_no_role_may_nothing() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request = object::<TokenRequest>(json!({"spec": {"audiences": []}}));
    let token = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap();
    let path = cluster.dir().join("nobody.kubeconfig");
    cluster.service_account_kubeconfig("default", "default", &token.token, &path).unwrap();
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let nobody = Client::try_from(config).unwrap();
    let Err(kube::Error::Api(status)) = Api::<Node>::all(nobody).list(&ListParams::default()).await else {
        panic!("it was allowed");
    };
    assert_eq!(status.code, 403);
    assert!(status.message.contains("system:serviceaccount:default:default"), "{}", status.message);
}

#[tokio::test]
async fn data_outlives_the_api_server() {
    let cluster = lock().await.write().await;
    let client = cluster.client().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    create(&maps, json!({"metadata": {"name": "kept"}, "data": {"key": "value"}})).await;
    cluster.stop_apiserver().await.unwrap();
    assert!(maps.get("kept").await.is_err());
    cluster.start_apiserver().await.unwrap();
    assert_eq!(maps.get("kept").await.unwrap().data.unwrap()["key"], "value");

    cluster.stop_etcd().await.unwrap();
    cluster.start_etcd().await.unwrap();
    eventually("the API server to find etcd again", async || maps.get("kept").await.is_ok()).await;
}

#[tokio::test]
async fn a_protected_pod_is_not_evicted() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    stage(&client, "protected").await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "protected");
    let spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    create(&budgets, json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let pod = deploy(&client, "protected", 1).await.remove(0);
    eventually("the budget to count the pod", async || {
        budgets.get("web").await.unwrap().status.is_some_and(|status| status.current_healthy == 1)
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(client, "protected");
    let Err(kube::Error::Api(status)) = pods.evict(&pod.name_any(), &EvictParams::default()).await else {
        panic!("it was evicted");
    };
    assert_eq!(status.code, 429);
    assert_eq!(status.details.unwrap().causes[0].reason, "DisruptionBudget");
}

#[tokio::test]
async fn a_pod_takes_the_time_it_needs_to_stop_but_not_more_than_it_is_given() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    stage(&client, "stops").await;
    let pods: Api<Pod> = Api::namespaced(client, "stops");
    // Name, what it needs, its own grace, the grace of the deletion, and after how long it ends.
    let cases = [
        ("default", None, 30, None, 1000),
        ("quick", Some("100ms"), 30, None, 100),
        ("orderly", Some("3s"), 30, None, 3000),
        ("fraction", Some("2.5s"), 30, None, 2500),
        ("slow", Some("1h"), 4, None, 4000),
        ("hurried", Some("1m"), 30, Some(2), 2000),
        ("nonsense", Some("soon"), 30, None, 1000),
    ];
    let stop = async |(name, needs, grace, given, expected): (&str, Option<&str>, i64, Option<u32>, u64)| {
        let annotations: Value = needs.map(|needs| json!({STOP_AFTER_ANNOTATION: needs})).into();
        let metadata = json!({"name": name, "annotations": annotations});
        let spec = on("stops", json!({"terminationGracePeriodSeconds": grace}));
        create(&pods, json!({"metadata": metadata, "spec": spec})).await;
        eventually("the pod to be Running", async || running(&pods.get(name).await.unwrap())).await;
        let began = Instant::now();
        let params = DeleteParams { grace_period_seconds: given, ..DeleteParams::default() };
        pods.delete(name, &params).await.unwrap();
        eventually("the pod to be gone", async || pods.get_opt(name).await.unwrap().is_none()).await;
        let took = began.elapsed();
        println!("{name}: {took:?}");
        let expected = Duration::from_millis(expected);
        assert!(took >= expected, "{name} ended after {took:?}");
        // A busy machine may be late, but not by as much as taking another rule for the right one.
        assert!(took < expected + Duration::from_secs(20), "{name} ended after {took:?}");
    };
    futures::future::join_all(cases.map(stop)).await;
}

#[tokio::test]
async fn a_pod_that_never_stops_is_left_to_the_harness() {
    let cluster = shared().await;
    let client = cluster.client().await.unwrap();
    stage(&client, "stuck").await;
    let pods: Api<Pod> = Api::namespaced(client, "stuck");
    let spec = on("stuck", json!({"terminationGracePeriodSeconds": 1}));
    for (name, needs) in [("never", "never"), ("later", "1s")] {
        let metadata = json!({"name": name, "annotations": {STOP_AFTER_ANNOTATION: needs}});
        create(&pods, json!({"metadata": metadata, "spec": spec})).await;
        eventually("the pod to be Running", async || running(&pods.get(name).await.unwrap())).await;
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    eventually("the other pod to be gone", async || pods.get_opt("later").await.unwrap().is_none()).await;
    assert!(pods.get_opt("never").await.unwrap().is_some());
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete("never", &now).await.unwrap();
    eventually("the pod to be gone", async || pods.get_opt("never").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn an_attached_cluster_is_only_used() {
    let cluster = shared().await;
    let attached = Cluster::attach(cluster.admin_kubeconfig()).await.unwrap();
    assert_eq!(attached.server_url(), cluster.server_url());
    assert_eq!(attached.ca_pem(), cluster.ca_pem());
    attached.client().await.unwrap().apiserver_version().await.unwrap();
    let error = attached.stop_apiserver().await.unwrap_err().to_string();
    assert!(error.contains("not ours to start or stop"), "{error}");
    attached.stop().await.unwrap();
    cluster.client().await.unwrap().apiserver_version().await.unwrap();
}

#[tokio::test]
async fn a_second_cluster_has_an_audit_log_and_leaves_nothing() {
    let mut options = ClusterOptions::default();
    options.audit_log = true;
    options.kwok = false;
    let began = Instant::now();
    let cluster = Cluster::start(options).await.unwrap();
    println!("started in {:?}", began.elapsed());
    let client = cluster.client().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    create(&maps, json!({"metadata": {"name": "counted"}})).await;
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    let creations = log
        .lines()
        // The last line may be half written: others ask, too.
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["verb"] == "create" && event["requestURI"].to_string().contains("configmaps"))
        .filter(|event| event["user"]["username"] == "admin");
    assert_eq!(creations.count(), 1);
    let dir = cluster.dir().to_owned();
    let began = Instant::now();
    cluster.stop().await.unwrap();
    println!("stopped in {:?}", began.elapsed());
    assert!(!dir.exists());
}
