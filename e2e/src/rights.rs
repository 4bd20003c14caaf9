//! Rights of our programs: what manifests grant, and one less of them, so that a test can be seen to miss it.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// `verb group/resource`, without the group where it is the core's.
pub type Rights = BTreeSet<String>;

/// Names the right that no manifest of a world grants.
const WITHOUT: &str = "SPOTPOOL_WITHOUT_RIGHT";

/// A right in words.
pub fn right(verb: &str, group: &str, resource: &str) -> String {
    let slash = if group.is_empty() { "" } else { "/" };
    format!("{verb} {group}{slash}{resource}")
}

fn texts(rule: &Value, key: &str) -> Vec<String> {
    let texts = rule[key].as_array().into_iter().flatten();
    texts.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Each right of a rule, with its group, resource and verb.
fn of_rule(rule: &Value) -> Vec<(String, [String; 3])> {
    let mut rights = Vec::new();
    for group in texts(rule, "apiGroups") {
        for resource in texts(rule, "resources") {
            for verb in texts(rule, "verbs") {
                rights.push((right(&verb, &group, &resource), [group.clone(), resource.clone(), verb]));
            }
        }
    }
    rights
}

/// Every right in the roles of a YAML text.
pub fn granted(manifests: &str) -> Result<Rights> {
    let mut rights = Rights::new();
    for document in serde_yaml_ng::Deserializer::from_str(manifests) {
        let document = Value::deserialize(document)?;
        for rule in document["rules"].as_array().into_iter().flatten() {
            rights.extend(of_rule(rule).into_iter().map(|(right, _)| right));
        }
    }
    Ok(rights)
}

/// Takes the right that the environment names off a role.
pub(crate) fn take_away(document: &mut Value) {
    let Ok(without) = std::env::var(WITHOUT) else { return };
    let Some(Value::Array(rules)) = document.get_mut("rules") else { return };
    let kept = rules.iter().flat_map(|rule| {
        if of_rule(rule).iter().all(|(right, _)| *right != without) {
            return vec![rule.clone()];
        }
        let kept = of_rule(rule).into_iter().filter(|(right, _)| *right != without);
        let kept = kept.map(|(_, [group, resource, verb])| {
            let mut rule = rule.clone();
            rule["apiGroups"] = json!([group]);
            rule["resources"] = json!([resource]);
            rule["verbs"] = json!([verb]);
            rule
        });
        kept.collect()
    });
    *rules = kept.collect();
}

/// Runs a test of this very program once for each right, without it: the test must fail, and say that it was denied that
/// right or that something never came.
pub fn each_is_missed(manifests: &str, test: &str) -> Result<()> {
    let mut needless = Vec::new();
    for right in granted(manifests)? {
        let output = Command::new(std::env::current_exe()?)
            .args([test, "--exact"])
            .env(WITHOUT, &right)
            .output()
            .context("cannot run this program again")?;
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        ensure!(said.contains("running 1 test\n"), "no test {test}: {said}");
        if output.status.success() {
            eprintln!("without `{right}`: PASSES");
            needless.push(right);
            continue;
        }
        let why = said.lines().find(|line| line.contains("denied: ") || line.contains(" in vain for "));
        eprintln!(
            "without `{right}`: {}",
            why.with_context(|| format!("fails without `{right}`, but: {said}"))?
        );
    }
    ensure!(needless.is_empty(), "nothing fails without {needless:?}");
    Ok(())
}
