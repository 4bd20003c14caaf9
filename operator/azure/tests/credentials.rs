//! Signing in, end to end: a tenant and an ARM that asks for tokens, over TLS by a CA of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use spotpool_azure::{
    AgentPools, ApiVersion, Arm, ArmConfig, Authorized, AzureError, Class, Cloud, ClusterId, CredentialKind,
    HttpOptions, HttpsTransport, TokenSource, Transport,
};
use spotpool_azure_sim::api::{Identity, PoolSpec, State, VmPhase};
use spotpool_azure_sim::client::SimClient;
use spotpool_azure_sim::server::{Options, Server};
use spotpool_azure_sim::tokens::{AuthSettings, ClientSpec, EXCHANGE_AUDIENCE};

const SUBJECT: &str = "system:serviceaccount:spotpool-system:spotpool-operator";
const ISSUER: &str = "https://oidc.example/cluster/";

/// What a kubelet writes into the pod: an assertion of `subject` that is good for so long.
fn assertion(subject: &str, seconds_left: i64) -> String {
    let now = Timestamp::now().as_second();
    let claims = json!({
        "iss": ISSUER, "sub": subject, "aud": [EXCHANGE_AUDIENCE], "iat": now - 10, "nbf": now - 10, "exp": now + seconds_left,
    });
    let part = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.c2lnbmVk",
        part(json!({"alg": "RS256", "typ": "JWT"}).to_string()),
        part(claims.to_string())
    )
}

/// A tenant with one federated client, a cluster that asks for tokens, and an operator's way to both.
struct World {
    server: Server,
    client: SimClient,
    auth: AuthSettings,
    directory: tempfile::TempDir,
    transport: Arc<dyn Transport>,
    ahead: Arc<AtomicI64>,
}

impl World {
    async fn start() -> Self {
        let federated = ClientSpec {
            issuer: Some(ISSUER.into()),
            subject: Some(SUBJECT.into()),
            ..ClientSpec::default()
        };
        let auth = AuthSettings { clients: vec![federated], require_token: true, ..AuthSettings::default() };
        let pools = vec![PoolSpec::spot("spota", "Standard_D4s_v5", 1)];
        let server =
            Server::start(Options { auth: auth.clone(), pools, ..Options::default() }).await.unwrap();
        let client = server.client().unwrap();
        let root = CertificateDer::from_pem_slice(server.ca_pem().as_bytes()).unwrap();
        let options = HttpOptions { extra_roots: vec![root.to_vec()], ..HttpOptions::new("spotpool-test/1") };
        let world = Self {
            client,
            auth,
            directory: tempfile::tempdir().unwrap(),
            transport: Arc::new(HttpsTransport::new(options).unwrap()),
            ahead: Arc::default(),
            server,
        };
        world.project(&assertion(SUBJECT, 600));
        world
    }

    fn token_file(&self) -> std::path::PathBuf {
        self.directory.path().join("azure-identity-token")
    }

    fn project(&self, assertion: &str) {
        std::fs::write(self.token_file(), assertion).unwrap();
    }

    fn later(&self, by: Duration) {
        self.ahead.fetch_add(by.as_secs() as i64, Ordering::SeqCst);
    }

    fn clock(&self) -> spotpool_azure::Clock {
        let ahead = self.ahead.clone();
        Arc::new(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::SeqCst)))
    }

    fn tokens(&self, client_id: &str, tenant_id: &str, token_file: &Path) -> TokenSource {
        let environment = |name: &str| match name {
            "AZURE_CLIENT_ID" => Some(client_id.to_owned()),
            "AZURE_TENANT_ID" => Some(tenant_id.to_owned()),
            "AZURE_FEDERATED_TOKEN_FILE" => Some(token_file.to_str().unwrap().to_owned()),
            "AZURE_AUTHORITY_HOST" => Some(format!("{}/", self.server.tls_url())),
            _ => None,
        };
        CredentialKind::WorkloadIdentity
            .token_source(Cloud::Public, self.transport.clone(), &environment, self.clock())
            .unwrap()
    }

    fn own_tokens(&self) -> TokenSource {
        self.tokens(&self.auth.clients[0].client_id, &self.auth.tenant_id, &self.token_file())
    }

    fn arm(&self, tokens: Option<TokenSource>) -> Arm {
        let (endpoint, identity) = (self.server.tls_url().parse().unwrap(), Identity::default());
        let transport = Authorized::new(self.transport.clone(), &endpoint, tokens).unwrap();
        Arm::new(ArmConfig {
            endpoint,
            cluster: ClusterId {
                subscription_id: identity.subscription,
                resource_group: identity.resource_group,
                cluster_name: identity.cluster,
            },
            api_version: ApiVersion::default(),
            user_agent: "spotpool-test/1".into(),
            transport: Arc::new(transport),
            may_write: Arc::new(|| true),
            clock: self.clock(),
        })
        .unwrap()
    }
}

#[tokio::test]
async fn a_pod_lists_agent_pools_by_its_service_account() {
    let world = World::start().await;
    let arm = world.arm(Some(world.own_tokens()));
    for _ in 0..5 {
        assert_eq!(arm.list().await.unwrap()[0].name, "spota");
    }
    let auth = world.client.auth().await.unwrap();
    assert_eq!((auth.issued.len(), auth.refused.len()), (1, 0), "{auth:?}");
    assert_eq!(auth.issued[0].audience, "https://management.azure.com");

    let error = world.arm(None).list().await.unwrap_err();
    assert_eq!((error.class, error.status), (Class::Denied, 401), "{error}");
}

/// Each mistake of a first installation is told apart, in words that say what to change.
#[tokio::test]
async fn what_is_wrong_with_an_identity_is_said() {
    let world = World::start().await;
    let (own_client, own_tenant) = (&world.auth.clients[0].client_id, &world.auth.tenant_id);
    let other = "99999999-9999-9999-9999-999999999999";
    for (client, tenant, subject, seconds_left, code, action) in [
        (other, own_tenant.as_str(), SUBJECT, 600, "UnknownClient", "azure.workload.identity/client-id"),
        (own_client, other, SUBJECT, 600, "UnknownTenant", "AZURE_TENANT_ID"),
        (
            own_client,
            own_tenant,
            "system:serviceaccount:default:default",
            600,
            "NoFederatedCredential",
            "federated credential",
        ),
        (own_client, own_tenant, SUBJECT, -60, "FederatedTokenExpired", "not being renewed"),
    ] {
        world.project(&assertion(subject, seconds_left));
        let arm = world.arm(Some(world.tokens(client, tenant, &world.token_file())));
        let error = arm.list().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Denied, code), "{error}");
        assert!(error.message.contains(action) && error.message.contains("AADSTS"), "{error}");
    }
}

#[tokio::test]
async fn a_federated_token_that_is_renewed_late_is_read_at_once() {
    let world = World::start().await;
    world.project(&assertion(SUBJECT, -1));
    let arm = world.arm(Some(world.own_tokens()));
    assert_eq!(arm.list().await.unwrap_err().code, "FederatedTokenExpired");
    world.project(&assertion(SUBJECT, 600));
    world.later(Duration::from_secs(2));
    assert_eq!(arm.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_without_anybody_noticing() {
    let world = World::start().await;
    let arm = world.arm(Some(world.own_tokens()));
    arm.list().await.unwrap();
    world.client.revoke_tokens().await.unwrap();
    world.later(Duration::from_mins(2));
    assert_eq!(arm.list().await.unwrap().len(), 1);
    let auth = world.client.auth().await.unwrap();
    assert_eq!((auth.issued.len(), auth.refused.len()), (2, 1), "{auth:?}");
}

#[tokio::test]
async fn a_missing_role_is_named_and_the_token_kept() {
    const READ: &str = "Microsoft.ContainerService/managedClusters/agentPools/read";
    let world = World::start().await;
    let arm = world.arm(Some(world.own_tokens()));
    world.client.deny(&[READ]).await.unwrap();
    for _ in 0..3 {
        world.later(Duration::from_mins(2));
        let error = arm.list().await.unwrap_err();
        assert_eq!((error.class, error.status), (Class::Denied, 403), "{error}");
        assert_eq!(error.missing_action().map(|missing| missing.action.as_str()), Some(READ));
    }
    world.client.deny(&[]).await.unwrap();
    assert_eq!(arm.list().await.unwrap().len(), 1);
    assert_eq!(world.client.auth().await.unwrap().issued.len(), 1, "a token that is good was thrown away");
}

/// Sends what goes to the metadata service to that of one of the simulator's machines.
#[derive(Debug)]
struct OnNode {
    inner: Arc<dyn Transport>,
    imds: String,
}

impl Transport for OnNode {
    fn execute(&self, mut request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, AzureError>> {
        assert_eq!(request.uri().host(), Some("169.254.169.254"));
        let path = request.uri().path_and_query().unwrap().clone();
        *request.uri_mut() = format!("{}{path}", self.imds).parse().unwrap();
        self.inner.execute(request)
    }
}

#[tokio::test]
async fn a_node_lists_agent_pools_by_its_managed_identity() {
    let world = World::start().await;
    let running = |state: &State| state.vms[0].phase == VmPhase::Running;
    let state = world.client.wait_until("the node runs", Duration::from_mins(2), running).await.unwrap();
    let imds = world.client.imds_endpoint(&state.vms[0].node);
    let on_node: Arc<dyn Transport> = Arc::new(OnNode { inner: world.transport.clone(), imds });
    let tokens = |client_id: &str| {
        CredentialKind::ManagedIdentity { client_id: Some(client_id.to_owned()) }
            .token_source(Cloud::Public, on_node.clone(), &|_| None, world.clock())
            .unwrap()
    };
    let arm = world.arm(Some(tokens(&world.auth.clients[0].client_id)));
    assert_eq!(arm.list().await.unwrap().len(), 1);
    assert!(world.client.auth().await.unwrap().issued[0].managed_identity);

    let arm = world.arm(Some(tokens("99999999-9999-9999-9999-999999999999")));
    let error = arm.list().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Denied, "NoManagedIdentity"), "{error}");
}
