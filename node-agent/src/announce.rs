//! Kubernetes Events, for people. Posted one after another by a task of their own: a drain never waits for one.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use spotpool_crds::{Reason, names};
use spotpool_drain::{Budget, Pod};
use tokio::sync::mpsc;

/// What waits to be posted at most; beyond it Events are dropped, the log still has them.
const QUEUE: usize = 256;

/// Something to tell people.
struct Announcement {
    about: ObjectReference,
    kind: EventType,
    reason: Reason,
    action: &'static str,
    note: String,
}

/// Posts Events without making anyone wait. Cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    queue: mpsc::Sender<Announcement>,
}

impl Announcer {
    /// An announcer, and the task that posts. The task ends when every announcer is gone.
    pub fn new(client: Client, node: &str) -> (Self, impl Future<Output = ()> + use<>) {
        let (queue, mut waiting) = mpsc::channel::<Announcement>(QUEUE);
        let reporter =
            Reporter { controller: names::AGENT_FIELD_MANAGER.into(), instance: Some(node.into()) };
        let recorder = Recorder::new(client, reporter);
        let post = async move {
            while let Some(news) = waiting.recv().await {
                let event = Event {
                    type_: news.kind,
                    reason: news.reason.to_string(),
                    note: Some(news.note),
                    action: news.action.into(),
                    secondary: None,
                };
                if let Err(error) = recorder.publish(&event, &news.about).await {
                    tracing::debug!(%error, reason = event.reason, "an Event could not be posted");
                }
            }
        };
        (Self { queue }, post)
    }

    /// Says something about the Node.
    pub fn node(&self, name: &str, uid: Option<&str>, is_warning: bool, reason: Reason, note: String) {
        // Node Events carry the name as UID by custom of the kubelet; ours carry the real one, as the
        // controllers' do.
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        self.post(about, is_warning, reason, "Drain", note);
    }

    /// Says something about a pod.
    pub fn pod(&self, pod: &Pod, reason: Reason, note: String) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let action = if reason == Reason::HookFailed { "Tell" } else { "Delete" };
        self.post(about, true, reason, action, note);
    }

    /// Says something about a disruption budget.
    pub fn budget(&self, namespace: &str, budget: &Budget, reason: Reason, note: String) {
        let about = ObjectReference {
            api_version: Some("policy/v1".into()),
            kind: Some("PodDisruptionBudget".into()),
            name: Some(budget.name.clone()),
            namespace: Some(namespace.into()),
            uid: budget.uid.clone(),
            ..ObjectReference::default()
        };
        self.post(about, true, reason, "Delete", note);
    }

    fn post(
        &self,
        about: ObjectReference,
        is_warning: bool,
        reason: Reason,
        action: &'static str,
        note: String,
    ) {
        let kind = if is_warning { EventType::Warning } else { EventType::Normal };
        let news = Announcement { about, kind, reason, action, note };
        if self.queue.try_send(news).is_err() {
            tracing::debug!(%reason, "too many Events wait; one is dropped");
        }
    }
}
