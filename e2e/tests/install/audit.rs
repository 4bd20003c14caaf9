//! The audit policy of `docs/how-to/audit.md`: it has who evicted, deleted and cordoned, and nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_e2e::objects::{create, is_ready};
use spotpool_e2e::{Stage, World, eventually};

const PAGE: &str = include_str!("../../../docs/how-to/audit.md");
const AGENT: &str = "system:serviceaccount:spotpool-system:spotpool-node-agent";
const OPERATOR: &str = "system:serviceaccount:spotpool-system:spotpool-operator";

/// Writes the policy of the page into a folder, for an API server.
pub fn policy(folder: &tempfile::TempDir) -> PathBuf {
    let (_, policy) = PAGE.split_once("```yaml\n").unwrap();
    let (policy, _) = policy.split_once("```").unwrap();
    let path = folder.path().join("audit-policy.yaml");
    std::fs::write(&path, policy).unwrap();
    path
}

fn entries(world: &World) -> Vec<Value> {
    let log = std::fs::read_to_string(world.cluster.audit_log().unwrap()).unwrap_or_default();
    // The last line may be half written.
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// An eviction and a deletion are told with the pod, the account, and the node that the account's token is of.
pub async fn tells_who_did_it(stage: &Stage<'_>) {
    let node = stage.nodes("spotb").await.unwrap()[0].name_any();
    let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "default");
    let pod = json!({"metadata": {"name": "work"}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "none"}]}});
    create(&pods, pod).await.unwrap();
    eventually("the pod to run", async || Ok(Some(pods.get("work").await?).filter(is_ready))).await.unwrap();
    stage.world.sim.evict(&[&node], Duration::from_secs(30)).await.unwrap();

    eventually("the eviction in the audit log", async || {
        let evicted = entries(stage.world).into_iter().any(|entry| {
            let object = &entry["objectRef"];
            (object["subresource"] == "eviction" && object["name"] == "work")
                && entry["user"]["username"] == AGENT
                && entry["user"]["extra"]["authentication.kubernetes.io/node-name"][0] == node.as_str()
                && entry["requestObject"]["deleteOptions"]["preconditions"]["uid"].is_string()
        });
        let cordoned = entries(stage.world).into_iter().any(|entry| {
            entry["objectRef"]["resource"] == "nodes"
                && entry["objectRef"]["name"] == node.as_str()
                && entry["user"]["username"] == AGENT
                && entry["requestObject"].to_string().contains("unschedulable")
        });
        Ok((evicted && cordoned).then_some(()))
    })
    .await
    .unwrap();

    let entries = entries(stage.world);
    let users: BTreeSet<&str> =
        entries.iter().map(|entry| entry["user"]["username"].as_str().unwrap()).collect();
    assert_eq!(users, BTreeSet::from([AGENT, OPERATOR]), "nobody else's");
    for entry in &entries {
        let resource = entry["objectRef"]["resource"].as_str().unwrap();
        let verb = entry["verb"].as_str().unwrap();
        assert!(
            ["nodes", "pods"].contains(&resource) && !["get", "list", "watch"].contains(&verb),
            "{entry}"
        );
    }
}
