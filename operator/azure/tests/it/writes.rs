//! Writes: conditional where Azure gives an ETag, never by one who has lost the lease, never in place of the
//! autoscaler.

use serde_json::{Value, json};
use spotpool_azure::{AgentPools, Class, Urgency};

use crate::scripted::{ENDPOINT, POOLS, Scripted, answer, list, ok, pool, read, seconds};

const OPERATION: &str = "https://management.azure.com/subscriptions/s/providers/Microsoft.ContainerService/locations/westus2/operations/1b4e28ba?api-version=2025-03-01&t=638&c=MIIH&s=s3cr3t&h=x";

/// Without If-Match a stale cache would overwrite what a person has just changed.
#[tokio::test]
async fn writes_are_conditional_where_there_is_an_etag() {
    for (etag, sent) in [
        (json!("\"v7\""), Some("\"v7\"")),
        (json!("bare"), Some("bare")),
        (Value::Null, None),
        (json!(""), None),
    ] {
        let scripted = Scripted::new(|_| ok(&pool("spota", json!({"provisioningState": "Scaling"}))));
        let before = read(pool("spota", json!({ "eTag": etag }))).await;
        let accepted = scripted.arm().scale(&before, 5, Urgency::Emergency).await.unwrap();
        let asked = scripted.last();
        assert_eq!(asked.url, format!("{ENDPOINT}{POOLS}/spota?api-version=2025-10-01"));
        assert_eq!(asked.header("if-match"), sent);
        assert_eq!(asked.header("if-none-match"), None);
        assert_eq!(asked.body["properties"]["count"], 5);
        assert!(accepted.agent_pool.unwrap().busy());
        assert!(accepted.operation.is_none());
    }
}

#[tokio::test]
async fn created_and_ok_both_mean_accepted() {
    for status in [200, 201, 202] {
        for header in ["Azure-AsyncOperation", "Location"] {
            let scripted = Scripted::new(move |_| {
                answer(status, &[(header, OPERATION), ("Retry-After", "10")], &pool("spota", json!({})))
            });
            let before = read(pool("spota", json!({}))).await;
            let accepted = scripted.arm().scale(&before, 5, Urgency::Routine).await.unwrap();
            let operation = accepted.operation.unwrap();
            assert_eq!(accepted.retry_after, Some(seconds(10)));
            let shown = format!("{operation:?}");
            assert!(!shown.contains("s3cr3t") && shown.contains("operations/1b4e28ba"), "{shown}");
        }
    }
}

/// Accepted is accepted: a body or a link that we do not understand must not make the operator ask again.
#[tokio::test]
async fn odd_answers_to_accepted_writes_are_still_accepted() {
    for (headers, body) in [
        (vec![], Value::Null),
        (vec![("Azure-AsyncOperation", "nonsense")], json!([1])),
        (vec![("Azure-AsyncOperation", "https://evil.example/operations/1")], json!({"name": 1})),
    ] {
        let scripted = Scripted::new(move |_| answer(201, &headers, &body));
        let before = read(pool("spota", json!({}))).await;
        let accepted = scripted.arm().scale(&before, 5, Urgency::Routine).await.unwrap();
        assert!(accepted.operation.is_none() && accepted.agent_pool.is_none());
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let flat =
        |code: &str, message: &str| json!({"code": code, "details": null, "message": message, "subcode": ""});
    for (status, body, class) in [
        (412, flat("PreconditionFailed", "etag mismatch"), Class::Conflict),
        (412, Value::Null, Class::Conflict),
        (
            409,
            flat("OperationNotAllowed", "Another agentpool operation (user - Scaling) is in progress"),
            Class::Conflict,
        ),
        (409, flat("EtagMismatch", "x"), Class::Conflict),
        (400, flat("ErrCode_InsufficientVCPUQuota", "quota"), Class::Capacity),
        (400, flat("UnmarshalError", "json: unknown field \"x\""), Class::Invalid),
        (403, json!({"error": {"code": "AuthorizationFailed", "message": "x"}}), Class::Denied),
        (503, Value::Null, Class::Transient),
    ] {
        let scripted = Scripted::new(move |_| answer(status, &[], &body));
        let before = read(pool("spota", json!({}))).await;
        let error = scripted.arm().scale(&before, 5, Urgency::Emergency).await.unwrap_err();
        assert_eq!((error.class, error.status), (class, status));
        assert_eq!(error.outcome_unknown(), status >= 500);
        assert_eq!(scripted.asked().len(), 1, "nothing is retried inside");
    }
}

/// Two leaders would buy everything twice.
#[tokio::test]
async fn nothing_is_written_without_the_lease() {
    let scripted = Scripted::new(|_| ok(&list(&[])));
    let (arm, before) = (scripted.arm(), read(pool("spota", json!({}))).await);
    scripted.lose_the_lease();
    for error in [
        arm.scale(&before, 5, Urgency::Emergency).await.unwrap_err(),
        arm.delete_machines("spota", &["m".into()]).await.unwrap_err(),
    ] {
        assert_eq!((error.class, error.code.as_str()), (Class::Conflict, "NotLeader"));
        assert!(error.is_local() && !error.outcome_unknown());
    }
    assert!(scripted.asked().is_empty());
    assert_eq!(arm.write_budget("spota").left, 10, "what is not sent costs nothing");
    assert!(arm.list().await.is_ok(), "reads go on");
}

#[tokio::test]
async fn the_autoscaler_keeps_its_count_and_manual_pools_have_no_range() {
    let scripted = Scripted::new(|_| ok(&Value::Null));
    let arm = scripted.arm();
    let auto = read(pool("auto", json!({"enableAutoScaling": true, "minCount": 1, "maxCount": 3}))).await;
    let manual = read(pool("spota", json!({}))).await;
    for error in [
        arm.scale(&auto, 5, Urgency::Emergency).await.unwrap_err(),
        arm.correct_count(&auto, 1).await.unwrap_err(),
        arm.set_autoscaler_range(&manual, 1, 2, Urgency::Routine).await.unwrap_err(),
        arm.set_autoscaler_range(&auto, 3, 2, Urgency::Routine).await.unwrap_err(),
    ] {
        assert_eq!((error.class, error.code.as_str()), (Class::Invalid, "InvalidRequest"));
    }
    assert!(scripted.asked().is_empty());
    arm.set_autoscaler_range(&auto, 2, 9, Urgency::Routine).await.unwrap();
    let properties = scripted.last().body["properties"].clone();
    assert_eq!(
        (&properties["minCount"], &properties["maxCount"], &properties["count"]),
        (&json!(2), &json!(9), &json!(3))
    );
    assert_eq!(scripted.last().header("if-match"), Some("\"v1\""));
}

fn machines(names: &[&str]) -> Value {
    json!({"value": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()})
}

/// A count below the machines that exist deletes one of Azure's choosing, with all that runs on it.
#[tokio::test(start_paused = true)]
async fn a_count_is_corrected_only_down_to_the_machines_that_exist() {
    let scripted = Scripted::new(|asked| {
        if asked.path().ends_with("/machines") {
            ok(&machines(&["a", "b"]))
        } else {
            ok(&pool("spota", json!({})))
        }
    });
    let arm = scripted.arm();
    let stale = read(pool("spota", json!({"count": 5}))).await;
    for (count, why) in [
        (1, "another number of machines exists"),
        (3, "another number of machines exists"),
        (5, "not above"),
        (6, "not above"),
    ] {
        let error = arm.correct_count(&stale, count).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Conflict, "CountNotCorrected"));
        assert!(error.message.contains(why), "{error}");
    }
    let busy = read(pool("spota", json!({"count": 5, "provisioningState": "Scaling"}))).await;
    assert_eq!(arm.correct_count(&busy, 2).await.unwrap_err().class, Class::Conflict);
    assert!(scripted.asked().iter().all(|asked| asked.method == http::Method::GET));
    arm.correct_count(&stale, 2).await.unwrap();
    let asked = scripted.last();
    assert_eq!(
        (asked.body["properties"]["count"].as_u64(), asked.header("if-match")),
        (Some(2), Some("\"v1\""))
    );
}

/// Without an ETag nothing else tells that somebody has asked for more since.
#[tokio::test(start_paused = true)]
async fn a_count_is_corrected_without_an_etag_only_right_after_the_read() {
    let scripted = Scripted::new(|asked| match asked.path() {
        path if path.ends_with("/machines") => ok(&machines(&["a"])),
        path if path.ends_with("/agentPools") => {
            ok(&list(&[pool("spota", json!({"count": 4, "eTag": null}))]))
        }
        _ => ok(&Value::Null),
    });
    let arm = scripted.arm();
    let stale = arm.list().await.unwrap().pop().unwrap();
    tokio::time::advance(seconds(31)).await;
    assert_eq!(arm.correct_count(&stale, 1).await.unwrap_err().code, "CountNotCorrected");
    let fresh = arm.list().await.unwrap().pop().unwrap();
    tokio::time::advance(seconds(5)).await;
    arm.correct_count(&fresh, 1).await.unwrap();
    assert_eq!(scripted.last().body["properties"]["count"], 1);
}

#[tokio::test]
async fn machines_are_deleted_by_name_as_in_the_official_example() {
    let example: Value =
        serde_json::from_str(include_str!("../fixtures/AgentPoolsDeleteMachines.json")).unwrap();
    let sent = &example["parameters"]["machines"];
    let names: Vec<String> = serde_json::from_value(sent["machineNames"].clone()).unwrap();
    let scripted = Scripted::new(|_| answer(202, &[("Location", OPERATION)], &Value::Null));
    let arm = scripted.arm();
    let accepted = arm.delete_machines("agentpool1", &names).await.unwrap();
    assert!(accepted.operation.is_some());
    let asked = scripted.last();
    assert_eq!((asked.method.clone(), &asked.body), (http::Method::POST, sent));
    assert_eq!(asked.path(), format!("{POOLS}/agentpool1/deleteMachines"));
    assert_eq!(arm.delete_machines("agentpool1", &[]).await.unwrap_err().class, Class::Invalid);
    assert_eq!(scripted.asked().len(), 1);
}

/// Some versions of AKS block every write of such a pool: it could never be scaled.
#[tokio::test]
async fn initialization_taints_are_left_out_where_azure_blocks_on_them() {
    let scripted = Scripted::new(|asked| match asked.body["properties"].get("nodeInitializationTaints") {
        Some(_) => answer(
            400,
            &[],
            &json!({"code": "BadRequest", "message": "NodeInitializationTaints can only be set by the managed cluster API."}),
        ),
        None => ok(&Value::Null),
    });
    let arm = scripted.arm();
    let before = read(pool("spota", json!({"nodeInitializationTaints": ["warming=1:NoSchedule"]}))).await;
    arm.scale(&before, 5, Urgency::Emergency).await.unwrap();
    assert_eq!(scripted.asked().len(), 2);
    assert_eq!(scripted.last().header("if-match"), Some("\"v1\""));
    arm.scale(&before, 6, Urgency::Emergency).await.unwrap();
    assert_eq!(scripted.asked().len(), 3, "remembered");
    // Where Azure takes them, they are sent.
    let scripted = Scripted::new(|_| ok(&Value::Null));
    scripted.arm().scale(&before, 5, Urgency::Emergency).await.unwrap();
    assert_eq!(
        scripted.last().body["properties"]["nodeInitializationTaints"],
        json!(["warming=1:NoSchedule"])
    );
}

#[tokio::test]
async fn pools_of_single_vms_are_scaled_by_their_size() {
    let vms = async |manual: Value| {
        read(pool(
            "vms",
            json!({"type": "VirtualMachines", "virtualMachinesProfile": {"scale": {"manual": manual}}}),
        ))
        .await
    };
    let scripted = Scripted::new(|_| ok(&Value::Null));
    let arm = scripted.arm();
    let sent = || scripted.last().body["properties"]["virtualMachinesProfile"]["scale"]["manual"].clone();
    let one = vms(json!([{"size": "a", "count": 3, "x": 1}])).await;
    arm.scale(&one, 1, Urgency::Routine).await.unwrap();
    assert_eq!(sent(), json!([{"size": "a", "count": 1, "x": 1}]));
    let two = vms(json!([{"size": "a", "count": 3}, {"size": "b", "count": 2}])).await;
    arm.scale(&two, 7, Urgency::Routine).await.unwrap();
    assert_eq!(sent(), json!([{"size": "a", "count": 5}, {"size": "b", "count": 2}]));
    assert_eq!(arm.scale(&two, 4, Urgency::Routine).await.unwrap_err().class, Class::Invalid);
    let none = vms(json!([])).await;
    assert_eq!(arm.scale(&none, 4, Urgency::Routine).await.unwrap_err().class, Class::Invalid);
}
