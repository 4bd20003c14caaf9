//! Pods that are told: by their hook, by an annotation, by the relay; and the example Job that loses nothing.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, ValidationDirective,
};
use kube::{Api, ResourceExt};
use serde::Deserialize as _;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget};
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::BlockedByPdb;
use spotpool_crds::voluntary_drain::DrainPhase;
use spotpool_crds::{Reason, names};
use spotpool_e2e::objects::{apply, create};
use spotpool_e2e::{eventually, run};
use spotpool_e2e_cluster::{Program, RUN_FOR_ANNOTATION, STOP_AFTER_ANNOTATION, Signal, Supervised};
use tokio::task::JoinHandle;

use crate::corner::{Corner, shared, whole_seconds};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const MANIFEST: &str = include_str!("../../../docs/examples/checkpointing-job.yaml");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/checkpoint/work.py");

/// A pod's hook.
struct Hook {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Call {
    asked: Timestamp,
    answered: Option<Timestamp>,
    told: Value,
}

impl Hook {
    /// One that answers after this time, or never.
    async fn answering_after(time: Option<Duration>) -> Self {
        Self::answering(move |_| time).await
    }

    /// One that answers its calls, from 0, after the time that is said for each, or never.
    async fn answering(time: impl Fn(usize) -> Option<Duration> + Clone + Send + Sync + 'static) -> Self {
        let calls = Arc::new(Mutex::new(Vec::<Call>::new()));
        let called = calls.clone();
        let answer = async move |Json(told): Json<Value>| {
            let index = {
                let mut calls = called.lock().unwrap();
                calls.push(Call { asked: Timestamp::now(), answered: None, told });
                calls.len() - 1
            };
            match time(index) {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
            called.lock().unwrap()[index].answered = Some(Timestamp::now());
            StatusCode::NO_CONTENT
        };
        let listener = tokio::net::TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().route("/checkpoint", post(answer));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, calls, task }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// A pod with this hook.
    async fn pod(&self, corner: &Corner<'_>, node: &str, name: &str, timeout: &str) -> Pod {
        hooked(corner, node, name, &format!(":{}/checkpoint", self.port), timeout).await
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hooked(corner: &Corner<'_>, node: &str, name: &str, hook: &str, timeout: &str) -> Pod {
    let annotations = json!({names::HOOK_ANNOTATION: hook, names::HOOK_TIMEOUT_ANNOTATION: timeout});
    let pod = corner.pod(node, name, &json!({"metadata": {"annotations": annotations}})).await;
    lives_at(corner, &pod, LOOPBACK).await;
    pod
}

/// Pods of fake nodes have addresses that lead nowhere.
async fn lives_at(corner: &Corner<'_>, pod: &Pod, ip: Ipv4Addr) {
    let status = Patch::Merge(json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}}));
    corner.pod_api().patch_status(&pod.name_any(), &PatchParams::default(), &status).await.unwrap();
}

/// When a pod was asked to go for the first time.
async fn asked_to_go(corner: &Corner<'_>, node: &str, pod: &str) -> Timestamp {
    // The audit log is a moment behind.
    eventually(&format!("{pod} to be asked to go"), async || {
        let evictions = corner.asked_of_pods(node, "create").into_iter();
        Ok(evictions.filter(|asked| asked.name == pod).map(|asked| asked.at).min())
    })
    .await
    .unwrap()
}

#[test]
fn a_pod_with_a_slow_hook_goes_after_its_answer_and_twenty_others_at_once() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "slowhook", 1).await;
        let node = corner.nodes[0].as_str();
        let names: Vec<String> = (0..20).map(|index| format!("plain-{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut pods = corner.pods(node, &names).await;
        let hook = Hook::answering_after(Some(Duration::from_secs(4))).await;
        let slow = hook.pod(&corner, node, "slow", "20s").await;
        pods.push(slow.clone());

        let event = corner.evict(&[node], Duration::from_secs(40)).await.remove(0);
        let notice = corner.phase_is(node, Phase::Drained).await;
        corner.gone(&pods).await;
        let calls = hook.calls();
        assert_eq!(calls.len(), 1, "{calls:#?}");
        let (asked, answered) = (calls[0].asked, calls[0].answered.unwrap());
        for name in names {
            let at = asked_to_go(&corner, node, name).await;
            assert!(at < answered, "{name} was asked at {at}, the hook answered at {answered}");
        }
        let at = asked_to_go(&corner, node, "slow").await;
        assert!(answered <= at && at < notice.deadline, "answered at {answered}, asked to go at {at}");
        // What it was told.
        let told = &calls[0].told;
        assert_eq!((&told["id"], &told["type"]), (&json!(event.event_id), &json!("Preempt")));
        assert_eq!(told["notice"]["eventId"], json!(event.event_id));
        let pod = json!({"namespace": corner.stage.name, "name": "slow", "uid": slow.uid()});
        for key in ["namespace", "name", "uid"] {
            assert_eq!(told["pod"][key], pod[key]);
        }
        let time = |key: &str| told["pod"][key].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(time("deadline"), notice.deadline - SignedDuration::from_secs(2));
        assert!(asked < time("answerBy") && time("answerBy") < time("deadline"), "{told}");
        corner.counted(node, "spotpool_agent_hooks_total", "\"answered\"", 1.0).await;
        corner.nothing_was_lost().await;
    });
}

#[test]
fn a_hook_that_fails_lets_its_pod_go_and_is_told_to_people() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "badhook", 1).await;
        let node = corner.nodes[0].as_str();
        let hanging = Hook::answering_after(None).await;
        let pods = [
            hanging.pod(&corner, node, "hangs", "5s").await,
            // 404 is an answer.
            hooked(&corner, node, "lost", &format!(":{}/nowhere", hanging.port), "30s").await,
            hooked(&corner, node, "refuses", ":1/checkpoint", "30s").await,
            hooked(&corner, node, "unreadable", "checkpoint", "30s").await,
        ];
        let event = corner.evict(&[node], Duration::from_mins(1)).await.remove(0);
        corner.phase_is(node, Phase::Drained).await;
        corner.gone(&pods).await;
        for (pod, result, says) in [
            ("hangs", "silent", "no answer in 5s"),
            ("lost", "status", "it answered 404"),
            ("refuses", "unreachable", "refused"),
            ("unreadable", "malformed", "must be a port and a path"),
        ] {
            let told = corner.event(Reason::HookFailed, pod).await;
            let note = told.note.unwrap_or_default();
            assert!(note.contains(says) && note.contains(&event.event_id), "{pod}: {note}");
            let part = format!("\"{result}\"");
            corner.counted(node, "spotpool_agent_hooks_total", &part, 1.0).await;
            assert!(corner.metric(node, "spotpool_agent_hooks_total", &part).await < 1.5, "once: {pod}");
        }
        let asked = hanging.calls()[0].asked;
        let at = asked_to_go(&corner, node, "hangs").await;
        assert!(
            at.duration_since(asked) >= SignedDuration::from_millis(4900),
            "{asked}, asked to go at {at}"
        );
        for pod in ["lost", "refuses", "unreadable"] {
            let other = asked_to_go(&corner, node, pod).await;
            assert!(other < at, "{pod} was asked at {other}, the one whose hook hangs at {at}");
        }
        corner.nothing_was_lost().await;
    });
}

#[test]
fn no_hook_holds_its_pod_beyond_the_last_moment() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "lasthook", 1).await;
        let node = corner.nodes[0].as_str();
        let hook = Hook::answering_after(None).await;
        let pod = hook.pod(&corner, node, "waits", "10m").await;
        corner.evict(&[node], Duration::from_secs(20)).await;
        let notice = corner.phase_is(node, Phase::Drained).await;
        corner.gone(&[pod]).await;
        // 5 s for the pod, 2 s in reserve.
        let last = notice.deadline - SignedDuration::from_secs(7);
        let at = asked_to_go(&corner, node, "waits").await;
        assert!(last <= at && at < notice.deadline, "asked to go at {at}, the last moment was {last}");
        let note = corner.event(Reason::HookFailed, "waits").await.note.unwrap_or_default();
        assert!(note.contains("before the pod had to be asked to go"), "{note}");
        corner.counted(node, "spotpool_agent_hooks_total", "\"too_late\"", 1.0).await;
        corner.nothing_was_lost().await;
    });
}

#[test]
fn an_agent_that_starts_anew_asks_again_and_the_pod_waits_for_that_answer() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "twice", 1).await;
        let node = corner.nodes[0].as_str();
        // The first is never answered: however long its kill takes, the pod is there.
        let hook = Hook::answering(|call| (call > 0).then_some(Duration::from_secs(1))).await;
        let pod = hook.pod(&corner, node, "slow", "30s").await;
        corner.evict(&[node], Duration::from_mins(1)).await;
        let calls = async |least: usize| {
            let enough = async || Ok(Some(hook.calls()).filter(|calls| calls.len() >= least));
            eventually("the hook to be called", enough).await.unwrap()
        };
        calls(1).await;
        // What the first agent has written is where the next begins.
        corner.phase_is(node, Phase::Noticed).await;
        corner.agents().signal(node, Signal::SIGKILL).unwrap();
        let calls = calls(2).await;
        assert_eq!(calls[0].told["id"], calls[1].told["id"]);
        assert_eq!(calls[0].told["pod"]["uid"], calls[1].told["pod"]["uid"]);
        corner.gone(&[pod]).await;
        let answered = hook.calls()[1].answered.unwrap();
        let at = asked_to_go(&corner, node, "slow").await;
        assert!(answered <= at, "answered at {answered}, asked to go at {at}");
        corner.nothing_was_lost().await;
    });
}

#[test]
fn a_drain_that_was_asked_for_waits_for_hooks_too() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "askhook", 1).await;
        let node = corner.nodes[0].as_str();
        let hook = Hook::answering_after(Some(Duration::from_secs(2))).await;
        let pod = hook.pod(&corner, node, "slow", "20s").await;
        let not_after = Timestamp::now() + SignedDuration::from_mins(10);
        let request = json!({"id": "one", "reason": "Failback", "voluntary": true, "notAfter": not_after});
        corner.annotate(node, json!({names::DRAIN_REQUEST_ANNOTATION: request.to_string()})).await;
        corner.gone(&[pod]).await;
        corner.answer_is(node, "the drain's end", |answer| answer.phase == DrainPhase::Drained).await;
        let calls = hook.calls();
        assert_eq!(calls.len(), 1, "{calls:#?}");
        let told = &calls[0].told;
        assert_eq!(
            (&told["id"], &told["type"], &told["notice"]),
            (&json!("one"), &json!("VoluntaryDrain"), &Value::Null)
        );
        assert_eq!(told["drain"], request);
        let (answered, at) = (calls[0].answered.unwrap(), asked_to_go(&corner, node, "slow").await);
        assert!(answered <= at, "answered at {answered}, asked to go at {at}");
    });
}

#[test]
fn a_pod_that_wants_it_reads_its_deadline_until_the_notice_is_taken_back() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "notify", 1).await;
        let node = corner.nodes[0].as_str();
        // Pods that stay, since their budget is obeyed to the end.
        corner.policy(node, BlockedByPdb::Leave, Duration::from_secs(1)).await;
        let wants = json!({"metadata": {"labels": {"app": "stays"}, "annotations": {names::NOTIFY_ANNOTATION: "true"}}});
        let wants = corner.pod(node, "wants", &wants).await;
        let other = corner.pod(node, "other", &json!({"metadata": {"labels": {"app": "stays"}}})).await;
        corner.budget("stays", 2, 2).await;
        let deadline_of = async |pod: &Pod| {
            let pod = corner.pod_api().get(&pod.name_any()).await.unwrap();
            pod.annotations().get(names::DEADLINE_ANNOTATION).cloned()
        };
        let told = async |wanted: Option<String>| {
            let is_told = async || Ok((deadline_of(&wants).await == wanted).then_some(()));
            if let Err(error) = eventually("the deadline", is_told).await {
                let now = deadline_of(&wants).await;
                panic!("{error:#}; it is {now:?}, not {wanted:?}; {}", corner.log(node));
            }
        };
        let vm = world.sim.state().await.unwrap().vm(node).unwrap().name.clone();
        let mut last = None;
        let mut incarnation = 100;
        let mut announce = async |event: Option<(&str, Timestamp)>| {
            let events = event.map(|(id, due)| {
                json!({"EventId": id, "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [vm],
                    "NotBefore": due.to_string()})
            });
            incarnation += 1;
            let events: Vec<Value> = events.into_iter().collect();
            let body = json!({"DocumentIncarnation": incarnation, "Events": events}).to_string();
            if let Some(last) = last {
                world.sim.clear_fault(last).await.unwrap();
            }
            let target = FaultTarget::scheduled_events(Some(node));
            let fault = Fault { target, times: None, action: FaultAction::body(body) };
            last = Some(world.sim.add_fault(&fault).await.unwrap());
        };
        // Of which 4 s are in reserve.
        let before = |due: Timestamp| Some((due - SignedDuration::from_secs(4)).to_string());
        for (event, killed) in [("A", false), ("B", true)] {
            let due = whole_seconds(Timestamp::now()) + SignedDuration::from_mins(2);
            announce(Some((event, due))).await;
            told(before(due)).await;
            let nearer = due - SignedDuration::from_mins(1);
            announce(Some((event, nearer))).await;
            told(before(nearer)).await;
            assert_eq!(deadline_of(&other).await, None);
            // Taken back, seen by this agent or only by the next.
            corner.phase_is(node, Phase::Draining).await;
            if killed {
                corner.agents().signal(node, Signal::SIGKILL).unwrap();
            }
            announce(None).await;
            corner.phase_is(node, Phase::Cancelled).await;
            told(None).await;
        }
        assert!(corner.is_untouched(&wants).await && corner.is_untouched(&other).await);
        // Nothing else was ever written on a pod, and nothing on one that did not ask.
        let patched = corner.asked_of_pods(node, "patch");
        assert!(
            patched.iter().all(|asked| asked.resource != "pods" || asked.name == "wants"),
            "{patched:#?}"
        );
    });
}

/// The Job of the example, as far as a test must change it.
async fn job(corner: &Corner<'_>, files: &Path, change: impl Fn(&mut Value)) {
    let namespace = corner.stage.name.as_str();
    let volumes: Api<PersistentVolume> = Api::all(corner.stage.world.client.clone());
    let claim = json!({"namespace": namespace, "name": "checkpointing-job"});
    let spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
        "storageClassName": "azurefile-csi", "hostPath": {"path": files}, "claimRef": claim});
    create(&volumes, json!({"metadata": {"name": namespace}, "spec": spec})).await.unwrap();
    apply(&corner.stage.world.client, MANIFEST, |document| {
        document["metadata"]["namespace"] = namespace.into();
        if document["kind"] == "Job" {
            let template = &mut document["spec"]["template"];
            template["spec"]["nodeSelector"] = json!({names::AGENT_POOL_LABEL: namespace});
            template["metadata"]["labels"] = json!({"app": namespace});
            // The test is the kubelet of these.
            template["metadata"]["annotations"][STOP_AFTER_ANNOTATION] = "never".into();
            template["metadata"]["annotations"][RUN_FOR_ANNOTATION] = "1h".into();
            change(template);
        }
    })
    .await
    .unwrap();
}

/// A pod of the Job, and the script as its container.
struct Container<'a> {
    corner: &'a Corner<'a>,
    pod: Pod,
    node: String,
    process: Supervised,
    log: PathBuf,
}

impl<'a> Container<'a> {
    /// Starts the script as soon as the Job has a pod that runs, other than `last`.
    async fn start(corner: &'a Corner<'a>, files: &Path, last: Option<&Pod>, ip: Ipv4Addr) -> Self {
        let of_job = ListParams::default().labels("job-name=checkpointing-job");
        let pod = eventually("a pod of the Job to run", async || {
            let pods = corner.pod_api().list(&of_job).await?.items;
            let is_next = |pod: &Pod| last.is_none_or(|last| last.uid() != pod.uid());
            Ok(pods.into_iter().find(|pod| is_next(pod) && spotpool_e2e::objects::is_ready(pod)))
        })
        .await
        .unwrap();
        lives_at(corner, &pod, ip).await;
        let spec = pod.spec.as_ref().unwrap();
        let node = spec.node_name.clone().unwrap();
        let log = files.join(format!("{}.log", pod.name_any()));
        // The node's relay has a port of its own in tests.
        let relay = corner.agents().notice_url(&node).unwrap();
        let mut program = Program::new(pod.name_any(), "python3").arg(SCRIPT).log(&log);
        for variable in spec.containers[0].env.iter().flatten() {
            let value = match variable.name.as_str() {
                "HOOK_ADDRESS" => ip.to_string(),
                "NOTICE_URL" => relay.clone(),
                _ => variable.value.clone().unwrap(),
            };
            program = program.env(&variable.name, value);
        }
        let process = program.env("STATE_DIR", files).spawn().unwrap();
        Self { corner, pod, node, process, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Units in the order in which they were worked on.
    fn units(&self) -> Vec<u64> {
        self.log().lines().filter_map(|line| line.strip_prefix("unit ")?.parse().ok()).collect()
    }

    /// Plays the kubelet to the end of the pod; the exit code of its container.
    async fn run(&self) -> i32 {
        let name = self.pod.name_any();
        let pods = self.corner.pod_api();
        let mut is_told = false;
        loop {
            let is_ending = pods.get(&name).await.unwrap().metadata.deletion_timestamp.is_some();
            if is_ending && !is_told {
                is_told = true;
                self.process.term().unwrap();
            }
            if let Some(status) = self.process.exit_status() {
                let code = status.code().unwrap();
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                let terminated = json!({"exitCode": code, "reason": "x"});
                let container = json!({"name": "work", "image": "x", "imageID": "", "ready": false,
                    "restartCount": 0, "started": false, "state": {"terminated": terminated}});
                let status = json!({"status": {"phase": phase, "containerStatuses": [container]}});
                pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
                if is_ending {
                    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                    pods.delete(&name, &at_once).await.unwrap();
                }
                return code;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The Job was evicted once, between `first` and `second`: all is done, nothing twice, and Kubernetes counts no failure.
async fn nothing_lost(
    corner: &Corner<'_>,
    files: &Path,
    first: &Container<'_>,
    second: &Container<'_>,
    units: u64,
) {
    let jobs: Api<Job> = Api::namespaced(corner.stage.world.client.clone(), &corner.stage.name);
    let status = eventually("the Job to be complete", async || {
        let status = jobs.get("checkpointing-job").await?.status.unwrap_or_default();
        Ok(Some(status).filter(|status| status.completion_time.is_some()))
    })
    .await
    .unwrap();
    assert_eq!((status.succeeded, status.failed.unwrap_or_default()), (Some(1), 0), "{status:?}");
    let (before, after) = (first.units(), second.units());
    assert!(!before.is_empty() && !after.is_empty(), "{}\n{}", first.log(), second.log());
    let all: Vec<u64> = before.into_iter().chain(after).collect();
    assert_eq!(all, (0..units).collect::<Vec<_>>(), "each once, in order");
    let result: u64 = (0..units).map(|unit| unit * unit).sum();
    assert!(second.log().contains(&format!("finished with {result}\n")), "{}", second.log());
    let kept: Value = serde_json::from_slice(&std::fs::read(files.join("checkpoint.json")).unwrap()).unwrap();
    assert_eq!(kept, json!({"done": units, "result": result}));
    assert_ne!(first.node, second.node);
    corner.nothing_was_lost().await;
}

/// An address of this process's own, so that a hook's port is free on it.
fn own_address(last: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high & 63, low, last)
}

const UNITS: u64 = 60;

fn set(template: &mut Value, name: &str, value: &str) {
    let env = template["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.retain(|variable| variable["name"] != name);
    env.push(json!({"name": name, "value": value}));
}

#[test]
fn the_example_job_checkpoints_by_its_hook_and_goes_on_elsewhere_with_nothing_lost() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "jobhook", 2).await;
        let files = tempfile::tempdir().unwrap();
        job(&corner, files.path(), |template| {
            set(template, "UNITS", &UNITS.to_string());
            set(template, "UNIT_SECONDS", "0.2");
        })
        .await;
        let first = Container::start(&corner, files.path(), None, own_address(1)).await;
        eventually("some work to be done", async || Ok((first.units().len() > 3).then_some(())))
            .await
            .unwrap();
        let node = first.node.as_str();
        let event = corner.evict(&[node], Duration::from_secs(40)).await.remove(0);
        let code = first.run().await;
        let written: SystemTime =
            std::fs::metadata(files.path().join("checkpoint.json")).unwrap().modified().unwrap();
        let written = Timestamp::try_from(written).unwrap();
        let at = asked_to_go(&corner, node, &first.pod.name_any()).await;
        assert!(written < at, "the checkpoint was written at {written}, the pod was asked to go at {at}");
        assert_eq!(code, 75, "more to do: {}", first.log());
        let told = format!("told of Preempt {}\n", event.event_id);
        let (_, rest) = first.log().split_once(&told).map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let (_, rest) = rest.split_once("checkpoint at ").unwrap();
        assert!(!rest.contains("unit "), "no work after the checkpoint: {rest}");

        let second = Container::start(&corner, files.path(), Some(&first.pod), own_address(2)).await;
        assert_eq!(second.run().await, 0, "{}", second.log());
        nothing_lost(&corner, files.path(), &first, &second, UNITS).await;
    });
}

#[test]
fn the_example_job_checkpoints_by_the_relay_and_goes_on_elsewhere_with_nothing_lost() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "jobrelay", 2).await;
        let files = tempfile::tempdir().unwrap();
        job(&corner, files.path(), |template| {
            set(template, "UNITS", &UNITS.to_string());
            set(template, "UNIT_SECONDS", "0.2");
            set(template, "NOTICE_URL", "http://$(HOST_IP):9437/v1/notice");
            let env = template["spec"]["containers"][0]["env"].as_array_mut().unwrap();
            env.retain(|variable| !variable["name"].as_str().unwrap().starts_with("HOOK_"));
            let annotations = template["metadata"]["annotations"].as_object_mut().unwrap();
            annotations.retain(|key, _| !key.starts_with("spotpool.dev/hook"));
        })
        .await;
        let first = Container::start(&corner, files.path(), None, own_address(3)).await;
        // A budget holds the pod for a while: who hears of the notice by the relay alone has that long.
        corner.budget(&corner.stage.name, 1, 1).await;
        eventually("some work to be done", async || Ok((first.units().len() > 3).then_some(())))
            .await
            .unwrap();
        let node = first.node.as_str();
        let event = corner.evict(&[node], Duration::from_secs(40)).await.remove(0);
        let code = first.run().await;
        assert_eq!(code, 75, "more to do: {}", first.log());
        let heard = format!("heard of Preempt {}\n", event.event_id);
        let log = first.log();
        let (_, rest) = log.split_once(&heard).unwrap();
        let (_, rest) = rest.split_once("checkpoint at ").unwrap();
        assert!(!rest.contains("unit "), "no work after the checkpoint: {rest}");

        let second = Container::start(&corner, files.path(), Some(&first.pod), own_address(4)).await;
        assert_eq!(second.run().await, 0, "{}", second.log());
        nothing_lost(&corner, files.path(), &first, &second, UNITS).await;
    });
}

#[test]
fn the_examples_manifest_is_what_a_cluster_takes() {
    run(async {
        let world = shared().await;
        let corner = Corner::set(&world, "example", 0).await;
        let params = PatchParams {
            dry_run: true,
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply("e2e")
        };
        let mut kinds = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(MANIFEST) {
            let object = DynamicObject::deserialize(document).unwrap();
            let types = object.types.clone().unwrap();
            let resource = match types.kind.as_str() {
                "Job" => ApiResource::erase::<Job>(&()),
                kind => {
                    assert_eq!(kind, "PersistentVolumeClaim");
                    ApiResource::erase::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(&())
                }
            };
            let api: Api<DynamicObject> =
                Api::namespaced_with(world.client.clone(), &corner.stage.name, &resource);
            api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.unwrap();
            // The check is one: a slip of the pen would be found.
            let mut wrong = object.clone();
            wrong.data["spec"]["slip"] = json!(1);
            assert!(api.patch(&object.name_any(), &params, &Patch::Apply(&wrong)).await.is_err());
            kinds.push(types.kind);
        }
        assert_eq!(kinds, ["PersistentVolumeClaim", "Job"]);
    });
}
