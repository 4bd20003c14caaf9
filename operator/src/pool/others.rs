//! Who else scales what a SpotPool scales: a person, Terraform, another SpotPool, node auto-provisioning. Seen and
//! said; the plan goes by what is there, whoever made it so.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_crds::spot_pool::{AgentPoolStatus, CountChange};
use spotpool_crds::{Reason, SpotPoolStatus};

use crate::agent_pools::Known;

/// How long a change of a count by somebody else is shown.
const SHOWN: SignedDuration = SignedDuration::from_hours(24);

/// Whoever else was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// The last change of each agent pool's count that was not ours.
    pub changes: BTreeMap<String, CountChange>,
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
            let known = azure.get(&before.name).filter(|known| !known.pool.autoscaled);
            let new =
                known.and_then(|known| change(before, known.pool.count, is_scaled_by_others(known), now));
            let is_shown = |change: &CountChange| now.duration_since(change.at.0) < SHOWN;
            let last = before.changed_elsewhere.clone().filter(is_shown);
            Some((before.name.clone(), new.or(last)?))
        };
        Self { changes: before.agent_pools.iter().filter_map(of_pool).collect(), has_auto_provisioning }
    }

    /// What a person should know of first, if there is anything.
    pub fn seen_first(&self, claimed: &BTreeMap<String, String>) -> Option<(Reason, String)> {
        if let Some((agent_pool, by)) = claimed.first_key_value() {
            let message = format!("agent pool {agent_pool} belongs to SpotPool {by}, which is older");
            return Some((Reason::AgentPoolClaimed, message));
        }
        if let Some((agent_pool, change)) = self.changes.iter().max_by_key(|(_, change)| change.at.0) {
            return Some((Reason::CountChangedElsewhere, changed(agent_pool, change)));
        }
        self.has_auto_provisioning.then(|| {
            let message = "the cluster has node auto-provisioning (karpenter.sh), which buys nodes for pending pods as well: \
                keep its NodePools off the workloads of this SpotPool, by taints or node selectors";
            (Reason::NodeAutoProvisioning, message.to_owned())
        })
    }
}

/// A change by somebody else, in words.
pub fn changed(agent_pool: &str, change: &CountChange) -> String {
    format!(
        "the count of agent pool {agent_pool} was set from {} to {} by somebody else, seen at {:.0}: let only SpotPool \
         scale it (in Terraform ignore_changes for node_count; in Bicep leave count out of updates)",
        change.from, change.to, change.at.0
    )
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
}
