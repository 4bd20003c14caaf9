//! `drill`: eviction drills in a table, and the report of one: as Markdown, and as one HTML page that needs nothing else.

use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use spotpool_crds::EvictionDrill;
use spotpool_crds::drill::DrillPhase;

use crate::Error;
use crate::args::Format;
use crate::cluster::{Cluster, hint};
use crate::output::Printer;
use crate::table::{Column, Table, Tone};

mod html;
mod report;

use report::Report;

const EVICTION_DRILLS: &str = "evictiondrills.spotpool.dev";

/// One drill in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    pool: String,
    phase: Option<DrillPhase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_run_at: Option<String>,
    message: String,
}

/// Shows all drills.
pub async fn list(cluster: &Cluster, printer: &Printer) -> Result<(), Error> {
    let rows: Vec<Row> = drills(cluster).await?.iter().map(row).collect();
    printer.view(&rows, || render(&rows, printer.width()))
}

fn row(drill: &EvictionDrill) -> Row {
    let status = drill.status.clone().unwrap_or_default();
    Row {
        namespace: drill.namespace().unwrap_or_default(),
        name: drill.name_any(),
        pool: drill.spec.target.spot_pool.clone(),
        phase: status.phase,
        next_run_at: status.next_run_at.map(|at| format!("{:.0}", at.0)),
        message: status.message,
    }
}

fn render(rows: &[Row], width: Option<usize>) -> String {
    if rows.is_empty() {
        return "there are no EvictionDrills here\n".into();
    }
    let mut table = Table::new(&[
        Column::text("NAMESPACE", 2),
        Column::text("NAME", 0),
        Column::text("POOL", 3),
        Column::text("PHASE", 0),
        Column::text("NEXT", 1),
        Column::text("MESSAGE", 0),
    ]);
    for row in rows {
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        let phase = row.phase.map(|phase| phase.to_string()).unwrap_or_default();
        table.row(vec![
            plain(&row.namespace),
            plain(&row.name),
            plain(&row.pool),
            (phase, row.phase.map_or(Tone::Plain, tone)),
            plain(row.next_run_at.as_deref().unwrap_or_default()),
            plain(&row.message),
        ]);
    }
    table.render(width)
}

fn tone(phase: DrillPhase) -> Tone {
    match phase {
        DrillPhase::Succeeded | DrillPhase::Planned => Tone::Good,
        DrillPhase::Failed => Tone::Bad,
        DrillPhase::Aborted | DrillPhase::Refused => Tone::Warn,
        DrillPhase::Pending | DrillPhase::Running | DrillPhase::Recovering => Tone::Plain,
    }
}

/// Says how the last run of a drill went.
pub async fn report(cluster: &Cluster, printer: &Printer, name: &str) -> Result<(), Error> {
    let all = drills(cluster).await?;
    let drill = find(&all, name, &cluster.usual)?;
    let report = Report::of(drill, cluster.now()).ok_or_else(|| {
        let message = drill.status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
        Error::NotFound(format!("drill {name} has not run yet; {message}"))
    })?;
    match printer.format() {
        Some(Format::Html) => printer.text(&html::page(&report)),
        _ => printer.view(&report, || report.markdown()),
    }
}

async fn drills(cluster: &Cluster) -> Result<Vec<EvictionDrill>, Error> {
    let list = async |namespace: Option<&str>| {
        let api: Api<EvictionDrill> = match namespace {
            Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
            None => Api::all(cluster.client.clone()),
        };
        let list = api.list(&ListParams::default()).await;
        let denied = |error| Error::of(error, &cluster.server, "list", EVICTION_DRILLS, namespace);
        Ok(list.map_err(denied)?.items)
    };
    let mut drills = match cluster.only.as_deref() {
        Some(namespace) => list(Some(namespace)).await?,
        // Few may read all namespaces.
        None => match list(None).await {
            Err(error) if error.is_denied() && !cluster.all => list(Some(&cluster.usual)).await?,
            drills => drills?,
        },
    };
    drills.sort_by_key(|drill| (drill.namespace(), drill.name_any()));
    Ok(drills)
}

/// The drill of a name, which may be `namespace/name`.
fn find<'a>(drills: &'a [EvictionDrill], name: &str, usual: &str) -> Result<&'a EvictionDrill, Error> {
    let (namespace, wanted) =
        name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    let fits = |drill: &&EvictionDrill| {
        drill.name_any() == wanted && namespace.is_none_or(|it| drill.namespace().as_deref() == Some(it))
    };
    let found: Vec<&EvictionDrill> = drills.iter().filter(fits).collect();
    let of_usual = found.iter().find(|drill| drill.namespace().as_deref() == Some(usual));
    match (found.as_slice(), of_usual) {
        ([one], _) | (_, Some(one)) => Ok(one),
        ([], None) => {
            let full = |drill: &EvictionDrill| {
                format!("{}/{}", drill.namespace().unwrap_or_default(), drill.name_any())
            };
            let names: Vec<String> = drills.iter().map(full).collect();
            Err(Error::NotFound(format!("there is no EvictionDrill {name}{}", hint(wanted, &names))))
        }
        (_, None) => Err(Error::NotFound(format!(
            "there is an EvictionDrill {name} in several namespaces: say which with -n"
        ))),
    }
}
