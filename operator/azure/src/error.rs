//! What went wrong, in the six classes that the operator tells apart, and what follows from it.
//!
//! One table, [`codes`], says it for each code of Azure's; `docs/reference/azure-errors.md` is made from it.

mod codes;
mod envelope;
mod redaction;

use std::time::Duration;

use serde_json::Value;

pub(crate) use redaction::redact;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::Display, strum::VariantNames)]
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

/// What an error says about the future: asking for this again soon is useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avoid {
    /// Where.
    pub scope: Scope,
    /// For how long.
    pub lasting: Duration,
}

/// How far an error reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
pub enum Scope {
    /// This agent pool.
    AgentPool,
    /// Every agent pool of this VM size and priority.
    Size,
    /// Every agent pool of this VM size and priority that is in the same zones.
    Zone,
    /// Every spot agent pool: spot cores have one quota for all sizes.
    AllSpot,
    /// Every on-demand agent pool: the region's cores have one quota for all sizes.
    AllOnDemand,
    /// Every write: nothing is wrong with any one agent pool.
    Everything,
}

/// The figures of a quota that is used up, as far as Azure gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// What is limited, as Azure names it: `LowPriorityCores`, `standardDSv3Family`, `Cores`.
    pub name: Option<String>,
    /// Cores that are allowed.
    pub current_limit: Option<u64>,
    /// Cores in use.
    pub current_usage: Option<u64>,
    /// Cores that the request needed on top.
    pub additional_required: Option<u64>,
    /// The least limit with which it would have passed.
    pub new_limit_required: Option<u64>,
}

/// An answer of Azure that is no success, or no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
#[non_exhaustive]
pub struct AzureError {
    /// What to do about it.
    pub class: Class,
    /// Azure's code, the innermost that says something; or one of ours, which the table lists too.
    pub code: String,
    /// Azure's message, shortened, on one line, without secrets.
    pub message: String,
    /// HTTP status, 0 where there was no answer, 200 where an accepted operation failed later.
    pub status: u16,
    /// Azure's word on how long to wait.
    pub retry_after: Option<Duration>,
    /// What not to ask for again, and for how long.
    pub avoid: Option<Avoid>,
    /// What a person should do, in one sentence.
    pub advice: &'static str,
    /// Boxed, so that results stay small.
    pub(crate) details: Option<Box<Details>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    quota: Option<Quota>,
    missing: Option<MissingAction>,
    correlation_id: Option<String>,
    request_id: Option<String>,
}

/// What an identity would have to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingAction {
    /// Such as `Microsoft.ContainerService/managedClusters/agentPools/write`.
    pub action: String,
    /// The scope on which it lacks, if Azure says.
    pub scope: Option<String>,
}

const LONGEST_MESSAGE: usize = 400;
/// Bodies that are no JSON are mostly a proxy's page: its beginning tells whose.
const LONGEST_TEXT: usize = 2_000;

impl AzureError {
    /// An error of our own making, or of the way to Azure. The code is looked up in the table for advice; the
    /// class is as given.
    pub fn new(class: Class, code: impl Into<String>, message: impl AsRef<str>) -> Self {
        let code = code.into();
        let row = codes::find(0, &code, message.as_ref());
        Self {
            class,
            message: shorten(message.as_ref()),
            status: 0,
            retry_after: None,
            avoid: None,
            advice: row.map_or_else(|| codes::advice_for(class), |row| row.advice),
            details: None,
            code,
        }
    }

    /// Refused here, before the wire: the budget of requests is used up until then.
    pub fn over_budget(what: &str, wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil();
        let message = format!("no {what} is sent for {seconds} s, to stay below Azure's limit on requests");
        Self { retry_after: Some(wait), ..Self::new(Class::Throttled, codes::LOCAL_BUDGET, message) }
    }

    /// Reads an answer that is no success, with what its headers say.
    pub fn from_response(answer: &http::Response<bytes::Bytes>) -> Self {
        let headers = answer.headers();
        let mut error = Self::from_answer(answer.status().as_u16(), retry_after(headers), answer.body());
        let header = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            (value.len() <= 64 && !value.is_empty()).then(|| value.to_owned())
        };
        let (correlation, request) = (header("x-ms-correlation-request-id"), header("x-ms-request-id"));
        if correlation.is_some() || request.is_some() {
            let details = error.details.get_or_insert_default();
            (details.correlation_id, details.request_id) = (correlation, request);
        }
        error
    }

    /// Reads an error in either of Azure's two envelopes: flat `{code, message}` from the AKS resource
    /// provider, `{error: {code, message}}` from ARM's front door.
    pub fn from_answer(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let mut candidates = parsed.as_ref().map(envelope::candidates).unwrap_or_default();
        if candidates.is_empty() {
            let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_TEXT)]).into_owned();
            candidates.push(envelope::Candidate { code: format!("Http{status}"), message: text });
        }
        Self { retry_after, ..Self::judge(status, &candidates) }
    }

    /// Reads the error of an operation that was accepted and then failed.
    pub fn from_operation(error: Option<&Value>) -> Self {
        let candidates = error.map(envelope::candidates).filter(|found| !found.is_empty());
        let candidates = candidates.unwrap_or_else(|| {
            vec![envelope::Candidate {
                code: "OperationFailed".to_owned(),
                message: "Azure gave no reason".to_owned(),
            }]
        });
        Self::judge(200, &candidates)
    }

    /// The innermost candidate that the table knows decides; where it knows none, the status does.
    fn judge(status: u16, candidates: &[envelope::Candidate]) -> Self {
        let known = candidates
            .iter()
            .find_map(|one| codes::find(status, &one.code, &one.message).map(|row| (row, one)))
            .or_else(|| {
                candidates.iter().find_map(|one| codes::named_in(&one.message).map(|row| (row, one)))
            });
        let outer = candidates.last();
        let (class, code, message, advice, avoid) = match known {
            Some((row, one)) if status != 429 || row.class == Class::Throttled => {
                (row.class, row.known_as, one.message.as_str(), row.advice, row.avoid)
            }
            _ => {
                let class = codes::class_of_status(status);
                let (code, message) = outer.map_or(("Unknown", ""), |one| (&*one.code, &*one.message));
                (class, code, message, codes::advice_for(class), None)
            }
        };
        let quota = candidates.iter().find_map(|one| envelope::quota(&one.message));
        let missing = candidates.iter().find_map(|one| envelope::missing_action(&one.message));
        let avoid = match (&quota, avoid) {
            (Some(quota), Some(avoid)) => Some(codes::narrowed(avoid, quota)),
            (_, avoid) => avoid,
        };
        let details = (quota.is_some() || missing.is_some())
            .then(|| Box::new(Details { quota, missing, ..Details::default() }));
        Self {
            class,
            code: shorten(code),
            message: shorten(message),
            status,
            retry_after: None,
            avoid,
            advice,
            details,
        }
    }

    /// The same error, to be handled as another class.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Whether the request may have been carried out although no answer came.
    pub fn outcome_unknown(&self) -> bool {
        // Without a token nothing was sent.
        let sent = self.code != codes::SIGN_IN_FAILED;
        sent && self.class == Class::Transient && (self.status == 0 || self.status >= 500)
    }

    /// Whether it was refused here, without a request.
    pub fn is_local(&self) -> bool {
        self.code == codes::LOCAL_BUDGET || self.code == codes::NOT_LEADER
    }

    /// The quota that is used up, where the error is about one.
    pub fn quota(&self) -> Option<&Quota> {
        self.details.as_ref()?.quota.as_ref()
    }

    /// What the identity lacks, where Azure says.
    pub fn missing_action(&self) -> Option<&MissingAction> {
        self.details.as_ref()?.missing.as_ref()
    }

    /// Azure's id of the request, for its support.
    pub fn correlation_id(&self) -> Option<&str> {
        let details = self.details.as_ref()?;
        details.correlation_id.as_deref().or(details.request_id.as_deref())
    }
}

/// `Retry-After` in seconds or as a date, or ARM's `retry-after-ms`; never more than an hour.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let millis = text("retry-after-ms").or_else(|| text("x-ms-retry-after-ms"));
    let wait = if let Some(millis) = millis.and_then(|text| text.parse().ok()) {
        Duration::from_millis(millis)
    } else {
        let value = text("retry-after")?;
        if let Ok(seconds) = value.parse() {
            Duration::from_secs(seconds)
        } else {
            // Measured against the answer's own clock, not ours.
            let until = jiff::fmt::rfc2822::parse(value).ok()?;
            let now = jiff::fmt::rfc2822::parse(text("date")?).ok()?;
            Duration::try_from(until.timestamp().duration_since(now.timestamp())).ok()?
        }
    };
    Some(wait.min(Duration::from_hours(1)))
}

fn shorten(message: &str) -> String {
    let mut message = redact(&message.split_whitespace().collect::<Vec<_>>().join(" "));
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests;
