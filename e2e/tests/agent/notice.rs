//! A notice, from the document to the empty node.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{EventRequest, Fault, FaultAction, FaultTarget, Targets};
use spotpool_crds::Reason;
use spotpool_crds::eviction::{Claimant, Phase, PodCounts, Source};
use spotpool_e2e::objects::create;
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::STOP_AFTER_ANNOTATION;

use crate::corner::{Corner, alone, shared, whole_seconds};

#[test]
fn a_node_under_notice_takes_no_pods_and_is_emptied_before_its_vm_dies() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "marked", 2).await;
        let (doomed, sibling) = (corner.nodes[0].as_str(), corner.nodes[1].as_str());
        let pods = corner.pods(doomed, &["a", "b", "c", "d"]).await;
        let staying = [
            corner
                .pod(
                    doomed,
                    "mirror",
                    &json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                )
                .await,
            corner.pod(doomed, "finished", &json!({"spec": {"restartPolicy": "Never"}})).await,
        ];
        let succeeded = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        corner.pod_api().patch_status("finished", &PatchParams::default(), &succeeded).await.unwrap();
        let logs = corner.daemon_set("logs", doomed).await;
        let on_sibling = corner.pods(sibling, &["elsewhere"]).await;
        let (history, sibling_history) = (corner.history(doomed).await, corner.history(sibling).await);

        let before = Timestamp::now();
        let event = corner.evict(&[doomed], Duration::from_secs(20)).await.remove(0);
        let drained = corner.phase_is(doomed, Phase::Drained).await;
        let after = Timestamp::now();
        corner.gone(&pods).await;
        assert!(after < event.not_before, "drained at {after}, Azure acts at {}", event.not_before);

        // In one write, with all that others need to know.
        let marked = history.marked_in_one_write().await;
        let first = marked.notice.unwrap();
        let node = corner.node_api().get(doomed).await.unwrap();
        let due = whole_seconds(event.not_before);
        assert_eq!(
            (first.by, first.source, first.event_type.as_str()),
            (Claimant::NodeAgent, Source::Imds, "Preempt")
        );
        assert_eq!(
            (&first.event_id, first.phase, first.pods),
            (&event.event_id, Phase::Noticed, PodCounts::default())
        );
        assert_eq!((first.not_before, first.deadline, first.cordoned), (Some(due), due, true));
        assert!(before <= first.observed_at && first.observed_at <= after, "{}", first.observed_at);
        assert_eq!(first.boot_id, node.status.as_ref().unwrap().node_info.as_ref().unwrap().boot_id);
        let instance = world.sim.state().await.unwrap().vm(doomed).unwrap().instance_id;
        let named: Vec<_> =
            first.doomed.iter().map(|it| (it.event_id.as_str(), it.instances.iter().collect())).collect();
        assert_eq!(named, [(event.event_id.as_str(), vec![instance])]);

        // To the end, with the right numbers.
        assert_eq!(drained.pods, PodCounts { evicted: 4, escalated: 0, left: 0 });
        assert_eq!((drained.observed_at, &drained.event_id), (first.observed_at, &first.event_id));
        let phases: Vec<Phase> =
            history.versions().into_iter().filter_map(|looks| looks.notice.map(|it| it.phase)).collect();
        assert!(phases.is_sorted_by_key(|phase| *phase as u8), "{phases:?}");
        assert!(corner.look(doomed).await.is_marked());

        // Told to people.
        let looks = corner.node_is(doomed, "the condition", |looks| looks.condition.is_some()).await;
        let [status, reason, message] = looks.condition.unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("True", "SpotEvictionNoticed"));
        assert!(message.contains(&event.event_id), "{message}");
        let told = corner.event(Reason::SpotEvictionNoticed, doomed).await;
        assert_eq!((told.type_.as_deref(), told.regarding.unwrap().uid), (Some("Warning"), node.uid()));
        let told = corner.event(Reason::DrainCompleted, doomed).await.note.unwrap();
        assert!(told.contains("4 pods evicted, 0 deleted"), "{told}");
        // Whose pod it was finds there why it went.
        let told = corner.event(Reason::PodEvicted, &pods[0].name_any()).await;
        let (note, id) = (told.note.unwrap(), &event.event_id);
        let because = format!("Evicted: Azure takes the VM of node {doomed} back by {due}");
        assert_eq!(note, format!("{because} (event {id})"));
        assert_eq!(told.related.and_then(|node| node.name).as_deref(), Some(doomed));

        // The right pods, and each of them only under its own UID, with a grace that fits.
        let evictions = corner.asked_of_pods(doomed, "create");
        assert_eq!(evictions.len(), 4, "{evictions:#?}");
        for asked in evictions {
            let pod = pods.iter().find(|pod| pod.name_any() == asked.name).expect("one of ours");
            let options = &asked.body["deleteOptions"];
            assert_eq!(options["preconditions"]["uid"].as_str(), pod.uid().as_deref(), "{options}");
            let grace = options["gracePeriodSeconds"].as_i64().unwrap();
            assert!((1..=18).contains(&grace), "of 20 s, 2 are kept free: {grace}");
        }
        assert!(corner.asked_of_pods(doomed, "delete").is_empty());
        for pod in staying.iter().chain([&logs]) {
            assert!(corner.is_untouched(pod).await, "{}", pod.name_any());
        }
        assert!(corner.is_untouched(&on_sibling[0]).await);
        assert!(sibling_history.versions().iter().all(|looks| looks.is_clean() && looks.condition.is_none()));
        corner.nothing_was_lost().await;
    });
}

#[test]
fn of_two_events_and_a_foreign_one_each_node_acts_upon_its_own_and_names_its_doomed_siblings() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "siblings", 3).await;
        let [one, two, safe] = [0, 1, 2].map(|index| corner.nodes[index].as_str());
        let state = world.sim.state().await.unwrap();
        let ids = [one, two, safe].map(|node| state.vm(node).unwrap().instance_id);
        let safe_pods = corner.pods(safe, &["safe"]).await;
        let safe_history = corner.history(safe).await;
        let events = corner.evict(&[one, two], Duration::from_secs(30)).await;
        for (node, event) in [(one, &events[0]), (two, &events[1])] {
            let notice = corner.phase_is(node, Phase::Drained).await;
            assert_eq!(notice.event_id, event.event_id);
            let named: Vec<(String, Vec<u64>)> =
                notice.doomed.into_iter().map(|it| (it.event_id, it.instances.iter().collect())).collect();
            let mut wanted =
                vec![(events[0].event_id.clone(), vec![ids[0]]), (events[1].event_id.clone(), vec![ids[1]])];
            wanted.sort();
            assert_eq!(named, wanted);
        }
        // A document may name other scale sets, one of them with our instance id and nearly our name.
        let vm = &state.vm(safe).unwrap().name;
        let foreign =
            [format!("other{vm}"), vm.replace("aks-", "aks-x"), format!("{vm}0"), format!("{vm}_1")];
        let body = json!({"DocumentIncarnation": 900, "Events": [{"EventId": "F", "EventType": "Preempt",
            "EventStatus": "Scheduled", "Resources": foreign, "NotBefore": ""}]});
        let read = corner.metric(safe, "spotpool_agent_polls", "\"changed\"").await;
        let target = FaultTarget::scheduled_events(Some(safe));
        let action = FaultAction::body(body.to_string());
        world.sim.add_fault(&Fault { target, times: Some(3), action }).await.unwrap();
        corner.counted(safe, "spotpool_agent_polls", "\"changed\"", read + 2.0).await;
        assert!(safe_history.versions().iter().all(|looks| looks.is_clean() && looks.condition.is_none()));
        assert!(corner.is_untouched(&safe_pods[0]).await);
        assert!(corner.asked_of_pods(safe, "create").is_empty());
    });
}

#[test]
fn a_notice_that_azure_takes_back_gives_the_node_back_but_not_somebody_elses_cordon() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "cancel", 2).await;
        let (ours, theirs) = (corner.nodes[0].as_str(), corner.nodes[1].as_str());
        corner.node_api().cordon(theirs).await.unwrap();
        let histories = [corner.history(ours).await, corner.history(theirs).await];
        corner.evict(&[ours, theirs], Duration::from_mins(1)).await;
        for (node, is_ours) in [(ours, true), (theirs, false)] {
            let notice = corner.phase_is(node, Phase::Drained).await;
            assert_eq!(notice.cordoned, is_ours);
            assert!(corner.look(node).await.is_marked());
            corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
            world.sim.cancel(node).await.unwrap();
        }
        for (node, is_ours) in [(ours, true), (theirs, false)] {
            corner.phase_is(node, Phase::Cancelled).await;
            let looks = corner.node_is(node, "no condition", |looks| looks.condition.is_none()).await;
            assert_eq!(looks.cordoned, !is_ours, "{looks:?}");
            assert!(!looks.excluded && looks.taint.is_none(), "{looks:?}");
            assert_eq!(looks.other_taints.iter().filter(|key| key.contains("scalesetpriority")).count(), 1);
            let told = corner.event(Reason::SpotEvictionCancelled, node).await.note.unwrap();
            assert_eq!(told.contains("uncordoned"), is_ours, "{told}");
            assert!(corner.metric(node, "spotpool_agent_under_notice", "").await < 0.5);
        }
        histories[0].marked_in_one_write().await;

        // And the node can be noticed again.
        let pods = corner.pods(ours, &["later"]).await;
        corner.evict(&[ours], Duration::from_secs(30)).await;
        corner.gone(&pods).await;
        let notice = corner.phase_is(ours, Phase::Drained).await;
        assert_eq!(notice.pods, PodCounts { evicted: 1, escalated: 0, left: 0 });

        // A pod that was bound to the node a moment too late is moved, too.
        let late = json!({"metadata": {"name": "late", "annotations": {STOP_AFTER_ANNOTATION: "300ms"}},
            "spec": {"nodeName": ours, "containers": [{"name": "main", "image": "none"}]}});
        let late = create(&corner.pod_api(), late).await.unwrap();
        corner.gone(&[late]).await;
        corner.counted(ours, "spotpool_agent_evictions_total", "\"accepted\"", 2.0).await;
        corner.nothing_was_lost().await;
    });
}

#[test]
fn pods_without_a_way_to_azure_hear_of_the_notice_at_once() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "relay", 1).await;
        let node = corner.nodes[0].as_str();
        let url = corner.agents().notice_url(node).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let ask = async |query: &str| -> Value {
            let answer = http.get(format!("{url}{query}")).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.json().await.unwrap()
        };
        assert_eq!(ask("").await, json!({"notice": null}));
        let began = Instant::now();
        assert_eq!(ask("?wait=500ms").await, json!({"notice": null}));
        assert!(began.elapsed() >= Duration::from_millis(500));
        assert_eq!(http.get(format!("{url}?wait=soon")).send().await.unwrap().status(), 400);
        assert_eq!(http.post(&url).send().await.unwrap().status(), 405);

        let waiting = tokio::spawn({
            let request = http.get(format!("{url}?wait=60s"));
            async move { (request.send().await.unwrap().json::<Value>().await.unwrap(), Instant::now()) }
        });
        let event = corner.evict(&[node], Duration::from_secs(30)).await.remove(0);
        let evicted = Instant::now();
        let (told, at) = waiting.await.unwrap();
        assert_eq!(told["notice"]["eventId"], json!(event.event_id));
        assert_eq!(told["notice"]["type"], "Preempt");
        // A relay that tells at the end of the wait alone would be thirty seconds later.
        assert!(at.saturating_duration_since(evicted) < Duration::from_secs(20), "before the deadline");
        corner.phase_is(node, Phase::Drained).await;
        eventually("the relay to tell of the end", async || {
            Ok((ask("").await["notice"]["phase"] == "Drained").then_some(()))
        })
        .await
        .unwrap();
        world.sim.cancel(node).await.unwrap();
        eventually("the relay to tell of the cancellation", async || {
            Ok((ask("").await == json!({"notice": null})).then_some(()))
        })
        .await
        .unwrap();
    });
}

#[test]
fn events_that_nobody_wants_acted_upon_leave_the_node_at_work() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "others", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["working"]).await;
        let history = corner.history(node).await;
        // By default a freeze is sat out, a reboot of tomorrow has time, and of the unknown nothing is known.
        for (kind, notice) in [
            ("Freeze", Duration::from_mins(1)),
            ("Reboot", Duration::from_hours(24)),
            ("Redeploy", Duration::from_mins(20)),
            ("Teleport", Duration::from_mins(1)),
        ] {
            let request = EventRequest::new(kind, Targets::named(&[node]), notice);
            world.sim.schedule(&request).await.unwrap();
            let label = if kind == "Teleport" { "Other" } else { kind };
            corner.counted(node, "spotpool_agent_notices", &format!("\"{label}\""), 1.0).await;
        }
        assert!(history.versions().iter().all(|looks| looks.is_clean() && looks.condition.is_none()));
        assert!(corner.is_untouched(&pods[0]).await);
        // Beside all of these, a Preempt is seen.
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.gone(&pods).await;
        assert_eq!(corner.phase_is(node, Phase::Drained).await.event_type, "Preempt");
        corner.nothing_was_lost().await;
    });
}

#[test]
fn an_apiserver_that_is_away_at_the_notice_does_not_cost_the_drain() {
    run(async {
        let world = alone().await;
        let corner = Corner::set(&world, "outage", 1).await;
        let node = corner.nodes[0].as_str();
        let mut pods = corner.pods(node, &["a", "b", "c"]).await;
        pods.extend(corner.pods(node, &["held"]).await);
        corner.budget("held", 1, 1).await;
        let history = corner.history(node).await;
        world.cluster.stop_apiserver().await.unwrap();
        let event = corner.evict(&[node], Duration::from_secs(90)).await.remove(0);
        // The fault itself: at least this long; how long an apiserver takes to start is up to the machine.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let still_away = Timestamp::now();
        world.cluster.start_apiserver().await.unwrap();
        let notice = corner.phase_is(node, Phase::Drained).await;
        let drained = Timestamp::now();
        println!("drained {:.1} before the deadline", event.not_before.duration_since(drained));
        assert!(drained < event.not_before, "{drained}, due {}", event.not_before);
        assert_eq!(notice.pods.left, 0);
        // The clock runs from when Azure said so, not from when the apiserver listened.
        assert!(notice.observed_at < still_away, "{} and {still_away}", notice.observed_at);
        corner.gone(&pods).await;
        history.marked_in_one_write().await;
        corner.node_is(node, "the condition", |looks| looks.condition.is_some()).await;
        corner.nothing_was_lost().await;
        assert_eq!(
            world.sim.state().await.unwrap().vm(node).unwrap().gone_at,
            None,
            "all before the VM's end"
        );
    });
}
