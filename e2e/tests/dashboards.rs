//! Row M: the dashboards are of their sources, and speak of metrics that exist. That they show something is seen with a real
//! Prometheus in `capacity/metrics.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use spotpool_e2e::dashboards::{Dashboard, Kind, NAMES, Panel, file};
use spotpool_runtime::catalogue::Described;

fn source(name: &str) -> Dashboard {
    Dashboard::read(name).unwrap()
}

#[test]
fn what_grafana_imports_is_of_its_source() {
    for name in NAMES {
        let mut wanted = serde_json::to_string_pretty(&source(name).json()).unwrap();
        wanted.push('\n');
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file(name, "json"), &wanted).unwrap();
        }
        let written = std::fs::read_to_string(file(name, "json")).unwrap_or_default();
        assert!(written == wanted, "{name}.json: UPDATE=1 cargo test -p spotpool-e2e --test dashboards");
    }
}

/// Names of metrics in an expression.
fn metrics_of(expr: &str) -> BTreeSet<&str> {
    let words = expr.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
    words.filter(|word| word.starts_with("spotpool_")).collect()
}

fn families() -> Vec<Described> {
    let (operator, agent) =
        (spotpool_operator::metrics::catalogue(), spotpool_node_agent::metrics::catalogue());
    operator.families().iter().chain(agent.families()).cloned().collect()
}

/// What is wrong with a panel, in words.
fn faults(panel: &Panel, families: &[Described]) -> Vec<String> {
    let mut faults = Vec::new();
    if !(1..=24).contains(&panel.width) || panel.help.is_empty() || panel.queries.is_empty() {
        faults.push("width, help or queries are missing".to_owned());
    }
    if panel.kind == Kind::Timeseries && panel.queries.iter().any(|query| query.legend.is_empty()) {
        faults.push("a line has no name".to_owned());
    }
    for query in &panel.queries {
        let promql = query.promql();
        for metric in metrics_of(&promql) {
            let is_it = |family: &&Described| match metric.strip_prefix(family.name.as_str()) {
                Some("") => family.kind != "histogram",
                Some("_bucket" | "_sum" | "_count") => family.kind == "histogram",
                _ => false,
            };
            let Some(family) = families.iter().find(is_it) else {
                faults.push(format!("no metric {metric}"));
                continue;
            };
            // The increase of a gauge and a counter as it is say nothing.
            let of_time = ["rate(", "increase("].iter().any(|f| promql.contains(&format!("{f}{metric}")));
            if of_time == (family.kind == "gauge") {
                faults.push(format!("{metric} is a {}", family.kind));
            }
        }
        if metrics_of(&promql).is_empty() || !promql.contains("$cluster") && !promql.contains("$__range") {
            faults.push(format!("not of the cluster that is chosen: {promql}"));
        }
        let braces = |name: &str| promql.matches(name).count();
        if braces("(") != braces(")") || braces("{") != braces("}") {
            faults.push(format!("brackets do not match: {promql}"));
        }
        for label in query.legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")) {
            let (label, _) = label;
            let known = metrics_of(&promql).iter().any(|metric| {
                let family = families.iter().find(|family| metric.starts_with(family.name.as_str()));
                family.is_some_and(|family| family.labels.iter().any(|it| it.name == label))
            });
            if !known {
                faults.push(format!("legend names a label {label} that {promql} has not"));
            }
        }
    }
    faults
}

#[test]
fn panels_speak_of_metrics_that_exist_and_are_understood_without_our_code() {
    let families = families();
    let mut uids = BTreeSet::new();
    for name in NAMES {
        let dashboard = source(name);
        assert!(uids.insert(dashboard.uid.clone()), "two have the uid {}", dashboard.uid);
        let mut titles = BTreeSet::new();
        for panel in dashboard.panels() {
            assert!(titles.insert(panel.title.clone()), "{name}: {} is there twice", panel.title);
            assert_eq!(faults(panel, &families), [""; 0], "{name}: {}", panel.title);
        }
        let json = dashboard.json();
        let variables = json["templating"]["list"].as_array().unwrap();
        let variables: Vec<&str> = variables.iter().filter_map(|it| it["name"].as_str()).collect();
        assert_eq!(variables, ["datasource", "cluster", "namespace", "pool"]);
        for panel in json["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn a_wrong_panel_is_found() {
    let panel = |expr: &str, legend: &str| -> Panel {
        let text = serde_json::json!({"title": "t", "help": "h", "kind": "timeseries", "unit": "none", "width": 8,
            "queries": [{"expr": expr, "legend": legend}]});
        serde_json::from_value(text).unwrap()
    };
    let families = families();
    for (expr, legend, fault) in [
        ("sum(spotpool_operator_pool_node{$pools})", "a", "no metric spotpool_operator_pool_node"),
        (
            "sum(increase(spotpool_operator_pool_nodes{$pools}[5m]))",
            "a",
            "spotpool_operator_pool_nodes is a gauge",
        ),
        (
            "sum(spotpool_operator_actions_total{cluster=~\"$cluster\"})",
            "a",
            "spotpool_operator_actions_total is a counter",
        ),
        (
            "spotpool_operator_plan_seconds{cluster=~\"$cluster\"}",
            "a",
            "no metric spotpool_operator_plan_seconds",
        ),
        ("sum(spotpool_operator_pool_nodes{$pools}", "a", "brackets do not match"),
        ("sum(spotpool_operator_pool_nodes)", "a", "not of the cluster that is chosen"),
        ("sum(spotpool_operator_pool_nodes{$pools})", "{{node}}", "legend names a label node"),
        ("sum(spotpool_operator_pool_nodes{$pools})", "", "a line has no name"),
    ] {
        let found = faults(&panel(expr, legend), &families);
        assert!(found.iter().any(|it| it.starts_with(fault)), "{expr}: {found:?}");
    }
    assert_eq!(faults(&panel("sum(spotpool_operator_pool_nodes{$pools})", "all"), &families), [""; 0]);
}
