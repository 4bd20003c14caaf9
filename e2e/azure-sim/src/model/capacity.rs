//! What there is room for: capacity by size, priority and zone, quotas in cores, and what spot costs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{Cloud, later};
use crate::api::{Allocation, Capacity, Failure, Priority, Quota, QuotaRefusal, VmPhase};
use crate::body::{self, Properties};
use crate::failures::{FailureKind, Order, QuotaUse, Shows, tell};
use crate::refusal::Refusal;

/// The quota that all spot machines count against.
pub const LOW_PRIORITY: &str = "LowPriorityCores";
/// The quota that all on-demand machines count against.
pub const ALL_CORES: &str = "cores";

/// What an order will bring.
#[derive(Debug, Clone, Default)]
pub(super) struct Forecast {
    /// The zone of each machine that comes.
    pub(super) zones: Vec<Option<String>>,
    /// When and why the rest is refused.
    pub(super) fails: Option<(Timestamp, Value)>,
}

/// A failure that a scenario asked for.
struct Scripted {
    /// Machines that come all the same.
    allocated: u64,
    at: Timestamp,
    error: Value,
}

/// Cores of a size, by the first number in its name.
pub fn cores(vm_size: &str) -> u64 {
    let digits: String = vm_size
        .trim_start_matches("Standard_")
        .chars()
        .skip_while(|letter| !letter.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(2)
}

/// The quota of a size's family: `standardDSv5Family` of `Standard_D8s_v5`.
pub fn family(vm_size: &str) -> String {
    let name = vm_size.trim_start_matches("Standard_");
    let (size, version) = name.split_once('_').unwrap_or((name, ""));
    let letters: String = size.chars().filter(|letter| !letter.is_ascii_digit()).collect();
    format!("standard{}{version}Family", letters.to_ascii_uppercase())
}

impl Cloud {
    /// Limits the machines of a size and priority, in one zone or all.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        let key = (capacity.vm_size.to_lowercase(), capacity.priority, capacity.zone.clone());
        if capacity.limit.is_none() {
            self.capacity.remove(&key);
        } else {
            self.capacity.insert(key, capacity);
        }
    }

    /// Limits the cores of the subscription. Machines of this cluster are the only ones that use any.
    pub fn set_quota(&mut self, quota: Quota) {
        if quota.limit.is_none() {
            self.quotas.remove(&quota.name.to_lowercase());
        } else {
            self.quotas.insert(quota.name.to_lowercase(), quota);
        }
    }

    /// Writes to come fail so.
    pub fn add_failure(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// No write to come fails for having been told to.
    pub fn clear_failures(&mut self) {
        self.failures.clear();
    }

    /// When and why a write that orders nothing is to fail.
    pub(super) fn scripted(
        &mut self,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<(Timestamp, Value)>, Refusal> {
        let properties = self.pools.get(name).map(|pool| pool.properties.clone()).unwrap_or_default();
        Ok(self.next_failure(name, &properties, 0, now)?.map(|failure| (failure.at, failure.error)))
    }

    /// The failure that a scenario has in store for a write that orders so many machines.
    fn next_failure(
        &mut self,
        name: &str,
        properties: &Properties,
        ordered: u64,
        now: Timestamp,
    ) -> Result<Option<Scripted>, Refusal> {
        let Some(place) = self.failures.iter().position(|failure| {
            failure.pool.as_deref().is_none_or(|pool| pool == name)
                && (ordered > 0 || !failure.error.needs_an_order())
        }) else {
            return Ok(None);
        };
        let failure = self.failures[place].clone();
        if failure.times <= 1 {
            self.failures.remove(place);
        } else {
            self.failures[place].times -= 1;
        }
        let at = later(now, failure.after.unwrap_or(self.settings.fail_time));
        let error = self.tell(&failure.error, properties, ordered)?;
        Ok(Some(Scripted { allocated: u64::from(failure.allocated), at, error }))
    }

    /// The failure in Azure's words, for this pool.
    fn tell(&self, kind: &FailureKind, properties: &Properties, ordered: u64) -> Result<Value, Refusal> {
        let (vm_size, priority) = (body::text(properties, "vmSize"), body::priority(properties));
        let zones = body::texts(properties, "availabilityZones");
        let order = Order {
            vm_size,
            location: &self.identity.location,
            zones: &zones,
            priority,
            quota: self.exceeded_quota(vm_size, priority, ordered).unwrap_or_else(|| {
                // Nothing is exceeded: the scenario says so all the same.
                let name = quota_names(vm_size, priority).remove(0);
                let usage = self.cores_in_use(&name);
                QuotaUse { limit: usage, usage, required: ordered * cores(vm_size), name }
            }),
            max_price: max_price(properties),
            price: self.market.spot_price(vm_size).unwrap_or_default(),
        };
        match tell(kind, &order) {
            Shows::AtOnce(refusal) => Err(refusal),
            Shows::Later(error) => Ok(error),
        }
    }

    /// Whether an order will be had, and as much of it as will.
    pub(super) fn forecast(
        &mut self,
        name: &str,
        properties: &Properties,
        wanted: u64,
        now: Timestamp,
    ) -> Result<Forecast, Refusal> {
        let scripted = self.next_failure(name, properties, wanted, now)?;
        if wanted == 0 {
            let fails = scripted.map(|failure| (failure.at, failure.error));
            return Ok(Forecast { zones: Vec::new(), fails });
        }
        let (vm_size, priority) = (body::text(properties, "vmSize"), body::priority(properties));
        let zones = body::texts(properties, "availabilityZones");
        let fail_at = later(now, self.settings.fail_time);
        if scripted.is_none() {
            let price = self.market.spot_price(vm_size).unwrap_or_default();
            let most = max_price(properties);
            if priority == Priority::Spot && most > 0.0 && price > most {
                let kind = FailureKind::SpotPriceGreaterThanProvidedMaxPrice;
                let fails = Some((fail_at, self.tell(&kind, properties, wanted)?));
                return Ok(Forecast { zones: Vec::new(), fails });
            }
            if self.exceeded_quota(vm_size, priority, wanted).is_some() {
                let kind = match self.switches(name).quota_refusal {
                    QuotaRefusal::AfterAcceptance => FailureKind::QuotaExceeded,
                    QuotaRefusal::AtOnce => FailureKind::InsufficientVcpuQuota,
                };
                let fails = Some((fail_at, self.tell(&kind, properties, wanted)?));
                return Ok(Forecast { zones: Vec::new(), fails });
            }
        }
        let (limit, scripted_fails) = match scripted {
            Some(failure) => (failure.allocated.min(wanted), Some((failure.at, failure.error))),
            None => (wanted, None),
        };
        let mut come: Vec<Option<String>> = Vec::new();
        let mut tried: BTreeMap<Option<String>, usize> = BTreeMap::new();
        let mut short: Option<Capacity> = None;
        for _ in 0..limit {
            let zone = self.emptiest_zone(name, &zones, &tried);
            *tried.entry(zone.clone()).or_default() += 1;
            let full = [None, zone.clone()].into_iter().find_map(|place| {
                let key = (vm_size.to_lowercase(), priority, place.clone());
                let capacity = self.capacity.get(&key)?;
                let ordered = come.iter().filter(|other| place.is_none() || **other == place).count();
                let used = self.machines_in(vm_size, priority, place.as_deref()) + ordered;
                (used >= capacity.limit.map_or(usize::MAX, |limit| limit as usize)).then_some(capacity)
            });
            match full {
                Some(capacity) => short = Some(capacity.clone()),
                None => come.push(zone),
            }
        }
        let mut fails = scripted_fails;
        if let Some(capacity) = short {
            if self.switches(name).allocation == Allocation::AllOrNothing {
                come.clear();
            }
            let kind = match &capacity.zone {
                Some(_) => FailureKind::ZonalAllocationFailed,
                None => FailureKind::SkuNotAvailable,
            };
            let mut of_zone = properties.clone();
            if let Some(zone) = &capacity.zone {
                of_zone.insert("availabilityZones".into(), serde_json::json!([zone]));
            }
            let error = match capacity.error {
                Some(error) => error,
                None => self.tell(&kind, &of_zone, wanted)?,
            };
            fails = fails.or(Some((fail_at, error)));
        }
        Ok(Forecast { zones: come, fails })
    }

    /// Machines that take up room: deallocated ones do not.
    fn machines_in(&self, vm_size: &str, priority: Priority, zone: Option<&str>) -> usize {
        self.pools
            .values()
            .flat_map(|pool| pool.vms.values())
            .filter(|vm| vm.state.vm_size.eq_ignore_ascii_case(vm_size) && vm.state.priority == priority)
            .filter(|vm| vm.state.phase != VmPhase::Deallocated)
            .filter(|vm| zone.is_none() || vm.state.zone.as_deref() == zone)
            .count()
    }

    /// Whether a machine that was deallocated may run again.
    pub(super) fn has_room(&self, vm_size: &str, priority: Priority, zone: Option<&str>) -> bool {
        [None, zone].into_iter().all(|place| {
            let key = (vm_size.to_lowercase(), priority, place.map(ToOwned::to_owned));
            let limit = self.capacity.get(&key).and_then(|capacity| capacity.limit);
            limit.is_none_or(|limit| self.machines_in(vm_size, priority, place) < limit as usize)
        })
    }

    /// Cores that machines of this quota use, deallocated ones included.
    fn cores_in_use(&self, quota: &str) -> u64 {
        self.pools
            .values()
            .flat_map(|pool| pool.vms.values())
            .filter(|vm| {
                let names = quota_names(&vm.state.vm_size, vm.state.priority);
                names.iter().any(|name| name.eq_ignore_ascii_case(quota))
            })
            .map(|vm| cores(&vm.state.vm_size))
            .sum()
    }

    fn exceeded_quota(&self, vm_size: &str, priority: Priority, wanted: u64) -> Option<QuotaUse> {
        quota_names(vm_size, priority).into_iter().find_map(|name| {
            let limit = u64::from(self.quotas.get(&name.to_lowercase())?.limit?);
            let (usage, required) = (self.cores_in_use(&name), wanted * cores(vm_size));
            (usage + required > limit).then_some(QuotaUse { name, limit, usage, required })
        })
    }
}

/// The quotas that a machine counts against.
fn quota_names(vm_size: &str, priority: Priority) -> Vec<String> {
    match priority {
        Priority::Spot => vec![LOW_PRIORITY.to_owned()],
        Priority::Regular => vec![family(vm_size), ALL_CORES.to_owned()],
    }
}

fn max_price(properties: &Properties) -> f64 {
    properties.get("spotMaxPrice").and_then(Value::as_f64).unwrap_or(-1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_cores_and_families() {
        for (size, count, name) in [
            ("Standard_D8s_v5", 8, "standardDSv5Family"),
            ("Standard_E16as_v4", 16, "standardEASv4Family"),
            ("Standard_D2_v2", 2, "standardDv2Family"),
            ("Standard_B2ms", 2, "standardBMSFamily"),
        ] {
            assert_eq!((cores(size), family(size).as_str()), (count, name));
        }
    }
}
