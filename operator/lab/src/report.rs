//! What came of it, for people at a terminal.

use std::fmt::Write;

use spotpool_crds::spot_pool::Role;

use crate::measure::Measured;
use crate::scenario::Scenario;

mod frame;
pub mod html;
pub mod plots;

/// What a report is about.
#[derive(Clone, Debug)]
pub struct Heading {
    /// Name of the scenario, or of how many.
    pub name: String,
    /// Whether it is made up, all of it or in part.
    pub synthetic: bool,
    /// How long it lasts.
    pub hours: f64,
    /// The least that full capacity could have cost.
    pub least_cost: f64,
    /// The agent pools.
    pub pools: Vec<AgentPool>,
}

/// An agent pool, as far as reports tell it.
#[derive(Clone, Debug)]
pub struct AgentPool {
    /// Its name.
    pub name: String,
    /// Whether it sells on demand.
    pub on_demand: bool,
}

impl Heading {
    /// Of courses of the same agent pools.
    pub fn of(scenarios: &[Scenario], least_costs: &[f64]) -> Self {
        let mean = |of: &mut dyn Iterator<Item = f64>| of.sum::<f64>() / scenarios.len().max(1) as f64;
        let name = match scenarios {
            [one] => one.name.clone(),
            [first, .., last] => format!("{} to {} (means)", first.name, last.seed),
            [] => String::new(),
        };
        let pools = scenarios.first().map_or(&[][..], |first| &first.pools);
        Self {
            name,
            synthetic: scenarios.iter().any(|it| it.synthetic),
            hours: mean(&mut scenarios.iter().map(|it| it.seconds as f64 / 3600.0)),
            least_cost: mean(&mut least_costs.iter().copied()),
            pools: pools
                .iter()
                .map(|pool| AgentPool { name: pool.name.clone(), on_demand: pool.role == Role::OnDemand })
                .collect(),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let synthetic = if self.synthetic { " (SYNTHETIC: drawn, not observed)" } else { "" };
        format!("{}{synthetic}, {:.1} hours", self.name, self.hours)
    }
}

const COLUMNS: [&str; 11] = [
    "POLICY",
    "COST",
    "SAVING",
    "READY",
    "ALL READY",
    "MISSING",
    "ON-DEMAND",
    "LAUNCHES",
    "REFUSED",
    "BACK&FORTH",
    "SURVIVED",
];

/// One line a policy, aligned; the first is set off where `colour` may be used.
pub fn table(heading: &Heading, of: &[Measured], colour: bool) -> String {
    let mut rows: Vec<Vec<String>> = vec![COLUMNS.iter().map(ToString::to_string).collect()];
    for it in of {
        rows.push(vec![
            it.policy.clone(),
            format!("{:.2}", it.cost),
            format!("{:.1}%", it.saving_percent),
            format!("{:.3}%", it.availability * 100.0),
            format!("{:.2}%", it.whole * 100.0),
            format!("{:.0}", it.shortfall_unit_minutes),
            format!("{:.0}", it.on_demand_minutes),
            format!("{}+{}", it.spot_launches, it.on_demand_launches),
            it.refusals.to_string(),
            it.oscillations.to_string(),
            format!("{}/{}", it.evictions_survived, it.evictions),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = format!("{}\n\n", heading.line());
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = match (colour, at) {
            (true, 0) => writeln!(text, "\u{1b}[2m{line}\u{1b}[0m"),
            (true, 1) => writeln!(text, "\u{1b}[1;32m{line}\u{1b}[0m"),
            _ => writeln!(text, "{line}"),
        };
    }
    let _ = writeln!(
        text,
        "\nThe least that full capacity could have cost: {:.2} (a lower bound).",
        heading.least_cost
    );
    text.push_str(
        "READY: ready unit-time of what is wanted. MISSING: unit-minutes. ON-DEMAND: machine-minutes. LAUNCHES: spot+on-demand.\n\
         REFUSED: requests that were not given in full. BACK&FORTH: on-demand bought within an hour after some was given back.\n\
         SURVIVED: machines that were taken while all that is wanted stayed ready.\n",
    );
    text
}
