//! One copy of what many objects share: names, labels and shapes of pods.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use spotpool_core::scheduling::Shape;

/// Labels, sorted by key.
pub type Labels = [(Arc<str>, Arc<str>)];

/// Keeps one copy of what many objects share.
#[derive(Default)]
pub struct Shared {
    texts: HashSet<Arc<str>>,
    shapes: HashSet<Arc<Shape>>,
    labels: HashSet<Arc<Labels>>,
}

impl Shared {
    /// The one copy of a text.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    /// The one copy of labels.
    pub fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<Labels> {
        let labels: Arc<Labels> =
            labels.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        one(&mut self.labels, labels)
    }

    /// The one copy of a shape.
    pub fn shape(&mut self, shape: Shape) -> Arc<Shape> {
        one(&mut self.shapes, Arc::new(shape))
    }

    /// Forgets what nobody has any more.
    pub fn sweep(&mut self) {
        // Shapes and labels hold texts, so they go first.
        self.shapes.retain(|shape| Arc::strong_count(shape) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.texts.shrink_to_fit();
    }
}

fn one<T: Eq + Hash + ?Sized>(known: &mut HashSet<Arc<T>>, value: Arc<T>) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    known.insert(value.clone());
    value
}

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    let found = labels.binary_search_by(|(known, _)| (**known).cmp(key));
    found.ok().map(|at| &*labels[at].1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use serde_json::json;

    use super::super::wire::WirePod;
    use super::*;

    #[test]
    fn pods_of_a_workload_share_all_but_their_names_and_what_is_gone_is_forgotten() {
        let mut shared = Shared::default();
        let wire = |name: &str| -> WirePod {
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"nodeName": "n", "nodeSelector": {"disk": "ssd"}}}),
            )
            .unwrap()
        };
        let (a, b) = (wire("a").read(&mut shared).unwrap(), wire("b").read(&mut shared).unwrap());
        assert!(Arc::ptr_eq(&a.pod.shape, &b.pod.shape) && Arc::ptr_eq(&a.labels, &b.labels));
        shared.sweep();
        assert!(!shared.texts.is_empty());
        drop((a, b));
        shared.sweep();
        assert_eq!((shared.texts.len(), shared.shapes.len(), shared.labels.len()), (0, 0, 0));
    }
}
