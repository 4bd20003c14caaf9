//! `cargo bench -p spotpool-e2e [-- FILTER]`: what SpotPool promises in numbers, measured with the programs as they
//! are shipped on a real control plane, one JSON line a figure.

mod arm;
mod audit;
mod budgets;
mod burst;
mod fallback;
mod idle;
mod load;
mod machine;
mod many;
mod mass;
mod nodes;
mod notice;
mod plan;
mod raw;
mod report;
mod scale;
mod standin;
mod storm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use spotpool_e2e::{Profile, World, WorldOptions};
use spotpool_e2e_cluster::ClusterOptions;

use crate::nodes::Nodes;
use crate::report::Report;

/// Measures, and prints one JSON line a figure.
#[derive(Parser)]
#[command(name = "cargo bench -p spotpool-e2e --")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command")]
struct Args {
    /// Only figures whose name contains this.
    filter: Option<String>,
    /// End with 1 when a goal is missed.
    #[arg(long)]
    check: bool,
    /// Write the figures down in docs/benchmarks.json.
    #[arg(long)]
    keep: bool,
    /// The programs as `cargo test` builds them: to try a figure, or for what is counted.
    #[arg(long)]
    dev: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the bare program that evictions are compared with.
    #[arg(long, hide = true, value_name = "KUBECONFIG")]
    raw: Option<PathBuf>,
    /// How many requests of the bare program are in flight at a time.
    #[arg(long, hide = true, default_value_t = raw::CONCURRENCY)]
    raw_concurrency: usize,
}

fn main() -> ExitCode {
    let done = match of_cargo_test() {
        Some(true) => spotpool_e2e::run(tried()),
        Some(false) => Ok(()),
        None => of_cargo_bench(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmarks failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether `cargo test` asks for this one: it gives the flags and the filter of the standard harness.
fn of_cargo_test() -> Option<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ours = |arg: &String| ["--bench", "--raw", "--help", "-h"].contains(&arg.as_str());
    let mut filters = args.iter().filter(|arg| !arg.starts_with('-'));
    (!args.iter().any(ours)).then(|| !args.iter().any(|arg| arg == "--list") && filters.next().is_none())
}

fn of_cargo_bench(args: &Args) -> Result<()> {
    if let Some(kubeconfig) = &args.raw {
        return raw::run(kubeconfig, args.raw_concurrency);
    }
    let missed = all(args)?;
    ensure!(missed == 0 || !args.check, "{missed} goals are missed");
    Ok(())
}

/// Measures; returns how many goals were missed.
fn all(args: &Args) -> Result<u32> {
    let mut report = Report::new(args.filter.clone(), args.keep);
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    plan::measure(&mut report)?;
    arm::measure(&mut report)?;
    fallback::measure(&mut report)?;
    spotpool_e2e::run(scale::measure(&mut report))?;
    spotpool_e2e::run(burst::measure(&mut report))?;
    spotpool_e2e::run(many::measure(&mut report, profile))?;
    // These need no cluster.
    let alone = ["arm_", "plan_", "fallback_", "operator_", "floor_", "mass_notice_", "pools_"];
    let bare = |filter: &String| alone.iter().any(|name| filter.starts_with(name));
    if !args.filter.as_ref().is_some_and(bare) {
        spotpool_e2e::run(figures(&mut report, profile))?;
    }
    Ok(report.missed())
}

/// A control plane with SpotPool on it.
async fn start(profile: Profile) -> Result<(World, Nodes)> {
    let mut cluster = ClusterOptions::default();
    cluster.audit_log = true;
    let world = World::start(WorldOptions {
        profile,
        boot_time: Duration::from_secs(2),
        cluster,
        ..WorldOptions::default()
    })
    .await?;
    spotpool_e2e::objects::apply(&world.client, nodes::NAMESPACE_MANIFEST, |_| ()).await?;
    let nodes = Nodes::watch(world.cluster.client().await?);
    Ok((world, nodes))
}

/// Evictions by agents and by the bare program, a few of each: whether they can be measured, not how quick they are.
async fn tried() -> Result<()> {
    eprintln!("trying whether it can be measured; the figures mean nothing");
    let (world, nodes) = start(Profile::Dev).await?;
    mass::measure(&world, &nodes, mass::Size::TRIED, &mut Report::new(None, false)).await?;
    nodes.stop();
    world.stop().await
}

/// Those that are measured on a real control plane.
async fn figures(report: &mut Report, profile: Profile) -> Result<()> {
    eprintln!("building SpotPool as it is shipped; the first time this takes minutes …");
    let before = machine::busy(Duration::from_secs(1)).await?;
    let (world, nodes) = start(profile).await?;

    let idle = idle::measure(&world, report).await?;
    storm::measure(&world, report).await?;
    budgets::measure(&world, report).await?;
    notice::measure(&world, &nodes, report).await?;
    // All this time it had nothing to do.
    if let Some(idle) = idle {
        idle.finish(&world, report).await?;
    }
    mass::measure(&world, &nodes, mass::Size::WHOLE, report).await?;
    load::measure(&world, report).await?;

    nodes.stop();
    world.stop().await?;
    let after = machine::busy(Duration::from_secs(1)).await?;
    eprintln!(
        "other work on this machine: {:.0} % of its CPUs before, {:.0} % after; {} goals missed",
        before * 100.0,
        after * 100.0,
        report.missed()
    );
    Ok(())
}
