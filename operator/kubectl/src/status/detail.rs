//! One SpotPool in all detail.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use spotpool_crds::SpotPoolStatus;
use spotpool_crds::spot_pool::{AgentPoolStatus, Operation, OperationKind, Role};

use super::{Detail, PLAIN, Row};
use crate::output::{counted, short, wrap};
use crate::table::{Column, Table, Tone, cut, paint};

/// One SpotPool in all detail.
pub fn render_detail(detail: &Detail, now: Timestamp, width: Option<usize>, prose: usize) -> String {
    let Detail { row, status } = detail;
    let mut text = heading(row, now, prose);
    let capacity = &status.capacity;
    let mut counts =
        format!("{} of {} ready: {} on spot, {} on demand", row.ready, row.wanted, row.spot, row.on_demand);
    for (number, what) in [(capacity.on_the_way, "on the way"), (capacity.evicting, "under notice")] {
        if number > 0 {
            counts.push_str(&format!(", {number} {what}"));
        }
    }
    if row.fallback > 0 {
        counts.push_str(&format!("; {} in the place of spot", counted(row.fallback, "on-demand node")));
        if let Some(since) = &status.fallback.since {
            counts.push_str(&format!(", since {:.0}", since.0));
        }
    }
    text.push_str(&wrap("Capacity   ", &counts, prose));
    if let Some(money) = money(status) {
        text.push_str(&wrap("Money      ", &money, prose));
    }
    if !row.objective.is_empty() {
        text.push_str(&wrap("Objective  ", &row.objective, prose));
    }
    if !status.agent_pools.is_empty() {
        text.push_str(&format!("\n{}", agent_pools(&status.agent_pools, now).render(width)));
    }
    if !status.plan.is_empty() {
        text.push_str(&format!("\n{}\n", paint(Tone::Strong, "Plan")));
        for (index, step) in status.plan.iter().enumerate() {
            text.push_str(&wrap(
                &format!("  {}. ", index + 1),
                &format!("{}: {}", step.reason, step.message),
                prose,
            ));
        }
    }
    if !status.blocked_budgets.is_empty() {
        text.push_str(&format!("\n{}\n", paint(Tone::Strong, "Disruption budgets that let no pod go")));
        let columns = [
            Column::text("BUDGET", 0),
            Column::text("OWNER", 2),
            Column::number("HEALTHY", 0),
            Column::number("DESIRED", 0),
            Column::number("PODS HERE", 1),
            Column::text("SINCE", 1),
        ];
        let mut table = Table::new(&columns).indent(2);
        for budget in &status.blocked_budgets {
            table.row(vec![
                (format!("{}/{}", budget.namespace, budget.name), PLAIN),
                (budget.owner.clone(), PLAIN),
                (budget.current_healthy.to_string(), PLAIN),
                (budget.desired_healthy.to_string(), PLAIN),
                (budget.pods.to_string(), PLAIN),
                (short(now.duration_since(budget.since.0).as_secs()), PLAIN),
            ]);
        }
        text.push_str(&table.render(width));
    }
    if !status.conditions.is_empty() {
        text.push_str(&format!("\n{}", conditions(&status.conditions, now).render(width)));
    }
    text
}

/// Whose it is, its state and what that means.
pub fn heading(row: &Row, now: Timestamp, prose: usize) -> String {
    let name = cut(&format!("SpotPool {}/{}", row.namespace, row.name), prose);
    let mut text = format!("{}\n", paint(Tone::Strong, &name));
    text.push_str(&format!("State      {}\n", paint(row.tone, &cut(&row.state, prose.saturating_sub(11)))));
    if !row.message.is_empty() {
        text.push_str(&wrap("           ", &row.message, prose));
    }
    if let Some(created) = row.created {
        text.push_str(&format!("Age        {}\n", short(now.duration_since(created).as_secs())));
    }
    text
}

/// What it costs and what is left of its budgets, in words.
pub fn money(status: &SpotPoolStatus) -> Option<String> {
    let money = status.money.as_ref()?;
    let hourly = money.hourly.as_ref()?;
    let currency = &money.currency;
    let mut said = format!(
        "{} {currency} an hour: {} spot, {} on demand, {} fallback",
        hourly.total, hourly.spot, hourly.on_demand, hourly.fallback
    );
    if let Some(percent) = money.saving_percent {
        said.push_str(&format!("; {percent}% less than on demand"));
    }
    if let Some(month) = &money.this_month {
        said.push_str(&format!("; fallback this month {} {currency}", month.fallback));
    }
    for (budget, name) in [(&money.hourly_budget, "hourly"), (&money.monthly_budget, "monthly")] {
        if let Some(budget) = budget {
            said.push_str(&format!("; {} of the {name} budget of {} left", budget.left, budget.budget));
        }
    }
    for assumption in &money.assumptions {
        said.push_str(&format!("; {assumption}"));
    }
    Some(said)
}

/// The table of its agent pools.
fn agent_pools(pools: &[AgentPoolStatus], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        Column::text("AGENT POOL", 0),
        Column::text("ROLE", 1),
        Column::text("SIZE", 5),
        Column::number("MACHINES", 2),
        Column::number("READY", 0),
        Column::number("EVICTING", 3),
        Column::number("PRICE", 4),
        Column::number("RANK", 1),
        Column::text("NOW", 0),
    ]);
    for pool in pools {
        let (now_text, tone) = doing(pool, now);
        table.row(vec![
            (pool.name.clone(), PLAIN),
            (role(pool.role).into(), PLAIN),
            (pool.vm_size.clone(), PLAIN),
            (pool.machines.to_string(), PLAIN),
            (pool.ready.to_string(), PLAIN),
            (pool.evicting.to_string(), if pool.evicting > 0 { Tone::Warn } else { PLAIN }),
            (pool.price.as_ref().map(|price| price.hourly.clone()).unwrap_or_default(), PLAIN),
            (pool.rank.as_ref().map(|rank| rank.position.to_string()).unwrap_or_default(), PLAIN),
            (now_text, tone),
        ]);
    }
    table
}

/// A role as people write it.
pub fn role(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Spot) => "spot",
        Some(Role::OnDemand) => "on-demand",
        None => "unknown",
    }
}

fn doing(pool: &AgentPoolStatus, now: Timestamp) -> (String, Tone) {
    let is_made = |operation: &&Operation| operation.kind == OperationKind::CreateAgentPool;
    if let Some(operation) = pool.operation.as_ref().filter(is_made) {
        return (
            format!("being made since {}", short(now.duration_since(operation.since.0).as_secs())),
            PLAIN,
        );
    }
    if let Some(reason) = &pool.unusable {
        return (format!("not used: {reason}"), Tone::Bad);
    }
    if let Some(until) = pool.avoided_until.as_ref().filter(|until| until.0 > now) {
        let left = short(until.0.duration_since(now).as_secs());
        return (format!("avoided for {left} more: {}", pool.avoided_for), Tone::Warn);
    }
    if let Some(operation) = &pool.operation {
        let since = short(now.duration_since(operation.since.0).as_secs());
        return (format!("{:?} of {} since {since}", operation.kind, operation.machines), PLAIN);
    }
    if pool.evicting > 0 {
        return (format!("{} under notice", pool.evicting), Tone::Warn);
    }
    (String::new(), PLAIN)
}

fn conditions(conditions: &[Condition], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        Column::text("CONDITION", 0),
        Column::text("STATUS", 0),
        Column::text("SINCE", 2),
        Column::text("REASON", 1),
        Column::text("MESSAGE", 1),
    ]);
    for condition in conditions {
        let since = now.duration_since(condition.last_transition_time.0).as_secs();
        table.row(vec![
            (condition.type_.clone(), PLAIN),
            (condition.status.clone(), if is_right(condition) { PLAIN } else { Tone::Warn }),
            (short(since), PLAIN),
            (condition.reason.clone(), PLAIN),
            (condition.message.clone(), PLAIN),
        ]);
    }
    table
}

/// Whether a condition says what one would like it to say.
pub fn is_right(condition: &Condition) -> bool {
    let wanted = match condition.type_.as_str() {
        "Stalled" | "FallbackActive" | "BudgetExhausted" | "Reconciling" => "False",
        _ => "True",
    };
    condition.status == wanted
}

#[cfg(test)]
mod tests {
    use super::super::row;
    use super::super::tests::{NOW, plain, standing_in};
    use super::*;

    #[test]
    fn detail_tells_pools_plan_money_and_conditions() {
        let pool = standing_in();
        let detail = Detail { row: row(&pool), status: pool.status.clone().unwrap() };
        let text = plain(&render_detail(&detail, NOW.parse().unwrap(), Some(110), 100));
        for wanted in [
            "SpotPool batch/workers\nState      Progressing\n           3 of 4 ready, 1 on the way\nAge        24h0m\n",
            "Capacity   3 of 4 ready: 2 on spot, 1 on demand, 1 on the way, 1 under notice; 1 on-demand",
            "Money      0.5 USD an hour: 0.2 spot, 0 on demand, 0.3 fallback; 55% less than on demand",
            "rega        on-demand  Standard_D4s_v5         2      1         0      -     -  ScaleUp of 1 since 30s",
            "  2. FallbackForShortfall: ask rega for 1 more",
            "Ready      False   60s    Progressing  3 of 4 ready, 1 on the way",
        ] {
            assert!(text.contains(wanted), "`{wanted}` is not in\n{text}");
        }
    }
}
