//! How long a cluster is short when Azure has no spot: the operator and the simulator in simulated time, at Azure's pace
//! (100 s for a VM to boot), with every setting at its default.
//!
//! The cluster autoscaler gives a scale-up `max-node-provision-time`, 15 minutes in the AKS profile, before it tries
//! another agent pool; the boot of what it tries then comes on top.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::json;
use spotpool_azure_sim::api::{
    Capacity, EventRequest, Identity, OperationState, OperationStatus, PoolSpec, Priority, Settings, Targets,
};
use spotpool_azure_sim::model::Cloud;
use spotpool_e2e::simulation::Simulation;

use crate::report::{Figure, Goal, Report, rounded};

const FIGURES: [&str; 3] =
    ["fallback_simulated_lost", "fallback_simulated_refused", "fallback_simulated_silent"];
/// `max-node-provision-time` of the cluster autoscaler.
const AUTOSCALER: f64 = 15.0 * 60.0;
const SIZE: &str = "Standard_D4s_v5";
const NODES: u32 = 10;
/// So many are lost, or wanted more.
const MISSING: u32 = 4;
const STEP: Duration = Duration::from_secs(1);
const NOTICE: Duration = Duration::from_secs(30);

/// What happens to spot.
#[derive(Clone, Copy)]
enum Course {
    /// Azure takes nodes back and has no others.
    Lost,
    /// More is wanted; the order is accepted and its operation fails.
    Refused,
    /// More is wanted; the order is accepted, and nothing comes of it.
    Silent,
}

/// Measures, if any of it is asked for. To be called outside of a runtime.
pub fn measure(report: &mut Report) -> Result<()> {
    let courses = [Course::Lost, Course::Refused, Course::Silent];
    for (name, course) in FIGURES.into_iter().zip(courses) {
        if !report.wants(&[name]) {
            continue;
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        let took = runtime.block_on(run(course)).with_context(|| name.to_owned())?;
        report.print(
            Figure::new(name, "s", Goal::Max(AUTOSCALER), vec![took])
                .with("of_cluster_autoscalers_15_min", rounded(took / AUTOSCALER))
                .with("boot", Settings::default().boot_time.as_secs()),
        );
    }
    Ok(())
}

/// Seconds from the notice, Azure's refusal or the order until on-demand is Ready in the stead of all that is missing.
async fn run(course: Course) -> Result<f64> {
    let start: Timestamp = "2026-08-01T00:00:00Z".parse()?;
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 1);
    let mut spot = PoolSpec::spot("spot", SIZE, NODES);
    if matches!(course, Course::Silent) {
        spot = spot.switches(json!({"bootTime": "10h", "operationTime": "10h"}));
    }
    cloud.add_pool(&spot, start)?;
    cloud.add_pool(&PoolSpec::regular("regular", SIZE, 0), start)?;
    if !matches!(course, Course::Silent) {
        cloud.set_capacity(Capacity::of(SIZE, Priority::Spot, Some(0)));
    }
    let pools = json!([{"name": "spot", "maxNodes": 20}, {"name": "regular", "maxNodes": 20}]);
    let spec = json!({"replicas": NODES, "agentPools": pools, "fallback": {"maxNodes": 10}});
    let mut simulation = Simulation::start(cloud, &spec, start, 1)?;
    for _ in 0..300 {
        simulation.step(STEP).await?;
    }
    let ready = simulation.pool.status.as_ref().map(|status| status.ready_replicas);
    if ready != Some(NODES as i32) {
        bail!("{ready:?} of {NODES} are ready before anything happens");
    }
    let began = simulation.now();
    match course {
        Course::Lost => {
            let request = EventRequest::new("Preempt", Targets::of_pool("spot", MISSING), NOTICE);
            simulation.sim.change(|cloud, now| cloud.schedule(&request, now))?;
        }
        Course::Refused | Course::Silent => simulation.pool.spec.replicas += MISSING as i32,
    }
    for _ in 0..3600 {
        simulation.step(STEP).await?;
        let ready = simulation.pool.status.as_ref().map_or(0, |status| status.capacity.ready_on_demand);
        if ready >= MISSING as i32 {
            let refused = |operation: &OperationState| {
                let failed = operation.pool == "spot" && operation.status == OperationStatus::Failed;
                operation.ended_at.filter(|_| failed)
            };
            let since = match course {
                Course::Lost | Course::Silent => began,
                Course::Refused => {
                    simulation.cloud().operations.iter().find_map(refused).context("nothing was refused")?
                }
            };
            return Ok(simulation.now().duration_since(since).as_secs_f64());
        }
    }
    let plan = simulation.pool.status.clone().unwrap_or_default().plan;
    bail!("no on-demand stands in after an hour: {plan:?}")
}
