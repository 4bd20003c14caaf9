//! Pods that may not be asked to go yet, because their own hook has not answered.

use std::collections::BTreeSet;

/// Pods whose own hook has not answered yet, by UID. The drain asks them once they are released, or when it is
/// nearly too late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds(BTreeSet<String>);

impl Holds {
    /// Holds a pod; says whether it was not held before.
    pub fn hold(&mut self, uid: impl Into<String>) -> bool {
        self.0.insert(uid.into())
    }

    /// Releases a pod; says whether it was held.
    pub fn release(&mut self, uid: &str) -> bool {
        self.0.remove(uid)
    }

    /// Whether a pod is held.
    pub fn contains(&self, uid: &str) -> bool {
        self.0.contains(uid)
    }
}

impl<S: Into<String>> FromIterator<S> for Holds {
    fn from_iter<I: IntoIterator<Item = S>>(uids: I) -> Self {
        Self(uids.into_iter().map(Into::into).collect())
    }
}
