//! What a program says of itself at `/metrics`.

use std::collections::{BTreeMap, BTreeSet};

/// One answer, by series.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    values: BTreeMap<String, f64>,
    /// Families that only grow.
    growing: BTreeSet<String>,
}

impl Scrape {
    pub fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# TYPE ") {
                if let Some((name, "counter" | "histogram")) = about.split_once(' ') {
                    scrape.growing.insert(name.trim_end_matches("_total").to_owned());
                }
            } else if !line.starts_with('#') {
                // OpenMetrics has exemplars after it.
                let sample = line.split(" # ").next().unwrap_or_default();
                if let Some((series, value)) = sample.rsplit_once(' ') {
                    scrape.values.insert(series.to_owned(), value.parse().unwrap_or(f64::NAN));
                }
            }
        }
        scrape
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.values.len()
    }

    fn grows(&self, series: &str) -> bool {
        let name = series.split('{').next().unwrap_or_default();
        let family = ["_total", "_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        self.growing.contains(family.unwrap_or(name))
    }

    /// What cannot be of one and the same process: a counter that falls, or is gone.
    pub fn impossible_after(&self, last: &Self) -> Vec<String> {
        let fell = |(series, was): (&String, &f64)| match self.values.get(series) {
            Some(is) if is >= was => None,
            Some(is) => Some(format!("{series} was {was}, then {is}")),
            None => Some(format!("{series} was {was}, then gone")),
        };
        last.values.iter().filter(|(series, _)| last.grows(series)).filter_map(fell).collect()
    }

    /// Series that name something which comes and goes.
    pub fn naming(&self, what: &str) -> Vec<String> {
        self.values.keys().filter(|series| series.contains(what)).cloned().collect()
    }
}

#[test]
fn a_counter_that_falls_is_found_and_a_gauge_may() {
    let scrape = |counter: u32, gauge: u32| {
        Scrape::read(&format!(
            "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{{x=\"y\"}} {counter}\n# TYPE a_g gauge\na_g {gauge}\n\
             # TYPE a_s histogram\na_s_sum 2.5\na_s_bucket{{le=\"+Inf\"}} {counter} # {{trace_id=\"1\"}} 0.5\n# EOF\n"
        ))
    };
    assert_eq!(scrape(2, 0).impossible_after(&scrape(1, 9)), [""; 0]);
    let fell = scrape(0, 9).impossible_after(&scrape(1, 9));
    assert_eq!(fell, ["a_b_total{x=\"y\"} was 1, then 0", "a_s_bucket{le=\"+Inf\"} was 1, then 0"]);
    assert_eq!(Scrape::default().impossible_after(&scrape(1, 9)).len(), 3);
    assert_eq!(scrape(1, 1).series(), 4);
    assert_eq!(scrape(1, 1).naming("y"), ["a_b_total{x=\"y\"}"]);
}
