//! Nodes that have come since the ledger was written.

use jiff::Timestamp;
use rust_decimal::Decimal;
use spotpool_crds::spot_pool::{OperationKind, Role};

use crate::cost::{Rate, Split};
use crate::ledger::Ledger;
use crate::plan::Situation;
use crate::snapshot::{AgentPoolView, NodeView};

/// A node that has come since then.
pub(crate) struct Arrival {
    pub agent_pool: String,
    pub machine: Split,
    pub price: Decimal,
    pub since: Timestamp,
}

/// Those that came after the newest that is in the ledger. Of those on demand the youngest are charged as what stands in for
/// spot, at the dearest prices of that: where one that comes makes another stand in, that began with it. It is charged to the
/// agent pool of the one that came.
pub(crate) fn arrivals(
    situation: &Situation<'_>,
    ledger: &Ledger,
    rates: &[Option<Rate>],
    split: &[Split],
) -> Vec<Arrival> {
    let (mut arrivals, mut on_demand, mut fallback) = (Vec::new(), Vec::new(), Vec::new());
    for ((pool, rate), split) in situation.snapshot.agent_pools.iter().zip(rates).zip(split) {
        let Some(Rate { hourly: price, .. }) = *rate else { continue };
        fallback.extend(vec![price; split.fallback as usize]);
        for node in pool.charged().filter(|node| node.created > ledger.newest) {
            let (since, agent_pool) = (asked_at(pool, node), pool.name.clone());
            match pool.role {
                Ok(Role::Spot) => {
                    let machine = Split { spot: 1, ..Split::default() };
                    arrivals.push(Arrival { agent_pool, machine, price, since });
                }
                Ok(Role::OnDemand) => on_demand.push((since, price, agent_pool)),
                Err(_) => {}
            }
        }
    }
    on_demand.sort_unstable_by(|one, other| other.cmp(one));
    fallback.sort_unstable_by(|one, other| other.cmp(one));
    let mut fallback = fallback.into_iter();
    arrivals.extend(on_demand.into_iter().map(|(since, price, agent_pool)| match fallback.next() {
        Some(price) => {
            let machine = Split { fallback: 1, ..Split::default() };
            Arrival { agent_pool, machine, price, since }
        }
        None => Arrival { agent_pool, machine: Split { base: 1, ..Split::default() }, price, since },
    }));
    arrivals
}

/// When the node's machine was asked for, as far as is known: Azure charges for it before it is a Node.
fn asked_at(pool: &AgentPoolView, node: &NodeView) -> Timestamp {
    let operation = pool.operation.iter().chain(&pool.ended);
    let asked = operation.filter(|it| it.kind == OperationKind::ScaleUp).map(|it| it.since.0);
    asked.filter(|asked| *asked <= node.created).min().unwrap_or(node.created)
}
