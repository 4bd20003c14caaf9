//! Whatever documents come one after another, what is decided about them keeps these promises:
//!
//! - A Preempt of this VM that stands in a document is never overlooked.
//! - A node under a Preempt is given back only after a whole, newer document that does not name the event any more.
//! - The deadline of a Preempt never moves away while documents name it.
//! - Begin, Change and End come in this order, and saying the same again decides nothing.
//! - The order of events in a document is irrelevant.
//!
//! An input is bytes for the policy, then documents with a zero byte between them; the first byte of each says how much
//! time has passed.
#![no_main]

use std::time::Duration;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use spotpool_crds::ProviderId;
use spotpool_crds::eviction::Phase;
use spotpool_crds::spot_pool::{EventResponse, Events};
use spotpool_node_agent::document::{self, Document, Event, Kind};
use spotpool_node_agent::notice::{Decision, Notice, Seen, Vm};
use spotpool_node_agent::npd::Hearing;

const VM: &str = "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/\
    aks-spot-12345678-vmss/virtualMachines/7";
const NAME: &str = "aks-spot-12345678-vmss_7";
const BEGIN: i64 = 1_660_064_400; // 2022-08-09T17:00:00Z, somewhat before the dates of the corpus
const STEPS: [u64; 8] = [0, 1, 2, 5, 30, 300, 900, 86_400];
const MOST_DOCUMENTS: usize = 12;

fuzz_target!(|input: &[u8]| {
    let Some((&[policy, acknowledge], documents)) = input.split_first_chunk::<2>() else { return };
    let policy = policy_of(policy, acknowledge);
    let identity: ProviderId = VM.parse().expect("an id");
    let mut now = Timestamp::from_second(BEGIN).expect("a time");
    let listens_since = now;
    let mut seen = Seen::default();
    let mut begun: Option<Notice> = None;
    let (mut world, mut has_lapsed) = (World::default(), false);
    for step in documents.split(|byte| *byte == 0).take(MOST_DOCUMENTS) {
        let Some((&pause, body)) = step.split_first() else { continue };
        now += Duration::from_secs(STEPS[usize::from(pause & 7)]);
        let hearing = Hearing {
            heard_at: Some(now),
            since: listens_since,
            patience: Duration::from_secs(10),
            booted_at: None,
        };
        let vm = Vm { policy: &policy, boot_id: "boot", claims: &[], hearing };
        // One that cannot be read is not given to the notice at all.
        if let Ok(document) = document::parse(body) {
            let mut backwards = seen.clone();
            let reversed =
                Document { events: document.events.iter().rev().cloned().collect(), ..document.clone() };
            backwards.read(&reversed, &identity, now);
            seen.read(&document, &identity, now);
            assert_eq!(
                backwards.clone().decide(&vm, now),
                seen.clone().decide(&vm, now),
                "the order matters"
            );
            world.read(&document);
        }
        let (decisions, look_again) = seen.decide(&vm, now);
        assert!(look_again.is_none_or(|time| time >= now), "to be looked at in the past");
        for decision in decisions {
            match decision {
                Decision::Begin(notice) => {
                    assert!(begun.is_none(), "begun twice: {begun:?}, {notice:?}");
                    begun = Some(notice);
                }
                Decision::Change(notice) => {
                    let last = begun.replace(notice.clone()).expect("begun before it changes");
                    let is_same = last.event_id == notice.event_id && !has_lapsed;
                    if is_same && last.kind == Kind::Preempt && notice.kind == Kind::Preempt {
                        assert!(notice.deadline <= last.deadline, "from {last:?} to {notice:?}");
                    }
                    has_lapsed = false;
                    if last.kind == Kind::Preempt && notice.kind != Kind::Preempt {
                        assert!(!world.names(&last.event_id), "it gave way to less");
                    }
                }
                Decision::End { event_id, phase } => {
                    let last = begun.take().expect("begun before it ends");
                    assert_eq!(last.event_id, event_id);
                    assert!(matches!(phase, Phase::Cancelled | Phase::Over));
                    if last.kind == Kind::Preempt {
                        assert!(!world.names(&event_id), "given back under {last:?}");
                    }
                }
                Decision::Tell { .. } | Decision::Pass { .. } => {}
            }
        }
        // One that was gone and comes again is another event, whatever its id.
        has_lapsed |= begun.as_ref().is_some_and(|notice| !world.names(&notice.event_id));
        assert_eq!(seen.notice().is_some(), begun.is_some());
        if world.in_force.iter().any(|event| is_preempt(event)) {
            let notice = seen.notice().expect("a Preempt was overlooked");
            assert_eq!(notice.kind, Kind::Preempt, "less was taken for more urgent");
        }
        // All is said.
        let (again, _) = seen.decide(&vm, now);
        assert!(again.is_empty(), "said again: {again:?}");
    }
});

/// Any policy, except that Preempts are drained for: what else there is to promise hangs on that.
fn policy_of(responses: u8, rest: u8) -> Events {
    let of = |bits: u8| match (responses >> bits) & 3 {
        0 => EventResponse::Ignore,
        1 => EventResponse::Cordon,
        _ => EventResponse::Drain,
    };
    Events {
        freeze: of(0),
        reboot: of(2),
        redeploy: of(4),
        terminate: of(6),
        rebalance: if rest & 2 == 0 { EventResponse::Ignore } else { EventResponse::Cordon },
        lead_time: Duration::from_secs(u64::from(rest) * 60).into(),
        acknowledge: rest & 1 == 1,
        ..Events::default()
    }
}

fn is_preempt(event: &Event) -> bool {
    event.kind == Kind::Preempt && event.resources.iter().any(|name| name.eq_ignore_ascii_case(NAME))
}

/// What documents have said, kept in the plainest way.
#[derive(Default)]
struct World {
    incarnation: Option<i64>,
    /// Events that stand in the last document, or stood in an earlier one and have not been seen to go.
    in_force: Vec<Event>,
}

impl World {
    fn read(&mut self, document: &Document) {
        let is_newer = match (document.incarnation, self.incarnation) {
            (this, Some(last)) => this.is_some_and(|this| this > last),
            (_, None) => true,
        };
        self.incarnation = document.incarnation.or(self.incarnation);
        if is_newer && !document.has_nameless {
            // An event that cannot be read is not gone.
            let stands = |known: &Event| {
                document.events.iter().any(|it| it.id == known.id && (it.resources.is_empty() || is_ours(it)))
            };
            self.in_force.retain(stands);
        }
        for event in document.events.iter().filter(|event| is_ours(event)) {
            self.in_force.retain(|known| known.id != event.id || is_preempt(known));
            self.in_force.push(event.clone());
        }
    }

    /// Whether a Preempt of this id is, as far as anybody knows, still coming.
    fn names(&self, id: &str) -> bool {
        self.in_force.iter().any(|event| event.id == id && is_preempt(event))
    }
}

fn is_ours(event: &Event) -> bool {
    event.resources.iter().any(|name| name.eq_ignore_ascii_case(NAME))
}
