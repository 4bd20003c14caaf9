//! The rules for the JSON body of an agent pool. Bodies stay JSON, so that what is put is what is
//! read back.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::api::{CountOfAutoscaled, Identity, ImmutableChanges, Priority, Switches};
use crate::refusal::Refusal;

/// The `properties` of an agent pool.
pub type Properties = Map<String, Value>;

/// GA api-versions that are served, oldest first: every one since agent pools are resources of their own.
pub const VERSIONS: &[&str] = &[
    "2019-02-01",
    "2019-04-01",
    "2019-06-01",
    "2019-08-01",
    "2019-10-01",
    "2019-11-01",
    "2020-01-01",
    "2020-02-01",
    "2020-03-01",
    "2020-04-01",
    "2020-06-01",
    "2020-07-01",
    "2020-09-01",
    "2020-11-01",
    "2020-12-01",
    "2021-02-01",
    "2021-03-01",
    "2021-05-01",
    "2021-07-01",
    "2021-08-01",
    "2021-09-01",
    "2021-10-01",
    "2022-01-01",
    "2022-02-01",
    "2022-03-01",
    "2022-04-01",
    "2022-06-01",
    "2022-07-01",
    "2022-09-01",
    "2022-11-01",
    "2023-01-01",
    "2023-02-01",
    "2023-03-01",
    "2023-04-01",
    "2023-05-01",
    "2023-06-01",
    "2023-07-01",
    "2023-08-01",
    "2023-09-01",
    "2023-10-01",
    "2023-11-01",
    "2024-01-01",
    "2024-02-01",
    "2024-05-01",
    "2024-07-01",
    "2024-08-01",
    "2024-09-01",
    "2024-10-01",
    "2025-01-01",
    "2025-02-01",
    "2025-03-01",
    "2025-04-01",
    "2025-05-01",
    "2025-07-01",
    "2025-08-01",
    "2025-09-01",
    "2025-10-01",
    "2026-03-01",
    "2026-04-01",
    "2026-05-01",
    "2026-06-01",
    "2026-07-01",
    "2026-08-01",
];

/// From this api-version on, unknown properties are refused.
const STRICT_FROM: &str = "2024-01-01";
/// From this api-version on, bodies carry an eTag.
const E_TAG_FROM: &str = "2024-09-01";
/// From this api-version on, `nodeInitializationTaints` is known (the exact version is not confirmed).
const INITIALIZATION_TAINTS_FROM: &str = "2026-03-01";

/// The label that AKS puts on spot pools.
pub const SPOT_KEY: &str = "kubernetes.azure.com/scalesetpriority";
/// The taint that AKS puts on spot pools.
pub const SPOT_TAINT: &str = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule";

const READ_ONLY: &[&str] =
    &["eTag", "provisioningState", "currentOrchestratorVersion", "nodeImageVersion", "status"];

const IMMUTABLE: &[&str] = &[
    "availabilityZones",
    "maxPods",
    "osDiskType",
    "osType",
    "scaleSetEvictionPolicy",
    "scaleSetPriority",
    "spotMaxPrice",
    "type",
    "vmSize",
];

const KNOWN: &[&str] = &[
    "availabilityZones",
    "capacityReservationGroupID",
    "count",
    "creationData",
    "enableAutoScaling",
    "enableEncryptionAtHost",
    "enableFIPS",
    "enableNodePublicIP",
    "enableUltraSSD",
    "gatewayProfile",
    "gpuInstanceProfile",
    "gpuProfile",
    "hostGroupID",
    "kubeletConfig",
    "kubeletDiskType",
    "linuxOSConfig",
    "localDNSProfile",
    "maxCount",
    "maxPods",
    "messageOfTheDay",
    "minCount",
    "mode",
    "networkProfile",
    "nodeLabels",
    "nodePublicIPPrefixID",
    "nodeTaints",
    "orchestratorVersion",
    "osDiskSizeGB",
    "osDiskType",
    "osSKU",
    "osType",
    "podIPAllocationMode",
    "podSubnetID",
    "powerState",
    "proximityPlacementGroupID",
    "scaleDownMode",
    "scaleSetEvictionPolicy",
    "scaleSetPriority",
    "securityProfile",
    "spotMaxPrice",
    "tags",
    "type",
    "upgradeSettings",
    "virtualMachineNodesStatus",
    "virtualMachinesProfile",
    "vmSize",
    "vnetSubnetID",
    "windowsProfile",
    "workloadRuntime",
];

/// The version that new pools run.
pub const KUBERNETES: &str = "1.34.4";

/// Whether bodies of this api-version carry an eTag.
pub fn has_e_tag(version: &str) -> bool {
    version >= E_TAG_FROM
}

/// Refuses names that AKS refuses.
pub fn check_name(name: &str, windows: bool) -> Result<(), Refusal> {
    let (longest, system) = if windows { (6, "Windows") } else { (12, "Linux") };
    let mut letters = name.bytes();
    let good = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
        && name.len() <= longest;
    if good {
        return Ok(());
    }
    Err(Refusal::invalid_parameter(format!(
        "The value of parameter agentPoolProfile.name is invalid. '{name}' must match ^[a-z][a-z0-9]{{0,{}}}$ on {system}.",
        longest - 1
    )))
}

/// The writable, non-null properties of a PUT body.
pub fn parse(body: &Value, version: &str) -> Result<Properties, Refusal> {
    let Some(resource) = body.as_object() else {
        return Err(Refusal::flat(
            400,
            "UnmarshalError",
            "UnmarshalEntity encountered error: not a JSON object.",
        ));
    };
    let strict = version >= STRICT_FROM;
    if strict
        && let Some(field) =
            resource.keys().find(|key| !["id", "name", "type", "properties"].contains(&key.as_str()))
    {
        return Err(Refusal::unknown_field(field));
    }
    let Some(properties) = resource.get("properties").and_then(Value::as_object) else {
        return Err(Refusal::invalid_parameter("Required parameter properties is missing (null)."));
    };
    let mut kept = Properties::new();
    for (key, value) in properties {
        if READ_ONLY.contains(&key.as_str()) {
            continue;
        }
        let known = KNOWN.contains(&key.as_str())
            || (key == "nodeInitializationTaints" && version >= INITIALIZATION_TAINTS_FROM);
        if !known {
            if strict {
                return Err(Refusal::unknown_field(key));
            }
            continue;
        }
        // What null means per property is not documented; here it is the same as absent.
        if !value.is_null() {
            check_type(key, value)?;
            kept.insert(key.clone(), value.clone());
        }
    }
    Ok(kept)
}

fn check_type(key: &str, value: &Value) -> Result<(), Refusal> {
    let good = match key {
        "count" | "minCount" | "maxCount" | "maxPods" | "osDiskSizeGB" => value.is_u64(),
        "nodeLabels" | "tags" => {
            value.as_object().is_some_and(|members| members.values().all(Value::is_string))
        }
        "nodeTaints" | "nodeInitializationTaints" | "availabilityZones" => {
            value.as_array().is_some_and(|members| members.iter().all(Value::is_string))
        }
        "enableAutoScaling" => value.is_boolean(),
        "mode" => value.as_str().is_some_and(|mode| ["User", "System", "Gateway"].contains(&mode)),
        "scaleSetPriority" => value.as_str().is_some_and(|text| ["Spot", "Regular"].contains(&text)),
        "scaleSetEvictionPolicy" => {
            value.as_str().is_some_and(|text| ["Delete", "Deallocate"].contains(&text))
        }
        "spotMaxPrice" => value.as_f64().is_some_and(is_max_price),
        "powerState" => value
            .get("code")
            .and_then(Value::as_str)
            .is_some_and(|code| ["Running", "Stopped"].contains(&code)),
        "type" => value.as_str().is_some_and(|text| {
            ["VirtualMachineScaleSets", "VirtualMachines", "AvailabilitySet"].contains(&text)
        }),
        "vmSize" | "orchestratorVersion" | "osType" | "osSKU" => value.is_string(),
        _ => true,
    };
    if good {
        return Ok(());
    }
    Err(Refusal::invalid_parameter(format!(
        "The value of parameter agentPoolProfile.{key} is invalid: {value}."
    )))
}

/// -1, or dollars with at most five decimals.
fn is_max_price(price: f64) -> bool {
    let hundred_thousandths = price * 100_000.0;
    (price + 1.0).abs() < 1e-9
        || (price > 0.0 && (hundred_thousandths - hundred_thousandths.round()).abs() < 1e-4)
}

/// The properties of a new pool, with what AKS adds of its own.
pub fn create(mut given: Properties) -> Result<Properties, Refusal> {
    count_from_profile(&mut given);
    if !given.contains_key("count") {
        return Err(Refusal::invalid_parameter("Required parameter properties.count is missing (null)."));
    }
    // Empty texts ask for AKS's own choice.
    for key in ["vmSize", "orchestratorVersion"] {
        if given.get(key).and_then(Value::as_str) == Some("") {
            given.remove(key);
        }
    }
    let defaults = [
        ("vmSize", json!("Standard_D2s_v5")),
        ("orchestratorVersion", json!(KUBERNETES)),
        ("type", json!("VirtualMachineScaleSets")),
        ("mode", json!("User")),
        ("maxPods", json!(110)),
        ("osType", json!("Linux")),
        ("osSKU", json!("Ubuntu")),
        ("osDiskSizeGB", json!(128)),
        ("osDiskType", json!("Managed")),
        ("scaleDownMode", json!("Delete")),
        ("enableAutoScaling", json!(false)),
        ("powerState", json!({"code": "Running"})),
        ("upgradeSettings", json!({"maxSurge": "10%"})),
    ];
    for (key, value) in defaults {
        given.entry(key).or_insert(value);
    }
    given.insert("currentOrchestratorVersion".into(), given["orchestratorVersion"].clone());
    given.insert("nodeImageVersion".into(), json!("AKSUbuntu-2204gen2containerd-202508.20.0"));
    if is_autoscaled(&given) {
        let (min, max) = bounds(&given)?;
        if !(min..=max).contains(&count(&given)) {
            return Err(Refusal::invalid_parameter(
                "The value of parameter agentPoolProfile.count is invalid: it must be between minCount and maxCount.",
            ));
        }
    }
    if priority(&given) == Priority::Spot {
        given.entry("scaleSetEvictionPolicy").or_insert(json!("Delete"));
        given.entry("spotMaxPrice").or_insert(json!(-1));
    }
    finish(given)
}

/// The properties of a pool after a PUT. What the PUT omits stays as it was.
pub fn update(
    name: &str,
    current: &Properties,
    given: &Properties,
    switches: &Switches,
) -> Result<Properties, Refusal> {
    let mut given = given.clone();
    count_from_profile(&mut given);
    let mut updated = current.clone();
    for (key, value) in &given {
        if IMMUTABLE.contains(&key.as_str()) && !same(key, current.get(key), value) {
            let refusal = Refusal::immutable(key);
            return Err(match switches.immutable_changes {
                ImmutableChanges::PropertyChangeNotAllowed => refusal,
                ImmutableChanges::OperationNotAllowed => {
                    Refusal { code: "OperationNotAllowed".into(), ..refusal }
                }
            });
        }
        if key == "orchestratorVersion" && value.as_str() == Some("") {
            continue;
        }
        updated.insert(key.clone(), value.clone());
    }
    if is_autoscaled(&updated) {
        let (min, _) = bounds(&updated)?;
        if count(&updated) != count(current) {
            if !is_autoscaled(current) {
                return Err(Refusal::invalid_parameter(format!(
                    "Cannot manually scale and enable cluster autoscaler in the same update operation on VMSS Agentpool '{name}'."
                )));
            }
            if switches.count_of_autoscaled == CountOfAutoscaled::Refused {
                return Err(Refusal::invalid_parameter(format!(
                    "Cannot manually scale agent pool '{name}': the cluster autoscaler is enabled on it."
                )));
            }
        }
        // Machines follow only a least that was raised above them; the rest is the autoscaler's to do.
        updated.insert("count".into(), json!(count(current).max(min)));
    } else if is_autoscaled(current) {
        updated.remove("minCount");
        updated.remove("maxCount");
    }
    finish(updated)
}

/// `minCount` and `maxCount` of a pool that the cluster autoscaler scales.
fn bounds(properties: &Properties) -> Result<(u64, u64), Refusal> {
    let number = |key: &str| {
        properties.get(key).and_then(Value::as_u64).ok_or_else(|| {
            Refusal::invalid_parameter(format!(
                "The value of parameter agentPoolProfile.{key} is invalid: it is required when enableAutoScaling is true."
            ))
        })
    };
    let (min, max) = (number("minCount")?, number("maxCount")?);
    if min > max || max > 1000 || max == 0 {
        return Err(Refusal::invalid_parameter(format!(
            "The value of parameter agentPoolProfile.minCount is invalid: minCount {min} and maxCount {max} must be 0 <= minCount <= maxCount <= 1000."
        )));
    }
    Ok((min, max))
}

/// Whether the cluster autoscaler scales the pool.
pub fn is_autoscaled(properties: &Properties) -> bool {
    properties.get("enableAutoScaling").and_then(Value::as_bool) == Some(true)
}

/// `minCount`.
pub fn min_count(properties: &Properties) -> u64 {
    properties.get("minCount").and_then(Value::as_u64).unwrap_or(0)
}

/// Whether the pool is stopped.
pub fn is_stopped(properties: &Properties) -> bool {
    properties.get("powerState").and_then(|state| state.get("code")).and_then(Value::as_str)
        == Some("Stopped")
}

/// Machines that an upgrade of so many adds for its time: `maxSurge`, a number or a share, at least one.
pub fn surge(properties: &Properties, machines: usize) -> usize {
    let text = properties
        .get("upgradeSettings")
        .and_then(|settings| settings.get("maxSurge"))
        .and_then(Value::as_str)
        .unwrap_or("10%");
    let surge = match text.strip_suffix('%') {
        Some(share) => share.parse::<usize>().ok().map(|share| (machines * share).div_ceil(100)),
        None => text.parse().ok(),
    };
    surge.unwrap_or(1).clamp(1, machines.max(1))
}

/// A node image newer than this one, of that day.
pub fn image(current: &str, now: Timestamp) -> String {
    let today = format!("AKSUbuntu-2204gen2containerd-{}", now.strftime("%Y%m.%d"));
    let revision = current
        .strip_prefix(&today)
        .and_then(|rest| rest.strip_prefix('.')?.parse::<u32>().ok())
        .map_or(0, |revision| revision + 1);
    format!("{today}.{revision}")
}

/// Pools of virtual machines are scaled by a profile; `count` and `vmSize` follow it. One size is acted upon.
fn count_from_profile(given: &mut Properties) {
    let manual = given
        .get("virtualMachinesProfile")
        .and_then(|profile| profile.get("scale"))
        .and_then(|scale| scale.get("manual"))
        .and_then(Value::as_array);
    let Some(manual) = manual else { return };
    let count: u64 = manual.iter().filter_map(|scale| scale.get("count")?.as_u64()).sum();
    let size =
        manual.first().and_then(|scale| scale.get("size")).and_then(Value::as_str).map(ToOwned::to_owned);
    given.insert("count".into(), json!(count));
    if let Some(size) = size {
        given.entry("vmSize").or_insert(json!(size));
    }
}

/// Whether a PUT value leaves an immutable property as it is.
fn same(key: &str, current: Option<&Value>, given: &Value) -> bool {
    let current = match (key, current) {
        ("scaleSetPriority", None) => &json!("Regular"),
        ("availabilityZones", None) => &json!([]),
        // The eviction policy and price of a Regular pool mean nothing.
        ("scaleSetEvictionPolicy", None) => &json!("Delete"),
        ("spotMaxPrice", None) => &json!(-1),
        (_, None) => return false,
        (_, Some(current)) => current,
    };
    match (current.as_f64(), given.as_f64()) {
        (Some(current), Some(given)) => (current - given).abs() < 1e-9,
        _ => current == given || (key == "vmSize" && given.as_str() == Some("")),
    }
}

fn finish(mut properties: Properties) -> Result<Properties, Refusal> {
    let spot = priority(&properties) == Priority::Spot;
    let system = properties.get("mode").and_then(Value::as_str) == Some("System");
    if spot && system {
        return Err(Refusal::invalid_parameter(
            "The value of parameter agentPoolProfile.mode is invalid: a Spot agent pool can't be a System pool.",
        ));
    }
    let least = u64::from(system);
    if !(least..=1000).contains(&count(&properties)) {
        return Err(Refusal::invalid_parameter(format!(
            "The value of parameter agentPoolProfile.count is invalid. Its value must be between {least} and 1000."
        )));
    }
    let autoscaled = properties
        .get("virtualMachinesProfile")
        .is_some_and(|profile| profile.pointer("/scale/autoscale").is_some_and(Value::is_object));
    if text(&properties, "type") == "VirtualMachines" && !autoscaled {
        let manual = json!([{"size": text(&properties, "vmSize"), "count": count(&properties)}]);
        properties.insert("virtualMachinesProfile".into(), json!({"scale": {"manual": manual}}));
    }
    if spot {
        if let Some(labels) = properties.entry("nodeLabels").or_insert(json!({})).as_object_mut() {
            labels.insert(SPOT_KEY.into(), json!("spot"));
        }
        if let Some(taints) = properties.entry("nodeTaints").or_insert(json!([])).as_array_mut()
            && !taints.contains(&json!(SPOT_TAINT))
        {
            taints.push(json!(SPOT_TAINT));
        }
    }
    Ok(properties)
}

/// `count`.
pub fn count(properties: &Properties) -> u64 {
    properties.get("count").and_then(Value::as_u64).unwrap_or(0)
}

/// Spot or on-demand.
pub fn priority(properties: &Properties) -> Priority {
    match properties.get("scaleSetPriority").and_then(Value::as_str) {
        Some("Spot") => Priority::Spot,
        _ => Priority::Regular,
    }
}

/// A text property, `""` when absent.
pub fn text<'a>(properties: &'a Properties, key: &str) -> &'a str {
    properties.get(key).and_then(Value::as_str).unwrap_or("")
}

/// A list of texts, empty when absent.
pub fn texts(properties: &Properties, key: &str) -> Vec<String> {
    properties
        .get(key)
        .and_then(Value::as_array)
        .map(|members| members.iter().filter_map(|member| member.as_str().map(ToOwned::to_owned)).collect())
        .unwrap_or_default()
}

/// The whole resource, as GET answers it.
pub fn resource(identity: &Identity, name: &str, properties: &Properties, version: &str) -> Value {
    let mut properties = properties.clone();
    if !has_e_tag(version) {
        properties.remove("eTag");
    }
    if version < INITIALIZATION_TAINTS_FROM {
        properties.remove("nodeInitializationTaints");
    }
    json!({
        "id": pool_id(identity, name),
        "name": name,
        "type": "Microsoft.ContainerService/managedClusters/agentPools",
        "properties": properties,
    })
}

/// The ARM id of a pool, with `resourcegroups` in small letters as the service writes it.
pub fn pool_id(identity: &Identity, name: &str) -> String {
    format!(
        "/subscriptions/{}/resourcegroups/{}/providers/Microsoft.ContainerService/managedClusters/{}/agentPools/{name}",
        identity.subscription, identity.resource_group, identity.cluster
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot() -> Properties {
        let body =
            json!({"properties": {"count": 1, "vmSize": "Standard_D8s_v5", "scaleSetPriority": "Spot"}});
        create(parse(&body, "2025-10-01").unwrap()).unwrap()
    }

    #[test]
    fn spot_pools_get_label_taint_policy_and_price() {
        let made = spot();
        assert_eq!(made["nodeLabels"], json!({SPOT_KEY: "spot"}));
        assert_eq!(made["nodeTaints"], json!([SPOT_TAINT]));
        assert_eq!(made["scaleSetEvictionPolicy"], "Delete");
        assert_eq!(made["spotMaxPrice"], -1);
    }

    #[test]
    fn every_immutable_property_is_refused_by_name() {
        let other = json!({"availabilityZones": ["2"], "maxPods": 30, "osDiskType": "Ephemeral",
            "osType": "Windows", "scaleSetEvictionPolicy": "Deallocate", "scaleSetPriority": "Regular",
            "spotMaxPrice": 0.5, "type": "VirtualMachines", "vmSize": "Standard_D4s_v5"});
        for (key, value) in other.as_object().unwrap() {
            let given = parse(&json!({"properties": {key: value}}), "2025-10-01").unwrap();
            let refusal = update("p", &spot(), &given, &Switches::default()).unwrap_err();
            assert_eq!(refusal, Refusal::immutable(key));
        }
    }

    #[test]
    fn what_is_read_may_be_put_back() {
        let current = spot();
        let read = resource(&Identity::default(), "spota", &current, "2025-10-01");
        let given = parse(&read, "2025-10-01").unwrap();
        assert_eq!(update("p", &current, &given, &Switches::default()).unwrap(), current);
    }

    #[test]
    fn unknown_properties_are_refused_from_2024_on() {
        let body = json!({"properties": {"count": 1, "sshAccess": "Disabled"}});
        assert_eq!(parse(&body, "2025-10-01").unwrap_err(), Refusal::unknown_field("sshAccess"));
        assert!(!parse(&body, "2023-11-01").unwrap().contains_key("sshAccess"));
        let taints = json!({"properties": {"nodeInitializationTaints": ["a=b:NoSchedule"]}});
        assert!(parse(&taints, "2025-10-01").is_err());
        assert!(parse(&taints, "2026-08-01").is_ok());
    }

    #[test]
    fn bad_values_and_names_are_refused() {
        for properties in [
            json!({"count": -1}),
            json!({"count": "3"}),
            json!({"mode": "user"}),
            json!({"spotMaxPrice": 0}),
            json!({"nodeTaints": "a=b:NoSchedule"}),
        ] {
            assert_eq!(
                parse(&json!({"properties": properties}), "2025-10-01").unwrap_err().code,
                "InvalidParameter"
            );
        }
        let missing = create(parse(&json!({"properties": {"vmSize": ""}}), "2025-10-01").unwrap());
        assert!(missing.unwrap_err().message.contains("properties.count is missing"));
        let system = json!({"properties": {"count": 1, "mode": "System", "scaleSetPriority": "Spot"}});
        assert!(create(parse(&system, "2025-10-01").unwrap()).is_err());
        for name in ["", "Spota", "1a", "spot-a", "abcdefghijklm"] {
            assert!(check_name(name, false).is_err(), "{name}");
        }
        assert!(check_name("abcdefghijkl", false).is_ok());
        assert!(check_name("abcdef", true).is_ok());
        assert!(check_name("abcdefg", true).unwrap_err().message.contains("on Windows"));
    }
}
