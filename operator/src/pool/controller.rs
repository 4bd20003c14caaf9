//! When a SpotPool is reconciled, and the order of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use spotpool_azure::Class;
use spotpool_core::{Plan, plan};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::act::{self, Outcome, act};
use super::drains::{Drains, News};
use super::gather::{Gathered, gather};
use super::metered::Metered;
use super::pace::Pace;
use super::refused::{AFTER_REFUSAL, Refused};
use super::{Error, events, money, release, report};
use crate::agent_pools::AgentPools;
use crate::backup_drain::BackupDrains;
use crate::market::Market;
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::traces::{Pass, Traces};
use crate::vms::Vms;
use crate::watches::{Nodes, backoff};
use crate::workloads::Workloads;

/// Looked at again after this long, even when nothing happens.
const RESYNC: Duration = Duration::from_mins(5);
/// While a deleted SpotPool waits for minimums to be returned.
const GOODBYE: Duration = Duration::from_secs(2);
/// After the return of one was refused, while the SpotPool goes on.
const RETURN_AGAIN: Duration = Duration::from_secs(30);
/// How long an Event may hold up what it announces.
const ANNOUNCED_WITHIN: Duration = Duration::from_millis(500);
/// SpotPools reconciled at the same time: one that waits for Azure must not hold up another.
const CONCURRENCY: u16 = 32;

/// What else the operator does, and reconciliations ask.
pub struct Parts {
    /// The store of Nodes.
    pub nodes: Nodes,
    /// What Azure said, and the way to write to it.
    pub agent_pools: Arc<AgentPools>,
    /// Prices and the like.
    pub market: Arc<Market>,
    /// Pods and disruption budgets.
    pub workloads: Workloads,
    /// What Azure says of the VMs of silent Nodes.
    pub vms: Arc<Vms>,
    /// Drains in the agents' stead.
    pub backup_drains: Arc<BackupDrains>,
    /// What else buys nodes in the cluster.
    pub neighbours: Arc<Neighbours>,
    /// What is told of evictions, where somebody collects traces.
    pub traces: Arc<Traces>,
}

/// What reconciliations share.
pub struct Context {
    /// Refuses writes when the lease is lost.
    pub client: Client,
    /// What else the operator does.
    pub parts: Parts,
    /// The operator's metrics.
    pub metrics: Metrics,
    recorder: Recorder,
    spot_pools: Vec<Store<SpotPool>>,
    memory: Mutex<BTreeMap<String, Remembered>>,
}

/// What is remembered of one SpotPool between reconciliations, by uid.
#[derive(Default)]
pub(super) struct Remembered {
    name: (String, String),
    /// Our last write, and the versions that it came after: the store may still hold one of these.
    written: Option<Arc<SpotPool>>,
    superseded: Vec<String>,
    failures: u32,
    /// Notices of its nodes, and how their drains end.
    pub(super) drains: Drains,
    /// How long things take.
    pub(super) pace: Pace,
    refused: Refused,
}

/// Runs until its watches end. `triggered` has one receiver for each namespace.
pub async fn run(
    client: Client,
    parts: Parts,
    metrics: Metrics,
    namespaces: Vec<(String, mpsc::UnboundedReceiver<()>)>,
) {
    let (names, triggers): (Vec<_>, Vec<_>) = namespaces.into_iter().unzip();
    let controllers: Vec<_> = names
        .iter()
        .zip(triggers)
        .map(|(namespace, triggered)| {
            let api = Api::<SpotPool>::namespaced(client.clone(), namespace);
            Controller::new(api, watcher::Config::default())
                .with_config(Config::default().concurrency(CONCURRENCY))
                .trigger_backoff(backoff())
                .reconcile_all_on(triggered)
        })
        .collect();
    let reporter = Reporter { controller: names::OPERATOR_FIELD_MANAGER.into(), instance: None };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        parts,
        metrics,
        spot_pools: controllers.iter().map(Controller::store).collect(),
        memory: Mutex::default(),
    });
    let stores = names.into_iter().zip(context.spot_pools.iter().cloned()).collect();
    let sweep = release::keep_clean(context.client.clone(), context.parts.nodes.clone(), stores);
    let runs = controllers.into_iter().map(|controller| ended(controller, context.clone()));
    tokio::select! {
        _ = futures::future::join_all(runs) => {}
        () = sweep => {}
    }
}

fn ended(controller: Controller<SpotPool>, context: Arc<Context>) -> impl Future<Output = ()> {
    let results: std::pin::Pin<Box<dyn Stream<Item = _> + Send>> =
        Box::pin(controller.run(reconcile, again, context));
    results.for_each(|result| async {
        // Errors of reconciliations are logged where the next try is decided; this is of the watch. Without
        // the CRD, for one, nothing works, and nothing else would say so.
        if let Err(kube::runtime::controller::Error::QueueError(error)) = result {
            tracing::warn!(%error, "the watch of SpotPools is broken; trying again");
        }
    })
}

/// Guard → gather → plan → act → report.
async fn reconcile(seen: Arc<SpotPool>, context: Arc<Context>) -> Result<Action, Error> {
    let pool = context.freshest(seen);
    if pool.metadata.deletion_timestamp.is_some() && !release::has_claims(&pool) {
        if release::is_held(&pool) {
            if release::must_wait(&context.parts.agent_pools, &pool, context.parts.agent_pools.now()).await {
                return Ok(Action::requeue(GOODBYE));
            }
            release::let_go(&context.client, &context.parts.nodes, &pool).await?;
        }
        return Ok(Action::await_change());
    }
    let now = context.parts.agent_pools.now();
    let remembered = pool.status.iter().flat_map(|status| &status.agent_pools);
    let released = remembered.filter(|entry| entry.autoscaler.is_some()).map(|entry| entry.name.as_str());
    let wanted = pool.spec.agent_pools.iter().map(|pool| pool.name.as_str()).chain(released);
    if let Some(status) = &pool.status {
        context.parts.agent_pools.restore_write_budgets(status);
    }
    let mut view = context.parts.agent_pools.view(wanted);
    context.parts.market.tell(&mut view);
    context.parts.neighbours.tell(&mut view);
    view.words = context.parts.vms.words();
    let mut gathered = gather(&pool, &context.all_spot_pools(), &context.parts.nodes.all(), view, now);
    context.parts.workloads.tell(&pool, &mut gathered);
    context.parts.backup_drains.forget_gone(&context.parts.nodes);
    let backup_wake = context.parts.backup_drains.tend(&pool, &gathered.nodes, &gathered.notices, now);

    let news = context.drain_news(&pool, &gathered);
    if let Some(objective) = &mut gathered.snapshot.memory.objective {
        news.add_to(&mut objective.drains);
    }

    let started = Instant::now();
    let mut plan = plan(&pool.spec, &gathered.snapshot, now);
    context.metrics.planned(started.elapsed().as_secs_f64());
    act::spare_nodes(&context.client, &mut plan.actions).await;
    let rests = context.hold_refused(&pool, &mut plan);
    let planned = context.parts.agent_pools.now();
    gathered.bills = context.parts.workloads.bills(&pool, &gathered, &plan);

    // Intentions first: whoever comes after a crash must know what may have been asked of Azure.
    let intentions = act::intentions(&plan, now);
    let mut current = pool.clone();
    if release::must_hold(&pool, &gathered, &plan) {
        match release::hold(&context.client, &pool).await {
            Ok(held) => current = context.written(&pool, held),
            Err(error) if error.class() == Class::Conflict => return Err(error),
            // Capacity does not wait for it: the sweep takes off what is left.
            Err(error) => tracing::warn!(pool = pool.name_any(), %error, "the finalizer is not on; going on"),
        }
    }
    context.announce(&pool, &plan).await;
    if !intentions.is_empty() {
        let intended = report::status(&pool, &gathered, &plan, &intentions, &Outcome::default(), now);
        current = context.write_status(current, intended).await?;
    }
    for step in plan.steps.iter().skip(1).filter(|_| !plan.actions.is_empty()) {
        let event_id = events::answers(step.reason.as_ref(), &gathered.notices);
        tracing::info!(
            pool = pool.name_any(), reason = %step.reason, agent_pool = step.agent_pool, event_id, "{}", step.message
        );
    }
    let noted = context.parts.agent_pools.now();
    let outcome = act(&context, &pool, &gathered, &plan, now).await;
    context.note_refused(&pool, &plan, &outcome);
    context.parts.traces.passed(&Pass {
        pool: &pool,
        gathered: &gathered,
        plan: &plan,
        intentions: &intentions,
        outcome: &outcome,
        began: now,
        planned,
        noted,
        acted: context.parts.agent_pools.now(),
    });
    let returned = gathered.snapshot.leaving
        || release::return_minimums(&context.parts.agent_pools, &gathered.minimums).await;

    let status = report::status(&current, &gathered, &plan, &intentions, &outcome, now);
    let mut events = events::of_pass(&pool.status.clone().unwrap_or_default(), &status, &plan, &outcome);
    events.extend(money::overridden(&pool, &status));
    events.extend(context.parts.backup_drains.news(&pool).into_iter().map(|news| {
        let event = events::event(Reason::BackupDrain, news.is_warning, news.note);
        events::about_node(Event { action: news.action.into(), ..event }, &news.node)
    }));
    let cost = report::floor_cost(&pool, &gathered, &plan);
    let before = pool.status.clone().unwrap_or_default();
    let metered = Metered { context: &context, pool: &pool, gathered: &gathered, plan: &plan };
    metered.count(&outcome, &news, now);
    let current = Box::pin(context.write_report(current, status.clone())).await?;
    metered.tell(&before, &status, cost);
    context.parts.workloads.cost(&pool, &gathered, &plan);
    let reference = pool.object_ref(&());
    for event in events.into_iter().map(|event| events::naming(event, &gathered.notices)) {
        // Events tell, they do not decide: one that is lost changes nothing.
        if let Err(error) = context.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, reason = event.reason, "Event not published");
        }
    }
    if let Some(error) = outcome.error {
        return Err(error);
    }
    if plan.leaving.is_some_and(|leaving| leaving.done) {
        if release::must_wait(&context.parts.agent_pools, &current, now).await {
            return Ok(Action::requeue(GOODBYE));
        }
        release::let_go(&context.client, &context.parts.nodes, &current).await?;
    }
    context.succeeded(&pool);
    context.metrics.reconcile("Success");
    let wait = match () {
        () if rests || !outcome.failed.is_empty() => AFTER_REFUSAL,
        () if !returned => RETURN_AGAIN,
        () => RESYNC,
    };
    let wake = plan.wake.into_iter().chain(backup_wake).min();
    let wake = wake.and_then(|wake| Duration::try_from(wake.duration_since(now)).ok());
    Ok(Action::requeue(wake.map_or(wait, |wake| wake.min(wait))))
}

/// When to try again after an error.
#[expect(clippy::needless_pass_by_value, reason = "the signature that kube asks for")]
fn again(pool: Arc<SpotPool>, error: &Error, context: Arc<Context>) -> Action {
    let failures = context.failed(&pool);
    context.metrics.reconcile(error.class().into());
    let wait = match error.class() {
        // Somebody else wrote: what we see is old by a moment.
        Class::Conflict if failures < 5 => Duration::from_millis(50),
        Class::Invalid | Class::Denied => Duration::from_secs(30),
        _ => Duration::from_millis(100).saturating_mul(1 << failures.min(8)),
    };
    if error.class() != Class::Conflict {
        tracing::warn!(pool = pool.name_any(), class = %error.class(), %error, "reconciliation failed; again in {wait:?}");
    }
    Action::requeue(wait)
}

impl Context {
    /// Tells that on-demand is about to be bought in the place of spot. Capacity does not wait for it long.
    async fn announce(&self, pool: &SpotPool, plan: &Plan) {
        let Some(event) = money::starting(plan) else { return };
        let reference = pool.object_ref(&());
        let told = tokio::time::timeout(ANNOUNCED_WITHIN, self.recorder.publish(&event, &reference)).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::warn!(pool = pool.name_any(), note = event.note, "Event not published; going on");
        }
    }

    fn all_spot_pools(&self) -> Vec<Arc<SpotPool>> {
        self.spot_pools.iter().flat_map(Store::state).collect()
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, BTreeMap<String, Remembered>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's object, or our own last write where the store has not caught up with it.
    fn freshest(&self, seen: Arc<SpotPool>) -> Arc<SpotPool> {
        let mut memory = self.memory();
        let remembered = memory.entry(seen.uid().unwrap_or_default()).or_default();
        remembered.name = (seen.namespace().unwrap_or_default(), seen.name_any());
        match &remembered.written {
            Some(written) if remembered.superseded.contains(&seen.resource_version().unwrap_or_default()) => {
                written.clone()
            }
            _ => {
                remembered.written = None;
                remembered.superseded.clear();
                seen
            }
        }
    }

    /// Writes status if it differs, fenced by the version that `pool` was read at.
    async fn write_status(
        &self,
        pool: Arc<SpotPool>,
        status: SpotPoolStatus,
    ) -> Result<Arc<SpotPool>, Error> {
        let status = as_stored(status);
        if pool.status.as_ref() == Some(&status) {
            return Ok(pool);
        }
        let api = Api::<SpotPool>::namespaced(self.client.clone(), &pool.namespace().unwrap_or_default());
        let mut next = (*pool).clone();
        next.status = Some(status);
        let written = api
            .replace_status(&pool.name_any(), &PostParams::default(), &next)
            .await
            .map_err(Error::kubernetes("write the status"))?;
        Ok(self.written(&pool, written))
    }

    /// Takes out of the plan what was refused a moment ago; says whether there was any.
    fn hold_refused(&self, pool: &SpotPool, plan: &mut Plan) -> bool {
        let mut memory = self.memory();
        let remembered = memory.entry(pool.uid().unwrap_or_default()).or_default();
        let before = plan.actions.len();
        plan.actions.retain(|action| !remembered.refused.holds(action));
        plan.actions.len() < before
    }

    fn note_refused(&self, pool: &SpotPool, plan: &Plan, outcome: &Outcome) {
        let mut memory = self.memory();
        let remembered = memory.entry(pool.uid().unwrap_or_default()).or_default();
        for action in &plan.actions {
            let refusal = action.agent_pool().and_then(|agent_pool| outcome.failed.get(agent_pool));
            if refusal.is_some_and(|error| !error.is_local()) {
                remembered.refused.note(action.clone());
            }
        }
    }

    /// Remembers our own write, which came after `pool`.
    fn written(&self, pool: &SpotPool, written: SpotPool) -> Arc<SpotPool> {
        let written = Arc::new(written);
        let mut memory = self.memory();
        let remembered = memory.entry(pool.uid().unwrap_or_default()).or_default();
        remembered.superseded.push(pool.resource_version().unwrap_or_default());
        remembered.written = Some(written.clone());
        written
    }

    /// The same at the end of a reconciliation, when what was done must not be forgotten: a change of the
    /// spec that came in between does not matter to status. Another status does: nobody else writes it, so what we went
    /// by was old. It is planned again from what is there, or what our predecessor did would look like somebody else's.
    async fn write_report(
        &self,
        pool: Arc<SpotPool>,
        status: SpotPoolStatus,
    ) -> Result<Arc<SpotPool>, Error> {
        let conflict = match self.write_status(pool.clone(), status.clone()).await {
            Err(error) if error.class() == Class::Conflict => error,
            other => return other,
        };
        let api = Api::<SpotPool>::namespaced(self.client.clone(), &pool.namespace().unwrap_or_default());
        let live = api.get(&pool.name_any()).await.map_err(Error::kubernetes("read the SpotPool again"))?;
        if live.uid() != pool.uid() {
            return Ok(pool);
        }
        if live.status != pool.status {
            self.written(&pool, live);
            return Err(conflict);
        }
        self.write_status(Arc::new(live), status).await
    }

    fn succeeded(&self, pool: &SpotPool) {
        let mut memory = self.memory();
        if let Some(remembered) = memory.get_mut(&pool.uid().unwrap_or_default()) {
            remembered.failures = 0;
        }
        // SpotPools that are gone are forgotten, here where somebody comes by anyway.
        let alive = |name: &(String, String)| {
            self.spot_pools.iter().any(|store| store.get(&ObjectRef::new(&name.1).within(&name.0)).is_some())
        };
        memory.retain(|_, remembered| {
            let keep = alive(&remembered.name);
            if !keep {
                self.metrics.forget(&remembered.name.0, &remembered.name.1);
            }
            keep
        });
        self.parts.traces.keep_only(|uid| memory.contains_key(uid));
    }

    /// What is new of notices and drains since the last look.
    fn drain_news(&self, pool: &SpotPool, gathered: &Gathered) -> News {
        let notice = |node: &Arc<Node>| Some((node.name_any(), gathered.notices.on(node)?));
        let mut memory = self.memory();
        let remembered = memory.entry(pool.uid().unwrap_or_default()).or_default();
        remembered.drains.look(gathered.nodes.iter().filter_map(notice))
    }

    fn failed(&self, pool: &SpotPool) -> u32 {
        let mut memory = self.memory();
        let remembered = memory.entry(pool.uid().unwrap_or_default()).or_default();
        remembered.failures = remembered.failures.saturating_add(1);
        remembered.failures
    }
}

/// As it comes back from the apiserver, which keeps whole seconds: else every comparison would differ.
fn as_stored(status: SpotPoolStatus) -> SpotPoolStatus {
    serde_json::to_value(&status).and_then(serde_json::from_value).unwrap_or(status)
}
