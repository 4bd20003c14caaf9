//! Each check on a right cluster, which is silent, and on one where one thing is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use kube::CustomResourceExt;
use serde_json::{Value, json};
use spotpool_crds::{EvictionDrill, SpotPool};

use super::rights::Missing;
use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";
const OLD: &str = "2026-11-21T10:00:00Z";

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn pool() -> Value {
    json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
        "metadata": {"namespace": "batch", "name": "workers", "generation": 1, "creationTimestamp": OLD},
        "spec": {"replicas": 3, "agentPools": [{"name": "spota", "maxNodes": 5}, {"name": "rega", "maxNodes": 2}],
            "fallback": {"maxNodes": 2, "hourlyBudget": "5"}},
        "status": {"observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "capacity": {"readySpot": 3},
            "money": {"pricesReadAt": "2026-11-21T11:30:00Z"},
            "agentPools": [
                {"name": "spota", "role": "Spot", "machines": 3, "ready": 3, "provisioningState": "Succeeded"},
                {"name": "rega", "role": "OnDemand", "price": {"hourly": "0.2", "currency": "USD"}}],
            "conditions": [condition("Ready", "True", "AsWanted"), condition("AzureReachable", "True", "AzureReachable")]}})
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "said so", "lastTransitionTime": OLD})
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.azure.com/agentpool": "spota", "kubernetes.io/os": "linux",
            "spotpool.dev/pool": "workers", "spotpool.dev/pool-namespace": "batch"}},
        "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": OLD}]}})
}

fn program(app: &str, name: &str, node: &str) -> Value {
    json!({"metadata": {"namespace": "system", "name": name, "creationTimestamp": OLD, "labels": {"app.kubernetes.io/name": app}},
        "spec": {"nodeName": node, "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

fn deployment(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"namespace": "batch", "name": name}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

fn budget(name: &str, app: &str, desired: i32, expected: i32) -> Value {
    json!({"metadata": {"namespace": "batch", "name": name}, "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"desiredHealthy": desired, "currentHealthy": expected, "expectedPods": expected,
            "disruptionsAllowed": expected - desired}})
}

fn right() -> Facts {
    let flows = ["spotpool-agent-marks", "spotpool-agent-drains"];
    let named = |name: &str| json!({"metadata": {"name": name}});
    let policies = super::installation::POLICIES;
    let binding = |name: &str| json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    let tolerant = json!({"containers": [], "tolerations": [{"key": "kubernetes.azure.com/scalesetpriority",
        "operator": "Equal", "value": "spot", "effect": "NoSchedule"}], "nodeSelector": {"spotpool.dev/pool": "workers"}});
    Facts {
        now: NOW.parse().unwrap(),
        behind: Some(jiff::SignedDuration::ZERO),
        pools: vec![object(pool())],
        crds: Some(vec![SpotPool::crd(), EvictionDrill::crd()]),
        leases: Some(vec![object(json!({"metadata": {"namespace": "system", "name": "spotpool-operator"},
            "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-11-21T11:59:58.000000Z"}}))]),
        programs: Some(vec![
            object(program("spotpool-operator", "operator-1", "n1")),
            object(program("spotpool-node-agent", "agent-1", "n1")),
        ]),
        daemon_sets: Some(vec![object(
            json!({"metadata": {"namespace": "system", "name": "agents"}, "spec": {
            "selector": {}, "template": {"metadata": {"labels": {"app.kubernetes.io/name": "spotpool-node-agent"}},
            "spec": {"containers": [], "hostNetwork": true, "tolerations": [{"operator": "Exists"}]}}}}),
        )]),
        namespaces: Some(vec![object(named("system"))]),
        nodes: Some(vec![object(node("n1"))]),
        budgets: Some(vec![object(budget("web", "web", 1, 2))]),
        deployments: Some(vec![object(deployment("web", &tolerant))]),
        stateful_sets: Some(Vec::new()),
        autoscalers: Some(vec![object(
            json!({"metadata": {"namespace": "batch", "name": "demand"}, "spec": {"maxReplicas": 9,
            "scaleTargetRef": {"kind": "SpotPool", "name": "workers"}, "metrics": [{"type": "External", "external": {
                "metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "5"}}}]}}),
        )]),
        flow_schemas: Some(flows.map(|name| object(named(name))).into()),
        priority_levels: Some(flows.map(|name| object(named(name))).into()),
        policies: Some(policies.map(|name| object(named(name))).into()),
        policy_bindings: Some(policies.map(|name| object(binding(name))).into()),
        operator_lacks: Some(Vec::new()),
        agent_lacks: Some(Vec::new()),
        agents_say: Vec::new(),
    }
}

#[test]
fn a_right_cluster_has_nothing_to_say() {
    let report = examine(&right());
    assert_eq!(report, Report { findings: Vec::new(), checked: CHECKS.len(), skipped: Vec::new() });
    assert_eq!(render(&report, 80), format!("{} checks: nothing is wrong\n", CHECKS.len()));
}

#[test]
fn what_may_not_be_read_is_not_judged() {
    let facts = Facts { pools: right().pools, now: right().now, ..Facts::default() };
    let report = examine(&facts);
    assert_eq!(report.findings, []);
    assert!(report.skipped.contains(&"crd") && report.skipped.contains(&"cordons"), "{:?}", report.skipped);
    assert!(render(&report, 80).contains("not made, because you may not read"));
}

/// A SpotPool with something else in it.
fn with_pool(change: impl FnOnce(&mut Value)) -> Facts {
    let mut value = pool();
    change(&mut value);
    Facts { pools: vec![object(value)], ..right() }
}

fn with_condition(kind: &str, status: &str, reason: &str) -> Facts {
    with_pool(|pool| {
        let conditions = pool["status"]["conditions"].as_array_mut().unwrap();
        conditions.retain(|it| it["type"] != kind);
        conditions.push(condition(kind, status, reason));
    })
}

fn with_node(change: impl FnOnce(&mut Value)) -> Facts {
    let mut value = node("n1");
    change(&mut value);
    Facts { nodes: Some(vec![object(value)]), ..right() }
}

fn with_deployment(spec: &Value) -> Facts {
    Facts { deployments: Some(vec![object(deployment("web", spec))]), ..right() }
}

fn notice(phase: &str, observed: &str, deadline: &str) -> String {
    json!({"by": "NodeAgent", "eventId": "E", "type": "Preempt", "source": "IMDS", "observedAt": observed,
        "deadline": deadline, "phase": phase, "cordoned": true, "bootID": "b"})
    .to_string()
}

fn annotate(node: &mut Value, key: &str, value: &str) {
    node["metadata"]["annotations"] = json!({key: value});
}

/// Faults, each with the one check that must find it, how bad it is, and words of what it says.
fn faults() -> Vec<(Facts, &'static str, Level, &'static str)> {
    use Level::{Fail, Warn};
    let mut faults = Vec::new();
    let mut add = |facts: Facts, check, level, wanted| faults.push((facts, check, level, wanted));

    add(Facts { crds: Some(vec![EvictionDrill::crd()]), ..right() }, "crd", Fail, "no SpotPool can be made");
    let no_drills = Facts { crds: Some(vec![SpotPool::crd()]), ..right() };
    add(no_drills, "crd", Fail, "no eviction can be rehearsed");
    let mut old = SpotPool::crd();
    let schema = old.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
    let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
    spec.properties.as_mut().unwrap().remove("costTags");
    add(Facts { crds: Some(vec![old, EvictionDrill::crd()]), ..right() }, "crd", Fail, "spec.costTags");
    let stale = json!({"metadata": {"namespace": "system", "name": "spotpool-operator"}, "spec": {"holderIdentity": "a",
        "leaseDurationSeconds": 15, "renewTime": "2026-11-21T11:00:00.000000Z"}});
    add(
        Facts { leases: Some(vec![object(stale)]), ..right() },
        "operator-lease",
        Fail,
        "last renewed 60m ago",
    );
    add(Facts { leases: Some(Vec::new()), ..right() }, "operator-lease", Warn, "has ever led");
    let mut unready = program("spotpool-operator", "operator-1", "n1");
    unready["status"] = json!({});
    let agent = object(program("spotpool-node-agent", "agent-1", "n1"));
    add(
        Facts { programs: Some(vec![object(unready), agent]), ..right() },
        "operator-pods",
        Fail,
        "not ready",
    );
    let lacks = || Some(vec![Missing { account: "system/x".into(), what: "patch nodes".into() }]);
    add(Facts { operator_lacks: lacks(), ..right() }, "operator-rights", Fail, "may not patch nodes");
    add(Facts { agent_lacks: lacks(), ..right() }, "agent-rights", Fail, "may not patch nodes");
    add(Facts { daemon_sets: Some(Vec::new()), ..right() }, "agents-installed", Fail, "nobody sees notices");
    let intolerant = json!({"metadata": {"namespace": "system", "name": "agents"}, "spec": {"selector": {},
        "template": {"spec": {"containers": [], "hostNetwork": true}}}});
    add(
        Facts { daemon_sets: Some(vec![object(intolerant)]), ..right() },
        "agents-placed",
        Fail,
        "do not tolerate",
    );
    let operator = || object(program("spotpool-operator", "operator-1", "n1"));
    add(Facts { programs: Some(vec![operator()]), ..right() }, "agents-ready", Fail, "no agent runs on n1");
    let mut deaf = program("spotpool-node-agent", "agent-1", "n1");
    deaf["status"] = json!({});
    let deaf = Facts {
        programs: Some(vec![operator(), object(deaf)]),
        agents_say: vec![("agent-1".into(), "waiting for metadata".into())],
        ..right()
    };
    add(deaf, "agents-ready", Fail, "n1 (waiting for metadata)");
    let strict = json!({"metadata": {"name": "system", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    add(Facts { namespaces: Some(vec![object(strict)]), ..right() }, "pod-security", Fail, "restricted");
    let one = right().flow_schemas.map(|mut all| all.split_off(1));
    add(Facts { flow_schemas: one, ..right() }, "flow-control", Warn, "cordons wait");
    let audit = json!({"metadata": {"name": "b"}, "spec": {"policyName": "spotpool-agent-own-node", "validationActions": ["Audit"]}});
    let mut bindings = right().policy_bindings.unwrap();
    bindings[0] = object(audit);
    add(
        Facts { policy_bindings: Some(bindings), ..right() },
        "admission-policies",
        Warn,
        "not bound with Deny",
    );

    add(with_pool(|pool| pool["status"] = json!({})), "pools-watched", Fail, "ever looked");
    let behind = |pool: &mut Value| {
        pool["metadata"]["generation"] = 2.into();
        pool["metadata"]["managedFields"] =
            json!([{"manager": "kubectl", "operation": "Apply", "time": OLD}]);
    };
    add(with_pool(behind), "pools-current", Warn, "last change");
    add(with_condition("AzureReachable", "False", "AzureUnreachable"), "azure-reachable", Fail, "said so");
    let denied = |pool: &mut Value| {
        pool["status"]["agentPools"][0]["lastError"] =
            json!({"code": "AuthorizationFailed", "class": "Denied", "message": "no", "time": OLD});
    };
    add(with_pool(denied), "azure-permissions", Fail, "AuthorizationFailed");
    add(with_condition("Stalled", "True", "WindowInvalid"), "stalled", Fail, "WindowInvalid");
    let unusable = |reason: &'static str| {
        with_pool(move |pool| pool["status"]["agentPools"][0]["unusable"] = reason.into())
    };
    add(unusable("AgentPoolNotFound"), "agent-pools-exist", Fail, "spota does not exist");
    let refused = |pool: &mut Value| {
        pool["spec"]["agentPools"][0]["create"] =
            json!({"vmSize": "Standard_D4s_v5", "capacityType": "Spot"});
        pool["status"]["agentPools"][0]["unusable"] = "AgentPoolNotFound".into();
        pool["status"]["agentPools"][0]["lastError"] =
            json!({"code": "SubnetFull", "class": "Invalid", "message": "no", "time": OLD});
    };
    add(with_pool(refused), "agent-pools-exist", Fail, "could not be made: SubnetFull");
    add(with_condition("AgentsHealthy", "False", "AgentsNotReady"), "agents-healthy", Warn, "said so");
    add(unusable("AgentPoolStopped"), "agent-pools-usable", Fail, "spota is stopped");
    let mut twin = pool();
    twin["metadata"]["name"] = "twin".into();
    twin["spec"]["agentPools"][1]["name"] = "regb".into();
    twin["status"]["agentPools"][1]["name"] = "regb".into();
    add(
        Facts { pools: vec![object(pool()), object(twin)], ..right() },
        "agent-pools-claimed",
        Fail,
        "batch/twin name it",
    );
    add(with_pool(|pool| pool["status"]["replicas"] = 9.into()), "spot-room", Warn, "5 units, and 9");
    add(with_pool(|pool| pool["spec"]["fallback"] = Value::Null), "fallback", Warn, "nothing is bought");
    let no_on_demand = |pool: &mut Value| {
        pool["spec"]["fallback"] = json!({"maxNodes": 2});
        pool["status"]["agentPools"].as_array_mut().unwrap().truncate(1);
    };
    add(with_pool(no_on_demand), "fallback-agent-pools", Fail, "none of its agent pools");
    let no_price = |pool: &mut Value| pool["status"]["agentPools"][1]["price"] = Value::Null;
    add(with_pool(no_price), "budget-prices", Fail, "no price");
    let old_prices =
        |pool: &mut Value| pool["status"]["money"]["pricesReadAt"] = "2026-11-20T00:00:00Z".into();
    add(with_pool(old_prices), "prices-fresh", Warn, "36h0m ago");
    add(
        with_condition("BudgetExhausted", "True", "FallbackAtBudget"),
        "budget-exhausted",
        Warn,
        "FallbackAtBudget",
    );
    add(
        with_condition("OnDemandAvailable", "False", "OnDemandUnavailable"),
        "on-demand-available",
        Warn,
        "said so",
    );
    let capped = |pool: &mut Value| {
        pool["status"]["agentPools"][0]["autoscaler"] = json!({"min": 1, "max": 3, "ownMin": 1});
    };
    add(with_pool(capped), "autoscaler-range", Warn, "up to 3, so its maxNodes of 5");
    add(with_condition("SoleOwner", "False", "CountChangedElsewhere"), "sole-owner", Warn, "said so");
    add(with_condition("CostTagsPresent", "False", "CostTagsMissing"), "cost-tags", Warn, "said so");
    add(with_condition("ObjectiveMet", "False", "ObjectiveMissed"), "objective", Warn, "said so");
    add(with_pool(|pool| pool["spec"]["suspend"] = true.into()), "switched-off", Warn, "suspended");
    add(with_pool(|pool| pool["spec"]["mode"] = "Observe".into()), "switched-off", Warn, "only observes");
    let paused = |pool: &mut Value| {
        pool["metadata"]["annotations"] = json!({"spotpool.dev/failback-paused": "true"});
    };
    add(with_pool(paused), "failback-paused", Warn, "never given back");

    let budgets = |all: Vec<Value>| Facts { budgets: Some(all.into_iter().map(object).collect()), ..right() };
    add(budgets(vec![budget("web", "web", 2, 2)]), "budgets-that-block", Warn, "2 of 2 pods");
    add(budgets(vec![budget("web", "web", 1, 1)]), "budgets-of-single-pods", Warn, "single pod");
    let two = vec![budget("web", "web", 1, 2), budget("also", "web", 1, 2)];
    add(budgets(two), "budgets-that-overlap", Fail, "web and also");
    let intolerant = json!({"containers": [], "nodeSelector": {"spotpool.dev/pool": "workers"}});
    add(with_deployment(&intolerant), "tolerations", Warn, "most of which are spot");
    let all = json!([{"operator": "Exists"}]);
    let spot_only = json!({"containers": [], "tolerations": all, "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.azure.com/scalesetpriority", "operator": "In", "values": ["spot"]}]}]}}}});
    add(with_deployment(&spot_only), "spot-only", Warn, "runs on spot alone");
    let mut scaler = serde_json::to_value(&right().autoscalers.unwrap()[0]).unwrap();
    scaler["spec"]["metrics"][0]["external"]["target"] = json!({"type": "Value", "value": "5"});
    add(Facts { autoscalers: Some(vec![object(scaler)]), ..right() }, "autoscalers", Fail, "no AverageValue");

    add(with_node(|node| node["spec"]["unschedulable"] = true.into()), "cordons", Warn, "by a person");
    let left = |node: &mut Value| {
        node["spec"]["unschedulable"] = true.into();
        annotate(node, "spotpool.dev/eviction", &notice("Over", OLD, OLD));
    };
    add(with_node(left), "cordons", Warn, "our cordon was left");
    let spared = |node: &mut Value| annotate(node, "spotpool.dev/eviction", &notice("Drained", OLD, OLD));
    add(with_node(spared), "notices", Warn, "still there and Ready");
    let request = json!({"id": "a", "reason": "Failback", "voluntary": true, "notAfter": OLD}).to_string();
    let unanswered = |node: &mut Value| annotate(node, "spotpool.dev/drain-request", &request);
    add(with_node(unanswered), "drain-requests", Warn, "has not answered");
    let ahead = |node: &mut Value| {
        annotate(
            node,
            "spotpool.dev/eviction",
            &notice("Draining", "2026-11-21T12:01:00Z", "2026-11-21T12:01:30Z"),
        );
    };
    add(with_node(ahead), "clocks", Warn, "its clock is ahead");
    let behind = Some(jiff::SignedDuration::from_secs(-90));
    add(Facts { behind, ..right() }, "clocks", Warn, "differ by 90s");
    faults
}

#[test]
fn each_fault_is_found_by_its_check_alone_and_each_check_has_a_fault() {
    let faults = faults();
    for (facts, check, level, wanted) in &faults {
        let report = examine(facts);
        let [finding] = report.findings.as_slice() else { panic!("{check}: {:#?}", report.findings) };
        assert_eq!((finding.check, finding.level), (*check, *level), "{finding:?}");
        assert!(finding.wrong.contains(wanted), "{check}: {}", finding.wrong);
        assert!(!finding.fix.is_empty(), "{check}");
    }
    for check in CHECKS {
        assert!(
            faults.iter().any(|(_, name, ..)| *name == check.name),
            "nothing shows that {} works",
            check.name
        );
    }
}

#[test]
fn a_workload_that_can_never_run_is_worse_than_one_that_may() {
    let never = json!({"containers": [], "nodeSelector": {"kubernetes.azure.com/agentpool": "spota"}});
    let report = examine(&with_deployment(&never));
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.check, finding.level)).collect();
    assert_eq!(found, [("tolerations", Level::Fail), ("spot-only", Level::Warn)]);
    let text = anstream::adapter::strip_str(&render(&report, 200)).to_string();
    assert!(
        text.starts_with(
            "fail  tolerations: Deployment batch/web\n      it wants spot nodes by agent pool spota"
        ),
        "{text}"
    );
    assert!(text.contains("\n      fix: add the toleration"), "{text}");
    assert!(text.ends_with("checks: 1 fail, 1 warn\n"), "{text}");
}
