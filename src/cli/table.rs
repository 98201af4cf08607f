//! How commands print for people: columns that line up, and times as one says them.

use std::time::Duration;

use console::{Alignment, measure_text_width, pad_str};

/// Between columns.
const GAP: &str = "  ";

/// Rows under one header. Whatever comes from elsewhere is printed without control characters, so that a text in Redis
/// or from a server cannot steer the terminal.
pub(super) struct Table {
    columns: Vec<(&'static str, Alignment)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet. A column whose name ends with `#` holds numbers, which stand to the right.
    pub(super) fn new(columns: &[&'static str]) -> Self {
        let column = |name: &'static str| match name.strip_suffix('#') {
            Some(name) => (name, Alignment::Right),
            None => (name, Alignment::Left),
        };
        Table { columns: columns.iter().copied().map(column).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The header and the rows as lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let header: Vec<_> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let all = || std::iter::once(&header).chain(&self.rows);
        let width = |index: usize| {
            all().filter_map(|cells| cells.get(index)).map(|cell| measure_text_width(cell)).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &Vec<String>| {
            let padded = cells.iter().zip(&self.columns).zip(&widths);
            let padded: Vec<_> =
                padded.map(|((cell, (_, alignment)), width)| pad_str(cell, *width, *alignment, None)).collect();
            padded.join(GAP).trim_end().to_owned()
        };
        all().map(line).collect()
    }
}

/// The text without characters that a terminal acts on.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// A time in its two largest units: `1.2s`, `3m 12s`, `2d 3h`.
pub(super) fn duration(seconds: f64) -> String {
    // What no clock measures would not fit into a duration.
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let units = |large: u64, large_name: &str, small: u64, small_name: &str| {
        format!("{}{large_name} {}{small_name}", whole / large, whole % large / small)
    };
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3_600 => units(60, "m", 1, "s"),
        3_600..86_400 => units(3_600, "h", 60, "m"),
        _ => units(86_400, "d", 3_600, "h"),
    }
}

/// `1 task`, `2 tasks`.
pub(super) fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_not_get_through() {
        let mut table = Table::new(&["NAME", "COUNT#", "STATE"]);
        table.row(["a".into(), "7".into(), "open".into()]);
        table.row(["a-long-name".into(), "1000".into(), "\u{1b}[2Jfull".into()]);
        assert_eq!(
            table.lines(),
            ["NAME         COUNT  STATE", "a                7  open", "a-long-name   1000  ?[2Jfull"]
        );
    }

    #[test]
    fn times_have_two_units_at_the_most() {
        let cases = [
            (0.04, "0.0s"),
            (9.96, "10.0s"),
            (59.9, "59s"),
            (192.0, "3m 12s"),
            (3_700.0, "1h 1m"),
            (190_000.0, "2d 4h"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(duration(seconds), shown);
        }
        assert_eq!(duration(f64::NAN), "NaNs");
    }
}
