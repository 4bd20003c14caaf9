//! What there is to change in an object of a kind, by its CRD's schema: so a new field is there by itself, and one for which nothing
//! is known that it could be fails the test.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use spotpool_azure_sim::dice::Dice;

/// What strings may be, by their pattern. Two of each are enough to go there and back.
pub const BY_PATTERN: &[(&str, [&str; 2])] = &[
    (r"^([0-9]+(h|m|s|ms))+$", ["2h", "1h"]),
    (r"^[0-9]{1,6}(\.[0-9]{1,6})?$", ["30", "40.5"]),
    (r"^[5-9][0-9](\.[0-9]{1,2})?$", ["99", "98.5"]),
    (r"^[1-9]$", ["2", "3"]),
    (r"^(Ubuntu|AzureLinux|Flatcar)[A-Za-z0-9]{0,16}$", ["AzureLinux", "Ubuntu2204"]),
    (r"^(Standard|Basic)_[A-Za-z0-9_-]{1,60}$", ["Standard_D8s_v5", "Standard_D16s_v5"]),
    (r"^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$", ["0 22 * * *", "*/5 * * * *"]),
    (r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", ["Europe/Berlin", "Asia/Tokyo"]),
    (r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", ["b", "c"]),
    (
        r"^[A-Za-z0-9_./-]{1,316}(=[A-Za-z0-9_.-]{0,63})?:(NoSchedule|PreferNoSchedule|NoExecute)$",
        ["b=c:NoSchedule", "d:NoExecute"],
    ),
    (
        "^/subscriptions/[^/]+/resource[Gg]roups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$",
        [
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/a",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/b",
        ],
    ),
];

/// What the schema of a kind does not say.
pub struct Known {
    /// What else strings may be, by the end of their path, where the schema has no pattern, or not all that it allows will do.
    pub by_path: &'static [(&'static str, [&'static str; 2])],
    /// What an object is known by: another name is another object.
    pub identities: &'static [&'static str],
    /// What is not left out, though it may be: something else would be meant.
    pub needed: &'static [&'static str],
    /// What changes along with a field, for both to be meant.
    pub together: &'static [(&'static str, &'static str, Value)],
}

/// A field, or a part that may be left out.
pub struct Field {
    /// As `fallback.maxNodes` or `agentPools[].name`.
    pub path: String,
    /// Where it is in the spec, as a JSON pointer.
    pub pointer: String,
    schema: Value,
    /// Whether it may be left out, and is then what it would not be.
    optional: bool,
}

/// All fields of `full`, and the paths of those that the CRD's spec has and it has not.
pub fn fields(crd: &CustomResourceDefinition, full: &Value) -> (Vec<Field>, Vec<String>) {
    let crd = serde_json::to_value(crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    collect(schema, full, "", "", false, (&mut found, &mut missing));
    (found, missing)
}

fn collect(
    schema: &Value,
    value: &Value,
    path: &str,
    pointer: &str,
    optional: bool,
    (found, missing): (&mut Vec<Field>, &mut Vec<String>),
) {
    if value.is_null() {
        return missing.push(path.to_owned());
    }
    if !path.is_empty() {
        let (path, pointer) = (path.to_owned(), pointer.to_owned());
        found.push(Field { path, pointer, schema: schema.clone(), optional });
    }
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let optional = !required.contains(name.as_str()) && schema.get("default").is_none();
        let of = |path: &str| if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect(
            schema,
            &value[name],
            &of(path),
            &format!("{pointer}/{name}"),
            optional,
            (&mut *found, &mut *missing),
        );
    }
    if schema["items"].is_object() {
        let (path, pointer) = (format!("{path}[]"), format!("{pointer}/0"));
        collect(&schema["items"], &value[0], &path, &pointer, false, (&mut *found, &mut *missing));
    }
    if schema["additionalProperties"].is_object() {
        let key = value.as_object().and_then(|map| map.keys().next()).expect("a key");
        let (path, pointer) = (format!("{path}{{}}"), format!("{pointer}/{key}"));
        collect(&schema["additionalProperties"], &value[key], &path, &pointer, false, (found, missing));
    }
}

/// All that could be otherwise in `full`, and how.
pub fn transitions<'a>(found: &'a [Field], full: &Value, known: &Known) -> Vec<(&'a Field, Value)> {
    let mut transitions = Vec::new();
    for field in found.iter().filter(|field| !known.identities.contains(&field.path.as_str())) {
        let others = others(field, full.pointer(&field.pointer).unwrap(), known);
        let is_part = matches!(field.schema["type"].as_str(), Some("object" | "array"));
        assert!(is_part || !others.is_empty(), "{} can be nothing else", field.path);
        transitions.extend(others.into_iter().map(|other| (field, other)));
    }
    transitions
}

/// What else it could be, and be meant; `Null` is to leave it out.
fn others(field: &Field, now: &Value, known: &Known) -> Vec<Value> {
    let Field { schema, path, optional, .. } = field;
    let mut others = match schema["type"].as_str() {
        _ if schema["enum"].is_array() => schema["enum"].as_array().unwrap().clone(),
        Some("boolean") => vec![json!(true), json!(false)],
        Some("integer") => {
            let now = now.as_i64().unwrap();
            let (least, most) = range(schema);
            [now + 1, now - 1]
                .into_iter()
                .filter(|other| (least..=most).contains(other))
                .take(1)
                .map(Value::from)
                .collect()
        }
        Some("string") => {
            let by_path = known.by_path.iter().find(|(end, _)| path.ends_with(end));
            let by_pattern =
                by_path.or_else(|| BY_PATTERN.iter().find(|(pattern, _)| schema["pattern"] == *pattern));
            let (_, known) =
                by_pattern.unwrap_or_else(|| panic!("{path} is new: say in `BY_PATTERN` what it may be"));
            let (most, least) = (limit(field, "<="), limit(field, ">="));
            let fits = |text: &&str| {
                let Ok(length) = text.parse::<spotpool_crds::Duration>() else { return true };
                most.is_none_or(|most| length <= most) && least.is_none_or(|least| length >= least)
            };
            let mut fitting: Vec<Value> =
                known.iter().filter(|text| fits(text)).map(|text| json!(text)).collect();
            // Of durations all that is short fits.
            if fitting.is_empty() {
                fitting.push(json!("3s"));
            }
            fitting
        }
        // Their parts are changed.
        Some("object" | "array") => Vec::new(),
        other => panic!("{path} is new: of type {other:?}"),
    };
    others.retain(|other| other != now);
    others.truncate(1);
    others.extend((*optional && !known.needed.contains(&path.as_str())).then_some(Value::Null));
    others
}

/// What the rules of a duration say it must be at most, or at least.
fn limit(field: &Field, operator: &str) -> Option<spotpool_crds::Duration> {
    let rules = field.schema["x-kubernetes-validations"].as_array()?;
    let before = format!("duration(self) {operator} duration('");
    rules.iter().find_map(|rule| {
        let rest = rule["rule"].as_str()?.split_once(&before)?.1;
        rest.split_once('\'')?.0.parse().ok()
    })
}

fn range(schema: &Value) -> (i64, i64) {
    let bound = |key: &str, none| schema[key].as_f64().map_or(none, |bound| bound as i64);
    (bound("minimum", i64::MIN), bound("maximum", i64::MAX))
}

/// What nobody can mean.
pub fn nonsense(field: &Field, now: &Value) -> Vec<Value> {
    let schema = &field.schema;
    let mut bad = Vec::new();
    match schema["type"].as_str() {
        _ if schema["enum"].is_array() => bad.extend([json!("Nonsense"), json!(""), json!(7)]),
        Some("boolean") => bad.extend([json!("yes"), json!(1)]),
        Some("integer") => {
            let (least, most) = range(schema);
            assert!(least > i64::MIN && most < i64::MAX, "{} has no bounds", field.path);
            bad.extend([json!(least - 1), json!(most + 1), json!(i64::MAX), json!("2"), json!(1.5)]);
        }
        Some("string") => {
            bad.extend([json!(7), json!(true), json!({"a": "b"})]);
            if schema["pattern"].is_string() {
                bad.extend([json!("\u{1f4a5}"), json!("a b;c")]);
            }
            if let Some(most) = schema["maxLength"].as_u64() {
                bad.push(json!("1".repeat(most as usize + 1)));
            }
            if schema["minLength"].as_u64() > Some(0) {
                bad.push(json!(""));
            }
            if limit(field, "<=").is_some() {
                bad.push(json!("9999h"));
            }
        }
        Some("object") => {
            bad.extend([json!("text"), json!([1])]);
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let mut without = now.clone();
                without.as_object_mut().unwrap().remove(required);
                bad.push(without);
            }
            if schema["properties"].is_object() {
                let mut more = now.clone();
                more["nonsense"] = json!(1);
                bad.push(more);
            }
        }
        Some("array") => {
            bad.extend([json!("text"), json!({"a": 1})]);
            if schema["minItems"].as_u64() > Some(0) {
                bad.push(json!([]));
            }
            if let Some(most) = schema["maxItems"].as_u64() {
                bad.push(json!(vec![now[0].clone(); most as usize + 1]));
            }
        }
        other => panic!("{} is new: of type {other:?}", field.path),
    }
    bad
}

/// Changes what `change` has; what is `Null` there is taken out.
pub fn merge(into: &mut Value, change: &Value) {
    let (Some(object), Some(change)) = (into.as_object_mut(), change.as_object()) else {
        *into = change.clone();
        return;
    };
    for (key, value) in change {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// `full` with one field as it could be otherwise.
pub fn with(full: &Value, field: &Field, other: &Value, known: &Known) -> Value {
    let mut spec = full.clone();
    let (parent, name) = field.pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    if other.is_null() {
        parent.as_object_mut().unwrap().remove(name);
    } else if let Some(items) = parent.as_array_mut() {
        items[name.parse::<usize>().unwrap()] = other.clone();
    } else {
        parent[name] = other.clone();
    }
    for (_, sibling, value) in known.together.iter().filter(|(path, ..)| *path == field.path) {
        let (parent, _) = field.pointer.rsplit_once('/').unwrap();
        merge(spec.pointer_mut(parent).unwrap(), &json!({*sibling: value}));
    }
    spec
}

/// In another order for each seed.
pub fn shuffled<T>(mut things: Vec<T>, seed: u64) -> Vec<T> {
    let mut dice = Dice::new(seed);
    for at in (1..things.len()).rev() {
        things.swap(at, dice.below(at as u64 + 1) as usize);
    }
    things
}
