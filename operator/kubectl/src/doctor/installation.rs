//! Checks of what was installed: API, operator, agents, rights.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt, ResourceExt};
use serde_json::Value;
use spotpool_crds::{EvictionDrill, SpotPool, names};

use super::rights::Missing;
use super::{Facts, Finding, Found, Level};
use crate::cluster::complaint;
use crate::explain::node::readiness;
use crate::output::counted;
use crate::workload::{SPOT_KEY, SPOT_VALUE, tolerates};

/// A node that is Ready should have an agent after this many seconds.
const AGENT_COMES: i64 = 60;
/// Policies that hold programs to what is theirs; where several are installed, a name goes on after it.
pub(super) const POLICIES: [&str; 5] = [
    "spotpool-agent-own-node",
    "spotpool-agent-own-pods",
    "spotpool-operator-own-finalizer",
    "spotpool-operator-own-nodes",
    "spotpool-operator-own-pods",
];
/// Flow schemas and priority levels, named alike.
const FLOWS: [&str; 2] = ["spotpool-agent-marks", "spotpool-agent-drains"];

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Fields that a schema knows, as paths.
fn fields(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        fields(inner, &path, into);
        into.insert(path);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), into);
    }
}

fn fields_of(crd: &CustomResourceDefinition) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let version = crd.spec.versions.iter().find(|version| version.name == "v1alpha1");
    let schema = version.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
    for part in ["spec", "status"] {
        fields(&schema["properties"][part], part, &mut known);
    }
    known
}

/// What we install of the API: its definition, its file, and what there is none of without it.
fn kinds() -> [(CustomResourceDefinition, &'static str, &'static str); 2] {
    [
        (SpotPool::crd(), "spotpools", "no SpotPool can be made"),
        (EvictionDrill::crd(), "evictiondrills", "no eviction can be rehearsed"),
    ]
}

pub(super) fn crd(check: &'static str, facts: &Facts) -> Found {
    let installed = facts.crds.as_ref()?;
    let found = kinds().into_iter().filter_map(|(ours, file, without)| {
        let name = ours.name_any();
        let here = installed.iter().find(|crd| crd.name_any() == name);
        let about = format!("CustomResourceDefinition {name}");
        let (level, wrong) = unlike(here, &ours, without)?;
        let fix = match level {
            Level::Fail => format!("apply crds/yaml/{file}.yaml of this version"),
            Level::Warn => "use the plugin of the operator's version".to_owned(),
        };
        Some(Finding::new(check, level, about, wrong, fix))
    });
    Some(found.collect())
}

/// What is wrong with a definition, beside ours.
fn unlike(
    here: Option<&CustomResourceDefinition>,
    ours: &CustomResourceDefinition,
    without: &str,
) -> Option<(Level, String)> {
    let Some(here) = here else { return Some((Level::Fail, format!("it is not installed: {without}"))) };
    let (here, ours) = (fields_of(here), fields_of(ours));
    let some = |fields: Vec<&String>| {
        let shown: Vec<&str> = fields.iter().take(3).map(|it| it.as_str()).collect();
        let more = if fields.len() > 3 { " and others" } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let missing: Vec<&String> = ours.difference(&here).collect();
    if !missing.is_empty() {
        let wrong = "it is older than this plugin: it does not know";
        return Some((Level::Fail, format!("{wrong} {}, and drops what it does not know", some(missing))));
    }
    let newer: Vec<&String> = here.difference(&ours).collect();
    if newer.is_empty() {
        return None;
    }
    Some((Level::Warn, format!("it is newer than this plugin, which does not know {}", some(newer))))
}

pub(super) fn lease(check: &'static str, facts: &Facts) -> Found {
    let leases = facts.leases.as_ref()?;
    let namespaces: Vec<String> = facts.pools.iter().filter_map(ResourceExt::namespace).collect();
    let about = "operator".to_owned();
    if leases.is_empty() {
        let wrong = "there is no Lease spotpool-operator: no operator has ever led here".to_owned();
        let fix = "install the operator; if it runs with --leader-election false, this is as it should be";
        return Some(vec![Finding::new(check, Level::Warn, about, wrong, fix)]);
    }
    let wrong = complaint(leases, &namespaces, facts.now);
    let fix = "look at the operator's Pods and their logs: kubectl get pods -A -l app.kubernetes.io/name=spotpool-operator";
    Some(wrong.into_iter().map(|wrong| Finding::new(check, Level::Fail, about.clone(), wrong, fix)).collect())
}

pub(super) fn operator_pods(check: &'static str, facts: &Facts) -> Found {
    let pods = facts.pods_of(names::OPERATOR_APP_NAME)?;
    let is_old = |pod: &&&Pod| {
        let made = pod.metadata.creation_timestamp.as_ref();
        made.is_some_and(|made| facts.now.duration_since(made.0).as_secs() > AGENT_COMES)
    };
    let unready = pods.iter().filter(|pod| !is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    let found = unready.filter(is_old).map(|pod| {
        let about = format!("Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let fix =
            "kubectl describe and kubectl logs of that Pod say why; its /readyz names what it waits for";
        Finding::new(check, Level::Fail, about, "an operator's Pod is not ready".into(), fix)
    });
    Some(found.collect())
}

fn rights(check: &'static str, missing: Option<&Vec<Missing>>, manifest: &str) -> Found {
    let mut by_account: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for missing in missing? {
        by_account.entry(&missing.account).or_default().push(&missing.what);
    }
    let found = by_account.into_iter().map(|(account, lacks)| {
        let shown: Vec<&str> = lacks.iter().take(4).copied().collect();
        let more = lacks.len().saturating_sub(4);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let wrong = format!("it may not {}{more}", shown.join(", "));
        let fix = format!("helm upgrade with the chart spotpool gives them ({manifest}); operator.poolNamespaces names the namespaces of SpotPools");
        Finding::new(check, Level::Fail, format!("ServiceAccount {account}"), wrong, fix)
    });
    Some(found.collect())
}

pub(super) fn operator_rights(check: &'static str, facts: &Facts) -> Found {
    rights(check, facts.operator_lacks.as_ref(), "charts/rendered/operator/rbac.yaml")
}

pub(super) fn agent_rights(check: &'static str, facts: &Facts) -> Found {
    if facts.daemon_sets.as_ref().is_some_and(Vec::is_empty) {
        return Some(Vec::new());
    }
    rights(check, facts.agent_lacks.as_ref(), "charts/rendered/agent/rbac.yaml")
}

pub(super) fn agents_installed(check: &'static str, facts: &Facts) -> Found {
    let found = facts.daemon_sets.as_ref()?.is_empty().then(|| {
        let wrong = "there is no DaemonSet whose Pods have label app.kubernetes.io/name=spotpool-node-agent: nobody sees notices".to_owned();
        let fix = "install the chart spotpool, or set agent.enabled=true";
        Finding::new(check, Level::Fail, "agents".into(), wrong, fix)
    });
    Some(found.into_iter().collect())
}

pub(super) fn agents_placed(check: &'static str, facts: &Facts) -> Found {
    let mut found = Vec::new();
    for set in facts.daemon_sets.as_ref()? {
        let about = format!("DaemonSet {}/{}", set.namespace().unwrap_or_default(), set.name_any());
        let Some(spec) = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else { continue };
        let tolerations = spec.tolerations.clone().unwrap_or_default();
        if !tolerates(&tolerations, SPOT_KEY, SPOT_VALUE)
            || !tolerates(&tolerations, names::EVICTING_TAINT, "Preempt")
        {
            let wrong =
                "agents do not tolerate all taints, and so do not run where they are needed most".into();
            let fix = "give the DaemonSet the toleration {operator: Exists}";
            found.push(Finding::new(check, Level::Fail, about.clone(), wrong, fix));
        }
        if spec.host_network != Some(true) {
            let wrong = "agents are not on the host's network: network policies may cut them off from the metadata service".into();
            found.push(Finding::new(check, Level::Warn, about, wrong, "set hostNetwork: true"));
        }
    }
    Some(found)
}

pub(super) fn agents_ready(check: &'static str, facts: &Facts) -> Found {
    let (nodes, pods) = (facts.nodes.as_ref()?, facts.pods_of(names::AGENT_APP_NAME)?);
    if facts.daemon_sets.as_ref().is_none_or(Vec::is_empty) {
        return Some(Vec::new());
    }
    let on = |node: &str| {
        pods.iter().find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node))
    };
    let (mut missing, mut unready) = (Vec::new(), Vec::new());
    for node in nodes {
        let is_linux = node.labels().get("kubernetes.io/os").is_none_or(|os| os == "linux");
        let is_old = matches!(readiness(node), Some((true, Some(since)))
            if facts.now.duration_since(since).as_secs() > AGENT_COMES);
        if !is_linux || !is_old || !node.labels().contains_key(names::AGENT_POOL_LABEL) {
            continue;
        }
        match on(&node.name_any()) {
            None => missing.push(node.name_any()),
            Some(pod) if !is_ready(pod) => {
                let said = facts.agents_say.iter().find(|(name, _)| *name == pod.name_any());
                let said = said.map(|(_, said)| format!(" ({said})")).unwrap_or_default();
                unready.push(format!("{}{said}", node.name_any()));
            }
            Some(_) => {}
        }
    }
    let some = |names: &[String]| {
        let more = if names.len() > 3 { " and others" } else { "" };
        format!("{}{more}", names[..names.len().min(3)].join(", "))
    };
    let mut found = Vec::new();
    if !missing.is_empty() {
        let about = counted(missing.len() as i32, "node");
        let wrong = format!("no agent runs on {}", some(&missing));
        let fix = "kubectl describe of the agents' DaemonSet and of the node says why its Pod is not there";
        found.push(Finding::new(check, Level::Fail, about, wrong, fix));
    }
    if !unready.is_empty() {
        let about = counted(unready.len() as i32, "agent");
        let wrong =
            format!("the agent is not ready on {}: notices may be seen late or not at all", some(&unready));
        let fix = "look at its log; most often the metadata service at 169.254.169.254 cannot be reached: let network policies and proxies pass it";
        found.push(Finding::new(check, Level::Fail, about, wrong, fix));
    }
    Some(found)
}

pub(super) fn pod_security(check: &'static str, facts: &Facts) -> Found {
    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    let homes: BTreeSet<String> =
        facts.daemon_sets.as_ref()?.iter().filter_map(ResourceExt::namespace).collect();
    let namespaces = facts.namespaces.as_ref()?.iter().filter(|it| homes.contains(&it.name_any()));
    let strict = namespaces.filter_map(|namespace| {
        let level = namespace.labels().get(ENFORCE).filter(|level| *level != "privileged")?;
        let about = format!("Namespace {}", namespace.name_any());
        let wrong =
            format!("pod security level {level} refuses the agents' Pods, which use the host's network");
        Some(Finding::new(check, Level::Fail, about, wrong, format!("label it {ENFORCE}=privileged")))
    });
    Some(strict.collect())
}

pub(super) fn flow_control(check: &'static str, facts: &Facts) -> Found {
    let schemas: BTreeSet<String> = facts.flow_schemas.as_ref()?.iter().map(ResourceExt::name_any).collect();
    let levels: BTreeSet<String> =
        facts.priority_levels.as_ref()?.iter().map(ResourceExt::name_any).collect();
    let missing = FLOWS.iter().filter(|name| !schemas.contains(**name) || !levels.contains(**name));
    let found = missing.map(|name| {
        let wrong = "FlowSchema or PriorityLevelConfiguration is missing: when many nodes go at once, cordons wait behind evictions".into();
        Finding::new(check, Level::Warn, format!("flow control {name}"), wrong, "helm upgrade with flowControl.enabled=true, or apply charts/rendered/flow-control.yaml")
    });
    Some(found.collect())
}

pub(super) fn policies(check: &'static str, facts: &Facts) -> Found {
    let policies: Vec<String> = facts.policies.as_ref()?.iter().map(ResourceExt::name_any).collect();
    let bindings = facts.policy_bindings.as_ref()?;
    let denies = |policy: &String| {
        bindings.iter().filter_map(|binding| binding.spec.as_ref()).any(|spec| {
            spec.policy_name.as_ref() == Some(policy)
                && spec.validation_actions.iter().flatten().any(|action| action == "Deny")
        })
    };
    let holds = |name: &&&str| policies.iter().any(|policy| policy.starts_with(**name) && denies(policy));
    let found = POLICIES.iter().filter(|name| !holds(name)).map(|name| {
        let wrong = "it is not installed, or not bound with Deny: a program that was broken into could write what is not its own".into();
        let fix = "helm upgrade with policies.enabled=true";
        Finding::new(check, Level::Warn, format!("ValidatingAdmissionPolicy {name}"), wrong, fix)
    });
    Some(found.collect())
}
