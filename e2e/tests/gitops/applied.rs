//! What is applied again changes nothing.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::{SpotPool, names};
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};
use spotpool_e2e_cluster::Tools;
use tokio::process::Command;

use crate::{RIGHTS, documents, kubectl, kubectl_does, root, said, stage, world};

const APPLY: &str = "apply --server-side --field-manager=gitops -f -";

/// Who owns something of the spec.
fn owners_of_spec(pool: &SpotPool) -> BTreeSet<&str> {
    let owns = |entry: &&ManagedFieldsEntry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some())
    };
    pool.managed_fields().iter().filter(owns).filter_map(|entry| entry.manager.as_deref()).collect()
}

/// Applies it again until nobody else has written in between, and nothing was written.
async fn changes_nothing(stage: &Stage<'_>, manifest: &Value) {
    let generation = stage.spot_pools().get("p").await.unwrap().metadata.generation;
    eventually("an apply that writes nothing", async || {
        let before = stage.spot_pools().get("p").await?.resource_version();
        kubectl_does(stage.world, APPLY, &manifest.to_string()).await;
        let after = stage.spot_pools().get("p").await?;
        assert_eq!(after.metadata.generation, generation, "it has changed the spec");
        Ok((after.resource_version() == before).then_some(()))
    })
    .await
    .unwrap();
}

#[test]
fn a_spot_pool_that_is_applied_again_stays_as_it_is_and_its_replicas_are_the_autoscalers() {
    run(async {
        let stage = stage("gitops").await;
        let pools = [
            PoolSpec::spot("gitopsa", "Standard_D4s_v5", 2),
            PoolSpec::regular("gitopsr", "Standard_D4s_v5", 0),
        ];
        stage.agent_pools(&pools).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let agent_pools = json!([{"name": "gitopsa", "maxNodes": 5}, {"name": "gitopsr", "maxNodes": 2}]);
        let mut manifest = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": "p", "namespace": stage.name},
            "spec": {"replicas": 2, "agentPools": agent_pools, "fallback": {"maxNodes": 1}}});
        kubectl_does(stage.world, APPLY, &manifest.to_string()).await;
        stage.status_is("p", "2 ready", |status| status.ready_replicas == 2).await.unwrap();
        changes_nothing(&stage, &manifest).await;
        let pool = stage.spot_pools().get("p").await.unwrap();
        assert_eq!(owners_of_spec(&pool), BTreeSet::from(["gitops"]));
        assert!(pool.finalizers().contains(&names::FINALIZER.to_owned()), "the operator has written");

        // Whoever writes all defaults out means the same.
        let mut full = manifest.clone();
        full["spec"] = serde_json::to_value(&pool.spec).unwrap();
        let before = pool.metadata.generation;
        kubectl_does(stage.world, APPLY, &full.to_string()).await;
        assert_eq!(stage.spot_pools().get("p").await.unwrap().metadata.generation, before);
        kubectl_does(stage.world, APPLY, &manifest.to_string()).await;
        let again = stage.spot_pools().get("p").await.unwrap();
        assert_eq!((again.metadata.generation, &again.spec), (before, &pool.spec), "defaults stay");

        // An autoscaler takes the wish over, and the manifest leaves it out from then on.
        kubectl_does(stage.world, &format!("scale spotpool p --replicas=3 -n {}", stage.name), "").await;
        let refused = kubectl(stage.world, APPLY, &manifest.to_string()).await;
        assert!(!refused.good && refused.err.contains(".spec.replicas"), "a fight is told of: {refused:?}");
        manifest["spec"].as_object_mut().unwrap().remove("replicas");
        kubectl_does(stage.world, APPLY, &manifest.to_string()).await;
        stage.status_is("p", "3 ready", |status| status.ready_replicas == 3).await.unwrap();
        changes_nothing(&stage, &manifest).await;
        let pool = stage.spot_pools().get("p").await.unwrap();
        assert_eq!(pool.spec.replicas, 3);
        assert_eq!(owners_of_spec(&pool), BTreeSet::from(["gitops", "kubectl"]), "kubectl by scale alone");
        operator.stop().await.unwrap();
    });
}

/// An object's version: of its spec if it has one, else of all.
async fn versions(objects: &[Value]) -> Vec<String> {
    let world = world().await;
    let mut versions = Vec::new();
    for object in objects {
        let metadata = &object["metadata"];
        let name = format!("{}/{}", object["kind"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let live = kubectl_does(world, &format!("get {name} -n {namespace} -o json"), "").await;
        let live: Value = serde_json::from_str(&live).unwrap();
        let version = live["metadata"].get("generation").unwrap_or(&live["metadata"]["resourceVersion"]);
        versions.push(format!("{name} {version}"));
    }
    versions
}

#[test]
fn the_charts_and_a_spot_pool_are_applied_as_folders_and_the_second_time_nothing_changes() {
    run(async {
        let _alone = RIGHTS.write().await;
        let world = world().await;
        let helm = Tools::helm().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["spotpool", "pools"] {
            let from = root("docs/install/gitops/kustomize").join(folder);
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            for file in std::fs::read_dir(from).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), dir.path().join(folder).join(file.file_name())).unwrap();
            }
        }
        // As the page says.
        let values = root("charts/spotpool/examples/workload-identity.yaml").display().to_string();
        for (chart, file, more) in [
            ("spotpool-crds", "crds.yaml", vec![]),
            ("spotpool", "spotpool.yaml", vec!["--kube-version", "1.34", "--values", &values]),
        ] {
            let mut command = Command::new(&helm);
            command.args(["template", chart]).arg(root("charts").join(chart));
            command.args(["--namespace", "spotpool-system"]).args(more);
            let rendered = said(command, "").await;
            assert!(rendered.good, "{rendered:?}");
            std::fs::write(dir.path().join("spotpool").join(file), rendered.out).unwrap();
        }
        let mut all = Vec::new();
        for folder in ["spotpool", "pools"] {
            let folder = dir.path().join(folder).display().to_string();
            let built = kubectl_does(world, &format!("kustomize {folder}"), "").await;
            // The harness has put rights there before; a tool that begins with an empty cluster needs no force.
            let apply = format!("apply --server-side --force-conflicts --field-manager=gitops -k {folder}");
            kubectl_does(world, &apply, "").await;
            all.extend(documents(&built));
        }
        assert!(all.iter().any(|it| it["kind"] == "SpotPool") && all.len() > 15, "{}", all.len());
        let before = versions(&all).await;
        for folder in ["spotpool", "pools"] {
            let folder = dir.path().join(folder).display().to_string();
            kubectl_does(world, &format!("apply --server-side --field-manager=gitops -k {folder}"), "").await;
        }
        assert_eq!(versions(&all).await, before);
    });
}
