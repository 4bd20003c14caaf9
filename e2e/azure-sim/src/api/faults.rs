//! Requests that go wrong on purpose.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::millis;

/// What to break, where, and for how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Requests it strikes.
    pub target: FaultTarget,
    /// How many of them; all until cleared when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens to them.
    pub action: FaultAction,
}

/// Requests that a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "surface", deny_unknown_fields)]
pub enum FaultTarget {
    /// Requests to ARM.
    #[serde(rename_all = "camelCase")]
    Arm {
        /// HTTP method; any when absent.
        #[serde(default)]
        method: Option<String>,
        /// Part of the path, case ignored; any when absent.
        #[serde(default)]
        path_contains: Option<String>,
    },
    /// Requests to metadata services.
    #[serde(rename_all = "camelCase")]
    Imds {
        /// Node name; all machines when absent.
        #[serde(default)]
        node: Option<String>,
        /// Part of the path; any when absent.
        #[serde(default)]
        path_contains: Option<String>,
    },
    /// Requests for tokens at the token endpoint.
    Tokens {},
    /// Requests for retail prices.
    Prices {},
}

impl FaultTarget {
    /// Requests to ARM by method and a part of the path.
    pub fn arm(method: &str, path_contains: &str) -> Self {
        Self::Arm { method: Some(method.into()), path_contains: Some(path_contains.into()) }
    }

    /// Polls for scheduled events of one machine, or of all.
    pub fn scheduled_events(node: Option<&str>) -> Self {
        Self::Imds { node: node.map(Into::into), path_contains: Some("scheduledevents".into()) }
    }
}

/// What happens to a request that a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub enum FaultAction {
    /// Answered with these very bytes.
    #[serde(rename_all = "camelCase")]
    Answer {
        /// Status.
        status: u16,
        /// Headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// Body, any bytes.
        #[serde(default)]
        body: Vec<u8>,
    },
    /// Answered with an error in one of Azure's envelopes.
    #[serde(rename_all = "camelCase")]
    Error {
        /// Status.
        status: u16,
        /// `code`.
        code: String,
        /// `message`.
        message: String,
        /// Which envelope.
        envelope: Envelope,
        /// `Retry-After` in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Never answered; the connection closes after that long.
    Hang {
        /// How long.
        #[serde(rename = "forMs", alias = "for", with = "millis")]
        time: Duration,
    },
    /// Answered as usual, that much later.
    Delay {
        /// How much later.
        #[serde(rename = "forMs", alias = "for", with = "millis")]
        time: Duration,
    },
    /// The connection closes at once; nothing is applied.
    Drop,
    /// Applied as usual, but the connection closes instead of an answer, after that long.
    ApplyThenDrop {
        /// How long after.
        #[serde(rename = "afterMs", alias = "after", with = "millis", default)]
        time: Duration,
    },
}

/// Which of Azure's two error envelopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Envelope {
    /// The AKS resource provider's `{"code","details","message","subcode"}`.
    Flat,
    /// The ARM front door's `{"error":{"code","message"}}`.
    Wrapped,
}

impl FaultAction {
    /// A status with an empty body.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: BTreeMap::new(), body: Vec::new() }
    }

    /// 200 with this body.
    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self::Answer {
            status: 200,
            headers: BTreeMap::from([("content-type".into(), "application/json; charset=utf-8".into())]),
            body: body.into(),
        }
    }

    /// 429 as the AKS resource provider says it.
    pub fn throttled(retry_after: u64) -> Self {
        Self::Error {
            status: 429,
            code: "Throttled".into(),
            message: format!(
                "The PutAgentPoolHandler.PUT request limit has been exceeded, please retry again in {retry_after} seconds."
            ),
            envelope: Envelope::Flat,
            retry_after: Some(retry_after),
        }
    }
}

/// A fault in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveFault {
    /// Id, to clear it by.
    pub id: u64,
    /// The fault; `times` is what is left.
    pub fault: Fault,
    /// Requests it has struck.
    pub struck: u64,
}
