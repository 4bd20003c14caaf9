//! A cloud on a clock of the test's own, and what tests ask of it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use spotpool_azure_sim::api::{
    EventRequest, Identity, OperationState, PoolSpec, PoolState, Settings, State, Targets, VmState,
};
use spotpool_azure_sim::model::{Accepted, Cloud, Conditions, later};
use spotpool_azure_sim::refusal::Refusal;

use crate::VERSION;

/// A cloud and its time.
pub struct Azure {
    pub cloud: Cloud,
    pub now: Timestamp,
}

impl Azure {
    /// Machines register as they boot.
    pub fn with(pools: &[PoolSpec]) -> Self {
        Self::new(pools, false)
    }

    /// With `external_nodes`, somebody must say which Nodes there are.
    pub fn new(pools: &[PoolSpec], external_nodes: bool) -> Self {
        let now = "2026-08-01T05:40:32Z".parse().unwrap();
        let mut cloud = Cloud::new(Identity::default(), Settings::default(), external_nodes, 1);
        for pool in pools {
            cloud.add_pool(pool, now).unwrap();
        }
        cloud.advance(now);
        Self { cloud, now }
    }

    pub fn pass(&mut self, seconds: u64) -> &mut Self {
        self.now = later(self.now, Duration::from_secs(seconds));
        self.cloud.advance(self.now);
        self
    }

    /// As a driver would: from one thing that is due to the next.
    pub fn settle(&mut self) -> &mut Self {
        for _ in 0..1000 {
            let Some(due) = self.cloud.due(self.now) else { return self };
            self.now = due;
            self.cloud.advance(due);
        }
        unreachable!("something is due for ever");
    }

    pub fn state(&self) -> State {
        self.cloud.state(self.now)
    }

    pub fn pool(&self, name: &str) -> PoolState {
        self.state().pool(name).unwrap().clone()
    }

    pub fn properties(&self, name: &str) -> Value {
        self.cloud.get_pool(name, VERSION).unwrap()["properties"].clone()
    }

    pub fn vms(&self, pool: &str) -> Vec<VmState> {
        self.state().vms_of(pool).cloned().collect()
    }

    #[allow(clippy::needless_pass_by_value, reason = "each caller makes it up on the spot")]
    pub fn put(&mut self, pool: &str, properties: Value) -> Result<Accepted, Refusal> {
        let body = json!({"properties": properties});
        let accepted = self.cloud.put_pool(pool, VERSION, &body, &Conditions::default(), self.now);
        self.cloud.advance(self.now);
        accepted
    }

    pub fn switch(&mut self, pool: &str, changes: &Value) {
        self.cloud.set_pool_switches(pool, changes).unwrap();
    }

    /// A Preempt with no time to lose, done and over.
    pub fn evict(&mut self, pool: &str, count: u32) -> &mut Self {
        let request = EventRequest::new("Preempt", Targets::of_pool(pool, count), Duration::ZERO);
        self.cloud.schedule(&request, self.now).unwrap();
        self.cloud.advance(self.now);
        self.pass(3)
    }

    pub fn operation(&self, accepted: &Accepted) -> OperationState {
        self.cloud.operation(&accepted.operation).unwrap().0.clone()
    }

    pub fn status(&self, accepted: &Accepted) -> String {
        format!("{:?}", self.operation(accepted).status)
    }
}
