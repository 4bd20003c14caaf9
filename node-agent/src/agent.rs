//! The agent's loop: documents and the Node come in, flows are started and stopped. A notice goes before a
//! voluntary drain; what stands on the Node decides what is still to do, so a restart loses nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::eviction::{Claimant, Phase};
use spotpool_crds::spot_pool::EventResponse;
use spotpool_crds::voluntary_drain::DrainRequest;
use spotpool_crds::{EvictionNotice, ProviderId, Reason, names};
use spotpool_runtime::admin::Gate;
use spotpool_runtime::exit::Exit;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::claim::{self, Unnamed};
use crate::condition::Told;
use crate::context::Context;
use crate::document::{Document, Kind, Oddity};
use crate::flow::{self, Running};
use crate::imds::Pulse;
use crate::node::Node;
use crate::notice::{Decision, Notice, Seen, Vm};
use crate::npd::{self, Hearing};
use crate::time::until;
use crate::{marks, voluntary};

/// Different oddities remembered so as to log each once; beyond it they are only counted.
const MOST_ODDITIES: usize = 200;
/// However long it is until something is due, the clock is looked at this often: it may be set, or stand still while
/// the VM is paused.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);
/// How long the metadata service may be late with an answer before it counts as silent.
const LATE: Duration = Duration::from_millis(2500);

/// What the loop listens to.
pub struct Inputs {
    /// From the metadata service.
    pub documents: mpsc::Receiver<Document>,
    /// How well it is heard.
    pub hearing: Listening,
    /// The own Node.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Cancelled when the program is asked to end.
    pub shutdown: CancellationToken,
}

/// How well the metadata service is heard.
pub struct Listening {
    /// When it last answered well.
    pub pulse: Pulse,
    /// Since when it is asked.
    pub since: Timestamp,
    /// How often it is asked.
    pub interval: Duration,
    /// When the machine booted, if known.
    pub booted_at: Option<Timestamp>,
}

impl Listening {
    fn hearing(&self) -> Hearing {
        let patience = self.interval + LATE;
        Hearing { heard_at: self.pulse.last(), since: self.since, patience, booted_at: self.booted_at }
    }
}

/// What the loop tells.
pub struct Outputs {
    /// The notice, for the relay.
    pub relay: watch::Sender<Option<EvictionNotice>>,
    /// Whether a notice is on.
    pub urgent: watch::Sender<bool>,
    /// Open once the Node is known.
    pub gate: Gate,
}

/// The agent's state.
pub struct Agent {
    context: Arc<Context>,
    outputs: Outputs,
    /// Known since the Node was first seen.
    identity: Option<ProviderId>,
    seen: Seen,
    has_document: bool,
    /// A document that came before the Node.
    early: Option<Document>,
    logged: HashSet<Oddity>,
    running: Option<(Running, AbortHandle)>,
    /// How the last event ended whose marks no flow takes off.
    ended: Option<Phase>,
    /// When something is due though nothing happens.
    look_again: Option<Timestamp>,
    voluntary: Option<(DrainRequest, CancellationToken)>,
    /// A small write of its own is under way.
    is_tidying: bool,
    work: JoinSet<Work>,
}

/// A flow that has ended.
enum Work {
    Flow,
    Voluntary,
    Tidying,
}

impl Agent {
    /// An agent that knows nothing yet.
    pub fn new(context: Context, outputs: Outputs) -> Self {
        Self {
            context: Arc::new(context),
            outputs,
            identity: None,
            seen: Seen::default(),
            has_document: false,
            early: None,
            logged: HashSet::new(),
            running: None,
            ended: None,
            look_again: None,
            voluntary: None,
            is_tidying: false,
            work: JoinSet::new(),
        }
    }

    /// Runs until the program is asked to end and nothing urgent is under way.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<(), Exit> {
        loop {
            let is_stopping = inputs.shutdown.is_cancelled();
            if is_stopping && self.may_end() {
                return Ok(());
            }
            let end = self.until_may_end();
            let sleep = self.look_again.map(|time| until(time, Timestamp::now()).min(LONGEST_SLEEP));
            tokio::select! {
                () = inputs.shutdown.cancelled(), if !is_stopping => {
                    if !self.may_end() {
                        let event_id = self.seen.notice().map(|notice| notice.event_id.as_str());
                        tracing::info!(event_id, node = self.context.node.name(), "finishing the drain before the end");
                    }
                }
                () = end, if is_stopping => return Ok(()),
                Some(ended) = self.work.join_next() => self.ended(ended)?,
                document = inputs.documents.recv() => match document {
                    Some(document) => self.read(document),
                    None => return Err(Exit::Died("polling of the metadata service has ended".into())),
                },
                changed = inputs.node.changed() => if changed.is_err() {
                    return Err(Exit::Died("the watch of the Node has ended".into()));
                },
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
            }
            self.meet();
            self.decide(&inputs.hearing);
            self.tend(&inputs.hearing.hearing());
        }
    }

    /// What is urgent is finished even when the program is asked to end; anything else goes on in the next agent.
    fn may_end(&self) -> bool {
        self.running.as_ref().is_none_or(|(running, _)| {
            *running.settled.borrow() || !running.notice.borrow().is_urgent(Timestamp::now())
        })
    }

    /// Settled or out of time: the end, either way.
    fn until_may_end(&self) -> impl Future<Output = ()> + use<> {
        let running = self
            .running
            .as_ref()
            .map(|(running, _)| (running.settled.subscribe(), running.notice.borrow().clone()));
        async move {
            let Some((mut settled, notice)) = running else { return };
            let rest = until(flow::lasts_until(&notice), Timestamp::now());
            let _ = tokio::time::timeout(rest, settled.wait_for(|settled| *settled)).await;
        }
    }

    fn ended(&mut self, ended: Result<Work, JoinError>) -> Result<(), Exit> {
        match ended {
            Ok(Work::Flow) => self.running = None,
            Ok(Work::Voluntary) => self.voluntary = None,
            Ok(Work::Tidying) => self.is_tidying = false,
            Err(error) if error.is_cancelled() => {} // a flow that another has replaced
            Err(error) => return Err(Exit::Died(format!("a flow died: {error}"))),
        }
        Ok(())
    }

    fn read(&mut self, document: Document) {
        for oddity in &document.oddities {
            self.context.metrics.odd(oddity);
            if self.logged.len() < MOST_ODDITIES && self.logged.insert(oddity.clone()) {
                let reason = Reason::MetadataNotUnderstood;
                tracing::warn!(node = self.context.node.name(), %reason, what = %oddity, "not understood in a document");
            }
        }
        match &self.identity {
            Some(identity) => {
                self.seen.read(&document, identity, now());
                self.has_document = true;
            }
            None => self.early = Some(document),
        }
    }

    /// Decides about everything that was said, by what is known of the VM now.
    fn decide(&mut self, listening: &Listening) {
        let Some(node) = self.context.node.latest().filter(|_| self.identity.is_some()) else { return };
        if let Some((running, _)) = &self.running
            && let Some(event_id) = &*running.acknowledged.borrow()
        {
            self.seen.acknowledged(event_id);
        }
        let policy = node.policy();
        self.context.metrics.node_is_of(node.label(names::AGENT_POOL_LABEL), policy.as_ref());
        let events = policy.map_or_else(|| self.context.events.clone(), |policy| policy.events);
        let claims = npd::claims(node.conditions());
        let vm =
            Vm { policy: &events, boot_id: node.boot_id(), claims: &claims, hearing: listening.hearing() };
        let (decisions, look_again) = self.seen.decide(&vm, now());
        self.look_again = look_again;
        for decision in decisions {
            self.follow(decision);
        }
        let notice = self.seen.notice();
        let is_urgent = notice.is_some_and(|it| it.kind == Kind::Preempt || it.is_urgent(Timestamp::now()));
        self.outputs.urgent.send_if_modified(|urgent| std::mem::replace(urgent, is_urgent) != is_urgent);
        let is_lost =
            notice.is_some_and(|it| it.kind == Kind::Preempt || it.response == EventResponse::Drain);
        self.context.metrics.under_notice(is_lost);
    }

    fn follow(&mut self, decision: Decision) {
        let node = self.context.node.name();
        match decision {
            Decision::Tell { event_id, kind, response, begins } => {
                self.context.metrics.announced(&kind);
                tracing::info!(event_id, node, kind = %kind, ?response, %begins, "an event of this VM");
            }
            Decision::Begin(notice) => self.begin(notice),
            Decision::Change(notice) => match &self.running {
                Some((running, _)) if running.notice.borrow().response == notice.response => {
                    if running.notice.borrow().kind != notice.kind {
                        self.measure(&notice);
                    }
                    running.notice.send_replace(notice);
                }
                _ => self.begin(notice),
            },
            Decision::Pass { event_id } => {
                tracing::info!(event_id, node, "the event is gone, its time had come");
            }
            Decision::End { event_id, phase } => {
                tracing::info!(event_id, node, ?phase, "the event holds no longer");
                match &self.running {
                    Some((running, _)) => {
                        running.ended.send_replace(Some(phase));
                    }
                    // Marks of an earlier agent, without a flow of ours, come off in `tend`.
                    None => self.ended = Some(phase),
                }
            }
        }
    }

    /// How much time Azure gives.
    fn measure(&self, notice: &Notice) {
        if notice.kind == Kind::Preempt {
            self.context.metrics.noticed(until(notice.deadline, Timestamp::now()));
        }
    }

    fn begin(&mut self, notice: Notice) {
        self.measure(&notice);
        if notice.response == EventResponse::Drain
            && let Some((_, stop)) = &self.voluntary
        {
            stop.cancel();
        }
        // One for another response; or one that is still tidying up, which has nothing to tidy any more.
        if let Some((_, last)) = self.running.take() {
            last.abort();
        }
        let running = Running::new(notice);
        let flow = flow::run(self.context.clone(), &running, self.outputs.relay.clone());
        let handle = self.work.spawn(async move {
            flow.await;
            Work::Flow
        });
        self.running = Some((running, handle));
    }

    /// Does what the Node calls for beside a notice. Looks at what stands there, not at what changed.
    fn tend(&mut self, hearing: &Hearing) {
        let Some(node) = self.context.node.latest().filter(|_| self.identity.is_some()) else { return };
        let asked = node.drain_request();
        if let Some((running, stop)) = &self.voluntary
            && asked.as_ref().is_none_or(|asked| asked.id != running.id)
        {
            stop.cancel();
        }
        if self.is_tidying {
            return;
        }
        let is_free = self.running.is_none() && self.seen.notice().is_none();
        if is_free && self.has_document {
            match node.notice().filter(EvictionNotice::is_active) {
                Some(notice) if notice.by == Claimant::NodeAgent => return self.give_back(Phase::Over),
                Some(notice) => match claim::unnamed(&notice, node.boot_id(), hearing, now()) {
                    Unnamed::GiveBack(phase) => return self.give_back(phase),
                    Unnamed::LookAgain(time) => self.look_again_at(time),
                },
                None => {}
            }
            self.context.tell(Told::Nothing);
        }
        if !marks::owed(&node).is_done(&node) {
            return self.tidy(|context| async move {
                context.node.write(marks::owed, || ()).await;
            });
        }
        // A node that is being emptied for an event needs no second drain; a hint or a cordon keeps none away.
        let drains = self.seen.notice().is_some_and(|notice| notice.response == EventResponse::Drain)
            || self
                .running
                .as_ref()
                .is_some_and(|(running, _)| running.notice.borrow().response == EventResponse::Drain);
        if drains || self.voluntary.is_some() {
            return;
        }
        let status = node.drain_status();
        if let Some(asked) = asked {
            let ended = status.filter(|status| status.id == asked.id && status.phase.is_final());
            if let Some(status) = ended {
                let Some(opens_at) = voluntary::opens_at(&asked, &status) else { return };
                if now() < opens_at {
                    self.look_again_at(opens_at);
                } else if !marks::drain_cancelled(&node).is_done(&node) {
                    tracing::info!(request = asked.id, node = self.context.node.name(), reason = %Reason::NodeNeededAgain, "the rehearsal is over, and nobody takes its request back");
                    self.tidy(|context| async move {
                        context.node.write(marks::drain_cancelled, || ()).await;
                    });
                }
            } else {
                let stop = CancellationToken::new();
                let flow = voluntary::run(self.context.clone(), asked.clone(), stop.clone());
                self.work.spawn(async move {
                    flow.await;
                    Work::Voluntary
                });
                self.voluntary = Some((asked, stop));
            }
        } else if node.annotation(names::DRAIN_STATUS_ANNOTATION).is_some()
            && !marks::drain_forgotten(&node).is_done(&node)
        {
            tracing::info!(node = self.context.node.name(), reason = %Reason::NodeNeededAgain, "no drain is asked for any more");
            self.tidy(|context| async move {
                context.node.write(marks::drain_forgotten, || ()).await;
            });
        }
    }

    fn look_again_at(&mut self, time: Timestamp) {
        self.look_again = Some(self.look_again.map_or(time, |known| known.min(time)));
    }

    /// Takes marks off that no flow of ours takes off, with what is known of how the event ended before `phase`.
    fn give_back(&mut self, phase: Phase) {
        let phase = self.ended.take().unwrap_or(phase);
        self.tidy(move |context| async move { flow::give_back(&context, phase).await });
    }

    /// Sees the Node for the first time: goes on where an earlier agent stopped.
    fn meet(&mut self) {
        if self.identity.is_some() {
            return;
        }
        let Some(node) = self.context.node.latest() else { return };
        let identity = match node.identity() {
            Ok(identity) => identity,
            Err(error) => return self.outputs.gate.close(error),
        };
        tracing::info!(node = self.context.node.name(), vm = %identity, "this node");
        if let Some(notice) = node.notice().filter(EvictionNotice::is_active) {
            let has_rebooted = notice.boot_id != node.boot_id();
            tracing::info!(event_id = notice.event_id, node = self.context.node.name(), has_rebooted, phase = ?notice.phase, "the Node carries a notice");
            self.seen = Seen::resuming(&notice);
        }
        self.identity = Some(identity);
        self.outputs.gate.open();
        if let Some(document) = self.early.take() {
            self.read(document);
        }
    }

    fn tidy<F: Future<Output = ()> + Send + 'static>(&mut self, flow: impl FnOnce(Arc<Context>) -> F) {
        self.is_tidying = true;
        let flow = flow(self.context.clone());
        self.work.spawn(async move {
            flow.await;
            Work::Tidying
        });
    }
}

/// Nobody reads nanoseconds.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now)
}
