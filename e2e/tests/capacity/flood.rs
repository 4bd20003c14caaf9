//! Row G: many notices in one moment become few requests, for as many machines as are lost.

use std::time::Duration;

use futures::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::{ArmWrite, PoolSpec};
use spotpool_crds::names;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::{world, world_with_agents};

#[test]
fn a_flood_of_notices_becomes_few_writes_for_exactly_what_is_lost() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "flood").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("flooda", "Standard_D4s_v5", 6),
                PoolSpec::spot("floodb", "Standard_D4s_v5", 6),
                PoolSpec::spot("floodc", "Standard_D4as_v5", 0),
                PoolSpec::regular("floodr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let names = ["flooda", "floodb", "floodc", "floodr"];
        let pools = names.map(|name| json!({"name": name, "maxNodes": 20}));
        let spec = json!({"replicas": 12, "agentPools": pools, "fallback": {"maxNodes": 3}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "12 ready", |status| status.ready_replicas == 12).await.unwrap();

        let nodes = [stage.nodes("flooda").await.unwrap(), stage.nodes("floodb").await.unwrap()].concat();
        let doomed: Vec<_> = nodes.iter().take(10).map(ResourceExt::name_any).collect();
        stage.world.sim.evict(&doomed, Duration::from_secs(30)).await.unwrap();
        stage.status_is("p", "all notices to show", |status| status.capacity.evicting == 10).await.unwrap();
        stage
            .status_is("p", "spot to be whole again", |status| {
                status.capacity.evicting == 0 && status.capacity.ready_spot == 12
            })
            .await
            .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        let ordered =
            |pool: &str| state.writes_to(pool).map(|write| write.machines_ordered.len()).sum::<usize>();
        let spot: usize = names[..3].iter().map(|pool| ordered(pool)).sum();
        assert_eq!((spot, ordered("floodr")), (10, 3), "one for one, and on-demand up to its limit");
        for pool in names {
            let asked = state.writes_to(pool).filter(|write| !write.machines_ordered.is_empty()).count();
            assert!(asked <= 2, "{pool} was asked {asked} times");
        }
        operator.stop().await.unwrap();
    });
}

/// Azure takes no second write while one runs, and that is minutes: whoever asks once for each node has asked for the
/// first of them only.
#[test]
fn notices_of_many_nodes_become_one_put_for_each_agent_pool_with_the_sum() {
    run(async {
        let stage = Stage::set(world().await, "mass").await.unwrap();
        let agent_pools = ["massa", "massb", "massc", "massd"];
        let specs = agent_pools.map(|name| {
            let count = if name == "massd" { 0 } else { 8 };
            PoolSpec::spot(name, "Standard_D4s_v5", count)
        });
        stage.agent_pools(&specs).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        // Nothing is asked of the two whose VMs did not last: eight find room in each of the others.
        let pools = agent_pools.map(|name| {
            let most = if name == "massd" { 8 } else { 16 };
            json!({"name": name, "maxNodes": most})
        });
        stage.spot_pool("p", json!({"replicas": 24, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "24 ready", |status| status.ready_replicas == 24).await.unwrap();
        // The next leader finds all of them at once: how many decisions there are does not depend on the machine.
        operator.stop().await.unwrap();
        let of_mass = async || -> Vec<ArmWrite> {
            let writes = stage.world.sim.state().await.unwrap().arm_writes;
            writes.into_iter().filter(|write| agent_pools.contains(&write.pool.as_str())).collect()
        };
        assert!(of_mass().await.is_empty(), "adopted as it is");

        let api: Api<Node> = Api::all(stage.world.client.clone());
        let mut noticed = stage.nodes("massa").await.unwrap();
        noticed.extend(stage.nodes("massb").await.unwrap());
        let now = Timestamp::now();
        let notices = noticed.iter().enumerate().map(|(at, node)| {
            let notice = json!({"by": "NodeAgent", "eventId": format!("E{at}"), "type": "Preempt", "source": "IMDS",
                "observedAt": now, "deadline": now + SignedDuration::from_secs(30), "phase": "Noticed",
                "cordoned": true, "bootID": "b"});
            let patch = json!({"metadata": {"annotations": {names::EVICTION_ANNOTATION: notice.to_string()}},
                "spec": {"unschedulable": true}});
            let (api, name) = (&api, node.name_any());
            async move { api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await }
        });
        try_join_all(notices).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        stage
            .status_is("p", "others in their stead", |status| {
                status.capacity.evicting == 16 && status.ready_replicas == 24
            })
            .await
            .unwrap();
        let writes = of_mass().await;
        let ordered: usize = writes.iter().map(|write| write.machines_ordered.len()).sum();
        assert_eq!(ordered, 16, "one for each that goes: {writes:?}");
        let mut asked: Vec<&str> = writes.iter().map(|write| write.pool.as_str()).collect();
        asked.sort_unstable();
        assert_eq!(asked, ["massc", "massd"], "{writes:?}");
        operator.stop().await.unwrap();
    });
}
