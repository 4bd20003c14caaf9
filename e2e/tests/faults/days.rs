//! The whole operator through days of 200 nodes, in simulated time.

use std::time::Instant;

use spotpool_azure_sim::api::duration;
use spotpool_e2e::faults::simulated::days::{Days, run};

fn asked() -> Days {
    let number = |name: &str, otherwise: u64| {
        let read = |text: String| text.parse().unwrap_or_else(|_| panic!("{name} must be a number"));
        std::env::var(name).map_or(otherwise, read)
    };
    let time = std::env::var("SPOTPOOL_DAYS").unwrap_or_else(|_| "3h".into());
    let nodes = u32::try_from(number("SPOTPOOL_DAYS_NODES", 200)).expect("SPOTPOOL_DAYS_NODES");
    Days { seed: number("SPOTPOOL_SEED", 1), time: duration(&time).expect("SPOTPOOL_DAYS"), nodes }
}

#[test]
fn days_of_two_hundred_nodes_leave_nothing_behind() {
    let days = asked();
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
