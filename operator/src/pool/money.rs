//! Money as status keeps it, and what is told of it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, Time};
use kube::runtime::events::Event;
use spotpool_azure::Decimal;
use spotpool_core::cost::Amounts;
use spotpool_core::ledger::{Ledger, Page, Told, month_of};
use spotpool_core::spend::{ByPool, OTHERS};
use spotpool_core::{Action, Market, Plan};
use spotpool_crds::spot_pool::{
    AgentPoolSpend, AgentPoolStatus, BudgetStatus, HourlyCost, LedgerPage, LedgerStatus, MoneyStatus, Spend,
    ToldStatus,
};
use spotpool_crds::{Reason, SpotPool, SpotPoolStatus, names};

use super::events::event;
use crate::agent_pools::Known;
use crate::market::decimal;

/// What stands for an amount in status that cannot be read: nothing may be bought on the strength of it.
const UNREADABLE: Decimal = Decimal::from_parts(999_999_999, 0, 0, false, 0);
/// Digits of amounts for people.
const DIGITS: u32 = 4;

/// What is known of an agent pool's market; the price that status remembers stands in for one that is not known yet.
pub fn market(before: Option<&AgentPoolStatus>, known: Option<&Known>, currency: &str) -> Market {
    let mut market = known.map(|known| known.market.view()).unwrap_or_default();
    let last = before.and_then(|before| before.price.as_ref()).filter(|price| price.currency == currency);
    market.last_price = last.and_then(|price| decimal(&price.hourly)).filter(|price| *price > Decimal::ZERO);
    let read_at = last.and_then(|price| price.read_at.as_ref()).map(|time| time.0);
    market.read_at = market.read_at.or(read_at);
    market
}

/// The ledger that status keeps.
pub fn ledger(status: &LedgerStatus) -> Ledger {
    let told = status.told.clone().unwrap_or_default();
    let share = |percent: i32| percent.max(0) as u32;
    Ledger {
        at: status.at.0,
        currency: status.currency.clone(),
        hourly: by_pool(&status.hourly, &status.agent_pools, Decimal::ZERO),
        newest: status.newest_node.as_ref().map_or(status.at.0, |time| time.0),
        page: page(&status.page),
        before: status.page_before.as_ref().map(page),
        hour: decimal(&status.hour).unwrap_or_default(),
        told: Told {
            hourly_budget: decimal(&told.hourly_budget),
            hourly: share(told.hourly),
            monthly_budget: decimal(&told.monthly_budget),
            monthly: share(told.monthly),
        },
    }
}

fn amounts(spend: &Spend, unreadable: Decimal) -> Amounts {
    let amount = |text: &str| decimal(text).filter(|amount| *amount >= Decimal::ZERO).unwrap_or(unreadable);
    Amounts { spot: amount(&spend.spot), base: amount(&spend.on_demand), fallback: amount(&spend.fallback) }
}

fn page(page: &LedgerPage) -> Page {
    let begun = format!("{}-01T00:00:00Z", page.month).parse();
    Page {
        month: begun.unwrap_or_else(|_| month_of(page.until.0)),
        until: page.until.0,
        spent: by_pool(&page.spent, &page.agent_pools, UNREADABLE),
    }
}

/// What is said of no agent pool, or cannot be read of one, is the others': it is the total that must not be lost.
fn by_pool(total: &Spend, agent_pools: &[AgentPoolSpend], unreadable: Decimal) -> ByPool {
    let mut all = ByPool::default();
    for spend in agent_pools {
        let amount = |text: &str| decimal(text).unwrap_or_default();
        let (spot, base, fallback) = (amount(&spend.spot), amount(&spend.on_demand), amount(&spend.fallback));
        all.add(&spend.name, &Amounts { spot, base, fallback });
    }
    let named = all.total().each(|amount| -amount);
    all.add(OTHERS, &amounts(total, unreadable).plus(&named));
    all
}

/// What status says of money.
pub fn status(currency: &str, plan: &Plan) -> MoneyStatus {
    let money = &plan.money;
    let ledger = plan.memory.ledger.as_ref();
    let budget = |(budget, left): (Decimal, Decimal)| BudgetStatus { budget: text(budget), left: text(left) };
    let mut assumptions = money.costs.assumptions.clone();
    if let Some(ledger) = ledger.filter(|ledger| !currency.is_empty() && ledger.currency != currency) {
        assumptions.push(format!("what was spent in {} counts as {currency}", ledger.currency));
    }
    MoneyStatus {
        currency: currency.to_owned(),
        hourly: money.costs.all.map(|all| HourlyCost {
            spot: text(all.spot),
            on_demand: text(all.base),
            fallback: text(all.fallback),
            total: text(all.total()),
            on_demand_equivalent: money.costs.equivalent.map(text),
            planned: money.planned.map(text),
        }),
        saving_percent: money.costs.saving_percent(),
        variance_percent: money.variance_percent(),
        this_month: ledger.map(|ledger| spend(&ledger.page.spent.total(), text)),
        by_workload: None,
        fallback_this_hour: ledger.map(|ledger| text(ledger.hour)).unwrap_or_default(),
        hourly_budget: money.hourly_budget.map(budget),
        monthly_budget: money.monthly_budget.map(budget),
        override_until: money.override_until.map(Time),
        prices_read_at: money.prices_read_at.map(Time),
        assumptions,
        ledger: ledger.map(kept),
    }
}

fn kept(ledger: &Ledger) -> LedgerStatus {
    let exact = |amount: Decimal| amount.to_string();
    let page = |page: &Page| LedgerPage {
        month: page.month.to_zoned(TimeZone::UTC).strftime("%Y-%m").to_string(),
        until: Time(page.until),
        spent: spend(&page.spent.total(), exact),
        agent_pools: of_pools(&page.spent),
    };
    let told = &ledger.told;
    let budget = |budget: Option<Decimal>| budget.map(exact).unwrap_or_default();
    LedgerStatus {
        at: Time(ledger.at),
        currency: ledger.currency.clone(),
        hourly: spend(&ledger.hourly.total(), exact),
        agent_pools: of_pools(&ledger.hourly),
        newest_node: Some(Time(ledger.newest)),
        page: page(&ledger.page),
        page_before: ledger.before.as_ref().map(page),
        hour: exact(ledger.hour),
        told: (*told != Told::default()).then(|| ToldStatus {
            hourly_budget: budget(told.hourly_budget),
            hourly: told.hourly as i32,
            monthly_budget: budget(told.monthly_budget),
            monthly: told.monthly as i32,
        }),
    }
}

fn of_pools(all: &ByPool) -> Vec<AgentPoolSpend> {
    let exact = |amount: Decimal| if amount.is_zero() { String::new() } else { amount.to_string() };
    let named = all.iter().filter(|(agent_pool, _)| *agent_pool != OTHERS);
    let spend = |(agent_pool, amounts): (&str, &Amounts)| AgentPoolSpend {
        name: agent_pool.to_owned(),
        spot: exact(amounts.spot),
        on_demand: exact(amounts.base),
        fallback: exact(amounts.fallback),
    };
    named.map(spend).collect()
}

fn spend(amounts: &Amounts, text: impl Fn(Decimal) -> String) -> Spend {
    Spend { spot: text(amounts.spot), on_demand: text(amounts.base), fallback: text(amounts.fallback) }
}

fn text(amount: Decimal) -> String {
    amount.round_dp(DIGITS).normalize().to_string()
}

/// That the first on-demand is about to be bought in the place of spot.
pub fn starting(plan: &Plan) -> Option<Event> {
    Some(event(Reason::FallbackStarting, true, plan.money.starting.clone()?))
}

/// Shares of budgets that are reached.
pub fn events(before: &SpotPoolStatus, after: &SpotPoolStatus, plan: &Plan) -> Vec<Event> {
    let month = |status: &SpotPoolStatus| Some(status.money.as_ref()?.ledger.as_ref()?.page.month.clone());
    let month = month(after).or_else(|| month(before)).unwrap_or_default();
    let alerts = plan.money.alerts.iter();
    alerts
        .map(|alert| Event {
            action: format!("Budget/{}/{}/{month}", alert.what, alert.share),
            ..event(Reason::BudgetThreshold, true, alert.note.clone())
        })
        .collect()
}

/// That a person has lifted the budgets, and by what: who it was is in the audit log of the apiserver.
pub fn overridden(pool: &SpotPool, after: &SpotPoolStatus) -> Option<Event> {
    let until = |status: &SpotPoolStatus| status.money.as_ref()?.override_until.as_ref().map(|time| time.0);
    let before = pool.status.as_ref().and_then(until);
    let lifted: Timestamp = until(after).filter(|until| before != Some(*until))?;
    let by = manager(pool.metadata.managed_fields.as_deref().unwrap_or_default());
    let note = format!(
        "annotation {} lifts the budgets of fallback until {lifted:.0}; field manager {}",
        names::BUDGET_OVERRIDE_ANNOTATION,
        by.unwrap_or("unknown")
    );
    let action = format!("Override/{}", lifted.as_second());
    Some(Event { action, ..event(Reason::BudgetOverridden, true, note) })
}

/// The field manager that set the annotation.
fn manager(managed: &[ManagedFieldsEntry]) -> Option<&str> {
    let field = format!("f:{}", names::BUDGET_OVERRIDE_ANNOTATION);
    let sets = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields["f:metadata"]["f:annotations"].get(&field).is_some())
    };
    managed.iter().filter(sets).max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?.manager.as_deref()
}

/// The Event of a drain that a budget asked for says so.
pub fn or_shed(plan: &Plan, action: &Action, told: Event) -> Event {
    let Action::RequestDrain { node, .. } = action else { return told };
    let about = format!("drain {node}: ");
    let shed = plan
        .steps
        .iter()
        .find(|step| step.reason == Reason::ShedOverBudget && step.message.starts_with(&about));
    match shed {
        Some(step) => Event {
            reason: Reason::ShedOverBudget.to_string(),
            note: Some(format!("asked {node} to drain: {}", step.message.trim_start_matches(&about))),
            ..told
        },
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a ledger says must be the same after a restart, and what cannot be read must not read as nothing.
    #[test]
    fn a_ledger_comes_back_from_status_as_it_was() {
        let month: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at: Timestamp = "2026-01-31T23:59:59Z".parse().unwrap();
        let spent = |pools: &[(&str, &str)]| {
            let mut all = ByPool::default();
            for (agent_pool, amount) in pools {
                let fallback = amount.parse().unwrap();
                all.add(agent_pool, &Amounts { fallback, ..Amounts::default() });
            }
            all
        };
        let whole = Ledger {
            at,
            currency: "EUR".into(),
            hourly: spent(&[("reg", "0.344"), ("dear", "1")]),
            newest: month,
            page: Page {
                month,
                until: at,
                spent: spent(&[("reg", "12.345678"), (OTHERS, "3"), ("new", "-0.5")]),
            },
            before: Some(Page {
                month: "2025-12-01T00:00:00Z".parse().unwrap(),
                until: month,
                spent: spent(&[("reg", "7")]),
            }),
            hour: "0.1".parse().unwrap(),
            told: Told { hourly_budget: Some("6.00".parse().unwrap()), hourly: 50, ..Told::default() },
        };
        let stored = serde_json::to_value(kept(&whole)).unwrap();
        assert_eq!(ledger(&serde_json::from_value(stored.clone()).unwrap()), whole);

        // An operator that knew no agent pools has written the totals alone, and nobody else's may be read.
        for (agent_pools, left) in [
            (json!([]), "14.845678"),
            (json!([{"name": "reg", "fallback": "12"}]), "2.845678"),
            (json!([{"name": "reg", "fallback": "some"}]), "14.845678"),
        ] {
            let mut other = stored.clone();
            other["page"]["agentPools"] = agent_pools;
            let other = ledger(&serde_json::from_value(other).unwrap());
            assert_eq!(other.page.spent.total(), whole.page.spent.total());
            assert_eq!(other.page.spent.of(OTHERS).fallback, left.parse().unwrap());
        }

        let mut broken = stored;
        broken["page"]["spent"]["fallback"] = json!("a lot");
        broken["page"]["month"] = json!("January");
        let broken = ledger(&serde_json::from_value(broken).unwrap());
        assert_eq!((broken.page.spent.total().fallback, broken.page.month), (UNREADABLE, month));
    }

    #[test]
    fn whoever_lifts_a_budget_is_named() {
        let entry = |manager: &str, annotation: &str, time: &str| -> ManagedFieldsEntry {
            let fields = json!({"f:metadata": {"f:annotations": {".": {}, format!("f:{annotation}"): {}}}});
            serde_json::from_value(json!({"manager": manager, "fieldsV1": fields, "time": time})).unwrap()
        };
        let ours = names::BUDGET_OVERRIDE_ANNOTATION;
        let entries = [
            entry("kubectl-annotate", ours, "2026-01-01T00:00:00Z"),
            entry("argocd", ours, "2026-01-02T00:00:00Z"),
            entry("helm", "other", "2026-01-03T00:00:00Z"),
        ];
        assert_eq!(manager(&entries), Some("argocd"));
        assert_eq!(manager(&entries[2..]), None);
    }
}
