//! A trace that is read wrong makes a wrong policy look right: what cannot be meant is refused, with its place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use spotpool_lab::course::Course;
use spotpool_lab::trace::{Polarity, Supply, Trace, read};

fn file(name: &str) -> (String, String) {
    let path = format!("{}/traces/bamboo/{name}", env!("CARGO_MANIFEST_DIR"));
    (name.to_owned(), std::fs::read_to_string(path).unwrap())
}

fn nameless(trace: Trace) -> (i64, Supply) {
    match trace {
        Trace::Nameless(length, supply) => (length, supply),
        other => panic!("{other:?}"),
    }
}

fn of(text: &str) -> Result<Trace, String> {
    read("t", text, None).map_err(|bad| bad.to_string())
}

#[test]
fn traces_of_bamboo_say_how_many_machines_there_were() {
    // What lies in the files, counted by hand: when they end, the most, and what is left at last.
    for (name, hours, most, last) in [
        ("p3-trace.csv", 11.37, 32, 10),
        ("g4dn-trace.csv", 10.63, 24, 5),
        ("gcloud/v100x1-east1c.txt", 24.17, 80, 80),
        ("gcloud/a100x1-east1b.txt", 27.02, 64, 64),
    ] {
        let (place, text) = file(name);
        let (length, supply) = nameless(read(&place, &text, None).unwrap());
        assert!((length as f64 / 3600.0 - hours).abs() < 0.01, "{name} lasts {length} s");
        let counts = || supply.available.steps().iter().map(|(_, count)| *count);
        assert_eq!((counts().max().unwrap(), counts().next_back().unwrap()), (most, last), "{name}");
        assert!(supply.available.steps().is_sorted_by(|one, other| one.0 < other.0), "{name}");
    }
}

#[test]
fn where_readings_are_written_ahead_what_comes_later_counts() {
    let text = "2021-12-10, 13:07:45, 80\n2021-12-10, 13:08:45, 80\n2021-12-10, 13:09:45, 80\n\
                2021-12-10, 13:08:45, 70\n2021-12-10, 13:09:45, 70\n";
    let (length, supply) = nameless(of(text).unwrap());
    assert_eq!((length, supply.available), (120, Course::of([(0, 80), (60, 70)])));
}

#[test]
fn ticks_hold_counts_and_prices() {
    let text = r#"{"metadata": {"gap_seconds": 600, "region": "r"}, "data": [3, 4, 4, 0], "prices": [0.1, 0.1, 0.2, 0.2]}"#;
    let (length, supply) = nameless(of(text).unwrap());
    assert_eq!((length, supply.available), (2400, Course::of([(0, 3), (600, 4), (1800, 0)])));
    assert_eq!(supply.price, Some(Course::of([(0, 0.1), (1200, 0.2)])));
    let several =
        r#"{"metadata": {"gap_seconds": 60}, "pools": {"a": {"data": [2, 0]}, "b": {"data": [0, 2]}}}"#;
    let Trace::Named(120, pools) = of(several).unwrap() else { panic!("two agent pools of two minutes") };
    assert_eq!(pools["b"].available, Course::of([(0, 0), (60, 2)]));
}

/// Read the wrong way round, the worst hours of spot are its best.
#[test]
fn zeros_and_ones_are_read_as_somebody_says() {
    let plain = r#"{"metadata": {"gap_seconds": 60}, "data": [1, 0, 0]}"#;
    assert!(of(plain).unwrap_err().contains("--polarity"));
    let (_, there) = nameless(read("t", plain, Some(Polarity::Available)).unwrap());
    assert_eq!(there.available, Course::of([(0, 1), (60, 0)]));
    let (_, taken) = nameless(read("t", plain, Some(Polarity::Preempted)).unwrap());
    assert_eq!(taken.available, Course::of([(0, 0), (60, 1)]));
    let said = r#"{"metadata": {"gap_seconds": 60, "polarity": "preempted"}, "data": [1, 0, 0]}"#;
    assert_eq!(nameless(of(said).unwrap()).1, taken);
    assert!(read("t", said, Some(Polarity::Available)).unwrap_err().to_string().contains("opposite"));
}

#[test]
fn bad_traces_are_refused_at_their_line() {
    let json = |data: &str| format!("{{\"metadata\": {{\"gap_seconds\": 600}},\n\"data\": [\n3,\n{data}]}}");
    for (text, place, what) in [
        (json("null"), "t, line 4, column 4", "null, expected a whole number: "),
        (json("null"), "t, line 4", "fill gaps"),
        (json("-1"), "t, line 4, column 2", "0 or more"),
        (json("2.5"), "t, line 4, column 3", "whole number"),
        (json("many"), "t, line 4", "expected value"),
        (r#"{"metadata": {"gap_seconds": 0}, "data": [2]}"#.into(), "t", "1 to 86400"),
        (r#"{"metadata": {"gap_seconds": 60}, "data": []}"#.into(), "t", "empty"),
        (r#"{"metadata": {"gap_seconds": 60}}"#.into(), "t", "give one of them"),
        (r#"{"metadata": {"gap_seconds": 60}, "data": [2, 3], "prices": [1]}"#.into(), "t", "give as many"),
        (r#"{"metadata": {"gap_seconds": 60}, "data": [2], "prices": [-1]}"#.into(), "t", "not above 0"),
        (
            r#"{"metadata": {"gap_seconds": 60, "polarity": "preempted"}, "data": [2]}"#.into(),
            "t",
            "cannot mean preempted",
        ),
        (
            r#"{"metadata": {"gap_seconds": 60}, "pools": {"a": {"data": [2]}, "b": {"data": [2, 2]}}}"#
                .into(),
            "t",
            "each of them as many",
        ),
        ("0,add,a\n60000,add,b\n59000,remove,a\n".into(), "t, line 3", "sort the trace"),
        ("0,add,a\n1000,add,a\n".into(), "t, line 2", "a second time"),
        ("0,add,a\n1000,remove,b\n".into(), "t, line 2", "polarity"),
        ("0,add,a\n1000,gone,a\n".into(), "t, line 2", "add or remove"),
        ("0,add,a\n-5,add,b\n".into(), "t, line 2", "0 or more"),
        ("0,add,a\n".into(), "t", "ends when it begins"),
        ("2021-12-10, 13:07:45, 8\n2021-12-10, 12:07:45, 8\n".into(), "t, line 2", "sort the trace"),
        ("2021-12-10, 13:07:45, -8\n".into(), "t, line 1", "0 or more"),
        ("2021-12-10, 13:67:45, 8\n".into(), "t, line 1", "not a time"),
        ("hello\n".into(), "t, line 1", "no form that is known"),
        (String::new(), "t", "empty"),
    ] {
        let bad = of(&text).expect_err(&text);
        assert!(bad.starts_with(&format!("{place}: ")) || bad.starts_with(place), "{bad}");
        assert!(bad.contains(what), "{bad} does not say {what}");
    }
}

const HEADER: &str = r#"{"format":"spotpool-history/v1","from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","agentPools":[{"name":"a","role":"Spot","hourlyPrice":0.1,"nodes":4}]}"#;

#[test]
fn a_history_says_what_was_not_there() {
    let event = |at: &str, rest: &str| format!(r#"{{"at":"2026-01-01T{at}Z","agentPool":"a",{rest}}}"#);
    let text = [
        HEADER.to_owned(),
        event("01:00:00", r#""event":"lost","nodes":3"#),
        event("01:10:00", r#""event":"refused","asked":3,"got":1"#),
        event("01:20:00", r#""event":"arrived","nodes":1"#),
        event("02:00:00", r#""event":"lost","nodes":1"#),
        event("03:00:00", r#""event":"price","hourlyPrice":0.2"#),
    ]
    .join("\n");
    let Trace::History(history) = of(&text).unwrap() else { panic!("a history") };
    let available = &history.supply["a"].available;
    let at = |minutes: i64| available.at(minutes * 60).unwrap();
    assert_eq!([at(60), at(70), at(120)], [1, 2, 1]);
    // Something came; nothing was heard for an hour.
    assert!(at(59) > 1000 && at(80) > 1000 && at(180) > 1000);
    assert_eq!(history.supply["a"].price.as_ref().unwrap().at(3 * 3600), Some(0.2));
    for (line, what) in [
        (event("01:00:00", r#""event":"lost","nodes":5"#), "it has 4"),
        (event("01:00:00", r#""event":"eaten","nodes":5"#), "unknown variant"),
        (
            r#"{"at":"2026-02-01T01:00:00Z","agentPool":"a","event":"lost","nodes":1}"#.into(),
            "sort the events",
        ),
        (r#"{"at":"2026-01-01T01:00:00Z","agentPool":"b","event":"lost","nodes":1}"#.into(), "add it there"),
    ] {
        let bad = of(&format!("{HEADER}\n{line}")).unwrap_err();
        assert!(bad.starts_with("t, line 2: ") && bad.contains(what), "{bad}");
    }
}
