//! What can be set is written down, checked by the schema, and reaches every flag.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use spotpool_e2e::{Profile, Programs, run};

use crate::helm::{charts, find, objects, template};

fn file(name: &str) -> String {
    std::fs::read_to_string(charts().join("spotpool").join(name)).unwrap()
}

/// Path, default and comment of every value that has no values below it that are told of.
fn leaves(yaml: &str) -> Vec<(String, String, String)> {
    let mut leaves: Vec<(String, String, String)> = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    let lines: Vec<&str> = yaml.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.is_empty() {
            comment.clear();
        } else if let Some(said) = text.strip_prefix("# ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(said);
        } else if !text.starts_with("- ") {
            let (key, value) = text.split_once(':').unwrap();
            path.retain(|(above, _)| *above < indent);
            path.push((indent, key.to_owned()));
            let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
            let list =
                lines[at + 1..].iter().map(|line| line.trim()).take_while(|line| line.starts_with("- "));
            let list: Vec<&str> = list.map(|item| item.trim_start_matches("- ")).collect();
            let default = match value.trim() {
                "" if list.is_empty() => None,
                "" => Some(format!("[{}]", list.join(", "))),
                value => Some(value.to_owned()),
            };
            if let Some(default) = default {
                assert!(!comment.is_empty(), "values.yaml says nothing about {name}");
                leaves.push((name, default, std::mem::take(&mut comment)));
            }
            comment.clear();
        }
    }
    leaves
}

#[test]
fn the_reference_of_values_is_of_the_chart() {
    let mut wanted = String::from(
        "# Values of the chart\n\nMade from `charts/spotpool/values.yaml` (`UPDATE=1 cargo test -p spotpool-e2e --test chart`). \
         How to install:\n[install](../install/README.md).\n",
    );
    let mut section = String::new();
    for (name, default, comment) in leaves(&file("values.yaml")) {
        let first = name.split('.').next().unwrap();
        if first != section {
            first.clone_into(&mut section);
            write!(wanted, "\n## {section}\n\n| value | default | |\n|---|---|---|\n").unwrap();
        }
        let default = if default == "\"\"" { String::new() } else { format!("`{default}`") };
        writeln!(wanted, "| `{name}` | {default} | {} |", comment.replace('|', "\\|")).unwrap();
    }
    let page = charts().join("../docs/reference/values.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        written == wanted,
        "docs/reference/values.md is not of the chart: UPDATE=1 cargo test -p spotpool-e2e --test chart"
    );
}

/// Where values and schema do not have the same keys.
fn differences(at: &str, values: &Value, schema: &Value, found: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    if schema["additionalProperties"] != false {
        found.push(format!("{at} lets everything in"));
    }
    let Some(values) = values.as_object() else { return };
    for key in properties.keys().filter(|key| !values.contains_key(*key)) {
        found.push(format!("{at}.{key} is not in values.yaml"));
    }
    for (key, value) in values {
        match properties.get(key) {
            None => found.push(format!("{at}.{key} is not in the schema")),
            Some(schema) => differences(&format!("{at}.{key}"), value, schema, found),
        }
    }
}

#[test]
fn what_the_schema_takes_is_what_values_yaml_shows() {
    let mut values: Value = serde_yaml_ng::from_str(&file("values.yaml")).unwrap();
    // Helm gives it to every chart, and this one does not use it.
    values["global"] = Value::Null;
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    let mut found = Vec::new();
    differences("", &values, &schema, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

/// The flags of a program, by its own help.
fn flags(program: &Path) -> BTreeSet<String> {
    let help = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let name = |line: &str| {
        let flag = &line[line.find("--")?..];
        Some(flag.split([' ', '=', '<', '[']).next()?.to_owned())
    };
    lines.filter_map(name).collect()
}

#[test]
fn every_flag_of_both_programs_can_be_set_by_a_value() {
    let programs = run(async { Programs::build(Profile::Dev).await.unwrap() });
    let everything = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/chart/everything.yaml");
    let objects = objects(&template(&everything, &[]).unwrap());
    for (kind, name, program) in [
        ("Deployment", "spotpool-operator", &programs.operator),
        ("DaemonSet", "spotpool-node-agent", &programs.node_agent),
    ] {
        let container = &find(&objects, kind, name).unwrap()["spec"]["template"]["spec"]["containers"][0];
        let texts = |list: &Value, key: &dyn Fn(&Value) -> String| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(key).collect()
        };
        let given =
            texts(&container["args"], &|arg| arg.as_str().unwrap().split('=').next().unwrap().to_owned());
        let variables = texts(&container["env"], &|variable| {
            format!("--{}", variable["name"].as_str().unwrap().to_lowercase().replace('_', "-"))
        });
        let given: BTreeSet<String> = given.union(&variables).cloned().collect();
        let mut flags = flags(program);
        assert!(flags.len() > 10, "{name}: {flags:?}");
        // In the cluster the Pod's own account is what counts.
        for not_for_pods in ["--kubeconfig", "--help", "--version"] {
            flags.remove(not_for_pods);
        }
        assert_eq!(
            given, flags,
            "{name}: what the chart gives (left), and what the program takes: a new flag needs a value in charts/spotpool"
        );
    }
}
