//! One eviction, seen from the terminal, and a person's wishes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::names;
use spotpool_e2e::{Stage, World, WorldOptions, eventually, run};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{Plugin, is_one_sentence, keep_example, soon_silent};

/// The operator's own namespace, so that everything is installed as it ships.
const NAMESPACE: &str = "spotpool-system";

#[test]
fn an_eviction_and_a_persons_wishes_are_seen_at_the_terminal() {
    run(async {
        let world = World::start(WorldOptions::default()).await.unwrap();
        let stage = Stage::set(&world, NAMESPACE).await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("plugina", "Standard_D4s_v5", 2),
                PoolSpec::regular("pluginr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&soon_silent()).await.unwrap();
        let pools = json!([{"name": "plugina", "maxNodes": 5}, {"name": "pluginr", "maxNodes": 2}]);
        let failback = json!({"stabilization": "1h", "minOnDemandLifetime": "1s", "probe": "0s"});
        let spec =
            json!({"replicas": 2, "agentPools": pools, "fallback": {"maxNodes": 2}, "failback": failback});
        stage.spot_pool("workers", spec).await.unwrap();
        stage
            .status_is("workers", "2 on spot, with prices", |status| {
                status.capacity.ready_spot == 2
                    && status.capacity.established == 2
                    && status.money.as_ref().is_some_and(|money| money.hourly.is_some())
                    && status.agent_pools.iter().all(|pool| pool.price.is_some())
            })
            .await
            .unwrap();
        let plugin = Plugin::new(&world.programs.kubectl_plugin, world.cluster.admin_kubeconfig());

        calm(&plugin).await;
        let said = plugin.by_kubectl(world.cluster.kubectl(), "status workers -o json").await;
        assert_eq!((said.code, &said.json()["name"]), (0, &json!("workers")), "{said:?}");
        manifests(&stage, &plugin).await;
        let node = stage.nodes("plugina").await.unwrap()[0].name_any();
        evicted(&stage, &plugin, &node).await;
        wishes(&stage, &plugin).await;

        // Nobody leads any more: what is known is shown, and that it is old.
        operator.process.kill().unwrap();
        eventually("the lease to be old", async || {
            let said = plugin.run("status").await;
            assert!(said.out.contains("workers"), "{said:?}");
            Ok((said.code == 1)
                .then(|| is_one_sentence(&said, "the operator is silent: lease spotpool-system/")))
        })
        .await
        .unwrap();
        is_one_sentence(&plugin.run("failback workers --now").await, "the operator is silent");
        let node = stage.nodes("plugina").await.unwrap()[0].name_any();
        let refused = plugin.run(&format!("drain {node}")).await;
        is_one_sentence(&refused, "nobody would answer");
        assert!(!has(&stage, &node, names::REQUESTED_DRAIN_ANNOTATION).await, "nobody would answer");
        world.stop().await.unwrap();
    });
}

async fn has(stage: &Stage<'_>, node: &str, annotation: &str) -> bool {
    let nodes: Api<Node> = Api::all(stage.world.client.clone());
    nodes.get_opt(node).await.unwrap().is_some_and(|node| node.annotations().contains_key(annotation))
}

/// Nothing is wrong, and everything is said.
async fn calm(plugin: &Plugin) {
    let table = plugin.ok("status").await;
    let titles = table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(titles, "NAMESPACE NAME WANTED READY SPOT ON-DEMAND FALLBACK HOURLY SAVING STATE");
    assert!(table.contains("workers") && table.contains("AsWanted"), "{table}");
    for columns in [80, 40, 20] {
        for line in ["status", "status workers", "timeline"] {
            let said = plugin.run_in(columns, line).await;
            // Prose is broken between words, and the longest word stays whole.
            let is_prose = |text: &&str| text.split_whitespace().count() < 3;
            let wide = said.out.lines().find(|text| text.chars().count() > columns && !is_prose(text));
            assert!(columns < 40 || wide.is_none(), "{columns}: {wide:?}");
            if line == "status" {
                assert!(said.out.lines().all(|text| text.chars().count() <= columns), "{columns}: {said:?}");
            }
        }
    }
    let data: Value = serde_json::from_str(&plugin.ok("status -o json").await).unwrap();
    let row = &data["pools"][0];
    assert_eq!(
        (&row["name"], &row["wanted"], &row["spot"]),
        (&json!("workers"), &json!(2), &json!(2)),
        "{data}"
    );
    assert!(row["hourly"].as_str().unwrap().ends_with(" USD"), "{row}");
    assert!(plugin.ok("status -o wide").await.contains("2 of 2 ready"));
    let detail = plugin.ok("status workers").await;
    for wanted in ["Money ", "Capacity   2 of 2 ready", "AGENT POOL", "Plan", "CONDITION"] {
        assert!(detail.contains(wanted), "`{wanted}` is not in\n{detail}");
    }
    assert!(plugin.ok("status workers -o yaml").await.contains("observedGeneration"));
    let why = plugin.ok("explain workers").await;
    for wanted in
        ["2 units wanted: spec.replicas says so", "plugina (spot", "rank 1: ", "What would change it"]
    {
        assert!(why.contains(wanted), "`{wanted}` is not in\n{why}");
    }
    is_one_sentence(&plugin.run("status wrokers").await, "did you mean spotpool-system/workers?");
    is_one_sentence(&plugin.run("explain wrokers").await, "did you mean spotpool-system/workers?");

    // A right cluster has nothing to say; an agent that a busy machine kept from answering its probe is ready with the next.
    let healthy = eventually("the doctor to find nothing", async || {
        let said = plugin.run("doctor").await;
        anyhow::ensure!(said.code == 0, "{said:?}");
        Ok(Some(said.out))
    });
    let healthy = healthy.await.unwrap();
    assert!(healthy.ends_with("checks: nothing is wrong\n") && healthy.lines().count() == 1, "{healthy}");
}

/// What a manifest would do, and that nothing is done.
async fn manifests(stage: &Stage<'_>, plugin: &Plugin) {
    let file = stage.world.cluster.dir().join("spotpool.yaml");
    let line = format!("plan -f {}", file.display());
    let manifest = |name: &str, spec: Value| {
        let manifest = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        std::fs::write(&file, manifest.to_string()).unwrap();
    };
    let before = stage.spot_pools().get("workers").await.unwrap();
    let spec = |change: Value| {
        let mut spec = serde_json::to_value(&before.spec).unwrap();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec
    };
    manifest("workers", spec(json!({})));
    let said = plugin.ok(&line).await;
    assert!(said.contains("its spec stays as it is") && said.contains("no other at once"), "{said}");
    manifest("another", spec(json!({})));
    let said = plugin.ok(&line).await;
    assert!(said.contains("would be made") && said.contains("mode: Observe"), "{said}");
    manifest("workers", spec(json!({"replicas": 3})));
    let said = plugin.ok(&line).await;
    for wanted in
        ["spec.replicas: 2 becomes 3", "SpotBelowTarget: ask plugina for 1 more", "(1 machine more)"]
    {
        assert!(said.contains(wanted), "`{wanted}` is not in\n{said}");
    }

    manifest("workers", spec(json!({"fallbck": {"maxNodes": 1}})));
    is_one_sentence(&plugin.run(&line).await, "unknown field \"spec.fallbck\"");
    manifest("workers", spec(json!({"drain": {"escalateAfter": "11m"}})));
    is_one_sentence(&plugin.run(&line).await, "drain.escalateAfter must be at most 10m");
    is_one_sentence(&plugin.run("plan -f nowhere.yaml").await, "cannot read nowhere.yaml");

    let after = stage.spot_pools().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(after.len(), 1, "a plan made one");
    assert_eq!(after[0].metadata.generation, before.metadata.generation, "a plan wrote");
}

/// One node is taken.
async fn evicted(stage: &Stage<'_>, plugin: &Plugin, node: &str) {
    let mut watch = plugin.start("watch");
    let mut changes = BufReader::new(watch.stdout.take().unwrap()).lines();
    let first = changes.next_line().await.unwrap().unwrap();
    assert!(first.contains("spotpool-system/workers 2/2 ready"), "{first}");

    stage.world.sim.evict(&[node], Duration::from_secs(20)).await.unwrap();
    let told = eventually("the node to say that it is under notice", async || {
        let said = plugin.run(&format!("explain {node}")).await;
        Ok((said.code == 0 && said.out.contains("Azure announced Preempt")).then_some(said.out))
    })
    .await
    .unwrap();
    assert!(told.contains("it is of SpotPool spotpool-system/workers"), "{told}");
    let loss = async {
        let mut seen = format!("$ kubectl spotpool watch | cat\n{first}\n");
        while let Some(change) = changes.next_line().await.unwrap() {
            seen = format!("{seen}{change}\n");
            keep_example("watch", &seen);
            if change.contains("workers 1/2 ready") {
                return;
            }
        }
        panic!("the watch ended without a line of the loss");
    };
    tokio::time::timeout(Duration::from_mins(1), loss).await.expect("the loss is a line");
    watch.kill().await.unwrap();

    let eviction = eventually("the eviction and what replaced it in the timeline", async || {
        let data = plugin.run("timeline workers -o json").await.json();
        let its = data["evictions"].as_array().unwrap().iter().find(|it| it["node"] == node).cloned();
        Ok(its.filter(|it| it["drain"] == "Drained" && it["replacedSeconds"].is_number()))
    })
    .await
    .unwrap();
    assert_eq!(eviction["pool"], "spotpool-system/workers");
    assert!((10..=20).contains(&eviction["leadSeconds"].as_i64().unwrap()), "{eviction}");
    // The Node goes; Events still tell.
    eventually("the node to be gone", async || {
        let nodes: Api<Node> = Api::all(stage.world.client.clone());
        Ok(nodes.get_opt(node).await?.is_none().then_some(()))
    })
    .await
    .unwrap();
    let table = plugin.ok("timeline").await;
    let row = table.lines().find(|line| line.contains(node)).unwrap();
    assert!(row.contains("Drained"), "{table}");
    assert!(table.contains("Kubernetes keeps Events for an hour"), "{table}");
    stage
        .status_is("workers", "spot to be whole", |status| {
            status.capacity.ready_spot >= 2 && status.capacity.evicting == 0
        })
        .await
        .unwrap();
}

/// A dry run writes nothing, and a wish is answered.
async fn wishes(stage: &Stage<'_>, plugin: &Plugin) {
    let node = stage.nodes("plugina").await.unwrap()[0].name_any();
    let dry = plugin.ok(&format!("drain {node} --dry-run")).await;
    assert!(dry.contains("nothing was written"), "{dry}");
    let dry = plugin.ok("failback workers --now --dry-run").await;
    assert!(dry.contains("nothing was written"), "{dry}");
    let pool = stage.spot_pools().get("workers").await.unwrap();
    assert!(!pool.annotations().contains_key(names::REQUESTED_FAILBACK_ANNOTATION), "a dry run wrote");
    assert!(!has(stage, &node, names::REQUESTED_DRAIN_ANNOTATION).await, "a dry run wrote");
    assert!(!has(stage, &node, names::DRAIN_REQUEST_ANNOTATION).await, "a dry run was granted");

    let answer = plugin.ok("failback workers --now").await;
    let status = stage.status("workers").await.unwrap();
    let said = status.fallback.request.unwrap().answer;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert!(words(&answer).contains(&words(&said)), "{answer}: {said}");

    let answer = plugin.ok(&format!("drain {node}")).await;
    assert!(
        words(&answer).contains("granted; its agent drains it until") || answer.contains("the wish stands"),
        "{answer}"
    );
    eventually("the node to be drained and its machine returned", async || {
        let nodes: Api<Node> = Api::all(stage.world.client.clone());
        Ok(nodes.get_opt(&node).await?.is_none().then_some(()))
    })
    .await
    .unwrap();
    is_one_sentence(&plugin.run(&format!("drain {node}")).await, &format!("there is no Node {node}"));
}
