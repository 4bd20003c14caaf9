//! What an operator that has nothing to do costs its subscription in requests, which all of its clusters share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::json;
use spotpool_azure_sim::api::{EventRequest, Identity, PoolSpec, Settings, Targets};
use spotpool_azure_sim::model::{Cloud, Subscription};
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

/// Reads of one agent pool that take minutes keep nobody waiting, and come to their end.
#[test]
fn an_agent_pool_of_many_pages_is_listed_while_others_are_served() {
    const PAGES: u32 = 50;
    simulate(async {
        let start: Timestamp = "2026-08-01T00:00:00Z".parse()?;
        let mut settings = Settings::default();
        let switches = json!({"throttling": true, "machinesPerPage": 1});
        settings.switches = settings.switches.with(&switches).map_err(anyhow::Error::msg)?;
        let mut cloud = Cloud::new(Identity::default(), settings, false, 1);
        cloud.add_pool(&PoolSpec::spot("large", "Standard_D4s_v5", PAGES), start)?;
        cloud.add_pool(&PoolSpec::spot("small", "Standard_D8s_v5", 3), start)?;
        let pools = json!([{"name": "large", "maxNodes": 60}, {"name": "small", "maxNodes": 4}]);
        let spec = json!({"replicas": PAGES + 3, "agentPools": pools, "placement": {"maxSharePerPool": 100}});
        let mut simulation = Simulation::start(cloud, &spec, start, 1)?;
        let evict = |simulation: &Simulation, pool: &str, machines: u32| {
            let event =
                EventRequest::new("Preempt", Targets::of_pool(pool, machines), Duration::from_secs(30));
            simulation.sim.change(|cloud, now| cloud.schedule(&event, now)).unwrap();
        };
        let puts = |simulation: &Simulation, pool: &str| simulation.cloud().writes_to(pool).count();
        // VMs that are lost young say something else of their agent pool.
        for _ in 0..40 {
            simulation.step(Duration::from_secs(30)).await?;
        }
        simulation.restart()?;
        let read =
            |simulation: &Simulation| (simulation.cloud().arm_requests["GET machines"], lists(simulation));
        let before = read(&simulation);
        for _ in 0..15 {
            simulation.step(Duration::from_secs(1)).await?;
        }
        assert!(read(&simulation).0 - before.0 < u64::from(PAGES), "the large one cannot be known yet");
        evict(&simulation, "small", 1);
        for _ in 0..15 {
            simulation.step(Duration::from_secs(1)).await?;
        }
        assert_eq!((puts(&simulation, "small"), puts(&simulation, "large")), (1, 0));
        for _ in 0..240 {
            simulation.step(Duration::from_secs(1)).await?;
        }
        // One more than the small one takes.
        evict(&simulation, "large", 2);
        for _ in 0..15 {
            simulation.step(Duration::from_secs(1)).await?;
        }
        assert_eq!(puts(&simulation, "large"), 1, "listed by now, and asked");
        let (pages, lists) = (read(&simulation).0 - before.0, read(&simulation).1 - before.1);
        assert!(pages < 2 * u64::from(PAGES), "{pages} pages read: hardly one twice");
        assert!(lists <= 20, "{lists} lists of agent pools: they do not take what pages wait for");
        Ok(())
    });
}

fn lists(simulation: &Simulation) -> u64 {
    simulation.cloud().arm_requests.get("GET list").copied().unwrap_or_default()
}
