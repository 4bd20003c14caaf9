//! When drills are looked at. All of them by one loop, one after another: so at most one is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use spotpool_azure::{Class, Clock};
use spotpool_core::drill::{plan, request_id};
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest};
use spotpool_crds::{EvictionDrill, EvictionDrillStatus, SpotPool, names};
use tokio::time::Instant;
use tower::service_fn;
use tower::timeout::Timeout;

use super::{act, gather, report};
use crate::agent_pools::AgentPools;
use crate::metrics::Metrics;
use crate::node::annotation;
use crate::pool::Error;
use crate::vms::Vms;
use crate::watches::{Nodes, backoff};
use crate::workloads::Workloads;

/// Looked at again after this long, even when nothing happens.
const RESYNC: Duration = Duration::from_mins(5);
/// After an error.
const AGAIN: Duration = Duration::from_secs(1);
/// While one is under way: nobody tells of a disruption budget.
const WATCHFUL: Duration = Duration::from_secs(1);
/// Who waits for an answer does not look, and what happens to a node meanwhile nobody has seen. Whether what was asked was
/// done is seen by the next look.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// From one look to the next at least: what happens to nodes in a drill comes in bursts.
const PAUSE: Duration = Duration::from_millis(200);

/// What else the operator does, and drills ask.
pub struct Parts {
    /// The store of Nodes.
    pub nodes: Nodes,
    /// Pods and disruption budgets.
    pub workloads: Workloads,
    /// The way to Azure's VMs.
    pub vms: Arc<Vms>,
    /// The way to AKS's agent pools.
    pub agent_pools: Arc<AgentPools>,
    /// What time it is.
    pub clock: Clock,
}

struct Drills {
    client: Client,
    parts: Parts,
    metrics: Metrics,
    recorder: Recorder,
    stores: Vec<Store<EvictionDrill>>,
    namespaces: Vec<String>,
    /// What was written last, by uid: the stores may be behind it.
    written: BTreeMap<String, EvictionDrillStatus>,
}

/// Runs until its watches end. `triggered` says that Nodes or workloads have changed.
pub async fn run(
    client: Client,
    parts: Parts,
    metrics: Metrics,
    namespaces: Vec<String>,
    mut triggered: mpsc::UnboundedReceiver<()>,
) {
    let client = impatient(client);
    let mut stores = Vec::new();
    let mut streams: Vec<BoxStream<'static, _>> = Vec::new();
    for namespace in &namespaces {
        let (store, writer) = reflector::store();
        let api = Api::<EvictionDrill>::namespaced(client.clone(), namespace);
        stores.push(store);
        let events = watcher(api, watcher::Config::default()).backoff(backoff()).reflect(writer);
        streams.push(events.boxed());
    }
    let mut events = select_all(streams);
    let reporter = Reporter { controller: names::OPERATOR_FIELD_MANAGER.into(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut drills =
        Drills { client, parts, metrics, recorder, stores, namespaces, written: BTreeMap::new() };
    let mut wake = Instant::now() + RESYNC;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch of EvictionDrills is broken; trying again");
                    continue;
                }
                None => return,
            },
            woken = triggered.next() => if woken.is_none() {
                return;
            },
            () = tokio::time::sleep_until(wake) => {}
        }
        tokio::time::sleep(PAUSE).await;
        while let Some(Some(())) = triggered.next().now_or_never() {}
        while let Some(Some(_)) = events.next().now_or_never() {}
        if drills.stores.iter().all(|store| store.wait_until_ready().now_or_never().is_some()) {
            wake = Instant::now() + drills.look().await;
        }
    }
}

/// The same client, that waits for answers no longer than [`PATIENCE`].
fn impatient(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let send = service_fn(move |request| {
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(Timeout::new(send, PATIENCE), namespace)
}

impl Drills {
    /// Looks at all drills, the one that is under way first; says when to look again.
    async fn look(&mut self) -> Duration {
        let mut all: Vec<Arc<EvictionDrill>> = self.stores.iter().flat_map(Store::state).collect();
        all.sort_by_key(|drill| {
            let is_idle = !self.is_under_way(drill);
            (is_idle, drill.creation_timestamp().map(|at| at.0), drill.namespace(), drill.name_any())
        });
        let uids: BTreeSet<String> = all.iter().filter_map(|drill| drill.uid()).collect();
        self.written.retain(|uid, _| uids.contains(uid));
        let mut wait = RESYNC;
        let mut under_way = None;
        for drill in &all {
            let next = drill.status.as_ref().and_then(|status| status.next_run_at.as_ref());
            let next = next.and_then(|at| Duration::try_from(at.0.duration_since((self.parts.clock)())).ok());
            wait = next.map_or(wait, |next| wait.min(next.max(PAUSE)));
            if !self.is_due(drill) {
                continue;
            }
            match self.step(drill, under_way.clone()).await {
                Ok(Some(step)) => {
                    wait = wait.min(step.again);
                    under_way = under_way.or(step.under_way);
                }
                Ok(None) => {}
                Err(error) => {
                    wait = AGAIN;
                    // Whether it is under way is not known: no other begins.
                    under_way = under_way.or_else(|| Some(full_name(drill)));
                    if error.class() != Class::Conflict {
                        tracing::warn!(drill = full_name(drill), %error, "a step of the drill failed; again in {AGAIN:?}");
                    }
                }
            }
        }
        self.open_what_nobody_drills(&all).await;
        wait
    }

    fn is_under_way(&self, drill: &EvictionDrill) -> bool {
        let written = drill.uid().and_then(|uid| self.written.get(&uid));
        let seen = drill.status.as_ref();
        written.into_iter().chain(seen).any(EvictionDrillStatus::is_under_way)
    }

    /// Whether there may be anything to do: most drills are over, or wait for their time.
    fn is_due(&self, drill: &EvictionDrill) -> bool {
        let Some(status) = &drill.status else { return true };
        let is_time = status.next_run_at.as_ref().is_some_and(|at| at.0 <= (self.parts.clock)());
        let is_new = Some(status.ran_generation) != drill.metadata.generation;
        drill.metadata.deletion_timestamp.is_none() && (self.is_under_way(drill) || is_time || is_new)
    }

    /// One step of one drill.
    async fn step(&mut self, seen: &EvictionDrill, other: Option<String>) -> Result<Option<Step>, Error> {
        let namespace = seen.namespace().unwrap_or_default();
        let api = Api::<EvictionDrill>::namespaced(self.client.clone(), &namespace);
        // Live, not as the store has it: a step decided on what is old would choose again.
        let drill =
            api.get_opt(&seen.name_any()).await.map_err(Error::kubernetes("read the EvictionDrill"))?;
        let Some(drill) = drill.filter(|drill| drill.uid() == seen.uid()) else { return Ok(None) };
        let pools = Api::<SpotPool>::namespaced(self.client.clone(), &namespace);
        let pool = pools.get_opt(&drill.spec.target.spot_pool).await;
        let pool = pool.map_err(Error::kubernetes("read the drill's SpotPool"))?;
        let nodes = self.parts.nodes.all();
        let before = drill.status.clone().unwrap_or_default();
        let (workloads, agent_pools) = (&self.parts.workloads, &self.parts.agent_pools);
        let snapshot = gather::gather(&drill, pool.as_ref(), &nodes, workloads, agent_pools, other);
        let now = (self.parts.clock)();
        let plan = plan(&drill.spec, &snapshot, &before, now);

        // Intentions first: whoever comes after a crash must know what may have been asked.
        let mut drill = self.write(&api, drill, plan.status.clone(), now).await?;
        if let (false, Some(run)) = (plan.asks.is_empty(), plan.status.run.clone()) {
            let mut run = run;
            act::act(&self.client, &self.parts, &nodes, &plan.asks, &mut run).await;
            let status = EvictionDrillStatus { run: Some(run), ..plan.status.clone() };
            drill = self.write(&api, drill, status, now).await?;
        }
        let reference = drill.object_ref(&());
        for news in &plan.news {
            tracing::info!(drill = full_name(&drill), reason = %news.reason, run = news.run, "{}", news.note);
            // Events tell, they do not decide: one that is lost changes nothing.
            if let Err(error) = self.recorder.publish(&report::event(news), &reference).await {
                tracing::warn!(%error, reason = %news.reason, "Event not published");
            }
        }
        let ended = plan.status.run.as_ref().filter(|run| {
            before.run.as_ref().map(|it| &it.id) != Some(&run.id)
                || before.run.as_ref().is_some_and(|it| it.result.is_none())
        });
        if let Some(result) = ended.and_then(|run| run.result) {
            self.metrics.drill(result.into());
        }
        let wake =
            plan.wake.and_then(|wake| Duration::try_from(wake.duration_since((self.parts.clock)())).ok());
        let under_way = plan.status.is_under_way().then(|| full_name(&drill));
        let longest = if under_way.is_some() { WATCHFUL } else { RESYNC };
        let again = match plan.wake {
            None => longest,
            Some(_) => wake.unwrap_or(Duration::ZERO).clamp(PAUSE, longest),
        };
        Ok(Some(Step { again, under_way }))
    }

    /// Writes status if it differs, fenced by the version that `drill` was read at.
    async fn write(
        &mut self,
        api: &Api<EvictionDrill>,
        drill: EvictionDrill,
        status: EvictionDrillStatus,
        now: Timestamp,
    ) -> Result<EvictionDrill, Error> {
        let conditions = report::conditions(&drill, &status, now);
        let status = as_stored(EvictionDrillStatus { conditions, ..status });
        self.written.insert(drill.uid().unwrap_or_default(), status.clone());
        if drill.status.as_ref() == Some(&status) {
            return Ok(drill);
        }
        let next = EvictionDrill { status: Some(status), ..drill };
        let written = api.replace_status(&next.name_any(), &PostParams::default(), &next).await;
        written.map_err(Error::kubernetes("write the drill's status"))
    }

    /// Takes back requests of drills that are over, or were deleted in the middle of a rehearsal.
    async fn open_what_nobody_drills(&self, drills: &[Arc<EvictionDrill>]) {
        let mut asked = BTreeSet::new();
        for drill in drills {
            let written = drill.uid().and_then(|uid| self.written.get(&uid));
            for status in written.into_iter().chain(&drill.status).filter(|status| status.is_under_way()) {
                let run = status.run.iter();
                asked.extend(run.flat_map(|run| run.targets.iter().map(|it| request_id(&run.id, &it.node))));
            }
        }
        // Nodes of others' SpotPools may be in others' drills.
        let is_ours = |node: &Arc<Node>| {
            let namespace = node.labels().get(names::POOL_NAMESPACE_LABEL);
            namespace.is_some_and(|namespace| self.namespaces.contains(namespace))
        };
        for node in self.parts.nodes.all().into_iter().filter(is_ours) {
            let Some(text) = node.annotations().get(names::DRAIN_REQUEST_ANNOTATION) else { continue };
            let request: Option<DrainRequest> = annotation(&node, names::DRAIN_REQUEST_ANNOTATION);
            let is_stray =
                |request: &DrainRequest| request.reason == DrainReason::Drill && !asked.contains(&request.id);
            if request.as_ref().is_some_and(is_stray) {
                tracing::info!(
                    node = node.name_any(),
                    "a rehearsal is over that no drill knows of: the node is opened"
                );
                act::withdraw_stray(&self.client, &node, text).await;
            }
        }
    }
}

/// What a step leaves.
struct Step {
    again: Duration,
    under_way: Option<String>,
}

fn full_name(drill: &EvictionDrill) -> String {
    format!("{}/{}", drill.namespace().unwrap_or_default(), drill.name_any())
}

/// As it comes back from the apiserver, which keeps whole seconds: else every comparison would differ.
fn as_stored(status: EvictionDrillStatus) -> EvictionDrillStatus {
    serde_json::to_value(&status).and_then(serde_json::from_value).unwrap_or(status)
}
