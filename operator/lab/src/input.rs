//! What is wrong with an input, and where.

use std::path::Path;

/// One sentence that says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct BadInput {
    /// The file, and the line if there is one.
    pub place: String,
    /// What is wrong with it and what to change.
    pub what: String,
}

impl BadInput {
    /// In no line in particular.
    pub fn of(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }

    /// In a line, counted from 1.
    pub fn line(place: &str, line: usize, what: impl Into<String>) -> Self {
        Self::of(format!("{place}, line {line}"), what)
    }
}

/// The text of a file.
pub fn read(path: &Path) -> Result<String, BadInput> {
    std::fs::read_to_string(path)
        .map_err(|error| BadInput::of(path.display().to_string(), format!("cannot be read: {error}")))
}

/// What a parser says, without the names of Rust's types.
pub fn in_words(what: &str) -> String {
    ["u32", "i32"].iter().fold(what.to_owned(), |what, name| {
        what.replace(&format!("expected {name}"), "expected a whole number")
    })
}
