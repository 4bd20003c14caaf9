//! What checks look at. Whatever may not be read is absent, and its checks are not made.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use spotpool_crds::{EvictionDrill, SpotPool, names};

use super::rights::{self, Missing};
use crate::Error;
use crate::cluster::{Cluster, LEASE};

/// Facts of one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// When.
    pub now: Timestamp,
    /// How far this machine's clock is behind the API server's.
    pub behind: Option<SignedDuration>,
    /// SpotPools.
    pub pools: Vec<SpotPool>,
    /// Our CRDs, those that there are.
    pub crds: Option<Vec<CustomResourceDefinition>>,
    /// The operator's Leases.
    pub leases: Option<Vec<Lease>>,
    /// Operator and agent Pods.
    pub programs: Option<Vec<Pod>>,
    /// DaemonSets of agents.
    pub daemon_sets: Option<Vec<DaemonSet>>,
    /// All namespaces.
    pub namespaces: Option<Vec<Namespace>>,
    /// All Nodes.
    pub nodes: Option<Vec<Node>>,
    /// Disruption budgets of all namespaces.
    pub budgets: Option<Vec<PodDisruptionBudget>>,
    /// Deployments of all namespaces.
    pub deployments: Option<Vec<Deployment>>,
    /// StatefulSets of all namespaces.
    pub stateful_sets: Option<Vec<StatefulSet>>,
    /// HPAs of all namespaces.
    pub autoscalers: Option<Vec<HorizontalPodAutoscaler>>,
    /// Flow schemas.
    pub flow_schemas: Option<Vec<FlowSchema>>,
    /// Priority levels.
    pub priority_levels: Option<Vec<PriorityLevelConfiguration>>,
    /// Admission policies.
    pub policies: Option<Vec<ValidatingAdmissionPolicy>>,
    /// Their bindings.
    pub policy_bindings: Option<Vec<ValidatingAdmissionPolicyBinding>>,
    /// Rights that the operator lacks.
    pub operator_lacks: Option<Vec<Missing>>,
    /// Rights that agents lack.
    pub agent_lacks: Option<Vec<Missing>>,
    /// What agents that are not ready say of themselves, by Pod name, as far as that can be heard.
    pub agents_say: Vec<(String, String)>,
}

impl Facts {
    /// Reads everything that may be read.
    pub async fn gather(cluster: &Cluster) -> Result<Self, Error> {
        let client = &cluster.client;
        let (pools, _) = match cluster.pools().await {
            // That is what the doctor is asked for.
            Err(Error::NoApi(_)) => (Vec::new(), None),
            pools => pools?,
        };
        let all = ListParams::default();
        let by_name = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let (agents, operators) = (names::AGENT_APP_NAME, names::OPERATOR_APP_NAME);
        let app =
            |which: &str| ListParams::default().labels(&format!("{} in ({which})", names::APP_NAME_LABEL));
        let leases: Option<Vec<Lease>> = list(client, &by_name(LEASE)).await;
        let programs: Option<Vec<Pod>> = list(client, &app(&format!("{agents},{operators}"))).await;
        let daemon_sets: Option<Vec<DaemonSet>> = list(client, &app(agents)).await;
        let daemon_sets = match daemon_sets {
            // Labels of the DaemonSet itself are nobody's contract; those of its Pods are.
            Some(found) if found.is_empty() => list(client, &all)
                .await
                .map(|all: Vec<DaemonSet>| all.into_iter().filter(is_agents).collect()),
            found => found,
        };
        let newest = |leases: &[Lease]| {
            let renewed = |lease: &Lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0);
            leases.iter().max_by_key(|lease| renewed(lease)).and_then(ResourceExt::namespace)
        };
        let pod_of = |app: &str| {
            programs
                .iter()
                .flatten()
                .find(|pod| pod.labels().get(names::APP_NAME_LABEL).is_some_and(|it| it == app))
        };
        let operator = pod_of(operators).and_then(ResourceExt::namespace);
        let operator = operator.or_else(|| newest(leases.as_deref().unwrap_or_default()));
        let agent = daemon_sets.iter().flatten().find_map(ResourceExt::namespace);
        let mut pool_namespaces: Vec<String> = pools.iter().filter_map(ResourceExt::namespace).collect();
        pool_namespaces.dedup();
        let operator_lacks = match &operator {
            Some(namespace) => rights::missing(client, rights::OPERATOR, namespace, &pool_namespaces).await,
            None => None,
        };
        let agent_lacks = match &agent {
            Some(namespace) => rights::missing(client, rights::AGENT, namespace, &[]).await,
            None => None,
        };
        let agents_say = ask_unready(client, programs.as_deref().unwrap_or_default()).await;
        Ok(Self {
            now: cluster.now(),
            behind: cluster.behind,
            pools,
            crds: crds(client).await,
            leases,
            programs,
            daemon_sets,
            namespaces: list(client, &all).await,
            nodes: list(client, &all).await,
            budgets: list(client, &all).await,
            deployments: list(client, &all).await,
            stateful_sets: list(client, &all).await,
            autoscalers: list(client, &all).await,
            flow_schemas: list(client, &all).await,
            priority_levels: list(client, &all).await,
            policies: list(client, &all).await,
            policy_bindings: list(client, &all).await,
            operator_lacks,
            agent_lacks,
            agents_say,
        })
    }

    /// Pods of one of our programs.
    pub(super) fn pods_of(&self, app: &str) -> Option<Vec<&Pod>> {
        let is_its = |pod: &&Pod| pod.labels().get(names::APP_NAME_LABEL).is_some_and(|it| it == app);
        Some(self.programs.as_ref()?.iter().filter(is_its).collect())
    }
}

fn is_agents(set: &DaemonSet) -> bool {
    let labels = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.labels.as_ref());
    labels.and_then(|labels| labels.get(names::APP_NAME_LABEL)).is_some_and(|it| it == names::AGENT_APP_NAME)
}

async fn crds(client: &Client) -> Option<Vec<CustomResourceDefinition>> {
    let mut found = Vec::new();
    for name in [SpotPool::crd_name(), EvictionDrill::crd_name()] {
        found.extend(list(client, &ListParams::default().fields(&format!("metadata.name={name}"))).await?);
    }
    Some(found)
}

async fn list<K>(client: &Client, params: &ListParams) -> Option<Vec<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource<DynamicType = ()>,
{
    Some(Api::<K>::all(client.clone()).list(params).await.ok()?.items)
}

/// At most so many agents are asked: one that is deaf is like the others.
const ASKED: usize = 5;

/// What unready agents wait for, by way of the API server's proxy; it may not let us, and then nothing is said.
async fn ask_unready(client: &Client, programs: &[Pod]) -> Vec<(String, String)> {
    let unready = programs.iter().filter(|pod| {
        pod.labels().get(names::APP_NAME_LABEL).is_some_and(|it| it == names::AGENT_APP_NAME)
            && !super::installation::is_ready(pod)
    });
    let mut said = Vec::new();
    for pod in unready.take(ASKED) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:9435/proxy/readyz");
        let Ok(request) = http::Request::get(path).body(kube::client::Body::empty()) else { continue };
        let answer = tokio::time::timeout(std::time::Duration::from_secs(3), client.send(request)).await;
        let Ok(Ok(answer)) = answer else { continue };
        // 503 is our own answer, which names what is waited for.
        if answer.status() != http::StatusCode::SERVICE_UNAVAILABLE {
            continue;
        }
        if let Ok(body) = answer.into_body().collect_bytes().await {
            let text = String::from_utf8_lossy(&body);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            said.push((name, text.chars().take(200).collect()));
        }
    }
    said
}
