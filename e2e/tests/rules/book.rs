//! Rules, their tests and their pages as text, and what is to be said against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

/// Labels that Prometheus puts on series, or users' scrapes do; and one that a rule makes for itself.
const OF_SCRAPES: [&str; 4] = ["cluster", "instance", "le", "of"];

/// What recorded series are of.
const LEVELS: [&str; 3] = ["spotpool", "spotpool_agent_pool", "spotpool_cluster"];

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Everything that belongs to alerts, by the alert's name where there is a file for each.
pub struct Book {
    pub recording: String,
    pub alerts: String,
    pub tests: BTreeMap<String, String>,
    pub pages: BTreeMap<String, String>,
    /// The reference of metrics.
    pub metrics: String,
}

impl Book {
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
        let all = |folder: &str, end: &str| {
            std::fs::read_dir(root().join(folder))
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter_map(|entry| {
                    let name = entry.file_name().to_string_lossy().strip_suffix(end)?.to_owned();
                    Some((name, std::fs::read_to_string(entry.path()).unwrap()))
                })
                .collect()
        };
        Self {
            recording: read("charts/spotpool/rules/recording.yaml"),
            alerts: read("charts/spotpool/rules/alerts.yaml"),
            tests: all("e2e/rules", ".test.yaml"),
            pages: all("docs/runbooks", ".md"),
            metrics: read("docs/reference/metrics.md"),
        }
    }

    pub fn names(&self) -> Vec<String> {
        rules(&self.alerts).iter().map(|rule| text(&rule["alert"])).collect()
    }
}

fn rules(file: &str) -> Vec<Value> {
    let file: Value = serde_yaml_ng::from_str(file).unwrap();
    let groups = file["groups"].as_sequence().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_sequence().unwrap().clone()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What is wrong, in sentences.
pub fn complaints(book: &Book) -> Vec<String> {
    let mut found = Vec::new();
    for rule in rules(&book.recording) {
        let name = text(&rule["record"]);
        let parts: Vec<&str> = name.split(':').collect();
        if parts.len() != 3 || !LEVELS.contains(&parts[0]) {
            found.push(format!("{name} is not level:metric:operation"));
        }
        found.extend(unknown_names(book, &text(&rule["expr"])).into_iter().map(|it| format!("{name}: {it}")));
    }
    let mut seen = BTreeSet::new();
    for rule in rules(&book.alerts) {
        let alert = text(&rule["alert"]);
        let mut say = |what: &str| found.push(format!("{alert} {what}"));
        if !seen.insert(alert.clone()) {
            say("is there twice");
        }
        if !["page", "ticket"].contains(&text(&rule["labels"]["severity"]).as_str()) {
            say("has an unknown severity");
        }
        let annotations = &rule["annotations"];
        if text(&annotations["summary"]).is_empty() || text(&annotations["description"]).is_empty() {
            say("does not say what is the matter");
        }
        if text(&annotations["runbook"]) != format!("docs/runbooks/{alert}.md") {
            say("does not name its runbook");
        }
        match book.pages.get(&alert) {
            None => say("has no runbook"),
            Some(page) if !page.starts_with(&format!("# {alert}\n")) => say("has a runbook of another title"),
            Some(_) => {}
        }
        match book.tests.get(&alert) {
            None => say("has no test"),
            Some(test) => test_of(&alert, test).into_iter().for_each(say),
        }
        let mut used = text(&rule["expr"]);
        for (_, annotation) in annotations.as_mapping().into_iter().flatten() {
            for label in text(annotation).split("$labels.").skip(1) {
                let label: String =
                    label.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
                used.extend(["\nby (", &label, ")"]);
            }
        }
        found.extend(unknown_names(book, &used).into_iter().map(|it| format!("{alert}: {it}")));
    }
    found
}

/// What a test of an alert leaves open.
fn test_of(alert: &str, test: &str) -> Vec<&'static str> {
    let test: Value = serde_yaml_ng::from_str(test).unwrap();
    let (mut fires, mut below, mut resolves) = (false, false, false);
    for case in test["tests"].as_sequence().unwrap() {
        let mut firing_since = None;
        for look in case["alert_rule_test"].as_sequence().into_iter().flatten() {
            if text(&look["alertname"]) != alert {
                continue;
            }
            let minutes = minutes(&text(&look["eval_time"]));
            let expected = look["exp_alerts"].as_sequence().cloned().unwrap_or_default();
            // What is expected must be told in full, or promtool would compare it with nothing.
            let is_told = |one: &Value| !one["exp_labels"].is_null() && !one["exp_annotations"].is_null();
            if expected.is_empty() {
                below |= firing_since.is_none();
                resolves |= firing_since.is_some_and(|since| since < minutes);
            } else if expected.iter().all(is_told) {
                fires = true;
                firing_since = Some(minutes);
            }
        }
    }
    [
        (fires, "is never seen firing"),
        (below, "is never seen silent below its threshold"),
        (resolves, "is never seen to resolve"),
    ]
    .into_iter()
    .filter_map(|(holds, what)| (!holds).then_some(what))
    .collect()
}

/// `90m`, `26h`.
fn minutes(time: &str) -> u32 {
    let (number, unit) = time.split_at(time.len() - 1);
    number.parse::<u32>().unwrap() * if unit == "h" { 60 } else { 1 }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == ':'
}

/// The lines of the reference that speak of a metric.
fn lines_of<'a>(reference: &'a str, metric: &str) -> Option<&'a str> {
    let plain = ["_bucket", "_count", "_sum"]
        .iter()
        .find_map(|suffix| metric.strip_suffix(suffix))
        .filter(|_| !reference.contains(&format!("`{metric}`")))
        .unwrap_or(metric);
    reference.lines().filter(|line| line.starts_with('|')).find(|line| {
        // `…_ready` stands for a name that begins as the one before it.
        line.split('`').skip(1).step_by(2).any(|name| {
            name == plain || name.strip_prefix('…').is_some_and(|end| !end.is_empty() && plain.ends_with(end))
        })
    })
}

/// Metrics, recorded series, labels and values of labels in an expression that do not exist.
pub fn unknown_names(book: &Book, expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let recorded: BTreeSet<String> =
        rules(&book.recording).iter().map(|rule| text(&rule["record"])).collect();
    let known_label =
        |label: &str| OF_SCRAPES.contains(&label) || book.metrics.contains(&format!("`{label}`"));

    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|character| !is_name(character)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        let matchers = after.strip_prefix('{').and_then(|inside| inside.split('}').next());
        if name.split_once(':').is_some_and(|(level, _)| LEVELS.contains(&level)) {
            if !recorded.contains(name) {
                found.push(format!("{name} is recorded by no rule"));
            }
        } else if name.starts_with("spotpool_") {
            let Some(line) = lines_of(&book.metrics, name) else {
                found.push(format!("{name} is no metric of ours"));
                continue;
            };
            for (label, value) in matchers.into_iter().flat_map(pairs) {
                if !OF_SCRAPES.contains(&label) && !line.contains(&format!("`{label}`")) {
                    found.push(format!("{name} has no label {label}"));
                }
                for value in value.split('|').filter(|it| !book.metrics.contains(&format!("`{it}`"))) {
                    found.push(format!("{value} is no value of {label}"));
                }
            }
        } else if ["by", "on", "without", "ignoring", "group_left", "group_right"].contains(&name) {
            let list = after.trim_start().strip_prefix('(').and_then(|inside| inside.split(')').next());
            let labels = list.into_iter().flat_map(|list| list.split(',')).map(str::trim);
            for label in labels.filter(|label| !label.is_empty() && !known_label(label)) {
                found.push(format!("there is no label {label}"));
            }
        }
        // Labels and values are no names.
        if matchers.is_some() {
            rest = after.split_once('}').map_or("", |(_, rest)| rest);
        }
    }
    found
}

/// `label="value"`, with any operator.
fn pairs(matchers: &str) -> impl Iterator<Item = (&str, &str)> {
    matchers.split(',').filter_map(|matcher| {
        let (label, value) = matcher.split_once(['=', '!'])?;
        Some((label.trim(), value.trim_start_matches(['=', '~', '"']).trim_end().trim_end_matches('"')))
    })
}
