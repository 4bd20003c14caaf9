//! The references of metrics and of Events are what the programs say of themselves, and the figures of the docs what was measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;

use spotpool_crds::told::{self, Author};
use spotpool_e2e::benchmarks;

/// Between the marks of each part stands this, and nothing else.
fn is_of_this_code(page: &Path, parts: &[(String, String)]) {
    let written = std::fs::read_to_string(page).unwrap();
    let mut wanted = written.clone();
    for (name, table) in parts {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let from = wanted.find(&begin).expect("its begin mark") + begin.len();
        let to = wanted.find(&end).expect("its end mark");
        wanted.replace_range(from..to, table);
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(page, &wanted).unwrap();
    }
    assert!(
        written == wanted || std::env::var_os("UPDATE").is_some(),
        "{} is not of this code: UPDATE=1 cargo test -p spotpool-e2e --test reference",
        page.display()
    );
}

#[test]
fn the_reference_of_metrics_is_of_this_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let parts = [
        ("spotpool-operator".to_owned(), spotpool_operator::metrics::catalogue().markdown()),
        ("spotpool-node-agent".to_owned(), spotpool_node_agent::metrics::catalogue().markdown()),
    ];
    is_of_this_code(&page, &parts);
}

#[test]
fn the_reference_of_events_is_of_this_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/events.md");
    let parts =
        [Author::Operator, Author::NodeAgent].map(|author| (author.to_string(), told::markdown(author)));
    is_of_this_code(&page, &parts);
}

#[test]
fn the_figures_of_the_docs_are_those_that_were_measured() {
    let kept = benchmarks::read().unwrap();
    let page = benchmarks::file().with_extension("md");
    let mut parts: Vec<_> = benchmarks::PARTS
        .iter()
        .map(|(name, part)| ((*name).to_owned(), benchmarks::table(part, &kept).unwrap()))
        .collect();
    parts.push(("machines".to_owned(), benchmarks::machines(&kept)));
    is_of_this_code(&page, &parts);
}
