//! `watch`: the table of `status`, kept current. In a pipe, a line for each change.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use serde::Serialize;
use spotpool_crds::SpotPool;

use crate::Error;
use crate::cluster::{Cluster, find};
use crate::output::Printer;
use crate::status::{Row, render, row};

/// Cursor to the top; what follows is written over what was there.
const HOME: &str = "\u{1b}[H";
/// What is left of the old picture below the new one goes.
const CLEAR_BELOW: &str = "\u{1b}[J";
/// Changes that come together are drawn together.
const TOGETHER: Duration = Duration::from_millis(150);
/// How often a picture is drawn anew without a change: the operator may fall silent.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// One change, as data.
#[derive(Serialize)]
struct Change<'a> {
    at: Timestamp,
    #[serde(flatten)]
    row: &'a Row,
    deleted: bool,
}

/// Shows SpotPools until Ctrl-C.
pub async fn run(cluster: &Cluster, printer: &Printer, name: Option<&str>) -> Result<(), Error> {
    // A list first: what is wrong with the cluster is said at once.
    let (pools, namespace) = cluster.pools().await?;
    let mut config = watcher::Config::default();
    let mut namespace = namespace;
    if let Some(name) = name {
        let pool = find(&pools, name, &cluster.usual)?;
        config = config.fields(&format!("metadata.name={}", pool.name_any()));
        namespace = pool.namespace();
    }
    let api: Api<SpotPool> = match &namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let is_live = std::io::stdout().is_terminal() && !printer.is_data();
    if is_live {
        printer.text(&format!("\u{1b}[2J{HOME}"))?;
    }
    let mut shown = Shown::default();
    let mut trouble = None;
    let mut look = tokio::time::interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                return interrupted.map_err(|error| Error::Output(error.to_string()));
            }
            event = events.next() => match event {
                Some(Ok(event)) => {
                    trouble = None;
                    let changes = shown.take(event);
                    if !is_live {
                        tell(cluster, printer, &changes)?;
                        continue;
                    }
                }
                Some(Err(error)) => trouble = Some(error.to_string()),
                None => return Ok(()),
            },
            _ = look.tick() => {
                let known: Vec<&SpotPool> = shown.pools.values().collect();
                match cluster.complaint(&known).await {
                    Some(complaint) if shown.complaint.as_ref() != Some(&complaint) && !is_live => {
                        // The age in it changes with each look; it is told once.
                        if shown.complaint.is_none() {
                            eprintln!("kubectl-spotpool: {complaint}");
                        }
                        shown.complaint = Some(complaint);
                    }
                    complaint => shown.complaint = complaint,
                }
            }
        }
        if is_live && shown.is_complete {
            // Others are on their way.
            while let Ok(Some(Ok(event))) = tokio::time::timeout(TOGETHER, events.next()).await {
                shown.take(event);
            }
            printer.text(&shown.picture(cluster.now(), printer, trouble.as_deref()))?;
        }
    }
}

/// Lines of change, for a pipe.
fn tell(cluster: &Cluster, printer: &Printer, changes: &[(Row, bool)]) -> Result<(), Error> {
    let now = cluster.now();
    for (row, deleted) in changes {
        let line = if printer.is_data() {
            let change = Change { at: now, row, deleted: *deleted };
            serde_json::to_string(&change).map_err(|error| Error::Output(error.to_string()))?
        } else {
            line(now, row, *deleted)
        };
        printer.text(&format!("{line}\n"))?;
    }
    Ok(())
}

/// A change in one line.
fn line(now: Timestamp, row: &Row, deleted: bool) -> String {
    let what = if deleted {
        "deleted".to_owned()
    } else {
        format!(
            "{}/{} ready, {} spot, {} on-demand, {} fallback, {}: {}",
            row.ready, row.wanted, row.spot, row.on_demand, row.fallback, row.state, row.message
        )
    };
    format!("{now:.0} {}/{} {what}", row.namespace, row.name)
}

/// What is known so far.
#[derive(Default)]
struct Shown {
    pools: BTreeMap<String, SpotPool>,
    /// Those of a list that is coming in.
    listed: BTreeMap<String, SpotPool>,
    is_complete: bool,
    complaint: Option<String>,
}

impl Shown {
    /// Takes an event; gives what looks different now, and whether it is gone.
    fn take(&mut self, event: Event<SpotPool>) -> Vec<(Row, bool)> {
        let key = |pool: &SpotPool| format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any());
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(pool) => {
                self.listed.insert(key(&pool), pool);
                Vec::new()
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut self.pools, std::mem::take(&mut self.listed));
                self.is_complete = true;
                let changed = self
                    .pools
                    .iter()
                    .filter(|(key, pool)| before.get(*key).is_none_or(|before| row(before) != row(pool)));
                let gone = before.iter().filter(|(key, _)| !self.pools.contains_key(*key));
                changed
                    .map(|(_, pool)| (row(pool), false))
                    .chain(gone.map(|(_, pool)| (row(pool), true)))
                    .collect()
            }
            Event::Apply(pool) => {
                let now = row(&pool);
                let before = self.pools.insert(key(&pool), pool);
                if before.is_some_and(|before| row(&before) == now) { Vec::new() } else { vec![(now, false)] }
            }
            Event::Delete(pool) => {
                self.pools.remove(&key(&pool));
                vec![(row(&pool), true)]
            }
        }
    }

    fn picture(&self, now: Timestamp, printer: &Printer, trouble: Option<&str>) -> String {
        let rows: Vec<Row> = self.pools.values().map(row).collect();
        let table = if rows.is_empty() {
            "No SpotPools.\n".to_owned()
        } else {
            render(&rows, now, printer.width(), printer.is_wide())
        };
        let said = [self.complaint.as_deref(), trouble].into_iter().flatten();
        let said: String = said.map(|said| crate::output::wrap("! ", said, printer.prose())).collect();
        // Each line ends what was there before.
        let text = format!("{now:.0}\n\n{table}{said}").replace('\n', "\u{1b}[K\n");
        format!("{HOME}{text}{CLEAR_BELOW}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(ready: i32) -> SpotPool {
        serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": "batch", "name": "workers"},
            "spec": {"replicas": 4, "agentPools": []},
            "status": {"observedGeneration": 1, "replicas": 4, "readyReplicas": ready}}))
        .unwrap()
    }

    #[test]
    fn a_pipe_gets_a_line_for_what_changed_and_none_for_what_did_not() {
        let mut shown = Shown::default();
        let mut lines = |event| {
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let changes = shown.take(event);
            changes.iter().map(|(row, gone)| line(now, row, *gone)).collect::<Vec<_>>()
        };
        let none: [String; 0] = [];
        assert_eq!(lines(Event::Init), none);
        assert_eq!(lines(Event::InitApply(pool(4))), none);
        let first = "2026-01-01T00:00:00Z batch/workers 4/4 ready, 0 spot, 0 on-demand, 0 fallback, Unknown: its status has no condition Ready";
        assert_eq!(lines(Event::InitDone), [first]);
        assert_eq!(lines(Event::Apply(pool(4))), none);
        assert!(lines(Event::Apply(pool(3)))[0].contains("3/4 ready"));
        // The watch began anew, and it went meanwhile.
        assert_eq!(lines(Event::Init), none);
        assert!(lines(Event::InitDone)[0].ends_with("batch/workers deleted"));
    }
}
