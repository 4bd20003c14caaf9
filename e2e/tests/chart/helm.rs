//! Helm, and what it makes of the chart.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize as _;
use serde_json::Value;
use spotpool_e2e::run;
use spotpool_e2e_cluster::Tools;

/// The Kubernetes release that templates are made for, where no cluster is asked.
const KUBERNETES: &str = "1.34.4";

pub fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

/// The files of values that people are shown, by name.
pub fn examples() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(charts().join("spotpool/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

pub fn example(name: &str) -> PathBuf {
    charts().join("spotpool/examples").join(name)
}

/// Runs helm: what it said on standard output, or on standard error where it refused.
pub fn helm(args: &[&str]) -> Result<String, String> {
    let program = run(async { Tools::helm().await.unwrap() });
    helm_at(&program, args)
}

/// Runs helm with homes of its own, so that nothing of this machine's user counts.
pub fn helm_at(program: &Path, args: &[&str]) -> Result<String, String> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(args)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// `helm template` with these values: `key=value` on the command line, after a file.
pub fn template(values: &Path, set: &[&str]) -> Result<String, String> {
    let (chart, values) = (charts().join("spotpool"), values.display().to_string());
    let chart = chart.display().to_string();
    let mut args = vec!["template", "spotpool", &chart, "--namespace", "spotpool-system"];
    args.extend(["--kube-version", KUBERNETES, "--values", &values]);
    for set in set {
        args.extend(["--set", set]);
    }
    helm(&args)
}

/// The objects of a rendered text.
pub fn objects(rendered: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(rendered);
    let documents = documents.map(|document| Value::deserialize(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// The one object of a kind and name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}
