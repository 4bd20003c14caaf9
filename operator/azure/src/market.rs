//! What is known of the market for VMs, and since when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use serde_json::value::RawValue;

use crate::Clock;
use crate::error::{AzureError, Class};

/// After an error, or where Azure knew nothing of a size, it is asked again no sooner than this.
const ASK_AGAIN: SignedDuration = SignedDuration::from_mins(5);

/// Something that Azure said, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<T> {
    /// What it said.
    pub value: T,
    /// When it was read. The last good answer is kept through errors: whoever decides by it looks at its age.
    pub read_at: Timestamp,
}

impl<T> Known<T> {
    /// How old it is; zero where clocks disagree.
    pub fn age(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.read_at)).unwrap_or_default()
    }
}

/// What is known of each VM size. Sizes are told apart without case, as Azure does.
pub(crate) struct Cache<V> {
    state: Mutex<State<V>>,
    now: Clock,
    fresh_for: SignedDuration,
}

struct State<V> {
    known: BTreeMap<String, Known<V>>,
    due: BTreeMap<String, Timestamp>,
    paused_until: Option<Timestamp>,
}

impl<V: Clone> Cache<V> {
    pub(crate) fn new(now: Clock, fresh_for: SignedDuration) -> Self {
        let state = State { known: BTreeMap::new(), due: BTreeMap::new(), paused_until: None };
        Self { state: Mutex::new(state), now, fresh_for }
    }

    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, size: &str) -> Option<Known<V>> {
        self.state().known.get(&size.to_ascii_lowercase()).cloned()
    }

    /// Those of `sizes` that have to be asked for: each once, spelt as given, those that wait longest first. None
    /// while Azure wants a pause.
    pub(crate) fn due<'a>(&self, sizes: &'a [String]) -> Result<Vec<&'a str>, AzureError> {
        let now = (self.now)();
        let state = self.state();
        let mut due = BTreeMap::new();
        for size in sizes {
            let key = name(size)?.to_ascii_lowercase();
            let since = state.due.get(&key).copied();
            if since.is_none_or(|since| now >= since) {
                due.entry(key).or_insert((since, size.as_str()));
            }
        }
        if state.paused_until.is_some_and(|until| now < until) {
            return Ok(Vec::new());
        }
        let mut due: Vec<_> = due.into_values().collect();
        due.sort_by_key(|(since, _)| *since); // never asked for comes first
        Ok(due.into_iter().map(|(_, size)| size).collect())
    }

    /// What an answer about `asked` held. What it did not hold stays as it was, and is asked for again sooner.
    pub(crate) fn store(&self, asked: &[&str], found: impl IntoIterator<Item = (String, V)>) {
        let now = (self.now)();
        let mut state = self.state();
        let found: BTreeMap<_, _> =
            found.into_iter().map(|(size, value)| (size.to_ascii_lowercase(), value)).collect();
        for size in asked {
            let key = size.to_ascii_lowercase();
            if let Some(value) = found.get(&key) {
                state.known.insert(key.clone(), Known { value: value.clone(), read_at: now });
                state.due.insert(key, now + self.fresh_for);
            } else {
                state.due.insert(key, now + ASK_AGAIN.min(self.fresh_for));
            }
        }
    }

    /// There was no answer about `asked`.
    pub(crate) fn failed(&self, asked: &[&str], error: &AzureError) {
        let now = (self.now)();
        let mut state = self.state();
        let wait = error.retry_after.and_then(|wait| SignedDuration::try_from(wait).ok());
        let wait = wait.unwrap_or(ASK_AGAIN).min(SignedDuration::from_hours(1));
        if error.class == Class::Throttled {
            state.paused_until = Some(now + wait);
        }
        for size in asked {
            state.due.insert(size.to_ascii_lowercase(), now + wait);
        }
    }

    /// Nobody is asked for anything until then.
    pub(crate) fn pause(&self, lasting: SignedDuration) {
        self.state().paused_until = Some((self.now)() + lasting);
    }
}

/// A VM size or a region: nothing that could change the meaning of a query that it is put into.
pub(crate) fn name(text: &str) -> Result<&str, AzureError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !text.is_empty() && text.len() <= 80 && text.bytes().all(plain) {
        Ok(text)
    } else {
        let shown: String = text.chars().take(80).collect();
        let message = format!("`{shown}` is no name of a VM size or region (letters, digits, _ and -)");
        Err(AzureError::new(Class::Invalid, "InvalidName", message))
    }
}

/// A region as Azure writes it in resources: `eastus` for `East US`.
pub(crate) fn region(text: &str) -> Result<String, AzureError> {
    let joined: String = text.chars().filter(|letter| *letter != ' ').collect();
    name(&joined).map(str::to_ascii_lowercase)
}

/// A price an hour, digit by digit as on the wire. What is nothing, negative or absurd is no price.
pub(crate) fn price(raw: &RawValue) -> Option<Decimal> {
    let digits = raw.get().trim().trim_matches('"');
    let price = Decimal::from_str_exact(digits).or_else(|_| Decimal::from_scientific(digits)).ok()?;
    (price > Decimal::ZERO && price < Decimal::from(100_000)).then(|| price.normalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::Hands;

    const MINUTE: Duration = Duration::from_mins(1);

    fn sizes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Whoever pays wants the digits that Azure has, not those of a float near them.
    #[test]
    fn prices_are_read_digit_by_digit() {
        for (raw, read) in [
            ("0.0192", Some("0.0192")),
            ("0.1", Some("0.1")),
            ("3.0", Some("3")),
            ("12", Some("12")),
            ("1.92E-2", Some("0.0192")),
            ("1e0", Some("1")),
            ("\"0.018854\"", Some("0.018854")),
            ("0.019200000000000002", Some("0.019200000000000002")),
            ("0", None),
            ("0.0", None),
            ("-0.5", None),
            ("1e9", None),
            ("1e999", None),
            ("null", None),
            ("\"NaN\"", None),
            ("[1]", None),
        ] {
            let value: Box<RawValue> = serde_json::from_str(raw).unwrap();
            assert_eq!(price(&value).map(|price| price.to_string()).as_deref(), read, "{raw}");
        }
    }

    /// Sizes come from agent pools and specs, and go into queries.
    #[test]
    fn no_name_can_change_a_query() {
        for fine in ["Standard_D8as_v5", "Standard_M416-208s_v2", "eastus2"] {
            assert_eq!(name(fine).unwrap(), fine);
        }
        for wrong in ["", "a'b", "a\") | x", "a b", "a\nb", "ä", "a%27", "a/b", &"a".repeat(81)] {
            assert_eq!(name(wrong).unwrap_err().class, Class::Invalid, "{wrong}");
        }
        assert_eq!(region("East US 2").unwrap(), "eastus2");
        assert!(region("east'us").is_err());
    }

    #[test]
    fn the_last_good_answer_is_kept_through_errors_with_its_age() {
        let hands = Hands::set();
        let cache = Cache::new(hands.clock(), SignedDuration::from_hours(1));
        let wanted = sizes(&["Standard_D2s_v3", "standard_d2S_V3", "Standard_E8s_v5"]);
        assert_eq!(cache.due(&wanted).unwrap(), ["Standard_D2s_v3", "Standard_E8s_v5"]);
        cache.store(&["Standard_D2s_v3", "Standard_E8s_v5"], [("STANDARD_D2S_V3".to_owned(), 1)]);
        assert_eq!(cache.get("standard_d2s_v3").unwrap().value, 1);
        assert!(cache.get("Standard_E8s_v5").is_none());
        assert!(cache.due(&wanted).unwrap().is_empty());

        hands.forward(5 * MINUTE);
        assert_eq!(
            cache.due(&wanted).unwrap(),
            ["Standard_E8s_v5"],
            "what Azure did not know is asked sooner"
        );
        hands.forward(55 * MINUTE);
        assert_eq!(cache.due(&wanted).unwrap().len(), 2);
        cache.failed(&["Standard_D2s_v3"], &AzureError::new(Class::Transient, "Timeout", "late"));
        assert_eq!(cache.due(&wanted).unwrap(), ["Standard_E8s_v5"]);
        let now = hands.clock()();
        let kept = cache.get("Standard_D2s_v3").unwrap();
        assert_eq!((kept.value, kept.age(now)), (1, 60 * MINUTE));
        cache.store(&["Standard_D2s_v3"], []);
        assert_eq!(cache.get("Standard_D2s_v3").unwrap().age(now), 60 * MINUTE, "absence made it younger");
    }

    #[test]
    fn a_throttled_api_is_left_alone_as_long_as_it_says() {
        let hands = Hands::set();
        let cache = Cache::<u8>::new(hands.clock(), SignedDuration::from_hours(1));
        let mut throttled = AzureError::new(Class::Throttled, "TooManyRequests", "wait");
        throttled.retry_after = Some(10 * MINUTE);
        cache.failed(&["a"], &throttled);
        hands.forward(9 * MINUTE);
        assert!(cache.due(&sizes(&["a", "b"])).unwrap().is_empty());
        hands.forward(MINUTE);
        assert_eq!(cache.due(&sizes(&["a", "b"])).unwrap(), ["b", "a"], "those never asked for come first");
        assert!(cache.due(&sizes(&["a'"])).is_err());
    }
}
