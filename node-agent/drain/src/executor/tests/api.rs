//! An API whose answers a test decides.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::BlockedByPdb;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::schedule::Clock;
use crate::{Answer, Budget, Controller, Drain, Holds, Observer, Pod, Pods, Progress, Report, Terms};

/// Every request is kept with its time.
pub struct Api {
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
    /// The node's pods: whoever is asked successfully is gone at once.
    pub pods: watch::Sender<Pods>,
    /// Pods that may not be asked yet.
    pub holds: watch::Sender<Holds>,
    /// Budgets that the agent may read; `None` and it may not.
    pub budgets: Option<watch::Sender<Vec<Value>>>,
    since: Instant,
}

type Answers = UnsyncBoxBody<Bytes, Infallible>;

/// Code, body and how long the answer takes, or a server that hangs.
type Script = dyn Fn(&Call) -> Option<(u16, Value, Duration)> + Send + Sync;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Evict,
    Delete,
    Mark,
    List,
    Watch,
}

#[derive(Clone, Debug)]
pub struct Call {
    /// Since the start of the test.
    pub at: Duration,
    pub verb: Verb,
    pub pod: String,
    pub body: Value,
    /// How often this pod was evicted or deleted before.
    pub earlier: usize,
}

pub const OK: (u16, Value) = (201, Value::Null);

pub fn blocked() -> (u16, Value) {
    (
        429,
        json!({"details": {"causes": [{"reason": "DisruptionBudget",
            "message": "The disruption budget web needs 1 healthy pods and has 1 currently"}]}}),
    )
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a script returns")]
pub fn quick((code, body): (u16, Value)) -> Option<(u16, Value, Duration)> {
    Some((code, body, Duration::from_millis(1)))
}

/// A budget for the pods with this label `app`.
pub fn budget(app: &str, allowed: i32) -> Value {
    json!({"metadata": {"name": app, "namespace": "default", "uid": format!("uid-{app}"), "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
            "expectedPods": 1}})
}

impl Api {
    pub fn new(
        pods: Vec<Pod>,
        script: impl Fn(&Call) -> Option<(u16, Value, Duration)> + Send + Sync + 'static,
    ) -> Self {
        Self {
            script: Box::new(script),
            calls: Mutex::default(),
            pods: watch::Sender::new(pods.into_iter().collect()),
            holds: watch::Sender::new(Holds::default()),
            budgets: None,
            since: Instant::now(),
        }
    }

    pub fn with_budgets(self, budgets: Vec<Value>) -> Self {
        Self { budgets: Some(watch::Sender::new(budgets)), ..self }
    }

    pub fn client(self: &Arc<Self>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn note(&self, verb: Verb, pod: String, body: Value) -> Call {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let asks = |call: &&Call| call.pod == pod && matches!(call.verb, Verb::Evict | Verb::Delete);
        let earlier = calls.iter().filter(asks).count();
        let call = Call { at: self.since.elapsed(), verb, pod, body, earlier };
        calls.push(call.clone());
        call
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answers> {
        let uri = request.uri().clone();
        if uri.path().ends_with("/poddisruptionbudgets") {
            return self.budgets(uri.query().unwrap_or_default().contains("watch="));
        }
        let verb = match *request.method() {
            Method::POST => Verb::Evict,
            Method::PATCH => Verb::Mark,
            _ => Verb::Delete,
        };
        let mut path = uri.path().split('/').skip(6);
        let pod = path.next().unwrap().to_owned();
        let below = match verb {
            Verb::Evict => Some("eviction"),
            Verb::Mark => Some("status"),
            _ => None,
        };
        assert_eq!(path.next(), below);
        let body = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        let call = self.note(verb, pod, body);
        let Some((code, body, latency)) = (self.script)(&call) else {
            return std::future::pending().await; // a server that hangs
        };
        tokio::time::sleep(latency).await;
        if code < 300 && call.verb != Verb::Mark {
            self.pods.send_modify(|pods| {
                pods.remove(&call.pod);
            });
        }
        respond(code, &body)
    }

    fn budgets(&self, watches: bool) -> Response<Answers> {
        self.note(if watches { Verb::Watch } else { Verb::List }, String::new(), Value::Null);
        let version = "1";
        let Some(budgets) = &self.budgets else {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "forbidden"});
            return respond(403, &status);
        };
        if !watches {
            let list = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudgetList",
                "metadata": {"resourceVersion": version}, "items": *budgets.borrow()});
            return respond(200, &list);
        }
        let all = budgets.subscribe();
        let last = all.borrow().clone();
        let changes = futures::stream::unfold((all, last), async |(mut all, last)| {
            all.changed().await.ok()?;
            let now = all.borrow_and_update().clone();
            let line = |kind: &str, budget: &Value| {
                let mut object = budget.clone();
                object["apiVersion"] = "policy/v1".into();
                object["kind"] = "PodDisruptionBudget".into();
                object["metadata"]["resourceVersion"] = "2".into();
                json!({"type": kind, "object": object}).to_string() + "\n"
            };
            let is_there = |budget: &&Value| now.iter().any(|it| it["metadata"] == budget["metadata"]);
            let mut text: String =
                last.iter().filter(|budget| !is_there(budget)).map(|it| line("DELETED", it)).collect();
            text.extend(now.iter().map(|budget| line("MODIFIED", budget)));
            Some((text, (all, now)))
        });
        let frames = changes.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Evictions and deletions of a pod.
    pub fn asks(&self, pod: &str) -> Vec<Call> {
        let asks = |call: &Call| call.pod == pod && matches!(call.verb, Verb::Evict | Verb::Delete);
        self.calls().into_iter().filter(asks).collect()
    }

    pub async fn drain(self: &Arc<Self>, terms: Terms) -> (Report, Heard) {
        self.drain_until(terms, CancellationToken::new()).await
    }

    pub async fn drain_until(self: &Arc<Self>, terms: Terms, stop: CancellationToken) -> (Report, Heard) {
        let heard = Heard::default();
        let client = self.client();
        let drain = Drain {
            client: &client,
            pods: self.pods.subscribe(),
            terms: watch::Sender::new(terms).subscribe(),
            holds: self.holds.subscribe(),
            crowd: 1,
            stop,
            observer: &heard,
        };
        (drain.run_by(Clock::at(BEGINS)).await, heard)
    }
}

fn respond(code: u16, body: &Value) -> Response<Answers> {
    Response::builder().status(code).body(Full::from(body.to_string()).boxed_unsync()).unwrap()
}

#[derive(Default)]
pub struct Heard {
    pub escalated: Mutex<Vec<(String, Vec<Budget>)>>,
    pub answers: Mutex<HashMap<&'static str, u32>>,
    pub progress: Mutex<Vec<Progress>>,
}

impl Observer for Heard {
    fn answered(&self, _: &Pod, _: bool, answer: &Answer) {
        *self.answers.lock().unwrap().entry(answer.label()).or_default() += 1;
    }
    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        self.escalated.lock().unwrap().push((pod.name.clone(), budgets.to_vec()));
    }
    fn progressed(&self, progress: &Progress) {
        self.progress.lock().unwrap().push(progress.clone());
    }
}

/// UIDs are names here.
pub fn pods(names: impl IntoIterator<Item = impl ToString>) -> Vec<Pod> {
    let pod = |name: String| Pod {
        namespace: "default".into(),
        uid: name.clone(),
        name,
        grace: Duration::from_secs(30),
        ..Pod::default()
    };
    names.into_iter().map(|name| pod(name.to_string())).collect()
}

/// `count` pods of one controller, all with label `app`, named `app-0`, ….
pub fn replicas(app: &str, count: usize) -> Vec<Pod> {
    let of = |pod: Pod| Pod {
        labels: [("app".to_owned(), app.to_owned())].into(),
        controller: Some(Controller { kind: "ReplicaSet".into(), uid: format!("owner-{app}") }),
        ..pod
    };
    pods((0..count).map(|index| format!("{app}-{index}"))).into_iter().map(of).collect()
}

pub fn policy() -> DrainPolicy {
    DrainPolicy {
        blocked_by_pdb: BlockedByPdb::DeleteAtDeadline,
        escalate_after: Duration::from_secs(8).into(),
        reserve: Duration::from_secs(2).into(),
    }
}

/// When all drains here begin. The wall clock would go on between terms and drain, while the time of the test stands still.
const BEGINS: Timestamp = Timestamp::UNIX_EPOCH;

fn after(seconds: i64) -> Timestamp {
    BEGINS + SignedDuration::from_secs(seconds)
}

pub fn preempt(seconds: i64) -> Terms {
    Terms::Preempt { noticed: BEGINS, deadline: after(seconds), policy: policy() }
}

pub fn planned(seconds: i64) -> Terms {
    Terms::Planned { deadline: after(seconds), policy: policy() }
}

pub fn voluntary(seconds: i64) -> Terms {
    Terms::Voluntary { not_after: after(seconds) }
}
