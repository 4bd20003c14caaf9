//! How a program ends: 0 after a clean SIGTERM, 1 on a lost lease or a task that died, 2 on bad
//! configuration with one line that says which setting and why.

use std::process::ExitCode;

/// Bad configuration, told to the person who started the program.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Why a running program ends.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that must not end has ended.
    #[error("{0}")]
    Died(String),
}

/// Turns the outcome of a program into its exit code and, on failure, one line on stderr.
pub fn code(program: &str, outcome: Result<(), Exit>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("{program}: {}", one_line(&exit.to_string()));
            ExitCode::from(match exit {
                Exit::Config(_) => 2,
                Exit::Died(_) => 1,
            })
        }
    }
}

/// Makes a panic anywhere, in a task too, end the process with code 1 after a line in the log.
pub fn on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "panicked");
        std::process::exit(1)
    }));
}

pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    const CHILD: &str = "SPOTPOOL_TEST_PANICS";

    /// A program that lives on without one of its tasks looks healthy and does nothing.
    #[test]
    fn a_panic_in_a_task_ends_the_program_with_a_line_that_says_so() {
        if std::env::var_os(CHILD).is_some() {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            on_panic();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(async { panic!("a bug in a task") });
                // Nobody asks how the task has ended.
                tokio::time::sleep(Duration::from_mins(1)).await;
            });
            return;
        }
        let name = "exit::tests::a_panic_in_a_task_ends_the_program_with_a_line_that_says_so";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(1), "{said}");
        assert!(said.contains("ERROR") && said.contains("a bug in a task"), "{said}");
    }
}
