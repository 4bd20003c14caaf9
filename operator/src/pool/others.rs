//! Who else scales what a SpotPool scales: a person, Terraform, another SpotPool, node auto-provisioning. Seen and
//! said; the plan goes by what is there, whoever made it so.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_crds::spot_pool::{AgentPoolStatus, CountChange, OperationKind};
use spotpool_crds::{Reason, SpotPoolStatus};

use crate::agent_pools::Known;

/// How long a change of a count by somebody else is shown.
const SHOWN: SignedDuration = SignedDuration::from_hours(24);

/// Whoever else was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// The last change of each agent pool's count that was not ours; of an autoscaled one's minimum.
    pub changes: BTreeMap<String, CountChange>,
    /// Those that are autoscaled.
    autoscaled: BTreeSet<String>,
    /// Whether the cluster has node auto-provisioning.
    pub has_auto_provisioning: bool,
}

impl Others {
    /// From what status remembers and what Azure says now.
    pub fn seen(
        before: &SpotPoolStatus,
        azure: &BTreeMap<String, Known>,
        has_auto_provisioning: bool,
        now: Timestamp,
    ) -> Self {
        let of_pool = |before: &AgentPoolStatus| {
            let new = azure.get(&before.name).and_then(|known| {
                if known.pool.autoscaled {
                    return minimum_change(before, known, now);
                }
                let change = change(before, known.pool.count, is_scaled_by_others(known), now);
                change.filter(|_| known.unanswered != Some(known.pool.count))
            });
            let is_shown = |change: &CountChange| now.duration_since(change.at.0) < SHOWN;
            let last = before.changed_elsewhere.clone().filter(is_shown);
            Some((before.name.clone(), new.or(last)?))
        };
        let autoscaled = azure.iter().filter(|(_, known)| known.pool.autoscaled);
        Self {
            changes: before.agent_pools.iter().filter_map(of_pool).collect(),
            autoscaled: autoscaled.map(|(name, _)| name.clone()).collect(),
            has_auto_provisioning,
        }
    }

    /// What a person should know of first, if there is anything.
    pub fn seen_first(&self, claimed: &BTreeMap<String, String>) -> Option<(Reason, String)> {
        if let Some((agent_pool, by)) = claimed.first_key_value() {
            let message = format!("agent pool {agent_pool} belongs to SpotPool {by}, which is older");
            return Some((Reason::AgentPoolClaimed, message));
        }
        if let Some((agent_pool, change)) = self.changes.iter().max_by_key(|(_, change)| change.at.0) {
            return Some(changed(agent_pool, change, self.autoscaled.contains(agent_pool)));
        }
        self.has_auto_provisioning.then(|| {
            let message = "the cluster has node auto-provisioning (karpenter.sh), which buys nodes for pending pods as well: \
                keep its NodePools off the workloads of this SpotPool, by taints or node selectors";
            (Reason::NodeAutoProvisioning, message.to_owned())
        })
    }
}

/// A change by somebody else, in words.
pub fn changed(agent_pool: &str, change: &CountChange, is_autoscaled: bool) -> (Reason, String) {
    let CountChange { from, to, at } = change;
    if is_autoscaled {
        let message = format!(
            "the minimum of agent pool {agent_pool} was set from {from} to {to} by somebody else, seen at {:.0}; SpotPool \
             raises it again where more is needed: let only SpotPool move it (in Terraform ignore_changes for min_count)",
            at.0
        );
        return (Reason::MinimumChangedElsewhere, message);
    }
    let message = format!(
        "the count of agent pool {agent_pool} was set from {from} to {to} by somebody else, seen at {:.0}: let only SpotPool \
         scale it (in Terraform ignore_changes for node_count; in Bicep leave count out of updates)",
        at.0
    );
    (Reason::CountChangedElsewhere, message)
}

/// Whether somebody else has set the minimum of an autoscaled agent pool.
pub fn is_minimum_theirs(before: &AgentPoolStatus, known: &Known) -> bool {
    // What Azure makes of a minimum of ours when the operation fails is no one else's doing.
    known.failure.is_none() && known.unanswered != Some(known.min()) && differs_from_ours(before, known.min())
}

/// Whether `min` is neither what status knows nor what we asked for.
fn differs_from_ours(before: &AgentPoolStatus, min: u32) -> bool {
    let Some(known) = &before.autoscaler else { return false };
    let min = i32::try_from(min).unwrap_or(i32::MAX);
    let is_ours = before.operation.as_ref().is_some_and(|operation| {
        matches!(operation.kind, OperationKind::ScaleUp | OperationKind::SetMinimum) && operation.count == min
    });
    min != known.min && !is_ours
}

fn minimum_change(before: &AgentPoolStatus, known: &Known, now: Timestamp) -> Option<CountChange> {
    let from = before.autoscaler.as_ref()?.min;
    let to = i32::try_from(known.min()).unwrap_or(i32::MAX);
    is_minimum_theirs(before, known).then_some(CountChange { from, to, at: Time(now) })
}

/// A count that rose without our asking, or fell in an operation that is not ours. Evictions lower counts, too, but
/// without an operation.
fn change(
    before: &AgentPoolStatus,
    count: u32,
    is_scaled_by_others: bool,
    now: Timestamp,
) -> Option<CountChange> {
    let is_first_look = before.provisioning_state.is_empty();
    let (from, to) = (before.count, i32::try_from(count).unwrap_or(i32::MAX));
    let is_theirs = to > from || (to < from && is_scaled_by_others);
    (is_theirs && !is_first_look && before.operation.is_none()).then_some(CountChange {
        from,
        to,
        at: Time(now),
    })
}

/// Whether somebody else's operation on the agent pool changes its count. The cluster autoscaler is no surprise.
fn is_scaled_by_others(known: &Known) -> bool {
    known.is_others_operation && known.pool.provisioning_state == "Scaling"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_is_somebody_elses_if_we_asked_for_none_and_no_eviction_explains_it() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let operation =
            json!({"kind": "ScaleUp", "count": 5, "machines": 1, "since": "2026-01-01T00:00:00Z"});
        for (state, from, ours, to, is_scaled_by_others, is_theirs, why) in [
            ("Succeeded", 3, None, 5, false, true, "it rose"),
            ("Succeeded", 3, None, 0, true, true, "it falls in an operation that is not ours"),
            ("Succeeded", 3, None, 2, false, false, "evictions lower it as well"),
            ("Succeeded", 3, None, 3, true, false, "nothing has changed"),
            ("Scaling", 3, Some(&operation), 5, false, false, "we asked for it"),
            ("", 0, None, 5, false, false, "it is seen for the first time"),
        ] {
            let before = json!({"name": "a", "provisioningState": state, "count": from, "operation": ours});
            let before: AgentPoolStatus = serde_json::from_value(before).unwrap();
            let change = change(&before, to, is_scaled_by_others, now);
            assert_eq!(change.is_some(), is_theirs, "{why}");
        }
    }

    #[test]
    fn a_minimum_is_somebody_elses_if_we_did_not_ask_for_it() {
        let operation =
            |kind: &str| json!({"kind": kind, "count": 4, "machines": 1, "since": "2026-01-01T00:00:00Z"});
        for (ours, min, is_theirs, why) in [
            (None, 2, false, "nothing has changed"),
            (None, 4, true, "raised by somebody"),
            (None, 1, true, "as `terraform apply` lowers it"),
            (Some(operation("ScaleUp")), 4, false, "machines that we asked for"),
            (Some(operation("SetMinimum")), 4, false, "we set it"),
            (Some(operation("SetMinimum")), 2, false, "ours has not come yet"),
            (Some(operation("SetMinimum")), 1, true, "not to what we asked for"),
            (Some(operation("DeleteMachines")), 4, true, "that says nothing of the minimum"),
        ] {
            let range = json!({"min": 2, "max": 9, "ownMin": 1});
            let before = json!({"name": "a", "count": 3, "autoscaler": range, "operation": ours});
            let before: AgentPoolStatus = serde_json::from_value(before).unwrap();
            assert_eq!(differs_from_ours(&before, min), is_theirs, "{why}");
        }
        let before: AgentPoolStatus = serde_json::from_value(json!({"name": "a", "count": 3})).unwrap();
        assert!(!differs_from_ours(&before, 7), "it is seen for the first time");
    }
}
