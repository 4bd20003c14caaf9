//! Long-running operations: begun, moved on, ended, aborted, superseded.

use std::collections::HashSet;
use std::mem;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::upgrades::Upgrade;
use super::{Accepted, Cloud, Refused, later};
use crate::api::{
    BackgroundOperation, CountAfterFailure, GoneReason, OperationState, OperationStatus, VmPhase,
};
use crate::refusal::Refusal;

/// An operation, with what it waits for.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) state: OperationState,
    /// Machines whose Nodes it waits for.
    awaits: HashSet<u64>,
    /// Machines whose end it waits for.
    removes: HashSet<u64>,
    /// It does not succeed sooner.
    pub(super) earliest: Timestamp,
    /// It fails then, for this.
    pub(super) fails: Option<(Timestamp, Value)>,
    pub(super) work: Work,
    /// The rest of its status URL, which callers must repeat to the letter.
    signature: String,
}

/// What an operation does besides waiting for machines.
#[derive(Debug, Clone, Default)]
pub(super) enum Work {
    /// Nothing.
    #[default]
    Machines,
    /// The pool goes with its machines.
    DeletePool,
    /// Machines get another image, one batch after the other.
    Upgrade(Upgrade),
    /// Another operation is being aborted.
    Abort(usize),
}

/// An operation of AKS on the whole cluster.
#[derive(Debug, Clone)]
pub(super) struct ClusterOperation {
    pub(super) kind: String,
    pub(super) ends_at: Timestamp,
}

/// An operation to begin.
#[derive(Debug, Default)]
pub(super) struct Begin<'a> {
    pub(super) kind: &'a str,
    pub(super) awaits: Vec<u64>,
    pub(super) removes: HashSet<u64>,
    pub(super) fails: Option<(Timestamp, Value)>,
    pub(super) work: Work,
    pub(super) background: bool,
    /// The least time it takes, if not the usual.
    pub(super) takes: Option<Duration>,
}

impl Cloud {
    /// An operation and the query that its status URL must carry.
    pub fn operation(&self, id: &str) -> Option<(&OperationState, &str)> {
        self.operations
            .iter()
            .find(|operation| operation.state.id.eq_ignore_ascii_case(id))
            .map(|operation| (&operation.state, operation.signature.as_str()))
    }

    /// Why nothing can be begun on this pool.
    pub(super) fn busy(&self, name: &str) -> Option<Refusal> {
        if let Some(operation) = &self.cluster_operation {
            return Some(Refusal::cluster_busy(&operation.kind));
        }
        let pool = self.pools.get(name)?;
        pool.operation.map(|_| Refusal::busy(name, pool.provisioning_state()))
    }

    pub(super) fn begin(&mut self, name: &str, begin: Begin<'_>, now: Timestamp) -> Accepted {
        let index = self.open(name, &begin, now);
        let tag = self.ids.guid();
        if let Some(pool) = self.pools.get_mut(name) {
            pool.set("provisioningState", json!(begin.kind));
            pool.set("eTag", json!(tag));
            pool.operation = Some(index);
        }
        let operation = &mut self.operations[index];
        operation.work = begin.work;
        operation.fails = begin.fails;
        operation.awaits = begin.awaits.into_iter().collect();
        operation.removes = begin.removes;
        Accepted {
            created: false,
            operation: operation.state.id.clone(),
            signature: operation.signature.clone(),
            ordered: Vec::new(),
        }
    }

    /// An operation that no pool knows of.
    fn open(&mut self, name: &str, begin: &Begin<'_>, now: Timestamp) -> usize {
        let takes = begin.takes.or(self.switches(name).operation_time).unwrap_or(self.settings.update_time);
        let id = self.ids.guid();
        let signature = format!(
            "api-version=2025-03-01&t={}&c={}&s={}&h={}",
            now.as_millisecond(),
            self.ids.opaque(1800),
            self.ids.opaque(342),
            self.ids.opaque(43)
        );
        self.operations.push(Operation {
            state: OperationState {
                id,
                pool: name.to_owned(),
                kind: begin.kind.to_owned(),
                background: begin.background,
                status: OperationStatus::InProgress,
                started_at: now,
                ended_at: None,
                error: None,
            },
            awaits: HashSet::new(),
            removes: HashSet::new(),
            earliest: later(now, takes),
            fails: None,
            work: Work::Machines,
            signature,
        });
        self.operations.len() - 1
    }

    pub(super) fn finish_operation(&mut self, name: &str, now: Timestamp) {
        let after_failure =
            self.switches(name).count_after_failure.unwrap_or(self.settings.count_after_failure);
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(index) = pool.operation else { return };
        let Some(operation) = self.operations.get_mut(index) else { return };
        if let Some((at, error)) = &operation.fails {
            if *at > now {
                return;
            }
            operation.state.status = OperationStatus::Failed;
            operation.state.ended_at = Some(*at);
            operation.state.error = Some(error.clone());
            let status = json!({"provisioningError": error});
            pool.set("status", status);
            pool.set("provisioningState", json!("Failed"));
            if after_failure == CountAfterFailure::Existing {
                let live = pool.live().count();
                pool.set("count", json!(live));
            }
            pool.last_operation = pool.operation.take();
            return;
        }
        let booted = operation.awaits.iter().filter_map(|id| pool.vms.get(id)).all(|vm| {
            matches!(vm.state.phase, VmPhase::Deleting | VmPhase::Deallocated)
                || vm.state.registered_at.is_some()
        });
        let removed = !operation.removes.iter().any(|id| pool.vms.contains_key(id));
        let worked = match &operation.work {
            Work::Machines | Work::Abort(_) => true,
            Work::DeletePool => pool.vms.is_empty(),
            Work::Upgrade(upgrade) => upgrade.is_done(),
        };
        if !(booted && removed && worked && operation.earliest <= now) {
            return;
        }
        operation.state.status = OperationStatus::Succeeded;
        operation.state.ended_at = Some(now);
        pool.last_operation = pool.operation.take();
        pool.properties.remove("status");
        pool.set("provisioningState", json!("Succeeded"));
        match mem::take(&mut operation.work) {
            Work::Machines => {}
            Work::Abort(of) => {
                pool.set("provisioningState", json!("Canceled"));
                if let Some(aborted) = self.operations.get_mut(of) {
                    aborted.state.status = OperationStatus::Canceled;
                    aborted.state.ended_at = Some(now);
                }
            }
            Work::Upgrade(upgrade) => upgrade.apply(&mut pool.properties),
            Work::DeletePool => self.forget_pool(name),
        }
    }

    /// Aborts the operation that runs; nothing to do when there has never been one.
    pub fn abort(&mut self, name: &str, now: Timestamp) -> Result<Option<Accepted>, Refusal> {
        let pool = self.pools.get_mut(name).ok_or_else(|| Refusal::no_pool(name))?;
        let Some(index) = pool.operation else {
            return match pool.last_operation {
                Some(_) => Err(Refusal::flat(
                    409,
                    "OperationNotAllowed",
                    format!(
                        "Operation is not allowed: there is no operation in progress on agent pool {name} that could be aborted; the latest has completed."
                    ),
                )),
                None => Ok(None),
            };
        };
        let Some(running) = self.operations.get_mut(index) else { return Ok(None) };
        if matches!(running.work, Work::Abort(_) | Work::DeletePool) {
            return Err(Refusal::busy(name, pool.provisioning_state()));
        }
        if let Work::Upgrade(upgrade) = mem::take(&mut running.work) {
            self.leave_upgrade(name, &upgrade, now);
        }
        let begin = Begin { kind: "Canceling", work: Work::Abort(index), ..Begin::default() };
        Ok(Some(self.begin(name, begin, now)))
    }

    /// Ends the operation that runs on a pool, because something else takes its place.
    pub(super) fn supersede(&mut self, name: &str, code: &str, by: &str, now: Timestamp) {
        let Some(pool) = self.pools.get_mut(name) else { return };
        let Some(index) = pool.operation.take() else { return };
        pool.last_operation = Some(index);
        let error = json!({"code": code, "message": format!("This operation was preempted by {by}.")});
        let mut ended = vec![index];
        if let Some(Work::Abort(of)) = self.operations.get(index).map(|operation| &operation.work) {
            ended.push(*of);
        }
        for index in ended {
            if let Some(operation) = self.operations.get_mut(index) {
                operation.state.status = OperationStatus::Failed;
                operation.state.ended_at = Some(now);
                operation.state.error = Some(error.clone());
                if let Work::Upgrade(upgrade) = mem::take(&mut operation.work) {
                    self.leave_upgrade(name, &upgrade, now);
                }
            }
        }
    }

    /// AKS does something of its own accord.
    pub fn begin_background(&mut self, what: &BackgroundOperation, now: Timestamp) -> Result<(), Refused> {
        let Some(name) = &what.pool else {
            self.cluster_operation =
                Some(ClusterOperation { kind: what.kind.clone(), ends_at: later(now, what.time) });
            self.change_e_tags();
            return Ok(());
        };
        let pool = self.pools.get(name).ok_or_else(|| Refused::NotFound(format!("no agent pool {name}")))?;
        if pool.operation.is_some() {
            if !what.preempt {
                return Err(Refused::Invalid(format!("agent pool {name} has an operation already")));
            }
            self.supersede(name, "AKSOperationPreempted", "another operation", now);
        }
        let begin = Begin { kind: &what.kind, background: true, takes: Some(what.time), ..Begin::default() };
        self.begin(name, begin, now);
        Ok(())
    }

    /// Every pool has another eTag, as after an operation on the cluster.
    pub fn change_e_tags(&mut self) {
        for pool in self.pools.values_mut() {
            let tag = self.ids.guid();
            pool.set("eTag", json!(tag));
        }
    }

    pub(super) fn finish_cluster_operation(&mut self, now: Timestamp) {
        if self.cluster_operation.as_ref().is_some_and(|operation| operation.ends_at <= now) {
            self.cluster_operation = None;
            self.change_e_tags();
        }
    }

    /// An operation on one machine, which its pool knows nothing of.
    pub(super) fn begin_detached(
        &mut self,
        name: &str,
        instance: u64,
        kind: &str,
        now: Timestamp,
    ) -> Accepted {
        let index = self.open(name, &Begin { kind, ..Begin::default() }, now);
        self.detached.push((index, name.to_owned(), instance));
        let operation = &self.operations[index];
        Accepted {
            created: false,
            operation: operation.state.id.clone(),
            signature: operation.signature.clone(),
            ordered: Vec::new(),
        }
    }

    pub(super) fn finish_detached(&mut self, now: Timestamp) {
        let (pools, operations) = (&self.pools, &mut self.operations);
        self.detached.retain(|(index, name, instance)| {
            let vm = pools.get(name).and_then(|pool| pool.vms.get(instance));
            let waits = vm.is_some_and(|vm| vm.state.phase == VmPhase::Creating);
            if !waits && let Some(operation) = operations.get_mut(*index) {
                operation.state.status = OperationStatus::Succeeded;
                operation.state.ended_at = Some(now);
            }
            waits
        });
    }

    /// All machines of a pool are on their way out.
    pub(super) fn remove_all(&mut self, name: &str, reason: GoneReason, now: Timestamp) -> HashSet<u64> {
        let at = later(now, self.settings.delete_time);
        let Some(pool) = self.pools.get_mut(name) else { return HashSet::new() };
        for vm in pool.vms.values_mut() {
            vm.state.phase = VmPhase::Deleting;
            vm.gone_due = Some((at, reason));
        }
        pool.vms.keys().copied().collect()
    }
}
