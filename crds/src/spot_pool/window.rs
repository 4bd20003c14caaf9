//! When nodes may be asked to leave without need.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// A time that comes again and again, in the terms of a CronJob.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// When it opens: minute, hour, day of the month, month, day of the week, such as `0 22 * * 1-5`.
    #[schemars(regex(pattern = r"^[0-9A-Za-z*,/-]+( +[0-9A-Za-z*,/-]+){4}$"), length(max = 100))]
    pub schedule: String,

    /// The time zone of `schedule`, by its IANA name, such as `Europe/Berlin`.
    #[serde(default = "utc")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"), length(max = 64))]
    pub time_zone: String,

    /// How long it stays open, 1m to 168h.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')")
        .message("the duration of a window must be 1m to 168h"))]
    pub duration: Duration,
}

fn utc() -> String {
    "Etc/UTC".into()
}
