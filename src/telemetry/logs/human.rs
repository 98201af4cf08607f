//! A line as text for people: time, level, target, sentence, fields.

use std::fmt::{self, Write};

use tracing::Level;

use super::line::{Head, Style, Value};

/// Text, in colours where a terminal shows it.
pub(super) struct Human {
    pub(super) has_colours: bool,
}

impl Human {
    fn in_colour(&self, out: &mut String, colour: &str, text: impl fmt::Display) {
        let _ = match self.has_colours {
            true => write!(out, "\x1b[{colour}m{text}\x1b[0m"),
            false => write!(out, "{text}"),
        };
    }
}

const DIM: &str = "2";

impl Style for Human {
    fn begin(&self, out: &mut String, head: &Head<'_>) {
        let mut now = String::new();
        head.now(&mut now);
        self.in_colour(out, DIM, now);
        let (colour, name) = match *head.level {
            Level::ERROR => ("31", "ERROR"),
            Level::WARN => ("33", " WARN"),
            Level::INFO => ("32", " INFO"),
            Level::DEBUG => ("34", "DEBUG"),
            Level::TRACE => ("35", "TRACE"),
        };
        out.push(' ');
        self.in_colour(out, colour, name);
        out.push(' ');
        self.in_colour(out, DIM, format_args!("{}:", head.logger));
    }

    fn message(&self, out: &mut String, message: fmt::Arguments<'_>) {
        out.push(' ');
        let _ = write!(OneLine(out), "{message}");
    }

    fn field(&self, out: &mut String, _: bool, name: &'static str, value: Value<'_>) {
        out.push(' ');
        self.in_colour(out, DIM, format_args!("{name}="));
        let _ = write!(OneLine(out), "{value}");
    }

    fn end(&self, out: &mut String, _: &Head<'_>) {
        out.push('\n');
    }
}

/// Escapes what would begin another line, or be taken by a terminal as something to do.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back().filter(|(_, last)| last.is_control()) {
                Some((at, control)) => {
                    self.0.push_str(&part[..at]);
                    self.0.extend(control.escape_default());
                }
                None => self.0.push_str(part),
            }
        }
        Ok(())
    }
}
