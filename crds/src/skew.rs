//! Reading what a newer program wrote. Agents and operator are upgraded at different times, so that each meets words that it
//! does not know. A whole notice must not be lost for one of them.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer};

/// Reads a word, or takes `otherwise` where it is not known.
pub fn known_or<'de, D: Deserializer<'de>, T: for<'a> Deserialize<'a>>(
    deserializer: D,
    otherwise: T,
) -> Result<T, D::Error> {
    let word = String::deserialize(deserializer)?;
    let known: StrDeserializer<'_, Error> = word.as_str().into_deserializer();
    Ok(T::deserialize(known).unwrap_or(otherwise))
}
