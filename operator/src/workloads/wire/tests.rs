#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use spotpool_core::scheduling::Requirement;

use super::super::read::matches;
use super::*;

fn pod(metadata: &Value, spec: &Value) -> Running {
    let mut whole = json!({"name": "p", "namespace": "shop"});
    for (key, value) in metadata.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let wire: WirePod =
        serde_json::from_value(json!({"metadata": whole, "spec": spec, "status": {}})).unwrap();
    wire.read(&mut Shared::default()).unwrap()
}

#[test]
fn requests_are_summed_as_the_scheduler_does() {
    let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
    let sidecar = |cpu: &str| {
        let mut container = asks(cpu);
        container["restartPolicy"] = "Always".into();
        container
    };
    for (what, spec, cpu) in [
        ("containers", json!({"containers": [asks("100m"), asks("200m")]}), 300),
        ("nothing asked", json!({"containers": [{}]}), 0),
        (
            "a large init container",
            json!({"containers": [asks("1")], "initContainers": [asks("2"), asks("1")]}),
            2000,
        ),
        (
            "a sidecar stays",
            json!({"containers": [asks("1")], "initContainers": [sidecar("500m"), asks("1")]}),
            1500,
        ),
        (
            "an init container beside a sidecar",
            json!({"containers": [asks("1")], "initContainers": [sidecar("500m"), asks("2")]}),
            2500,
        ),
        ("overhead", json!({"containers": [asks("1")], "overhead": {"cpu": "50m"}}), 1050),
        (
            "for the whole pod",
            json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "3"}}}),
            3000,
        ),
    ] {
        let requests = &pod(&json!({}), &spec).pod.shape.requests;
        assert_eq!((requests.cpu, requests.pods), (cpu, 1), "{what}");
    }
}

#[test]
fn owner_and_whether_it_stays_come_of_its_controller() {
    let owned = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]);
    let hash = json!({"pod-template-hash": "5d9f"});
    for (metadata, owner, stays) in [
        (json!({}), "", Stays::No),
        (
            json!({"ownerReferences": owned("ReplicaSet", "web-5d9f"), "labels": hash}),
            "Deployment/web",
            Stays::No,
        ),
        (
            json!({"ownerReferences": owned("ReplicaSet", "bare"), "labels": hash}),
            "ReplicaSet/bare",
            Stays::No,
        ),
        (json!({"ownerReferences": owned("StatefulSet", "db")}), "StatefulSet/db", Stays::No),
        (json!({"ownerReferences": owned("DaemonSet", "log")}), "DaemonSet/log", Stays::WithNode),
        (json!({"ownerReferences": owned("Node", "n")}), "Node/n", Stays::WithNode),
        (
            json!({"ownerReferences": owned("StatefulSet", "db"), "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            "StatefulSet/db",
            Stays::Ending,
        ),
    ] {
        let read = pod(&metadata, &json!({}));
        assert_eq!((&*read.pod.owner, read.stays), (owner, stays), "{metadata}");
    }
}

#[test]
fn what_ties_a_pod_to_nodes_is_read() {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = json!({"nodeAffinity": {required: {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["4"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
        {"matchExpressions": [{"key": "gen", "operator": "Unheard"}]}]}}});
    let shape = pod(&json!({}), &json!({"affinity": affinity})).pod.shape;
    assert_eq!(shape.affinity, Some(vec![vec![Requirement::Above("gen".into(), 4)]]), "{shape:?}");

    let anti = |key: &str| json!({"affinity": {"podAntiAffinity": {required: [{"topologyKey": key}]}}});
    for (what, spec, apart, zonal) in [
        ("nothing", json!({}), false, false),
        ("apart by node", anti("kubernetes.io/hostname"), true, false),
        ("apart by zone", anti("topology.kubernetes.io/zone"), false, false),
        ("a host port", json!({"containers": [{"ports": [{"hostPort": 80}]}]}), true, false),
        ("a port", json!({"containers": [{"ports": [{"containerPort": 80}]}]}), false, false),
        (
            "a claim",
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
            false,
            true,
        ),
        ("a claim of its own", json!({"volumes": [{"name": "v", "ephemeral": {}}]}), false, true),
        ("scratch", json!({"volumes": [{"name": "v", "emptyDir": {}}]}), false, false),
    ] {
        let shape = pod(&json!({}), &spec).pod.shape;
        assert_eq!((shape.apart, shape.zonal), (apart, zonal), "{what}");
    }
    let spec =
        json!({"tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute"}]});
    let tolerations = &pod(&json!({}), &spec).pod.shape.tolerations;
    let all = Toleration { key: None, value: None, effect: None };
    let one = Toleration { key: Some("a".into()), value: Some("b".into()), effect: Some("NoExecute".into()) };
    assert_eq!(tolerations, &[all, one]);
}

#[test]
fn a_budget_is_blocked_once_its_own_controller_says_so() {
    let budget = |generation, status: Value| -> Budget {
        let wire: WireBudget = serde_json::from_value(json!({
            "metadata": {"name": "b", "namespace": "shop", "generation": generation},
            "spec": {"selector": {"matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["test"]}]}},
            "status": status}))
        .unwrap();
        wire.read()
    };
    let status = |observed, allowed, expected| {
        json!({"observedGeneration": observed, "disruptionsAllowed": allowed, "expectedPods": expected,
        "desiredHealthy": 2, "currentHealthy": 2})
    };
    for (generation, status, blocked) in [
        (1, status(1, 0, 2), true),
        (1, status(1, 1, 2), false),
        (2, status(1, 0, 2), false),
        (1, status(1, 0, 0), false),
        (1, json!({}), false),
    ] {
        assert_eq!(budget(generation, status.clone()).blocked, blocked, "{generation} {status}");
    }
    let selector = budget(1, json!({})).selector.unwrap();
    let labels = |pairs: &[(&str, &str)]| -> Arc<Labels> {
        pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
    };
    assert!(matches(&selector, &labels(&[("app", "web")])));
    assert!(!matches(&selector, &labels(&[("app", "web"), ("tier", "test")])));
    assert!(!matches(&selector, &labels(&[("tier", "live")])));
}
