//! Credentials: whoever signs in wrongly must learn it here, in Azure's words, and not in production.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Method;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Fault, FaultAction, FaultTarget, PoolSpec};
use spotpool_azure_sim::scenario::Step;
use spotpool_azure_sim::server::{Options, Server};
use spotpool_azure_sim::tokens::{ASSERTION_TYPE, AuthPatch, AuthSettings, ClientSpec, EXCHANGE_AUDIENCE};

use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::{Answer, Bench, SIZE};

const SUBJECT: &str = "system:serviceaccount:spotpool-system:spotpool-operator";
const ISSUER: &str = "https://oidc.example/cluster/";
const SCOPE: &str = "https://management.azure.com/.default";

/// A simulator that asks for tokens and knows one client, federated with one ServiceAccount.
struct Tenant {
    bench: Bench,
    https: Https,
    settings: AuthSettings,
}

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client that trusts these authorities and no others.
fn https(authorities: &[&str]) -> Https {
    let mut roots = RootCertStore::empty();
    for pem in authorities {
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
    Client::builder(TokioExecutor::new()).build(connector)
}

impl Tenant {
    async fn start() -> Self {
        let client = ClientSpec {
            issuer: Some(ISSUER.into()),
            subject: Some(SUBJECT.into()),
            ..ClientSpec::default()
        };
        let auth = AuthSettings { clients: vec![client], require_token: true, ..AuthSettings::default() };
        let options = Options {
            auth: auth.clone(),
            pools: vec![PoolSpec::spot("spota", SIZE, 1)],
            ..Options::default()
        };
        let server = Server::start(options).await.unwrap();
        let client = server.client().unwrap();
        let https = https(&[server.ca_pem()]);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { bench: Bench { server, client, http }, https, settings: auth }
    }

    fn form(&self, assertion: &str) -> Vec<(&'static str, String)> {
        vec![
            ("grant_type", "client_credentials".into()),
            ("client_id", self.settings.clients[0].client_id.clone()),
            ("scope", SCOPE.into()),
            ("client_assertion_type", ASSERTION_TYPE.into()),
            ("client_assertion", assertion.into()),
        ]
    }

    async fn ask_at(&self, tenant: &str, form: &[(&str, String)]) -> Answer {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.bench.server.tls_url());
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.send(Method::POST, &url, &[("content-type", "application/x-www-form-urlencoded")], body).await
    }

    /// Over TLS.
    async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.https.request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, headers, body: serde_json::from_slice(&body).unwrap() }
    }

    async fn ask(&self, form: &[(&str, String)]) -> Answer {
        self.ask_at(&self.settings.tenant_id, form).await
    }

    async fn token(&self) -> String {
        let answer = self.ask(&self.form(&assertion(600))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["access_token"].as_str().unwrap().to_owned()
    }

    async fn list(&self, authorization: Option<&str>) -> Answer {
        self.arm(Method::GET, "", authorization).await
    }

    async fn arm(&self, method: Method, pool: &str, authorization: Option<&str>) -> Answer {
        let url = self.bench.pool_url(pool).replace("/?", "?");
        let headers: Vec<(&str, &str)> =
            authorization.map(|value| ("authorization", value)).into_iter().collect();
        let body = (method == Method::PUT).then(|| json!({"properties": {"count": 1}}));
        self.bench.send(method, &url, &headers, body.as_ref()).await
    }
}

fn assertion(seconds_left: i64) -> String {
    let now = Timestamp::now().as_second();
    jwt(&json!({
        "iss": ISSUER, "sub": SUBJECT, "aud": [EXCHANGE_AUDIENCE], "iat": now - 10, "nbf": now - 10,
        "exp": now + seconds_left,
    }))
}

fn jwt(claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2lnbmVk", part(&json!({"alg": "RS256", "typ": "JWT"})), part(claims))
}

#[tokio::test]
async fn an_assertion_buys_a_token_and_the_token_lets_one_in() {
    let tenant = Tenant::start().await;
    let missing = tenant.list(None).await;
    assert_eq!((missing.status, missing.code()), (401, "AuthenticationFailed"));
    assert!(missing.header("www-authenticate").starts_with("Bearer authorization_uri="), "{missing:?}");
    let wrong = tenant.list(Some("Bearer nonsense")).await;
    assert_eq!((wrong.status, wrong.code()), (401, "InvalidAuthenticationToken"));

    let issued = tenant.ask(&tenant.form(&assertion(600))).await;
    assert_eq!((issued.status, &issued.body["token_type"]), (200, &json!("Bearer")));
    assert_eq!((&issued.body["expires_in"], &issued.body["ext_expires_in"]), (&json!(86400), &json!(86400)));
    let token = issued.body["access_token"].as_str().unwrap();
    let listed = tenant.list(Some(&format!("Bearer {token}"))).await;
    assert_eq!((listed.status, listed.body["value"][0]["name"].as_str()), (200, Some("spota")));
    // ARM over TLS too, and what it links to is found the same way.
    let url =
        tenant.bench.pool_url("spota").replace(&tenant.bench.server.url(), &tenant.bench.server.tls_url());
    let authorization = format!("bearer {token}");
    let body = json!({"properties": {"count": 1}}).to_string();
    let put = tenant.send(Method::PUT, &url, &[("authorization", &authorization)], body).await;
    assert!(put.header("azure-asyncoperation").starts_with(&tenant.bench.server.tls_url()), "{put:?}");

    let seen = tenant.bench.client.auth().await.unwrap();
    assert_eq!(seen.issued.len(), 1);
    assert_eq!(
        (seen.issued[0].token.as_str(), seen.issued[0].audience.as_str()),
        (token, "https://management.azure.com")
    );
    assert_eq!(seen.secrets().count(), 2, "the token and the assertion");
    let codes: Vec<&str> = seen.refused.iter().map(|refused| refused.code.as_str()).collect();
    assert_eq!(codes, ["AuthenticationFailed", "InvalidAuthenticationToken"]);
}

#[tokio::test]
async fn what_entra_refuses_is_refused_in_its_words() {
    let tenant = Tenant::start().await;
    let good = assertion(600);
    let now = Timestamp::now().as_second();
    let claims = |issuer: &str, subject: &str, audience: &str| {
        jwt(&json!({"iss": issuer, "sub": subject, "aud": audience, "exp": now + 600}))
    };
    let without = |key: &str| -> Vec<(&'static str, String)> {
        tenant.form(&good).into_iter().filter(|(name, _)| *name != key).collect()
    };
    let with = |key: &'static str, value: &str| {
        let mut form = without(key);
        form.push((key, value.to_owned()));
        form
    };
    let cases = [
        (without("grant_type"), 400, "invalid_request", 900_144, "'grant_type'"),
        (without("client_id"), 400, "invalid_request", 900_144, "'client_id'"),
        (without("scope"), 400, "invalid_request", 900_144, "'scope'"),
        (with("grant_type", "password"), 400, "unsupported_grant_type", 70_003, "'password'"),
        (
            with("client_id", "nobody"),
            400,
            "unauthorized_client",
            700_016,
            "Application with identifier 'nobody' was not found",
        ),
        (without("client_assertion"), 401, "invalid_client", 7_000_218, "client_assertion"),
        (with("client_assertion_type", "jwt"), 401, "invalid_client", 7_000_218, "client_assertion"),
        (with("client_assertion", "nonsense"), 400, "invalid_request", 50_027, "malformed"),
        (
            tenant.form(&claims("https://other/", SUBJECT, EXCHANGE_AUDIENCE)),
            401,
            "invalid_client",
            700_211,
            "issuer 'https://other/'",
        ),
        (
            tenant.form(&claims(ISSUER, SUBJECT, "https://kubernetes")),
            401,
            "invalid_client",
            700_212,
            "audience 'https://kubernetes'",
        ),
        (
            tenant.form(&claims(ISSUER, "system:serviceaccount:a:b", EXCHANGE_AUDIENCE)),
            401,
            "invalid_client",
            700_213,
            "subject 'system:serviceaccount:a:b'",
        ),
        (
            tenant.form(&assertion(-1)),
            401,
            "invalid_client",
            700_024,
            "Client assertion is not within its valid time range. Current time: 20",
        ),
        (with("scope", "https://management.azure.com"), 400, "invalid_scope", 1_002_012, "/.default"),
        (
            with("scope", "https://vault.azure.net/.default"),
            400,
            "invalid_resource",
            500_011,
            "https://vault.azure.net",
        ),
    ];
    let expected = cases.len();
    for (form, status, error, number, said) in cases {
        let answer = tenant.ask(&form).await;
        assert_eq!((answer.status, &answer.body["error"]), (status, &json!(error)), "{said}: {answer:?}");
        assert_eq!(answer.body["error_codes"], json!([number]));
        let description = answer.body["error_description"].as_str().unwrap();
        assert!(
            description.starts_with(&format!("AADSTS{number}: ")) && description.contains(said),
            "{description}"
        );
        assert!(description.contains(" Trace ID: ") && description.contains(" Timestamp: "), "{description}");
    }
    let elsewhere = tenant.ask_at("44444444-4444-4444-4444-444444444444", &tenant.form(&good)).await;
    assert_eq!((elsewhere.status, &elsewhere.body["error_codes"]), (400, &json!([90_002])));
    let seen = tenant.bench.client.auth().await.unwrap();
    assert_eq!((seen.issued.len(), seen.refused.len()), (0, expected + 1));
}

#[tokio::test]
async fn credentials_in_plain_text_and_strangers_certificates_get_nowhere() {
    let tenant = Tenant::start().await;
    let url = format!("{}/{}/oauth2/v2.0/token", tenant.bench.server.url(), tenant.settings.tenant_id);
    let plain = tenant.bench.send(Method::POST, &url, &[], Some(&json!({}))).await;
    assert_eq!(plain.status, 404);
    let other = Tenant::start().await;
    let stranger = https(&[other.bench.server.ca_pem()]);
    let refused = stranger.get(tenant.bench.server.tls_url().parse().unwrap()).await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
}

#[tokio::test]
async fn tokens_end_when_they_expire_and_when_they_are_revoked() {
    let tenant = Tenant::start().await;
    let bearer = format!("Bearer {}", tenant.token().await);
    assert_eq!(tenant.list(Some(&bearer)).await.status, 200);
    tenant.bench.client.revoke_tokens().await.unwrap();
    let revoked = tenant.list(Some(&bearer)).await;
    assert_eq!((revoked.status, revoked.code()), (401, "InvalidAuthenticationToken"));

    let brief = AuthPatch { token_lifetime: Some(Duration::ZERO), ..AuthPatch::default() };
    tenant.bench.client.change_auth(&brief).await.unwrap();
    let issued = tenant.ask(&tenant.form(&assertion(600))).await;
    assert_eq!(issued.body["expires_in"], 0);
    let bearer = format!("Bearer {}", issued.body["access_token"].as_str().unwrap());
    let expired = tenant.list(Some(&bearer)).await;
    assert_eq!((expired.status, expired.code()), (401, "ExpiredAuthenticationToken"));
    assert!(expired.header("www-authenticate").contains("error=\"invalid_token\""));
}

#[tokio::test]
async fn a_denied_action_is_named_with_client_and_scope_and_others_go_on() {
    let tenant = Tenant::start().await;
    let bearer = format!("Bearer {}", tenant.token().await);
    tenant.bench.client.deny(&["microsoft.containerservice/managedclusters/agentpools/WRITE"]).await.unwrap();
    let denied = tenant.arm(Method::PUT, "spota", Some(&bearer)).await;
    assert_eq!((denied.status, denied.code()), (403, "AuthorizationFailed"));
    let ClientSpec { client_id, object_id, .. } = &tenant.settings.clients[0];
    let scope = spotpool_azure_sim::body::pool_id(&spotpool_azure_sim::api::Identity::default(), "spota");
    assert_eq!(
        denied.body["error"]["message"],
        format!(
            "The client '{client_id}' with object id '{object_id}' does not have authorization to perform action 'Microsoft.ContainerService/managedClusters/agentPools/write' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials."
        )
    );
    assert_eq!(tenant.list(Some(&bearer)).await.status, 200);
    // Refused writes are on record: whoever counts attempts must see them.
    let state = tenant.bench.client.state().await.unwrap();
    assert_eq!(state.writes_to("spota").map(|write| write.status).collect::<Vec<_>>(), [403]);
    tenant.bench.client.deny(&[]).await.unwrap();
    assert_eq!(tenant.arm(Method::PUT, "spota", Some(&bearer)).await.status, 200);
}

#[tokio::test]
async fn the_token_endpoint_can_be_broken() {
    let tenant = Tenant::start().await;
    let fault = Fault { target: FaultTarget::Tokens {}, times: Some(1), action: FaultAction::throttled(7) };
    tenant.bench.client.add_fault(&fault).await.unwrap();
    let throttled = tenant.ask(&tenant.form(&assertion(600))).await;
    assert_eq!((throttled.status, throttled.header("retry-after")), (429, "7"));
    assert_eq!(tenant.ask(&tenant.form(&assertion(600))).await.status, 200);
}

#[tokio::test]
async fn machines_get_tokens_of_their_identities_with_every_number_a_string() {
    let tenant = Tenant::start().await;
    let node = &tenant.bench.nodes("spota").await[0];
    let endpoint = format!("{}/metadata/identity/oauth2/token", tenant.bench.client.imds_endpoint(node));
    let ask = async |query: &str, headers: &[(&str, &str)]| {
        tenant.bench.send(Method::GET, &format!("{endpoint}?{query}"), headers, None).await
    };
    let metadata = [("metadata", "true")];
    let base = "api-version=2018-02-01&resource=https://management.azure.com/";
    let client_id = &tenant.settings.clients[0].client_id;
    let given = ask(&format!("{base}&client_id={client_id}"), &metadata).await;
    assert_eq!(given.status, 200, "{given:?}");
    assert_eq!(given.body["expires_in"], "86400");
    let expires: i64 = given.body["expires_on"].as_str().unwrap().parse().unwrap();
    assert!(expires > Timestamp::now().as_second());
    let bearer = format!("Bearer {}", given.body["access_token"].as_str().unwrap());
    assert_eq!(tenant.list(Some(&bearer)).await.status, 200);

    assert_eq!(ask(base, &[]).await.status, 400, "no Metadata header");
    let unknown = ask(&format!("{base}&client_id=nobody"), &metadata).await;
    assert_eq!(unknown.status, 400);
    assert_eq!(unknown.body, json!({"error": "invalid_request", "error_description": "Identity not found"}));
    assert_eq!(ask("api-version=2018-02-01", &metadata).await.status, 400);
    let other = ClientSpec { client_id: "other".into(), ..ClientSpec::default() };
    let clients = Some(vec![ClientSpec::default(), other]);
    tenant.bench.client.change_auth(&AuthPatch { clients, ..AuthPatch::default() }).await.unwrap();
    // The fifth request in this second: a sixth would be refused for another reason.
    let which = ask(base, &metadata).await;
    assert!(
        which.body["error_description"].as_str().unwrap().starts_with("Multiple user assigned identities")
    );
}

#[tokio::test]
async fn a_scenario_takes_rights_and_tokens_away() {
    let tenant = Tenant::start().await;
    let bearer = format!("Bearer {}", tenant.token().await);
    let act = async |step: &str| tenant.bench.client.act(&Step::now(step).unwrap()).await.unwrap();
    act("auth: {denied: [{action: Microsoft.ContainerService/managedClusters/agentPools/read}], tokenLifetime: 5m}").await;
    assert_eq!(tenant.list(Some(&bearer)).await.status, 403);
    act("auth: {denied: []}").await;
    assert_eq!(tenant.list(Some(&bearer)).await.status, 200);
    act("revokeTokens: {}").await;
    assert_eq!(tenant.list(Some(&bearer)).await.status, 401);
    assert_eq!(tenant.ask(&tenant.form(&assertion(600))).await.body["expires_in"], 300);
}

#[test]
fn the_program_says_all_that_a_client_needs_and_writes_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    let flags =
        ["--require-token", "--token-lifetime", "1h", "--tenant-id", "t1", "--client-id", "c1", "--ca-file"];
    let mut served = Command::new(env!("CARGO_BIN_EXE_spotpool-azure-sim"))
        .args(["serve", "--no-kubernetes"])
        .args(flags)
        .arg(&ca_file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(served.stdout.take().unwrap()).read_line(&mut line).unwrap();
    served.kill().unwrap();
    served.wait().unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let tls_url = ready["tlsUrl"].as_str().unwrap();
    assert!(tls_url.starts_with("https://127.0.0.1:"), "{line}");
    assert_eq!(ready["authorityHost"], format!("{tls_url}/"));
    assert_eq!((&ready["tenantId"], &ready["clientIds"]), (&json!("t1"), &json!(["c1"])));
    assert_eq!(ready["pricesEndpoint"], ready["url"]);
    assert_eq!(ready["caFile"], json!(ca_file));
    let written = std::fs::read_to_string(&ca_file).unwrap();
    assert!(written.starts_with("-----BEGIN CERTIFICATE-----") && ready["caPem"] == json!(written));

    for (flag, value) in
        [("--ca-file", "/nonexistent/ca.pem"), ("--tls-listen", "here"), ("--token-lifetime", "soon")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_spotpool-azure-sim"))
            .args(["serve", "--no-kubernetes", flag, value])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {said}");
        assert!(said.lines().count() == 1 && said.contains(flag), "{flag}: {said}");
    }
}
