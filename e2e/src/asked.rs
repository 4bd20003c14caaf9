//! What whoever starts a test asks for in its environment.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, anyhow};

/// What the variable says, if it is set.
pub fn asked<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|error| anyhow!("{name}={text}: {error}"))
}
