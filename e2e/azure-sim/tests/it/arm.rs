//! The ARM side over HTTP.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    Capacity, CountAfterFailure, Envelope, Fault, FaultAction, FaultTarget, PoolSpec, Priority, SettingsPatch,
};

use crate::{Bench, SIZE, VERSION};

#[tokio::test]
async fn a_new_pool_is_201_and_an_operation_to_follow() {
    let bench = Bench::start().await;
    let made = bench.put("regb", json!({"count": 2, "vmSize": SIZE, "availabilityZones": ["1", "2"]})).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["properties"]["provisioningState"], "Creating");
    assert_eq!(made.body["properties"]["nodeTaints"], Value::Null);
    let url = made.header("azure-asyncoperation");
    assert!(!url.contains(VERSION) && url.len() > 2000, "{url}");
    let first = bench.get(url).await;
    assert_eq!((first.status, &first.body["status"]), (200, &json!("InProgress")));
    assert!(!url.contains(first.body["name"].as_str().unwrap()), "names are byte-swapped");
    // The signature must come back to the letter.
    assert_eq!(bench.get(&url.replace("&h=", "&h=x")).await.status, 403);

    let done = bench.follow(&made).await;
    assert_eq!(done["status"], "Succeeded");
    assert!(done["endTime"].is_string());
    let pool = bench.get(&bench.pool_url("regb")).await;
    assert_eq!(pool.body["properties"]["provisioningState"], "Succeeded");
    let machines = bench.get(&bench.pool_url("regb/machines")).await.body;
    let zones: Vec<&Value> =
        machines["value"].as_array().unwrap().iter().map(|machine| &machine["zones"]).collect();
    assert_eq!(zones, [&json!(["1"]), &json!(["2"])]);
}

#[tokio::test]
async fn scaling_keeps_foreign_properties_and_refuses_a_second_write_meanwhile() {
    let bench = Bench::start().await;
    let mut body = bench.get(&bench.pool_url("spota")).await.body;
    body["properties"]["count"] = json!(3);
    body["properties"]["tags"] = json!({"team": "batch"});
    body["properties"]["kubeletConfig"] = json!({"cpuManagerPolicy": "static"});
    let scaled = bench
        .send(Method::PUT, &bench.pool_url("spota"), &[("x-ms-client-request-id", "mine")], Some(&body))
        .await;
    assert_eq!(scaled.status, 200, "{scaled:?}");
    assert_eq!(scaled.body["properties"]["provisioningState"], "Scaling");
    assert_eq!(scaled.header("x-ms-request-id"), "mine");

    let second = bench.put("spota", json!({"count": 4})).await;
    assert_eq!((second.status, second.code()), (409, "OperationNotAllowed"));
    let said = second.body["message"].as_str().unwrap();
    assert!(said.contains("Another agentpool operation (spota - Scaling) is in progress"), "{said}");
    assert_eq!(second.body["details"], Value::Null);

    assert_eq!(bench.follow(&scaled).await["status"], "Succeeded");
    let read = bench.get(&bench.pool_url("spota")).await.body;
    assert_eq!(read["properties"]["kubeletConfig"], json!({"cpuManagerPolicy": "static"}));
    assert_eq!(read["properties"]["tags"], json!({"team": "batch"}));

    let state = bench.client.state().await.unwrap();
    let writes: Vec<_> = state.writes_to("spota").collect();
    assert_eq!(writes.iter().map(|write| write.status).collect::<Vec<_>>(), [200, 409]);
    assert_eq!((writes[0].count_before, writes[0].count_after), (Some(2), Some(3)));
    assert_eq!(writes[0].client_request_id.as_deref(), Some("mine"));
    assert_eq!(writes[0].machines_ordered.len(), 1);
    assert_eq!(state.arm_requests["PUT pool"], 2);
    assert_eq!(state.vms_of("spota").count(), 3);
}

#[tokio::test]
async fn lowering_count_removes_the_highest_ids_which_never_come_back() {
    let bench = Bench::with(&[PoolSpec::spot("spota", SIZE, 4)], Duration::from_millis(100)).await;
    let lowered = bench.put("spota", json!({"count": 2})).await;
    assert_eq!(bench.follow(&lowered).await["status"], "Succeeded");
    let raised = bench.put("spota", json!({"count": 3})).await;
    bench.follow(&raised).await;
    let state = bench.client.state().await.unwrap();
    assert_eq!(state.vms_of("spota").map(|vm| vm.instance_id).collect::<Vec<_>>(), [0, 1, 4]);
}

#[tokio::test]
async fn e_tags_guard_writes() {
    let bench = Bench::start().await;
    let url = bench.pool_url("spota");
    let tag = bench.get(&url).await.body["properties"]["eTag"].as_str().unwrap().to_owned();
    let body = json!({"properties": {"count": 2}});
    let put = async |pool: &str, headers: &[(&str, &str)]| {
        bench.send(Method::PUT, &bench.pool_url(pool), headers, Some(&body)).await
    };
    let quoted = format!("\"{tag}\"");
    let stale = put("spota", &[("if-match", "stale")]).await;
    assert_eq!((stale.status, stale.code()), (412, "PreconditionFailed"));
    assert_eq!(put("spota", &[("if-none-match", "*")]).await.status, 412);
    assert_eq!(put("absent", &[("if-match", "*")]).await.status, 412);
    assert_eq!(put("spota", &[("if-match", "*"), ("if-none-match", "*")]).await.status, 400);
    let done = put("spota", &[("if-match", &quoted)]).await;
    assert_eq!(done.status, 200);
    assert_eq!(done.body["properties"]["provisioningState"], "Updating");
    assert_ne!(done.body["properties"]["eTag"], json!(tag));
    bench.follow(&done).await;
    assert_eq!(put("spota", &[("if-match", &tag)]).await.status, 412);
    // Before 2024-09-01 there is none to see.
    let old = bench.get(&url.replace(VERSION, "2024-05-01")).await;
    assert_eq!(old.body["properties"]["eTag"], Value::Null);
}

#[tokio::test]
async fn what_aks_refuses_is_refused_in_its_words() {
    let bench = Bench::start().await;
    let unknown = bench.put("spota", json!({"sshAccess": "Disabled"})).await;
    assert_eq!((unknown.status, unknown.code()), (400, "UnmarshalError"));
    assert!(unknown.body["message"].as_str().unwrap().contains("json: unknown field \"sshAccess\""));
    let fixed = bench.put("spota", json!({"vmSize": "Standard_D4s_v5"})).await;
    assert_eq!((fixed.status, fixed.code()), (400, "PropertyChangeNotAllowed"));
    assert_eq!(fixed.body["target"], "properties.vmSize");
    assert_eq!(bench.put("Bad-Name", json!({"count": 1})).await.code(), "InvalidParameter");
    assert_eq!(bench.put("spota", json!({"count": 1001})).await.code(), "InvalidParameter");

    let url = bench.pool_url("spota");
    let retired = bench.get(&url.replace(VERSION, "2023-03-02-preview")).await;
    assert_eq!(retired.status, 400);
    assert_eq!(retired.body["error"]["code"], "NoRegisteredProviderFound");
    assert_eq!(retired.header("x-ms-failure-cause"), "gateway");
    assert_eq!(bench.get(url.split('?').next().unwrap()).await.code(), "MissingApiVersionParameter");
    assert_eq!(bench.get(&bench.pool_url("absent")).await.body["code"], "NotFound");
    let cluster = bench.get(&url.replace("spotpool-sim", "other")).await;
    assert_eq!((cluster.status, cluster.body["error"]["code"].as_str()), (404, Some("ResourceNotFound")));
    let patched = bench.send(Method::PATCH, &url, &[], None).await;
    assert_eq!(patched.status, 405);
}

#[tokio::test]
async fn machines_are_deleted_by_name() {
    let bench = Bench::with(&[PoolSpec::spot("spota", SIZE, 3)], Duration::from_millis(100)).await;
    let nodes = bench.nodes("spota").await;
    let url = bench.pool_url("spota/deleteMachines");
    let delete =
        async |names: Value| bench.send(Method::POST, &url, &[], Some(&json!({"machineNames": names}))).await;
    let wrong = delete(json!([nodes[0], "aks-other-1-vmss000000"])).await;
    assert_eq!((wrong.status, wrong.code()), (400, "InvalidParameter"));
    let said = wrong.body["error"]["message"].as_str().unwrap();
    let sentence = "Cannot find any valid machines to delete. Please check your input machine names. The valid machines to delete in agent pool 'spota' are: ";
    assert_eq!(said, format!("{sentence}{}.", nodes.join(", ")));
    assert_eq!(delete(json!([])).await.status, 400);

    let accepted = delete(json!([nodes[1]])).await;
    assert_eq!((accepted.status, &accepted.body), (202, &json!("")));
    assert!(accepted.header("location").contains("/operationresults/"));
    assert_eq!(bench.get(accepted.header("location")).await.status, 202);
    assert_eq!(delete(json!([nodes[0]])).await.status, 409);
    assert_eq!(bench.follow(&accepted).await["status"], "Succeeded");
    assert_eq!(bench.get(accepted.header("location")).await.status, 204);
    assert_eq!(bench.nodes("spota").await, [nodes[0].clone(), nodes[2].clone()]);
    let state = bench.client.state().await.unwrap();
    assert_eq!(state.pool("spota").unwrap().count, 2);
    assert_eq!(state.writes_to("spota").last().unwrap().kind, "POST deleteMachines");
}

#[tokio::test]
async fn machines_come_in_pages() {
    let bench = Bench::with(&[PoolSpec::regular("big", SIZE, 101)], Duration::from_millis(100)).await;
    let first = bench.get(&bench.pool_url("big/machines")).await.body;
    assert_eq!(first["value"].as_array().unwrap().len(), 100);
    let second = bench.get(first["nextLink"].as_str().unwrap()).await.body;
    let last = &second["value"].as_array().unwrap()[0];
    assert_eq!(second["nextLink"], Value::Null);
    assert!(last["name"].as_str().unwrap().ends_with("-vmss00002s"));
    assert!(last["properties"]["resourceId"].as_str().unwrap().ends_with("-vmss/virtualMachines/100"));
}

#[tokio::test]
async fn short_capacity_is_accepted_and_fails_later() {
    let bench = Bench::start().await;
    bench.client.set_capacity(SIZE, Priority::Spot, Some(3)).await.unwrap();
    let asked = bench.put("spota", json!({"count": 5})).await;
    assert_eq!(asked.status, 200);
    let failed = bench.follow(&asked).await;
    assert_eq!(failed["status"], "Failed");
    assert_eq!(failed["error"]["code"], "SkuNotAvailable");
    assert_eq!(failed["error"]["details"][0]["code"], "SkuNotAvailable");
    let pool = bench.get(&bench.pool_url("spota")).await.body;
    assert_eq!(pool["properties"]["provisioningState"], "Failed");
    assert_eq!(pool["properties"]["status"]["provisioningError"], failed["error"]);
    // What could be allocated stays, and count is as asked.
    assert_eq!(pool["properties"]["count"], 5);
    assert_eq!(bench.nodes("spota").await.len(), 3);
    // On-demand machines of the size are another matter.
    let regular = bench.put("rega", json!({"count": 1, "vmSize": SIZE})).await;
    assert_eq!(bench.follow(&regular).await["status"], "Succeeded");

    let patch =
        SettingsPatch { count_after_failure: Some(CountAfterFailure::Existing), ..SettingsPatch::default() };
    bench.client.change_settings(&patch).await.unwrap();
    let error = json!({"code": "ZonalAllocationFailed", "message": "mine"});
    let capacity = Capacity {
        vm_size: SIZE.into(),
        priority: Priority::Spot,
        zone: None,
        limit: Some(0),
        error: Some(error.clone()),
    };
    bench.client.set_capacity_with(&capacity).await.unwrap();
    let again = bench.put("spota", json!({"count": 5})).await;
    assert_eq!(bench.follow(&again).await["error"], error);
    assert_eq!(bench.client.state().await.unwrap().pool("spota").unwrap().count, 3);

    bench.client.set_capacity(SIZE, Priority::Spot, None).await.unwrap();
    let healed = bench.put("spota", json!({"count": 5})).await;
    assert_eq!(bench.follow(&healed).await["status"], "Succeeded");
    let pool = bench.get(&bench.pool_url("spota")).await.body;
    assert_eq!(pool["properties"]["status"], Value::Null);
}

#[tokio::test]
async fn faults_answer_hang_or_hide_the_answer_of_an_applied_write() {
    let bench = Bench::start().await;
    let target = FaultTarget::arm("PUT", "agentPools/spota");
    let fault = |times, action| Fault { target: target.clone(), times, action };
    bench.client.add_fault(&fault(Some(1), FaultAction::throttled(7))).await.unwrap();
    let wrapped = FaultAction::Error {
        status: 403,
        code: "AuthorizationFailed".into(),
        message: "no".into(),
        envelope: Envelope::Wrapped,
        retry_after: None,
    };
    bench.client.add_fault(&fault(Some(1), wrapped)).await.unwrap();
    let garbage = FaultAction::Answer { status: 502, headers: [].into(), body: b"<html>".to_vec() };
    bench.client.add_fault(&fault(Some(1), garbage)).await.unwrap();

    let throttled = bench.put("spota", json!({"count": 3})).await;
    assert_eq!(
        (throttled.status, throttled.code(), throttled.header("retry-after")),
        (429, "Throttled", "7")
    );
    assert_eq!(bench.put("spota", json!({"count": 3})).await.body["error"]["code"], "AuthorizationFailed");
    assert_eq!(bench.put("spota", json!({"count": 3})).await.body, json!("<html>"));
    assert_eq!(bench.nodes("spota").await.len(), 2, "none of these was applied");

    let no_answer = async |properties: Value| {
        bench
            .http
            .put(bench.pool_url("spota"))
            .json(&json!({"properties": properties}))
            .send()
            .await
            .unwrap_err()
    };
    bench.client.add_fault(&fault(Some(1), FaultAction::Drop)).await.unwrap();
    no_answer(json!({"count": 3})).await;
    bench
        .client
        .add_fault(&fault(Some(1), FaultAction::Hang { time: Duration::from_millis(200) }))
        .await
        .unwrap();
    let began = Instant::now();
    no_answer(json!({"count": 3})).await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(bench.nodes("spota").await.len(), 2, "neither was any of these");
    let hidden = FaultAction::ApplyThenDrop { time: Duration::from_millis(10) };
    let lasting = bench.client.add_fault(&fault(None, hidden)).await.unwrap();
    no_answer(json!({"count": 3})).await;
    assert_eq!(bench.nodes("spota").await.len(), 3, "but this one was");

    let state = bench.client.state().await.unwrap();
    let statuses: Vec<u16> = state.writes_to("spota").map(|write| write.status).collect();
    assert_eq!(statuses, [429, 403, 502, 0, 0, 200]);
    assert_eq!((state.faults.len(), state.faults[0].struck), (1, 1));
    bench.client.clear_fault(lasting).await.unwrap();
    assert!(bench.client.clear_fault(lasting).await.is_err());
    assert_eq!(bench.put("spota", json!({"count": 3})).await.status, 409, "that operation runs still");
}

#[tokio::test]
async fn pools_come_and_go_by_the_control_api() {
    let bench = Bench::start().await;
    bench.client.add_pool(&PoolSpec::regular("mine", SIZE, 1)).await.unwrap();
    assert!(bench.client.add_pool(&PoolSpec::regular("mine", SIZE, 1)).await.is_err());
    assert!(bench.client.add_pool(&PoolSpec::regular("Mine", SIZE, 1)).await.is_err());
    let list = bench.get(&bench.pool_url("x").replace("/x?", "?")).await.body;
    let names: Vec<&str> =
        list["value"].as_array().unwrap().iter().filter_map(|pool| pool["name"].as_str()).collect();
    assert_eq!(names, ["mine", "spota"]);
    bench.client.remove_pool("mine").await.unwrap();
    assert!(bench.client.remove_pool("mine").await.is_err());
    bench.client.add_pool(&PoolSpec::regular("mine", SIZE, 1)).await.unwrap();
    let state = bench.client.state().await.unwrap();
    assert_eq!(state.vms_of("mine").map(|vm| vm.instance_id).collect::<Vec<_>>(), [1], "ids are used once");
}
