//! Scenarios for tests.

use std::path::{Path, PathBuf};

use spotpool_lab::course::Course;
use spotpool_lab::scenario::{Scenario, Sources};
use spotpool_lab::synthetic;

pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The example of `docs/how-to/lab.md`, without a trace: there is all the spot that anybody wants.
pub fn example() -> Scenario {
    let (manifest, cloud) = (here("examples/pool.yaml"), here("examples/cloud.yaml"));
    let sources = Sources { manifest: Some(&manifest), cloud: Some(&cloud), ..Sources::default() };
    let mut scenario = Scenario::read(&sources, 10, 1).unwrap();
    scenario.seconds = 86_400;
    scenario
}

#[allow(dead_code, reason = "not every test draws")]
pub fn drawn(seed: u64, days: i64) -> Scenario {
    let mut scenario = example();
    synthetic::draw(&mut scenario, seed, days * 86_400);
    scenario
}

/// One agent pool of spot at 1 an hour, one on demand at 4.
#[allow(dead_code, reason = "not every test is so small")]
pub fn small(wanted: u32, boot: i64, spot: &[(i64, u32)], seconds: i64) -> Scenario {
    let mut scenario = example();
    scenario.name = "small".into();
    scenario.pools.remove(3);
    scenario.pools.drain(1..3);
    scenario.spec.agent_pools.drain(1..4);
    scenario.spec.replicas = wanted as i32;
    scenario.demand = Course::always(wanted);
    scenario.pools[0].available = Some(Course::of(spot.iter().copied()));
    for (pool, price) in scenario.pools.iter_mut().zip([1.0, 4.0]) {
        (pool.boot, pool.price) = (boot, Course::always(price));
    }
    (scenario.seconds, scenario.drain) = (seconds, 1);
    scenario
}
