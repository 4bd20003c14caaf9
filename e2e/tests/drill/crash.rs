//! The operator dies at every single write of a drill, comes back, and no machine more is evicted or bought.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use spotpool_crds::drill::DrillPhase;
use spotpool_e2e::faults::Fault;
use spotpool_e2e::proxy::{Proxy, Spring};
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, eventually, run};

use crate::{EVICTIONS, drill, drills, ordered, whole, world};

/// Cases that run side by side.
const AT_ONCE: usize = 6;

/// At which of the writes whose paths hold this the operator is killed, and how.
type Trap = (&'static str, usize, Fault);

/// One drill of one of two nodes, with the operator killed as told; returns what it wrote.
async fn drilled(world: &World, name: &str, method: &str, trap: Option<Trap>) -> Result<Vec<String>> {
    // The proxy asks as the operator of this stage.
    let proxy =
        Proxy::start(&Stage::set(world, name).await?.operator_kubeconfig().await?, world.sim.base_url())
            .await?;
    let options = OperatorOptions {
        kubernetes: Some(proxy.kubernetes.clone()),
        azure_endpoint: Some(proxy.arm.clone()),
        ..OperatorOptions::default()
    };
    let (stage, mut operator) = whole(world, name, 2, &options).await?;
    proxy.take_writes();
    if let Some((of, nth, fault)) = trap {
        proxy.trap_of(of, nth, Spring::Fault(fault), operator.process.clone());
    }
    // Those beside it evict, too; and what happens while no operator is there, nobody sees.
    let spec = json!({"amount": {"count": 1}, "method": method, "abort": {"realEvictions": false}, "expect": {"drainedInTime": false}});
    drill(&stage, "d", spec).await?;
    let end = eventually("the end of the drill", async || {
        if operator.process.exit_status().is_some() {
            operator = stage.operator(&options).await?;
        }
        let status = drills(&stage).get("d").await?.status.unwrap_or_default();
        let is_over = status.phase.is_some_and(|phase| phase != DrillPhase::Pending && !phase.is_under_way());
        Ok(is_over.then_some(status))
    });
    let status = end.await.with_context(|| format!("{trap:?}; writes {:?}", proxy.writes()))?;
    ensure!(status.phase == Some(DrillPhase::Succeeded), "{trap:?}: {status:?}");
    let state = world.sim.state().await?;
    let evicted = state.vms.iter().filter(|vm| vm.pool.starts_with(name) && vm.gone_reason.is_some()).count();
    let bought = ordered(&stage).await;
    ensure!((evicted, bought) == (1, 1), "{trap:?}: {evicted} evicted, {bought} bought");
    // The last of all may not come again.
    let has_sprung = trap.is_none_or(|(of, ..)| of.is_empty()) || proxy.sprung();
    ensure!(has_sprung, "{trap:?}: never sprang");
    let writes = proxy.writes().into_iter().map(|write| write.what).collect();
    operator.stop().await?;
    Ok(writes)
}

#[test]
fn an_operator_killed_at_any_write_of_a_drill_evicts_and_buys_no_machine_more() {
    run(async {
        let world = World::start(WorldOptions::default()).await.unwrap();
        let writes = drilled(&world, "reference", "SimulateEviction", None).await.unwrap().len();
        assert!((8..60).contains(&writes), "{writes} writes");
        let cases = (1..=writes).flat_map(|nth| [(nth, Fault::KillBefore), (nth, Fault::KillAfter)]);
        let world_of = &world;
        let runs = cases.map(|(nth, fault)| async move {
            let letter = if fault == Fault::KillBefore { 'x' } else { 'y' };
            let number = [nth / 26, nth % 26].map(|digit| char::from(b'a' + u8::try_from(digit).unwrap()));
            let name = format!("k{letter}{}{}", number[0], number[1]);
            drilled(world_of, &name, "SimulateEviction", Some(("", nth, fault))).await
        });
        futures::stream::iter(runs).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await.unwrap();
        world.stop().await.unwrap();
    });
}

/// AKS takes what it is told to delete, by name, and tells nobody who asked.
#[test]
fn an_operator_killed_when_it_asks_for_a_deletion_deletes_and_buys_no_machine_more() {
    run(async {
        let _calm = EVICTIONS.read().await;
        let world = world().await;
        // Writes of the SpotPool's may come before it, or after: so it is not waited for by its number.
        let killed = [("delx", Fault::KillBefore), ("dely", Fault::KillAfter)]
            .map(|(name, fault)| drilled(world, name, "DeleteMachine", Some(("/deleteMachines", 1, fault))));
        futures::future::try_join_all(killed).await.unwrap();
    });
}
