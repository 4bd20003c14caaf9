//! Where pods may run and what they ask for: of what the scheduler looks at, as much as plans need.
//!
//! Looked at are requests, node selectors, required node affinity, taints, host ports, required anti-affinity between
//! pods of one workload, and the zone of volumes. Not looked at are spread constraints, affinity to other pods, and
//! whatever other schedulers and admission know.

use std::collections::BTreeSet;
use std::sync::Arc;

/// What pods ask for, or nodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// CPU, in thousandths.
    pub cpu: i64,
    /// Memory, in bytes.
    pub memory: i64,
    /// Pods.
    pub pods: i64,
    /// Everything else that can be asked for, by name and sorted by it.
    pub other: Vec<(Arc<str>, i64)>,
}

impl Resources {
    /// How much of `name` there is.
    fn of(&self, name: &str) -> i64 {
        let found = self.other.binary_search_by(|(known, _)| (**known).cmp(name));
        found.map_or(0, |at| self.other[at].1)
    }

    /// The first thing of which there is less than `asked`.
    pub fn lacks(&self, asked: &Self) -> Option<Arc<str>> {
        let short = |have: i64, asked: i64| asked > 0 && asked > have;
        if short(self.pods, asked.pods) {
            Some("pods".into())
        } else if short(self.cpu, asked.cpu) {
            Some("cpu".into())
        } else if short(self.memory, asked.memory) {
            Some("memory".into())
        } else {
            let other = asked.other.iter().find(|(name, asked)| short(self.of(name), *asked));
            other.map(|(name, _)| name.clone())
        }
    }

    /// Whether there is room for `asked`. What is not asked for is not looked at, though there be less than none of it.
    pub fn has(&self, asked: &Self) -> bool {
        self.lacks(asked).is_none()
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.change(other, i64::saturating_add);
    }

    /// Takes `other` away.
    pub fn take(&mut self, other: &Self) {
        self.change(other, i64::saturating_sub);
    }

    /// Raises what is less than in `other` to that.
    pub fn raise(&mut self, other: &Self) {
        self.change(other, i64::max);
    }

    fn change(&mut self, by: &Self, how: fn(i64, i64) -> i64) {
        self.cpu = how(self.cpu, by.cpu);
        self.memory = how(self.memory, by.memory);
        self.pods = how(self.pods, by.pods);
        for (name, amount) in &by.other {
            match self.other.binary_search_by(|(known, _)| known.cmp(name)) {
                Ok(at) => self.other[at].1 = how(self.other[at].1, *amount),
                Err(at) => self.other.insert(at, (name.clone(), how(0, *amount))),
            }
        }
    }

    /// By which the larger of two pods is found: a CPU weighs like 4 GiB, as in most VM sizes.
    fn weight(&self) -> i128 {
        i128::from(self.cpu) * (4 << 30) / 1000 + i128::from(self.memory)
    }
}

/// Keeps pods off a node, unless they tolerate it. Only those that do keep off are here: `NoSchedule`, `NoExecute`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    /// Its key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Arc<str>,
    /// Its effect.
    pub effect: Arc<str>,
}

/// What a pod puts up with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Any key if absent.
    pub key: Option<Arc<str>>,
    /// Any value if absent: operator `Exists`.
    pub value: Option<Arc<str>>,
    /// Any effect if absent.
    pub effect: Option<Arc<str>>,
}

impl Toleration {
    fn tolerates(&self, taint: &Taint) -> bool {
        let is = |wanted: &Option<Arc<str>>, found: &Arc<str>| wanted.as_ref().is_none_or(|it| it == found);
        is(&self.key, &taint.key) && is(&self.value, &taint.value) && is(&self.effect, &taint.effect)
    }
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// One of these.
    In(Arc<str>, BTreeSet<Arc<str>>),
    /// None of these, or not there.
    NotIn(Arc<str>, BTreeSet<Arc<str>>),
    /// There.
    Exists(Arc<str>),
    /// Not there.
    DoesNotExist(Arc<str>),
    /// A whole number above this.
    Above(Arc<str>, i64),
    /// A whole number below this.
    Below(Arc<str>, i64),
}

impl Requirement {
    /// The label that it is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::In(key, _)
            | Self::NotIn(key, _)
            | Self::Exists(key)
            | Self::DoesNotExist(key)
            | Self::Above(key, _)
            | Self::Below(key, _) => key,
        }
    }

    /// Whether a label of this value, or its absence, is as required.
    pub fn holds(&self, label: Option<&str>) -> bool {
        let number = || label.and_then(|label| label.parse::<i64>().ok());
        match self {
            Self::In(_, values) => label.is_some_and(|label| values.contains(label)),
            Self::NotIn(_, values) => label.is_none_or(|label| !values.contains(label)),
            Self::Exists(_) => label.is_some(),
            Self::DoesNotExist(_) => label.is_none(),
            Self::Above(_, than) => number().is_some_and(|number| number > *than),
            Self::Below(_, than) => number().is_some_and(|number| number < *than),
        }
    }
}

/// All that decides where a pod may run. Pods of one workload share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What it asks for, itself as one pod included.
    pub requests: Resources,
    /// Its node selector.
    pub selector: Vec<(Arc<str>, Arc<str>)>,
    /// Its required node affinity: one of these terms, all of it. A term that names a node by its name is left out.
    pub affinity: Option<Vec<Vec<Requirement>>>,
    /// Its tolerations.
    pub tolerations: Vec<Toleration>,
    /// Whether it shares no node with its like, because of anti-affinity or a host port.
    pub apart: bool,
    /// Whether it has a volume claim, and so may have to stay in its zone.
    pub zonal: bool,
}

impl Shape {
    /// Whether a node with these labels and taints may run it, if there is room.
    pub fn may_run<'a>(&self, label: impl Fn(&str) -> Option<&'a str>, taints: &[Taint]) -> bool {
        let tolerated = |taint: &Taint| self.tolerations.iter().any(|toleration| toleration.tolerates(taint));
        self.selector.iter().all(|(key, value)| label(key) == Some(value))
            && taints.iter().all(tolerated)
            && self.affinity.as_ref().is_none_or(|terms| {
                let holds = |it: &Requirement| it.holds(label(it.key()));
                // A term that asks for nothing holds nowhere.
                terms.iter().any(|term| !term.is_empty() && term.iter().all(holds))
            })
    }

    /// Labels of nodes that it asks after.
    pub fn labels(&self) -> impl Iterator<Item = &Arc<str>> {
        let terms = self.affinity.iter().flatten().flatten().map(Requirement::key);
        self.selector.iter().map(|(key, _)| key).chain(terms)
    }
}

/// One pod, as far as it has to be put somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// Whose it is, such as `Deployment/web`; empty if nobody's.
    pub owner: Arc<str>,
    /// Where it may run.
    pub shape: Arc<Shape>,
}

/// The order in which pods are put into room: largest first, those of one workload together.
pub(crate) fn largest_first(pods: &mut [&Pod]) {
    pods.sort_by(|a, b| {
        let larger = b.shape.requests.weight().cmp(&a.shape.requests.weight());
        larger.then_with(|| (&a.owner, &a.namespace, &a.name).cmp(&(&b.owner, &b.namespace, &b.name)))
    });
}

/// Puts pods, largest first, into as few equal bins as first-fit does.
#[derive(Debug)]
pub(crate) struct Bins<'a> {
    size: &'a Resources,
    free: Vec<(Resources, Vec<&'a Arc<str>>)>,
    /// The last pod, and where the next of its like is looked for: before there is no room for it.
    last: Option<(&'a Pod, usize)>,
}

impl<'a> Bins<'a> {
    /// None yet.
    pub fn of(size: &'a Resources) -> Self {
        Self { size, free: Vec::new(), last: None }
    }

    /// Puts a pod into the first bin with room, or into a new one. False if it is too large for any.
    pub fn put(&mut self, pod: &'a Pod) -> bool {
        if !self.size.has(&pod.shape.requests) {
            return false;
        }
        let is_like = |last: &Pod| Arc::ptr_eq(&last.shape, &pod.shape) && last.owner == pod.owner;
        let from = self.last.filter(|(last, _)| is_like(last)).map_or(0, |(_, at)| at);
        let shape = &pod.shape;
        let takes = |(free, owners): &(Resources, Vec<&Arc<str>>)| {
            free.has(&shape.requests) && !(shape.apart && owners.contains(&&pod.owner))
        };
        let at = self.free[from..].iter().position(takes).map_or(self.free.len(), |at| from + at);
        if at == self.free.len() {
            self.free.push((self.size.clone(), Vec::new()));
        }
        let (free, owners) = &mut self.free[at];
        free.take(&shape.requests);
        if shape.apart {
            owners.push(&pod.owner);
        }
        self.last = Some((pod, at));
        true
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.free.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn a_pod_runs_where_selector_affinity_and_taints_let_it() {
        let labels = [("disk", "ssd"), ("gen", "5")];
        let label = |key: &str| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        let spot = Taint { key: text("spot"), value: text("yes"), effect: text("NoSchedule") };
        let any = Toleration { key: None, value: None, effect: None };
        let of = |key: &str, value: Option<&str>, effect: Option<&str>| Toleration {
            key: Some(text(key)),
            value: value.map(text),
            effect: effect.map(text),
        };
        let select = |key: &str, value: &str| vec![(text(key), text(value))];
        let set = |values: &[&str]| values.iter().map(|value| text(value)).collect::<BTreeSet<_>>();
        let terms = |terms: Vec<Vec<Requirement>>| Shape { affinity: Some(terms), ..Shape::default() };
        let tolerating = |toleration: Toleration| Shape { tolerations: vec![toleration], ..Shape::default() };
        let table = [
            ("anything", Shape::default(), false, true),
            ("not tolerated", Shape::default(), true, false),
            ("tolerates all", tolerating(any), true, true),
            ("by key", tolerating(of("spot", None, None)), true, true),
            ("another value", tolerating(of("spot", Some("no"), None)), true, false),
            ("another effect", tolerating(of("spot", Some("yes"), Some("NoExecute"))), true, false),
            ("selected", Shape { selector: select("disk", "ssd"), ..Shape::default() }, false, true),
            ("not selected", Shape { selector: select("disk", "hdd"), ..Shape::default() }, false, false),
            ("in", terms(vec![vec![Requirement::In(text("disk"), set(&["ssd"]))]]), false, true),
            ("not in", terms(vec![vec![Requirement::NotIn(text("disk"), set(&["ssd"]))]]), false, false),
            ("not in, absent", terms(vec![vec![Requirement::NotIn(text("x"), set(&["y"]))]]), false, true),
            ("above", terms(vec![vec![Requirement::Above(text("gen"), 4)]]), false, true),
            ("below", terms(vec![vec![Requirement::Below(text("gen"), 5)]]), false, false),
            ("no number", terms(vec![vec![Requirement::Above(text("disk"), 0)]]), false, false),
            (
                "one of two terms",
                terms(vec![vec![Requirement::Exists(text("x"))], vec![Requirement::DoesNotExist(text("x"))]]),
                false,
                true,
            ),
            ("an empty term", terms(vec![vec![]]), false, false),
            ("no term", terms(vec![]), false, false),
        ];
        for (what, shape, tainted, expected) in table {
            let taints = if tainted { vec![spot.clone()] } else { Vec::new() };
            assert_eq!(shape.may_run(label, &taints), expected, "{what}");
        }
    }

    #[test]
    fn only_what_is_asked_for_must_be_there() {
        let gpu = |amount| vec![(text("nvidia.com/gpu"), amount)];
        let node = Resources { cpu: -100, memory: 10, pods: 1, other: Vec::new() };
        let asks = |cpu, memory, other| Resources { cpu, memory, pods: 1, other };
        for (asked, lacking) in [
            (asks(0, 10, vec![]), None),
            (asks(1, 10, vec![]), Some("cpu")),
            (asks(0, 11, vec![]), Some("memory")),
            (asks(0, 1, gpu(1)), Some("nvidia.com/gpu")),
            (asks(0, 1, gpu(0)), None),
        ] {
            assert_eq!(node.lacks(&asked).as_deref(), lacking, "{asked:?}");
        }
        let mut node = node;
        node.add(&asks(200, 0, gpu(2)));
        node.take(&asks(50, 0, gpu(1)));
        assert_eq!(node, Resources { cpu: 50, memory: 10, pods: 1, other: gpu(1) });
    }
}
