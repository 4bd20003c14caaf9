//! Azure Compute over HTTP.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{PoolSpec, State, VmPhase};

use crate::{Bench, SIZE};

const GENEROUS: Duration = Duration::from_mins(1);

async fn bench() -> Bench {
    let deallocate = json!("Deallocate");
    let pools = [
        PoolSpec::spot("spota", SIZE, 2).zones(&["1"]),
        PoolSpec::spot("spotd", SIZE, 1).property("scaleSetEvictionPolicy", deallocate),
        PoolSpec::spot("spotv", SIZE, 2).property("type", json!("VirtualMachines")),
        PoolSpec::regular("rega", SIZE, 1),
    ];
    let bench = Bench::with(&pools, Duration::from_millis(200)).await;
    bench.client.switch(json!({"simulatedNotice": 0})).await.unwrap();
    bench
}

/// The URL of a machine, by its ARM id, and what of it.
async fn url(bench: &Bench, pool: &str, place: usize, what: &str) -> String {
    let machines = bench.get(&bench.pool_url(&format!("{pool}/machines"))).await.body;
    let id = machines["value"][place]["properties"]["resourceId"].as_str().unwrap().to_owned();
    format!("{}{id}{what}api-version=2026-03-01", bench.server.url())
}

fn power(machine: &Value) -> &str {
    machine["properties"]["instanceView"]["statuses"][1]["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn instances_are_seen_while_they_are_there() {
    let bench = bench().await;
    let one = url(&bench, "spota", 0, "?$expand=instanceView&").await;
    let list = bench.get(&one.replace("/virtualMachines/0?", "/virtualMachines?")).await.body;
    assert_eq!(list["value"].as_array().unwrap().len(), 2);
    let machine = bench.get(&one).await.body;
    assert_eq!((&machine, power(&machine)), (&list["value"][0], "PowerState/running"));
    assert_eq!(machine["properties"]["instanceView"]["statuses"][0]["code"], "ProvisioningState/succeeded");
    assert_eq!((&machine["instanceId"], &machine["zones"]), (&json!("0"), &json!(["1"])));
    let plain = bench.get(&url(&bench, "spota", 0, "?").await).await.body;
    assert_eq!(plain["properties"]["instanceView"], Value::Null);
    assert_eq!(bench.get(&one.replace("2026-03-01", "2019-03-01")).await.status, 400);
    assert_eq!(bench.get(&one.replace("-vmss/", "-none/")).await.status, 404);

    bench.client.evict_some("spota", 1, Duration::ZERO).await.unwrap();
    let gone = |state: &State| state.vms_of("spota").count() == 1;
    bench.client.wait_until("the machine to go", GENEROUS, gone).await.unwrap();
    let missing = bench.get(&one).await;
    assert_eq!((missing.status, missing.code()), (404, "ResourceNotFound"));
}

#[tokio::test]
async fn evictions_can_be_simulated_and_deallocated_machines_started() {
    let bench = bench().await;
    let evict = async |url: &str| bench.send(Method::POST, url, &[], None).await;
    let regular = evict(&url(&bench, "rega", 0, "/simulateEviction?").await).await;
    assert_eq!((regular.status, regular.code()), (409, "OperationNotAllowed"));
    for pool in ["spota", "spotd", "spotv"] {
        let answer = evict(&url(&bench, pool, 0, "/simulateEviction?").await).await;
        assert_eq!((answer.status, &answer.body), (204, &json!("")), "{pool}");
    }
    let done = |state: &State| {
        state.vms_of("spota").count() == 1
            && state.vms_of("spotv").count() == 1
            && state.vms_of("spotd").all(|vm| vm.phase == VmPhase::Deallocated)
    };
    let state = bench.client.wait_until("three evictions", GENEROUS, done).await.unwrap();
    assert!(state.events.iter().all(|event| event.event_type == "Preempt"));
    assert_eq!(state.events.len(), 3);

    let stopped = url(&bench, "spotd", 0, "?$expand=instanceView&").await;
    assert_eq!(power(&bench.get(&stopped).await.body), "PowerState/deallocated");
    let view = bench.get(&url(&bench, "spotd", 0, "/instanceView?").await).await.body;
    assert_eq!(view["statuses"][1]["code"], "PowerState/deallocated");
    let started = bench.send(Method::POST, &url(&bench, "spotd", 0, "/start?").await, &[], None).await;
    assert_eq!(started.status, 202);
    assert!(started.header("azure-asyncoperation").contains("/Microsoft.Compute/"));
    assert_eq!(bench.follow(&started).await["status"], "Succeeded");
    assert_eq!(power(&bench.get(&stopped).await.body), "PowerState/running");
}

#[tokio::test]
async fn pools_of_virtual_machines_have_other_names() {
    let bench = bench().await;
    let machines = bench.get(&bench.pool_url("spotv/machines")).await.body;
    let machine = &machines["value"][0];
    let name = machine["name"].as_str().unwrap();
    assert!(name.starts_with("aks-spotv-") && name.ends_with("-vms0"), "{name}");
    let id = machine["properties"]["resourceId"].as_str().unwrap();
    assert!(id.ends_with(&format!("/providers/Microsoft.Compute/virtualMachines/{name}")), "{id}");
    let read = bench.get(&format!("{}{id}?api-version=2026-03-01", bench.server.url())).await.body;
    assert_eq!((&read["name"], &read["properties"]["priority"]), (&json!(name), &json!("Spot")));
    let all = bench.get(&url(&bench, "spotv", 0, "?").await.replace(&format!("/{name}?"), "?")).await.body;
    assert_eq!(all["value"].as_array().unwrap().len(), 2);

    // They are scaled by their profile, and the rest of the pool survives a PUT that says nothing of it.
    let profile = json!({"scale": {"manual": [{"size": SIZE, "count": 3}]}});
    let scaled =
        bench.put("spotv", json!({"type": "VirtualMachines", "virtualMachinesProfile": profile})).await;
    assert_eq!(scaled.status, 200, "{scaled:?}");
    assert_eq!(bench.follow(&scaled).await["status"], "Succeeded");
    let pool = bench.get(&bench.pool_url("spotv")).await.body;
    assert_eq!(
        (&pool["properties"]["count"], &pool["properties"]["scaleSetPriority"]),
        (&json!(3), &json!("Spot"))
    );
    let compute =
        format!("{}/metadata/instance/compute?api-version=2021-02-01", bench.client.imds_endpoint(name));
    let compute = bench.send(Method::GET, &compute, &[("Metadata", "true")], None).await.body;
    assert_eq!((&compute["name"], &compute["vmScaleSetName"]), (&json!(name), &json!("")));
}
