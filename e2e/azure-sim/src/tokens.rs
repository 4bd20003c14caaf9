//! Entra ID: tokens for client assertions (over TLS alone) and for managed identities, and who may do what with them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, Method, Uri, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{millis, optional_millis};
use crate::client::{SimClient, SimError};
use crate::faults;
use crate::model::later;
use crate::names::Ids;
use crate::refusal::Refusal;
use crate::reply;
use crate::sim::Sim;
use crate::tls::{self, Scheme};

/// What a federated assertion must be meant for.
pub const EXCHANGE_AUDIENCE: &str = "api://AzureADTokenExchange";

/// How a client assertion is announced.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Resources that ARM takes a token of: itself under its names in each cloud.
const ARM_AUDIENCES: &[&str] = &[
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://management.usgovcloudapi.net",
    "https://management.core.usgovcloudapi.net",
    "https://management.chinacloudapi.cn",
    "https://management.core.chinacloudapi.cn",
];

/// api-versions that the identity endpoint of IMDS answers.
const IDENTITY_VERSIONS: &[&str] = &["2018-02-01", "2019-08-01", "2019-11-01", "2020-06-01", "2021-02-01"];

/// An application or managed identity, and the assertions it is federated with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSpec {
    /// `client_id`.
    pub client_id: String,
    /// Id of its service principal, as refusals name it.
    pub object_id: String,
    /// `iss` that an assertion must have; any when absent.
    #[serde(default)]
    pub issuer: Option<String>,
    /// `sub` that an assertion must have; any when absent.
    #[serde(default)]
    pub subject: Option<String>,
    /// `aud` that an assertion must have.
    #[serde(default = "exchange_audience")]
    pub audience: String,
}

fn exchange_audience() -> String {
    EXCHANGE_AUDIENCE.into()
}

impl Default for ClientSpec {
    fn default() -> Self {
        Self {
            client_id: "11111111-1111-1111-1111-111111111111".into(),
            object_id: "22222222-2222-2222-2222-222222222222".into(),
            issuer: None,
            subject: None,
            audience: exchange_audience(),
        }
    }
}

/// An action that ARM refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeniedAction {
    /// Such as `Microsoft.ContainerService/managedClusters/agentPools/write`; case is ignored.
    pub action: String,
    /// To whom; to everyone when absent.
    #[serde(default)]
    pub client_id: Option<String>,
}

impl DeniedAction {
    /// Denied to everyone.
    pub fn to_all(action: &str) -> Self {
        Self { action: action.into(), client_id: None }
    }
}

/// Who there is, what tokens are like, and what they are good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthSettings {
    /// The one tenant.
    pub tenant_id: String,
    /// Clients that the tenant knows. Each is an identity of every machine as well.
    pub clients: Vec<ClientSpec>,
    /// Whether ARM asks for a token.
    pub require_token: bool,
    /// How long a token is good for.
    #[serde(rename = "tokenLifetimeMs", with = "millis")]
    pub token_lifetime: Duration,
    /// What ARM refuses although the token is good.
    pub denied: Vec<DeniedAction>,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            tenant_id: "33333333-3333-3333-3333-333333333333".into(),
            clients: vec![ClientSpec::default()],
            require_token: false,
            token_lifetime: Duration::from_hours(24),
            denied: Vec::new(),
        }
    }
}

/// Settings of [`AuthSettings`] to change; absent ones stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)] // each is the field of [`AuthSettings`] of that name
pub struct AuthPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<ClientSpec>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_token: Option<bool>,
    #[serde(
        rename = "tokenLifetimeMs",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub token_lifetime: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<Vec<DeniedAction>>,
}

/// A token that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedToken {
    /// The token itself, for a test that looks for it where it must not be.
    pub token: String,
    /// To whom.
    pub client_id: String,
    /// The resource it is for.
    pub audience: String,
    /// When.
    pub issued_at: Timestamp,
    /// Until when it is good.
    pub expires_at: Timestamp,
    /// Whether it was taken back before.
    pub revoked: bool,
    /// Whether the metadata service of a machine issued it, not the token endpoint.
    pub managed_identity: bool,
}

/// A request for a token, or a request to ARM, that was refused for its credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthRefusal {
    /// When.
    pub at: Timestamp,
    /// `AADSTS700024`, or ARM's code.
    pub code: String,
    /// The sentence that came with it.
    pub message: String,
}

/// Everything there is to see of credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthState {
    /// As they are now.
    pub settings: AuthSettings,
    /// Oldest first.
    pub issued: Vec<IssuedToken>,
    /// Oldest first.
    pub refused: Vec<AuthRefusal>,
    /// Assertions that the token endpoint was given.
    pub assertions: Vec<String>,
}

impl AuthState {
    /// Every string here that must never be written down anywhere: tokens and assertions.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.issued
            .iter()
            .map(|issued| issued.token.as_str())
            .chain(self.assertions.iter().map(String::as_str))
    }
}

/// The tenant, as part of the model.
#[derive(Debug, Clone)]
pub struct Tokens {
    state: AuthState,
    ids: Ids,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new(AuthSettings::default())
    }
}

/// Why ARM does not let a request in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unauthorized {
    /// 401 or 403.
    pub status: u16,
    code: &'static str,
    message: String,
    /// `WWW-Authenticate`.
    challenge: Option<String>,
}

impl Unauthorized {
    fn token(tenant: &str, code: &'static str, message: String) -> Self {
        let challenge = format!(
            "Bearer authorization_uri=\"https://login.microsoftonline.com/{tenant}\", error=\"invalid_token\", error_description=\"{message}\""
        );
        Self { status: 401, code, message, challenge: Some(challenge) }
    }

    /// The answer.
    pub fn response(self) -> Response {
        let mut response = reply::refused(&Refusal::wrapped(self.status, self.code, self.message));
        if let Some(challenge) = self.challenge {
            reply::set(&mut response, header::WWW_AUTHENTICATE.as_str(), &challenge);
        }
        response
    }
}

/// A refusal of the token endpoint.
struct Aadsts {
    status: u16,
    error: &'static str,
    number: u32,
    message: String,
}

impl Aadsts {
    fn missing(parameter: &str) -> Self {
        Self {
            status: 400,
            error: "invalid_request",
            number: 900_144,
            message: format!("The request body must contain the following parameter: '{parameter}'."),
        }
    }

    fn unmatched(number: u32, what: &str, value: &str) -> Self {
        Self {
            status: 401,
            error: "invalid_client",
            number,
            message: format!(
                "No matching federated identity record found for presented assertion {what} '{value}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
            ),
        }
    }
}

/// What a JWT says; its signature is nobody's business here.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    nbf: Option<i64>,
    exp: i64,
}

/// One or several, as RFC 7519 has it. ServiceAccount tokens come with a list.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
    #[default]
    None,
}

impl Audience {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Several(several) => several.iter().any(|one| one == wanted),
            Self::None => false,
        }
    }

    fn said(&self) -> String {
        match self {
            Self::One(one) => one.clone(),
            Self::Several(several) => several.join(","),
            Self::None => String::new(),
        }
    }
}

fn claims(jwt: &str) -> Option<Claims> {
    let mut parts = jwt.split('.');
    let (head, body, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || signature.is_empty() {
        return None;
    }
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
    let head: Value = serde_json::from_slice(&decode(head)?).ok()?;
    head.get("alg")?.as_str().filter(|alg| !alg.eq_ignore_ascii_case("none"))?;
    serde_json::from_slice(&decode(body)?).ok()
}

fn date(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn exact(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.7fZ").to_string()
}

/// A resource by its name, whatever slash it ends in.
fn is_arm(resource: &str) -> bool {
    ARM_AUDIENCES.contains(&resource.trim_end_matches('/'))
}

impl Tokens {
    /// A tenant in which nothing has happened yet.
    pub fn new(settings: AuthSettings) -> Self {
        let state = AuthState { settings, issued: Vec::new(), refused: Vec::new(), assertions: Vec::new() };
        // Guessing tokens is no part of the play: any seed will do.
        Self { state, ids: Ids::seeded(0x746f_6b65_6e73) }
    }

    /// Everything there is to see.
    pub fn state(&self) -> &AuthState {
        &self.state
    }

    /// Changes settings from now on; tokens that are out keep their expiry.
    pub fn patch(&mut self, patch: AuthPatch) {
        let AuthPatch { clients, require_token, token_lifetime, denied } = patch;
        let settings = &mut self.state.settings;
        settings.clients = clients.unwrap_or_else(|| std::mem::take(&mut settings.clients));
        settings.require_token = require_token.unwrap_or(settings.require_token);
        settings.token_lifetime = token_lifetime.unwrap_or(settings.token_lifetime);
        settings.denied = denied.unwrap_or_else(|| std::mem::take(&mut settings.denied));
    }

    /// Takes back every token that is out, and answers how many.
    pub fn revoke_all(&mut self) -> usize {
        let out = self.state.issued.iter_mut().filter(|issued| !issued.revoked);
        out.map(|issued| issued.revoked = true).count()
    }

    fn issue(
        &mut self,
        client_id: &str,
        resource: &str,
        managed_identity: bool,
        now: Timestamp,
    ) -> IssuedToken {
        let tenant = &self.state.settings.tenant_id;
        let expires_at = later(now, self.state.settings.token_lifetime);
        let object_id = self.client(client_id).map(|client| client.object_id.clone()).unwrap_or_default();
        let head = json!({"typ": "JWT", "alg": "RS256", "kid": "simulated"});
        let body = json!({
            "aud": resource, "iss": format!("https://sts.windows.net/{tenant}/"), "tid": tenant,
            "iat": now.as_second(), "nbf": now.as_second(), "exp": expires_at.as_second(),
            "appid": client_id, "oid": object_id, "ver": "1.0",
        });
        let encode = |part: Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let token = format!("{}.{}.{}", encode(head), encode(body), self.ids.opaque(342));
        let issued = IssuedToken {
            token,
            client_id: client_id.to_owned(),
            audience: resource.to_owned(),
            issued_at: now,
            expires_at,
            revoked: false,
            managed_identity,
        };
        self.state.issued.push(issued.clone());
        issued
    }

    fn client(&self, client_id: &str) -> Option<&ClientSpec> {
        self.state.settings.clients.iter().find(|client| client.client_id.eq_ignore_ascii_case(client_id))
    }

    /// The client credentials flow with an assertion.
    fn exchange(
        &mut self,
        tenant: &str,
        form: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<IssuedToken, Aadsts> {
        let field = |name: &str| form.get(name).filter(|value| !value.is_empty());
        let need = |name: &str| field(name).ok_or_else(|| Aadsts::missing(name));
        self.state.assertions.extend(field("client_assertion").cloned());
        if !tenant.eq_ignore_ascii_case(&self.state.settings.tenant_id) {
            return Err(Aadsts {
                status: 400,
                error: "invalid_request",
                number: 90_002,
                message: format!(
                    "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant."
                ),
            });
        }
        let grant = need("grant_type")?;
        if grant != "client_credentials" {
            return Err(Aadsts {
                status: 400,
                error: "unsupported_grant_type",
                number: 70_003,
                message: format!("The app requested an unsupported grant type '{grant}'."),
            });
        }
        let client_id = need("client_id")?;
        let Some(client) = self.client(client_id).cloned() else {
            return Err(Aadsts {
                status: 400,
                error: "unauthorized_client",
                number: 700_016,
                message: format!(
                    "Application with identifier '{client_id}' was not found in the directory '{tenant}'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."
                ),
            });
        };
        let announced = field("client_assertion_type").is_some_and(|kind| kind == ASSERTION_TYPE);
        let Some(assertion) = field("client_assertion").filter(|_| announced) else {
            return Err(Aadsts {
                status: 401,
                error: "invalid_client",
                number: 7_000_218,
                message: "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.".into(),
            });
        };
        check_assertion(&client, assertion, now)?;
        let scope = need("scope")?;
        let Some(resource) = scope.strip_suffix("/.default").filter(|resource| !resource.contains(' '))
        else {
            return Err(Aadsts {
                status: 400,
                error: "invalid_scope",
                number: 1_002_012,
                message: format!(
                    "The provided value for scope {scope} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."
                ),
            });
        };
        if !is_arm(resource) {
            return Err(Aadsts {
                status: 400,
                error: "invalid_resource",
                number: 500_011,
                message: format!(
                    "The resource principal named {resource} was not found in the tenant named {tenant}. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant."
                ),
            });
        }
        Ok(self.issue(&client.client_id, resource, false, now))
    }

    /// Whether ARM lets this request in; the refusal is on record.
    pub fn refuse(
        &mut self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Option<Unauthorized> {
        let refused = self.judge(method, path, headers, now).err()?;
        self.state.refused.push(AuthRefusal {
            at: now,
            code: refused.code.to_owned(),
            message: refused.message.clone(),
        });
        Some(refused)
    }

    fn judge(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<(), Unauthorized> {
        let settings = &self.state.settings;
        let token = self.token(headers);
        if settings.require_token {
            self.check_token(token, headers.contains_key(header::AUTHORIZATION), now)?;
        }
        // Without tokens, everybody is the first client.
        let client = match token {
            Some(token) => self.client(&token.client_id),
            None => settings.clients.first(),
        };
        if settings.denied.is_empty() {
            return Ok(());
        }
        let Some((action, scope)) = action(method, path) else { return Ok(()) };
        let denied = settings.denied.iter().any(|denied| {
            let theirs = denied.client_id.as_deref();
            denied.action.eq_ignore_ascii_case(&action)
                && theirs
                    .is_none_or(|id| client.is_some_and(|client| client.client_id.eq_ignore_ascii_case(id)))
        });
        if !denied {
            return Ok(());
        }
        let (client_id, object_id) =
            client.map_or(("", ""), |client| (client.client_id.as_str(), client.object_id.as_str()));
        Err(Unauthorized {
            status: 403,
            code: "AuthorizationFailed",
            message: format!(
                "The client '{client_id}' with object id '{object_id}' does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials."
            ),
            challenge: None,
        })
    }

    fn token(&self, headers: &HeaderMap) -> Option<&IssuedToken> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(())?;
        self.state.issued.iter().rev().find(|issued| issued.token == token)
    }

    fn check_token(
        &self,
        token: Option<&IssuedToken>,
        given: bool,
        now: Timestamp,
    ) -> Result<(), Unauthorized> {
        let refuse = |code, message| Err(Unauthorized::token(&self.state.settings.tenant_id, code, message));
        let Some(token) = token else {
            return if given {
                refuse("InvalidAuthenticationToken", "The access token is invalid.".to_owned())
            } else {
                let said = "Authentication failed. The 'Authorization' header is missing.";
                refuse("AuthenticationFailed", said.to_owned())
            };
        };
        if token.revoked {
            return refuse("InvalidAuthenticationToken", "The access token is invalid.".to_owned());
        }
        if token.expires_at <= now {
            let said = format!(
                "The access token expiry UTC time '{}' is earlier than current UTC time '{}'.",
                us_time(token.expires_at),
                us_time(now)
            );
            return refuse("ExpiredAuthenticationToken", said);
        }
        if !is_arm(&token.audience) {
            let said = format!(
                "The access token has been obtained for wrong audience or resource '{}'. It should exactly match with one of the allowed audiences 'https://management.core.windows.net/','https://management.core.windows.net','https://management.azure.com/','https://management.azure.com'.",
                token.audience
            );
            return refuse("InvalidAuthenticationTokenAudience", said);
        }
        Ok(())
    }
}

fn us_time(at: Timestamp) -> String {
    at.strftime("%-m/%-d/%Y %-I:%M:%S %p").to_string()
}

fn check_assertion(client: &ClientSpec, assertion: &str, now: Timestamp) -> Result<(), Aadsts> {
    let Some(claims) = claims(assertion) else {
        return Err(Aadsts {
            status: 400,
            error: "invalid_request",
            number: 50_027,
            message: "JWT token is invalid or malformed.".into(),
        });
    };
    if client.issuer.as_ref().is_some_and(|wanted| *wanted != claims.iss) {
        return Err(Aadsts::unmatched(700_211, "issuer", &claims.iss));
    }
    if !claims.aud.contains(&client.audience) {
        return Err(Aadsts::unmatched(700_212, "audience", &claims.aud.said()));
    }
    if client.subject.as_ref().is_some_and(|wanted| *wanted != claims.sub) {
        return Err(Aadsts::unmatched(700_213, "subject", &claims.sub));
    }
    let at = |second: i64| Timestamp::from_second(second).unwrap_or_default();
    let (from, until) = (at(claims.nbf.unwrap_or_default()), at(claims.exp));
    if now < from || until <= now {
        return Err(Aadsts {
            status: 401,
            error: "invalid_client",
            number: 700_024,
            message: format!(
                "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry time of assertion {}. Review the documentation at https://docs.microsoft.com/azure/active-directory/develop/active-directory-certificate-credentials .",
                exact(now),
                exact(from),
                exact(until)
            ),
        });
    }
    Ok(())
}

/// The action that a request to ARM is, and the scope it asks for: both follow from the path alone.
fn action(method: &Method, path: &str) -> Option<(String, String)> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let providers = segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers"))?;
    let (namespace, below) = segments.get(providers + 1..)?.split_first()?;
    let odd = below.len() % 2 == 1;
    let (named, verb) = match *method {
        Method::GET | Method::HEAD => (below, "read".to_owned()),
        Method::PUT | Method::PATCH => (below, "write".to_owned()),
        Method::DELETE => (below, "delete".to_owned()),
        // `…/agentPools/spota/deleteMachines`; a query is posted to the type itself and merely reads.
        _ => match below.split_last() {
            Some((last, named)) if odd && !named.is_empty() => (named, format!("{last}/action")),
            _ => (below, "read".to_owned()),
        },
    };
    let types: Vec<&str> = named.iter().copied().step_by(2).collect();
    // A list is asked of what holds it.
    let scope = segments.len() - below.len() + named.len() - named.len() % 2;
    Some((format!("{namespace}/{}/{verb}", types.join("/")), format!("/{}", segments[..scope].join("/"))))
}

// ---- HTTP ----

/// The token endpoint with what leads to it, and its part of the control API.
pub fn routes() -> Router<Sim> {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(openid))
        .route("/common/discovery/instance", get(instance))
        .route("/sim/auth", get(auth_state).patch(patch_auth))
        .route("/sim/tokens", delete(revoke))
}

/// Nobody listens for credentials where anyone could listen in.
fn plain_text(scheme: Option<Extension<Scheme>>) -> Option<Response> {
    matches!(scheme, Some(Extension(Scheme::Http)))
        .then(|| reply::error(404, "tokens are asked for over TLS: see `authorityHost` of the first line"))
}

async fn token(
    State(sim): State<Sim>,
    scheme: Option<Extension<Scheme>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refused) = plain_text(scheme) {
        return refused;
    }
    let form_sent = headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        kind.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
    });
    let form: BTreeMap<String, String> =
        if form_sent { url::form_urlencoded::parse(&body).into_owned().collect() } else { BTreeMap::new() };
    let fault = sim.look(|cloud, _| cloud.faults.strike(faults::Request::Tokens));
    reply::under_fault(fault, || {
        let (result, now) = sim.look(|cloud, now| (cloud.tokens.exchange(&tenant, &form, now), now));
        match result {
            Ok(issued) => {
                let seconds = issued.expires_at.duration_since(now).as_secs();
                reply::json_body(
                    200,
                    &json!({
                        "token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds,
                        "access_token": issued.token,
                    }),
                )
            }
            Err(refused) => refuse_token(&sim, &refused, &headers),
        }
    })
    .await
}

fn refuse_token(sim: &Sim, refused: &Aadsts, headers: &HeaderMap) -> Response {
    let (now, trace) = sim.look(|cloud, now| {
        cloud.tokens.state.refused.push(AuthRefusal {
            at: now,
            code: format!("AADSTS{}", refused.number),
            message: refused.message.clone(),
        });
        (now, cloud.tokens.ids.guid())
    });
    let asked = headers.get("client-request-id").and_then(|id| id.to_str().ok());
    let correlation = asked.unwrap_or(&trace);
    let at = date(now);
    reply::json_body(
        refused.status,
        &json!({
            "error": refused.error,
            "error_description": format!(
                "AADSTS{}: {} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {at}",
                refused.number, refused.message
            ),
            "error_codes": [refused.number],
            "timestamp": at,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", refused.number),
        }),
    )
}

/// MSAL asks for it before it asks for a token.
async fn openid(
    scheme: Option<Extension<Scheme>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = plain_text(scheme) {
        return refused;
    }
    let base = tls::base(scheme, &headers);
    reply::json_body(
        200,
        &json!({
            "token_endpoint": format!("{base}/{tenant}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "jwks_uri": format!("{base}/{tenant}/discovery/v2.0/keys"),
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": format!("{base}/{tenant}/v2.0"),
            "authorization_endpoint": format!("{base}/{tenant}/oauth2/v2.0/authorize"),
            "device_authorization_endpoint": format!("{base}/{tenant}/oauth2/v2.0/devicecode"),
            "tenant_region_scope": null,
            "cloud_instance_name": "microsoftonline.com",
        }),
    )
}

/// Asked by clients that want to know whether an authority is one of Microsoft's.
async fn instance(scheme: Option<Extension<Scheme>>, headers: HeaderMap) -> Response {
    if let Some(refused) = plain_text(scheme) {
        return refused;
    }
    let base = tls::base(scheme, &headers);
    let host = base.trim_start_matches("https://");
    reply::json_body(
        200,
        &json!({
            "tenant_discovery_endpoint": format!("{base}/common/v2.0/.well-known/openid-configuration"),
            "api-version": "1.1",
            "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
        }),
    )
}

/// `GET /metadata/identity/oauth2/token` of a machine; the caller has checked the `Metadata` header.
pub fn managed_identity(sim: &Sim, method: &Method, uri: &Uri) -> Response {
    let refuse = |description: &str| {
        reply::json_body(400, &json!({"error": "invalid_request", "error_description": description}))
    };
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    if *method != Method::GET {
        return reply::error(405, "Method not allowed");
    }
    if !query.get("api-version").is_some_and(|version| IDENTITY_VERSIONS.contains(&version.as_str())) {
        return refuse("Required query variable 'api-version' is missing or not supported");
    }
    let Some(resource) = query.get("resource").filter(|resource| !resource.is_empty()) else {
        return refuse("Required query variable 'resource' is missing");
    };
    let issued = sim.look(|cloud, now| {
        let clients = &cloud.tokens.state.settings.clients;
        let asked = |key: &str| query.get(key);
        let chosen = match (asked("client_id"), asked("object_id").or(asked("principal_id"))) {
            (Some(id), _) => clients.iter().find(|client| client.client_id.eq_ignore_ascii_case(id)),
            (None, Some(id)) => clients.iter().find(|client| client.object_id.eq_ignore_ascii_case(id)),
            (None, None) if clients.len() > 1 => {
                return Err(
                    "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request",
                );
            }
            (None, None) => clients.first(),
        };
        let client_id = chosen.ok_or("Identity not found")?.client_id.clone();
        Ok((cloud.tokens.issue(&client_id, resource.trim_end_matches('/'), true, now), now))
    });
    match issued {
        Ok((issued, now)) => {
            let seconds = issued.expires_at.duration_since(now).as_secs().to_string();
            // Every number a string: so the real one answers.
            reply::json_body(
                200,
                &json!({
                    "access_token": issued.token,
                    "client_id": issued.client_id,
                    "expires_in": seconds,
                    "expires_on": issued.expires_at.as_second().to_string(),
                    "ext_expires_in": seconds,
                    "not_before": now.as_second().to_string(),
                    "resource": resource,
                    "token_type": "Bearer",
                }),
            )
        }
        Err(description) => refuse(description),
    }
}

async fn auth_state(State(sim): State<Sim>) -> Response {
    let state = sim.look(|cloud, _| cloud.tokens.state.clone());
    reply::json_body(200, &json!(state))
}

async fn patch_auth(State(sim): State<Sim>, Json(patch): Json<AuthPatch>) -> Response {
    let settings = sim.look(|cloud, _| {
        cloud.tokens.patch(patch);
        cloud.tokens.state.settings.clone()
    });
    reply::json_body(200, &json!(settings))
}

async fn revoke(State(sim): State<Sim>) -> Response {
    let revoked = sim.look(|cloud, _| cloud.tokens.revoke_all());
    reply::json_body(200, &json!({"revoked": revoked}))
}

/// Credentials, by the control API.
impl SimClient {
    /// Tokens issued, requests refused, settings.
    pub async fn auth(&self) -> Result<AuthState, SimError> {
        self.call(Method::GET, "auth", None::<&()>).await
    }

    /// Changes who there is and what tokens are good for, and answers the settings.
    pub async fn change_auth(&self, patch: &AuthPatch) -> Result<AuthSettings, SimError> {
        self.call(Method::PATCH, "auth", Some(patch)).await
    }

    /// Denies these actions to everyone, and allows all others.
    pub async fn deny(&self, actions: &[&str]) -> Result<(), SimError> {
        let denied = actions.iter().map(|action| DeniedAction::to_all(action)).collect();
        self.change_auth(&AuthPatch { denied: Some(denied), ..AuthPatch::default() }).await.map(drop)
    }

    /// Takes back every token that is out.
    pub async fn revoke_tokens(&self) -> Result<(), SimError> {
        self.call::<_, Value>(Method::DELETE, "tokens", None::<&()>).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_and_scopes_follow_from_paths() {
        let cluster =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/c";
        let pool = format!("{cluster}/agentPools/spota");
        let location = "/subscriptions/s/providers/Microsoft.Compute/locations/eastus";
        let aks = "Microsoft.ContainerService/managedClusters/agentPools";
        for (method, path, named, scope) in [
            (Method::GET, format!("{cluster}/agentPools"), format!("{aks}/read"), cluster),
            (Method::GET, pool.clone(), format!("{aks}/read"), &pool),
            (Method::PUT, pool.clone(), format!("{aks}/write"), &pool),
            (Method::DELETE, pool.clone(), format!("{aks}/delete"), &pool),
            (Method::POST, format!("{pool}/deleteMachines"), format!("{aks}/deleteMachines/action"), &pool),
            (Method::GET, format!("{pool}/machines"), format!("{aks}/machines/read"), &pool),
            (
                Method::POST,
                format!("{location}/placementScores/spot/generate"),
                "Microsoft.Compute/locations/placementScores/generate/action".into(),
                &format!("{location}/placementScores/spot"),
            ),
            (
                Method::POST,
                "/providers/Microsoft.ResourceGraph/resources".into(),
                "Microsoft.ResourceGraph/resources/read".into(),
                "/providers/Microsoft.ResourceGraph",
            ),
        ] {
            assert_eq!(action(&method, &path), Some((named, scope.to_owned())), "{method} {path}");
        }
        assert_eq!(action(&Method::GET, "/nonsense"), None);
    }

    #[test]
    fn assertions_that_are_no_jwt_are_told_apart() {
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let (head, body) =
            (part(json!({"alg": "RS256"})), part(json!({"sub": "s", "aud": ["a", "b"], "exp": 9})));
        let good = claims(&format!("{head}.{body}.c2ln")).unwrap();
        assert!(good.aud.contains("b") && !good.aud.contains("c"));
        assert_eq!((good.sub.as_str(), good.nbf, good.exp), ("s", None, 9));
        let unsigned = part(json!({"alg": "none"}));
        let endless = part(json!({"sub": "s"}));
        for bad in [
            "",
            "a.b",
            "a.b.c",
            &format!("{head}.{body}."),
            &format!("{head}.{body}.c.d"),
            &format!("{unsigned}.{body}.c2ln"),
            &format!("{head}.{endless}.c2ln"),
        ] {
            assert!(claims(bad).is_none(), "{bad}");
        }
    }
}
