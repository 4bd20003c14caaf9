//! Operations that end otherwise than their callers hoped.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    BackgroundOperation, Failure, FailureKind, GoneReason, OperationStatus, PoolSpec, VmPhase,
};
use spotpool_azure_sim::model::Conditions;

use crate::azure::Azure;
use crate::{Bench, SIZE};

fn azure() -> Azure {
    Azure::with(&[
        PoolSpec::spot("spota", SIZE, 2),
        PoolSpec::regular("sys", SIZE, 1).property("mode", json!("System")),
    ])
}

fn background(pool: Option<&str>, preempt: bool) -> BackgroundOperation {
    BackgroundOperation {
        pool: pool.map(Into::into),
        kind: "Updating".into(),
        time: Duration::from_mins(2),
        preempt,
    }
}

#[test]
fn an_operation_that_is_aborted_is_canceled_and_its_pool_too() {
    let mut azure = azure();
    assert_eq!(azure.cloud.abort("spota", azure.now), Ok(None), "nothing has ever run: 204");
    let scaling = azure.put("spota", json!({"count": 4})).unwrap();
    let abort = azure.cloud.abort("spota", azure.now).unwrap().unwrap();
    assert_eq!(azure.pool("spota").provisioning_state, "Canceling");
    assert_eq!(azure.status(&scaling), "InProgress");
    assert_eq!(azure.put("spota", json!({"count": 3})).unwrap_err().status, 409);
    azure.settle();
    assert_eq!(azure.pool("spota").provisioning_state, "Canceled");
    assert_eq!((azure.status(&scaling), azure.status(&abort)), ("Canceled".into(), "Succeeded".into()));
    assert_eq!(azure.cloud.abort("spota", azure.now).unwrap_err().status, 409, "too late");
    assert_eq!(azure.cloud.abort("absent", azure.now).unwrap_err().status, 404);
    // The machines that were ordered are there all the same; the next write goes on from them.
    let next = azure.put("spota", json!({"count": 4})).unwrap();
    assert!(next.ordered.is_empty());
    azure.settle();
    assert_eq!(azure.status(&next), "Succeeded");
}

#[test]
fn a_pool_that_is_deleted_takes_its_operation_and_its_machines_with_it() {
    let mut azure = azure();
    let none = Conditions::default();
    let scaling = azure.put("spota", json!({"count": 4})).unwrap();
    let deleting = azure.cloud.delete_pool("spota", &none, azure.now).unwrap().unwrap();
    assert_eq!(azure.operation(&scaling).error.unwrap()["code"], "AKSOperationPreemptedByDelete");
    assert_eq!(azure.pool("spota").provisioning_state, "Deleting");
    assert_eq!(azure.cloud.delete_pool("spota", &none, azure.now).unwrap_err().status, 409);
    azure.settle();
    assert_eq!(azure.status(&deleting), "Succeeded");
    assert!(azure.cloud.get_pool("spota", crate::VERSION).is_err());
    assert!(
        azure
            .state()
            .vms
            .iter()
            .filter(|vm| vm.pool == "spota")
            .all(|vm| { vm.phase == VmPhase::Gone && vm.gone_reason == Some(GoneReason::PoolRemoved) })
    );
    assert_eq!(azure.cloud.delete_pool("spota", &none, azure.now), Ok(None), "gone already: 204");
    assert_eq!(
        azure.cloud.delete_pool("sys", &none, azure.now).unwrap_err().status,
        400,
        "the last system pool"
    );
    let stale = Conditions { if_match: Some("stale".into()), if_none_match: None };
    assert_eq!(azure.cloud.delete_pool("sys", &stale, azure.now).unwrap_err().status, 412);
}

#[test]
fn aks_keeps_pools_busy_of_its_own_accord() {
    let mut azure = azure();
    let tag = azure.pool("spota").e_tag;
    azure.cloud.begin_background(&background(Some("spota"), false), azure.now).unwrap();
    assert!(azure.state().operations[0].background);
    let refused = azure.put("spota", json!({"count": 3})).unwrap_err();
    assert!(
        refused.message.contains("Another agentpool operation (spota - Updating)"),
        "{}",
        refused.message
    );
    assert_ne!(azure.pool("spota").e_tag, tag);
    assert!(azure.put("sys", json!({"count": 1})).is_ok(), "another pool is another matter");
    azure.settle();
    let tag = azure.pool("spota").e_tag;

    azure.cloud.begin_background(&background(None, false), azure.now).unwrap();
    assert_eq!(azure.state().cluster_operation.as_deref(), Some("Updating"));
    for pool in ["spota", "sys"] {
        let refused = azure.put(pool, json!({"count": 2})).unwrap_err();
        assert!(
            refused.message.contains("Another operation (Updating) is in progress"),
            "{}",
            refused.message
        );
    }
    assert_ne!(azure.pool("spota").e_tag, tag, "a cluster's operation changes the eTags of its pools");
    azure.pass(120);
    assert!(azure.put("spota", json!({"count": 3})).is_ok());
}

#[test]
fn an_operation_may_be_preempted_by_another() {
    let mut azure = azure();
    let scaling = azure.put("spota", json!({"count": 3})).unwrap();
    assert!(azure.cloud.begin_background(&background(Some("spota"), false), azure.now).is_err());
    azure.cloud.begin_background(&background(Some("spota"), true), azure.now).unwrap();
    let ended = azure.operation(&scaling);
    assert_eq!(
        (ended.status, &ended.error.unwrap()["code"]),
        (OperationStatus::Failed, &json!("AKSOperationPreempted"))
    );
    assert_eq!(azure.pool("spota").provisioning_state, "Updating");
    azure.settle();
    assert_eq!(azure.pool("spota").provisioning_state, "Succeeded");
}

/// An adapter classifies these: each must come by the way that Azure sends it, and only as often as told.
#[test]
fn failures_come_to_the_writes_they_were_meant_for() {
    for (error, at_once) in [
        (FailureKind::SkuNotAvailable, None),
        (FailureKind::AllocationFailed, None),
        (FailureKind::ZonalAllocationFailed, None),
        (FailureKind::OverconstrainedAllocationRequest, None),
        (FailureKind::OverconstrainedZonalAllocationRequest, None),
        (FailureKind::QuotaExceeded, None),
        (FailureKind::SpotPriceGreaterThanProvidedMaxPrice, None),
        (FailureKind::ReconcileVMSSAgentPoolFailed, None),
        (FailureKind::InsufficientVcpuQuota, Some(400)),
        (FailureKind::VMSizeNotSupported, Some(400)),
        (FailureKind::InsufficientSubnetSize, Some(400)),
        (FailureKind::EtagMismatch, Some(409)),
        (FailureKind::OriginalEtagNotExpect, None),
        (FailureKind::AKSOperationPreempted, None),
    ] {
        let mut azure = azure();
        azure.cloud.add_failure(Failure::next("spota", error.clone()));
        azure.put("sys", json!({"count": 2})).unwrap();
        if error.needs_an_order() {
            let calm = azure.put("spota", json!({"count": 2})).unwrap();
            azure.settle();
            assert_eq!(azure.status(&calm), "Succeeded", "{error:?} needs an order");
        }
        match (azure.put("spota", json!({"count": 4})), at_once) {
            (Err(refusal), Some(status)) => {
                assert_eq!(refusal.status, status, "{error:?}");
                assert_eq!(azure.pool("spota").count, 2);
            }
            (Ok(accepted), None) => {
                azure.settle();
                let told = azure.operation(&accepted).error.unwrap();
                assert_eq!(told["code"], json!(error));
                let pool = azure.properties("spota");
                assert_eq!(pool["provisioningState"], "Failed");
                assert_eq!(pool["status"]["provisioningError"], told);
                assert_eq!(azure.pool("spota").machines, 2);
            }
            (other, _) => unreachable!("{error:?}: {other:?}"),
        }
        assert!(azure.state().failures.is_empty(), "once");
        let again = azure.put("spota", json!({"count": 4})).unwrap();
        azure.settle();
        assert_eq!((azure.status(&again), azure.pool("spota").machines), ("Succeeded".into(), 4));
    }
}

#[test]
fn a_failed_scale_up_may_bring_some_machines_and_count_says_what_it_is_told_to() {
    for (after, count) in [("asked", 6), ("existing", 3)] {
        let mut azure = azure();
        azure.switch("spota", &json!({"countAfterFailure": after}));
        let partial = Failure { allocated: 1, ..Failure::next("spota", FailureKind::AllocationFailed) };
        azure.cloud.add_failure(partial);
        let accepted = azure.put("spota", json!({"count": 6})).unwrap();
        assert_eq!(accepted.ordered.len(), 1);
        azure.settle();
        let pool = azure.pool("spota");
        assert_eq!((azure.status(&accepted).as_str(), pool.count, pool.machines), ("Failed", count, 3));
    }
}

#[test]
fn a_delete_of_machines_may_fail_too_and_then_deletes_none() {
    let mut azure = azure();
    azure.cloud.add_failure(Failure::next("spota", FailureKind::OriginalEtagNotExpect));
    let body = json!({"machineNames": [azure.vms("spota")[0].node]});
    let accepted = azure.cloud.delete_machines("spota", &body, &Conditions::default(), azure.now).unwrap();
    azure.settle();
    assert_eq!((azure.status(&accepted).as_str(), azure.vms("spota").len()), ("Failed", 2));
}

#[tokio::test]
async fn abort_and_delete_over_http() {
    let bench = Bench::start().await;
    bench.client.add_pool(&PoolSpec::regular("rega", SIZE, 1)).await.unwrap();
    let abort = async |pool: &str| {
        bench.send(Method::POST, &bench.pool_url(&format!("{pool}/abort")), &[], None).await
    };
    assert_eq!(abort("spota").await.status, 204);
    let scaling = bench.put("spota", json!({"count": 3})).await;
    let aborted = abort("spota").await;
    assert_eq!((aborted.status, &aborted.body), (202, &json!("")));
    assert!(aborted.header("location").contains("/operationresults/"));
    assert_eq!(bench.follow(&aborted).await["status"], "Succeeded");
    let canceled = bench.get(scaling.header("azure-asyncoperation")).await.body;
    assert_eq!(canceled["status"], "Canceled");
    assert!(canceled["endTime"].is_string());
    assert_eq!(abort("spota").await.status, 409);

    let url = bench.pool_url("rega").replace('?', "?ignore-pod-disruption-budget=true&");
    let deleted = bench.send(Method::DELETE, &url, &[], None).await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    assert_eq!(bench.follow(&deleted).await["status"], "Succeeded");
    assert_eq!(bench.get(&bench.pool_url("rega")).await.status, 404);
    assert_eq!(bench.send(Method::DELETE, &url, &[], None).await.status, 204);
    let state = bench.client.state().await.unwrap();
    let kinds: Vec<&str> = state.arm_writes.iter().map(|write| write.kind.as_str()).collect();
    assert_eq!(kinds, ["POST abort", "PUT pool", "POST abort", "POST abort", "DELETE pool", "DELETE pool"]);
    assert_eq!(state.writes_to("rega").map(|write| write.status).collect::<Vec<_>>(), [202, 204]);
}

#[tokio::test]
async fn how_an_operation_is_told_is_switched_for_a_pool() {
    let bench = Bench::start().await;
    bench.client.add_pool(&PoolSpec::spot("spotb", SIZE, 1)).await.unwrap();
    let changes =
        json!({"retryAfter": 17, "operationNames": "same", "eTags": "absent", "operationTime": "1h"});
    bench.client.switch_pool("spotb", &changes).await.unwrap();
    assert!(bench.client.switch_pool("spotb", &json!({"retryAfter": "soon"})).await.is_err());

    let usual = bench.put("spota", json!({"count": 2})).await;
    let switched = bench.put("spotb", json!({"count": 2})).await;
    assert_eq!((usual.header("retry-after"), switched.header("retry-after")), ("", "17"));
    assert!(usual.body["properties"]["eTag"].is_string());
    assert_eq!(switched.body["properties"]["eTag"], Value::Null);
    let stale = bench
        .send(
            Method::PUT,
            &bench.pool_url("spotb"),
            &[("if-match", "stale")],
            Some(&json!({"properties": {}})),
        )
        .await;
    assert_eq!(stale.status, 412, "what is not shown is compared all the same");
    let url = switched.header("azure-asyncoperation");
    let status = bench.get(url).await;
    assert_eq!(status.header("retry-after"), "17");
    assert!(url.contains(status.body["name"].as_str().unwrap()));
    assert_eq!(bench.follow(&usual).await["status"], "Succeeded");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(bench.get(url).await.body["status"], "InProgress", "this one is slow");
}

#[tokio::test]
async fn lists_come_in_pages_on_another_version_with_an_empty_last_one() {
    let pools = ["a", "b", "c", "d"].map(|name| PoolSpec::regular(name, SIZE, 2));
    let bench = Bench::with(&pools, Duration::from_millis(100)).await;
    let changes = json!({"poolsPerPage": 2, "machinesPerPage": 1, "lastPageEmpty": true});
    bench.client.switch(changes).await.unwrap();
    for (first, pages) in [
        (bench.pool_url("a").replace("/a?", "?"), vec![2, 2, 0]),
        (bench.pool_url("a/machines"), vec![1, 1, 0]),
    ] {
        let (mut url, mut sizes) = (first, Vec::new());
        loop {
            let page = bench.get(&url).await;
            assert_eq!(page.status, 200, "{page:?}");
            sizes.push(page.body["value"].as_array().unwrap().len());
            let Some(next) = page.body["nextLink"].as_str() else { break };
            assert!(!next.contains(crate::VERSION), "{next}");
            next.clone_into(&mut url);
        }
        assert_eq!(sizes, pages);
    }
}
