//! Nodes and pods in a real control plane.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Settings, Targets};
use spotpool_azure_sim::nodes::CLUSTER_LABEL;
use spotpool_azure_sim::scenario::Step;
use spotpool_azure_sim::server::{Options, Server};
use spotpool_e2e_cluster::{Cluster, ClusterOptions};

use crate::SIZE;

const GENEROUS: Duration = Duration::from_mins(1);

async fn eventually(what: &str, check: impl AsyncFn() -> bool) {
    let began = tokio::time::Instant::now();
    while !check().await {
        assert!(began.elapsed() < GENEROUS, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn ready(nodes: &Api<Node>) -> Vec<String> {
    let ours = ListParams::default().labels(CLUSTER_LABEL);
    let is_ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    nodes.list(&ours).await.unwrap().iter().filter(|node| is_ready(node)).map(ResourceExt::name_any).collect()
}

async fn start(cluster: &Cluster) -> Server {
    let file = Kubeconfig::read_from(cluster.admin_kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let options = Options {
        settings: Settings::with_boot_time(Duration::from_secs(1)),
        pools: vec![PoolSpec::regular("rega", SIZE, 2)],
        kubernetes: Some(config),
        ..Options::default()
    };
    Server::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_with_their_machines() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let client: Client = cluster.client().await.unwrap();
    let (nodes, pods): (Api<Node>, Api<Pod>) = (Api::all(client.clone()), Api::default_namespaced(client));
    let server = start(&cluster).await;
    let sim = server.client().unwrap();
    eventually("two Nodes to be Ready", async || ready(&nodes).await.len() == 2).await;

    // A pod that is on its way out, and one that is not, go with their machine.
    let names = ready(&nodes).await;
    for name in ["busy", "leaving"] {
        let pod = json!({
            "metadata": {"name": name, "finalizers": if name == "leaving" { vec!["example.com/hold"] } else { vec![] }},
            "spec": {"nodeName": names[0], "containers": [{"name": "c", "image": "none"}],
                "serviceAccountName": "default", "automountServiceAccountToken": false},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        eventually("the pod to be accepted", async || {
            pods.create(&PostParams::default(), &pod).await.is_ok()
        })
        .await;
    }
    let running = async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        list.iter().filter(|pod| pod.status.as_ref().unwrap().phase.as_deref() == Some("Running")).count()
    };
    eventually("both pods to run", async || running().await == 2).await;
    pods.delete("leaving", &DeleteParams::default()).await.unwrap();

    // While the API server is away, the machine goes all the same; the Node follows when it is back.
    cluster.stop_apiserver().await.unwrap();
    sim.kill(&Targets::named(&names[..1])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(sim.state().await.unwrap().vm(&names[0]).unwrap().node_removed_at.is_none());
    cluster.start_apiserver().await.unwrap();
    let removed =
        |state: &spotpool_azure_sim::api::State| state.vm(&names[0]).unwrap().node_removed_at.is_some();
    let state = sim.wait_until("the Node to be removed", GENEROUS, removed).await.unwrap();
    assert!(nodes.get_opt(&names[0]).await.unwrap().is_none());
    assert!(pods.get_opt("busy").await.unwrap().is_none());
    let mut killed: Vec<_> =
        state.killed_pods.iter().map(|pod| (pod.name.as_str(), pod.terminating)).collect();
    killed.sort_unstable();
    assert_eq!(killed, [("busy", false), ("leaving", true)]);

    // A Node that somebody deletes registers again, as its kubelet would see to.
    nodes.delete(&names[1], &DeleteParams::default()).await.unwrap();
    eventually("the Node to be back", async || ready(&nodes).await.contains(&names[1])).await;

    // Another simulator begins with a clean cluster.
    server.stop().await;
    let server = start(&cluster).await;
    eventually("two Nodes to be Ready again", async || ready(&nodes).await.len() == 2).await;
    server.stop().await;
    cluster.stop().await.unwrap();
}

/// What a controller sees of AKS's own doings: an upgrade with its cordon, drain and other boot, the Node of a
/// deallocated machine, and declared taints that nobody can take off for long.
#[tokio::test(flavor = "multi_thread")]
async fn aks_upgrades_deallocates_and_puts_back_on_a_real_control_plane() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let client: Client = cluster.client().await.unwrap();
    let (nodes, pods): (Api<Node>, Api<Pod>) = (Api::all(client.clone()), Api::default_namespaced(client));
    let file = Kubeconfig::read_from(cluster.admin_kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let mut settings = Settings::with_boot_time(Duration::from_secs(1));
    settings.switches.put_back = true;
    let policy = PoolSpec::spot("spota", SIZE, 1).property("scaleSetEvictionPolicy", json!("Deallocate"));
    let options = Options {
        settings,
        pools: vec![PoolSpec::regular("rega", SIZE, 1), policy],
        kubernetes: Some(config),
        ..Options::default()
    };
    let server = Server::start(options).await.unwrap();
    let sim = server.client().unwrap();
    eventually("two Nodes to be Ready", async || ready(&nodes).await.len() == 2).await;
    let of_pool = async |pool: &str| {
        sim.state().await.unwrap().vms_of(pool).map(|vm| vm.node.clone()).collect::<Vec<_>>()
    };
    let (regular, spot) = (of_pool("rega").await.remove(0), of_pool("spota").await.remove(0));
    let pod = json!({
        "metadata": {"name": "busy"},
        "spec": {"nodeName": regular, "containers": [{"name": "c", "image": "none"}],
            "serviceAccountName": "default", "automountServiceAccountToken": false},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    eventually("the pod to be accepted", async || pods.create(&PostParams::default(), &pod).await.is_ok())
        .await;

    let nobody = json!({"spec": {"taints": null}});
    nodes.patch(&spot, &PatchParams::default(), &Patch::Merge(&nobody)).await.unwrap();
    let tainted = async || {
        let node = nodes.get(&spot).await.unwrap();
        let keys: Vec<String> =
            node.spec.unwrap().taints.into_iter().flatten().map(|taint| taint.key).collect();
        keys.contains(&"kubernetes.azure.com/scalesetpriority".to_owned())
    };
    eventually("the declared taint to be back", tainted).await;

    // And AKS's webhook refuses it outright, in its words; what is not declared may go.
    sim.switch(json!({"refuseRemoval": true})).await.unwrap();
    eventually("the removal of the taint to be refused", async || {
        let refused = nodes.patch(&spot, &PatchParams::default(), &Patch::Merge(&nobody)).await;
        refused.is_err_and(|error| {
            let said = error.to_string();
            said.contains(
                "Taint delete request \"kubernetes.azure.com/scalesetpriority=spot:NoSchedule\" refused",
            ) && said.contains("configured on aks node pool \"spota\"")
        })
    })
    .await;
    for on in [json!([{"key": "mine", "effect": "NoSchedule"}]), json!([])] {
        let mut taints = nodes.get(&spot).await.unwrap().spec.unwrap().taints.unwrap_or_default();
        taints.retain(|taint| taint.key != "mine");
        let all: Vec<_> =
            taints.iter().map(|taint| json!(taint)).chain(on.as_array().unwrap().clone()).collect();
        let patch = json!({"spec": {"taints": all}});
        nodes.patch(&spot, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    let boot_id = async || nodes.get(&regular).await.unwrap().status.unwrap().node_info.unwrap().boot_id;
    let first_boot = boot_id().await;
    sim.act(&Step::now("upgrade: {pool: rega}").unwrap()).await.unwrap();
    let done = |state: &spotpool_azure_sim::api::State| {
        let pool = state.pool("rega").unwrap();
        (pool.provisioning_state.as_str(), pool.machines) == ("Succeeded", 1)
    };
    let state = sim.wait_until("the upgrade", GENEROUS, done).await.unwrap();
    assert!(pods.get_opt("busy").await.unwrap().is_none(), "it was evicted");
    assert!(state.killed_pods.is_empty());
    eventually("the Node to be Ready, free and another boot", async || {
        let node = nodes.get(&regular).await.unwrap();
        let free = node.spec.unwrap().unschedulable != Some(true);
        free && ready(&nodes).await.contains(&regular) && boot_id().await != first_boot
    })
    .await;

    sim.evict(&[&spot], Duration::ZERO).await.unwrap();
    eventually("the deallocated machine's Node not to be Ready", async || {
        nodes.get(&spot).await.is_ok() && !ready(&nodes).await.contains(&spot)
    })
    .await;
    server.stop().await;
    cluster.stop().await.unwrap();
}
