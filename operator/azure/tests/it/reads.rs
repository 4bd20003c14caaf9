//! Reads: every agent pool is seen, whatever is in its body, and nothing leaves Azure's host.

use serde_json::{Value, json};
use spotpool_azure::{AgentPoolKind, AgentPoolMode, AgentPools, Class, EvictionPolicy, Priority};

use crate::scripted::{POOLS, Scripted, answer, list, ok, pool, read, seconds};

/// The SDK's own api-versions are dead: a request with one of them fails in every region.
#[tokio::test]
async fn the_sdk_asks_with_our_version_our_name_and_without_its_token() {
    let scripted = Scripted::new(|_| ok(&list(&[])));
    assert!(scripted.arm_with("2026-08-01").list().await.unwrap().is_empty());
    let asked = scripted.last();
    assert_eq!(asked.url, format!("https://management.azure.com{POOLS}?api-version=2026-08-01"));
    assert_eq!(asked.header("user-agent"), Some("spotpool-operator/0"));
    assert_eq!(asked.header("accept"), Some("application/json"));
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.header("x-ms-client-request-id").unwrap().len(), 36);
}

#[tokio::test]
async fn agent_pools_are_read_with_what_the_sdk_knows_and_what_it_does_not() {
    let spot = read(pool(
        "spota",
        json!({
            "scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Deallocate", "spotMaxPrice": 0.18,
            "availabilityZones": ["1", "2"], "enableAutoScaling": true, "minCount": 1, "maxCount": 9,
            "nodeLabels": {"a": "b"}, "nodeTaints": ["x=y:NoSchedule"], "nodeInitializationTaints": ["z=1:NoSchedule"],
            "powerState": {"code": "Stopped"}, "nodeImageVersion": "img", "currentOrchestratorVersion": "1.33.2",
            "provisioningState": "Failed",
            "status": {"provisioningError": {"code": "ZonalAllocationFailed", "message": "none in zone 2"}},
        }),
    ))
    .await;
    assert_eq!((spot.name.as_str(), spot.count, spot.priority), ("spota", 3, Priority::Spot));
    assert_eq!((spot.mode, spot.kind), (AgentPoolMode::User, AgentPoolKind::VirtualMachineScaleSets));
    assert_eq!((spot.autoscaled, spot.min_count, spot.max_count), (true, Some(1), Some(9)));
    assert_eq!((spot.eviction_policy, spot.spot_max_price), (Some(EvictionPolicy::Deallocate), Some(0.18)));
    assert_eq!(spot.zones, ["1", "2"]);
    assert!(spot.stopped && !spot.busy());
    assert_eq!(spot.labels["a"], "b");
    assert_eq!(
        (spot.taints, spot.initialization_taints),
        (vec!["x=y:NoSchedule".into()], vec!["z=1:NoSchedule".into()])
    );
    assert_eq!(spot.etag.as_deref(), Some("\"v1\""));
    assert_eq!(spot.kubernetes_version.as_deref(), Some("1.33.2"));
    assert_eq!(spot.node_image_version.as_deref(), Some("img"));
    let error = spot.provisioning_error.unwrap();
    assert_eq!((error.class, error.code.as_str()), (Class::Capacity, "ZonalAllocationFailed"));

    let regular =
        read(pool("reg", json!({"mode": "System", "eTag": null, "provisioningState": "Scaling"}))).await;
    assert_eq!((regular.priority, regular.mode), (Priority::Regular, AgentPoolMode::System));
    assert_eq!((regular.etag.clone(), regular.eviction_policy, regular.spot_max_price), (None, None, None));
    assert!(regular.busy());
    let unbounded = read(pool("spotb", json!({"scaleSetPriority": "Spot", "spotMaxPrice": -1}))).await;
    assert_eq!(unbounded.spot_max_price, None);
}

/// A value that is newer than the SDK must not hide the agent pool that holds half the cluster.
#[tokio::test]
async fn bodies_that_the_sdk_cannot_read_are_read_without_it() {
    for odd in [
        json!({"count": "4"}),
        json!({"count": 4.0}),
        json!({"count": 4, "osDiskSizeGB": "128"}),
        json!({"count": 4, "availabilityZones": [1, 2]}),
        json!({"count": 4, "upgradeSettings": "fast"}),
        json!({"count": 4, "kubeletConfig": {"podMaxPids": {"now": "an object"}}}),
        json!({"count": 4, "tags": null, "nodeTaints": null, "availabilityZones": null}),
        json!({"count": 4, "osSKU": "UbuntuOfTomorrow", "mode": "Experimental", "type": "VirtualMachineScaleSets"}),
        json!({"count": 4, "gpuProfile": {"driver": "None"}, "virtualMachinesProfile": null}),
    ] {
        let mut properties = odd.clone();
        properties["scaleSetPriority"] = json!("Spot");
        let read = read(pool("odd", properties)).await;
        assert_eq!((read.count, read.priority), (4, Priority::Spot), "{odd}");
        assert_eq!(read.vm_size, "Standard_D4s_v5");
    }
    let zones = read(pool("odd", json!({"availabilityZones": [1, 2]}))).await.zones;
    assert_eq!(zones, ["1", "2"]);
}

#[tokio::test]
async fn one_unreadable_agent_pool_does_not_hide_the_others() {
    let scripted = Scripted::new(|_| {
        ok(&list(&[json!({"properties": {}}), json!(7), json!({"name": "x"}), pool("good", json!({}))]))
    });
    let read = scripted.arm().list().await.unwrap();
    assert_eq!(read.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["good"]);
}

#[tokio::test]
async fn pools_of_single_vms_are_counted_by_their_sizes() {
    let sizes = json!({"scale": {"manual": [{"size": "a", "count": 3}, {"size": "b", "count": 2}]}});
    let mut body = pool("vms", json!({"type": "VirtualMachines", "virtualMachinesProfile": sizes}));
    body["properties"].as_object_mut().unwrap().remove("count");
    let vms = read(body).await;
    assert_eq!((vms.count, vms.kind, vms.autoscaled), (5, AgentPoolKind::VirtualMachines, false));
    let sizes = json!({"scale": {"autoscale": {"size": "a", "minCount": 1, "maxCount": 2}}});
    assert!(
        read(pool("vms", json!({"type": "VirtualMachines", "virtualMachinesProfile": sizes})))
            .await
            .autoscaled
    );
    assert_eq!(read(pool("old", json!({"type": "AvailabilitySet"}))).await.kind, AgentPoolKind::Other);
}

/// Azure's links have other api-versions and signed tokens: a changed one is refused.
#[tokio::test]
async fn next_links_are_followed_verbatim_to_the_end() {
    let second = format!("https://management.azure.com{POOLS}?api-version=2025-03-01&$skiptoken=a%2Bb%3D%3D");
    let third = format!("https://management.azure.com{POOLS}?api-version=2025-03-01&%24skiptoken=last");
    let links = [second.clone(), third.clone()];
    let mut page = 0;
    let scripted = Scripted::new(move |_| {
        page += 1;
        match page {
            1 => ok(&json!({"value": [pool("a", json!({}))], "nextLink": links[0]})),
            2 => ok(&json!({"value": [pool("b", json!({}))], "nextLink": links[1]})),
            _ => ok(&json!({"value": [], "nextLink": ""})),
        }
    });
    let read = scripted.arm().list().await.unwrap();
    assert_eq!(read.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let asked: Vec<String> = scripted.asked().into_iter().map(|asked| asked.url).collect();
    assert_eq!(asked[1..], [second, third]);
}

/// Our token goes with every request: a link to another host would hand it over.
#[tokio::test]
async fn links_to_other_hosts_are_not_followed() {
    for link in [
        "https://evil.example/agentPools",
        "http://management.azure.com/x",
        "https://management.azure.com:444/x",
        "https://management.azure.com.evil.example/x",
        "https://management.azure.com@evil.example/x",
        "not a link",
    ] {
        let link = link.to_owned();
        let scripted = Scripted::new(move |_| ok(&json!({"value": [], "nextLink": link})));
        let error = scripted.arm().list().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Transient, "NotUnderstood"));
        assert_eq!(scripted.asked().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_without_an_end_ends() {
    let link = format!("https://management.azure.com{POOLS}?page=again");
    let scripted = Scripted::new(move |_| ok(&json!({"value": [], "nextLink": link})));
    let error = scripted.arm().list().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Transient, "NotUnderstood"));
}

#[tokio::test]
async fn machines_are_read_as_in_the_official_example() {
    let example: Value = serde_json::from_str(include_str!("../fixtures/MachineList.json")).unwrap();
    let mut body = example["responses"]["200"]["body"].clone();
    body["nextLink"] = Value::Null;
    body["value"].as_array_mut().unwrap().push(json!({"name": "bare"}));
    body["value"].as_array_mut().unwrap().push(json!({"properties": {}}));
    let scripted = Scripted::new(move |_| ok(&body));
    let machines = scripted.arm().machines("nodepool1").await.unwrap();
    assert_eq!(scripted.last().path(), format!("{POOLS}/nodepool1/machines"));
    assert_eq!(machines.len(), 2);
    assert_eq!(machines[0].name, "aks-nodepool1-25481572-vmss000000");
    assert_eq!(machines[0].zones, ["1"]);
    assert!(
        machines[0].resource_id.as_ref().unwrap().ends_with("aks-nodepool1-25481572-vmss/virtualMachines/0")
    );
    assert_eq!((machines[1].name.as_str(), &machines[1].resource_id), ("bare", &None));
}

#[tokio::test]
async fn refusals_and_nonsense_are_errors_of_a_class() {
    let denied = json!({"error": {"code": "AuthorizationFailed", "message": "The client 'x' does not have authorization to perform action 'Microsoft.ContainerService/managedClusters/agentPools/read' over scope '/s'"}});
    for (status, body, class, code) in [
        (403, denied.to_string(), Class::Denied, "AuthorizationFailed"),
        (
            404,
            json!({"error": {"code": "ResourceNotFound", "message": "x"}}).to_string(),
            Class::Invalid,
            "ResourceNotFound",
        ),
        (500, "oops".to_owned(), Class::Transient, "Http500"),
        (200, "<html>proxy</html>".to_owned(), Class::Transient, "NotUnderstood"),
        (200, String::new(), Class::Transient, "NotUnderstood"),
        (200, r#"{"value": 7}"#.to_owned(), Class::Transient, "NotUnderstood"),
    ] {
        let text = body.clone();
        let scripted = Scripted::new(move |_| {
            Ok(http::Response::builder()
                .status(status)
                .header("x-ms-correlation-request-id", "cid")
                .body(text.clone().into())
                .unwrap())
        });
        let error = scripted.arm().list().await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (class, code), "{body}");
        if status == 403 {
            assert!(error.missing_action().unwrap().action.ends_with("agentPools/read"));
            assert_eq!(error.correlation_id(), Some("cid"));
        }
        assert_eq!(scripted.asked().len(), 1, "nothing is retried inside");
    }
}

/// A connection that hangs must not hang the operator.
#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_given_up() {
    #[derive(Debug)]
    struct Silent;
    impl spotpool_azure::Transport for Silent {
        fn execute(
            &self,
            _: http::Request<bytes::Bytes>,
        ) -> futures::future::BoxFuture<'_, crate::scripted::Answer> {
            Box::pin(std::future::pending())
        }
    }
    let arm = spotpool_azure::Arm::new(spotpool_azure::ArmConfig {
        endpoint: "https://management.azure.com".parse().unwrap(),
        cluster: crate::scripted::cluster(),
        api_version: spotpool_azure::ApiVersion::default(),
        user_agent: "x".into(),
        transport: std::sync::Arc::new(Silent),
        may_write: std::sync::Arc::new(|| true),
        clock: std::sync::Arc::new(jiff::Timestamp::now),
    })
    .unwrap();
    let error = tokio::time::timeout(seconds(120), arm.list()).await.unwrap().unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Transient, "Timeout"));
    assert!(error.outcome_unknown());
}

#[tokio::test]
async fn names_that_would_change_the_url_are_refused() {
    for wrong in ["", "a/b", "a?b", "a#b", "..", "a%2fb", "a\\b"] {
        let config = spotpool_azure::ArmConfig {
            endpoint: "https://management.azure.com".parse().unwrap(),
            cluster: spotpool_azure::ClusterId { cluster_name: wrong.into(), ..crate::scripted::cluster() },
            api_version: spotpool_azure::ApiVersion::default(),
            user_agent: "x".into(),
            transport: std::sync::Arc::new(Scripted::new(|_| answer(200, &[], &Value::Null))),
            may_write: std::sync::Arc::new(|| true),
            clock: std::sync::Arc::new(jiff::Timestamp::now),
        };
        assert!(spotpool_azure::Arm::new(config).is_err(), "{wrong}");
    }
}
