//! Making agent pools: repeated after a crash it finds what it made, and it fights nobody over what is there.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use spotpool_azure::{AgentPools, Class, CreateAgentPool, Created, Difference, EvictionPolicy, Priority};

use crate::scripted::{POOLS, Scripted, answer, ok, pool};

fn not_found() -> Value {
    json!({"error": {"code": "ResourceNotFound", "message": "The Resource was not found."}})
}

fn full() -> CreateAgentPool {
    CreateAgentPool {
        count: 2,
        zones: vec!["2".into(), "1".into()],
        eviction_policy: EvictionPolicy::Delete,
        spot_max_price: Some("0.12345".parse().unwrap()),
        labels: BTreeMap::from([("team".into(), "batch".into())]),
        taints: vec!["batch=yes:NoSchedule".into()],
        tags: BTreeMap::from([("cost".into(), "42".into())]),
        max_pods: Some(60),
        os_disk_type: Some("Ephemeral".into()),
        os_disk_size_gb: Some(64),
        os_sku: Some("AzureLinux".into()),
        vnet_subnet_id: Some("/subscriptions/s/subnets/nodes".into()),
        ..CreateAgentPool::new("spota", Priority::Spot, "Standard_D4s_v5")
    }
}

#[tokio::test]
async fn a_template_becomes_one_conditional_put() {
    let scripted = Scripted::new(|asked| match asked.method {
        http::Method::GET => answer(404, &[], &not_found()),
        _ => answer(
            201,
            &[("Azure-AsyncOperation", "https://management.azure.com/op?x=1")],
            &pool("spota", json!({"provisioningState": "Creating"})),
        ),
    });
    let Created::Accepted(accepted) = scripted.arm().create(&full()).await.unwrap() else {
        panic!("not made")
    };
    assert!(accepted.operation.is_some());
    let asked = scripted.last();
    assert_eq!(asked.path(), format!("{POOLS}/spota"));
    assert_eq!((asked.header("if-none-match"), asked.header("if-match")), (Some("*"), None));
    assert_eq!(
        asked.body,
        json!({"properties": {
            "count": 2, "vmSize": "Standard_D4s_v5", "osType": "Linux", "type": "VirtualMachineScaleSets", "mode": "User",
            "scaleDownMode": "Delete", "enableAutoScaling": false, "scaleSetPriority": "Spot",
            "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": 0.12345, "availabilityZones": ["2", "1"],
            "nodeLabels": {"team": "batch"}, "nodeTaints": ["batch=yes:NoSchedule"], "tags": {"cost": "42"},
            "maxPods": 60, "osDiskType": "Ephemeral", "osDiskSizeGB": 64, "osSKU": "AzureLinux",
            "vnetSubnetID": "/subscriptions/s/subnets/nodes",
        }})
    );
    let plain = CreateAgentPool::new("reg", Priority::Regular, "Standard_D4s_v5");
    let _ = scripted.arm().create(&plain).await.unwrap();
    let properties = scripted.last().body["properties"].clone();
    assert_eq!(properties["scaleSetPriority"], "Regular");
    for absent in [
        "scaleSetEvictionPolicy",
        "spotMaxPrice",
        "nodeTaints",
        "nodeLabels",
        "tags",
        "availabilityZones",
        "maxPods",
    ] {
        assert!(properties.get(absent).is_none(), "{absent}");
    }
    let unbounded = CreateAgentPool { spot_max_price: None, ..full() };
    let _ = scripted.arm().create(&unbounded).await.unwrap();
    assert_eq!(scripted.last().body["properties"]["spotMaxPrice"], -1);
}

/// What AKS makes of [`full`]: its own label and taint added.
fn made() -> Value {
    pool(
        "spota",
        json!({
            "count": 9, "scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": 0.12345,
            "vmSize": "standard_d4s_v5", "availabilityZones": ["1", "2"],
            "nodeLabels": {"kubernetes.azure.com/scalesetpriority": "spot", "team": "batch"},
            "nodeTaints": ["kubernetes.azure.com/scalesetpriority=spot:NoSchedule", "batch=yes:NoSchedule"],
            "maxPods": 60, "osDiskType": "Ephemeral", "osDiskSizeGB": 64, "osSKU": "AzureLinux",
            "vnetSubnetID": "/subscriptions/s/subnets/nodes",
        }),
    )
}

async fn differences(found: Value) -> Vec<Difference> {
    let scripted = Scripted::new(move |_| ok(&found));
    let Created::AlreadyThere { differences, .. } = scripted.arm().create(&full()).await.unwrap() else {
        panic!("made anew")
    };
    assert!(scripted.asked().iter().all(|asked| asked.method == http::Method::GET), "nothing is fought");
    differences
}

/// A differ that trips over AKS's own taint would report every spot pool for ever.
#[tokio::test]
async fn what_aks_adds_is_no_difference() {
    assert_eq!(differences(made()).await, []);
}

#[tokio::test]
async fn differences_are_named_with_both_values() {
    for (property, value, immutable) in [
        ("vmSize", json!("Standard_D8s_v5"), true),
        ("scaleSetPriority", json!("Regular"), true),
        ("scaleSetEvictionPolicy", json!("Deallocate"), true),
        ("spotMaxPrice", json!(-1), true),
        ("availabilityZones", json!(["1", "2", "3"]), true),
        ("maxPods", json!(110), true),
        ("osDiskType", json!("Managed"), true),
        ("osDiskSizeGB", json!(128), true),
        ("osSKU", json!("Ubuntu"), false),
        ("vnetSubnetID", json!("/subscriptions/s/subnets/other"), true),
        ("mode", json!("System"), false),
        ("nodeLabels", json!({"team": "Batch"}), false),
        ("nodeTaints", json!([]), false),
    ] {
        let mut found = made();
        found["properties"][property] = value.clone();
        let differences = differences(found).await;
        let named: Vec<_> = differences.iter().map(|it| (it.property, it.immutable)).collect();
        // A regular pool keeps AKS's spot label and taint only if somebody set them.
        assert!(named.contains(&(property, immutable)), "{property}: {differences:?}");
        if property != "scaleSetPriority" {
            assert_eq!(named.len(), 1, "{differences:?}");
            assert_ne!(differences[0].wanted, differences[0].found);
        }
    }
}

#[tokio::test]
async fn an_agent_pool_that_appears_in_between_is_compared() {
    let mut gets = 0;
    let scripted = Scripted::new(move |asked| match asked.method {
        http::Method::GET => {
            gets += 1;
            if gets == 1 { answer(404, &[], &not_found()) } else { ok(&made()) }
        }
        _ => answer(412, &[], &json!({"code": "PreconditionFailed", "message": "x"})),
    });
    let created = scripted.arm().create(&full()).await.unwrap();
    assert!(matches!(created, Created::AlreadyThere { differences, .. } if differences.is_empty()));
}

#[tokio::test]
async fn wishes_that_cannot_come_true_are_refused_before_the_wire() {
    let scripted = Scripted::new(|_| answer(404, &[], &not_found()));
    let plain = || CreateAgentPool::new("spota", Priority::Spot, "Standard_D4s_v5");
    for wrong in [
        CreateAgentPool { name: "Spota".into(), ..plain() },
        CreateAgentPool { name: "1spot".into(), ..plain() },
        CreateAgentPool { name: "spot-a".into(), ..plain() },
        CreateAgentPool { name: "abcdefghijklm".into(), ..plain() },
        CreateAgentPool { name: String::new(), ..plain() },
        CreateAgentPool { vm_size: String::new(), ..plain() },
        CreateAgentPool { count: 1_001, ..plain() },
        CreateAgentPool { initialization_taints: vec!["a=b:NoSchedule".into()], ..plain() },
    ] {
        let error = scripted.arm().create(&wrong).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Invalid, "InvalidRequest"), "{wrong:?}");
    }
    assert!(scripted.asked().is_empty());
    // A version that may have them decides for itself.
    let warming = CreateAgentPool { initialization_taints: vec!["a=b:NoSchedule".into()], ..plain() };
    let scripted = Scripted::new(|asked| match asked.method {
        http::Method::GET => answer(404, &[], &not_found()),
        _ => answer(201, &[], &Value::Null),
    });
    scripted.arm_with("2027-01-01").create(&warming).await.unwrap();
    assert_eq!(scripted.last().body["properties"]["nodeInitializationTaints"], json!(["a=b:NoSchedule"]));
}

/// A missing resource group or right is no missing agent pool.
#[tokio::test]
async fn only_a_missing_agent_pool_is_made() {
    for (status, code) in
        [(404, "ResourceGroupNotFound"), (403, "AuthorizationFailed"), (500, "InternalServerError")]
    {
        let body = json!({"error": {"code": code, "message": "x"}});
        let scripted = Scripted::new(move |_| answer(status, &[], &body));
        assert_eq!(scripted.arm().create(&full()).await.unwrap_err().code, code);
        assert_eq!(scripted.asked().len(), 1);
    }
}

#[test]
fn prices_have_at_most_five_decimals() {
    use spotpool_azure::MaxPrice;
    for (text, shown) in [
        ("0.18", "0.18"),
        ("1", "1"),
        ("0.00001", "0.00001"),
        ("88.88888", "88.88888"),
        ("9999999", "9999999"),
    ] {
        assert_eq!(text.parse::<MaxPrice>().unwrap().to_string(), shown);
    }
    for wrong in
        ["", "0", "0.0", "-1", "1e3", "0.123456", ".5", "1,5", "NaN", "12345678", "0x1", "1.-5", "+1"]
    {
        assert!(wrong.parse::<MaxPrice>().is_err(), "{wrong}");
    }
}
