//! Which nodes a drill takes.

use std::hash::{DefaultHasher, Hash, Hasher};

use spotpool_crds::drill::{DrillAmount, DrilledPods, EvictionDrillSpec, Target};

use super::{Node, Snapshot};

/// The nodes that were chosen, of how many.
pub(super) struct Choice {
    pub targets: Vec<Target>,
    pub candidates: usize,
    /// Why there are not as many as were asked for.
    pub refusal: Option<String>,
}

/// Chooses among the candidates by the drill's uid alone: a dry run shows the nodes that the run after it takes.
pub(super) fn choose(spec: &EvictionDrillSpec, snapshot: &Snapshot) -> Choice {
    let mut candidates: Vec<&Node> = snapshot.nodes.iter().filter(|node| is_candidate(spec, node)).collect();
    candidates.sort_by_key(|node| (rank(&snapshot.uid, &node.name), node.name.clone()));
    let there = candidates.len();
    let (wanted, refusal) = match spec.amount {
        DrillAmount { count: Some(count), .. } => {
            let count = count.max(0) as usize;
            let too_few =
                || format!("amount.count is {count}, and {there} ready spot nodes are as target says");
            (count, (count > there).then(too_few))
        }
        DrillAmount { percent: Some(percent), .. } => ((there * percent.max(0) as usize / 100).max(1), None),
        DrillAmount { .. } => (there, None),
    };
    let nobody = (there == 0).then(|| "no ready spot node is as target says".to_owned());
    let moves = |node: &Node| {
        let pods = snapshot.pods.as_ref().and_then(|pods| pods.get(&node.name));
        pods.map_or(0, |pods| pods.values().sum::<u32>()) as i32
    };
    let target = |node: &&Node| Target {
        node: node.name.clone(),
        uid: node.uid.clone(),
        vm: node.vm.clone(),
        agent_pool: node.agent_pool.clone(),
        zone: node.zone.clone(),
        units: node.units as i32,
        pods: DrilledPods { before: moves(node), ..DrilledPods::default() },
        ..Target::default()
    };
    Choice {
        targets: candidates.iter().take(wanted).map(target).collect(),
        candidates: there,
        refusal: nobody.or(refusal),
    }
}

fn is_candidate(spec: &EvictionDrillSpec, node: &Node) -> bool {
    let target = &spec.target;
    node.is_spot
        && node.ready
        && node.selected
        && (target.agent_pools.is_empty() || target.agent_pools.contains(&node.agent_pool))
        && (target.zones.is_empty() || target.zones.contains(&node.zone))
}

fn rank(seed: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, name).hash(&mut hasher);
    hasher.finish()
}
