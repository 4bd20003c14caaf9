//! What a drain tells while it runs and when it is over.

use std::collections::BTreeSet;

use crate::answer::Answer;
use crate::pods::Pod;

/// Hears what happens in a drain.
pub trait Observer {
    /// The API answered a request for `pod`; `deleted` tells an escalation from an eviction.
    fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        let _ = (pod, deleted, answer);
    }
    /// `pod` was deleted although `budgets`, of its namespace, held it; none are given if nobody could say which.
    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let _ = (pod, budgets);
    }
    /// Nearly all time is over, and these are still there, `namespace/name: why`: what has to be written before the
    /// VM goes must be written now. The drain goes on.
    fn nearly_over(&self, left: &[String]) {
        let _ = left;
    }
    /// The numbers changed.
    fn progressed(&self, progress: &Progress) {
        let _ = progress;
    }
}

/// A disruption budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its name.
    pub name: String,
    /// Its UID, if it was read.
    pub uid: Option<String>,
}

/// How far a drain is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Evictions that the API accepted.
    pub evicted: u32,
    /// Deletions past a disruption budget that the API accepted.
    pub escalated: u32,
    /// Pods that still have to go.
    pub left: u32,
    /// Whether every pod has been asked to go at least once.
    pub all_asked: bool,
    /// Disruption budgets that hold pods now, as `namespace/name`.
    pub blocking: BTreeSet<String>,
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why it ended.
    pub ending: Ending,
    /// The last numbers.
    pub progress: Progress,
    /// Pods that are still there, `namespace/name: why`.
    pub left: Vec<String>,
    /// Of those that were told to go: pods that kept something on the node's disk.
    pub local_storage: u32,
    /// Of those that were told to go: pods that nobody makes anew.
    pub unmanaged: u32,
}

/// Why a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is left that a drain moves.
    Drained,
    /// The time is over and pods are left.
    TimeOver,
    /// It was stopped.
    Stopped,
}
