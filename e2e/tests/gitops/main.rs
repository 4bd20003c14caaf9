//! SpotPool by GitOps: nothing that is applied twice changes anything, nobody fights for a field, and Flux and Argo CD see what
//! is the case.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod applied;
mod seen;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize as _;
use serde_json::Value;
use spotpool_e2e::{Stage, World, WorldOptions};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{OnceCell, RwLock};

static WORLD: OnceCell<World> = OnceCell::const_new();

async fn world() -> &'static World {
    let options = WorldOptions { agents: false, ..WorldOptions::default() };
    WORLD.get_or_init(async || World::start(options).await.unwrap()).await
}

/// Held alone by who counts what an apply changes: a stage brings rights that the charts have, too.
static RIGHTS: RwLock<()> = RwLock::const_new(());

async fn stage(name: &str) -> Stage<'static> {
    let _others = RIGHTS.read().await;
    Stage::set(world().await, name).await.unwrap()
}

/// A folder of the repository.
fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let documents = documents.map(|document| Value::deserialize(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// What a program said.
#[derive(Debug)]
struct Said {
    good: bool,
    out: String,
    err: String,
}

/// Runs a program with this on its standard input.
async fn said(mut command: Command, input: &str) -> Said {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (written, output) = tokio::join!(
        async move {
            let written = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            written
        },
        child.wait_with_output()
    );
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let said = Said { good: output.status.success(), out: text(output.stdout), err: text(output.stderr) };
    assert!(written.is_ok() || !said.good, "{said:?}");
    said
}

/// kubectl, as the administrator.
async fn kubectl(world: &World, line: &str, input: &str) -> Said {
    let mut command = Command::new(world.cluster.kubectl());
    command.arg("--kubeconfig").arg(world.cluster.admin_kubeconfig()).args(line.split_whitespace());
    said(command, input).await
}

/// The same, which must succeed.
async fn kubectl_does(world: &World, line: &str, input: &str) -> String {
    let said = kubectl(world, line, input).await;
    assert!(said.good, "kubectl {line}: {said:?}");
    said.out
}
