//! Signing in to Azure, and what happens when that, or a right, is missing: on a real control plane, against a
//! tenant that speaks TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use spotpool_azure_sim::api::{Envelope, Fault, FaultAction, FaultTarget, PoolSpec};
use spotpool_azure_sim::tokens::AuthPatch;
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::wait::within;
use spotpool_e2e::{Operator, OperatorOptions, Stage, World, WorldOptions, run};

const WRITE: &str = "Microsoft.ContainerService/managedClusters/agentPools/write";
const READ: &str = "Microsoft.ContainerService/managedClusters/agentPools/read";

/// The token that AKS would project into the operator's Pod, from the cluster's own issuer.
async fn federated_token(stage: &Stage<'_>, seconds: u64) -> PathBuf {
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.world.client.clone(), &stage.name);
    let request: TokenRequest = serde_json::from_value(json!({
        "metadata": {},
        "spec": {"audiences": ["api://AzureADTokenExchange"], "expirationSeconds": seconds}
    }))
    .unwrap();
    let parameters = PostParams::default();
    let answer = accounts.create_token_request("spotpool-operator", &parameters, &request).await.unwrap();
    let path = stage.world.cluster.dir().join("azure-identity-token");
    std::fs::write(&path, answer.status.unwrap().token).unwrap();
    path
}

/// An operator that signs in as it would on AKS, and logs all that can be logged.
async fn operator(stage: &Stage<'_>, replica: &str, token: &Path) -> Operator {
    let said = |key: &str| stage.world.sim_said[key].as_str().unwrap().to_owned();
    let client = stage.world.sim_said["clientIds"][0].as_str().unwrap().to_owned();
    let ca = stage.world.cluster.dir().join("azure-ca.pem");
    std::fs::write(&ca, said("caPem")).unwrap();
    let ca = ca.display().to_string();
    let variable = |name: &str, value: String| (name.to_owned(), value);
    let options = OperatorOptions {
        replica: replica.into(),
        azure_endpoint: Some(said("tlsUrl")),
        azure_credential: Some("workload-identity".into()),
        args: ["--ca-bundle", &ca, "--log-level", "trace"].map(str::to_owned).to_vec(),
        env: vec![
            variable("AZURE_CLIENT_ID", client),
            variable("AZURE_TENANT_ID", said("tenantId")),
            variable("AZURE_AUTHORITY_HOST", said("authorityHost")),
            variable("AZURE_FEDERATED_TOKEN_FILE", token.display().to_string()),
        ],
        ..OperatorOptions::default()
    };
    stage.operator(&options).await.unwrap()
}

fn unreachable(status: &SpotPoolStatus) -> Option<String> {
    let condition = status.conditions.iter().find(|it| it.type_ == "AzureReachable")?;
    (condition.status == "False").then(|| condition.message.clone())
}

/// Every byte that the operator wrote where people or other programs read.
async fn everything_written(stage: &Stage<'_>) -> String {
    let mut written = String::new();
    for log in std::fs::read_dir(stage.world.cluster.dir().join("log")).unwrap() {
        let path = log.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with(&stage.name) {
            written += &std::fs::read_to_string(path).unwrap();
        }
    }
    let events: Api<Event> = Api::namespaced(stage.world.client.clone(), &stage.name);
    for event in events.list(&ListParams::default()).await.unwrap() {
        written += &serde_json::to_string(&event).unwrap();
    }
    for pool in stage.spot_pools().list(&ListParams::default()).await.unwrap() {
        written += &serde_json::to_string(&pool).unwrap();
    }
    written
}

#[test]
fn the_operator_signs_in_outlives_what_is_taken_from_it_and_writes_no_secret_down() {
    run(async {
        let options = WorldOptions { agents: false, ..WorldOptions::default() };
        let world = World::start(options).await.unwrap();
        let sim = &world.sim;
        let require = AuthPatch { require_token: Some(true), ..AuthPatch::default() };
        sim.change_auth(&require).await.unwrap();
        let stage = Stage::set(&world, "access").await.unwrap();
        let pools: Vec<PoolSpec> =
            ["accessa", "accessb"].map(|name| PoolSpec::spot(name, "Standard_D4s_v5", 1)).to_vec();
        stage.agent_pools(&pools).await.unwrap();
        let token = federated_token(&stage, 3600).await;
        let first = operator(&stage, "first", &token).await;

        // Signed in: the pool grows.
        let spec = |replicas: u32| {
            json!({"replicas": replicas,
                "agentPools": [{"name": "accessa", "maxNodes": 9}, {"name": "accessb", "maxNodes": 9}]})
        };
        stage.spot_pool("p", spec(3)).await.unwrap();
        stage.status_is("p", "3 ready", |status| status.ready_replicas == 3).await.unwrap();

        // A token that is revoked is replaced, and nobody notices.
        sim.revoke_tokens().await.unwrap();
        // Not allowed to write: said with the very action; reading and watching go on.
        sim.deny(&[WRITE]).await.unwrap();
        stage.spot_pool("p", spec(4)).await.unwrap();
        let status = stage
            .status_is("p", "the missing action to be named", |status| {
                let error = |pool: &spotpool_crds::spot_pool::AgentPoolStatus| pool.last_error.clone();
                status.agent_pools.iter().filter_map(error).any(|error| error.message.contains(WRITE))
            })
            .await
            .unwrap();
        assert_eq!(unreachable(&status), None, "reads are allowed");
        assert_eq!(status.ready_replicas, 3);

        // Not allowed to read: a restart must not hide it.
        sim.deny(&[READ]).await.unwrap();
        first.stop().await.unwrap();
        let second = operator(&stage, "second", &token).await;
        let status = stage
            .status_is("p", "the missing right to read", |status| {
                unreachable(status)
                    .is_some_and(|why| why.contains(READ) && why.contains("AuthorizationFailed"))
            })
            .await
            .unwrap();
        // Whoever scales by it must not see capacity vanish because Azure does not answer.
        assert_eq!(status.ready_replicas, 3);
        second.process.check_running().unwrap();
        sim.deny(&[]).await.unwrap();
        // Within a minute of the grant.
        within(Duration::from_mins(3), "4 ready", async || {
            Ok((stage.status("p").await?.ready_replicas == 4).then_some(()))
        })
        .await
        .unwrap();
        second.stop().await.unwrap();

        // A federated token that ran out: said with what to do; a new one in the file is enough.
        std::fs::write(&token, expired_token()).unwrap();
        let third = operator(&stage, "third", &token).await;
        let status = stage
            .status_is("p", "the expired token", |status| {
                unreachable(status).is_some_and(|why| why.contains("expired"))
            })
            .await
            .unwrap();
        assert!(unreachable(&status).unwrap().contains("token"), "{status:?}");
        third.process.check_running().unwrap();
        federated_token(&stage, 3600).await;
        stage
            .status_is("p", "Azure to be reached again", |status| unreachable(status).is_none())
            .await
            .unwrap();

        // A failing write and an operation, for their URLs.
        let action = FaultAction::Error {
            status: 500,
            code: "InternalServerError".into(),
            message: "for a test".into(),
            envelope: Envelope::Wrapped,
            retry_after: None,
        };
        let target = FaultTarget::arm("PUT", "/agentPools/accessa");
        sim.add_fault(&Fault { target, times: Some(1), action }).await.unwrap();
        sim.evict_some("accessa", 1, Duration::from_secs(2)).await.unwrap();
        stage.status_is("p", "the eviction to show", |status| status.ready_replicas == 3).await.unwrap();
        stage.status_is("p", "4 ready again", |status| status.ready_replicas == 4).await.unwrap();
        third.stop().await.unwrap();

        let written = everything_written(&stage).await;
        assert!(written.len() > 100_000, "logs at trace level are long: {}", written.len());
        let auth = sim.auth().await.unwrap();
        assert!(auth.issued.len() >= 3 && auth.assertions.len() >= 3, "{auth:?}");
        for secret in auth.secrets() {
            assert!(!written.contains(secret), "a secret was written down: {}…", &secret[..12]);
        }
        let current = std::fs::read_to_string(&token).unwrap();
        assert!(!written.contains(&current), "the federated token was written down");
        // The part of an operation's URL that signs it.
        let signed =
            written.match_indices("/operations/").map(|(at, _)| &written[at..written.len().min(at + 200)]);
        let signed: Vec<&str> = signed.filter(|text| text.contains("&s=") || text.contains("&h=")).collect();
        assert!(signed.is_empty(), "a signed URL was written down: {signed:?}");
        world.stop().await.unwrap();
    });
}

fn expired_token() -> String {
    let head = json!({"alg": "RS256", "typ": "JWT"});
    let claims = json!({"iss": "https://issuer.test/", "sub": "system:serviceaccount:access:spotpool-operator",
        "aud": ["api://AzureADTokenExchange"], "iat": 999_990_000, "nbf": 999_990_000, "exp": 1_000_000_000});
    let part = |part: &serde_json::Value| base64url(part.to_string().as_bytes());
    format!("{}.{}.c2lnbmVk", part(&head), part(&claims))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}
