//! The simulator as a program, and small commands against a running one.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use spotpool_azure_sim::api::{Identity, PoolSpec, Priority, Settings, State, duration};
use spotpool_azure_sim::client::SimClient;
use spotpool_azure_sim::scenario::{Scenario, Step};
use spotpool_azure_sim::server::{Options, Server, StartError};
use spotpool_azure_sim::tokens::{AuthSettings, ClientSpec};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A stand-in for Azure: ARM agent pools, scheduled events, and the Nodes behind them.
#[derive(Debug, Parser)]
#[command(name = "spotpool-azure-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a simulator; one line of JSON on standard output says where, once it answers.
    Serve(Box<Serve>),
    /// Show pools and machines.
    List(Target),
    /// Evict machines: a Preempt event, then they are gone.
    Evict {
        /// Node or VM names.
        #[arg(required_unless_present = "pool")]
        machines: Vec<String>,
        /// Evict machines of this pool instead.
        #[arg(long, conflicts_with = "machines")]
        pool: Option<String>,
        /// How many of the pool.
        #[arg(long, default_value_t = 1, requires = "pool")]
        count: u32,
        /// From the event's appearance until it starts.
        #[arg(long, default_value = "30s", value_parser = duration)]
        notice: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// Take events back before they start.
    Cancel {
        /// Event ids, node names or VM names.
        #[arg(required = true)]
        what: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Do what a step of a scenario says, now: `act 'upgrade: {pool: spota}'`.
    Act {
        /// The step in YAML, without `at`.
        step: String,
        #[command(flatten)]
        target: Target,
    },
    /// Limit how many machines of a size may exist; those that exist stay.
    Capacity {
        /// VM size.
        size: String,
        /// `spot=N`, `regular=N`, or `=any` to lift a limit.
        #[arg(required = true, value_parser = limit)]
        limits: Vec<(Priority, Option<u32>)>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// Base URL of the running simulator.
    #[arg(long, env = "SIM_URL")]
    sim_url: String,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Serve {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address to listen on with TLS; port 0 takes a free one.
    #[arg(long, env = "TLS_LISTEN", default_value = "127.0.0.1:0")]
    tls_listen: SocketAddr,
    /// File to write the certificate authority of the TLS listener to.
    #[arg(long, env = "CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Let nobody into ARM without a token of the token endpoint or of a metadata service.
    #[arg(long, env = "REQUIRE_TOKEN")]
    require_token: bool,
    /// How long a token is good for.
    #[arg(long, env = "TOKEN_LIFETIME", default_value = "24h", value_parser = duration)]
    token_lifetime: Duration,
    /// Tenant to play.
    #[arg(long, env = "TENANT_ID", default_value_t = AuthSettings::default().tenant_id)]
    tenant_id: String,
    /// The application and managed identity that the tenant knows.
    #[arg(long, env = "CLIENT_ID", default_value_t = ClientSpec::default().client_id)]
    client_id: String,
    /// Cluster to make Nodes in.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Make no Nodes, whatever KUBECONFIG says: machines count as registered once they have booted.
    #[arg(long)]
    no_kubernetes: bool,
    /// An agent pool to begin with: `NAME=SIZE[,spot|regular][,count=N][,zones=1+2][,mode=System]`.
    #[arg(long = "pool", value_parser = pool)]
    pools: Vec<PoolSpec>,
    /// From the order for a machine until its Node registers.
    #[arg(long, env = "BOOT_TIME", default_value = "100s", value_parser = duration)]
    boot_time: Duration,
    /// From the order to delete a machine until it is gone [default: 0.3 of the boot time].
    #[arg(long, env = "DELETE_TIME", value_parser = duration)]
    delete_time: Option<Duration>,
    /// Until a lack of capacity shows as a failed operation [default: 0.2 of the boot time].
    #[arg(long, env = "FAIL_TIME", value_parser = duration)]
    fail_time: Option<Duration>,
    /// How long the first answer about scheduled events takes for each machine (up to 2m in Azure).
    #[arg(long, env = "IMDS_FIRST_ANSWER", default_value = "0s", value_parser = duration)]
    imds_first_answer: Duration,
    /// Whether a pool's count falls when a machine is evicted.
    #[arg(long, env = "COUNT_FOLLOWS_EVICTIONS", default_value_t = true, action = clap::ArgAction::Set)]
    count_follows_evictions: bool,
    /// A scenario in YAML: settings, switches, pools, and what is to happen when.
    #[arg(long, env = "SCENARIO")]
    scenario: Option<PathBuf>,
    /// Whether requests over Azure's limits are refused with 429. Off at first: a simulator is often shared by more
    /// operators, restarted more often, than any subscription.
    #[arg(long, env = "THROTTLING", default_value_t = false, action = clap::ArgAction::Set)]
    throttling: bool,
    /// Whether labels and taints that a pool declares are put back on its Nodes, as AKS does.
    #[arg(long, env = "PUT_BACK", default_value_t = true, action = clap::ArgAction::Set)]
    put_back: bool,
    /// Makes all ids the same as in another run of this seed [default: the scenario's, or from the time].
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Subscription to play.
    #[arg(long, env = "SUBSCRIPTION_ID", default_value = "00000000-0000-0000-0000-000000000000")]
    subscription_id: String,
    /// Resource group of the managed cluster.
    #[arg(long, env = "RESOURCE_GROUP", default_value = "spotpool-rg")]
    resource_group: String,
    /// Name of the managed cluster.
    #[arg(long, env = "CLUSTER_NAME", default_value = "spotpool-sim")]
    cluster_name: String,
    /// Azure region.
    #[arg(long, env = "LOCATION", default_value = "eastus")]
    location: String,
    /// Resource group of the machines [default: MC_<group>_<cluster>_<location>].
    #[arg(long, env = "NODE_RESOURCE_GROUP")]
    node_resource_group: Option<String>,
    /// What to log, as `level` or `target=level,…`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            return usage(&one_line(&error.to_string()));
        }
        // Help and version are no errors.
        Err(help) => return if help.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE },
    };
    let done = match cli.command {
        Command::Serve(serve) => return serve_until_told(*serve).await,
        command => run(command).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spotpool-azure-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Clap's message and what follows it belong on one line; its usage hints do not.
fn one_line(message: &str) -> String {
    let hint = |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
    let lines = message.lines().map(str::trim).take_while(|line| !hint(line));
    let words: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

fn usage(message: &str) -> ExitCode {
    eprintln!("spotpool-azure-sim: {message}");
    ExitCode::from(2)
}

fn pool(text: &str) -> Result<PoolSpec, String> {
    let (name, rest) = text.split_once('=').ok_or("it must begin with NAME=SIZE")?;
    let mut parts = rest.split(',');
    let mut spec = PoolSpec::regular(name, parts.next().unwrap_or_default(), 0);
    for part in parts {
        match part.split_once('=') {
            None if part == "spot" => spec.priority = Priority::Spot,
            None if part == "regular" => spec.priority = Priority::Regular,
            Some(("count", count)) => {
                spec.count = count.parse().map_err(|_| format!("`{count}` is no count"))?;
            }
            Some(("zones", zones)) => spec.zones = zones.split('+').map(ToOwned::to_owned).collect(),
            Some(("mode", mode)) => spec = spec.property("mode", json!(mode)),
            _ => return Err(format!("`{part}` is none of spot, regular, count=N, zones=1+2, mode=System")),
        }
    }
    Ok(spec)
}

fn limit(text: &str) -> Result<(Priority, Option<u32>), String> {
    let (priority, limit) = text.split_once('=').ok_or("it must be spot=N or regular=N")?;
    let priority = match priority {
        "spot" => Priority::Spot,
        "regular" => Priority::Regular,
        other => return Err(format!("`{other}` is neither spot nor regular")),
    };
    match limit {
        "any" => Ok((priority, None)),
        number => number
            .parse()
            .map(|number| (priority, Some(number)))
            .map_err(|_| format!("`{number}` is no number")),
    }
}

async fn serve_until_told(serve: Serve) -> ExitCode {
    let Ok(filter) = EnvFilter::try_new(&serve.log_level) else {
        return usage(&format!("--log-level: `{}` is no filter", serve.log_level));
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let ca_file = serve.ca_file.clone();
    let scenario = match serve.scenario.as_deref().map(scenario).transpose() {
        Ok(scenario) => scenario,
        Err(error) => return usage(&format!("--scenario: {error:#}")),
    };
    let server = match options(serve, scenario).await {
        Ok(options) => Server::start(options).await,
        Err(error) => return usage(&format!("--kubeconfig: {error}")),
    };
    let server = match server {
        Ok(server) => server,
        Err(error @ StartError::Pool(..)) => return usage(&format!("--pool: {error}")),
        Err(error @ StartError::Scenario(_)) => return usage(&format!("--scenario: {error}")),
        Err(error @ StartError::Kubernetes(_)) => return usage(&format!("--kubeconfig: {error}")),
        Err(error @ StartError::Listen(..)) => return usage(&format!("--listen: {error}")),
        Err(error @ StartError::Tls(_)) => return usage(&format!("--tls-listen: {error}")),
    };
    if let Some(path) = &ca_file
        && let Err(error) = std::fs::write(path, server.ca_pem())
    {
        return usage(&format!("--ca-file: cannot write {}: {error}", path.display()));
    }
    match announce_and_wait(&server, ca_file).await {
        Ok(()) => {
            server.stop().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("spotpool-azure-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn announce_and_wait(server: &Server, ca_file: Option<PathBuf>) -> Result<()> {
    // Signals are caught before anyone is told that we are here.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (identity, tenant, clients) = server.sim().look(|cloud, _| {
        let auth = &cloud.tokens.state().settings;
        let clients: Vec<String> = auth.clients.iter().map(|client| client.client_id.clone()).collect();
        (cloud.identity.clone(), auth.tenant_id.clone(), clients)
    });
    let line = json!({
        "url": server.url(),
        "azureEndpoint": server.url(),
        "pricesEndpoint": server.url(),
        "tlsUrl": server.tls_url(),
        "authorityHost": format!("{}/", server.tls_url()),
        "caPem": server.ca_pem(),
        "caFile": ca_file,
        "tenantId": tenant,
        "clientIds": clients,
        "imdsEndpoint": format!("{}/imds/<node>", server.url()),
        "identity": identity,
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output")?;
    drop(out);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn scenario(path: &Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    // One line, whatever the parser has to say.
    Scenario::parse(&text).map_err(|bad| anyhow!("{}", bad.to_string().replace('\n', " ")))
}

async fn options(serve: Serve, scenario: Option<Scenario>) -> Result<Options> {
    let mut identity =
        Identity::new(&serve.subscription_id, &serve.resource_group, &serve.cluster_name, &serve.location);
    if let Some(group) = serve.node_resource_group {
        identity.node_resource_group = group;
    }
    let mut settings = Settings::with_boot_time(serve.boot_time);
    settings.delete_time = serve.delete_time.unwrap_or(settings.delete_time);
    settings.fail_time = serve.fail_time.unwrap_or(settings.fail_time);
    settings.imds_first_answer = serve.imds_first_answer;
    settings.count_follows_evictions = serve.count_follows_evictions;
    settings.switches.throttling = serve.throttling;
    settings.switches.put_back = serve.put_back;
    let kubernetes = match serve.kubeconfig {
        _ if serve.no_kubernetes => None,
        None => bail!("give the cluster to make Nodes in, or --no-kubernetes"),
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(&path)?;
            Some(
                kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                    .await?,
            )
        }
    };
    let auth = AuthSettings {
        tenant_id: serve.tenant_id,
        clients: vec![ClientSpec { client_id: serve.client_id, ..ClientSpec::default() }],
        require_token: serve.require_token,
        token_lifetime: serve.token_lifetime,
        ..AuthSettings::default()
    };
    Ok(Options {
        listen: serve.listen,
        tls_listen: serve.tls_listen,
        auth,
        identity,
        settings,
        pools: serve.pools,
        scenario,
        seed: serve.seed,
        kubernetes,
        ..Options::default()
    })
}

async fn run(command: Command) -> Result<()> {
    let client = |target: &Target| SimClient::new(&target.sim_url);
    match command {
        Command::Serve(_) => bail!("serve is no command against a running simulator"),
        Command::List(target) => print(&table(&client(&target)?.state().await?)),
        Command::Evict { machines, pool, count, notice, target } => {
            let client = client(&target)?;
            let events = match pool {
                Some(pool) => client.evict_some(&pool, count, notice).await?,
                None => client.evict(&machines, notice).await?,
            };
            let lines: Vec<String> = events
                .iter()
                .map(|event| {
                    format!("{} Preempt {} at {}", event.event_id, event.nodes.join(" "), event.not_before)
                })
                .collect();
            print(&lines.join("\n"))
        }
        Command::Cancel { what, target } => {
            let client = client(&target)?;
            for what in what {
                print(&client.cancel(&what).await?.join("\n"))?;
            }
            Ok(())
        }
        Command::Act { step, target } => {
            let action = Step::now(&step).map_err(|bad| anyhow!("{bad}"))?;
            Ok(client(&target)?.act(&action).await?)
        }
        Command::Capacity { size, limits, target } => {
            let client = client(&target)?;
            for (priority, limit) in limits {
                client.set_capacity(&size, priority, limit).await?;
            }
            Ok(())
        }
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(|error| anyhow!("standard output: {error}"))
}

/// Pools and the machines that are not gone, in columns.
fn table(state: &State) -> String {
    let pools = state.pools.iter().map(|pool| {
        vec![
            pool.name.clone(),
            pool.vm_size.clone(),
            pool.priority.lower().to_owned(),
            pool.count.to_string(),
            pool.machines.to_string(),
            pool.zones.join("+"),
            pool.provisioning_state.clone(),
        ]
    });
    let vms = state.pools.iter().flat_map(|pool| state.vms_of(&pool.name)).map(|vm| {
        let event = state
            .events
            .iter()
            .find(|event| event.ended_at.is_none() && event.nodes.contains(&vm.node))
            .map(|event| format!("{} {}", event.event_type, event.status));
        vec![
            vm.node.clone(),
            vm.name.clone(),
            format!("{:?}", vm.phase),
            vm.zone.clone().unwrap_or_default(),
            if vm.registered_at.is_some() { "yes" } else { "no" }.to_owned(),
            event.unwrap_or_default(),
        ]
    });
    format!(
        "{}\n\n{}",
        columns(&["POOL", "SIZE", "PRIORITY", "COUNT", "MACHINES", "ZONES", "STATE"], pools.collect()),
        columns(&["NODE", "VM", "PHASE", "ZONE", "REGISTERED", "EVENT"], vms.collect())
    )
}

fn columns(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines = vec![heads.iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(rows);
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0))
        .collect();
    let join = |line: &Vec<String>| {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines.iter().map(join).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_on_the_command_line() {
        let spec = pool("spota=Standard_D8s_v5,spot,count=2,zones=1+3").unwrap();
        assert_eq!(spec, PoolSpec::spot("spota", "Standard_D8s_v5", 2).zones(&["1", "3"]));
        assert!(pool("spota").is_err());
        assert!(pool("spota=Standard_D8s_v5,cheap").is_err());
        assert!(pool("spota=Standard_D8s_v5,count=two").is_err());
    }

    #[test]
    fn limits_and_durations() {
        assert_eq!(limit("spot=3"), Ok((Priority::Spot, Some(3))));
        assert_eq!(limit("regular=any"), Ok((Priority::Regular, None)));
        assert!(limit("spot").is_err());
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1s").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn columns_line_up() {
        let text = columns(
            &["A", "LONG"],
            vec![vec!["wide cell".into(), "x".into()], vec!["y".into(), String::new()]],
        );
        assert_eq!(text, "A          LONG\nwide cell  x\ny");
    }
}
