//! What there is room for, and what happens when there is none.

use serde_json::json;
use spotpool_azure_sim::api::{Capacity, PoolSpec, Priority, Quota, VmPhase};
use spotpool_azure_sim::model::ComputeName;

use crate::SIZE;
use crate::azure::Azure;

fn limit(azure: &mut Azure, zone: Option<&str>, limit: Option<u32>) {
    azure
        .cloud
        .set_capacity(Capacity { zone: zone.map(Into::into), ..Capacity::of(SIZE, Priority::Spot, limit) });
}

fn zoned() -> Azure {
    Azure::with(&[PoolSpec::spot("spota", SIZE, 3).zones(&["1", "2", "3"])])
}

#[test]
fn a_zone_may_be_full_while_others_have_room() {
    let mut azure = zoned();
    limit(&mut azure, Some("2"), Some(1));
    let accepted = azure.put("spota", json!({"count": 6})).unwrap();
    assert_eq!(accepted.ordered.len(), 2);
    azure.settle();
    let error = azure.operation(&accepted).error.unwrap();
    assert_eq!(error["code"], "ZonalAllocationFailed");
    assert!(error["message"].as_str().unwrap().contains("in zone 2."), "{error}");
    let mut zones: Vec<_> = azure.vms("spota").into_iter().filter_map(|vm| vm.zone).collect();
    zones.sort_unstable();
    assert_eq!(zones, ["1", "1", "2", "3", "3"]);

    // Room comes back: capacity changes over time.
    limit(&mut azure, Some("2"), None);
    let healed = azure.put("spota", json!({"count": 6})).unwrap();
    azure.settle();
    assert_eq!((azure.status(&healed).as_str(), azure.vms("spota").len()), ("Succeeded", 6));
}

#[test]
fn an_order_may_be_all_or_nothing() {
    let mut azure = zoned();
    azure.switch("spota", &json!({"allocation": "allOrNothing"}));
    limit(&mut azure, None, Some(5));
    let accepted = azure.put("spota", json!({"count": 6})).unwrap();
    assert!(accepted.ordered.is_empty());
    azure.settle();
    assert_eq!((azure.status(&accepted).as_str(), azure.vms("spota").len()), ("Failed", 3));
}

#[test]
fn cores_are_limited_by_quota_after_acceptance_or_at_once() {
    for (pool, name) in [
        (PoolSpec::spot("p", SIZE, 2), "LowPriorityCores"),
        (PoolSpec::regular("p", SIZE, 2), "standardDSv5Family"),
        (PoolSpec::regular("p", SIZE, 2), "cores"),
    ] {
        let mut azure = Azure::with(&[pool, PoolSpec::spot("other", "Standard_E4s_v5", 0)]);
        azure.cloud.set_quota(Quota { name: name.into(), limit: Some(24) });
        let accepted = azure.put("p", json!({"count": 4})).unwrap();
        azure.settle();
        let error = azure.operation(&accepted).error.unwrap();
        assert_eq!(
            (&error["code"], &error["details"][0]["code"]),
            (&json!("QuotaExceeded"), &json!("OperationNotAllowed"))
        );
        let numbers = format!(
            "approved {name} quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 24, Current Usage: 16, Additional Required: 16, (Minimum) New Limit Required: 32."
        );
        assert!(error["message"].as_str().unwrap().contains(&numbers), "{error}");
        assert_eq!(azure.vms("p").len(), 2, "a quota refuses the whole order");
        azure.put("p", json!({"count": 3})).unwrap();
        azure.settle();

        azure.switch("p", &json!({"quotaRefusal": "atOnce"}));
        let refused = azure.put("p", json!({"count": 4})).unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (400, "ErrCode_InsufficientVCPUQuota"));
        assert_eq!(azure.pool("p").count, 3);
    }
}

#[test]
fn spot_dearer_than_a_pool_pays_does_not_come() {
    let dear = PoolSpec::spot("cheap", SIZE, 1).property("spotMaxPrice", json!(0.05));
    let mut azure = Azure::with(&[dear, PoolSpec::spot("any", SIZE, 1)]);
    azure.cloud.market.set_price(SIZE, Priority::Spot, Some("0.08"), azure.now).unwrap();
    let accepted = azure.put("cheap", json!({"count": 2})).unwrap();
    azure.put("any", json!({"count": 2})).unwrap();
    azure.settle();
    assert_eq!(azure.operation(&accepted).error.unwrap()["code"], "SpotPriceGreaterThanProvidedMaxPrice");
    assert_eq!((azure.vms("cheap").len(), azure.vms("any").len()), (1, 2));
}

/// Machines that are deallocated look like capacity that is there: they are not, and yet they use up quota.
#[test]
fn a_deallocated_machine_stays_keeps_its_quota_and_can_be_started_again() {
    let policy = PoolSpec::spot("spota", SIZE, 2).property("scaleSetEvictionPolicy", json!("Deallocate"));
    let mut azure = Azure::with(&[policy]);
    azure.evict("spota", 1);
    let vm = azure.vms("spota")[0].clone();
    assert_eq!((vm.phase, vm.gone_at), (VmPhase::Deallocated, None));
    let pool = azure.pool("spota");
    assert_eq!((pool.count, pool.machines), (2, 2), "its instance is still there");
    assert_eq!(azure.cloud.machines("spota").unwrap().len(), 2);
    let nodes = azure.cloud.wanted_nodes();
    let node = nodes.iter().find(|node| node.vm.node == vm.node).unwrap();
    assert!(!node.ready, "its Node stays, and is not ready");
    assert!(azure.cloud.gone_nodes().is_empty());
    assert_eq!(azure.state().events[0].status, "Done");

    // A PUT of the same count brings nothing back; its cores count, its room does not.
    let same = azure.put("spota", json!({"count": 2})).unwrap();
    assert!(same.ordered.is_empty());
    azure.settle();
    azure.cloud.set_quota(Quota { name: "LowPriorityCores".into(), limit: Some(16) });
    let more = azure.put("spota", json!({"count": 3})).unwrap();
    azure.settle();
    assert_eq!(azure.operation(&more).error.unwrap()["code"], "QuotaExceeded");
    azure.cloud.set_quota(Quota { name: "LowPriorityCores".into(), limit: None });
    azure.cloud.set_capacity(Capacity::of(SIZE, Priority::Spot, Some(2)));
    let more = azure.put("spota", json!({"count": 3})).unwrap();
    azure.settle();
    assert_eq!(azure.status(&more), "Succeeded");

    let scale_set = azure.pool("spota").vmss;
    let name = ComputeName::Instance { scale_set, id: vm.instance_id };
    assert_eq!(azure.cloud.start_machine(&name, azure.now).unwrap_err().code, "AllocationFailed");
    azure.cloud.set_capacity(Capacity::of(SIZE, Priority::Spot, None));
    let started = azure.cloud.start_machine(&name, azure.now).unwrap();
    assert_eq!(azure.status(&started), "InProgress");
    azure.settle();
    assert_eq!(azure.status(&started), "Succeeded");
    let again = azure.vms("spota")[0].clone();
    assert_eq!((again.phase, again.reboots, again.instance_id), (VmPhase::Running, 1, vm.instance_id));
}
