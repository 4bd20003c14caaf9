//! Which nodes a drill takes.

use std::hash::{DefaultHasher, Hash, Hasher};

use spotpool_crds::drill::{DrillAmount, DrilledPods, EvictionDrillSpec, Target};

use super::{Node, Snapshot, guard};

/// The nodes that were chosen, of how many.
pub(super) struct Choice {
    pub targets: Vec<Target>,
    pub candidates: usize,
    /// Why there are not as many as were asked for.
    pub refusal: Option<String>,
}

/// Chooses among the candidates by the drill's uid and whose pods they have: a dry run shows the nodes that the run after it takes.
pub(super) fn choose(spec: &EvictionDrillSpec, snapshot: &Snapshot) -> Choice {
    let candidates = candidates(spec, snapshot);
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
    Choice {
        targets: candidates.iter().take(wanted).map(|node| target(snapshot, node)).collect(),
        candidates: there,
        refusal: nobody.or(refusal),
    }
}

/// Another node for `unfit`, which must not be taken any more; none if no other may be.
pub(super) fn instead(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    targets: &[Target],
    unfit: &Target,
) -> Option<Target> {
    let is_chosen = |node: &Node| targets.iter().any(|target| target.uid == node.uid);
    // A name stands for one machine in a run.
    let is_namesake =
        |node: &Node| targets.iter().any(|target| target.node == node.name && target.node != unfit.node);
    let other = candidates(spec, snapshot).into_iter().find(|node| {
        !is_chosen(node) && !is_namesake(node) && !guard::has_strangers(spec, snapshot, &node.name)
    });
    other.map(|node| target(snapshot, node))
}

/// Those that may be chosen, those with pods of others last.
fn candidates<'a>(spec: &EvictionDrillSpec, snapshot: &'a Snapshot) -> Vec<&'a Node> {
    let mut candidates: Vec<&Node> = snapshot.nodes.iter().filter(|node| is_candidate(spec, node)).collect();
    candidates.sort_by_cached_key(|node| {
        let has_strangers = guard::has_strangers(spec, snapshot, &node.name);
        (has_strangers, rank(&snapshot.uid, &node.name), node.name.clone())
    });
    candidates
}

fn target(snapshot: &Snapshot, node: &Node) -> Target {
    Target {
        node: node.name.clone(),
        uid: node.uid.clone(),
        vm: node.vm.clone(),
        agent_pool: node.agent_pool.clone(),
        zone: node.zone.clone(),
        units: node.units as i32,
        pods: DrilledPods { before: snapshot.pods_on(&node.name) as i32, ..DrilledPods::default() },
        ..Target::default()
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
