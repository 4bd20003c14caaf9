//! The program as somebody meets it at a terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::process::{Command, Output};

fn lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spotpool-lab"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

const EXAMPLE: [&str; 4] = ["--manifest", "examples/pool.yaml", "--cloud", "examples/cloud.yaml"];
const TRACE: [&str; 6] = [
    "--manifest",
    "examples/p3.yaml",
    "--cloud",
    "examples/p3-cloud.yaml",
    "--trace",
    "spot=traces/bamboo/p3-trace.csv",
];

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn bad_input_ends_with_2_and_one_line_that_says_what_to_change() {
    let bad = [&TRACE[..4], &["--trace", "spot=traces/bamboo/LICENSE"]].concat();
    let nameless = [&TRACE[..4], &["--trace", "traces/bamboo/p3-trace.csv"]].concat();
    for (args, what) in [
        (bad, "traces/bamboo/LICENSE, line 1: is in no form that is known"),
        (nameless, "give --trace NAME=FILE"),
        (EXAMPLE.to_vec(), "give a trace, or --synthetic"),
        (TRACE[..2].to_vec(), "--cloud: is missing"),
        (
            [&TRACE[..4], &["--trace", "spot=nowhere.csv"]].concat(),
            "nowhere.csv: cannot be read: No such file",
        ),
    ] {
        let output = lab(&[&["run"], &args[..]].concat());
        let told = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.contains(what), "{told} does not say {what}");
    }
}

#[test]
fn a_table_is_aligned_and_plain_where_it_is_no_terminal() {
    let output = lab(&[&["run"], &TRACE[..]].concat());
    let table = said(&output);
    assert!(output.status.success() && !table.contains('\u{1b}'), "{table}");
    let rows: Vec<&str> = table.lines().skip(2).take(11).collect();
    assert!(rows[0].starts_with("POLICY ") && rows[1].starts_with("SpotPool "), "{table}");
    assert!(rows.iter().all(|row| row.chars().count() == rows[0].chars().count()), "{table}");
    assert!(!table.contains("SYNTHETIC"), "{table}");
}

/// Who is handed a figure that was drawn must not take it for one that was seen.
#[test]
fn what_is_synthetic_says_so_everywhere() {
    let page = std::env::temp_dir().join(format!("spotpool-lab-{}.html", std::process::id()));
    let drawn = ["--synthetic", "--days", "1", "--html", page.to_str().unwrap()];
    let table = said(&lab(&[&["run"], &EXAMPLE[..], &drawn[..]].concat()));
    assert!(table.contains("SYNTHETIC"), "{table}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("Synthetic: evictions"), "{html}");
    assert_eq!(html.matches("<svg").count(), 3);
    // Of several courses too.
    let of_two = said(&lab(&[&["run"], &EXAMPLE[..], &drawn[..], &["--seeds", "2"]].concat()));
    assert!(of_two.contains("(means)"), "{of_two}");
    let several = std::fs::read_to_string(&page).unwrap();
    assert!(several.matches("<svg").count() == 3 && several.contains("medians of 2 courses"), "{several}");
    std::fs::remove_file(&page).unwrap();
    // It needs nothing else.
    for outside in ["http://", "https://", "<script", "src=", "@import"] {
        assert!(!html.contains(outside), "{outside} in the page");
    }
    let json = said(&lab(&[&["run", "--json"], &EXAMPLE[..], &drawn[..3]].concat()));
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["synthetic"], true);
    assert_eq!(value["policies"][0]["policy"], "SpotPool");
    let tuned =
        said(&lab(&[&["tune"], &EXAMPLE[..], &["--synthetic", "--days", "1", "--seeds", "4"]].concat()));
    assert!(tuned.starts_with("SYNTHETIC") && tuned.contains("2 seeds, judged on 2 others"), "{tuned}");
}

#[test]
fn two_spotpools_are_compared_by_their_names() {
    let output =
        lab(&["compare", "examples/p3.yaml", "examples/p3.yaml", TRACE[2], TRACE[3], TRACE[4], TRACE[5]]);
    let table = said(&output);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("p3 ")).collect();
    assert!(rows.len() == 2 && rows[0] == rows[1], "{table}");
    // Of files that are named alike the folders tell.
    let folder = std::env::temp_dir().join(format!("spotpool-lab-compare-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let second = folder.join("p3.yaml");
    std::fs::copy(format!("{}/examples/p3.yaml", env!("CARGO_MANIFEST_DIR")), &second).unwrap();
    let second = second.to_str().unwrap();
    let table = said(&lab(&["compare", "examples/p3.yaml", second, TRACE[2], TRACE[3], TRACE[4], TRACE[5]]));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(table.contains(&format!("{second} ")) && table.contains("examples/p3.yaml "), "{table}");
    let other =
        lab(&["compare", "examples/p3.yaml", "examples/pool.yaml", TRACE[2], TRACE[3], TRACE[4], TRACE[5]]);
    assert_eq!(other.status.code(), Some(2));
}

/// One trace has no second one to judge by. Numbers that were chosen and judged by the same hours would always look good.
#[test]
fn a_trace_is_tuned_on_its_earlier_half_and_judged_on_its_later_one() {
    let output = lab(&[&["tune"], &TRACE[..]].concat());
    let tuned = said(&output);
    assert!(
        tuned.starts_with("Sought on 5 parts of the trace, judged on 5 others that come later;"),
        "{tuned}"
    );
    let short = std::env::temp_dir().join(format!("spotpool-lab-short-{}.csv", std::process::id()));
    std::fs::write(&short, "0,add,a\n7200000,add,b\n").unwrap();
    let trace = format!("spot={}", short.display());
    let output = lab(&[&["tune"], &TRACE[..4], &["--trace", &trace]].concat());
    std::fs::remove_file(&short).unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{told}");
    assert!(told.contains("give 4 hours or more"), "{told}");
}
