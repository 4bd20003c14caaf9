//! Azure: what it does with a request, and what changes with it.

use super::state::{Act, AzureOperation, Outcome, Sent, State, Vm, Wrong};
use super::{Capacity, Mutation};

impl Capacity {
    /// What Azure does with a request.
    pub(super) fn receive(&self, state: &mut State, sent: &Sent) -> Outcome {
        let Some(pool) = sent.act.pool() else { return Outcome::Conflict };
        let existing = state.existing(pool);
        let azure = &mut state.azure[usize::from(pool)];
        if azure.operation.is_some() {
            return Outcome::Conflict;
        }
        match &sent.act {
            Act::Put { count, .. } => {
                if !sent.fresh && !self.is(Mutation::NoIfMatch) {
                    return Outcome::Conflict;
                }
                if *count < existing {
                    state.ghost.wrong = Some(Wrong::AzureChose);
                }
                azure.count = *count;
                let makes = count.saturating_sub(existing);
                azure.operation = Some(AzureOperation { makes, deletes: Vec::new() });
            }
            Act::Delete { vms, .. } => {
                // One that is gone already makes Azure refuse the whole request.
                if vms.iter().any(|vm| !state.vms[usize::from(*vm)].exists) {
                    return Outcome::Conflict;
                }
                azure.operation = Some(AzureOperation { makes: 0, deletes: vms.clone() });
            }
            Act::Drain(_) | Act::Withdraw(_) => return Outcome::Conflict,
        }
        azure.failed = false;
        Self::changed(state, pool);
        Outcome::Accepted
    }

    pub(super) fn delete_vm(state: &mut State, at: Vm) {
        let (pool, exists) = (state.vms[usize::from(at)].pool, state.vms[usize::from(at)].exists);
        if !exists {
            return;
        }
        state.vms[usize::from(at)].exists = false;
        state.vms[usize::from(at)].doomed = false;
        let azure = &mut state.azure[usize::from(pool)];
        azure.count = azure.count.saturating_sub(1);
        Self::changed(state, pool);
    }

    /// Whatever has an ETag of this agent pool has an old one now.
    pub(super) fn changed(state: &mut State, pool: u8) {
        if let Some(cache) = &mut state.cache {
            cache[usize::from(pool)].fresh = false;
        }
        for sent in state.wire.iter_mut().filter(|sent| sent.act.pool() == Some(pool)) {
            sent.fresh = false;
        }
        let unsent = state.work.iter_mut().flat_map(|work| &mut work.unsent);
        for (act, fresh) in unsent.chain(state.frozen.iter_mut().flat_map(|frozen| &mut frozen.unsent)) {
            *fresh &= act.pool() != Some(pool);
        }
    }
}
