//! What went wrong with an agent pool, and for how long it is left alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_azure::{AgentPool, AzureError, Class, Priority, Scope};
use spotpool_core::avoidance::{Failure, avoided_until};
use spotpool_core::{NodeView, Stall};
use spotpool_crds::spot_pool::{AgentPoolStatus, AzureError as StatusError};

use crate::agent_pools::Known;

/// The last error of an agent pool and what follows from it.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// As Azure gave it.
    pub last_error: Option<StatusError>,
    /// Nothing new is asked of the agent pool before this time.
    pub avoided_until: Option<Timestamp>,
    /// What for.
    pub avoided_for: String,
}

/// Its VMs were taken back minutes after they came.
pub(super) const SHORT_LIVED: &str = "ShortLived";

impl Trouble {
    /// As status remembers it; an error is over once one of the agent pool's `nodes` has come after it.
    pub(super) fn of(before: Option<&AgentPoolStatus>, nodes: &[NodeView]) -> Self {
        let came_after =
            |error: &StatusError| nodes.iter().any(|node| node.ready && node.created > error.time.0);
        Self {
            last_error: before
                .and_then(|before| before.last_error.clone())
                .filter(|error| !came_after(error)),
            avoided_until: before.and_then(|before| before.avoided_until.as_ref()).map(|until| until.0),
            avoided_for: before.map(|before| before.avoided_for.clone()).unwrap_or_default(),
        }
    }

    /// When Azure last had no capacity, if nothing has come since.
    pub(super) fn refused_at(&self) -> Option<Timestamp> {
        let error = self.last_error.as_ref()?;
        (error.class == <&str>::from(Class::Capacity)).then_some(error.time.0)
    }

    fn avoid(&mut self, until: Timestamp, what_for: &str) {
        if self.avoided_until.is_none_or(|known| known < until) {
            self.avoided_until = Some(until);
            what_for.clone_into(&mut self.avoided_for);
        }
    }

    /// Until when every write would fail, not only one that asks for machines.
    pub(super) fn unwritable_until(&self) -> Option<Timestamp> {
        let takes_writes = [<&str>::from(Class::Capacity), SHORT_LIVED].contains(&self.avoided_for.as_str());
        self.avoided_until.filter(|_| !takes_writes)
    }
}

/// What went wrong, by agent pool.
#[derive(Clone, Debug, Default)]
pub struct Troubles(pub(super) BTreeMap<String, Trouble>);

impl Troubles {
    /// Of one agent pool.
    pub fn of(&self, agent_pool: &str) -> Trouble {
        self.0.get(agent_pool).cloned().unwrap_or_default()
    }

    /// Has `agent_pool` left alone.
    pub(super) fn avoid(&mut self, agent_pool: &str, until: Timestamp, what_for: &str) {
        self.0.entry(agent_pool.to_owned()).or_default().avoid(until, what_for);
    }

    /// Takes an error of `agent_pool` in: for itself, and for all whom it speaks of as well.
    pub fn note(
        &mut self,
        agent_pool: &str,
        azure: &BTreeMap<String, Known>,
        error: &AzureError,
        time: Timestamp,
    ) {
        let failure = match error.class {
            // Somebody was faster: nothing is wrong with the agent pool.
            Class::Conflict => return,
            Class::Capacity => Failure::Capacity,
            Class::Throttled => Failure::Throttled,
            Class::Invalid | Class::Denied => Failure::Refused,
            Class::Transient => Failure::Transient,
        };
        let own = self.0.entry(agent_pool.to_owned()).or_default();
        // Status keeps whole seconds: what is as old as what is there is the same.
        if own.last_error.as_ref().is_some_and(|last| last.time.0.as_second() >= time.as_second()) {
            return;
        }
        let stated = error.retry_after.or(error.avoid.map(|avoid| avoid.lasting));
        let until = avoided_until(failure, stated.and_then(|stated| stated.try_into().ok()), time);
        own.avoided_until = Some(until);
        own.avoided_for = error.class.to_string();
        // Refused here, before the wire, is no error of Azure's.
        if !error.is_local() {
            let (code, message) = (error.code.clone(), error.message.clone());
            let class = error.class.to_string();
            own.last_error = Some(StatusError { code, class, message, time: Time(time) });
        }
        let (Some(avoid), Some(from)) = (error.avoid, azure.get(agent_pool)) else { return };
        for (name, known) in azure {
            if name != agent_pool && reaches(avoid.scope, &from.pool, &known.pool) {
                self.0.entry(name.clone()).or_default().avoid(until, error.class.into());
            }
        }
    }

    /// Takes in that a scale-up does not get on, as if Azure had said that it has no capacity: which is what it means.
    pub fn note_stall(&mut self, stall: &Stall, now: Timestamp) {
        let own = self.0.entry(stall.agent_pool.clone()).or_default();
        own.avoid(avoided_until(Failure::Capacity, None, now), Class::Capacity.into());
        own.last_error = Some(StatusError {
            code: stall.reason.to_string(),
            class: Class::Capacity.to_string(),
            message: stall.message.clone(),
            time: Time(now),
        });
    }
}

/// Whether an error of `from` holds for `other` too.
fn reaches(scope: Scope, from: &AgentPool, other: &AgentPool) -> bool {
    let alike = from.priority == other.priority && from.vm_size.eq_ignore_ascii_case(&other.vm_size);
    match scope {
        Scope::AgentPool => false,
        Scope::Size => alike,
        Scope::Zone => alike && other.zones.iter().all(|zone| from.zones.contains(zone)),
        Scope::AllSpot => other.priority == Priority::Spot,
        Scope::AllOnDemand => other.priority == Priority::Regular,
        Scope::Everything => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Defaults are chosen by the policy lab, which knows no errors of Azure's: left alone for longer, they would be worse than it
    /// says.
    #[test]
    fn an_agent_pool_that_azure_has_no_capacity_for_is_left_alone_as_long_as_the_lab_reckons() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for code in [
            "SkuNotAvailable",
            "AllocationFailed",
            "ZonalAllocationFailed",
            "OverconstrainedAllocationRequest",
        ] {
            let error = AzureError::from_operation(Some(&json!({"code": code, "message": "none"})));
            let mut troubles = Troubles::default();
            troubles.note("a", &BTreeMap::new(), &error, now);
            let reckoned = avoided_until(Failure::Capacity, None, now);
            assert_eq!(troubles.of("a").avoided_until, Some(reckoned), "{code}");
        }
    }
}
