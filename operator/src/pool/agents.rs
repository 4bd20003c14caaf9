//! Whether node agents look after a SpotPool's nodes, as a condition.

use spotpool_crds::{Duration, Reason, SpotPoolStatus};

use super::conditions::Verdict;
use crate::workloads::AgentsTold;

/// Its type.
pub const CONDITION: &str = "AgentsHealthy";

/// The condition; as it was while nobody can tell.
pub(super) fn verdict(before: &SpotPoolStatus, told: Option<&AgentsTold>) -> Verdict {
    let (status, reason, message) = match told {
        Some(told) if told.without == 0 => (Some(true), Reason::AgentsHealthy, String::new()),
        Some(told) => (Some(false), Reason::AgentsNotReady, missing(told)),
        None => {
            let old = before.conditions.iter().find(|old| old.type_ == CONDITION);
            match old {
                Some(old) if old.status == "False" => {
                    (Some(false), Reason::AgentsNotReady, old.message.clone())
                }
                Some(old) if old.status == "True" => (Some(true), Reason::AgentsHealthy, String::new()),
                _ => {
                    let message = "the operator has not watched the agents for long enough";
                    (None, Reason::AgentsNotReady, message.to_owned())
                }
            }
        }
    };
    Verdict { kind: CONDITION, status, reason, message }
}

fn missing(told: &AgentsTold) -> String {
    let names = told.named.join(", ");
    let more = match told.without as usize - told.named.len().min(told.without as usize) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let grace = Duration::from(told.grace.unsigned_abs());
    format!(
        "{} of {} nodes have had no ready agent for over {grace}: {names}{more}. Notices are heard late there, or not at all: \
         look at the agents' DaemonSet, and at the logs of its Pods on these nodes",
        told.without, told.nodes
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    fn told(without: u32) -> AgentsTold {
        let named = ["a", "b", "c"].into_iter().take(without as usize).map(str::to_owned).collect();
        AgentsTold { nodes: 9, without, named, grace: SignedDuration::from_mins(2) }
    }

    fn with(status: &str, message: &str) -> SpotPoolStatus {
        let condition = Condition {
            type_: CONDITION.into(),
            status: status.into(),
            reason: "Any".into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        SpotPoolStatus { conditions: vec![condition], ..SpotPoolStatus::default() }
    }

    /// Status is bounded: thousands of nodes must not make thousands of names.
    #[test]
    fn at_most_three_nodes_are_named() {
        let none = SpotPoolStatus::default();
        let few = verdict(&none, Some(&told(2)));
        assert!(
            few.message.starts_with("2 of 9 nodes have had no ready agent for over 2m: a, b. "),
            "{}",
            few.message
        );
        let many = verdict(&none, Some(&told(7)));
        assert!(many.message.contains(": a, b, c and 4 more. "), "{}", many.message);
        assert_eq!((many.status, verdict(&none, Some(&told(0))).status), (Some(false), Some(true)));
    }

    /// Else each restart of the operator would take an alarm back, and raise it again.
    #[test]
    fn what_was_said_holds_until_something_else_is_known() {
        for (before, status, message) in [
            (SpotPoolStatus::default(), None, "the operator has not watched the agents for long enough"),
            (with("False", "3 of 9"), Some(false), "3 of 9"),
            (with("True", ""), Some(true), ""),
            (with("Unknown", "x"), None, "the operator has not watched the agents for long enough"),
        ] {
            let verdict = verdict(&before, None);
            assert_eq!((verdict.status, verdict.message.as_str()), (status, message));
        }
    }
}
