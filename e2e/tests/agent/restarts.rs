//! Agents that die or are replaced in the middle of a drain.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget};
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_e2e::world::SYSTEM_NAMESPACE;
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::corner::{Corner, Looks, shared};

const ESCALATE_AFTER: Duration = Duration::from_secs(8);

#[test]
fn an_agent_killed_in_mid_drain_is_back_in_time_to_finish_it() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "killed", 1).await;
        let node = corner.nodes[0].as_str();
        corner.policy(node, BlockedByPdb::DeleteAtDeadline, ESCALATE_AFTER).await;
        let free = corner.pods(node, &["a", "b"]).await;
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let history = corner.history(node).await;
        let event = corner.evict(&[node], Duration::from_secs(40)).await.remove(0);
        corner.gone(&free).await;
        let before = corner.phase_is(node, Phase::Draining).await;
        let process = corner.agents().process(node).unwrap();
        corner.agents().signal(node, Signal::SIGKILL).unwrap();
        process.wait().await;
        assert!(corner.is_untouched(&held[0]).await);
        corner.gone(&held).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert_ne!(corner.agents().process(node).unwrap().id(), process.id());

        assert_eq!((&drained.event_id, drained.observed_at), (&event.event_id, before.observed_at));
        assert!(drained.cordoned && drained.deadline == before.deadline && drained.boot_id == before.boot_id);
        assert_eq!((drained.pods.escalated, drained.pods.left), (1, 0));
        // The budget's time runs from the notice, not from the restart.
        let deleted = corner.asked_of_pods(node, "delete").remove(0).at.duration_since(before.observed_at);
        let wanted = SignedDuration::try_from(ESCALATE_AFTER).unwrap();
        // The deadline alone would have let the budget hold it for 31 s.
        assert!(deleted >= wanted && deleted < wanted * 2, "{deleted}");
        let versions = history.versions();
        let marked = versions.iter().position(Looks::is_marked).unwrap();
        assert!(versions[marked..].iter().all(Looks::is_marked), "never given back meanwhile");
        corner.nothing_was_lost().await;
    });
}

#[test]
fn an_agent_asked_to_end_finishes_the_drain_first() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "replaced", 1).await;
        let node = corner.nodes[0].as_str();
        corner.policy(node, BlockedByPdb::DeleteAtDeadline, ESCALATE_AFTER).await;
        let free = corner.pods(node, &["a", "b"]).await;
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        corner.evict(&[node], Duration::from_secs(40)).await;
        corner.gone(&free).await;
        corner.phase_is(node, Phase::Draining).await;
        // As a rollout of a new version does.
        let process = corner.agents().process(node).unwrap();
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pod = pods.list(&on_node).await.unwrap().items.remove(0);
        pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
        eventually("the agent to hear that it should end", async || {
            let log = std::fs::read_to_string(corner.agents().log(node))?;
            Ok(log.contains("finishing the drain before the end").then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(process.exit_status(), None);
        assert!(corner.is_untouched(&held[0]).await);
        let status = process.wait().await;
        assert_eq!(status.code(), Some(0), "{}", corner.log(node));
        // What it had to do is done, and written.
        let notice = corner.look(node).await.notice.unwrap();
        assert_eq!(
            (notice.phase, notice.pods),
            (Phase::Drained, PodCounts { evicted: 2, escalated: 1, left: 0 })
        );
        corner.gone(&held).await;
        // Its successor finds nothing to do, and says nothing else.
        eventually("the next agent", async || {
            let next = corner.agents().process(node).filter(|next| next.id() != process.id());
            Ok(next.filter(|next| next.exit_status().is_none()))
        })
        .await
        .unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", 2.0).await;
        let after = corner.look(node).await;
        assert!(after.is_marked());
        assert_eq!(after.notice.unwrap().phase, Phase::Drained);
    });
}

#[test]
fn a_node_that_survives_its_notice_is_given_back_when_it_has_booted_again() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "reboots", 1).await;
        let node = corner.nodes[0].as_str();
        let vm = world.sim.state().await.unwrap().vm(node).unwrap().name.clone();
        let due = Timestamp::now() + Duration::from_secs(4);
        let document = json!({"DocumentIncarnation": 7, "Events": [{"EventId": "E", "EventType": "Preempt",
            "EventStatus": "Scheduled", "Resources": [vm], "NotBefore": due.to_string()}]});
        let target = FaultTarget::scheduled_events(Some(node));
        let action = FaultAction::body(document.to_string());
        let fault = world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        corner.phase_is(node, Phase::Drained).await;
        eventually("the event's time", async || Ok((Timestamp::now() > due).then_some(()))).await.unwrap();

        // The event is over, and the VM may be so any moment: the node stays closed.
        let read = corner.metric(node, "spotpool_agent_polls", "\"unchanged\"").await;
        world.sim.clear_fault(fault).await.unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", read + 3.0).await;
        assert!(corner.look(node).await.is_marked());
        // So it does when only the agent starts again.
        let process = corner.agents().process(node).unwrap();
        corner.agents().signal(node, Signal::SIGKILL).unwrap();
        process.wait().await;
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", 3.0).await;
        assert!(corner.look(node).await.is_marked());

        // Another boot.
        let boot = Patch::Merge(json!({"status": {"nodeInfo": {"bootID": "another"}}}));
        corner.node_api().patch_status(node, &PatchParams::default(), &boot).await.unwrap();
        corner.agents().signal(node, Signal::SIGKILL).unwrap();
        corner.phase_is(node, Phase::Over).await;
        let looks = corner.node_is(node, "no condition", |looks| looks.condition.is_none()).await;
        assert!(looks.is_clean(), "{looks:?}");
    });
}
