//! Durations as the control API writes them.

use std::time::Duration;

/// Durations as whole milliseconds in JSON; a text such as `90s` or `1m30s` is read too.
pub mod millis {
    use std::time::Duration;

    use jiff::SignedDuration;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes a duration as milliseconds.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Either spelling.
    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Spelled {
        Millis(u64),
        Text(String),
    }

    impl Spelled {
        pub(super) fn duration(self) -> Result<Duration, String> {
            match self {
                Self::Millis(millis) => Ok(Duration::from_millis(millis)),
                Self::Text(text) => super::duration(&text),
            }
        }
    }

    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Spelled::deserialize(deserializer)
            .map_err(|_| de::Error::custom("a duration is milliseconds or a text such as 90s or 1m30s"))?
            .duration()
            .map_err(de::Error::custom)
    }

    pub(super) fn parse(text: &str) -> Result<Duration, String> {
        let parsed: SignedDuration =
            text.parse().map_err(|_| format!("`{text}` is no duration such as 30s or 1m30s"))?;
        Duration::try_from(parsed).map_err(|_| format!("`{text}` is negative"))
    }
}

/// A duration such as `30s` or `1m30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    millis::parse(text)
}

/// Optional durations as whole milliseconds in JSON; texts are read too.
pub mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes a duration as milliseconds, or `null`.
    #[allow(clippy::ref_option)] // the signature that serde calls
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<super::millis::Spelled>::deserialize(deserializer)?
            .map(super::millis::Spelled::duration)
            .transpose()
            .map_err(de::Error::custom)
    }
}
