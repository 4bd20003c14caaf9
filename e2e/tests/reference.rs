//! The reference of metrics is what the programs say of themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;

#[test]
fn the_reference_of_metrics_is_of_this_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let written = std::fs::read_to_string(&page).unwrap();
    let mut wanted = written.clone();
    for (program, catalogue) in [
        ("spotpool-operator", spotpool_operator::metrics::catalogue()),
        ("spotpool-node-agent", spotpool_node_agent::metrics::catalogue()),
    ] {
        let (begin, end) = (format!("<!-- begin {program} -->\n"), format!("<!-- end {program} -->"));
        let from = wanted.find(&begin).expect("its begin mark") + begin.len();
        let to = wanted.find(&end).expect("its end mark");
        wanted.replace_range(from..to, &catalogue.markdown());
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    assert!(
        written == wanted || std::env::var_os("UPDATE").is_some(),
        "docs/reference/metrics.md is not of this code: UPDATE=1 cargo test -p spotpool-e2e --test reference"
    );
}
