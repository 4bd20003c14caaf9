//! Where a state leads if nothing more goes wrong.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;

use super::state::{Budget, State, VmState};
use super::{Capacity, Step};

impl Capacity {
    /// Nodes on which pods are to stay.
    fn staying(state: &State) -> impl Iterator<Item = &VmState> {
        state.vms.iter().filter(|vm| {
            vm.exists
                && vm
                    .node
                    .as_ref()
                    .is_some_and(|node| !node.noticed && node.asked.is_none() && node.answer.is_none())
        })
    }

    /// Whether everything is as it should be: all on spot, nothing more, nothing under way.
    fn is_whole(&self, state: &State) -> bool {
        let spot = Self::staying(state).filter(|vm| self.is_spot(vm.pool)).count();
        spot == usize::from(self.bounds.replicas)
            && state.vms.iter().filter(|vm| vm.exists).count() == spot
            && state.azure.iter().all(|pool| pool.operation.is_none())
            && state.work.is_none()
            && state.wire.is_empty()
    }

    /// From here, if nothing more goes wrong: whether everything is as it should be in the end, and on the way nothing is
    /// missing that could be there before Azure takes what it has announced.
    pub(super) fn converges(&self, state: &State) -> bool {
        let mut course = Vec::new();
        let mut state = state.clone();
        let mut waits = 0;
        loop {
            // Faults that may still come are not part of where it leads.
            state.budget = Budget::default();
            let hash = hash(&state);
            if self.settles.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
                break;
            }
            if course.len() > 400 {
                return false;
            }
            course.push(hash);
            let mut steps = Vec::new();
            self.next(&state, &mut steps);
            let next = steps.iter().find_map(|step| {
                let is_end = matches!(step, Step::Evict(_));
                if is_end && waits == 0 {
                    return None;
                }
                Some((is_end, self.step(&state, step)?))
            });
            match next {
                Some((is_end, next)) => {
                    if is_end {
                        let ready = Self::staying(&state).count();
                        if ready < usize::from(self.bounds.replicas) {
                            return false;
                        }
                    }
                    waits = 0;
                    state = next;
                }
                // Nothing happens by itself: time alone may change that.
                None if waits == 0 => {
                    waits = 1;
                    if let Some(next) = self.step(&state, &Step::Wait) {
                        state = next;
                    }
                }
                None if self.is_whole(&state) => break,
                None => return false,
            }
        }
        self.settles.lock().unwrap_or_else(PoisonError::into_inner).extend(course);
        true
    }
}

fn hash(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}
