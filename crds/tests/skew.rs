//! Programs of neighbouring versions at work on the same objects: what agents and operator read of each other's annotations on
//! Nodes, and what operator and plugin read of a SpotPool or a drill that another version has written, as after a rollback.
//! The documents are as version 0.1 writes them, and stay as they are: a program that cannot read one cannot be released.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spotpool_crds::drill::{DrillMethod, DrillPhase};
use spotpool_crds::eviction::{Claimant, Phase, Source};
use spotpool_crds::spot_pool::{BlockedByPdb, EventResponse, Events, Mode};
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use spotpool_crds::{Duration, EvictionDrill, EvictionNotice, NodePolicy, Reason, SpotPool};

fn notice() -> Value {
    json!({"by": "Operator", "eventId": "C1BF8322", "type": "Preempt", "source": "NodeProblemDetector", "response": "Cordon",
        "observedAt": "2026-01-01T00:00:00Z", "notBefore": "2026-01-01T00:00:30Z", "deadline": "2026-01-01T00:00:30Z",
        "phase": "Incomplete", "pods": {"evicted": 7, "escalated": 1, "left": 2}, "cordoned": true, "bootID": "b",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "doomed": [{"eventId": "C1BF8322", "notBefore": "2026-01-01T00:00:30Z", "instances": "3-5,14"}],
        "unfinished": ["shop/web-0: held by shop/web"]})
}

fn request() -> Value {
    json!({"id": "a", "reason": "Failback", "voluntary": true, "notAfter": "2026-01-01T00:15:00Z", "spotPool": "uid"})
}

fn status() -> Value {
    json!({"id": "a", "phase": "Drained", "podsLeft": 1, "blockingPdbs": ["shop/web"], "cordoned": true})
}

fn policy() -> Value {
    json!({"pool": "workers", "namespace": "batch", "mode": "Enforce",
        "drain": {"blockedByPdb": "Leave", "escalateAfter": "8s", "reserve": "2s"},
        "events": {"freeze": "Ignore", "reboot": "Drain"}, "hash": "0123456789abcdef"})
}

/// The document with a field of tomorrow in it, and in each object in it.
fn with_more(mut document: Value) -> Value {
    fn add(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.values_mut().for_each(add);
                fields.insert("ofTomorrow".into(), json!({"a": [1, null]}));
            }
            Value::Array(values) => values.iter_mut().for_each(add),
            _ => {}
        }
    }
    add(&mut document);
    document
}

fn read<T: DeserializeOwned>(document: &Value) -> T {
    // As on the Node: text.
    serde_json::from_str(&document.to_string()).unwrap_or_else(|error| panic!("{error}: {document}"))
}

fn same_with_more<T: DeserializeOwned + PartialEq + std::fmt::Debug>(document: &Value) -> T {
    let known = read::<T>(document);
    assert_eq!(read::<T>(&with_more(document.clone())), known, "a field that is not known changes nothing");
    known
}

#[test]
fn what_version_0_1_wrote_is_read_and_fields_of_tomorrow_are_passed_over() {
    let read: EvictionNotice = same_with_more(&notice());
    assert_eq!(
        (read.by, read.source, read.phase),
        (Claimant::Operator, Source::NodeProblemDetector, Phase::Incomplete)
    );
    assert_eq!((read.response, read.pods.evicted, read.cordoned), (EventResponse::Cordon, 7, true));
    assert_eq!((read.doomed.len(), read.unfinished.len(), read.traceparent.is_some()), (1, 1, true));
    let asked: DrainRequest = same_with_more(&request());
    assert_eq!((asked.reason, asked.voluntary), (DrainReason::Failback, true));
    let answered: DrainStatus = same_with_more(&status());
    assert_eq!((answered.phase, answered.pods_left, answered.cordoned), (DrainPhase::Drained, 1, true));
    let policy: NodePolicy = same_with_more(&policy());
    assert_eq!((policy.pool.as_str(), policy.namespace.as_str()), ("workers", "batch"));
}

#[test]
fn fields_that_came_later_may_be_missing() {
    let old = json!({"by": "NodeAgent", "eventId": "E", "type": "Preempt", "source": "IMDS", "phase": "Noticed",
        "observedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:00:30Z", "cordoned": true, "bootID": "b"});
    assert!(read::<EvictionNotice>(&old).takes_capacity());
    let old = json!({"id": "a", "reason": "Manual", "voluntary": true, "notAfter": "2026-01-01T00:15:00Z"});
    assert_eq!(read::<DrainRequest>(&old).spot_pool, None);
}

/// The node would count as ready, and the operator buy nothing, were a notice lost for a word.
#[test]
fn a_word_of_tomorrow_loses_no_notice_and_no_drain() {
    let with = |mut document: Value, key: &str| {
        assert!(document[key].is_string(), "{key}");
        document[key] = json!("OfTomorrow");
        document
    };
    for key in ["by", "source", "response", "phase", "type"] {
        let mut other = notice();
        other["phase"] = json!("Draining");
        let read: EvictionNotice = read(&with(other, key));
        assert!(read.is_active() && read.cordoned, "{key}: {read:?}");
        assert!(key == "type" || read.takes_capacity(), "{key}: {read:?}");
    }
    assert_eq!(read::<EvictionNotice>(&with(notice(), "phase")).phase, Phase::Draining);
    assert!(read::<DrainRequest>(&with(request(), "reason")).voluntary);
    assert!(!read::<DrainStatus>(&with(status(), "phase")).phase.is_final());
}

/// The agent would drain by its flags, as if the SpotPool had said nothing.
#[test]
fn a_word_of_tomorrow_in_a_policy_leaves_the_rest_of_it() {
    let mut said = policy();
    said["events"]["reboot"] = json!("Cordon");
    let known: NodePolicy = read(&said);
    for (at, otherwise) in [
        ("/mode", NodePolicy { mode: Mode::Enforce, ..known.clone() }),
        ("/drain/blockedByPdb", {
            let mut otherwise = known.clone();
            otherwise.drain.blocked_by_pdb = BlockedByPdb::DeleteAtDeadline;
            otherwise
        }),
        ("/events/reboot", {
            let events = Events { reboot: EventResponse::Drain, ..known.events.clone() };
            NodePolicy { events, ..known.clone() }
        }),
    ] {
        let mut newer = said.clone();
        *newer.pointer_mut(at).unwrap() = json!("OfTomorrow");
        assert_eq!(read::<NodePolicy>(&newer), otherwise, "{at}");
    }
}

/// As an operator of version 0.1 left it in the middle of an eviction.
fn spot_pool() -> Value {
    serde_json::from_str(include_str!("spotpool-0.1.json")).unwrap()
}

/// Whether all of `part` is in `whole`.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| holds(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| holds(whole, part))
        }
        _ => whole == part,
    }
}

/// Where there are words in a document: text that is neither a time nor a duration.
fn words(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.parse::<Timestamp>().is_err() && text.parse::<Duration>().is_err() => {
            found.push(at.to_owned());
        }
        Value::Array(values) => {
            values
                .iter()
                .enumerate()
                .for_each(|(index, value)| words(value, &format!("{at}/{index}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| words(value, &format!("{at}/{key}"), found));
        }
        _ => {}
    }
}

/// What fallback has cost, what is on its way and since when spot was lost stand nowhere else.
#[test]
fn a_spot_pool_of_version_0_1_is_read_whole() {
    let document = spot_pool();
    let known = serde_json::to_value(read::<SpotPool>(&document)).unwrap();
    for part in ["spec", "status"] {
        assert!(
            holds(&known[part], &document[part]),
            "{part} was {}\nand is {}",
            document[part],
            known[part]
        );
    }
    let mut newer = document;
    newer["spec"] = with_more(newer["spec"].take());
    newer["status"] = with_more(newer["status"].take());
    assert_eq!(serde_json::to_value(read::<SpotPool>(&newer)).unwrap(), known);
}

/// SpotPools are read in one list: one that could not be read would leave all of its namespace alone, with nothing replaced.
#[test]
fn no_word_of_tomorrow_in_a_status_hides_a_spot_pool() {
    let document = spot_pool();
    let mut found = Vec::new();
    words(&document["status"], "/status", &mut found);
    for kind in ["role", "kind", "reason", "mode"] {
        assert!(found.iter().any(|at| at.ends_with(&format!("/{kind}"))), "none is a {kind}: {found:?}");
    }
    for at in found {
        let mut newer = document.clone();
        *newer.pointer_mut(&at).unwrap() = json!("OfTomorrow");
        let pool = serde_json::from_value::<SpotPool>(newer).unwrap_or_else(|error| panic!("{at}: {error}"));
        let step = &pool.status.unwrap().plan[0];
        assert_eq!(step.reason == Reason::Unknown, at == "/status/plan/0/reason", "{at}");
    }
    let mut newer = document;
    newer["status"]["agentPools"][0]["unusable"] = json!("OfTomorrow");
    assert_eq!(read::<SpotPool>(&newer).status.unwrap().agent_pools[0].unusable, Some(Reason::Unknown));
}

/// A drill in the middle of a run, after another.
fn drill() -> Value {
    let time = "2026-01-01T00:00:00Z";
    let target = json!({"node": "n", "uid": "u", "vm": "v", "agentPool": "spota", "zone": "westeurope-1", "units": 1,
        "intendedAt": time, "attempts": 1, "askedAt": time, "pods": {"before": 3}});
    json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill", "metadata": {"name": "d"},
        "spec": {"target": {"spotPool": "workers"}, "amount": {"count": 1}, "limits": {"maxNodes": 1}},
        "status": {"observedGeneration": 1, "ranGeneration": 1, "phase": "Running", "message": "1 of 1 nodes asked for",
            "run": {"id": "r", "method": "NoticeOnly", "result": "Aborted", "startedAt": time, "candidates": 2, "targets": [target],
                "timeline": [{"at": time, "what": "takes 1 of 2 nodes"}],
                "verdict": [{"expectation": "drainedInTime", "stated": "every node", "measured": "1 of 1", "held": true}]},
            "pastRuns": [{"endedAt": time, "result": "Succeeded", "message": "all held", "nodes": 1}]}})
}

/// Drills are read in one list: one that could not be read would keep all others from running, and from ending.
#[test]
fn no_word_of_tomorrow_in_a_status_hides_a_drill() {
    let document = drill();
    let mut found = Vec::new();
    words(&document["status"], "/status", &mut found);
    for at in &found {
        let mut newer = document.clone();
        *newer.pointer_mut(at).unwrap() = json!("OfTomorrow");
        serde_json::from_value::<EvictionDrill>(newer).unwrap_or_else(|error| panic!("{at}: {error}"));
    }
    let mut newer = document;
    for at in ["/status/phase", "/status/run/method", "/status/run/result", "/status/pastRuns/0/result"] {
        assert!(found.iter().any(|it| it == at), "{at} is not in {found:?}");
        *newer.pointer_mut(at).unwrap() = json!("OfTomorrow");
    }
    let status = read::<EvictionDrill>(&newer).status.unwrap();
    assert!(!status.is_under_way(), "whatever it is, nothing more is taken: {status:?}");
    let run = status.run.unwrap();
    assert_eq!((run.method, run.result), (DrillMethod::NoticeOnly, None));
    assert_eq!(status.past_runs[0].result, DrillPhase::Failed, "nobody knows that all was well");
    newer["spec"]["method"] = json!("OfTomorrow");
    assert!(
        serde_json::from_value::<EvictionDrill>(newer).is_err(),
        "what a person asks for is not guessed at"
    );
}

/// What a person asks for is not guessed at: it may cost money.
#[test]
fn a_word_of_tomorrow_in_a_spec_is_refused() {
    let mut newer = spot_pool();
    newer["spec"]["mode"] = json!("OfTomorrow");
    let error = serde_json::from_value::<SpotPool>(newer).unwrap_err().to_string();
    assert!(error.contains("OfTomorrow"), "{error}");
}
