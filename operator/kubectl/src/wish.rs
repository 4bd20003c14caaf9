//! `drain` and `failback`: a person's wishes, written as annotations. The operator checks them and answers; the answer is
//! waited for and told.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::json;
use spotpool_crds::eviction::EvictionNotice;
use spotpool_crds::spot_pool::Mode;
use spotpool_crds::voluntary_drain::{DrainReason, DrainRequest};
use spotpool_crds::{Reason, SpotPool, names};

use crate::Error;
use crate::args::WishArgs;
use crate::cluster::{Cluster, FIELD_MANAGER, SPOT_POOLS, find, hint, patch_params, pool_of};
use crate::output::{Printer, wrap};

/// What follows where no operator is at work.
const NOBODY: &str = "nothing was written, because nobody would answer";
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A wish and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// On which object.
    about: String,
    /// The annotation's value; empty if nothing was written.
    wish: String,
    /// In words.
    answer: String,
    dry_run: bool,
}

fn tell(printer: &Printer, answer: &Told) -> Result<(), Error> {
    printer.view(answer, || wrap("", &format!("{}: {}", answer.about, answer.answer), printer.prose()))
}

/// Wishes a node drained and replaced.
pub async fn drain(cluster: &Cluster, printer: &Printer, name: &str, args: &WishArgs) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let failed = |verb| move |error| Error::of(error, &cluster.server, verb, "nodes", None);
    let Some(node) = nodes.get_opt(name).await.map_err(failed("get"))? else {
        let all = nodes.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        return Err(Error::NotFound(format!("there is no Node {name}{}", hint(name, &names))));
    };
    let (pools, _) = cluster.pools().await?;
    let pool = of_node(&node, &pools)?;
    can_grant(&node, pool).map_err(Error::Refused)?;
    cluster.needs_operator(&[pool], NOBODY).await?;
    let wish = format!("{FIELD_MANAGER} {:.0}", cluster.now());
    write(&nodes, name, names::REQUESTED_DRAIN_ANNOTATION, &wish, args, "nodes", cluster).await?;
    let about = format!("node {name}");
    if args.dry_run {
        let answer = "the wish would be taken (dry run: nothing was written)".into();
        return tell(printer, &Told { about, wish: String::new(), answer, dry_run: true });
    }
    let (namespace, pool) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let pools: Api<SpotPool> = Api::namespaced(cluster.client.clone(), &namespace);
    let answer = wait(args, async || {
        let Some(node) = nodes.get_opt(name).await.ok()? else {
            return Some("it is gone".into());
        };
        let pool = pools.get_opt(&pool).await.ok().flatten();
        granted(&node, pool.as_ref())
    })
    .await;
    let Some(answer) = answer else { return Err(unanswered(&about, args)) };
    tell(printer, &Told { about, wish, answer, dry_run: false })
}

fn of_node<'a>(node: &Node, pools: &'a [SpotPool]) -> Result<&'a SpotPool, Error> {
    let name = node.name_any();
    let Some((namespace, pool)) = pool_of(node) else {
        return Err(Error::Refused(format!(
            "node {name} is of no SpotPool, and nobody would answer: use `kubectl drain {name}`"
        )));
    };
    find(pools, &format!("{namespace}/{pool}"), &namespace)
}

/// Why the operator could not grant it now, as far as can be seen.
fn can_grant(node: &Node, pool: &SpotPool) -> Result<(), String> {
    let (name, of) = (node.name_any(), pool.name_any());
    let annotation = |key: &str| node.annotations().get(key);
    let notice: Option<EvictionNotice> =
        annotation(names::EVICTION_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
    if let Some(notice) = notice.filter(EvictionNotice::takes_capacity) {
        return Err(format!(
            "node {name} is under notice ({}, {:?}): it is being emptied already",
            notice.event_type, notice.phase
        ));
    }
    if let Some(request) = annotation(names::DRAIN_REQUEST_ANNOTATION) {
        let why =
            serde_json::from_str::<DrainRequest>(request).map(|request| format!(" ({:?})", request.reason));
        return Err(format!("node {name} is asked to drain already{}", why.unwrap_or_default()));
    }
    if pool.spec.suspend {
        return Err(format!("SpotPool {of} is suspended: set spec.suspend to false first"));
    }
    if pool.spec.mode == Mode::Observe {
        return Err(format!("SpotPool {of} only observes: set spec.mode to Enforce first"));
    }
    Ok(())
}

/// The operator's answer to a wish for a drain, if it has given one.
fn granted(node: &Node, pool: Option<&SpotPool>) -> Option<String> {
    let annotation = |key: &str| node.annotations().get(key);
    let request: Option<DrainRequest> =
        annotation(names::DRAIN_REQUEST_ANNOTATION).and_then(|text| serde_json::from_str(text).ok());
    if let Some(request) = request.filter(|request| request.reason == DrainReason::Manual) {
        return Some(format!(
            "granted; its agent drains it until {:.0} at the latest, disruption budgets hold, and it is replaced",
            request.not_after
        ));
    }
    let name = node.name_any();
    // While it waits the wish stays, and the plan says what for.
    annotation(names::REQUESTED_DRAIN_ANNOTATION)?;
    let steps = pool?.status.as_ref()?.plan.iter();
    let mut steps = steps.filter(|step| step.reason == Reason::ManualDrain && step.message.contains("waits"));
    steps.find(|step| step.message.contains(&name)).map(|step| format!("{}; the wish stands", step.message))
}

/// Wishes on-demand given back now.
pub async fn failback(
    cluster: &Cluster,
    printer: &Printer,
    name: &str,
    args: &WishArgs,
) -> Result<(), Error> {
    let (pools, _) = cluster.pools().await?;
    let pool = find(&pools, name, &cluster.usual)?;
    cluster.needs_operator(&[pool], NOBODY).await?;
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let api: Api<SpotPool> = Api::namespaced(cluster.client.clone(), &namespace);
    // Each value is one wish: two within a second are two.
    let wish = format!("{FIELD_MANAGER} {}", cluster.now());
    write(&api, &name, names::REQUESTED_FAILBACK_ANNOTATION, &wish, args, SPOT_POOLS, cluster).await?;
    let about = format!("SpotPool {namespace}/{name}");
    if args.dry_run {
        let nodes = pool.status.as_ref().map_or(0, |status| status.fallback.nodes);
        let answer = format!(
            "the wish would be taken (dry run: nothing was written); on-demand nodes in the place of spot now: {nodes}"
        );
        return tell(printer, &Told { about, wish: String::new(), answer, dry_run: true });
    }
    let answer = wait(args, async || {
        let pool = api.get_opt(&name).await.ok()??;
        answered(&pool, &wish)
    })
    .await;
    let Some(answer) = answer else { return Err(unanswered(&about, args)) };
    tell(printer, &Told { about, wish, answer, dry_run: false })
}

/// The operator's answer to this very wish.
fn answered(pool: &SpotPool, wish: &str) -> Option<String> {
    let request = pool.status.as_ref()?.fallback.request.as_ref()?;
    (request.value == wish).then(|| request.answer.clone())
}

async fn write<K>(
    api: &Api<K>,
    name: &str,
    key: &str,
    wish: &str,
    args: &WishArgs,
    resource: &'static str,
    cluster: &Cluster,
) -> Result<(), Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"annotations": {key: wish}}});
    let written = api.patch(name, &patch_params(args.dry_run), &Patch::Merge(patch)).await;
    written.map(|_| ()).map_err(|error| Error::of(error, &cluster.server, "patch", resource, None))
}

async fn wait(args: &WishArgs, mut look: impl AsyncFnMut() -> Option<String>) -> Option<String> {
    let answer = async {
        loop {
            if let Some(answer) = look().await {
                return answer;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(args.timeout.into(), answer).await.ok()
}

fn unanswered(about: &str, args: &WishArgs) -> Error {
    Error::NoAnswer(format!(
        "{about}: the operator has not answered within {}; the wish stands, and `kubectl spotpool explain` shows what comes of it",
        args.timeout
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value, reason = "tests read better so")]

    use super::*;
    use serde_json::Value;

    fn node(annotations: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "annotations": annotations,
            "labels": {"spotpool.dev/pool": "workers", "spotpool.dev/pool-namespace": "batch"}}}))
        .unwrap()
    }

    fn pool(spec: Value, status: Value) -> SpotPool {
        let mut whole = json!({"replicas": 1, "agentPools": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"apiVersion": "spotpool.dev/v1alpha1", "kind": "SpotPool",
            "metadata": {"namespace": "batch", "name": "workers"}, "spec": whole, "status": status}))
        .unwrap()
    }

    const REQUEST: &str =
        r#"{"id":"a","reason":"Manual","voluntary":true,"notAfter":"2026-01-01T00:15:00Z"}"#;

    #[test]
    fn what_the_operator_would_not_grant_is_not_wished() {
        let notice = r#"{"by":"NodeAgent","eventId":"E","type":"Preempt","source":"IMDS","observedAt":"2026-01-01T00:00:00Z","deadline":"2026-01-01T00:00:30Z","phase":"Draining","cordoned":true,"bootID":"b"}"#;
        let plain = pool(json!({}), json!({}));
        for (node, pool, wanted) in [
            (node(json!({names::EVICTION_ANNOTATION: notice})), &plain, "under notice (Preempt, Draining)"),
            (
                node(json!({names::DRAIN_REQUEST_ANNOTATION: REQUEST})),
                &plain,
                "asked to drain already (Manual)",
            ),
            (node(json!({})), &pool(json!({"suspend": true}), json!({})), "is suspended"),
            (node(json!({})), &pool(json!({"mode": "Observe"}), json!({})), "only observes"),
        ] {
            let said = can_grant(&node, pool).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
        assert_eq!(can_grant(&node(json!({})), &plain), Ok(()));
        assert!(of_node(&Node::default(), &[]).unwrap_err().to_string().contains("kubectl drain"));
    }

    #[test]
    fn only_an_answer_to_this_wish_is_an_answer() {
        let request = json!({"fallback": {"request": {"value": "one", "answer": "2 nodes leave"}}});
        let pool_with = pool(json!({}), request);
        assert_eq!(answered(&pool_with, "one").as_deref(), Some("2 nodes leave"));
        assert_eq!(answered(&pool_with, "two"), None);

        let wished = node(json!({names::REQUESTED_DRAIN_ANNOTATION: "w"}));
        assert_eq!(granted(&wished, None), None);
        let waits = json!({"plan": [{"reason": "ManualDrain", "message": "n1 waits for its drain: failback.maxConcurrent is 1"}]});
        let said = granted(&wished, Some(&pool(json!({}), waits))).unwrap();
        assert!(said.contains("failback.maxConcurrent is 1; the wish stands"), "{said}");
        let said = granted(&node(json!({names::DRAIN_REQUEST_ANNOTATION: REQUEST})), None).unwrap();
        assert!(said.contains("until 2026-01-01T00:15:00Z"), "{said}");
    }
}
