//! Whatever the metadata service answers, reading it does not panic, keeps texts short, and no event hides another.
//!
//! An input is one document.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use spotpool_node_agent::document::{self, Document, Kind};

fuzz_target!(|body: &[u8]| {
    let Ok(document) = document::parse(body) else { return };
    texts_are_short(&document);
    // Whatever it holds, a Preempt beside it is read.
    let Ok(mut beside) = serde_json::from_slice::<Value>(body) else { return };
    let Some(events) = beside["Events"].as_array_mut() else { return };
    events.insert(
        events.len() / 2,
        json!({"EventId": "G", "EventType": "Preempt", "EventStatus": "Scheduled",
        "Resources": ["vm_1"], "NotBefore": "Tue, 09 Aug 2022 17:07:32 GMT"}),
    );
    let beside = document::parse(beside.to_string().as_bytes()).expect("one more event makes it no worse");
    let preempt = beside.events.iter().find(|event| event.id == "G" && event.kind == Kind::Preempt);
    let preempt = preempt.expect("it is read");
    assert!(preempt.resources == ["vm_1"] && preempt.not_before.is_some());
});

/// What is kept of foreign texts goes into logs and annotations.
fn texts_are_short(document: &Document) {
    for event in &document.events {
        assert!(event.id.chars().count() <= 200 && !event.id.chars().any(char::is_control));
        assert!(event.kind.to_string().chars().count() <= 200);
    }
    for oddity in &document.oddities {
        assert!(oddity.to_string().len() <= 1000);
    }
}
