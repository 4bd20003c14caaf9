//! Row G: many notices in one moment become few requests, for as many machines as are lost.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::world_with_agents;

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
