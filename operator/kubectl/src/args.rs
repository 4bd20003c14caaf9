//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use spotpool_crds::Duration;

use crate::lint::Rule;

/// What SpotPools do, why, and what to do about it.
#[derive(Debug, Parser)]
#[command(name = "kubectl-spotpool", bin_name = "kubectl spotpool", version)]
pub struct Args {
    /// Which cluster, and where in it.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// How the answer looks: for people, or for programs.
    #[arg(short, long, global = true, value_enum)]
    pub output: Option<Format>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and where in it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig of the cluster; without it KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; without it the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Only SpotPools of this namespace; without it those of all that may be read.
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// SpotPools of all namespaces: an error if they may not be read.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// How an answer looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people, with more columns and no regard to the terminal's width.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Markdown: a drill's report alone.
    Markdown,
    /// One HTML page that needs nothing else: a drill's report alone.
    Html,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all SpotPools in one table, or one of them in all detail.
    Status {
        /// Name of a SpotPool, or NAMESPACE/NAME.
        pool: Option<String>,
    },
    /// Show the same table and keep it current; in a pipe, a line for each change.
    Watch {
        /// Name of a SpotPool, or NAMESPACE/NAME; without it all.
        pool: Option<String>,
    },
    /// Say why a SpotPool has as many nodes as it has, what comes next and what would change it; or whose a node is.
    Explain {
        /// Name of a SpotPool, NAMESPACE/NAME, or name of a Node.
        #[arg(value_name = "POOL|NODE")]
        name: String,
    },
    /// Show evictions: notice, drain, what became of the pods, how long until there was another node.
    Timeline {
        /// Name of a SpotPool, or NAMESPACE/NAME; without it all.
        pool: Option<String>,
        /// How far to look back. Kubernetes keeps Events for an hour, unless told otherwise.
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        since: Duration,
    },
    /// Write down what became of a SpotPool's agent pools, for the policy lab, from a Prometheus that scrapes the operator.
    ExportHistory {
        /// Name of the SpotPool, or NAMESPACE/NAME.
        pool: String,
        /// Address of Prometheus, over HTTP.
        #[arg(long, default_value = "http://127.0.0.1:9090", value_name = "URL")]
        prometheus: String,
        /// How far to look back. Prometheus keeps 15 days, unless told otherwise.
        #[arg(long, default_value = "360h", value_name = "DURATION")]
        since: Duration,
        /// How often to look: not less than it scrapes.
        #[arg(long, default_value = "1m", value_name = "DURATION")]
        step: Duration,
    },
    /// Wish for a node to be drained and replaced. The operator answers; disruption budgets hold.
    Drain {
        /// Name of the Node.
        node: String,
        /// How to wish.
        #[command(flatten)]
        wish: WishArgs,
    },
    /// Wish for on-demand to be given back now. The operator answers; disruption budgets hold.
    Failback {
        /// Name of a SpotPool, or NAMESPACE/NAME.
        pool: String,
        /// Now: without waiting for stabilization, window or minimum lifetime.
        #[arg(long, required = true)]
        now: bool,
        /// How to wish.
        #[command(flatten)]
        wish: WishArgs,
    },
    /// Say what would change, and what it would cost, if a manifest were applied. Writes nothing.
    Plan {
        /// Manifest of SpotPools; `-` is standard input.
        #[arg(short = 'f', long = "filename", value_name = "FILE")]
        file: PathBuf,
        /// What it always is; for those who want to see it said.
        #[arg(long)]
        dry_run: bool,
    },
    /// Look in manifests for what pods lose on spot nodes, and say what to change. Needs no cluster; exit code 1 if
    /// there is an error in them, 0 if there are warnings alone.
    Lint {
        /// Manifest, or a folder of manifests; `-` is standard input.
        #[arg(short = 'f', long = "filename", value_name = "FILE")]
        file: PathBuf,
        /// Rules that are not to be looked at.
        #[arg(long, value_name = "RULE", value_delimiter = ',')]
        ignore: Vec<Rule>,
    },
    /// Look for what is set up wrongly, and say how to mend it.
    Doctor,
    /// Take off nodes and SpotPools what SpotPool has left there. Refuses while it is still installed.
    Cleanup {
        /// Say what would be taken off, and write nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show eviction drills, or the report of one.
    Drill {
        /// What of them.
        #[command(subcommand)]
        command: DrillCommand,
    },
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: Shell,
    },
}

/// What of drills.
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Show all of them in one table.
    List,
    /// Say how the last run of one went: what was taken, what became of pods and capacity, and what was expected.
    Report {
        /// Name of an EvictionDrill, or NAMESPACE/NAME.
        drill: String,
    },
}

/// How a wish is written.
#[derive(Clone, Debug, clap::Args)]
pub struct WishArgs {
    /// Have the API server check the wish, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the operator's answer.
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    pub timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together_and_failback_must_say_now() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("kubectl-spotpool failback workers").is_err());
        assert!(parse("kubectl-spotpool failback workers --now --dry-run -n batch").is_ok());
        assert!(parse("kubectl-spotpool status -n batch -A").is_err());
        assert!(parse("kubectl-spotpool drill report game-day -o html").is_ok());
        assert_eq!(parse("kubectl-spotpool nonsense").unwrap_err().exit_code(), 2);
    }
}
