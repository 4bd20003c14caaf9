//! The cluster autoscaler with its priority expander: spot by price, then on-demand; who does not bring nodes within 15 minutes
//! is backed off. It knows no failback: on-demand stays as long as it is needed.

use spotpool_crds::spot_pool::Role;

use crate::cloud::{Cloud, Order};
use crate::policy::market::{give_back, staying};
use crate::policy::{Decision, Policy};
use crate::scenario::Scenario;

/// `--max-node-provision-time`.
const PROVISION: i64 = 900;
/// `--initial-node-group-backoff-duration` and `--max-node-group-backoff-duration`.
const BACKOFF: (i64, i64) = (300, 1800);
/// `--scale-down-unneeded-time`.
const UNNEEDED: i64 = 600;
/// `--scan-interval`.
const SCAN: i64 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// What is asked for and has not come: machines, and since when.
    waits: Option<(u32, i64)>,
    backoff: i64,
    until: i64,
    /// Machines that were ready when it was asked.
    before: u32,
}

/// See above.
#[derive(Clone, Debug)]
pub struct Autoscaler {
    groups: Vec<Group>,
    unneeded_since: Option<i64>,
}

impl Autoscaler {
    /// Nothing asked for yet.
    pub fn new(scenario: &Scenario) -> Self {
        Self { groups: vec![Group::default(); scenario.pools.len()], unneeded_since: None }
    }

    fn follow(&mut self, cloud: &Cloud<'_>) {
        for (group, fleet) in self.groups.iter_mut().zip(&cloud.fleets) {
            let Some((machines, since)) = group.waits else { continue };
            let ready = fleet.serving(cloud.now);
            if ready >= group.before + machines {
                (group.waits, group.backoff) = (None, 0);
            } else if cloud.now - since >= PROVISION {
                group.backoff = (group.backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
                (group.waits, group.until) = (None, cloud.now + group.backoff);
            } else {
                // Those that it had and that were taken are no longer counted on.
                group.before = group.before.min(ready);
            }
        }
    }
}

impl Policy for Autoscaler {
    fn name(&self) -> String {
        "cluster autoscaler".into()
    }

    fn decide(&mut self, cloud: &Cloud<'_>) -> Result<Decision, String> {
        self.follow(cloud);
        let (now, wanted) = (cloud.now, cloud.wanted());
        let scenario = cloud.scenario;
        let there: u32 = staying(cloud, Role::Spot) + staying(cloud, Role::OnDemand);
        // What was asked for is upcoming, whether Azure gives it or not.
        let upcoming = |(at, group): (usize, &Group)| {
            let (machines, _) = group.waits?;
            let booting = cloud.fleets[at].staying() - cloud.fleets[at].serving(now);
            Some(machines.saturating_sub(booting) * scenario.pools[at].units)
        };
        let upcoming: u32 = self.groups.iter().enumerate().filter_map(upcoming).sum();
        let mut missing = wanted.saturating_sub(there + upcoming);
        let mut orders = Vec::new();
        let by_priority =
            [Role::Spot, Role::OnDemand].into_iter().flat_map(|role| scenario.cheapest(role, now));
        for pool in by_priority {
            let group = &mut self.groups[pool];
            if missing == 0 || group.until > now || group.waits.is_some() || !cloud.takes_writes(pool) {
                continue;
            }
            let worth = scenario.pools[pool].units;
            let machines = missing.div_ceil(worth).min(cloud.room(pool));
            if machines > 0 {
                missing = missing.saturating_sub(machines * worth);
                (group.waits, group.before) = (Some((machines, now)), cloud.fleets[pool].serving(now));
                orders.push(Order::Launch { pool, machines });
            }
        }
        let ready = cloud.ready(Role::Spot) + cloud.ready(Role::OnDemand);
        let needless = ready.saturating_sub(wanted);
        self.unneeded_since = (needless > 0).then(|| self.unneeded_since.unwrap_or(now));
        if self.unneeded_since.is_some_and(|since| now - since >= UNNEEDED) {
            let needless = give_back(cloud, Role::OnDemand, needless, &mut orders);
            give_back(cloud, Role::Spot, needless, &mut orders);
            self.unneeded_since = None;
        }
        let due = self.groups.iter().filter_map(|group| group.waits.map(|(_, since)| since + PROVISION));
        let due = due.chain(self.groups.iter().map(|group| group.until)).filter(|at| *at > now);
        let scan = (missing > 0).then_some(now + SCAN);
        let unneeded = self.unneeded_since.map(|since| since + UNNEEDED);
        Ok(Decision { orders, wake: due.chain(scan).chain(unneeded).min() })
    }
}
