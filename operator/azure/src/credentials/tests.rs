use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Mutex;

use axum::Router;
use axum::routing::{get, post};
use http::Request;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::http::{HttpOptions, HttpsTransport};
use crate::stub::{Answers, Authority, Hands, answer, in_a_process, is_child, serve_tls};
use crate::tokens::Authorized;

const CLIENT: &str = "11111111-1111-1111-1111-111111111111";
const TENANT: &str = "33333333-3333-3333-3333-333333333333";
const MINUTE: Duration = Duration::from_mins(1);

fn token_file(assertion: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(assertion.as_bytes()).unwrap();
    file
}

/// The environment as AKS's webhook sets it.
fn injected(token_file: &Path) -> BTreeMap<String, String> {
    [
        ("AZURE_CLIENT_ID", CLIENT),
        ("AZURE_TENANT_ID", TENANT),
        ("AZURE_FEDERATED_TOKEN_FILE", token_file.to_str().unwrap()),
        ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn federated(
    cloud: Cloud,
    transport: Arc<dyn Transport>,
    environment: &BTreeMap<String, String>,
    hands: &Hands,
) -> TokenSource {
    let variable = |name: &str| environment.get(name).cloned();
    CredentialKind::WorkloadIdentity.token_source(cloud, transport, &variable, hands.clock()).unwrap()
}

fn managed(client_id: Option<&str>, transport: Arc<dyn Transport>, hands: &Hands) -> TokenSource {
    CredentialKind::ManagedIdentity { client_id: client_id.map(str::to_owned) }
        .token_source(Cloud::Public, transport, &|_| None, hands.clock())
        .unwrap()
}

fn issued(token: &str) -> http::Response<Bytes> {
    let body =
        json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token});
    answer(200, body.to_string())
}

fn entra_refusal(code: u32, words: &str) -> http::Response<Bytes> {
    let description = format!(
        "AADSTS{code}: {words} Trace ID: 0a0b0c0d-0000-0000-0000-000000000000 Correlation ID: \
         0a0b0c0d-1111-0000-0000-000000000000 Timestamp: 2026-03-01 12:00:00Z"
    );
    let body = json!({"error": "invalid_client", "error_description": description, "error_codes": [code]});
    answer(400, body.to_string())
}

fn form(request: &Request<Bytes>) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(request.body()).into_owned().collect()
}

#[tokio::test]
async fn a_pod_signs_in_by_its_service_account() {
    let (file, hands) = (token_file("first-assertion"), Hands::set());
    let entra = Answers::by(|request| Ok(issued(&format!("for {}", form(request)["client_assertion"]))));
    let tokens = federated(Cloud::Public, entra.clone(), &injected(file.path()), &hands);
    assert_eq!(tokens.token().await.unwrap().expose(), "for first-assertion");
    assert_eq!(tokens.token().await.unwrap().expose(), "for first-assertion");

    let asked = entra.asked();
    assert_eq!(asked.len(), 1, "the token was not kept");
    assert_eq!(asked[0].method(), "POST");
    assert_eq!(asked[0].uri(), &*format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token"));
    let form = form(&asked[0]);
    for (name, value) in [
        ("client_id", CLIENT),
        ("scope", "https://management.azure.com/.default"),
        ("grant_type", "client_credentials"),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", "first-assertion"),
    ] {
        assert_eq!(form[name], value, "{name}");
    }
}

/// The kubelet renews the file; Entra ID refuses an assertion that ran out. Nothing may be kept of it.
#[tokio::test]
async fn the_federated_token_is_read_anew_each_time() {
    let (file, hands) = (token_file("old"), Hands::set());
    let entra = Answers::by(|request| match form(request)["client_assertion"].as_str() {
        "old" => Ok(entra_refusal(700_024, "Client assertion is not within its valid time range.")),
        fresh => Ok(issued(fresh)),
    });
    let tokens = federated(Cloud::Public, entra.clone(), &injected(file.path()), &hands);
    let error = tokens.token().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Denied, "FederatedTokenExpired"));
    assert!(error.message.contains(file.path().to_str().unwrap()), "{error}");

    std::fs::write(file.path(), "renewed").unwrap();
    hands.forward(Duration::from_secs(2));
    assert_eq!(tokens.token().await.unwrap().expose(), "renewed");
    assert_eq!(entra.asked().len(), 2);
}

#[tokio::test]
async fn each_cloud_has_its_own_authority_and_scope() {
    for (cloud, authority, scope) in [
        (Cloud::Public, "login.microsoftonline.com", "https://management.azure.com/.default"),
        (Cloud::UsGovernment, "login.microsoftonline.us", "https://management.usgovcloudapi.net/.default"),
        (Cloud::China, "login.chinacloudapi.cn", "https://management.chinacloudapi.cn/.default"),
    ] {
        let (file, hands) = (token_file("assertion"), Hands::set());
        let entra = Answers::by(|_| Ok(issued("token")));
        let mut environment = injected(file.path());
        environment.remove("AZURE_AUTHORITY_HOST");
        federated(cloud, entra.clone(), &environment, &hands).token().await.unwrap();
        assert_eq!(entra.asked()[0].uri().host(), Some(authority));
        assert_eq!(form(&entra.asked()[0])["scope"], scope);

        // The webhook's word counts: it knows where the pod is.
        environment.insert("AZURE_AUTHORITY_HOST".into(), "https://login.example.org/".into());
        federated(cloud, entra.clone(), &environment, &hands).token().await.unwrap();
        assert_eq!(entra.asked()[1].uri().host(), Some("login.example.org"));
    }
}

#[tokio::test]
async fn every_refusal_of_entra_id_says_what_to_do() {
    for (code, name, class, action) in [
        (700_024, "FederatedTokenExpired", Class::Denied, "is not being renewed"),
        (700_016, "UnknownClient", Class::Denied, "azure.workload.identity/client-id"),
        (7_000_229, "UnknownClient", Class::Denied, CLIENT),
        (70_021, "NoFederatedCredential", Class::Denied, "create a federated credential"),
        (700_213, "NoFederatedCredential", Class::Denied, "system:serviceaccount:"),
        (700_211, "NoFederatedCredential", Class::Denied, "OIDC issuer"),
        (700_027, "FederatedTokenNotTrusted", Class::Denied, "OIDC issuer"),
        (90_002, "UnknownTenant", Class::Denied, TENANT),
        (500_011, "WrongCloud", Class::Denied, "--azure-cloud"),
        (7_000_112, "ClientDisabled", Class::Denied, "enable it"),
        (53_003, "SignInRefused", Class::Denied, CLIENT),
        (90_033, "SignInFailed", Class::Transient, "for the moment"),
    ] {
        let (file, hands) = (token_file("s3cr3t-assertion"), Hands::set());
        let entra = Answers::by(move |_| Ok(entra_refusal(code, "Words of Entra ID.")));
        let tokens = federated(Cloud::Public, entra, &injected(file.path()), &hands);
        let error = tokens.token().await.unwrap_err();
        assert_eq!((error.code.as_str(), error.class, error.status), (name, class, 400), "{error}");
        assert!(error.message.contains(action), "{code}: {error}");
        assert!(error.message.contains(&format!("AADSTS{code}: Words of Entra ID.")), "cut off: {error}");
        assert!(!error.message.contains("Trace ID"), "{error}");
        assert!(!format!("{error:?}").contains("s3cr3t-assertion"));
    }
}

#[tokio::test]
async fn trouble_on_the_way_passes_by_itself() {
    let throttled = || {
        let mut throttled = answer(429, r#"{"error":"temporarily_unavailable"}"#);
        throttled.headers_mut().insert("retry-after", "17".parse().unwrap());
        throttled
    };
    let no_route = || AzureError::new(Class::Transient, "ConnectionFailed", "no route");
    let (file, hands) = (token_file("assertion"), Hands::set());
    for (replied, class, code) in [
        (Ok(throttled()), Class::Throttled, "SignInThrottled"),
        (Ok(answer(503, "<html>")), Class::Transient, "SignInFailed"),
        (Err(no_route()), Class::Transient, "SignInFailed"),
    ] {
        let retry_after =
            replied.as_ref().is_ok_and(|reply| reply.status() == 429).then(|| Duration::from_secs(17));
        let entra = Answers::by(move |_| replied.clone());
        let tokens = federated(Cloud::Public, entra.clone(), &injected(file.path()), &hands);
        let error = tokens.token().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str(), error.retry_after), (class, code, retry_after));
        assert_eq!(entra.asked().len(), 1, "it was tried again behind our back");
        assert!(!error.outcome_unknown(), "a write that lacked a token was never sent: {error}");
    }
}

#[tokio::test]
async fn what_the_webhook_has_not_done_is_named() {
    let hands = Hands::set();
    let silent = Answers::by(|_| Ok(issued("token")));
    let file = token_file("assertion");
    for missing in ["AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"] {
        let mut environment = injected(file.path());
        environment.remove(missing);
        let error = federated(Cloud::Public, silent.clone(), &environment, &hands).token().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Denied, "NoWorkloadIdentity"));
        assert!(
            error.message.starts_with(missing) && error.message.contains("azure.workload.identity/use"),
            "{error}"
        );
    }
    let environment = injected(Path::new("/nowhere/azure-identity-token"));
    let error = federated(Cloud::Public, silent.clone(), &environment, &hands).token().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Denied, "NoFederatedToken"));
    assert!(error.message.contains("/nowhere/azure-identity-token"), "{error}");
    assert!(silent.asked().is_empty());
}

#[tokio::test]
async fn a_node_signs_in_by_its_managed_identity() {
    let hands = Hands::set();
    let imds = Answers::by(|_| {
        let expires_on = (OffsetDateTime::now_utc().unix_timestamp() + 86_400).to_string();
        let body = json!({"access_token": "managed", "client_id": CLIENT, "expires_in": "86400", "expires_on": expires_on,
            "ext_expires_in": "86399", "not_before": "0", "resource": "https://management.azure.com", "token_type": "Bearer"});
        Ok(answer(200, body.to_string()))
    });
    assert_eq!(managed(Some(CLIENT), imds.clone(), &hands).token().await.unwrap().expose(), "managed");
    managed(None, imds.clone(), &hands).token().await.unwrap();
    let asked = imds.asked();
    assert_eq!(
        (asked[0].uri().host(), asked[0].uri().path()),
        (Some("169.254.169.254"), "/metadata/identity/oauth2/token")
    );
    assert_eq!(asked[0].headers()["metadata"], "true");
    let query = asked[0].uri().query().unwrap();
    assert!(
        query.contains(&format!("client_id={CLIENT}"))
            && query.contains("resource=https%3A%2F%2Fmanagement.azure.com"),
        "{query}"
    );
    assert!(!asked[1].uri().query().unwrap().contains("client_id"), "{:?}", asked[1].uri());
}

#[tokio::test]
async fn a_missing_identity_is_told_from_a_metadata_service_in_trouble() {
    let hands = Hands::set();
    let not_found = r#"{"error":"invalid_request","error_description":"Identity not found"}"#;
    for (status, body, class, code) in [
        (400, not_found, Class::Denied, "NoManagedIdentity"),
        (404, "", Class::Transient, "SignInFailed"),
        (410, "", Class::Transient, "SignInFailed"),
        (429, "{}", Class::Throttled, "SignInThrottled"),
        (500, "", Class::Transient, "SignInFailed"),
    ] {
        let imds = Answers::by(move |_| Ok(answer(status, body)));
        let error = managed(Some(CLIENT), imds.clone(), &hands).token().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str(), error.status), (class, code, status));
        assert_eq!(imds.asked().len(), 1, "{status} was tried again behind our back");
        if status == 400 {
            assert!(
                error.message.contains(CLIENT) && error.message.contains("Identity not found"),
                "{error}"
            );
        }
    }
    let cut_off = Answers::by(|_| Err(AzureError::new(Class::Transient, "Timeout", "no connection in time")));
    let error = managed(None, cut_off, &hands).token().await.unwrap_err();
    assert!(error.class == Class::Transient && error.message.contains("podLinkLocalAccess"), "{error}");
}

/// Stands in for `az`: its exit code, its output and what it complains.
#[derive(Debug)]
struct Says(i32, String, &'static str);

#[async_trait]
impl Executor for Says {
    async fn run(&self, _: &OsStr, _: &[&OsStr]) -> io::Result<Output> {
        Ok(Output {
            status: ExitStatus::from_raw(self.0 << 8),
            stdout: self.1.clone().into_bytes(),
            stderr: self.2.as_bytes().to_vec(),
        })
    }
}

#[tokio::test]
async fn a_developer_signs_in_by_the_azure_cli() {
    let hands = Hands::set();
    let token = |says: Says| {
        let identity = Identity::Cli { tenant_id: None, executor: Arc::new(says) };
        let unused = Answers::by(|_| Ok(answer(500, "")));
        let tokens = source(Ok(identity), Cloud::Public, unused, hands.clock());
        async move { tokens.token().await }
    };
    let expires_on = OffsetDateTime::now_utc().unix_timestamp() + 3_600;
    let output = json!({"accessToken": "cli", "expires_on": expires_on, "tokenType": "Bearer"}).to_string();
    assert_eq!(token(Says(0, output, "")).await.unwrap().expose(), "cli");
    for (status, stderr, class, code, action) in [
        (127, "/bin/sh: 1: az: not found", Class::Denied, "NoAzureCli", "install it"),
        (1, "ERROR: Please run 'az login' to setup account.", Class::Denied, "AzureCliLoggedOut", "az login"),
        (
            1,
            "ERROR: AADSTS70043: The refresh token has expired",
            Class::Denied,
            "AzureCliLoggedOut",
            "az login",
        ),
        (1, "ERROR: Connection aborted", Class::Transient, "SignInFailed", "Connection aborted"),
    ] {
        let error = token(Says(status, String::new(), stderr)).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (class, code), "{error}");
        assert!(error.message.contains(action), "{error}");
    }
}

#[test]
fn a_simulator_needs_no_token() {
    let unused = Answers::by(|_| Ok(answer(500, "")));
    assert!(
        CredentialKind::None.token_source(Cloud::Public, unused, &|_| None, Hands::set().clock()).is_none()
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Logs are read by many and kept for long. A whole run over real TLS, with everything on, refusals included.
#[tokio::test]
async fn no_log_holds_a_token() {
    if !is_child() {
        return in_a_process("credentials::tests::no_log_holds_a_token", Vec::new()).await;
    }
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let authority = Authority::new();
    let count = Arc::new(Mutex::new(0));
    let entra = move |body: String| {
        let count = count.clone();
        async move {
            assert!(body.contains("s3cr3t-assertion"));
            *count.lock().unwrap() += 1;
            let number = *count.lock().unwrap();
            if number == 2 {
                return axum::response::Response::builder()
                    .status(400)
                    .body(
                        r#"{"error":"x","error_description":"AADSTS700024: no","error_codes":[700024]}"#
                            .to_owned(),
                    )
                    .unwrap();
            }
            let token = format!("s3cr3t-token-{number}");
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token});
            axum::response::Response::new(body.to_string())
        }
    };
    let arm = |request: axum::extract::Request| async move {
        let bearer = request.headers()["authorization"].to_str().unwrap().to_owned();
        if bearer == "Bearer s3cr3t-token-1" { http::StatusCode::UNAUTHORIZED } else { http::StatusCode::OK }
    };
    let router = Router::new().route("/{tenant}/oauth2/v2.0/token", post(entra)).route("/arm", get(arm));
    let server = serve_tls(&authority, "localhost", router).await;

    let base = format!("https://localhost:{}/", server.port());
    let options =
        HttpOptions { extra_roots: vec![authority.root_der()], ..HttpOptions::new("spotpool-test/1") };
    let transport = Arc::new(HttpsTransport::new(options).unwrap());
    let (file, hands) = (token_file("s3cr3t-assertion"), Hands::set());
    let mut environment = injected(file.path());
    environment.insert("AZURE_AUTHORITY_HOST".into(), base.clone());
    environment.insert("AZURE_KUBERNETES_TOKEN_PROXY".into(), "https://10.0.0.1".into());
    let tokens = federated(Cloud::Public, transport.clone(), &environment, &hands);
    let authorized = Authorized::new(transport, &base.parse().unwrap(), Some(tokens)).unwrap();
    let request = || Request::get(format!("{base}arm?sig=s3cr3t-signature")).body(Bytes::new()).unwrap();

    assert_eq!(authorized.execute(request()).await.unwrap().status(), 401);
    hands.forward(2 * MINUTE);
    assert_eq!(authorized.execute(request()).await.unwrap_err().code, "FederatedTokenExpired");
    hands.forward(2 * MINUTE);
    assert_eq!(authorized.execute(request()).await.unwrap().status(), 200);

    let text = log.text();
    assert!(text.contains("signing in to Azure as client"), "{text}");
    assert_eq!(text.matches("identity bindings are not supported").count(), 1);
    assert!(
        text.contains("typespec_client_core") && text.contains("hyper_util"),
        "logging was not on: {text}"
    );
    if let Some(line) = text.lines().find(|line| line.contains("s3cr3t")) {
        panic!("a secret in the log: {line}");
    }
}
