//! The official examples: what they send is accepted and read back, what they answer looks like ours.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use spotpool_azure_sim::api::PoolSpec;

use crate::{Bench, SIZE};

fn example(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Members whose values are Azure's own choice.
const CHOSEN: &[&str] = &[
    "provisioningState",
    "orchestratorVersion",
    "currentOrchestratorVersion",
    "nodeImageVersion",
    "eTag",
    "upgradeSettings",
];

/// Whether two JSON values are of one type.
fn alike(one: &Value, other: &Value) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Every member of the example is in ours, of the same type.
fn has_the_shape_of(ours: &Value, example: &Value, path: &str) {
    assert!(alike(ours, example), "{path}: {ours} is not like {example}");
    for (key, value) in example.as_object().into_iter().flatten() {
        has_the_shape_of(&ours[key], value, &format!("{path}.{key}"));
    }
}

async fn bench() -> Bench {
    Bench::with(&[], Duration::from_millis(100)).await
}

#[tokio::test]
async fn create_and_update() {
    for text in [
        include_str!("../fixtures/AgentPoolsCreate_Spot.json"),
        include_str!("../fixtures/AgentPoolsCreate_Update.json"),
    ] {
        let (bench, example) = (bench().await, example(text));
        let sent = &example["parameters"]["parameters"];
        let url = bench.pool_url("agentpool1");
        let created = bench.send(Method::PUT, &url, &[], Some(sent)).await;
        assert_eq!(created.status, 201);
        let answer = &example["responses"]["201"]["body"];
        let mut comparable = answer.clone();
        // AKS adds its own label; the example's key must be there beside it.
        comparable["properties"]["nodeTaints"] = json!([]);
        has_the_shape_of(&created.body, &comparable, "201");
        assert_eq!(
            created.body["properties"]["provisioningState"],
            answer["properties"]["provisioningState"]
        );
        bench.follow(&created).await;

        // What Azure answers may be put as it is, and says the same again.
        let official = &example["responses"]["200"]["body"];
        let updated = bench.send(Method::PUT, &url, &[], Some(official)).await;
        assert_eq!(updated.status, 200, "{updated:?}");
        bench.follow(&updated).await;
        let read = bench.get(&url).await.body;
        for (key, value) in official["properties"].as_object().unwrap() {
            let ours = &read["properties"][key];
            match key.as_str() {
                chosen if CHOSEN.contains(&chosen) => assert!(alike(ours, value), "{key}"),
                "nodeLabels" => assert_eq!(ours["key1"], value["key1"]),
                "nodeTaints" => assert!(ours.as_array().unwrap().contains(&value[0])),
                _ => assert_eq!(ours, value, "{key}"),
            }
        }
    }
}

#[tokio::test]
async fn get_and_list() {
    let bench = bench().await;
    bench.client.add_pool(&PoolSpec::regular("agentpool1", SIZE, 3)).await.unwrap();
    let get = example(include_str!("../fixtures/AgentPoolsGet.json"));
    let url = bench.pool_url("agentpool1");
    has_the_shape_of(&bench.get(&url).await.body, &get["responses"]["200"]["body"], "get");
    let list = example(include_str!("../fixtures/AgentPoolsList.json"));
    let ours = bench.get(&url.replace("/agentpool1?", "?")).await.body;
    has_the_shape_of(&ours["value"][0], &list["responses"]["200"]["body"]["value"][0], "list");
}

#[tokio::test]
async fn machines_and_their_deletion() {
    let bench = bench().await;
    bench.client.add_pool(&PoolSpec::spot("agentpool1", SIZE, 3).zones(&["1"])).await.unwrap();
    let list = example(include_str!("../fixtures/MachineList.json"));
    let official = &list["responses"]["200"]["body"]["value"][0];
    let machine = bench.get(&bench.pool_url("agentpool1/machines")).await.body["value"][0].clone();
    has_the_shape_of(&machine, official, "machine");
    has_the_shape_of(
        &machine["properties"]["network"]["ipAddresses"][0],
        &official["properties"]["network"]["ipAddresses"][0],
        "address",
    );

    let delete = example(include_str!("../fixtures/AgentPoolsDeleteMachines.json"));
    let mut sent = delete["parameters"]["machines"].clone();
    let url = bench.pool_url("agentpool1/deleteMachines");
    assert_eq!(bench.send(Method::POST, &url, &[], Some(&sent)).await.status, 400, "these are not ours");
    sent["machineNames"] = json!(bench.nodes("agentpool1").await[..2]);
    let accepted = bench.send(Method::POST, &url, &[], Some(&sent)).await;
    assert_eq!(accepted.status, 202);
    let shape = |url: &str| -> Vec<String> {
        let path = url.split('?').next().unwrap();
        path.split('/').skip(5).step_by(2).map(ToOwned::to_owned).collect()
    };
    let official = delete["responses"]["202"]["headers"]["location"].as_str().unwrap();
    assert_eq!(shape(accepted.header("location")), shape(official));
}
