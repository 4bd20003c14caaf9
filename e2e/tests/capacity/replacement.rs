//! Row C: what is missing is asked of spot, and where spot has nothing, on-demand stands in. The peers' failures are in
//! `peers.rs`, losses without a notice in `loss.rs`.

use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Priority, Targets};
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::{condition, world};

#[test]
fn a_pool_grows_from_nothing_and_heals_when_machines_vanish() {
    run(async {
        let stage = Stage::set(world().await, "heal").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("heala", "Standard_D4s_v5", 0),
                PoolSpec::spot("healb", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "heala", "maxNodes": 5}, {"name": "healb", "maxNodes": 5}]);
        stage.spot_pool("p", json!({"replicas": 4, "agentPools": pools})).await.unwrap();
        stage.status_is("p", "4 ready", |status| status.ready_replicas == 4).await.unwrap();
        assert_eq!(
            (stage.nodes("heala").await.unwrap().len(), stage.nodes("healb").await.unwrap().len()),
            (2, 2)
        );

        stage.world.sim.kill(&Targets::of_pool("heala", 2)).await.unwrap();
        stage.status_is("p", "the loss to show", |status| status.ready_replicas == 2).await.unwrap();
        stage.status_is("p", "4 ready again", |status| status.ready_replicas == 4).await.unwrap();
        let state = stage.world.sim.state().await.unwrap();
        let puts: Vec<_> =
            state.writes_to("heala").chain(state.writes_to("healb")).map(|write| write.status).collect();
        // Two that vanish may be seen one after the other.
        let few = [3, 4].contains(&puts.len());
        assert!(few, "one PUT for each pool at first, one or two for the loss: {puts:?}");
        operator.stop().await.unwrap();
    });
}

#[test]
fn spot_that_is_sold_out_is_avoided_and_on_demand_stands_in() {
    run(async {
        let stage = Stage::set(world().await, "soldout").await.unwrap();
        let sim = &stage.world.sim;
        stage
            .agent_pools(&[
                PoolSpec::spot("soldouta", "Standard_E4s_v5", 0),
                PoolSpec::regular("soldoutr", "Standard_E4s_v5", 0),
            ])
            .await
            .unwrap();
        sim.set_capacity("Standard_E4s_v5", Priority::Spot, Some(1)).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "soldouta", "maxNodes": 5}, {"name": "soldoutr", "maxNodes": 5}]);
        let fallback = json!({"maxNodes": 2});
        stage
            .spot_pool("p", json!({"replicas": 2, "agentPools": pools, "fallback": fallback}))
            .await
            .unwrap();
        let status =
            stage.status_is("p", "on-demand to stand in", |status| status.ready_replicas == 2).await.unwrap();
        assert_eq!((status.capacity.ready_spot, status.capacity.ready_on_demand), (1, 1));
        assert_eq!(condition(&status, "FallbackActive"), "True");
        let pool = status.agent_pools.iter().find(|it| it.name == "soldouta").unwrap();
        assert_eq!(pool.last_error.as_ref().unwrap().code, "SkuNotAvailable");
        assert!(pool.avoided_until.is_some());
        operator.stop().await.unwrap();
    });
}
