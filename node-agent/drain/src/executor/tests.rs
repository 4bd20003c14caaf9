//! The executor against a scripted API, under paused time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Response};
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use serde_json::{Value, json};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::BlockedByPdb;

use super::*;
use crate::{Budget, Pod};

/// An API whose answers a test decides; every request is kept with its time.
struct Api {
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
    pods: watch::Sender<Pods>,
    since: Instant,
    latency: Duration,
}

/// Code and body, or a server that hangs.
type Script = dyn Fn(&Call) -> Option<(u16, Value)> + Send + Sync;

#[derive(Clone, Debug)]
struct Call {
    /// Since the start of the test.
    at: Duration,
    deletes: bool,
    pod: String,
    body: Value,
    /// How often this pod was asked for before.
    earlier: usize,
}

const OK: (u16, Value) = (201, Value::Null);

fn blocked() -> (u16, Value) {
    (
        429,
        json!({"details": {"causes": [{"reason": "DisruptionBudget",
            "message": "The disruption budget web needs 1 healthy pods and has 1 currently"}]}}),
    )
}

fn forbidden() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "forbidden"});
    Response::builder().status(403).body(Body::from(status.to_string().into_bytes())).unwrap()
}

impl Api {
    fn new(
        pods: Vec<Pod>,
        script: impl Fn(&Call) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            calls: Mutex::default(),
            pods: watch::Sender::new(pods.into_iter().collect()),
            since: Instant::now(),
            latency: Duration::from_millis(1),
        })
    }

    fn client(self: &Arc<Self>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: http::Request<Body>) -> Response<Body> {
        if request.uri().path().ends_with("poddisruptionbudgets") {
            return forbidden(); // the drain goes on without
        }
        if request.method() == Method::PATCH {
            return Response::builder().status(200).body(Body::from(b"{}".to_vec())).unwrap();
        }
        let deletes = request.method() == Method::DELETE;
        let mut path = request.uri().path().split('/').skip(6);
        let pod = path.next().unwrap().to_owned();
        assert_eq!(path.next(), (!deletes).then_some("eviction"));
        let body: Value =
            serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        let call = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let earlier = calls.iter().filter(|call| call.pod == pod).count();
            let at = self.since.elapsed();
            let call = Call { at, deletes, pod, body, earlier };
            calls.push(call.clone());
            call
        };
        let Some((code, body)) = (self.script)(&call) else {
            return std::future::pending().await; // a server that hangs
        };
        tokio::time::sleep(self.latency).await;
        if code < 300 {
            self.pods.send_modify(|pods| {
                pods.remove(&call.pod);
            });
        }
        Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    async fn drain(self: &Arc<Self>, terms: Terms) -> (Report, Heard) {
        let heard = Heard::default();
        let client = self.client();
        let terms = watch::Sender::new(terms);
        let drain = Drain {
            client: &client,
            pods: self.pods.subscribe(),
            terms: terms.subscribe(),
            holds: watch::Sender::new(Holds::default()).subscribe(),
            stop: CancellationToken::new(),
            observer: &heard,
        };
        (drain.run().await, heard)
    }
}

#[derive(Default)]
struct Heard {
    escalated: Mutex<Vec<(String, Vec<String>)>>,
    answers: Mutex<HashMap<&'static str, u32>>,
}

impl Observer for Heard {
    fn answered(&self, _: &Pod, _: bool, answer: &Answer) {
        *self.answers.lock().unwrap().entry(answer.label()).or_default() += 1;
    }
    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let names = budgets.iter().map(|budget| budget.name.clone()).collect();
        self.escalated.lock().unwrap().push((pod.name.clone(), names));
    }
}

/// UIDs are names here.
fn pods(names: impl IntoIterator<Item = impl ToString>) -> Vec<Pod> {
    let pod = |name: String| Pod {
        namespace: "default".into(),
        uid: name.clone(),
        name,
        grace: Duration::from_secs(30),
        ..Pod::default()
    };
    names.into_iter().map(|name| pod(name.to_string())).collect()
}

fn preempt(seconds: i64) -> Terms {
    let now = Timestamp::now();
    Terms::Preempt {
        noticed: now,
        deadline: now + SignedDuration::from_secs(seconds),
        policy: DrainPolicy {
            blocked_by_pdb: BlockedByPdb::DeleteAtDeadline,
            escalate_after: Duration::from_secs(8).into(),
            reserve: Duration::from_secs(2).into(),
        },
    }
}

fn voluntary(seconds: i64) -> Terms {
    Terms::Voluntary { not_after: Timestamp::now() + SignedDuration::from_secs(seconds) }
}

#[tokio::test(start_paused = true)]
async fn many_pods_are_evicted_at_once_with_uid_and_grace() {
    let api = Api::new(pods(0..110), |_| Some(OK));
    let (report, _) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 110));
    let calls = api.calls();
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
    let api =
        Api::new(pods(0..110), |call| Some(if call.pod == "7" && !call.deletes { blocked() } else { OK }));
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!(report.ending, Ending::Drained);
    assert_eq!((report.progress.evicted, report.progress.escalated), (109, 1));
    assert_eq!(*heard.escalated.lock().unwrap(), [("7".to_owned(), vec!["web".to_owned()])]);
    let calls = api.calls();
    let others = calls.iter().filter(|call| call.pod != "7").map(|call| call.at);
    assert!(others.max().unwrap() < Duration::from_millis(50));
    let deletion = calls.iter().find(|call| call.deletes).unwrap();
    assert!((8.0..8.1).contains(&deletion.at.as_secs_f64()), "{deletion:?}");
    assert_eq!(deletion.body["preconditions"]["uid"], "7");
    let asked = calls.iter().filter(|call| call.pod == "7").count();
    assert!((16..=25).contains(&asked), "at most three times a second, not {asked} in 8 s");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_frees_is_enough() {
    let api =
        Api::new(pods(["web"]), |call| Some(if call.at < Duration::from_secs(3) { blocked() } else { OK }));
    let (report, heard) = api.drain(preempt(30)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Drained, 1));
    assert!(heard.escalated.lock().unwrap().is_empty());
    assert!(api.calls().last().unwrap().at < Duration::from_millis(3600));
}

#[tokio::test(start_paused = true)]
async fn silence_and_errors_are_tried_again_soon() {
    let api = Api::new(pods(["hangs", "fails", "throttled", "replaced"]), |call| {
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
    let api = Api::new(pods(["web"]), |_| Some(blocked()));
    let (report, _) = api.drain(terms).await;
    assert_eq!(report.ending, Ending::TimeOver);
    assert_eq!(report.left, ["default/web: held by disruption budget web"]);
    assert_eq!(report.progress.blocking, ["default/web".to_owned()].into());
    assert!(api.calls().iter().all(|call| !call.deletes));
}

#[tokio::test(start_paused = true)]
async fn a_voluntary_drain_asks_less_and_less_and_never_deletes() {
    let api = Api::new(pods(["web", "other"]), |call| Some(if call.pod == "web" { blocked() } else { OK }));
    let (report, _) = api.drain(voluntary(120)).await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::TimeOver, 1));
    let calls = api.calls();
    assert!(calls.iter().all(|call| !call.deletes));
    assert!(calls[0].body["deleteOptions"].get("gracePeriodSeconds").is_none());
    assert!((20..45).contains(&calls.len()), "{}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_due_now_deletes_at_the_first_refusal() {
    let api = Api::new(pods(["web", "late"]), |call| {
        Some(match (call.pod.as_str(), call.earlier) {
            ("web", _) if !call.deletes => blocked(),
            ("late", 0..8) => (503, Value::Null),
            _ => OK,
        })
    });
    let (report, _) = api.drain(preempt(0)).await;
    assert_eq!(report.ending, Ending::Drained);
    let calls = api.calls();
    let deletion = calls.iter().find(|call| call.deletes).unwrap();
    assert!(deletion.at < Duration::from_millis(10), "{deletion:?}");
    assert_eq!(deletion.body["gracePeriodSeconds"], 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_known_is_not_nothing_left() {
    let api = Api::new(Vec::new(), |_| Some(OK));
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
    let api = Api::new(pods(["held"]), |call| Some(if call.pod == "held" { blocked() } else { OK }));
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
    let (client, heard) = (api.client(), Heard::default());
    let terms = watch::Sender::new(preempt(30));
    let report = Drain {
        client: &client,
        pods: api.pods.subscribe(),
        terms: terms.subscribe(),
        holds: watch::Sender::new(Holds::default()).subscribe(),
        stop,
        observer: &heard,
    }
    .run()
    .await;
    assert_eq!((report.ending, report.progress.evicted), (Ending::Stopped, 1));
    assert_eq!(report.left, ["default/held: held by disruption budget web"]);
}
