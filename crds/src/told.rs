//! The Events that our programs write: the reference is printed from here, and tests hold what is written against it.

use std::fmt::Write;

use strum::EnumMessage;

use crate::Reason;

/// Who writes an Event: its `reportingController`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Author {
    /// The agent of a node.
    #[strum(serialize = "spotpool-node-agent")]
    NodeAgent,
    /// The operator.
    #[strum(serialize = "spotpool-operator")]
    Operator,
}

/// Events of one reason.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Who writes them.
    pub author: Author,
    /// Kinds of the objects that they are about.
    pub about: &'static str,
    /// Why.
    pub reason: Reason,
    /// `Normal`, `Warning`, or which of them when.
    pub kind: &'static str,
    /// What the note says.
    pub note: &'static str,
    /// What they are about besides.
    pub related: &'static str,
    /// Begins their action; Events of one reason, action and related object are folded into one.
    pub action: &'static str,
}

const fn agent(about: &'static str, reason: Reason, kind: &'static str, note: &'static str) -> Told {
    Told { author: Author::NodeAgent, about, reason, kind, note, related: "", action: "Drain" }
}

const fn operator(reason: Reason, kind: &'static str, action: &'static str, note: &'static str) -> Told {
    Told { author: Author::Operator, about: "SpotPool", reason, kind, note, related: "", action }
}

const fn drill(reason: Reason, kind: &'static str, note: &'static str) -> Told {
    Told {
        author: Author::Operator,
        about: "EvictionDrill",
        reason,
        kind,
        note,
        related: "",
        action: "Drill/<run>",
    }
}

impl Told {
    const fn with(self, related: &'static str) -> Self {
        Self { related, ..self }
    }

    const fn by(self, action: &'static str) -> Self {
        Self { action, ..self }
    }
}

const SCALE_UP: &str = "ScaleUp/<agent pool>";
const MACHINES: &str = "how many machines of which agent pool, and their price";
const CAUTION: &str = "Caution/<steps>/<time>";
const BUDGET_LEFT: &str = "what was kept, the error budget left, burn rates";
const GUARD: &str = "Guard";
const STALLED: &str = "what to change; when `Stalled` becomes True";

/// All of them.
pub const TOLD: &[Told] = &[
    agent("Node", Reason::SpotEvictionNoticed, "Warning", "by when Azure takes the VM, and what is done"),
    agent(
        "Node",
        Reason::MaintenanceNoticed,
        "Warning if the node is drained, else Normal",
        "what Azure does by when, and what is done",
    ),
    agent(
        "Node",
        Reason::RebalanceRecommended,
        "Warning if the node is drained, else Normal",
        "what is done",
    ),
    agent("Node", Reason::DrainCompleted, "Normal", "pods evicted, deleted past their budget, left"),
    agent("Node", Reason::DrainIncomplete, "Warning", "the same"),
    agent("Node", Reason::SpotEvictionCancelled, "Normal", "whether the cordon came off"),
    agent("Node", Reason::EventOver, "Normal", "whether the cordon came off"),
    agent("Node", Reason::EventAcknowledged, "Normal", "how many nodes it names"),
    agent("Node", Reason::VoluntaryDrainStarted, "Normal", "why, until when, and the id of the request"),
    agent("Pod", Reason::PodEvicted, "Normal", "why its node is emptied, and by when")
        .with("Node")
        .by("Evict"),
    agent(
        "Pod, PodDisruptionBudget",
        Reason::DisruptionBudgetOverridden,
        "Warning",
        "which budget held which pod, and by when the VM goes",
    )
    .with("Node of the pod; pod of the budget")
    .by("Delete"),
    agent("Pod", Reason::HookFailed, "Warning", "what was wrong with the hook or its answer")
        .with("Node")
        .by("Tell"),
    operator(Reason::SpotBelowTarget, "Normal", SCALE_UP, MACHINES),
    operator(Reason::ReplaceEvicted, "Warning", SCALE_UP, MACHINES),
    operator(Reason::ReplaceAhead, "Normal", SCALE_UP, MACHINES),
    operator(Reason::StandbyAfterLoss, "Normal", SCALE_UP, MACHINES),
    operator(Reason::FallbackForShortfall, "Warning", SCALE_UP, MACHINES),
    operator(Reason::OnDemandBelowBaseline, "Warning", SCALE_UP, MACHINES),
    operator(Reason::OnDemandBelowFloor, "Normal", SCALE_UP, MACHINES),
    operator(Reason::CreateAgentPool, "Normal", "CreateAgentPool/<agent pool>", "which"),
    operator(Reason::HoldMinimum, "Normal", "SetMinimum/<agent pool>", "to how many"),
    operator(Reason::LowerMinimum, "Normal", "SetMinimum/<agent pool>", "to how many"),
    operator(Reason::CountCorrected, "Normal", "CorrectCount/<agent pool>", "to how many"),
    operator(Reason::Failback, "Normal", "Drain", "which node").with("Node"),
    operator(Reason::ScaleDown, "Normal", "Drain", "which node").with("Node"),
    operator(Reason::ManualDrain, "Normal", "Drain", "which node").with("Node"),
    operator(Reason::ShedOverBudget, "Normal", "Drain", "which node, and what is over which budget")
        .with("Node"),
    operator(Reason::NodeNeededAgain, "Normal", "WithdrawDrain", "which node").with("Node"),
    operator(Reason::DrainNotOurs, "Normal", "WithdrawDrain", "which node").with("Node"),
    operator(Reason::LeftToAutoscaler, "Normal", "WithdrawDrain", "which node").with("Node"),
    operator(Reason::DrainTimedOut, "Normal", "WithdrawDrain", "which node").with("Node"),
    operator(Reason::Leaving, "Normal", "WithdrawDrain", "which node").with("Node"),
    operator(Reason::ReturnDrained, "Normal", "DeleteMachines", "which nodes").with("first Node"),
    operator(Reason::LostDeleted, "Normal", "DeleteMachines", "which nodes").with("first Node"),
    operator(Reason::NeverJoined, "Warning", "DeleteMachines", "which machines"),
    operator(Reason::RestartDeallocated, "Normal", "Restart/<agent pool>", "which nodes").with("first Node"),
    operator(
        Reason::OutOfService,
        "Warning, Normal when it is over",
        "TakeOutOfService, ReturnToService",
        "which node",
    )
    .with("Node"),
    operator(
        Reason::BackupDrain,
        "Warning, Normal when nothing is left",
        "BackupDrain",
        "by when Azure takes which node; how its drain ended",
    )
    .with("Node"),
    operator(
        Reason::FallbackStarting,
        "Warning",
        "FallbackStarting",
        "what the first costs, and what budgets leave",
    ),
    operator(Reason::BudgetThreshold, "Warning", "Budget/<budget>/<share>/<month>", "what was spent of what"),
    operator(
        Reason::BudgetOverridden,
        "Warning",
        "Override/<until>",
        "until when, and who wrote the annotation",
    ),
    operator(
        Reason::FallbackAtBudget,
        "Warning",
        "BudgetExhausted",
        "both numbers; when `BudgetExhausted` becomes True",
    ),
    operator(
        Reason::BudgetBelowPrice,
        "Warning",
        "BudgetExhausted",
        "both numbers; when `BudgetExhausted` becomes True",
    ),
    operator(Reason::FloorAtLimit, "Warning", "Floor", "what is needed, and what bounds it; when it begins"),
    operator(
        Reason::Cautious,
        "Warning",
        "Caution/<steps>/<time>, ScaleUp/<agent pool>",
        "the error budget left, burn rates; or the machines bought for it",
    ),
    operator(Reason::ObjectiveRecovering, "Normal", CAUTION, BUDGET_LEFT),
    operator(Reason::ObjectiveRecovered, "Normal", CAUTION, BUDGET_LEFT),
    operator(Reason::ObjectiveMissed, "Warning", "Objective/<time>", BUDGET_LEFT),
    operator(
        Reason::OperationFailed,
        "Warning",
        "Azure/<agent pool>/<code>",
        "Azure's words, and until when the agent pool is avoided",
    ),
    operator(
        Reason::ScaleUpStalled,
        "Warning",
        "Azure/<agent pool>/<code>",
        "how many have not come, and until when the agent pool is avoided",
    ),
    operator(
        Reason::ScaleUpIncomplete,
        "Warning",
        "Azure/<agent pool>/<code>",
        "how many have not come, and until when the agent pool is avoided",
    ),
    operator(Reason::CountChangedElsewhere, "Warning", "Count/<agent pool>/<time>", "from what to what"),
    operator(Reason::MinimumChangedElsewhere, "Warning", "Count/<agent pool>/<time>", "from what to what"),
    operator(Reason::FailbackRequested, "Normal", "Answer/<request>", "the request, and its answer"),
    operator(
        Reason::OnDemandUnavailable,
        "Warning",
        "OnDemandAvailable",
        "why; when `OnDemandAvailable` becomes False",
    ),
    operator(
        Reason::CostTagsMissing,
        "Warning",
        "CostTagsPresent",
        "which tags of which agent pool; when `CostTagsPresent` becomes False",
    ),
    operator(
        Reason::AgentsNotReady,
        "Warning",
        "AgentsHealthy",
        "how many nodes have no ready agent, and the first of them; when `AgentsHealthy` becomes False",
    ),
    operator(Reason::AgentPoolNotFound, "Warning", GUARD, STALLED),
    operator(Reason::AgentPoolClaimed, "Warning", GUARD, STALLED),
    operator(Reason::AgentPoolUnsuitable, "Warning", GUARD, STALLED),
    operator(Reason::NoSpotAgentPool, "Warning", GUARD, STALLED),
    operator(Reason::WindowInvalid, "Warning", GUARD, STALLED),
    drill(Reason::DrillPlanned, "Normal", "which nodes it would take, of how many"),
    drill(Reason::DrillRefused, "Warning", "each limit that it would have gone beyond, with the numbers"),
    drill(Reason::DrillStarted, "Normal", "which nodes it takes, of how many, and how"),
    drill(Reason::DrillAborted, "Warning", "what ended it; once no more nodes are taken"),
    drill(Reason::DrillSucceeded, "Normal", "what was expected, and measured"),
    drill(Reason::DrillFailed, "Warning", "what was expected, and measured"),
];

/// What the reference says of an Event, if it has it.
pub fn find(author: Author, about: &str, reason: &str) -> Option<&'static Told> {
    let is_about = |told: &Told| told.about.split(", ").any(|kind| kind == about);
    TOLD.iter().find(|told| told.author == author && is_about(told) && told.reason.as_ref() == reason)
}

/// A table in Markdown of what `author` writes.
pub fn markdown(author: Author) -> String {
    let mut table =
        "| reason | on | type | meaning | note | related | action |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for Told { about, reason, kind, note, related, action, .. } in
        TOLD.iter().filter(|it| it.author == author)
    {
        let words = reason.get_documentation().unwrap_or_default().split_whitespace();
        let meaning = words.collect::<Vec<_>>().join(" ");
        let meaning = meaning.trim_end_matches('.');
        let _ = writeln!(
            table,
            "| `{reason}` | {about} | {kind} | {meaning} | {note} | {related} | `{action}` |"
        );
    }
    table
}
