//! In simulated time: every fault at every write and every event of every course.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use spotpool_e2e::faults::courses::Course;
use spotpool_e2e::faults::simulated::{Outcome, run};
use spotpool_e2e::faults::{Fault, Plan, Wanted, sample};
use strum::IntoEnumIterator;

/// How many of the crash points of all courses CI tries, and how many other faults at the writes of an eviction.
const CRASHES: usize = 90;
const OTHERS: usize = 40;

fn on_paused_time(course: Course, fault: Option<(Fault, usize)>) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(run(course, fault))
}

fn references(courses: impl Iterator<Item = Course>) -> BTreeMap<Course, Outcome> {
    let reference = |course: Course| {
        let outcome = on_paused_time(course, None).with_context(|| format!("{course}, undisturbed")).unwrap();
        (course, outcome)
    };
    courses.map(reference).collect()
}

fn check(plan: Plan, reference: &Outcome) -> Result<()> {
    let outcome = on_paused_time(plan.course, Some((plan.fault, plan.at)))?;
    outcome.agrees(reference).with_context(|| format!("writes were {:#?}", outcome.writes))
}

/// What is asked for by the environment; else so many of the crash points of all courses, so many of what else may happen to
/// the writes of an eviction, and all of these that land late, its sender alive or dead.
fn chosen(wanted: &Wanted) -> (BTreeMap<Course, Outcome>, Vec<Plan>) {
    let of_word = |word: &String| word.split('/').next()?.parse::<Course>().ok();
    let course = wanted.plan.map(|plan| plan.course).or_else(|| wanted.plans.as_ref().and_then(of_word));
    let references = references(Course::iter().filter(|it| course.is_none_or(|course| course == *it)));
    let all: Vec<Plan> = references.iter().flat_map(|(course, outcome)| outcome.plans(*course)).collect();
    if let Some(plans) = wanted.of(&all) {
        return (references, plans);
    }
    let (crashes, mut others): (Vec<Plan>, Vec<Plan>) =
        all.into_iter().partition(|plan| plan.fault.is_crash());
    others.retain(|plan| plan.course == Course::Eviction && !plan.fault.is_of_watch());
    let (late, others) =
        others.into_iter().partition(|plan| matches!(plan.fault, Fault::LandsLate | Fault::KillOnItsWay));
    let mut plans: Vec<Plan> = late;
    plans.extend(sample(crashes, wanted.seed, CRASHES));
    plans.extend(sample(others, wanted.seed, OTHERS));
    (references, plans)
}

#[test]
fn whatever_goes_wrong_the_end_is_the_same() {
    if std::env::var_os("SPOTPOOL_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_env("SPOTPOOL_LOG");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init().ok();
    }
    let (references, plans) = chosen(&Wanted::read().unwrap());
    for (course, outcome) in &references {
        println!(
            "{course}: {} writes, {} events, {:?}",
            outcome.writes.len(),
            outcome.events,
            outcome.counts
        );
    }
    let (began, next, failed) = (Instant::now(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = check(*plan, &references[&plan.course]);
                    match result {
                        Ok(()) => println!("{plan}: the same end"),
                        Err(error) => {
                            println!("{plan}: {error:#}");
                            failed.lock().unwrap().push(plan.to_string());
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{} plans in {:.0?}", plans.len(), began.elapsed());
    assert!(failed.is_empty(), "{} of {} plans failed:\n{}", failed.len(), plans.len(), failed.join("\n"));
}
