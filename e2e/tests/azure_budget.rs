//! What an operator that has nothing to do costs its subscription in requests, which all of its clusters share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use spotpool_azure_sim::model::Subscription;
use spotpool_e2e::simulation::Simulation;
use spotpool_e2e::steady::{self, Steady};

fn simulate<T>(what: impl Future<Output = Result<T>>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(what).unwrap()
}

/// The bucket holds 60 requests and gets one a second, for every cluster of the subscription together.
#[test]
fn an_idle_operator_reads_at_most_40_times_an_hour() {
    let hours = simulate(steady::run(Steady { agent_pools: 20, hours: 3, ..Steady::default() }));
    let reads = hours.reads_an_hour();
    assert!((1.0..=40.0).contains(&reads), "{reads} reads an hour: {:?}", hours.requests);
    assert_eq!(hours.writes, 0, "nothing was to be done");
}

/// Also when an outage ends for all of them at the same moment.
#[test]
fn forty_clusters_do_not_overrun_the_bucket_that_they_share() {
    let clusters = Steady { agent_pools: 2, hours: 2, clusters: 40, outage: Duration::from_mins(20) };
    let hours = simulate(steady::run(clusters));
    assert_eq!(hours.overrun, 0, "requests for which the subscription's bucket had nothing left");
    assert!(hours.reads_an_hour() <= 40.0 * 40.0);
}

/// Whoever goes on at the same pace after a 429 keeps the bucket empty for everybody.
#[test]
fn lists_become_rarer_after_a_429_and_come_back_to_their_pace() {
    simulate(async {
        let start: Timestamp = "2026-08-01T00:00:00Z".parse()?;
        let cloud = steady::cloud("one", 2, &Subscription::default(), start)?;
        let mut simulation = Simulation::start(cloud, &steady::spec(2), start, 1)?;
        let hour = async |simulation: &mut Simulation| -> Result<u64> {
            let before = lists(simulation);
            for _ in 0..120 {
                simulation.step(Duration::from_secs(30)).await?;
            }
            Ok(lists(simulation) - before)
        };
        hour(&mut simulation).await?;
        let calm = hour(&mut simulation).await?;
        simulation.refuse_everything(Some(429));
        let throttled = hour(&mut simulation).await?;
        simulation.refuse_everything(None);
        assert!(throttled == 0, "none of them arrived");
        let asked = simulation.refused();
        assert!(asked >= 2, "Azure is asked again now and then");
        assert!(asked * 2 < calm, "{asked} requests in an hour of 429s, {calm} in a calm one");
        hour(&mut simulation).await?;
        let after = hour(&mut simulation).await?;
        assert!(after + 2 >= calm && after <= 40, "{after} lists an hour later, {calm} before");
        Ok(())
    });
}

fn lists(simulation: &Simulation) -> u64 {
    simulation.cloud().arm_requests.get("GET list").copied().unwrap_or_default()
}
