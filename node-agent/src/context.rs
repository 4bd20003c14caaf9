//! What every flow of the agent works with.

use kube::Client;
use spotpool_crds::node_policy::DrainPolicy;
use spotpool_crds::spot_pool::Events;
use spotpool_drain::Pods;
use spotpool_runtime::trace::Tracer;
use tokio::sync::watch;

use crate::announce::Announcer;
use crate::condition::Told;
use crate::hooks::Caller;
use crate::imds::Approver;
use crate::metrics::Metrics;
use crate::node::NodeHandle;

/// What every flow of the agent works with.
pub struct Context {
    /// The API.
    pub client: Client,
    /// The own Node.
    pub node: NodeHandle,
    /// The pods on it.
    pub pods: watch::Receiver<Pods>,
    /// For people.
    pub announcer: Announcer,
    /// For monitoring.
    pub metrics: Metrics,
    /// For traces.
    pub tracer: Tracer,
    /// Asks the hooks of pods.
    pub hooks: Caller,
    /// What the Node's condition should say.
    pub condition: watch::Sender<Told>,
    /// To tell Azure to go ahead.
    pub approver: Approver,
    /// How to drain where no SpotPool says.
    pub defaults: DrainPolicy,
    /// What to do about events where no SpotPool says.
    pub events: Events,
}

impl Context {
    /// How to drain this node now.
    pub fn policy(&self) -> DrainPolicy {
        let policy = self.node.latest().and_then(|node| node.policy());
        policy.map_or_else(|| self.defaults.clone(), |policy| policy.drain)
    }

    /// Has the Node's condition say something.
    pub fn tell(&self, news: Told) {
        self.condition.send_if_modified(|told| {
            let has_changed = *told != news;
            *told = news;
            has_changed
        });
    }
}
