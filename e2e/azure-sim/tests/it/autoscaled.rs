//! Pools that the cluster autoscaler scales.

use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;

use crate::SIZE;
use crate::azure::Azure;

fn autoscaled(count: u32, min: u32, max: u32) -> PoolSpec {
    PoolSpec::spot("auto", SIZE, count)
        .property("enableAutoScaling", json!(true))
        .property("minCount", json!(min))
        .property("maxCount", json!(max))
}

#[test]
fn enabling_needs_both_bounds_and_leaves_count_alone() {
    let mut azure = Azure::with(&[PoolSpec::spot("auto", SIZE, 2)]);
    for wrong in [
        json!({"enableAutoScaling": true}),
        json!({"enableAutoScaling": true, "minCount": 1}),
        json!({"enableAutoScaling": true, "minCount": 3, "maxCount": 2}),
        json!({"enableAutoScaling": true, "minCount": 1, "maxCount": 1001}),
    ] {
        assert_eq!(azure.put("auto", wrong.clone()).unwrap_err().code, "InvalidParameter", "{wrong}");
    }
    let both = json!({"enableAutoScaling": true, "minCount": 1, "maxCount": 5, "count": 3});
    let refused = azure.put("auto", both).unwrap_err();
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.message,
        "Cannot manually scale and enable cluster autoscaler in the same update operation on VMSS Agentpool 'auto'."
    );
    azure.put("auto", json!({"enableAutoScaling": true, "minCount": 1, "maxCount": 5, "count": 2})).unwrap();
    azure.settle();
    assert_eq!(azure.properties("auto")["maxCount"], 5);
    azure.put("auto", json!({"enableAutoScaling": false})).unwrap();
    azure.settle();
    assert_eq!(azure.properties("auto")["minCount"], serde_json::Value::Null);
}

#[test]
fn a_plain_count_is_refused_or_ignored_and_a_raised_least_adds_machines() {
    let mut azure = Azure::with(&[autoscaled(2, 1, 5)]);
    assert_eq!(azure.put("auto", json!({"count": 4})).unwrap_err().status, 400);
    azure.switch("auto", &json!({"countOfAutoscaled": "ignored"}));
    azure.put("auto", json!({"count": 4})).unwrap();
    azure.settle();
    assert_eq!((azure.pool("auto").count, azure.pool("auto").machines), (2, 2));
    let raised = azure.put("auto", json!({"minCount": 3})).unwrap();
    assert_eq!(raised.ordered.len(), 1);
    azure.settle();
    assert_eq!((azure.pool("auto").count, azure.pool("auto").machines), (3, 3));
    assert!(
        azure.cloud.add_pool(&PoolSpec { name: "bad".into(), ..autoscaled(0, 1, 5) }, azure.now).is_err()
    );
}

#[test]
fn evictions_below_the_least_are_made_good_by_the_autoscaler_unless_it_is_told_not_to() {
    for (restores, machines) in [(true, 2), (false, 1)] {
        let mut azure = Azure::with(&[autoscaled(3, 2, 5)]);
        let changes = json!({"autoscalerRestoresMinCount": restores, "countFollowsEvictions": false});
        azure.switch("auto", &changes);
        azure.evict("auto", 2);
        assert_eq!(azure.pool("auto").count, 1, "of an autoscaled pool it falls always");
        azure.settle();
        let pool = azure.pool("auto");
        assert_eq!((pool.count, pool.machines), (machines, machines));
        assert_eq!(azure.state().operations.iter().any(|operation| operation.background), restores);
    }
}
