//! How long things take, as this operator sees them happen: told by metrics, decided by nothing. What was under way
//! when it began is left out.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use spotpool_core::{Plan, Snapshot};
use spotpool_crds::spot_pool::{Operation, OperationKind};

/// What was asked for longer ago has long come, or never will.
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(30);

/// What was seen at the last look.
#[derive(Default)]
pub(super) struct Pace {
    short: Short,
    agent_pools: Option<BTreeMap<String, Asked>>,
}

/// Whether less is ready than once was.
#[derive(Clone, Copy, Default)]
enum Short {
    /// Or nobody knows since when.
    #[default]
    Unknown,
    Not,
    Since(Timestamp),
}

/// Of one agent pool.
#[derive(Default)]
struct Asked {
    /// When machines were asked for, the newest last.
    at: Vec<Timestamp>,
    /// Nodes that were ready.
    ready: BTreeSet<String>,
}

/// What has come about since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Come {
    /// How long less was ready than once was, if as much is again.
    pub replaced_after: Option<SignedDuration>,
    /// How long nodes took that are ready now, from the request for them, by agent pool.
    pub allocated: Vec<(String, SignedDuration)>,
}

/// Whether less is ready than once was.
pub(crate) fn is_short(plan: &Plan) -> bool {
    let capacity = &plan.capacity;
    capacity.ready_spot + capacity.ready_on_demand < capacity.established
}

impl Pace {
    /// Looks again.
    pub fn look(&mut self, snapshot: &Snapshot, plan: &Plan, now: Timestamp) -> Come {
        let (next, replaced_after) = match (self.short, is_short(plan)) {
            (Short::Unknown, true) => (Short::Unknown, None),
            (Short::Not, true) => (Short::Since(now), None),
            (Short::Since(since), true) => (Short::Since(since), None),
            (Short::Unknown | Short::Not, false) => (Short::Not, None),
            (Short::Since(since), false) => (Short::Not, Some(now.duration_since(since))),
        };
        self.short = next;
        Come { replaced_after, allocated: self.allocated(snapshot, now) }
    }

    fn allocated(&mut self, snapshot: &Snapshot, now: Timestamp) -> Vec<(String, SignedDuration)> {
        let is_first = self.agent_pools.is_none();
        let mut before = self.agent_pools.take().unwrap_or_default();
        let mut next = BTreeMap::new();
        let mut allocated = Vec::new();
        for pool in &snapshot.agent_pools {
            let mut asked = before.remove(&pool.name).unwrap_or_default();
            let is_up =
                |operation: &&Operation| operation.kind == OperationKind::ScaleUp && operation.accepted;
            let since =
                pool.operation.iter().chain(&pool.ended).filter(is_up).map(|operation| operation.since.0);
            for since in since {
                if !asked.at.contains(&since) {
                    asked.at.push(since);
                }
            }
            asked.at.retain(|at| now.duration_since(*at) < FORGOTTEN);
            let ready = pool.nodes.iter().filter(|node| node.serves());
            for node in ready.clone().filter(|node| !is_first && !asked.ready.contains(&node.name)) {
                // Status keeps whole seconds, rounded up: a node of that very second is of an earlier request.
                if let Some(at) = asked.at.iter().filter(|at| **at < node.created).max() {
                    allocated.push((pool.name.clone(), now.duration_since(*at)));
                }
            }
            asked.ready = ready.map(|node| node.name.clone()).collect();
            next.insert(pool.name.clone(), asked);
        }
        self.agent_pools = Some(next);
        allocated
    }
}

#[cfg(test)]
mod tests {
    use spotpool_core::{AgentPoolView, NodeView, plan};
    use spotpool_crds::spot_pool::Capacity;
    use spotpool_crds::spot_pool::SpotPoolSpec;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn planned(ready: i32) -> Plan {
        let spec: SpotPoolSpec =
            serde_json::from_value(serde_json::json!({"replicas": 3, "agentPools": []})).unwrap();
        let mut planned = plan(&spec, &Snapshot::default(), at(0));
        planned.capacity = Capacity { ready_spot: ready, established: 3, ..Capacity::default() };
        planned
    }

    #[test]
    fn a_loss_is_told_once_when_as_much_is_ready_again_and_never_one_of_unknown_age() {
        let mut pace = Pace::default();
        let mut look =
            |second, ready| pace.look(&Snapshot::default(), &planned(ready), at(second)).replaced_after;
        assert_eq!(look(0, 2), None);
        assert_eq!(look(10, 3), None, "it began before the first look");
        assert_eq!(look(20, 1), None);
        assert_eq!(look(30, 2), None);
        assert_eq!(look(65, 3), Some(SignedDuration::from_secs(45)));
        assert_eq!(look(70, 3), None);
    }

    #[test]
    fn each_node_is_told_from_the_request_that_brought_it() {
        let operation = |second: i64| Operation {
            kind: OperationKind::ScaleUp,
            count: 0,
            machines: 1,
            coming: 0,
            since: at(second).into(),
            arrived: 0,
            accepted: true,
        };
        let node = |name: &str, created: i64, ready: bool| NodeView {
            name: name.into(),
            agent_pool: "a".into(),
            created: at(created),
            ready,
            ..NodeView::default()
        };
        let mut pace = Pace::default();
        let mut look = |second: i64, operation: Option<Operation>, nodes: Vec<NodeView>| {
            let pool = AgentPoolView { name: "a".into(), operation, nodes, ..AgentPoolView::default() };
            let snapshot = Snapshot { agent_pools: vec![pool], ..Snapshot::default() };
            let come = pace.look(&snapshot, &planned(3), at(second)).allocated;
            come.into_iter().map(|(_, after)| after.as_secs()).collect::<Vec<_>>()
        };
        let none: [i64; 0] = [];
        assert_eq!(look(0, Some(operation(-50)), vec![node("old", -20, true)]), none, "seen first");
        assert_eq!(look(10, Some(operation(10)), vec![node("old", -20, true)]), none);
        let boots = vec![node("old", -20, true), node("b", 40, false)];
        assert_eq!(look(50, Some(operation(10)), boots), none);
        let ready = vec![node("old", -20, true), node("b", 40, true)];
        assert_eq!(look(70, None, ready.clone()), [60], "its operation may be over before");
        assert_eq!(look(80, None, ready), none);
        assert_eq!(look(90, None, vec![node("stranger", -60, true)]), none, "older than any request");
    }
}
