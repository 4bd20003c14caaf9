//! Whether what runs on a node would find room elsewhere, before anybody is asked to move.
//!
//! A pod that may run on the SpotPool's spot nodes must fit one that is ready; one that may run on none of them, any other
//! node that stays. Pods are put largest first, each where there is room first. The scheduler may do better or worse. In
//! doubt nothing is moved.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use spotpool_crds::Reason;
use spotpool_crds::spot_pool::Role;

use crate::draft::Draft;
use crate::scheduling::{Pod, Resources, Taint, largest_first};
use crate::snapshot::{NodeView, Snapshot};
use crate::time::later_by;

/// Room comes and goes with pods, which wake no plan.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(15);

/// What runs on on-demand nodes, and where there is room.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// Whether all pods are known. While they are not, nothing fits.
    pub complete: bool,
    /// By the names of the SpotPool's on-demand nodes: what would have to move. None of DaemonSets, none that ends.
    pub pods: BTreeMap<String, Vec<Pod>>,
    /// Nodes that pods may move to, the SpotPool's own and others, whether ready or not.
    pub places: Vec<Place>,
}

/// A node that pods may move to.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// What it is like.
    pub kind: Arc<PlaceKind>,
    /// What is free on it.
    pub free: Resources,
    /// Whether it takes pods, where it is none of the SpotPool's: of these the snapshot knows better.
    pub takes_pods: bool,
    /// Owners of those of its pods that share a node with none of their like.
    pub apart: Vec<Arc<str>>,
}

/// What a node is like. Those of an agent pool and zone share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlaceKind {
    /// Its labels, those that some pod asks after.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Its taints that last.
    pub taints: Vec<Taint>,
    /// Its zone; empty if it has none.
    pub zone: Arc<str>,
}

/// What is left while nodes are chosen one after the other.
pub(crate) struct Fit<'a> {
    room: Option<&'a Room>,
    /// Zones of nodes.
    zones: HashMap<&'a str, &'a Arc<str>>,
    /// Pods like these have found no room, and room only becomes less.
    full: HashSet<Like>,
    /// The SpotPool's ready spot nodes, then others that stay.
    spot: Vec<Bin<'a>>,
    others: Vec<Bin<'a>>,
}

/// Shape, zone where a volume is bound to it, and owner where its like are avoided.
type Like = (usize, Option<Arc<str>>, Option<Arc<str>>);

struct Bin<'a> {
    place: &'a Place,
    free: Resources,
    apart: Vec<&'a Arc<str>>,
}

impl<'a> Fit<'a> {
    /// The room of a snapshot. `leaving` are nodes that go, or are about to be chosen; what still runs on those of
    /// `draining` has its room taken first.
    pub fn of<'n>(
        snapshot: &'a Snapshot,
        leaving: impl IntoIterator<Item = &'n NodeView>,
        draining: impl IntoIterator<Item = &'n NodeView>,
    ) -> Self {
        let room = snapshot.room.as_deref();
        let mut fit =
            Self { room, zones: HashMap::new(), full: HashSet::new(), spot: Vec::new(), others: Vec::new() };
        let Some(room) = room.filter(|room| room.complete) else { return fit };
        fit.zones = room.places.iter().map(|place| (place.node.as_str(), &place.kind.zone)).collect();
        let leaving: HashSet<&str> = leaving.into_iter().map(|node| node.name.as_str()).collect();
        let own: HashMap<&str, (Role, bool)> = snapshot
            .agent_pools
            .iter()
            .flat_map(|pool| pool.nodes.iter().filter_map(|node| Some((pool.role.ok()?, node))))
            .map(|(role, node)| (node.name.as_str(), (role, node.serves())))
            .collect();
        for place in &room.places {
            let bin = || Bin { place, free: place.free.clone(), apart: place.apart.iter().collect() };
            match own.get(place.node.as_str()) {
                Some((Role::Spot, true)) => fit.spot.push(bin()),
                Some((Role::OnDemand, true)) if !leaving.contains(place.node.as_str()) => {
                    fit.others.push(bin());
                }
                None if place.takes_pods => fit.others.push(bin()),
                Some(_) | None => {}
            }
        }
        fit.spot.sort_by(|a, b| a.place.node.cmp(&b.place.node));
        fit.others.sort_by(|a, b| a.place.node.cmp(&b.place.node));
        for node in draining {
            // What does not fit goes where the scheduler finds room; it is on its way in any case.
            let _ = fit.put_all(node, false);
        }
        fit
    }

    /// Takes the room that the node's pods need, if all of them have it; else says which has none.
    pub fn take(&mut self, node: &NodeView) -> Result<(), String> {
        match self.room {
            // Nobody has looked at pods: a node is a node.
            None => Ok(()),
            Some(room) if !room.complete => Err("pods have not been read yet".to_owned()),
            Some(_) => self.put_all(node, true),
        }
    }

    fn put_all(&mut self, node: &NodeView, or_none: bool) -> Result<(), String> {
        let Some(room) = self.room else { return Ok(()) };
        let mut pods: Vec<&Pod> = room.pods.get(&node.name).into_iter().flatten().collect();
        largest_first(&mut pods);
        let zone = self.zones.get(node.name.as_str()).copied();
        let mut put: Vec<(bool, usize, &Pod)> = Vec::new();
        let mut kinds = HashMap::new();
        let mut last: Option<(&Pod, bool, usize)> = None;
        for pod in pods {
            let mut runs = |place: &'a Place| {
                let key = (Arc::as_ptr(&pod.shape).addr(), Arc::as_ptr(&place.kind).addr());
                let may = *kinds.entry(key).or_insert_with(|| {
                    let label = |key: &str| place.kind.labels.get(key).map(|value| &**value);
                    pod.shape.may_run(label, &place.kind.taints)
                });
                may && (!pod.shape.zonal || zone.is_none_or(|zone| *zone == place.kind.zone))
            };
            let on_spot = self.spot.iter().any(|bin| runs(bin.place));
            let like: Like = (
                Arc::as_ptr(&pod.shape).addr(),
                zone.filter(|_| pod.shape.zonal).cloned(),
                pod.shape.apart.then(|| pod.owner.clone()),
            );
            if or_none && put.is_empty() && self.full.contains(&like) {
                return Err(refusal(pod, on_spot));
            }
            // The next of its like begins where the last was put: before there is no room.
            let from = match last {
                Some((like, of, at)) if of == on_spot && is_like(like, pod) => at,
                _ => 0,
            };
            let bins = if on_spot { &mut self.spot } else { &mut self.others };
            let fits = |bin: &Bin<'_>| {
                bin.free.has(&pod.shape.requests) && !(pod.shape.apart && bin.apart.contains(&&pod.owner))
            };
            let at = bins[from..].iter().position(|bin| fits(bin) && runs(bin.place)).map(|at| from + at);
            if let Some(at) = at {
                let bin = &mut bins[at];
                bin.free.take(&pod.shape.requests);
                if pod.shape.apart {
                    bin.apart.push(&pod.owner);
                }
                put.push((on_spot, at, pod));
                last = Some((pod, on_spot, at));
            } else if or_none {
                if put.is_empty() {
                    self.full.insert(like);
                }
                for (on_spot, at, pod) in put {
                    let bin = if on_spot { &mut self.spot[at] } else { &mut self.others[at] };
                    bin.free.add(&pod.shape.requests);
                    if pod.shape.apart {
                        bin.apart.pop();
                    }
                }
                return Err(refusal(pod, on_spot));
            }
        }
        Ok(())
    }
}

/// Whether `node` may be given up; says which pod has no room if not, and when to look again.
pub(crate) fn allows(fit: &mut Fit<'_>, node: &NodeView, now: Timestamp, draft: &mut Draft) -> bool {
    let Err(why) = fit.take(node) else { return true };
    draft.step(Reason::PodsDoNotFit, Some(&node.agent_pool), format!("{} is kept: {why}", node.name));
    draft.wake_at(later_by(now, LOOK_AGAIN));
    false
}

fn is_like(one: &Pod, other: &Pod) -> bool {
    Arc::ptr_eq(&one.shape, &other.shape) && one.owner == other.owner
}

fn refusal(pod: &Pod, on_spot: bool) -> String {
    let Pod { namespace, name, shape, .. } = pod;
    let Resources { cpu, memory, .. } = shape.requests;
    let memory = memory.unsigned_abs().div_ceil(1 << 20);
    let place = if on_spot { "no ready spot node has room" } else { "no node that it may run on has room" };
    let other = shape.requests.other.iter().map(|(resource, amount)| format!(", {amount} {resource}"));
    let other: String = other.collect();
    let apart = if shape.apart { ", apart from its like" } else { "" };
    let zonal = if shape.zonal { ", in its volume's zone" } else { "" };
    format!("{place} for pod {namespace}/{name} ({cpu}m CPU, {memory}Mi{other}{apart}{zonal})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::{Shape, Toleration};
    use crate::snapshot::AgentPoolView;

    fn node(name: &str, pool: &str) -> NodeView {
        NodeView { name: name.into(), agent_pool: pool.into(), ready: true, ..NodeView::default() }
    }

    fn requests(cpu: i64) -> Resources {
        Resources { cpu, memory: cpu << 20, pods: 1, other: Vec::new() }
    }

    fn spot_taint() -> Taint {
        Taint { key: "spot".into(), value: "".into(), effect: "NoSchedule".into() }
    }

    fn place(node: &str, cpu: i64, zone: &str) -> Place {
        let taints = if node.starts_with("spot") { vec![spot_taint()] } else { Vec::new() };
        let kind = PlaceKind { taints, zone: zone.into(), ..PlaceKind::default() };
        let free = Resources { pods: 10, ..requests(cpu) };
        Place { node: node.into(), kind: Arc::new(kind), free, takes_pods: true, apart: Vec::new() }
    }

    fn pod(name: &str, cpu: i64, on_spot: bool, change: impl Fn(&mut Shape)) -> Pod {
        let any = Toleration { key: None, value: None, effect: None };
        let tolerations = if on_spot { vec![any] } else { Vec::new() };
        let mut shape = Shape { requests: requests(cpu), tolerations, ..Shape::default() };
        change(&mut shape);
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            owner: "Deployment/web".into(),
            shape: Arc::new(shape),
        }
    }

    /// Two spot nodes, two on-demand nodes of the pool with `pods` on the first, and a node of others.
    fn snapshot(pods: Vec<Pod>, more: Vec<Pod>) -> Snapshot {
        let pool = |name: &str, role, nodes: [&str; 2]| AgentPoolView {
            role: Ok(role),
            nodes: nodes.map(|node_name| node(node_name, name)).into(),
            name: name.into(),
            ..AgentPoolView::default()
        };
        let room = Room {
            complete: true,
            pods: [("reg0".to_owned(), pods), ("reg1".to_owned(), more)].into(),
            places: vec![
                place("spot0", 1000, "1"),
                place("spot1", 2000, "2"),
                place("reg0", 0, "2"),
                place("reg1", 4000, "1"),
                place("sys0", 500, "1"),
            ],
        };
        let agent_pools =
            vec![pool("spot", Role::Spot, ["spot0", "spot1"]), pool("reg", Role::OnDemand, ["reg0", "reg1"])];
        Snapshot { agent_pools, room: Some(Arc::new(room)), ..Snapshot::default() }
    }

    fn verdict(snapshot: &Snapshot) -> Result<(), String> {
        let leaving = [node("reg0", "reg")];
        Fit::of(snapshot, &leaving, []).take(&leaving[0])
    }

    #[test]
    fn a_node_is_given_up_only_if_each_of_its_pods_has_room_on_ready_spot() {
        let plain = |_: &mut Shape| {};
        let apart = |shape: &mut Shape| shape.apart = true;
        let zonal = |shape: &mut Shape| shape.zonal = true;
        let gpu = |shape: &mut Shape| shape.requests.other = vec![("gpu".into(), 1)];
        let table: Vec<(&str, Vec<Pod>, Option<&str>)> = vec![
            ("nothing runs there", vec![], None),
            ("all fit", vec![pod("a", 2000, true, plain), pod("b", 1000, true, plain)], None),
            (
                "small ones first would not",
                vec![pod("a", 900, true, plain), pod("b", 2000, true, plain)],
                None,
            ),
            (
                "one is too much, though on-demand has room",
                vec![pod("a", 2000, true, plain), pod("b", 1001, true, plain)],
                Some("no ready spot node has room for pod shop/b (1001m CPU, 1001Mi)"),
            ),
            ("may not run on spot, but on on-demand that stays", vec![pod("a", 4000, false, plain)], None),
            (
                "may not run on spot, and nowhere else is room",
                vec![pod("a", 4001, false, plain)],
                Some("no node that it may run on has room for pod shop/a"),
            ),
            (
                "three that keep apart on two nodes",
                (0..3).map(|at| pod(&at.to_string(), 100, true, apart)).collect(),
                Some("apart from its like"),
            ),
            ("its volume is in the zone", vec![pod("a", 2000, true, zonal)], None),
            (
                "its volume is in a zone without room",
                vec![pod("a", 2000, true, plain), pod("b", 1000, true, zonal)],
                Some("in its volume's zone"),
            ),
            ("no spot node has a GPU", vec![pod("a", 1, true, gpu)], Some("1 gpu")),
        ];
        for (what, pods, refused) in table {
            let verdict = verdict(&snapshot(pods, Vec::new()));
            match refused {
                None => assert_eq!(verdict, Ok(()), "{what}"),
                Some(why) => {
                    assert!(verdict.as_ref().is_err_and(|said| said.contains(why)), "{what}: {verdict:?}");
                }
            }
        }
    }

    #[test]
    fn spot_that_is_not_ready_and_nodes_that_leave_are_no_room() {
        let plain = |_: &mut Shape| {};
        let mut snapshot = snapshot(vec![pod("a", 2000, true, plain)], Vec::new());
        assert_eq!(verdict(&snapshot), Ok(()));
        snapshot.agent_pools[0].nodes[1].noticed = Some(Timestamp::UNIX_EPOCH);
        assert!(verdict(&snapshot).is_err(), "spot1 is under notice");
        let snapshot = self::snapshot(vec![pod("a", 600, false, plain)], Vec::new());
        let leaving = [node("reg0", "reg"), node("reg1", "reg")];
        assert!(
            Fit::of(&snapshot, &leaving, []).take(&leaving[0]).is_err(),
            "reg1 leaves, sys0 is too small"
        );
    }

    #[test]
    fn room_is_given_once_and_what_is_draining_comes_first() {
        let plain = |_: &mut Shape| {};
        let snapshot = snapshot(vec![pod("a", 2000, true, plain)], vec![pod("b", 1500, true, plain)]);
        let both = [node("reg0", "reg"), node("reg1", "reg")];
        let mut fit = Fit::of(&snapshot, &both, []);
        assert_eq!(fit.take(&both[0]), Ok(()));
        assert!(fit.take(&both[1]).is_err(), "spot1 is taken");
        assert!(Fit::of(&snapshot, &both, [&both[1]]).take(&both[0]).is_err(), "b is on its way to spot1");
    }

    #[test]
    fn what_is_refused_takes_no_room() {
        let plain = |_: &mut Shape| {};
        let pods = vec![pod("a", 1900, true, plain), pod("b", 1900, true, plain)];
        let snapshot = snapshot(pods, vec![pod("c", 2000, true, plain)]);
        let both = [node("reg0", "reg"), node("reg1", "reg")];
        let mut fit = Fit::of(&snapshot, &both, []);
        assert!(fit.take(&both[0]).is_err());
        assert_eq!(fit.take(&both[1]), Ok(()));
    }

    #[test]
    fn in_doubt_nothing_moves() {
        let mut snapshot = snapshot(Vec::new(), Vec::new());
        snapshot.room = Some(Arc::default());
        assert_eq!(verdict(&snapshot), Err("pods have not been read yet".to_owned()));
        snapshot.room = None;
        assert_eq!(verdict(&snapshot), Ok(()), "a caller that does not look at pods");
    }
}
