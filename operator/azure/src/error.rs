//! What went wrong, in the five classes that the operator tells apart.

use std::time::Duration;

use serde_json::Value;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::Display)]
pub enum Class {
    /// Somebody else was first: read again and plan anew.
    Conflict,
    /// May pass by itself.
    Transient,
    /// A limit on requests.
    Throttled,
    /// The request cannot succeed as it is.
    Invalid,
    /// The identity may not.
    Denied,
    /// Azure has no capacity or quota for this size, zone or priority.
    Capacity,
}

/// An answer of Azure that is no success, or no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AzureError {
    /// What to do about it.
    pub class: Class,
    /// Azure's code, or one of ours: `Timeout`, `ConnectionFailed`, `NotUnderstood`, `NotLeader`.
    pub code: String,
    /// Azure's message, shortened, on one line.
    pub message: String,
    /// HTTP status, 0 where there was no answer.
    pub status: u16,
    /// Azure's word on how long to wait.
    pub retry_after: Option<Duration>,
}

const LONGEST_MESSAGE: usize = 400;

impl AzureError {
    pub(crate) fn new(class: Class, code: &str, message: impl AsRef<str>) -> Self {
        Self {
            class,
            code: code.to_owned(),
            message: shorten(message.as_ref()),
            status: 0,
            retry_after: None,
        }
    }

    /// Reads an error answer in either of Azure's two envelopes: flat `{code, message}` from the AKS
    /// resource provider, `{error: {code, message}}` from ARM's front door.
    pub(crate) fn from_answer(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let (code, message) = match parsed.as_ref().and_then(code_and_message) {
            Some(found) => found,
            None => (
                format!("Http{status}"),
                String::from_utf8_lossy(&body[..body.len().min(2_000)]).into_owned(),
            ),
        };
        let class = classify(status, &code, &message);
        Self { class, code, message: shorten(&message), status, retry_after }
    }

    /// Reads the error of an operation that was accepted and then failed.
    pub(crate) fn from_operation(error: Option<&Value>) -> Self {
        let (code, message) = error
            .and_then(code_and_message)
            .unwrap_or_else(|| ("OperationFailed".to_owned(), "Azure gave no reason".to_owned()));
        let class = classify(200, &code, &message);
        Self { class, code, message: shorten(&message), status: 200, retry_after: None }
    }

    /// Whether the request may have been carried out although no answer came.
    pub fn outcome_unknown(&self) -> bool {
        self.class == Class::Transient && (self.status == 0 || self.status >= 500)
    }
}

/// Code and message of an error object, of its `error`, or where the outer one only wraps, of its first detail.
fn code_and_message(value: &Value) -> Option<(String, String)> {
    let error = value.get("error").filter(|error| error.is_object()).unwrap_or(value);
    let code = error.get("code")?.as_str()?.to_owned();
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some((code, message))
}

/// The code that decides: an outer message often embeds the true one as `Code="AllocationFailed"`.
fn classify(status: u16, code: &str, message: &str) -> Class {
    let embedded =
        message.split("Code=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    for code in [embedded, code] {
        match code {
            "SkuNotAvailable"
            | "AllocationFailed"
            | "ZonalAllocationFailed"
            | "OverconstrainedAllocationRequest"
            | "OverconstrainedZonalAllocationRequest"
            | "SpotPriceGreaterThanProvidedMaxPrice"
            | "QuotaExceeded"
            | "ErrCode_InsufficientVCPUQuota" => return Class::Capacity,
            "OperationNotAllowed" if message.contains("quota") => return Class::Capacity,
            "OperationNotAllowed" if status == 409 => return Class::Conflict,
            "EtagMismatch"
            | "OriginalEtagNotExpect"
            | "AKSOperationPreempted"
            | "AKSOperationPreemptedByDelete" => {
                return Class::Conflict;
            }
            "Throttled" | "TooManyRequests" => return Class::Throttled,
            _ => {}
        }
    }
    match status {
        401 | 403 => Class::Denied,
        409 | 412 => Class::Conflict,
        429 => Class::Throttled,
        400..=499 => Class::Invalid,
        _ => Class::Transient,
    }
}

fn shorten(message: &str) -> String {
    let mut message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_envelopes_and_nonsense_are_read() {
        let busy = r#"{"code":"OperationNotAllowed","details":null,"message":"Operation is not allowed: Another agentpool operation (user - Creating) is in progress, please wait","subcode":""}"#;
        let missing = r#"{"error":{"code":"ResourceNotFound","message":"The Resource was not found"}}"#;
        for (status, body, class, code) in [
            (409, busy, Class::Conflict, "OperationNotAllowed"),
            (404, missing, Class::Invalid, "ResourceNotFound"),
            (
                403,
                r#"{"error":{"code":"AuthorizationFailed","message":"no"}}"#,
                Class::Denied,
                "AuthorizationFailed",
            ),
            (429, r#"{"code":"Throttled","message":"wait"}"#, Class::Throttled, "Throttled"),
            (412, r#"{"code":"PreconditionFailed","message":"x"}"#, Class::Conflict, "PreconditionFailed"),
            (
                400,
                r#"{"code":"OperationNotAllowed","message":"exceeding approved LowPriorityCores quota"}"#,
                Class::Capacity,
                "OperationNotAllowed",
            ),
            (
                400,
                r#"{"code":"PropertyChangeNotAllowed","message":"x"}"#,
                Class::Invalid,
                "PropertyChangeNotAllowed",
            ),
            (500, "<html>", Class::Transient, "Http500"),
            (502, "", Class::Transient, "Http502"),
            (400, "[1]", Class::Invalid, "Http400"),
        ] {
            let error = AzureError::from_answer(status, None, body.as_bytes());
            assert_eq!((error.class, error.code.as_str()), (class, code), "{body}");
        }
    }

    #[test]
    fn a_failed_operation_is_known_by_its_inner_code() {
        let error = serde_json::json!({
            "code": "ReconcileVMSSAgentPoolFailed",
            "message": "Code=\"AllocationFailed\" Message=\"Allocation failed.\""
        });
        assert_eq!(AzureError::from_operation(Some(&error)).class, Class::Capacity);
        assert_eq!(AzureError::from_operation(None).code, "OperationFailed");
        let superseded = serde_json::json!({"code": "AKSOperationPreempted", "message": "x"});
        assert_eq!(AzureError::from_operation(Some(&superseded)).class, Class::Conflict);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = AzureError::new(Class::Invalid, "x", "ä".repeat(1_000));
        assert!(error.message.len() <= LONGEST_MESSAGE + 4 && error.message.ends_with('…'));
    }
}
