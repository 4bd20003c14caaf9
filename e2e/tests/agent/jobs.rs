//! Jobs whose pods are deleted past their disruption budget.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::names;
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::{RUN_FOR_ANNOTATION, STOP_AFTER_ANNOTATION};

use crate::corner::{Corner, shared};

#[test]
fn a_job_that_ignores_disruptions_does_not_pay_with_its_backoff_limit() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "jobs", 1).await;
        let node = corner.nodes[0].as_str();
        let jobs: Api<Job> = Api::namespaced(corner.stage.world.client.clone(), "jobs");
        // The same Job twice, but for what it says about disruptions. One failure ends it.
        let selector = json!({names::AGENT_POOL_LABEL: "jobs"});
        let tolerations = json!([{"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}]);
        let job = |name: &str, ignores: bool| {
            let rule = json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
            let mut spec = json!({"backoffLimit": 0, "template": {
                "metadata": {"labels": {"app": "jobs"}, "annotations": {STOP_AFTER_ANNOTATION: "300ms", RUN_FOR_ANNOTATION: "1h"}},
                "spec": {"nodeSelector": selector, "tolerations": tolerations, "restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}});
            if ignores {
                spec["podFailurePolicy"] = json!({"rules": [rule]});
            }
            json!({"metadata": {"name": name}, "spec": spec})
        };
        for (name, ignores) in [("ignores", true), ("counts", false)] {
            eventually("the Job to be accepted", async || create(&jobs, job(name, ignores)).await.map(Some))
                .await
                .unwrap();
        }
        let pods_of = async |job: &str| -> Vec<Pod> {
            let of_job = ListParams::default().labels(&format!("job-name={job}"));
            corner.pod_api().list(&of_job).await.unwrap().items
        };
        for job in ["ignores", "counts"] {
            eventually("the Job's pod to run", async || {
                Ok(pods_of(job).await.iter().any(is_ready).then_some(()))
            })
            .await
            .unwrap();
        }
        let first = pods_of("ignores").await.remove(0);
        corner.budget("jobs", 2, 2).await;

        corner.evict(&[node], Duration::from_mins(1)).await;
        let failed_of = async |job: &str| {
            let status = jobs.get(job).await.unwrap().status.unwrap_or_default();
            let failed = status.conditions.unwrap_or_default().into_iter().any(|it| it.type_ == "Failed");
            (status.failed.unwrap_or_default(), failed)
        };
        let other_failed = eventually("the other Job to have failed", async || {
            let (count, failed) = failed_of("counts").await;
            Ok((count == 1 && failed).then_some(()))
        });
        if let Err(error) = other_failed.await {
            let status = jobs.get("counts").await.unwrap().status;
            panic!("{error:#}; {status:?}; {:?}; {}", pods_of("counts").await, corner.log(node));
        }
        let replaced = async || {
            let pods = pods_of("ignores").await;
            Ok(pods.into_iter().find(|pod| pod.uid() != first.uid()))
        };
        eventually("a new pod of the Job", replaced).await.unwrap();
        assert_eq!(failed_of("ignores").await, (0, false), "the disruption was not counted");

        let marked: Vec<_> = corner
            .asked(node)
            .into_iter()
            .filter(|asked| asked.resource == "pods/status" && asked.verb == "patch")
            .collect();
        let deleted = corner.asked_of_pods(node, "delete");
        for deletion in deleted.iter().filter(|deletion| deletion.name == first.name_any()) {
            let mark = marked.iter().find(|mark| mark.name == deletion.name).expect("marked");
            assert!(mark.code == 200 && mark.at <= deletion.at, "{mark:?} {deletion:?}");
        }
        // The Jobs' next pods wait for another node.
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert_eq!(drained.pods, PodCounts { evicted: 0, escalated: 2, left: 0 });
    });
}
