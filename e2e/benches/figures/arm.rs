//! What an operator asks of Azure while nothing happens, in a day of simulated time.

use std::time::Duration;

use anyhow::{Context, Result};
use spotpool_e2e::steady::{self, Asked, Steady};

use crate::report::{Figure, Goal, Report};

const FIGURES: [&str; 3] = ["arm_idle_reads", "arm_idle_writes", "arm_shared_bucket_lowest"];

/// Measures, if any of it is asked for. To be called outside of a runtime.
pub fn measure(report: &mut Report) -> Result<()> {
    if report.wants(&FIGURES[..2]) {
        let one = Steady::default();
        eprintln!("one operator with {} agent pools, {} simulated hours …", one.agent_pools, one.hours);
        let asked = simulate(one)?;
        let mut figure = Figure::new(FIGURES[0], "requests/h", Goal::Max(40.0), vec![asked.reads_an_hour()])
            .with("agentPools", one.agent_pools);
        for (kind, count) in &asked.requests {
            figure = figure.with(kind, (*count as f64 / f64::from(one.hours) * 100.0).round() / 100.0);
        }
        report.print(figure);
        report.print(Figure::new(FIGURES[1], "requests", Goal::Max(0.0), vec![asked.writes as f64]));
    }
    if report.wants(&FIGURES[2..]) {
        let many = Steady { agent_pools: 3, hours: 6, clusters: 40, outage: Duration::from_mins(20) };
        eprintln!("{} operators in one subscription, {} simulated hours …", many.clusters, many.hours);
        let asked = simulate(many)?;
        report.print(
            Figure::new(FIGURES[2], "of 60 requests", Goal::Min(1.0), vec![f64::from(asked.lowest)])
                .with("clusters", many.clusters)
                .with("overrun", asked.overrun)
                .with("readsAnHour", asked.reads_an_hour().round()),
        );
    }
    Ok(())
}

fn simulate(steady: Steady) -> Result<Asked> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(steady::run(steady)).context("the simulated hours")
}
