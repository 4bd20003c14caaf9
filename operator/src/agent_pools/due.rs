//! When agent pools, their machines and our operations are read anew: often while something is under way or does not
//! fit together, rarely otherwise.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_crds::names;
use tokio::time::Instant;

use super::entry::{Entry, Followed, Written};
use super::read::Lists;
use super::{AgentPools, State};
use crate::node::{self, agent_pool_of, is_ready};

/// How often agent pools are listed while nothing happens: 40 reads an hour out of a bucket that all
/// clusters of the subscription share.
pub(super) const IDLE: Duration = Duration::from_secs(90);
/// … while an operation runs whose URL we do not have, or something does not fit together.
pub(super) const UNSETTLED: Duration = Duration::from_secs(5);
/// … at most, after Azure has refused reads: the bucket is not ours alone.
pub(super) const LONGEST_IDLE: Duration = Duration::from_mins(15);
/// At least so long from the end of one list to the next.
const BETWEEN_LISTS: Duration = Duration::from_secs(1);
/// An agent pool that was asked for is looked for so long; one that is refused later may never be listed.
pub(super) const APPEARS_WITHIN: Duration = Duration::from_mins(10);

impl AgentPools {
    /// Reads whenever something should be known anew. Ends never.
    pub async fn keep_fresh(&self) {
        let mut listed = None::<Instant>;
        let mut read_again = false;
        let mut late = Lists::new();
        loop {
            let over = self.follow().await;
            let due = listed.is_none_or(|at: Instant| at.elapsed() >= self.interval());
            read_again |= due || over;
            // Several agent pools that change at once are read once.
            let earliest = listed.map_or(Instant::now(), |at| at + BETWEEN_LISTS);
            if read_again && self.quiet().is_none() && earliest <= Instant::now() {
                late.extend(self.read().await);
                listed = Some(Instant::now());
                read_again = false;
            }
            let next_list = self
                .quiet()
                .unwrap_or_else(|| if read_again { earliest } else { Instant::now() + self.interval() });
            let next = self.next_operation().map_or(next_list, |ask_at| ask_at.min(next_list));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.refresh.notified() => read_again |= self.unknown(),
                Some(answer) = late.next() => {
                    self.take_in([answer]);
                    self.trigger.fire();
                }
            };
        }
    }

    /// Until when no list is asked for.
    fn quiet(&self) -> Option<Instant> {
        self.state().quiet_until.filter(|until| *until > Instant::now())
    }

    fn next_operation(&self) -> Option<Instant> {
        self.followed().into_iter().map(|(_, followed)| followed.ask_at).min()
    }

    pub(super) fn followed(&self) -> Vec<(String, Followed)> {
        let state = self.state();
        let entries = state.entries.iter().flatten();
        let running = |entry: &Entry| match &entry.written {
            Written::Running(followed) => Some(followed.clone()),
            Written::Read | Written::Unknown => None,
        };
        entries.filter_map(|(name, entry)| Some((name.clone(), running(entry)?))).collect()
    }

    /// Whether something was written and only a list can tell how it stands, or a list is missing.
    fn unknown(&self) -> bool {
        let state = self.state();
        let Some(entries) = &state.entries else { return true };
        let is_awaited =
            |(name, at): (&String, &Instant)| at.elapsed() < APPEARS_WITHIN && !entries.contains_key(name);
        if state.made.iter().any(is_awaited) {
            return true;
        }
        entries.iter().any(|(name, entry)| {
            let is_missing = entry.machines.is_none() && !entry.listing && state.wanted.contains(name);
            entry.written == Written::Unknown || is_missing
        })
    }

    /// How long a list stays good.
    fn interval(&self) -> Duration {
        if self.unknown() || self.state().unreachable.is_some() {
            return UNSETTLED;
        }
        let state = self.state();
        match state.unsettled_since {
            // A machine that never becomes a Node must not cost a list every few seconds for ever.
            Some(since) => (since.elapsed() / 5).clamp(UNSETTLED, state.idle),
            None => state.idle,
        }
    }

    pub(super) fn is_unsettled(&self, state: &State, nodes: &BTreeMap<String, BTreeSet<String>>) -> bool {
        state.entries.iter().flatten().any(|(name, entry)| {
            // While an operation's own URL is asked, lists tell nothing more.
            let followed = matches!(entry.written, Written::Running(_));
            state.wanted.contains(name)
                && !followed
                && (entry.pool.busy() || (!entry.listing && self.differs(entry, nodes.get(name))))
        })
    }

    /// Nodes that Azure may have something to tell of: a machine that no list has named and nobody here has asked for,
    /// as AKS makes for an upgrade; one that is out of use, although it is not ours to go.
    pub(super) fn odd_nodes(&self, state: &State) -> BTreeSet<String> {
        let mut listed = BTreeMap::new();
        for (name, entry) in state.entries.iter().flatten() {
            if let (Written::Read, Some(machines)) = (&entry.written, &entry.machines)
                && state.wanted.contains(name)
            {
                let machines: HashSet<_> = machines.names.iter().map(String::as_str).collect();
                listed.insert(name.as_str(), machines);
            }
        }
        let is_odd = |node: &Node| {
            let Some(machines) = agent_pool_of(node).and_then(|agent_pool| listed.get(agent_pool)) else {
                return false;
            };
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let goes = [names::EVICTION_ANNOTATION, names::DRAIN_REQUEST_ANNOTATION];
            let goes = goes.iter().any(|mark| node.annotations().contains_key(*mark));
            let is_closed = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
            !machines.contains(name) || (!goes && (is_closed || !is_ready(node)))
        };
        let nodes = self.nodes.all();
        nodes.iter().filter(|node| is_odd(node)).map(|node| node.name_any()).collect()
    }

    /// Agent pools with a node that goes.
    pub(super) fn losing(&self) -> HashSet<String> {
        let goes = |node: &Node| node::notice(node).is_some_and(|notice| notice.takes_capacity());
        let nodes = self.nodes.all();
        let losing = nodes.iter().filter(|node| goes(node)).filter_map(|node| agent_pool_of(node));
        losing.map(str::to_owned).collect()
    }

    /// Whether listed machines and Nodes do not match.
    pub(super) fn differs(&self, entry: &Entry, nodes: Option<&BTreeSet<String>>) -> bool {
        let listed: BTreeSet<&String> = self.existing(entry).collect();
        let nodes: BTreeSet<&String> = nodes.into_iter().flatten().collect();
        listed != nodes
    }
}
