//! What keeps a drill from taking nodes: limits, and what aborts it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use spotpool_crds::drill::{DrillMethod, DrillRun, EvictionDrillSpec, Target};

use super::{Snapshot, named, ready_units};
use crate::window::{Opening, opening};

/// How what is said of hours begins.
pub(super) const HOURS: &str = "limits.allowedHours";
/// How what is said of disruption budgets begins.
pub(super) const BUDGETS: &str = "abort.unreadyBudgets";

/// What must not be while nodes are taken: looked for before a run and at each step of it.
pub(super) fn hindrances(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    targets: &[Target],
    now: Timestamp,
) -> Vec<String> {
    let Some(pool) = &snapshot.pool else {
        return vec![format!("there is no SpotPool {} in this namespace", spec.target.spot_pool)];
    };
    let mut found = Vec::new();
    found.extend(pool.idle.clone());
    if let Some(why) = pool.burning.as_ref().filter(|_| spec.abort.objective_burning) {
        found.push(format!("abort.objectiveBurning: {why}"));
    }
    let asked: BTreeSet<&str> = targets
        .iter()
        .filter(|target| target.intended_at.is_some() && spec.method.takes_machines())
        .map(|target| target.node.as_str())
        .collect();
    let real: Vec<&String> = snapshot.noticed.iter().filter(|node| !asked.contains(node.as_str())).collect();
    if spec.abort.real_evictions && !real.is_empty() {
        found.push(format!(
            "abort.realEvictions: {} nodes are under an eviction notice that the drill did not ask for: {}",
            real.len(),
            named(&real)
        ));
    }
    let unready = snapshot.unready_budgets.as_deref().unwrap_or_default();
    if spec.abort.unready_budgets && !unready.is_empty() {
        found.push(format!(
            "{BUDGETS}: {} disruption budgets have fewer healthy pods than they ask for: {}",
            unready.len(),
            named(unready)
        ));
    }
    match spec.limits.allowed_hours.as_ref().map(|hours| opening(HOURS, hours, now)) {
        None | Some(Opening::Open) => {}
        Some(Opening::Opens(at)) => found.push(format!("{HOURS}: it is {now:.0}, and they begin at {at:.0}")),
        Some(Opening::Invalid(what_to_change)) => found.push(what_to_change),
    }
    found
}

/// What else must not be when a run begins.
pub(super) fn refusals(spec: &EvictionDrillSpec, snapshot: &Snapshot, targets: &[Target]) -> Vec<String> {
    let mut found = Vec::new();
    let most = spec.limits.max_nodes.max(0) as usize;
    if targets.len() > most {
        found.push(format!("it would take {} nodes, and limits.maxNodes is {most}", targets.len()));
    }
    if let Some(pool) = &snapshot.pool {
        let ready = pool.ready.min(ready_units(snapshot));
        if ready < pool.wanted {
            found.push(format!(
                "{ready} of {} units of the SpotPool are ready: a drill begins when all are",
                pool.wanted
            ));
        }
        if !pool.busy.is_empty() {
            found.push(format!("agent pools have an operation running: {}", named(&pool.busy)));
        }
    }
    let is_together = spec.stagger == spotpool_crds::Duration::default();
    let stage = if is_together { targets } else { &targets[..targets.len().min(1)] };
    found.extend(too_few_left(spec, snapshot, ready_now(snapshot), stage.iter()));
    found.extend(strangers(spec, snapshot, targets.iter()));
    found
}

/// Whether the targets at `stage` can be asked for now. AKS takes one request for an agent pool at a time.
pub(super) fn occupied(spec: &EvictionDrillSpec, snapshot: &Snapshot, targets: &[&Target]) -> Option<String> {
    let is_occupied = |target: &&&Target| {
        spec.method == DrillMethod::DeleteMachine && snapshot.occupied.contains(&target.agent_pool)
    };
    let first = targets.iter().find(is_occupied)?;
    Some(format!("agent pool {} has an operation running", first.agent_pool))
}

/// Whether the targets at `stage` may be taken now.
pub(super) fn may_take(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    run: &DrillRun,
    stage: &[usize],
) -> Result<(), String> {
    if !spec.limits.namespaces.is_empty() && snapshot.pods.is_none() {
        return Err("pods have not been read".into());
    }
    let asked = run.targets.iter().filter(|target| target.intended_at.is_some());
    let most = spec.limits.max_nodes.max(0) as usize;
    if asked.clone().count() + stage.len() > most {
        return Err(format!("limits.maxNodes is {most}"));
    }
    // Those that were asked for and still look ready are as good as taken.
    let going: u32 = asked
        .filter(|target| !target.is_over(run.method))
        .filter_map(|target| snapshot.nodes.iter().find(|node| node.uid == target.uid && node.ready))
        .map(|node| node.units)
        .sum();
    let next: Vec<&Target> = stage.iter().map(|at| &run.targets[*at]).collect();
    let ready = ready_now(snapshot).saturating_sub(going);
    match too_few_left(spec, snapshot, ready, next.iter().copied())
        .or_else(|| occupied(spec, snapshot, &next))
    {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

/// By the nodes and by the SpotPool's own word, which knows of warm-up: the less of both.
fn ready_now(snapshot: &Snapshot) -> u32 {
    snapshot.pool.as_ref().map_or(0, |pool| pool.ready).min(ready_units(snapshot))
}

fn too_few_left<'a>(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    ready: u32,
    taken: impl Iterator<Item = &'a Target>,
) -> Option<String> {
    let least = spec.limits.min_ready_units?.max(0) as u32;
    // One that is not ready any more takes nothing away from what is.
    let is_ready = |target: &&Target| snapshot.nodes.iter().any(|node| node.uid == target.uid && node.ready);
    let taken: u32 = taken.filter(is_ready).map(|target| target.units.max(0) as u32).sum();
    (ready.saturating_sub(taken) < least).then(|| {
        format!(
            "{ready} units are ready and it would take {taken} of them, and limits.minReadyUnits is {least}"
        )
    })
}

/// Whether a node has pods of namespaces that the drill leaves alone.
pub(super) fn has_strangers(spec: &EvictionDrillSpec, snapshot: &Snapshot, node: &str) -> bool {
    let allowed = &spec.limits.namespaces;
    let pods = snapshot.pods.as_ref().and_then(|pods| pods.get(node));
    !allowed.is_empty() && pods.is_some_and(|pods| pods.keys().any(|namespace| !allowed.contains(namespace)))
}

/// The pods of namespaces that the drill leaves alone, on these nodes, in words. Nothing until pods have been read.
pub(super) fn strangers<'a>(
    spec: &EvictionDrillSpec,
    snapshot: &Snapshot,
    targets: impl Iterator<Item = &'a Target>,
) -> Option<String> {
    let allowed = &spec.limits.namespaces;
    if allowed.is_empty() {
        return None;
    }
    let pods = snapshot.pods.as_ref()?;
    let mut others: BTreeMap<&str, u32> = BTreeMap::new();
    for (namespace, count) in targets.filter_map(|target| pods.get(&target.node)).flatten() {
        if !allowed.contains(namespace) {
            *others.entry(namespace).or_default() += count;
        }
    }
    if others.is_empty() {
        return None;
    }
    let told: Vec<String> =
        others.iter().map(|(namespace, count)| format!("{count} in {namespace}")).collect();
    Some(format!("pods would be evicted outside limits.namespaces: {}", named(&told)))
}
