//! A transport that answers as a test says, and keeps what it was asked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_azure::{AgentPool, AgentPools, Arm, ArmConfig, AzureError, ClusterId, Transport};

pub const ENDPOINT: &str = "https://management.azure.com";
pub const POOLS: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/c/agentPools";

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Asked {
    pub fn path(&self) -> &str {
        let path = self.url.strip_prefix(ENDPOINT).unwrap_or(&self.url);
        path.split('?').next().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub type Answer = Result<Response<Bytes>, AzureError>;
type Script = Box<dyn FnMut(&Asked) -> Answer + Send>;

/// The transport.
#[derive(Clone)]
pub struct Scripted {
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    leads: Arc<AtomicBool>,
    start: (tokio::time::Instant, Timestamp),
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub fn new(script: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self {
            script: Arc::new(Mutex::new(Box::new(script))),
            asked: Arc::default(),
            leads: Arc::new(AtomicBool::new(true)),
            start: (tokio::time::Instant::now(), "2026-11-21T07:00:00Z".parse().unwrap()),
        }
    }

    pub fn arm(&self) -> Arm {
        self.arm_with("2025-10-01")
    }

    pub fn arm_with(&self, version: &str) -> Arm {
        self.arm_of(version, Arc::new(self.clone()))
    }

    /// An adapter whose requests get here through `transport`.
    pub fn arm_over(&self, transport: Arc<dyn Transport>) -> Arm {
        self.arm_of("2025-10-01", transport)
    }

    fn arm_of(&self, version: &str, transport: Arc<dyn Transport>) -> Arm {
        let (leads, (start, epoch)) = (self.leads.clone(), self.start);
        Arm::new(ArmConfig {
            endpoint: ENDPOINT.parse().unwrap(),
            cluster: cluster(),
            api_version: version.parse().unwrap(),
            user_agent: "spotpool-operator/0".into(),
            transport,
            may_write: Arc::new(move || leads.load(Ordering::SeqCst)),
            clock: Arc::new(move || epoch.checked_add(start.elapsed()).unwrap()),
        })
        .unwrap()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn last(&self) -> Asked {
        self.asked().pop().expect("something was asked")
    }

    pub fn lose_the_lease(&self) {
        self.leads.store(false, Ordering::SeqCst);
    }
}

impl Transport for Scripted {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Answer> {
        let asked = Asked {
            method: request.method().clone(),
            url: request.uri().to_string(),
            headers: request.headers().clone(),
            body: serde_json::from_slice(request.body()).unwrap_or_default(),
        };
        self.asked.lock().unwrap().push(asked.clone());
        let answer = (self.script.lock().unwrap())(&asked);
        async move { answer }.boxed()
    }
}

pub fn cluster() -> ClusterId {
    ClusterId { subscription_id: "s".into(), resource_group: "g".into(), cluster_name: "c".into() }
}

#[allow(clippy::unnecessary_wraps, reason = "what a script returns")]
pub fn answer(status: u16, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    Ok(response.body(body).unwrap())
}

pub fn ok(body: &Value) -> Answer {
    answer(200, &[], body)
}

/// An agent pool as AKS would answer it.
#[allow(clippy::needless_pass_by_value, reason = "reads better where it is called")]
pub fn pool(name: &str, properties: Value) -> Value {
    let mut all = json!({
        "count": 3, "vmSize": "Standard_D4s_v5", "osType": "Linux", "mode": "User", "maxPods": 110,
        "type": "VirtualMachineScaleSets", "provisioningState": "Succeeded", "eTag": "\"v1\"",
        "powerState": {"code": "Running"},
    });
    for (key, value) in properties.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({
        "id": format!("{POOLS}/{name}"), "name": name,
        "type": "Microsoft.ContainerService/managedClusters/agentPools", "properties": all,
    })
}

pub fn list(pools: &[Value]) -> Value {
    json!({ "value": pools })
}

/// `body` as the adapter reads it from a list.
pub async fn read(body: Value) -> AgentPool {
    let scripted = Scripted::new(move |_| ok(&list(std::slice::from_ref(&body))));
    scripted.arm().list().await.unwrap().pop().expect("it is read")
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
