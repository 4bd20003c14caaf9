//! Row T: Azure's early hint brings spot elsewhere ahead of the notice, and lets it go when the hint was for nothing.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::{EventRequest, PoolSpec, Targets};
use spotpool_crds::SpotPoolStatus;
use spotpool_e2e::{OperatorOptions, Stage, run};

use crate::versions::Versions;
use crate::world_with_agents;

fn spot(status: &SpotPoolStatus) -> i32 {
    status.capacity.ready_spot
}

#[test]
fn a_hint_brings_spot_elsewhere_ahead_and_a_preempt_then_costs_nothing() {
    run(async {
        let stage = Stage::set(world_with_agents().await, "signals").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("signalsa", "Standard_D4s_v5", 2),
                PoolSpec::spot("signalsb", "Standard_D4as_v5", 0),
                PoolSpec::spot("signalsc", "Standard_D8as_v5", 0),
                PoolSpec::regular("signalsr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools =
            ["signalsa", "signalsb", "signalsc", "signalsr"].map(|name| json!({"name": name, "maxNodes": 5}));
        let placement =
            json!({"strategy": "Ordered", "maxSharePerPool": 100, "earlySignals": {"preRaise": 1}});
        // Whatever is lost and not covered is bought at once.
        let spec = json!({"replicas": 2, "agentPools": pools, "placement": placement,
            "fallback": {"maxNodes": 3, "after": "0s"}, "failback": {"stabilization": "5s"}});
        stage.spot_pool("p", spec).await.unwrap();
        stage.status_is("p", "2 ready", |status| spot(status) == 2).await.unwrap();
        let versions = Versions::follow(&stage, "p").await;

        let nodes = stage.nodes_ready("signalsa", 2).await.unwrap();
        let hinted = nodes[0].name_any();
        let hint = |node: &str| {
            let request = EventRequest::new(
                "SpotRebalanceRecommendation",
                Targets::named(&[node]),
                Duration::from_mins(5),
            );
            EventRequest { status: "Advisory".into(), ..request }
        };
        stage.world.sim.schedule(&hint(&hinted)).await.unwrap();
        let status = stage.status_is("p", "one more, ahead", |status| spot(status) == 3).await.unwrap();
        stage.nodes_ready("signalsb", 1).await.unwrap();
        let told = |reason: &str| {
            let steps = status.plan.iter().filter(|step| step.reason.as_ref() == reason);
            steps.map(|step| step.message.clone()).collect::<Vec<_>>()
        };
        let dearer = "signalsa counts as dearer: 1 of 2 nodes advised to move";
        assert_eq!(told("EarlySignal"), [dearer], "{:?}", status.plan);
        assert!(told("ReplaceAhead").iter().any(|it| it.contains("preRaise is 1")), "{:?}", status.plan);
        let of = |name: &str| status.agent_pools.iter().find(|pool| pool.name == name).unwrap();
        let signals = of("signalsa").signals.as_ref().unwrap();
        assert_eq!(signals.advised, 1);
        assert_eq!(signals.hours.as_ref().unwrap().node_hours.iter().sum::<i32>() % 2, 0, "{signals:?}");
        assert!(of("signalsa").rank.as_ref().unwrap().why.ends_with("1 of 2 nodes advised to move"));
        assert!(of("signalsr").signals.is_none());

        // It was right: what was lost is covered already.
        stage.world.sim.evict(&[hinted], Duration::from_secs(15)).await.unwrap();
        stage.status_is("p", "the notice to show", |status| status.capacity.evicting == 1).await.unwrap();
        stage
            .status_is("p", "the node to be gone", |status| {
                status.capacity.evicting == 0 && spot(status) == 2
            })
            .await
            .unwrap();
        for version in versions.so_far() {
            let status = version.status.unwrap();
            assert!(
                status.ready_replicas >= 2 && status.capacity.lost_since.is_none(),
                "{:?}",
                status.capacity
            );
        }

        // A hint for nothing: what came for it goes again. The first agent pool is left alone for a while, since its node
        // did not last.
        let other = stage.nodes_ready("signalsb", 1).await.unwrap()[0].name_any();
        let event = stage.world.sim.schedule(&hint(&other)).await.unwrap().remove(0);
        stage.status_is("p", "one more again", |status| spot(status) == 3).await.unwrap();
        stage.world.sim.cancel(&event.event_id).await.unwrap();
        stage
            .status_is("p", "two again", |status| {
                let machines: i32 = status.agent_pools.iter().map(|pool| pool.machines).sum();
                spot(status) == 2 && machines == 2 && status.fallback.draining.is_empty()
            })
            .await
            .unwrap();
        let state = stage.world.sim.state().await.unwrap();
        assert_eq!(state.writes_to("signalsr").count(), 0, "nothing is bought on demand for a hint");
        operator.stop().await.unwrap();
    });
}
