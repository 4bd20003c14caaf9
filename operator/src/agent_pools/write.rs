//! Writes to agent pools: one at a time for each, reckoned from what was known when it was planned, and believed only
//! once it has been read.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use spotpool_azure::{Accepted, AgentPool, AzureError, Class, CreateAgentPool, Created, Urgency};
use tokio::time::Instant;

use super::due::UNSETTLED;
use super::entry::{Followed, Listed, Written};
use super::{AgentPools, Known};

/// A write that needs a list waits that long for it, and goes elsewhere then.
const LONGEST_CONFIRMATION: Duration = Duration::from_secs(10);
/// What was read for a write is believed for so long.
const STILL_TRUE: SignedDuration = SignedDuration::from_secs(10);
/// As of other answers that make no sense.
const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// Our code for an agent pool that is not any more as it was planned with.
const CHANGED: &str = "Changed";

impl AgentPools {
    /// Asks for `count` machines, reckoned from `planned`: of an autoscaled agent pool as the least that it keeps.
    pub async fn scale(
        &self,
        name: &str,
        planned: &Known,
        count: u32,
        urgency: Urgency,
    ) -> Result<(), AzureError> {
        let pool = self.claim_planned(name, planned)?;
        let outcome = match self.confirm(name, &pool).await {
            Ok(pool) if pool.autoscaled => self.move_minimum(&pool, count, urgency).await,
            Ok(pool) => self.azure.scale(&pool, count, urgency).await,
            Err(error) => Err(error),
        };
        self.metrics.azure_write("scale", &outcome);
        self.settle_put(name, count, outcome)
    }

    /// Has the cluster autoscaler keep at least `min` machines.
    pub async fn set_minimum(&self, name: &str, min: u32) -> Result<(), AzureError> {
        let pool = self.claim_write(name)?;
        let outcome = match self.confirm(name, &pool).await {
            Ok(pool) => self.move_minimum(&pool, min, Urgency::Routine).await,
            Err(error) => Err(error),
        };
        self.metrics.azure_write("setMinimum", &outcome);
        self.settle_put(name, min, outcome)
    }

    /// Its maximum goes back as it was read, and is never passed.
    async fn move_minimum(
        &self,
        pool: &AgentPool,
        min: u32,
        urgency: Urgency,
    ) -> Result<Accepted, AzureError> {
        let max = pool.max_count.unwrap_or(min);
        self.azure.set_autoscaler_range(pool, min.min(max), max, urgency).await
    }

    /// A count that is too high brings VMs back that nobody wants, one that is too low lets Azure choose what to
    /// delete. Where ETags do not tell, or Nodes have gone since their machines were listed, both are read again. An
    /// autoscaled agent pool changes by itself, and Azure may refuse a count that is not its own. Returns it as it is.
    async fn confirm(&self, name: &str, pool: &AgentPool) -> Result<AgentPool, AzureError> {
        let is_old = self.now().duration_since(pool.read_at) > STILL_TRUE;
        let doubtful = {
            let state = self.state();
            let entry = state.entries.as_ref().and_then(|entries| entries.get(name));
            entry.is_none_or(|entry| {
                let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
                let may_differ = pool.etag.is_none() || (pool.autoscaled && is_old);
                may_differ || self.existing(entry).count() < listed
            })
        };
        if !doubtful {
            return Ok(pool.clone());
        }
        let at = Instant::now();
        let machines = tokio::time::timeout(LONGEST_CONFIRMATION, self.azure.machines(name)).await;
        let machines =
            machines.map_err(|_| AzureError::over_budget("list of all its machines", UNSETTLED))??;
        let fresh = self.azure.get(name).await?;
        let names: Vec<String> = machines.into_iter().map(|machine| machine.name).collect();
        let mut state = self.state();
        let entry = state.entry(name);
        let (Some(fresh), Some(entry)) = (fresh, entry) else {
            return Err(conflict("AgentPoolGone", "the agent pool is gone"));
        };
        let same = |listed: &Listed| {
            listed.names.iter().collect::<BTreeSet<_>>() == names.iter().collect::<BTreeSet<_>>()
        };
        let unchanged = fresh.count == pool.count
            && fresh.provisioning_state == pool.provisioning_state
            && (fresh.autoscaled, fresh.min_count, fresh.max_count)
                == (pool.autoscaled, pool.min_count, pool.max_count)
            && entry.machines.as_ref().is_some_and(same);
        // What took long to be answered is old by the time it is.
        let age = self.now().duration_since(fresh.read_at);
        entry.machines = Some(Listed { names, at });
        entry.pool = fresh.clone();
        if unchanged && age <= STILL_TRUE { Ok(fresh) } else { Err(conflict(CHANGED, "it has changed")) }
    }

    /// Makes an agent pool that is not listed. One that is there all the same stays as it is, and a list will have it.
    pub async fn create(&self, wanted: &CreateAgentPool) -> Result<(), AzureError> {
        let outcome = self.azure.create(wanted).await;
        self.metrics.azure_write("create", &outcome);
        if let Ok(Created::AlreadyThere { differences, .. }) = &outcome
            && !differences.is_empty()
        {
            tracing::warn!(
                agent_pool = wanted.name,
                ?differences,
                "the agent pool exists, other than the spec would make it"
            );
        }
        if outcome.as_ref().err().is_none_or(AzureError::outcome_unknown) {
            self.state().made.insert(wanted.name.clone(), Instant::now());
            self.refresh.notify_one();
        }
        outcome.map(drop)
    }

    /// Deletes these machines.
    pub async fn delete_machines(&self, name: &str, machines: &[String]) -> Result<(), AzureError> {
        self.claim_write(name)?;
        let outcome = self.azure.delete_machines(name, machines).await;
        self.metrics.azure_write("deleteMachines", &outcome);
        self.settle(name, outcome)
    }

    /// Lowers the count to the `count` machines that exist, if it still is above them.
    pub async fn correct_count(&self, name: &str, count: u32) -> Result<(), AzureError> {
        self.claim_write(name)?;
        let outcome = self.lower_count(name, count).await;
        self.metrics.azure_write("correctCount", &outcome);
        self.settle_put(name, count, outcome)
    }

    /// As it is this very moment, and with its ETag: whatever comes in between makes Azure refuse.
    async fn lower_count(&self, name: &str, count: u32) -> Result<Accepted, AzureError> {
        match self.azure.get(name).await? {
            Some(pool) if !pool.busy() && pool.etag.is_some() && pool.count > count => {
                self.azure.correct_count(&pool, count).await
            }
            _ => Err(conflict("CountFollowed", "the count is not above the machines any more")),
        }
    }

    /// Claims a write that was reckoned from `planned`. A list may have come since: with its ETag, a count of before would pass.
    fn claim_planned(&self, name: &str, planned: &Known) -> Result<AgentPool, AzureError> {
        let is_same = self.state().entry(name).is_some_and(|entry| {
            let listed = entry.machines.as_ref().map_or(0, |listed| listed.names.len());
            let (now, then) = (&entry.pool, &planned.pool);
            (&now.etag, now.count, &now.provisioning_state, listed)
                == (&then.etag, then.count, &then.provisioning_state, planned.listed)
        });
        if is_same { self.claim_write(name) } else { Err(conflict(CHANGED, "it has changed")) }
    }

    /// Marks the agent pool as written *before* the request goes out: if this future is dropped half-way,
    /// nothing is planned for it until it has been read again.
    fn claim_write(&self, name: &str) -> Result<AgentPool, AzureError> {
        let mut state = self.state();
        let turn = state.next_turn();
        match state.entry(name) {
            Some(entry) if entry.written == Written::Read => {
                (entry.written, entry.turn) = (Written::Unknown, turn);
                Ok(entry.pool.clone())
            }
            _ => Err(conflict("Busy", "another write of ours is under way")),
        }
    }

    /// A PUT of an agent pool is answered with the agent pool, or with where to ask. `asked` is its count or minimum.
    fn settle_put(
        &self,
        name: &str,
        asked: u32,
        outcome: Result<Accepted, AzureError>,
    ) -> Result<(), AzureError> {
        let says_nothing =
            |accepted: &Accepted| accepted.operation.is_none() && accepted.agent_pool.is_none();
        let is_doubtful = outcome.as_ref().is_ok_and(says_nothing);
        if let Some(entry) = self.state().entry(name) {
            if is_doubtful || outcome.as_ref().is_err_and(AzureError::outcome_unknown) {
                entry.unanswered = Some((asked, Instant::now()));
            } else if outcome.is_ok() {
                // The ETag is another now: what came before is refused.
                entry.unanswered = None;
            }
        }
        self.settle(name, outcome)?;
        if is_doubtful {
            // Perhaps it was not Azure who answered: the next list tells, and nobody may count on machines before.
            let why = "the answer to a write names neither an operation nor an agent pool";
            return Err(AzureError::new(Class::Transient, NOT_UNDERSTOOD, why));
        }
        Ok(())
    }

    fn settle(&self, name: &str, outcome: Result<Accepted, AzureError>) -> Result<(), AzureError> {
        let left = self.azure.write_budget(name);
        let mut state = self.state();
        let turn = state.next_turn();
        if let Some(entry) = state.entry(name) {
            (entry.write_budget, entry.turn) = (Some(left), turn);
            match &outcome {
                Ok(accepted) => {
                    entry.written = match &accepted.operation {
                        Some(url) => Written::Running(Followed::new(url.clone(), accepted.retry_after)),
                        None => Written::Unknown,
                    };
                    if let Some(pool) = &accepted.agent_pool {
                        entry.pool = pool.clone();
                    }
                    entry.failure = None;
                }
                // Just read, and not written.
                Err(error) if error.code == CHANGED => entry.written = Written::Read,
                // Refused for certain: nothing runs. What we knew may be what made it fail.
                Err(error) if !error.outcome_unknown() && error.class != Class::Conflict => {
                    entry.written = Written::Read;
                }
                // Until a read shows how it stands. A list that came while the answer was awaited does not.
                Err(_) => entry.written = Written::Unknown,
            }
        }
        drop(state);
        self.refresh.notify_one();
        outcome.map(drop)
    }
}

fn conflict(code: &str, message: &str) -> AzureError {
    AzureError::new(Class::Conflict, code, message)
}
