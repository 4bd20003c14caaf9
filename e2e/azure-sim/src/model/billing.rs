//! What the machines cost: the provider's own account, made from what the provider did and nothing else.
//!
//! A machine is billed from its order to its end, without the time that it is deallocated, at the price that its size
//! and priority have at each second. Seconds are whole: the one that begins at `s` is billed to a machine that is
//! there at `s`. So an invoice can be split anywhere and its parts still add up.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::{Cloud, Refused};
use crate::api::{Priority, VmState};

/// An hour, in seconds.
const HOUR: i64 = 3600;
/// Places that figures are rounded to, each by itself: splits may differ from a total by less than that.
const PLACES: u32 = 9;

/// What something cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    /// In the invoice's currency.
    pub amount: Decimal,
    /// Seconds of machines, those without a price included.
    pub seconds: u64,
    /// Seconds of machines whose size had no price: they are *not* in `amount`.
    pub unpriced_seconds: u64,
}

/// What one machine cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineCharge {
    /// Its name, as Azure Compute says it.
    pub name: String,
    /// Agent pool.
    pub pool: String,
    /// VM size.
    pub vm_size: String,
    /// Spot or on-demand.
    pub priority: Priority,
    /// What it cost.
    pub charge: Charge,
}

/// What a time cost, and who is behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breakdown {
    /// All of it.
    pub total: Charge,
    /// By priority.
    pub priorities: BTreeMap<Priority, Charge>,
    /// By agent pool.
    pub pools: BTreeMap<String, Charge>,
    /// By machine, under the name of its Node.
    pub machines: BTreeMap<String, MachineCharge>,
}

/// An hour or a month of UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// When it begins.
    pub start: Timestamp,
    /// What was billed in it.
    #[serde(flatten)]
    pub cost: Breakdown,
}

/// What was billed from one time to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoice {
    /// From when.
    pub from: Timestamp,
    /// To when: never after now.
    pub to: Timestamp,
    /// Always `USD`.
    pub currency: String,
    /// All of it.
    #[serde(flatten)]
    pub cost: Breakdown,
    /// The hours in which there was a machine, earliest first.
    pub hours: Vec<Period>,
    /// The months in which there was a machine, earliest first.
    pub months: Vec<Period>,
}

/// One machine, and when it was allocated.
#[derive(Debug, Clone)]
struct Meter {
    name: String,
    node: String,
    pool: String,
    vm_size: String,
    priority: Priority,
    /// From and to; the last may be open.
    spans: Vec<(Timestamp, Option<Timestamp>)>,
}

/// The meters of all machines that there have ever been, by agent pool and instance id.
#[derive(Debug, Clone, Default)]
pub(super) struct Meters(BTreeMap<(String, u64), Meter>);

impl Meters {
    /// The machine is allocated from now on.
    pub(super) fn start(&mut self, vm: &VmState, now: Timestamp) {
        let meter = self.0.entry((vm.pool.clone(), vm.instance_id)).or_insert_with(|| Meter {
            name: vm.name.clone(),
            node: vm.node.clone(),
            pool: vm.pool.clone(),
            vm_size: vm.vm_size.clone(),
            priority: vm.priority,
            spans: Vec::new(),
        });
        if meter.spans.last().is_none_or(|(_, to)| to.is_some()) {
            meter.spans.push((now, None));
        }
    }

    /// The machine is gone, or deallocated.
    pub(super) fn stop(&mut self, pool: &str, instance: u64, at: Timestamp) {
        let meter = self.0.get_mut(&(pool.to_owned(), instance));
        if let Some((_, to)) = meter.and_then(|meter| meter.spans.last_mut()) {
            to.get_or_insert(at);
        }
    }

    fn first(&self) -> Option<Timestamp> {
        self.0.values().filter_map(|meter| meter.spans.first()).map(|(from, _)| *from).min()
    }
}

/// Prices of one offer and from which second on each; the one before the first holds from then on only.
pub(crate) type Path = Vec<(Timestamp, Decimal)>;

/// The first whole second that is not before `at`.
fn second(at: Timestamp) -> i64 {
    at.as_second() + i64::from(at.subsec_nanosecond() > 0)
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

/// The second with which the month of `second` begins.
fn month(second: i64) -> i64 {
    let first = time(second).to_zoned(TimeZone::UTC).first_of_month();
    first.and_then(|day| day.start_of_day()).map_or(second, |day| day.timestamp().as_second())
}

/// A sum on its way: prices an hour times seconds, which needs no rounding.
#[derive(Debug, Default)]
struct Tally {
    price_seconds: Decimal,
    seconds: u64,
    unpriced_seconds: u64,
}

impl Tally {
    fn add(&mut self, price: Option<Decimal>, seconds: u64) {
        self.seconds += seconds;
        match price {
            Some(price) => {
                let cost = price.saturating_mul(Decimal::from(seconds));
                self.price_seconds = self.price_seconds.saturating_add(cost);
            }
            None => self.unpriced_seconds += seconds,
        }
    }

    fn charge(&self) -> Charge {
        let amount = (self.price_seconds / Decimal::from(HOUR)).round_dp(PLACES).normalize();
        Charge { amount, seconds: self.seconds, unpriced_seconds: self.unpriced_seconds }
    }
}

#[derive(Debug, Default)]
struct Sums<'a> {
    total: Tally,
    priorities: BTreeMap<Priority, Tally>,
    pools: BTreeMap<&'a str, Tally>,
    machines: BTreeMap<&'a str, (&'a Meter, Tally)>,
}

impl<'a> Sums<'a> {
    fn add(&mut self, meter: &'a Meter, price: Option<Decimal>, seconds: u64) {
        let (_, machine) = self.machines.entry(&meter.node).or_insert_with(|| (meter, Tally::default()));
        let sums = [
            &mut self.total,
            self.priorities.entry(meter.priority).or_default(),
            self.pools.entry(&meter.pool).or_default(),
            machine,
        ];
        for sum in sums {
            sum.add(price, seconds);
        }
    }

    fn breakdown(&self) -> Breakdown {
        let machine = |(node, (meter, tally)): (&&str, &(&Meter, Tally))| {
            let charge = MachineCharge {
                name: meter.name.clone(),
                pool: meter.pool.clone(),
                vm_size: meter.vm_size.clone(),
                priority: meter.priority,
                charge: tally.charge(),
            };
            ((*node).to_owned(), charge)
        };
        let pool = |(pool, tally): (&&str, &Tally)| ((*pool).to_owned(), tally.charge());
        Breakdown {
            total: self.total.charge(),
            priorities: self.priorities.iter().map(|(priority, sum)| (*priority, sum.charge())).collect(),
            pools: self.pools.iter().map(pool).collect(),
            machines: self.machines.iter().map(machine).collect(),
        }
    }
}

fn periods(sums: &BTreeMap<i64, Sums<'_>>) -> Vec<Period> {
    sums.iter().map(|(start, sums)| Period { start: time(*start), cost: sums.breakdown() }).collect()
}

impl Cloud {
    /// What was billed; from the first machine on, and until now, unless said otherwise.
    pub fn invoice(
        &self,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Invoice, Refused> {
        let to = to.unwrap_or(now).min(now);
        let from = from.or(self.meters.first()).unwrap_or(to);
        if from > to {
            return Err(Refused::Invalid(format!("an invoice from {from} to {to}: it is {now}")));
        }
        let (mut whole, mut hours, mut months) = (Sums::default(), BTreeMap::new(), BTreeMap::new());
        for meter in self.meters.0.values() {
            let path = self.market.path(&meter.vm_size, meter.priority);
            for (start, end) in &meter.spans {
                let end = second(end.unwrap_or(to).min(to));
                let mut at = second((*start).max(from));
                while at < end {
                    let price = path.iter().rfind(|(since, _)| second(*since) <= at).map(|(_, price)| *price);
                    let changes = path.iter().map(|(since, _)| second(*since)).find(|since| *since > at);
                    let hour = at.div_euclid(HOUR) * HOUR;
                    let until = end.min(hour + HOUR).min(changes.unwrap_or(i64::MAX));
                    let seconds = until.abs_diff(at);
                    whole.add(meter, price, seconds);
                    hours.entry(hour).or_insert_with(Sums::default).add(meter, price, seconds);
                    months.entry(month(at)).or_insert_with(Sums::default).add(meter, price, seconds);
                    at = until;
                }
            }
        }
        Ok(Invoice {
            from,
            to,
            currency: "USD".into(),
            cost: whole.breakdown(),
            hours: periods(&hours),
            months: periods(&months),
        })
    }
}
