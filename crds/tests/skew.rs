//! Agents and operator of neighbouring versions at work on the same Nodes: what each of them reads of the other's annotations.
//! The documents are as version 0.1 writes them, and stay as they are: a program that cannot read one cannot be released.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, Phase, Source};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainReason, DrainRequest, DrainStatus};
use spotpool_crds::{EvictionNotice, NodePolicy};

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
