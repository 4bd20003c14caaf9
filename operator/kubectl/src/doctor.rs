//! `doctor`: looks for what is set up wrongly, and says how to mend it. Silent where all is right.

use serde::Serialize;

use crate::Error;
use crate::cluster::Cluster;
use crate::output::{Printer, wrap};
use crate::table::{Tone, paint};

mod facts;
mod installation;
mod nodes;
mod pools;
mod rights;
mod workloads;

pub use facts::Facts;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// It will not work.
    Fail,
    /// It works, and hardly as it is meant.
    Warn,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check found it.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// With what.
    pub about: String,
    /// In one sentence.
    pub wrong: String,
    /// How to mend it, in one sentence.
    pub fix: String,
}

impl Finding {
    fn new(check: &'static str, level: Level, about: String, wrong: String, fix: impl Into<String>) -> Self {
        Self { check, level, about, wrong, fix: fix.into() }
    }
}

/// What a check found; `None` if what it looks at may not be read.
type Found = Option<Vec<Finding>>;

/// A check, which looks at facts and nothing else.
struct Check {
    /// Its name.
    name: &'static str,
    /// Finds what is wrong.
    find: fn(&'static str, &Facts) -> Found,
}

const fn check(name: &'static str, find: fn(&'static str, &Facts) -> Found) -> Check {
    Check { name, find }
}

/// In the order in which one mends.
const CHECKS: &[Check] = &[
    check("crd", installation::crd),
    check("operator-lease", installation::lease),
    check("operator-pods", installation::operator_pods),
    check("operator-rights", installation::operator_rights),
    check("agents-installed", installation::agents_installed),
    check("agents-placed", installation::agents_placed),
    check("agents-ready", installation::agents_ready),
    check("agents-healthy", pools::agents_healthy),
    check("agent-rights", installation::agent_rights),
    check("pod-security", installation::pod_security),
    check("flow-control", installation::flow_control),
    check("admission-policies", installation::policies),
    check("pools-watched", pools::watched),
    check("pools-current", pools::current),
    check("azure-reachable", pools::azure_reachable),
    check("azure-permissions", pools::azure_permissions),
    check("stalled", pools::stalled),
    check("agent-pools-exist", pools::agent_pools_exist),
    check("agent-pools-usable", pools::agent_pools_usable),
    check("agent-pools-claimed", pools::claimed),
    check("spot-room", pools::spot_room),
    check("fallback", pools::fallback),
    check("fallback-agent-pools", pools::fallback_agent_pools),
    check("budget-prices", pools::budget_prices),
    check("prices-fresh", pools::prices_fresh),
    check("budget-exhausted", pools::budget_exhausted),
    check("on-demand-available", pools::on_demand_available),
    check("autoscaler-range", pools::autoscaler_range),
    check("sole-owner", pools::sole_owner),
    check("cost-tags", pools::cost_tags),
    check("objective", pools::objective),
    check("switched-off", pools::switched_off),
    check("failback-paused", pools::failback_paused),
    check("budgets-that-block", workloads::blocking),
    check("budgets-of-single-pods", workloads::single),
    check("budgets-that-overlap", workloads::overlapping),
    check("tolerations", workloads::tolerations),
    check("spot-only", workloads::spot_only),
    check("autoscalers", workloads::autoscalers),
    check("cordons", nodes::cordons),
    check("notices", nodes::notices),
    check("drain-requests", nodes::drain_requests),
    check("clocks", nodes::clocks),
];

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// How many checks were made.
    pub checked: usize,
    /// Checks that were not made, because what they look at may not be read.
    pub skipped: Vec<&'static str>,
}

/// Makes every check.
pub fn examine(facts: &Facts) -> Report {
    let (mut findings, mut skipped) = (Vec::new(), Vec::new());
    for check in CHECKS {
        match (check.find)(check.name, facts) {
            Some(found) => findings.extend(found),
            None => skipped.push(check.name),
        }
    }
    findings.sort_by_key(|finding| finding.level);
    Report { findings, checked: CHECKS.len() - skipped.len(), skipped }
}

/// Gathers facts, makes every check, and tells. An error if something will not work.
pub async fn run(cluster: &Cluster, printer: &Printer) -> Result<(), Error> {
    let facts = Facts::gather(cluster).await?;
    let report = examine(&facts);
    printer.view(&report, || render(&report, printer.prose()))?;
    let is_broken = report.findings.iter().any(|finding| finding.level == Level::Fail);
    if is_broken { Err(Error::Unhealthy) } else { Ok(()) }
}

fn render(report: &Report, prose: usize) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (word, tone) = match finding.level {
            Level::Fail => ("fail", Tone::Bad),
            Level::Warn => ("warn", Tone::Warn),
        };
        text.push_str(&format!(
            "{}  {}: {}\n",
            paint(tone, word),
            finding.check,
            paint(Tone::Strong, &finding.about)
        ));
        text.push_str(&wrap("      ", &finding.wrong, prose));
        text.push_str(&wrap("      fix: ", &finding.fix, prose));
    }
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    let outcome = if report.findings.is_empty() {
        "nothing is wrong".to_owned()
    } else {
        format!("{} fail, {} warn", count(Level::Fail), count(Level::Warn))
    };
    text.push_str(&format!("{} checks: {outcome}\n", report.checked));
    if !report.skipped.is_empty() {
        let skipped =
            format!("not made, because you may not read what they look at: {}", report.skipped.join(", "));
        text.push_str(&wrap("", &skipped, prose));
    }
    text
}

#[cfg(test)]
mod tests;
