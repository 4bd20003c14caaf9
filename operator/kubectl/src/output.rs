//! Writing answers: as wide as the terminal, coloured on a terminal only, or as data.

use std::io::Write;

use serde::Serialize;

use crate::Error;
use crate::args::Format;

/// How wide text is if nobody says.
const USUAL_WIDTH: usize = 100;
/// What prose is wrapped at, however wide the terminal.
const WIDEST_PROSE: usize = 120;

/// Writes answers to standard output.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Option<Format>,
    width: Option<usize>,
}

impl Printer {
    /// For the terminal that there is. `COLUMNS` wins, in a pipe too.
    pub fn new(format: Option<Format>) -> Self {
        let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let found =
            || terminal_size::terminal_size().map(|(terminal_size::Width(width), _)| usize::from(width));
        Self { format, width: said.or_else(found).filter(|width| *width > 0) }
    }

    /// Whether more columns are wanted.
    pub fn is_wide(&self) -> bool {
        self.format == Some(Format::Wide)
    }

    /// How it looks, if somebody has said.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether programs will read it.
    pub fn is_data(&self) -> bool {
        matches!(self.format, Some(Format::Json | Format::Yaml))
    }

    /// How wide a table may be; `None` is as wide as it is.
    pub fn width(&self) -> Option<usize> {
        self.width.filter(|_| !self.is_wide())
    }

    /// How wide prose may be.
    pub fn prose(&self) -> usize {
        self.width.unwrap_or(USUAL_WIDTH).min(WIDEST_PROSE)
    }

    /// The view as data if that is wanted, else as text.
    pub fn view<V: Serialize>(&self, view: &V, render: impl FnOnce() -> String) -> Result<(), Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Output(error.to_string());
        match self.format {
            Some(Format::Json) => {
                let text = serde_json::to_string_pretty(view).map_err(|error| wrong(&error))?;
                self.text(&format!("{text}\n"))
            }
            Some(Format::Yaml) => self.text(&serde_yaml_ng::to_string(view).map_err(|error| wrong(&error))?),
            _ => self.text(&render()),
        }
    }

    /// Text as it is, without colour unless a terminal shows it.
    pub fn text(&self, text: &str) -> Result<(), Error> {
        let mut out = anstream::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Whoever read has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Error::Output(error.to_string())),
            Ok(()) => Ok(()),
        }
    }
}

/// Breaks prose into lines of at most `width`, the first after `first`, the others indented as far.
pub fn wrap(first: &str, text: &str, width: usize) -> String {
    let indent = first.chars().count();
    let room = width.saturating_sub(indent).max(20);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    let mut wrapped = String::new();
    for (index, line) in lines.iter().enumerate() {
        let before = if index == 0 { first.to_owned() } else { " ".repeat(indent) };
        wrapped.push_str(format!("{before}{line}").trim_end());
        wrapped.push('\n');
    }
    wrapped
}

/// A time that has passed, short: `42s`, `7m`, `3h12m`, `5d`.
pub fn short(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number and what it counts: `1 node`, `2 nodes`.
pub fn counted(number: i32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_broken_between_words_and_indented() {
        assert_eq!(wrap("1. ", "one two three four five six", 23), "1. one two three four\n   five six\n");
        assert_eq!(wrap("", "", 40), "\n");
    }

    #[test]
    fn times_are_short() {
        let told: Vec<String> = [-5, 0, 119, 120, 7199, 7200, 172_799, 172_800].map(short).into();
        assert_eq!(told, ["0s", "0s", "119s", "2m", "119m", "2h0m", "47h59m", "2d"]);
    }
}
