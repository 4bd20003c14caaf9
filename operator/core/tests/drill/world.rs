//! A cluster of a few nodes that does what a drill asks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use spotpool_core::drill::{Ask, Node, Notice, Plan, Pool, Snapshot, plan};
use spotpool_crds::drill::{EvictionDrillSpec, EvictionDrillStatus};
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::voluntary_drain::DrainPhase;

/// A drill of all nodes, of this much besides.
pub fn spec(more: &serde_json::Value) -> EvictionDrillSpec {
    let mut spec = json!({"target": {"spotPool": "p"}, "amount": {"all": true}, "limits": {"maxNodes": 10}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

/// A cluster that does what it is asked, in its own time.
pub struct World {
    pub now: Timestamp,
    pub snapshot: Snapshot,
    pub status: EvictionDrillStatus,
    /// Nodes of others under notice.
    pub elsewhere: Vec<String>,
    /// VMs that go, and when.
    doomed: BTreeMap<String, Timestamp>,
    /// Those of them that AKS deletes.
    deleting: BTreeSet<String>,
    /// All that was asked for, in order.
    pub evicted: Vec<String>,
    born: usize,
}

impl World {
    pub fn new(nodes: usize) -> Self {
        let mut world = Self {
            now: "2026-01-06T10:00:00Z".parse().unwrap(),
            snapshot: Snapshot {
                uid: "0123456789".into(),
                generation: 1,
                pool: Some(Pool { wanted: nodes as u32, ready: nodes as u32, ..Pool::default() }),
                unready_budgets: Some(Vec::new()),
                pods: Some(BTreeMap::new()),
                ..Snapshot::default()
            },
            status: EvictionDrillStatus::default(),
            elsewhere: Vec::new(),
            doomed: BTreeMap::new(),
            deleting: BTreeSet::new(),
            evicted: Vec::new(),
            born: 0,
        };
        for _ in 0..nodes {
            world.boot();
        }
        world.settle();
        world
    }

    fn boot(&mut self) {
        self.born += 1;
        let name = format!("n{}", self.born);
        self.snapshot.nodes.push(Node {
            uid: format!("uid-{name}"),
            vm: format!("vm-{name}"),
            name,
            agent_pool: "spota".into(),
            zone: "z-1".into(),
            units: 1,
            is_spot: true,
            selected: true,
            ready: true,
            alive: true,
            ..Node::default()
        });
    }

    /// What the SpotPool's operator would say of it.
    pub fn settle(&mut self) {
        let ready = self.ready();
        if let Some(pool) = &mut self.snapshot.pool {
            pool.ready = ready;
        }
        let noticed = self.snapshot.nodes.iter().filter(|node| node.notice.is_some());
        let noticed = noticed.map(|node| node.name.clone());
        self.snapshot.noticed = noticed.chain(self.elsewhere.iter().cloned()).collect();
    }

    pub fn ready(&self) -> u32 {
        self.snapshot.nodes.iter().filter(|node| node.ready).count() as u32
    }

    /// A step; what it asks is done if `heard`.
    pub fn step(&mut self, spec: &EvictionDrillSpec, heard: bool) -> Plan {
        let plan = plan(spec, &self.snapshot, &self.status, self.now);
        self.status = plan.status.clone();
        for ask in &plan.asks {
            if heard {
                self.carry_out(ask);
            }
        }
        self.settle();
        plan
    }

    fn carry_out(&mut self, ask: &Ask) {
        let now = self.now;
        let find =
            |world: &mut Self, name: &str| world.snapshot.nodes.iter().position(|node| node.name == name);
        match ask {
            Ask::Evict { node, vm } => {
                let Some(at) = find(self, node) else { return };
                assert_eq!(self.snapshot.nodes[at].vm, *vm, "another machine");
                self.evicted.push(vm.clone());
                self.doom(at, now + SignedDuration::from_secs(30));
            }
            Ask::Delete { agent_pool, machines } => {
                assert!(!self.snapshot.occupied.contains(agent_pool), "{agent_pool} would refuse");
                for machine in machines {
                    let Some(at) = find(self, &machine.node) else { continue };
                    let node = &self.snapshot.nodes[at];
                    assert_eq!((&node.uid, &node.vm), (&machine.uid, &machine.vm), "another machine");
                    self.evicted.push(machine.vm.clone());
                    self.doomed.insert(machine.node.clone(), now + SignedDuration::from_secs(30));
                    self.deleting.insert(machine.node.clone());
                    let targets = self.status.run.iter_mut().flat_map(|run| &mut run.targets);
                    for target in targets.filter(|target| target.node == machine.node) {
                        target.asked_at = Some(now.into());
                    }
                }
                self.snapshot.occupied.insert(agent_pool.clone());
            }
            Ask::Drain { node, uid, request, .. } => {
                let Some(at) = find(self, node) else { return };
                let node = &mut self.snapshot.nodes[at];
                assert_eq!(node.uid, *uid, "another node");
                (node.closed, node.ready) = (true, false);
                node.request = Some(request.clone());
                node.drain = Some((request.clone(), DrainPhase::Drained, 0));
                self.evicted.push(node.vm.clone());
            }
            Ask::Withdraw { node, .. } => {
                let Some(at) = find(self, node) else { return };
                let node = &mut self.snapshot.nodes[at];
                (node.closed, node.request, node.drain) = (false, None, None);
                node.ready = node.alive && node.notice.is_none();
            }
        }
    }

    /// Azure will take this VM.
    pub fn doom(&mut self, at: usize, then: Timestamp) {
        let node = &mut self.snapshot.nodes[at];
        if node.notice.is_none() {
            node.notice = Some(Notice { phase: Phase::Drained, pods: PodCounts::default() });
            (node.closed, node.ready) = (true, false);
            self.doomed.insert(node.name.clone(), then);
        }
        self.settle();
    }

    /// Time goes on; what is gone is replaced.
    pub fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        let now = self.now;
        let gone: BTreeSet<String> =
            self.doomed.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        self.doomed.retain(|_, at| *at > now);
        self.deleting.retain(|name| !gone.contains(name));
        if self.deleting.is_empty() {
            self.snapshot.occupied.clear();
        }
        self.snapshot.nodes.retain(|node| !gone.contains(&node.name));
        for _ in &gone {
            self.boot();
        }
        self.settle();
    }

    pub fn asked(&self) -> usize {
        let targets = self.status.run.iter().flat_map(|run| &run.targets);
        targets.filter(|target| target.intended_at.is_some()).count()
    }
}
