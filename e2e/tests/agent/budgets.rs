//! Disruption budgets under a notice.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::json;
use spotpool_crds::Reason;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_e2e::run;
use spotpool_e2e_cluster::STOP_AFTER_ANNOTATION;

use crate::corner::{Corner, ESCALATE_AFTER, shared};

#[test]
fn a_budget_that_never_frees_delays_its_own_pod_alone_and_that_one_gets_time_to_end() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "escalate", 1).await;
        let node = corner.nodes[0].as_str();
        let free = corner.pods(node, &["a", "b", "c"]).await;
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let event = corner.evict(&[node], Duration::from_secs(30)).await.remove(0);
        corner.gone(&free).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        corner.gone(&held).await;
        assert_eq!(drained.pods, PodCounts { evicted: 3, escalated: 1, left: 0 });

        let deletions = corner.asked_of_pods(node, "delete");
        assert_eq!(deletions.len(), 1, "{deletions:?}");
        let deleted = &deletions[0];
        assert_eq!((deleted.name.as_str(), deleted.code), ("held", 200));
        for asked in corner.asked_of_pods(node, "create") {
            if asked.name == "held" {
                assert_eq!(asked.code, 429);
            } else {
                assert!(asked.at < deleted.at, "it has waited for another's budget: {asked:?}");
            }
        }
        let after = deleted.at.duration_since(drained.observed_at);
        let wanted = SignedDuration::try_from(ESCALATE_AFTER).unwrap();
        // Without that flag the budget would be obeyed for 23 s.
        assert!(after >= wanted && after < SignedDuration::from_secs(20), "{after}");
        assert_eq!(deleted.body["preconditions"]["uid"].as_str(), held[0].uid().as_deref());
        let grace = deleted.body["gracePeriodSeconds"].as_i64().unwrap();
        let left = event.not_before.duration_since(deleted.at).as_secs() - 2;
        assert!((left - 1..=28).contains(&grace), "{grace} s, and {left} s were left when it was asked for");

        let told = corner.event(Reason::DisruptionBudgetOverridden, "held").await;
        assert!(told.note.as_ref().unwrap().contains("disruption budget held"), "{told:?}");
        assert_eq!(told.metadata.namespace.as_deref(), Some("escalate"));
        assert!((corner.metric(node, "spotpool_agent_escalations_total", "").await - 1.0).abs() < 0.1);
        assert!(corner.metric(node, "spotpool_agent_evictions_total", "\"blocked\"").await >= 2.0);
    });
}

#[test]
fn a_team_that_says_leave_keeps_its_budget_to_the_end_and_reads_what_was_lost() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "leave", 1).await;
        let node = corner.nodes[0].as_str();
        corner.policy(node, BlockedByPdb::Leave, Duration::from_secs(1)).await;
        let mut free = corner.pods(node, &["a", "b"]).await;
        // Takes all the time that it is given, and asks for more than there is.
        let slow = json!({"metadata": {"annotations": {STOP_AFTER_ANNOTATION: "10m"}},
            "spec": {"terminationGracePeriodSeconds": 600}});
        free.push(corner.pod(node, "slow", &slow).await);
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        let history = corner.history(node).await;
        let event = corner.evict(&[node], Duration::from_secs(11)).await.remove(0);
        corner.gone(&free).await;
        assert!(Timestamp::now() < event.not_before, "the slow pod was given what there was");
        let over = corner.phase_is(node, Phase::Incomplete).await;
        assert_eq!(over.pods, PodCounts { evicted: 3, escalated: 0, left: 1 });
        assert!(corner.is_untouched(&held[0]).await);
        assert!(corner.asked_of_pods(node, "delete").is_empty());
        let told = corner.event(Reason::DrainIncomplete, node).await;
        assert!(told.note.as_ref().unwrap().contains("1 left"), "{told:?}");
        history.marked_in_one_write().await;
    });
}

#[test]
fn a_budget_that_frees_in_time_is_obeyed() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "frees", 2).await;
        let (node, other) = (corner.nodes[0].as_str(), corner.nodes[1].as_str());
        corner.policy(node, BlockedByPdb::DeleteAtDeadline, Duration::from_mins(1)).await;
        let held = corner.pods(node, &["web"]).await;
        corner.budget("web", 1, 1).await;
        corner.evict(&[node], Duration::from_secs(90)).await;
        corner.counted(node, "spotpool_agent_evictions_total", "\"blocked\"", 2.0).await;
        assert!(corner.is_untouched(&held[0]).await);
        corner.phase_is(node, Phase::Draining).await;
        corner.pod(other, "web-2", &json!({"metadata": {"labels": {"app": "web"}}})).await;
        corner.gone(&held).await;
        let drained = corner.phase_is(node, Phase::Drained).await;
        assert_eq!(drained.pods, PodCounts { evicted: 1, escalated: 0, left: 0 });
        assert!(corner.asked_of_pods(node, "delete").is_empty());
    });
}
