//! What the agent counts and measures. Labels come from enums only: never a node, a pod or an event.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use spotpool_crds::eviction::Phase;
use spotpool_crds::node_policy::NodePolicy;
use spotpool_drain::Answer;
use spotpool_runtime::catalogue::Catalogue;
use spotpool_runtime::trace::{TraceLabel, TracedHistogram};
use strum::VariantArray;

use crate::document::{Kind, Oddity};
use crate::hooks::Outcome;
use crate::notify::Written;

/// The agent's metrics begin so.
pub const PREFIX: &str = "spotpool_agent";

/// What they are, without values.
pub fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::new(PREFIX);
    Metrics::register(&mut catalogue);
    catalogue
}

/// How a poll of the metadata service went.
#[derive(Clone, Copy, Debug, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Poll {
    /// Another document.
    Changed,
    /// The same again.
    Unchanged,
    /// No connection.
    Unreachable,
    /// No answer in time.
    Silent,
    /// 429.
    Throttled,
    /// Another error status.
    Status,
    /// A document too large to read.
    TooLarge,
    /// No document.
    NotUnderstood,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DrainLabel {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    namespace: String,
    pool: String,
    agent_pool: String,
}

fn drain_times() -> TracedHistogram {
    TracedHistogram::new([0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 300.0, 900.0].into_iter())
}

/// The agent's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    node: Family<NodeLabels, Gauge>,
    polls: Family<ResultLabel, Counter>,
    oddities: Family<WhatLabel, Counter>,
    notices: Family<TypeLabel, Counter>,
    under_notice: Gauge,
    lead: Histogram,
    cordon: TracedHistogram,
    evictions: Family<ResultLabel, Counter>,
    escalations: Counter,
    left: Counter,
    lost_work: Counter,
    drains: Family<DrainLabel, TracedHistogram, fn() -> TracedHistogram>,
    margin: Gauge<f64, AtomicU64>,
    hooks: Family<ResultLabel, Counter>,
    hook_times: Histogram,
    annotations: Family<ResultLabel, Counter>,
    acknowledged: Counter,
}

impl Metrics {
    /// Describes and registers everything.
    pub fn register(catalogue: &mut Catalogue) -> Self {
        let inner = Inner {
            node: Family::default(),
            polls: Family::default(),
            oddities: Family::default(),
            notices: Family::default(),
            under_notice: Gauge::default(),
            lead: Histogram::new([0.0, 1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 60.0, 300.0]),
            cordon: TracedHistogram::new([0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0].into_iter()),
            evictions: Family::default(),
            escalations: Counter::default(),
            left: Counter::default(),
            lost_work: Counter::default(),
            drains: Family::new_with_constructor(drain_times),
            margin: Gauge::default(),
            hooks: Family::default(),
            hook_times: Histogram::new([0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0]),
            annotations: Family::default(),
            acknowledged: Counter::default(),
        };
        let metrics = Self(Arc::new(inner));
        metrics.describe(catalogue);
        metrics.begin();
        metrics
    }

    fn describe(&self, catalogue: &mut Catalogue) {
        let inner = &self.0;
        catalogue
            .family("node_info", "1, and whose this node is")
            .of_pool()
            .label("agent_pool")
            .note("Joins the other metrics of the agent with a SpotPool. Absent on a node of none")
            .metric(inner.node.clone());
        catalogue
            .family("polls", "Polls of the metadata service")
            .label_of(
                "result",
                "`changed`, `unchanged`, `unreachable`, `silent` (no answer in time), `throttled` (429), `status` \
                 (another error status), `too_large` (over 1 MiB), `not_understood`",
            )
            .metric(inner.polls.clone());
        catalogue
            .family("documents_not_understood", "Parts of Scheduled Events documents that made no sense")
            .label_of("what", "`incarnation`, `event`, `type`, `status`, `date`, `field`")
            .note("The rest of the document was read")
            .metric(inner.oddities.clone());
        catalogue
            .family("notices", "Events announced for this VM")
            .label_of(
                "type",
                "`Preempt`, `Terminate`, `Reboot`, `Redeploy`, `Freeze`, `SpotRebalanceRecommendation`, `Other`",
            )
            .metric(inner.notices.clone());
        catalogue
            .family("under_notice", "Whether this VM goes, or its node is being emptied for an event, now")
            .unit("0 or 1")
            .metric(inner.under_notice.clone());
        catalogue
            .family("notice_lead", "From the notice of a Preempt to the deadline")
            .seconds()
            .note("0 to 300 s")
            .serves("b M10")
            .metric(inner.lead.clone());
        catalogue
            .family("notice_to_cordon", "From the notice to the accepted first write of the Node")
            .seconds()
            .note("Only if that closes the node. 0.01 to 10 s")
            .metric(inner.cordon.clone());
        catalogue
            .family("evictions", "Answers to evictions, and to deletions past a disruption budget")
            .label_of(
                "result",
                "`accepted`, `gone`, `blocked` (by a disruption budget), `throttled`, `refused`, `unavailable`",
            )
            .serves("b M5")
            .metric(inner.evictions.clone());
        catalogue
            .family("escalations", "Pods deleted past a disruption budget because their VM was about to go")
            .metric(inner.escalations.clone());
        catalogue
            .family("pods_left", "Pods that were still there at the end of a drain for an event")
            .note("They go with the VM, if it goes")
            .serves("b M5")
            .metric(inner.left.clone());
        catalogue
            .family("job_lost_work_seconds", "Run time of pods of Jobs that an event cut off")
            .unit("seconds")
            .note(
                "From the start of the pod; none of those whose hook answered, for they have saved their work. \
                 Whole seconds",
            )
            .serves("a M7, b M3")
            .metric(inner.lost_work.clone());
        catalogue
            .family("drain", "Duration of drains")
            .seconds()
            .label_of("kind", "`forced` (a Preempt), `planned`, `voluntary`")
            .label_of("result", "`drained`, `incomplete`, `timed_out`")
            .note("0.1 to 900 s")
            .metric(inner.drains.clone());
        catalogue
            .family("deadline_margin", "What was left at the end of the last drain for a Preempt")
            .seconds()
            .note("Negative past the deadline; 0 before the first")
            .metric(inner.margin.clone());
        catalogue
            .family("hooks", "Hooks of pods that were asked, or could not be")
            .label_of(
                "result",
                "`answered`, `status` (no 2xx), `unreachable`, `silent` (its own timeout), `too_late` (the pod had \
                 to be asked to go), `gone`, `malformed`",
            )
            .metric(inner.hooks.clone());
        catalogue
            .family("hook", "How long hooks took that answered well")
            .seconds()
            .note("Of a hook that saves a checkpoint: how long that took. 0.1 to 300 s")
            .serves("b M4")
            .metric(inner.hook_times.clone());
        catalogue
            .family("deadline_annotations", "Deadlines written on pods that want them, or taken off")
            .label_of("result", "`done`, `gone`, `failed`")
            .metric(inner.annotations.clone());
        catalogue
            .family("acknowledgements", "Events that Azure was told to go ahead with")
            .metric(inner.acknowledged.clone());
    }

    /// Counters that begin at zero can be seen to rise the first time something happens.
    fn begin(&self) {
        let inner = &self.0;
        for poll in Poll::VARIANTS {
            drop(inner.polls.get_or_create(&ResultLabel { result: poll.into() }));
        }
        for event in ["Preempt", "Terminate", "Reboot", "Redeploy", "Freeze"] {
            drop(inner.notices.get_or_create(&TypeLabel { r#type: event }));
        }
        for result in ["accepted", "blocked"] {
            drop(inner.evictions.get_or_create(&ResultLabel { result }));
        }
        for result in ["drained", "incomplete"] {
            drop(inner.drains.get_or_create(&DrainLabel { kind: "forced", result }));
        }
    }

    /// The node is of this SpotPool, or of none.
    pub fn node_is_of(&self, agent_pool: Option<&str>, policy: Option<&NodePolicy>) {
        let now = policy.map(|policy| NodeLabels {
            namespace: policy.namespace.clone(),
            pool: policy.pool.clone(),
            agent_pool: agent_pool.unwrap_or_default().to_owned(),
        });
        if now.as_ref().is_none_or(|now| self.0.node.get(now).is_none()) {
            self.0.node.clear();
            if let Some(now) = now {
                self.0.node.get_or_create(&now).set(1);
            }
        }
    }

    /// A poll ended.
    pub fn polled(&self, result: Poll) {
        self.0.polls.get_or_create(&ResultLabel { result: result.into() }).inc();
    }

    /// Something was not understood.
    pub fn odd(&self, oddity: &Oddity) {
        self.0.oddities.get_or_create(&WhatLabel { what: oddity.label() }).inc();
    }

    /// An event was announced for this VM.
    pub fn announced(&self, kind: &Kind) {
        self.0.notices.get_or_create(&TypeLabel { r#type: kind.label() }).inc();
    }

    /// A Preempt begins with so much time left.
    pub fn noticed(&self, lead: Duration) {
        self.0.lead.observe(lead.as_secs_f64());
    }

    /// Whether the VM goes, or the node is being emptied.
    pub fn under_notice(&self, is_so: bool) {
        self.0.under_notice.set(i64::from(is_so));
    }

    /// The first PATCH succeeded so long after the notice.
    pub fn cordoned(&self, after: Duration, trace: Option<TraceLabel>) {
        self.0.cordon.observe(after.as_secs_f64(), trace, None);
    }

    /// The API answered about a pod.
    pub fn answered(&self, answer: &Answer) {
        self.0.evictions.get_or_create(&ResultLabel { result: answer.label() }).inc();
    }

    /// A pod was deleted past its budget.
    pub fn escalated(&self) {
        self.0.escalations.inc();
    }

    /// So many pods are still there at the end of a drain.
    pub fn left(&self, pods: usize) {
        self.0.left.inc_by(pods as u64);
    }

    /// A pod of a Job ends before its work is done, which was so much.
    pub fn work_lost(&self, run_time: Duration) {
        self.0.lost_work.inc_by(run_time.as_secs());
    }

    /// A pod's hook was asked, or could not be.
    pub fn hook(&self, outcome: &Outcome, took: Duration) {
        if *outcome == Outcome::Answered {
            self.0.hook_times.observe(took.as_secs_f64());
        }
        self.0.hooks.get_or_create(&ResultLabel { result: outcome.label() }).inc();
    }

    /// A deadline was written on a pod, or taken off.
    pub fn annotated(&self, written: Written) {
        self.0.annotations.get_or_create(&ResultLabel { result: written.label() }).inc();
    }

    /// A drain for an event of this type ended.
    pub fn drained(
        &self,
        event: &Kind,
        phase: Phase,
        took: Duration,
        margin_seconds: f64,
        trace: Option<TraceLabel>,
    ) {
        let result = if phase == Phase::Drained { "drained" } else { "incomplete" };
        let kind = if *event == Kind::Preempt { "forced" } else { "planned" };
        self.0.drains.get_or_create(&DrainLabel { kind, result }).observe(took.as_secs_f64(), trace, None);
        if *event == Kind::Preempt {
            self.0.margin.set(margin_seconds);
        }
    }

    /// Azure was told to go ahead with an event.
    pub fn acknowledged(&self) {
        self.0.acknowledged.inc();
    }

    /// A voluntary drain ended.
    pub fn drained_voluntarily(&self, result: &'static str, took: Duration) {
        let kind = "voluntary";
        self.0.drains.get_or_create(&DrainLabel { kind, result }).observe(took.as_secs_f64(), None, None);
    }
}
