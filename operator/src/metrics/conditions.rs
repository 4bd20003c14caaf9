//! Conditions of SpotPools as kube-state-metrics shows those of other objects: a series for each status, one of them 1.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use spotpool_crds::SpotPoolStatus;
use spotpool_runtime::catalogue::Catalogue;

use super::PoolName;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    namespace: String,
    pool: String,
    condition: &'static str,
    status: &'static str,
}

/// All that a SpotPool can have.
const CONDITIONS: [&str; 12] = [
    "Ready",
    "Reconciling",
    "Stalled",
    "SpotAvailable",
    "FallbackActive",
    "OnDemandAvailable",
    "BudgetExhausted",
    "SoleOwner",
    "AgentsHealthy",
    "AzureReachable",
    "ObjectiveMet",
    "CostTagsPresent",
];
/// As conditions say it, and as labels do.
const STATUSES: [(&str, &str); 3] = [("True", "true"), ("False", "false"), ("Unknown", "unknown")];

#[derive(Clone, Default)]
pub(super) struct ConditionMetrics(Family<Of, Gauge>);

impl ConditionMetrics {
    pub fn register(&self, catalogue: &mut Catalogue) {
        catalogue
            .family("condition", "Whether a condition of a SpotPool has this status")
            .unit("0 or 1")
            .of_pool()
            .label_of(
                "condition",
                "`Ready`, `Reconciling`, `Stalled`, `SpotAvailable`, `FallbackActive`, `OnDemandAvailable`, \
                 `BudgetExhausted`, `SoleOwner`, `AgentsHealthy`, `AzureReachable`, `ObjectiveMet`, `CostTagsPresent`",
            )
            .label_of("status", "`true`, `false`, `unknown`")
            .note("Of [conditions](spotpool.md#conditions) that it has")
            .metric(self.0.clone());
    }

    pub fn tell(&self, name: &PoolName, status: &SpotPoolStatus) {
        for condition in CONDITIONS {
            let found = status.conditions.iter().find(|it| it.type_ == condition);
            for (is, label) in STATUSES {
                let labels = of(name, condition, label);
                match found {
                    Some(found) => drop(self.0.get_or_create(&labels).set((found.status == is).into())),
                    None => drop(self.0.remove(&labels)),
                }
            }
        }
    }

    pub fn forget(&self, name: &PoolName) {
        self.tell(name, &SpotPoolStatus::default());
    }
}

fn of(name: &PoolName, condition: &'static str, status: &'static str) -> Of {
    let PoolName { namespace, pool } = name.clone();
    Of { namespace, pool, condition, status }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use serde_json::json;

    fn scrape(metrics: &ConditionMetrics) -> Vec<String> {
        let mut catalogue = Catalogue::new("x");
        metrics.register(&mut catalogue);
        let mut text = String::new();
        encode(&mut text, &catalogue.into_registry()).unwrap();
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Else an alert would go on for what is over, or for a SpotPool that is gone.
    #[test]
    fn one_status_of_a_condition_is_one_and_what_is_gone_has_none() {
        let (metrics, name) = (ConditionMetrics::default(), PoolName::of("n", "p"));
        let tell = |conditions: &[(&str, &str)]| {
            let condition = |(kind, status): &(&str, &str)| {
                json!({"type": kind, "status": status, "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
            };
            let conditions: Vec<_> = conditions.iter().map(condition).collect();
            let status = json!({"conditions": conditions});
            metrics.tell(&name, &serde_json::from_value(status).unwrap());
            scrape(&metrics)
        };
        let line = |condition: &str, status: &str, value: u8| {
            format!(
                "x_condition{{namespace=\"n\",pool=\"p\",condition=\"{condition}\",status=\"{status}\"}} {value}"
            )
        };
        let stalled = |no, yes, unknown| {
            [line("Stalled", "false", no), line("Stalled", "true", yes), line("Stalled", "unknown", unknown)]
        };
        assert_eq!(tell(&[("Stalled", "True"), ("Unheard", "True")]), stalled(0, 1, 0));
        assert_eq!(tell(&[("Stalled", "Unknown")]), stalled(0, 0, 1));
        let both = tell(&[("Stalled", "False"), ("ObjectiveMet", "True")]);
        assert_eq!(both.len(), 6, "{both:?}");
        assert_eq!(tell(&[("Stalled", "False")]), stalled(1, 0, 0), "its objective was taken away");
        metrics.forget(&name);
        assert_eq!(scrape(&metrics), [""; 0]);
    }
}
