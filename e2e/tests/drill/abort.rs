//! Ended before its time.

use std::time::Duration;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_crds::drill::DrillPhase;
use spotpool_crds::{EvictionDrillStatus, SpotPool, SpotPoolStatus};
use spotpool_e2e::objects::create;
use spotpool_e2e::{OperatorOptions, Stage, eventually, run};

use crate::{EVICTIONS, drill, drill_is, is_open, ordered, over, pod, whole, world};

/// A rehearsal of all nodes, one after another, until the first is drained.
async fn begin(stage: &Stage<'_>) {
    let spec = json!({"amount": {"all": true}, "stagger": "8s", "notice": "5m"});
    drill(stage, "d", spec).await.unwrap();
    drill_is(stage, "d", "the first node to be drained", drained).await.unwrap();
}

fn asked(status: &EvictionDrillStatus) -> usize {
    let targets = status.run.iter().flat_map(|run| &run.targets);
    targets.filter(|target| target.intended_at.is_some()).count()
}

fn drained(status: &EvictionDrillStatus) -> bool {
    status.run.iter().flat_map(|run| &run.targets).any(|target| target.drained_at.is_some())
}

/// It has ended for `why`, soon, asked for nothing more, and opened what it had closed.
async fn is_aborted(stage: &Stage<'_>, why: &str) {
    let status = over(stage, "d").await.unwrap();
    assert_eq!(status.phase, Some(DrillPhase::Aborted), "{status:?}");
    assert!(
        status.message.contains(why) && status.message.contains("all is whole again"),
        "{}",
        status.message
    );
    assert!(asked(&status) < 3, "one node after the other, and the end came before the last: {status:?}");
    let agent_pool = format!("{}a", stage.name);
    eventually("all nodes to be open", async || {
        Ok(stage.nodes(&agent_pool).await?.iter().all(is_open).then_some(()))
    })
    .await
    .unwrap();
    let before = asked(&status);
    tokio::time::sleep(Duration::from_secs(9)).await;
    let later = drill_is(stage, "d", "the drill", |_| true).await.unwrap();
    assert_eq!(
        (later.phase, asked(&later)),
        (Some(DrillPhase::Aborted), before),
        "nothing more is asked for"
    );
    assert_eq!(ordered(stage).await, 0);
}

#[test]
fn a_real_eviction_ends_a_drill_and_its_nodes_are_opened() {
    run(async {
        let _alone = EVICTIONS.write().await;
        let (stage, operator) = whole(world().await, "real", 3, &OperatorOptions::default()).await.unwrap();
        // Of no SpotPool: a wave that takes others may take these next.
        stage.agent_pools(&[PoolSpec::spot("realother", "Standard_D4s_v5", 1)]).await.unwrap();
        let other = stage.nodes("realother").await.unwrap()[0].name_any();
        begin(&stage).await;
        stage.world.sim.evict_some("realother", 1, Duration::from_secs(10)).await.unwrap();
        is_aborted(
            &stage,
            &format!("1 nodes are under an eviction notice that the drill did not ask for: {other}"),
        )
        .await;
        eventually("the notice to be over", async || {
            Ok(stage.nodes("realother").await?.is_empty().then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}

#[test]
fn a_budget_in_trouble_ends_a_drill_and_its_nodes_are_opened() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "budget", 3, &OperatorOptions::default()).await.unwrap();
        begin(&stage).await;
        let open: Vec<_> = stage.nodes("budgeta").await.unwrap().into_iter().filter(is_open).collect();
        pod(&stage, "budget", &open[0].name_any(), "web").await;
        let budget = json!({"metadata": {"name": "web"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
        create(&Api::<PodDisruptionBudget>::namespaced(stage.world.client.clone(), "budget"), budget)
            .await
            .unwrap();
        is_aborted(
            &stage,
            "1 disruption budgets have fewer healthy pods than they ask for: budget/web (1 of 2)",
        )
        .await;
        operator.stop().await.unwrap();
    });
}

/// A game day is over before the month's error budget is.
#[test]
fn an_objective_that_burns_ends_a_drill_and_its_nodes_are_opened() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "burns", 3, &OperatorOptions::default()).await.unwrap();
        let strict = Patch::Merge(json!({"spec": {"objective": {"availability": "99.99"}}}));
        let pools = Api::<SpotPool>::namespaced(stage.world.client.clone(), &stage.name);
        pools.patch("p", &PatchParams::default(), &strict).await.unwrap();
        stage
            .status_is("p", "the objective to be kept", |status| objective(status) == "ObjectiveKept")
            .await
            .unwrap();
        let spec = json!({"amount": {"all": true}, "stagger": "5m", "notice": "5m"});
        drill(&stage, "d", spec).await.unwrap();
        let status = over(&stage, "d").await.unwrap();
        assert_eq!((status.phase, asked(&status)), (Some(DrillPhase::Aborted), 1), "{status:?}");
        let words = &status.message;
        assert!(words.contains("abort.objectiveBurning: ") && words.contains("error budget"), "{words}");
        eventually("all nodes to be open", async || {
            Ok(stage.nodes("burnsa").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        operator.stop().await.unwrap();
    });
}

fn objective(status: &SpotPoolStatus) -> &str {
    status.conditions.iter().find(|it| it.type_ == "ObjectiveMet").map_or("", |it| it.reason.as_str())
}
