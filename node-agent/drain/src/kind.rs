//! What Azure says will happen to a VM, and when, in whatever words.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::rfc2822;

/// Longest piece of foreign text that is kept.
const LONGEST_TEXT: usize = 200;

/// What will happen to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A spot VM is taken back.
    Preempt,
    /// The VM is deleted.
    Terminate,
    /// The VM is restarted.
    Reboot,
    /// The VM is moved to another host, without its memory and temporary disk.
    Redeploy,
    /// The VM is paused for seconds.
    Freeze,
    /// A hint: the spot VM may be taken back soon.
    Rebalance,
    /// Something newer than this program.
    Other(String),
}

impl Kind {
    /// The type of that name.
    pub fn read(text: &str) -> Self {
        match text {
            "Preempt" => Self::Preempt,
            "Terminate" => Self::Terminate,
            "Reboot" => Self::Reboot,
            "Redeploy" => Self::Redeploy,
            "Freeze" => Self::Freeze,
            "SpotRebalanceRecommendation" => Self::Rebalance,
            other => Self::Other(shortened(other)),
        }
    }

    /// Whether it is announced long before, and its time can be relied upon.
    pub fn is_planned(&self) -> bool {
        matches!(self, Self::Terminate | Self::Reboot | Self::Redeploy | Self::Freeze)
    }

    /// As a metric label: bounded, whatever Azure sends.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Preempt => "Preempt",
            Self::Terminate => "Terminate",
            Self::Reboot => "Reboot",
            Self::Redeploy => "Redeploy",
            Self::Freeze => "Freeze",
            Self::Rebalance => "SpotRebalanceRecommendation",
            Self::Other(_) => "Other",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(text) => f.write_str(text),
            known => f.write_str(known.label()),
        }
    }
}

/// Azure writes RFC 1123; its mock server and newer services write ISO 8601, with and without zone.
pub fn date_of(text: &str) -> Option<Timestamp> {
    let utc = |civil: DateTime| civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()
        .or_else(|| text.parse().ok())
        .or_else(|| utc(text.parse().ok()?))
}

/// Foreign text, kept short and printable.
pub fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect()
}
