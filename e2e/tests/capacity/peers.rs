//! Rows C, D and H, as users of other tools have suffered them, each on a real control plane.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use spotpool_azure_sim::api::{Failure, Fault, FaultAction, FaultTarget, PoolSpec, Targets};
use spotpool_azure_sim::failures::FailureKind;
use spotpool_crds::spot_pool::AgentPoolStatus;
use spotpool_crds::voluntary_drain::{DrainPhase, DrainRequest, DrainStatus};
use spotpool_crds::{SpotPoolStatus, names};
use spotpool_e2e::{Operator, OperatorOptions, Stage, eventually, run};

use crate::{condition, world};

fn of<'a>(status: &'a SpotPoolStatus, agent_pool: &str) -> &'a AgentPoolStatus {
    status.agent_pools.iter().find(|pool| pool.name == agent_pool).unwrap()
}

/// An operator over two spot agent pools, `…a` and `…b`, and an on-demand one, `…r`.
struct Scene {
    stage: Stage<'static>,
    operator: Operator,
    agent_pools: [String; 3],
}

impl Scene {
    async fn set(name: &str) -> Self {
        let stage = Stage::set(world().await, name).await.unwrap();
        let agent_pools = ["a", "b", "r"].map(|last| format!("{name}{last}"));
        let [a, b, r] = &agent_pools;
        let pools = [
            PoolSpec::spot(a, "Standard_D4s_v5", 0),
            PoolSpec::spot(b, "Standard_D8as_v5", 0),
            PoolSpec::regular(r, "Standard_D4s_v5", 0),
        ];
        stage.agent_pools(&pools).await.unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        Self { stage, operator, agent_pools }
    }

    /// Makes SpotPool `p`.
    async fn begin(&self, replicas: u32, mut more: Value) {
        let pools: Vec<Value> =
            self.agent_pools.iter().map(|name| json!({"name": name, "maxNodes": 5})).collect();
        more["replicas"] = replicas.into();
        more["agentPools"] = pools.into();
        self.stage.spot_pool("p", more).await.unwrap();
    }

    async fn ready(&self, what: &str, ready: i32) -> SpotPoolStatus {
        self.stage.status_is("p", what, |status| status.ready_replicas == ready).await.unwrap()
    }

    /// How often an agent pool was asked for machines.
    async fn asked(&self, agent_pool: &str) -> usize {
        let state = self.stage.world.sim.state().await.unwrap();
        state.writes_to(agent_pool).filter(|write| write.kind == "PUT pool").count()
    }

    async fn fail(&self, agent_pool: &str, error: FailureKind, times: u32, allocated: u32) {
        let after = Some(Duration::from_secs(1));
        let failure = Failure { pool: Some(agent_pool.into()), error, times, allocated, after };
        self.stage.world.sim.add_failure(&failure).await.unwrap();
    }

    /// Does what an agent does when its node is asked to drain and nothing is on it.
    async fn drain_as_asked(&self, agent_pool: &str) {
        let nodes: Api<Node> = Api::all(self.stage.world.client.clone());
        for node in self.stage.nodes(agent_pool).await.unwrap() {
            let Some(request) = node.annotations().get(names::DRAIN_REQUEST_ANNOTATION) else { continue };
            let request: DrainRequest = serde_json::from_str(request).unwrap();
            let status = DrainStatus {
                id: request.id,
                phase: DrainPhase::Drained,
                pods_left: 0,
                blocking_pdbs: Vec::new(),
                cordoned: true,
            };
            let status = serde_json::to_string(&status).unwrap();
            let patch = json!({"metadata": {"annotations": {names::DRAIN_STATUS_ANNOTATION: status}},
                "spec": {"unschedulable": true}});
            let _ = nodes.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        }
    }
}

/// Cluster autoscaler never hears of it, and takes the machines for on their way.
#[test]
fn an_overconstrained_zonal_allocation_request_that_comes_late_sends_the_rest_elsewhere() {
    run(async {
        let scene = Scene::set("zonal").await;
        scene.fail("zonala", FailureKind::OverconstrainedZonalAllocationRequest, 1, 1).await;
        scene.begin(4, json!({"placement": {"maxSharePerPool": 50}})).await;
        let status = scene.ready("all four", 4).await;
        let failed = of(&status, "zonala");
        let error = failed.last_error.as_ref().unwrap();
        assert_eq!(
            (error.code.as_str(), error.class.as_str()),
            ("OverconstrainedZonalAllocationRequest", "Capacity")
        );
        assert!(failed.avoided_until.is_some());
        assert_eq!((failed.ready, of(&status, "zonalb").ready), (1, 3), "{:?}", status.plan);
        assert_eq!(scene.asked("zonala").await, 1);
        scene.operator.stop().await.unwrap();
    });
}

/// Karpenter and cluster autoscaler ask two empty agent pools in turns, for hours.
#[test]
fn spot_that_is_empty_everywhere_is_not_asked_in_an_endless_loop() {
    run(async {
        let scene = Scene::set("empty").await;
        for pool in ["emptya", "emptyb"] {
            scene.fail(pool, FailureKind::SkuNotAvailable, 1_000, 0).await;
        }
        scene.begin(3, json!({"fallback": {"maxNodes": 3}})).await;
        let status = scene.ready("on-demand to stand in", 3).await;
        assert_eq!((status.capacity.ready_spot, status.capacity.ready_on_demand), (0, 3));
        // Long enough for many turns.
        tokio::time::sleep(Duration::from_secs(10)).await;
        for pool in ["emptya", "emptyb"] {
            // One for growth, one at most for what the other one refused.
            let asked = scene.asked(pool).await;
            assert!((1..=2).contains(&asked), "{pool} was asked {asked} times");
        }
        let status = scene.stage.status("p").await.unwrap();
        assert!(["emptya", "emptyb"].iter().all(|pool| of(&status, pool).avoided_until.is_some()));
        scene.operator.stop().await.unwrap();
    });
}

/// A success is believed, and what never comes is waited for.
#[test]
fn machines_that_azure_promises_and_never_makes_are_asked_of_another_agent_pool() {
    run(async {
        let scene = Scene::set("never").await;
        let sim = &scene.stage.world.sim;
        let identity = sim.state().await.unwrap().identity;
        let pool = json!({
            "id": format!("/subscriptions/{}/resourceGroups/{}/providers/Microsoft.ContainerService/managedClusters/{}/agentPools/nevera",
                identity.subscription, identity.resource_group, identity.cluster),
            "name": "nevera",
            "type": "Microsoft.ContainerService/managedClusters/agentPools",
            "properties": {"count": 2, "vmSize": "Standard_D4s_v5", "mode": "User", "osType": "Linux",
                "type": "VirtualMachineScaleSets", "scaleSetPriority": "Spot", "provisioningState": "Scaling"}
        });
        let action = FaultAction::body(pool.to_string());
        let target = FaultTarget::arm("PUT", "/agentPools/nevera");
        sim.add_fault(&Fault { target, times: Some(1), action }).await.unwrap();
        scene.begin(4, json!({"placement": {"maxSharePerPool": 50}})).await;
        let status = scene.ready("all four", 4).await;
        let broken = of(&status, "nevera");
        let error = broken.last_error.as_ref().unwrap();
        assert_eq!((error.code.as_str(), error.class.as_str()), ("ScaleUpIncomplete", "Capacity"));
        assert!(error.message.contains("asked for 2 machines"), "{}", error.message);
        assert!(broken.avoided_until.is_some());
        assert_eq!((broken.ready, of(&status, "neverb").ready), (0, 4), "{:?}", status.plan);
        scene.operator.stop().await.unwrap();
    });
}

/// A spot pool that is scaled by hand loses one node after the other, and nobody brings them back.
#[test]
fn a_pool_that_decays_over_night_is_whole_after_each_loss() {
    run(async {
        let scene = Scene::set("decay").await;
        scene.begin(3, json!({})).await;
        scene.ready("all three", 3).await;
        for _ in 0..3 {
            let fullest = match scene.stage.nodes("decaya").await.unwrap().len() {
                0 => "decayb",
                _ => "decaya",
            };
            scene.stage.world.sim.kill(&Targets::of_pool(fullest, 1)).await.unwrap();
            scene.stage.status_is("p", "the loss", |status| status.ready_replicas < 3).await.unwrap();
            scene.ready("all three again", 3).await;
        }
        scene.operator.stop().await.unwrap();
    });
}

/// Cluster autoscaler needs 15 to 20 minutes to try on-demand, and never goes back to spot by itself.
#[test]
fn on_demand_is_asked_for_at_once_and_spot_comes_back() {
    run(async {
        let scene = Scene::set("comeback").await;
        let failback =
            json!({"stabilization": "1s", "minOnDemandLifetime": "1s", "maxConcurrent": 2, "probe": "0s"});
        scene.begin(2, json!({"fallback": {"maxNodes": 2}, "failback": failback})).await;
        scene.ready("both on spot", 2).await;
        for pool in ["comebacka", "comebackb"] {
            scene.stage.world.sim.kill(&Targets::of_pool(pool, 1)).await.unwrap();
        }
        let killed = Timestamp::now();
        scene
            .stage
            .status_is("p", "on-demand to stand in", |status| status.capacity.ready_on_demand > 0)
            .await
            .unwrap();
        let state = scene.stage.world.sim.state().await.unwrap();
        let bought = state.writes_to("comebackr").next().unwrap();
        let after = bought.at.duration_since(killed);
        assert!(after.as_secs() < 60, "on-demand was asked for {after:#} after the loss");
        eventually("spot alone", async || {
            scene.drain_as_asked("comebackr").await;
            let status = scene.stage.status("p").await?;
            let is_back = status.capacity.ready_spot == 2 && status.fallback.nodes == 0;
            Ok((is_back && scene.stage.nodes("comebackr").await?.is_empty()).then_some(()))
        })
        .await
        .unwrap();
        scene.operator.stop().await.unwrap();
    });
}

/// Where on-demand has nothing either, somebody must hear of it, and the next one is asked.
#[test]
fn on_demand_without_quota_is_said_loudly_and_the_next_agent_pool_is_asked() {
    run(async {
        let scene = Scene::set("quota").await;
        let stage = &scene.stage;
        stage.agent_pools(&[PoolSpec::regular("quotas", "Standard_D8as_v5", 0)]).await.unwrap();
        for pool in ["quotaa", "quotab"] {
            scene.fail(pool, FailureKind::SkuNotAvailable, 1_000, 0).await;
        }
        scene.fail("quotar", FailureKind::QuotaExceeded, 1_000, 0).await;
        let pools = json!([{"name": "quotaa", "maxNodes": 5}, {"name": "quotab", "maxNodes": 5},
            {"name": "quotar", "maxNodes": 5}, {"name": "quotas", "maxNodes": 1}]);
        let placement = json!({"strategy": "Ordered"});
        let spec =
            json!({"replicas": 2, "agentPools": pools, "fallback": {"maxNodes": 4}, "placement": placement});
        stage.spot_pool("p", spec).await.unwrap();
        let status = stage
            .status_is("p", "the shortage to be said", |status| {
                condition(status, "OnDemandAvailable") == "False" && status.ready_replicas == 1
            })
            .await
            .unwrap();
        assert_eq!(of(&status, "quotas").ready, 1);
        let short = status.conditions.iter().find(|it| it.type_ == "OnDemandAvailable").unwrap();
        assert_eq!(short.reason, "OnDemandUnavailable");
        assert!(
            short.message.contains("quotar is avoided until")
                && short.message.contains("quotas is at its maxNodes"),
            "{}",
            short.message
        );
        let events: Api<Event> = Api::namespaced(stage.world.client.clone(), &stage.name);
        eventually("a warning", async || {
            let events = events.list(&ListParams::default()).await?;
            let told = |event: &Event| {
                event.reason.as_deref() == Some("OnDemandUnavailable")
                    && event.type_.as_deref() == Some("Warning")
            };
            Ok(events.iter().any(told).then_some(()))
        })
        .await
        .unwrap();
        scene.operator.stop().await.unwrap();
    });
}
