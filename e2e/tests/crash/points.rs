//! At single writes of the operator, and at single events of its watch of Nodes.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt;
use spotpool_e2e::faults::courses::Course;
use spotpool_e2e::faults::{Fault, Plan, Wanted, sample};
use spotpool_e2e::proxy::{FAULTS, Spring};
use spotpool_e2e::{World, WorldOptions, eventually, run};

use crate::scene::{Ending, Scene};

/// How many crash points CI tries, and how many other faults; those that take half a minute to strike are left out.
const CRASHES: usize = 9;
const OTHERS: usize = 12;
const SLOW: [Fault; 2] = [Fault::Timeout, Fault::LandsLate];
/// Cases that run side by side.
const AT_ONCE: usize = 4;
const NOTICE: Duration = Duration::from_secs(4);

/// One eviction from notice to failback with a fault. Whether it has struck: writes are fewer at times.
async fn disturbed(world: &World, name: &str, plan: Plan, reference: &Ending) -> Result<bool> {
    let mut scene = Scene::set(world, name).await?;
    let victim = scene.operator.process.clone();
    scene.proxy.trap(plan.at, Spring::Fault(plan.fault), victim.clone());
    scene.evict(NOTICE).await?;
    scene.ends(Some(reference)).await?;
    let has_struck = scene.proxy.sprung();
    if has_struck && plan.fault.is_crash() {
        // Killed at the last write, the end is there before its death is seen.
        let died = async || Ok(victim.exit_status().map(drop));
        eventually("the operator to be killed", died).await?;
        scene.revive().await?;
        scene.ends(Some(reference)).await?;
    }
    scene.strike().await?;
    Ok(has_struck)
}

/// One without, how many writes it took, and of how many events it was told.
async fn undisturbed(world: &World) -> Result<(Ending, usize, usize)> {
    let mut scene = Scene::set(world, "fref").await?;
    scene.evict(NOTICE).await?;
    let (ending, writes) = scene.ends(None).await?;
    let events = scene.proxy.events();
    ensure!(writes >= 6 && events >= 3, "{writes} writes, {events} events: it did not do what it should");
    scene.strike().await?;
    Ok((ending, writes, events))
}

fn chosen(writes: usize, events: usize) -> Vec<Plan> {
    let plans = FAULTS.iter().flat_map(|fault| {
        let points = if fault.is_of_watch() { events } else { writes };
        (1..=points).map(|at| Plan { course: Course::Eviction, fault: *fault, at })
    });
    let all: Vec<Plan> = plans.collect();
    let wanted = Wanted::read().unwrap();
    if let Some(plans) = wanted.of(&all) {
        return plans;
    }
    let (crashes, mut others): (Vec<Plan>, Vec<Plan>) =
        all.into_iter().partition(|plan| plan.fault.is_crash());
    others.retain(|plan| !SLOW.contains(&plan.fault));
    [sample(crashes, wanted.seed, CRASHES), sample(others, wanted.seed, OTHERS)].concat()
}

#[test]
fn whatever_goes_wrong_at_one_point_of_an_eviction_it_ends_where_it_would_have() {
    run(async {
        let options = WorldOptions { boot_time: Duration::from_secs(2), ..WorldOptions::default() };
        let world = World::start(options).await.unwrap();
        let (reference, writes, events) = undisturbed(&world).await.unwrap();
        println!("an eviction takes {writes} writes, and the watch tells of {events} events");
        let plans = chosen(writes, events);
        let began = std::time::Instant::now();
        let results: Vec<(Plan, Result<bool>)> = futures::stream::iter(plans.into_iter().enumerate())
            .map(|(index, plan)| {
                let (world, reference) = (&world, &reference);
                async move {
                    let result = disturbed(world, &format!("f{index}x"), plan, reference).await;
                    match &result {
                        Ok(true) => println!("{plan}: the same end"),
                        Ok(false) => println!("{plan}: has not struck"),
                        Err(error) => println!("{plan}: {error:#}"),
                    }
                    (plan, result)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let of = |wanted: fn(&Result<bool>) -> bool| -> Vec<String> {
            let plans = results.iter().filter(|(_, result)| wanted(result));
            plans.map(|(plan, _)| plan.to_string()).collect()
        };
        let (failed, missed) = (of(Result::is_err), of(|result| matches!(result, Ok(false))));
        println!("{} plans in {:.0?}, {} have not struck", results.len(), began.elapsed(), missed.len());
        assert!(failed.is_empty(), "{} of {} plans failed: {failed:?}", failed.len(), results.len());
        assert!(missed.len() * 4 <= results.len(), "too many have not struck: {missed:?}");
        world.stop().await.unwrap();
    });
}
