//! Asking the API to evict or delete a pod, and what its answers mean.

use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;

use crate::pods::Pod;

/// Longer than the server takes to give up on conflicts over a disruption budget, twenty times half a second. To
/// hang up on it sooner may cost the budget a disruption that never comes.
const TIMEOUT: Duration = Duration::from_secs(12);
const JSON: &str = "application/json";
/// Refusals are small; what is larger is not read.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What the API said about a pod.
#[derive(Clone, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Answer {
    /// The pod is ending.
    Accepted,
    /// There is no such pod any more, or another one has its name.
    Gone,
    /// A disruption budget (or something like it) holds the pod.
    Blocked {
        /// Name of the budget, if the API names it. It is in the pod's namespace.
        pdb: Option<String>,
    },
    /// Too many requests, not this pod: flow control.
    Throttled {
        /// When to come back.
        after: Option<Duration>,
    },
    /// The API will not do it, for a reason that a retry hardly changes.
    Refused(String),
    /// No answer, or one that says nothing about the pod.
    Unavailable(String),
}

impl Answer {
    /// As a metric label and log field.
    pub fn label(&self) -> &'static str {
        self.into()
    }
}

/// Asks to evict `pod`; a grace of `None` is the pod's own.
pub async fn evict(client: &Client, pod: &Pod, grace: Option<u32>) -> Answer {
    // Not `Api::evict`: it loses the options, and with them the UID and the grace.
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        delete_options: Some(options(pod, grace)),
    };
    ask(client, Method::POST, format!("{}/eviction", path(pod)), JSON, serde_json::to_vec(&eviction)).await
}

/// Asks to delete `pod`, whatever its disruption budget says.
pub async fn delete(client: &Client, pod: &Pod, grace: u32) -> Answer {
    ask(client, Method::DELETE, path(pod), JSON, serde_json::to_vec(&options(pod, Some(grace)))).await
}

pub(crate) fn path(pod: &Pod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

fn options(pod: &Pod, grace: Option<u32>) -> DeleteOptions {
    DeleteOptions {
        grace_period_seconds: grace.map(i64::from),
        preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() }),
        ..DeleteOptions::default()
    }
}

pub(crate) async fn ask(
    client: &Client,
    method: Method,
    path: String,
    content: &'static str,
    body: serde_json::Result<Vec<u8>>,
) -> Answer {
    let request = match body {
        Ok(body) => Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content)
            .header(header::ACCEPT, JSON)
            .body(Body::from(body))
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return Answer::Refused(error),
    };
    match tokio::time::timeout(TIMEOUT, answer(client, request)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Unavailable(format!("no answer in {TIMEOUT:?}")),
    }
}

async fn answer(client: &Client, request: Request<Body>) -> Answer {
    let (head, body) = match client.send(request).await {
        Ok(response) => response.into_parts(),
        Err(error) => return Answer::Unavailable(error.to_string()),
    };
    if head.status.is_success() {
        return Answer::Accepted; // what the pod looks like now is the watch's business
    }
    match Limited::new(body, LARGEST_ANSWER).collect().await {
        Ok(body) => classify(head.status, &head.headers, &body.to_bytes()),
        Err(error) => Answer::Unavailable(error.to_string()),
    }
}

/// The parts of a Kubernetes `Status` that tell one refusal from another.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    name: String,
    kind: String,
    causes: Vec<Cause>,
    retry_after_seconds: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// What an answer that is no success means.
fn classify(code: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    // A proxy's page is no Status: its code alone speaks then.
    let Refusal { message, details } = serde_json::from_slice(body).unwrap_or_default();
    let has_cause = |reason: &str| details.causes.iter().any(|cause| cause.reason == reason);
    match code.as_u16() {
        404 => Answer::Gone,
        409 if message.contains("UID in precondition") => Answer::Gone,
        429 if has_cause("DisruptionBudget") => {
            Answer::Blocked { pdb: details.causes.iter().find_map(|cause| budget_in(&cause.message)) }
        }
        429 => Answer::Throttled { after: retry_after(headers, details.retry_after_seconds) },
        // More disrupted pods than one budget can list; the details name the budget.
        403 if details.kind.eq_ignore_ascii_case("poddisruptionbudget") => {
            Answer::Blocked { pdb: Some(details.name).filter(|name| !name.is_empty()) }
        }
        // The namespace's own deletion will take the pod, in its own time.
        403 if has_cause("NamespaceTerminating") => Answer::Blocked { pdb: None },
        500 if message.contains("more than one PodDisruptionBudget") => Answer::Blocked { pdb: None },
        // The server gave up on conflicts over a budget's status.
        504 => Answer::Blocked { pdb: None },
        // 401: the token was rotated and the next request carries the new one.
        401 | 408 | 409 | 500..=599 => Answer::Unavailable(say(code, &message)),
        _ => Answer::Refused(say(code, &message)),
    }
}

fn say(code: StatusCode, message: &str) -> String {
    let message: String = message.chars().take(300).collect();
    format!("{} {message}", code.as_u16()).trim_end().to_owned()
}

/// The API names the budget only in words: "The disruption budget web needs 1 healthy pods and …".
fn budget_in(message: &str) -> Option<String> {
    let name = message.strip_prefix("The disruption budget ")?.split_whitespace().next()?;
    Some(name.to_owned())
}

fn retry_after(headers: &HeaderMap, seconds: u32) -> Option<Duration> {
    let header = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    header.or((seconds > 0).then_some(u64::from(seconds))).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_answer_of_the_api_has_a_meaning() {
        let blocked = |pdb: Option<&str>| Answer::Blocked { pdb: pdb.map(str::to_owned) };
        for (code, body, wanted) in [
            (404, json!({"reason": "NotFound"}), Answer::Gone),
            (
                409,
                json!({"reason": "Conflict", "message": "Operation cannot be fulfilled on pods \"web\": Precondition failed: UID in precondition: a, UID in object meta: b"}),
                Answer::Gone,
            ),
            (
                429,
                json!({"message": "Cannot evict pod as it would violate the pod's disruption budget.",
                    "details": {"causes": [{"reason": "DisruptionBudget",
                    "message": "The disruption budget web needs 1 healthy pods and has 1 currently"}]}}),
                blocked(Some("web")),
            ),
            (
                429,
                json!({"details": {"retryAfterSeconds": 10, "causes": [{"reason": "DisruptionBudget",
                    "message": "The disruption budget db is still being processed by the server."}]}}),
                blocked(Some("db")),
            ),
            (
                429,
                json!({"message": "Too many requests, please try again later.", "details": {"retryAfterSeconds": 1}}),
                Answer::Throttled { after: Some(Duration::from_secs(1)) },
            ),
            (
                500,
                json!({"message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}),
                blocked(None),
            ),
            (
                504,
                json!({"message": "Timeout: request did not complete within requested timeout"}),
                blocked(None),
            ),
            (
                403,
                json!({"message": "poddisruptionbudgets.policy \"big\" is forbidden: DisruptedPods map too big - too many evictions not confirmed by PDB controller",
                    "details": {"name": "big", "kind": "poddisruptionbudget"}}),
                blocked(Some("big")),
            ),
            (403, json!({"details": {"causes": [{"reason": "NamespaceTerminating"}]}}), blocked(None)),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            let answer = classify(status, &HeaderMap::new(), body.to_string().as_bytes());
            assert_eq!(answer, wanted, "{code} {body}");
        }
        for (code, label) in [
            (401, "unavailable"),
            (409, "unavailable"),
            (500, "unavailable"),
            (502, "unavailable"),
            (503, "unavailable"),
            (400, "refused"),
            (403, "refused"),
            (422, "refused"),
            (429, "throttled"),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            for body in ["", "<html>", "{}", "[1,2]"] {
                let answer = classify(status, &HeaderMap::new(), body.as_bytes());
                assert_eq!(answer.label(), label, "{code} {body}");
            }
        }
    }

    #[test]
    fn a_header_says_when_to_come_back() {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, http::HeaderValue::from_static("2"))]);
        assert_eq!(
            classify(StatusCode::TOO_MANY_REQUESTS, &headers, b""),
            Answer::Throttled { after: Some(Duration::from_secs(2)) }
        );
    }
}
