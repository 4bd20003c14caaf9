//! The scenario that plays by itself.

use std::collections::VecDeque;
use std::mem;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Cloud, Conditions, Refused, later};
use crate::api::{EventRequest, Priority, SettingsPatch, StepState, Targets};
use crate::body;
use crate::refusal::Refusal;
use crate::scenario::{Action, Evict, Scenario};

/// Steps to come and steps done.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    /// In the order of time; each with its place among `steps`.
    coming: VecDeque<(Timestamp, usize, Action)>,
    steps: Vec<StepState>,
}

impl Timeline {
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.coming.front().map(|(at, ..)| *at)
    }

    pub(super) fn next(&mut self, now: Timestamp) -> Option<(Timestamp, (usize, Action))> {
        self.due().filter(|at| *at <= now)?;
        self.coming.pop_front().map(|(at, place, action)| (at, (place, action)))
    }

    pub(super) fn states(&self) -> Vec<StepState> {
        self.steps.clone()
    }

    fn add(&mut self, at: Timestamp, action: Action) {
        let state = StepState { at, action: json!(action), done_at: None, error: None };
        let place = self.coming.iter().position(|(other, ..)| *other > at).unwrap_or(self.coming.len());
        self.coming.insert(place, (at, self.steps.len(), action));
        self.steps.push(state);
    }
}

impl Cloud {
    /// Begins a scenario: its settings and pools hold from now on, its timeline is counted from now.
    pub fn begin_scenario(&mut self, scenario: &Scenario, now: Timestamp) -> Result<(), Refused> {
        self.patch_settings(&scenario.settings)?;
        for pool in &scenario.pools {
            self.add_pool(pool, now)
                .map_err(|refused| Refused::Invalid(format!("pool {}: {refused}", pool.name)))?;
        }
        for capacity in &scenario.capacity {
            self.set_capacity(capacity.clone());
        }
        for quota in &scenario.quotas {
            self.set_quota(quota.clone());
        }
        for step in &scenario.timeline {
            self.timeline.add(later(now, step.at), step.action.clone());
        }
        Ok(())
    }

    /// Does one step; what it cannot do is on record with it.
    pub(super) fn play(&mut self, (place, action): (usize, Action), now: Timestamp) {
        let result = self.act(action, now);
        if let Some(step) = self.timeline.steps.get_mut(place) {
            step.done_at = Some(now);
            step.error = result.err().map(|refused| refused.to_string());
            if let Some(error) = &step.error {
                tracing::warn!(action = %step.action, error, "a step of the scenario could not be done");
            }
        }
    }

    /// Does what a step of a scenario says.
    pub fn act(&mut self, action: Action, now: Timestamp) -> Result<(), Refused> {
        let refused = |refusal: Refusal| Refused::Invalid(format!("{}: {}", refusal.code, refusal.message));
        match action {
            Action::Evict(evict) => self.evict(evict, now)?,
            Action::Event(request) => drop(self.schedule(&request, now)?),
            Action::Cancel(what) => drop(self.cancel(&what, now)?),
            Action::Kill(targets) => drop(self.kill(&targets, now)?),
            Action::Capacity(capacity) => self.set_capacity(capacity),
            Action::Quota(quota) => self.set_quota(quota),
            Action::Fault(fault) => drop(self.faults.add(fault)),
            Action::ClearFaults(_) => self.faults.clear_all(),
            Action::Failure(failure) => self.add_failure(failure),
            Action::Operation(operation) => self.begin_background(&operation, now)?,
            Action::ChangeETags(_) => self.change_e_tags(),
            Action::Upgrade(upgrade) => match upgrade.kubernetes {
                None => drop(self.upgrade_image(&upgrade.pool, now).map_err(refused)?),
                Some(version) => {
                    self.put_by_somebody(&upgrade.pool, &json!({"orchestratorVersion": version}), now)?;
                }
            },
            Action::Stop(pool) => {
                self.put_by_somebody(&pool, &json!({"powerState": {"code": "Stopped"}}), now)?;
            }
            Action::Start(pool) => {
                self.put_by_somebody(&pool, &json!({"powerState": {"code": "Running"}}), now)?;
            }
            Action::Scale(scale) => {
                self.put_by_somebody(&scale.pool, &json!({"count": scale.count}), now)?;
            }
            Action::Settings(patch) => self.patch_settings(&patch)?,
            Action::Switches(switches) => match &switches.pool {
                Some(pool) => self.set_pool_switches(pool, &switches.set)?,
                None => self.patch_settings(&SettingsPatch::switches(switches.set))?,
            },
            Action::SpotPrice(spot) => {
                let price = spot.price.map(|price| price.to_string());
                self.market.set_price(&spot.vm_size, Priority::Spot, price.as_deref(), now)?;
            }
            Action::EvictionRate(change) => self.market.set_band(&change.vm_size, change.band.as_deref())?,
            Action::Auth(patch) => self.tokens.patch(patch),
            Action::RevokeTokens(_) => drop(self.tokens.revoke_all()),
            Action::PlacementScore(change) => self.market.set_score(change, &self.identity.location)?,
            Action::AddPool(spec) => self.add_pool(&spec, now)?,
            Action::RemovePool(name) => self.remove_pool(&name, now)?,
        }
        Ok(())
    }

    fn evict(&mut self, evict: Evict, now: Timestamp) -> Result<(), Refused> {
        let targets = Targets { names: evict.names, pool: evict.pool, count: evict.count };
        let events = self.schedule(&EventRequest::new("Preempt", targets, evict.notice), now)?;
        if let Some(after) = evict.cancel_after {
            for event in events {
                self.timeline.add(later(now, after), Action::Cancel(event.event_id));
            }
        }
        Ok(())
    }

    /// A write by somebody who is not the caller under test: not on record, and in no bucket.
    fn put_by_somebody(&mut self, pool: &str, properties: &Value, now: Timestamp) -> Result<(), Refused> {
        if !self.pools.contains_key(pool) {
            return Err(Refused::NotFound(format!("no agent pool {pool}")));
        }
        let newest = body::VERSIONS.last().copied().unwrap_or_default();
        let body = json!({"properties": properties});
        // The failures that a scenario has in store are for the caller under test.
        let failures = mem::take(&mut self.failures);
        let put = self.put_pool(pool, newest, &body, &Conditions::default(), now);
        self.failures = failures;
        put.map(drop).map_err(|refusal| Refused::Invalid(format!("{}: {}", refusal.code, refusal.message)))
    }
}
