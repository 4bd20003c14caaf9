//! Row L: what the operator's identity may do is what the roles of the docs say, at the scopes they are for. They are
//! enough for all that it does, and nothing in them is left unused.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use spotpool_azure_sim::api::{Identity, PoolSpec};
use spotpool_azure_sim::tokens::{AuthPatch, GrantedAction};
use spotpool_e2e::objects::apply;
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

/// A file of `docs/install/roles`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Role {
    name: String,
    description: String,
    actions: Vec<String>,
    assignable_scopes: Vec<String>,
}

fn role(name: &str) -> Role {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install/roles").join(name);
    let role: Role =
        serde_json::from_str(&std::fs::read_to_string(path.with_extension("json")).unwrap()).unwrap();
    assert!(!role.name.is_empty() && !role.description.is_empty());
    assert_eq!(role.assignable_scopes, ["/subscriptions/SUBSCRIPTION"], "{name}");
    role
}

/// Every action of the three roles and of the one for drills, where it is assigned.
fn granted(of: &Identity) -> Vec<GrantedAction> {
    let subscription = format!("/subscriptions/{}", of.subscription);
    let cluster = format!(
        "{subscription}/resourceGroups/{}/providers/Microsoft.ContainerService/managedClusters/{}",
        of.resource_group, of.cluster
    );
    let nodes = format!("{subscription}/resourceGroups/{}", of.node_resource_group);
    let scopes = [
        ("cluster", cluster),
        ("nodes", nodes.clone()),
        ("optional/drills", nodes),
        ("subscription", subscription),
    ];
    let granted = scopes.into_iter().flat_map(|(name, scope)| {
        role(name).actions.into_iter().map(move |action| GrantedAction { action, scope: scope.clone() })
    });
    granted.collect()
}

fn restarts(name: &str) -> PoolSpec {
    PoolSpec::spot(name, "Standard_D4s_v5", 1).property("scaleSetEvictionPolicy", json!("Deallocate"))
}

#[test]
fn the_roles_of_the_docs_are_enough_and_hold_nothing_that_is_not_used() {
    run(async {
        let world = World::start(WorldOptions::default()).await.unwrap();
        let sim = &world.sim;
        let granted = granted(&sim.state().await.unwrap().identity);
        let patch = AuthPatch { granted: Some(granted.clone()), ..AuthPatch::default() };
        sim.change_auth(&patch).await.unwrap();

        let stage = Stage::set(&world, "roles").await.unwrap();
        let single = json!({"scale": {"manual": [{"size": "Standard_D4s_v5", "count": 1}]}});
        stage
            .agent_pools(&[
                PoolSpec::spot("rolesa", "Standard_D4s_v5", 1),
                restarts("rolesset"),
                restarts("rolesvm")
                    .property("type", json!("VirtualMachines"))
                    .property("virtualMachinesProfile", single),
                PoolSpec::regular("rolesr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "rolesa", "maxNodes": 3}, {"name": "rolesr", "maxNodes": 3},
            {"name": "rolesset", "maxNodes": 1, "onDeallocated": "Restart"},
            {"name": "rolesvm", "maxNodes": 1, "onDeallocated": "Restart"}]);
        let spec = json!({"replicas": 3, "agentPools": pools, "fallback": {"maxNodes": 3},
            "failback": {"stabilization": "1s", "minOnDemandLifetime": "1s", "probe": "0s"}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "3 ready", |status| status.ready_replicas == 3).await.unwrap();
        // A drill takes all. One is replaced, on demand first; the VMs of two are started again.
        for pool in ["rolesa", "rolesset", "rolesvm"] {
            sim.switch_pool(pool, &json!({"simulatedNoticeMs": 2_000})).await.unwrap();
        }
        let drill = json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "EvictionDrill",
            "metadata": {"name": "d", "namespace": "roles"}, "spec": {"target": {"spotPool": "p"},
            "amount": {"all": true}, "method": "SimulateEviction", "limits": {"maxNodes": 3}}});
        apply(&world.client, &drill.to_string(), |_| ()).await.unwrap();
        let all: BTreeSet<String> = granted.iter().map(|granted| granted.action.clone()).collect();
        let asked = eventually("every action of the roles to be used", async || {
            let auth = sim.auth().await?;
            let unused: Vec<&String> = all.difference(&auth.asked_for).collect();
            anyhow::ensure!(unused.is_empty(), "not used: {unused:?}");
            Ok(Some(auth))
        })
        .await
        .unwrap();
        assert_eq!(asked.asked_for, all, "the operator asks for more than the roles hold");
        assert_eq!(asked.refused, [], "the roles are not enough where they are assigned");
        operator.stop().await.unwrap();
        world.stop().await.unwrap();
    });
}
