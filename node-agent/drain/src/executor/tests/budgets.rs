//! Budgets: pods that share one, pods that do not, and what a change of one sets off.

use std::sync::Mutex;

use super::api::{OK, blocked, budget, planned, replicas};
use super::*;
use crate::{Budget, Pod, Tier};

/// The server's wait after a conflict.
const CONFLICT: Duration = Duration::from_millis(500);
const QUICK: Duration = Duration::from_millis(5);

/// Evictions that share a budget as the server has them: those that meet another one wait half a second each time.
fn contended() -> impl Fn(Duration) -> Duration {
    let busy_until = Mutex::new(Duration::ZERO);
    move |at| {
        let mut busy_until = busy_until.lock().unwrap();
        let mut tries = at;
        // The next half second in which nobody else is at it.
        while tries < *busy_until {
            tries += CONFLICT;
        }
        *busy_until = (*busy_until).max(tries + QUICK);
        (tries + QUICK).saturating_sub(at)
    }
}

fn at_most_three_a_second(calls: &[Call]) {
    for three in calls.windows(4) {
        assert!(three[3].at.saturating_sub(three[0].at) >= Duration::from_secs(1), "{three:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_slow_delays_no_other() {
    let slow = contended();
    let mut all = replicas("slow", 80);
    all.extend(replicas("quick", 30));
    let script = move |call: &Call| {
        let takes = if call.pod.starts_with("slow") { slow(call.at) } else { QUICK };
        Some((201, Value::Null, takes))
    };
    let api = Arc::new(Api::new(all, script).with_budgets(vec![budget("slow", 100)]));
    let (report, _) = api.drain(preempt(60)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 110));
    let calls = api.calls();
    let last = |app: &str| calls.iter().filter(|call| call.pod.starts_with(app)).map(|call| call.at).max();
    assert!(last("quick").unwrap() < Duration::from_millis(50), "{:?}", last("quick"));
    assert!(
        last("slow").unwrap() > Duration::from_millis(500),
        "the test proves nothing: {:?}",
        last("slow")
    );
    let evictions = calls.iter().filter(|call| call.verb == Verb::Evict).count();
    assert_eq!(evictions, 110, "nobody is asked twice");
    let reads = calls.iter().filter(|call| matches!(call.verb, Verb::List | Verb::Watch)).count();
    assert_eq!(reads, 2, "one list and one watch");
}

#[tokio::test(start_paused = true)]
async fn few_pods_read_no_budget_as_long_as_nothing_is_slow_or_refused() {
    let api = Arc::new(Api::new(replicas("web", 3), |_| quick(OK)).with_budgets(vec![budget("web", 200)]));
    let (report, _) = api.drain(preempt(60)).await;
    assert_eq!(report.ending, Ending::Drained);
    assert_eq!(api.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn many_pods_go_all_at_once_as_soon_as_they_are_known_to_be_under_no_budget() {
    // Each eviction takes as long as the server's look at its cache: at eight at a time these would take 1.4 s.
    let script = |call: &Call| match call.verb {
        Verb::Evict => Some((201, Value::Null, Duration::from_millis(99))),
        _ => quick(OK),
    };
    let api = Arc::new(Api::new(replicas("web", 110), script).with_budgets(vec![budget("other", 1)]));
    let (report, _) = api.drain(preempt(60)).await;
    assert_eq!(report.ending, Ending::Drained);
    let calls = api.calls();
    let last = calls.iter().filter(|call| call.verb == Verb::Evict).map(|call| call.at).max().unwrap();
    assert!(last < Duration::from_millis(50), "the last one was asked at {last:?}");
    assert_eq!(calls.len(), 112, "one list and one watch");
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_exhausted_budget_are_each_asked_once_and_then_one_in_the_name_of_all() {
    let script = |call: &Call| quick(if call.verb == Verb::Evict { blocked() } else { OK });
    let api = Arc::new(Api::new(replicas("web", 50), script).with_budgets(vec![budget("web", 0)]));
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.escalated), (Ending::Drained, 50));
    let calls = api.calls();
    let evictions: Vec<_> = calls.iter().filter(|call| call.verb == Verb::Evict).cloned().collect();
    let first = evictions.iter().filter(|call| call.earlier == 0).count();
    assert_eq!(first, 50, "any of them may be one that the budget does not hold");
    let again: Vec<_> = evictions.into_iter().filter(|call| call.earlier > 0).collect();
    assert!((8..=15).contains(&again.len()), "about every 700 ms for 8 s: {}", again.len());
    at_most_three_a_second(&again);
    let deletions: Vec<_> = calls.iter().filter(|call| call.verb == Verb::Delete).collect();
    assert_eq!(deletions.len(), 50);
    assert!(deletions.iter().all(|call| (8.0..8.2).contains(&call.at.as_secs_f64())), "{deletions:?}");
    // The budget is named with its UID, so that it can be told.
    let web = Budget { name: "web".into(), uid: Some("uid-web".into()) };
    assert!(heard.escalated.lock().unwrap().iter().all(|(_, budgets)| *budgets == [web.clone()]));
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_changes_is_asked_at_once() {
    let changes = [vec![budget("web", 1)], vec![]];
    // At any time, that of an answer on its way included.
    for (millis, change) in
        (3000..3800).step_by(23).flat_map(|at| changes.iter().map(move |it| (at, it.clone())))
    {
        let frees = Duration::from_millis(millis);
        let script = move |call: &Call| quick(if call.at < frees { blocked() } else { OK });
        let api = Arc::new(Api::new(replicas("web", 1), script).with_budgets(vec![budget("web", 0)]));
        let changes = api.budgets.clone().unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(frees).await;
            changes.send_replace(change);
        });
        let (report, _) = api.drain(preempt(60)).await;
        assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 1));
        let asks = api.asks("web-0");
        let last = asks.last().unwrap().at;
        assert!(last >= frees && last < frees + Duration::from_millis(50), "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_flutters_does_not_make_a_pod_cost_more() {
    let script = |call: &Call| quick(if call.verb == Verb::Evict { blocked() } else { OK });
    let api = Arc::new(Api::new(replicas("web", 1), script).with_budgets(vec![budget("web", 0)]));
    let changes = api.budgets.clone().unwrap();
    tokio::spawn(async move {
        for round in 0..600 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            changes.send_replace(vec![budget("web", 1 + round % 2)]);
        }
    });
    api.drain(preempt(30)).await;
    let evictions: Vec<_> = api.asks("web-0").into_iter().filter(|call| call.verb == Verb::Evict).collect();
    assert!(evictions.len() > 18, "each change is followed up: {}", evictions.len());
    at_most_three_a_second(&evictions);
}

#[tokio::test(start_paused = true)]
async fn one_budget_does_not_hold_pods_of_another() {
    let script = |call: &Call| {
        quick(if call.pod.starts_with("held") && call.verb == Verb::Evict { blocked() } else { OK })
    };
    let mut all = replicas("held", 20);
    all.extend(replicas("free", 20));
    let budgets = vec![budget("held", 0), budget("free", 20)];
    let api = Arc::new(Api::new(all, script).with_budgets(budgets));
    let (report, _) = api.drain(preempt(30)).await;
    assert_eq!((report.progress.evicted, report.progress.escalated), (20, 20));
    let late = api.calls().into_iter().filter(|call| call.pod.starts_with("free")).map(|call| call.at).max();
    assert!(late.unwrap() < Duration::from_millis(100), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_marked_before_it_is_deleted_and_deleted_even_if_it_cannot_be_marked() {
    for (mark, takes) in [
        (Some(QUICK), QUICK),
        (Some(Duration::from_secs(3)), Duration::from_millis(250)),
        (None, Duration::from_millis(250)),
    ] {
        let api = Arc::new(Api::new(replicas("web", 1), move |call: &Call| match call.verb {
            Verb::Mark => mark.map(|mark| (200, json!({}), mark)),
            Verb::Evict => quick(blocked()),
            _ => quick(OK),
        }));
        let (report, _) = api.drain(preempt(30)).await;
        assert_eq!(report.progress.escalated, 1);
        let calls = api.calls();
        let of = |verb: Verb| calls.iter().filter(|call| call.verb == verb).collect::<Vec<_>>();
        let (marks, deletions) = (of(Verb::Mark), of(Verb::Delete));
        assert_eq!((marks.len(), deletions.len()), (1, 1));
        let waited = deletions[0].at.saturating_sub(marks[0].at);
        assert!(waited >= takes && waited < takes + Duration::from_millis(10), "{waited:?}");
        assert_eq!(marks[0].body["metadata"]["uid"], "web-0");
        let condition = &marks[0].body["status"]["conditions"][0];
        assert_eq!((&condition["type"], &condition["status"]), (&json!("DisruptionTarget"), &json!("True")));
        assert_eq!(condition["reason"], "DeletionBySpotPool");
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_last_call_a_server_that_is_silent_about_a_pod_is_asked_to_delete_it() {
    let script = |call: &Call| match call.verb {
        Verb::Evict => Some((201, Value::Null, Duration::from_secs(11))), // conflicts, one after another
        _ => quick(OK),
    };
    let api = Arc::new(Api::new(replicas("web", 3), script).with_budgets(vec![budget("web", 3)]));
    let (report, _) = api.drain(preempt(9)).await;
    assert_eq!((report.ending, report.progress.escalated), (Ending::Drained, 3));
    let calls = api.calls();
    let deletions: Vec<_> =
        calls.iter().filter(|call| call.verb == Verb::Delete).map(|call| call.at).collect();
    assert!(
        deletions.iter().all(|at| (2.0..2.4).contains(&at.as_secs_f64())),
        "deadline - 7 s: {deletions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_planned_event_waits_for_a_budget_in_no_hurry_and_deletes_when_the_grace_needs_it() {
    let script = |call: &Call| quick(if call.verb == Verb::Evict { blocked() } else { OK });
    let api = Arc::new(Api::new(replicas("web", 1), script).with_budgets(vec![budget("web", 0)]));
    let (report, _) = api.drain(planned(300)).await;
    assert_eq!((report.ending, report.progress.escalated), (Ending::Drained, 1));
    let asks = api.asks("web-0");
    let deletion = asks.last().unwrap();
    assert!((267.9..268.1).contains(&deletion.at.as_secs_f64()), "300 - (30 + 2): {deletion:?}");
    assert_eq!(
        deletion.body["gracePeriodSeconds"].as_u64().map(|grace| (29..=30).contains(&grace)),
        Some(true)
    );
    let early = asks.iter().filter(|call| call.at < Duration::from_mins(4)).count();
    assert!((40..80).contains(&early), "every 5 s or so: {early}");
}

#[tokio::test(start_paused = true)]
async fn tiers_follow_each_other_and_a_held_pod_follows_its_hook() {
    let mut all = pods(["web", "hooked", "dns", "logs"]);
    (all[2].tier, all[3].tier) = (Tier::SystemCritical, Tier::Last);
    for pod in &mut all {
        pod.grace = Duration::from_secs(5);
    }
    let api = Arc::new(Api::new(all, |_| quick(OK)));
    api.holds.send_modify(|holds| {
        holds.hold("hooked");
    });
    let releases = api.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        releases.holds.send_modify(|holds| {
            holds.release("hooked");
        });
    });
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!(report.ending, Ending::Drained);
    let calls = api.calls();
    let order: Vec<_> = calls.iter().map(|call| call.pod.as_str()).collect();
    assert_eq!(order, ["web", "hooked", "dns", "logs"]);
    let seconds: Vec<_> = calls.iter().map(|call| call.at.as_secs()).collect();
    assert_eq!(seconds, [0, 4, 4, 4]);
    let progress = heard.progress.lock().unwrap();
    assert!(!progress[0].all_asked && progress.is_sorted_by(|one, next| one.evicted <= next.evicted));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_with_the_pods_is_said() {
    let mut all = replicas("web", 2);
    all[0].local_storage = true;
    all.extend(pods(["bare"]));
    let api = Arc::new(Api::new(all, |_| quick(OK)));
    let (report, _) = api.drain(preempt(30)).await;
    assert_eq!((report.local_storage, report.unmanaged), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn each_pod_that_is_left_is_named_with_its_reason() {
    let names = ["blocked", "ending", "hooked", "silent"];
    let mut all: Vec<Pod> = names.iter().flat_map(|name| replicas(name, 1)).collect();
    all[1].terminating = true;
    let script = |call: &Call| match call.pod.as_str() {
        "silent-0" => None,
        _ => quick(blocked()),
    };
    let two = |name: &str| {
        let mut budget = budget("blocked", 0);
        budget["metadata"]["name"] = name.into();
        budget["metadata"]["uid"] = name.into();
        budget
    };
    let api = Arc::new(Api::new(all, script).with_budgets(vec![two("one"), two("two")]));
    api.holds.send_modify(|holds| {
        holds.hold("hooked-0");
    });
    let (report, _) = api.drain(voluntary(9)).await;
    assert_eq!(report.ending, Ending::TimeOver);
    assert_eq!(
        report.left,
        [
            "default/blocked-0: held by disruption budgets one and two",
            "default/ending-0: still ending",
            "default/hooked-0: its hook has not answered",
            "default/silent-0: no answer",
        ]
    );
    assert_eq!(report.progress.blocking, ["default/one".to_owned(), "default/two".to_owned()].into());
}
