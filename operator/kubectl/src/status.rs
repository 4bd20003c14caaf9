//! `status`: all SpotPools in one table, or one of them in all detail.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;
use spotpool_crds::spot_pool::Mode;
use spotpool_crds::{SpotPool, SpotPoolStatus};

use crate::Error;
use crate::cluster::{Cluster, find};
use crate::output::{Printer, short};
use crate::table::{Column, Table, Tone};

mod detail;

pub use detail::{heading, is_right, money, render_detail, role};

/// One SpotPool in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Units wanted.
    pub wanted: i32,
    /// Units ready.
    pub ready: i32,
    /// Of these on spot.
    pub spot: i32,
    /// Of these on demand.
    pub on_demand: i32,
    /// On-demand nodes that stand in for spot.
    pub fallback: i32,
    /// What it costs an hour, with the currency.
    pub hourly: String,
    /// How much less than on demand, in percent.
    pub saving_percent: Option<i32>,
    /// What it is doing, in a word.
    pub state: String,
    /// The same in a sentence.
    pub message: String,
    /// What was reached of its objective.
    pub objective: String,
    /// `Enforce` or `Observe`.
    pub mode: Mode,
    /// How that is meant.
    #[serde(skip)]
    pub tone: Tone,
    /// Since when it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

/// All SpotPools.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// One each.
    pub pools: Vec<Row>,
}

/// One SpotPool in all detail.
#[derive(Clone, Debug, Serialize)]
pub struct Detail {
    /// In short.
    #[serde(flatten)]
    pub row: Row,
    /// As the operator wrote it.
    pub status: SpotPoolStatus,
}

/// Prints one or all.
pub async fn run(cluster: &Cluster, printer: &Printer, name: Option<&str>) -> Result<(), Error> {
    let (pools, namespace) = cluster.pools().await?;
    let now = cluster.now();
    if let Some(name) = name {
        let pool = find(&pools, name, &cluster.usual)?;
        let detail = Detail { row: row(pool), status: pool.status.clone().unwrap_or_default() };
        printer.view(&detail, || render_detail(&detail, now, printer.width(), printer.prose()))?;
        return cluster.check_operator(&[pool]).await;
    }
    let view = View { pools: pools.iter().map(row).collect() };
    printer.view(&view, || {
        if pools.is_empty() {
            format!(
                "No SpotPools{}.\n",
                namespace.map(|it| format!(" in namespace {it}")).unwrap_or_default()
            )
        } else {
            render(&view.pools, now, printer.width(), printer.is_wide())
        }
    })?;
    let all: Vec<&SpotPool> = pools.iter().collect();
    cluster.check_operator(&all).await
}

/// A condition, if it is there.
pub fn condition<'a>(status: &'a SpotPoolStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

/// A SpotPool in short.
pub fn row(pool: &SpotPool) -> Row {
    let status = pool.status.clone().unwrap_or_default();
    let (state, message, tone) = state(pool, &status);
    let money = status.money.clone().unwrap_or_default();
    Row {
        namespace: pool.namespace().unwrap_or_default(),
        name: pool.name_any(),
        wanted: if status.observed_generation == 0 { pool.spec.replicas } else { status.replicas },
        ready: status.ready_replicas,
        spot: status.capacity.ready_spot,
        on_demand: status.capacity.ready_on_demand,
        fallback: status.fallback.nodes,
        hourly: money.hourly.map(|hourly| format!("{} {}", hourly.total, money.currency)).unwrap_or_default(),
        saving_percent: money.saving_percent,
        state,
        message,
        objective: status.objective.map(|objective| objective.summary).unwrap_or_default(),
        mode: pool.spec.mode,
        tone,
        created: pool.metadata.creation_timestamp.as_ref().map(|created| created.0),
    }
}

/// What it is doing: a word, a sentence, and how that is meant.
fn state(pool: &SpotPool, status: &SpotPoolStatus) -> (String, String, Tone) {
    let is = |kind: &str, value: &str| condition(status, kind).filter(|condition| condition.status == value);
    let said = |condition: &Condition, tone| (condition.reason.clone(), condition.message.clone(), tone);
    if pool.metadata.deletion_timestamp.is_some() {
        let nodes = status.leaving.as_ref().map_or(0, |leaving| leaving.fallback_nodes);
        return ("Leaving".into(), format!("{nodes} fallback nodes still to be returned"), Tone::Warn);
    }
    if status.observed_generation == 0 {
        return ("Unseen".into(), "no operator has looked at it".into(), Tone::Bad);
    }
    if let Some(stalled) = is("Stalled", "True") {
        return said(stalled, Tone::Bad);
    }
    if let Some(azure) = is("AzureReachable", "False") {
        return said(azure, Tone::Bad);
    }
    let Some(ready) = condition(status, "Ready") else {
        return ("Unknown".into(), "its status has no condition Ready".into(), Tone::Warn);
    };
    // All is there, but would go without a word.
    if ready.status == "True"
        && let Some(agents) = is("AgentsHealthy", "False")
    {
        return said(agents, Tone::Warn);
    }
    let tone = match ready.status.as_str() {
        "True" if status.fallback.nodes == 0 && !pool.spec.suspend => Tone::Good,
        "True" => Tone::Warn,
        _ => Tone::Bad,
    };
    said(ready, tone)
}

const PLAIN: Tone = Tone::Plain;

/// The table of all.
pub fn render(rows: &[Row], now: Timestamp, width: Option<usize>, is_wide: bool) -> String {
    let mut columns = vec![
        Column::text("NAMESPACE", 1),
        Column::text("NAME", 0),
        Column::number("WANTED", 0),
        Column::number("READY", 0),
        Column::number("SPOT", 4),
        Column::number("ON-DEMAND", 6),
        Column::number("FALLBACK", 3),
        Column::number("HOURLY", 5),
        Column::number("SAVING", 7),
        Column::text("STATE", 0),
    ];
    if is_wide {
        columns.extend([
            Column::text("MODE", 8),
            Column::text("OBJECTIVE", 8),
            Column::text("AGE", 8),
            Column::text("MESSAGE", 8),
        ]);
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let number = |number: i32| (number.to_string(), PLAIN);
        let mut cells = vec![
            (row.namespace.clone(), PLAIN),
            (row.name.clone(), Tone::Strong),
            number(row.wanted),
            (row.ready.to_string(), if row.ready < row.wanted { Tone::Warn } else { PLAIN }),
            number(row.spot),
            number(row.on_demand),
            (row.fallback.to_string(), if row.fallback > 0 { Tone::Warn } else { PLAIN }),
            (row.hourly.clone(), PLAIN),
            (row.saving_percent.map(|percent| format!("{percent}%")).unwrap_or_default(), PLAIN),
            (row.state.clone(), row.tone),
        ];
        if is_wide {
            let age = row.created.map(|created| short(now.duration_since(created).as_secs()));
            cells.extend([
                (format!("{:?}", row.mode), PLAIN),
                (row.objective.clone(), PLAIN),
                (age.unwrap_or_default(), PLAIN),
                (row.message.clone(), PLAIN),
            ]);
        }
        table.row(cells);
    }
    table.render(width)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::needless_pass_by_value, reason = "tests read better so")]

    use super::*;
    use serde_json::json;

    pub(super) const NOW: &str = "2026-11-21T12:00:00Z";

    pub(super) fn pool(name: &str, status: serde_json::Value) -> SpotPool {
        serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": "batch", "name": name, "creationTimestamp": "2026-11-20T12:00:00Z"},
            "spec": {"replicas": 4, "agentPools": [{"name": "spota", "maxNodes": 4}]}, "status": status}))
        .unwrap()
    }

    pub(super) fn standing_in() -> SpotPool {
        pool(
            "workers",
            json!({"observedGeneration": 1, "replicas": 4, "readyReplicas": 3,
            "capacity": {"wanted": 4, "readySpot": 2, "readyOnDemand": 1, "onTheWay": 1, "evicting": 1},
            "fallback": {"nodes": 1, "since": "2026-11-21T11:50:00Z"},
            "money": {"currency": "USD", "savingPercent": 55, "hourly": {"spot": "0.2", "onDemand": "0", "fallback": "0.3", "total": "0.5"}},
            "agentPools": [
                {"name": "spota", "role": "Spot", "vmSize": "Standard_D4s_v5", "machines": 3, "ready": 2, "evicting": 1,
                 "price": {"hourly": "0.1", "currency": "USD"}, "rank": {"position": 1, "why": "cheapest"}},
                {"name": "rega", "role": "OnDemand", "vmSize": "Standard_D4s_v5", "machines": 2, "ready": 1,
                 "operation": {"kind": "ScaleUp", "count": 2, "machines": 1, "since": "2026-11-21T11:59:30Z"}}],
            "plan": [{"reason": "Progressing", "message": "3 of 4 ready, 1 on the way"},
                     {"reason": "FallbackForShortfall", "agentPool": "rega", "message": "ask rega for 1 more"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "Progressing", "observedGeneration": 1,
                "message": "3 of 4 ready, 1 on the way", "lastTransitionTime": "2026-11-21T11:59:00Z"}]}),
        )
    }

    pub(super) fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn the_table_has_all_figures_and_fits_eighty_and_forty_columns() {
        let rows = [row(&standing_in()), row(&pool("new", json!({})))];
        let now = NOW.parse().unwrap();
        let all = plain(&render(&rows, now, None, false));
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(
            lines,
            [
                "NAMESPACE  NAME     WANTED  READY  SPOT  ON-DEMAND  FALLBACK   HOURLY  SAVING  STATE",
                "batch      workers       4      3     2          1         1  0.5 USD     55%  Progressing",
                "batch      new           4      0     0          0         0        -       -  Unseen",
            ]
        );
        let eighty = plain(&render(&rows, now, Some(80), false));
        assert!(
            eighty.starts_with("NAMESPACE  NAME     WANTED  READY  SPOT  FALLBACK   HOURLY  STATE"),
            "{eighty}"
        );
        let forty = plain(&render(&rows, now, Some(40), false));
        assert_eq!(
            forty.lines().collect::<Vec<_>>(),
            [
                "NAME     WANTED  READY  STATE",
                "workers       4      3  Progressing",
                "new           4      0  Unseen"
            ]
        );
        let wide = plain(&render(&rows, now, None, true));
        assert!(wide.contains("MESSAGE") && wide.contains("3 of 4 ready, 1 on the way"), "{wide}");
    }

    #[test]
    fn a_word_says_what_matters_most() {
        let with = |conditions: serde_json::Value| {
            let row = row(&pool("p", json!({"observedGeneration": 1, "conditions": conditions})));
            (row.state, row.tone)
        };
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": NOW});
        let ready = condition("Ready", "True", "AsWanted");
        assert_eq!(with(json!([ready])), ("AsWanted".into(), Tone::Good));
        assert_eq!(
            with(json!([ready, condition("AzureReachable", "False", "AzureUnreachable")])),
            ("AzureUnreachable".into(), Tone::Bad)
        );
        assert_eq!(
            with(json!([ready, condition("AgentsHealthy", "False", "AgentsNotReady")])),
            ("AgentsNotReady".to_owned(), Tone::Warn)
        );
        assert_eq!(
            with(json!([ready, condition("Stalled", "True", "AgentPoolClaimed")])),
            ("AgentPoolClaimed".into(), Tone::Bad)
        );
        assert_eq!(with(json!([])), ("Unknown".into(), Tone::Warn));
    }
}
