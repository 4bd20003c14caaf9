//! Documents as Azure sends them, one after another, and what is made of them.

use super::*;
use crate::document::parse;
use proptest::prelude::*;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, Phase, PodCounts, Source};

const ME: &str = "aks-spot-12345678-vmss_13";

fn identity() -> ProviderId {
    "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/aks-spot-12345678-vmss/virtualMachines/13"
        .parse()
        .unwrap()
}

/// Seconds after 12:00:00.
fn at(seconds: i64) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

/// A scheduled event with its NotBefore in seconds after 12:00:00.
fn scheduled(id: &str, kind: &str, vms: &[&str], not_before: i64) -> Value {
    json!({"EventId": id, "EventType": kind, "EventStatus": "Scheduled", "ResourceType": "VirtualMachine",
        "Resources": vms, "NotBefore": at(not_before).to_string(), "Description": "", "EventSource": "Platform",
        "DurationInSeconds": -1})
}

fn started(id: &str, vms: &[&str]) -> Value {
    json!({"EventId": id, "EventType": "Preempt", "EventStatus": "Started", "Resources": vms, "NotBefore": ""})
}

fn document(incarnation: i64, events: &[Value]) -> Document {
    parse(json!({"DocumentIncarnation": incarnation, "Events": events}).to_string().as_bytes()).unwrap()
}

fn notice(
    id: &str,
    observed: i64,
    not_before: Option<i64>,
    deadline: i64,
    doomed: &[(&str, Option<i64>, &str)],
) -> Notice {
    Notice {
        event_id: id.into(),
        observed_at: at(observed),
        not_before: not_before.map(at),
        started: not_before.is_none(),
        deadline: at(deadline),
        doomed: doomed
            .iter()
            .map(|(id, not_before, instances)| Doomed {
                event_id: (*id).into(),
                not_before: not_before.map(at),
                instances: instances.parse().unwrap(),
            })
            .collect(),
    }
}

fn cancel(id: &str) -> Decision {
    Decision::Cancel { event_id: id.into() }
}

fn pass(id: &str) -> Decision {
    Decision::Pass { event_id: id.into() }
}

/// Reads the documents in order, each at its second, and compares what is decided about each.
fn follow(mut seen: Seen, story: &[(i64, Document, Vec<Decision>)]) {
    for (second, document, wanted) in story {
        let decided = seen.read(document, &identity(), at(*second));
        assert_eq!(&decided, wanted, "at {second}");
        // Whatever a document says, saying it again changes nothing.
        assert_eq!(seen.read(document, &identity(), at(*second)), [], "again at {second}");
    }
}

#[test]
fn a_preemption_from_announcement_to_the_end() {
    let (soon, now) = (scheduled("A", "Preempt", &[ME], 30), started("A", &[ME]));
    let announced = notice("A", 0, Some(30), 30, &[("A", Some(30), "13")]);
    let due = notice("A", 0, None, 27, &[("A", None, "13")]);
    follow(
        Seen::default(),
        &[
            (-1, document(1, &[]), vec![]),
            (0, document(2, std::slice::from_ref(&soon)), vec![Decision::Begin(announced)]),
            (27, document(3, &[now]), vec![Decision::Change(due)]),
            (29, document(4, &[]), vec![pass("A")]),
            (31, document(5, &[]), vec![]),
        ],
    );
}

#[test]
fn an_event_that_goes_before_its_time_is_taken_back() {
    let begin = Decision::Begin(notice("A", 0, Some(30), 30, &[("A", Some(30), "13")]));
    let soon = || scheduled("A", "Preempt", &[ME], 30);
    follow(
        Seen::default(),
        &[
            (0, document(2, &[soon()]), vec![begin.clone()]),
            (10, document(3, &[]), vec![cancel("A")]),
            // … and announced again: a new notice.
            (
                20,
                document(4, &[soon()]),
                vec![Decision::Begin(notice("A", 20, Some(30), 30, &[("A", Some(30), "13")]))],
            ),
        ],
    );
    // A Started that was missed is no cancellation.
    follow(
        Seen::default(),
        &[(0, document(2, &[soon()]), vec![begin.clone()]), (30, document(4, &[]), vec![pass("A")])],
    );
    // Only a newer document can take anything back: not an older one of a service that starts over …
    follow(
        Seen::default(),
        &[
            (0, document(7, &[soon()]), vec![begin.clone()]),
            (1, document(7, &[]), vec![]),
            (2, document(1, &[]), vec![]),
            (3, document(1, &[soon()]), vec![]),
            (4, document(2, &[]), vec![cancel("A")]),
        ],
    );
    // … nor one in which an event cannot be read, or ours cannot.
    follow(
        Seen::default(),
        &[
            (0, document(1, &[soon()]), vec![begin]),
            (1, document(2, &[json!({"EventType": "Preempt"})]), vec![]),
            (2, document(3, &[json!(null)]), vec![]),
            (3, document(4, &[json!({"EventId": "A"})]), vec![]),
            (4, document(5, &[json!({"EventId": "A", "EventType": "Preempt", "Resources": 7})]), vec![]),
            (5, document(6, &[json!({"EventId": "B"})]), vec![cancel("A")]),
        ],
    );
}

#[test]
fn times_that_make_no_sense_are_read_carefully() {
    let doomed = |time: Option<i64>| [("A", time, "13")];
    for (event, wanted) in [
        // A clock that is behind, or an event met late: due now.
        (
            scheduled("A", "Preempt", &[ME], -3600),
            notice("A", 0, Some(-3600), 0, &[("A", Some(-3600), "13")]),
        ),
        // Announced for tomorrow: drained at once all the same.
        (
            scheduled("A", "Preempt", &[ME], 86_400),
            notice("A", 0, Some(86_400), 86_400, &[("A", Some(86_400), "13")]),
        ),
        // Met when it has begun.
        (started("A", &[ME]), notice("A", 0, None, 0, &doomed(None))),
    ] {
        follow(Seen::default(), &[(0, document(1, &[event]), vec![Decision::Begin(wanted)])]);
    }
    // No date, or one that cannot be read: soon, and the clock does not push it on.
    for date in [Value::Null, json!(""), json!("soon"), json!(17)] {
        let event = json!({"EventId": "A", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [ME], "NotBefore": date});
        let wanted = Notice { started: false, ..notice("A", 0, None, 10, &doomed(None)) };
        follow(
            Seen::default(),
            &[
                (0, document(1, std::slice::from_ref(&event)), vec![Decision::Begin(wanted)]),
                (5, document(2, &[event]), vec![]),
                (6, document(3, &[]), vec![cancel("A")]),
            ],
        );
    }
}

#[test]
fn earlier_wins() {
    let doomed = |time: i64| vec![("A", Some(time), "13")];
    follow(
        Seen::default(),
        &[
            (
                0,
                document(1, &[scheduled("A", "Preempt", &[ME], 30)]),
                vec![Decision::Begin(notice("A", 0, Some(30), 30, &doomed(30)))],
            ),
            (
                1,
                document(2, &[scheduled("A", "Preempt", &[ME], 20)]),
                vec![Decision::Change(notice("A", 0, Some(20), 20, &doomed(20)))],
            ),
            // Put off: what the operator is told follows, the drain does not.
            (
                2,
                document(3, &[scheduled("A", "Preempt", &[ME], 60)]),
                vec![Decision::Change(notice("A", 0, Some(20), 20, &doomed(60)))],
            ),
        ],
    );
}

#[test]
fn of_several_events_the_most_urgent_counts() {
    let both = [("A", Some(30), "13"), ("B", Some(10), "13")];
    follow(
        Seen::default(),
        &[
            (
                0,
                document(1, &[scheduled("A", "Preempt", &[ME], 30)]),
                vec![Decision::Begin(notice("A", 0, Some(30), 30, &both[..1]))],
            ),
            (
                1,
                document(2, &[scheduled("A", "Preempt", &[ME], 30), scheduled("B", "Preempt", &[ME], 10)]),
                vec![Decision::Change(notice("B", 0, Some(10), 10, &both))],
            ),
            // The sooner one is taken back: what is left is a notice of its own.
            (
                2,
                document(3, &[scheduled("A", "Preempt", &[ME], 30)]),
                vec![Decision::Change(notice("A", 2, Some(30), 30, &both[..1]))],
            ),
            (3, document(4, &[]), vec![cancel("A")]),
        ],
    );
}

#[test]
fn other_vms_and_other_events_are_told_and_left_alone() {
    let sibling = "AKS-SPOT-12345678-VMSS_40";
    let others =
        ["aks-spot-12345678-vmss_1", "aks-spot-12345678-vmss_130", "vmss_13", "aks-other-12345678-vmss_13"];
    let leave = |id: &str, kind| Decision::Leave { event_id: id.into(), kind };
    follow(
        Seen::default(),
        &[
            (0, document(1, &[scheduled("A", "Preempt", &others, 30)]), vec![]),
            (
                1,
                document(
                    2,
                    &[scheduled("F", "Freeze", &[ME], 900), scheduled("G", "Freeze", &[sibling], 900)],
                ),
                vec![leave("F", Kind::Freeze)],
            ),
            (
                2,
                document(
                    3,
                    &[
                        scheduled("F", "Freeze", &[ME], 900),
                        scheduled("S", "SpotRebalanceRecommendation", &[ME], 9),
                    ],
                ),
                vec![leave("S", Kind::Other("SpotRebalanceRecommendation".into()))],
            ),
            // A freeze before it delays no preemption.
            (
                3,
                document(
                    4,
                    &[
                        scheduled("F", "Freeze", &[ME], 5),
                        scheduled("A", "Preempt", &[others[0], sibling, ME], 30),
                    ],
                ),
                vec![Decision::Begin(notice("A", 3, Some(30), 30, &[("A", Some(30), "1,13,40")]))],
            ),
            (
                4,
                document(
                    5,
                    &[
                        scheduled("A", "Preempt", &[ME], 30),
                        scheduled("B", "Preempt", &[sibling, others[3]], 34),
                    ],
                ),
                vec![Decision::Change(notice(
                    "A",
                    3,
                    Some(30),
                    30,
                    &[("A", Some(30), "13"), ("B", Some(34), "40")],
                ))],
            ),
            (
                5,
                document(6, &[scheduled("A", "Preempt", &[ME], 30)]),
                vec![Decision::Change(notice("A", 3, Some(30), 30, &[("A", Some(30), "13")]))],
            ),
        ],
    );
}

fn written(not_before: Option<i64>, phase: Phase) -> EvictionNotice {
    EvictionNotice {
        by: Claimant::NodeAgent,
        event_id: "A".into(),
        event_type: "Preempt".into(),
        source: Source::Imds,
        response: spotpool_crds::spot_pool::EventResponse::Drain,
        observed_at: at(-5),
        not_before: not_before.map(at),
        deadline: at(not_before.unwrap_or(-1)),
        phase,
        pods: PodCounts::default(),
        cordoned: true,
        boot_id: "b".into(),
        traceparent: None,
        doomed: Vec::new(),
        unfinished: Vec::new(),
    }
}

#[test]
fn an_agent_that_starts_anew_goes_on_from_the_node() {
    let soon = [scheduled("A", "Preempt", &[ME], 30)];
    let resumed = Seen::resuming(&written(Some(30), Phase::Draining), false);
    let goes_on = Decision::Begin(notice("A", -5, Some(30), 30, &[("A", Some(30), "13")]));
    follow(resumed.clone(), &[(0, document(9, &soon), vec![goes_on])]);
    // Gone meanwhile: before its time it was taken back, after it it is simply over …
    follow(resumed.clone(), &[(0, document(9, &[]), vec![cancel("A")])]);
    follow(resumed, &[(40, document(9, &[]), vec![pass("A")])]);
    follow(Seen::resuming(&written(None, Phase::Draining), false), &[(0, document(9, &[]), vec![pass("A")])]);
    // … unless the node has booted since: it is back, and the marks come off.
    follow(
        Seen::resuming(&written(Some(-60), Phase::Drained), true),
        &[(0, document(9, &[]), vec![cancel("A")])],
    );
    // Another event since: a notice of its own, with its own time.
    let other = [scheduled("B", "Preempt", &[ME], 25)];
    follow(
        Seen::resuming(&written(Some(-600), Phase::Incomplete), false),
        &[(
            0,
            document(9, &other),
            vec![Decision::Begin(notice("B", 0, Some(25), 25, &[("B", Some(25), "13")]))],
        )],
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = prop::sample::select(vec!["A", "B", "C"]);
    let vm = prop::sample::select(vec![ME, "aks-spot-12345678-vmss_40", "aks-other-12345678-vmss_13", ""]);
    let kind = prop::sample::select(vec![Kind::Preempt, Kind::Freeze, Kind::Other("New".into())]);
    (id, kind, any::<bool>(), prop::collection::vec(vm, 0..3), prop::option::of(-50i64..100)).prop_map(
        |(id, kind, started, vms, not_before)| Event {
            id: id.into(),
            kind,
            started,
            resources: vms.into_iter().map(str::to_owned).collect(),
            not_before: not_before.filter(|_| !started).map(at),
        },
    )
}

fn any_document() -> impl Strategy<Value = Document> {
    (prop::option::of(0i64..10), prop::collection::vec(any_event(), 0..5), any::<bool>()).prop_map(
        |(incarnation, events, has_nameless)| Document {
            incarnation,
            events,
            has_nameless,
            ..Document::default()
        },
    )
}

proptest! {
    #[test]
    fn a_document_that_repeats_changes_nothing(documents in prop::collection::vec(any_document(), 1..6), later in 0i64..100) {
        let mut seen = Seen::default();
        for (second, document) in documents.iter().enumerate() {
            seen.read(document, &identity(), at(second as i64));
        }
        let before = seen.clone();
        let decisions = seen.read(&documents[documents.len() - 1], &identity(), at(documents.len() as i64 - 1));
        prop_assert_eq!(decisions, vec![]);
        prop_assert_eq!(&seen, &before);
        // Nor does time alone move a deadline.
        let deadline = |seen: &Seen| seen.current.as_ref().map(|current| current.notice.deadline);
        seen.read(&documents[documents.len() - 1], &identity(), at(later + 6));
        prop_assert!(deadline(&seen) <= deadline(&before));
    }

    #[test]
    fn the_order_of_events_is_irrelevant(
        first in any_document(), second in any_document(), shuffled in Just(()).prop_perturb(|(), rng| rng),
    ) {
        let mut rng = shuffled;
        let mut turned = second.clone();
        for i in (1..turned.events.len()).rev() {
            turned.events.swap(i, rng.random_range(0..=i));
        }
        let mut one = Seen::default();
        one.read(&first, &identity(), at(0));
        let mut other = one.clone();
        prop_assert_eq!(one.read(&second, &identity(), at(1)), other.read(&turned, &identity(), at(1)));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn nothing_begins_without_a_preempt_of_this_vm(documents in prop::collection::vec(any_document(), 1..6)) {
        let mut seen = Seen::default();
        for (second, document) in documents.iter().enumerate() {
            let names_us = document.events.iter().any(|event| event.kind == Kind::Preempt && event.resources.iter().any(|vm| vm == ME));
            let decisions = seen.read(document, &identity(), at(second as i64));
            let begins = decisions.iter().any(|decision| matches!(decision, Decision::Begin(_) | Decision::Change(_)));
            prop_assert!(names_us || !begins);
        }
    }
}
