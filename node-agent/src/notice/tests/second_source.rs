//! The node problem detector speaks while the metadata service is silent.

use super::*;

fn claim(id: &str, kind: Kind, since: i64, due: i64) -> Claim {
    Claim { id: id.into(), kind, started: false, not_before: Some(at(due)), since: at(since) }
}

fn heard(
    seen: &mut Seen,
    claims: &[Claim],
    last_poll: i64,
    second: i64,
) -> (Vec<Decision>, Option<Timestamp>) {
    let policy = Events::default();
    let vm = Vm { policy: &policy, boot_id: "boot-1", claims, hearing: hearing(last_poll) };
    let (decisions, look_again) = seen.decide(&vm, at(second));
    let acts = decisions.into_iter().filter(|decision| !matches!(decision, Decision::Tell { .. }));
    (acts.collect(), look_again)
}

fn by_detector(id: &str, observed: i64, not_before: i64) -> Notice {
    Notice {
        source: Source::NodeProblemDetector,
        resources: BTreeSet::new(),
        ..notice(id, observed, Some(not_before), not_before, &[])
    }
}

#[test]
fn the_detector_is_believed_once_the_metadata_service_is_silent() {
    let claims = [claim("P", Kind::Preempt, 0, 30)];
    let mut seen = Seen::default();
    seen.read(&document(5, &[]), &identity(), at(-1));
    // It answered a second ago and will say so itself.
    assert_eq!(heard(&mut seen, &claims, -1, 0), (vec![], Some(at(3))));
    // It does not: four seconds of silence are enough.
    assert_eq!(
        heard(&mut seen, &claims, -1, 3),
        (vec![Decision::Begin(by_detector("P", 3, 30))], Some(at(4)))
    );
    assert_eq!(heard(&mut seen, &claims, -1, 4), (vec![], Some(at(5))));
    // It is back and says the same: the same event, and now from the source itself.
    seen.read(&document(6, &[scheduled("P", "Preempt", &[ME], 30)]), &identity(), at(5));
    let confirmed = notice("P", 3, Some(30), 30, &[("P", Some(30), "13")]);
    assert_eq!(heard(&mut seen, &claims, 5, 5), (vec![Decision::Change(confirmed)], None));
}

#[test]
fn the_metadata_service_decides_when_it_is_back() {
    let claims = [claim("P", Kind::Preempt, 0, 60)];
    let mut noticed = Seen::default();
    noticed.read(&document(5, &[]), &identity(), at(-100));
    assert_eq!(heard(&mut noticed, &claims, -100, 0).0, [Decision::Begin(by_detector("P", 0, 60))]);
    // With a newer document that does not name it …
    let mut seen = noticed.clone();
    seen.read(&document(6, &[]), &identity(), at(10));
    assert_eq!(heard(&mut seen, &claims, 10, 10), (vec![cancel("P")], None));
    // … or with the very one that it had before, which nobody is told of.
    assert_eq!(heard(&mut noticed, &claims, 10, 11), (vec![cancel("P")], None));
    // What the detector goes on to say of it is no news, however silent the other is by then.
    for seen in [&mut seen, &mut noticed] {
        assert_eq!(heard(seen, &claims, 10, 40), (vec![], None));
    }
}

#[test]
fn the_detector_itself_may_take_it_back() {
    let claims = [claim("P", Kind::Preempt, 0, 60)];
    let mut seen = Seen::default();
    assert_eq!(heard(&mut seen, &claims, -100, 0).0, [Decision::Begin(by_detector("P", 0, 60))]);
    let mut due = seen.clone();
    assert_eq!(heard(&mut seen, &[], -100, 20).0, [cancel("P")]);
    // After its time it is merely over, and the VM may go any moment.
    assert_eq!(heard(&mut due, &[], -100, 70), (vec![pass("P")], Some(at(70 + 10 * MINUTE))));
    assert_eq!(heard(&mut due, &[], -100, 70 + 10 * MINUTE), (vec![over("P")], None));
}

#[test]
fn a_stale_condition_drains_nothing_while_the_metadata_service_answers() {
    let claims = [claim("P", Kind::Preempt, 0, 30)];
    let mut seen = Seen::default();
    seen.read(&document(5, &[scheduled("P", "Preempt", &[ME], 30)]), &identity(), at(1));
    assert!(matches!(heard(&mut seen, &claims, 1, 1).0[..], [Decision::Begin(_)]));
    seen.read(&document(6, &[]), &identity(), at(2));
    assert_eq!(heard(&mut seen, &claims, 2, 2), (vec![cancel("P")], None));
    // The same in the next agent, which hears the metadata service before it would believe anybody else.
    let mut next = Seen::default();
    assert_eq!(heard(&mut next, &claims, 20, 20), (vec![], None));
    // And should it fall silent at once: the event was over.
    assert_eq!(heard(&mut seen, &claims, 2, 9).0, []);
}

#[test]
fn an_agent_that_starts_anew_while_the_metadata_service_is_silent_goes_on_by_the_detectors_word() {
    let noticed = written(Some(30), Phase::Draining);
    let claims = [claim("A", Kind::Preempt, -5, 30)];
    let mut seen = Seen::resuming(&noticed);
    let policy = Events::default();
    let just_begun = Hearing { heard_at: None, since: at(0), ..hearing(0) };
    let vm = |second| {
        (Vm { policy: &policy, boot_id: "boot-1", claims: &claims, hearing: just_begun }, at(second))
    };
    let (of, now) = vm(1);
    assert_eq!(seen.decide(&of, now), (vec![], Some(at(4))));
    let (of, now) = vm(4);
    let (decisions, _) = seen.decide(&of, now);
    let goes_on = |it: &Decision| matches!(it, Decision::Begin(notice) if notice.event_id == "A" && notice.observed_at == at(-5) && notice.source == Source::Imds);
    assert!(decisions.iter().any(goes_on), "{decisions:?}");
    // Without a word from anybody it waits, and keeps the node as it is.
    let mut seen = Seen::resuming(&noticed);
    let of = Vm { policy: &policy, boot_id: "boot-1", claims: &[], hearing: just_begun };
    assert_eq!(seen.decide(&of, at(500)), (vec![], None));
    assert!(seen.notice().is_some());
}

#[test]
fn several_of_its_events_are_told_apart() {
    let claims = [claim("R", Kind::Reboot, 0, 900), claim("P", Kind::Preempt, 0, 30)];
    let mut seen = Seen::default();
    assert_eq!(
        heard(&mut seen, &claims, -100, 0),
        (vec![Decision::Begin(by_detector("P", 0, 30))], Some(at(1)))
    );
    let (decisions, _) = heard(&mut seen, &claims[..1], -100, 300);
    // The Preempt is due and gone, the VM may go any moment; the reboot is next if it does not.
    assert_eq!(decisions, [pass("P")]);
    let (decisions, _) = heard(&mut seen, &claims[..1], -100, 300 + 10 * MINUTE);
    assert!(matches!(&decisions[..], [Decision::Change(notice)] if notice.event_id == "R"), "{decisions:?}");
}

proptest! {
    #[test]
    fn nothing_that_the_detector_says_counts_while_the_metadata_service_is_heard(
        since in -100i64..100, due in -100i64..1000, second in 0i64..100, preempt in any::<bool>(),
    ) {
        let kind = if preempt { Kind::Preempt } else { Kind::Reboot };
        let mut seen = Seen::default();
        seen.read(&document(1, &[]), &identity(), at(0));
        let (decisions, _) = heard(&mut seen, &[claim("P", kind, since.min(second), due)], second, second);
        prop_assert_eq!(decisions, vec![]);
    }
}
