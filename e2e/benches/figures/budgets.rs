//! A full node whose pods are under disruption budgets that let them all go: the apiserver has evictions that share a
//! budget wait for each other, however they are sent.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_e2e::{World, eventually, objects};

use crate::audit::Audit;
use crate::machine;
use crate::nodes::{self, NAMESPACE};
use crate::raw::Raw;
use crate::report::{Figure, Goal, Report, median, rounded};

const FIGURES: [&str; 3] = ["evict_110_one_pdb", "evict_110_one_pdb_vs_best_fixed", "evict_ten_pdbs_vs_one"];
const PODS: usize = 110;
/// Evictions in flight at a time in the bare program.
const FIXED: [usize; 5] = [1, 2, 8, 32, 110];
const ROUNDS: usize = 3;
const NOTICE: Duration = Duration::from_mins(1);

/// Who evicts, under how many budgets.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fixed(usize),
    Agent { budgets: usize },
}

/// Measures, if any of it is asked for.
pub async fn measure(world: &World, report: &mut Report) -> Result<()> {
    if !report.wants(&FIGURES) {
        return Ok(());
    }
    let mut kinds = vec![Kind::Agent { budgets: 1 }];
    if report.wants(&FIGURES[1..2]) {
        kinds.extend(FIXED.map(Kind::Fixed));
    }
    if report.wants(&FIGURES[2..]) {
        kinds.push(Kind::Agent { budgets: 10 });
    }
    let (mut runs, mut busy) = (vec![Vec::new(); kinds.len()], Vec::new());
    for round in 0..ROUNDS {
        eprintln!("{PODS} pods under disruption budgets, round {} of {ROUNDS} …", round + 1);
        let pool = format!("pdbs{round}");
        let fresh = nodes::fresh(world, &pool, kinds.len() as u32).await?;
        let kubeconfig = Raw::sign_in(world).await?;
        // Who is first changes with each round.
        for turn in 0..kinds.len() {
            let index = (turn + round * 3) % kinds.len();
            let (kind, node) = (kinds[index], &fresh[index]);
            let budgets = if let Kind::Agent { budgets } = kind { budgets } else { 1 };
            let pods = fill(world, node, budgets).await?;
            busy.push(machine::settle().await?);
            let mut audit = Audit::from_now(world)?;
            match kind {
                Kind::Fixed(concurrency) => Raw::prepare(&kubeconfig, &pods, concurrency).await?.go().await?,
                Kind::Agent { .. } => {
                    let events = world.sim.evict(&[node], NOTICE).await?;
                    nodes::told(world, events.first().context("nothing was evicted")?, node).await?;
                }
            }
            let names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
            runs[index].push(audit.evictions(&names).await?.millis());
            nodes::empty(world, node).await?;
            let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), NAMESPACE);
            let of_node = ListParams::default().labels(&format!("node={node}"));
            budgets.delete_collection(&DeleteParams::default(), &of_node).await?;
        }
        world.sim.remove_pool(&pool).await?;
    }

    let of = |wanted: Kind| kinds.iter().position(|kind| *kind == wanted).map(|index| &runs[index]);
    let busy = rounded(median(&busy));
    let Some(one) = of(Kind::Agent { budgets: 1 }) else { return Ok(()) };
    report.print(Figure::new(FIGURES[0], "ms", Goal::None, one.clone()).with("busy_before", busy));
    let fixed: Vec<_> =
        FIXED.iter().filter_map(|&at_a_time| Some((at_a_time, of(Kind::Fixed(at_a_time))?))).collect();
    let best = fixed.iter().map(|(_, runs)| median(runs)).reduce(f64::min);
    if let Some(best) = best {
        let medians: serde_json::Map<_, _> = fixed
            .iter()
            .map(|(at_a_time, runs)| (at_a_time.to_string(), json!(rounded(median(runs)))))
            .collect();
        report.print(
            Figure::new(FIGURES[1], "ratio", Goal::Max(1.2), one.iter().map(|it| it / best).collect())
                .with("fixed_ms", medians)
                .with("busy_before", busy),
        );
    }
    if let Some(ten) = of(Kind::Agent { budgets: 10 }) {
        let one = median(one);
        report.print(
            Figure::new(FIGURES[2], "ratio", Goal::Max(1.0), ten.iter().map(|it| it / one).collect())
                .with("ten_ms", rounded(median(ten)))
                .with("busy_before", busy),
        );
    }
    Ok(())
}

/// Puts pods on a node, in as many groups as there are budgets, each group of one owner and under one budget that
/// lets them all go; waits until they run and are counted.
async fn fill(world: &World, node: &str, groups: usize) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let owners: Api<ConfigMap> = Api::namespaced(world.client.clone(), NAMESPACE);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), NAMESPACE);
    let mut wanted = Vec::new();
    for group in 0..groups {
        let name = format!("{node}-{group}");
        let meta = json!({"name": name, "labels": {"node": node}});
        // Any object can own pods, and this one makes no new ones.
        let owner = objects::create(&owners, json!({"metadata": meta})).await?;
        let spec = json!({"minAvailable": 0, "selector": {"matchLabels": {"app": name}}});
        objects::create(&budgets, json!({"metadata": meta, "spec": spec})).await?;
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": owner.uid(), "controller": true});
        wanted.extend((0..PODS / groups).map(|index| {
            json!({
                "metadata": {"name": format!("{name}-{index:03}"), "labels": {"node": node, "app": name},
                    "ownerReferences": [owner]},
                "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]},
            })
        }));
    }
    let made = futures::stream::iter(wanted).map(|pod| {
        let pods = pods.clone();
        async move { objects::create(&pods, pod).await }
    });
    let made: Vec<Pod> = made.buffer_unordered(16).try_collect().await?;
    let of_node = ListParams::default().labels(&format!("node={node}"));
    eventually(&format!("{PODS} pods to run and to be counted on {node}"), async || {
        let ready = pods.list(&of_node).await?.iter().filter(|pod| objects::is_ready(pod)).count();
        let allowed = budgets.list(&of_node).await?;
        let allowed: i32 =
            allowed.iter().filter_map(|budget| Some(budget.status.as_ref()?.disruptions_allowed)).sum();
        Ok((ready == PODS && allowed == PODS as i32).then_some(()))
    })
    .await?;
    Ok(made)
}
