//! What people see of one eviction without a dashboard: lines of both logs, Events, alerts.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Map, Value};
use spotpool_crds::told::{self, Author};
use spotpool_crds::{Reason, names};
use spotpool_e2e::eventually;
use spotpool_e2e::prometheus::Prometheus;

/// What a program may say while a node is drained that is of no eviction: its start and end, and what it hears badly.
const OF_NO_EVICTION: [&str; 4] =
    ["spotpool_runtime", "spotpool_drain::follow", "spotpool_node_agent::imds", "spotpool_azure"];
/// Lines of one eviction of one pod, whose Job brings it back once or twice. It takes 8; one for each second would be more.
const MOST_OF_AGENT: usize = 16;

type Line = Map<String, Value>;

/// Every line is one JSON object with the fields that `docs/reference/logs.md` names.
fn lines(log: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(log).unwrap();
    let read = |line: &str| -> Line {
        let read: Line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(read.get(field).is_some_and(Value::is_string), "no {field} in {line}");
        }
        read
    };
    text.lines().map(read).collect()
}

fn is_of(line: &Line, event_id: &str) -> bool {
    let own = line.get("event_id").or(line.get("span").and_then(|span| span.get("event_id")));
    own.and_then(Value::as_str).is_some_and(|ids| ids.split(' ').any(|id| id == event_id))
}

/// What is left of lines that are said twice, whatever the time.
fn repeated(lines: &[Line]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let of = |line: &Line| {
        let mut line = line.clone();
        line.remove("timestamp");
        Value::Object(line).to_string()
    };
    lines.iter().map(of).filter(|line| !seen.insert(line.clone())).collect()
}

/// Who reads the agent's log of an eviction finds all of it by the event's id, and nothing said twice.
pub fn the_agent_said(log: &Path, event_id: &str) {
    let all = lines(log);
    let (first, last) = (
        all.iter().position(|line| is_of(line, event_id)).expect("the first line of the eviction"),
        all.iter().rposition(|line| is_of(line, event_id)).expect("its last line"),
    );
    let drain = &all[first..=last];
    for line in drain.iter().filter(|line| !is_of(line, event_id)) {
        let target = line["target"].as_str().unwrap();
        assert!(OF_NO_EVICTION.iter().any(|it| target.starts_with(it)), "no event_id in {line:?}");
    }
    assert!(drain.len() <= MOST_OF_AGENT, "{} lines: {drain:#?}", drain.len());
    assert_eq!(repeated(drain), [""; 0]);
    let said: Vec<&str> = drain.iter().filter_map(|line| line["message"].as_str()).collect();
    for message in ["under notice", "the Node is marked", "drain over"] {
        assert!(said.contains(&message), "{message} is not in {said:?}");
    }
    assert_eq!(errors(&all), [""; 0]);
}

/// The operator's log says what it did because of the eviction, once.
pub fn the_operator_said(log: &Path, event_id: &str) {
    let all = lines(log);
    let of_it: Vec<Line> = all.iter().filter(|line| is_of(line, event_id)).cloned().collect();
    let replaces = |line: &Line| line.get("reason") == Some(&Reason::ReplaceEvicted.as_ref().into());
    assert!(of_it.iter().any(replaces), "no replacement of {event_id} in {all:#?}");
    assert_eq!(repeated(&of_it), [""; 0]);
    assert_eq!(errors(&all), [""; 0]);
}

fn errors(lines: &[Line]) -> Vec<String> {
    let is_error = |line: &&Line| line["level"] == "ERROR";
    lines.iter().filter(is_error).map(|line| Value::Object(line.clone()).to_string()).collect()
}

/// Every Event of ours is in the reference, and the one on the pod says which eviction, until when, and how it went.
pub async fn events_said(client: &Client, pod: &str, node: &str, event_id: &str) {
    let api: Api<Event> = Api::all(client.clone());
    let of_pod = eventually(&format!("the Event on pod {pod}"), async || {
        let events = api.list(&ListParams::default().fields("reason=DisruptionBudgetOverridden")).await?;
        let is_it = |event: &Event| {
            let of_pod = event.regarding.as_ref().is_some_and(|it| it.name.as_deref() == Some(pod));
            of_pod && event.note.as_ref().is_some_and(|note| note.contains(event_id))
        };
        Ok(events.into_iter().find(is_it))
    })
    .await
    .unwrap();
    let note = of_pod.note.unwrap();
    let deleted = "Deleted although held by disruption budget work: Azure takes the VM of node";
    assert!(note.starts_with(&format!("{deleted} {node} back by 20")), "{note}");
    assert_eq!(of_pod.related.and_then(|it| it.name).as_deref(), Some(node));

    let authors =
        [(names::AGENT_FIELD_MANAGER, Author::NodeAgent), (names::OPERATOR_FIELD_MANAGER, Author::Operator)];
    for event in api.list(&ListParams::default()).await.unwrap() {
        let by = event.reporting_controller.as_deref();
        let Some((_, author)) = authors.into_iter().find(|(name, _)| by == Some(name)) else { continue };
        let kind = event.regarding.as_ref().and_then(|it| it.kind.as_deref()).unwrap_or_default();
        let reason = event.reason.as_deref().unwrap_or_default();
        let told = told::find(author, kind, reason);
        let told = told.unwrap_or_else(|| panic!("{reason} on a {kind} by the {author} is in no reference"));
        let normal = event.type_.unwrap_or_default();
        let would = event.action.as_deref().is_some_and(|action| action.starts_with("Withheld/"));
        assert!(would || told.kind.contains(&normal), "{reason} is of type {normal}, not {}", told.kind);
    }
}

/// Recording rules that need something that does not happen here.
const RARE: [&str; 3] =
    ["spotpool_cluster:hook_seconds:p95_1d", "spotpool:budget_used:ratio", "spotpool:floor_cost:ratio"];

/// Every rule is evaluated without an error, every recording rule has data, and nothing is alerted that is not so.
pub async fn rules_hold(prometheus: &Prometheus) {
    let rules = prometheus.rules().await.unwrap();
    assert!(rules.len() > 60, "only {} rules", rules.len());
    for rule in &rules {
        assert!(rule.error.is_empty() && rule.health == "ok", "{rule:?}");
        assert!(rule.state != "firing", "{rule:?} while all is well");
    }
    for rule in rules.iter().filter(|rule| rule.state.is_empty() && !RARE.contains(&rule.name.as_str())) {
        eventually(&format!("data of {}", rule.name), async || {
            let samples = prometheus.query(&rule.name).await?;
            Ok(samples.iter().any(|(_, value)| value.is_finite()).then_some(()))
        })
        .await
        .unwrap();
    }
}

/// An alert that should be on its way is.
pub async fn is_alerted(prometheus: &Prometheus, alert: &str) {
    eventually(&format!("{alert} to be pending"), async || {
        let rules = prometheus.rules().await?;
        let is_on = |state: &str| ["pending", "firing"].contains(&state);
        Ok(rules.iter().any(|rule| rule.name == alert && is_on(&rule.state)).then_some(()))
    })
    .await
    .unwrap();
}
