//! Telling Azure to go ahead with a planned event, once every VM that it names is a drained Node of this cluster.
//! One agent is enough; several may say so, and so may the same after a restart.

use jiff::Timestamp;
use spotpool_crds::Reason;
use spotpool_crds::eviction::Phase;
use spotpool_crds::provider_id::node_name;
use spotpool_drain::jittered;

use super::{Flow, LOOK_AGAIN};
use crate::node::Node;
use crate::notice::Notice;

/// How the VMs of an event stand.
enum Standing {
    AllDrained,
    /// Not yet, or it could not be seen.
    NotYet(String),
    /// One will never be known to be drained.
    Unknown(String),
}

impl Flow {
    /// Acknowledges each event that asks for it, until the last is over.
    pub async fn acknowledge(&self) {
        let mut done: Option<String> = None;
        loop {
            let (mut notice, mut wanted) = (self.notice.clone(), self.wanted.subscribe());
            let due = notice.borrow_and_update().clone();
            let is_drained = {
                let wanted = wanted.borrow_and_update();
                wanted.event_id == due.event_id && wanted.phase == Phase::Drained && wanted.pods.left == 0
            };
            let is_asked = due.acknowledge && !due.started && done.as_ref() != Some(&due.event_id);
            let again = if is_asked && is_drained {
                let is_done = self.try_to_acknowledge(&due).await;
                if is_done {
                    done = Some(due.event_id);
                }
                !is_done
            } else {
                false
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = notice.changed() => {}
                Ok(()) = wanted.changed() => {}
                () = tokio::time::sleep(jittered(LOOK_AGAIN)), if again => {}
            }
        }
    }

    /// Whether nothing is left to try.
    async fn try_to_acknowledge(&self, notice: &Notice) -> bool {
        let (event_id, node) = (&notice.event_id, self.context.node.name());
        match self.standing(notice).await {
            Standing::NotYet(why) => {
                tracing::debug!(event_id, node, why, "not acknowledged yet");
                return false;
            }
            Standing::Unknown(why) => {
                tracing::warn!(
                    event_id,
                    node,
                    why,
                    "the event is not acknowledged, Azure will wait for its time"
                );
                return true;
            }
            Standing::AllDrained => {}
        }
        let began = Timestamp::now();
        if let Err(error) = self.context.approver.approve(event_id).await {
            tracing::warn!(event_id, node, %error, "the event could not be acknowledged, trying again");
            return false;
        }
        self.acknowledged.send_replace(Some(event_id.clone()));
        self.context.metrics.acknowledged();
        if let Some(trace) = &self.trace {
            trace.acknowledged(event_id, began);
        }
        let reason = Reason::EventAcknowledged;
        tracing::info!(event_id, node, %reason, vms = notice.resources.len(), "acknowledged");
        let note = format!(
            "Every node of the {} is drained ({}); Azure was told to go ahead (event {event_id})",
            notice.kind,
            notice.resources.len()
        );
        self.announce(false, reason, note);
        true
    }

    async fn standing(&self, notice: &Notice) -> Standing {
        if notice.resources.is_empty() {
            return Standing::NotYet("nobody says which VMs it names".into());
        }
        for vm in &notice.resources {
            let name = node_name(vm);
            if name == self.context.node.name() {
                continue;
            }
            match self.context.node.other(&name).await {
                Err(error) => return Standing::NotYet(error),
                Ok(Some(node)) if is_vm(&node, vm) => {
                    let is_drained = node.notice().is_some_and(|other| {
                        other.event_id == notice.event_id && other.phase == Phase::Drained
                    });
                    if !is_drained {
                        return Standing::NotYet(format!("{name} is not drained"));
                    }
                }
                Ok(_) => return Standing::Unknown(format!("VM {vm} is no node of this cluster")),
            }
        }
        Standing::AllDrained
    }
}

fn is_vm(node: &Node, vm: &str) -> bool {
    node.identity().is_ok_and(|id| id.imds_name().eq_ignore_ascii_case(vm))
}
