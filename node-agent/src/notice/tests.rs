//! Documents as Azure sends them, one after another, and what is made of them.

use super::*;
use crate::document::parse;
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::{Value, json};
use spotpool_crds::eviction::{Claimant, PodCounts};

mod planned;
mod second_source;

const ME: &str = "aks-spot-12345678-vmss_13";
const MINUTE: i64 = 60;

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
    begun(id, "Preempt", vms)
}

fn begun(id: &str, kind: &str, vms: &[&str]) -> Value {
    json!({"EventId": id, "EventType": kind, "EventStatus": "Started", "Resources": vms, "NotBefore": ""})
}

fn document(incarnation: i64, events: &[Value]) -> Document {
    parse(json!({"DocumentIncarnation": incarnation, "Events": events}).to_string().as_bytes()).unwrap()
}

/// A Preempt of this VM.
fn notice(
    id: &str,
    observed: i64,
    not_before: Option<i64>,
    deadline: i64,
    doomed: &[(&str, Option<i64>, &str)],
) -> Notice {
    Notice {
        event_id: id.into(),
        kind: Kind::Preempt,
        source: Source::Imds,
        response: EventResponse::Drain,
        acknowledge: false,
        observed_at: at(observed),
        not_before: not_before.map(at),
        started: not_before.is_none(),
        deadline: at(deadline),
        boot_id: "boot-1".into(),
        resources: [ME.to_owned()].into(),
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
    Decision::End { event_id: id.into(), phase: Phase::Cancelled }
}

fn over(id: &str) -> Decision {
    Decision::End { event_id: id.into(), phase: Phase::Over }
}

fn pass(id: &str) -> Decision {
    Decision::Pass { event_id: id.into() }
}

fn hearing(heard: i64) -> Hearing {
    Hearing {
        heard_at: Some(at(heard)),
        since: at(-3600),
        patience: Duration::from_secs(4),
        booted_at: Some(at(-7200)),
    }
}

/// What is decided at `second`, the last good poll being of that second, but for what is merely told.
fn decide(seen: &mut Seen, policy: &Events, boot: &str, second: i64) -> (Vec<Decision>, Option<Timestamp>) {
    let vm = Vm { policy, boot_id: boot, claims: &[], hearing: hearing(second) };
    let (decisions, look_again) = seen.decide(&vm, at(second));
    let acts = decisions.into_iter().filter(|decision| !matches!(decision, Decision::Tell { .. }));
    (acts.collect(), look_again)
}

/// Reads the documents in order, each at its second, and compares what is decided about each.
fn follow(mut seen: Seen, story: &[(i64, Document, Vec<Decision>)]) {
    let policy = Events::default();
    for (second, document, wanted) in story {
        seen.read(document, &identity(), at(*second));
        assert_eq!(&decide(&mut seen, &policy, "boot-1", *second).0, wanted, "at {second}");
        // Whatever a document says, saying it again changes nothing.
        seen.read(document, &identity(), at(*second));
        assert_eq!(decide(&mut seen, &policy, "boot-1", *second).0, [], "again at {second}");
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
            // The VM should be gone. A node that plainly lives on must not stay closed, and paid for, for ever.
            (29 + 10 * MINUTE - 1, document(5, &[]), vec![]),
            (29 + 10 * MINUTE, document(5, &[]), vec![over("A")]),
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
                vec![Decision::Change(notice("A", 0, Some(30), 30, &both[..1]))],
            ),
            (3, document(4, &[]), vec![cancel("A")]),
        ],
    );
}

#[test]
fn other_vms_and_events_without_a_response_are_left_alone() {
    let sibling = "AKS-SPOT-12345678-VMSS_40";
    let others =
        ["aks-spot-12345678-vmss_1", "aks-spot-12345678-vmss_130", "vmss_13", "aks-other-12345678-vmss_13"];
    let preempt = |doomed: &[(&str, Option<i64>, &str)], vms: &[&str]| Notice {
        resources: vms.iter().map(|vm| (*vm).to_owned()).collect(),
        ..notice("A", 3, Some(30), 30, doomed)
    };
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
                vec![],
            ),
            (
                2,
                document(3, &[scheduled("F", "Freeze", &[ME], 900), scheduled("T", "Teleport", &[ME], 9)]),
                vec![],
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
                vec![Decision::Begin(preempt(&[("A", Some(30), "1,13,40")], &[others[0], sibling, ME]))],
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
                vec![Decision::Change(preempt(&[("A", Some(30), "13"), ("B", Some(34), "40")], &[ME]))],
            ),
            (
                5,
                document(6, &[scheduled("A", "Preempt", &[ME], 30)]),
                vec![Decision::Change(preempt(&[("A", Some(30), "13")], &[ME]))],
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
        boot_id: "boot-1".into(),
        traceparent: None,
        doomed: Vec::new(),
        unfinished: Vec::new(),
    }
}

#[test]
fn an_agent_that_starts_anew_goes_on_from_the_node() {
    let soon = [scheduled("A", "Preempt", &[ME], 30)];
    let resumed = Seen::resuming(&written(Some(30), Phase::Draining));
    let goes_on = Decision::Begin(notice("A", -5, Some(30), 30, &[("A", Some(30), "13")]));
    follow(resumed.clone(), &[(0, document(9, &soon), vec![goes_on])]);
    // Gone meanwhile: before its time it was taken back, after it it is simply over …
    follow(resumed.clone(), &[(0, document(9, &[]), vec![cancel("A")])]);
    follow(resumed, &[(40, document(9, &[]), vec![pass("A")])]);
    let due = Seen::resuming(&written(None, Phase::Draining));
    follow(
        due,
        &[
            (0, document(9, &[]), vec![pass("A")]),
            // … and its clock starts again with the agent.
            (10 * MINUTE, document(9, &[]), vec![over("A")]),
        ],
    );
    // Another event since: a notice of its own, with its own time.
    let other = [scheduled("B", "Preempt", &[ME], 25)];
    follow(
        Seen::resuming(&written(Some(-600), Phase::Incomplete)),
        &[(
            0,
            document(9, &other),
            vec![pass("A"), Decision::Begin(notice("B", 0, Some(25), 25, &[("B", Some(25), "13")]))],
        )],
    );
}

#[test]
fn a_node_that_has_booted_since_is_given_back_once_no_document_names_it() {
    let policy = Events::default();
    let mut seen = Seen::resuming(&written(Some(-60), Phase::Drained));
    assert_eq!(decide(&mut seen, &policy, "boot-2", 0).0, [], "nobody has said yet that it is gone");
    let mut still = seen.clone();
    still.read(&document(9, &[started("A", &[ME])]), &identity(), at(1));
    let (decisions, _) = decide(&mut still, &policy, "boot-2", 1);
    assert!(
        matches!(&decisions[..], [Decision::Begin(notice)] if notice.boot_id == "boot-1"),
        "{decisions:?}"
    );
    still.read(&document(10, &[]), &identity(), at(2));
    assert_eq!(decide(&mut still, &policy, "boot-2", 2).0, [over("A")]);

    seen.read(&document(9, &[]), &identity(), at(1));
    assert_eq!(decide(&mut seen, &policy, "boot-2", 1).0, [over("A")]);
}

#[test]
fn a_vm_that_lives_on_is_not_believed_to_be_spared_while_the_metadata_service_is_silent() {
    let policy = Events::default();
    let mut seen = Seen::default();
    seen.read(&document(1, &[started("A", &[ME])]), &identity(), at(0));
    decide(&mut seen, &policy, "boot-1", 0);
    seen.read(&document(2, &[]), &identity(), at(1));
    let vm = Vm { policy: &policy, boot_id: "boot-1", claims: &[], hearing: hearing(1) };
    let (decisions, look_again) = seen.decide(&vm, at(1));
    assert_eq!((decisions, look_again), (vec![pass("A")], Some(at(1 + 10 * MINUTE))));
    let (decisions, look_again) = seen.decide(&vm, at(60 * MINUTE));
    assert_eq!(
        (decisions, look_again),
        (vec![], Some(at(60 * MINUTE + 1))),
        "the last document is an hour old"
    );
    assert_eq!(decide(&mut seen, &policy, "boot-1", 60 * MINUTE + 1).0, [over("A")]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = prop::sample::select(vec!["A", "B", "C"]);
    let vm = prop::sample::select(vec![ME, "aks-spot-12345678-vmss_40", "aks-other-12345678-vmss_13", ""]);
    let kind = prop::sample::select(vec![
        Kind::Preempt,
        Kind::Freeze,
        Kind::Reboot,
        Kind::Rebalance,
        Kind::Other("New".into()),
    ]);
    (id, kind, any::<bool>(), prop::collection::vec(vm, 0..3), prop::option::of(-50i64..1_000)).prop_map(
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

fn any_response() -> impl Strategy<Value = EventResponse> {
    prop::sample::select(vec![EventResponse::Ignore, EventResponse::Cordon, EventResponse::Drain])
}

fn any_policy() -> impl Strategy<Value = Events> {
    (any_response(), any_response(), any_response(), any_response(), 0u64..900, any::<bool>()).prop_map(
        |(preempt, freeze, reboot, rebalance, lead, acknowledge)| Events {
            preempt,
            freeze,
            reboot,
            rebalance,
            lead_time: spotpool_crds::Duration::from_secs(lead),
            acknowledge,
            ..Events::default()
        },
    )
}

/// Reads and decides, document after document, so many seconds apart.
fn tell(seen: &mut Seen, policy: &Events, documents: &[Document], apart: i64) -> Vec<Vec<Decision>> {
    let all = documents.iter().enumerate().map(|(place, document)| {
        let second = place as i64 * apart;
        seen.read(document, &identity(), at(second));
        decide(seen, policy, "boot-1", second).0
    });
    all.collect()
}

proptest! {
    #[test]
    fn a_document_that_repeats_changes_nothing(
        documents in prop::collection::vec(any_document(), 1..6), policy in any_policy(), apart in 0i64..400,
    ) {
        let mut seen = Seen::default();
        tell(&mut seen, &policy, &documents, apart);
        let before = seen.clone();
        let last = (documents.len() - 1) as i64 * apart;
        seen.read(&documents[documents.len() - 1], &identity(), at(last));
        prop_assert_eq!(decide(&mut seen, &policy, "boot-1", last).0, vec![]);
        prop_assert_eq!(&seen, &before);
    }

    #[test]
    fn the_order_of_events_is_irrelevant(
        first in any_document(), second in any_document(), policy in any_policy(),
        shuffled in Just(()).prop_perturb(|(), rng| rng),
    ) {
        let mut rng = shuffled;
        let mut turned = second.clone();
        for i in (1..turned.events.len()).rev() {
            turned.events.swap(i, rng.random_range(0..=i));
        }
        let (mut one, mut other) = (Seen::default(), Seen::default());
        let decided = tell(&mut one, &policy, &[first.clone(), second], 1);
        prop_assert_eq!(decided, tell(&mut other, &policy, &[first, turned], 1));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn a_deadline_only_ever_comes_nearer_while_its_event_is_acted_upon(
        documents in prop::collection::vec(any_document(), 1..8), policy in any_policy(), apart in 0i64..400,
    ) {
        let mut seen = Seen::default();
        let mut last: Option<Notice> = None;
        for decision in tell(&mut seen, &policy, &documents, apart).into_iter().flatten() {
            match decision {
                Decision::Begin(notice) => last = Some(notice),
                Decision::Change(notice) => {
                    let before = last.replace(notice.clone()).expect("a change follows a beginning");
                    // The same one, and not one that went and came again.
                    let is_same = before.event_id == notice.event_id && notice.observed_at <= before.observed_at;
                    prop_assert!(!is_same || notice.deadline <= before.deadline, "{:?} {:?}", before, notice);
                }
                Decision::End { event_id, .. } => {
                    prop_assert_eq!(last.take().map(|last| last.event_id), Some(event_id));
                }
                Decision::Pass { .. } | Decision::Tell { .. } => {}
            }
        }
    }

    #[test]
    fn nothing_begins_without_an_event_of_this_vm_and_what_begins_is_as_the_policy_says(
        documents in prop::collection::vec(any_document(), 1..6), policy in any_policy(), apart in 0i64..400,
    ) {
        let mut seen = Seen::default();
        for (place, document) in documents.iter().enumerate() {
            let second = place as i64 * apart;
            let names_us = document.events.iter().any(|event| event.resources.iter().any(|vm| vm == ME));
            seen.read(document, &identity(), at(second));
            for decision in decide(&mut seen, &policy, "boot-1", second).0 {
                let Decision::Begin(notice) = decision else { continue };
                prop_assert!(names_us || place > 0);
                prop_assert_eq!(notice.response, response(&policy, &notice.kind));
                prop_assert!(!matches!(notice.kind, Kind::Other(_)));
                prop_assert!(!notice.kind.is_planned() || notice.response != EventResponse::Ignore);
                // Neither a Preempt nor a hint is ever acknowledged, nor anything that nobody drains for.
                let may = policy.acknowledge && notice.kind.is_planned() && notice.response == EventResponse::Drain;
                prop_assert_eq!(notice.acknowledge, may);
                if notice.kind.is_planned() && let Some(not_before) = notice.not_before {
                    let lead: Duration = policy.lead_time.into();
                    prop_assert!(later(at(second), lead) >= not_before, "not before it is time");
                }
            }
        }
    }

    #[test]
    fn a_document_that_is_not_whole_gives_no_node_back(
        known in any_document(), broken in any_document(), policy in any_policy(), older in any::<bool>(),
    ) {
        let mut seen = Seen::default();
        let known = Document { incarnation: Some(5), ..known };
        let broken = Document {
            incarnation: Some(if older { 4 } else { 6 }),
            has_nameless: !older,
            events: Vec::new(),
            ..broken
        };
        let decided = tell(&mut seen, &policy, &[known, broken], 1).pop().unwrap();
        prop_assert!(!decided.iter().any(|it| matches!(it, Decision::End { .. } | Decision::Pass { .. })), "{:?}", decided);
    }

    #[test]
    fn a_preempt_goes_before_anything(
        documents in prop::collection::vec(any_document(), 1..6), policy in any_policy(), apart in 0i64..400,
    ) {
        let mut seen = Seen::default();
        tell(&mut seen, &policy, &documents, apart);
        let last = &documents[documents.len() - 1];
        let is_preempted = last.events.iter().any(|event| {
            event.kind == Kind::Preempt && event.resources.iter().any(|vm| vm == ME)
        });
        prop_assert!(!is_preempted || seen.notice().is_some_and(|notice| notice.kind == Kind::Preempt));
    }
}
