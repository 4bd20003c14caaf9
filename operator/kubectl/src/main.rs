//! The kubectl plugin: wiring only.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use spotpool_kubectl::args::{Args, Command, DrillCommand, Format};
use spotpool_kubectl::cluster::Cluster;
use spotpool_kubectl::output::Printer;
use spotpool_kubectl::{
    Error, cleanup, doctor, drill, explain, history, lint, plan, status, timeline, watch, wish,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match Box::pin(run(args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(sentence) = error.sentence() {
                eprintln!("kubectl-spotpool: {sentence}");
            }
            error.code()
        }
    }
}

async fn run(args: Args) -> Result<(), Error> {
    let printer = Printer::new(args.output);
    let is_page = matches!(args.output, Some(Format::Markdown | Format::Html));
    if is_page && !matches!(args.command, Command::Drill { command: DrillCommand::Report { .. } }) {
        return Err(Error::Usage(
            "-o markdown and -o html are for `drill report` alone: use wide, json or yaml".into(),
        ));
    }
    if let Command::Completion { shell } = args.command {
        let mut command = Args::command();
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "kubectl-spotpool", &mut script);
        return printer.text(&String::from_utf8_lossy(&script));
    }
    if let Command::Lint { file, ignore } = &args.command {
        return lint::run(&printer, file, ignore);
    }
    let cluster = Cluster::connect(&args.cluster).await?;
    match args.command {
        Command::Status { pool } => status::run(&cluster, &printer, pool.as_deref()).await,
        Command::Watch { pool } => watch::run(&cluster, &printer, pool.as_deref()).await,
        Command::Explain { name } => explain::run(&cluster, &printer, &name).await,
        Command::Timeline { pool, since } => {
            timeline::run(&cluster, &printer, pool.as_deref(), since.into()).await
        }
        Command::ExportHistory { pool, prometheus, since, step } => {
            history::run(&cluster, &printer, &pool, &prometheus, since.into(), step.into()).await
        }
        Command::Drain { node, wish } => wish::drain(&cluster, &printer, &node, &wish).await,
        Command::Failback { pool, now: _, wish } => wish::failback(&cluster, &printer, &pool, &wish).await,
        Command::Plan { file, dry_run: _ } => plan::run(&cluster, &printer, &file).await,
        Command::Doctor => doctor::run(&cluster, &printer).await,
        Command::Cleanup { dry_run } => cleanup::run(&cluster, &printer, dry_run).await,
        Command::Drill { command: DrillCommand::List } => drill::list(&cluster, &printer).await,
        Command::Drill { command: DrillCommand::Report { drill } } => {
            drill::report(&cluster, &printer, &drill).await
        }
        Command::Completion { .. } | Command::Lint { .. } => Ok(()),
    }
}
