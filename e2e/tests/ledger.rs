//! What a SpotPool says that fallback, and each of its agent pools, has cost, beside the simulator's own bill, over days of simulated time: with
//! evictions, sold-out sizes, outages, and operators that die in the middle of their writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    Capacity, EventRequest, Identity, PoolSpec, Priority, Settings, Targets, VmPhase,
};
use spotpool_azure_sim::model::Cloud;
use spotpool_crds::spot_pool::AgentPoolSpend;
use spotpool_e2e::asked;
use spotpool_e2e::simulation::{Dice, Simulation};

const SPOT: [(&str, &str); 2] = [("spota", "Standard_D4s_v5"), ("spotb", "Standard_D8as_v5")];
/// 0.344 an hour.
const FALLBACK: (&str, &str) = ("reg", "Standard_D8as_v5");
/// Four of them fit, and not five.
const HOURLY: (&str, usize) = ("1.40", 4);
const MONTHLY: f64 = 12.0;
const STEP: Duration = Duration::from_secs(15);

fn spec() -> Value {
    json!({
        "replicas": 8,
        "agentPools": [
            {"name": SPOT[0].0, "maxNodes": 10},
            {"name": SPOT[1].0, "maxNodes": 10},
            {"name": FALLBACK.0, "maxNodes": 8},
        ],
        "fallback": {
            "maxNodes": 8, "growthAfter": "2m", "hourlyBudget": HOURLY.0, "monthlyBudget": format!("{MONTHLY}"),
            "atCap": "Shed",
        },
        "failback": {"stabilization": "3m", "minOnDemandLifetime": "20m", "maxConcurrent": 2},
    })
}

fn cloud(start: Timestamp) -> Result<Cloud> {
    let settings = Settings {
        boot_time: Duration::from_secs(100),
        delete_time: Duration::from_secs(40),
        ..Settings::default()
    };
    let mut cloud = Cloud::new(Identity::default(), settings, false, 1);
    for (name, size) in SPOT {
        cloud.add_pool(&PoolSpec::spot(name, size, 4), start)?;
    }
    cloud.add_pool(&PoolSpec::regular(FALLBACK.0, FALLBACK.1, 0), start)?;
    Ok(cloud)
}

/// What the simulator bills for an agent pool in the month of `now`, and what the ledger says.
fn bills(simulation: &Simulation, agent_pool: &str) -> Result<(f64, f64)> {
    let invoice = simulation.sim.look(|cloud, now| cloud.invoice(None, None, now))?;
    let now = simulation.now();
    let month = now.to_string()[..7].to_owned();
    let billed = invoice.months.iter().find(|period| period.start.to_string().starts_with(&month));
    let billed = billed.and_then(|period| period.cost.pools.get(agent_pool));
    let billed = billed.map_or(Ok(0.0), |charge| charge.amount.to_string().parse::<f64>())?;
    let money = simulation.pool.status.as_ref().and_then(|status| status.money.as_ref());
    let ledger = money.and_then(|money| money.ledger.as_ref()).context("there is no ledger")?;
    ensure!(ledger.page.month == month, "a ledger of {} at {now}", ledger.page.month);
    let hours = now.duration_since(ledger.at.0).as_secs_f64() / 3600.0;
    let amount = |all: &[AgentPoolSpend]| -> Result<f64> {
        let of_pool = all.iter().find(|spend| spend.name == agent_pool).cloned().unwrap_or_default();
        let kinds = [of_pool.spot, of_pool.on_demand, of_pool.fallback];
        kinds.iter().filter(|text| !text.is_empty()).map(|text| Ok(text.parse::<f64>()?)).sum()
    };
    Ok((billed, amount(&ledger.page.agent_pools)? + amount(&ledger.agent_pools)? * hours))
}

async fn course(seed: u64) -> Result<f64> {
    let start: Timestamp = "2026-08-31T00:00:00Z".parse()?;
    let mut simulation = Simulation::start(cloud(start)?, &spec(), start, seed)?.with_prices()?;
    let mut dice = Dice::new(seed);
    let (mut outage, mut most, mut all) = (0_u32, 0, 0.0);
    // Until prices are there nothing can be bought against a budget.
    simulation.step(Duration::from_mins(2)).await?;
    for step in 0..2 * 24 * 240 {
        let (pool, size) = SPOT[dice.below(2) as usize];
        let (many, seconds, left) = (1 + dice.below(4) as u32, dice.below(40), dice.below(4) as u32);
        match dice.below(2_000) {
            0..=9 => simulation.sim.change(|cloud, now| {
                let targets = Targets::of_pool(pool, many);
                drop(
                    cloud.schedule(&EventRequest::new("Preempt", targets, Duration::from_secs(seconds)), now),
                );
            }),
            10..=15 => simulation.sim.change(|cloud, _| {
                cloud.set_capacity(Capacity::of(size, Priority::Spot, (left < 3).then_some(left)));
            }),
            16..=18 => outage = 1 + seconds as u32,
            _ => {}
        }
        simulation.refuse_everything((outage > 0).then_some(503));
        outage = outage.saturating_sub(1);
        if dice.below(1_000) < 4 {
            simulation.step_and_die(STEP, Duration::from_millis(dice.below(3_000))).await?;
        } else {
            simulation.step(STEP).await?;
        }
        let state = simulation.cloud();
        let there = state.vms.iter().filter(|vm| vm.pool == FALLBACK.0 && vm.phase != VmPhase::Gone).count();
        most = most.max(there);
        ensure!(there <= HOURLY.1, "{there} nodes of 0.344 against an hourly budget of {}", HOURLY.0);
        if step % 240 == 239 {
            for (pool, _) in SPOT {
                let (billed, spent) = bills(&simulation, pool)?;
                // Ten machines at most boot at a time, for less than 0.35 an hour.
                ensure!(
                    (billed - spent).abs() <= billed * 0.01 + 10.0 * 0.35 * 100.0 / 3600.0,
                    "{spent:.4} of {pool} in the ledger, {billed:.4} billed, at {}",
                    simulation.now()
                );
            }
            let (billed, spent) = bills(&simulation, FALLBACK.0)?;
            // A machine that boots is in the ledger once it is a Node, and then from its order on.
            let booting = HOURLY.1 as f64 * 0.344 * 100.0 / 3600.0;
            ensure!(
                (billed - spent).abs() <= billed * 0.01 + booting + 0.01,
                "{spent:.4} in the ledger, {billed:.4} billed, at {}",
                simulation.now()
            );
            // What `Shed` gives back has its minimum lifetime and its drain behind it by then.
            ensure!(billed <= MONTHLY * 1.02, "{billed:.4} billed of {MONTHLY} allowed");
            all = f64::max(all, billed);
        }
    }
    ensure!(most > 0, "nothing was bought: the course shows nothing");
    Ok(all)
}

#[test]
fn the_ledger_is_the_bill_and_no_cap_is_broken() {
    let seeds = asked("SPOTPOOL_SEED").unwrap().map_or(vec![2, 3], |seed| vec![seed]);
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        match runtime.block_on(course(seed)) {
            Ok(billed) => println!("seed {seed}: {billed:.2} in its dearest month"),
            Err(error) => {
                panic!("again: SPOTPOOL_SEED={seed} cargo test -p spotpool-e2e --test ledger\n{error:?}")
            }
        }
    }
}
