//! Row M and Q: recording rules, alerts and runbooks. An alert that never fires, fires for nothing or has nothing to say is
//! worse than none: somebody relies on it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod book;
mod pages;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use book::{Book, complaints, root};
use spotpool_e2e::run;
use spotpool_e2e_cluster::Tools;

/// Where pages are whose commands are run.
pub const PAGES: [&str; 2] = ["docs/runbooks", "docs/playbooks"];

fn promtool(args: &[&str], files: &[PathBuf]) -> (bool, String) {
    let promtool = run(Tools::promtool()).unwrap();
    let output = Command::new(promtool).current_dir(root()).args(args).args(files).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

/// The files of a folder, by the end of their names.
pub fn files(folder: &str, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .map(|path| path.strip_prefix(root()).unwrap().to_owned())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

#[test]
fn a_prometheus_takes_every_rule() {
    let mut rules = files("charts/spotpool/rules", ".yaml");
    rules.extend(files("charts/spotpool/rules/examples", ".yaml"));
    let (good, said) = promtool(&["check", "rules", "--lint=all", "--lint-fatal"], &rules);
    assert!(good, "{said}");
}

#[test]
fn every_alert_fires_does_not_fire_just_below_and_resolves() {
    let (good, said) = promtool(&["test", "rules"], &files("e2e/rules", ".test.yaml"));
    assert!(good, "{said}");
}

/// Examples are copied: one that does not hold is copied, too.
#[test]
fn examples_of_job_and_queue_metrics_hold() {
    let (good, said) = promtool(&["test", "rules"], &files("e2e/rules/examples", ".test.yaml"));
    assert!(good, "{said}");
    let book = Book::read();
    for file in files("charts/spotpool/rules/examples", ".yaml") {
        let text = std::fs::read_to_string(root().join(&file)).unwrap();
        // Labels of other exporters are not ours to know.
        let unknown = book::unknown_names(&book, &text);
        let unknown: Vec<_> = unknown.iter().filter(|it| it.contains("is no metric of ours")).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
}

#[test]
fn every_alert_has_a_test_a_runbook_and_metrics_that_exist() {
    let found = complaints(&Book::read());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Something that somebody overlooks.
type Slip<'a> = &'a dyn Fn(&mut Book);

/// What the check above is worth: each of these slips has happened to somebody.
#[test]
fn a_slip_in_a_rule_is_told() {
    const ALERT: &str = "SpotPoolFloorCostly";
    let slips: [(&str, Slip); 9] = [
        ("has no test", &|book| drop(book.tests.remove(ALERT))),
        ("is never seen firing", &|book| edit(book.tests.get_mut(ALERT), "exp_labels", "labels")),
        ("is never seen to resolve", &|book| {
            edit(book.tests.get_mut(ALERT), "eval_time: 200m", "eval_time: 10m");
        }),
        ("has no runbook", &|book| drop(book.pages.remove(ALERT))),
        ("has an unknown severity", &|book| {
            edit(Some(&mut book.alerts), "severity: ticket", "severity: sometime");
        }),
        ("is recorded by no rule", &|book| {
            edit(Some(&mut book.alerts), "spotpool:floor_cost:ratio", "spotpool:floor:ratio");
        }),
        ("is no metric of ours", &|book| {
            edit(Some(&mut book.recording), "spotpool_operator_floor_hourly_cost", "spotpool_floor_cost");
        }),
        ("has no label", &|book| edit(Some(&mut book.recording), "{state=\"wanted\"}", "{phase=\"wanted\"}")),
        ("is no value", &|book| edit(Some(&mut book.recording), "state=\"wanted\"", "state=\"desired\"")),
    ];
    for (expected, slip) in slips {
        let mut book = Book::read();
        slip(&mut book);
        let found = complaints(&book);
        assert!(found.iter().any(|complaint| complaint.contains(expected)), "{expected}: {found:?}");
    }
}

fn edit(text: Option<&mut String>, from: &str, to: &str) {
    let text = text.unwrap();
    assert!(text.contains(from), "{from} is not in it any more");
    *text = text.replace(from, to);
}

/// A page that names no alert is of something else; an alert's page that has lost its alert misleads.
#[test]
fn no_page_and_no_test_outlives_its_alert() {
    let book = Book::read();
    let alerts: BTreeSet<String> = book.names().into_iter().collect();
    let of_alerts = |name: &&String| name.starts_with("SpotPool");
    let left: Vec<_> = book
        .tests
        .keys()
        .chain(book.pages.keys())
        .filter(of_alerts)
        .filter(|it| !alerts.contains(*it))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Queries on pages are read at night, by somebody who will not mend them.
#[test]
fn every_query_on_a_page_is_one() {
    let book = Book::read();
    let mut rules = String::from("groups:\n- name: pages\n  rules:\n");
    let mut count = 0;
    for page in PAGES.into_iter().chain(["docs/how-to"]).flat_map(|folder| files(folder, ".md")) {
        let text = std::fs::read_to_string(root().join(&page)).unwrap();
        for block in pages::blocks(&text).into_iter().filter(|block| block.kind == "promql") {
            let query = block.text.trim().replace('\n', "\n      ");
            let name = format!("page:query:{count}");
            rules.extend(["  - record: ", &name, "\n    expr: |\n      ", &query, "\n"]);
            count += 1;
            let unknown = book::unknown_names(&book, &block.text);
            // Elsewhere labels and series of other exporters are joined.
            let is_ours =
                |it: &&String| page.starts_with("docs/runbooks") || it.contains("no metric of ours");
            let unknown: Vec<_> = unknown.iter().filter(is_ours).collect();
            assert!(unknown.is_empty(), "{}: {unknown:?}", page.display());
        }
    }
    assert!(count > 0);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    let (good, said) = promtool(&["check", "rules"], &[file.path().to_owned()]);
    assert!(good, "{said}");
}
