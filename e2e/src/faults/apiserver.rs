//! An apiserver in memory, as far as the operator speaks to one: objects with versions, lists, watches, patches,
//! the status subresource. What it does not know it refuses and remembers, so that nobody takes it for an answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Which objects a path is about: `nodes`, or `batch/spotpools`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (["api", "v1", rest @ ..] | ["apis", _, _, rest @ ..]) = parts.as_slice() else {
            return None;
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |index: usize| (*rest.get(index).unwrap_or(&"")).to_owned();
        let namespace = namespace.to_owned();
        (!rest.is_empty()).then(|| Self { resource: part(0), namespace, name: part(1), subresource: part(2) })
    }

    fn key(&self) -> Key {
        (self.resource.clone(), self.namespace.clone(), self.name.clone())
    }

    fn covers(&self, resource: &str, namespace: &str) -> bool {
        self.resource == resource && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

/// Resource, namespace, name.
type Key = (String, String, String);

/// What a watch tells.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version that it made.
    pub version: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: &'static str,
    /// The plural, such as `nodes`.
    pub resource: String,
    namespace: String,
    /// Of the object.
    pub name: String,
    /// As it is then, or was at last.
    pub object: Arc<Value>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    changes: Vec<Change>,
    unknown: Vec<String>,
    /// Each watch that is open has it as well.
    open: Arc<()>,
}

/// The server. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Apiserver {
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
}

impl Default for Apiserver {
    fn default() -> Self {
        Self { state: Arc::default(), version: watch::Sender::new(0) }
    }
}

/// What an answer is.
struct Refusal(u16, &'static str, String);

impl Apiserver {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that it did not know how to answer.
    pub fn unknown(&self) -> Vec<String> {
        self.state().unknown.clone()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// Watches that are open.
    pub fn watches(&self) -> usize {
        Arc::strong_count(&self.state().open) - 1
    }

    fn next_after(&self, version: u64) -> Option<Change> {
        let state = self.state();
        let next = state.changes.partition_point(|change| change.version <= version);
        state.changes.get(next).cloned()
    }

    /// An object as it is.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.state().objects.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    /// All objects of a resource.
    pub fn all(&self, resource: &str) -> Vec<Arc<Value>> {
        let state = self.state();
        state.objects.iter().filter(|(key, _)| key.0 == resource).map(|(_, object)| object.clone()).collect()
    }

    /// Puts an object there, whatever there was. To leave it as it is, it must be of the same version.
    pub fn put(&self, resource: &str, object: Value) {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("namespace"), text("name"));
        self.store(&mut self.state(), key, object);
    }

    /// Takes an object away.
    pub fn remove(&self, resource: &str, name: &str) {
        let mut state = self.state();
        let key = (resource.to_owned(), String::new(), name.to_owned());
        if let Some(object) = state.objects.remove(&key) {
            self.changed(&mut state, "DELETED", key, (*object).clone());
        }
    }

    fn store(&self, state: &mut State, key: Key, object: Value) -> Arc<Value> {
        let before = state.objects.get(&key).cloned();
        // A write that changes nothing makes no new version.
        if let Some(before) = &before
            && **before == object
        {
            return before.clone();
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        let object = self.changed(state, kind, key.clone(), object);
        state.objects.insert(key, object.clone());
        object
    }

    fn changed(&self, state: &mut State, kind: &'static str, key: Key, mut object: Value) -> Arc<Value> {
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let object = Arc::new(object);
        let (resource, namespace, name) = key;
        state.changes.push(Change { version, kind, resource, namespace, name, object: object.clone() });
        self.version.send_replace(version);
        object
    }

    /// Answers what is no watch, with lists as they were at `version`, or as they are.
    pub fn answer(&self, request: &Request<Bytes>, version: Option<u64>, now: Timestamp) -> Response<Bytes> {
        let path = request.uri().path();
        if (request.method(), path) == (&Method::GET, "/apis") {
            return whole(200, &json!({"kind": "APIGroupList", "groups": []}));
        }
        let Some(target) = Target::of(path) else { return self.not_known(request) };
        if request.method() == Method::GET {
            if target.name.is_empty() {
                let selector = query(request.uri()).remove("labelSelector").unwrap_or_default();
                return whole(200, &self.list(&target, &selector, version));
            }
            return match self.get(&target.resource, &target.namespace, &target.name) {
                Some(object) => whole(200, &object),
                None => refused(&Refusal(404, "NotFound", format!("{path} not found"))),
            };
        }
        let Ok(sent) = serde_json::from_slice::<Value>(request.body()) else {
            return self.not_known(request);
        };
        let kind = request.headers().get(http::header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
        let written = match (request.method().as_str(), kind.unwrap_or_default()) {
            ("POST", _) if target.name.is_empty() => self.create(target, sent, now),
            ("PUT", _) => self.replace(&target, sent),
            ("PATCH", "application/merge-patch+json") => self.merge(&target, &sent),
            ("PATCH", "application/json-patch+json") => self.edit(&target, &sent),
            _ => return self.not_known(request),
        };
        match written {
            Ok(object) => whole(if request.method() == Method::POST { 201 } else { 200 }, &object),
            Err(refusal) => refused(&refusal),
        }
    }

    fn not_known(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let what = format!("{} {}", request.method(), request.uri());
        self.state().unknown.push(what.clone());
        refused(&Refusal(501, "NotImplemented", what))
    }

    fn list(&self, target: &Target, selector: &str, version: Option<u64>) -> Value {
        let state = self.state();
        let version = version.unwrap_or(state.version);
        let mut objects = BTreeMap::new();
        for change in state.changes.iter().take_while(|change| change.version <= version) {
            if target.covers(&change.resource, &change.namespace) {
                objects.insert((&change.namespace, &change.name), change);
            }
        }
        let there = |change: &&&Change| change.kind != "DELETED" && selected(&change.object, selector);
        let items: Vec<&Value> = objects.values().filter(there).map(|change| &*change.object).collect();
        json!({"metadata": {"resourceVersion": version.max(1).to_string()}, "items": items})
    }

    /// The changes that a watch of this path and query tells of, without end; none if it asks for something else.
    pub fn watch(&self, uri: &http::Uri) -> Option<(String, BoxStream<'static, Change>)> {
        let query = query(uri);
        if query.get("watch").is_none_or(|it| it != "true") {
            return None;
        }
        let target = Target::of(uri.path())?;
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let from = query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or_default();
        let (server, version, resource) = (self.clone(), self.version.subscribe(), target.resource.clone());
        let open = self.state().open.clone();
        let changes = stream::unfold((version, from, open), move |(mut version, mut from, open)| {
            let (server, target, selector) = (server.clone(), target.clone(), selector.clone());
            async move {
                loop {
                    version.borrow_and_update();
                    while let Some(change) = server.next_after(from) {
                        from = change.version;
                        if target.covers(&change.resource, &change.namespace)
                            && selected(&change.object, &selector)
                        {
                            return Some((change, (version, from, open)));
                        }
                    }
                    version.changed().await.ok()?;
                }
            }
        });
        Some((resource, changes.boxed()))
    }

    fn create(&self, target: Target, mut object: Value, now: Timestamp) -> Result<Arc<Value>, Refusal> {
        let mut state = self.state();
        let metadata = &mut object["metadata"];
        let generated = metadata["generateName"].as_str().map(|it| format!("{it}{}", state.version));
        let name = metadata["name"].as_str().map(str::to_owned).or(generated).unwrap_or_default();
        metadata["name"] = name.clone().into();
        metadata["uid"] = format!("uid-{}", state.version).into();
        metadata["creationTimestamp"] = format!("{now:.0}").into();
        let key = (target.resource, target.namespace, name);
        if state.objects.contains_key(&key) {
            return Err(Refusal(409, "AlreadyExists", format!("{} exists", key.2)));
        }
        Ok(self.store(&mut state, key, object))
    }

    fn replace(&self, target: &Target, sent: Value) -> Result<Arc<Value>, Refusal> {
        self.write(target, |current| {
            let mut next = current.clone();
            guarded(current, &sent["metadata"])?;
            if target.subresource == "status" {
                next["status"] = sent["status"].clone();
                return Ok(next);
            }
            next = sent;
            next["status"] = current["status"].clone();
            Ok(next)
        })
    }

    fn merge(&self, target: &Target, patch: &Value) -> Result<Arc<Value>, Refusal> {
        self.write(target, |current| {
            guarded(current, &patch["metadata"])?;
            let mut next = current.clone();
            merge(&mut next, patch);
            Ok(next)
        })
    }

    /// RFC 6902, as far as marks of Nodes are written by it: what is absent is tested as null.
    fn edit(&self, target: &Target, steps: &Value) -> Result<Arc<Value>, Refusal> {
        self.write(target, |current| {
            let mut next = current.clone();
            for step in steps.as_array().into_iter().flatten() {
                let path = step["path"].as_str().unwrap_or_default();
                let (parent, key) = path.rsplit_once('/').unwrap_or_default();
                let key = key.replace("~1", "/");
                let wrong = || Refusal(422, "Invalid", format!("cannot do {step}"));
                let place = next.pointer_mut(parent).and_then(Value::as_object_mut).ok_or_else(wrong)?;
                let done = match step["op"].as_str() {
                    Some("test") => *place.get(&key).unwrap_or(&Value::Null) == step["value"],
                    Some("add") => {
                        place.insert(key, step["value"].clone());
                        true
                    }
                    Some("remove") => place.remove(&key).is_some(),
                    _ => false,
                };
                if !done {
                    return Err(wrong());
                }
            }
            Ok(next)
        })
    }

    fn write(
        &self,
        target: &Target,
        change: impl FnOnce(&Value) -> Result<Value, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let mut state = self.state();
        let key = target.key();
        let Some(current) = state.objects.get(&key).cloned() else {
            return Err(Refusal(404, "NotFound", format!("{} not found", target.name)));
        };
        let mut next = change(&current)?;
        if next["spec"] != current["spec"] {
            let generation = current["metadata"]["generation"].as_u64().unwrap_or(1);
            next["metadata"]["generation"] = (generation + 1).into();
        }
        Ok(self.store(&mut state, key, next))
    }
}

/// uid and version that a write names must be those that are there.
fn guarded(current: &Value, sent: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let (is, named) = (&current["metadata"][field], &sent[field]);
        if !named.is_null() && named != is {
            return Err(Refusal(409, "Conflict", format!("{field} is {is}, not {named}")));
        }
    }
    Ok(())
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Selectors of what exists alone, as the operator uses them.
fn selected(object: &Value, selector: &str) -> bool {
    selector.is_empty() || !object["metadata"]["labels"][selector].is_null()
}

fn query(uri: &http::Uri) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

fn whole(status: u16, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A refusal in an apiserver's words.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message})
}

fn refused(Refusal(code, reason, message): &Refusal) -> Response<Bytes> {
    whole(*code, &status(*code, reason, message))
}
