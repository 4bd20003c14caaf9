//! Agent pools that the spec describes are made where there are none, once, and nothing else is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use jiff::{SignedDuration, Timestamp};
use spotpool_core::{Action, AgentPoolView, Plan, Snapshot, plan};
use spotpool_crds::spot_pool::{Operation, OperationKind, Role};
use spotpool_crds::{Reason, SpotPoolSpec};

const CREATE: &str = "create: {vmSize: Standard_D4s_v5, capacityType: Spot}";

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn missing() -> AgentPoolView {
    AgentPoolView {
        name: "new".into(),
        max_nodes: 5,
        role: Err(Reason::AgentPoolNotFound),
        busy: true,
        ..AgentPoolView::default()
    }
}

fn asked(before: SignedDuration) -> AgentPoolView {
    let operation = Operation {
        kind: OperationKind::CreateAgentPool,
        count: 0,
        machines: 0,
        coming: 0,
        since: (now() - before).into(),
        arrived: 0,
        accepted: false,
    };
    AgentPoolView { operation: Some(operation), ..missing() }
}

fn planned(create: &str, more: &str, view: AgentPoolView) -> Plan {
    let yaml = format!("replicas: 2\nagentPools: [{{name: new, maxNodes: 5, {create}}}]\n{more}\n");
    let spec: SpotPoolSpec = serde_yaml_ng::from_str(&yaml).unwrap();
    plan(&spec, &Snapshot { agent_pools: vec![view], ..Snapshot::default() }, now())
}

#[test]
fn what_is_missing_is_made_once_and_nothing_else() {
    let until = |seconds: i64| Some(now() + SignedDuration::from_secs(seconds));
    for (what, create, view, is_made) in [
        ("missing", CREATE, missing(), true),
        ("missing, and nobody says how to make it", "", missing(), false),
        ("there", CREATE, AgentPoolView { role: Ok(Role::Spot), busy: false, ..missing() }, false),
        (
            "another SpotPool's",
            CREATE,
            AgentPoolView { role: Err(Reason::AgentPoolClaimed), ..missing() },
            false,
        ),
        ("not known yet", CREATE, AgentPoolView { role: Err(Reason::AzureUnreachable), ..missing() }, false),
        ("asked for", CREATE, asked(SignedDuration::from_secs(5)), false),
        ("asked for long ago, and never seen", CREATE, asked(SignedDuration::from_mins(11)), true),
        ("refused", CREATE, AgentPoolView { avoided_until: until(60), ..missing() }, false),
        ("refused long ago", CREATE, AgentPoolView { avoided_until: until(-1), ..missing() }, true),
    ] {
        let plan = planned(create, "", view);
        let made = plan.actions.contains(&Action::CreateAgentPool { agent_pool: "new".into() });
        assert_eq!(made, is_made, "{what}: {:?}", plan.steps);
    }
}

#[test]
fn observe_and_suspend_make_nothing_and_say_what_they_would() {
    for more in ["mode: Observe", "suspend: true"] {
        let plan = planned(CREATE, more, missing());
        assert_eq!((plan.actions.len(), plan.withheld.len()), (0, 1), "{more}: {:?}", plan.steps);
        assert!(
            plan.steps.iter().any(|step| step.reason == Reason::CreateAgentPool),
            "{more}: {:?}",
            plan.steps
        );
    }
}

#[test]
fn it_looks_again_when_an_answer_is_due() {
    let at = |view| planned(CREATE, "", view).wake;
    assert_eq!(at(asked(SignedDuration::from_secs(0))), Some(now() + SignedDuration::from_mins(10)));
    let refused = AgentPoolView { avoided_until: Some(now() + SignedDuration::from_mins(3)), ..missing() };
    assert_eq!(at(refused), Some(now() + SignedDuration::from_mins(3)));
}
