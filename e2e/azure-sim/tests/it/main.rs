//! What tests and programs may rely on in the simulator.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arm;
mod autoscaled;
mod azure;
mod billing;
mod capacity;
mod compute;
mod conformance;
mod examples;
mod imds;
mod kubernetes;
mod lifecycle;
mod market;
mod operations;
mod program;
mod properties;
mod scenarios;
mod simulated_time;
mod throttles;
mod tokens;
mod upgrades;

use std::time::Duration;

use http::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Identity, PoolSpec, Settings};
use spotpool_azure_sim::body::pool_id;
use spotpool_azure_sim::client::SimClient;
use spotpool_azure_sim::server::{Options, Server};

/// The api-version that tests speak unless they mean another.
const VERSION: &str = "2025-10-01";
/// The VM size of test pools.
const SIZE: &str = "Standard_D8s_v5";

/// A simulator with no Kubernetes behind it and a caller of its APIs.
struct Bench {
    server: Server,
    client: SimClient,
    http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `code` of either envelope.
    fn code(&self) -> &str {
        self.body["code"].as_str().or(self.body["error"]["code"].as_str()).unwrap_or_default()
    }
}

impl Bench {
    async fn with(pools: &[PoolSpec], boot_time: Duration) -> Self {
        let options = Options {
            settings: Settings::with_boot_time(boot_time),
            pools: pools.to_vec(),
            ..Options::default()
        };
        let server = Server::start(options).await.unwrap();
        let client = server.client().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { server, client, http }
    }

    /// Spot pool `spota` with two machines; 200 ms to boot.
    async fn start() -> Self {
        Self::with(&[PoolSpec::spot("spota", SIZE, 2)], Duration::from_millis(200)).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let mut request = self.http.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status, headers, body }
    }

    /// The URL of a pool, or with more path behind its name.
    fn pool_url(&self, pool: &str) -> String {
        format!("{}{}?api-version={VERSION}", self.server.url(), pool_id(&Identity::default(), pool))
    }

    async fn get(&self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], None).await
    }

    async fn put(&self, pool: &str, properties: Value) -> Answer {
        self.send(Method::PUT, &self.pool_url(pool), &[], Some(&json!({"properties": properties}))).await
    }

    /// Follows an operation to its end.
    async fn follow(&self, answer: &Answer) -> Value {
        let url = answer.header("azure-asyncoperation").to_owned();
        for _ in 0..3000 {
            let body = self.get(&url).await.body;
            if body["status"] != "InProgress" {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Value::Null
    }

    /// Node names of a pool's machines.
    async fn nodes(&self, pool: &str) -> Vec<String> {
        self.client.state().await.unwrap().vms_of(pool).map(|vm| vm.node.clone()).collect()
    }
}
