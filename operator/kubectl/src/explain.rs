//! `explain`: why a SpotPool has what it has, what comes next and what would change it; or whose a node is.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use spotpool_crds::SpotPool;

use crate::Error;
use crate::cluster::{Cluster, SPOT_POOLS, find, hint, pool_of};
use crate::output::Printer;

pub(crate) mod node;
mod pool;
mod remedy;

pub use remedy::remedy;

/// A heading and what is to be said under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// The heading.
    pub about: &'static str,
    /// One sentence each.
    pub says: Vec<String>,
}

/// Explains a SpotPool, else a Node of that name.
pub async fn run(cluster: &Cluster, printer: &Printer, name: &str) -> Result<(), Error> {
    let (pools, _) = cluster.pools().await?;
    let now = cluster.now();
    let missing = match find(&pools, name, &cluster.usual) {
        Ok(pool) => {
            let view = pool::view(pool, now);
            printer.view(&view, || pool::render(&view, now, printer.prose()))?;
            return cluster.check_operator(&[pool]).await;
        }
        Err(missing) => missing,
    };
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let denied = |error| Error::of(error, &cluster.server, "get", "nodes", None);
    match nodes.get_opt(name).await.map_err(denied)? {
        Some(node) => {
            let of = pool_of(&node);
            let is_its =
                |pool: &&SpotPool| of == Some((pool.namespace().unwrap_or_default(), pool.name_any()));
            let pool = pools.iter().find(is_its);
            let view = node::view(&node, pool, now);
            printer.view(&view, || node::render(&view, printer.prose()))?;
            cluster.check_operator(&pool.into_iter().collect::<Vec<_>>()).await
        }
        None => Err(nobody(&nodes, &pools, name).await.unwrap_or(missing)),
    }
}

/// Neither a SpotPool nor a Node: what may have been meant?
async fn nobody(nodes: &Api<Node>, pools: &[SpotPool], name: &str) -> Option<Error> {
    let nodes = nodes.list(&ListParams::default()).await.ok()?;
    let pools =
        pools.iter().map(|pool| format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any()));
    let names: Vec<String> = pools.chain(nodes.iter().map(ResourceExt::name_any)).collect();
    Some(Error::NotFound(format!("{name} is neither one of {SPOT_POOLS} nor a Node{}", hint(name, &names))))
}

/// In how long something is, or since when.
fn when(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs();
    if seconds > 0 {
        format!("{at:.0}, in {}", crate::output::short(seconds))
    } else {
        format!("{at:.0}, {} ago", crate::output::short(-seconds))
    }
}

fn render_sections(sections: &[Section], prose: usize) -> String {
    let mut text = String::new();
    for section in sections.iter().filter(|section| !section.says.is_empty()) {
        text.push_str(&format!("\n{}\n", crate::table::paint(crate::table::Tone::Strong, section.about)));
        for sentence in &section.says {
            text.push_str(&crate::output::wrap("  - ", sentence, prose));
        }
    }
    text
}
