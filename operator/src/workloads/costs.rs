//! What the workloads on a SpotPool's nodes cost: told when pods have changed, or what nodes cost.

use kube::ResourceExt;
use spotpool_core::allocation::{PoolCost, allocate};
use spotpool_core::{AgentPoolView, Plan};
use spotpool_crds::SpotPool;

use super::{Surveyed, Workloads};
use crate::pool::gather::Gathered;

/// What a SpotPool's agent pools cost.
#[derive(PartialEq)]
pub(super) struct Bill {
    namespace: String,
    pool: String,
    costs: Vec<PoolCost>,
}

impl Workloads {
    /// Tells what workloads cost, from now on with what `plan` says that agent pools cost.
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
        let surveyed = surveys.get_mut(&pool.uid().unwrap_or_default());
        if let Some(surveyed) = surveyed.filter(|surveyed| surveyed.bill.as_ref() != Some(&bill)) {
            surveyed.bill = Some(bill);
            self.tell_costs(surveyed);
        }
    }

    /// Tells them again, after a survey.
    pub(super) fn tell_costs(&self, surveyed: &Surveyed) {
        if let (Some(bill), Some(usage)) = (&surveyed.bill, &surveyed.survey.usage) {
            let costs = allocate(&bill.costs, usage);
            self.metrics.workload_costs(&bill.namespace, &bill.pool, &costs);
        }
    }
}
