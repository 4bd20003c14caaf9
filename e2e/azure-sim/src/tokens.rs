//! Entra ID: who there is, the tokens that are out, and what they are good for.
//!
//! [`entra`] issues them for client assertions, over TLS alone; [`managed_identity`] to machines; [`access`] looks
//! at them, and at what is denied, for ARM.

pub mod access;
pub mod entra;
pub mod managed_identity;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{millis, optional_millis};
use crate::client::{SimClient, SimError};
use crate::model::later;
use crate::names::Ids;
use crate::reply;
use crate::sim::Sim;

pub use entra::ASSERTION_TYPE;

/// What a federated assertion must be meant for.
pub const EXCHANGE_AUDIENCE: &str = "api://AzureADTokenExchange";

/// Resources that ARM takes a token of: itself under its names in each cloud.
const ARM_AUDIENCES: &[&str] = &[
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://management.usgovcloudapi.net",
    "https://management.core.usgovcloudapi.net",
    "https://management.chinacloudapi.cn",
    "https://management.core.chinacloudapi.cn",
];

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

/// An action that a role assignment allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantedAction {
    /// Such as `Microsoft.ContainerService/managedClusters/agentPools/read`; case is ignored.
    pub action: String,
    /// Where, and below: a subscription, a resource group or a resource.
    pub scope: String,
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
    #[serde(rename = "tokenLifetimeMs", alias = "tokenLifetime", with = "millis")]
    pub token_lifetime: Duration,
    /// What ARM refuses although the token is good.
    pub denied: Vec<DeniedAction>,
    /// All that ARM allows to anyone; everything when absent.
    pub granted: Option<Vec<GrantedAction>>,
}

impl Default for AuthSettings {
    fn default() -> Self {
        Self {
            tenant_id: "33333333-3333-3333-3333-333333333333".into(),
            clients: vec![ClientSpec::default()],
            require_token: false,
            token_lifetime: Duration::from_hours(24),
            denied: Vec::new(),
            granted: None,
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
        alias = "tokenLifetime",
        with = "optional_millis",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub token_lifetime: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<Vec<DeniedAction>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Vec<GrantedAction>>,
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
    /// Every action that ARM was asked for, granted or not.
    pub asked_for: BTreeSet<String>,
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

/// A resource by its name, whatever slash it ends in.
fn is_arm(resource: &str) -> bool {
    ARM_AUDIENCES.contains(&resource.trim_end_matches('/'))
}

impl Tokens {
    /// A tenant in which nothing has happened yet.
    pub fn new(settings: AuthSettings) -> Self {
        let state = AuthState {
            settings,
            issued: Vec::new(),
            refused: Vec::new(),
            assertions: Vec::new(),
            asked_for: BTreeSet::new(),
        };
        // Guessing tokens is no part of the play: any seed will do.
        Self { state, ids: Ids::seeded(0x746f_6b65_6e73) }
    }

    /// Everything there is to see.
    pub fn state(&self) -> &AuthState {
        &self.state
    }

    /// Changes settings from now on; tokens that are out keep their expiry.
    pub fn patch(&mut self, patch: AuthPatch) {
        let AuthPatch { clients, require_token, token_lifetime, denied, granted } = patch;
        let settings = &mut self.state.settings;
        settings.clients = clients.unwrap_or_else(|| std::mem::take(&mut settings.clients));
        settings.require_token = require_token.unwrap_or(settings.require_token);
        settings.token_lifetime = token_lifetime.unwrap_or(settings.token_lifetime);
        settings.denied = denied.unwrap_or_else(|| std::mem::take(&mut settings.denied));
        settings.granted = granted.or_else(|| settings.granted.take());
    }

    /// Takes back every token that is out, and answers how many.
    pub fn revoke_all(&mut self) -> usize {
        let out: Vec<_> = self.state.issued.iter_mut().filter(|issued| !issued.revoked).collect();
        let revoked = out.len();
        for issued in out {
            issued.revoked = true;
        }
        revoked
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
}

// ---- HTTP ----

/// The token endpoint with what leads to it, and its part of the control API.
pub fn routes() -> Router<Sim> {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/token", post(entra::token))
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(entra::openid))
        .route("/common/discovery/instance", get(entra::instance))
        .route("/sim/auth", get(auth_state).patch(patch_auth))
        .route("/sim/tokens", delete(revoke))
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
