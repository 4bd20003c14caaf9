//! The apiserver's own account of the requests it had: one clock for everybody's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use spotpool_e2e::{World, eventually};

/// The audit log from a moment on.
pub struct Audit {
    path: PathBuf,
    read_to: u64,
    requests: Vec<Request>,
}

/// One request and its answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    stage: String,
    #[serde(rename = "requestURI")]
    uri: String,
    /// `create`, `watch`, ….
    pub verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    /// When the apiserver had read its head.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
    /// When the answer was complete.
    #[serde(rename = "stageTimestamp")]
    pub done: Timestamp,
}

#[derive(Debug, Deserialize)]
struct User {
    /// Empty while the apiserver starts.
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

impl Request {
    fn object(&self) -> (&str, &str, &str) {
        self.object_ref.as_ref().map_or(("", "", ""), |it| (&it.resource, &it.subresource, &it.name))
    }

    /// Whether a token that is bound to a Pod on `node` signed it.
    pub fn is_from(&self, node: &str) -> bool {
        self.user.username.ends_with(":spotpool-node-agent")
            && self.user.extra["authentication.kubernetes.io/node-name"][0] == node
    }

    /// Whether any node's agent signed it.
    pub fn is_of_an_agent(&self) -> bool {
        self.user.username.ends_with(":spotpool-node-agent")
    }

    /// For how many seconds a watch was asked for.
    pub fn watch_lasts(&self) -> Option<u32> {
        let (_, rest) = self.uri.split_once("timeoutSeconds=")?;
        rest.split('&').next()?.parse().ok()
    }

    /// What it does to what.
    pub fn kind(&self) -> String {
        let (resource, subresource, _) = self.object();
        format!("{} {resource}/{subresource}", self.verb).trim_end_matches('/').to_owned()
    }

    /// Whether it is about Events, for people.
    pub fn is_event(&self) -> bool {
        self.object().0 == "events"
    }

    /// The pod that it evicts, if the apiserver accepted that.
    pub fn evicted(&self) -> Option<&str> {
        let accepted = self.response_status.as_ref().is_some_and(|status| (200..300).contains(&status.code));
        (self.eviction_of().is_some() && accepted).then(|| self.object().2)
    }

    /// Whether it is about the pod of this name, or asks for disruption budgets because of one.
    pub fn is_about(&self, pod: &str) -> bool {
        let (resource, _, name) = self.object();
        (resource == "pods" && name == pod) || resource == "poddisruptionbudgets"
    }

    /// The pod that it asks to evict.
    pub fn eviction_of(&self) -> Option<&str> {
        match self.object() {
            ("pods", "eviction", name) => Some(name),
            _ => None,
        }
    }
}

/// When the evictions of a run were received and accepted.
#[derive(Clone, Copy, Debug)]
pub struct Evictions {
    /// The first request received.
    pub first: Timestamp,
    /// The last request accepted.
    pub last: Timestamp,
}

impl Evictions {
    /// From the first request received to the last accepted.
    pub fn millis(self) -> f64 {
        millis(self.first, self.last)
    }
}

/// From one time to another.
pub fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

impl Audit {
    /// The log of this world from now on.
    pub fn from_now(world: &World) -> Result<Self> {
        let path = world.cluster.audit_log().context("there is no audit log")?;
        let read_to = std::fs::metadata(&path).map_or(0, |file| file.len());
        Ok(Self { path, read_to, requests: Vec::new() })
    }

    /// What it holds now, requests that are answered only. Each line is read once: whoever looks often must not take
    /// the time of those that are measured.
    pub fn requests(&mut self) -> Result<&[Request]> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read_to))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for line in whole.lines() {
            let request: Request = serde_json::from_str(line).context("in the audit log")?;
            if request.stage == "ResponseComplete" {
                self.requests.push(request);
            }
        }
        self.read_to += whole.len() as u64;
        Ok(&self.requests)
    }

    /// What the agent of a node asked for until then, by kind; watches and Events aside.
    pub fn asked_by(&mut self, node: &str, until: Timestamp) -> Result<BTreeMap<String, u32>> {
        let mut kinds = BTreeMap::<String, u32>::new();
        let counts =
            |it: &&Request| it.is_from(node) && it.verb != "watch" && !it.is_event() && it.received <= until;
        for request in self.requests()?.iter().filter(counts) {
            *kinds.entry(request.kind()).or_default() += 1;
        }
        Ok(kinds)
    }

    /// Waits until all of these pods are evicted, whoever asks for it.
    pub async fn evictions(&mut self, pods: &[String]) -> Result<Evictions> {
        let pods: HashSet<&str> = pods.iter().map(String::as_str).collect();
        eventually(&format!("{} pods to be evicted", pods.len()), async || {
            let requests = self.requests()?.iter();
            let requests = requests.filter(|it| it.eviction_of().is_some_and(|name| pods.contains(name)));
            // One that is accepted a second time was evicted by the first.
            let mut accepted = HashMap::<&str, Timestamp>::new();
            for request in requests.clone() {
                if let Some(pod) = request.evicted() {
                    let done = accepted.entry(pod).or_insert(request.done);
                    *done = request.done.min(*done);
                }
            }
            if accepted.len() < pods.len() {
                return Ok(None);
            }
            let first = requests.map(|request| request.received).min();
            let last = accepted.into_values().max();
            Ok(first.zip(last).map(|(first, last)| Evictions { first, last }))
        })
        .await
    }
}
