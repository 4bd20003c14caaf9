//! What happens to the nodes, by dice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use spotpool_crds::names;
use spotpool_e2e::eventually;
use spotpool_e2e::simulation::Dice;
use spotpool_e2e_cluster::Signal;

use crate::health::Health;
use crate::scene::{Clock, Scene};

/// Far enough away to be taken back before it.
const TAKEN_BACK: Duration = Duration::from_mins(1);
/// In which parts of the time the operator is killed: what is measured later is all of one process.
const DEATHS: [f64; 2] = [0.06, 0.14];

/// How often what happened.
#[derive(Debug, Default)]
pub struct Done {
    pub evicted: usize,
    /// Notices that were taken back.
    pub taken_back: usize,
    pub drained: usize,
    pub agents_killed: usize,
    pub operators_killed: usize,
    /// Operators that ended because the machine was too busy for them.
    pub leases_lost: usize,
}

/// Makes trouble and watches until the time is over.
pub async fn make(scene: &Scene) -> Result<(Done, Health)> {
    let clock = Clock::start(scene.soak.time);
    let taken_back = AtomicUsize::new(0);
    let veterans = scene.veterans().await?;
    let tried = veterans.iter().enumerate().map(|(at, node)| {
        let dice = Dice::new(scene.soak.seed.wrapping_add(1000 + at as u64));
        // The first is killed now and then; the other one lives through all of it.
        try_veteran(scene, clock, node.name_any(), dice, at == 0, &taken_back)
    });
    let tried = try_join_all(tried);
    let (mut done, health, killed) =
        futures::try_join!(make_for_the_pool(scene, clock), Health::watch(scene, clock), tried)?;
    done.taken_back += taken_back.into_inner();
    done.agents_killed += killed.into_iter().sum::<usize>();
    Ok((done, health))
}

/// Evictions as fast as the SpotPool recovers, and all else that makes nodes come and go.
async fn make_for_the_pool(scene: &Scene, clock: Clock) -> Result<Done> {
    let mut dice = Dice::new(scene.soak.seed);
    let (sim, wanted) = (&scene.stage.world.sim, scene.soak.nodes as usize);
    let mut done = Done::default();
    let mut deaths = DEATHS.into_iter().peekable();
    let mut going = BTreeSet::new();
    while !clock.is_over() {
        scene.limits_hold(done.evicted + done.taken_back + done.drained).await?;
        done.leases_lost += usize::from(scene.operator_has_lost_its_lease().await?);
        if deaths.next_if(|share| clock.share() > *share).is_some() {
            scene.operator_dies().await?;
            done.operators_killed += 1;
        }
        let mut serving: Vec<String> = scene.serving().await?.iter().map(ResourceExt::name_any).collect();
        serving.retain(|node| !going.contains(node));
        if serving.len() * 4 < wanted * 3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            continue;
        }
        let mut take = |dice: &mut Dice| serving.swap_remove(dice.below(serving.len() as u64) as usize);
        let node = take(&mut dice);
        match dice.below(100) {
            0..65 => {
                let mut nodes = vec![node];
                for _ in 0..dice.below(wanted as u64 / 8 + 1) {
                    nodes.push(take(&mut dice));
                }
                sim.evict(&nodes, Duration::from_millis(1000 + dice.below(3000))).await?;
                done.evicted += nodes.len();
                going.extend(nodes);
            }
            65..80 => {
                let event = sim.evict(&[&node], TAKEN_BACK).await?.pop().context("nothing was evicted")?;
                tokio::time::sleep(Duration::from_millis(dice.below(1500))).await;
                sim.cancel(&event.event_id).await?;
                done.taken_back += 1;
            }
            80..90 => {
                let wish = json!({"metadata": {"annotations": {names::REQUESTED_DRAIN_ANNOTATION: "soak"}}});
                let nodes: Api<Node> = Api::all(scene.stage.world.client.clone());
                nodes.patch(&node, &PatchParams::default(), &Patch::Merge(wish)).await?;
                done.drained += 1;
                going.insert(node);
            }
            // On a node that has just come there may be none yet.
            _ if scene.agents().process(&node).is_none() => {}
            _ => {
                scene.agents().signal(&node, Signal::SIGKILL)?;
                done.agents_killed += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
    }
    Ok(done)
}

/// Notices that are all taken back: what an agent can live through without end. Returns how often it was killed.
async fn try_veteran(
    scene: &Scene,
    clock: Clock,
    node: String,
    mut dice: Dice,
    is_mortal: bool,
    taken_back: &AtomicUsize,
) -> Result<usize> {
    let (sim, api) = (&scene.stage.world.sim, Api::<Node>::all(scene.stage.world.client.clone()));
    let closed = async |wanted: bool| {
        let is_closed = |node: Node| node.spec.unwrap_or_default().unschedulable.unwrap_or(false);
        let what = if wanted { "closed" } else { "open again" };
        eventually(&format!("{node} to be {what}"), async || {
            Ok((is_closed(api.get(&node).await?) == wanted).then_some(()))
        })
        .await
    };
    let mut killed = 0;
    while !clock.is_over() {
        let event = sim.evict(&[&node], TAKEN_BACK).await?.pop().context("nothing was evicted")?;
        closed(true).await?;
        tokio::time::sleep(Duration::from_millis(dice.below(600))).await;
        if is_mortal && dice.percent(15) {
            scene.agents().signal(&node, Signal::SIGKILL)?;
            killed += 1;
        }
        sim.cancel(&event.event_id).await?;
        closed(false).await?;
        taken_back.fetch_add(1, Ordering::Relaxed);
    }
    Ok(killed)
}
