//! The agent's loop: documents and the Node come in, flows are started and stopped. A notice goes before a
//! voluntary drain; what stands on the Node decides what is still to do, so a restart loses nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::eviction::Claimant;
use spotpool_crds::voluntary_drain::DrainRequest;
use spotpool_crds::{EvictionNotice, ProviderId, Reason, names};
use spotpool_runtime::admin::Gate;
use spotpool_runtime::exit::Exit;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::document::{Document, Kind, Oddity};
use crate::forced::{self, Forced};
use crate::node::Node;
use crate::notice::{Decision, Notice, Seen};
use crate::voluntary;

/// Different oddities remembered so as to log each once; beyond it they are only counted.
const MOST_ODDITIES: usize = 200;

/// What the loop listens to.
pub struct Inputs {
    /// From the metadata service.
    pub documents: mpsc::Receiver<Document>,
    /// The own Node.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Cancelled when the program is asked to end.
    pub shutdown: CancellationToken,
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
    forced: Option<(Forced, AbortHandle)>,
    voluntary: Option<(DrainRequest, CancellationToken)>,
    /// A small write of its own is under way.
    is_tidying: bool,
    work: JoinSet<Work>,
}

/// A flow that has ended.
enum Work {
    Forced,
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
            forced: None,
            voluntary: None,
            is_tidying: false,
            work: JoinSet::new(),
        }
    }

    /// Runs until the program is asked to end and no forced drain is under way.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<(), Exit> {
        loop {
            let is_stopping = inputs.shutdown.is_cancelled();
            if is_stopping && self.may_end() {
                return Ok(());
            }
            let end = self.until_may_end();
            tokio::select! {
                () = inputs.shutdown.cancelled(), if !is_stopping => {
                    if !self.may_end() {
                        tracing::info!(node = self.context.node.name(), "finishing the drain before the end");
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
            }
            self.tend();
        }
    }

    /// A forced drain is finished even when the program is asked to end; a voluntary one goes on in the next agent.
    fn may_end(&self) -> bool {
        self.forced.as_ref().is_none_or(|(forced, _)| *forced.settled.borrow())
    }

    /// Settled or out of time: the end, either way.
    fn until_may_end(&self) -> impl Future<Output = ()> + use<> {
        let forced = self
            .forced
            .as_ref()
            .map(|(forced, _)| (forced.settled.subscribe(), forced.notice.borrow().clone()));
        async move {
            let Some((mut settled, notice)) = forced else { return };
            let rest = forced::lasts_until(&notice).duration_since(Timestamp::now());
            let rest = Duration::try_from(rest).unwrap_or_default();
            let _ = tokio::time::timeout(rest, settled.wait_for(|settled| *settled)).await;
        }
    }

    fn ended(&mut self, ended: Result<Work, JoinError>) -> Result<(), Exit> {
        match ended {
            Ok(Work::Forced) => {
                self.forced = None;
                self.outputs.urgent.send_replace(false);
                self.context.metrics.relieved();
            }
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
        let Some(identity) = &self.identity else {
            self.early = Some(document);
            return;
        };
        self.has_document = true;
        // Nobody reads nanoseconds.
        let now = Timestamp::now();
        let now = now.round(jiff::Unit::Millisecond).unwrap_or(now);
        let decisions = self.seen.read(&document, identity, now);
        for decision in decisions {
            self.follow(decision);
        }
    }

    fn follow(&mut self, decision: Decision) {
        let node = self.context.node.name();
        match decision {
            Decision::Begin(notice) => {
                self.context.metrics.announced(&Kind::Preempt);
                let lead = notice.deadline.duration_since(Timestamp::now());
                self.context.metrics.noticed(Duration::try_from(lead).unwrap_or_default());
                self.begin(notice);
            }
            Decision::Change(notice) => match &self.forced {
                Some((forced, _)) => {
                    forced.notice.send_replace(notice);
                }
                None => self.begin(notice),
            },
            Decision::Cancel { event_id } => {
                tracing::info!(event_id, node, reason = %Reason::SpotEvictionCancelled, "the event was taken back");
                // Marks of an earlier agent, without a flow of ours, come off in `tend`.
                if let Some((forced, _)) = &self.forced {
                    forced.cancel.cancel();
                }
            }
            Decision::Pass { event_id } => {
                tracing::info!(event_id, node, "the event is gone, its time had come");
            }
            Decision::Leave { event_id, kind } => {
                self.context.metrics.announced(&kind);
                tracing::info!(event_id, node, kind = %kind, "an event of this VM that is not acted upon");
            }
        }
    }

    fn begin(&mut self, notice: Notice) {
        if let Some((_, stop)) = &self.voluntary {
            stop.cancel();
        }
        // One that is still tidying up after a cancellation has nothing to tidy any more.
        if let Some((_, last)) = self.forced.take() {
            last.abort();
        }
        self.outputs.urgent.send_replace(true);
        let forced = Forced::new(notice);
        let flow = forced::run(self.context.clone(), &forced, self.outputs.relay.clone());
        let handle = self.work.spawn(async move {
            flow.await;
            Work::Forced
        });
        self.forced = Some((forced, handle));
    }

    /// Does what the Node calls for beside a notice. Looks at what stands there, not at what changed.
    fn tend(&mut self) {
        let Some(node) = self.context.node.latest() else { return };
        if self.identity.is_none() {
            match node.identity() {
                Ok(identity) => self.meet(&node, identity),
                Err(error) => return self.outputs.gate.close(error),
            }
        }
        let asked = node.drain_request();
        if let Some((running, stop)) = &self.voluntary
            && asked.as_ref().is_none_or(|asked| asked.id != running.id)
        {
            stop.cancel();
        }
        if self.forced.is_some() || self.seen.is_noticed() || self.voluntary.is_some() || self.is_tidying {
            return;
        }
        let is_stale = |notice: &EvictionNotice| notice.is_active() && notice.by == Claimant::NodeAgent;
        let status = node.drain_status();
        if self.has_document && node.notice().as_ref().is_some_and(is_stale) {
            self.tidy(|context| async move { forced::clean(&context).await });
        } else if let Some(asked) = asked {
            if status.is_none_or(|status| status.id != asked.id || !status.phase.is_final()) {
                let stop = CancellationToken::new();
                let flow = voluntary::run(self.context.clone(), asked.clone(), stop.clone());
                self.work.spawn(async move {
                    flow.await;
                    Work::Voluntary
                });
                self.voluntary = Some((asked, stop));
            }
        } else if node.annotation(names::DRAIN_STATUS_ANNOTATION).is_some()
            && node.annotation(names::DRAIN_REQUEST_ANNOTATION).is_none()
        {
            tracing::info!(node = self.context.node.name(), reason = %Reason::NodeNeededAgain, "no drain is asked for any more");
            self.tidy(|context| async move {
                context.node.write(crate::marks::drain_forgotten, || ()).await;
            });
        }
    }

    /// The Node is seen for the first time: go on where an earlier agent stopped.
    fn meet(&mut self, node: &Node, identity: ProviderId) {
        tracing::info!(node = self.context.node.name(), vm = %identity, "this node");
        if let Some(notice) = node.notice().filter(EvictionNotice::is_active) {
            let has_rebooted = notice.boot_id != node.boot_id();
            tracing::info!(event_id = notice.event_id, node = self.context.node.name(), has_rebooted, phase = ?notice.phase, "the Node carries a notice");
            self.seen = Seen::resuming(&notice, has_rebooted);
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
