//! Workloads: an API server takes the examples strictly, and the chart's policies tell of those that do not live on spot. That
//! the examples are right for spot, lint's own tests say.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::objects::is_ready;
use spotpool_e2e::{Stage, World, eventually, run};
use spotpool_e2e_cluster::Tools;
use tokio::process::Command;

use crate::{documents, kubectl, kubectl_does, root, said, stage, world};

const DRY: &str = "apply --server-side --dry-run=server --validate=strict --field-manager=gitops -f -";

fn example(name: &str) -> Vec<Value> {
    documents(&std::fs::read_to_string(root("docs/examples/workloads").join(name)).unwrap())
}

/// What the chart makes of its workload policies.
async fn rendered(set: &[&str]) -> String {
    let mut command = Command::new(Tools::helm().await.unwrap());
    command.args(["template", "spotpool"]).arg(root("charts/spotpool"));
    command.args(["--namespace", "spotpool-system", "--kube-version", "1.34"]);
    command.arg("--values").arg(root("charts/spotpool/examples/workload-identity.yaml"));
    for set in set {
        command.args(["--set", set]);
    }
    let rendered = said(command, "").await;
    assert!(rendered.good, "{rendered:?}");
    let source = "# Source: spotpool/templates/workloads/";
    let ours = rendered.out.split("---\n").filter(|document| document.starts_with(source));
    ours.collect::<Vec<_>>().join("---\n")
}

/// Applies the policies with this action, for one namespace, and waits until they are in force.
async fn policies(world: &World, namespace: &str, action: &str) {
    let selector =
        format!("workloadPolicies.namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name={namespace}");
    let action = format!("workloadPolicies.action={action}");
    let policies = rendered(&["workloadPolicies.enabled=true", &selector, &action]).await;
    kubectl_does(world, "apply --server-side --validate=strict -f -", &policies).await;
}

/// An object of the share that is wrong in one way, and words of what is said of it.
fn wrong(namespace: &str) -> Vec<(Value, &'static str)> {
    let of = |mut object: Value, change: &dyn Fn(&mut Value)| {
        object["metadata"]["namespace"] = json!(namespace);
        change(&mut object);
        object
    };
    let spot = example("share.yaml")[2].clone();
    let budget = example("share.yaml")[4].clone();
    let batch = example("batch.yaml")[0].clone();
    let pod = |change: fn(&mut Value)| {
        of(spot.clone(), &|it| change(it.pointer_mut("/spec/template/spec").unwrap()))
    };
    let budgets = |spec: Value| {
        of(budget.clone(), &|it| {
            it["spec"] = json!({"selector": {"matchLabels": {"app": "web"}}});
            it["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        })
    };
    vec![
        (pod(|it| it["tolerations"] = json!([])), "does not tolerate their taint"),
        (pod(|it| it["tolerations"] = json!([{"operator": "Exists"}])), "it tolerates every taint"),
        (
            pod(|it| it["nodeSelector"] = json!({"kubernetes.azure.com/scalesetpriority": "spot"})),
            "run on spot alone",
        ),
        (pod(|it| it["terminationGracePeriodSeconds"] = json!(31)), "longer than Azure's notice"),
        (
            of(batch, &|it| it["spec"]["jobTemplate"]["spec"]["podFailurePolicy"] = Value::Null),
            "each eviction counts against its backoffLimit",
        ),
        (budgets(json!({"maxUnavailable": 0})), "it never lets a pod go"),
        (budgets(json!({"maxUnavailable": "0%"})), "it never lets a pod go"),
        (budgets(json!({"minAvailable": "100%"})), "it never lets a pod go"),
    ]
}

/// What is right, and what is none of the policies' business.
fn right(namespace: &str) -> Vec<Value> {
    let mut all = example("share.yaml");
    all.extend(example("batch.yaml"));
    let (mut bare, mut saved) = (all[2].clone(), all[2].clone());
    // Nobody says that it is meant for spot.
    bare["metadata"] = json!({"name": "bare"});
    bare["spec"]["template"]["spec"]["tolerations"] = json!([]);
    saved["metadata"]["name"] = json!("saved");
    saved["spec"]["template"]["metadata"]["annotations"] = json!({"spotpool.dev/hook": ":8080/save"});
    saved["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(600);
    all.extend([bare, saved]);
    for object in &mut all {
        object["metadata"]["namespace"] = json!(namespace);
    }
    all
}

#[test]
fn the_charts_policies_warn_of_or_refuse_what_does_not_live_on_spot() {
    run(async {
        let world = world().await;
        assert_eq!(rendered(&[]).await, "", "nobody gets them who has not asked");
        for namespace in ["warned", "unwatched"] {
            kubectl_does(world, &format!("create namespace {namespace}"), "").await;
        }
        policies(world, "warned", "Warn").await;
        let wrong = wrong("warned");
        for (object, words) in &wrong {
            // The first waits until the policies are in force.
            eventually(&format!("a warning: {words}"), async || {
                let said = kubectl(world, DRY, &object.to_string()).await;
                assert!(said.good, "{words}: {said:?}");
                Ok((said.err.contains("Warning: ") && said.err.contains(words)).then_some(()))
            })
            .await
            .unwrap();
        }
        for object in right("warned") {
            let said = kubectl(world, DRY, &object.to_string()).await;
            assert!(said.good && !said.err.contains("Warning: "), "{object}: {said:?}");
        }
        let mut elsewhere = wrong[0].0.clone();
        elsewhere["metadata"]["namespace"] = json!("unwatched");
        let said = kubectl(world, DRY, &elsewhere.to_string()).await;
        assert!(said.good && !said.err.contains("Warning: "), "{said:?}");
        // The API server has nothing to say against the expressions.
        for name in ["spotpool-workloads", "spotpool-budgets"] {
            let policy = eventually("the policy to be checked", async || {
                let line = format!("get validatingadmissionpolicy {name} -o json");
                let policy: Value = serde_json::from_str(&kubectl_does(world, &line, "").await)?;
                Ok((policy["status"]["observedGeneration"] == policy["metadata"]["generation"])
                    .then_some(policy))
            });
            let policy = policy.await.unwrap();
            assert_eq!(policy["status"]["typeChecking"], json!({}), "{name}");
        }

        policies(world, "warned", "Deny").await;
        for (object, words) in &wrong {
            eventually(&format!("a refusal: {words}"), async || {
                let said = kubectl(world, DRY, &object.to_string()).await;
                Ok((!said.good && said.err.contains(words)).then_some(()))
            })
            .await
            .unwrap();
        }
        for object in right("warned") {
            kubectl_does(world, DRY, &object.to_string()).await;
        }
    });
}

#[test]
fn the_examples_of_workloads_are_taken_by_an_api_server() {
    run(async {
        let world = world().await;
        let mut files: Vec<PathBuf> = std::fs::read_dir(root("docs/examples/workloads"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.push(root("docs/examples/checkpointing-job.yaml"));
        for file in &files {
            kubectl_does(world, DRY, &std::fs::read_to_string(file).unwrap()).await;
        }
        assert!(files.len() > 3);
        // The question is asked in the right way.
        let odd = std::fs::read_to_string(&files[0]).unwrap().replacen("spec:", "spec:\n  toleration: []", 1);
        let refused = kubectl(world, DRY, &odd).await;
        assert!(!refused.good && refused.err.contains("toleration"), "{refused:?}");
    });
}

/// The nodes of pods with this label, once so many run: whether each is spot.
async fn on_spot(stage: &Stage<'_>, label: &str, count: usize) -> Vec<bool> {
    let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), &stage.name);
    let nodes: Api<Node> = Api::all(stage.world.client.clone());
    eventually(&format!("{count} pods of {label}"), async || {
        let pods = pods.list(&ListParams::default().labels(label)).await?;
        let mut on_spot = Vec::new();
        for pod in pods.iter().filter(|pod| is_ready(pod)) {
            let node = nodes.get(pod.spec.as_ref().unwrap().node_name.as_ref().unwrap()).await?;
            on_spot.push(node.labels().contains_key("kubernetes.azure.com/scalesetpriority"));
        }
        Ok((on_spot.len() == count).then_some(on_spot))
    })
    .await
    .unwrap()
}

#[test]
fn a_share_stays_on_demand_by_two_deployments_and_not_by_a_spread() {
    run(async {
        let stage = stage("share").await;
        let pools = [
            PoolSpec::spot("shares", "Standard_D4s_v5", 2),
            PoolSpec::regular("sharer", "Standard_D4s_v5", 1),
        ];
        stage.agent_pools(&pools).await.unwrap();
        let apply = format!("apply --server-side -n {} -f -", stage.name);
        let text = std::fs::read_to_string(root("docs/examples/workloads/share.yaml")).unwrap();
        kubectl_does(stage.world, &apply, &text).await;
        assert_eq!(on_spot(&stage, "share=base", 2).await, [false; 2]);
        assert_eq!(on_spot(&stage, "share=spot", 4).await, [true; 4], "as many as the autoscaler's least");

        // Nodes on demand lack the label, so the spread passes them over, though they have room.
        let mut spread = example("share.yaml")[2].clone();
        let labels = json!({"app": "spread"});
        spread["metadata"]["name"] = json!("spread");
        spread["spec"]["replicas"] = json!(4);
        spread["spec"]["selector"]["matchLabels"] = labels.clone();
        spread["spec"]["template"]["metadata"]["labels"] = labels.clone();
        let pod = &mut spread["spec"]["template"]["spec"];
        pod["affinity"] = json!({});
        pod["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "kubernetes.azure.com/scalesetpriority",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": labels}}]);
        kubectl_does(stage.world, &apply, &spread.to_string()).await;
        assert_eq!(on_spot(&stage, "app=spread", 4).await, [true; 4]);
    });
}
