//! Sets of scale-set instance ids, written as ranges.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A scale set holds at most 1,000 VMs; more ids than a few of these is nonsense, not data.
const MAX_IDS: usize = 5_000;

/// A set of instance ids. Its text form lists ranges in order: `3-9,14`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InstanceRanges(BTreeSet<u64>);

impl InstanceRanges {
    /// Whether `id` is one of them.
    pub fn contains(&self, id: u64) -> bool {
        self.0.contains(&id)
    }

    /// The ids, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<u64> for InstanceRanges {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl fmt::Display for InstanceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while ids.peek() == Some(&(last + 1)) {
                last += 1;
                ids.next();
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Why a text is no list of instance ranges.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A part is neither a number nor `low-high`.
    #[error("`{0}` is neither an instance id nor a range such as 3-9")]
    Part(String),
    /// More ids than any scale set can have.
    #[error("more than {MAX_IDS} instance ids")]
    TooMany,
}

impl FromStr for InstanceRanges {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ids = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || ParseError::Part(part.chars().take(40).collect());
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let low: u64 = low.trim().parse().map_err(|_| wrong())?;
            let high: u64 = high.trim().parse().map_err(|_| wrong())?;
            if high < low {
                return Err(wrong());
            }
            if high - low >= MAX_IDS as u64 || ids.len() + (high - low) as usize >= MAX_IDS {
                return Err(ParseError::TooMany);
            }
            ids.extend(low..=high);
        }
        Ok(Self(ids))
    }
}

impl Serialize for InstanceRanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InstanceRanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ids) in
            [("", vec![]), ("0", vec![0]), ("3-5,14", vec![3, 4, 5, 14]), ("7,5,6", vec![5, 6, 7])]
        {
            let ranges: InstanceRanges = text.parse().unwrap();
            assert_eq!(ranges.iter().collect::<Vec<_>>(), ids, "{text}");
        }
    }

    #[test]
    fn refuses_nonsense_without_filling_memory() {
        for text in ["x", "5-3", "1-", "-", "1-99999999999", "0-6000", "18446744073709551616"] {
            assert!(text.parse::<InstanceRanges>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(ids in proptest::collection::btree_set(0u64..2_000, 0..200)) {
            let ranges: InstanceRanges = ids.iter().copied().collect();
            prop_assert_eq!(ranges.to_string().parse::<InstanceRanges>().unwrap(), ranges);
        }
    }
}
