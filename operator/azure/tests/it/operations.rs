//! Operations: followed to their end by Azure's own URL, and given up for the truth where that has none.

use serde_json::{Value, json};
use spotpool_azure::{AgentPools, Arm, Class, OperationOutcome, OperationUrl, Operations, Scope, Urgency};

use crate::scripted::{Answer, Scripted, answer, ok, pool, read, seconds};

const OPERATION: &str = "https://management.azure.com/subscriptions/s/providers/Microsoft.ContainerService/locations/westus2/operations/1b4e28ba-2fa1?api-version=2025-03-01&t=638883&c=MIIHhzCCBm-gAwIB&s=fF5d%2Bq&h=Zm9v_-";

async fn started(mut script: impl FnMut() -> Answer + Send + 'static) -> (Scripted, Arm, OperationUrl) {
    let scripted = Scripted::new(move |asked| match asked.method {
        http::Method::PUT => answer(201, &[("azure-asyncoperation", OPERATION)], &pool("spota", json!({}))),
        _ => script(),
    });
    let arm = scripted.arm();
    let before = read(pool("spota", json!({}))).await;
    let url = arm.scale(&before, 5, Urgency::Routine).await.unwrap().operation.unwrap();
    (scripted, arm, url)
}

/// The signature covers every byte of the URL.
#[tokio::test]
async fn the_url_is_asked_verbatim() {
    let (scripted, arm, url) = started(|| ok(&json!({"status": "InProgress"}))).await;
    arm.operation(&url).await.unwrap();
    assert_eq!(scripted.last().url, OPERATION);
}

#[tokio::test]
async fn all_ways_to_stand_and_to_end_are_known() {
    let succeeded = || OperationOutcome::Succeeded;
    let running = || OperationOutcome::Running(None);
    for (status, body, wanted) in [
        (
            200,
            json!({"name": "x", "status": "InProgress", "startTime": "2025-07-07T08:07:17.2272669Z"}),
            running(),
        ),
        (200, json!({"status": "Scaling"}), running()),
        (200, json!({"status": "Canceling"}), running()),
        (202, Value::Null, running()),
        (202, json!({}), running()),
        (200, json!({"name": "x", "status": "Succeeded", "endTime": "2025-07-07T08:10:17Z"}), succeeded()),
        (200, json!({"status": "succeeded"}), succeeded()),
        (200, Value::Null, succeeded()),
        (204, Value::Null, succeeded()),
        // A Location URL ends with the agent pool itself.
        (200, pool("spota", json!({})), succeeded()),
        (200, pool("spota", json!({"provisioningState": "Scaling"})), running()),
        (404, json!({"error": {"code": "NotFound", "message": "x"}}), OperationOutcome::Unknown),
        (410, Value::Null, OperationOutcome::Unknown),
        (403, json!({"error": {"code": "AuthorizationFailed", "message": "x"}}), OperationOutcome::Unknown),
    ] {
        let text = body.clone();
        let (_, arm, url) = started(move || answer(status, &[], &body)).await;
        assert_eq!(arm.operation(&url).await.unwrap(), wanted, "{status} {text}");
    }
    let (_, arm, url) = started(|| answer(202, &[("Retry-After", "7")], &Value::Null)).await;
    assert_eq!(arm.operation(&url).await.unwrap(), OperationOutcome::Running(Some(seconds(7))));
    let (_, arm, url) = started(|| answer(500, &[], &Value::Null)).await;
    assert_eq!(arm.operation(&url).await.unwrap_err().class, Class::Transient);
    let (_, arm, url) = started(|| answer(401, &[], &Value::Null)).await;
    assert_eq!(arm.operation(&url).await.unwrap_err().class, Class::Denied, "a token is renewed; ask again");
}

#[tokio::test]
async fn failures_after_acceptance_say_why_and_how_far_they_reach() {
    let quota = json!({"status": "Failed", "error": {
        "code": "QuotaExceeded", "message": "Code=\"OperationNotAllowed\" Message=\"…\"",
        "details": [{"code": "OperationNotAllowed", "message": "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Additional details - Current Limit: 0, Current Usage: 0, Additional Required: 6, (Minimum) New Limit Required: 6."}]
    }});
    let zonal = json!({"status": "Failed", "error": {"code": "ZonalAllocationFailed", "message": "Code=\"ZonalAllocationFailed\" Message=\"Allocation failed.\""}});
    let preempted =
        json!({"status": "Failed", "error": {"code": "AKSOperationPreempted", "message": "superseded"}});
    let by_delete = json!({"status": "Failed", "error": {"code": "AKSOperationPreemptedByDelete", "message": "superseded"}});
    let race = json!({"status": "Failed", "error": {"code": "OriginalEtagNotExpect", "message": "x"}});
    let bare = json!({"status": "Failed"});
    let null = json!({"status": "Failed", "error": null});
    let location = pool(
        "spota",
        json!({"provisioningState": "Failed", "status": {"provisioningError": {"code": "SkuNotAvailable", "message": "x"}}}),
    );
    for (body, class, code, scope) in [
        (quota, Class::Capacity, "QuotaExceeded", Some(Scope::AllSpot)),
        (zonal, Class::Capacity, "ZonalAllocationFailed", Some(Scope::Zone)),
        (preempted, Class::Conflict, "AKSOperationPreempted", None),
        (by_delete, Class::Conflict, "AKSOperationPreemptedByDelete", None),
        (race, Class::Conflict, "OriginalEtagNotExpect", None),
        (json!({"status": "Canceled"}), Class::Conflict, "OperationCanceled", None),
        (
            json!({"status": "Canceled", "error": {"code": "X", "message": "y"}}),
            Class::Conflict,
            "OperationCanceled",
            None,
        ),
        (bare, Class::Transient, "OperationFailed", None),
        (null, Class::Transient, "OperationFailed", None),
        (location, Class::Capacity, "SkuNotAvailable", Some(Scope::Size)),
    ] {
        let text = body.clone();
        let (_, arm, url) = started(move || ok(&body)).await;
        let OperationOutcome::Failed(error) = arm.operation(&url).await.unwrap() else { panic!("{text}") };
        assert_eq!(
            (error.class, error.code.as_str(), error.avoid.map(|it| it.scope)),
            (class, code, scope),
            "{text}"
        );
    }
}
