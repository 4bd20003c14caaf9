//! AKS deletes machines, and nobody is told.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::GoneReason;
use spotpool_crds::drill::{DrillPhase, DrillRun};
use spotpool_e2e::objects::create;
use spotpool_e2e::{OperatorOptions, run};

use crate::{EVICTIONS, drill, ordered, over, pod, whole, world};

/// What the agents can do nothing about: the SpotPool alone makes up for it, and takes it for a loss, not for somebody's wish to have
/// fewer nodes.
#[test]
fn machines_that_go_without_a_notice_are_replaced_and_their_pods_told_of() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "vanish", 3, &OperatorOptions::default()).await.unwrap();
        for (index, node) in stage.nodes("vanisha").await.unwrap().iter().enumerate() {
            pod(&stage, "vanish", &node.name_any(), &format!("pod-{index}")).await;
        }
        // It holds every drain.
        let budget = json!({"metadata": {"name": "all"}, "spec": {"minAvailable": 3, "selector": {}}});
        create(&Api::<PodDisruptionBudget>::namespaced(stage.world.client.clone(), "vanish"), budget)
            .await
            .unwrap();
        let spec = json!({"amount": {"count": 2}, "method": "DeleteMachine",
            "limits": {"maxNodes": 2, "minReadyUnits": 1, "namespaces": ["vanish"]},
            "abort": {"unreadyBudgets": false}, "expect": {"replacedWithin": "1m", "minReadyUnits": 1}});
        drill(&stage, "d", spec).await.unwrap();
        let status = over(&stage, "d").await.unwrap();
        assert_eq!(status.phase, Some(DrillPhase::Succeeded), "{status:?}");
        let run: DrillRun = status.run.unwrap();
        for target in &run.targets {
            let times = [&target.intended_at, &target.asked_at, &target.gone_at, &target.replaced_at];
            assert!(times.iter().all(|time| time.is_some()), "{target:?}");
            let no_times = [&target.noticed_at, &target.cordoned_at, &target.drained_at];
            assert!(no_times.iter().all(|time| time.is_none()), "{target:?}");
            assert_eq!((target.pods.before, target.pods.evicted, target.pods.left), (1, 0, 1), "{target:?}");
        }
        assert_eq!((run.targets.len(), run.units.before, run.units.lowest, run.units.now), (2, 3, 1, 3));
        assert!(run.units.short_seconds > 0, "{:?}", run.units);

        let state = stage.world.sim.state().await.unwrap();
        let mut gone: Vec<(String, GoneReason)> = state
            .vms
            .iter()
            .filter(|vm| vm.pool.starts_with("vanish"))
            .filter_map(|vm| Some((vm.node.clone(), vm.gone_reason?)))
            .collect();
        let mut taken: Vec<(String, GoneReason)> =
            run.targets.iter().map(|target| (target.node.clone(), GoneReason::Deleted)).collect();
        gone.sort_by(|one, other| one.0.cmp(&other.0));
        taken.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(gone, taken, "no other machine went");
        let deletions =
            state.writes_to("vanisha").filter(|write| write.kind == "POST deleteMachines").count();
        assert_eq!((deletions, ordered(&stage).await), (1, 2), "both in one request, and each replaced once");

        let pool = stage
            .status_is("p", "both to count as losses", |status| {
                let losses = status.agent_pools.iter().filter_map(|pool| pool.losses.as_ref());
                losses.map(|losses| losses.count).sum::<i32>() == 2
            })
            .await
            .unwrap();
        assert!(pool.agent_pools.iter().all(|it| it.changed_elsewhere.is_none()), "{:?}", pool.agent_pools);
        let sole = pool.conditions.iter().find(|it| it.type_ == "SoleOwner").unwrap();
        assert_eq!(sole.status, "True", "{sole:?}");
        operator.stop().await.unwrap();
    });
}
