//! What a sign-in that failed means, and what a person has to do about it.

use bytes::Bytes;
use http::Response;
use serde::Deserialize;

use super::Identity;
use crate::error::{AzureError, Class, retry_after};

/// A variable of the environment that AKS's webhook should have set.
pub(super) fn not_injected(variable: &str) -> AzureError {
    let message = format!(
        "{variable} is not set: label the operator's pod azure.workload.identity/use=\"true\", annotate its service \
         account with azure.workload.identity/client-id, see that the cluster has --enable-workload-identity, and \
         delete the pod"
    );
    AzureError::new(Class::Denied, "NoWorkloadIdentity", message)
}

/// What `azure_identity` found wrong by itself, or `az` said.
pub(super) fn before_asking(identity: &Identity, cause: &str) -> AzureError {
    let (class, code, message) = match identity {
        Identity::Federated { token_file, .. } => (
            Class::Denied,
            "NoFederatedToken",
            format!("the federated token in {token_file} cannot be used: {cause}"),
        ),
        Identity::Assigned { .. } => (Class::Denied, "NoManagedIdentity", cause.to_owned()),
        Identity::Cli { .. } if cause.contains("not found on PATH") => (
            Class::Denied,
            "NoAzureCli",
            "the Azure CLI (az) is not installed or not on the PATH: install it, or sign in by another \
             --azure-credential; in a cluster that is workload-identity"
                .to_owned(),
        ),
        Identity::Cli { .. } if cause.contains("az login") || cause.contains("AADSTS") => {
            (Class::Denied, "AzureCliLoggedOut", format!("run `az login` again; az says: {cause}"))
        }
        Identity::Cli { .. } => (Class::Transient, "SignInFailed", format!("az says: {cause}")),
    };
    AzureError::new(class, code, message)
}

/// No answer from whoever gives the token.
pub(super) fn unreachable(identity: &Identity, why: &AzureError) -> AzureError {
    let message = match identity {
        Identity::Federated { authority, .. } => format!("no token from {authority}: {}", why.message),
        Identity::Assigned { .. } => format!(
            "no token from the metadata service: {}; where the cluster cuts pods off from it (podLinkLocalAccess), \
             use workload-identity",
            why.message
        ),
        Identity::Cli { .. } => why.message.clone(),
    };
    AzureError::new(Class::Transient, "SignInFailed", message)
}

/// An answer that is no token.
pub(super) fn refused(identity: &Identity, answer: &Response<Bytes>) -> AzureError {
    let status = answer.status().as_u16();
    let said: Said = serde_json::from_slice(answer.body()).unwrap_or_default();
    let words = said.words();
    let (class, code, message) = match (status, identity) {
        (429, _) => (Class::Throttled, "SignInThrottled", format!("asked for tokens too often; {words}")),
        (408 | 500.., _) => {
            (Class::Transient, "SignInFailed", format!("no token for the moment (HTTP {status}); {words}"))
        }
        // While the metadata service is being updated.
        (404 | 410, Identity::Assigned { .. }) => (
            Class::Transient,
            "SignInFailed",
            format!("the metadata service gives no token for the moment (HTTP {status}); {words}"),
        ),
        (_, Identity::Assigned { name, .. }) => (
            Class::Denied,
            "NoManagedIdentity",
            format!(
                "this node's VM has no such managed identity ({name}): assign it to the node pool's scale set, or \
                 correct its client id; the metadata service says: {words}"
            ),
        ),
        (_, Identity::Federated { .. }) => entra(identity, &said, status, &words),
        (_, Identity::Cli { .. }) => (Class::Denied, "SignInRefused", words),
    };
    let mut refusal = AzureError::new(class, code, message);
    (refusal.status, refusal.retry_after) = (status, retry_after(answer.headers()));
    refusal
}

fn entra(identity: &Identity, said: &Said, status: u16, words: &str) -> (Class, &'static str, String) {
    let Identity::Federated { client_id, tenant_id, token_file, authority } = identity else {
        return (Class::Denied, "SignInRefused", words.to_owned());
    };
    let (code, action) = match said.code() {
        Some(700_024) => (
            "FederatedTokenExpired",
            format!(
                "the federated token in {token_file} has expired: the pod's service account token is not being \
                 renewed; see that the node's clock is right and its kubelet reaches the API server, or delete \
                 the pod"
            ),
        ),
        Some(700_016 | 7_000_229) => (
            "UnknownClient",
            format!(
                "tenant {tenant_id} has no identity with client id {client_id}: correct \
                 azure.workload.identity/client-id on the operator's service account and delete the pod"
            ),
        ),
        Some(70_021 | 700_211 | 700_212 | 700_213) => (
            "NoFederatedCredential",
            format!(
                "client {client_id} trusts no such service account: create a federated credential with the \
                 cluster's OIDC issuer, the subject system:serviceaccount:NAMESPACE:NAME of the operator and the \
                 audience api://AzureADTokenExchange"
            ),
        ),
        Some(700_027 | 5_000_819) => (
            "FederatedTokenNotTrusted",
            "Entra ID cannot verify the federated token: see that the cluster's OIDC issuer is public and is the \
             one of the federated credential"
                .to_owned(),
        ),
        Some(90_002) => (
            "UnknownTenant",
            format!("{authority} knows no tenant {tenant_id}: correct AZURE_TENANT_ID or --azure-cloud"),
        ),
        Some(500_011) => (
            "WrongCloud",
            format!("tenant {tenant_id} does not know Azure Resource Manager by this name: correct --azure-cloud"),
        ),
        Some(7_000_112) => ("ClientDisabled", format!("client {client_id} is disabled: enable it in Entra ID")),
        // Entra ID's own troubles that come as a 400.
        Some(90_033 | 90_022 | 90_012) => {
            return (Class::Transient, "SignInFailed", format!("no token for the moment; {words}"));
        }
        _ => ("SignInRefused", format!("Entra ID refuses client {client_id} (HTTP {status})")),
    };
    (Class::Denied, code, format!("{action}; Entra ID says: {words}"))
}

/// An error of Entra ID or of the metadata service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    error_description: String,
    error_codes: Vec<u32>,
}

impl Said {
    fn code(&self) -> Option<u32> {
        let in_words = || {
            let digits = self.error_description.strip_prefix("AADSTS")?;
            digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
        };
        self.error_codes.first().copied().or_else(in_words)
    }

    /// The first sentence or so: what follows are ids of traces.
    fn words(&self) -> String {
        let words = self.error_description.split(" Trace ID").next().unwrap_or_default();
        let words = words.lines().next().unwrap_or_default().trim();
        if words.is_empty() { "nothing else".to_owned() } else { words.to_owned() }
    }
}
