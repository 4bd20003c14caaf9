//! Our programs, built by the harness itself: what is tested is what the sources say, never an old file.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How the programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// As `cargo test` builds them.
    Dev,
    /// As they are shipped.
    Release,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `spotpool-operator`.
    pub operator: PathBuf,
    /// `spotpool-node-agent`.
    pub node_agent: PathBuf,
    /// `spotpool-azure-sim`, always built as by `cargo test`.
    pub azure_sim: PathBuf,
    /// `kubectl-spotpool`, the same.
    pub kubectl_plugin: PathBuf,
}

impl Programs {
    /// Builds what is not up to date. Cargo shows its progress on stderr.
    pub async fn build(profile: Profile) -> Result<Self> {
        static DEV: OnceCell<Programs> = OnceCell::const_new();
        // The same selection as `cargo test --workspace`, so that nothing is built a second time.
        let dev = DEV
            .get_or_try_init(async || {
                let built = cargo(&["--workspace", "--bins"]).await?;
                let of = |name| path_of(&built, name);
                Ok::<_, anyhow::Error>(Self {
                    operator: of("spotpool-operator")?,
                    node_agent: of("spotpool-node-agent")?,
                    azure_sim: of("spotpool-azure-sim")?,
                    kubectl_plugin: of("kubectl-spotpool")?,
                })
            })
            .await?
            .clone();
        match profile {
            Profile::Dev => Ok(dev),
            Profile::Release => {
                let built =
                    cargo(&["--release", "-p", "spotpool-operator", "-p", "spotpool-node-agent"]).await?;
                let (operator, node_agent) =
                    (path_of(&built, "spotpool-operator")?, path_of(&built, "spotpool-node-agent")?);
                Ok(Self { operator, node_agent, ..dev })
            }
        }
    }
}

fn path_of(messages: &str, name: &str) -> Result<PathBuf> {
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    };
    messages.lines().filter_map(executable).next_back().with_context(|| format!("cargo did not build {name}"))
}

async fn cargo(selection: &[&str]) -> Result<String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--message-format=json-render-diagnostics", "--manifest-path", manifest])
        .args(selection)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    // What cargo sets for the program that it runs would make build scripts run again.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "OUT_DIR"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(&key);
        }
    }
    let mut child = command.spawn().context("cannot run cargo: is Rust installed?")?;
    let mut messages = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut messages).await?;
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("cargo build {} failed; its messages are above", selection.join(" "));
    }
    Ok(messages)
}
