//! `spotpool-lab`: what would this SpotPool have cost?

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use spotpool_crds::spot_pool::Role;
use spotpool_lab::input::BadInput;
use spotpool_lab::measure::Measured;
use spotpool_lab::optimum::least_cost;
use spotpool_lab::policy::{self, Policy, SpotPool};
use spotpool_lab::report::{self, Heading, html};
use spotpool_lab::scenario::{Scenario, Sources, TICK};
use spotpool_lab::simulate::Violation;
use spotpool_lab::trace::Polarity;
use spotpool_lab::tune::{Halves, tune, without_parts};
use spotpool_lab::{manifest, study, synthetic};

/// What a SpotPool would have cost, and what would have been ready: the plan that runs in production, in simulated time.
#[derive(Parser)]
#[command(name = "spotpool-lab", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays a SpotPool and the policies of others.
    Run {
        /// The file of a SpotPool.
        #[arg(long)]
        manifest: PathBuf,
        /// Plays the SpotPool without each of its parts, instead of the policies of others.
        #[arg(long)]
        parts: bool,
        #[command(flatten)]
        course: Course,
        #[command(flatten)]
        output: Output,
    },
    /// Plays two SpotPools of the same agent pools.
    Compare {
        /// The file of the one.
        one: PathBuf,
        /// The file of the other.
        other: PathBuf,
        #[command(flatten)]
        course: Course,
        #[command(flatten)]
        output: Output,
    },
    /// Proposes better numbers, sought on half of the seeds, or on the earlier half of a trace, and judged on the rest.
    Tune {
        /// The file of a SpotPool.
        #[arg(long)]
        manifest: PathBuf,
        /// What a missing unit costs you an hour; three times its price on demand if not given.
        #[arg(long, value_parser = price)]
        missing_price: Option<f64>,
        /// Writes the outcome as JSON instead.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        course: Course,
    },
}

/// What happens.
#[derive(Args)]
struct Course {
    /// Role, size, zones, price and boot of each agent pool, in YAML. A history has them already.
    #[arg(long)]
    cloud: Option<PathBuf>,
    /// A trace; `NAME=FILE` if it does not say of which agent pool it is. May be repeated.
    #[arg(long = "trace", value_name = "[NAME=]FILE")]
    traces: Vec<String>,
    /// What a 1 means in a trace of zeros and ones that does not say it.
    #[arg(long, value_enum)]
    polarity: Option<Polarity>,
    /// What is wanted over time: lines of `seconds,units`.
    #[arg(long)]
    demand: Option<PathBuf>,
    /// Draws evictions, refusals and prices instead of reading traces.
    #[arg(long, conflicts_with = "traces")]
    synthetic: bool,
    /// How long a synthetic course lasts.
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u16).range(1..=366))]
    days: u16,
    /// The seed; the first of several.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many synthetic courses; figures are means.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,
    /// Seconds between two looks.
    #[arg(long, default_value_t = TICK, value_parser = clap::value_parser!(i64).range(1..=3600))]
    tick: i64,
}

#[derive(Args)]
struct Output {
    /// Writes the figures as JSON to standard output instead of a table.
    #[arg(long)]
    json: bool,
    /// Writes a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Input(#[from] BadInput),
    #[error("a promise was broken: {0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Output(#[from] std::io::Error),
}

fn price(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|price: &f64| *price >= 0.0 && price.is_finite())
        .ok_or_else(|| "give an amount, 0 or more".into())
}

impl Course {
    fn scenarios(&self, manifest: &Path) -> Result<Vec<Scenario>, BadInput> {
        let traces = self.traces.iter().map(|text| match text.split_once('=') {
            Some((name, file)) => (Some(name.to_owned()), Path::new(file)),
            None => (None, Path::new(text)),
        });
        let sources = Sources {
            manifest: Some(manifest),
            cloud: self.cloud.as_deref(),
            traces: traces.collect(),
            demand: self.demand.as_deref(),
            polarity: self.polarity,
        };
        let scenario = Scenario::read(&sources, self.tick, self.seed)?;
        if self.synthetic {
            let drawn = |seed| {
                let mut scenario = scenario.clone();
                synthetic::draw(&mut scenario, seed, i64::from(self.days) * 86_400);
                scenario
            };
            return Ok((0..u64::from(self.seeds)).map(|at| drawn(self.seed + at)).collect());
        }
        if self.traces.is_empty() {
            return Err(BadInput::of("--trace", "is missing: give a trace, or --synthetic to draw one"));
        }
        if self.seeds > 1 {
            return Err(BadInput::of(
                "--seeds",
                "is for synthetic courses: leave it out, or give --synthetic",
            ));
        }
        Ok(vec![scenario])
    }
}

fn tell(scenarios: &[Scenario], played: &[Vec<Measured>], output: &Output) -> Result<(), Failure> {
    let least_costs: Vec<f64> = scenarios.iter().map(least_cost).collect();
    let (heading, means) = (Heading::of(scenarios, &least_costs), study::means(played));
    let tradeoff = study::tradeoff(played, &least_costs);
    if let Some(file) = &output.html {
        std::fs::write(file, html::page(&heading, played, &tradeoff)).map_err(|error| {
            BadInput::of(file.display().to_string(), format!("cannot be written: {error}"))
        })?;
    }
    let mut out = std::io::stdout();
    if output.json {
        let value = serde_json::json!({
            "scenario": heading.name,
            "synthetic": heading.synthetic,
            "hours": heading.hours,
            "leastCost": heading.least_cost,
            "policies": means,
            "tradeoff": tradeoff,
        });
        writeln!(out, "{value:#}")?;
    } else {
        write!(out, "{}", report::table(&heading, &means, out.is_terminal()))?;
    }
    Ok(())
}

fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Run { manifest, parts, course, output } => {
            let scenarios = course.scenarios(manifest)?;
            let all = |scenario: &Scenario| {
                if !parts {
                    return policy::all(scenario);
                }
                let of = |name: &str, spec| Box::new(SpotPool::with(scenario, name, spec)) as Box<dyn Policy>;
                let parts = without_parts(&scenario.spec).into_iter().map(|(name, spec)| of(name, spec));
                std::iter::once(of("as it is", scenario.spec.clone())).chain(parts).collect()
            };
            tell(&scenarios, &study::play_all(&scenarios, all)?, output)
        }
        Command::Compare { one, other, course, output } => {
            let scenarios = course.scenarios(one)?;
            let place = other.display().to_string();
            let second = manifest::read(&place, &spotpool_lab::input::read(other)?)?.spec;
            if second.agent_pools != scenarios[0].spec.agent_pools
                || second.replicas != scenarios[0].spec.replicas
            {
                let what = "has other agentPools or replicas than the first: compare SpotPools that differ in the rest";
                return Err(BadInput::of(place, what).into());
            }
            let are_alike = one != other && one.file_stem() == other.file_stem();
            let both = |scenario: &Scenario| {
                let of = |path: &Path, spec| {
                    let name = path.file_stem().filter(|_| !are_alike).unwrap_or(path.as_os_str());
                    Box::new(SpotPool::with(scenario, &name.to_string_lossy(), spec)) as Box<dyn Policy>
                };
                vec![of(one, scenario.spec.clone()), of(other, second.clone())]
            };
            tell(&scenarios, &study::play_all(&scenarios, both)?, output)
        }
        Command::Tune { manifest, missing_price, json, course } => {
            let scenarios = course.scenarios(manifest)?;
            let first = &scenarios[0];
            let on_demand =
                first.cheapest(Role::OnDemand, 0).first().map(|pool| first.pools[*pool].unit_price(0));
            let price = missing_price.unwrap_or(3.0 * on_demand.unwrap_or(1.0));
            let halves = if course.synthetic {
                Halves::of_seeds(&scenarios).ok_or_else(|| {
                    BadInput::of(
                        "--seeds",
                        "is too few to learn on some and judge on others: give --seeds 40",
                    )
                })
            } else {
                Halves::of_trace(first).ok_or_else(|| {
                    BadInput::of(
                        "--trace",
                        "is too short to learn on a half and judge on the other: give 4 hours or more",
                    )
                })
            }?;
            let tuned = tune(&halves, price)?;
            let mut out = std::io::stdout();
            if *json {
                writeln!(out, "{:#}", serde_json::json!(tuned))?;
            } else {
                write!(out, "{}", tuned.words())?;
            }
            Ok(())
        }
    }
}

fn main() -> ExitCode {
    match run(&Program::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(if matches!(failure, Failure::Input(_)) { 2 } else { 1 })
        }
    }
}
