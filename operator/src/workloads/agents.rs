//! Which nodes have an agent that is ready: without one, a node's notice comes late or is not heard at all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use spotpool_crds::names;

use super::Listed;
use super::survey::Scope;
use crate::node::{agent_pool_of, conditions, is_ready, taints};

/// So many nodes are named.
const NAMED: usize = 3;
const OS_LABEL: &str = "kubernetes.io/os";

/// An agent's Pod on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The node's name.
    pub node: Arc<str>,
    /// Whether it says that it is ready.
    pub ready: bool,
}

/// The agents' Pods, and since when nodes that had one have none that is ready.
#[derive(Default)]
pub struct Agents {
    pods: Listed<u128, Agent>,
    lost: HashMap<Arc<str>, Timestamp>,
    /// When the Pods were first read: before, nobody looked.
    read_at: Option<Timestamp>,
}

impl Agents {
    /// A list begins.
    pub fn begin(&mut self) {
        self.pods.begin();
    }

    /// One of it.
    pub fn list(&mut self, key: u128, agent: Agent) {
        self.pods.list(key, agent);
    }

    /// It is whole.
    pub fn end(&mut self, now: Timestamp) {
        let before: HashSet<Arc<str>> = self.pods.known.values().map(|agent| agent.node.clone()).collect();
        self.pods.end();
        self.read_at.get_or_insert(now);
        let ready = self.ready();
        self.lost.retain(|node, _| !ready.contains(node));
        let seen = self.pods.known.values().map(|agent| agent.node.clone()).chain(before);
        for node in seen.filter(|node| !ready.contains(node)) {
            self.lost.entry(node).or_insert(now);
        }
    }

    /// Says whether that is new.
    pub fn put(&mut self, key: u128, agent: Agent, now: Timestamp) -> bool {
        let node = agent.node.clone();
        let is_new = self.pods.put(key, agent);
        if is_new {
            self.settle(node, now);
        }
        is_new
    }

    /// Says whether there was one.
    pub fn remove(&mut self, key: u128, now: Timestamp) -> bool {
        let gone = self.pods.known.remove(&key);
        let was_there = gone.is_some();
        if let Some(agent) = gone {
            self.settle(agent.node, now);
        }
        was_there
    }

    /// During a rollout a node has two for a moment: one that is ready is enough.
    fn settle(&mut self, node: Arc<str>, now: Timestamp) {
        if self.pods.known.values().any(|agent| agent.ready && agent.node == node) {
            self.lost.remove(&node);
        } else {
            self.lost.entry(node).or_insert(now);
        }
    }

    /// Forgets nodes that are gone.
    pub fn sweep(&mut self, nodes: &[Arc<Node>]) {
        let there: HashSet<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        self.lost.retain(|node, _| there.contains(&**node));
    }

    fn ready(&self) -> HashSet<Arc<str>> {
        self.pods.known.values().filter(|agent| agent.ready).map(|agent| agent.node.clone()).collect()
    }

    /// Whether `grace` of anything ends after `made`.
    pub fn ripens(&self, grace: SignedDuration, made: Timestamp, now: Timestamp) -> bool {
        let mut since = self.lost.values().copied().chain(self.read_at);
        since.any(|since| since.saturating_add(grace).is_ok_and(|at| made < at && at <= now))
    }

    /// Of the nodes that `scope` speaks of; absent while that cannot be told. A node may be without a ready agent for
    /// `grace`: each rollout and each new node is.
    pub fn told(
        &self,
        nodes: &[Arc<Node>],
        scope: &Scope,
        grace: SignedDuration,
        now: Timestamp,
    ) -> Option<AgentsTold> {
        let read_at = self.read_at?;
        let pools: BTreeSet<&str> = scope.agent_pools.iter().map(|pool| pool.name.as_str()).collect();
        let ready = self.ready();
        let (mut told, mut without) = (AgentsTold::default(), Vec::new());
        for node in nodes {
            let ours = agent_pool_of(node).is_some_and(|name| pools.contains(name));
            if !ours || !is_to_have_one(node) {
                continue;
            }
            told.nodes += 1;
            let name = node.metadata.name.as_deref().unwrap_or_default();
            if ready.contains(name) {
                continue;
            }
            let since = self.lost.get(name).copied().into_iter().chain(ready_since(node));
            let since = since.fold(read_at, Timestamp::max);
            if since.saturating_add(grace).is_ok_and(|until| until <= now) {
                without.push(name);
            } else if read_at.saturating_add(grace).is_ok_and(|until| now < until) {
                // Whether it had none before the operator came is not known.
                return None;
            }
        }
        without.sort_unstable();
        (told.without, told.grace) = (without.len() as u32, grace);
        told.named = without.into_iter().take(NAMED).map(str::to_owned).collect();
        Some(told)
    }
}

/// How the nodes of a SpotPool are looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentsTold {
    /// Nodes that should have an agent.
    pub nodes: u32,
    /// Those of them that have had none that is ready for too long.
    pub without: u32,
    /// The first of these.
    pub named: Vec<String>,
    /// For how long one may be without.
    pub grace: SignedDuration,
}

/// Agents run on Linux nodes; what is under notice or lost is past help, and its Pods come and go.
fn is_to_have_one(node: &Node) -> bool {
    let leaves = [names::EVICTING_TAINT, names::OUT_OF_SERVICE_TAINT, names::SHUTDOWN_TAINT];
    let mut leaving = taints(node).filter(|taint| leaves.contains(&taint.key.as_str()));
    is_ready(node)
        && node.metadata.deletion_timestamp.is_none()
        && leaving.next().is_none()
        && node.labels().get(OS_LABEL).is_none_or(|os| os == "linux")
}

fn ready_since(node: &Node) -> Option<Timestamp> {
    let ready = conditions(node).find(|condition| condition.type_ == "Ready");
    let since = ready.and_then(|ready| ready.last_transition_time.as_ref());
    since.or(node.metadata.creation_timestamp.as_ref()).map(|since| since.0)
}
