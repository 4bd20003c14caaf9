//! What was expected of a drill, and what was measured.

use spotpool_crds::drill::{DrillMethod, DrillRun, EvictionDrillSpec, Expectation, Target};

/// What was expected of a run, and what was measured of it.
pub(super) fn of(spec: &EvictionDrillSpec, run: &DrillRun) -> Vec<Expectation> {
    let expect = &spec.expect;
    let asked: Vec<&Target> = run.targets.iter().filter(|target| target.intended_at.is_some()).collect();
    let mut verdict = Vec::new();
    let mut add = |expectation: &str, stated: String, measured: String, held: bool| {
        verdict.push(Expectation { expectation: expectation.into(), stated, measured, held });
    };
    if expect.drained_in_time && run.method != DrillMethod::DeleteMachine {
        let drained = asked.iter().filter(|target| target.drained_at.is_some()).count();
        add(
            "drainedInTime",
            "every node".into(),
            format!("{drained} of {} nodes", asked.len()),
            drained == asked.len() && asked.len() == run.targets.len(),
        );
    }
    if let Some(within) = expect.replaced_within.filter(|_| run.method.takes_machines()) {
        let seconds = asked.iter().map(|target| {
            let (from, to) = (target.lost_at(run.method)?, target.replaced_at.as_ref()?);
            Some(to.0.duration_since(from.0).as_secs())
        });
        let longest: Option<Vec<i64>> = seconds.collect();
        let longest = longest.and_then(|seconds| seconds.into_iter().max());
        let limit = std::time::Duration::from(within).as_secs();
        add(
            "replacedWithin",
            within.to_string(),
            longest.map_or("not all were replaced".into(), |seconds| format!("{seconds}s")),
            longest.is_some_and(|seconds| seconds.max(0) as u64 <= limit),
        );
    }
    if let Some(most) = expect.max_pods_escalated {
        let escalated: i32 = asked.iter().map(|target| target.pods.escalated).sum();
        add("maxPodsEscalated", most.to_string(), escalated.to_string(), escalated <= most);
    }
    if let Some(least) = expect.min_ready_units {
        let lowest = run.units.lowest;
        add("minReadyUnits", least.to_string(), lowest.to_string(), lowest >= least);
    }
    let refused: Vec<&str> =
        asked.iter().filter(|it| !it.refused.is_empty()).map(|it| it.node.as_str()).collect();
    if !refused.is_empty() {
        add("taken", "every node".into(), format!("not {}", super::named(&refused)), false);
    }
    verdict
}

/// The verdict in a sentence, and whether all of it held.
pub(super) fn sentence(verdict: &[Expectation]) -> (String, bool) {
    let told: Vec<String> = verdict
        .iter()
        .map(|it| {
            let held = if it.held { "held" } else { "did not hold" };
            format!("{} {held} (expected {}, was {})", it.expectation, it.stated, it.measured)
        })
        .collect();
    let words = if told.is_empty() { "nothing was expected".into() } else { told.join("; ") };
    (words, verdict.iter().all(|it| it.held))
}
