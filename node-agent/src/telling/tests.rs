//! Telling against real hooks on the loopback and an API that keeps what it is asked. Sockets know no paused time:
//! what must be quick is compared with timeouts of minutes.

use std::convert::Infallible;
use std::sync::Mutex;

use http::{Request, Response};
use kube::client::Body;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, Phase, PodCounts, Source};
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::{BlockedByPdb, EventResponse};
use spotpool_crds::voluntary_drain::DrainReason;
use spotpool_runtime::catalogue::Catalogue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::task::JoinHandle;

use super::*;
use crate::hooks::Reach;

/// Longer than any test takes, shorter than the hooks' own patience.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a hook behaves.
#[derive(Clone)]
enum Manner {
    Answers,
    /// When all have been asked.
    AnswersTogether(Arc<Barrier>),
    Fails,
    Hangs,
}

/// A hook and what it was told.
struct Service {
    port: u16,
    told: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (heard, manner) = (heard.clone(), manner.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    let body = loop {
                        assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                        let Some(head) = request.windows(4).position(|it| it == b"\r\n\r\n") else {
                            continue;
                        };
                        // The body comes whole: it is small.
                        if let Ok(body) = serde_json::from_slice(&request[head + 4..]) {
                            break body;
                        }
                    };
                    heard.lock().unwrap().push(body);
                    if let Manner::AnswersTogether(all) = &manner {
                        all.wait().await;
                    }
                    let answer = match manner {
                        Manner::Answers | Manner::AnswersTogether(_) => {
                            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
                        }
                        Manner::Fails => "HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nfull",
                        Manner::Hangs => return std::future::pending().await,
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        Self { port, told, task }
    }

    fn told(&self) -> Vec<Value> {
        self.told.lock().unwrap().clone()
    }

    fn pod(&self, uid: &str, timeout: &str) -> Pod {
        Pod {
            hook: Some(format!(":{}/checkpoint", self.port)),
            hook_timeout: Some(timeout.into()),
            ..plain(uid)
        }
    }
}

fn plain(uid: &str) -> Pod {
    Pod {
        namespace: "default".into(),
        name: format!("pod-{uid}"),
        uid: uid.into(),
        grace: Duration::from_secs(30),
        ip: Some("127.0.0.1".parse().unwrap()),
        ..Pod::default()
    }
}

fn notice(event_id: &str) -> EvictionNotice {
    let now = Timestamp::now();
    EvictionNotice {
        by: Claimant::NodeAgent,
        event_id: event_id.into(),
        event_type: "Preempt".into(),
        source: Source::Imds,
        response: EventResponse::Drain,
        observed_at: now,
        not_before: None,
        deadline: now,
        phase: Phase::Noticed,
        pods: PodCounts::default(),
        cordoned: true,
        boot_id: "b".into(),
        traceparent: None,
        doomed: Vec::new(),
        unfinished: Vec::new(),
    }
}

/// A Preempt whose VM goes in so many seconds, of which two are kept free.
fn preempt(seconds: i64) -> Terms {
    let policy = DrainPolicy {
        blocked_by_pdb: BlockedByPdb::DeleteAtDeadline,
        escalate_after: Duration::from_secs(8).into(),
        reserve: Duration::from_secs(2).into(),
    };
    let noticed = Timestamp::now();
    Terms::Preempt { noticed, deadline: noticed + SignedDuration::from_secs(seconds), policy }
}

/// A telling, its surroundings, and the patches that the API was sent.
struct Scene {
    telling: Arc<Telling>,
    pods: watch::Sender<Pods>,
    notice: watch::Sender<EvictionNotice>,
    terms: watch::Sender<Terms>,
    registry: Registry,
    patches: Arc<Mutex<Vec<(String, Value)>>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.telling.stop.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Scene {
    /// `code`: how the API answers; none is not at all.
    fn set(pods: Vec<Pod>, terms: Terms, request: Option<DrainRequest>, code: Option<u16>) -> Self {
        let patches = Arc::new(Mutex::new(Vec::new()));
        let sent = patches.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let sent = sent.clone();
            async move {
                let pod = request.uri().path().rsplit('/').next().unwrap().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                sent.lock().unwrap().push((pod, serde_json::from_slice(&body).unwrap()));
                let Some(code) = code else { return std::future::pending().await };
                let body = if code == 200 {
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {}})
                } else {
                    json!({"kind": "Status", "status": "Failure", "code": code, "message": "no"})
                };
                let response = Response::builder().status(code);
                Ok::<_, Infallible>(response.body(Body::from(body.to_string().into_bytes())).unwrap())
            }
        });
        let client = Client::new(service, "default");
        let mut catalogue = Catalogue::new("spotpool_agent");
        let metrics = Metrics::register(&mut catalogue);
        let pods = watch::Sender::new(pods.into_iter().collect::<Pods>());
        let (notice, terms) = (watch::Sender::new(notice("A")), watch::Sender::new(terms));
        let telling = Telling {
            announcer: Announcer::new(client.clone(), "node").0,
            client,
            pods: pods.subscribe(),
            metrics,
            caller: Caller::new(Reach::PodsAndLoopback),
            node: "node".into(),
            cause: request.map_or_else(|| Cause::Notice(notice.subscribe()), Cause::Request),
            terms: terms.subscribe(),
            stop: CancellationToken::new(),
            trace: None,
            holds: watch::Sender::new(Holds::default()),
            prepared: Mutex::default(),
        };
        telling.hold_all();
        let registry = catalogue.into_registry();
        Self { telling: Arc::new(telling), pods, notice, terms, registry, patches, task: None }
    }

    fn run(&mut self) {
        let telling = self.telling.clone();
        self.task = Some(tokio::spawn(async move { telling.run().await }));
    }

    async fn held(&self, wanted: &[&str]) {
        let wanted: Holds = wanted.iter().copied().collect();
        let mut holds = self.telling.holds();
        let held = tokio::time::timeout(PATIENCE, holds.wait_for(|holds| *holds == wanted)).await;
        assert!(held.is_ok(), "want {wanted:?}, are {:?}", *self.telling.holds.borrow());
    }

    fn counted(&self, metric: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(metric));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    fn hooks(&self, result: &str) -> u64 {
        self.counted(&format!("spotpool_agent_hooks_total{{result=\"{result}\"}}"))
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waited = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "{what}");
    }

    fn patches(&self) -> Vec<(String, Value)> {
        self.patches.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_hook_that_hangs_holds_its_own_pod_and_no_other() {
    let (good, bad, hanging) = (
        Service::start(Manner::Answers).await,
        Service::start(Manner::Fails).await,
        Service::start(Manner::Hangs).await,
    );
    let nobody = Pod { hook: Some(":1/x".into()), ..plain("nobody") };
    let mut scene = Scene::set(
        vec![
            good.pod("good", "10m"),
            bad.pod("bad", "10m"),
            hanging.pod("hangs", "10m"),
            nobody,
            plain("plain"),
        ],
        preempt(3600),
        None,
        Some(200),
    );
    // Before anything is asked: a drain that begins at this moment must not be faster.
    scene.held(&["bad", "good", "hangs", "nobody"]).await;
    scene.run();
    scene.held(&["hangs"]).await;
    assert_eq!(
        ["answered", "status", "unreachable", "silent"].map(|result| scene.hooks(result)),
        [1, 1, 1, 0]
    );
    let is_prepared = |uid: &&str| scene.telling.is_prepared(uid);
    let prepared: Vec<_> =
        ["good", "bad", "hangs", "nobody", "plain"].into_iter().filter(is_prepared).collect();
    assert_eq!(prepared, ["good"], "whoever did not answer has saved nothing");
    assert_eq!(scene.counted("spotpool_agent_hook_seconds_count"), 1);
    // What it was told.
    let told = good.told().remove(0);
    assert_eq!((&told["id"], &told["type"]), (&json!("A"), &json!("Preempt")));
    assert_eq!(told["notice"], serde_json::to_value(&*scene.notice.borrow()).unwrap());
    assert!(told.get("drain").is_none());
    assert_eq!(
        (&told["pod"]["namespace"], &told["pod"]["name"], &told["pod"]["uid"]),
        (&json!("default"), &json!("pod-good"), &json!("good"))
    );
    let time = |key: &str| told["pod"][key].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(time("deadline"), gone_by(&scene.terms.borrow()));
    assert!(time("answerBy") < time("deadline") && time("answerBy") > Timestamp::now());
}

#[tokio::test]
async fn all_pods_of_a_full_node_are_asked_at_the_same_time() {
    const PODS: usize = 250;
    let hook = Service::start(Manner::AnswersTogether(Arc::new(Barrier::new(PODS)))).await;
    let pods = (0..PODS).map(|index| hook.pod(&index.to_string(), "10m")).collect();
    let mut scene = Scene::set(pods, preempt(3600), None, Some(200));
    scene.run();
    scene.held(&[]).await;
    assert_eq!(scene.hooks("answered"), PODS as u64);
}

#[tokio::test]
async fn a_hook_is_given_its_own_time_or_what_the_deadline_leaves() {
    let hanging = Service::start(Manner::Hangs).await;
    // Its own time.
    let mut scene = Scene::set(vec![hanging.pod("hangs", "1s")], preempt(3600), None, Some(200));
    scene.run();
    scene.held(&[]).await;
    assert_eq!(scene.hooks("silent"), 1);
    // 9 s to the deadline, of which 5 are the pod's own end and 2 the reserve.
    let mut scene = Scene::set(vec![hanging.pod("hangs", "10m")], preempt(9), None, Some(200));
    let latest = Timestamp::now() + Duration::from_secs(3);
    scene.run();
    scene.held(&[]).await;
    assert_eq!(scene.hooks("too_late"), 1);
    let told = hanging.told().remove(1);
    let answer_by: Timestamp = told["pod"]["answerBy"].as_str().unwrap().parse().unwrap();
    assert!(answer_by <= latest, "{answer_by}");
    // A deadline that comes nearer.
    let mut scene = Scene::set(vec![hanging.pod("hangs", "10m")], preempt(3600), None, Some(200));
    scene.run();
    scene.until("it to be asked", || hanging.told().len() == 3).await;
    scene.terms.send_replace(preempt(3));
    scene.held(&[]).await;
    assert_eq!(scene.hooks("too_late"), 1);
}

#[tokio::test]
async fn a_hook_that_nobody_can_read_holds_nothing_and_is_said_once() {
    let wrong = Pod { hook: Some("8080".into()), ..plain("wrong") };
    let timeout = Pod { hook: Some(":1/x".into()), hook_timeout: Some("ever".into()), ..plain("timeout") };
    let imds = Pod { hook: Some(":80/x".into()), ip: "169.254.169.254".parse().ok(), ..plain("imds") };
    let mut scene = Scene::set(vec![wrong.clone(), timeout, imds], preempt(3600), None, Some(200));
    scene.held(&[]).await;
    scene.run();
    scene.until("all to be counted", || scene.hooks("malformed") == 3).await;
    scene.pods.send_modify(|pods| {
        pods.put(Pod { grace: Duration::ZERO, ..wrong });
    });
    let good = Service::start(Manner::Answers).await;
    scene.pods.send_modify(|pods| {
        pods.put(good.pod("good", "10m"));
    });
    scene.until("the other to be asked", || scene.hooks("answered") == 1).await;
    assert_eq!(scene.hooks("malformed"), 3);
    scene.held(&[]).await;
}

#[tokio::test]
async fn every_pod_is_told_once_of_each_event_whenever_it_comes() {
    let good = Service::start(Manner::Answers).await;
    let ending = Pod { terminating: true, ..good.pod("ending", "10m") };
    let finished = Pod { exempt: Some(Exempt::Finished), ..good.pod("finished", "10m") };
    let daemon = Pod { exempt: Some(Exempt::DaemonSet), ..good.pod("daemon", "10m") };
    let homeless = Pod { ip: None, ..good.pod("late", "10m") };
    let mut scene = Scene::set(vec![ending, finished, daemon, homeless], preempt(3600), None, Some(200));
    scene.run();
    let told = || -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        good.told().iter().map(|told| (text(&told["id"]), text(&told["pod"]["uid"]))).collect()
    };
    let pair = |id: &str, uid: &str| (id.to_owned(), uid.to_owned());
    scene.until("the first to be told", || told() == [pair("A", "daemon")]).await;
    // It has an address at last.
    scene.pods.send_modify(|pods| {
        pods.put(good.pod("late", "10m"));
    });
    scene.until("the second to be told", || told().contains(&pair("A", "late"))).await;
    scene.held(&[]).await;
    // The same event goes on.
    scene.notice.send_modify(|notice| notice.phase = Phase::Draining);
    scene.terms.send_replace(preempt(1800));
    // Another event.
    scene.notice.send_modify(|notice| notice.event_id = "B".into());
    scene.until("all to be told anew", || told().len() == 4).await;
    scene.held(&[]).await;
    let mut all = told();
    all.sort();
    assert_eq!(all, [pair("A", "daemon"), pair("A", "late"), pair("B", "daemon"), pair("B", "late")]);
}

#[tokio::test]
async fn a_drain_that_was_asked_for_tells_pods_that_go_and_writes_no_deadlines() {
    let good = Service::start(Manner::Answers).await;
    let daemon = Pod { exempt: Some(Exempt::DaemonSet), ..good.pod("daemon", "10m") };
    let goes = Pod { notify: true, ..good.pod("goes", "10m") };
    let not_after = Timestamp::now() + Duration::from_mins(15);
    let (id, reason) = ("f1".into(), DrainReason::Failback);
    let request = DrainRequest { id, reason, voluntary: true, not_after, spot_pool: None };
    let mut scene =
        Scene::set(vec![daemon, goes], Terms::Voluntary { not_after }, Some(request.clone()), Some(200));
    scene.held(&["goes"]).await;
    scene.run();
    scene.held(&[]).await;
    let told = good.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["id"], &told[0]["type"]), (&json!("f1"), &json!("VoluntaryDrain")));
    assert_eq!(told[0]["notice"], Value::Null);
    assert_eq!(told[0]["drain"], serde_json::to_value(&request).unwrap());
    assert_eq!(told[0]["pod"]["deadline"], json!(not_after));
    assert!(scene.patches().is_empty());
}

#[tokio::test]
async fn pods_that_want_it_get_the_deadline_and_each_that_is_nearer() {
    let wants = |uid: &str| Pod { notify: true, ..plain(uid) };
    let terms = preempt(30);
    let text = gone_by(&terms).to_string();
    let pods = vec![
        wants("a"),
        Pod { exempt: Some(Exempt::DaemonSet), ..wants("daemon") },
        Pod { exempt: Some(Exempt::Finished), ..wants("finished") },
        Pod { exempt: Some(Exempt::Mirror), ..wants("mirror") },
        // By the agent before this one.
        Pod { told: Some(text.clone()), ..wants("told") },
        plain("plain"),
    ];
    let mut scene = Scene::set(pods, terms, None, Some(200));
    scene.run();
    let patch = |uid: &str, text: &str| {
        let metadata = json!({"uid": uid, "annotations": {"spotpool.dev/deadline": text}});
        (format!("pod-{uid}"), json!({"metadata": metadata}))
    };
    scene.until("both to be written", || scene.patches().len() == 2).await;
    assert_eq!(scene.patches(), [patch("a", &text), patch("daemon", &text)]);
    scene.terms.send_replace(preempt(10));
    let nearer = gone_by(&scene.terms.borrow()).to_string();
    scene.until("all to be written anew", || scene.patches().len() == 5).await;
    let mut again = scene.patches().split_off(2);
    again.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(again, [patch("a", &nearer), patch("daemon", &nearer), patch("told", &nearer)]);
    assert_eq!(scene.counted("spotpool_agent_deadline_annotations_total{result=\"done\"}"), 5);
}

#[tokio::test]
async fn an_api_that_hangs_or_refuses_is_not_asked_without_end() {
    let wants = |uid: usize| Pod { notify: true, ..plain(&uid.to_string()) };
    let mut hanging = Scene::set((0..50).map(wants).collect(), preempt(30), None, None);
    hanging.run();
    hanging.until("some to be sent", || hanging.patches().len() == notify::CONCURRENCY).await;
    hanging.pods.send_modify(|pods| {
        pods.put(wants(50));
    });
    tokio::task::yield_now().await;
    assert_eq!(hanging.patches().len(), notify::CONCURRENCY);
    for (code, tries, result) in [(403, 1, "failed"), (404, 1, "gone"), (500, 4, "failed")] {
        let mut scene = Scene::set(vec![wants(0)], preempt(30), None, Some(code));
        scene.run();
        let counted = format!("spotpool_agent_deadline_annotations_total{{result=\"{result}\"}}");
        scene.until(result, || scene.counted(&counted) == 1).await;
        assert_eq!(scene.patches().len(), tries, "{code}");
    }
}
