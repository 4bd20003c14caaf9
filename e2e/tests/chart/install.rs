//! The charts on a real control plane: what the API server says to every object, and a release from install to uninstall, with
//! the real programs in its Pods' place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt, discovery};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_crds::names;
use spotpool_e2e::objects::{create, is_ready, marks, object};
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{Agents, Stage, World, WorldOptions, eventually, installed, run};
use spotpool_e2e_cluster::{STOP_AFTER_ANNOTATION, Tools};

use crate::helm::{charts, example, examples, helm_at, objects, template};

/// Helm, for one cluster.
struct Helm {
    program: PathBuf,
    kubeconfig: String,
}

impl Helm {
    fn run(&self, args: &[&str]) -> String {
        let mut all = args.to_vec();
        all.extend(["--namespace", SYSTEM_NAMESPACE, "--kubeconfig", &self.kubeconfig]);
        helm_at(&self.program, &all).unwrap_or_else(|said| panic!("helm {args:?}: {said}"))
    }

    /// Installs or upgrades the chart of the programs.
    fn spotpool(&self, command: &str, values: &Path, set: &[String]) -> String {
        let chart = charts().join("spotpool").display().to_string();
        let values = values.display().to_string();
        let mut args = vec![command, "spotpool", &chart, "--values", &values];
        for set in set {
            args.extend(["--set", set]);
        }
        self.run(&args)
    }

    fn crds(&self, command: &str) -> String {
        let chart = charts().join("spotpool-crds").display().to_string();
        self.run(&[command, "spotpool-crds", &chart])
    }
}

/// Where objects like this one are written.
async fn api(client: &Client, value: &Value) -> Option<Api<DynamicObject>> {
    let (group, version) = match value["apiVersion"].as_str().unwrap().split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", value["apiVersion"].as_str().unwrap()),
    };
    let gvk = GroupVersionKind::gvk(group, version, value["kind"].as_str().unwrap());
    let (resource, _) = discovery::pinned_kind(client, &gvk).await.ok()?;
    Some(match value["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}

/// Every object of every example, and where it is from.
fn every_object() -> Vec<(String, Value)> {
    let mut files = examples();
    files.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chart/everything.yaml"));
    // Namespaces of pools are made by those whose they are.
    let set = format!("operator.poolNamespaces={{{SYSTEM_NAMESPACE}}}");
    let of = |values: &PathBuf| {
        let from = values.display().to_string();
        let objects = objects(&template(values, &[&set]).unwrap());
        objects.into_iter().map(move |object| (from.clone(), object))
    };
    files.iter().flat_map(of).collect()
}

/// The API server takes each, and finds no field in it that it does not know.
async fn are_valid(client: &Client, objects: &[(String, Value)]) {
    let params = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("chart-test").force()
    };
    for (from, value) in objects {
        let name = value["metadata"]["name"].as_str().unwrap();
        let about = format!("{from}: {} {name}", value["kind"]);
        let api = api(client, value).await.unwrap_or_else(|| panic!("{about}: not served"));
        let result = api.patch(name, &params, &Patch::Apply(value)).await;
        result.unwrap_or_else(|error| panic!("{about}: {error}"));
    }
    // The question is asked in the right way: a field that is none is refused.
    let odd = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "odd", "namespace": SYSTEM_NAMESPACE},
        "date": {"typing": "error"}});
    let refused = api(client, &odd).await.unwrap().patch("odd", &params, &Patch::Apply(&odd)).await;
    assert!(refused.is_err(), "strictly validated");
}

/// Requests of the chart's two ServiceAccounts that were refused for want of a right or a sign-in.
fn denied(world: &World) -> Vec<String> {
    let log = std::fs::read_to_string(world.cluster.audit_log().unwrap()).unwrap();
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = entries.filter(|entry| {
        let user = entry["user"]["username"].as_str().unwrap_or_default();
        user.starts_with("system:serviceaccount:spotpool-system:") && entry["responseStatus"]["code"] == 403
    });
    ours.map(|entry| format!("{} {}", entry["verb"], entry["requestURI"])).collect()
}

async fn agents_args(client: &Client) -> Value {
    let set =
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": SYSTEM_NAMESPACE}});
    let set = api(client, &set).await.unwrap().get("spotpool-node-agent").await.unwrap();
    set.data["spec"]["template"]["spec"]["containers"][0]["args"].clone()
}

/// Versions of the release's own objects.
async fn versions(client: &Client, rendered: &str) -> Vec<(String, i64)> {
    let mut versions = Vec::new();
    for value in objects(rendered) {
        let name = value["metadata"]["name"].as_str().unwrap();
        let live = api(client, &value).await.unwrap().get(name).await.unwrap();
        versions.push((format!("{} {name}", value["kind"]), live.metadata.generation.unwrap_or_default()));
    }
    versions
}

#[test]
fn a_release_lives_from_install_to_uninstall_and_its_programs_with_it() {
    let every_object = every_object();
    run(async {
        let mut options = WorldOptions { agents: false, install: false, ..WorldOptions::default() };
        options.cluster.audit_log = true;
        let mut world = World::start(options).await.unwrap();
        let client = world.client.clone();
        let helm = Helm {
            program: Tools::helm().await.unwrap(),
            kubeconfig: world.cluster.admin_kubeconfig().display().to_string(),
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
        create(&Api::<Namespace>::all(client.clone()), namespace).await.unwrap();
        let monitoring = Tools::monitoring_crds().unwrap();
        for kind in ["podmonitors", "prometheusrules"] {
            let crd = std::fs::read_to_string(monitoring.join(format!("monitoring.coreos.com_{kind}.yaml")));
            spotpool_e2e::objects::apply(&client, &crd.unwrap(), |_| ()).await.unwrap();
        }

        helm.crds("install");
        let served =
            json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {}});
        let pools = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool", "metadata": {}});
        for kind in [&served, &pools] {
            eventually("the kinds to be served", async || Ok(api(&client, kind).await.map(|_| ())))
                .await
                .unwrap();
        }
        are_valid(&client, &every_object).await;

        // As an example says, for the simulator's cluster. Nobody but the harness ends an agent's Pod.
        let identity = world.sim.state().await.unwrap().identity;
        let sim = world.sim.base_url().to_owned();
        let here = vec![
            format!("azure.subscriptionId={}", identity.subscription),
            format!("azure.resourceGroup={}", identity.resource_group),
            format!("azure.clusterName={}", identity.cluster),
            format!("azure.endpoint={sim}"),
            format!("azure.pricesEndpoint={sim}/api/retail/prices"),
            "agent.podAnnotations.kwok-stop-after=never".to_owned(),
        ];
        // Nodes first: the scheduler is to have a choice.
        let (spot, regular) = (
            PoolSpec::spot("charts", "Standard_D4s_v5", 2),
            PoolSpec::regular("chartr", "Standard_D4s_v5", 2),
        );
        let bare = Stage::at(&world, SYSTEM_NAMESPACE);
        bare.agent_pools(&[spot, regular]).await.unwrap();
        let values = example("prometheus.yaml");
        let notes = helm.spotpool("install", &values, &here);
        assert!(notes.contains("kind: SpotPool") && notes.contains("rollout status deployment"), "{notes}");
        assert!(!notes.contains("MISSING") && !notes.contains("WRONG"), "{notes}");

        let agents =
            Agents::start(world.cluster.clone(), world.sim.clone(), &world.programs.node_agent, Vec::new())
                .await;
        world.agents = Some(agents.unwrap());
        let stage = Stage::at(&world, SYSTEM_NAMESPACE);
        stage.nodes_ready("charts", 2).await.unwrap();

        // The scheduler has put the operator's two Pods apart, and on no spot node.
        let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let operators = ListParams::default().labels("app.kubernetes.io/name=spotpool-operator");
        let mut on = eventually("the operator's Pods to run", async || {
            let pods = pods.list(&operators).await?.items;
            let on: Vec<String> = pods
                .iter()
                .filter(|pod| is_ready(pod))
                .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
                .collect();
            Ok((on.len() == 2).then_some(on))
        })
        .await
        .unwrap();
        on.sort();
        on.dedup();
        assert!(on.len() == 2 && on.iter().all(|node| node.contains("chartr")), "{on:?}");

        // Its programs do their work with the rights that it gives them.
        // Nobody signs in to the simulator here; tests of operator/access do.
        let unsigned = ["--azure-credential=none".to_owned()];
        let operator = installed::operator(&stage, &unsigned, &[]).await.unwrap();
        let agent_pools = json!([{"name": "charts", "maxNodes": 4}, {"name": "chartr", "maxNodes": 2}]);
        stage.spot_pool("workers", json!({"replicas": 4, "agentPools": agent_pools})).await.unwrap();
        stage.status_is("workers", "4 ready", |status| status.ready_replicas == 4).await.unwrap();
        // The same again changes nothing.
        let rendered = helm.run(&["get", "manifest", "spotpool"]);
        let before = versions(&client, &rendered).await;
        helm.spotpool("upgrade", &values, &here);
        assert_eq!(versions(&client, &rendered).await, before, "nothing was changed");

        // An upgrade while an eviction is on: every agent is replaced, and the pod is evicted all the same.
        let doomed = stage.nodes("charts").await.unwrap()[0].name_any();
        let work = json!({"metadata": {"name": "work", "annotations": {STOP_AFTER_ANNOTATION: "5s"}},
            "spec": {"nodeName": doomed, "terminationGracePeriodSeconds": 20,
                "containers": [{"name": "main", "image": "none"}]}});
        let works: Api<Pod> = Api::namespaced(client.clone(), "default");
        create(&works, work).await.unwrap();
        eventually("the pod to run", async || Ok(Some(works.get("work").await?).filter(is_ready)))
            .await
            .unwrap();
        world.sim.evict(&[&doomed], Duration::from_mins(2)).await.unwrap();
        let nodes: Api<Node> = Api::all(client.clone());
        let phase = async || {
            let notice = nodes.get(&doomed).await?.annotations().get(names::EVICTION_ANNOTATION).cloned();
            let notice: Value = serde_json::from_str(&notice.unwrap_or_default()).unwrap_or_default();
            anyhow::Ok(notice["phase"].as_str().unwrap_or_default().to_owned())
        };
        eventually("the notice", async || Ok(Some(phase().await?).filter(|phase| !phase.is_empty())))
            .await
            .unwrap();
        helm.crds("upgrade");
        helm.spotpool("upgrade", &values, &[here.clone(), vec!["agent.pollInterval=2s".to_owned()]].concat());
        let (slow, fast) = (json!("--poll-interval=2s"), json!("--poll-interval=1s"));
        let has = |args: &Value, arg: &Value| args.as_array().unwrap().contains(arg);
        assert!(has(&agents_args(&client).await, &slow));
        eventually("the drain to be over", async || Ok((phase().await? == "Drained").then_some(())))
            .await
            .unwrap();
        assert!(works.get_opt("work").await.unwrap().is_none(), "the pod was evicted while its VM was there");
        world.sim.kill(&Targets::named(&[&doomed])).await.unwrap();
        eventually("the node to be gone and replaced", async || {
            let nodes = stage.nodes("charts").await?;
            Ok((nodes.len() == 2 && nodes.iter().all(|node| node.name_any() != doomed)).then_some(()))
        })
        .await
        .unwrap();
        stage.status_is("workers", "4 ready again", |status| status.ready_replicas == 4).await.unwrap();
        assert_eq!(denied(&world), Vec::<String>::new());

        // A rollback takes back what the upgrade has changed.
        helm.run(&["rollback", "spotpool", "2"]);
        assert!(has(&agents_args(&client).await, &fast));
        stage.nodes_ready("charts", 2).await.unwrap();

        // The order that docs/install says: SpotPools, then the programs, then the API, which stays.
        stage.spot_pools().delete("workers", &DeleteParams::default()).await.unwrap();
        eventually("the SpotPool to be gone", async || {
            Ok(stage.spot_pools().get_opt("workers").await?.is_none().then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
        helm.run(&["uninstall", "spotpool"]);
        for value in objects(&rendered) {
            let (kind, name) = (value["kind"].clone(), value["metadata"]["name"].as_str().unwrap());
            let api = api(&client, &value).await.unwrap();
            eventually(&format!("{kind} {name} to be gone"), async || {
                Ok(api.get_opt(name).await?.is_none().then_some(()))
            })
            .await
            .unwrap();
        }
        for node in nodes.list(&ListParams::default()).await.unwrap() {
            assert_eq!(marks(&node), Vec::<String>::new(), "{}", node.name_any());
        }
        let pool = object(json!({"metadata": {"name": "kept"}, "spec": {"replicas": 1,
            "agentPools": [{"name": "charts", "maxNodes": 2}]}}));
        stage.spot_pools().create(&PostParams::default(), &pool.unwrap()).await.unwrap();
        helm.run(&["uninstall", "spotpool-crds"]);
        assert!(
            stage.spot_pools().get_opt("kept").await.unwrap().is_some(),
            "the API and SpotPools are kept"
        );
        helm.crds("install");
        world.stop().await.unwrap();
    });
}
