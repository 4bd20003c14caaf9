//! Row D: agent pools whose nodes are worth different amounts of capacity.

use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::world;

#[test]
fn an_agent_pool_of_greater_nodes_counts_for_more_in_the_pool_and_for_its_scale() {
    run(async {
        let stage = Stage::set(world().await, "units").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("unitsa", "Standard_D4s_v5", 0),
                PoolSpec::spot("unitsb", "Standard_D8s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([
            {"name": "unitsa", "maxNodes": 1}, {"name": "unitsb", "maxNodes": 5, "capacityUnits": 4}
        ]);
        let placement = json!({"strategy": "Ordered", "maxSharePerPool": 100});
        let spec = json!({"replicas": 5, "agentPools": pools, "placement": placement});
        stage.spot_pool("p", spec).await.unwrap();
        let status =
            stage.status_is("p", "5 units ready", |status| status.ready_replicas == 5).await.unwrap();
        assert_eq!((status.replicas, status.capacity.ready_spot), (5, 5));
        assert_eq!(
            (stage.nodes("unitsa").await.unwrap().len(), stage.nodes("unitsb").await.unwrap().len()),
            (1, 1),
            "one node of one unit and one of four"
        );
        let ready: Vec<_> = status.agent_pools.iter().map(|pool| (pool.name.as_str(), pool.ready)).collect();
        assert_eq!(ready, [("unitsa", 1), ("unitsb", 1)], "an agent pool's own figures are nodes");
        let scale = stage.spot_pools().get_scale("p").await.unwrap();
        assert_eq!(scale.status.unwrap().replicas, 5, "an HPA sees units");

        // The node of four units is lost: one such node comes in its place, not four.
        stage.world.sim.kill(&Targets::of_pool("unitsb", 1)).await.unwrap();
        stage.status_is("p", "four units to be missing", |status| status.ready_replicas == 1).await.unwrap();
        stage.status_is("p", "5 units ready again", |status| status.ready_replicas == 5).await.unwrap();
        // Two units more than wanted: the node of one can go, later; that of four cannot.
        stage.replicas("p", 3).await.unwrap();
        let status = stage
            .status_is("p", "3 wanted", |status| {
                status.replicas == 3 && status.fallback.surplus_since.is_some()
            })
            .await
            .unwrap();
        assert_eq!(status.ready_replicas, 5);
        let state = stage.world.sim.state().await.unwrap();
        let ordered: usize = state.writes_to("unitsb").map(|write| write.machines_ordered.len()).sum();
        assert_eq!(ordered, 2, "one node of four units, and one for the one that was lost");
        operator.stop().await.unwrap();
    });
}
