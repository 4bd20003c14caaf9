//! Whether agent pools carry the tags by which a bill is split.

use std::collections::BTreeMap;

use spotpool_crds::{Reason, SpotPool};

use super::gather::Gathered;

/// Tags that an agent pool has are repeated up to so many characters: Azure allows 50 of 768.
const TOLD: usize = 600;

/// Whether all agent pools have the tags of `spec.costTags`; absent where nobody asks for any. `None` is not known.
pub fn checked(pool: &SpotPool, gathered: &Gathered) -> Option<(Option<bool>, Reason, String)> {
    let wanted = &pool.spec.cost_tags;
    if wanted.is_empty() {
        return None;
    }
    if !gathered.asked {
        return Some((None, Reason::AzureUnreachable, "Azure has not answered yet".into()));
    }
    let named = pool.spec.agent_pools.iter().filter(|it| !gathered.claimed.contains_key(&it.name));
    let found = named.filter_map(|it| Some((it.name.as_str(), gathered.azure.get(&it.name)?)));
    let without: Vec<(&str, BTreeMap<String, String>, Vec<&str>)> = found
        .map(|(name, known)| (name, known.pool.tags()))
        .map(|(name, tags)| (name, tags.clone(), missing(wanted, &tags)))
        .filter(|(.., missing)| !missing.is_empty())
        .collect();
    Some(match without.first() {
        None => (Some(true), Reason::CostTagsPresent, String::new()),
        Some((name, tags, lacks)) => {
            let others = match without.len() {
                1 => String::new(),
                n => format!(" (and {} other agent pools lack some)", n - 1),
            };
            let lacking = lacks.join(", ");
            let command = command(name, tags, lacks);
            (
                Some(false),
                Reason::CostTagsMissing,
                format!("agent pool {name} lacks the tags {lacking}{others}: {command}"),
            )
        }
    })
}

/// Azure's names of tags are the same in capitals and small letters. A tag without a value tells nobody who pays.
fn missing<'a>(wanted: &'a [String], tags: &BTreeMap<String, String>) -> Vec<&'a str> {
    let has = |name: &str| {
        tags.iter().any(|(tag, value)| tag.eq_ignore_ascii_case(name) && !value.trim().is_empty())
    };
    wanted.iter().map(String::as_str).filter(|name| !has(name)).collect()
}

/// What a person runs. `--tags` replaces all tags, so those that are there are said again.
fn command(name: &str, tags: &BTreeMap<String, String>, lacks: &[&str]) -> String {
    let is_lacking = |tag: &&String| lacks.iter().any(|name| tag.eq_ignore_ascii_case(name));
    let kept =
        tags.iter().filter(|(tag, _)| !is_lacking(tag)).map(|(tag, value)| quoted(&format!("{tag}={value}")));
    let kept: Vec<String> = kept.collect();
    let new: Vec<String> = lacks.iter().map(|tag| quoted(&format!("{tag}=VALUE"))).collect();
    let start = format!("az aks nodepool update -g GROUP --cluster-name CLUSTER -n {name} --tags");
    if kept.iter().map(String::len).sum::<usize>() > TOLD {
        return format!("{start} {} and all the tags that it has, which this replaces", new.join(" "));
    }
    format!("{start} {}", kept.into_iter().chain(new).collect::<Vec<_>>().join(" "))
}

/// As a shell takes it, whatever is in it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "=-_.:/@".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
        tags.iter().map(|&(tag, value)| (tag.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_tag_is_missing_if_it_is_absent_or_says_nothing() {
        let wanted = ["team".to_owned(), "cost-center".to_owned()];
        for (has, lacks) in [
            (tags(&[]), vec!["team", "cost-center"]),
            (tags(&[("Team", "a"), ("cost-center", "7")]), vec![]),
            (tags(&[("team", " "), ("cost-center", "7")]), vec!["team"]),
            (tags(&[("teams", "a")]), vec!["team", "cost-center"]),
        ] {
            assert_eq!(missing(&wanted, &has), lacks, "{has:?}");
        }
    }

    #[test]
    fn the_command_loses_no_tag_and_is_no_trap() {
        let has = tags(&[("env", "prod"), ("Team", ""), ("note", "it's $(here)")]);
        assert_eq!(
            command("spota", &has, &["team"]),
            r"az aks nodepool update -g GROUP --cluster-name CLUSTER -n spota --tags env=prod 'note=it'\''s $(here)' team=VALUE"
        );
        let many: Vec<(String, String)> =
            (0..50).map(|index| (format!("tag{index}"), "v".repeat(50))).collect();
        let many: BTreeMap<String, String> = many.into_iter().collect();
        let command = command("spota", &many, &["team"]);
        assert!(command.len() < 300 && command.contains("which this replaces"), "{command}");
    }
}
