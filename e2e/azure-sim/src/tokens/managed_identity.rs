//! Tokens for whatever runs on a machine, by its metadata service.

use std::collections::BTreeMap;

use axum::response::Response;
use http::{Method, Uri};
use serde_json::json;

use crate::reply;
use crate::sim::Sim;

/// api-versions that the identity endpoint of IMDS answers.
const IDENTITY_VERSIONS: &[&str] = &["2018-02-01", "2019-08-01", "2019-11-01", "2020-06-01", "2021-02-01"];

/// `GET /metadata/identity/oauth2/token` of a machine; the caller has checked the `Metadata` header.
pub fn answer(sim: &Sim, method: &Method, uri: &Uri) -> Response {
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
