//! What every flow of the agent works with.

use kube::Client;
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_drain::Pods;
use tokio::sync::watch;

use crate::announce::Announcer;
use crate::hooks::Caller;
use crate::metrics::Metrics;
use crate::node::OwnNode;

/// What every flow of the agent works with.
pub struct Context {
    /// The API.
    pub client: Client,
    /// The own Node.
    pub node: OwnNode,
    /// The pods on it.
    pub pods: watch::Receiver<Pods>,
    /// For people.
    pub announcer: Announcer,
    /// For monitoring.
    pub metrics: Metrics,
    /// Asks the hooks of pods.
    pub hooks: Caller,
    /// How to drain where no SpotPool says.
    pub defaults: DrainPolicy,
}

impl Context {
    /// How to drain this node now.
    pub fn policy(&self) -> DrainPolicy {
        let policy = self.node.latest().and_then(|node| node.policy());
        policy.map_or_else(|| self.defaults.clone(), |policy| policy.drain)
    }
}
