//! What workloads have cost, as status keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use spotpool_core::bills::{Bill, Bills};
use spotpool_crds::spot_pool::{ByWorkload, WorkloadMonth, WorkloadSpend};

use crate::market::decimal;

/// As it was kept; absent if any of it cannot be read, and then all that was spent is nobody's: never on the wrong bill.
pub fn kept(status: &ByWorkload) -> Option<Bills> {
    Some(Bills {
        label: status.label.clone(),
        at: status.at.0,
        month: month(&status.this_month)?,
        before: match &status.month_before {
            Some(before) => Some(month(before)?),
            None => None,
        },
    })
}

fn month(status: &WorkloadMonth) -> Option<Bill> {
    let mut spent = BTreeMap::new();
    for spend in &status.spent {
        let twice = spent.insert(Arc::from(spend.workload.as_str()), decimal(&spend.amount)?);
        if twice.is_some() {
            return None;
        }
    }
    Some(Bill { month: format!("{}-01T00:00:00Z", status.month).parse().ok()?, spent })
}

/// As status keeps it.
pub fn status(bills: &Bills) -> ByWorkload {
    let month = |bill: &Bill| WorkloadMonth {
        month: bill.month.to_zoned(TimeZone::UTC).strftime("%Y-%m").to_string(),
        spent: bill
            .spent
            .iter()
            .map(|(workload, amount)| WorkloadSpend {
                workload: workload.to_string(),
                amount: amount.normalize().to_string(),
            })
            .collect(),
    };
    ByWorkload {
        label: bills.label.clone(),
        at: Time(bills.at),
        this_month: month(&bills.month),
        month_before: bills.before.as_ref().map(month),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A restart must change nobody's bill.
    #[test]
    fn bills_come_back_from_status_as_they_were() {
        let bill = |month: &str, spent: &[(&str, &str)]| Bill {
            month: month.parse().unwrap(),
            spent: spent.iter().map(|(name, amount)| (Arc::from(*name), amount.parse().unwrap())).collect(),
        };
        let whole = Bills {
            label: "team".into(),
            at: "2026-02-01T00:10:00Z".parse().unwrap(),
            month: bill("2026-02-01T00:00:00Z", &[("(idle)", "0.000001"), ("red", "12.5")]),
            before: Some(bill("2026-01-01T00:00:00Z", &[("(unknown)", "700.25")])),
        };
        let stored = serde_json::to_value(status(&whole)).unwrap();
        let read = |stored: &serde_json::Value| kept(&serde_json::from_value(stored.clone()).unwrap());
        assert_eq!(read(&stored), Some(whole));
        for (path, wrong) in [
            ("/thisMonth/spent/1/amount", json!("a lot")),
            ("/thisMonth/month", json!("February")),
            ("/thisMonth/spent/1/workload", json!("(idle)")),
        ] {
            let mut broken = stored.clone();
            *broken.pointer_mut(path).unwrap() = wrong;
            assert_eq!(read(&broken), None, "{path}");
        }
    }
}
