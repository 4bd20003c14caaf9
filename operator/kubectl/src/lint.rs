//! `lint`: says of manifests what they lose on spot nodes, before anybody applies them. It needs no cluster.

use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;

use crate::Error;
use crate::output::{Printer, counted, wrap};
use crate::table::{Tone, paint};

mod budgets;
mod manifests;
mod pods;
mod scaling;

use manifests::Manifests;

/// What is looked for. The names are for scripts: they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Does it tolerate the taint of spot nodes?
    SpotToleration,
    /// Does it come back to a node that is being emptied?
    ToleratesEverything,
    /// Has it nowhere to go when on-demand stands in for spot?
    SpotOnly,
    /// Does it say that it prefers spot?
    SpotPreference,
    /// Does it stay whole when all spot nodes go at once?
    OnDemandShare,
    /// Are its pods on several nodes and in several zones?
    Spread,
    /// Does a spread keep its pods from starting when nodes are missing?
    HardSpread,
    /// Does it end within the notice?
    Grace,
    /// Is its preStop hook over before it is killed?
    PreStop,
    /// Is its checkpoint hook over before the VM goes?
    HookTimeout,
    /// Does somebody make the pod again?
    BarePod,
    /// Does an eviction count as a failure of the Job?
    JobDisruptions,
    /// Is something lost that was written on the node?
    LocalData,
    /// Does it say what it needs?
    Requests,
    /// Does it push others away without need?
    SystemPriority,
    /// Can its budget ever let a pod go?
    BudgetNeverAllows,
    /// Has a budget nothing to divide?
    BudgetOfSinglePod,
    /// Does a budget select pods at all?
    BudgetSelectsNothing,
    /// Is a pod under two budgets?
    BudgetsOverlap,
    /// Do pods that are broken hold up a drain?
    BudgetOfBrokenPods,
    /// Do a manifest and an autoscaler set the same number?
    ReplicasTwice,
    /// Does an autoscaler scale a SpotPool by a metric that it can use?
    SpotPoolMetric,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It will not work, or block for ever.
    Error,
    /// It loses more by an eviction than it has to.
    Warning,
    /// It may be meant so.
    Info,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which rule found it.
    pub rule: Rule,
    /// How bad it is.
    pub severity: Severity,
    /// In which file.
    pub file: String,
    /// With what.
    pub about: String,
    /// In one sentence.
    pub wrong: String,
    /// What to change, in one sentence.
    pub fix: String,
    /// What to paste; empty if there is nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub paste: &'static str,
}

impl Finding {
    fn new(
        rule: Rule,
        severity: Severity,
        file: &str,
        about: String,
        wrong: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { rule, severity, file: file.to_owned(), about, wrong: wrong.into(), fix: fix.into(), paste: "" }
    }

    fn paste(self, paste: &'static str) -> Self {
        Self { paste, ..self }
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// How many objects were looked at.
    pub objects: usize,
}

/// Looks at a manifest, or at all in a folder, and tells. An error if something will not work.
pub fn run(printer: &Printer, path: &Path, ignored: &[Rule]) -> Result<(), Error> {
    let manifests = Manifests::read(path)?;
    let report = examine(&manifests, ignored);
    printer.view(&report, || render(&report, printer.prose()))?;
    let is_broken = report.findings.iter().any(|finding| finding.severity == Severity::Error);
    if is_broken { Err(Error::Unhealthy) } else { Ok(()) }
}

/// Makes every check but those of rules that are to be ignored.
fn examine(manifests: &Manifests, ignored: &[Rule]) -> Report {
    let mut findings = pods::findings(manifests);
    findings.extend(budgets::findings(manifests));
    findings.extend(scaling::findings(manifests));
    findings.retain(|finding| !ignored.contains(&finding.rule));
    findings.sort_by(|one, other| {
        let key = |it: &Finding| (it.severity, it.file.clone(), it.about.clone(), it.rule);
        key(one).cmp(&key(other))
    });
    Report { findings, objects: manifests.objects }
}

fn name(rule: Rule) -> String {
    rule.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn render(report: &Report, prose: usize) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (word, tone) = match finding.severity {
            Severity::Error => ("error", Tone::Bad),
            Severity::Warning => ("warning", Tone::Warn),
            Severity::Info => ("info", Tone::Plain),
        };
        text.push_str(&format!(
            "{}  {}: {} ({})\n",
            paint(tone, word),
            name(finding.rule),
            paint(Tone::Strong, &finding.about),
            finding.file
        ));
        text.push_str(&wrap("      ", &finding.wrong, prose));
        text.push_str(&wrap("      fix: ", &finding.fix, prose));
        for line in finding.paste.lines() {
            text.push_str(&format!("        {line}\n"));
        }
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let outcome = if report.findings.is_empty() {
        "nothing is wrong".to_owned()
    } else {
        format!(
            "{} error, {} warning, {} info",
            count(Severity::Error),
            count(Severity::Warning),
            count(Severity::Info)
        )
    };
    text.push_str(&format!("{}: {outcome}\n", counted(report.objects as i32, "object")));
    text
}

#[cfg(test)]
mod tests;
