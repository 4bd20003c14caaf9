//! What Azure does to a VM with announcement, and its hint that it may take one back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::{EventRequest, Targets};
use spotpool_crds::Reason;
use spotpool_crds::eviction::{Phase, Source};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::corner::{Corner, Looks, shared, whole_seconds};

/// Cordoned and tainted for this event, and in the load balancer unless it is drained.
fn is_closed_for(looks: &Looks, kind: &str, drained: bool) -> bool {
    looks.cordoned && looks.excluded == drained && looks.taint == Some((kind.into(), "NoSchedule".into()))
}

#[test]
fn a_reboot_is_drained_for_ahead_of_its_time_and_the_node_is_at_work_again_after_it() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "reboot", 1).await;
        let node = corner.nodes[0].as_str();
        world.sim.switch_pool("reboot", &json!({"rebootsMachines": true})).await.unwrap();
        corner.events(node, json!({"leadTime": "10s"})).await;
        let pods = corner.pods(node, &["a", "b"]).await;
        let history = corner.history(node).await;
        let event = corner.schedule("Reboot", &[node], Duration::from_secs(16)).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        corner.gone(&pods).await;
        assert!(Timestamp::now() < event.not_before, "in time");
        assert_eq!((drained.event_type.as_str(), &drained.event_id), ("Reboot", &event.event_id));
        assert_eq!(
            (drained.response, drained.deadline),
            (EventResponse::Drain, whole_seconds(event.not_before))
        );
        // Not before it was time: as the agent's clock has it, and as others saw it.
        let lead = drained.deadline.duration_since(drained.observed_at);
        assert!(lead <= SignedDuration::from_secs(10), "{lead} ahead");
        let first = history.versions().into_iter().find(|looks| !looks.is_clean()).unwrap();
        assert!(is_closed_for(&first, "Reboot", true), "in one write: {first:?}");
        let looks = corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
        let [status, reason, message] = looks.condition.unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("True", "MaintenanceNoticed"));
        assert!(message.contains(&event.event_id), "{message}");
        let told = corner.event(Reason::MaintenanceNoticed, node).await.note.unwrap();
        assert!(told.contains("Reboot") && told.contains(&event.event_id), "{told}");

        // The machine boots again. The event is gone by then, and nobody has to look after the node.
        corner.phase_is(node, Phase::Over).await;
        let looks = corner.node_is(node, "no condition", |looks| looks.condition.is_none()).await;
        assert!(looks.is_clean(), "{looks:?}");
        let told = corner.event(Reason::EventOver, node).await.note.unwrap();
        assert!(told.contains("uncordoned"), "{told}");
        assert_eq!(corner.acknowledged(&event.event_id).await, 0, "nobody asked for that");
        corner.nothing_was_lost().await;
    });
}

#[test]
fn a_node_that_is_only_cordoned_for_a_freeze_keeps_its_pods_and_is_opened_right_after_it() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "freeze", 1).await;
        let node = corner.nodes[0].as_str();
        corner.events(node, json!({"freeze": "Cordon", "leadTime": "5m"})).await;
        let pods = corner.pods(node, &["a"]).await;
        corner.schedule("Freeze", &[node], Duration::from_secs(5)).await;
        let looks = corner.node_is(node, "the cordon", |looks| is_closed_for(looks, "Freeze", false)).await;
        let notice = looks.notice.unwrap();
        assert_eq!((notice.response, notice.phase), (EventResponse::Cordon, Phase::Noticed));
        let url = corner.agents().notice_url(node).unwrap();
        let told: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        assert_eq!(told, json!({"notice": null}), "no pod should end for it");
        corner.phase_is(node, Phase::Over).await;
        let looks = corner.node_is(node, "no condition", |looks| looks.condition.is_none()).await;
        assert!(looks.is_clean(), "{looks:?}");
        assert!(corner.is_untouched(&pods[0]).await);
        assert!(corner.asked_of_pods(node, "create").is_empty());
    });
}

#[test]
fn a_budget_that_never_frees_is_kept_until_a_redeploy_is_near() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "redeploy", 1).await;
        let node = corner.nodes[0].as_str();
        let free = corner.pods(node, &["free"]).await;
        let held = corner.pod(node, "held", &json!({"spec": {"terminationGracePeriodSeconds": 3}})).await;
        corner.budget("held", 1, 1).await;
        let event = corner.schedule("Redeploy", &[node], Duration::from_secs(25)).await;
        corner.gone(&free).await;
        corner.gone(std::slice::from_ref(&held)).await;
        let deleted = corner.asked_of_pods(node, "delete").remove(0);
        // Its grace, and the two seconds that are kept free: not sooner, and not past the time.
        let ahead = event.not_before.duration_since(deleted.at);
        assert!(ahead <= SignedDuration::from_secs(6), "{ahead} ahead");
        assert!(ahead >= SignedDuration::ZERO, "{ahead} ahead");
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((drained.pods.escalated, drained.pods.left), (1, 0));
        let told = corner.event(Reason::DisruptionBudgetOverridden, &held.name_any()).await.note.unwrap();
        assert!(told.contains(&event.event_id), "{told}");
        corner.nothing_was_lost().await;
    });
}

#[test]
fn azure_is_told_to_go_ahead_only_once_every_node_of_the_event_is_drained() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "ack", 2).await;
        let [one, two] = [0, 1].map(|index| corner.nodes[index].as_str());
        for node in [one, two] {
            corner.events(node, json!({"acknowledge": true})).await;
        }
        let held = corner.pods(two, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let event = corner.schedule("Redeploy", &[one, two], Duration::from_mins(10)).await;
        corner.phase_is(one, Phase::Drained).await;
        corner.node_is(two, "the drain", |looks| is_closed_for(looks, "Redeploy", true)).await;
        // The agent of the one that is drained has looked at the other, and seen that it is not.
        eventually("the first to look at the second", async || {
            Ok(corner.log(one).contains("is not drained").then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(corner.acknowledged(&event.event_id).await, 0);
        // Restarted, it waits on.
        corner.agents().signal(one, Signal::SIGKILL).unwrap();
        corner.counted(one, "spotpool_agent_polls", "\"unchanged\"", 2.0).await;
        assert_eq!(corner.acknowledged(&event.event_id).await, 0);
        assert!(corner.is_untouched(&held[0]).await);
        corner.no_budget("held").await;
        corner.gone(&held).await;
        eventually("the acknowledgement", async || {
            Ok((corner.acknowledged(&event.event_id).await > 0).then_some(()))
        })
        .await
        .unwrap();
        // Long before its time, since both were ready.
        let state = world.sim.state().await.unwrap();
        let started = eventually("the event to start", async || {
            let state = world.sim.state().await?;
            Ok(state.events.iter().find(|it| it.event_id == event.event_id).and_then(|it| it.started_at))
        })
        .await
        .unwrap();
        assert!(started < event.not_before - SignedDuration::from_mins(5), "{state:?}");
    });
}

#[test]
fn a_hint_tells_the_operator_and_disturbs_nobody() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "hint", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["a"]).await;
        let mut request =
            EventRequest::new("SpotRebalanceRecommendation", Targets::named(&[node]), Duration::from_mins(5));
        request.status = "Advisory".into();
        let event = world.sim.schedule(&request).await.unwrap().remove(0);
        let looks = corner.node_is(node, "the hint", |looks| looks.notice.is_some()).await;
        let notice = looks.notice.clone().unwrap();
        assert_eq!((&notice.event_id, notice.response), (&event.event_id, EventResponse::Ignore));
        assert!(!notice.takes_capacity() && !looks.cordoned && looks.taint.is_none() && !looks.excluded);
        let looks = corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
        assert_eq!(looks.condition.unwrap()[1], "RebalanceRecommended");
        assert!(corner.is_untouched(&pods[0]).await);
        // It is followed by what it speaks of.
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.gone(&pods).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((notice.event_type.as_str(), notice.response), ("Preempt", EventResponse::Drain));
        corner.node_is(node, "all marks", Looks::is_marked).await;
        corner.nothing_was_lost().await;
    });
}

#[test]
fn a_preempt_in_a_planned_drain_takes_over_and_hands_back() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "takeover", 1).await;
        let node = corner.nodes[0].as_str();
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let reboot = corner.schedule("Reboot", &[node], Duration::from_mins(8)).await;
        let before = corner.phase_is(node, Phase::Draining).await;
        assert_eq!(before.event_id, reboot.event_id);
        let history = corner.history(node).await;
        let preempt = corner.evict(&[node], Duration::from_secs(30)).await.remove(0);
        // The budget holds no longer than a Preempt lets it.
        corner.gone(&held).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((&drained.event_id, drained.source), (&preempt.event_id, Source::Imds));
        assert!(drained.observed_at > before.observed_at && drained.cordoned, "{drained:?}");
        assert!(corner.look(node).await.is_marked(), "the taint says Preempt");
        // Taken back: the reboot is still to come.
        world.sim.cancel(&preempt.event_id).await.unwrap();
        let looks =
            corner.node_is(node, "the reboot again", |looks| is_closed_for(looks, "Reboot", true)).await;
        assert_eq!(looks.notice.unwrap().event_id, reboot.event_id);
        assert!(history.versions().iter().all(|looks| looks.cordoned), "closed throughout");
        world.sim.cancel(&reboot.event_id).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        corner.node_is(node, "a clean node", Looks::is_clean).await;
    });
}

#[test]
fn an_agent_asked_to_end_leaves_a_drain_that_has_time_to_the_next() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "handover", 1).await;
        let node = corner.nodes[0].as_str();
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        corner.schedule("Reboot", &[node], Duration::from_mins(8)).await;
        let before = corner.phase_is(node, Phase::Draining).await;
        let process = corner.agents().process(node).unwrap();
        corner.agents().signal(node, Signal::SIGTERM).unwrap();
        assert_eq!(process.wait().await.code(), Some(0), "{}", corner.log(node));
        assert!(corner.is_untouched(&held[0]).await);
        let after = corner.look(node).await;
        assert!(is_closed_for(&after, "Reboot", true), "{after:?}");
        // The next one goes on.
        corner.no_budget("held").await;
        corner.gone(&held).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((notice.observed_at, notice.cordoned), (before.observed_at, true));
    });
}

#[test]
fn a_vm_of_no_scale_set_is_known_by_its_name() {
    run(async {
        let world = shared().await;
        let mut pool = spotpool_azure_sim::api::PoolSpec::spot("single", "Standard_D4s_v5", 1);
        pool.properties.insert("type".into(), json!("VirtualMachines"));
        let corner = Corner::of(&world, "single", pool).await;
        let node = corner.nodes[0].as_str();
        assert!(node.ends_with("-vms0"), "{node}");
        let pods = corner.pods(node, &["a"]).await;
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.gone(&pods).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert!(notice.doomed.is_empty(), "it has no siblings: {notice:?}");
    });
}

/// A team may want to drain by itself, or not at all. What Azure does stays known.
#[test]
fn a_preempt_that_is_only_to_be_cordoned_for_or_told_of_leaves_the_pods_alone() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "handsoff", 2).await;
        let [cordons, ignores] = [0, 1].map(|index| corner.nodes[index].as_str());
        corner.events(cordons, json!({"preempt": "Cordon"})).await;
        corner.events(ignores, json!({"preempt": "Ignore"})).await;
        let pods = [corner.pods(cordons, &["a"]).await, corner.pods(ignores, &["b"]).await].concat();
        let events = corner.evict(&[cordons, ignores], Duration::from_mins(5)).await;
        let is_closed = |looks: &Looks| is_closed_for(looks, "Preempt", false);
        let looks = corner.node_is(cordons, "the cordon", is_closed).await;
        assert_eq!(looks.notice.unwrap().response, EventResponse::Cordon);
        let looks = corner.node_is(ignores, "the notice", |looks| looks.notice.is_some()).await;
        assert_eq!(looks.notice.as_ref().unwrap().response, EventResponse::Ignore);
        assert!(!looks.cordoned && looks.taint.is_none() && !looks.excluded, "{looks:?}");
        for node in [cordons, ignores] {
            corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
        }
        for pod in &pods {
            assert!(corner.is_untouched(pod).await);
        }
        for event in &events {
            world.sim.cancel(&event.event_id).await.unwrap();
        }
        for node in [cordons, ignores] {
            corner.node_is(node, "no marks", Looks::is_clean).await;
            assert!(corner.asked_of_pods(node, "create").is_empty(), "nothing was evicted");
        }
    });
}
