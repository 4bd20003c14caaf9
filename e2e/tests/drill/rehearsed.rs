//! Drains are rehearsed.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_crds::drill::DrillPhase;
use spotpool_crds::names;
use spotpool_e2e::objects::takes_pods;
use spotpool_e2e::{OperatorOptions, eventually, run};

use crate::{EVICTIONS, drill, drill_is, drills, is_open, ordered, over, pod, whole, world};

#[test]
fn a_rehearsal_drains_nodes_within_budgets_opens_them_again_and_buys_nothing() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) =
            whole(world().await, "rehearse", 2, &OperatorOptions::default()).await.unwrap();
        for node in stage.nodes("rehearsea").await.unwrap() {
            let name = node.name_any();
            pod(&stage, "rehearse", &name, &format!("on-{}", &name[name.len() - 1..])).await;
        }
        let spec = json!({"amount": {"percent": 50}, "notice": "10s", "expect": {"minReadyUnits": 1}});
        drill(&stage, "d", spec).await.unwrap();
        drill_is(&stage, "d", "the node to be drained", |status| {
            let run = status.run.as_ref();
            run.is_some_and(|run| run.targets.iter().any(|target| target.drained_at.is_some()))
        })
        .await
        .unwrap();
        // The SpotPool says what is the case: one that is closed takes no pods.
        let pool =
            stage.status_is("p", "one less to be ready", |status| status.ready_replicas == 1).await.unwrap();
        assert_eq!(pool.capacity.ready_spot, 1);
        let status = over(&stage, "d").await.unwrap();
        assert_eq!(status.phase, Some(DrillPhase::Succeeded), "{status:?}");
        let run = status.run.unwrap();
        assert_eq!((run.targets.len(), run.candidates, run.units.lowest), (1, 2, 1));
        assert!(run.targets[0].released_at.is_some() && run.targets[0].gone_at.is_none(), "{run:?}");
        assert_eq!(run.targets[0].pods.evicted, 1);
        eventually("all nodes to be as before", async || {
            Ok(stage.nodes("rehearsea").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "rehearse");
        assert_eq!(pods.list(&kube::api::ListParams::default()).await.unwrap().items.len(), 1);
        stage.status_is("p", "all to be ready", |status| status.ready_replicas == 2).await.unwrap();
        assert_eq!(ordered(&stage).await, 0, "a rehearsal costs nothing");
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_drill_that_is_deleted_in_the_middle_leaves_no_node_closed() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) =
            whole(world().await, "deleted", 1, &OperatorOptions::default()).await.unwrap();
        drill(&stage, "d", json!({"amount": {"all": true}, "notice": "5m"})).await.unwrap();
        eventually("the node to be closed", async || {
            Ok(stage.nodes("deleteda").await?.iter().all(|node| !is_open(node)).then_some(()))
        })
        .await
        .unwrap();
        drills(&stage).delete("d", &DeleteParams::default()).await.unwrap();
        eventually("the node to be open", async || {
            Ok(stage.nodes("deleteda").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(ordered(&stage).await, 0);
        operator.stop().await.unwrap();
    });
}

/// Where nobody leads, nobody takes the request back: the agent knows by itself that the VM stays.
#[test]
fn a_rehearsed_node_opens_by_itself_while_no_operator_leads() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let options = OperatorOptions::default();
        let (stage, operator) = whole(world().await, "alone", 1, &options).await.unwrap();
        drill(&stage, "d", json!({"amount": {"all": true}, "notice": "10s"})).await.unwrap();
        drill_is(&stage, "d", "the node to be drained", |status| {
            let run = status.run.as_ref();
            run.is_some_and(|run| run.targets.iter().any(|target| target.drained_at.is_some()))
        })
        .await
        .unwrap();
        operator.process.kill().unwrap();
        eventually("the node to take pods though the request stands", async || {
            let nodes = stage.nodes("alonea").await?;
            let is_asked = |node: &Node| node.annotations().contains_key(names::DRAIN_REQUEST_ANNOTATION);
            Ok(nodes.iter().all(|node| takes_pods(node) && is_asked(node)).then_some(()))
        })
        .await
        .unwrap();
        let operator = stage.operator(&options).await.unwrap();
        let status = over(&stage, "d").await.unwrap();
        assert_eq!(status.phase, Some(DrillPhase::Succeeded), "{status:?}");
        eventually("nothing to be left of it", async || {
            Ok(stage.nodes("alonea").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(ordered(&stage).await, 0);
        operator.stop().await.unwrap();
    });
}

/// A pod of somebody else may come to a node at any time, and its owner knows of no drill.
#[test]
fn pods_of_others_are_left_alone_wherever_they_come_to() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) =
            whole(world().await, "strange", 3, &OperatorOptions::default()).await.unwrap();
        let spec = json!({"amount": {"count": 2}, "stagger": "12s", "notice": "5m",
            "limits": {"maxNodes": 2, "namespaces": ["strange"]}});
        drill(&stage, "d", spec).await.unwrap();
        let begun = drill_is(&stage, "d", "the first node to be drained", |status| {
            let targets = status.run.iter().flat_map(|run| &run.targets);
            targets.filter(|target| target.drained_at.is_some()).count() == 1
        });
        let run = begun.await.unwrap().run.unwrap();
        let nodes: Vec<String> = run.targets.iter().map(|target| target.node.clone()).collect();
        pod(&stage, "default", &nodes[1], "visitor").await;
        let second = drill_is(&stage, "d", "another node to be taken", |status| {
            let targets = status.run.iter().flat_map(|run| &run.targets);
            targets.filter(|target| target.drained_at.is_some()).count() == 2
        });
        let run = second.await.unwrap().run.unwrap();
        assert!(run.targets[0].node == nodes[0] && run.targets[1].node != nodes[1], "{run:?}");
        let pods: Api<Pod> = Api::namespaced(stage.world.client.clone(), "default");
        assert!(pods.get_opt("visitor").await.unwrap().is_some());
        // Stopped, and opened.
        drills(&stage).delete("d", &DeleteParams::default()).await.unwrap();
        eventually("all nodes to be open", async || {
            Ok(stage.nodes("strangea").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}
