//! What the agent leaves in the trace of an event. Where nobody collects traces there is no [`Trace`], and nothing is
//! looked for that only a trace would tell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::EvictionNotice;
use spotpool_crds::eviction::Phase;
use spotpool_drain::{Answer, Pod, Progress, Report};
use spotpool_runtime::trace::{Parent, Recorded, SpanId, TraceLabel, Tracer, Value};

use crate::hooks::Outcome;

/// Pods whose eviction is told of in a span at most: more than a node has.
const MOST_PODS: usize = 512;

/// The trace of one event on this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Trace {
    tracer: Tracer,
    /// The span that all others hang on.
    whole: Parent,
    node: Arc<str>,
    is_told: Arc<AtomicBool>,
}

impl Trace {
    /// The trace of an event: the one that stands on the Node already, if one does.
    pub fn of(tracer: &Tracer, node: &str, event_id: &str, traceparent: Option<&str>) -> Option<Self> {
        tracer.is_on().then(|| Self {
            tracer: tracer.clone(),
            whole: traceparent.and_then(Parent::read).unwrap_or_else(|| Parent::of_eviction(event_id, node)),
            node: node.into(),
            is_told: Arc::default(),
        })
    }

    /// For those who go on with it.
    pub fn traceparent(&self) -> String {
        self.whole.to_string()
    }

    /// For figures that come from it.
    pub fn exemplar(&self) -> TraceLabel {
        self.whole.trace.into()
    }

    fn span(&self, name: &'static str, about: &str) -> Recorded {
        self.whole.child(name, &[name, &self.node, about])
    }

    /// From when the event was seen until work on it began.
    pub fn noticed(&self, notice: &EvictionNotice, began: Timestamp) {
        let span = self.span("notice", &notice.event_id).lasting(notice.observed_at, began);
        self.tracer.send(about(span, notice));
    }

    /// The first write of the Node.
    pub fn marked(&self, began: Timestamp, cordoned: bool) {
        let span = self.span("mark node", "").lasting(began, Timestamp::now());
        self.tracer.send(span.with("spotpool.cordoned", cordoned));
    }

    /// What a pod's hook said.
    pub fn hook(&self, pod: &Pod, outcome: &Outcome, took: Duration) {
        let now = Timestamp::now();
        let began = now.checked_sub(SignedDuration::try_from(took).unwrap_or_default()).unwrap_or(now);
        let span = self.span("hook", &format!("{} {began}", pod.uid)).lasting(began, now).request();
        let span = span
            .with("k8s.namespace.name", &*pod.namespace)
            .with("k8s.pod.name", &*pod.name)
            .with("k8s.pod.uid", &*pod.uid)
            .with("spotpool.hook.outcome", outcome.label());
        self.tracer.send(match outcome.failure() {
            Some(why) => span.failed(why),
            None => span,
        });
    }

    /// Azure was told to go ahead.
    pub fn acknowledged(&self, event_id: &str, began: Timestamp) {
        let span = self.span("acknowledge", event_id).lasting(began, Timestamp::now()).request();
        self.tracer.send(span.with("spotpool.event.id", event_id));
    }

    /// A drain that has ended, and what became of each pod.
    pub fn drained(&self, heard: &Heard, began: Timestamp, report: &Report, phase: Phase) {
        let now = Timestamp::now();
        let at = began.to_string();
        let drain = Parent { span: SpanId::of(self.whole.trace, &["drain", &self.node, &at]), ..self.whole };
        let heard = heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = heard.all_asked.unwrap_or(now);
        let progress = &report.progress;
        let mut span = self
            .span("drain", &at)
            .lasting(began, now)
            .with("spotpool.drain.phase", format!("{phase:?}"))
            .with("spotpool.pods.evicted", progress.evicted)
            .with("spotpool.pods.escalated", progress.escalated)
            .with("spotpool.pods.left", progress.left);
        for ((namespace, name), pod) in heard.pods.iter().take(MOST_PODS) {
            let facts: Vec<(&str, Value)> = vec![
                ("k8s.namespace.name", namespace.clone().into()),
                ("k8s.pod.name", name.clone().into()),
                ("k8s.pod.uid", pod.uid.clone().into()),
                ("spotpool.eviction.outcome", pod.outcome.into()),
                ("spotpool.eviction.requests", pod.requests.into()),
                ("spotpool.eviction.escalated", pod.deleted.into()),
            ];
            span = span.event(pod.at, "eviction", facts);
        }
        self.tracer.send(if phase == Phase::Incomplete { span.failed(report.left.join("; ")) } else { span });
        let part = |name: &'static str| drain.child(name, &[name, &self.node, &at]);
        self.tracer.send(part("ask pods to go").lasting(began, asked));
        self.tracer.send(part("pods end").lasting(asked, now));
    }

    /// All of it, from the notice on. Told once: when the first drain is over, or the event is.
    pub fn whole(&self, notice: &EvictionNotice, phase: Phase) {
        if self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let span = self.whole.itself("eviction").lasting(notice.observed_at, Timestamp::now());
        let span = about(span, notice)
            .with("k8s.node.name", &*self.node)
            .with("spotpool.drain.phase", format!("{phase:?}"))
            .with("spotpool.cordoned", notice.cordoned);
        self.tracer.send(if phase == Phase::Incomplete {
            span.failed(notice.unfinished.join("; "))
        } else {
            span
        });
    }
}

/// What Azure said.
fn about(span: Recorded, notice: &EvictionNotice) -> Recorded {
    let lead = notice.deadline.duration_since(notice.observed_at).as_secs_f64();
    let source = serde_json::to_value(notice.source).ok();
    let span = span
        .with("spotpool.event.id", &*notice.event_id)
        .with("spotpool.event.type", &*notice.event_type)
        .with("spotpool.event.source", source.as_ref().and_then(|it| it.as_str()).unwrap_or_default())
        .with("spotpool.event.response", format!("{:?}", notice.response))
        .with("spotpool.event.deadline", notice.deadline.to_string())
        .with("spotpool.event.lead_seconds", lead);
    match notice.not_before {
        Some(time) => span.with("spotpool.event.not_before", time.to_string()),
        None => span,
    }
}

/// What a trace will tell of a drain that runs.
#[derive(Default)]
pub struct Heard(Mutex<Said>);

#[derive(Default)]
struct Said {
    all_asked: Option<Timestamp>,
    pods: BTreeMap<(String, String), Asked>,
}

struct Asked {
    uid: String,
    outcome: &'static str,
    requests: u32,
    deleted: bool,
    at: Timestamp,
}

impl Heard {
    /// The API has answered.
    pub fn answered(&self, pod: &Pod, deleted: bool, answer: &Answer) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = said.pods.entry((pod.namespace.clone(), pod.name.clone())).or_insert_with(|| Asked {
            uid: pod.uid.clone(),
            outcome: "",
            requests: 0,
            deleted: false,
            at: Timestamp::now(),
        });
        asked.requests = asked.requests.saturating_add(1);
        asked.outcome = answer.label();
        asked.deleted |= deleted;
        asked.at = Timestamp::now();
    }

    /// The numbers have changed.
    pub fn progressed(&self, progress: &Progress) {
        if progress.all_asked {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            said.all_asked.get_or_insert_with(Timestamp::now);
        }
    }
}
