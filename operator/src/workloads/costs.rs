//! What the workloads on a SpotPool's nodes cost: told when pods have changed, or what nodes cost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use kube::ResourceExt;
use spotpool_core::allocation::{PoolCost, allocate};
use spotpool_core::bills::{Bills, Metered, billed};
use spotpool_core::cost::Amounts;
use spotpool_core::{AgentPoolView, Plan};
use spotpool_crds::SpotPool;

use super::{Surveyed, Workloads};
use crate::pool::bills;
use crate::pool::gather::Gathered;

/// What a SpotPool's agent pools cost.
#[derive(PartialEq)]
pub(super) struct Bill {
    namespace: String,
    pool: String,
    costs: Vec<PoolCost>,
}

/// What workloads have cost since the ledger was written.
#[derive(Default)]
pub(super) struct Meter {
    /// What they cost an hour, and since when.
    hourly: Option<(Instant, BTreeMap<Arc<str>, Amounts>)>,
    metered: Metered,
    /// The ledger's last writing of which they have their bills.
    billed: Option<Timestamp>,
}

impl Meter {
    fn turn(&mut self) {
        if let Some((since, hourly)) = &mut self.hourly {
            let now = Instant::now();
            self.metered.add(hourly, now.duration_since(*since));
            *since = now;
        }
    }
}

impl Workloads {
    /// What workloads have cost, by the ledger that `plan` writes. It is no part of the plan, for nothing is decided by it.
    pub fn bills(&self, pool: &SpotPool, gathered: &Gathered, plan: &Plan) -> Option<Bills> {
        let (label, ledger) = (self.options.cost_label.as_deref()?, plan.memory.ledger.as_ref()?);
        let money = pool.status.as_ref().and_then(|status| status.money.as_ref());
        let known = money.and_then(|money| money.by_workload.as_ref()).and_then(bills::kept);
        let before = gathered.snapshot.memory.ledger.as_ref();
        let hourly = before.map(|before| before.hourly.total().total()).unwrap_or_default();
        let mut surveys = self.surveys();
        let meter = surveys.get_mut(&pool.uid().unwrap_or_default()).map(|surveyed| &mut surveyed.meter);
        let metered = meter.map(|meter| {
            meter.turn();
            meter.metered.clone()
        });
        drop(surveys);
        Some(billed(known.as_ref(), label, ledger, hourly, &metered.unwrap_or_default()))
    }

    /// Tells what workloads cost, from now on with what `plan` says that agent pools cost. Its bills are in status.
    pub fn cost(&self, pool: &SpotPool, gathered: &Gathered, plan: &Plan) {
        if self.options.cost_label.is_none() {
            return;
        }
        let costs = &plan.money.costs;
        let machines = costs.pools.iter().zip(&costs.machines);
        let of_pool = |(view, (hourly, machines)): (&AgentPoolView, (&_, &u32))| PoolCost {
            agent_pool: view.name.clone(),
            hourly: *hourly,
            machines: *machines,
        };
        let bill = Bill {
            namespace: pool.namespace().unwrap_or_default(),
            pool: pool.name_any(),
            costs: gathered.snapshot.agent_pools.iter().zip(machines).map(of_pool).collect(),
        };
        let mut surveys = self.surveys();
        let Some(surveyed) = surveys.get_mut(&pool.uid().unwrap_or_default()) else { return };
        let written = plan.memory.ledger.as_ref().map(|ledger| ledger.at);
        if surveyed.meter.billed != written {
            surveyed.meter.turn();
            (surveyed.meter.metered, surveyed.meter.billed) = (Metered::default(), written);
        }
        if surveyed.bill.as_ref() != Some(&bill) {
            surveyed.bill = Some(bill);
            self.tell_costs(surveyed);
        }
    }

    /// Tells them again, after a survey.
    pub(super) fn tell_costs(&self, surveyed: &mut Surveyed) {
        if let (Some(bill), Some(usage)) = (&surveyed.bill, &surveyed.survey.usage) {
            let costs = allocate(&bill.costs, usage);
            surveyed.meter.turn();
            surveyed.meter.hourly = Some((Instant::now(), costs.clone()));
            self.metrics.workload_costs(&bill.namespace, &bill.pool, &costs);
        }
    }
}
