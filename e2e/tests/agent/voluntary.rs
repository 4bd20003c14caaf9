//! Drains that the operator asks for.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::voluntary_drain::DrainPhase;
use spotpool_crds::{Reason, names};
use spotpool_e2e::run;

use crate::corner::{Corner, shared};

fn request(id: &str, patience: Duration) -> Value {
    let not_after = Timestamp::now() + patience;
    let request = json!({"id": id, "reason": "Failback", "voluntary": true, "notAfter": not_after});
    json!({names::DRAIN_REQUEST_ANNOTATION: request.to_string()})
}

fn no_request() -> Value {
    json!({names::DRAIN_REQUEST_ANNOTATION: null})
}

#[test]
fn a_node_that_is_no_longer_needed_is_emptied_within_budgets_and_given_back_when_needed_again() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "asked", 2).await;
        let (node, other) = (corner.nodes[0].as_str(), corner.nodes[1].as_str());
        let free = corner.pods(node, &["a", "b"]).await;
        let held = corner.pods(node, &["web"]).await;
        corner.budget("web", 1, 1).await;
        let history = corner.history(node).await;
        corner.annotate(node, request("one", Duration::from_mins(10))).await;
        corner.gone(&free).await;
        let answer =
            corner.answer_is(node, "the budget to be named", |answer| !answer.blocking_pdbs.is_empty()).await;
        assert_eq!((answer.id.as_str(), answer.phase, answer.cordoned), ("one", DrainPhase::Draining, true));
        assert_eq!(
            (answer.blocking_pdbs.as_slice(), answer.pods_left),
            (["asked/web".to_owned()].as_slice(), 1)
        );
        assert!(corner.is_untouched(&held[0]).await);
        corner.pod(other, "web-2", &json!({"metadata": {"labels": {"app": "web"}}})).await;
        corner.gone(&held).await;
        let answer =
            corner.answer_is(node, "the drain's end", |answer| answer.phase == DrainPhase::Drained).await;
        assert_eq!((answer.pods_left, answer.blocking_pdbs.len(), answer.cordoned), (0, 0, true));
        let looks = corner.look(node).await;
        assert!(
            looks.cordoned && looks.taint.is_none() && !looks.excluded && looks.notice.is_none(),
            "{looks:?}"
        );
        // Never more than the pods' own grace was asked of them, and nothing was deleted.
        for asked in corner.asked_of_pods(node, "create") {
            assert_eq!(asked.body["deleteOptions"]["gracePeriodSeconds"], Value::Null, "{asked:?}");
        }
        assert!(corner.asked_of_pods(node, "delete").is_empty());
        corner.event(Reason::VoluntaryDrainStarted, node).await;

        corner.annotate(node, no_request()).await;
        corner
            .node_is(node, "the node to be given back", |looks| !looks.cordoned && looks.answer.is_none())
            .await;
        assert!(history.versions().iter().all(|looks| looks.notice.is_none() && looks.taint.is_none()));
        // The next request is another one.
        corner.annotate(node, request("two", Duration::from_mins(10))).await;
        corner
            .answer_is(node, "the next answer", |it| it.id == "two" && it.phase == DrainPhase::Drained)
            .await;
        // Taken back by another path: a node cordoned by a person stays so.
        corner.annotate(node, no_request()).await;
        corner
            .node_is(node, "the node to be given back", |looks| !looks.cordoned && looks.answer.is_none())
            .await;
        corner.node_api().cordon(node).await.unwrap();
        corner.annotate(node, request("three", Duration::from_mins(10))).await;
        let answer = corner
            .answer_is(node, "the third answer", |it| it.id == "three" && it.phase == DrainPhase::Drained)
            .await;
        assert!(!answer.cordoned);
        corner.annotate(node, no_request()).await;
        let looks = corner.node_is(node, "no answer", |looks| looks.answer.is_none()).await;
        assert!(looks.cordoned);
    });
}

#[test]
fn a_drain_that_a_budget_holds_ends_in_time_and_the_node_goes_on_working() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "timesout", 1).await;
        let node = corner.nodes[0].as_str();
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        corner.annotate(node, request("one", Duration::from_secs(4))).await;
        corner.node_is(node, "the cordon", |looks| looks.cordoned).await;
        let answer = corner
            .answer_is(node, "the end of patience", |answer| answer.phase == DrainPhase::TimedOut)
            .await;
        assert_eq!((answer.id.as_str(), answer.pods_left, answer.cordoned), ("one", 1, false));
        assert_eq!(answer.blocking_pdbs, ["timesout/held"]);
        assert!(!corner.look(node).await.cordoned, "given back in the same write");
        assert!(corner.is_untouched(&held[0]).await);
        assert!(corner.asked_of_pods(node, "delete").is_empty());
        // It is not tried again by itself, not even by another agent.
        let refused = corner.asked_of_pods(node, "create").len();
        corner.agents().signal(node, spotpool_e2e_cluster::Signal::SIGKILL).unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", 3.0).await;
        assert_eq!(corner.asked_of_pods(node, "create").len(), refused);
        assert!(!corner.look(node).await.cordoned);
        corner.annotate(node, no_request()).await;
        corner.node_is(node, "the answer to go", |looks| looks.answer.is_none()).await;
    });
}

#[test]
fn a_notice_in_a_voluntary_drain_wins() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "wins", 1).await;
        let node = corner.nodes[0].as_str();
        let held = corner.pods(node, &["held"]).await;
        corner.budget("held", 1, 1).await;
        corner.annotate(node, request("one", Duration::from_mins(10))).await;
        corner.answer_is(node, "the drain to begin", |answer| !answer.blocking_pdbs.is_empty()).await;
        let history = corner.history(node).await;
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.gone(&held).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert_eq!(notice.pods, PodCounts { evicted: 0, escalated: 1, left: 0 });
        assert!(corner.look(node).await.is_marked());
        assert!(history.versions().iter().all(|looks| looks.cordoned), "cordoned throughout");
        corner.nothing_was_lost().await;
        // Taken back, it leaves the voluntary drain as it was, and that one gives the node back in its turn.
        world.sim.cancel(node).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        corner
            .answer_is(node, "its end", |it| it.id == "one" && it.phase == DrainPhase::Drained && it.cordoned)
            .await;
        let looks = corner.look(node).await;
        assert!(looks.cordoned && looks.taint.is_none() && !looks.excluded, "{looks:?}");
        corner.annotate(node, no_request()).await;
        corner
            .node_is(node, "the node to be given back", |looks| looks.is_clean() && looks.answer.is_none())
            .await;
    });
}
