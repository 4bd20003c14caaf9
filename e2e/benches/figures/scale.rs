//! What the operator takes in a cluster of 5,000 nodes and 100,000 pods that come and go.

use std::time::Duration;

use anyhow::{Context, Result};
use spotpool_e2e::{Profile, processes};

use crate::report::{Figure, Goal, Report};
use crate::standin::{CHURN, NODES, PODS, Scene, Shape, WORKLOADS, value};

const FIGURES: [&str; 3] = ["operator_rss_5000_nodes", "operator_cpu_5000_nodes", "floor_2000_budgets"];
/// After the first answers, until memory has settled.
const WARM: Duration = Duration::from_secs(20);
/// For how long it is watched.
const TIME: Duration = Duration::from_mins(1);

/// Measures, if any of it is asked for. Needs no cluster.
pub async fn measure(report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let scene = Scene::start(Shape::one(), Profile::Release).await?;
    tokio::time::sleep(WARM).await;
    let surveyed = |text: &str| {
        let of = |part: &str| value(text, &format!("spotpool_operator_survey_seconds_{part}"), "");
        of("sum").zip(of("count")).context("the operator does not count surveys")
    };
    let operator = scene.operator.id();
    let (before, cpu) = (surveyed(&scene.metrics().await?)?, processes::cpu_time(operator)?);
    let mut resident = Vec::new();
    for _ in 0..TIME.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident.push(processes::memory(operator)?.resident);
    }
    let most = resident.iter().copied().fold(0.0, f64::max);
    let text = scene.metrics().await?;
    let (after, used) = (surveyed(&text)?, processes::cpu_time(operator)?);
    let peak = processes::peak(operator)?;
    report.print(
        Figure::new(FIGURES[0], "MiB", Goal::Max(250.0), resident)
            .value(most)
            .with("peak", peak.round())
            .with("nodes", NODES)
            .with("pods", PODS)
            .with("churn", CHURN),
    );
    let cpu = used.0.saturating_sub(cpu.0).as_secs_f64() / TIME.as_secs_f64() * 100.0;
    report.print(Figure::new(FIGURES[1], "% of a CPU", Goal::None, vec![cpu]));
    let surveys = after.1 - before.1;
    let each = (after.0 - before.0) / surveys.max(1.0) * 1000.0;
    report.print(
        Figure::new(FIGURES[2], "ms", Goal::Max(250.0), vec![each])
            .with("surveys", surveys)
            .with("budgets", WORKLOADS)
            .with("units", value(&text, "spotpool_operator_floor_units{", "needed")),
    );
    scene.stop().await
}
