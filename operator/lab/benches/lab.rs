//! How long 30 days of 10 agent pools and 100 nodes take, on one core: one JSON line, as all benches of the workspace print.

use std::time::Instant;

use spotpool_crds::spot_pool::Role;
use spotpool_lab::policy::SpotPool;
use spotpool_lab::scenario::{Scenario, Sources};
use spotpool_lab::{simulate, synthetic};

const RUNS: usize = 3;
const DAYS: i64 = 30;
const POOLS: usize = 10;
const NODES: i32 = 100;

fn scenario(seed: u64) -> Result<Scenario, Box<dyn std::error::Error>> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let (manifest, cloud) = (here.join("pool.yaml"), here.join("cloud.yaml"));
    let sources = Sources { manifest: Some(&manifest), cloud: Some(&cloud), ..Sources::default() };
    let mut scenario = Scenario::read(&sources, 10, seed)?;
    let of_spec = scenario.spec.agent_pools[0].clone();
    let (spot, mut on_demand) = (scenario.pools[0].clone(), scenario.pools[4].clone());
    on_demand.max_nodes = NODES as u32;
    scenario.pools = (1..POOLS)
        .map(|at| {
            let (name, zones, size) =
                (format!("spot{at}"), vec![(at % 3).to_string()], format!("size{}", at % 4));
            spotpool_lab::scenario::Pool { name, zones, size, max_nodes: NODES as u32 / 4, ..spot.clone() }
        })
        .chain([on_demand])
        .collect();
    scenario.spec.agent_pools = scenario
        .pools
        .iter()
        .map(|pool| spotpool_crds::spot_pool::AgentPool {
            name: pool.name.clone(),
            max_nodes: pool.max_nodes as i32,
            ..of_spec.clone()
        })
        .collect();
    scenario.spec.replicas = NODES;
    scenario.demand = spotpool_lab::course::Course::always(NODES as u32);
    if let Some(fallback) = &mut scenario.spec.fallback {
        fallback.max_nodes = NODES;
    }
    debug_assert_eq!(scenario.pools[POOLS - 1].role, Role::OnDemand);
    synthetic::draw(&mut scenario, seed, DAYS * 86_400);
    Ok(scenario)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut seconds = Vec::new();
    for seed in 0..RUNS as u64 {
        let scenario = scenario(seed)?;
        let began = Instant::now();
        let measured = simulate::simulate(&scenario, &mut SpotPool::new(&scenario))?;
        seconds.push(began.elapsed().as_secs_f64());
        eprintln!("seed {seed}: {} steps, {} evictions", measured.steps, measured.evictions);
    }
    seconds.sort_by(f64::total_cmp);
    let value = seconds[RUNS / 2];
    println!(
        "{{\"bench\":\"lab_30_days\",\"value\":{value:.2},\"unit\":\"s\",\"goal\":{{\"max\":10}},\"runs\":{RUNS}}}"
    );
    Ok(())
}
