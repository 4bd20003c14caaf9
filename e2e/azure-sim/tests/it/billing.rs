//! The invoice: what controllers say that they spend is held against it, so it must be right to the second.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use proptest::prelude::*;
use rust_decimal::Decimal;
use serde_json::json;
use spotpool_azure_sim::api::{Identity, PoolSpec, Priority, Settings, VmPhase, VmState};
use spotpool_azure_sim::model::{Cloud, ComputeName, Invoice, later};
use spotpool_azure_sim::scenario::{Action, Step};

use crate::{Bench, SIZE};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn dollars(text: &str) -> Decimal {
    text.parse().unwrap()
}

fn cloud(pools: &[PoolSpec], now: Timestamp) -> Cloud {
    let mut cloud = Cloud::new(Identity::default(), Settings::default(), false, 7);
    for pool in pools {
        cloud.add_pool(pool, now).unwrap();
    }
    cloud.advance(now);
    cloud
}

/// One action, and time passes after it.
fn act(cloud: &mut Cloud, action: &str, now: &mut Timestamp, seconds: u64) {
    cloud.act(Step::now(action).unwrap(), *now).unwrap();
    *now = later(*now, Duration::from_secs(seconds));
    cloud.advance(*now);
}

fn invoice(cloud: &Cloud, now: Timestamp) -> Invoice {
    cloud.invoice(None, None, now).unwrap()
}

/// What there is, what happens with how many seconds after it, and the seconds of machines that are billed.
type Course = (PoolSpec, &'static [(&'static str, u64)], u64);

#[test]
fn every_machine_is_billed_from_its_order_to_its_end_and_not_while_it_is_deallocated() {
    let deallocates =
        || PoolSpec::spot("spota", SIZE, 2).property("scaleSetEvictionPolicy", json!("Deallocate"));
    let deletes = || PoolSpec::spot("spota", SIZE, 2);
    let cases: [Course; 6] = [
        (deletes(), &[("scale: {pool: spota, count: 2}", 3600)], 7200),
        // Ordered, not booted yet: paid for.
        (
            deletes(),
            &[("switches: {pool: spota, set: {bootTime: 2h}}", 0), ("scale: {pool: spota, count: 3}", 3600)],
            10_800,
        ),
        // Taken at 30.5 s: the second that it began is paid for.
        (deletes(), &[("evict: {pool: spota, count: 1, notice: 30s}", 3600)], 3600 + 31),
        (deletes(), &[("kill: {pool: spota, count: 2}", 3600)], 0),
        (deallocates(), &[("evict: {pool: spota, count: 2, notice: 30s}", 3600)], 2 * 31),
        // Deletion takes 5 s, in which it runs.
        (deletes(), &[("settings: {deleteTimeMs: 5000}", 0), ("scale: {pool: spota, count: 1}", 3600)], 3605),
    ];
    for (pool, actions, seconds) in cases {
        let mut now = at("2026-08-01T10:00:00Z");
        let mut cloud = cloud(&[pool], now);
        for (action, takes) in actions {
            act(&mut cloud, action, &mut now, *takes);
        }
        let invoice = invoice(&cloud, now);
        let total = invoice.cost.total;
        assert_eq!((total.seconds, total.unpriced_seconds), (seconds, 0), "{actions:?}");
        let due = dollars("0.0845") * Decimal::from(seconds) / Decimal::from(3600);
        assert_eq!(total.amount, due.round_dp(9), "{actions:?}");
    }
}

#[test]
fn a_machine_that_is_started_again_is_billed_again() {
    let mut now = at("2026-08-01T10:00:00Z");
    let pool = PoolSpec::spot("spota", SIZE, 1).property("scaleSetEvictionPolicy", json!("Deallocate"));
    let mut cloud = cloud(&[pool], now);
    act(&mut cloud, "evict: {pool: spota, count: 1, notice: 59s}", &mut now, 1800);
    let vmss = cloud.state(now).pool("spota").unwrap().vmss.clone();
    cloud.start_machine(&ComputeName::Instance { scale_set: vmss, id: 0 }, now).unwrap();
    now = later(now, Duration::from_secs(100));
    cloud.advance(now);
    assert_eq!(invoice(&cloud, now).cost.total.seconds, 60 + 100);
}

#[test]
fn prices_are_those_of_each_second_and_hours_and_months_are_of_utc() {
    let mut now = at("2026-08-31T23:30:00Z");
    let mut cloud = cloud(&[PoolSpec::spot("spota", SIZE, 2), PoolSpec::regular("rega", SIZE, 1)], now);
    act(&mut cloud, "scale: {pool: spota, count: 2}", &mut now, 900);
    act(&mut cloud, "spotPrice: {vmSize: standard_d8s_v5, price: 0.2}", &mut now, 2700);
    // Withdrawn: what runs stays at its last price.
    act(&mut cloud, "spotPrice: {vmSize: Standard_D8s_v5}", &mut now, 1800);
    let invoice = invoice(&cloud, now);
    let spot = dollars("0.04225") + dollars("0.5");
    let regular = dollars("0.384") * dollars("1.5");
    assert_eq!(invoice.cost.total.amount, (spot + regular).normalize());
    assert_eq!(invoice.cost.priorities[&Priority::Spot].amount, spot.normalize());
    assert_eq!(invoice.cost.pools["rega"].amount, regular.normalize());
    assert_eq!(invoice.cost.machines.len(), 3);
    let month = |index: usize| (invoice.months[index].start, invoice.months[index].cost.total.seconds);
    assert_eq!(month(0), (at("2026-08-01T00:00:00Z"), 5400));
    assert_eq!(month(1), (at("2026-09-01T00:00:00Z"), 10_800));
    let august = dollars("0.04225") + dollars("0.1") + dollars("0.192");
    assert_eq!(invoice.months[0].cost.total.amount, august.normalize());
    let hours: Vec<Timestamp> = invoice.hours.iter().map(|hour| hour.start).collect();
    assert_eq!(hours, [at("2026-08-31T23:00:00Z"), at("2026-09-01T00:00:00Z")]);
    assert_eq!(invoice.hours[1].cost.pools["spota"].amount, dollars("0.4"));
}

#[tokio::test]
async fn the_invoice_is_asked_for_over_http_and_says_what_it_could_not_price() {
    let pools = [PoolSpec::spot("spota", SIZE, 1), PoolSpec::spot("odd", "Standard_X1", 1)];
    let bench = Bench::with(&pools, Duration::from_millis(200)).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let invoice = bench.client.invoice(None, None).await.unwrap();
    assert_eq!(
        (invoice.to, invoice.currency.as_str()),
        (bench.client.invoice(None, Some(invoice.to)).await.unwrap().to, "USD")
    );
    let (odd, spota) = (&invoice.cost.pools["odd"], &invoice.cost.pools["spota"]);
    assert!(
        odd.unpriced_seconds >= 2 && odd.seconds == odd.unpriced_seconds && odd.amount.is_zero(),
        "{odd:?}"
    );
    assert!(spota.seconds >= 2 && spota.unpriced_seconds == 0 && spota.amount > Decimal::ZERO, "{spota:?}");
    let url = |query: &str| format!("{}/sim/invoice{query}", bench.server.url());
    let bare = bench.get(&url("")).await;
    assert!(bare.body["total"]["amount"].is_string(), "money is a decimal in a text: {bare:?}");
    for wrong in ["?from=2999-01-01T00:00:00Z", "?from=yesterday"] {
        assert_eq!(bench.send(Method::GET, &url(wrong), &[], None).await.status, 400, "{wrong}");
    }
}

/// What may change who runs, and what that costs.
fn anything() -> impl Strategy<Value = serde_json::Value> {
    let pool = prop::sample::select(vec!["spota", "spotd", "rega"]);
    let evicted = prop::sample::select(vec!["spota", "spotd"]);
    prop_oneof![
        4 => (pool.clone(), 0..5_u64).prop_map(|(pool, count)| json!({"scale": {"pool": pool, "count": count}})),
        4 => (evicted, 1..3_u32, 0..20_u64).prop_map(|(pool, count, notice)| {
            json!({"evict": {"pool": pool, "count": count, "notice": format!("{notice}s")}})
        }),
        2 => (pool.clone(), 1..3_u32).prop_map(|(pool, count)| json!({"kill": {"pool": pool, "count": count}})),
        3 => (1..9999_u64).prop_map(|price| json!({"spotPrice": {"vmSize": SIZE, "price": price as f64 / 10_000.0}})),
        2 => Just(json!({"start again": null})),
        1 => pool.clone().prop_map(|pool| json!({"upgrade": {"pool": pool}})),
        1 => pool.clone().prop_map(|pool| json!({"stop": pool})),
        1 => pool.prop_map(|pool| json!({"start": pool})),
    ]
}

/// What somebody notes who looks at every machine in every second.
#[derive(Default)]
struct Notes {
    /// Price and seconds of each machine in each hour.
    counted: BTreeMap<(String, Timestamp), (Decimal, u64)>,
    /// Machines that were deallocated and have not been started since.
    stopped: HashSet<String>,
}

impl Notes {
    fn look(&mut self, cloud: &Cloud, now: Timestamp) -> Vec<VmState> {
        let vms = cloud.state(now).vms;
        for vm in &vms {
            match vm.phase {
                VmPhase::Deallocated => drop(self.stopped.insert(vm.node.clone())),
                VmPhase::Creating | VmPhase::Running => drop(self.stopped.remove(&vm.node)),
                _ => {}
            }
        }
        vms.into_iter().filter(|vm| vm.phase != VmPhase::Gone && !self.stopped.contains(&vm.node)).collect()
    }
}

/// Goes through every second until `end`, that one left out, and notes what each machine costs in it.
fn count(cloud: &mut Cloud, now: &mut Timestamp, end: Timestamp, spot: Decimal, notes: &mut Notes) {
    loop {
        let whole = now.as_millisecond() % 1000 == 0;
        let next = Timestamp::from_second(now.as_second() + i64::from(!whole)).unwrap();
        if next >= end {
            break;
        }
        cloud.advance(next);
        let hour = Timestamp::from_second(next.as_second() / 3600 * 3600).unwrap();
        for vm in notes.look(cloud, next) {
            let price = if vm.priority == Priority::Spot { spot } else { dollars("0.384") };
            let (sum, seconds) = notes.counted.entry((vm.node, hour)).or_default();
            (*sum, *seconds) = (*sum + price, *seconds + 1);
        }
        *now = next.checked_add(Duration::from_millis(1)).unwrap();
    }
    *now = end;
    cloud.advance(end);
    notes.look(cloud, end);
}

fn amount(sum: Decimal) -> Decimal {
    (sum / Decimal::from(3600)).round_dp(9).normalize()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens and whatever prices do, the invoice is what somebody would note who looks at every machine
    /// in every second; and its parts are parts of it.
    #[test]
    fn the_invoice_is_what_a_count_of_every_second_comes_to(
        script in prop::collection::vec((0..45_000_u64, anything()), 1..20)
    ) {
        // An hour ends on the way.
        let start = at("2026-08-31T23:56:00Z");
        let mut now = start;
        let mut cloud = cloud(
            &[
                PoolSpec::spot("spota", SIZE, 3),
                PoolSpec::spot("spotd", SIZE, 2).property("scaleSetEvictionPolicy", json!("Deallocate")),
                PoolSpec::regular("rega", SIZE, 1),
            ],
            now,
        );
        cloud.patch_settings(&serde_json::from_value(json!({"bootTimeMs": 15_250, "deleteTimeMs": 4_100})).unwrap()).unwrap();
        let (mut spot, mut notes) = (dollars("0.0845"), Notes::default());
        for (millis, action) in script {
            let next = later(now, Duration::from_millis(millis));
            count(&mut cloud, &mut now, next, spot, &mut notes);
            if action.get("start again").is_some() {
                let state = cloud.state(now);
                let scale_set = state.pool("spotd").unwrap().vmss.clone();
                for vm in state.vms_of("spotd").filter(|vm| vm.phase == VmPhase::Deallocated) {
                    let name = ComputeName::Instance { scale_set: scale_set.clone(), id: vm.instance_id };
                    drop(cloud.start_machine(&name, now));
                }
            } else {
                if let Some(price) = action["spotPrice"]["price"].as_f64() {
                    spot = price.to_string().parse().unwrap();
                }
                let action: Action = serde_json::from_value(action).unwrap();
                drop(cloud.act(action, now));
            }
            cloud.advance(now);
        }
        let end = later(now, Duration::from_millis(60_500));
        count(&mut cloud, &mut now, end, spot, &mut notes);

        let invoice = invoice(&cloud, now);
        let sum = |of: &dyn Fn(&str, Timestamp) -> bool| {
            let parts = notes.counted.iter().filter(|((node, hour), _)| of(node, *hour)).map(|(_, part)| *part);
            parts.fold((Decimal::ZERO, 0), |all, part| (all.0 + part.0, all.1 + part.1))
        };
        let (all, seconds) = sum(&|_, _| true);
        prop_assert_eq!(invoice.cost.total.amount, amount(all));
        prop_assert_eq!(invoice.cost.total.seconds, seconds);
        prop_assert_eq!(invoice.cost.total.unpriced_seconds, 0);
        for (node, machine) in &invoice.cost.machines {
            let (due, seconds) = sum(&|other, _| other == node);
            prop_assert_eq!((machine.charge.amount, machine.charge.seconds), (amount(due), seconds), "{}", node);
        }
        for hour in &invoice.hours {
            prop_assert_eq!(hour.cost.total.amount, amount(sum(&|_, other| other == hour.start).0));
        }
        // Cut anywhere, no second is lost, and none is billed twice.
        let middle = start + now.duration_since(start) / 3;
        let parts = [(None, Some(middle)), (Some(middle), None)].map(|(from, to)| cloud.invoice(from, to, now).unwrap());
        prop_assert_eq!(parts[0].cost.total.seconds + parts[1].cost.total.seconds, seconds);
    }
}
