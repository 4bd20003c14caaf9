//! Bodies of agent pools: read from Azure's JSON, and edited without losing what we do not know.

use std::collections::{BTreeMap, BTreeSet};

use azure_mgmt_containerservice::package_preview_2023_01::models;
use jiff::Timestamp;
use serde_json::{Map, Number, Value, json};

use crate::agent_pools::{
    AgentPool, AgentPoolKind, AgentPoolMode, CreateAgentPool, Difference, EvictionPolicy, MaxPrice, Priority,
};
use crate::error::{AzureError, Class};

/// What a PUT must not send back.
///
/// `id`, `name` and `type` are in the URL, `systemData` is ARM's.
const READ_ONLY: [&str; 4] = ["id", "name", "type", "systemData"];

/// … and among the properties.
///
/// Azure's own SDKs and az CLI leave out the first three as read-only, and send everything else as it was read;
/// so do we, `powerState` and `virtualMachineNodesStatus` included, but for two:
/// - `nodeImageVersion` is read-only in older versions, and in newer ones setting it *rolls the agent pool back*;
/// - `status` holds nothing but the last error.
const READ_ONLY_PROPERTIES: [&str; 5] =
    ["eTag", "currentOrchestratorVersion", "provisioningState", "nodeImageVersion", "status"];

/// Added by AKS to every spot agent pool, whatever was asked for. Older ones have the first as the key.
const SPOT_LABELS: [&str; 2] = ["kubernetes.azure.com/scalesetpriority", "kubernetes.azure.com/priority"];
const SPOT_TAINT: &str = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule";

/// Reads one agent pool: by the SDK's model what that knows, from the JSON what it does not, and all of it
/// from the JSON where the model fails, since one odd field must not hide an agent pool.
pub(crate) fn agent_pool(body: Value, read_at: Timestamp) -> Result<AgentPool, &'static str> {
    let name = string(body.get("name"));
    if name.is_empty() {
        return Err("it has no name");
    }
    let Some(raw) = body.get("properties").filter(|it| it.is_object()) else {
        return Err("it has no properties");
    };
    let known = match serde_json::from_value::<models::AgentPool>(body.clone()) {
        Ok(typed) => Known::typed(typed.properties.unwrap_or_default(), raw),
        Err(error) => {
            odd(&name, &error);
            Known::raw(raw)
        }
    };
    let kind = match string(raw.get("type")).as_str() {
        "" | "VirtualMachineScaleSets" => AgentPoolKind::VirtualMachineScaleSets,
        "VirtualMachines" => AgentPoolKind::VirtualMachines,
        _ => AgentPoolKind::Other,
    };
    let priority =
        if known.priority.eq_ignore_ascii_case("Spot") { Priority::Spot } else { Priority::Regular };
    let spot = priority == Priority::Spot;
    let etag = string(raw.get("eTag"));
    let optional = |text: String| (!text.is_empty()).then_some(text);
    Ok(AgentPool {
        count: manual_count(raw).or(known.count).unwrap_or(0),
        priority,
        mode: match known.mode.to_ascii_lowercase().as_str() {
            "system" => AgentPoolMode::System,
            "gateway" => AgentPoolMode::Gateway,
            _ => AgentPoolMode::User,
        },
        kind,
        autoscaled: known.autoscaled
            || raw.pointer("/virtualMachinesProfile/scale/autoscale").is_some_and(|scale| !is_empty(scale)),
        min_count: known.min_count,
        max_count: known.max_count,
        vm_size: known.vm_size,
        zones: known.zones,
        eviction_policy: spot.then(|| {
            let deallocate = known.eviction_policy.eq_ignore_ascii_case("Deallocate");
            if deallocate { EvictionPolicy::Deallocate } else { EvictionPolicy::Delete }
        }),
        spot_max_price: known.spot_max_price.filter(|price| spot && *price > 0.0),
        stopped: known.power_state.eq_ignore_ascii_case("Stopped"),
        provisioning_state: known.provisioning_state,
        provisioning_error: raw
            .pointer("/status/provisioningError")
            .filter(|error| error.get("code").is_some())
            .map(|error| AzureError::from_operation(Some(error))),
        labels: strings_of(raw.get("nodeLabels")),
        taints: strings(raw.get("nodeTaints")),
        initialization_taints: strings(raw.get("nodeInitializationTaints")),
        node_image_version: optional(string(raw.get("nodeImageVersion"))),
        kubernetes_version: optional(string(raw.get("currentOrchestratorVersion")))
            .or_else(|| optional(string(raw.get("orchestratorVersion")))),
        etag: optional(etag),
        name,
        read_at,
        body,
    })
}

/// Said once for each agent pool: lists come every 90 s.
fn odd(name: &str, error: &serde_json::Error) {
    use std::sync::{Mutex, PoisonError};
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.len() < 1_000 && said.insert(name.to_owned()) {
        tracing::warn!(agent_pool = name, %error, "Azure's SDK cannot read this agent pool; reading what we need without it");
    }
}

/// What both ways of reading give.
#[derive(Debug, PartialEq)]
struct Known {
    count: Option<u32>,
    min_count: Option<u32>,
    max_count: Option<u32>,
    autoscaled: bool,
    priority: String,
    mode: String,
    vm_size: String,
    zones: Vec<String>,
    eviction_policy: String,
    spot_max_price: Option<f64>,
    power_state: String,
    provisioning_state: String,
}

impl Known {
    fn typed(typed: models::ManagedClusterAgentPoolProfileProperties, raw: &Value) -> Self {
        let number = |value: Option<i32>| value.and_then(|value| value.try_into().ok());
        Self {
            count: number(typed.count),
            min_count: number(typed.min_count),
            max_count: number(typed.max_count),
            autoscaled: typed.enable_auto_scaling.unwrap_or(false),
            // Enums that the model does not know keep their text only in the JSON.
            priority: string(raw.get("scaleSetPriority")),
            mode: string(raw.get("mode")),
            vm_size: typed.vm_size.unwrap_or_default(),
            zones: typed.availability_zones,
            eviction_policy: string(raw.get("scaleSetEvictionPolicy")),
            spot_max_price: typed.spot_max_price,
            power_state: string(raw.pointer("/powerState/code")),
            provisioning_state: typed.provisioning_state.unwrap_or_default(),
        }
    }

    fn raw(raw: &Value) -> Self {
        let number = |name: &str| {
            let value = raw.get(name)?;
            // A number in a string, or 3.0, is still meant as one.
            let value = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
            (value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value)).then_some(value as u32)
        };
        let truth = |value: &Value| value.as_bool().or_else(|| value.as_str()?.parse().ok());
        let price = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
        Self {
            count: number("count"),
            min_count: number("minCount"),
            max_count: number("maxCount"),
            autoscaled: raw.get("enableAutoScaling").and_then(truth).unwrap_or(false),
            priority: string(raw.get("scaleSetPriority")),
            mode: string(raw.get("mode")),
            vm_size: string(raw.get("vmSize")),
            zones: strings(raw.get("availabilityZones")),
            eviction_policy: string(raw.get("scaleSetEvictionPolicy")),
            spot_max_price: raw.get("spotMaxPrice").and_then(price),
            power_state: string(raw.pointer("/powerState/code")),
            provisioning_state: string(raw.get("provisioningState")),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn string(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    value.and_then(Value::as_array).into_iter().flatten().filter_map(text).collect()
}

fn strings_of(value: Option<&Value>) -> BTreeMap<String, String> {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The machines of a pool of single VMs: the sum over its sizes.
fn manual_count(raw: &Value) -> Option<u32> {
    let sizes = raw.pointer("/virtualMachinesProfile/scale/manual")?.as_array()?;
    let counts = sizes.iter().map(|size| size.get("count").and_then(Value::as_u64).unwrap_or(0));
    counts.fold(0, u64::saturating_add).try_into().ok()
}

/// The body to send for another count.
pub(crate) fn with_count(pool: &AgentPool, count: u32) -> Result<Value, AzureError> {
    if pool.autoscaled {
        return Err(refused("the agent pool is autoscaled: its count is the autoscaler's"));
    }
    let mut body = writable(&pool.body);
    let properties = properties(&mut body)?;
    if pool.kind == AgentPoolKind::VirtualMachines {
        set_manual_count(properties, pool.count, count)?;
        if properties.contains_key("count") {
            properties.insert("count".into(), json!(count));
        }
    } else {
        properties.insert("count".into(), json!(count));
    }
    Ok(body)
}

/// Where there are several sizes, more machines are of the first, and fewer are not for us to choose.
fn set_manual_count(properties: &mut Map<String, Value>, before: u32, count: u32) -> Result<(), AzureError> {
    let sizes = properties
        .get_mut("virtualMachinesProfile")
        .and_then(|profile| profile.pointer_mut("/scale/manual"))
        .and_then(Value::as_array_mut)
        .map(Vec::as_mut_slice);
    let (first, others) = match sizes {
        Some([first, others @ ..]) if first.is_object() => (first, others.len()),
        _ => return Err(refused("the agent pool of single VMs has no sizes")),
    };
    if others > 0 && count < before {
        return Err(refused("machines of an agent pool with several VM sizes are only deleted by name"));
    }
    let of_first = first.get("count").and_then(Value::as_u64).unwrap_or(0);
    first["count"] = json!(of_first.saturating_add(count.into()).saturating_sub(before.into()));
    Ok(())
}

/// The body to send for another range of the autoscaler. The count goes back as it was read, as az CLI does:
/// another one would be refused beside the range, and none at all is refused by some versions.
pub(crate) fn with_range(pool: &AgentPool, min: u32, max: u32) -> Result<Value, AzureError> {
    if !pool.autoscaled || pool.kind == AgentPoolKind::VirtualMachines {
        return Err(refused("the agent pool has no autoscaler range"));
    }
    if min > max {
        return Err(refused("the autoscaler's lower bound is above its upper bound"));
    }
    let mut body = writable(&pool.body);
    let properties = properties(&mut body)?;
    properties.insert("minCount".into(), json!(min));
    properties.insert("maxCount".into(), json!(max));
    Ok(body)
}

/// What was read, without what is read-only; all else is kept, nulls too.
fn writable(read: &Value) -> Value {
    let mut body = read.clone();
    if let Some(top) = body.as_object_mut() {
        top.retain(|key, _| !READ_ONLY.contains(&key.as_str()));
    }
    if let Some(properties) = body.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|key, _| !READ_ONLY_PROPERTIES.contains(&key.as_str()));
    }
    body
}

/// Some versions of AKS block writes of an agent pool as long as these are in the body, and keep them if they
/// are not. The body without, if it has them.
pub(crate) fn without_initialization_taints(body: &Value) -> Option<Value> {
    let mut body = body.clone();
    body.get_mut("properties")?.as_object_mut()?.remove("nodeInitializationTaints")?;
    Some(body)
}

fn properties(body: &mut Value) -> Result<&mut Map<String, Value>, AzureError> {
    let properties = body.get_mut("properties").and_then(Value::as_object_mut);
    properties.ok_or_else(|| refused("the agent pool was read without properties"))
}

fn refused(why: &str) -> AzureError {
    AzureError::new(Class::Invalid, "InvalidRequest", why)
}

/// The body that makes an agent pool. What is not said is left to AKS.
pub(crate) fn of(wanted: &CreateAgentPool) -> Result<Value, AzureError> {
    let mut name = wanted.name.chars();
    let starts = name.next().is_some_and(|c| c.is_ascii_lowercase());
    if !starts || wanted.name.len() > 12 || !name.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return Err(refused(
            "an agent pool's name has at most 12 lower case letters and digits, a letter first",
        ));
    }
    if wanted.count > 1_000 {
        return Err(refused("an agent pool has at most 1,000 machines"));
    }
    if wanted.vm_size.is_empty() {
        return Err(refused("a new agent pool needs a VM size"));
    }
    let mut properties = json!({
        "count": wanted.count,
        "vmSize": wanted.vm_size,
        "osType": "Linux",
        "type": "VirtualMachineScaleSets",
        "mode": "User",
        "scaleDownMode": "Delete",
        "enableAutoScaling": false,
        "scaleSetPriority": priority_name(wanted.priority),
    });
    let mut set = |name: &str, value: Value| properties[name] = value;
    if wanted.priority == Priority::Spot {
        set("scaleSetEvictionPolicy", json!(<&str>::from(wanted.eviction_policy)));
        set("spotMaxPrice", price(wanted.spot_max_price));
    }
    if !wanted.zones.is_empty() {
        set("availabilityZones", json!(wanted.zones));
    }
    for (name, map) in [("nodeLabels", &wanted.labels), ("tags", &wanted.tags)] {
        if !map.is_empty() {
            set(name, json!(map));
        }
    }
    for (name, list) in
        [("nodeTaints", &wanted.taints), ("nodeInitializationTaints", &wanted.initialization_taints)]
    {
        if !list.is_empty() {
            set(name, json!(list));
        }
    }
    for (name, number) in [("maxPods", wanted.max_pods), ("osDiskSizeGB", wanted.os_disk_size_gb)] {
        if let Some(number) = number {
            set(name, json!(number));
        }
    }
    for (name, text) in [
        ("osDiskType", &wanted.os_disk_type),
        ("osSKU", &wanted.os_sku),
        ("vnetSubnetID", &wanted.vnet_subnet_id),
    ] {
        if let Some(text) = text {
            set(name, json!(text));
        }
    }
    Ok(json!({ "properties": properties }))
}

fn priority_name(priority: Priority) -> &'static str {
    match priority {
        Priority::Spot => "Spot",
        Priority::Regular => "Regular",
    }
}

/// -1: up to the on-demand price.
fn price(price: Option<MaxPrice>) -> Value {
    let number = price.and_then(|price| Number::from_f64(price.as_f64()));
    number.map_or_else(|| json!(-1), Value::Number)
}

/// In what `found` is not as wanted. What is not said in `wanted` may be anything; so may the count.
pub(crate) fn differences(wanted: &CreateAgentPool, found: &AgentPool) -> Vec<Difference> {
    let raw = found.body.get("properties").cloned().unwrap_or_default();
    let mut differences = Vec::new();
    let mut check = |property: &'static str, immutable: bool, wanted: String, found: String| {
        // Labels and taints have case, sizes and names of Azure's have not.
        let same =
            if property.starts_with("node") { wanted == found } else { wanted.eq_ignore_ascii_case(&found) };
        if !same {
            differences.push(Difference { property, wanted, found, immutable });
        }
    };
    let text = |name: &str| match raw.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let list = |items: &[String]| {
        let mut items = items.to_vec();
        items.sort_unstable();
        items.join(",")
    };
    check("vmSize", true, wanted.vm_size.clone(), found.vm_size.clone());
    check(
        "scaleSetPriority",
        true,
        priority_name(wanted.priority).into(),
        priority_name(found.priority).into(),
    );
    if wanted.priority == Priority::Spot && found.priority == Priority::Spot {
        let policy = found.eviction_policy.unwrap_or_default();
        check("scaleSetEvictionPolicy", true, wanted.eviction_policy.to_string(), policy.to_string());
        let price = |price: Option<f64>| price.map_or_else(|| "-1".to_owned(), |price| price.to_string());
        check(
            "spotMaxPrice",
            true,
            price(wanted.spot_max_price.map(MaxPrice::as_f64)),
            price(found.spot_max_price),
        );
    }
    check("availabilityZones", true, list(&wanted.zones), list(&found.zones));
    let mode = match found.mode {
        AgentPoolMode::User => "User",
        AgentPoolMode::System => "System",
        AgentPoolMode::Gateway => "Gateway",
    };
    check("mode", false, "User".into(), mode.into());
    for (name, number) in [("maxPods", wanted.max_pods), ("osDiskSizeGB", wanted.os_disk_size_gb)] {
        if let Some(number) = number {
            check(name, true, number.to_string(), text(name));
        }
    }
    for (name, immutable, wanted) in [
        ("osDiskType", true, &wanted.os_disk_type),
        ("osSKU", false, &wanted.os_sku),
        ("vnetSubnetID", true, &wanted.vnet_subnet_id),
    ] {
        if let Some(wanted) = wanted {
            check(name, immutable, wanted.clone(), text(name));
        }
    }
    let spot = found.priority == Priority::Spot;
    let labels = |map: &BTreeMap<String, String>| {
        let ours = map.iter().filter(|(key, _)| !(spot && SPOT_LABELS.contains(&key.as_str())));
        ours.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    };
    check("nodeLabels", false, labels(&wanted.labels), labels(&found.labels));
    let taints = |taints: &[String]| {
        let ours = taints.iter().filter(|taint| !(spot && *taint == SPOT_TAINT));
        list(&ours.cloned().collect::<Vec<_>>())
    };
    check("nodeTaints", false, taints(&wanted.taints), taints(&found.taints));
    if !wanted.initialization_taints.is_empty() {
        let found = list(&found.initialization_taints);
        check("nodeInitializationTaints", false, list(&wanted.initialization_taints), found);
    }
    differences
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Which way an agent pool is read must not change what is bought in it.
        #[test]
        fn both_ways_of_reading_agree(
            count in prop::option::of(0_i32..2_000),
            range in prop::option::of((0_i32..9, 0_i32..99)),
            autoscaled in prop::option::of(any::<bool>()),
            priority in prop::option::of("Spot|Regular|spot|SpotPlus"),
            mode in prop::option::of("User|System|Gateway|Machines"),
            policy in prop::option::of("Delete|Deallocate|Keep"),
            price in prop::option::of(prop_oneof![Just(-1.0), 0.00001_f64..99.0]),
            zones in prop::option::of(prop::collection::vec("[123]", 0..4)),
            state in prop::option::of("Succeeded|Failed|Scaling"),
            power in prop::option::of("Running|Stopped"),
        ) {
            let mut properties = json!({"vmSize": "Standard_D4s_v5", "osSKU": "OfTomorrow", "future": {"x": [1]}});
            let mut set = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    properties[name] = value;
                }
            };
            set("count", count.map(Value::from));
            set("minCount", range.map(|(min, _)| min.into()));
            set("maxCount", range.map(|(_, max)| max.into()));
            set("enableAutoScaling", autoscaled.map(Value::from));
            set("scaleSetPriority", priority.map(Value::from));
            set("mode", mode.map(Value::from));
            set("scaleSetEvictionPolicy", policy.map(Value::from));
            set("spotMaxPrice", price.map(Value::from));
            set("availabilityZones", zones.map(Value::from));
            set("provisioningState", state.map(Value::from));
            set("powerState", power.map(|code| json!({ "code": code })));
            let body = json!({"name": "p", "properties": properties});
            let typed: models::AgentPool = serde_json::from_value(body.clone()).unwrap();
            let raw = &body["properties"];
            prop_assert_eq!(Known::typed(typed.properties.unwrap(), raw), Known::raw(raw));
        }
    }
}
