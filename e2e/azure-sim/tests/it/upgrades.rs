//! Upgrades, stops and starts.

use serde_json::json;
use spotpool_azure_sim::api::{GoneReason, OperationStatus, PoolSpec, VmPhase};

use crate::SIZE;
use crate::azure::Azure;

fn nodes(azure: &Azure, pool: &str) -> Vec<String> {
    azure.vms(pool).into_iter().map(|vm| vm.node).collect()
}

/// A controller must neither take the surge for capacity that was bought nor a drained node for one it lost.
#[test]
fn a_regular_pool_is_upgraded_node_by_node_with_a_surge() {
    let pool = PoolSpec::regular("rega", SIZE, 3).property("upgradeSettings", json!({"maxSurge": "1"}));
    let mut azure = Azure::with(&[pool]);
    let before = nodes(&azure, "rega");
    let image = azure.properties("rega")["nodeImageVersion"].clone();
    let accepted = azure.cloud.upgrade_image("rega", azure.now).unwrap();
    assert_eq!(azure.pool("rega").provisioning_state, "UpgradingNodeImageVersion");
    assert_eq!(azure.put("rega", json!({"count": 4})).unwrap_err().status, 409);
    assert_eq!(
        (azure.pool("rega").count, azure.pool("rega").machines),
        (3, 4),
        "count says nothing of the surge"
    );
    assert!(azure.vms("rega").iter().all(|vm| vm.draining_since.is_none()), "the surge comes first");

    let (mut most_away, mut drained) = (0, Vec::new());
    while let Some(due) = azure.cloud.due(azure.now) {
        azure.now = due;
        azure.cloud.advance(due);
        let vms = azure.vms("rega");
        let away =
            vms.iter().filter(|vm| vm.phase == VmPhase::Reimaging || vm.draining_since.is_some()).count();
        most_away = most_away.max(away);
        for vm in vms.iter().filter(|vm| vm.phase == VmPhase::Reimaging) {
            assert!(vm.drained_at.is_some(), "{} was drained first", vm.node);
            if !drained.contains(&vm.node) {
                drained.push(vm.node.clone());
            }
        }
    }
    assert_eq!((azure.status(&accepted).as_str(), most_away), ("Succeeded", 1));
    assert_eq!(drained, before, "one after the other");
    assert_eq!(nodes(&azure, "rega"), before, "the nodes are the same, the surge is gone");
    assert!(azure.vms("rega").iter().all(|vm| vm.reboots == 1 && vm.draining_since.is_none()));
    let after = azure.properties("rega");
    assert_ne!(after["nodeImageVersion"], image);
    assert!(azure.vms("rega").iter().all(|vm| json!(vm.image) == after["nodeImageVersion"]));
    let surge = azure.state().vms.into_iter().find(|vm| vm.phase == VmPhase::Gone).unwrap();
    assert_eq!(surge.gone_reason, Some(GoneReason::SurgeOver));
    assert_eq!((azure.pool("rega").count, azure.pool("rega").machines), (3, 3));
}

#[test]
fn a_spot_pool_is_upgraded_with_neither_surge_nor_drain() {
    let mut azure = Azure::with(&[PoolSpec::spot("spota", SIZE, 2)]);
    let accepted = azure.put("spota", json!({"orchestratorVersion": "1.35.1"})).unwrap();
    assert_eq!(azure.pool("spota").provisioning_state, "Upgrading");
    assert_eq!(azure.vms("spota").len(), 2);
    let first = azure.vms("spota").remove(0);
    assert_eq!((first.phase, first.draining_since), (VmPhase::Reimaging, None));
    assert!(!azure.cloud.wanted_nodes().iter().find(|node| node.vm.node == first.node).unwrap().ready);
    azure.settle();
    assert_eq!(azure.status(&accepted), "Succeeded");
    assert_eq!(azure.properties("spota")["currentOrchestratorVersion"], "1.35.1");
    assert!(azure.vms("spota").iter().all(|vm| vm.reboots == 1));
}

#[test]
fn a_node_that_cannot_be_drained_fails_the_upgrade_and_is_free_again() {
    let settings = json!({"maxSurge": "50%", "drainTimeoutInMinutes": 5});
    let pool = PoolSpec::regular("rega", SIZE, 2).property("upgradeSettings", settings);
    let mut azure = Azure::new(&[pool], true);
    for node in nodes(&azure, "rega") {
        azure.cloud.node_registered(&node, azure.now);
    }
    let accepted = azure.cloud.upgrade_image("rega", azure.now).unwrap();
    azure.pass(100);
    let surge = nodes(&azure, "rega")[2].clone();
    azure.cloud.node_registered(&surge, azure.now);
    azure.pass(1);
    assert!(azure.vms("rega")[0].draining_since.is_some());
    azure.pass(301);
    azure.settle();
    let ended = azure.operation(&accepted);
    assert_eq!(
        (ended.status, &ended.error.unwrap()["code"]),
        (OperationStatus::Failed, &json!("UpgradeFailed"))
    );
    assert!(azure.vms("rega").iter().all(|vm| vm.draining_since.is_none()));
    assert_eq!(azure.vms("rega").len(), 2, "the surge is gone");
}

#[test]
fn an_upgrade_that_is_aborted_leaves_nothing_cordoned() {
    let mut azure = Azure::with(&[PoolSpec::regular("rega", SIZE, 2)]);
    let accepted = azure.cloud.upgrade_image("rega", azure.now).unwrap();
    azure.pass(101);
    assert!(azure.vms("rega").iter().any(|vm| vm.draining_since.is_some()));
    azure.cloud.abort("rega", azure.now).unwrap().unwrap();
    azure.settle();
    assert_eq!(azure.status(&accepted), "Canceled");
    assert!(azure.vms("rega").iter().all(|vm| vm.draining_since.is_none()));
    assert_eq!(azure.vms("rega").len(), 2);
}

#[test]
fn a_pool_that_is_stopped_has_no_machines_and_gets_them_back() {
    let mut azure = Azure::with(&[PoolSpec::spot("spota", SIZE, 2)]);
    let power = |code: &str| json!({"powerState": {"code": code}});
    let stop = azure.put("spota", power("Stopped")).unwrap();
    assert_eq!(azure.pool("spota").provisioning_state, "Stopping");
    azure.settle();
    let pool = azure.pool("spota");
    assert_eq!((azure.status(&stop).as_str(), pool.count, pool.machines), ("Succeeded", 2, 0));
    assert_eq!(azure.properties("spota")["powerState"]["code"], "Stopped");
    // Whatever count is put meanwhile is for later.
    azure.put("spota", json!({"count": 3})).unwrap();
    azure.settle();
    assert_eq!(azure.pool("spota").machines, 0);
    let start = azure.put("spota", power("Running")).unwrap();
    assert_eq!((azure.pool("spota").provisioning_state.as_str(), start.ordered.len()), ("Starting", 3));
    azure.settle();
    assert_eq!((azure.status(&start).as_str(), azure.pool("spota").machines), ("Succeeded", 3));
}
