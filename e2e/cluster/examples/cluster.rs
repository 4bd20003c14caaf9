//! A cluster to play with: a real control plane with KWOK for nodes, until Ctrl-C.
//!
//! `cargo run -p spotpool-e2e-cluster --example cluster` prints the kubeconfig for `cargo demo --kubeconfig FILE`,
//! or for anything else.

use spotpool_e2e_cluster::{Cluster, ClusterOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    println!("{}", cluster.admin_kubeconfig().display());
    tokio::signal::ctrl_c().await?;
    cluster.stop().await
}
