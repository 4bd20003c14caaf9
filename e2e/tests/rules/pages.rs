//! Commands on runbooks and playbooks are run: on a real control plane, with a SpotPool and an operator.

use std::path::Path;
use std::process::Command;

use kube::ResourceExt;
use serde_json::json;
use spotpool_azure_sim::api::PoolSpec;
use spotpool_e2e::{OperatorOptions, Stage, World, WorldOptions, run};

use crate::book::root;
use crate::{PAGES, files};

/// A fenced block.
pub struct Block {
    /// What stands behind the fence: `sh`, `sh change`, `sh needs-azure`, `promql`, …
    pub kind: String,
    pub text: String,
}

/// The fenced blocks of a page, and whether each was closed.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some(Block { kind: kind.trim().to_owned(), text: String::new() }),
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => {
                block.text += line;
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    found
}

/// Verbs of kubectl that change nothing.
const READING: [&str; 7] = ["get", "describe", "logs", "events", "auth", "top", "explain"];

/// What a command does is said by its fence.
fn is_told_right(block: &Block) -> Result<(), String> {
    for line in block.text.lines().filter(|line| line.contains("kubectl ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let verb = words.iter().position(|word| *word == "kubectl").and_then(|at| words.get(at + 1)).copied();
        let reads = verb.is_some_and(|verb| READING.contains(&verb));
        match block.kind.as_str() {
            "sh" if !reads => return Err(format!("this changes something, but is no `sh change`: {line}")),
            "sh change" if !reads && !line.contains("--dry-run=server") => {
                return Err(format!("this has no --dry-run=server: {line}"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_command_that_changes_something_is_told() {
    let block = |kind: &str, text: &str| Block { kind: kind.to_owned(), text: text.to_owned() };
    assert!(is_told_right(&block("sh", "kubectl delete node x")).is_err());
    assert!(is_told_right(&block("sh change", "kubectl delete node x")).is_err());
    assert!(is_told_right(&block("sh change", "kubectl delete node x --dry-run=server")).is_ok());
    assert!(is_told_right(&block("sh", "kubectl get nodes | head")).is_ok());
}

fn bash(block: &str, env: &[(&str, &str)], kubectl: &Path, kubeconfig: &Path) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", kubectl.parent().unwrap().display());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", block])
        .env("PATH", path)
        .env("KUBECONFIG", kubeconfig)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let said =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[test]
fn every_command_on_a_page_works() {
    run(async {
        let world = World::start(WorldOptions { agents: false, ..WorldOptions::default() }).await.unwrap();
        let stage = Stage::set(&world, "pages").await.unwrap();
        stage
            .agent_pools(&[
                PoolSpec::spot("pagesa", "Standard_D4s_v5", 1),
                PoolSpec::regular("pagesr", "Standard_D4s_v5", 0),
            ])
            .await
            .unwrap();
        let operator = stage.operator(&OperatorOptions::default()).await.unwrap();
        let pools = json!([{"name": "pagesa", "maxNodes": 3}, {"name": "pagesr", "maxNodes": 3}]);
        let spec = json!({"replicas": 1, "agentPools": pools,
            "objective": {"availability": "99.5"},
            "onDemand": {"pdbFloor": {"enabled": true, "maxUnits": 2}},
            "fallback": {"maxNodes": 2, "hourlyBudget": "6.00", "monthlyBudget": "900"}});
        stage.spot_pool("workers", spec).await.unwrap();
        stage.status_is("workers", "one ready", |status| status.ready_replicas == 1).await.unwrap();
        let node = stage.nodes("pagesa").await.unwrap()[0].name_any();
        let env = [("NAMESPACE", "pages"), ("POOL", "workers"), ("NODE", node.as_str())];

        let (mut failed, mut ran) = (Vec::new(), 0);
        for page in PAGES.into_iter().flat_map(|folder| files(folder, ".md")) {
            let text = std::fs::read_to_string(root().join(&page)).unwrap();
            let page = page.display();
            for block in blocks(&text).into_iter().filter(|block| block.kind.starts_with("sh")) {
                if let Err(wrong) = is_told_right(&block) {
                    failed.push(format!("{page}: {wrong}"));
                }
                // What needs may be said, `tests/docs` knows.
                if block.kind.starts_with("sh needs-") {
                    continue;
                }
                ran += 1;
                let kubeconfig = world.cluster.admin_kubeconfig();
                if let Err(said) = bash(&block.text, &env, world.cluster.kubectl(), kubeconfig) {
                    failed.push(format!("{page}:\n{}{said}", block.text));
                }
            }
        }
        assert!(ran > 0);
        assert!(failed.is_empty(), "{} of {ran} failed:\n{}", failed.len(), failed.join("\n"));
        // None of it has changed anything.
        let status = stage.status("workers").await.unwrap();
        assert_eq!((status.ready_replicas, stage.nodes("pagesa").await.unwrap().len()), (1, 1));
        operator.stop().await.unwrap();
        world.stop().await.unwrap();
    });
}
