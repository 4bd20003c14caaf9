//! AKS's node problem detector as a second source.

use std::time::Duration;

use jiff::Timestamp;
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget};
use spotpool_crds::eviction::{Phase, Source};
use spotpool_e2e::run;

use crate::corner::{Corner, Looks, shared, whole_seconds};

const CONDITION: &str = "PreemptionScheduled";

fn preempt(event_id: &str, due: Timestamp) -> String {
    let date = due.strftime("%a, %d %b %Y %H:%M:%S GMT");
    format!("Preempt Scheduled: {date}. For more information, see https://aka.ms/x. EventId: {event_id}")
}

#[test]
fn a_preempt_is_seen_while_the_metadata_service_hangs_and_its_document_decides_afterwards() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "npdhang", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["a", "b"]).await;
        let target = FaultTarget::Imds { node: Some(node.into()), path_contains: None };
        let action = FaultAction::Hang { time: Duration::from_mins(2) };
        let fault = world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"silent\"", 1.0).await;
        let due = whole_seconds(Timestamp::now() + Duration::from_mins(2));
        corner.condition(node, CONDITION, "True", &preempt("C1BF8322-NPD", due)).await;
        corner.gone(&pods).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((notice.source, notice.event_id.as_str()), (Source::NodeProblemDetector, "C1BF8322-NPD"));
        assert_eq!((notice.not_before, notice.deadline), (Some(due), due));
        assert!(corner.look(node).await.is_marked());
        // It answers again and knows of no such event: it was taken back.
        world.sim.clear_fault(fault).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        corner.node_is(node, "a clean node", Looks::is_clean).await;
        // And the condition, which still says so, is nothing to go by: not even for the next agent.
        corner.agents().signal(node, spotpool_e2e_cluster::Signal::SIGKILL).unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", 15.0).await;
        assert!(corner.look(node).await.is_clean());
    });
}

#[test]
fn one_event_from_both_sources_is_one_event() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "npdboth", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["a"]).await;
        let history = corner.history(node).await;
        let event = corner.evict(&[node], Duration::from_secs(40)).await.remove(0);
        corner.condition(node, CONDITION, "True", &preempt(&event.event_id, event.not_before)).await;
        corner.gone(&pods).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        assert_eq!((notice.source, &notice.event_id), (Source::Imds, &event.event_id));
        world.sim.cancel(node).await.unwrap();
        corner.phase_is(node, Phase::Cancelled).await;
        let sources: Vec<_> =
            history.versions().into_iter().filter_map(|looks| Some(looks.notice?.source)).collect();
        assert!(sources.iter().all(|source| *source == Source::Imds), "{sources:?}");
    });
}

#[test]
fn a_stale_condition_drains_nothing_while_the_metadata_service_answers() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "npdstale", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["working"]).await;
        let history = corner.history(node).await;
        let due = whole_seconds(Timestamp::now() + Duration::from_mins(2));
        corner.condition(node, CONDITION, "True", &preempt("STALE", due)).await;
        let read = corner.metric(node, "spotpool_agent_polls", "\"unchanged\"").await;
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", read + 15.0).await;
        // Nor does it in an agent that starts with it, or when the service is silent later on.
        corner.agents().signal(node, spotpool_e2e_cluster::Signal::SIGKILL).unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"unchanged\"", 8.0).await;
        let target = FaultTarget::Imds { node: Some(node.into()), path_contains: None };
        let action = FaultAction::status(500);
        let fault = world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        corner.counted(node, "spotpool_agent_polls", "\"status\"", 5.0).await;
        world.sim.clear_fault(fault).await.unwrap();
        assert!(history.versions().iter().all(|looks| looks.is_clean() && looks.notice.is_none()));
        assert!(corner.is_untouched(&pods[0]).await);
        // A Preempt still comes through.
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.gone(&pods).await;
        corner.phase_is(node, Phase::Drained).await;
    });
}
