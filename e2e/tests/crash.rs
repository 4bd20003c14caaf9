//! The operator dies at single writes of an eviction, comes back, and the end is the same.
//!
//! Here on a real control plane: at every third write, which one first by `SPOTPOOL_SEED`, or at each with
//! `SPOTPOOL_CRASHES=all`. In simulated time (`faults`) it dies at every one of them in each run of CI.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::proxy::{Proxy, Spring};
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

/// Cases that run side by side.
const AT_ONCE: usize = 4;
const NOTICE: Duration = Duration::from_secs(4);

/// One eviction from notice to failback, with the operator killed as told; returns how many writes it took.
async fn evict(world: &World, name: &str, trap: Option<(usize, Spring)>) -> Result<usize> {
    let stage = Stage::set(world, name).await?;
    let (a, b, regular) = (format!("{name}a"), format!("{name}b"), format!("{name}r"));
    let size = "Standard_D4s_v5";
    stage
        .agent_pools(&[
            PoolSpec::spot(&a, size, 1),
            PoolSpec::spot(&b, size, 1),
            PoolSpec::regular(&regular, size, 0),
        ])
        .await?;
    let kubeconfig = stage.operator_kubeconfig().await?;
    let proxy = Proxy::start(&kubeconfig, world.sim.base_url()).await?;
    let options = OperatorOptions {
        kubernetes: Some(proxy.kubernetes.clone()),
        azure_endpoint: Some(proxy.arm.clone()),
        ..OperatorOptions::default()
    };
    let mut operator = stage.operator(&options).await?;
    let agent_pools =
        json!([{"name": a, "maxNodes": 4}, {"name": b, "maxNodes": 4}, {"name": regular, "maxNodes": 4}]);
    let failback = json!({"stabilization": "1s", "minOnDemandLifetime": "1s"});
    let fallback = json!({"maxNodes": 2});
    let spec = json!({"replicas": 2, "agentPools": agent_pools, "fallback": fallback, "failback": failback});
    stage.spot_pool("p", spec).await?;
    stage
        .status_is("p", "2 ready", |status| {
            let settled =
                status.conditions.iter().any(|it| it.type_ == "Reconciling" && it.status == "False");
            status.ready_replicas == 2 && settled
        })
        .await?;
    eventually("labels on the nodes", async || {
        let nodes = [stage.nodes(&a).await?, stage.nodes(&b).await?].concat();
        let labelled = |node: &k8s_openapi::api::core::v1::Node| {
            kube::ResourceExt::labels(node).contains_key(spotpool_crds::names::POOL_LABEL)
        };
        Ok(nodes.iter().all(labelled).then_some(()))
    })
    .await?;

    proxy.take_writes();
    if let Some((nth, spring)) = trap {
        proxy.trap(nth, spring, operator.process.clone());
    }
    world.sim.evict_some(&a, 1, NOTICE).await?;
    let mut killed = false;
    let end = eventually("the end of the eviction", async || {
        if operator.process.exit_status().is_some() {
            killed = true;
            operator = stage.operator(&options).await?;
        }
        let state = world.sim.state().await?;
        let evicted = state.vms.iter().any(|vm| vm.pool == a && vm.gone_reason.is_some());
        let up = |pool: &str| state.vms_of(pool).count();
        let quiet =
            [&a, &b, &regular].iter().all(|pool| state.pool(pool).is_some_and(|it| it.operation.is_none()));
        let status = stage.status("p").await?;
        let calm = status.capacity.ready_spot == 2
            && status.fallback.nodes == 0
            && status.fallback.draining.is_empty()
            && status.agent_pools.iter().all(|pool| pool.operation.is_none());
        Ok((evicted && quiet && calm && up(&a) + up(&b) == 2 && up(&regular) == 0).then_some(state))
    })
    .await
    .with_context(|| format!("{trap:?}; writes {:?}", proxy.writes()));
    let end = match end {
        Ok(end) => end,
        Err(error) => return Err(error.context(serde_json::to_string(&stage.status("p").await?)?)),
    };
    let ordered = |pool: &str| end.writes_to(pool).map(|write| write.machines_ordered.len()).sum::<usize>();
    ensure!(
        ordered(&a) + ordered(&b) == 1,
        "{trap:?}: one spot node was lost, {} ordered",
        ordered(&a) + ordered(&b)
    );
    ensure!(ordered(&regular) <= 1, "{trap:?}: {} on-demand nodes ordered for one lost", ordered(&regular));
    let writes = proxy.take_writes().len();
    // Killed at the last write, the end is there before its death is seen.
    if !killed && trap.is_some_and(|(nth, _)| nth <= writes) {
        let died = async || Ok(operator.process.exit_status().map(drop));
        eventually(&format!("{trap:?}: the operator to be killed"), died).await?;
        operator = stage.operator(&options).await?;
    }
    operator.stop().await?;
    for pool in [&a, &b, &regular] {
        world.sim.remove_pool(pool).await?;
    }
    Ok(writes)
}

#[test]
fn killed_between_two_writes_the_operator_ends_where_it_would_have() {
    run(async {
        let options = WorldOptions { boot_time: Duration::from_secs(2), ..WorldOptions::default() };
        let world = World::start(options).await.unwrap();
        let writes = evict(&world, "cref", None).await.unwrap();
        eprintln!("an eviction takes {writes} writes");
        assert!(writes >= 6, "{writes} writes: the reference run did not do what it should");
        let seed: usize = std::env::var("SPOTPOOL_SEED").map_or(0, |seed| seed.parse().unwrap());
        let all = std::env::var("SPOTPOOL_CRASHES").is_ok_and(|which| which == "all");
        let cases = (1..=writes)
            .flat_map(|nth| [(nth, Spring::KillBefore), (nth, Spring::KillAfter)])
            .enumerate()
            .filter(move |(at, _)| all || at % 3 == seed % 3)
            .map(|(_, case)| case);
        let world = &world;
        let results: Vec<usize> = futures::stream::iter(cases)
            .map(|(nth, spring)| async move {
                let letter = if spring == Spring::KillBefore { 'x' } else { 'y' };
                let name = format!("c{letter}{nth}");
                evict(world, &name, Some((nth, spring)))
                    .await
                    .with_context(|| format!("write {nth}, {spring:?}"))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
            .unwrap();
        eprintln!("{} deaths survived", results.len());
    });
}
