//! What is said of a manifest, from objects alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::json;

use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";

fn pool(change: impl FnOnce(&mut Value)) -> SpotPool {
    let mut value = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
        "metadata": {"namespace": "batch", "name": "workers", "uid": "u"},
        "spec": {"replicas": 1, "agentPools": [{"name": "spota", "maxNodes": 5}, {"name": "rega", "maxNodes": 2}],
            "fallback": {"maxNodes": 2}},
        "status": {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1,
            "capacity": {"wanted": 1, "readySpot": 1, "established": 1},
            "money": {"currency": "USD", "hourly": {"spot": "0.05", "onDemand": "0", "fallback": "0", "total": "0.05"}},
            "agentPools": [
                {"name": "spota", "role": "Spot", "count": 1, "machines": 1, "ready": 1, "provisioningState": "Succeeded",
                    "price": {"hourly": "0.05", "currency": "USD"}},
                {"name": "rega", "role": "OnDemand", "kept": 0, "provisioningState": "Succeeded",
                    "price": {"hourly": "0.2", "currency": "USD"}}]}});
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({"metadata": {"name": "aks-spota-1-vmss000000", "creationTimestamp": "2026-11-21T11:00:00Z",
        "labels": {"kubernetes.azure.com/agentpool": "spota"}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T11:01:00Z"}]}}))
    .unwrap()
}

#[test]
fn growth_is_asked_of_spot_and_costs_what_spot_costs() {
    let (old, new) = (pool(|_| ()), pool(|pool| pool["spec"]["replicas"] = 3.into()));
    let view = view(Some(&old), &new, &[node()], NOW.parse().unwrap());
    assert_eq!(view.changes, ["spec.replicas: 1 becomes 3"]);
    assert!(
        view.at_once.iter().any(|step| step.starts_with("SpotBelowTarget: ask spota for 2 more")),
        "{view:?}"
    );
    assert_eq!(view.cost, ["0.05 USD an hour now, 0.15 once this is done (2 machines more)"]);
    assert!(view.not_known.iter().any(|it| it.contains("whether Azure has the capacity")), "{view:?}");
    let text = anstream::adapter::strip_str(&render(&view, 100)).to_string();
    assert!(text.starts_with("SpotPool batch/workers would be changed; nothing was written\n"), "{text}");
}

#[test]
fn what_does_not_change_does_nothing() {
    let view = view(Some(&pool(|_| ())), &pool(|_| ()), &[node()], NOW.parse().unwrap());
    assert_eq!((view.changes.len(), view.at_once.len(), view.no_more.len()), (0, 0, 0), "{view:?}");
    assert_eq!(view.cost, ["0.05 USD an hour now, and no other at once"]);
}

#[test]
fn what_only_azure_knows_is_not_guessed() {
    let more = pool(|pool| {
        let pools = pool["spec"]["agentPools"].as_array_mut().unwrap();
        pools.push(json!({"name": "spotb", "maxNodes": 3}));
        pools[0]["maxNodes"] = 4.into();
    });
    let changed = view(Some(&pool(|_| ())), &more, &[node()], NOW.parse().unwrap());
    assert!(changed.not_known[0].starts_with("agent pool spotb: what it sells"), "{changed:?}");
    assert_eq!(changed.changes[0], "spec.agentPools[spota].maxNodes: 5 becomes 4");
    assert!(
        changed.changes[1].starts_with("spec.agentPools[spotb]: ")
            && changed.changes[1].ends_with("is added"),
        "{changed:?}"
    );
    let new = view(None, &more, &[], NOW.parse().unwrap());
    assert!(new.is_new && new.not_known[0].contains("mode: Observe"), "{new:?}");
    assert_eq!((new.at_once.len(), new.cost.len()), (0, 0));
}

#[test]
fn an_agent_pool_that_would_be_made_is_told_of() {
    let more = pool(|pool| {
        let create = json!({"vmSize": "Standard_D8s_v5", "capacityType": "Spot"});
        let pools = pool["spec"]["agentPools"].as_array_mut().unwrap();
        pools.push(json!({"name": "spotb", "maxNodes": 3, "create": create}));
    });
    let view = view(Some(&pool(|_| ())), &more, &[node()], NOW.parse().unwrap());
    let made = "CreateAgentPool: spotb is made if Azure has none of that name, of Standard_D8s_v5, Spot, without machines";
    assert_eq!(view.at_once[0], made);
}

#[test]
fn a_file_without_a_spot_pool_is_told_of() {
    let file = Path::new("x.yaml");
    let said = |text: &str| manifests(text, file).unwrap_err().to_string();
    assert_eq!(said("kind: Pod"), "x.yaml: there is no SpotPool in it");
    assert_eq!(said("kind: SpotPool"), "x.yaml: a SpotPool has no metadata.name");
    assert!(said("a: [").starts_with("x.yaml: "));
    assert_eq!(manifests("kind: SpotPool\nmetadata: {name: a}\n---\nkind: Pod", file).unwrap().len(), 1);
}
