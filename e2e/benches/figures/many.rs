//! A hundred SpotPools, of ten nodes each, under one operator: until it knows all, while nothing happens, and with a notice in
//! each of them, one after the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use spotpool_e2e::wait::within;
use spotpool_e2e::{Profile, Programs, processes};

use crate::audit::millis;
use crate::burst::{noticed, writes};
use crate::report::{Figure, Goal, Report, median};
use crate::standin::{Scene, Shape, spot_pool, sum};

const FIGURES: [&str; 7] = [
    "pools_100_start",
    "pools_100_rss",
    "pools_100_idle_requests",
    "pools_100_idle_writes",
    "pools_100_notice_to_put",
    "pools_100_notice_to_put_p99",
    "pools_100_notice_writes",
];
const SPOT_POOLS: usize = 100;
const NODES_OF_EACH: usize = 10;
/// Until what follows from adoption is written.
const WARM: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_mins(2);
/// Long past what is good.
const LONGEST: Duration = Duration::from_mins(1);
/// What follows from the notices is written by then.
const AFTER: Duration = Duration::from_secs(10);

/// Measures, if any of it is asked for. Needs no cluster.
pub async fn measure(report: &mut Report, profile: Profile) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    // The build is no part of it.
    Programs::build(profile).await?;
    let began = Instant::now();
    let scene = Scene::start(Shape::many(SPOT_POOLS, NODES_OF_EACH), profile).await?;
    let start = began.elapsed().as_secs_f64();
    let figure = |name, unit, goal, runs| {
        Figure::new(name, unit, goal, runs)
            .with("nodes", SPOT_POOLS * NODES_OF_EACH)
            .with("spot_pools", SPOT_POOLS)
    };
    report.print(figure(FIGURES[0], "s", Goal::Max(900.0), vec![start]));
    tokio::time::sleep(WARM).await;
    let reconciles = async || {
        let text = scene.metrics().await?;
        Ok::<_, anyhow::Error>(sum(&text, "spotpool_operator_reconciles_total{", "result=\"Success\""))
    };
    let operator = scene.operator.id();
    let (before, cpu) = (reconciles().await?, processes::cpu_time(operator)?.0);
    scene.cluster.take_requests();
    tokio::time::sleep(IDLE).await;
    let idle = scene.cluster.take_requests();
    let minutes = IDLE.as_secs_f64() / 60.0;
    let used = processes::cpu_time(operator)?.0.saturating_sub(cpu);
    report.print(
        figure(FIGURES[1], "MiB", Goal::Max(100.0), vec![processes::memory(operator)?.resident])
            .with("peak", processes::peak(operator)?.round())
            .with("cpu_percent", (used.as_secs_f64() / IDLE.as_secs_f64() * 100.0).round())
            .with("reconciles_a_minute", ((reconciles().await? - before) / minutes).round()),
    );
    let all = idle.values().sum::<usize>() as f64 / minutes;
    report.print(figure(FIGURES[2], "a minute", Goal::Max(60.0), vec![all]).with("kinds", json!(idle)));
    report.print(figure(FIGURES[3], "a minute", Goal::Max(10.0), vec![writing(&idle) as f64 / minutes]));

    let began = Timestamp::now();
    let mut puts = Vec::new();
    for at in 0..SPOT_POOLS {
        let (agent_pool, told) = (spot_pool(at), Timestamp::now());
        for node in noticed(&scene, at..at + 1, 1) {
            scene.cluster.changed(&node);
        }
        let put = within(LONGEST, "the replacement to be asked for", async || {
            Ok(writes(&scene, told).into_iter().find(|write| write.pool == agent_pool))
        });
        puts.push(millis(told, put.await.with_context(|| scene.cluster.plans())?.at));
    }
    tokio::time::sleep(AFTER).await;
    let asked = writes(&scene, began);
    let machines: usize = asked.iter().map(|write| write.machines_ordered.len()).sum();
    ensure!((asked.len(), machines) == (SPOT_POOLS, SPOT_POOLS), "for {SPOT_POOLS} notices: {asked:?}");
    puts.sort_by(f64::total_cmp);
    report.print(figure(FIGURES[4], "ms", Goal::Max(500.0), puts.clone()).value(median(&puts)));
    let p99 = puts[SPOT_POOLS * 99 / 100 - 1];
    report.print(figure(FIGURES[5], "ms", Goal::Max(2000.0), puts).value(p99));
    let asked = scene.cluster.take_requests();
    let each = writing(&asked) as f64 / SPOT_POOLS as f64;
    report.print(figure(FIGURES[6], "a notice", Goal::None, vec![each]).with("kinds", json!(asked)));
    scene.stop().await
}

/// Those that write.
fn writing(requests: &BTreeMap<String, usize>) -> usize {
    requests.iter().filter(|(kind, _)| !kind.starts_with("GET")).map(|(_, count)| count).sum()
}
