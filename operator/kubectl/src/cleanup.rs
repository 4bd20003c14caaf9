//! `cleanup`: what SpotPool has left on nodes and SpotPools once neither operator nor agents are there any more. While one of
//! them is, this is theirs to do.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};
use spotpool_crds::voluntary_drain::DrainStatus;
use spotpool_crds::{EvictionNotice, SpotPool, names};

use crate::Error;
use crate::cluster::{Cluster, SPOT_POOLS, patch_params};
use crate::output::Printer;
use crate::table::{Column, Table, Tone};

const ANNOTATIONS: [&str; 5] = [
    names::EVICTION_ANNOTATION,
    names::POLICY_ANNOTATION,
    names::DRAIN_REQUEST_ANNOTATION,
    names::DRAIN_STATUS_ANNOTATION,
    names::REQUESTED_DRAIN_ANNOTATION,
];
const LABELS: [&str; 2] = [names::POOL_LABEL, names::POOL_NAMESPACE_LABEL];

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cleaned {
    /// Such as `node/aks-spot-0`.
    object: String,
    /// What is taken off.
    taken_off: Vec<&'static str>,
    /// Why it is left as it is, if it is.
    left: Option<String>,
}

/// What became of a Node.
enum Outcome {
    /// These are off; none were there if it is empty.
    TakenOff(Vec<&'static str>),
    /// It was not touched, for this reason.
    Left(String),
}

/// All that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    objects: Vec<Cleaned>,
    dry_run: bool,
}

/// What is of ours on a Node.
#[derive(Debug, Default, PartialEq)]
struct Leftovers {
    /// In words, in the order of a `kubectl describe`.
    what: Vec<&'static str>,
    /// A merge patch of the Node, for this version of it alone.
    patch: Value,
    /// Whether our condition is there, which is a write of its own.
    has_condition: bool,
}

impl Leftovers {
    /// `Err` is why the Node is not touched.
    fn of(node: &Node, now: Timestamp) -> Result<Self, String> {
        let annotation = |key: &str| node.annotations().get(key);
        let notice: Option<EvictionNotice> =
            annotation(names::EVICTION_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        if let Some(notice) =
            notice.as_ref().filter(|notice| notice.takes_capacity() && notice.deadline > now)
        {
            return Err(format!(
                "its VM goes at {:.0} ({}): pods would come back to it",
                notice.deadline, notice.event_type
            ));
        }
        let drain: Option<DrainStatus> =
            annotation(names::DRAIN_STATUS_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
        let spec = node.spec.clone().unwrap_or_default();
        let (mut what, mut metadata, mut changed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());

        let ours = |keys: &[&'static str], has: &dyn Fn(&str) -> bool| -> BTreeMap<&'static str, Value> {
            keys.iter().filter(|key| has(key)).map(|key| (*key, Value::Null)).collect()
        };
        let is_labelled = |key: &str| node.labels().contains_key(key);
        let mut labels = ours(&LABELS, &is_labelled);
        if !labels.is_empty() {
            what.push("labels");
        }
        let excluded = node.labels().get(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL);
        if excluded.is_some_and(|value| value == names::EXCLUDE_FROM_LOAD_BALANCERS_VALUE) {
            labels.insert(names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL, Value::Null);
            what.push("load balancer label");
        }
        let annotations = ours(&ANNOTATIONS, &|key| annotation(key).is_some());
        if !annotations.is_empty() {
            what.push("annotations");
        }
        for (key, of) in [("labels", labels), ("annotations", annotations)] {
            if !of.is_empty() {
                metadata.insert(key, json!(of));
            }
        }

        // Only a cordon that says it is ours: a person's stays.
        let cordoned =
            notice.is_some_and(|notice| notice.cordoned) || drain.is_some_and(|drain| drain.cordoned);
        let uncordon = cordoned && spec.unschedulable == Some(true);
        let mut taints = spec.taints.unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| {
            taint.key != names::EVICTING_TAINT
                && !(taint.key == names::OUT_OF_SERVICE_TAINT
                    && taint.value.as_deref() == Some(names::OUT_OF_SERVICE_VALUE))
        });
        if taints.len() != before {
            what.push("taint");
            // The node controller takes its own off after the cordon.
            changed.insert("taints", if taints.is_empty() { Value::Null } else { json!(taints) });
        }
        if uncordon {
            what.push("cordon");
            changed.insert("unschedulable", Value::Null);
        }
        let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        let has_condition =
            conditions.into_iter().any(|condition| condition.type_ == names::EVICTION_NOTICED_CONDITION);
        if has_condition {
            what.push("condition");
        }
        metadata.insert("uid", json!(node.metadata.uid));
        metadata.insert("resourceVersion", json!(node.metadata.resource_version));
        Ok(Self { what, patch: json!({"metadata": metadata, "spec": changed}), has_condition })
    }

    /// Whether the Node itself, and not only its status, is to be written.
    fn is_on_the_node(&self) -> bool {
        self.what.iter().any(|what| *what != "condition")
    }
}

/// Cleans up.
pub async fn run(cluster: &Cluster, printer: &Printer, dry_run: bool) -> Result<(), Error> {
    nobody_is_there(cluster).await?;
    let params = patch_params(dry_run);
    let mut objects = nodes(cluster, &params).await?;
    objects.extend(spot_pools(cluster, &params).await?);
    let told = Told { objects, dry_run };
    printer.view(&told, || render(&told, printer))
}

/// Agents and operators would put back what is taken off, or are at it themselves.
async fn nobody_is_there(cluster: &Cluster) -> Result<(), Error> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let ours =
        format!("{} in ({}, {})", names::APP_NAME_LABEL, names::AGENT_APP_NAME, names::OPERATOR_APP_NAME);
    let found = pods.list(&ListParams::default().labels(&ours)).await;
    let found = found.map_err(|error| Error::of(error, &cluster.server, "list", "pods", None))?.items;
    let Some(pod) = found.first() else { return Ok(()) };
    Err(Error::Refused(format!(
        "SpotPool is still installed ({} of its pods, {}/{} is one): delete the SpotPools and run `helm uninstall spotpool` first, its own programs clean up as they leave",
        found.len(),
        pod.namespace().unwrap_or_default(),
        pod.name_any()
    )))
}

async fn nodes(cluster: &Cluster, params: &PatchParams) -> Result<Vec<Cleaned>, Error> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let all = api.list(&ListParams::default()).await;
    let all = all.map_err(|error| Error::of(error, &cluster.server, "list", "nodes", None))?;
    let mut cleaned = Vec::new();
    for node in all {
        let object = format!("node/{}", node.name_any());
        let (taken_off, left) = match clean(cluster, &api, node, params).await? {
            Outcome::TakenOff(what) => (what, None),
            Outcome::Left(why) => (Vec::new(), Some(why)),
        };
        if !taken_off.is_empty() || left.is_some() {
            cleaned.push(Cleaned { object, taken_off, left });
        }
    }
    Ok(cleaned)
}

/// Kubelets write their Nodes all the time: a version that is gone is looked at once more.
async fn clean(
    cluster: &Cluster,
    api: &Api<Node>,
    mut node: Node,
    params: &PatchParams,
) -> Result<Outcome, Error> {
    let failed = |verb, resource| move |error| Error::of(error, &cluster.server, verb, resource, None);
    let name = node.name_any();
    loop {
        let left = match Leftovers::of(&node, cluster.now()) {
            Ok(left) => left,
            Err(why) => return Ok(Outcome::Left(why)),
        };
        if left.is_on_the_node() {
            match api.patch(&name, params, &Patch::Merge(&left.patch)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    match api.get_opt(&name).await.map_err(failed("get", "nodes"))? {
                        Some(newer) if newer.metadata.uid == node.metadata.uid => node = newer,
                        _ => return Ok(Outcome::TakenOff(Vec::new())),
                    }
                    continue;
                }
                // Its VM went meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    return Ok(Outcome::TakenOff(Vec::new()));
                }
                written => written.map(drop).map_err(failed("patch", "nodes"))?,
            }
        }
        if left.has_condition {
            let conditions = json!([{"type": names::EVICTION_NOTICED_CONDITION, "$patch": "delete"}]);
            let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
            api.patch_status(&name, params, &patch).await.map_err(failed("patch", "nodes/status"))?;
        }
        return Ok(Outcome::TakenOff(left.what));
    }
}

/// Nobody takes the finalizer off any more: a SpotPool, its namespace and the CRD could never be deleted.
async fn spot_pools(cluster: &Cluster, params: &PatchParams) -> Result<Vec<Cleaned>, Error> {
    let api: Api<SpotPool> = Api::all(cluster.client.clone());
    let all = match api.list(&ListParams::default()).await {
        Ok(all) => all.items,
        Err(error) => match Error::of(error, &cluster.server, "list", SPOT_POOLS, None) {
            Error::NoApi(_) => return Ok(Vec::new()),
            error => return Err(error),
        },
    };
    let mut cleaned = Vec::new();
    for pool in all.iter().filter(|pool| pool.finalizers().iter().any(|it| it == names::FINALIZER)) {
        let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
        let others: Vec<_> = pool.finalizers().iter().filter(|it| *it != names::FINALIZER).collect();
        let patch = json!({"metadata": {"finalizers": others, "uid": pool.metadata.uid,
            "resourceVersion": pool.metadata.resource_version}});
        let api: Api<SpotPool> = Api::namespaced(cluster.client.clone(), &namespace);
        let written = api.patch(&name, params, &Patch::Merge(patch)).await;
        written.map_err(|error| Error::of(error, &cluster.server, "patch", SPOT_POOLS, Some(&namespace)))?;
        let object = format!("spotpool/{namespace}/{name}");
        cleaned.push(Cleaned { object, taken_off: vec!["finalizer"], left: None });
    }
    Ok(cleaned)
}

fn render(told: &Told, printer: &Printer) -> String {
    let heading = if told.dry_run { "WOULD BE TAKEN OFF" } else { "TAKEN OFF" };
    let mut table = Table::new(&[Column::text("OBJECT", 0), Column::text(heading, 0)]);
    for cleaned in &told.objects {
        let what = match &cleaned.left {
            Some(why) => (format!("nothing: {why}"), Tone::Warn),
            None => (cleaned.taken_off.join(", "), Tone::Plain),
        };
        table.row(vec![(cleaned.object.clone(), Tone::Plain), what]);
    }
    if told.objects.is_empty() {
        "nothing of SpotPool is left\n".into()
    } else {
        table.render(printer.width())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn leftovers(node: Value) -> Result<Leftovers, String> {
        Leftovers::of(&serde_json::from_value(node).unwrap(), NOW.parse().unwrap())
    }

    fn notice(phase: &str, cordoned: bool, deadline: &str) -> String {
        json!({"by": "NodeAgent", "eventId": "E", "type": "Preempt", "source": "IMDS", "phase": phase,
            "observedAt": "2025-12-31T23:59:50Z", "deadline": deadline, "cordoned": cordoned, "bootID": "b"})
        .to_string()
    }

    #[test]
    fn what_is_ours_goes_and_what_others_have_put_stays() {
        let gone = notice("Drained", true, "2025-12-31T23:00:00Z");
        let node = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7",
                "labels": {names::POOL_LABEL: "p", names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL: "spotpool.dev", "app": "x"},
                "annotations": {names::EVICTION_ANNOTATION: gone, "theirs": "y"}},
            "spec": {"unschedulable": true, "taints": [
                {"key": names::EVICTING_TAINT, "value": "Preempt", "effect": "NoSchedule"},
                {"key": names::OUT_OF_SERVICE_TAINT, "value": "a-person", "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": names::EVICTION_NOTICED_CONDITION, "status": "True"}]}});
        let left = leftovers(node).unwrap();
        assert_eq!(
            left.what,
            ["labels", "load balancer label", "annotations", "taint", "cordon", "condition"]
        );
        assert!(left.has_condition);
        let wanted = json!({
            "metadata": {"uid": "u", "resourceVersion": "7",
                "labels": {names::POOL_LABEL: null, names::EXCLUDE_FROM_LOAD_BALANCERS_LABEL: null},
                "annotations": {names::EVICTION_ANNOTATION: null}},
            "spec": {"unschedulable": null, "taints": [
                {"key": names::OUT_OF_SERVICE_TAINT, "value": "a-person", "effect": "NoExecute"}]}});
        assert_eq!(left.patch, wanted);
    }

    #[test]
    fn a_cordon_that_is_not_ours_stays_and_a_node_that_goes_is_left_alone() {
        let theirs = json!({"metadata": {"name": "n", "annotations": {
            names::EVICTION_ANNOTATION: notice("Cancelled", false, "2025-12-31T23:00:00Z")}},
            "spec": {"unschedulable": true}});
        assert_eq!(leftovers(theirs).unwrap().what, ["annotations"]);
        let drained = r#"{"id":"a","phase":"Drained","podsLeft":0,"cordoned":true}"#;
        let ours = json!({"metadata": {"name": "n", "annotations": {names::DRAIN_STATUS_ANNOTATION: drained}},
            "spec": {"unschedulable": true}});
        assert_eq!(leftovers(ours).unwrap().what, ["annotations", "cordon"]);
        let goes = json!({"metadata": {"name": "n", "annotations": {
            names::EVICTION_ANNOTATION: notice("Draining", true, "2026-01-01T00:00:30Z")}}});
        let why = leftovers(goes).unwrap_err();
        assert_eq!(why, "its VM goes at 2026-01-01T00:00:30Z (Preempt): pods would come back to it");
        let clean =
            json!({"metadata": {"name": "n", "labels": {"app": "x"}}, "spec": {"unschedulable": true}});
        assert!(leftovers(clean).unwrap().what.is_empty());
    }
}
