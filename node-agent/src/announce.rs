//! Kubernetes Events, for people. Posted one after another by a task of their own: a drain never waits for one, and what
//! is told of each pod waits until evictions have had the API to themselves.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use spotpool_crds::{Reason, names};
use spotpool_drain::{Budget, Pod, jittered};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What waits to be posted at most; beyond it Events are dropped, the log still has them.
const QUEUE: usize = 256;
/// How long the Event of an evicted pod waits: where many nodes go at once, their evictions come first.
const PODS_WAIT: Duration = Duration::from_secs(6);

/// Something to tell people.
struct Announcement {
    about: ObjectReference,
    kind: EventType,
    reason: Reason,
    action: &'static str,
    note: String,
    related: Option<ObjectReference>,
}

/// Posts Events without making anyone wait. Cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    queue: mpsc::Sender<Announcement>,
    evicted: mpsc::Sender<(Instant, Announcement)>,
    node: ObjectReference,
}

impl Announcer {
    /// An announcer, and the task that posts. The task ends when every announcer is gone.
    pub fn new(client: Client, node: &str) -> (Self, impl Future<Output = ()> + use<>) {
        let (queue, mut waiting) = mpsc::channel::<Announcement>(QUEUE);
        let (evicted, mut of_pods) = mpsc::channel::<(Instant, Announcement)>(QUEUE);
        let reporter =
            Reporter { controller: names::AGENT_FIELD_MANAGER.into(), instance: Some(node.into()) };
        let recorder = Recorder::new(client, reporter);
        let post = async move {
            let mut next: Option<(Instant, Announcement)> = None;
            loop {
                let due = next.as_ref().map(|(due, _)| *due);
                let news = tokio::select! {
                    biased;
                    news = waiting.recv() => match news {
                        Some(news) => news,
                        None => return,
                    },
                    Some(first) = of_pods.recv(), if next.is_none() => {
                        next = Some(first);
                        continue;
                    }
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        match next.take() {
                            Some((_, news)) => news,
                            None => continue,
                        }
                    }
                };
                publish(&recorder, news).await;
            }
        };
        let node = reference("v1", "Node", node);
        (Self { queue, evicted, node }, post)
    }

    /// Says something about the Node.
    pub fn node(&self, name: &str, uid: Option<&str>, is_warning: bool, reason: Reason, note: String) {
        // Node Events carry the name as UID by custom of the kubelet; ours carry the real one, as the
        // controllers' do.
        let about = ObjectReference { uid: uid.map(str::to_owned), ..reference("v1", "Node", name) };
        self.post(Announcement {
            about,
            kind: kind(is_warning),
            reason,
            action: "Drain",
            note,
            related: None,
        });
    }

    /// Says what is wrong about a pod.
    pub fn pod(&self, pod: &Pod, reason: Reason, note: String) {
        let action = if reason == Reason::HookFailed { "Tell" } else { "Delete" };
        let news = Announcement { kind: kind(true), reason, action, ..self.of_pod(pod, note) };
        self.post(news);
    }

    /// Says of a pod that was asked to go why that is, in a while: by then it may be gone, its Events are not.
    pub fn evicted(&self, pod: &Pod, note: String) {
        let due = Instant::now() + jittered(PODS_WAIT);
        if self.evicted.try_send((due, self.of_pod(pod, note))).is_err() {
            tracing::debug!(reason = %Reason::PodEvicted, "too many Events wait; one is dropped");
        }
    }

    /// Says something about a disruption budget that held a pod.
    pub fn budget(&self, pod: &Pod, budget: &Budget, reason: Reason, note: String) {
        let about = ObjectReference {
            namespace: Some(pod.namespace.clone()),
            uid: budget.uid.clone(),
            ..reference("policy/v1", "PodDisruptionBudget", &budget.name)
        };
        let related = Some(of(pod));
        self.post(Announcement { about, kind: kind(true), reason, action: "Delete", note, related });
    }

    fn of_pod(&self, pod: &Pod, note: String) -> Announcement {
        let (about, related) = (of(pod), Some(self.node.clone()));
        Announcement { about, kind: kind(false), reason: Reason::PodEvicted, action: "Evict", note, related }
    }

    fn post(&self, news: Announcement) {
        let reason = news.reason;
        if self.queue.try_send(news).is_err() {
            tracing::debug!(%reason, "too many Events wait; one is dropped");
        }
    }
}

async fn publish(recorder: &Recorder, news: Announcement) {
    let event = Event {
        type_: news.kind,
        reason: news.reason.to_string(),
        note: Some(news.note),
        action: news.action.into(),
        secondary: news.related,
    };
    if let Err(error) = recorder.publish(&event, &news.about).await {
        tracing::debug!(%error, reason = event.reason, "an Event could not be posted");
    }
}

fn kind(is_warning: bool) -> EventType {
    if is_warning { EventType::Warning } else { EventType::Normal }
}

fn of(pod: &Pod) -> ObjectReference {
    ObjectReference {
        namespace: Some(pod.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..reference("v1", "Pod", &pod.name)
    }
}

fn reference(api_version: &str, kind: &str, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.into()),
        kind: Some(kind.into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    }
}
