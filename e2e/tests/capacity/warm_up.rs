//! Row K: a node counts once it is ready for work, and not before.

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::{condition, world};

#[test]
fn a_baseline_is_on_demand_from_the_start_and_a_node_counts_when_it_is_warm() {
    run(async {
        let stage = Stage::set(world().await, "base").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("basea", "Standard_D4s_v5", 0),
                PoolSpec::regular("baser", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "basea", "maxNodes": 5}, {"name": "baser", "maxNodes": 5}]);
        let spec = json!({"replicas": 3, "agentPools": pools, "onDemand": {"baseline": 1}, "standby": {"units": 1},
            "readiness": {"warmup": "5s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let ready =
            stage.status_is("p", "all to be ready", |status| status.ready_replicas == 4).await.unwrap();
        assert_eq!((ready.capacity.ready_spot, ready.capacity.ready_on_demand, ready.replicas), (3, 1, 3));
        assert_eq!((ready.fallback.nodes, condition(&ready, "FallbackActive")), (0, "False"));
        let now = Timestamp::now();
        for node in stage.nodes("basea").await.unwrap().iter().chain(&stage.nodes("baser").await.unwrap()) {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let since = conditions.into_iter().find(|it| it.type_ == "Ready").unwrap();
            let since = since.last_transition_time.as_ref().unwrap().0;
            assert!(
                now.duration_since(since).as_secs() >= 4,
                "{} counted {since}, now {now}",
                node.name_any()
            );
        }
        operator.stop().await.unwrap();
    });
}
