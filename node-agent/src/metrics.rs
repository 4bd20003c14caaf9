//! What the agent counts and measures. Labels come from enums only: never a node, a pod or an event.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use spotpool_crds::eviction::Phase;
use spotpool_drain::Answer;

use crate::document::{Kind, Oddity};
use crate::hooks::Outcome;
use crate::notify::Written;

/// How a poll of the metadata service went.
#[derive(Clone, Copy, Debug, strum::IntoStaticStr)]
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

/// The agent's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    polls: Family<ResultLabel, Counter>,
    oddities: Family<WhatLabel, Counter>,
    notices: Family<TypeLabel, Counter>,
    under_notice: Gauge,
    lead: Histogram,
    cordon: Histogram,
    evictions: Family<ResultLabel, Counter>,
    escalations: Counter,
    drains: Family<DrainLabel, Histogram>,
    margin: Gauge<f64, AtomicU64>,
    hooks: Family<ResultLabel, Counter>,
    annotations: Family<ResultLabel, Counter>,
    acknowledged: Counter,
}

impl Metrics {
    /// Registers everything under `spotpool_agent_`.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("spotpool_agent");
        let drain_times =
            || Histogram::new([0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 300.0, 900.0]);
        let inner = Inner {
            polls: Family::default(),
            oddities: Family::default(),
            notices: Family::default(),
            under_notice: Gauge::default(),
            lead: Histogram::new([0.0, 1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 60.0, 300.0]),
            cordon: Histogram::new([0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0]),
            evictions: Family::default(),
            escalations: Counter::default(),
            drains: Family::new_with_constructor(drain_times),
            margin: Gauge::default(),
            hooks: Family::default(),
            annotations: Family::default(),
            acknowledged: Counter::default(),
        };
        registry.register("polls", "Polls of the metadata service by result", inner.polls.clone());
        registry.register(
            "documents_not_understood",
            "Parts of Scheduled Events documents that were not understood",
            inner.oddities.clone(),
        );
        registry.register("notices", "Events announced for this VM by type", inner.notices.clone());
        registry.register(
            "under_notice",
            "Whether this VM goes, or its node is being emptied for an event, now",
            inner.under_notice.clone(),
        );
        registry.register_with_unit(
            "notice_lead",
            "Time from a notice to the announced end of the VM",
            Unit::Seconds,
            inner.lead.clone(),
        );
        registry.register_with_unit(
            "notice_to_cordon",
            "Time from a notice to the cordon on the Node",
            Unit::Seconds,
            inner.cordon.clone(),
        );
        registry.register("evictions", "Answers to eviction requests by result", inner.evictions.clone());
        registry.register(
            "escalations",
            "Pods deleted past a disruption budget because their VM was about to go",
            inner.escalations.clone(),
        );
        registry.register_with_unit("drain", "Duration of drains", Unit::Seconds, inner.drains.clone());
        registry.register_with_unit(
            "deadline_margin",
            "Time that was left at the end of the last forced drain, negative past the deadline",
            Unit::Seconds,
            inner.margin.clone(),
        );
        registry.register("hooks", "Hooks of pods that were asked, by result", inner.hooks.clone());
        registry.register(
            "deadline_annotations",
            "Deadlines written on pods that asked for it, or taken off, by result",
            inner.annotations.clone(),
        );
        registry.register(
            "acknowledgements",
            "Events that Azure was told to go ahead with",
            inner.acknowledged.clone(),
        );
        Self(Arc::new(inner))
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
    pub fn cordoned(&self, after: Duration) {
        self.0.cordon.observe(after.as_secs_f64());
    }

    /// The API answered about a pod.
    pub fn answered(&self, answer: &Answer) {
        self.0.evictions.get_or_create(&ResultLabel { result: answer.label() }).inc();
    }

    /// A pod was deleted past its budget.
    pub fn escalated(&self) {
        self.0.escalations.inc();
    }

    /// A pod's hook was asked, or could not be.
    pub fn hook(&self, outcome: &Outcome) {
        self.0.hooks.get_or_create(&ResultLabel { result: outcome.label() }).inc();
    }

    /// A deadline was written on a pod, or taken off.
    pub fn annotated(&self, written: Written) {
        self.0.annotations.get_or_create(&ResultLabel { result: written.label() }).inc();
    }

    /// A drain for an event of this type ended.
    pub fn drained(&self, event: &Kind, phase: Phase, took: Duration, margin_seconds: f64) {
        let result = if phase == Phase::Drained { "drained" } else { "incomplete" };
        let kind = if *event == Kind::Preempt { "forced" } else { "planned" };
        self.0.drains.get_or_create(&DrainLabel { kind, result }).observe(took.as_secs_f64());
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
        self.0.drains.get_or_create(&DrainLabel { kind: "voluntary", result }).observe(took.as_secs_f64());
    }
}
