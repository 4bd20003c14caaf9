//! `EvictionDrill`: a game day. Which spot nodes are taken on purpose, inside which limits, and what is expected to hold.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::spot_pool::Window;

mod status;

pub use status::{
    DrillPhase, DrillRun, DrilledPods, EvictionDrillStatus, Expectation, HourlyCosts, Moment, PastRun,
    ReadyAt, Target, UnitsReady,
};

/// An EvictionDrill takes spot nodes of a SpotPool on purpose, inside stated limits, and says in status how that went.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spotpool.dev",
    version = "v1alpha1",
    kind = "EvictionDrill",
    namespaced,
    shortname = "evd",
    category = "all",
    derive = "PartialEq",
    doc = "An EvictionDrill takes spot nodes of a SpotPool on purpose, inside stated limits, and says in status how that went.",
    status = "EvictionDrillStatus",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("an EvictionDrill's name is told in labels and Events: use at most 63 characters"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.target.spotPool",
        description = "The SpotPool whose nodes it takes"),
    printcolumn(name = "Method", type_ = "string", json_path = ".spec.method",
        description = "Whether Azure evicts, AKS deletes, or a drain is rehearsed"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase",
        description = "How far it is"),
    printcolumn(name = "Next", type_ = "date", json_path = ".status.nextRunAt",
        description = "When it runs next by its schedule"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message",
        description = "What it does, or how it went"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[x_kube(validation = Rule::new("!has(self.notice) || self.method == 'NoticeOnly'")
    .message("notice is how long a rehearsal lasts: set method to NoticeOnly, or leave notice out, because Azure's own notice is 30s at best"))]
#[x_kube(validation = Rule::new("!has(self.expect.maxPodsEscalated) || self.method != 'DeleteMachine'")
    .message("expect.maxPodsEscalated counts pods that a drain deletes, and DeleteMachine drains nothing: leave it out, or set another method"))]
#[x_kube(validation = Rule::new("!has(self.schedule) || !self.dryRun")
    .message("a schedule with dryRun takes nothing, ever: leave one of them out"))]
#[serde(rename_all = "camelCase")]
pub struct EvictionDrillSpec {
    /// Which nodes may be taken. Always spot nodes alone.
    pub target: DrillTarget,

    /// How many of them: exactly one of `count`, `percent` and `all`.
    pub amount: DrillAmount,

    /// `NoticeOnly` closes and drains the nodes within disruption budgets, as for an eviction that never comes, and opens them
    /// again. `SimulateEviction` has Azure evict their VMs, with its notice: they are gone afterwards. `DeleteMachine` has AKS delete
    /// their machines without a notice, a cordon or a drain: their pods end with them, budgets or not.
    #[serde(default)]
    pub method: DrillMethod,

    /// How long after one node the next is taken, 0s to 1h. `0s` takes all at once.
    #[serde(default)]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')")
        .message("stagger must be at most 1h"))]
    pub stagger: Duration,

    /// With `NoticeOnly`: how long a node is closed, 1s to 5m. Default 30s, which is what Azure gives at best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('5m')")
        .message("notice must be 1s to 5m: a rehearsed node is closed for so long and nothing is bought in its place"))]
    pub notice: Option<Duration>,

    /// What it must never do. It refuses to start if it would, with the numbers.
    pub limits: DrillLimits,

    /// What ends it before its time, looked for before it starts and while it runs.
    #[serde(default)]
    pub abort: DrillAbort,

    /// How long it may take from its start until all is whole again, 10s to 24h.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('24h')")
        .message("timeout must be 10s to 24h"))]
    pub timeout: Duration,

    /// Says which nodes it would take, or why it would refuse, and takes none. The same nodes are taken when this becomes
    /// false, if they are still those that may be.
    #[serde(default)]
    pub dry_run: bool,

    /// When it runs, again and again. Without it, it runs once for each change of its spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<DrillSchedule>,

    /// What should hold. What does not makes the drill `Failed`, and ends nothing before its time.
    #[serde(default)]
    pub expect: DrillExpect,
}

/// Which nodes may be taken: those of which everything holds that is said here.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillTarget {
    /// A SpotPool of this namespace. Nodes of it alone are taken.
    #[schemars(length(min = 1, max = 63))]
    pub spot_pool: String,

    /// Agent pools of it. All, if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 12)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub agent_pools: Vec<String>,

    /// What their labels must be like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,

    /// Their zones, as in label `topology.kubernetes.io/zone`, such as `westeurope-1`. All, if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,
}

/// How many nodes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(has(self.count) ? 1 : 0) + (has(self.percent) ? 1 : 0) + (self.all ? 1 : 0) == 1")
    .message("amount needs exactly one of count, percent and all: true"))]
#[serde(rename_all = "camelCase")]
pub struct DrillAmount {
    /// So many, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub count: Option<i32>,
    /// So much of them in percent, rounded down and at least one, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
    /// All of them: with `target.zones` the outage of a zone, without it that of agent pools.
    #[serde(default)]
    pub all: bool,
}

/// How nodes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DrillMethod {
    /// Closed, drained within disruption budgets, and opened again.
    #[default]
    NoticeOnly,
    /// Evicted by Azure, with its notice.
    SimulateEviction,
    /// Deleted by AKS: what an eviction without a notice is to the cluster.
    DeleteMachine,
}

impl DrillMethod {
    /// Whether the machines are gone afterwards, and are replaced.
    pub fn takes_machines(self) -> bool {
        match self {
            Self::NoticeOnly => false,
            Self::SimulateEviction | Self::DeleteMachine => true,
        }
    }
}

/// What a drill must never do.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillLimits {
    /// The most nodes that one run may take, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub max_nodes: i32,

    /// Units of the SpotPool that are always ready, 0 to 5000: no node is taken if fewer would be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000))]
    pub min_ready_units: Option<i32>,

    /// The only hours in which nodes are taken. A run that they end under is aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_hours: Option<Window>,

    /// Namespaces whose pods may be evicted. All, if empty. Pods of DaemonSets and static pods do not count: no drain moves them.
    /// A node with pods of others is left alone, and another taken in its stead; where there is none, the drill is refused, or
    /// aborted if it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
}

/// What ends a drill before its time.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillAbort {
    /// The SpotPool misses its objective, or its error budget burns too fast.
    #[serde(default = "yes")]
    pub objective_burning: bool,
    /// A disruption budget of pods on the SpotPool's nodes has fewer healthy pods than it asks for.
    #[serde(default = "yes")]
    pub unready_budgets: bool,
    /// Azure has announced an eviction of any node of the cluster that the drill did not ask for.
    #[serde(default = "yes")]
    pub real_evictions: bool,
}

impl Default for DrillAbort {
    fn default() -> Self {
        Self { objective_burning: true, unready_budgets: true, real_evictions: true }
    }
}

fn yes() -> bool {
    true
}

fn default_timeout() -> Duration {
    Duration::from_secs(1800)
}

/// When a drill runs by itself.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillSchedule {
    /// Minute, hour, day of the month, month, day of the week, such as `0 10 * * 2`.
    #[schemars(regex(pattern = r"^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$"), length(max = 100))]
    pub cron: String,

    /// The time zone of `cron`, by its IANA name, such as `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"), length(max = 64))]
    pub time_zone: String,

    /// Whether it rests. A run that is under way is ended by that, as by any change of the spec.
    #[serde(default)]
    pub suspend: bool,
}

fn utc() -> String {
    "Etc/UTC".into()
}

/// What should hold.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillExpect {
    /// Every node is drained before it is taken: no pod is left on one. Says nothing with `DeleteMachine`.
    #[serde(default = "yes")]
    pub drained_in_time: bool,

    /// From the notice of each node until as much is ready again, 1s to 24h. With `DeleteMachine` from when the node is gone, or its
    /// kubelet silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("expect.replacedWithin must be 1s to 24h"))]
    pub replaced_within: Option<Duration>,

    /// The most pods that are deleted past their disruption budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_pods_escalated: Option<i32>,

    /// The fewest units of the SpotPool that are ready at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000))]
    pub min_ready_units: Option<i32>,
}

impl Default for DrillExpect {
    fn default() -> Self {
        Self { drained_in_time: true, replaced_within: None, max_pods_escalated: None, min_ready_units: None }
    }
}

impl EvictionDrillSpec {
    /// How long a node is closed in a rehearsal.
    pub fn rehearsed_notice(&self) -> Duration {
        self.notice.unwrap_or(Duration::from_secs(30))
    }

    /// How nodes are taken, in words.
    pub fn method(&self) -> String {
        match self.method {
            DrillMethod::NoticeOnly => format!("rehearsal, {}", self.rehearsed_notice()),
            DrillMethod::SimulateEviction => "evicted by Azure".into(),
            DrillMethod::DeleteMachine => "deleted without a notice".into(),
        }
    }
}
