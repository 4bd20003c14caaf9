//! The operator in this process: all that its program runs, without election, in a market of which nothing is known.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use jiff::SignedDuration;
use kube::Client;
use kube::client::Body;
use spotpool_azure::{
    ApiVersion, Arm, ArmConfig, AzureError, Class, ClusterId, ComputeInstances, EvictionBand, EvictionRates,
    Known, PlacementScores, Placements, PriceHistory, Transport,
};
use spotpool_operator::market::{Market, Sources};
use spotpool_operator::metrics::{self, Metrics};
use spotpool_operator::operator::{Connections, Operator};
use spotpool_operator::workloads::Options;
use spotpool_runtime::trace::Tracer;
use tower::BoxError;
use url::Url;

use super::apiserver::Apiserver;
use super::between::{Between, Passed, Server, made_up};
use crate::simulation::deliver;

/// Where the SpotPool is.
pub const NAMESPACE: &str = "batch";

/// What an operator is given.
#[derive(Clone)]
pub struct Surroundings {
    /// Kubernetes.
    pub apiserver: Apiserver,
    /// Azure.
    pub azure: Router,
    /// What stands between.
    pub between: Arc<Between>,
    /// The cluster in Azure.
    pub cluster: ClusterId,
}

/// The way of one operator to its servers.
#[derive(Clone)]
struct Link {
    operator: u64,
    around: Surroundings,
}

impl Link {
    async fn kubernetes(self, request: Request<Body>) -> Result<Response<axum::body::Body>, BoxError> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, body.collect().await?.to_bytes());
        let (apiserver, between) = (self.around.apiserver, self.around.between);
        let write = (!request.method().is_safe())
            .then(|| format!("kubernetes {} {}", request.method(), request.uri().path()));
        if let Some((resource, changes)) = apiserver.watch(request.uri()) {
            let begun = between.pass(self.operator, Server::Kubernetes, None, async {}).await;
            let Passed::Answer(()) = begun else { return Err("connection refused".into()) };
            let lines = between.watch(self.operator, &resource, changes);
            return Ok(Response::new(axum::body::Body::from_stream(lines)));
        }
        let (shown, now) = (between.shown(), between.now());
        let deliver = async move { apiserver.answer(&request, shown, now) };
        let answer = match between.pass(self.operator, Server::Kubernetes, write, deliver).await {
            Passed::Answer(answer) => answer,
            Passed::Refused(code, retry_after) => made_up(Server::Kubernetes, code, retry_after)?,
            Passed::Broken => return Err("connection reset".into()),
        };
        Ok(answer.map(axum::body::Body::from))
    }

    async fn azure(self, request: Request<Bytes>) -> Result<Response<Bytes>, AzureError> {
        let is_write = matches!(*request.method(), Method::PUT | Method::POST | Method::DELETE);
        let write = is_write.then(|| {
            let path = request.uri().path();
            let tail = path.split_once("/agentPools/").map_or(path, |(_, tail)| tail);
            format!("azure {} {tail}", request.method())
        });
        let router = self.around.azure;
        let deliver = async move { deliver(&router, request).await };
        match self.around.between.pass(self.operator, Server::Azure, write, deliver).await {
            Passed::Answer(answer) => answer,
            Passed::Refused(code, retry_after) => made_up(Server::Azure, code, retry_after)
                .map_err(|error| AzureError::new(Class::Invalid, "MadeUp", error.to_string())),
            Passed::Broken => {
                Err(AzureError::new(Class::Transient, "ConnectionFailed", "the connection was reset"))
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the way of operator {}", self.operator)
    }
}

impl Transport for Link {
    fn execute(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        self.clone().azure(request).boxed()
    }
}

/// Runs until it is dropped. `operator` is its number in what stands between.
pub async fn run(around: Surroundings, operator: u64) -> Result<Infallible> {
    let clock = around.between.operators_clock();
    let link = Link { operator, around: around.clone() };
    let transport: Arc<dyn Transport> = Arc::new(link.clone());
    let service = tower::service_fn(move |request| link.clone().kubernetes(request));
    let client = Client::new(service, NAMESPACE);
    let endpoint = Url::parse("http://arm.simulated/")?;
    let azure = Arm::new(ArmConfig {
        endpoint: endpoint.clone(),
        cluster: around.cluster.clone(),
        api_version: ApiVersion::default(),
        user_agent: "spotpool-operator/simulated".into(),
        transport: transport.clone(),
        may_write: Arc::new(|| true),
        clock: clock.clone(),
    })?;
    let no_market =
        |_: &str| Ok(Sources { prices: None, rates: Arc::new(NothingKnown), scores: Arc::new(NothingKnown) });
    let connections = Connections {
        client: client.clone(),
        drain_client: client,
        azure,
        instances: ComputeInstances::new(transport, endpoint, Arc::new(|| true))?,
        market: Market::new(Box::new(no_market), "USD"),
        clock,
    };
    // Agents are a model without Pods, which nobody is to be told of.
    let options = Options { cost_label: None, agent_grace: SignedDuration::MAX };
    let metrics = Metrics::register(&mut metrics::catalogue());
    let (operator, watches) = Operator::watch(connections, options, metrics, Tracer::default());
    let lead = async {
        operator.ready().await;
        Box::pin(operator.lead(vec![NAMESPACE.to_owned()])).await
    };
    let ended = tokio::select! {
        ended = lead => ended,
        ended = watches => ended,
    };
    Err(ended.into())
}

/// A market of which nobody tells anything.
struct NothingKnown;

impl EvictionRates for NothingKnown {
    fn band(&self, _: &str) -> Option<Known<EvictionBand>> {
        None
    }

    fn price_history(&self, _: &str) -> Option<Known<PriceHistory>> {
        None
    }

    fn refresh<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), AzureError>> {
        std::future::ready(Ok(())).boxed()
    }
}

impl PlacementScores for NothingKnown {
    fn placements(&self, _: &str) -> Option<Known<Placements>> {
        None
    }

    fn refresh<'a>(&'a self, _: &'a [String], _: u32) -> BoxFuture<'a, Result<(), AzureError>> {
        std::future::ready(Ok(())).boxed()
    }
}
