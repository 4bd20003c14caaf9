//! A PUT sends back what was read, and one number: whatever Azure adds to agent pools one day is not reset by us.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use spotpool_azure::{AgentPool, AgentPools, Urgency};

use crate::scripted::{Scripted, list, ok};
use crate::shapes::shapes;

const READ_ONLY: [&str; 5] =
    ["eTag", "currentOrchestratorVersion", "provisioningState", "nodeImageVersion", "status"];

/// Every body of an agent pool in an official example.
fn official() -> Vec<(String, Value)> {
    let files = [
        ("Get", include_str!("../fixtures/AgentPoolsGet.json")),
        ("List", include_str!("../fixtures/AgentPoolsList.json")),
        ("Spot", include_str!("../fixtures/AgentPoolsCreate_Spot.json")),
        ("Update", include_str!("../fixtures/AgentPoolsCreate_Update.json")),
    ];
    let mut bodies = Vec::new();
    for (name, text) in files {
        let example: Value = serde_json::from_str(text).unwrap();
        for (status, response) in example["responses"].as_object().unwrap() {
            let body = &response["body"];
            let all = body["value"].as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
            bodies.extend(all.into_iter().map(|body| (format!("{name} {status}"), body)));
        }
    }
    assert!(bodies.len() >= 6);
    bodies
}

fn all() -> Vec<(String, Value)> {
    let ours = shapes().into_iter().map(|(name, body)| (name.to_owned(), body));
    official().into_iter().chain(ours).collect()
}

/// A field of the future in every object, those in arrays included.
fn with_unknown_fields(value: &Value, depth: usize) -> Value {
    match value {
        Value::Object(map) => {
            let mut map: Map<String, Value> =
                map.iter().map(|(key, value)| (key.clone(), with_unknown_fields(value, depth + 1))).collect();
            map.insert(
                format!("fieldOfTheFuture{depth}"),
                json!({"kept": [null, 1.5, "ü", {"deep": true}], "empty": {}}),
            );
            map.insert("nullOfTheFuture".into(), Value::Null);
            Value::Object(map)
        }
        Value::Array(items) => items.iter().map(|item| with_unknown_fields(item, depth + 1)).collect(),
        other => other.clone(),
    }
}

/// What of `sent` differs from `read`, as `pointer: before -> after`.
fn difference(pointer: &str, read: Option<&Value>, sent: Option<&Value>, found: &mut Vec<String>) {
    match (read, sent) {
        (Some(Value::Object(read)), Some(Value::Object(sent))) => {
            let mut keys: Vec<_> = read.keys().chain(sent.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                difference(&format!("{pointer}/{key}"), read.get(key), sent.get(key), found);
            }
        }
        (Some(Value::Array(read)), Some(Value::Array(sent))) if read.len() == sent.len() => {
            for (index, (read, sent)) in read.iter().zip(sent).enumerate() {
                difference(&format!("{pointer}/{index}"), Some(read), Some(sent), found);
            }
        }
        (read, sent) if read == sent => {}
        (read, sent) => {
            let text = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            found.push(format!("{pointer}: {} -> {}", text(read), text(sent)));
        }
    }
}

/// Removals that are meant, of those in `body`.
fn removals(body: &Value) -> Vec<String> {
    let top = ["id", "name", "systemData", "type"].iter().map(|name| (format!("/{name}"), body.get(*name)));
    let properties =
        READ_ONLY.iter().map(|name| (format!("/properties/{name}"), body["properties"].get(*name)));
    let gone = top
        .chain(properties)
        .filter_map(|(pointer, value)| Some(format!("{pointer}: {} -> nothing", value?)));
    gone.collect()
}

/// Reads `body` from a list and writes it back.
async fn put(body: &Value, write: impl AsyncFnOnce(&dyn AgentPools, &AgentPool)) -> Value {
    let served = body.clone();
    let scripted = Scripted::new(move |asked| match asked.method {
        http::Method::GET => ok(&list(std::slice::from_ref(&served))),
        _ => ok(&served),
    });
    let arm = scripted.arm();
    let pool = arm.list().await.unwrap().pop().expect("read");
    write(&arm, &pool).await;
    let asked = scripted.last();
    assert_eq!(asked.method, http::Method::PUT);
    assert_eq!(asked.header("content-type"), Some("application/json"));
    asked.body
}

async fn check(name: &str, body: &Value) {
    let properties = &body["properties"];
    let mut expected = removals(body);
    let count = properties["count"].as_u64();
    let sent = if properties["enableAutoScaling"] == json!(true) {
        expected.push(format!("/properties/minCount: {} -> 4", properties["minCount"]));
        expected.push(format!("/properties/maxCount: {} -> 11", properties["maxCount"]));
        put(body, async |arm, pool| {
            arm.set_autoscaler_range(pool, 4, 11, Urgency::Routine).await.unwrap();
        })
        .await
    } else if properties["type"] == "VirtualMachines" {
        // Two more of the first size.
        expected.push("/properties/virtualMachinesProfile/scale/manual/0/count: 2 -> 4".into());
        put(body, async |arm, pool| {
            arm.scale(pool, 5, Urgency::Routine).await.unwrap();
        })
        .await
    } else {
        expected.push(format!("/properties/count: {} -> 7", count.unwrap()));
        put(body, async |arm, pool| {
            arm.scale(pool, 7, Urgency::Routine).await.unwrap();
        })
        .await
    };
    let mut found = Vec::new();
    difference("", Some(body), Some(&sent), &mut found);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{name}");
}

#[tokio::test]
async fn every_known_body_comes_back_with_exactly_the_intended_difference() {
    for (name, body) in all() {
        check(&name, &body).await;
        check(&format!("{name} of the future"), &with_unknown_fields(&body, 0)).await;
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9_f64..1e9).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever else stands in a body, at the top or among the properties, it comes back.
    #[test]
    fn any_addition_comes_back(
        which in any::<prop::sample::Index>(),
        top in prop::collection::btree_map("future[A-Z][a-z]{1,6}", any_json(), 0..4),
        inner in prop::collection::btree_map("future[A-Z][a-z]{1,6}", any_json(), 0..6),
    ) {
        let all = all();
        let (name, mut body) = all[which.index(all.len())].clone();
        body.as_object_mut().unwrap().extend(top);
        body["properties"].as_object_mut().unwrap().extend(inner);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(check(&name, &body));
    }
}
