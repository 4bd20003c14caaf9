//! Logs: structured, to stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::{CommonArgs, LogFormat};
use crate::exit::ConfigError;

/// Starts logging. Call once, first.
pub fn init(args: &CommonArgs) -> Result<(), ConfigError> {
    // kube's watcher logs every lost connection as an error although it recovers; we log our own word.
    let filter = EnvFilter::try_new(format!("kube_client=warn,{}", args.log_level))
        .map_err(|error| ConfigError(format!("--log-level {}: {error}", args.log_level)))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => {
            // The span says which event a line of shared code is about.
            logs.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
        }
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
    }
    Ok(())
}
