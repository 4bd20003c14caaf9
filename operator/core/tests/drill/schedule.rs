//! By the clock, whoever looks at it and when.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use spotpool_crds::drill::{DrillPhase, EvictionDrillSpec};

use crate::world::{World, spec};

fn scheduled(schedule: &Value) -> EvictionDrillSpec {
    spec(&json!({"amount": {"count": 1}, "notice": "30s", "schedule": schedule}))
}

fn daily() -> EvictionDrillSpec {
    scheduled(&json!({"cron": "0 10 * * *"}))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// As seen for the first time at eight: the next run is at ten.
fn waiting(spec: &EvictionDrillSpec) -> World {
    let mut world = World::new(2);
    world.now = at("2026-01-06T08:00:00Z");
    world.step(spec, true);
    assert_eq!(next(&world), Some(at("2026-01-06T10:00:00Z")));
    world
}

fn next(world: &World) -> Option<Timestamp> {
    world.status.next_run_at.as_ref().map(|at| at.0)
}

/// Looks every so often, and tells when runs began.
fn watch(world: &mut World, spec: &EvictionDrillSpec, until: &str, every: i64) -> BTreeSet<Timestamp> {
    let mut began = BTreeSet::new();
    while world.now < at(until) {
        world.step(spec, true);
        let run = world.status.run.as_ref();
        began.extend(run.and_then(|run| run.started_at.as_ref()).map(|at| at.0));
        world.pass(every);
    }
    began
}

#[test]
fn a_run_is_told_beforehand_comes_once_and_is_remembered() {
    let spec = daily();
    let mut world = waiting(&spec);
    assert_eq!(world.status.message, "runs next at 2026-01-06T10:00:00Z");
    let began = watch(&mut world, &spec, "2026-01-08T12:00:00Z", 50);
    let days: Vec<SignedDuration> = (6..9)
        .zip(&began)
        .map(|(day, began)| began.duration_since(at(&format!("2026-01-0{day}T10:00:00Z"))))
        .collect();
    assert_eq!(began.len(), 3, "{began:?}");
    assert!(days.iter().all(|late| (0..50).contains(&late.as_secs())), "{days:?}");
    let results: Vec<DrillPhase> = world.status.past_runs.iter().map(|run| run.result).collect();
    assert_eq!(results, [DrillPhase::Succeeded; 2], "and the third is the last");
}

/// An operator that was away for a night must not make up for it all in the morning.
#[test]
fn a_run_that_was_missed_is_made_up_for_within_ten_minutes_and_no_later() {
    for (seen_at, runs, next_run) in [
        ("2026-01-06T10:09:59Z", true, "2026-01-07T10:00:00Z"),
        ("2026-01-06T10:10:01Z", false, "2026-01-07T10:00:00Z"),
        // Three of them were missed, and one is not too late.
        ("2026-01-09T10:05:00Z", true, "2026-01-10T10:00:00Z"),
        ("2026-01-09T11:00:00Z", false, "2026-01-10T10:00:00Z"),
    ] {
        let spec = daily();
        let mut world = waiting(&spec);
        world.now = at(seen_at);
        world.step(&spec, true);
        assert_eq!((world.status.is_under_way(), next(&world)), (runs, Some(at(next_run))), "{seen_at}");
        assert_eq!(world.asked(), usize::from(runs), "{seen_at}");
    }
}

/// A successor has the status, and nothing else.
#[test]
fn a_restart_in_the_middle_of_a_run_begins_no_other() {
    let spec = daily();
    let mut world = waiting(&spec);
    world.now = at("2026-01-06T10:00:00Z");
    world.step(&spec, true);
    let (run, asked) = (world.status.run.clone().unwrap(), world.evicted.clone());
    world.pass(20);
    let text = serde_json::to_string(&world.status).unwrap();
    world.status = serde_json::from_str(&text).unwrap();
    watch(&mut world, &spec, "2026-01-06T12:00:00Z", 10);
    let ended = world.status.run.as_ref().unwrap();
    assert_eq!((&ended.id, ended.result), (&run.id, Some(DrillPhase::Succeeded)), "{:?}", world.status);
    assert_eq!(world.evicted, asked);
}

#[test]
fn a_run_waits_for_another_drill_as_long_as_it_may_be_late() {
    let spec = daily();
    for (freed_at, runs) in [("2026-01-06T10:09:00Z", true), ("2026-01-06T10:11:00Z", false)] {
        let mut world = waiting(&spec);
        world.snapshot.other = Some("ops/other".into());
        world.now = at("2026-01-06T10:00:00Z");
        assert!(watch(&mut world, &spec, freed_at, 20).is_empty());
        if runs {
            assert_eq!(world.status.message, "waits for drill ops/other: one runs at a time");
        }
        world.snapshot.other = None;
        world.step(&spec, true);
        assert_eq!((world.status.is_under_way(), world.asked()), (runs, usize::from(runs)), "{freed_at}");
        assert_eq!(next(&world), Some(at("2026-01-07T10:00:00Z")), "{freed_at}");
    }
}

/// Else the list of drills says that one waits which does not, until its next time.
#[test]
fn after_a_run_that_waited_in_vain_the_last_one_is_told_again() {
    let spec = daily();
    let mut world = waiting(&spec);
    watch(&mut world, &spec, "2026-01-06T11:00:00Z", 10);
    let told = (world.status.phase, world.status.message.clone());
    assert_eq!(told.0, Some(DrillPhase::Succeeded));
    world.snapshot.other = Some("ops/other".into());
    watch(&mut world, &spec, "2026-01-07T10:05:00Z", 10);
    assert_eq!(world.status.phase, Some(DrillPhase::Pending));
    watch(&mut world, &spec, "2026-01-07T10:15:00Z", 10);
    assert_eq!((world.status.phase, world.status.message), told);
}

#[test]
fn a_schedule_that_rests_runs_nothing_and_then_nothing_that_was_missed() {
    let (spec, rests) = (daily(), scheduled(&json!({"cron": "0 10 * * *", "suspend": true})));
    let mut world = waiting(&spec);
    world.snapshot.generation = 2;
    assert!(watch(&mut world, &rests, "2026-01-06T10:05:00Z", 20).is_empty());
    assert_eq!((next(&world), world.status.message.as_str()), (None, "its schedule is suspended"));
    world.snapshot.generation = 3;
    let began = watch(&mut world, &spec, "2026-01-07T11:00:00Z", 20);
    assert_eq!(began, [at("2026-01-07T10:00:00Z")].into(), "{began:?}");
}

/// Runs that take longer than the time between two do not pile up.
#[test]
fn runs_of_one_drill_follow_each_other() {
    let spec = spec(&json!({"amount": {"count": 1}, "notice": "150s", "schedule": {"cron": "* * * * *"}}));
    let mut world = World::new(2);
    let began = watch(&mut world, &spec, "2026-01-06T10:30:00Z", 5);
    let gaps: Vec<i64> = began
        .iter()
        .zip(began.iter().skip(1))
        .map(|(one, next)| next.duration_since(*one).as_secs())
        .collect();
    assert!(gaps.len() >= 8 && gaps.iter().all(|gap| *gap >= 150), "{gaps:?}");
}

/// Clocks are set in the night: each night has one run, at the hour that people there read.
#[test]
fn a_night_in_which_clocks_are_set_has_one_run() {
    let berlin = |cron: &str| scheduled(&json!({"cron": cron, "timeZone": "Europe/Berlin"}));
    for (cron, from, until, wanted) in [
        // Ten in the morning is an hour earlier by UTC from 29 March 2026 on.
        ("0 10 * * *", "2026-03-28T00:00:00Z", "2026-03-30T23:00:00Z", ["28T09:00", "29T08:00", "30T08:00"]),
        // Half past two is skipped in that night, and comes when it has been.
        ("30 2 * * *", "2026-03-27T23:00:00Z", "2026-03-30T23:00:00Z", ["28T01:30", "29T01:30", "30T00:30"]),
        // On 25 October 2026 it is shown twice, and comes the first time.
        ("30 2 * * *", "2026-10-23T23:00:00Z", "2026-10-26T23:00:00Z", ["24T00:30", "25T00:30", "26T01:30"]),
    ] {
        let spec = berlin(cron);
        let mut world = World::new(2);
        world.now = at(from);
        let began = watch(&mut world, &spec, until, 300);
        let began: Vec<String> = began.iter().map(|at| at.strftime("%dT%H:%M").to_string()).collect();
        assert_eq!(began, wanted, "{cron} from {from}");
    }
}
