//! Drills as a black box: every field of an EvictionDrill, as its schema has it, is changed and changed back, and given what nobody
//! can mean.
//!
//! `SPOTPOOL_SEED=17` replays a sample, `SPOTPOOL_TRANSITIONS=all` takes every transition.

use std::collections::BTreeSet;

use kube::CustomResourceExt;
use serde_json::{Value, json};
use spotpool_crds::drill::DrillPhase;
use spotpool_crds::{EvictionDrill, EvictionDrillStatus};
use spotpool_e2e::{OperatorOptions, Stage, asked, eventually, run};

use crate::schema::{self, Field, Known, fields, nonsense, shuffled, with};
use crate::{EVICTIONS, drill, drill_is, is_open, ordered, whole, world};

/// Transitions in CI.
const SAMPLE: usize = 10;

/// What is not in the schema.
const KNOWN: Known = Known {
    by_path: &[
        ("spotPool", ["other", "p"]),
        ("agentPools[]", ["elsewhere", "nowhere"]),
        ("zones[]", ["nowhere-1", "nowhere-2"]),
        ("namespaces[]", ["a", "b"]),
        ("matchLabels{}", ["a", "b"]),
        ("matchExpressions[].key", ["team", "stage"]),
        ("matchExpressions[].operator", ["In", "NotIn"]),
        ("matchExpressions[].values[]", ["a", "b"]),
        // Not while one waits.
        ("schedule.cron", ["30 5 29 2 *", "31 5 29 2 *"]),
    ],
    identities: &[],
    needed: &["amount.count", "amount.percent", "schedule"],
    together: &[("amount.all", "count", Value::Null), ("method", "notice", Value::Null)],
};

/// Everything that a drill can say which says what it would take.
fn planned() -> Value {
    json!({
        "target": {"spotPool": "p", "agentPools": ["changea"], "zones": ["0"], "nodeSelector": {
            "matchLabels": {"agentpool": "changea"},
            "matchExpressions": [{"key": "type", "operator": "In", "values": ["kwok"]}]}},
        "amount": {"count": 1, "all": false}, "method": "NoticeOnly", "notice": "1s", "stagger": "0s", "timeout": "30m",
        "dryRun": true,
        "limits": {"maxNodes": 2, "minReadyUnits": 0, "namespaces": ["change"],
            "allowedHours": {"schedule": "* * * * *", "duration": "1h", "timeZone": "Etc/UTC"}},
        "abort": {"objectiveBurning": true, "unreadyBudgets": true, "realEvictions": true},
        "expect": {"drainedInTime": true, "replacedWithin": "10m", "maxPodsEscalated": 0, "minReadyUnits": 0},
    })
}

/// … and what one of that kind cannot say.
fn resting() -> Value {
    json!({"target": {"spotPool": "p"}, "amount": {"percent": 50}, "limits": {"maxNodes": 2},
        "schedule": {"cron": "30 5 29 2 *", "timeZone": "Etc/UTC", "suspend": true}})
}

/// Fields of which none of these says anything. What lacks a part lacks each field of it.
fn said_by_none(missing: &[Vec<String>]) -> BTreeSet<&String> {
    let is_of = |path: &str, part: &str| {
        path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    let lack_it = |path: &&String| missing.iter().all(|all| all.iter().any(|part| is_of(path, part)));
    missing.iter().flatten().filter(lack_it).collect()
}

#[test]
fn a_new_field_is_noticed_also_in_a_part_that_one_of_the_two_lacks() {
    let crd = EvictionDrill::crd();
    let missing = |other: &Value| [&planned(), other].map(|full| fields(&crd, full).1);
    assert_eq!(said_by_none(&missing(&resting())), BTreeSet::new());
    let mut older = resting();
    older["schedule"].as_object_mut().unwrap().remove("timeZone");
    assert_eq!(said_by_none(&missing(&older)), BTreeSet::from([&"schedule.timeZone".to_owned()]));
}

/// What is left of a status without times, numbers of generations and what was before.
fn masked(status: &EvictionDrillStatus) -> Value {
    let run = status.run.as_ref().map(|run| {
        let nodes: Vec<&String> = run.targets.iter().map(|target| &target.node).collect();
        json!([run.method, run.candidates, nodes, run.result])
    });
    let conditions = status.conditions.iter().map(|it| json!([it.type_, it.status, it.reason]));
    json!({"phase": status.phase, "message": status.message, "run": run, "conditions": conditions.collect::<Vec<_>>()})
}

/// Applies a spec and waits until nothing more comes of it.
async fn settles(stage: &Stage<'_>, name: &str, what: &str, spec: &Value) -> Value {
    let applied = drill(stage, name, spec.clone()).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let generation = applied.metadata.generation.unwrap();
    let rests = |status: &EvictionDrillStatus| {
        let waits = status.phase == Some(DrillPhase::Pending) && applied.spec.schedule.is_none();
        status.observed_generation >= generation && !waits && !status.is_under_way()
    };
    masked(&drill_is(stage, name, what, rests).await.unwrap())
}

/// Whoever tries something and takes it back has what there was, and whoever mistypes is told; neither brings the operator down,
/// nor leaves a node closed.
#[test]
fn every_field_goes_there_and_back_and_nonsense_stays_outside() {
    let seed = asked("SPOTPOOL_SEED").unwrap().unwrap_or(1);
    let again = format!("again: SPOTPOOL_SEED={seed} cargo test -p spotpool-e2e --test drill transitions");
    let bases = [("planned", planned()), ("resting", resting())];
    let found = bases.each_ref().map(|(_, full)| fields(&EvictionDrill::crd(), full));
    let missing = found.each_ref().map(|(_, missing)| missing.clone());
    let unknown = said_by_none(&missing);
    assert!(unknown.is_empty(), "new: say in `planned` or `resting` what they may be: {unknown:?}");
    let mut transitions: Vec<(&str, &Value, &Field, Value)> = Vec::new();
    for ((name, full), (found, _)) in bases.iter().zip(&found) {
        for (field, other) in schema::transitions(found, full, &KNOWN) {
            if !transitions.iter().any(|(base, _, known, _)| base != name && known.path == field.path) {
                transitions.push((*name, full, field, other));
            }
        }
    }
    let all = transitions.len();
    let mut transitions = shuffled(transitions, seed);
    if std::env::var("SPOTPOOL_TRANSITIONS").as_deref() != Ok("all") {
        transitions.truncate(SAMPLE);
    }
    run(async {
        let _calm = EVICTIONS.read().await;
        let (stage, operator) = whole(world().await, "change", 2, &OperatorOptions::default()).await.unwrap();
        let mut first = Vec::new();
        for (name, full) in &bases {
            first.push((*name, settles(&stage, name, "the first to be as wanted", full).await));
        }
        assert_eq!((&first[0].1["phase"], &first[1].1["phase"]), (&json!("Planned"), &json!("Pending")));

        let mut refused = 0;
        for ((_, full), (found, _)) in bases.iter().zip(&found) {
            for field in found {
                for bad in nonsense(field, full.pointer(&field.pointer).unwrap()) {
                    let what = format!("{} as {bad}", field.path);
                    let answer = drill(&stage, "bad", with(full, field, &bad, &KNOWN)).await;
                    let error = format!("{:#}", answer.map(drop).expect_err(&what));
                    let name = field.path.trim_end_matches(['[', ']', '{', '}']).rsplit('.').next().unwrap();
                    assert!(error.contains(name), "{what} is not named in: {error}");
                    refused += 1;
                }
            }
        }
        println!("{refused} values refused");

        for (name, full, field, other) in &transitions {
            let began = std::time::Instant::now();
            let what = format!("{} as {other}, and back", field.path);
            settles(&stage, name, &what, &with(full, field, other, &KNOWN)).await;
            let now = settles(&stage, name, &what, full).await;
            let wanted = first.iter().find(|(base, _)| base == name).unwrap();
            assert_eq!(now, wanted.1, "{what}\n{again}");
            println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        }
        println!("{} of {all} transitions", transitions.len());

        eventually("all nodes to be open", async || {
            Ok(stage.nodes("changea").await?.iter().all(is_open).then_some(()))
        })
        .await
        .unwrap();
        assert_eq!(ordered(&stage).await, 0, "{again}");
        assert!(operator.is_ready().await, "the operator is not ready\n{again}");
        assert!(operator.stop().await.unwrap().success(), "{again}");
    });
}
