//! Early signs at agent pools: from Nodes, the market and status, and back into status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use spotpool_azure::EvictionBand;
use spotpool_core::signals::{Band, Hours, Signals};
use spotpool_core::{AgentPoolView, Plan};
use spotpool_crds::spot_pool::{
    AgentPoolStatus, BandStatus, HoursStatus, PriceRiseStatus, Role, SignalsStatus,
};
use spotpool_crds::{EvictionNotice, SpotPool};

use super::doomed::Notices;
use crate::agent_pools::Known;
use crate::market::Facts;
use crate::node::agent_pool_of;

/// Nodes that Azure advises to move away from, by agent pool.
pub fn advised(nodes: &[Arc<Node>], notices: &Notices) -> BTreeMap<String, BTreeSet<String>> {
    let mut advised: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| notices.on(node).is_some_and(EvictionNotice::is_hint)) {
        if let Some(agent_pool) = agent_pool_of(node) {
            advised.entry(agent_pool.to_owned()).or_default().insert(node.name_any());
        }
    }
    advised
}

/// What the market and status say of one agent pool.
pub fn of(before: Option<&AgentPoolStatus>, known: Option<&Known>, now: Timestamp) -> Signals {
    let remembered = before.and_then(|before| before.signals.as_ref());
    let market = known.map(|known| &known.market);
    Signals {
        advised: BTreeSet::new(),
        price_rise: market.and_then(Facts::price_rise),
        band: band(
            remembered.and_then(|signals| signals.band.as_ref()),
            market.and_then(|market| market.band),
            now,
        ),
        hours: remembered.and_then(|signals| signals.hours.as_ref()).and_then(hours),
    }
}

/// The band as it was known last: one that cannot be read for a while, or is of an unknown kind, has not changed.
fn band(remembered: Option<&BandStatus>, known: Option<EvictionBand>, now: Timestamp) -> Option<Band> {
    let (is, was, since) = match (remembered, known) {
        (None, None) => return None,
        (None, Some(known)) => (known.to_string(), None, now),
        (Some(last), Some(known)) if last.is != known.to_string() => {
            (known.to_string(), Some(last.is.clone()), now)
        }
        (Some(last), _) => (last.is.clone(), last.was.clone(), last.since.0),
    };
    let parse = |band: &str| band.parse::<EvictionBand>().ok();
    let is_worse = was.as_deref().and_then(parse).zip(parse(&is)).is_some_and(|(was, is)| was < is);
    Some(Band { is, was, since, is_worse })
}

/// Counts of another number than 24 are not ours: they begin anew.
fn hours(status: &HoursStatus) -> Option<Hours> {
    let counts = |counts: &[i32]| -> Option<[u32; 24]> {
        counts.iter().map(|count| (*count).max(0) as u32).collect::<Vec<_>>().try_into().ok()
    };
    Some(Hours {
        losses: counts(&status.losses)?,
        node_hours: counts(&status.node_hours)?,
        counted: status.counted.0,
        halved: status.halved.0,
    })
}

/// For status; absent where nobody has asked for it.
pub fn status(pool: &SpotPool, view: &AgentPoolView, plan: &Plan) -> Option<SignalsStatus> {
    pool.spec.placement.early_signals.as_ref()?;
    if view.role == Ok(Role::OnDemand) {
        return None;
    }
    let counts =
        |counts: &[u32]| counts.iter().map(|count| i32::try_from(*count).unwrap_or(i32::MAX)).collect();
    let signals = &view.signals;
    let stays = |name: &&String| view.nodes.iter().any(|node| node.name == **name && node.stays());
    Some(SignalsStatus {
        advised: signals.advised.iter().filter(stays).count() as i32,
        price_rise: signals.price_rise.as_ref().map(|rise| PriceRiseStatus {
            from: rise.from.to_string(),
            to: rise.to.to_string(),
            since: Time(rise.since),
        }),
        band: signals.band.as_ref().map(|band| BandStatus {
            is: band.is.clone(),
            was: band.was.clone(),
            since: Time(band.since),
        }),
        hours: plan.hours.get(&view.name).map(|hours| HoursStatus {
            losses: counts(&hours.losses),
            node_hours: counts(&hours.node_hours),
            counted: Time(hours.counted),
            halved: Time(hours.halved),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_band_is_worse_when_it_rose_and_what_cannot_be_read_has_not_changed() {
        let (then, now) = (at("2026-03-01T00:00:00Z"), at("2026-03-02T00:00:00Z"));
        let status = |is: &str, was: Option<&str>| BandStatus {
            is: is.into(),
            was: was.map(Into::into),
            since: Time(then),
        };
        let (low, high) = (EvictionBand::UpTo5, EvictionBand::Above20);
        for (remembered, known, wanted) in [
            (None, None, None),
            (None, Some(high), Some(("20+", None, now, false))),
            (Some(status("0-5", None)), Some(low), Some(("0-5", None, then, false))),
            (Some(status("0-5", None)), Some(high), Some(("20+", Some("0-5"), now, true))),
            (Some(status("20+", Some("0-5"))), None, Some(("20+", Some("0-5"), then, true))),
            (Some(status("20+", Some("0-5"))), Some(low), Some(("0-5", Some("20+"), now, false))),
            (Some(status("odd", None)), Some(low), Some(("0-5", Some("odd"), now, false))),
        ] {
            let wanted = wanted.map(|(is, was, since, is_worse)| Band {
                is: is.into(),
                was: was.map(Into::into),
                since,
                is_worse,
            });
            assert_eq!(band(remembered.as_ref(), known, now), wanted, "{remembered:?} {known:?}");
        }
    }

    #[test]
    fn counts_that_are_nonsense_begin_anew() {
        let status = |losses: Vec<i32>| HoursStatus {
            losses,
            node_hours: vec![7; 24],
            counted: Time(at("2026-03-01T10:00:00Z")),
            halved: Time(at("2026-03-01T00:00:00Z")),
        };
        assert_eq!(hours(&status(vec![-3; 24])).unwrap().losses, [0; 24]);
        assert_eq!(hours(&status(vec![2; 24])).unwrap().losses, [2; 24]);
        for odd in [Vec::new(), vec![1; 23], vec![1; 25]] {
            assert_eq!(hours(&status(odd)), None);
        }
    }
}
