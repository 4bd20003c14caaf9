//! The whole operator through days of 200 nodes, in simulated time.

use std::time::Instant;

use spotpool_crds::Duration;
use spotpool_e2e::asked;
use spotpool_e2e::faults::simulated::days::{Days, run};

fn wanted() -> Days {
    Days {
        seed: asked("SPOTPOOL_SEED").unwrap().unwrap_or(1),
        time: asked("SPOTPOOL_DAYS").unwrap().unwrap_or(Duration::from_secs(3 * 3600)).into(),
        nodes: asked("SPOTPOOL_DAYS_NODES").unwrap().unwrap_or(200),
    }
}

#[test]
fn days_of_two_hundred_nodes_leave_nothing_behind() {
    let days = wanted();
    eprintln!(
        "{days:?}; again: SPOTPOOL_SEED={} cargo test -p spotpool-e2e --test faults -- days",
        days.seed
    );
    let began = Instant::now();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (before, after, happened) = runtime.block_on(run(days)).unwrap();
    eprintln!("{happened:?}, in {:.0} s", began.elapsed().as_secs_f64());
    eprintln!("before {before:#?}\nafter {after:#?}");
    assert!(happened.taken >= 10 && happened.operators_killed >= 1, "too little happened: {happened:?}");
    let grown = after.grown_since(&before);
    assert!(grown.is_empty(), "seed {}: {grown:#?}", days.seed);
}
