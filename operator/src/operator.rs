//! All that the operator does, joined: by its program, and by tests that run it in simulated time.

use std::sync::Arc;

use futures::StreamExt;
use futures::channel::mpsc;
use kube::Client;
use spotpool_azure::{Arm, Clock, ComputeInstances};
use spotpool_runtime::trace::Tracer;

use crate::agent_pools::AgentPools;
use crate::backup_drain::BackupDrains;
use crate::drill;
use crate::market::Market;
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::pool::{self, Parts};
use crate::traces::Traces;
use crate::vms::Vms;
use crate::watches::{Nodes, Trigger};
use crate::workloads::{Options, Workloads};

/// Whom it speaks to. All writes must be refused while another replica leads.
pub struct Connections {
    /// Kubernetes.
    pub client: Client,
    /// Kubernetes, for drains in the agents' stead: what is asked there must not hold up anything else.
    pub drain_client: Client,
    /// Azure's agent pools.
    pub azure: Arm,
    /// Azure's machines.
    pub instances: ComputeInstances,
    /// What machines cost.
    pub market: Market,
    /// What time it is.
    pub clock: Clock,
}

/// One replica of the operator.
pub struct Operator {
    client: Client,
    clock: Clock,
    metrics: Metrics,
    trigger: Trigger,
    nodes: Nodes,
    workloads: Workloads,
    agent_pools: Arc<AgentPools>,
    vms: Arc<Vms>,
    market: Arc<Market>,
    neighbours: Arc<Neighbours>,
    backup_drains: Arc<BackupDrains>,
    traces: Arc<Traces>,
}

/// A part has ended that has no end.
#[derive(Debug, thiserror::Error)]
#[error("{0} has ended")]
pub struct Ended(&'static str);

impl Operator {
    /// Begins to watch, whoever leads: the future must be polled for as long as the operator lives.
    pub fn watch(
        connections: Connections,
        options: Options,
        metrics: Metrics,
        tracer: Tracer,
    ) -> (Self, impl Future<Output = Ended> + Send) {
        let Connections { client, drain_client, azure, instances, market, clock } = connections;
        let trigger = Trigger::default();
        let (nodes, node_stream) = Nodes::watch(client.clone(), trigger.clone());
        let (workloads, workload_watches) =
            Workloads::watch(client.clone(), nodes.clone(), metrics.clone(), options, clock.clone());
        let azure = Arc::new(azure);
        let agent_pools = Arc::new(AgentPools::new(
            azure.clone(),
            azure,
            nodes.clone(),
            trigger.clone(),
            metrics.clone(),
            clock.clone(),
        ));
        let vms = Arc::new(Vms::new(
            Arc::new(instances),
            nodes.clone(),
            trigger.clone(),
            metrics.clone(),
            clock.clone(),
        ));
        let operator = Self {
            backup_drains: BackupDrains::new(drain_client, trigger.clone(), metrics.clone()),
            traces: Arc::new(Traces::new(tracer, workloads.clone())),
            neighbours: Arc::new(Neighbours::default()),
            market: Arc::new(market),
            client,
            clock,
            metrics,
            trigger,
            nodes,
            workloads,
            agent_pools,
            vms,
        };
        let watches = async {
            tokio::select! {
                () = node_stream.collect::<()>() => Ended("the watch of Nodes"),
                never = workload_watches => match never {},
            }
        };
        (operator, watches)
    }

    /// Waits until Nodes have been read once.
    pub async fn ready(&self) {
        self.nodes.ready().await;
    }

    /// Does what only a leader does, for the SpotPools and drills of `namespaces`.
    pub async fn lead(self, namespaces: Vec<String>) -> Ended {
        let (drill_listener, drills_triggered) = mpsc::unbounded();
        let drill_parts = drill::Parts {
            nodes: self.nodes.clone(),
            workloads: self.workloads.clone(),
            vms: self.vms.clone(),
            agent_pools: self.agent_pools.clone(),
            clock: self.clock.clone(),
        };
        let (mut listeners, triggered): (Vec<_>, Vec<_>) = namespaces
            .iter()
            .map(|namespace| {
                let (listener, triggered) = mpsc::unbounded();
                (listener, (namespace.clone(), triggered))
            })
            .unzip();
        listeners.push(drill_listener);
        let parts = Parts {
            nodes: self.nodes.clone(),
            agent_pools: self.agent_pools.clone(),
            market: self.market.clone(),
            workloads: self.workloads.clone(),
            vms: self.vms.clone(),
            backup_drains: self.backup_drains,
            neighbours: self.neighbours.clone(),
            traces: self.traces.clone(),
        };
        let drills =
            drill::run(self.client.clone(), drill_parts, self.metrics.clone(), namespaces, drills_triggered);
        tokio::select! {
            () = self.trigger.clone().run(listeners) => Ended("the trigger"),
            () = self.agent_pools.keep_fresh() => Ended("the agent pool cache"),
            () = self.vms.keep_fresh() => Ended("the reading of VMs"),
            () = self.market.keep_fresh(&self.nodes, &self.agent_pools, &self.trigger) => Ended("the reading of prices"),
            never = self.neighbours.keep_fresh(self.client.clone(), &self.trigger) => match never {},
            never = self.traces.keep_looking() => match never {},
            () = self.workloads.keep_surveyed(&self.trigger) => Ended("the survey of workloads"),
            () = drills => Ended("the EvictionDrill controller"),
            () = pool::run(self.client.clone(), parts, self.metrics, triggered) => Ended("the SpotPool controller"),
        }
    }
}
