//! What is told of a run, and how Markdown has it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::Serialize;
use spotpool_crds::EvictionDrill;
use spotpool_crds::drill::{
    DrillMethod, DrillPhase, DrillRun, Expectation, HourlyCosts, Moment, PastRun, Target, UnitsReady,
};

/// What is told of the last run of a drill.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub drill: String,
    pub pool: String,
    pub method: String,
    pub phase: DrillPhase,
    pub message: String,
    #[serde(skip)]
    pub from: Option<Timestamp>,
    #[serde(skip)]
    pub to: Timestamp,
    pub candidates: i32,
    pub units: UnitsReady,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly_cost: Option<HourlyCosts>,
    #[serde(skip)]
    pub is_unannounced: bool,
    pub targets: Vec<Target>,
    pub timeline: Vec<Moment>,
    pub verdict: Vec<Expectation>,
    pub past_runs: Vec<PastRun>,
}

/// A heading and a time of a node.
type Step = (&'static str, fn(&Target) -> Option<&Time>);

/// What happens to a node, in order.
pub(super) const STEPS: [Step; 7] = [
    ("asked", |target| target.asked_at.as_ref()),
    ("noticed", |target| target.noticed_at.as_ref()),
    ("closed", |target| target.cordoned_at.as_ref()),
    ("drained", |target| target.drained_at.as_ref()),
    ("gone", |target| target.gone_at.as_ref()),
    ("replaced", |target| target.replaced_at.as_ref()),
    ("open again", |target| target.released_at.as_ref()),
];

/// Of the table of [`Report::course_rows`].
pub(super) const COURSE: [&str; 4] = ["", "before", "meanwhile", "at the end"];

impl Report {
    /// Of the run that is under way or was the last; none if there was none.
    pub fn of(drill: &EvictionDrill, now: Timestamp) -> Option<Self> {
        let status = drill.status.clone()?;
        let run: DrillRun = status.run?;
        Some(Self {
            drill: format!("{}/{}", drill.namespace().unwrap_or_default(), drill.name_any()),
            pool: drill.spec.target.spot_pool.clone(),
            method: drill.spec.method(),
            phase: run.result.or(status.phase)?,
            message: if run.result.is_some() { run.message } else { status.message },
            from: run.started_at.as_ref().map(|at| at.0),
            to: run.ended_at.as_ref().map_or(now, |at| at.0),
            candidates: run.candidates,
            units: run.units,
            hourly_cost: run.hourly_cost,
            is_unannounced: run.method == DrillMethod::DeleteMachine,
            targets: run.targets,
            timeline: run.timeline,
            verdict: run.verdict,
            past_runs: status.past_runs,
        })
    }

    /// Seconds since the run began, as text; empty where there is nothing to say.
    pub fn since(&self, at: Option<&Time>) -> String {
        let since = self.from.and_then(|from| Some(at?.0.duration_since(from).as_secs()));
        since.map_or_else(String::new, |seconds| format!("+{seconds}s"))
    }

    /// Steps that any of the nodes has taken.
    pub fn steps(&self) -> Vec<Step> {
        let is_taken = |step: &Step| self.targets.iter().any(|target| step.1(target).is_some());
        STEPS.into_iter().filter(is_taken).collect()
    }

    /// How the SpotPool was before, meanwhile and at the end; nothing of a run that has taken nothing.
    pub fn course_rows(&self) -> Vec<Vec<String>> {
        let Some(from) = self.from else { return Vec::new() };
        let row = |what: &str, before: String, meanwhile: String, after: String| {
            vec![what.to_owned(), before, meanwhile, after]
        };
        let UnitsReady { wanted, before, lowest, now, short_unit_seconds, short_seconds, .. } = self.units;
        let of_wanted = |ready: i32| format!("{ready} of {wanted}");
        let seconds = self.to.duration_since(from).as_secs();
        let mut rows = vec![
            row(
                "ready units",
                of_wanted(before),
                format!("never fewer than {}", of_wanted(lowest)),
                format!("{}, {seconds} s after the beginning", of_wanted(now)),
            ),
            row(
                "fewer ready than wanted",
                String::new(),
                format!("for {short_seconds} s, {short_unit_seconds} unit-seconds in all"),
                String::new(),
            ),
        ];
        let sum = |count: fn(&Target) -> i32| self.targets.iter().map(count).sum::<i32>();
        let (evicted, escalated, left) =
            (sum(|it| it.pods.evicted), sum(|it| it.pods.escalated), sum(|it| it.pods.left));
        let meanwhile = if self.is_unannounced {
            "none was evicted: nobody had announced it".to_owned()
        } else {
            format!("{evicted} evicted, {escalated} deleted past their budget")
        };
        let after = if self.is_unannounced { "ended with their machine" } else { "left" };
        rows.push(row(
            "pods on the nodes",
            sum(|it| it.pods.before).to_string(),
            meanwhile,
            format!("{left} {after}"),
        ));
        if let Some(HourlyCosts { currency, before, highest, now }) = &self.hourly_cost {
            let cost = |amount: &str| format!("{amount} {currency}");
            rows.push(row("cost an hour", cost(before), format!("at most {}", cost(highest)), cost(now)));
        }
        rows
    }

    /// What held up the drains, by node.
    pub fn held_rows(&self) -> Vec<Vec<String>> {
        let of_node = |target: &Target| {
            target.held.iter().map(|held| vec![target.node.clone(), held.clone()]).collect::<Vec<_>>()
        };
        self.targets.iter().flat_map(of_node).collect()
    }

    /// The whole of it.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Drill {}: {}\n\n{}\n\nSpotPool `{}`, {} of {} nodes, {}.",
            self.drill,
            self.phase,
            self.message,
            self.pool,
            self.targets.len(),
            self.candidates,
            self.method
        );
        if let Some(from) = self.from {
            text.push_str(&format!(" From {from:.0} to {:.0}.", self.to));
        }
        text.push('\n');
        let mut table = |title: &str, heads: &[&str], rows: Vec<Vec<String>>| {
            if !rows.is_empty() {
                text.push_str(&format!(
                    "\n## {title}\n\n| {} |\n|{}\n",
                    heads.join(" | "),
                    "---|".repeat(heads.len())
                ));
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                    text.push_str(&format!("| {} |\n", cells.join(" | ")));
                }
            }
        };
        table("Verdict", &["expectation", "expected", "was", ""], self.verdict_rows());
        table("SpotPool", &COURSE, self.course_rows());
        let heads = self.node_heads();
        table("Nodes", &heads.iter().map(String::as_str).collect::<Vec<_>>(), self.node_rows());
        table("Held up by", &["node", "what"], self.held_rows());
        table("Timeline", &["since the beginning", "what"], self.moment_rows());
        table("Runs before", &["over", "result", "nodes", "message"], self.past_rows());
        text
    }

    pub fn verdict_rows(&self) -> Vec<Vec<String>> {
        let held = |it: &Expectation| if it.held { "held" } else { "did not hold" };
        let row = |it: &Expectation| {
            vec![it.expectation.clone(), it.stated.clone(), it.measured.clone(), held(it).to_owned()]
        };
        self.verdict.iter().map(row).collect()
    }

    pub fn node_heads(&self) -> Vec<String> {
        let fixed = ["node", "agent pool", "zone", "pods", "evicted", "past budget", "left"];
        fixed.into_iter().chain(self.steps().iter().map(|(name, _)| *name)).map(str::to_owned).collect()
    }

    pub fn node_rows(&self) -> Vec<Vec<String>> {
        let row = |target: &Target| {
            let pods = target.pods;
            let mut row = vec![target.node.clone(), target.agent_pool.clone(), target.zone.clone()];
            row.extend([pods.before, pods.evicted, pods.escalated, pods.left].map(|count| count.to_string()));
            row.extend(self.steps().iter().map(|(_, at)| self.since(at(target))));
            row
        };
        self.targets.iter().map(row).collect()
    }

    pub fn moment_rows(&self) -> Vec<Vec<String>> {
        self.timeline.iter().map(|moment| vec![self.since(Some(&moment.at)), moment.what.clone()]).collect()
    }

    pub fn past_rows(&self) -> Vec<Vec<String>> {
        let row = |run: &PastRun| {
            vec![
                format!("{:.0}", run.ended_at.0),
                run.result.to_string(),
                run.nodes.to_string(),
                run.message.clone(),
            ]
        };
        self.past_runs.iter().map(row).collect()
    }
}
