//! A metadata service that answers badly, oddly, late, or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{EventRequest, Fault, FaultAction, FaultTarget, Targets};
use spotpool_crds::eviction::Phase;
use spotpool_e2e::wait::within;
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::Signal;

use crate::corner::{Corner, Looks, shared, whole_seconds};

#[test]
fn whatever_the_metadata_service_answers_no_node_is_lost_or_given_back_by_mistake() {
    run(async {
        // What is answered, and as what it is counted.
        let status = |status| (format!("{status}"), FaultAction::status(status), "status");
        let body = |body: &str| FaultAction::body(body);
        let blank = vec![b' '; 1024 * 1024 + 1];
        let cases = [
            ("empty".to_owned(), body(""), "not_understood"),
            (
                "truncated".into(),
                body(r#"{"DocumentIncarnation":9,"Events":[{"EventId":"X","Eve"#),
                "not_understood",
            ),
            ("huge".into(), FaultAction::body(blank), "too_large"),
            ("not JSON".into(), body("<html>busy</html>"), "not_understood"),
            ("no bytes of any text".into(), FaultAction::body(vec![0xff, 0xfe, 0x00]), "not_understood"),
            ("null".into(), body("null"), "not_understood"),
            (
                "events of a wrong type".into(),
                body(r#"{"DocumentIncarnation":9,"Events":{}}"#),
                "not_understood",
            ),
            ("an error with status 200".into(), body(r#"{"error":"Bad request."}"#), "not_understood"),
            status(404),
            status(410),
            ("429".into(), FaultAction::status(429), "throttled"),
            status(500),
            status(503),
            ("hanging".into(), FaultAction::Hang { time: Duration::from_secs(20) }, "silent"),
            ("a closed connection".into(), FaultAction::Drop, "unreachable"),
        ];
        let world = shared().await;
        let corner = Corner::set(&world, "badinput", cases.len() as u32).await;
        let cases: Vec<_> = corner.nodes.iter().map(String::as_str).zip(&cases).collect();
        let processes: Vec<u32> =
            cases.iter().map(|(node, _)| corner.agents().process(node).unwrap().id()).collect();
        let histories = join_all(cases.iter().map(|(node, _)| corner.history(node))).await;
        let strike = async |(node, (_, action, label)): &(&str, &(String, FaultAction, &str))| {
            let before = corner.metric(node, "spotpool_agent_polls", &format!("\"{label}\"")).await;
            let target = FaultTarget::scheduled_events(Some(node));
            let fault = Fault { target, times: Some(2), action: action.clone() };
            world.sim.add_fault(&fault).await.unwrap();
            corner.counted(node, "spotpool_agent_polls", &format!("\"{label}\""), before + 2.0).await;
        };

        // Without a notice nothing happens.
        join_all(cases.iter().map(&strike)).await;
        for ((_, (name, ..)), history) in cases.iter().zip(&histories) {
            assert!(
                history.versions().iter().all(|looks| looks.is_clean() && looks.condition.is_none()),
                "{name}"
            );
        }
        // A notice still comes through.
        let names: Vec<&str> = cases.iter().map(|(node, _)| *node).collect();
        corner.evict(&names, Duration::from_mins(5)).await;
        for (node, (name, ..)) in &cases {
            corner.node_is(node, &format!("a notice after {name}"), Looks::is_marked).await;
        }
        // And is not taken for cancelled.
        join_all(cases.iter().map(&strike)).await;
        for ((node, (name, ..)), history) in cases.iter().zip(&histories) {
            let versions = history.versions();
            let marked = versions.iter().position(Looks::is_marked).unwrap();
            assert!(versions[marked..].iter().all(Looks::is_marked), "{name}: {}", corner.log(node));
        }
        // A real cancellation is.
        for name in &names {
            world.sim.cancel(name).await.unwrap();
        }
        for (node, (name, ..)) in &cases {
            corner.node_is(node, &format!("the cancellation after {name}"), Looks::is_clean).await;
        }
        let still: Vec<u32> =
            cases.iter().map(|(node, _)| corner.agents().process(node).unwrap().id()).collect();
        assert_eq!(processes, still, "no agent has died");
    });
}

/// The events of a document for a VM.
type Write = fn(&str) -> Value;

#[test]
fn a_preempt_is_acted_upon_however_oddly_it_is_written() {
    run(async {
        let world = shared().await;
        let cases: [(&str, Write); 9] = [
            ("beside broken events", |vm| {
                json!([7, null, {}, {"EventType": 5, "EventId": "B"},
                {"EventId": "C", "EventType": "Preempt", "Resources": 9}, preempt(vm, &json!({}))])
            }),
            ("unknown status", |vm| json!([preempt(vm, &json!({"EventStatus": "Advisory"}))])),
            ("no status", |vm| json!([preempt(vm, &json!({"EventStatus": null}))])),
            ("unreadable date", |vm| json!([preempt(vm, &json!({"NotBefore": "tomorrow"}))])),
            ("no date", |vm| json!([preempt(vm, &json!({"NotBefore": null}))])),
            ("date of a wrong type", |vm| json!([preempt(vm, &json!({"NotBefore": 17}))])),
            ("unknown fields", |vm| json!([preempt(vm, &json!({"Colour": ["red"], "Impact": {"x": 1}}))])),
            ("no id", |vm| json!([preempt(vm, &json!({"EventId": null}))])),
            ("name in capitals", |vm| json!([preempt(&vm.to_uppercase(), &json!({}))])),
        ];
        let corner = Corner::set(&world, "oddly", cases.len() as u32).await;
        let state = world.sim.state().await.unwrap();
        let mut cases: BTreeMap<&str, (&str, Write)> =
            corner.nodes.iter().map(String::as_str).zip(cases).collect();
        for (node, (_, write)) in &cases {
            let vm = &state.vm(node).unwrap().name;
            let document = json!({"DocumentIncarnation": 99, "Events": write(vm)});
            let target = FaultTarget::scheduled_events(Some(node));
            let action = FaultAction::body(document.to_string());
            world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        }
        for (node, (name, _)) in std::mem::take(&mut cases) {
            let looks = corner.node_is(node, &format!("a Preempt with {name}"), Looks::is_marked).await;
            let notice = looks.notice.unwrap();
            let lead = notice.deadline.duration_since(notice.observed_at);
            let vague = name.contains("date");
            assert!(lead > SignedDuration::from_secs(if vague { 5 } else { 300 }), "{name}: {notice:?}");
            assert!(!vague || lead < SignedDuration::from_secs(15), "{name}: {notice:?}");
        }
    });
}

fn preempt(vm: &str, change: &Value) -> Value {
    let mut event = json!({"EventId": "E", "EventType": "Preempt", "ResourceType": "VirtualMachine",
        "Resources": [vm], "EventStatus": "Scheduled", "NotBefore": "Fri, 31 Dec 2100 23:59:59 GMT",
        "Description": "", "EventSource": "Platform", "DurationInSeconds": -1});
    for (key, value) in change.as_object().unwrap() {
        event[key] = value.clone();
    }
    event
}

#[test]
fn both_of_azures_date_formats_give_the_deadline() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "dates", 3).await;
        let due = whole_seconds(Timestamp::now() + Duration::from_mins(3));
        let iso = due.strftime("%Y-%m-%dT%H:%M:%S");
        let texts =
            [due.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(), format!("{iso}Z"), iso.to_string()];
        for (node, text) in corner.nodes.iter().zip(&texts) {
            let mut request = EventRequest::new("Preempt", Targets::named(&[node]), Duration::from_mins(3));
            request.not_before_text = Some(text.clone());
            world.sim.schedule(&request).await.unwrap();
        }
        for (node, text) in corner.nodes.iter().zip(&texts) {
            let notice = corner.phase_is(node, Phase::Drained).await;
            assert_eq!((notice.not_before, notice.deadline), (Some(due), due), "{text}");
        }
    });
}

#[test]
fn an_agent_that_hears_nothing_says_so_and_recovers() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "silence", 1).await;
        let node = corner.nodes[0].as_str();
        let process = corner.agents().process(node).unwrap().id();
        let admin = corner.agents().admin_url(node).unwrap();
        let ready = async || -> (u16, String) {
            let answer = reqwest::get(format!("{admin}/readyz")).await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(ready().await.0, 200);
        let target = FaultTarget::Imds { node: Some(node.into()), path_contains: None };
        let action = FaultAction::Hang { time: Duration::from_mins(2) };
        let fault = world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        let told = eventually("the agent to be unready", async || {
            let (status, text) = ready().await;
            Ok((status == 503).then_some(text))
        })
        .await
        .unwrap();
        assert!(told.contains("imds: no document since "), "{told}");
        assert_eq!(reqwest::get(format!("{admin}/livez")).await.unwrap().status(), 200, "it lives");
        // Whoever looks at the Pods sees it.
        eventually("the Pod to be unready", async || Ok((!corner.agent_is_ready(node).await?).then_some(())))
            .await
            .unwrap();
        world.sim.clear_fault(fault).await.unwrap();
        eventually("the agent to be ready", async || Ok((ready().await.0 == 200).then_some(())))
            .await
            .unwrap();
        assert!(corner.metric(node, "spotpool_agent_polls", "\"silent\"").await >= 2.0);
        assert_eq!(corner.agents().process(node).unwrap().id(), process);
        corner.evict(&[node], Duration::from_secs(30)).await;
        corner.phase_is(node, Phase::Drained).await;
    });
}

/// The first request of a VM's life turns Scheduled Events on, which Azure says may take two minutes.
#[test]
fn a_first_answer_is_waited_for_as_long_as_azure_says_it_may_take() {
    run(async {
        const TAKES: Duration = Duration::from_mins(2);
        let world = shared().await;
        let corner = Corner::set(&world, "firstanswer", 1).await;
        let node = corner.nodes[0].as_str();
        let pods = corner.pods(node, &["a"]).await;
        let target = FaultTarget::scheduled_events(Some(node));
        let action = FaultAction::Delay { time: TAKES };
        let fault = world.sim.add_fault(&Fault { target, times: None, action }).await.unwrap();
        let before = corner.agents().process(node).unwrap();
        corner.agents().signal(node, Signal::SIGKILL).unwrap();
        before.wait().await;
        let lives = async || {
            let is_new = corner.agents().process(node).is_some_and(|process| process.id() != before.id());
            Ok(is_new.then_some(()))
        };
        eventually("the new process", lives).await.unwrap();
        // It has asked by now, or does so at once.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let began = tokio::time::Instant::now();
        world.sim.clear_fault(fault).await.unwrap();
        corner.evict(&[node], Duration::from_mins(5)).await;
        tokio::time::sleep(TAKES / 2).await;
        assert!(corner.look(node).await.is_clean(), "nobody has told it yet");
        within(TAKES, "the notice in the first answer", async || {
            Ok(corner.look(node).await.is_marked().then_some(()))
        })
        .await
        .unwrap();
        let took = began.elapsed();
        assert!(took + Duration::from_secs(10) > TAKES, "the first answer was waited for: {took:?}");
        corner.gone(&pods).await;
        corner.phase_is(node, Phase::Drained).await;
    });
}
