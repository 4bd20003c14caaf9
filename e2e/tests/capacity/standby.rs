//! Row U: spot that is ready beyond what is wanted takes the place of what is lost at once.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::{Reason, SpotPoolStatus};
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::versions::Versions;
use crate::{condition, world_with_agents};

#[test]
fn standby_takes_the_place_of_a_lost_node_and_is_filled_again_and_nothing_is_bought() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "standby").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("standbya", "Standard_D4s_v5", 0),
                PoolSpec::spot("standbyb", "Standard_D4s_v5", 0),
                PoolSpec::regular("standbyr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = ["standbya", "standbyb", "standbyr"].map(|name| json!({"name": name, "maxNodes": 10}));
        // Whatever is lost and not covered is bought at once.
        let spec = json!({"replicas": 3, "agentPools": pools, "standby": {"units": 1},
            "fallback": {"maxNodes": 3, "after": "0s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let status =
            stage.status_is("p", "3 and one more", |status| status.ready_replicas == 4).await.unwrap();
        assert_eq!((status.replicas, status.capacity.ready_spot), (3, 4));
        for pool in ["standbya", "standbyb"] {
            stage.nodes_ready(pool, 2).await.unwrap();
        }

        let versions = Versions::follow(&stage, "p").await;
        let on_demand = async || {
            let state = stage.world.sim.state().await.unwrap();
            state.writes_to("standbyr").map(|write| write.machines_ordered.len()).sum::<usize>()
        };
        let doomed: Vec<_> =
            stage.nodes("standbya").await.unwrap().iter().map(ResourceExt::name_any).collect();
        stage.world.sim.evict(&doomed[..1], Duration::from_secs(20)).await.unwrap();
        stage.status_is("p", "the notice to show", |status| status.capacity.evicting == 1).await.unwrap();
        stage.status_is("p", "standby to be filled", |status| status.ready_replicas == 4).await.unwrap();
        for version in versions.so_far() {
            let status = version.status.unwrap();
            let (ready, lost) = (status.ready_replicas, &status.capacity.lost_since);
            assert!(ready >= 3 && lost.is_none(), "{ready} ready, lost since {lost:?}");
            assert_eq!(condition(&status, "Ready"), "True");
        }
        assert_eq!(on_demand().await, 0);

        // More than standby covers: for what it does not, on-demand stands in.
        let left = stage.nodes("standbyb").await.unwrap();
        let left: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        stage.world.sim.evict(&left[..2], Duration::from_secs(20)).await.unwrap();
        stage
            .status_is("p", "on-demand to stand in", |status| status.capacity.ready_on_demand == 1)
            .await
            .unwrap();
        stage.status_is("p", "standby to be filled", |status| status.capacity.ready_spot == 4).await.unwrap();
        assert_eq!(on_demand().await, 1, "two were lost, one of them was covered");
        operator.stop().await.unwrap();
    });
}

#[test]
fn after_an_eviction_spare_is_kept_on_spot_for_its_time_and_given_back_and_nothing_is_bought_for_it() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "spare").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("sparea", "Standard_D4s_v5", 0),
                PoolSpec::spot("spareb", "Standard_D4as_v5", 0),
                PoolSpec::regular("sparer", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = ["sparea", "spareb", "sparer"].map(|name| json!({"name": name, "maxNodes": 10}));
        let spec = json!({"replicas": 3, "agentPools": pools, "standby": {"afterLoss": {"for": "45s"}},
            "fallback": {"maxNodes": 3, "after": "0s"},
            "failback": {"stabilization": "1s", "probe": "0s"}});
        stage.spot_pool("p", spec).await.unwrap();
        let whole = |status: &SpotPoolStatus, spot: i32| {
            let machines: i32 = status.agent_pools.iter().map(|pool| pool.machines).sum();
            status.capacity.ready_spot == spot && machines == spot && status.fallback.draining.is_empty()
        };
        let status = stage.status_is("p", "3, and no spare", |status| whole(status, 3)).await.unwrap();
        let is_spare =
            |status: &SpotPoolStatus| status.plan.iter().any(|step| step.reason == Reason::StandbyAfterLoss);
        assert!(!is_spare(&status), "{:?}", status.plan);

        let nodes = stage.nodes("sparea").await.unwrap();
        stage.world.sim.evict(&[nodes[0].name_any()], Duration::from_secs(10)).await.unwrap();
        // 15 percent of 3, rounded up.
        let has_spare = |status: &SpotPoolStatus| status.capacity.ready_spot == 4;
        let status = stage.status_is("p", "3 and a spare", has_spare).await.unwrap();
        assert!(is_spare(&status), "{:?}", status.plan);
        assert_eq!(status.replicas, 3);
        assert_eq!(condition(&status, "SpotAvailable"), "True");

        let status =
            stage.status_is("p", "the spare to be given back", |status| whole(status, 3)).await.unwrap();
        assert!(!is_spare(&status), "{:?}", status.plan);
        let state = stage.world.sim.state().await.unwrap();
        let bought: usize = state.writes_to("sparer").map(|write| write.machines_ordered.len()).sum();
        assert!(bought <= 1, "{bought} on demand in the place of one that was lost");
        operator.stop().await.unwrap();
    });
}
