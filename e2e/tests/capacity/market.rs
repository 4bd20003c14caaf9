//! Row D: agent pools are chosen by price, evictions and score. Sizes of different worth are in `units.rs`.

use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::SpotPoolStatus;
use spotpool_crds::spot_pool::{AgentPoolStatus, Role};
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::world;

/// Whether all that the market says has come: price, evictions and score are read side by side.
pub fn is_known(status: &SpotPoolStatus) -> bool {
    let is_known = |pool: &AgentPoolStatus| {
        let is_on_demand = pool.role == Some(Role::OnDemand);
        let is_rated = !pool.placement_score.is_empty() && !pool.eviction_band.is_empty();
        pool.price.is_some() && (is_on_demand || is_rated)
    };
    !status.agent_pools.is_empty() && status.agent_pools.iter().all(is_known)
}

#[test]
fn nodes_go_where_spot_is_cheap_and_calm_and_status_says_why() {
    run(async {
        let stage = Stage::set(world().await, "market").await.unwrap();
        // By the simulator's prices and eviction rates: F8s is 9 % dearer than D8as and evicted ten times as often.
        stage
            .agent_pools(&[
                PoolSpec::spot("marketf", "Standard_F8s_v2", 1),
                PoolSpec::spot("marketd", "Standard_D8as_v5", 0),
                PoolSpec::spot("marketx", "Standard_D8ds_v5", 0),
                PoolSpec::regular("marketr", "Standard_D8as_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([
            {"name": "marketf", "maxNodes": 5}, {"name": "marketd", "maxNodes": 5},
            {"name": "marketx", "maxNodes": 5, "maxHourlyPrice": "0.09"}, {"name": "marketr", "maxNodes": 5}
        ]);
        let placement = json!({"strategy": "Balanced", "maxSharePerPool": 80});
        stage
            .spot_pool("p", json!({"replicas": 1, "agentPools": pools, "placement": placement}))
            .await
            .unwrap();
        let status = stage.status_is("p", "the market to be known", is_known).await.unwrap();
        let of = |name: &str| status.agent_pools.iter().find(|pool| pool.name == name).unwrap().clone();
        let (f, d) = (of("marketf"), of("marketd"));
        let price = d.price.unwrap();
        assert_eq!((price.hourly.as_str(), price.currency.as_str()), ("0.0619", "USD"));
        assert_eq!((d.eviction_band.as_str(), f.eviction_band.as_str()), ("0-5", "20+"));
        assert_eq!((d.rank.as_ref().unwrap().position, f.rank.as_ref().unwrap().position), (1, 2));
        let why = d.rank.unwrap().why;
        assert!(why.starts_with("0.0619 an hour, about 2.5 % evicted an hour"), "{why}");
        assert_eq!(of("marketr").price.unwrap().hourly, "0.344");

        // One more: to the calm one. Three more: none above its price, and the share is kept.
        stage.replicas("p", 2).await.unwrap();
        // An agent pool with an operation running would be passed over.
        let settled = |status: &SpotPoolStatus| {
            let idle = status
                .agent_pools
                .iter()
                .all(|pool| pool.operation.is_none() && pool.provisioning_state == "Succeeded");
            idle && status.ready_replicas == 2
        };
        stage.status_is("p", "2 ready and nothing under way", settled).await.unwrap();
        assert_eq!(stage.nodes("marketd").await.unwrap().len(), 1);
        stage.replicas("p", 5).await.unwrap();
        let status = stage.status_is("p", "5 ready", |status| status.ready_replicas == 5).await.unwrap();
        assert_eq!(stage.nodes("marketx").await.unwrap().len(), 0, "{:?}", status.plan);
        assert!(stage.nodes("marketd").await.unwrap().len() >= 3);
        operator.stop().await.unwrap();
    });
}
