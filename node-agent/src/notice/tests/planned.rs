//! What Azure does to a VM with announcement, and its hint that it may take one back.

use super::*;

fn events(change: impl FnOnce(&mut Events)) -> Events {
    let mut events = Events::default();
    change(&mut events);
    events
}

/// What is read at a second, if anything, what is decided then, and when to look again.
type Step<'a> = (i64, Option<Document>, &'a [Wanted<'a>], Option<i64>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Begin(&'a str, EventResponse, i64),
    Change(&'a str, EventResponse, i64),
    Pass(&'a str),
    Over(&'a str),
    Cancelled(&'a str),
}

fn shortened(decision: &Decision) -> Wanted<'_> {
    let due = |notice: &Notice| notice.deadline.duration_since(at(0)).as_secs();
    match decision {
        Decision::Begin(notice) => Wanted::Begin(&notice.event_id, notice.response, due(notice)),
        Decision::Change(notice) => Wanted::Change(&notice.event_id, notice.response, due(notice)),
        Decision::Pass { event_id } => Wanted::Pass(event_id),
        Decision::End { event_id, phase: Phase::Over } => Wanted::Over(event_id),
        Decision::End { event_id, .. } => Wanted::Cancelled(event_id),
        Decision::Tell { .. } => unreachable!("left out"),
    }
}

fn story(policy: &Events, steps: &[Step<'_>]) -> Seen {
    let mut seen = Seen::default();
    go_on(&mut seen, policy, "boot-1", steps);
    seen
}

fn go_on(seen: &mut Seen, policy: &Events, boot: &str, steps: &[Step<'_>]) {
    for (second, document, wanted, look_again) in steps {
        if let Some(document) = document {
            seen.read(document, &identity(), at(*second));
        }
        let (decisions, again) = decide(seen, policy, boot, *second);
        assert_eq!(decisions.iter().map(shortened).collect::<Vec<_>>(), *wanted, "at {second}");
        assert_eq!(again, look_again.map(at), "look again, said at {second}");
    }
}

use EventResponse::{Cordon, Drain, Ignore};
use Wanted::{Begin, Cancelled, Change, Over, Pass};

#[test]
fn a_reboot_is_drained_for_ahead_of_its_time_and_not_weeks_early() {
    // Announced a day ahead; the default lead time is ten minutes.
    let day = 24 * 60 * MINUTE;
    let announced = || Some(document(2, &[scheduled("R", "Reboot", &[ME], day)]));
    let mut seen = story(
        &Events::default(),
        &[
            (0, announced(), &[], Some(day - 600)),
            (day - 601, None, &[], Some(day - 600)),
            (day - 600, None, &[Begin("R", Drain, day)], None),
            (day, Some(document(3, &[begun("R", "Reboot", &[ME])])), &[Change("R", Drain, day)], None),
        ],
    );
    let mut same_boot = seen.clone();
    // It was the last that this boot has heard; the next finds no event and gives the node back at once …
    go_on(&mut seen, &Events::default(), "boot-2", &[(day + 90, Some(document(4, &[])), &[Over("R")], None)]);
    // … and so it is when it never came: a minute after the event was gone.
    go_on(
        &mut same_boot,
        &Events::default(),
        "boot-1",
        &[
            (day + 90, Some(document(4, &[])), &[Pass("R")], Some(day + 150)),
            (day + 149, None, &[], Some(day + 150)),
            (day + 150, None, &[Over("R")], None),
        ],
    );
}

#[test]
fn the_response_is_as_the_policy_says() {
    let policy = events(|it| {
        (it.preempt, it.freeze, it.reboot, it.redeploy) = (Ignore, Cordon, Ignore, Drain);
        (it.terminate, it.rebalance) = (Cordon, Drain);
    });
    for (kind, wanted) in [
        ("Preempt", Some(Ignore)), // the operator must know all the same
        ("Freeze", Some(Cordon)),
        ("Reboot", None),
        ("Redeploy", Some(Drain)),
        ("Terminate", Some(Cordon)),
        ("SpotRebalanceRecommendation", Some(Drain)),
        ("Teleport", None),
    ] {
        let mut seen = Seen::default();
        seen.read(&document(1, &[scheduled("E", kind, &[ME], 60)]), &identity(), at(0));
        let (decisions, look_again) = decide(&mut seen, &policy, "boot-1", 0);
        let wanted: Vec<_> = wanted.map(|response| Begin("E", response, 60)).into_iter().collect();
        assert_eq!(decisions.iter().map(shortened).collect::<Vec<_>>(), wanted, "{kind}");
        assert_eq!(look_again, None, "{kind}");
    }
}

#[test]
fn every_event_is_told_once_whatever_is_done_about_it() {
    let policy = Events::default();
    let vm = Vm { policy: &policy, boot_id: "boot-1", claims: &[], hearing: hearing(0) };
    let mut seen = Seen::default();
    let told = |(decisions, _): (Vec<Decision>, _)| -> Vec<_> {
        let told = decisions.into_iter().filter_map(|decision| match decision {
            Decision::Tell { event_id, kind, response, begins } => {
                Some((event_id, kind.to_string(), response, begins.duration_since(at(0)).as_secs()))
            }
            _ => None,
        });
        told.collect()
    };
    let all = [
        scheduled("F", "Freeze", &[ME], 5000),
        scheduled("R", "Reboot", &[ME], 5000),
        scheduled("T", "Teleport", &[ME], 5000),
        scheduled("X", "Reboot", &["aks-spot-12345678-vmss_1"], 5000),
    ];
    seen.read(&document(1, &all), &identity(), at(0));
    assert_eq!(
        told(seen.decide(&vm, at(0))),
        [
            ("F".into(), "Freeze".into(), Ignore, 4400),
            ("R".into(), "Reboot".into(), Drain, 4400),
            ("T".into(), "Teleport".into(), Ignore, 0),
        ]
    );
    seen.read(&document(2, &all[..2]), &identity(), at(1));
    assert_eq!(told(seen.decide(&vm, at(1))), []);
}

#[test]
fn what_has_started_or_has_no_date_begins_at_once() {
    for (event, due) in [
        (begun("R", "Reboot", &[ME]), 0), // a host that has failed
        (
            json!({"EventId": "R", "EventType": "Redeploy", "EventStatus": "Scheduled", "Resources": [ME], "NotBefore": "x"}),
            10,
        ),
        (scheduled("R", "Terminate", &[ME], -50), 0),
        (scheduled("R", "Terminate", &[ME], 300), 300),
    ] {
        story(
            &Events::default(),
            &[
                (0, Some(document(1, std::slice::from_ref(&event))), &[Begin("R", Drain, due)], None),
                (5, Some(document(2, &[event])), &[], None),
            ],
        );
    }
}

#[test]
fn a_freeze_is_over_when_its_event_is() {
    let policy = events(|it| it.freeze = Cordon);
    story(
        &policy,
        &[
            (0, Some(document(1, &[scheduled("F", "Freeze", &[ME], 900)])), &[], Some(300)),
            (300, None, &[Begin("F", Cordon, 900)], None),
            (900, Some(document(2, &[begun("F", "Freeze", &[ME])])), &[Change("F", Cordon, 900)], None),
            (905, Some(document(3, &[])), &[Over("F")], None),
        ],
    );
}

#[test]
fn a_planned_event_that_is_taken_back_or_put_off_leaves_the_node_at_work() {
    let reboot = |incarnation, due| Some(document(incarnation, &[scheduled("R", "Reboot", &[ME], due)]));
    story(
        &Events::default(),
        &[
            (0, reboot(1, 900), &[], Some(300)),
            // Taken back before anything began: nothing to undo.
            (200, Some(document(2, &[])), &[], None),
            (1000, reboot(3, 1300), &[Begin("R", Drain, 1300)], None),
            (1100, Some(document(4, &[])), &[Cancelled("R")], None),
            // Put off before it began: the newer word counts; after: earlier wins …
            (2000, reboot(5, 3000), &[], Some(2400)),
            (2100, reboot(6, 4000), &[], Some(3400)),
            (3400, None, &[Begin("R", Drain, 4000)], None),
            (3500, reboot(7, 4060), &[], None),
            (3501, reboot(8, 3900), &[Change("R", Drain, 3900)], None),
            // … but not to keep a node closed for a week.
            (3600, reboot(9, 600_000), &[Cancelled("R")], Some(599_400)),
            (599_400, None, &[Begin("R", Drain, 600_000)], None),
        ],
    );
}

#[test]
fn a_policy_that_changes_holds_for_what_has_not_begun() {
    let both = || {
        Some(document(1, &[scheduled("A", "Reboot", &[ME], 500), scheduled("B", "Redeploy", &[ME], 2000)]))
    };
    let mut seen = story(&Events::default(), &[(0, both(), &[Begin("A", Drain, 500)], Some(1400))]);
    let changed = events(|it| {
        (it.reboot, it.redeploy) = (Ignore, Cordon);
        it.lead_time = spotpool_crds::Duration::from_secs(60);
    });
    go_on(
        &mut seen,
        &changed,
        "boot-1",
        &[
            (10, None, &[], Some(1940)),
            (
                1940,
                Some(document(2, &[scheduled("B", "Redeploy", &[ME], 2000)])),
                &[Pass("A"), Change("B", Cordon, 2000)],
                Some(2000),
            ),
        ],
    );
}

#[test]
fn the_heavier_response_goes_first_then_the_earlier_time() {
    let policy = events(|it| (it.freeze, it.terminate) = (Cordon, Cordon));
    let freeze = || scheduled("A", "Freeze", &[ME], 100);
    let (reboot, redeploy) =
        (|| scheduled("B", "Reboot", &[ME], 400), || scheduled("C", "Redeploy", &[ME], 300));
    story(
        &policy,
        &[
            (0, Some(document(1, &[freeze()])), &[Begin("A", Cordon, 100)], None),
            (1, Some(document(2, &[freeze(), reboot()])), &[Change("B", Drain, 400)], None),
            (2, Some(document(3, &[freeze(), reboot(), redeploy()])), &[Change("C", Drain, 300)], None),
            // One that is taken back leaves the others in force.
            (3, Some(document(4, &[freeze(), reboot()])), &[Change("B", Drain, 400)], None),
            (4, Some(document(5, &[freeze()])), &[Change("A", Cordon, 100)], None),
            (5, Some(document(6, &[])), &[Cancelled("A")], None),
        ],
    );
}

#[test]
fn a_preempt_that_falls_upon_a_planned_drain_takes_over() {
    let (reboot, preempt) = (scheduled("R", "Reboot", &[ME], 400), scheduled("P", "Preempt", &[ME], 130));
    let mut seen = story(
        &Events::default(),
        &[
            (0, Some(document(1, std::slice::from_ref(&reboot))), &[Begin("R", Drain, 400)], None),
            (100, Some(document(2, &[reboot.clone(), preempt])), &[Change("P", Drain, 130)], None),
        ],
    );
    let notice = seen.notice().unwrap();
    assert_eq!((&notice.kind, notice.observed_at), (&Kind::Preempt, at(100)), "its clock is its own");
    assert!(notice.is_urgent(at(100)));
    // The Preempt is taken back, the reboot is not.
    go_on(
        &mut seen,
        &Events::default(),
        "boot-1",
        &[(110, Some(document(3, &[reboot])), &[Change("R", Drain, 400)], None)],
    );
    assert!(!seen.notice().unwrap().is_urgent(at(110)) && seen.notice().unwrap().is_urgent(at(341)));
}

#[test]
fn a_hint_is_passed_on_at_once_and_hurries_nobody() {
    let hint = |date: &str| json!({"EventId": "H", "EventType": "SpotRebalanceRecommendation", "EventStatus": "Advisory", "Resources": [ME], "NotBefore": date});
    for (date, due) in
        [("", 15 * MINUTE), ("2026-01-01T11:00:00Z", 15 * MINUTE), ("2026-01-01T12:20:00Z", 20 * MINUTE)]
    {
        let seen = story(
            &Events::default(),
            &[
                (0, Some(document(1, &[hint(date)])), &[Begin("H", Ignore, due)], None),
                (5000, None, &[], None),
                (5001, Some(document(2, &[])), &[Over("H")], None),
            ],
        );
        assert_eq!(seen.notice(), None);
    }
    // A Preempt that follows it, as it may.
    let seen = story(
        &Events::default(),
        &[
            (0, Some(document(1, &[hint("")])), &[Begin("H", Ignore, 900)], None),
            (
                60,
                Some(document(2, &[hint(""), scheduled("P", "Preempt", &[ME], 90)])),
                &[Change("P", Drain, 90)],
                None,
            ),
        ],
    );
    assert_eq!(seen.notice().unwrap().observed_at, at(60));
}

#[test]
fn an_event_that_was_acknowledged_and_is_gone_was_not_taken_back() {
    let policy = events(|it| it.acknowledge = true);
    let mut seen = story(
        &policy,
        &[(0, Some(document(1, &[scheduled("R", "Reboot", &[ME], 400)])), &[Begin("R", Drain, 400)], None)],
    );
    assert!(seen.notice().unwrap().acknowledge);
    seen.acknowledged("R");
    // It was so quick that Started was missed.
    go_on(&mut seen, &policy, "boot-1", &[(50, Some(document(2, &[])), &[Pass("R")], Some(110))]);
    go_on(&mut seen, &policy, "boot-2", &[(51, None, &[Over("R")], None)]);
}

#[test]
fn an_agent_that_starts_anew_goes_on_with_a_planned_event() {
    let written = EvictionNotice {
        event_id: "R".into(),
        event_type: "Reboot".into(),
        response: Cordon,
        ..super::written(Some(400), Phase::Noticed)
    };
    // What has begun goes on as it began, whatever the policy says now.
    let policy = events(|it| it.lead_time = spotpool_crds::Duration::from_secs(60));
    let mut seen = Seen::resuming(&written);
    go_on(
        &mut seen,
        &policy,
        "boot-1",
        &[
            (0, None, &[], None),
            (1, Some(document(7, &[scheduled("R", "Reboot", &[ME], 400)])), &[Cancelled("R")], Some(340)),
        ],
    );
    let policy = Events::default();
    let mut seen = Seen::resuming(&written);
    go_on(
        &mut seen,
        &policy,
        "boot-1",
        &[(1, Some(document(7, &[scheduled("R", "Reboot", &[ME], 400)])), &[Begin("R", Cordon, 400)], None)],
    );
}
