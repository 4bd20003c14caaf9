//! What else buys nodes in the cluster, as far as a look at its APIs tells.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Client;

use crate::agent_pools::View;
use crate::watches::Trigger;

/// The API group of node auto-provisioning, AKS's own and Karpenter as installed by anybody.
const KARPENTER: &str = "karpenter.sh";
/// It is switched on once in a cluster's life, if at all.
const EVERY: Duration = Duration::from_mins(10);

/// What was seen last.
#[derive(Default)]
pub struct Neighbours {
    has_auto_provisioning: AtomicBool,
}

impl Neighbours {
    /// Adds what is known to `view`.
    pub fn tell(&self, view: &mut View) {
        view.has_auto_provisioning = self.has_auto_provisioning.load(Ordering::Relaxed);
    }

    /// Looks for ever. The list of API groups may be read by every authenticated user.
    pub async fn keep_fresh(&self, client: Client, trigger: &Trigger) -> Infallible {
        loop {
            match client.list_api_groups().await {
                Ok(groups) => {
                    let found = groups.groups.iter().any(|group| group.name == KARPENTER);
                    if self.has_auto_provisioning.swap(found, Ordering::Relaxed) != found {
                        trigger.fire();
                    }
                }
                // What was known stays: it only informs.
                Err(error) => tracing::debug!(%error, "cannot list API groups"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}
