//! Whom ARM lets in, and what it lets them do.

use axum::response::Response;
use http::{HeaderMap, Method, header};
use jiff::Timestamp;

use super::{AuthRefusal, GrantedAction, IssuedToken, Tokens, is_arm};
use crate::refusal::Refusal;
use crate::reply;

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

impl GrantedAction {
    fn allows(&self, action: &str, scope: &str) -> bool {
        let (theirs, scope) = (self.scope.trim_end_matches('/').to_lowercase(), scope.to_lowercase());
        // What belongs to no subscription, such as a query of Resource Graph, names those it looks into in its body.
        let is_below = !scope.starts_with("/subscriptions/")
            || scope.strip_prefix(&theirs).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.action.eq_ignore_ascii_case(action) && is_below
    }
}

impl Tokens {
    /// Whether ARM lets this request in; the refusal is on record.
    pub fn refuse(
        &mut self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Option<Unauthorized> {
        let asked = action(method, path);
        self.state.asked_for.extend(asked.iter().map(|(action, _)| action.clone()));
        let refused = self.judge(asked, headers, now).err()?;
        self.state.refused.push(AuthRefusal {
            at: now,
            code: refused.code.to_owned(),
            message: refused.message.clone(),
        });
        Some(refused)
    }

    fn judge(
        &self,
        asked: Option<(String, String)>,
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
        let Some((action, scope)) = asked else { return Ok(()) };
        let denied = settings.denied.iter().any(|denied| {
            let theirs = denied.client_id.as_deref();
            denied.action.eq_ignore_ascii_case(&action)
                && theirs
                    .is_none_or(|id| client.is_some_and(|client| client.client_id.eq_ignore_ascii_case(id)))
        });
        let granted = settings
            .granted
            .as_ref()
            .is_none_or(|granted| granted.iter().any(|granted| granted.allows(&action, &scope)));
        if granted && !denied {
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
    fn a_grant_holds_for_its_scope_and_below() {
        let granted = |scope: &str| GrantedAction { action: "A/read".into(), scope: scope.into() };
        for (scope, asked, allows) in [
            ("/subscriptions/s", "/subscriptions/S/resourceGroups/g", true),
            ("/subscriptions/s/resourceGroups/g/", "/subscriptions/s/resourceGroups/g", true),
            ("/subscriptions/s/resourceGroups/g", "/subscriptions/s/resourceGroups/gg", false),
            ("/subscriptions/s/resourceGroups/g", "/subscriptions/s", false),
            ("/subscriptions/s", "/providers/Microsoft.ResourceGraph", true),
        ] {
            assert_eq!(granted(scope).allows("a/READ", asked), allows, "{scope} for {asked}");
        }
        assert!(!granted("/subscriptions/s").allows("a/write", "/subscriptions/s"));
    }
}
