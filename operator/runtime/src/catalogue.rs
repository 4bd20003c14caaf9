//! A program's metrics, and what each of them means: the same words are in a scrape and in the reference.

use std::fmt::Write;

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A label, and the values that it can have: in backquotes where they are a fixed set, else in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub values: &'static str,
}

impl Label {
    /// Whether it can be this: any value, where no fixed set is written.
    pub fn allows(&self, value: &str) -> bool {
        let mut fixed = self.values.split('`').skip(1).step_by(2).peekable();
        fixed.peek().is_none() || fixed.any(|it| it == value)
    }
}

/// A family of metrics.
#[derive(Clone, Debug)]
pub struct Described {
    /// As in a scrape, with the suffixes for units and counters.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What is counted or measured in, where it is more than a number.
    pub unit: &'static str,
    /// Its labels.
    pub labels: Vec<Label>,
    /// What it says; also its help in a scrape.
    pub meaning: &'static str,
    /// What a reader should know beyond that; may be empty.
    pub note: &'static str,
    /// Rows of the metric tables that it serves; may be empty.
    pub serves: &'static str,
}

/// All of a program's metrics.
#[derive(Debug)]
pub struct Catalogue {
    prefix: &'static str,
    registry: Registry,
    families: Vec<Described>,
}

/// A family that is being described.
#[derive(Debug)]
#[must_use = "a family is registered by `metric`"]
pub struct Entry<'a> {
    catalogue: &'a mut Catalogue,
    name: &'static str,
    suffix: Option<Unit>,
    described: Described,
}

impl Catalogue {
    /// Of the program whose metrics begin so.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, registry: Registry::with_prefix(prefix), families: Vec::new() }
    }

    /// Begins to describe a family; without the prefix, and without suffixes for units and counters.
    pub fn family(&mut self, name: &'static str, meaning: &'static str) -> Entry<'_> {
        let described = Described {
            name: String::new(),
            kind: "",
            unit: "",
            labels: Vec::new(),
            meaning,
            note: "",
            serves: "",
        };
        Entry { catalogue: self, name, suffix: None, described }
    }

    /// All families, in the order in which they were registered.
    pub fn families(&self) -> &[Described] {
        &self.families
    }

    /// What a scrape reads.
    pub fn into_registry(self) -> Registry {
        self.registry
    }

    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let mut table = "| name | type, unit | labels | meaning | row |\n|---|---|---|---|---|\n".to_owned();
        for family in &self.families {
            let Described { name, kind, unit, meaning, note, serves, .. } = family;
            let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
            let labels = family.labels.iter().map(|Label { name, values }| match *values {
                "" => format!("`{name}`"),
                values => format!("`{name}`: {values}"),
            });
            let labels = labels.collect::<Vec<_>>().join("; ");
            let note = if note.is_empty() { String::new() } else { format!(". {note}") };
            let _ = writeln!(table, "| `{name}` | {kind}{unit} | {labels} | {meaning}{note} | {serves} |");
        }
        table
    }
}

impl Entry<'_> {
    /// Measured in seconds, as its name then says.
    pub fn seconds(mut self) -> Self {
        self.suffix = Some(Unit::Seconds);
        self.described.unit = "seconds";
        self
    }

    /// What is counted or measured, where the name does not say it.
    pub fn unit(mut self, unit: &'static str) -> Self {
        self.described.unit = unit;
        self
    }

    /// A label that can be many things, such as the name of an object.
    pub fn label(self, name: &'static str) -> Self {
        self.label_of(name, "")
    }

    /// A label, and what it can be.
    pub fn label_of(mut self, name: &'static str, values: &'static str) -> Self {
        self.described.labels.push(Label { name, values });
        self
    }

    /// The labels `namespace` and `pool` of a SpotPool.
    pub fn of_pool(self) -> Self {
        self.label("namespace").label("pool")
    }

    /// What a reader should know beyond the meaning.
    pub fn note(mut self, note: &'static str) -> Self {
        self.described.note = note;
        self
    }

    /// Rows of the metric tables that it serves.
    pub fn serves(mut self, rows: &'static str) -> Self {
        self.described.serves = rows;
        self
    }

    /// Registers it.
    pub fn metric(self, metric: impl Metric) {
        let Self { catalogue, name, suffix, mut described } = self;
        let (kind, total) = match metric.metric_type() {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Gauge | MetricType::Info | MetricType::Unknown => ("gauge", ""),
        };
        let unit = suffix.as_ref().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        described.name = format!("{}_{name}{unit}{total}", catalogue.prefix);
        described.kind = kind;
        let registry = &mut catalogue.registry;
        match suffix {
            Some(unit) => registry.register_with_unit(name, described.meaning, unit, metric),
            None => registry.register(name, described.meaning, metric),
        }
        catalogue.families.push(described);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn the_reference_names_a_family_as_a_scrape_does() {
        let mut catalogue = Catalogue::new("spotpool_test");
        let counted = Counter::<u64>::default();
        catalogue
            .family("things", "Things that came")
            .label_of("kind", "`a`, `b`")
            .serves("M1")
            .metric(counted);
        let took = Histogram::new([1.0]);
        catalogue.family("wait", "How long they took").seconds().note("Since 1970").metric(took);
        assert_eq!(
            catalogue.markdown(),
            "| name | type, unit | labels | meaning | row |\n|---|---|---|---|---|\n\
             | `spotpool_test_things_total` | counter | `kind`: `a`, `b` | Things that came | M1 |\n\
             | `spotpool_test_wait_seconds` | histogram, seconds |  | How long they took. Since 1970 |  |\n"
        );
        let mut scrape = String::new();
        prometheus_client::encoding::text::encode(&mut scrape, &catalogue.into_registry()).unwrap();
        assert!(scrape.contains("spotpool_test_things_total 0\n"), "{scrape}");
        assert!(scrape.contains("spotpool_test_wait_seconds_bucket{le=\"1.0\"} 0\n"), "{scrape}");
    }

    #[test]
    fn a_fixed_set_of_values_is_held() {
        let fixed = Label { name: "result", values: "`Accepted`, or the class: `Denied`" };
        assert!(fixed.allows("Denied") && !fixed.allows("or the class: ") && !fixed.allows("node-7"));
        assert!(Label { name: "pool", values: "" }.allows("anything"));
    }
}
