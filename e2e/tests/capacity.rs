//! The operator against a real apiserver and the simulator: what it asks of Azure, and what it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::json;
use spotpool_azure_sim::api::{PoolSpec, Targets};
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions};
use tokio::sync::OnceCell;

static WORLD: OnceCell<World> = OnceCell::const_new();

async fn world() -> &'static World {
    let options = WorldOptions { agents: false, ..WorldOptions::default() };
    WORLD.get_or_init(async || World::start(options).await.unwrap()).await
}

#[tokio::test]
async fn a_pool_grows_from_nothing_and_heals_when_machines_vanish() {
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
    assert_eq!(puts.len(), 3, "one PUT for each pool at first, one for the loss: {puts:?}");
    operator.stop().await.unwrap();
}
