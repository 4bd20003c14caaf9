//! What workloads mean for one SpotPool: the on-demand that budgets need, budgets that hold their pods, and where there
//! is room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use spotpool_core::allocation::Usage;
use spotpool_core::fit::{Place, PlaceKind, Room};
use spotpool_core::floor::{self, FloorDemand, NodeKind};
use spotpool_core::scheduling::{Requirement, Resources, Taint};
use spotpool_crds::spot_pool::{BlockedBudget, PdbFloor, Role};

use super::Known;
use super::agents::AgentsTold;
use super::read::{Running, Stays, matches, requirements, resources, taint};
use super::shared::Labels;
use crate::node::{self, agent_pool_of, is_ready};

/// How long a budget must have let no pod go before it is told of: each rollout blocks some for moments.
pub const BLOCKED_AFTER: SignedDuration = SignedDuration::from_mins(1);

const SPOT_LABEL: &str = "kubernetes.azure.com/scalesetpriority";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Labels that a node shares with no other, or only with those of its zone.
const OWN_LABELS: [&str; 3] =
    ["kubernetes.io/hostname", ZONE_LABEL, "failure-domain.beta.kubernetes.io/zone"];
/// Where AKS writes an agent pool's name.
const POOL_LABELS: [&str; 2] = [spotpool_crds::names::AGENT_POOL_LABEL, "agentpool"];
/// Taints with these beginnings come and go.
const PASSING_TAINTS: [&str; 2] = ["node.kubernetes.io/", "spotpool.dev/"];

/// Whom a survey is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    /// The SpotPool's agent pools.
    pub agent_pools: Vec<ScopePool>,
    /// What it says of the floor.
    pub floor: PdbFloor,
}

/// An agent pool of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScopePool {
    /// Its name.
    pub name: String,
    /// What it sells, if that is known and it may be used.
    pub role: Option<Role>,
    /// VM size.
    pub vm_size: String,
    /// What a node of it is worth.
    pub units: u32,
    /// Labels that it gives its nodes.
    pub labels: BTreeMap<String, String>,
    /// Taints that it keeps on them, as `key=value:Effect`.
    pub taints: Vec<String>,
}

/// What workloads mean for one SpotPool.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// What budgets need, where the spec asks for it.
    pub floor: Option<FloorDemand>,
    /// Budgets that hold their pods; absent while they have not been read.
    pub blocked: Option<Vec<BlockedBudget>>,
    /// Whether agents look after its nodes; absent while that cannot be told.
    pub agents: Option<AgentsTold>,
    /// What runs on on-demand nodes, and where there is room.
    pub room: Arc<Room>,
    /// What workloads have of each agent pool's nodes; absent where nobody asks, or pods have not been read.
    pub usage: Option<BTreeMap<String, Usage>>,
}

impl Survey {
    /// Whether a plan, or status, would be another with `other`. Room changes with every pod: who waits for it looks again.
    pub fn differs(&self, other: &Self) -> bool {
        self.floor != other.floor || self.blocked != other.blocked || self.agents != other.agents
    }
}

/// What runs on one node.
#[derive(Default)]
struct Use<'a> {
    all: Resources,
    of_node: Resources,
    pods: Vec<&'a Running>,
}

/// Pods with the same labels, in one namespace.
struct Alike<'a> {
    labels: &'a Labels,
    pods: Vec<&'a Running>,
}

/// Pods by namespace, and in each by labels.
struct Index<'a> {
    namespaces: HashMap<&'a str, Vec<Alike<'a>>>,
    /// By namespace, key and value, the places in the list.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Index<'a> {
    fn of(pods: impl Iterator<Item = &'a Running>) -> Self {
        let mut index = Self { namespaces: HashMap::new(), by_label: HashMap::new() };
        let mut places: HashMap<(&str, usize), usize> = HashMap::new();
        for running in pods {
            let namespace = &*running.pod.namespace;
            let alike = index.namespaces.entry(namespace).or_default();
            let labels = &*running.labels;
            let at = *places.entry((namespace, labels.as_ptr().addr())).or_insert_with(|| {
                for (key, value) in labels {
                    index.by_label.entry((namespace, &**key, &**value)).or_default().push(alike.len());
                }
                alike.push(Alike { labels, pods: Vec::new() });
                alike.len() - 1
            });
            alike[at].pods.push(running);
        }
        index
    }

    /// The pods that a selector selects.
    fn select(&self, namespace: &str, selector: &[Requirement]) -> Vec<&'a Running> {
        let Some(alike) = self.namespaces.get(namespace) else { return Vec::new() };
        // The rarest label that must be there; most budgets name one.
        let rarest = selector.iter().filter_map(|required| match required {
            Requirement::In(key, values) if values.len() == 1 => {
                let value = values.iter().next()?;
                Some(self.by_label.get(&(namespace, &**key, &**value)).map_or(&[][..], Vec::as_slice))
            }
            _ => None,
        });
        let selects = |alike: &&Alike<'_>| matches(selector, alike.labels);
        match rarest.min_by_key(|places| places.len()) {
            Some(places) => {
                places.iter().map(|at| &alike[*at]).filter(selects).flat_map(|it| &it.pods).copied().collect()
            }
            None => alike.iter().filter(selects).flat_map(|it| &it.pods).copied().collect(),
        }
    }
}

/// Whose a node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The SpotPool's.
    Ours,
    /// Spot, and not the SpotPool's.
    OtherSpot,
    /// On-demand, and not the SpotPool's.
    Other,
}

/// Surveys for `scope`, with the SpotPool's nodes and all others.
pub fn survey(known: &Known, nodes: &[Arc<Node>], scope: &Scope, now: Timestamp) -> Survey {
    // Asked for each of a hundred thousand pods: found by one look.
    let pools: HashMap<&str, &ScopePool> =
        scope.agent_pools.iter().map(|pool| (pool.name.as_str(), pool)).collect();
    let pool_of = |node: &Node| agent_pool_of(node).and_then(|name| pools.get(name).copied());
    let whose: HashMap<&str, Whose> = nodes
        .iter()
        .filter_map(|node| {
            let whose = match pool_of(node) {
                Some(_) => Whose::Ours,
                None if node.labels().contains_key(SPOT_LABEL) => Whose::OtherSpot,
                None => Whose::Other,
            };
            Some((node.metadata.name.as_deref()?, whose))
        })
        .collect();
    let whose = |pod: &Running| whose.get(pod.node.as_deref()?).copied();
    let mut survey = Survey::default();
    if !known.complete() {
        if scope.floor.enabled {
            survey.floor = Some(FloorDemand::unknown("pods and budgets have not been read yet"));
        }
        return survey;
    }
    let on_demand = |node: &Node| pool_of(node).is_some_and(|pool| pool.role == Some(Role::OnDemand));
    let wants_room = nodes.iter().any(|node| on_demand(node));
    let uses = if wants_room || scope.floor.enabled { uses(known) } else { HashMap::new() };
    survey.room = Arc::new(if wants_room {
        room(nodes, &uses, &on_demand)
    } else {
        Room { complete: true, ..Room::default() }
    });

    let counts = |namespace: &str| {
        let selector = scope.floor.namespace_selector.as_ref().map(requirements);
        match selector {
            None => true,
            Some(None) => false,
            Some(Some(selector)) if selector.is_empty() => true,
            Some(Some(selector)) => {
                known.namespaces.known.get(namespace).is_some_and(|labels| matches(&selector, labels))
            }
        }
    };
    let mut selected: BTreeMap<&str, bool> = BTreeMap::new();
    let budgets: Vec<_> = known
        .budgets
        .known
        .iter()
        .map(|((namespace, name), budget)| {
            let counts = scope.floor.enabled
                && budget.read.desired > 0
                && *selected.entry(namespace).or_insert_with(|| counts(namespace));
            (&**namespace, &**name, budget, counts)
        })
        .filter(|(_, _, budget, counts)| *counts || budget.blocked_since.is_some())
        .collect();
    let of_interest: BTreeSet<&str> = budgets.iter().map(|(namespace, ..)| *namespace).collect();
    let index = Index::of(known.pods.known.values().filter(|pod| of_interest.contains(&*pod.pod.namespace)));

    let mut blocked = Vec::new();
    let mut wanted = Vec::new();
    for (namespace, name, budget, counts) in budgets {
        let Some(selector) = &budget.read.selector else { continue };
        let pods = index.select(namespace, selector);
        if let Some(since) = budget.blocked_since
            && since.saturating_add(BLOCKED_AFTER).is_ok_and(|from| from <= now)
        {
            let here: Vec<_> = pods.iter().filter(|pod| whose(pod) == Some(Whose::Ours)).copied().collect();
            let owner = here.iter().map(|pod| &*pod.pod.owner).filter(|owner| !owner.is_empty()).min();
            if !here.is_empty() {
                blocked.push(BlockedBudget {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    owner: owner.unwrap_or_default().to_owned(),
                    desired_healthy: budget.read.desired,
                    current_healthy: budget.read.healthy,
                    pods: here.len() as i32,
                    since: Time(since),
                });
            }
        }
        if counts {
            let lasting = pods.into_iter().filter(|pod| pod.stays == Stays::No);
            let mut found = floor::Budget {
                namespace,
                name,
                desired: budget.read.desired.max(0) as u32,
                here: Vec::new(),
                safe: 0,
            };
            for pod in lasting {
                let whose = whose(pod);
                if pod.node.is_none() || whose == Some(Whose::Ours) {
                    found.here.push(&pod.pod);
                } else if whose == Some(Whose::Other) {
                    found.safe += 1;
                }
            }
            wanted.push(found);
        }
    }
    blocked.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    survey.blocked = Some(blocked);
    if scope.floor.enabled {
        survey.floor = Some(match kinds(nodes, &uses, scope) {
            Ok(kinds) => floor::demand(&kinds, wanted),
            Err(why) => FloorDemand::unknown(why),
        });
    }
    survey
}

fn uses(known: &Known) -> HashMap<&str, Use<'_>> {
    let mut uses: HashMap<&str, Use<'_>> = HashMap::new();
    for running in known.pods.known.values() {
        let Some(node) = &running.node else { continue };
        let used = uses.entry(&**node).or_default();
        used.all.add(&running.pod.shape.requests);
        match running.stays {
            Stays::WithNode => used.of_node.add(&running.pod.shape.requests),
            Stays::No => used.pods.push(running),
            Stays::Ending => {}
        }
    }
    uses
}

fn room(nodes: &[Arc<Node>], uses: &HashMap<&str, Use<'_>>, on_demand: &dyn Fn(&Node) -> bool) -> Room {
    let mut room = Room { complete: true, ..Room::default() };
    let mut asked: BTreeSet<Arc<str>> = BTreeSet::new();
    for node in nodes.iter().filter(|node| on_demand(node)) {
        let name = node.name_any();
        let pods = uses.get(name.as_str()).map(|used| used.pods.as_slice()).unwrap_or_default();
        asked.extend(pods.iter().flat_map(|running| running.pod.shape.labels().cloned()));
        room.pods.insert(name, pods.iter().map(|running| running.pod.clone()).collect());
    }
    let mut kinds: BTreeSet<Arc<PlaceKind>> = BTreeSet::new();
    for node in nodes {
        let mut kind = PlaceKind {
            labels: BTreeMap::new(),
            taints: taints(node, &["node.kubernetes.io/"]),
            zone: node.labels().get(ZONE_LABEL).map_or_else(|| "".into(), |zone| zone.as_str().into()),
        };
        let labels = asked.iter().filter_map(|key| Some((key.clone(), node.labels().get(&**key)?)));
        kind.labels = labels.map(|(key, value)| (key, value.as_str().into())).collect();
        let kind = kinds.get(&kind).cloned().unwrap_or_else(|| Arc::new(kind));
        kinds.insert(kind.clone());
        let used = uses.get(node.name_any().as_str());
        let mut free = allocatable(node);
        if let Some(used) = used {
            free.take(&used.all);
        }
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let apart = used.into_iter().flat_map(|used| &used.pods).filter(|it| it.pod.shape.apart);
        room.places.push(Place {
            node: node.name_any(),
            kind,
            free,
            takes_pods: is_ready(node) && !cordoned && node.metadata.deletion_timestamp.is_none(),
            apart: apart.map(|running| running.pod.owner.clone()).collect(),
        });
    }
    room
}

/// What nodes of the SpotPool's on-demand agent pools offer, as far as any of their size has been seen.
fn kinds(nodes: &[Arc<Node>], uses: &HashMap<&str, Use<'_>>, scope: &Scope) -> Result<Vec<NodeKind>, String> {
    if scope.agent_pools.iter().any(|pool| pool.vm_size.is_empty()) {
        return Err("Azure has not told of all agent pools".to_owned());
    }
    let mut by_pool: HashMap<&str, Vec<&Arc<Node>>> = HashMap::new();
    for node in nodes {
        if let Some(name) = agent_pool_of(node) {
            by_pool.entry(name).or_default().push(node);
        }
    }
    let of_pool = |pool: &ScopePool| by_pool.get(pool.name.as_str()).cloned().unwrap_or_default();
    let mut kinds = Vec::new();
    let mut unseen = Vec::new();
    for pool in scope.agent_pools.iter().filter(|pool| pool.role == Some(Role::OnDemand)) {
        let own = of_pool(pool);
        let siblings = || {
            let like = scope.agent_pools.iter().filter(|it| it.vm_size.eq_ignore_ascii_case(&pool.vm_size));
            like.flat_map(of_pool).collect::<Vec<_>>()
        };
        let alike = if own.is_empty() { siblings() } else { own.clone() };
        let Some(node) = alike.iter().min_by_key(|node| node.name_any()) else {
            unseen.push(format!("{} of {}", pool.vm_size, pool.name));
            continue;
        };
        let mut labels = node.labels().clone();
        for label in OWN_LABELS {
            labels.remove(label);
        }
        let mut taints: Vec<Taint> = pool.taints.iter().filter_map(|text| declared(text)).collect();
        if own.is_empty() {
            labels.remove(SPOT_LABEL);
            labels.extend(POOL_LABELS.map(|label| (label.to_owned(), pool.name.clone())));
        } else {
            taints.extend(self::taints(node, &PASSING_TAINTS));
            taints.sort();
            taints.dedup();
        }
        labels.extend(pool.labels.clone());
        let mut room = allocatable(node);
        let mut overhead = Resources::default();
        for node in &alike {
            if let Some(used) = uses.get(node.name_any().as_str()) {
                overhead.raise(&used.of_node);
            }
        }
        room.take(&overhead);
        kinds.push(NodeKind {
            agent_pool: pool.name.clone(),
            labels,
            taints,
            room,
            units: pool.units.max(1),
        });
    }
    if !kinds.is_empty() {
        return Ok(kinds);
    }
    Err(match unseen.as_slice() {
        [] => "none of the agent pools is on-demand".to_owned(),
        unseen => format!("no node of this size has been seen: {}", unseen.join(", ")),
    })
}

/// A taint as agent pools declare it: `key=value:Effect`.
fn declared(text: &str) -> Option<Taint> {
    let (key, effect) = text.rsplit_once(':')?;
    let (key, value) = key.split_once('=').unwrap_or((key, ""));
    taint(key, value, effect)
}

/// Taints of a node that keep pods off, but those with these beginnings.
fn taints(node: &Node, except: &[&str]) -> Vec<Taint> {
    let lasting =
        node::taints(node).filter(|taint| !except.iter().any(|prefix| taint.key.starts_with(prefix)));
    let mut taints: Vec<Taint> = lasting
        .filter_map(|it| taint(&it.key, it.value.as_deref().unwrap_or_default(), &it.effect))
        .collect();
    taints.sort();
    taints
}

pub(super) fn allocatable(node: &Node) -> Resources {
    let amounts = node.status.iter().flat_map(|status| status.allocatable.iter().flatten());
    let amounts = amounts.map(|(name, amount)| (name.clone(), amount.0.clone())).collect();
    resources(&amounts, |name| name.into())
}
