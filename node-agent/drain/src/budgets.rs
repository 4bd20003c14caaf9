//! Disruption budgets: read only once a drain meets one, by namespace, and followed from then on. A drain that may
//! not or cannot read them goes on without.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{Selector, SelectorExt};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};

use crate::follow::follow_with_pauses;
use crate::pods::Pod;
use crate::report::Budget;

/// Where there is no budget, one that is made during a drain is noticed this late: the watch for it would have to be
/// opened just when the evictions are sent, by each of many nodes that may go at once.
const NONE_THERE: Duration = Duration::from_secs(5);

/// What is known of one budget.
#[derive(Debug)]
struct Known {
    name: String,
    /// `None` selects no pod.
    selector: Option<Selector>,
    /// Pods that may go now; none before the disruption controller has looked at it.
    allowed: i32,
}

/// A turn in what is known.
enum Change {
    Listed(String, BTreeMap<String, Known>),
    Applied(String, String, Known),
    Deleted(String, String),
}

/// The budgets of the namespaces that a drain has met one in.
pub struct Budgets {
    /// By namespace and UID; a namespace is there once its list is.
    known: BTreeMap<String, BTreeMap<String, Known>>,
    followed: BTreeSet<String>,
    following: FuturesUnordered<BoxFuture<'static, Infallible>>,
    changes: (mpsc::UnboundedSender<Change>, mpsc::UnboundedReceiver<Change>),
}

/// What a change means for pods.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// This budget may let pods go now.
    Freed {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Which pods are under which budget may have changed.
    Selection,
}

impl Budgets {
    /// Knows nothing, follows nothing.
    pub fn new() -> Self {
        Self {
            known: BTreeMap::new(),
            followed: BTreeSet::new(),
            following: FuturesUnordered::new(),
            changes: mpsc::unbounded_channel(),
        }
    }

    /// Follows the budgets of a namespace from now on.
    pub fn follow(&mut self, client: &Client, namespace: &str) {
        if !self.followed.insert(namespace.to_owned()) {
            return;
        }
        tracing::debug!(namespace, "reading disruption budgets");
        let (api, tell) = (Api::namespaced(client.clone(), namespace), self.changes.0.clone());
        self.following.push(Box::pin(follow_namespace(api, namespace.to_owned(), tell)));
    }

    /// The next change. Never ends without one; must be waited for, since it does the following.
    pub async fn changed(&mut self) -> News {
        loop {
            tokio::select! {
                Some(change) = self.changes.1.recv() => if let Some(news) = self.apply(change) {
                    return news;
                },
                Some(never) = self.following.next() => match never {},
                else => std::future::pending().await,
            }
        }
    }

    fn apply(&mut self, change: Change) -> Option<News> {
        match change {
            Change::Listed(namespace, budgets) => {
                self.known.insert(namespace.clone(), budgets);
                Some(News::Selection)
            }
            Change::Applied(namespace, uid, budget) => {
                let name = budget.name.clone();
                let freed = budget.allowed > 0;
                let all = self.known.entry(namespace.clone()).or_default();
                let selector = budget.selector.clone();
                match all.insert(uid, budget) {
                    Some(last) if last.selector == selector => {
                        freed.then_some(News::Freed { namespace, name })
                    }
                    _ => Some(News::Selection),
                }
            }
            Change::Deleted(namespace, uid) => {
                self.known.entry(namespace.clone()).or_default().remove(&uid)?;
                Some(News::Selection)
            }
        }
    }

    /// The budgets that select a pod; `None` while that is not known.
    pub fn of(&self, pod: &Pod) -> Option<Vec<Budget>> {
        let selects =
            |known: &Known| known.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels));
        let all = self.known.get(&pod.namespace)?;
        let of_pod = all.iter().filter(|(_, known)| selects(known));
        let mut budgets: Vec<_> =
            of_pod.map(|(uid, known)| Budget { name: known.name.clone(), uid: Some(uid.clone()) }).collect();
        budgets.sort_by(|one, other| one.name.cmp(&other.name));
        Some(budgets)
    }
}

async fn follow_namespace(
    api: Api<PodDisruptionBudget>,
    namespace: String,
    tell: mpsc::UnboundedSender<Change>,
) -> Infallible {
    // Any version will do for the list: what is newer comes by the watch.
    let config = watcher::Config::default().any_semantic();
    let (mut listed, mut is_empty) = (BTreeMap::new(), false);
    // A drain waits for these: no long pauses after errors.
    let (_urgent, urgent) = watch::channel(true);
    follow_with_pauses(api, config, urgent, "disruption budgets", |event| {
        let change = match event {
            watcher::Event::Init => {
                listed.clear();
                None
            }
            watcher::Event::InitApply(budget) => {
                listed.extend(read(budget));
                None
            }
            watcher::Event::InitDone => {
                is_empty = listed.is_empty();
                Some(Change::Listed(namespace.clone(), std::mem::take(&mut listed)))
            }
            watcher::Event::Apply(budget) => {
                read(budget).map(|(uid, known)| Change::Applied(namespace.clone(), uid, known))
            }
            watcher::Event::Delete(budget) => {
                budget.metadata.uid.map(|uid| Change::Deleted(namespace.clone(), uid))
            }
        };
        if let Some(change) = change {
            let _ = tell.send(change); // nobody listens any more: the drain is over
        }
        if std::mem::take(&mut is_empty) { NONE_THERE } else { Duration::ZERO }
    })
    .await
}

fn read(budget: PodDisruptionBudget) -> Option<(String, Known)> {
    let (meta, spec) = (budget.metadata, budget.spec.unwrap_or_default());
    let status = budget.status.unwrap_or_default();
    let is_observed = status.observed_generation.unwrap_or_default() >= meta.generation.unwrap_or_default();
    let known = Known {
        name: meta.name?,
        // One that cannot be read selects none: its pods are then asked like all others.
        selector: spec.selector.and_then(|selector| Selector::try_from(selector).ok()),
        allowed: if is_observed { status.disruptions_allowed } else { 0 },
    };
    Some((meta.uid?, known))
}
