//! A real Kubernetes control plane on this machine, without containers and without root: etcd, the API server, the
//! controller manager and the scheduler, built from source, and KWOK to play the kubelets of fake nodes.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use spotpool_e2e_cluster::{Cluster, ClusterOptions};
//!
//! let cluster = Cluster::start(ClusterOptions::default()).await?;
//! let client = cluster.client().await?;
//! // … create nodes with the label `type=kwok`, run programs with `cluster.admin_kubeconfig()` …
//! cluster.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every process that is started here, see [`Program`] and [`Supervised`], ends with the process that started it,
//! even if that one is killed.
//!
//! Where there is root and a container runtime, [`RealNode`] adds nodes that run containers.

mod cluster;
mod kwok;
mod nodes;
mod pki;
mod ports;
mod progress;
mod supervise;
mod tools;

pub use cluster::{Cluster, ClusterOptions};
pub use kwok::{NODE_AGENT_NAME, NODE_LABEL, RUN_FOR_ANNOTATION, STOP_AFTER_ANNOTATION};
pub use nodes::{Network, PAUSE_IMAGE, RealNode, RealNodeOptions};
pub use ports::free_port;
pub use supervise::{Program, Signal, Supervised};
pub use tools::{ASSETS_ENV, TOOLS_DIR_ENV, Tools};
