//! Reconciliation of one SpotPool: guard → gather → plan → act → report.

pub mod act;
pub mod agents;
pub mod bills;
mod conditions;
mod controller;
mod creation;
pub mod doomed;
mod drains;
mod events;
pub mod gather;
mod metered;
pub mod money;
mod node_view;
mod objective;
pub mod others;
mod pace;
mod refused;
mod release;
pub mod report;
pub mod signals;
pub mod tags;
pub mod trouble;

pub use controller::{Parts, run};
pub(crate) use pace::is_short;

use spotpool_azure::Class;

/// What can go wrong while a SpotPool is reconciled. Waiting is no error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API refused or did not answer.
    #[error("{doing}: {source}")]
    Kubernetes {
        /// What we were doing.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    pub(crate) fn kubernetes(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kubernetes { doing, source: Box::new(source) }
    }

    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Kubernetes { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 | 404 => Class::Conflict,
                    429 => Class::Throttled,
                    401 | 403 => Class::Denied,
                    400 | 422 => Class::Invalid,
                    _ => Class::Transient,
                },
                _ => Class::Transient,
            },
        }
    }
}
