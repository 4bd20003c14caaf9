//! Aligned columns that never wrap: a table that is too wide loses columns, then its lines are cut.

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How a word is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Tone {
    /// Neither.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// To be mended.
    Bad,
    /// A heading.
    Strong,
}

/// The text in its tone's colour.
pub fn paint(tone: Tone, text: &str) -> String {
    let style = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Warn => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default().bold(),
        Tone::Strong => Style::new().bold(),
    };
    format!("{style}{text}{style:#}")
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Whether it holds numbers.
    pub is_number: bool,
    /// 0 stays; of the others the highest goes first where there is no room.
    pub spare: u8,
}

impl Column {
    /// Of text.
    pub const fn text(title: &'static str, spare: u8) -> Self {
        Self { title, is_number: false, spare }
    }

    /// Of numbers.
    pub const fn number(title: &'static str, spare: u8) -> Self {
        Self { title, is_number: true, spare }
    }
}

/// Rows under headings.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<(String, Tone)>>,
    indent: usize,
}

const GAP: usize = 2;
/// The last column is cut down to this before another column goes.
const LEAST_LAST: usize = 14;

impl Table {
    /// Without rows.
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new(), indent: 0 }
    }

    /// Moved to the right.
    #[must_use]
    pub fn indent(self, indent: usize) -> Self {
        Self { indent, ..self }
    }

    /// Adds a row; a cell that is empty is shown as `-`.
    pub fn row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(cells);
    }

    /// As text, at most `width` wide.
    pub fn render(&self, width: Option<usize>) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let widths: Vec<usize> = (0..self.columns.len()).map(|index| self.width_of(index)).collect();
        if let Some(width) = width {
            let least = |shown: &[usize]| -> usize {
                let all: usize = shown.iter().map(|index| widths[*index] + GAP).sum();
                let last = shown.last().map_or(0, |last| widths[*last]);
                (self.indent + all).saturating_sub(GAP + last.saturating_sub(LEAST_LAST))
            };
            while least(&shown) > width {
                let spare =
                    shown.iter().enumerate().max_by_key(|(at, index)| (self.columns[**index].spare, *at));
                match spare {
                    Some((at, index)) if self.columns[*index].spare > 0 => shown.remove(at),
                    _ => break,
                };
            }
        }
        let mut text = String::new();
        let titles = self.columns.iter().map(|column| (column.title.to_owned(), Tone::Strong)).collect();
        for cells in std::iter::once(&titles).chain(&self.rows) {
            text.push_str(&self.line(cells, &shown, &widths, width));
            text.push('\n');
        }
        text
    }

    fn width_of(&self, index: usize) -> usize {
        let cells =
            self.rows.iter().filter_map(|row| row.get(index)).map(|(text, _)| text.chars().count().max(1));
        cells.chain([self.columns[index].title.chars().count()]).max().unwrap_or_default()
    }

    fn line(
        &self,
        cells: &[(String, Tone)],
        shown: &[usize],
        widths: &[usize],
        width: Option<usize>,
    ) -> String {
        let mut line = " ".repeat(self.indent);
        let mut left = width.unwrap_or(usize::MAX).saturating_sub(self.indent);
        for (at, index) in shown.iter().enumerate() {
            let (text, tone) =
                cells.get(*index).map_or(("", Tone::Plain), |(text, tone)| (text.as_str(), *tone));
            let text = if text.is_empty() { "-" } else { text };
            let is_last = at + 1 == shown.len();
            let padding = widths[*index].saturating_sub(text.chars().count());
            let (before, after) = if self.columns[*index].is_number { (padding, 0) } else { (0, padding) };
            let cell = cut(&format!("{}{text}", " ".repeat(before)), left);
            line.push_str(&paint(tone, &cell));
            left = left.saturating_sub(widths[*index] + GAP);
            if left == 0 {
                break;
            }
            if !is_last {
                line.push_str(&" ".repeat(after + GAP));
            }
        }
        line
    }
}

/// The text, with `…` at its end if it is longer than `most`.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    if most > 0 {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new(&[Column::text("NAME", 0), Column::number("READY", 1), Column::text("WHY", 0)]);
        table.row(vec![
            ("workers".into(), Tone::Plain),
            ("12".into(), Tone::Good),
            ("all is as it is wanted to be".into(), Tone::Plain),
        ]);
        table.row(vec![("b".into(), Tone::Plain), (String::new(), Tone::Plain), ("short".into(), Tone::Bad)]);
        table
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_are_aligned() {
        let wanted =
            "NAME     READY  WHY\nworkers     12  all is as it is wanted to be\nb            -  short\n";
        assert_eq!(plain(&table().render(None)), wanted);
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column_then_drops_spare_ones() {
        let cut = "NAME     READY  WHY\nworkers     12  all is as it i…\nb            -  short\n";
        assert_eq!(plain(&table().render(Some(31))), cut);
        let dropped = "NAME     WHY\nworkers  all is as it i…\nb        short\n";
        assert_eq!(plain(&table().render(Some(24))), dropped);
    }

    #[test]
    fn no_line_is_ever_wider_than_the_terminal() {
        for width in 1..60 {
            for line in plain(&table().render(Some(width))).lines() {
                assert!(line.chars().count() <= width, "{width}: `{line}`");
            }
        }
    }
}
