//! Answers over HTTP, good and bad.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::api::{Envelope, FaultAction};
use crate::refusal::Refusal;

/// Marks an answer that must not be sent: the server closes the connection instead.
#[derive(Debug, Clone, Copy)]
pub struct Dropped;

/// An answer that is never sent.
pub fn dropped() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Dropped);
    response
}

/// Whether this answer stands for a connection that is closed without one.
pub fn is_dropped(response: &Response) -> bool {
    response.extensions().get::<Dropped>().is_some()
}

/// A JSON answer.
pub fn json_body(status: u16, body: &Value) -> Response {
    raw(
        status,
        &BTreeMap::from([("content-type".into(), "application/json; charset=utf-8".into())]),
        body.to_string().into_bytes(),
    )
}

/// An answer with these bytes. Headers that are not valid are left out.
pub fn raw(status: u16, headers: &BTreeMap<String, String>, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        set(&mut response, name, value);
    }
    response
}

/// Sets a header, if name and value are valid.
pub fn set(response: &mut Response, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        response.headers_mut().insert(name, value);
    }
}

/// A refusal in its envelope.
pub fn refused(refusal: &Refusal) -> Response {
    let mut response = json_body(refusal.status, &refusal.body());
    // The front door says that it was itself; the machine names are checked behind it.
    if refusal.envelope == Envelope::Wrapped && refusal.code != "InvalidParameter" {
        set(&mut response, "x-ms-failure-cause", "gateway");
    }
    response
}

/// The status that a fault answers with, if it keeps the request from being handled.
pub fn instead(action: &FaultAction) -> Option<u16> {
    match action {
        FaultAction::Answer { status, .. } | FaultAction::Error { status, .. } => Some(*status),
        FaultAction::Hang { .. } | FaultAction::Drop => Some(0),
        FaultAction::Delay { .. } | FaultAction::ApplyThenDrop { .. } => None,
    }
}

/// Handles a request, or does what the fault says.
pub async fn under_fault(fault: Option<FaultAction>, handle: impl FnOnce() -> Response) -> Response {
    match fault {
        None => handle(),
        Some(FaultAction::Answer { status, headers, body }) => raw(status, &headers, body),
        Some(FaultAction::Error { status, code, message, envelope, retry_after }) => {
            let mut response = refused(&Refusal { status, code, message, target: None, envelope });
            if let Some(seconds) = retry_after {
                set(&mut response, header::RETRY_AFTER.as_str(), &seconds.to_string());
            }
            response
        }
        Some(FaultAction::Hang { time }) => {
            tokio::time::sleep(time).await;
            dropped()
        }
        Some(FaultAction::Delay { time }) => {
            tokio::time::sleep(time).await;
            handle()
        }
        Some(FaultAction::Drop) => dropped(),
        Some(FaultAction::ApplyThenDrop { time }) => {
            drop(handle());
            if time > Duration::ZERO {
                tokio::time::sleep(time).await;
            }
            dropped()
        }
    }
}

/// `{"error": message}`, as the metadata service and the control API say it.
pub fn error(status: u16, message: &str) -> Response {
    json_body(status, &json!({"error": message}))
}
