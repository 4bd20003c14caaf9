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
