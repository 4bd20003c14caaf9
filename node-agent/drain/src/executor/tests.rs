//! The executor against a scripted API, under paused time.

use std::sync::Arc;

use serde_json::{Value, json};
use spotpool_crds::spot_pool::BlockedByPdb;

use super::*;
use crate::Terms;

mod api;
mod budgets;

use api::{Api, Call, OK, Verb, blocked, pods, preempt, quick, voluntary};

/// An API that answers at once, and lets nobody read its budgets.
fn api(
    pods: Vec<crate::Pod>,
    script: impl Fn(&Call) -> Option<(u16, Value)> + std::marker::Send + Sync + 'static,
) -> Arc<Api> {
    Arc::new(Api::new(pods, move |call| match call.verb {
        Verb::Mark => quick(OK),
        _ => script(call).and_then(quick),
    }))
}

#[tokio::test(start_paused = true)]
async fn many_pods_are_evicted_at_once_with_uid_and_grace() {
    let api = api(pods(0..110), |_| Some(OK));
    let (report, _) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 110));
    let calls: Vec<Call> = api.calls().into_iter().filter(|call| call.verb == Verb::Evict).collect();
    assert_eq!(calls.len(), 110);
    assert!(calls.last().unwrap().at < Duration::from_millis(20));
    let call = &calls[0];
    assert_eq!(call.body["kind"], "Eviction");
    assert_eq!(call.body["deleteOptions"]["preconditions"]["uid"], call.pod);
    // 28 s are left beside the reserve, less what passed since the notice.
    let grace = call.body["deleteOptions"]["gracePeriodSeconds"].as_u64().unwrap();
    assert!((27..=28).contains(&grace), "{grace}");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_pod_delays_no_other_and_is_deleted_in_time() {
    let api = api(pods(0..110), |call| {
        Some(if call.pod == "7" && call.verb == Verb::Evict { blocked() } else { OK })
    });
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!(report.ending, Ending::Drained);
    assert_eq!((report.progress.evicted, report.progress.escalated), (109, 1));
    let web = crate::Budget { name: "web".into(), uid: None };
    assert_eq!(*heard.escalated.lock().unwrap(), [("7".to_owned(), vec![web])]);
    let calls = api.calls();
    let others = calls.iter().filter(|call| call.verb == Verb::Evict && call.pod != "7").map(|call| call.at);
    assert!(others.max().unwrap() < Duration::from_millis(50));
    let deletion = calls.iter().find(|call| call.verb == Verb::Delete).unwrap();
    assert!((8.0..8.1).contains(&deletion.at.as_secs_f64()), "{deletion:?}");
    assert_eq!(deletion.body["preconditions"]["uid"], "7");
    let asked = api.asks("7").len();
    assert!((16..=25).contains(&asked), "at most three times a second, not {asked} in 8 s");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_frees_is_enough() {
    let api = api(pods(["web"]), |call| Some(if call.at < Duration::from_secs(3) { blocked() } else { OK }));
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 1));
    assert!(heard.escalated.lock().unwrap().is_empty());
    assert!(api.asks("web").last().unwrap().at < Duration::from_millis(3600));
}

#[tokio::test(start_paused = true)]
async fn silence_and_errors_are_tried_again_soon() {
    let api = api(pods(["hangs", "fails", "throttled", "replaced"]), |call| {
        match (call.pod.as_str(), call.earlier) {
            ("hangs", 0) => None,
            ("fails", 0..6) => Some((503, Value::Null)),
            ("throttled", 0..2) => Some((429, json!({"details": {"retryAfterSeconds": 60}}))),
            ("replaced", _) => Some((409, json!({"message": "UID in precondition: a"}))),
            _ => Some(OK),
        }
    });
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 3));
    let last =
        |pod: &str| api.calls().iter().filter(|call| call.pod == pod).map(|call| call.at).max().unwrap();
    assert!(last("hangs") < Duration::from_millis(5200));
    assert!(last("fails") < Duration::from_secs(3));
    assert!(last("throttled") < Duration::from_millis(2500));
    assert_eq!(heard.answers.lock().unwrap()["gone"], 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_go_is_named_at_the_end() {
    let mut terms = preempt(30);
    if let Terms::Preempt { policy, .. } = &mut terms {
        policy.blocked_by_pdb = BlockedByPdb::Leave;
    }
    let api = api(pods(["web"]), |_| Some(blocked()));
    let (report, _) = api.drain(terms).await;
    assert_eq!(report.ending, Ending::TimeOver);
    assert_eq!(report.left, ["default/web: held by disruption budget web"]);
    assert_eq!(report.progress.blocking, ["default/web".to_owned()].into());
    assert!(api.calls().iter().all(|call| call.verb != Verb::Delete));
}

#[tokio::test(start_paused = true)]
async fn a_voluntary_drain_asks_less_and_less_and_never_deletes() {
    let api = api(pods(["web", "other"]), |call| Some(if call.pod == "web" { blocked() } else { OK }));
    let (report, _) = api.drain(voluntary(120)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::TimeOver, 1));
    let calls = api.calls();
    assert!(calls.iter().all(|call| call.verb != Verb::Delete));
    assert!(calls[0].body["deleteOptions"].get("gracePeriodSeconds").is_none());
    let asked = api.asks("web").len();
    assert!((20..45).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_due_now_deletes_at_the_first_refusal() {
    let api = api(pods(["web", "late"]), |call| {
        Some(match (call.pod.as_str(), call.earlier) {
            ("web", _) if call.verb == Verb::Evict => blocked(),
            ("late", 0..8) => (503, Value::Null),
            _ => OK,
        })
    });
    let (report, _) = api.drain(preempt(0)).await;
    assert_eq!(report.ending, Ending::Drained);
    let calls = api.calls();
    let deletion = calls.iter().find(|call| call.verb == Verb::Delete).unwrap();
    assert!(deletion.at < Duration::from_millis(10), "{deletion:?}");
    assert_eq!(deletion.body["gracePeriodSeconds"], 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_known_is_not_nothing_left() {
    let api = api(Vec::new(), |_| Some(OK));
    api.pods.send_replace(Pods::default());
    let late = api.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        late.pods.send_replace(pods(["web"]).into_iter().collect());
    });
    let (report, _) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 1));
}

#[tokio::test(start_paused = true)]
async fn pods_that_come_meanwhile_go_too_and_a_stop_stops() {
    let api = api(pods(["held"]), |call| Some(if call.pod == "held" { blocked() } else { OK }));
    let (late, stop) = (api.clone(), CancellationToken::new());
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        late.pods.send_modify(|known| {
            known.put(pods(["late"]).remove(0));
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        stopper.cancel();
    });
    let (report, _) = api.drain_until(preempt(30), stop).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Stopped, 1));
    assert_eq!(report.left, ["default/held: held by disruption budget web"]);
}
