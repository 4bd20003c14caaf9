//! Durations as Kubernetes writes them: `30s`, `5m`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration as Std;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration of hours, minutes, seconds and milliseconds, never negative. Its text form is the shortest:
/// kube's own type writes zero as `0ns`, which no pattern of Kubernetes' units accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(Std);

impl Duration {
    /// So many whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Std::from_secs(seconds))
    }
}

impl From<Std> for Duration {
    fn from(duration: Std) -> Self {
        Self(Std::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl From<Duration> for Std {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        for (value, unit) in
            [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (millis.into(), "ms")]
        {
            if value > 0 {
                write!(f, "{value}{unit}")?;
            }
        }
        Ok(())
    }
}

/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration such as 30s, 5m or 1h30m")]
pub struct ParseError(String);

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseError(text.chars().take(40).collect());
        let parsed: kube::core::Duration = text.parse().map_err(|_| wrong())?;
        if text.is_empty() || parsed.is_negative() { Err(wrong()) } else { Ok(Std::from(parsed).into()) }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^([0-9]+(h|m|s|ms))+$", "maxLength": 20})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_writes_the_shortest_form() {
        for (read, written) in [
            ("0s", "0s"),
            ("300s", "5m"),
            ("90m", "1h30m"),
            ("1500ms", "1s500ms"),
            ("24h", "24h"),
            ("1.5s", "1s500ms"),
        ] {
            assert_eq!(read.parse::<Duration>().unwrap().to_string(), written);
        }
        for wrong in ["", "5", "-3s", "5 m", "x"] {
            assert!(wrong.parse::<Duration>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(millis in 0u64..10_000_000_000) {
            let duration = Duration::from(Std::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
