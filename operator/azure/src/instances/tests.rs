use serde_json::{Value, json};

use super::*;
use crate::stub::{Answers, answer};

const GROUP: &str = "/subscriptions/s/resourceGroups/mc_group/providers/Microsoft.Compute";

fn member() -> VmId {
    format!("azure://{GROUP}/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13")
        .parse()
        .unwrap()
}

fn single() -> VmId {
    format!("azure://{GROUP}/virtualMachines/aks-spot-12345678-vms0").parse().unwrap()
}

fn instances(azure: &Arc<Answers>, leads: bool) -> ComputeInstances {
    let endpoint = "https://management.azure.com/".parse().unwrap();
    ComputeInstances::new(azure.clone(), endpoint, Arc::new(move || leads)).unwrap()
}

fn vm(id: &str, view: &Value) -> Value {
    json!({"name": format!("aks-spot-12345678-vmss_{id}"), "instanceId": id, "zones": ["2"],
        "properties": {"provisioningState": "Succeeded", "vmId": "x", "instanceView": view}})
}

fn statuses(power: &str) -> Value {
    json!({"platformFaultDomain": 0, "statuses": [{"code": "ProvisioningState/succeeded", "level": "Info"},
        {"code": format!("PowerState/{power}"), "level": "Info"}]})
}

#[test]
fn only_ids_of_vms_are_taken() {
    assert_eq!((member().scale_set(), member().vm()), (Some("aks-spot-12345678-vmss"), "13"));
    assert_eq!((single().scale_set(), single().vm()), (None, "aks-spot-12345678-vms0"));
    assert_eq!(member().to_string(), "aks-spot-12345678-vmss_13");
    // Each component spells the path its own way.
    let shouted = "/SUBSCRIPTIONS/s/resourcegroups/MC_Group/Providers/microsoft.compute/VIRTUALMACHINES/v";
    assert_eq!(shouted.parse::<VmId>().unwrap().vm(), "v");
    for wrong in [
        "",
        "azure://",
        "aws:///eu-west-1a/i-0123",
        "kwok://node-1",
        &format!("{GROUP}/virtualMachineScaleSets/x"),
        &format!("{GROUP}/virtualMachineScaleSets/x/virtualMachines/"),
        &format!("{GROUP}/virtualMachines/../x"),
        &format!("{GROUP}/virtualMachines/.."),
        &format!("{GROUP}/virtualMachines/a?b"),
        &format!("{GROUP}/virtualMachines/a%2Fb"),
        &format!("{GROUP}/virtualMachines/a/extensions/b"),
        &format!("{GROUP}/disks/a"),
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualMachines/v",
    ] {
        assert_eq!(wrong.parse::<VmId>().unwrap_err().class, Class::Invalid, "{wrong}");
    }
}

#[tokio::test]
async fn the_power_state_is_read_or_unknown() {
    for (view, power, gone) in [
        (statuses("running"), PowerState::Running, false),
        (statuses("starting"), PowerState::Starting, false),
        (statuses("stopping"), PowerState::Stopping, false),
        (statuses("stopped"), PowerState::Stopped, false),
        (statuses("deallocating"), PowerState::Deallocating, true),
        (statuses("deallocated"), PowerState::Deallocated, true),
        (statuses("hibernated"), PowerState::Unknown, false),
        (json!({"statuses": null}), PowerState::Unknown, false),
        (Value::Null, PowerState::Unknown, false),
    ] {
        let body = vm("13", &view).to_string();
        let azure = Answers::by(move |_| Ok(answer(200, body.clone())));
        let found = instances(&azure, false).instance(&member()).await.unwrap().unwrap();
        assert_eq!((found.power, found.power.is_gone()), (power, gone), "{view}");
        assert_eq!(
            (found.instance_id.as_deref(), found.zones.as_slice()),
            (Some("13"), &["2".to_owned()][..])
        );
        assert_eq!(found.provisioning_state, "Succeeded");
        assert_eq!(
            azure.asked()[0].uri(),
            &*format!(
                "https://management.azure.com{GROUP}/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13?\
                 %24expand=instanceView&api-version=2024-07-01"
            )
        );
    }
}

/// A node that is taken for gone has its pods removed by force: only Azure's own word for exactly this VM counts.
#[tokio::test]
async fn gone_is_what_azure_says_is_gone() {
    for (status, body, gone) in [
        (404, r#"{"error":{"code":"ResourceNotFound","message":"The Resource was not found."}}"#, true),
        (
            404,
            r#"{"error":{"code":"NotFound","message":"The entity was not found in this Azure location."}}"#,
            true,
        ),
        (404, r#"{"error":{"code":"InstanceNotFound","message":"13"}}"#, true),
        (404, r#"{"error":{"code":"ParentResourceNotFound","message":"no such scale set"}}"#, true),
        (404, r#"{"error":{"code":"ResourceGroupNotFound","message":"x"}}"#, false),
        (404, r#"{"error":{"code":"SubscriptionNotFound","message":"x"}}"#, false),
        (404, r#"{"error":{"code":"InvalidResourceType","message":"x"}}"#, false),
        (404, "<html>no such page</html>", false),
        (404, "", false),
        (403, r#"{"error":{"code":"AuthorizationFailed","message":"x"}}"#, false),
        (500, "", false),
    ] {
        let azure = Answers::by(move |_| Ok(answer(status, body)));
        let instances = instances(&azure, false);
        for found in [instances.instance(&member()).await, instances.instance(&single()).await] {
            assert_eq!(matches!(found, Ok(None)), gone, "{status} {body}: {found:?}");
            assert!(gone || found.is_err(), "{status} {body}: {found:?}");
        }
    }
}

#[tokio::test]
async fn a_scale_set_is_listed_to_its_end() {
    let next = format!(
        "https://management.azure.com{GROUP}/virtualMachineScaleSets/x/virtualMachines?api-version=1999-01-01&$skiptoken=2"
    );
    let azure = Answers::by(move |request| {
        let last = request.uri().query().unwrap().contains("skiptoken");
        let body = if last {
            json!({"value": [vm("5", &statuses("deallocated"))], "nextLink": ""})
        } else {
            json!({"value": [vm("3", &statuses("running")), vm("4", &Value::Null)], "nextLink": next})
        };
        Ok(answer(200, body.to_string()))
    });
    let found = instances(&azure, false).scale_set_of(&member()).await.unwrap();
    let ids: Vec<_> = found.iter().map(|one| (one.instance_id.as_deref().unwrap(), one.power)).collect();
    assert_eq!(ids, [("3", PowerState::Running), ("4", PowerState::Unknown), ("5", PowerState::Deallocated)]);
    assert!(
        azure.asked()[1].uri().query().unwrap().contains("1999-01-01"),
        "the link was not followed verbatim"
    );

    let gone =
        Answers::by(|_| Ok(answer(404, r#"{"error":{"code":"ParentResourceNotFound","message":"x"}}"#)));
    assert!(instances(&gone, false).scale_set_of(&member()).await.unwrap().is_empty());

    for (link, asks) in [("https://example.org/x", 1), ("https://management.azure.com/x?again", MOST_PAGES)] {
        let azure = Answers::by(move |_| Ok(answer(200, json!({"value": [], "nextLink": link}).to_string())));
        let error = instances(&azure, false).scale_set_of(&member()).await.unwrap_err();
        assert_eq!((error.code.as_str(), azure.asked().len()), ("NotUnderstood", asks));
    }
}

#[tokio::test]
async fn an_eviction_is_simulated_by_the_leader_alone() {
    let azure = Answers::by(|_| Ok(answer(204, "")));
    instances(&azure, true).simulate_eviction(&member()).await.unwrap();
    instances(&azure, true).simulate_eviction(&single()).await.unwrap();
    let error = instances(&azure, false).simulate_eviction(&member()).await.unwrap_err();
    assert_eq!(error.code, "NotLeader");
    let asked: Vec<_> = azure
        .asked()
        .iter()
        .map(|request| format!("{} {}", request.method(), request.uri().path()))
        .collect();
    assert_eq!(
        asked,
        [
            format!(
                "POST {GROUP}/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13/simulateEviction"
            ),
            format!("POST {GROUP}/virtualMachines/aks-spot-12345678-vms0/simulateEviction"),
        ]
    );
    let refusing = Answers::by(|_| {
        Ok(answer(409, r#"{"error":{"code":"OperationNotAllowed","message":"not a spot VM"}}"#))
    });
    assert!(instances(&refusing, true).simulate_eviction(&member()).await.is_err());
}
