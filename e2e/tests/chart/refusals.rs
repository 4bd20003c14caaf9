//! Wrong values are refused before anything is installed, in words that say what to change.

use crate::helm::{charts, example, examples, helm, template};

#[test]
fn helm_finds_nothing_to_say_against_the_charts() {
    let crds = charts().join("spotpool-crds").display().to_string();
    helm(&["lint", "--strict", &crds]).unwrap();
    let chart = charts().join("spotpool").display().to_string();
    for values in examples() {
        let said = helm(&["lint", "--strict", &chart, "--values", &values.display().to_string()]);
        said.unwrap_or_else(|said| panic!("{}: {said}", values.display()));
    }
}

#[test]
fn wrong_values_are_refused_with_what_to_change() {
    for (set, sentence) in [
        // What nobody reads would be taken for set.
        ("operator.replica=3", "at '/operator': additional properties 'replica' not allowed"),
        (
            "agent.resources.limit.memory=1Gi",
            "at '/agent/resources': additional properties 'limit' not allowed",
        ),
        ("azure.cloud=Germany", "at '/azure/cloud': value must be one of 'Public', 'UsGovernment', 'China'"),
        (
            "azure.credential=secret",
            "at '/azure/credential': value must be one of 'workload-identity', 'managed-identity'",
        ),
        ("azure.currency=usd", "at '/azure/currency': 'usd' does not match"),
        ("agent.pollInterval=5", "at '/agent/pollInterval': got number, want string"),
        ("agent.pollInterval=5min", "at '/agent/pollInterval': '5min' does not match"),
        ("agent.nodesOfNoSpotPool.onFreeze=drain", "value must be one of 'Drain', 'Cordon', 'Ignore'"),
        ("agent.port=80", "at '/agent/port': minimum: got 80, want 1,024"),
        ("agent.maxUnavailable=0", "at '/agent/maxUnavailable'"),
        ("operator.replicas=0", "at '/operator/replicas': minimum: got 0, want 1"),
        ("operator.poolNamespaces={Batch}", "at '/operator/poolNamespaces/0': 'Batch' does not match"),
        // What only the whole can tell.
        ("azure.cloud=China", "Azure China sells no spot VMs"),
        ("azure.subscriptionId=mine", "azure.subscriptionId: give the id of the cluster's subscription"),
        ("azure.resourceGroup=", "azure.resourceGroup: give the resource group"),
        (
            "azure.resourceGroup=MC_a_b_c",
            "azure.resourceGroup: MC_a_b_c looks like the group of the cluster's nodes",
        ),
        ("azure.clusterName=", "azure.clusterName: give the name of the AKS cluster"),
        ("azure.clientId=", "azure.clientId: workload identity needs the client id"),
        ("operator.leaderElection.enabled=false", "several replicas without an election would all buy nodes"),
        ("agent.noticePort=9435", "agent.noticePort: must differ from agent.port"),
    ] {
        let refused = template(&example("workload-identity.yaml"), &[set]);
        let said = refused.expect_err(set);
        assert!(said.contains(sentence), "{set}: {said}");
    }
}
