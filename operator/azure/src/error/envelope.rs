//! Digs the errors out of Azure's envelopes, which nest: `details[]`, `Code="…" Message="…"` inside messages
//! with quotes escaped or not, `original error:` in front, JSON written into a message.

use serde_json::Value;

use super::{MissingAction, Quota};

/// One code with its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub code: String,
    pub message: String,
}

/// Nothing of Azure's nests deeper or wider.
const DEEPEST: usize = 8;
const MOST: usize = 32;

/// Every error in `value`, the innermost first, the outermost last.
pub fn candidates(value: &Value) -> Vec<Candidate> {
    let mut found = Vec::new();
    collect(value, 0, &mut found);
    found
}

fn collect(value: &Value, depth: usize, found: &mut Vec<Candidate>) {
    if depth > DEEPEST || found.len() >= MOST {
        return;
    }
    let error = match value.get("error") {
        Some(error) if error.is_object() => error,
        // `{"error": "invalid_client", "error_description": "…"}` of token endpoints.
        Some(Value::String(code)) if value.get("code").is_none() => {
            let message = value.get("error_description").and_then(Value::as_str).unwrap_or_default();
            found.push(Candidate { code: code.clone(), message: message.to_owned() });
            return;
        }
        _ => value,
    };
    for inner in error.get("details").and_then(Value::as_array).into_iter().flatten() {
        collect(inner, depth + 1, found);
    }
    for key in ["innererror", "innerError"] {
        if let Some(inner) = error.get(key) {
            collect(inner, depth + 1, found);
        }
    }
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default();
    embedded(message, depth, found);
    if let Some(code) = error.get("code").and_then(Value::as_str).filter(|code| !code.is_empty()) {
        found.push(Candidate { code: code.to_owned(), message: message.to_owned() });
    }
}

/// Errors that are written into a message, the innermost first.
fn embedded(message: &str, depth: usize, found: &mut Vec<Candidate>) {
    if let (Some(start), Some(end)) = (message.find('{'), message.rfind('}'))
        && start < end
    {
        let text = &message[start..=end];
        let parsed = serde_json::from_str::<Value>(text)
            .or_else(|_| serde_json::from_str::<Value>(&text.replace("\\\"", "\"")));
        if let Ok(inner) = parsed {
            collect(&inner, depth + 1, found);
        }
    }
    // Each nesting escapes the quotes once more.
    let plain = message.replace('\\', "");
    let mut inner = Vec::new();
    for (at, _) in plain.match_indices("Code=\"").take(MOST) {
        let rest = &plain[at + "Code=\"".len()..];
        let Some((code, after)) = rest.split_once('"') else { continue };
        let well_formed = !code.is_empty()
            && code.len() <= 80
            && code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !well_formed {
            continue;
        }
        let said = after.trim_start().strip_prefix("Message=\"").unwrap_or(after);
        // Up to the next error inside, or the end; quotes that close the outer ones are left over there.
        let said = said.find("Code=\"").map_or(said, |next| &said[..next]);
        let said = said.trim().trim_end_matches(['"', ' ']).trim_end_matches("Details=");
        inner.push(Candidate { code: code.to_owned(), message: said.trim_end().to_owned() });
    }
    inner.reverse();
    found.extend(inner);
}

/// The figures in `… exceeding approved LowPriorityCores quota. Additional details - … Current Limit: 3, …`.
pub fn quota(message: &str) -> Option<Quota> {
    let lower = message.to_ascii_lowercase();
    if !lower.contains("quota") {
        return None;
    }
    let number = |label: &str| {
        let rest = lower[lower.find(label)? + label.len()..].trim_start_matches([':', ' ', ')', '(']);
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let quota = Quota {
        name: quota_name(message),
        current_limit: number("current limit"),
        current_usage: number("current usage"),
        additional_required: number("additional required").or_else(|| number("quota requested")),
        new_limit_required: number("new limit required"),
    };
    (quota != Quota::default()).then_some(quota)
}

/// The word before `quota`, with `Cores` and `vCPUs` in between where a name has several words.
fn quota_name(message: &str) -> Option<String> {
    // "Insufficient vcpu quota requested 8, remaining 0 for family standardDSv3Family for region …"
    if let Some(at) = message.find("for family ") {
        let family = message[at + "for family ".len()..].split([' ', ',', '.']).next();
        return family.filter(|family| !family.is_empty() && family.len() <= 60).map(str::to_owned);
    }
    let at = message.find(" quota").or_else(|| message.find(" Quota"))?;
    let before = message[..at].trim_end_matches(['\'', '"']);
    let from = ["exceeding approved ", "exceeding quota limits of ", "exceed the ", "exceeds the "]
        .iter()
        .filter_map(|words| before.rfind(words).map(|at| at + words.len()))
        .max();
    let name = match from {
        Some(from) => &before[from..],
        None => before.rsplit(' ').next()?,
    };
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    (!name.is_empty() && name.len() <= 60).then_some(name)
}

/// `… does not have authorization to perform action 'X' over scope 'Y' …`
pub fn missing_action(message: &str) -> Option<MissingAction> {
    let quoted = |words: &str| {
        let rest = &message[message.find(words)? + words.len()..];
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        Some(rest[1..].split(quote).next()?.to_owned())
    };
    // A linked denial says first what is allowed, then, with "(s)", what is not.
    let action =
        ["perform action(s) ", "perform action ", "action "].iter().find_map(|words| quoted(words))?;
    let scope =
        ["on the linked scope(s) ", "over scope ", "on scope "].iter().find_map(|words| quoted(words));
    (action.contains('/') && action.len() <= 200).then_some(MissingAction { action, scope })
}
