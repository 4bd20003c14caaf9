//! Who we are to Azure. `azure_identity` knows the protocols; what it may send, to whom, and what a refusal
//! means, is said here.

mod refusals;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::TokenCredential;
use azure_core::error::ErrorKind;
use azure_core::http::headers::Headers;
use azure_core::http::{AsyncRawResponse, Body, ClientOptions, HttpClient, Method};
use azure_core::time::OffsetDateTime;
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredentialOptions, Executor,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use bytes::Bytes;
use futures::FutureExt;
use tokio::time::timeout;

use crate::Clock;
use crate::cloud::Cloud;
use crate::error::{AzureError, Class};
use crate::http::Transport;
use crate::tokens::{Issued, Secret, TokenSource};

/// Longer than the transport's own limit: this one is for `az`.
const LONGEST: Duration = Duration::from_secs(45);

/// How to sign in to Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// As the pod's service account, federated with an identity in Entra ID. What it needs is in the environment,
    /// put there by AKS's webhook.
    WorkloadIdentity,
    /// As an identity that is assigned to the node's VM.
    ManagedIdentity {
        /// Which of several; without it, the system-assigned one.
        client_id: Option<String>,
    },
    /// As whoever is logged in to the Azure CLI here: for development.
    AzureCli,
    /// Not at all: for a simulator.
    None,
}

impl CredentialKind {
    /// Where tokens come from; nothing for [`CredentialKind::None`].
    ///
    /// It never fails here: what is missing is said by every [`TokenSource::token`], so that the operator goes
    /// on watching. `environment` reads one variable.
    pub fn token_source(
        &self,
        cloud: Cloud,
        transport: Arc<dyn Transport>,
        environment: &dyn Fn(&str) -> Option<String>,
        now: Clock,
    ) -> Option<TokenSource> {
        let identity = match self {
            Self::WorkloadIdentity => Identity::federated(cloud, environment),
            Self::ManagedIdentity { client_id } => Ok(Identity::assigned(client_id.as_deref())),
            Self::AzureCli => {
                Ok(Identity::Cli { tenant_id: environment("AZURE_TENANT_ID"), executor: Arc::new(Az) })
            }
            Self::None => return None,
        };
        Some(source(identity, cloud, transport, now))
    }
}

fn source(
    identity: Result<Identity, AzureError>,
    cloud: Cloud,
    transport: Arc<dyn Transport>,
    now: Clock,
) -> TokenSource {
    match &identity {
        Ok(identity) => tracing::info!("signing in to Azure as {identity}"),
        Err(error) => tracing::error!(%error, "cannot sign in to Azure"),
    }
    let issue = move || {
        let (identity, transport) = (identity.clone(), transport.clone());
        async move { identity?.issue(cloud, transport).await }.boxed()
    };
    TokenSource::new(Box::new(issue), now)
}

/// Who signs in, and by what.
#[derive(Clone, Debug, strum::Display)]
enum Identity {
    #[strum(to_string = "client {client_id} of tenant {tenant_id} with the federated token in {token_file}")]
    Federated { client_id: String, tenant_id: String, token_file: String, authority: String },
    #[strum(to_string = "a managed identity of this node ({name})")]
    Assigned { client_id: Option<String>, name: String },
    #[strum(to_string = "whoever is logged in to the Azure CLI")]
    Cli { tenant_id: Option<String>, executor: Arc<dyn Executor> },
}

impl Identity {
    fn federated(cloud: Cloud, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, AzureError> {
        if environment("AZURE_KUBERNETES_TOKEN_PROXY").is_some() {
            tracing::warn!(
                "AZURE_KUBERNETES_TOKEN_PROXY is set, but identity bindings are not supported: tokens are asked \
                 of Entra ID directly, for which the identity needs a federated credential of its own"
            );
        }
        let variable = |name: &str| {
            environment(name).filter(|value| !value.is_empty()).ok_or_else(|| refusals::not_injected(name))
        };
        Ok(Self::Federated {
            client_id: variable("AZURE_CLIENT_ID")?,
            tenant_id: variable("AZURE_TENANT_ID")?,
            token_file: variable("AZURE_FEDERATED_TOKEN_FILE")?,
            authority: variable("AZURE_AUTHORITY_HOST").unwrap_or_else(|_| cloud.authority_host().to_owned()),
        })
    }

    fn assigned(client_id: Option<&str>) -> Self {
        let name = client_id.unwrap_or("the system-assigned one").to_owned();
        Self::Assigned { client_id: client_id.map(str::to_owned), name }
    }

    /// One token. The credential is made anew each time: so the federated token is read from its file each
    /// time, where the kubelet renews it, and no cache but ours is in the way after a 401.
    async fn issue(&self, cloud: Cloud, transport: Arc<dyn Transport>) -> Result<Issued, AzureError> {
        let asking = async {
            let credential = self.credential(transport)?;
            credential.get_token(&[cloud.scope()], None).await
        };
        let token = match timeout(LONGEST, asking).await {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(self.explain(&error)),
            Err(_) => {
                let message = format!("no Azure token within {} s", LONGEST.as_secs());
                return Err(AzureError::new(Class::Transient, "SignInFailed", message));
            }
        };
        // What expires when is said by this machine's clock, of which the life does not depend.
        let life = Duration::try_from(token.expires_on - OffsetDateTime::now_utc());
        let life = life.ok().filter(|life| !life.is_zero()).ok_or_else(|| {
            let message = "Azure's token has expired before it came: is this node's clock right?";
            AzureError::new(Class::Transient, "SignInFailed", message)
        })?;
        Ok(Issued { secret: Secret::new(token.token.secret()), life })
    }

    fn credential(&self, transport: Arc<dyn Transport>) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let client_options = |authority: Option<&str>| ClientOptions {
            transport: Some(azure_core::http::Transport::new(Arc::new(Wire {
                identity: self.clone(),
                transport,
            }))),
            cloud: authority.map(|authority| Arc::new(cloud_at(authority))),
            ..ClientOptions::default()
        };
        Ok(match self {
            Self::Federated { client_id, tenant_id, token_file, authority } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions {
                        client_options: client_options(Some(authority)),
                    },
                    client_id: Some(client_id.clone()),
                    tenant_id: Some(tenant_id.clone()),
                    token_file_path: Some(PathBuf::from(token_file)),
                }))?
            }
            Self::Assigned { client_id, .. } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                    client_options: client_options(None),
                }))?
            }
            Self::Cli { tenant_id, executor } => AzureCliCredential::new(Some(AzureCliCredentialOptions {
                tenant_id: tenant_id.clone(),
                executor: Some(executor.clone()),
                ..AzureCliCredentialOptions::default()
            }))?,
        })
    }

    /// Our own error where one is inside, else what `azure_identity` found wrong before it asked anybody.
    fn explain(&self, error: &azure_core::Error) -> AzureError {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        let mut innermost = String::new();
        while let Some(cause) = source {
            if let Some(ours) = cause.downcast_ref::<AzureError>() {
                return ours.clone();
            }
            innermost = cause.to_string();
            source = cause.source();
        }
        refusals::before_asking(self, &innermost)
    }
}

fn cloud_at(authority: &str) -> CloudConfiguration {
    let mut cloud = CustomConfiguration::default();
    authority.clone_into(&mut cloud.authority_host);
    cloud.into()
}

/// `azure_identity`'s way to the network: ours. A refusal is explained here, where its body is still at hand.
#[derive(Debug)]
struct Wire {
    identity: Identity,
    transport: Arc<dyn Transport>,
}

#[async_trait]
impl HttpClient for Wire {
    async fn execute_request(
        &self,
        request: &azure_core::http::Request,
    ) -> azure_core::Result<AsyncRawResponse> {
        let answer = self.exchange(request).await.map_err(|error| {
            // Of this kind, so that `azure_identity` does not try again behind our back.
            azure_core::Error::with_error(ErrorKind::Credential, error, "no token")
        })?;
        let (parts, body) = answer.into_parts();
        Ok(AsyncRawResponse::from_bytes(parts.status.as_u16().into(), Headers::new(), body))
    }
}

impl Wire {
    async fn exchange(
        &self,
        request: &azure_core::http::Request,
    ) -> Result<http::Response<Bytes>, AzureError> {
        let method = match request.method() {
            Method::Post => http::Method::POST,
            _ => http::Method::GET,
        };
        let mut ours = http::Request::builder().method(method).uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            ours = ours.header(name.as_str(), value.as_str());
        }
        let body = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => Bytes::new(), // sign-in has no use for streams
        };
        let ours = ours.body(body).map_err(|error| {
            AzureError::new(
                Class::Invalid,
                "InvalidRequest",
                format!("the sign-in request is malformed: {error}"),
            )
        })?;
        match self.transport.execute(ours).await {
            Ok(answer) if answer.status().is_success() => Ok(answer),
            Ok(answer) => Err(refusals::refused(&self.identity, &answer)),
            Err(error) => Err(refusals::unreachable(&self.identity, &error)),
        }
    }
}

/// Runs `az`, and ends it when nobody waits for it any more.
#[derive(Debug)]
struct Az;

#[async_trait]
impl Executor for Az {
    async fn run(&self, program: &OsStr, args: &[&OsStr]) -> io::Result<Output> {
        tokio::process::Command::new(program)
            .args(args)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
    }
}

#[cfg(test)]
mod tests;
