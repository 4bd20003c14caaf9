//! The fence around `azure_mgmt_containerservice`: its request builders and models are used for reads, its
//! api-versions, credentials, retries and transport are not. See ADR 0010.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use azure_mgmt_containerservice::package_preview_2023_01::{Client, ClientBuilder};
use bytes::Bytes;
use futures::{StreamExt, future, stream};
use http::Method;
use jiff::Timestamp;
use old_azure_core::auth::{AccessToken, TokenCredential, TokenResponse};
use old_azure_core::error::{Error, ErrorKind};
use old_azure_core::headers::Headers;
use old_azure_core::{
    Context, Policy, PolicyResult, Request, Response, RetryOptions, StatusCode, TransportOptions,
};
use url::Url;

use crate::arm::ClusterId;
use crate::error::AzureError;
use crate::throttle::Kind;
use crate::wire::{ApiVersion, SentAt, Wire, not_understood, request};

/// Asks for the first page of agent pools through the SDK. Its own paging would pin what is to be followed
/// verbatim, and drop what its models do not know: only the bytes are of use.
pub(crate) async fn list(
    wire: &Arc<Wire>,
    endpoint: &Url,
    cluster: &ClusterId,
    version: &ApiVersion,
) -> Result<Read, AzureError> {
    let last = Arc::new(Last::new(wire.clone(), version.clone()));
    let mut pages = client(endpoint, last.clone())
        .agent_pools_client()
        .list(&cluster.subscription_id, &cluster.resource_group, &cluster.cluster_name)
        .into_stream();
    let page = pages.next().await;
    last.answer(page.and_then(Result::err))
}

/// Asks for one agent pool through the SDK.
pub(crate) async fn get(
    wire: &Arc<Wire>,
    endpoint: &Url,
    cluster: &ClusterId,
    version: &ApiVersion,
    agent_pool: &str,
) -> Result<Read, AzureError> {
    let last = Arc::new(Last::new(wire.clone(), version.clone()));
    let answer = client(endpoint, last.clone())
        .agent_pools_client()
        .get(&cluster.subscription_id, &cluster.resource_group, &cluster.cluster_name, agent_pool)
        .send()
        .await;
    last.answer(answer.err())
}

/// A client for one request: cheap, and its answer cannot be another's.
fn client(endpoint: &Url, last: Arc<Last>) -> Client {
    ClientBuilder::new(Arc::new(NoToken))
        .endpoint(endpoint.as_str().trim_end_matches('/'))
        .retry(RetryOptions::none())
        .transport(TransportOptions::new_custom_policy(last))
        .build()
}

/// What Azure said, and as of when.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) body: Bytes,
    pub(crate) at: Timestamp,
}

/// The pipeline's last policy: makes of the SDK's request one of ours, sends it and keeps the answer.
///
/// What is taken over is the URL alone. So nothing that the pipeline adds reaches Azure (its user agent, its
/// dummy token), and since our token is added further down, nothing that it logs can hold it.
#[derive(Debug)]
struct Last {
    wire: Arc<Wire>,
    version: ApiVersion,
    answer: Mutex<Option<Result<Read, AzureError>>>,
}

impl Last {
    fn new(wire: Arc<Wire>, version: ApiVersion) -> Self {
        Self { wire, version, answer: Mutex::new(None) }
    }

    /// What Azure answered, whether or not the SDK could read it.
    fn answer(&self, sdk: Option<Error>) -> Result<Read, AzureError> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.unwrap_or_else(|| {
            let why = sdk.map(|error| error.to_string()).unwrap_or_default();
            Err(not_understood(format!("the SDK sent nothing: {why}")))
        })
    }
}

#[async_trait]
impl Policy for Last {
    async fn send(&self, _: &Context, asked: &mut Request, _: &[Arc<dyn Policy>]) -> PolicyResult {
        let mut url = asked.url().clone();
        pin(&mut url, &self.version);
        let answer = match request(Method::GET, &url) {
            Ok(request) => self.wire.send(Kind::Read, request).await,
            Err(error) => Err(error),
        };
        let answer = answer.map(|answer| {
            let at = answer.extensions().get().map_or_else(|| self.wire.now(), |SentAt(at)| *at);
            Read { body: answer.into_body(), at }
        });
        let said = match &answer {
            Ok(read) => {
                let body = stream::once(future::ready(Ok(read.body.clone())));
                Ok(Response::new(StatusCode::Ok, Headers::new(), Box::pin(body)))
            }
            Err(error) => Err(Error::new(ErrorKind::Other, error.clone())),
        };
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        said
    }
}

/// One version for reads and writes alike; those that the SDK names are retired.
fn pin(url: &mut Url, version: &ApiVersion) {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("api-version"))
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair("api-version", version.as_str());
}

/// The generated code insists on a token before the pipeline. Ours is added below it.
#[derive(Debug)]
struct NoToken;

#[async_trait]
impl TokenCredential for NoToken {
    async fn get_token(&self, _: &str) -> old_azure_core::Result<TokenResponse> {
        let never = old_azure_core::date::parse_rfc3339("9999-12-31T00:00:00Z")?;
        Ok(TokenResponse::new(AccessToken::new("none"), never))
    }
}
