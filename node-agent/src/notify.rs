//! The deadline as an annotation on pods that asked for it. Written beside the evictions, never before them, and
//! taken off again when the notice is.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use spotpool_crds::names;
use spotpool_drain::pods::Exempt;
use spotpool_drain::{Pod, jittered};

use crate::context::Context;

/// Requests in flight at a time: evictions need the API more.
pub const CONCURRENCY: usize = 8;
/// An API that hangs must not take all of the time for one try.
pub const TIMEOUT: Duration = Duration::from_secs(3);
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The end of a cancelled notice waits for the annotations to come off, not longer than this.
const TAKING_OFF: Duration = Duration::from_secs(5);

/// What became of an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Written {
    /// It stands there, or is off.
    Done,
    /// The pod is gone, or another one has its name.
    Gone,
    /// The API did not take it.
    Failed,
}

impl Written {
    /// As a metric label.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Whether `pod` is to be told. One of a DaemonSet is, too: it goes with the VM.
pub fn is_told(pod: &Pod) -> bool {
    pod.notify && !matches!(pod.exempt, Some(Exempt::Finished | Exempt::Mirror))
}

/// Writes the deadline on a pod; `None` takes it off.
pub async fn write(client: &Client, pod: &Pod, deadline: Option<Timestamp>) -> Written {
    let api: Api<core::Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let deadline = deadline.map(|deadline| deadline.to_string());
    // By its UID: a successor of the same name is another pod.
    let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid,
        "annotations": {names::DEADLINE_ANNOTATION: deadline}}}));
    let mut pause = FIRST_WAIT;
    let mut tries = 1;
    loop {
        let (error, is_final) = match write_once(&api, &pod.name, &patch).await {
            Ok(written) => return written,
            Err(refusal) => refusal,
        };
        if is_final || tries == TRIES {
            tracing::warn!(
                pod = format_args!("{}/{}", pod.namespace, pod.name),
                deadline,
                error,
                "the deadline could not be written on a pod"
            );
            return Written::Failed;
        }
        tokio::time::sleep(jittered(pause)).await;
        (tries, pause) = (tries + 1, pause * 2);
    }
}

/// Else why not, and whether that is the last word.
async fn write_once(
    api: &Api<core::Pod>,
    name: &str,
    patch: &Patch<Value>,
) -> Result<Written, (String, bool)> {
    let params =
        PatchParams { field_manager: Some(names::AGENT_FIELD_MANAGER.into()), ..PatchParams::default() };
    match tokio::time::timeout(TIMEOUT, api.patch_metadata(name, &params, patch)).await {
        Ok(Ok(_)) => Ok(Written::Done),
        Ok(Err(Error::Api(status))) => match status.code {
            404 => Ok(Written::Gone),
            409 if status.message.contains("UID in precondition") => Ok(Written::Gone),
            400 | 403 | 422 => Err((status.message, true)),
            _ => Err((status.message, false)),
        },
        Ok(Err(error)) => Err((error.to_string(), false)),
        Err(_) => Err((format!("no answer in {TIMEOUT:?}"), false)),
    }
}

/// Takes the deadline off every pod of the node that has it, or may be about to get it.
pub async fn take_off(context: &Context) {
    let mut pods = context.pods.clone();
    let all = async {
        let Ok(known) = pods.wait_for(|pods| pods.complete).await.map(|pods| pods.clone()) else { return };
        let told: Vec<Arc<Pod>> =
            known.iter().filter(|pod| is_told(pod) || pod.told.is_some()).cloned().collect();
        let client = &context.client;
        let take_off = |pod: Arc<Pod>| async move { write(client, &pod, None).await };
        let mut written = stream::iter(told).map(take_off).buffer_unordered(CONCURRENCY);
        while let Some(written) = written.next().await {
            context.metrics.annotated(written);
        }
    };
    if tokio::time::timeout(TAKING_OFF, all).await.is_err() {
        tracing::warn!("deadlines on pods could not be taken off in {TAKING_OFF:?}");
    }
}
