//! `timeline`: evictions, from what stands on Nodes and from Events, which outlive them by an hour.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use spotpool_crds::eviction::{EvictionNotice, PREEMPT, Phase};
use spotpool_crds::{Reason, SpotPool, names};

use crate::Error;
use crate::cluster::{Cluster, find, pool_of};
use crate::explain::node::{annotation, readiness};
use crate::output::{Printer, short, wrap};
use crate::table::{Column, Table, Tone};

/// One eviction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Eviction {
    /// When it was seen.
    pub noticed: Timestamp,
    /// The node.
    pub node: String,
    /// Its SpotPool, `namespace/name`, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Azure's event.
    pub event: String,
    /// Seconds from the notice to the deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead_seconds: Option<i64>,
    /// How far the drain is, or how it ended.
    pub drain: String,
    /// Seconds from the notice to its end, as Events tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<i64>,
    /// Pods evicted, deleted past their budget, and left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<[u32; 3]>,
    /// Seconds until another node of the SpotPool was ready that had not been there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_seconds: Option<i64>,
}

/// What can be told of a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// By time.
    pub evictions: Vec<Eviction>,
    /// Where the look back was to begin.
    pub since: Timestamp,
    /// The oldest Event that there still is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_event: Option<Timestamp>,
}

/// Prints evictions.
pub async fn run(
    cluster: &Cluster,
    printer: &Printer,
    name: Option<&str>,
    since: std::time::Duration,
) -> Result<(), Error> {
    let (pools, _) = cluster.pools().await?;
    let pool = name.map(|name| find(&pools, name, &cluster.usual)).transpose()?;
    let denied =
        |resource, namespace| move |error| Error::of(error, &cluster.server, "list", resource, namespace);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.map_err(denied("nodes", None))?.items;
    // What is told of Nodes is in namespace default.
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let about_nodes = ListParams::default().fields("regarding.kind=Node");
    let events =
        events.list(&about_nodes).await.map_err(denied("events.events.k8s.io", Some("default")))?.items;
    let now = cluster.now();
    let since = now.saturating_sub(since).unwrap_or(Timestamp::MIN);
    let known: Vec<&SpotPool> = match (pool, &cluster.only) {
        (Some(pool), _) => vec![pool],
        (None, _) => pools.iter().collect(),
    };
    let is_all = pool.is_none() && cluster.only.is_none();
    let view = view(&nodes, &events, &known, is_all, since);
    printer.view(&view, || render(&view, now, printer.width(), printer.prose()))
}

/// When an Event was first told.
fn time(event: &Event) -> Option<Timestamp> {
    let first = event.event_time.as_ref().map(|time| time.0);
    first.or_else(|| event.deprecated_first_timestamp.as_ref().map(|time| time.0))
}

/// Puts together what Nodes and Events tell.
pub fn view(nodes: &[Node], events: &[Event], pools: &[&SpotPool], is_all: bool, since: Timestamp) -> View {
    let mut found: BTreeMap<(String, String), Eviction> = BTreeMap::new();
    let mut ends: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
    for event in events {
        let Some(at) = time(event) else { continue };
        let node = event.regarding.as_ref().and_then(|it| it.name.clone()).unwrap_or_default();
        let note = event.note.as_deref().unwrap_or_default();
        let Some(id) = id_in(note) else { continue };
        let reason = event.reason.as_deref().unwrap_or_default();
        let is = |wanted: Reason| reason == wanted.as_ref();
        let key = (node.clone(), id.to_owned());
        let entry =
            || Eviction { noticed: at, node: node.clone(), event: id.to_owned(), ..Eviction::default() };
        if is(Reason::SpotEvictionNoticed) {
            let eviction = found.entry(key).or_insert_with(entry);
            eviction.noticed = at;
            eviction.lead_seconds = deadline_in(note).map(|deadline| deadline.duration_since(at).as_secs());
            if eviction.drain.is_empty() {
                eviction.drain = format!("{:?}", Phase::Noticed);
            }
        } else if is(Reason::DrainCompleted)
            || is(Reason::DrainIncomplete)
            || is(Reason::SpotEvictionCancelled)
        {
            let eviction = found.entry(key).or_insert_with(entry);
            eviction.drain = match reason {
                "DrainCompleted" => "Drained",
                "DrainIncomplete" => "Incomplete",
                _ => "Cancelled",
            }
            .into();
            eviction.pods = pods_in(note).or(eviction.pods);
            ends.insert((node.clone(), id.to_owned()), at);
        }
    }
    // Of planned events there are drains, too.
    let noticed = |event: &Event| event.reason.as_deref() == Some(Reason::SpotEvictionNoticed.as_ref());
    let told: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| noticed(event))
        .filter_map(|event| {
            Some((event.regarding.as_ref()?.name.as_deref()?, id_in(event.note.as_deref()?)?))
        })
        .collect();
    found.retain(|(node, id), _| told.contains(&(node.as_str(), id.as_str())));
    for node in nodes {
        let notice = annotation::<EvictionNotice>(node, names::EVICTION_ANNOTATION);
        let Some(Ok(notice)) = notice.filter(|it| it.as_ref().is_ok_and(|it| it.event_type == PREEMPT))
        else {
            continue;
        };
        let key = (node.name_any(), notice.event_id.clone());
        let eviction = found.entry(key).or_default();
        (eviction.node, eviction.event) = (node.name_any(), notice.event_id.clone());
        // The agent's own words are more exact than its Events.
        eviction.noticed = notice.observed_at;
        eviction.lead_seconds = Some(notice.deadline.duration_since(notice.observed_at).as_secs());
        eviction.drain = format!("{:?}", notice.phase);
        if notice.phase != Phase::Noticed {
            eviction.pods = Some([notice.pods.evicted, notice.pods.escalated, notice.pods.left]);
        }
        eviction.pool = pool_of(node).map(|(namespace, name)| format!("{namespace}/{name}"));
    }
    for (key, eviction) in &mut found {
        let took = ends.get(key).map(|end| end.duration_since(eviction.noticed).as_secs());
        eviction.drain_seconds = took.map(|took| took.max(0));
    }
    let mut evictions: Vec<Eviction> = found.into_values().filter(|it| it.noticed >= since).collect();
    for eviction in &mut evictions {
        eviction.pool = eviction.pool.take().or_else(|| pool_by_name(&eviction.node, pools));
    }
    let full = |pool: &SpotPool| format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any());
    let wanted: Vec<String> = pools.iter().map(|pool| full(pool)).collect();
    evictions.retain(|it| is_all || it.pool.as_ref().is_some_and(|pool| wanted.contains(pool)));
    evictions.sort_by(|one, other| (one.noticed, &one.node).cmp(&(other.noticed, &other.node)));
    replacements(&mut evictions, nodes);
    View { evictions, since, oldest_event: events.iter().filter_map(time).min() }
}

/// AKS names nodes after their agent pools, and an agent pool is of one SpotPool.
fn pool_by_name(node: &str, pools: &[&SpotPool]) -> Option<String> {
    let of = |pool: &&&SpotPool| {
        pool.spec.agent_pools.iter().any(|it| node.starts_with(&format!("aks-{}-", it.name)))
    };
    let pool = pools.iter().find(of)?;
    Some(format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any()))
}

/// The first eviction is replaced by the first new node that became ready after it, the second by the second.
fn replacements(evictions: &mut [Eviction], nodes: &[Node]) {
    let mut new: Vec<(String, Timestamp, Timestamp)> = nodes
        .iter()
        .filter_map(|node| {
            let (namespace, name) = pool_of(node)?;
            let made = node.metadata.creation_timestamp.as_ref()?.0;
            let (true, Some(ready)) = readiness(node)? else { return None };
            Some((format!("{namespace}/{name}"), made, ready))
        })
        .collect();
    new.sort_by_key(|(_, _, ready)| *ready);
    for eviction in evictions.iter_mut().filter(|it| it.drain != "Cancelled") {
        // Times of Nodes are whole seconds.
        let fits = |(pool, made, _): &(String, Timestamp, Timestamp)| {
            Some(pool) == eviction.pool.as_ref() && made.as_second() >= eviction.noticed.as_second()
        };
        if let Some(at) = new.iter().position(fits) {
            let (_, _, ready) = new.remove(at);
            eviction.replaced_seconds = Some(ready.duration_since(eviction.noticed).as_secs().max(0));
        }
    }
}

/// `(event E)` at the end of a note.
fn id_in(note: &str) -> Option<&str> {
    let (_, rest) = note.rsplit_once("(event ")?;
    rest.strip_suffix(')')
}

/// `… by 2026-01-01T00:00:30Z; …`
fn deadline_in(note: &str) -> Option<Timestamp> {
    note.split([' ', ';']).find_map(|word| word.parse().ok())
}

/// `3 pods evicted, 1 deleted past their disruption budget, 0 left …`
fn pods_in(note: &str) -> Option<[u32; 3]> {
    let mut parts = note.split(", ").map(|part| part.split(' ').next().and_then(|word| word.parse().ok()));
    Some([parts.next()??, parts.next()??, parts.next()??])
}

/// As text.
pub fn render(view: &View, now: Timestamp, width: Option<usize>, prose: usize) -> String {
    let mut text = String::new();
    if view.evictions.is_empty() {
        text.push_str("No evictions.\n");
    } else {
        let mut table = Table::new(&[
            Column::text("NOTICED", 0),
            Column::text("NODE", 0),
            Column::text("POOL", 2),
            Column::number("LEAD", 1),
            Column::text("DRAIN", 0),
            Column::number("TOOK", 1),
            Column::number("EVICTED", 3),
            Column::number("ESCALATED", 3),
            Column::number("LEFT", 3),
            Column::number("REPLACED", 1),
        ]);
        let seconds = |seconds: Option<i64>| (seconds.map(short).unwrap_or_default(), Tone::Plain);
        for eviction in &view.evictions {
            let pods = |at: usize| eviction.pods.map(|pods| pods[at].to_string()).unwrap_or_default();
            let tone = match eviction.drain.as_str() {
                "Drained" => Tone::Good,
                "Incomplete" => Tone::Bad,
                _ => Tone::Warn,
            };
            let escalated = eviction.pods.is_some_and(|pods| pods[1] > 0);
            table.row(vec![
                (format!("{} ago", short(now.duration_since(eviction.noticed).as_secs())), Tone::Plain),
                (eviction.node.clone(), Tone::Plain),
                (eviction.pool.clone().unwrap_or_default(), Tone::Plain),
                seconds(eviction.lead_seconds),
                (eviction.drain.clone(), tone),
                seconds(eviction.drain_seconds),
                (pods(0), Tone::Plain),
                (pods(1), if escalated { Tone::Warn } else { Tone::Plain }),
                (pods(2), Tone::Plain),
                seconds(eviction.replaced_seconds),
            ]);
        }
        text.push_str(&table.render(width));
    }
    let ends = match view.oldest_event {
        Some(oldest) if oldest > view.since => {
            format!(
                "the oldest Event that there still is on Nodes is of {oldest:.0}: what was before may be missing"
            )
        }
        Some(_) => "Events reach back further than that".into(),
        None => "there are no Events on Nodes at all: only nodes that still exist can tell".into(),
    };
    let history = format!(
        "Since {:.0}; Kubernetes keeps Events for an hour unless its --event-ttl says otherwise, and {ends}.",
        view.since
    );
    text + &wrap("", &history, prose)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value, reason = "tests read better so")]

    use super::*;
    use serde_json::{Value, json};

    fn event(node: &str, at: &str, reason: &str, note: &str) -> Event {
        serde_json::from_value(json!({"metadata": {"name": format!("{node}.{at}.{reason}")}, "eventTime": at,
            "regarding": {"kind": "Node", "name": node}, "reason": reason, "note": note}))
        .unwrap()
    }

    fn node(name: &str, made: &str, ready: &str, annotations: Value) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": annotations,
            "labels": {"spotpool.dev/pool": "workers", "spotpool.dev/pool-namespace": "batch"}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ready}]}}),
        )
        .unwrap()
    }

    fn pool() -> SpotPool {
        serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": "batch", "name": "workers"},
            "spec": {"replicas": 2, "agentPools": [{"name": "spota", "maxNodes": 4}]}}))
        .unwrap()
    }

    const NOTICED: &str =
        "Azure takes this VM back by 2026-01-01T00:00:30Z; the node is being drained (event E1)";
    const DRAINED: &str = "3 pods evicted, 1 deleted past their disruption budget, 0 left; 1 had data on the node's disk, 0 belong to no controller (event E1)";

    #[test]
    fn a_node_that_is_gone_is_told_from_events_and_its_replacement_from_nodes() {
        let gone = "aks-spota-1-vmss000000";
        let events = [
            // Not in order, and one that is about something else.
            event(gone, "2026-01-01T00:00:07.000000Z", "DrainCompleted", DRAINED),
            event(gone, "2026-01-01T00:00:01.000000Z", "SpotEvictionNoticed", NOTICED),
            event(
                "x",
                "2025-12-31T23:50:00.000000Z",
                "DrainCompleted",
                "1 pods evicted, 0 x, 0 left (event Reboot)",
            ),
            event("x", "2025-12-31T23:40:00.000000Z", "Starting", "kubelet"),
        ];
        let nodes = [
            node("old", "2025-12-31T00:00:00Z", "2025-12-31T00:00:00Z", json!({})),
            node("new", "2026-01-01T00:00:40Z", "2026-01-01T00:01:41Z", json!({})),
        ];
        let pool = pool();
        let view = view(&nodes, &events, &[&pool], false, "2025-12-31T23:30:00Z".parse().unwrap());
        assert_eq!(
            view.evictions,
            [Eviction {
                noticed: "2026-01-01T00:00:01Z".parse().unwrap(),
                node: gone.into(),
                pool: Some("batch/workers".into()),
                event: "E1".into(),
                lead_seconds: Some(29),
                drain: "Drained".into(),
                drain_seconds: Some(6),
                pods: Some([3, 1, 0]),
                replaced_seconds: Some(100),
            }]
        );
        let text = render(&view, "2026-01-01T00:03:01Z".parse().unwrap(), None, 300);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "NOTICED  NODE                    POOL           LEAD  DRAIN    TOOK  EVICTED  ESCALATED  LEFT  REPLACED",
                "3m ago   aks-spota-1-vmss000000  batch/workers   29s  Drained    6s        3          1     0      100s",
                "Since 2025-12-31T23:30:00Z; Kubernetes keeps Events for an hour unless its --event-ttl says otherwise, and the oldest Event that there still is on Nodes is of 2025-12-31T23:40:00Z: what was before may be missing.",
            ]
        );
    }

    #[test]
    fn a_node_that_lives_tells_itself_and_other_pools_are_left_out() {
        let notice = json!({"by": "NodeAgent", "eventId": "E1", "type": "Preempt", "source": "IMDS",
            "observedAt": "2026-01-01T00:00:00.5Z", "deadline": "2026-01-01T00:00:30Z", "phase": "Noticed",
            "cordoned": true, "bootID": "b"});
        let name = "aks-spota-1-vmss000000";
        let annotations = json!({names::EVICTION_ANNOTATION: notice.to_string()});
        let nodes = [node(name, "2025-12-31T00:00:00Z", "2025-12-31T00:00:00Z", annotations)];
        let events = [event(name, "2026-01-01T00:00:01.000000Z", "SpotEvictionNoticed", NOTICED)];
        let since = "2025-12-31T23:30:00Z".parse().unwrap();
        let pool = pool();
        let seen = view(&nodes, &events, &[&pool], false, since);
        let [eviction] = seen.evictions.as_slice() else { panic!("{seen:?}") };
        assert_eq!(
            (eviction.drain.as_str(), eviction.lead_seconds, eviction.pods),
            ("Noticed", Some(29), None)
        );
        assert_eq!(eviction.replaced_seconds, None);
        assert_eq!(
            view(&nodes, &events, &[], false, since).evictions,
            [],
            "of no SpotPool that was asked for"
        );
        assert_eq!(view(&nodes, &events, &[], true, since).evictions.len(), 1);
        let later = "2026-01-01T00:00:02Z".parse().unwrap();
        assert_eq!(view(&nodes, &events, &[&pool], false, later).evictions, [], "before the time asked for");
    }
}
