//! `plan`: what would change if a manifest were applied, and what the operator would do about it at once.
//!
//! The API server checks it in a dry run. For a SpotPool that an operator knows already, the operator's own decisions
//! ([`spotpool_core::plan()`]) are made twice from what stands on Nodes and in status, once with the spec as it is and
//! once as it would be. What only Azure knows is not guessed: it is named.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spotpool_core::Action;
use spotpool_crds::spot_pool::Mode;
use spotpool_crds::{Reason, SpotPool, names};

use crate::Error;
use crate::cluster::{Cluster, SPOT_POOLS};
use crate::output::{Printer, counted, wrap};
use crate::table::{Tone, cut, paint};

mod snapshot;

/// What a manifest would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// `namespace/name`.
    pub pool: String,
    /// Whether it would be made.
    pub is_new: bool,
    /// Fields of the spec that would change, as sentences.
    pub changes: Vec<String>,
    /// What the operator would do at once that it does not do now.
    pub at_once: Vec<String>,
    /// What it does now and would not do any more.
    pub no_more: Vec<String>,
    /// What it costs an hour, and would.
    pub cost: Vec<String>,
    /// What nobody can say without Azure.
    pub not_known: Vec<String>,
}

/// Says what would change for each SpotPool of a manifest.
pub async fn run(cluster: &Cluster, printer: &Printer, file: &Path) -> Result<(), Error> {
    let manifests = manifests(&read(file)?, file)?;
    let (pools, _) = cluster.pools().await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| Error::of(error, &cluster.server, "list", "nodes", None))?.items;
    let mut views = Vec::new();
    for mut manifest in manifests {
        let namespace = manifest["metadata"]["namespace"].as_str().map(str::to_owned);
        let namespace = namespace.or_else(|| cluster.only.clone()).unwrap_or_else(|| cluster.usual.clone());
        manifest["metadata"]["namespace"] = namespace.clone().into();
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let is_it =
            |pool: &&SpotPool| pool.namespace().as_ref() == Some(&namespace) && pool.name_any() == name;
        let old = pools.iter().find(is_it);
        let new = checked(cluster, &namespace, &name, manifest, old, file).await?;
        views.push(view(old, &new, &nodes, cluster.now()));
    }
    let prose = printer.prose();
    printer.view(&views, || views.iter().map(|view| render(view, prose)).collect::<Vec<_>>().join("\n"))
}

fn read(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        _ => std::fs::read_to_string(file).map(|read| text = read),
    };
    read.map_err(|error| Error::File(format!("cannot read {}: {error}", file.display())))?;
    Ok(text)
}

/// The SpotPools of a manifest.
fn manifests(text: &str, file: &Path) -> Result<Vec<Value>, Error> {
    let wrong = |why: String| Error::File(format!("{}: {why}", file.display()));
    let mut found = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|error| wrong(error.to_string()))?;
        if value["kind"] == "SpotPool" {
            if value["metadata"]["name"].as_str().is_none_or(str::is_empty) {
                return Err(wrong("a SpotPool has no metadata.name".into()));
            }
            found.push(value);
        }
    }
    if found.is_empty() { Err(wrong("there is no SpotPool in it".into())) } else { Ok(found) }
}

/// The object as it would be, by the API server: unknown fields and contradictions are refused, defaults filled in.
async fn checked(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    mut manifest: Value,
    old: Option<&SpotPool>,
    file: &Path,
) -> Result<SpotPool, Error> {
    let base = format!("/apis/spotpool.dev/v1alpha1/namespaces/{namespace}/spotpools");
    let query = "dryRun=All&fieldValidation=Strict&fieldManager=kubectl-spotpool";
    let (request, verb) = match old {
        Some(old) => {
            manifest["metadata"]["resourceVersion"] = old.resource_version().into();
            (http::Request::put(format!("{base}/{name}?{query}")), "update")
        }
        None => (http::Request::post(format!("{base}?{query}")), "create"),
    };
    let request = request
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(manifest.to_string().into_bytes())
        .map_err(|error| Error::File(error.to_string()))?;
    let answer = cluster.client.request::<SpotPool>(request).await;
    answer.map_err(|error| match Error::of(error, &cluster.server, verb, SPOT_POOLS, Some(namespace)) {
        Error::Refused(why) => {
            let why = why.split_once(": ").map_or(why.as_str(), |(_, why)| why);
            Error::Refused(format!("{}: SpotPool {namespace}/{name} would be refused: {why}", file.display()))
        }
        error => error,
    })
}

/// Compares what is with what would be.
pub fn view(old: Option<&SpotPool>, new: &SpotPool, nodes: &[Node], now: Timestamp) -> View {
    let name = format!("{}/{}", new.namespace().unwrap_or_default(), new.name_any());
    let mut view = View {
        pool: name,
        is_new: old.is_none(),
        changes: Vec::new(),
        at_once: Vec::new(),
        no_more: Vec::new(),
        cost: Vec::new(),
        not_known: Vec::new(),
    };
    let known = old.filter(|old| old.status.as_ref().is_some_and(|status| status.observed_generation > 0));
    let Some(old) = known else {
        if let Some(old) = old {
            view.changes = changes(old, new);
        }
        view.not_known.push(
            "no operator has looked at it: which agent pools exist, their prices and what would be asked of them is not known before; apply it with mode: Observe to see the plan in its status"
                .into(),
        );
        return view;
    };
    view.changes = changes(old, new);
    let status = old.status.clone().unwrap_or_default();
    for agent_pool in &new.spec.agent_pools {
        let known = status.agent_pools.iter().find(|it| it.name == agent_pool.name);
        if let (None, Some(create)) = (known, &agent_pool.create) {
            view.at_once.push(format!(
                "{}: {} is made if Azure has none of that name, of {}, {:?}, without machines",
                Reason::CreateAgentPool,
                agent_pool.name,
                create.vm_size,
                create.capacity_type
            ));
        }
        if known.is_none_or(|known| known.role.is_none()) {
            view.not_known.push(format!(
                "agent pool {}: what it sells, costs and has is read from Azure by the operator; it is left out here",
                agent_pool.name
            ));
        }
    }
    let planned = |pool: &SpotPool| {
        // What would be done is asked, whether or not it is done.
        let mut spec = pool.spec.clone();
        (spec.suspend, spec.mode) = (false, Mode::Enforce);
        spotpool_core::plan(&spec, &snapshot::of(pool, &status, nodes, now), now)
    };
    let (before, after) = (planned(old), planned(&SpotPool { status: old.status.clone(), ..new.clone() }));
    let steps = |plan: &spotpool_core::Plan| -> Vec<String> {
        // The first sums up.
        plan.steps.iter().skip(1).map(|step| format!("{}: {}", step.reason, step.message)).collect()
    };
    let (is, would) = (steps(&before), steps(&after));
    view.at_once.extend(would.iter().filter(|step| !is.contains(step)).cloned());
    view.no_more = is.iter().filter(|step| !would.contains(step)).cloned().collect();
    if new.spec.suspend || new.spec.mode == Mode::Observe {
        let why = if new.spec.suspend { "suspend" } else { "mode: Observe" };
        view.at_once.insert(0, format!("nothing of this is done, because of {why}; it would be:"));
    }
    cost(&status, &after.actions, &mut view);
    if status.agent_pools.iter().any(|pool| pool.operation.is_some()) {
        view.not_known.push("an operation is under way in Azure: what it brings is taken as coming".into());
    }
    if new.spec.fallback.as_ref().is_some_and(|fallback| fallback.monthly_budget.is_some()) {
        view.not_known.push("what of the monthly budget is spent by then: it is taken as whole".into());
    }
    if new.spec.on_demand.pdb_floor.enabled {
        view.not_known.push("what disruption budgets need: the floor is taken as it is".into());
    }
    view.not_known.push(
        "whether pods of nodes that leave find room elsewhere, whether Azure has the capacity and the quota, and what it costs by then; what is done later, as spot comes or time passes, is not in here"
            .into(),
    );
    view
}

/// Fields of the spec that differ.
fn changes(old: &SpotPool, new: &SpotPool) -> Vec<String> {
    let mut found = Vec::new();
    let value = |pool: &SpotPool| serde_json::to_value(&pool.spec).unwrap_or_default();
    differ("spec", &value(old), &value(new), &mut found);
    found
}

fn differ(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    let named = |value: &Value| -> Option<BTreeMap<String, Value>> {
        value.as_array()?.iter().map(|it| Some((it["name"].as_str()?.to_owned(), it.clone()))).collect()
    };
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Object(one), Value::Object(other)) => {
            let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                differ(&format!("{path}.{key}"), &old[key.as_str()], &new[key.as_str()], found);
            }
        }
        (old, new) => match (named(old), named(new)) {
            (Some(one), Some(other)) if one.keys().ne(other.keys()) || one.values().ne(other.values()) => {
                let mut names: Vec<&String> = one.keys().chain(other.keys()).collect();
                names.sort();
                names.dedup();
                for name in names {
                    let of = |all: &BTreeMap<String, Value>| all.get(name).cloned().unwrap_or_default();
                    differ(&format!("{path}[{name}]"), &of(&one), &of(&other), found);
                }
            }
            (Some(_), Some(_)) => found.push(format!("{path} is in another order")),
            _ if old.is_null() => found.push(format!("{path}: {new} is added")),
            _ if new.is_null() => found.push(format!("{path}: {old} goes")),
            _ => found.push(format!("{path}: {old} becomes {new}")),
        },
    }
}

/// What machines cost an hour that would be asked for or given back at once.
fn cost(status: &spotpool_crds::SpotPoolStatus, actions: &[Action], view: &mut View) {
    let price = |agent_pool: &str| {
        let pool = status.agent_pools.iter().find(|it| it.name == agent_pool)?;
        Decimal::from_str(&pool.price.as_ref()?.hourly).ok()
    };
    let pool_of = |node: &str| {
        let its =
            |it: &&spotpool_crds::spot_pool::AgentPoolStatus| node.starts_with(&format!("aks-{}-", it.name));
        status.agent_pools.iter().find(its).map(|it| it.name.clone())
    };
    let (mut by, mut added) = (Decimal::ZERO, 0);
    let mut unknown = Vec::new();
    for action in actions {
        let (agent_pool, machines) = match action {
            Action::ScaleUp { agent_pool, new, .. } => (Some(agent_pool.clone()), i64::from(*new)),
            Action::DeleteMachines { agent_pool, nodes, .. } => {
                (Some(agent_pool.clone()), -(nodes.len() as i64))
            }
            // Its machine is deleted once it is drained.
            Action::RequestDrain { node, .. } => (pool_of(node), -1),
            _ => continue,
        };
        added += machines;
        match agent_pool.as_deref().and_then(price) {
            Some(price) => by += price * Decimal::from(machines),
            None => unknown.push(agent_pool.unwrap_or_else(|| "an agent pool that is not named".into())),
        }
    }
    let money = status.money.clone().unwrap_or_default();
    let is = money.hourly.as_ref().and_then(|hourly| Decimal::from_str(&hourly.total).ok());
    let currency = &money.currency;
    match is {
        Some(is) if by.is_zero() && unknown.is_empty() => {
            view.cost.push(format!("{} {currency} an hour now, and no other at once", is.normalize()));
        }
        Some(is) => view.cost.push(format!(
            "{} {currency} an hour now, {} once this is done ({} {})",
            is.normalize(),
            (is + by).normalize(),
            counted(added.unsigned_abs() as i32, "machine"),
            if added < 0 { "fewer" } else { "more" }
        )),
        None => view.not_known.push("what it costs now: no prices are known".into()),
    }
    unknown.dedup();
    for agent_pool in unknown {
        view.not_known.push(format!("the price of {agent_pool}: it is left out of the cost"));
    }
}

fn render(view: &View, prose: usize) -> String {
    let verb = if view.is_new { "would be made" } else { "would be changed" };
    let name = cut(&format!("SpotPool {}", view.pool), prose);
    let mut text = format!("{} {verb}; nothing was written\n", paint(Tone::Strong, &name));
    if !view.is_new && view.changes.is_empty() {
        text.push_str("  its spec stays as it is\n");
    }
    let sections = [
        ("What changes", &view.changes),
        ("What the operator would do at once", &view.at_once),
        ("What it would not do any more", &view.no_more),
        ("What it costs", &view.cost),
        ("What is not known", &view.not_known),
    ];
    for (about, says) in sections.into_iter().filter(|(_, says)| !says.is_empty()) {
        text.push_str(&format!("\n{}\n", paint(Tone::Strong, about)));
        for sentence in says {
            text.push_str(&wrap("  - ", sentence, prose));
        }
    }
    text
}

/// The label by which nodes are found.
const AGENT_POOL: &str = names::AGENT_POOL_LABEL;

#[cfg(test)]
mod tests;
