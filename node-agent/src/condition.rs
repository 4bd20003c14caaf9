//! The condition `EvictionNoticed`, kept by one task that looks at what stands on the Node: writes follow one
//! another, so one that is under way when its event is taken back does not outlive it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_crds::{Reason, names};
use spotpool_drain::jittered;
use tokio::sync::watch;

use crate::node::{Node, NodeHandle};
use crate::npd::Condition;

/// First and longest wait after a write that failed. Nothing waits for the condition.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What the condition should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// Whatever it says: nothing is known yet.
    #[default]
    Unknown,
    /// There is no notice, and no condition.
    Nothing,
    /// A notice.
    Notice {
        /// By its type.
        reason: Reason,
        /// For people.
        message: String,
    },
}

impl Told {
    /// What is to be changed on `node`, if anything.
    fn change(&self, node: &Node) -> Option<Value> {
        let last = node.conditions().iter().find(|it| it.kind == names::EVICTION_NOTICED_CONDITION);
        let condition = match (self, last) {
            (Self::Unknown, _) | (Self::Nothing, None) => return None,
            (Self::Nothing, Some(_)) => {
                json!({"$patch": "delete", "type": names::EVICTION_NOTICED_CONDITION})
            }
            (Self::Notice { reason, message }, last) => {
                let is_on = |it: &&Condition| it.status == "True";
                let last = last.filter(is_on);
                let says = last.map(|it| (it.reason.as_deref(), it.message.as_deref()));
                if says == Some((Some(reason.as_ref()), Some(message))) {
                    return None;
                }
                let now = format!("{:.0}", Timestamp::now());
                let since =
                    last.and_then(|last| last.last_transition_time).map(|since| format!("{since:.0}"));
                json!({
                    "type": names::EVICTION_NOTICED_CONDITION, "status": "True", "reason": reason, "message": message,
                    "lastHeartbeatTime": now, "lastTransitionTime": since.unwrap_or_else(|| now.clone()),
                })
            }
        };
        Some(json!({"status": {"conditions": [condition]}}))
    }
}

/// Keeps the condition on `node` as it should be. Never ends before whoever says how it should be.
pub async fn keep(mut node: NodeHandle, mut told: watch::Receiver<Told>) {
    let mut wait = Duration::ZERO;
    loop {
        let wanted = told.borrow_and_update().clone();
        let written = match node.latest().and_then(|node| wanted.change(&node)) {
            Some(change) => node.write_status(&change).await,
            None => Ok(()),
        };
        if let Err(error) = &written {
            if wait.is_zero() {
                tracing::warn!(node = node.name(), error, "cannot write the Node's condition, trying again");
            }
            wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        } else {
            wait = Duration::ZERO;
        }
        tokio::select! {
            changed = told.changed() => if changed.is_err() {
                return;
            },
            () = node.changed() => {}
            () = tokio::time::sleep(jittered(wait)), if written.is_err() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn the_condition_follows_the_notice_and_goes_with_it() {
        let notice =
            |message: &str| Told::Notice { reason: Reason::MaintenanceNoticed, message: message.into() };
        let condition = |status: &str, message: &str| {
            json!([{"type": "Ready", "status": "True"}, {"type": "EvictionNoticed", "status": status,
                "reason": "MaintenanceNoticed", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let (bare, reboot) = (node(&json!([])), node(&condition("True", "Reboot")));
        assert_eq!(Told::Unknown.change(&reboot), None, "an agent that begins does not know yet");
        assert_eq!(Told::Nothing.change(&bare), None);
        assert_eq!(notice("Reboot").change(&reboot), None);
        assert_eq!(
            Told::Nothing.change(&reboot).unwrap()["status"]["conditions"],
            json!([{"$patch": "delete", "type": "EvictionNoticed"}])
        );
        for (node, is_kept) in
            [(&bare, false), (&reboot, true), (&node(&condition("False", "Reboot")), false)]
        {
            let change = notice("Preempt").change(node).unwrap();
            let condition = &change["status"]["conditions"][0];
            assert_eq!((&condition["status"], &condition["message"]), (&json!("True"), &json!("Preempt")));
            assert_eq!(condition["lastTransitionTime"] == "2026-01-01T00:00:00Z", is_kept);
        }
    }
}
