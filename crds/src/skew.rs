//! Reading what a newer program wrote. Agents and operator are upgraded at different times, so that each meets words that it
//! does not know. A whole notice must not be lost for one of them, nor every SpotPool of a namespace, which are read in one list.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer};

/// Reads a word, or takes `otherwise` where it is not known.
pub fn known_or<'de, D: Deserializer<'de>, T: for<'a> Deserialize<'a>>(
    deserializer: D,
    otherwise: T,
) -> Result<T, D::Error> {
    Ok(known(deserializer)?.unwrap_or(otherwise))
}

/// Reads a word, if there is one and it is known.
pub fn known<'de, D: Deserializer<'de>, T: for<'a> Deserialize<'a>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?;
    let read = |word: &str| {
        let known: StrDeserializer<'_, Error> = word.into_deserializer();
        T::deserialize(known).ok()
    };
    Ok(word.as_deref().and_then(read))
}
