//! The stages by which KWOK plays the kubelets of fake nodes: its own, with two changes, and ours.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_yaml_ng::Value;

use crate::pki::write_private;

/// KWOK manages the nodes that carry this label.
pub const NODE_LABEL: (&str, &str) = ("type", "kwok");

/// Annotation of a pod: the time it needs to stop (`300ms`, `4s`, `1m`; 1 s without it), at most the grace that the
/// deletion grants. `never` leaves the end of the pod to whoever plays its kubelet.
pub const STOP_AFTER_ANNOTATION: &str = "kwok-stop-after";

/// Annotation of a Job's pod: the time it runs until it has succeeded (`20s`; at once without it).
pub const RUN_FOR_ANNOTATION: &str = "kwok-run-for";

/// Pods with this value of the label `app.kubernetes.io/name` are never made Ready by KWOK: the harness runs a real
/// process for each, and says itself when that is ready.
pub const NODE_AGENT_NAME: &str = "spotpool-node-agent";

const POD_STOP: &str = include_str!("../stages/pod-stop.yaml");

/// Ends the selector of the stock stage `pod-ready`.
const NOT_AGENTS: &str =
    r#"{key: '.metadata.labels["app.kubernetes.io/name"]', operator: NotIn, values: [NAME]}"#;

/// Writes one file with every stage.
pub(crate) fn write_stages(stock: &Path, extra: &[PathBuf], target: &Path) -> Result<()> {
    let mut documents = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(stock)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("cannot read KWOK's stages in {}", stock.display()))?;
    files.sort();
    for file in files.iter().chain(extra) {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let document =
            match file.file_name().and_then(|name| name.to_str()).filter(|_| file.starts_with(stock)) {
                Some("pod-ready.yaml") => without_agents(&text),
                Some("pod-complete.yaml") => with_run_time(&text),
                _ => Ok(text),
            };
        documents.push(document.with_context(|| format!("in {}", file.display()))?);
    }
    documents.push(POD_STOP.to_owned());
    write_private(target, &documents.join("\n---\n"))
}

/// Pods of a Job run for as long as they say, instead of ending at once.
fn with_run_time(stage: &str) -> Result<String> {
    let mut stage: Value = serde_yaml_ng::from_str(stage)?;
    let expression = format!(".metadata.annotations[\"{RUN_FOR_ANNOTATION}\"]");
    let delay =
        serde_json::json!({"durationMilliseconds": 0, "durationFrom": {"expressionFrom": expression}});
    stage["spec"]["delay"] = serde_yaml_ng::to_value(delay)?;
    Ok(serde_yaml_ng::to_string(&stage)?)
}

fn without_agents(stage: &str) -> Result<String> {
    let mut stage: Value = serde_yaml_ng::from_str(stage)?;
    let expressions = stage["spec"]["selector"]["matchExpressions"]
        .as_sequence_mut()
        .context("the stage has no spec.selector.matchExpressions; has KWOK changed?")?;
    expressions.push(serde_yaml_ng::from_str(&NOT_AGENTS.replace("NAME", NODE_AGENT_NAME))?);
    Ok(serde_yaml_ng::to_string(&stage)?)
}
