//! Others close nodes, too: AKS, the cluster autoscaler, people. Nobody is fought, no drain is lost for it.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use spotpool_crds::eviction::Phase;
use spotpool_crds::names;
use spotpool_crds::voluntary_drain::DrainPhase;
use spotpool_e2e::run;

use crate::corner::{Corner, Looks, shared};

/// Puts a taint on a node, or takes it off, as its owner does.
async fn taint(corner: &Corner<'_>, node: &str, key: &str, on: bool) {
    spotpool_e2e::eventually("the taint to be written", async || {
        let now: Node = corner.node_api().get(node).await?;
        let mut taints = now.spec.unwrap_or_default().taints.unwrap_or_default();
        taints.retain(|taint| taint.key != key);
        if on {
            taints.push(Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() });
        }
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": now.metadata.resource_version},
            "spec": {"taints": taints}}));
        Ok(corner.node_api().patch(node, &PatchParams::default(), &patch).await.ok())
    })
    .await
    .unwrap();
}

#[test]
fn whoever_closed_the_node_first_it_is_drained_and_only_our_cordon_comes_off() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "others1", 4).await;
        let [aks, autoscaler, person, late] = [0, 1, 2, 3].map(|index| corner.nodes[index].as_str());
        // AKS's auto-drain comes first, with cordon and taint; the autoscaler with a taint; a person with a cordon.
        taint(&corner, aks, names::AKS_REMEDIATOR_TAINT, true).await;
        corner.node_api().cordon(aks).await.unwrap();
        taint(&corner, autoscaler, names::AUTOSCALER_DELETION_TAINT, true).await;
        corner.node_api().cordon(person).await.unwrap();
        let pods = join_all([aks, autoscaler, person, late].map(|node| corner.pods(node, &[]))).await;
        assert!(pods.iter().all(Vec::is_empty));
        let mut all = Vec::new();
        for (index, node) in [aks, autoscaler, person, late].into_iter().enumerate() {
            all.extend(corner.pods(node, &[&format!("p{index}")]).await);
        }
        corner.evict(&[aks, autoscaler, person, late], Duration::from_mins(3)).await;
        corner.gone(&all).await;
        for (node, is_ours) in [(aks, false), (autoscaler, true), (person, false), (late, true)] {
            assert_eq!(corner.phase_is(node, Phase::Drained).await.cordoned, is_ours, "{node}");
            assert!(corner.look(node).await.is_marked(), "{node}");
        }
        // On the last one, AKS comes after us.
        taint(&corner, late, names::AKS_REMEDIATOR_TAINT, true).await;
        let histories = join_all([aks, autoscaler, person, late].map(|node| corner.history(node))).await;
        for node in [aks, autoscaler, person, late] {
            world.sim.cancel(node).await.unwrap();
        }
        for (node, others) in [
            (aks, names::AKS_REMEDIATOR_TAINT),
            (autoscaler, names::AUTOSCALER_DELETION_TAINT),
            (late, names::AKS_REMEDIATOR_TAINT),
        ] {
            corner.phase_is(node, Phase::Cancelled).await;
            let looks = corner.look(node).await;
            assert!(looks.cordoned && looks.taint.is_none() && !looks.excluded, "{node}: {looks:?}");
            assert!(looks.other_taints.iter().any(|key| key == others), "{node}: {looks:?}");
        }
        corner.phase_is(person, Phase::Cancelled).await;
        assert!(corner.look(person).await.cordoned, "a person's cordon is a person's");

        // When they are done, what was ours comes off: nobody has to look for nodes that stay closed, and are paid for.
        taint(&corner, autoscaler, names::AUTOSCALER_DELETION_TAINT, false).await;
        taint(&corner, late, names::AKS_REMEDIATOR_TAINT, false).await;
        for node in [autoscaler, late] {
            corner.node_is(node, "the node to be opened", Looks::is_clean).await;
        }
        // What was theirs is theirs to take off.
        taint(&corner, aks, names::AKS_REMEDIATOR_TAINT, false).await;
        let read = corner.metric(aks, "spotpool_agent_polls", "\"unchanged\"").await;
        corner.counted(aks, "spotpool_agent_polls", "\"unchanged\"", read + 3.0).await;
        assert!(corner.look(aks).await.cordoned && corner.look(person).await.cordoned);
        // Nobody's taint was ever lost or fought over.
        for history in &histories {
            let versions = history.versions();
            let spot = |looks: &Looks| looks.other_taints.iter().any(|key| key.contains("scalesetpriority"));
            assert!(versions.iter().all(spot), "{versions:?}");
        }
    });
}

#[test]
fn a_node_that_somebody_opens_meanwhile_is_not_closed_again_and_drained_all_the_same() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "opened", 1).await;
        let node = corner.nodes[0].as_str();
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        corner.schedule("Reboot", &[node], Duration::from_mins(8)).await;
        corner.phase_is(node, Phase::Draining).await;
        corner.node_api().uncordon(node).await.unwrap();
        corner.no_budget("held").await;
        corner.gone(&held).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert!(!drained.cordoned, "whoever opened it has taken the cordon over");
        assert!(!corner.look(node).await.cordoned);
        // What they close now is theirs.
        corner.node_api().cordon(node).await.unwrap();
        world.sim.cancel(node).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        assert!(corner.look(node).await.cordoned);
    });
}

#[test]
fn a_cordon_for_an_event_and_a_drain_that_was_asked_for_do_not_open_the_node_under_each_other() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "both", 1).await;
        let node = corner.nodes[0].as_str();
        corner.events(node, json!({"freeze": "Cordon", "leadTime": "5m"})).await;
        let pods = corner.pods(node, &["a"]).await;
        corner.schedule("Freeze", &[node], Duration::from_mins(4)).await;
        corner.node_is(node, "the cordon", |looks| looks.cordoned).await;
        assert!(corner.is_untouched(&pods[0]).await);
        // The operator wants the node back: the drain does not wait for the freeze.
        let not_after = jiff::Timestamp::now() + Duration::from_mins(10);
        let request = json!({"id": "one", "reason": "Failback", "voluntary": true, "notAfter": not_after});
        corner.annotate(node, json!({names::DRAIN_REQUEST_ANNOTATION: request.to_string()})).await;
        corner.gone(&pods).await;
        let answer =
            corner.answer_is(node, "the drain's end", |answer| answer.phase == DrainPhase::Drained).await;
        assert!(!answer.cordoned, "the event has made it");
        world.sim.cancel(node).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        let looks = corner.look(node).await;
        assert!(looks.cordoned && looks.answer.unwrap().cordoned, "handed over");
        corner.annotate(node, json!({names::DRAIN_REQUEST_ANNOTATION: null})).await;
        corner.node_is(node, "the node to be given back", |it| it.is_clean() && it.answer.is_none()).await;
    });
}
