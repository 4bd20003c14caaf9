//! The reference in `docs/reference/kubectl-spotpool.md`, made from the command line and from outputs of a real run.

use clap::{Arg, Command, CommandFactory};

use crate::args::Args;

/// Outputs of a real run, by command.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("status", &[include_str!("../examples/status.txt"), include_str!("../examples/status-pool.txt")]),
    ("watch", &[include_str!("../examples/watch.txt")]),
    ("explain", &[include_str!("../examples/explain.txt"), include_str!("../examples/explain-node.txt")]),
    ("timeline", &[include_str!("../examples/timeline.txt")]),
    ("export-history", &[include_str!("../examples/export-history.txt")]),
    ("drain", &[include_str!("../examples/drain.txt")]),
    ("failback", &[include_str!("../examples/failback.txt")]),
    ("plan", &[include_str!("../examples/plan.txt")]),
    ("lint", &[include_str!("../examples/lint.txt")]),
    (
        "doctor",
        &[include_str!("../examples/doctor-of-a-right-cluster.txt"), include_str!("../examples/doctor.txt")],
    ),
    ("cleanup", &[include_str!("../examples/cleanup.txt")]),
];

/// What is to be said of a command beyond its help.
const NOTES: &[(&str, &str)] = &[
    ("status", include_str!("../notes/status.md")),
    ("watch", include_str!("../notes/watch.md")),
    ("timeline", include_str!("../notes/timeline.md")),
    ("export-history", include_str!("../notes/export-history.md")),
    ("drain", include_str!("../notes/drain.md")),
    ("failback", include_str!("../notes/failback.md")),
    ("plan", include_str!("../notes/plan.md")),
    ("lint", include_str!("../notes/lint.md")),
    ("doctor", include_str!("../notes/doctor.md")),
    ("cleanup", include_str!("../notes/cleanup.md")),
    ("drill", include_str!("../notes/drill.md")),
    ("completion", include_str!("../notes/completion.md")),
];

/// The whole page.
pub fn page() -> String {
    let mut command = Args::command();
    command.build();
    let mut page = String::from(include_str!("../notes/head.md"));
    page.push_str("\n## Options of every command\n\n");
    let is_help = |arg: &&Arg| ["help", "version"].contains(&arg.get_id().as_str());
    let common: Vec<&Arg> = command.get_arguments().filter(|arg| !is_help(arg)).collect();
    page.push_str(&options(&common));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        page.push_str(&section(sub));
    }
    page.push_str(include_str!("../notes/foot.md"));
    page
}

fn section(sub: &Command) -> String {
    let name = sub.get_name();
    let mut text = format!("\n## {name}\n\n");
    let usage = sub.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    text.push_str(&format!("```\n{usage}\n```\n\n"));
    let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
    text.push_str(&format!("{}.\n", about.trim_end_matches('.')));
    let own: Vec<&Arg> =
        sub.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help").collect();
    if !own.is_empty() {
        text.push_str(&format!("\n{}", options(&own)));
    }
    if let Some((_, note)) = NOTES.iter().find(|(of, _)| *of == name) {
        text.push_str(&format!("\n{note}"));
    }
    for example in EXAMPLES.iter().filter(|(of, _)| *of == name).flat_map(|(_, examples)| *examples) {
        text.push_str(&format!("\n```console\n{}\n```\n", example.trim_end()));
    }
    text
}

fn options(args: &[&Arg]) -> String {
    let mut table = String::from("| | default | |\n|---|---|---|\n");
    for arg in args {
        let default: Vec<String> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        let takes = arg.get_action().takes_values();
        let default =
            if takes && !default.is_empty() { format!("`{}`", default.join(",")) } else { String::new() };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> = if takes {
            arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect()
        } else {
            Vec::new()
        };
        let values =
            if values.is_empty() { String::new() } else { format!(" One of {}.", values.join(", ")) };
        table.push_str(&format!(
            "| {} | {default} | {}.{values} |\n",
            name(arg, takes),
            help.trim_end_matches('.')
        ));
    }
    table
}

fn name(arg: &Arg, takes: bool) -> String {
    let value = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>();
    let value = value.join(" ").replace('|', "\\|");
    match (arg.get_short(), arg.get_long()) {
        (_, None) => format!("`{value}`"),
        (short, Some(long)) => {
            let short = short.map(|short| format!("`-{short}`, ")).unwrap_or_default();
            let value = if takes { format!(" {value}") } else { String::new() };
            format!("{short}`--{long}{value}`")
        }
    }
}
