//! Whether programs have the rights of the manifests that ship with them.

use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

/// The operator's rights as they ship.
pub const OPERATOR: &str = include_str!("../../../../charts/rendered/operator/rbac.yaml");
/// The agents' rights as they ship.
pub const AGENT: &str = include_str!("../../../../charts/rendered/agent/rbac.yaml");
/// The ClusterRole that is bound in each namespace of SpotPools.
const IN_POOL_NAMESPACES: &str = "spotpool-operator-pools";
/// Questions at a time.
const AT_ONCE: usize = 8;

/// A right that somebody lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Who.
    pub account: String,
    /// To do what, such as `patch nodes/status`, and where.
    pub what: String,
}

/// One right that a manifest gives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    subresource: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

/// Every right of `manifest`, for a program in `home` and SpotPools in `pools`.
fn rights(manifest: &str, home: &str, pools: &[String]) -> Vec<Right> {
    let mut rights = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(manifest) {
        let Ok(role) = Value::deserialize(document) else { continue };
        let namespaces: Vec<Option<String>> = match (role["kind"].as_str(), role["metadata"]["name"].as_str())
        {
            (Some("Role"), _) => vec![Some(home.to_owned())],
            (Some("ClusterRole"), Some(IN_POOL_NAMESPACES)) => pools.iter().cloned().map(Some).collect(),
            (Some("ClusterRole"), _) => vec![None],
            _ => continue,
        };
        let texts = |value: &Value| -> Vec<String> {
            let texts = value.as_array().into_iter().flatten();
            texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            let named = texts(&rule["resourceNames"]);
            let names: Vec<Option<String>> =
                if named.is_empty() { vec![None] } else { named.into_iter().map(Some).collect() };
            for (group, resource) in texts(&rule["apiGroups"])
                .into_iter()
                .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |it| (group.clone(), it)))
            {
                let (resource, subresource) = match resource.split_once('/') {
                    Some((resource, sub)) => (resource.to_owned(), Some(sub.to_owned())),
                    None => (resource, None),
                };
                for verb in texts(&rule["verbs"]) {
                    for namespace in &namespaces {
                        rights.extend(names.iter().map(|name| Right {
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            subresource: subresource.clone(),
                            name: name.clone(),
                            namespace: namespace.clone(),
                        }));
                    }
                }
            }
        }
    }
    rights
}

/// The ServiceAccount that a manifest makes.
fn account(manifest: &str) -> Option<String> {
    serde_yaml_ng::Deserializer::from_str(manifest).find_map(|document| {
        let object = Value::deserialize(document).ok()?;
        (object["kind"] == "ServiceAccount")
            .then(|| object["metadata"]["name"].as_str().map(str::to_owned))?
    })
}

/// Rights of `manifest` that its ServiceAccount in `home` lacks; `None` if nobody may ask.
pub async fn missing(client: &Client, manifest: &str, home: &str, pools: &[String]) -> Option<Vec<Missing>> {
    let account = account(manifest)?;
    let user = format!("system:serviceaccount:{home}:{account}");
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let asked = stream::iter(rights(manifest, home, pools)).map(|right| {
        let (reviews, user) = (&reviews, user.clone());
        async move {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(user),
                    resource_attributes: Some(ResourceAttributes {
                        verb: Some(right.verb.clone()),
                        group: Some(right.group.clone()),
                        resource: Some(right.resource.clone()),
                        subresource: right.subresource.clone(),
                        name: right.name.clone(),
                        namespace: right.namespace.clone(),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await.ok()?;
            Some((right, answer.status?.allowed))
        }
    });
    let answers: Vec<Option<(Right, bool)>> = asked.buffered(AT_ONCE).collect().await;
    let answers: Option<Vec<(Right, bool)>> = answers.into_iter().collect();
    let missing = answers?
        .into_iter()
        .filter(|(_, allowed)| !allowed)
        .map(|(right, _)| Missing { account: format!("{home}/{account}"), what: right.to_string() });
    Some(missing.collect())
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if let Some(sub) = &self.subresource {
            write!(f, "/{sub}")?;
        }
        if !self.group.is_empty() {
            write!(f, " ({})", self.group)?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, " in {namespace}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_are_read_as_they_are_bound() {
        let operator: Vec<String> =
            rights(OPERATOR, "home", &["a".into(), "b".into()]).iter().map(ToString::to_string).collect();
        for wanted in [
            "patch nodes",
            "create pods/eviction",
            "update spotpools/status (spotpool.dev) in a",
            "update spotpools/status (spotpool.dev) in b",
            "update leases (coordination.k8s.io) in home",
        ] {
            assert!(operator.iter().any(|right| right == wanted), "`{wanted}` is not in {operator:?}");
        }
        assert_eq!(account(AGENT).as_deref(), Some("spotpool-node-agent"));
        assert!(rights(AGENT, "home", &[]).iter().all(|right| right.namespace.is_none()));
    }
}
