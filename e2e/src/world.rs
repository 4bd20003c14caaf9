//! Everything that the programs live in: a control plane, the simulator, and agents on every node.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use serde_json::{Value, json};
use spotpool_azure_sim::client::SimClient;
use spotpool_e2e_cluster::{Cluster, ClusterOptions, Program, Supervised};

use crate::objects::apply;
use crate::rights;
use crate::{Agents, Profile, Programs, eventually};

const SPOT_POOLS: &str = include_str!("../../crds/yaml/spotpools.yaml");
const EVICTION_DRILLS: &str = include_str!("../../crds/yaml/evictiondrills.yaml");
const AGENT_RBAC: &str = include_str!("../../charts/rendered/agent/rbac.yaml");
const AGENT_OWN_NODE: &str = include_str!("../../charts/rendered/agent/own-node.yaml");
const AGENT_OWN_PODS: &str = include_str!("../../charts/rendered/agent/own-pods.yaml");
const FLOW_CONTROL: &str = include_str!("../../charts/rendered/flow-control.yaml");
const AGENT_DAEMON_SET: &str = include_str!("../manifests/agent-daemonset.yaml");

/// Namespace of the agents.
pub const SYSTEM_NAMESPACE: &str = "spotpool-system";

/// What a world is like.
pub struct WorldOptions {
    /// How the programs are built.
    pub profile: Profile,
    /// From the order for a VM until its Node registers.
    pub boot_time: Duration,
    /// Further arguments of every agent.
    pub agent_args: Vec<String>,
    /// Whether agents run at all.
    pub agents: bool,
    /// Whether API and rights are there from the start; not where a test has helm install them.
    pub install: bool,
    /// A cluster that is there, in place of one of our own.
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Of the control plane.
    pub cluster: ClusterOptions,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            profile: Profile::Dev,
            boot_time: Duration::from_secs(3),
            agent_args: Vec::new(),
            agents: true,
            install: true,
            kubeconfig: None,
            cluster: ClusterOptions::default(),
        }
    }
}

/// A control plane with the simulator and agents.
pub struct World {
    /// The programs under test.
    pub programs: Programs,
    /// The control plane.
    pub cluster: Arc<Cluster>,
    /// As its administrator.
    pub client: Client,
    /// In Azure's place.
    pub sim: SimClient,
    /// The agents; none if the options say so.
    pub agents: Option<Agents>,
    /// What it said at its start: addresses, certificates, identities.
    pub sim_said: Value,
    sim_process: Supervised,
}

impl World {
    /// Builds and starts everything, showing what takes time on stderr.
    pub async fn start(options: WorldOptions) -> Result<Self> {
        let programs = Programs::build(options.profile).await?;
        // Whoever can reach the API server is to reach the simulator, too.
        let address = options.cluster.bind_address;
        let cluster = Arc::new(match &options.kubeconfig {
            Some(kubeconfig) => Cluster::attach(kubeconfig).await?,
            None => Cluster::start(options.cluster).await?,
        });
        let client = cluster.client().await?;
        let (sim, sim_said, sim_process) =
            simulator(&programs.azure_sim, &cluster, address, options.boot_time).await?;
        if options.install {
            install(&client).await?;
        }
        let agents = if options.agents {
            let args = options.agent_args;
            apply(&client, AGENT_DAEMON_SET, |_| ()).await?;
            Some(Agents::start(cluster.clone(), sim.clone(), &programs.node_agent, args).await?)
        } else {
            None
        };
        Ok(Self { programs, cluster, client, sim, agents, sim_said, sim_process })
    }

    /// The simulator's process, for tests that stop it.
    pub fn sim_process(&self) -> &Supervised {
        &self.sim_process
    }

    /// Ends everything and removes what is left of it.
    pub async fn stop(self) -> Result<()> {
        drop(self.agents);
        self.sim_process.stop(Duration::from_secs(5)).await?;
        match Arc::try_unwrap(self.cluster) {
            Ok(cluster) => cluster.stop().await,
            // Somebody still has it; it ends with the process.
            Err(_) => Ok(()),
        }
    }
}

/// What helm installs, as far as tests of one program need it: API, identities, rights.
async fn install(client: &Client) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}});
    apply(client, &namespace.to_string(), |_| ()).await?;
    let crds = [SPOT_POOLS, EVICTION_DRILLS];
    for manifest in crds.into_iter().chain([AGENT_RBAC, AGENT_OWN_NODE, AGENT_OWN_PODS, FLOW_CONTROL]) {
        apply(client, manifest, rights::take_away).await?;
    }
    Ok(())
}

async fn simulator(
    program: &Path,
    cluster: &Cluster,
    address: IpAddr,
    boot_time: Duration,
) -> Result<(SimClient, Value, Supervised)> {
    let log = cluster.dir().join("log/azure-sim.log");
    let process = Program::new("azure-sim", program)
        .args(["serve", "--boot-time", &format!("{}ms", boot_time.as_millis())])
        .arg(format!("--listen={}", SocketAddr::new(address, 0)))
        .arg(format!("--tls-listen={}", SocketAddr::new(address, 0)))
        .arg("--kubeconfig")
        .arg(cluster.admin_kubeconfig())
        .log(&log)
        .spawn()?;
    let said = eventually("the simulator to say where it is", async || {
        process.check_running()?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut announced = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(announced.find(|line| line["url"].is_string()))
    })
    .await?;
    let url = said["url"].as_str().unwrap_or_default();
    let sim = SimClient::new(url).context("the simulator's address")?;
    Ok((sim, said, process))
}
