//! Draining the node by the deadline, and again what still comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spotpool_crds::eviction::{Phase, PodCounts};
use spotpool_crds::{EvictionNotice, Reason};
use spotpool_drain::{Answer, Budget, Drain, Observer, Pod, Progress, Terms, noted};
use tokio_util::sync::CancellationToken;

use super::Flow;
use crate::document::Kind;
use crate::telling::Telling;
use crate::trace::{Heard, Trace};

/// The first eviction waits this long for the first try of the cordon, so that successors of evicted pods do not
/// come back; not longer, since a dying VM is the worse of the two.
const CORDON_FIRST: Duration = Duration::from_millis(250);

impl Flow {
    /// Drains, and drains again what still comes, until the event is over.
    pub async fn drain(&self, tried: &CancellationToken, telling: &Telling) {
        // Elapsed or tried: both are a go.
        let _ = tokio::time::timeout(CORDON_FIRST, tried.cancelled()).await;
        let mut told = None;
        while !self.stop.is_cancelled() {
            let began = Timestamp::now();
            let heard = self.trace.is_some().then(Heard::default);
            let hears = Hears { flow: self, telling, before: self.wanted.borrow().pods, heard };
            let report = Drain {
                client: &self.context.client,
                pods: self.context.pods.clone(),
                terms: self.terms.subscribe(),
                holds: telling.holds(),
                crowd: self.crowd(),
                stop: self.stop.clone(),
                observer: &hears,
            }
            .run()
            .await;
            let mut ended = None;
            self.wanted.send_if_modified(|wanted| {
                ended = noted::ending(wanted, hears.before, &report);
                ended.is_some()
            });
            let Some((phase, reason)) = ended else { return };
            let wanted = self.wanted.borrow().clone();
            if let (Some(trace), Some(heard)) = (&self.trace, &hears.heard) {
                trace.drained(heard, began, &report, phase);
                trace.whole(&wanted, phase);
            }
            let margin = wanted.deadline.duration_since(Timestamp::now()).as_secs_f64();
            let PodCounts { evicted, escalated, left } = wanted.pods;
            tracing::info!(
                event_id = wanted.event_id, node = self.context.node.name(), %reason, evicted, escalated, left,
                local_storage = report.local_storage, unmanaged = report.unmanaged,
                took_ms = self.began.elapsed().as_millis() as u64, margin_s = margin, "drain over"
            );
            for pod in &report.left {
                tracing::warn!(event_id = wanted.event_id, node = self.context.node.name(), %reason, pod, "left on the node");
            }
            // Once for each event; what comes later goes without saying.
            if told.as_ref() != Some(&wanted.event_id) {
                let kind = Kind::read(&wanted.event_type);
                let trace = self.trace.as_ref().map(Trace::exemplar);
                self.context.metrics.drained(&kind, phase, self.began.elapsed(), margin, trace);
                self.context.metrics.left(report.left.len());
                let pods: Vec<_> = self.context.pods.borrow().iter().cloned().collect();
                let is_left = |pod: &&Arc<Pod>| {
                    !pod.terminating && report.left.contains(&format!("{}/{}", pod.namespace, pod.name))
                };
                pods.iter().filter(is_left).for_each(|pod| self.count_work(pod, telling));
                // What a user of `kubectl drain` has to agree to beforehand; the VM does not ask.
                let lost = match (report.local_storage, report.unmanaged) {
                    (0, 0) => String::new(),
                    (disk, bare) => {
                        format!("; {disk} had data on the node's disk, {bare} belong to no controller")
                    }
                };
                let note = format!(
                    "{evicted} pods evicted, {escalated} deleted past their disruption budget, {left} left{lost} (event {})",
                    wanted.event_id
                );
                self.announce(phase == Phase::Incomplete, reason, note);
                told = Some(wanted.event_id);
            }
            self.until_there_is_more(phase).await;
        }
    }

    /// A pod of a Job begins its work anew elsewhere, unless it has saved it.
    fn count_work(&self, pod: &Pod, telling: &Telling) {
        if let Some(started) = pod.started.filter(|_| pod.is_of_job() && !telling.is_prepared(&pod.uid)) {
            let run_time = Timestamp::now().duration_since(started);
            self.context.metrics.work_lost(run_time.try_into().unwrap_or_default());
        }
    }

    /// Nodes of the scale set that are under notice.
    fn crowd(&self) -> usize {
        let wanted = self.wanted.borrow();
        // Two events may name the same VM.
        wanted.doomed.iter().flat_map(|event| event.instances.iter()).collect::<BTreeSet<_>>().len()
    }

    /// After a drain that ended well: until pods come. After one that did not: until there is new time.
    async fn until_there_is_more(&self, phase: Phase) {
        let (mut pods, mut terms) = (self.context.pods.clone(), self.terms.subscribe());
        let more = async {
            let lives = if phase == Phase::Drained {
                pods.wait_for(|pods| pods.complete && pods.left() > 0).await.is_ok()
            } else {
                let now = Timestamp::now();
                terms.wait_for(|terms| time_of(terms) > now).await.is_ok()
            };
            if !lives {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = more => {}
            () = self.stop.cancelled() => return,
        }
        if phase == Phase::Incomplete {
            self.wanted.send_modify(|wanted| {
                wanted.phase = Phase::Draining;
                wanted.unfinished.clear();
            });
        }
    }
}

fn time_of(terms: &Terms) -> Timestamp {
    match terms {
        Terms::Preempt { deadline, .. } | Terms::Planned { deadline, .. } => *deadline,
        Terms::Voluntary { not_after } => *not_after,
    }
}

/// For those whose pod is gone.
fn why_it_goes(notice: &EvictionNotice, node: &str) -> String {
    let (by, event_id) = (notice.deadline, &notice.event_id);
    match Kind::read(&notice.event_type) {
        Kind::Preempt => format!("Azure takes the VM of node {node} back by {by:.0} (event {event_id})"),
        Kind::Rebalance => format!("Azure may soon take the VM of node {node} back (event {event_id})"),
        kind => format!("Azure has announced a {kind} of node {node} by {by:.0} (event {event_id})"),
    }
}

/// Turns what happens in a drain into numbers, log lines and Events.
struct Hears<'a> {
    flow: &'a Flow,
    telling: &'a Telling,
    before: PodCounts,
    /// For the trace, where there is one.
    heard: Option<Heard>,
}

impl Observer for Hears<'_> {
    fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        self.flow.context.metrics.answered(answer);
        if let Some(heard) = &self.heard {
            heard.answered(pod, deleted, answer);
        }
        let wanted = self.flow.wanted.borrow();
        if *answer == Answer::Accepted {
            self.flow.count_work(pod, self.telling);
            if !deleted {
                let node = self.flow.context.node.name();
                self.flow.context.announcer.evicted(pod, format!("Evicted: {}", why_it_goes(&wanted, node)));
            }
        }
        tracing::debug!(
            event_id = wanted.event_id,
            pod = format_args!("{}/{}", pod.namespace, pod.name),
            deleted,
            ?answer,
            "answer"
        );
    }

    fn escalated(&self, pod: &Pod, budgets: &[Budget]) {
        let (context, reason) = (&self.flow.context, Reason::DisruptionBudgetOverridden);
        context.metrics.escalated();
        let wanted = self.flow.wanted.borrow().clone();
        let event_id = &wanted.event_id;
        let names: Vec<&str> = budgets.iter().map(|budget| budget.name.as_str()).collect();
        let why = match names.as_slice() {
            [] => "its eviction was refused or not answered".to_owned(),
            names => format!("held by disruption budget {}", names.join(" and ")),
        };
        tracing::warn!(
            event_id, node = context.node.name(), %reason, pod = format_args!("{}/{}", pod.namespace, pod.name), why,
            "deleted in place of an eviction"
        );
        let goes = why_it_goes(&wanted, context.node.name());
        context.announcer.pod(pod, reason, format!("Deleted although {why}: {goes}"));
        for budget in budgets {
            let note = format!("Pod {} was deleted all the same: {goes}", pod.name);
            context.announcer.budget(pod, budget, reason, note);
        }
    }

    fn nearly_over(&self, left: &[String]) {
        self.flow.wanted.send_modify(|wanted| noted::unfinished(wanted, left));
    }

    fn progressed(&self, progress: &Progress) {
        if let Some(heard) = &self.heard {
            heard.progressed(progress);
        }
        self.flow.wanted.send_if_modified(|wanted| noted::progress(wanted, self.before, progress));
    }
}
