//! `kubectl spotpool`: the real program against a real control plane.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bad_clusters;
mod cleanup;
mod doctor;
mod history;
mod journey;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use spotpool_e2e::OperatorOptions;
use tokio::process::{Child, Command};

/// An operator with the lease that it has by default, which is shorter than the harness's: its silence is waited for.
fn soon_silent() -> OperatorOptions {
    OperatorOptions { args: vec!["--lease-duration".into(), "15s".into()], ..OperatorOptions::default() }
}

/// The program, and the cluster that it is led to.
struct Plugin {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// What it said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// The answer as data.
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Plugin {
    fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    /// Nothing from the environment but the kubeconfig.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).env_clear().env("KUBECONFIG", &self.kubeconfig);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Said {
        self.run_as(self.command(line), line).await
    }

    /// On a terminal of so many columns, or so it is told.
    async fn run_in(&self, columns: usize, line: &str) -> Said {
        let mut command = self.command(line);
        command.env("COLUMNS", columns.to_string());
        self.run_as(command, line).await
    }

    async fn run_as(&self, mut command: Command, line: &str) -> Said {
        let output = tokio::time::timeout(Duration::from_mins(2), command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("`{line}` does not end")).unwrap();
        let said = Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'), "colour in a pipe: {said:?}");
        if said.err.is_empty() {
            keep_example(line, &format!("$ kubectl spotpool {line}\n{}", said.out));
        }
        said
    }

    /// As people call it: kubectl finds it on the path.
    async fn by_kubectl(&self, kubectl: &Path, line: &str) -> Said {
        let mut command = Command::new(kubectl);
        command.arg("spotpool").args(line.split_whitespace()).env_clear().env("KUBECONFIG", &self.kubeconfig);
        command.env("PATH", self.program.parent().unwrap()).stdin(Stdio::null()).kill_on_drop(true);
        self.run_as(command, line).await
    }

    /// The answer of a command that must succeed, as text.
    async fn ok(&self, line: &str) -> String {
        let said = self.run(line).await;
        assert_eq!((said.code, said.err.as_str()), (0, ""), "`{line}`: {said:?}");
        said.out
    }

    /// Starts a command that goes on, with what it says in a pipe.
    fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// What the reference shows is of such a run: `PLUGIN_EXAMPLES` names a folder for it.
fn keep_example(name: &str, text: &str) {
    if let Some(dir) = std::env::var_os("PLUGIN_EXAMPLES") {
        let name = name.replace([' ', '/'], "_");
        std::fs::write(PathBuf::from(dir).join(format!("{name}.txt")), text).unwrap();
    }
}

/// One sentence on standard error, exit code 1, and nothing of a table.
fn is_one_sentence(said: &Said, wanted: &str) {
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.starts_with("kubectl-spotpool: ") && said.err.contains(wanted), "`{wanted}`: {said:?}");
}
