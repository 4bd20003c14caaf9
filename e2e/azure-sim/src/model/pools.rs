//! Agent pools: read, written, made and removed.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::operations::{Begin, Work};
use super::upgrades::Upgrade;
use super::{Accepted, Cloud, Conditions, Pool, Refused, later};
use crate::api::{ETags, GoneReason, PoolSpec, Priority, SettingsPatch, VmPhase};
use crate::body::{self, Properties};
use crate::events::Document;
use crate::names::{Fleet, FleetKind};
use crate::refusal::Refusal;

impl Cloud {
    /// All pools, as LIST answers them.
    pub fn list_pools(&self, version: &str) -> Vec<Value> {
        self.pools.iter().map(|(name, pool)| self.resource(name, pool, version)).collect()
    }

    /// One pool, as GET answers it.
    pub fn get_pool(&self, name: &str, version: &str) -> Result<Value, Refusal> {
        let pool = self.pools.get(name).ok_or_else(|| Refusal::no_pool(name))?;
        Ok(self.resource(name, pool, version))
    }

    fn resource(&self, name: &str, pool: &Pool, version: &str) -> Value {
        let mut resource = body::resource(&self.identity, name, &pool.properties, version);
        if self.switches(name).e_tags == ETags::Absent
            && let Some(properties) = resource["properties"].as_object_mut()
        {
            properties.remove("eTag");
        }
        resource
    }

    /// The count that ARM shows.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.pools.get(name).map(|pool| body::count(&pool.properties))
    }

    /// Creates or updates a pool, and reconciles its machines to `count`.
    pub fn put_pool(
        &mut self,
        name: &str,
        version: &str,
        sent: &Value,
        conditions: &Conditions,
        now: Timestamp,
    ) -> Result<Accepted, Refusal> {
        let given = body::parse(sent, version)?;
        let existing = self.pools.get(name);
        let windows = existing.map_or(&given, |pool| &pool.properties);
        body::check_name(name, body::text(windows, "osType") == "Windows")?;
        self.check_conditions(name, conditions)?;
        if let Some(busy) = self.busy(name) {
            return Err(busy);
        }
        let existing = self.pools.get(name);
        let created = existing.is_none();
        let properties = match existing {
            Some(pool) => body::update(name, &pool.properties, &given, self.switches(name))?,
            None => body::create(given)?,
        };
        let stopped = body::is_stopped(&properties);
        let was_stopped = existing.is_some_and(|pool| body::is_stopped(&pool.properties));
        let upgrade = existing.and_then(|pool| {
            let version = body::text(&properties, "orchestratorVersion");
            (version != body::text(&pool.properties, "currentOrchestratorVersion"))
                .then(|| version.to_owned())
        });
        let live = existing.map_or(0, |pool| pool.live().count() as u64);
        let wanted = if stopped { 0 } else { body::count(&properties) };
        let more = wanted.saturating_sub(live);
        let forecast = self.forecast(name, &properties, more, now)?;

        if created {
            self.insert_pool(name, properties);
        } else if let Some(pool) = self.pools.get_mut(name) {
            pool.properties = properties;
            pool.restore_at = None;
        }
        if stopped && !was_stopped {
            let removes = self.remove_all(name, GoneReason::PoolStopped, now);
            return Ok(self.begin(name, Begin { kind: "Stopping", removes, ..Begin::default() }, now));
        }
        if let Some(version) = upgrade.filter(|_| !stopped && more == 0 && wanted == live) {
            return Ok(self.begin_upgrade(name, Some(version), now));
        }
        let ordered = self.allocate(name, &forecast, now);
        let removes = self.scale_down(name, live.saturating_sub(wanted), now);
        let kind = if created {
            "Creating"
        } else if was_stopped && !stopped {
            "Starting"
        } else if more > 0 || !removes.is_empty() {
            "Scaling"
        } else {
            "Updating"
        };
        let fleet = self.pools.get(name).map(|pool| pool.fleet.clone());
        let nodes = ordered.iter().filter_map(|&id| Some(fleet.as_ref()?.node(id))).collect();
        let begin = Begin { kind, awaits: ordered, removes, fails: forecast.fails, ..Begin::default() };
        Ok(Accepted { created, ordered: nodes, ..self.begin(name, begin, now) })
    }

    /// Gives every machine of a pool the newest image.
    pub fn upgrade_image(&mut self, name: &str, now: Timestamp) -> Result<Accepted, Refusal> {
        if !self.pools.contains_key(name) {
            return Err(Refusal::no_pool(name));
        }
        if let Some(busy) = self.busy(name) {
            return Err(busy);
        }
        Ok(self.begin_upgrade(name, None, now))
    }

    fn begin_upgrade(&mut self, name: &str, version: Option<String>, now: Timestamp) -> Accepted {
        let kind = if version.is_some() { "Upgrading" } else { "UpgradingNodeImageVersion" };
        let current =
            self.pools.get(name).map_or("", |pool| body::text(&pool.properties, "nodeImageVersion"));
        let image = body::image(current, now);
        let Some((surge, machines)) = self.pools.get(name).map(|pool| {
            let machines: Vec<u64> = pool
                .live()
                .filter(|vm| vm.state.phase != VmPhase::Deallocated)
                .map(|vm| vm.state.instance_id)
                .collect();
            // Spot pools are upgraded in place: AKS documents neither surge nor drain for them.
            let spot = pool.priority() == Priority::Spot;
            (if spot { 0 } else { body::surge(&pool.properties, machines.len()) }, machines)
        }) else {
            return self.begin(name, Begin { kind, ..Begin::default() }, now);
        };
        let properties = self.pools.get(name).map(|pool| pool.properties.clone()).unwrap_or_default();
        let surge = if machines.is_empty() { 0 } else { surge as u64 };
        let (ordered, fails) = match self.forecast(name, &properties, surge, now) {
            Ok(forecast) => (self.allocate(name, &forecast, now), forecast.fails),
            Err(refusal) => (Vec::new(), Some((later(now, self.settings.fail_time), refusal.body()))),
        };
        let upgrade = Upgrade::new(version, image, machines, ordered);
        self.mark_image(name, &upgrade);
        self.begin(name, Begin { kind, fails, work: Work::Upgrade(upgrade), ..Begin::default() }, now)
    }

    /// Deletes a pool, whatever runs on it; nothing to do when there is none.
    pub fn delete_pool(
        &mut self,
        name: &str,
        conditions: &Conditions,
        now: Timestamp,
    ) -> Result<Option<Accepted>, Refusal> {
        self.check_conditions(name, conditions)?;
        let Some(pool) = self.pools.get(name) else { return Ok(None) };
        let system = |pool: &Pool| body::text(&pool.properties, "mode") == "System";
        if system(pool) && self.pools.values().filter(|pool| system(pool)).count() == 1 {
            return Err(Refusal::flat(
                400,
                "OperationNotAllowed",
                "There has to be at least one system agent pool.",
            ));
        }
        if let Some(operation) = &self.cluster_operation {
            return Err(Refusal::cluster_busy(&operation.kind));
        }
        if pool.provisioning_state() == "Deleting" {
            return Err(Refusal::busy(name, "Deleting"));
        }
        let fails = self.scripted(name, now)?;
        self.supersede(name, "AKSOperationPreemptedByDelete", "a delete operation", now);
        if fails.is_none() {
            self.remove_all(name, GoneReason::PoolRemoved, now);
        }
        let begin = Begin { kind: "Deleting", fails, work: Work::DeletePool, ..Begin::default() };
        Ok(Some(self.begin(name, begin, now)))
    }

    pub(super) fn check_conditions(&self, name: &str, conditions: &Conditions) -> Result<(), Refusal> {
        let current = self.pools.get(name).map(|pool| body::text(&pool.properties, "eTag"));
        let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        match (&conditions.if_match, &conditions.if_none_match) {
            (None, None) => Ok(()),
            (Some(_), Some(_)) => Err(Refusal::invalid_parameter(
                "The headers If-Match and If-None-Match can't be set at the same time.",
            )),
            (Some(wanted), None) => match current {
                None => Err(Refusal::precondition(
                    "Resource not found but ETag header is provided. Please remove the header to create the resource.",
                )),
                Some(tag) if bare(wanted) == "*" || bare(wanted) == tag => Ok(()),
                Some(tag) => Err(Refusal::precondition(format!(
                    "The provided ETag '{}' does not match the current ETag '{tag}' of the agent pool.",
                    bare(wanted)
                ))),
            },
            (None, Some(unwanted)) => match current {
                Some(tag) if bare(unwanted) == "*" || bare(unwanted) == tag => Err(Refusal::precondition(
                    "The agent pool already exists and the If-None-Match header does not allow that.",
                )),
                _ => Ok(()),
            },
        }
    }

    fn insert_pool(&mut self, name: &str, properties: Properties) {
        let kind = match body::text(&properties, "type") {
            "VirtualMachines" => FleetKind::VirtualMachines,
            _ => FleetKind::ScaleSet,
        };
        let fleet = Fleet::new(&self.identity, name, kind);
        let (next_instance, gone) = self.retired.remove(name).unwrap_or_default();
        self.pools.insert(
            name.to_owned(),
            Pool {
                fleet,
                properties,
                next_instance,
                vms: BTreeMap::new(),
                gone,
                events: Document::default(),
                operation: None,
                last_operation: None,
                restore_at: None,
            },
        );
    }

    /// Adds a pool whose machines run at once.
    pub fn add_pool(&mut self, spec: &PoolSpec, now: Timestamp) -> Result<(), Refused> {
        if self.pools.contains_key(&spec.name) {
            return Err(Refused::Invalid(format!("agent pool {} exists already", spec.name)));
        }
        let invalid = |refusal: Refusal| Refused::Invalid(refusal.message);
        let mut sent = json!({"count": spec.count, "vmSize": spec.vm_size});
        if spec.priority == Priority::Spot {
            sent["scaleSetPriority"] = json!("Spot");
        }
        if !spec.zones.is_empty() {
            sent["availabilityZones"] = json!(spec.zones);
        }
        for (key, value) in &spec.properties {
            sent[key] = value.clone();
        }
        let newest = body::VERSIONS.last().copied().unwrap_or_default();
        let given = body::parse(&json!({"properties": sent}), newest).map_err(invalid)?;
        body::check_name(&spec.name, body::text(&given, "osType") == "Windows").map_err(invalid)?;
        let properties = body::create(given).map_err(invalid)?;
        if let Some(changes) = &spec.switches {
            self.set_pool_switches(&spec.name, changes)?;
        }
        let (count, size) = (body::count(&properties), body::text(&properties, "vmSize").to_owned());
        self.insert_pool(&spec.name, properties);
        for _ in 0..count {
            let zone = self.emptiest_zone(&spec.name, &spec.zones, &BTreeMap::new());
            self.add_vm(&spec.name, &size, spec.priority, zone, now, now);
        }
        let tag = self.ids.guid();
        if let Some(pool) = self.pools.get_mut(&spec.name) {
            pool.set("provisioningState", json!("Succeeded"));
            pool.set("eTag", json!(tag));
        }
        self.nodes_version += 1;
        Ok(())
    }

    /// Removes a pool and its machines at once.
    pub fn remove_pool(&mut self, name: &str, now: Timestamp) -> Result<(), Refused> {
        let pool = self.pools.get(name).ok_or_else(|| Refused::NotFound(format!("no agent pool {name}")))?;
        let ids: Vec<u64> = pool.vms.keys().copied().collect();
        self.supersede(name, "AKSOperationPreemptedByDelete", "a delete operation", now);
        for id in ids {
            self.remove_vm(name, id, GoneReason::PoolRemoved, now);
        }
        self.forget_pool(name);
        Ok(())
    }

    /// A pool without machines is no more.
    pub(super) fn forget_pool(&mut self, name: &str) {
        if let Some(pool) = self.pools.remove(name) {
            self.past_events.extend(pool.events.states().cloned());
            self.retired.insert(name.to_owned(), (pool.next_instance, pool.gone));
        }
        self.switches.remove(name);
    }

    /// Changes settings from now on.
    pub fn patch_settings(&mut self, patch: &SettingsPatch) -> Result<(), Refused> {
        if let Some(changes) = &patch.switches {
            self.settings.switches = self.settings.switches.with(changes).map_err(Refused::Invalid)?;
            self.refresh_pool_switches();
        }
        let settings = &mut self.settings;
        let pairs = [
            (&mut settings.boot_time, patch.boot_time),
            (&mut settings.delete_time, patch.delete_time),
            (&mut settings.fail_time, patch.fail_time),
            (&mut settings.update_time, patch.update_time),
            (&mut settings.kill_after, patch.kill_after),
            (&mut settings.started_for, patch.started_for),
            (&mut settings.imds_first_answer, patch.imds_first_answer),
        ];
        for (setting, value) in pairs {
            if let Some(value) = value {
                *setting = value;
            }
        }
        if let Some(follows) = patch.count_follows_evictions {
            settings.count_follows_evictions = follows;
        }
        if let Some(after) = patch.count_after_failure {
            settings.count_after_failure = after;
        }
        Ok(())
    }

    /// Gives a pool switches of its own; `null` takes them away. The pool need not exist yet.
    pub fn set_pool_switches(&mut self, name: &str, changes: &Value) -> Result<(), Refused> {
        if changes.is_null() {
            self.switches.remove(name);
            return Ok(());
        }
        let mut all = self.switches.get(name).map_or_else(|| json!({}), |(changes, _)| changes.clone());
        if let (Some(all), Some(changes)) = (all.as_object_mut(), changes.as_object()) {
            all.extend(changes.clone());
        } else {
            return Err(Refused::Invalid("switches must be an object".into()));
        }
        let resolved = self.settings.switches.of_pool(&all).map_err(Refused::Invalid)?;
        self.switches.insert(name.to_owned(), (all, resolved));
        Ok(())
    }

    fn refresh_pool_switches(&mut self) {
        for (changes, resolved) in self.switches.values_mut() {
            if let Ok(fresh) = self.settings.switches.of_pool(changes) {
                *resolved = fresh;
            }
        }
    }

    /// Evictions took an autoscaled pool below its least: the cluster autoscaler brings it back.
    pub(super) fn restore_min_count(&mut self, name: &str, now: Timestamp) {
        let Some(pool) = self.pools.get(name) else { return };
        if pool.restore_at.is_none_or(|at| at > now) || self.busy(name).is_some() {
            return;
        }
        let min = body::min_count(&pool.properties);
        let properties = pool.properties.clone();
        let live = pool.live().count() as u64;
        if let Some(pool) = self.pools.get_mut(name) {
            pool.restore_at = None;
        }
        let Ok(forecast) = self.forecast(name, &properties, min.saturating_sub(live), now) else { return };
        if let Some(pool) = self.pools.get_mut(name) {
            pool.set("count", json!(min));
        }
        let awaits = self.allocate(name, &forecast, now);
        let begin =
            Begin { kind: "Scaling", awaits, fails: forecast.fails, background: true, ..Begin::default() };
        self.begin(name, begin, now);
    }

    /// Deletes the named machines and lowers `count` by them.
    pub fn delete_machines(
        &mut self,
        name: &str,
        sent: &Value,
        conditions: &Conditions,
        now: Timestamp,
    ) -> Result<Accepted, Refusal> {
        self.check_conditions(name, conditions)?;
        let pool = self.pools.get(name).ok_or_else(|| Refusal::no_pool(name))?;
        let wanted = sent.get("machineNames").and_then(Value::as_array);
        let valid: BTreeMap<&str, u64> =
            pool.live().map(|vm| (vm.state.node.as_str(), vm.state.instance_id)).collect();
        let chosen: Option<HashSet<u64>> = wanted
            .filter(|names| !names.is_empty())
            .and_then(|names| names.iter().map(|name| valid.get(name.as_str()?).copied()).collect());
        let Some(chosen) = chosen else {
            let valid: Vec<&str> = valid.into_keys().collect();
            return Err(Refusal::wrapped(
                400,
                "InvalidParameter",
                format!(
                    "Cannot find any valid machines to delete. Please check your input machine names. The valid machines to delete in agent pool '{name}' are: {}.",
                    valid.join(", ")
                ),
            ));
        };
        if let Some(busy) = self.busy(name) {
            return Err(busy);
        }
        let fails = self.scripted(name, now)?;
        if fails.is_some() {
            return Ok(self.begin(name, Begin { kind: "Scaling", fails, ..Begin::default() }, now));
        }
        let at = later(now, self.settings.delete_time);
        if let Some(pool) = self.pools.get_mut(name) {
            for id in &chosen {
                if let Some(vm) = pool.vms.get_mut(id) {
                    vm.state.phase = VmPhase::Deleting;
                    vm.gone_due = Some((at, GoneReason::Deleted));
                }
            }
            let count = body::count(&pool.properties).saturating_sub(chosen.len() as u64);
            pool.set("count", json!(count));
        }
        Ok(self.begin(name, Begin { kind: "Scaling", removes: chosen, ..Begin::default() }, now))
    }
}
