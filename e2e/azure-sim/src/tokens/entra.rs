//! The token endpoint: a client assertion for a token, or the reason why not in Entra's words.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{AuthRefusal, ClientSpec, IssuedToken, Tokens, is_arm};
use crate::faults;
use crate::reply;
use crate::sim::Sim;
use crate::tls::{self, Scheme};

/// How a client assertion is announced.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

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

impl Tokens {
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

// ---- HTTP ----

/// Nobody listens for credentials where anyone could listen in.
fn plain_text(scheme: Option<Extension<Scheme>>) -> Option<Response> {
    matches!(scheme, Some(Extension(Scheme::Http)))
        .then(|| reply::error(404, "tokens are asked for over TLS: see `authorityHost` of the first line"))
}

pub(super) async fn token(
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
pub(super) async fn openid(
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
pub(super) async fn instance(scheme: Option<Extension<Scheme>>, headers: HeaderMap) -> Response {
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

#[cfg(test)]
mod tests {
    use super::*;

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
