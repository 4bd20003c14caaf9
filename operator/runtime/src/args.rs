//! Flags that both programs have. Each has an environment variable of the same name.

use std::path::PathBuf;

use clap::error::ErrorKind;
use http::Uri;

use crate::exit::one_line;
use crate::otlp;

/// Flags of every program of ours.
#[derive(Clone, Debug, clap::Args)]
pub struct CommonArgs {
    /// Kubeconfig of the cluster; without it the Pod's own service account is used.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// PEM file with further certificate authorities to trust.
    #[arg(long, env = "CA_BUNDLE", value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,

    /// PEM file with the certificate, and those between it and its authority, that the admin server speaks TLS with. It
    /// is read again when it changes. Plain HTTP without it.
    #[arg(long, env = "TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// PEM file with the key of `--tls-cert-file`.
    #[arg(long, env = "TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,

    /// How log lines look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,spotpool_core=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    pub log_level: String,

    /// Collector that takes traces by OTLP over HTTP, such as `http://otel-collector.monitoring:4318`. Off without it.
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL", value_parser = otlp::endpoint)]
    pub otlp_endpoint: Option<Uri>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Parses the command line. Ends the process with code 2 and one line when it is wrong.
pub fn parse<T: clap::Parser>() -> T {
    match T::try_parse() {
        Ok(args) => args,
        // Help and version go to stdout as they are.
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            error.exit()
        }
        Err(error) => {
            let text = error.render().to_string();
            let program = T::command().get_name().to_owned();
            eprintln!("{program}: {}", summary(&text));
            std::process::exit(2)
        }
    }
}

/// The part of clap's message that says what is wrong, without usage.
fn summary(message: &str) -> String {
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let message = message.split("\n\nFor more information").next().unwrap_or(message);
    one_line(message.trim().trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(name = "program")]
    struct Args {
        #[command(flatten)]
        common: CommonArgs,
        #[arg(long)]
        node_name: String,
    }

    #[test]
    fn a_wrong_flag_is_one_line_that_names_it() {
        for (line, wanted) in [
            (vec!["p", "--node-name", "n", "--log-format", "xml"], "--log-format"),
            (vec!["p"], "--node-name"),
            (vec!["p", "--nodename", "n"], "--nodename"),
        ] {
            let error = Args::try_parse_from(line).unwrap_err();
            let summary = summary(&error.render().to_string());
            assert!(summary.contains(wanted) && !summary.contains('\n'), "{summary}");
        }
        let args = Args::try_parse_from(["p", "--node-name", "n"]).unwrap();
        assert_eq!((args.common.log_format, args.node_name.as_str()), (LogFormat::Json, "n"));
    }
}
