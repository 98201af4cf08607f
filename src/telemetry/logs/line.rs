//! What a line says, whatever it looks like: of its event, and of the spans that it is in, the innermost first.
//!
//! Nothing is collected on the way: the event's values are written where they are met. A name that was met once is not
//! written again, so that a line of a run may name its task itself.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::level::is_weirs;
use crate::causes::with_causes;

/// The field that is the line's sentence.
const MESSAGE: &str = "message";

/// The room that a span's value has at first: the id of a run has 36 bytes, the others mostly less.
const USUAL_BYTES: usize = 32;

/// What a line looks like.
pub(super) trait Style: Send + Sync {
    fn begin(&self, out: &mut String, head: &Head<'_>);
    fn message(&self, out: &mut String, message: fmt::Arguments<'_>);
    /// A field of weir's own code or of another's.
    fn field(&self, out: &mut String, is_weirs: bool, name: &'static str, value: Value<'_>);
    fn end(&self, out: &mut String, head: &Head<'_>);
}

/// Where a line comes from.
pub(super) struct Head<'a> {
    pub(super) level: &'a Level,
    pub(super) logger: &'a str,
    pub(super) file: Option<&'a str>,
    pub(super) line: Option<u32>,
    /// The name of this worker or router, once it is known.
    pub(super) node: Option<&'a str>,
}

impl Head<'_> {
    /// The time, in UTC and to the microsecond (RFC 3339).
    pub(super) fn now(&self, out: &mut String) {
        // Fails only where the string does, which never fails.
        let _ = SystemTime.format_time(&mut Writer::new(out));
    }
}

/// A value as it was recorded.
pub(super) enum Value<'a> {
    Text(fmt::Arguments<'a>),
    Signed(i128),
    Unsigned(u128),
    Float(f64),
    Flag(bool),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_fmt(*text),
            Value::Signed(number) => number.fmt(f),
            Value::Unsigned(number) => number.fmt(f),
            Value::Float(number) => number.fmt(f),
            Value::Flag(flag) => flag.fmt(f),
        }
    }
}

/// A line in the making.
pub(super) struct Line<'a> {
    style: &'a dyn Style,
    out: String,
    is_weirs: bool,
    has_message: bool,
    /// Fields that are written: whose, and their names.
    written: Vec<(bool, &'static str)>,
}

impl<'a> Line<'a> {
    pub(super) fn begin(style: &'a dyn Style, head: &Head<'_>) -> Self {
        let mut out = String::with_capacity(768);
        style.begin(&mut out, head);
        Line { style, out, is_weirs: is_weirs(head.logger), has_message: false, written: Vec::with_capacity(12) }
    }

    pub(super) fn message(&mut self, message: fmt::Arguments<'_>) {
        self.has_message = true;
        self.style.message(&mut self.out, message);
    }

    /// Adds a field, unless there is one of this name.
    pub(super) fn field(&mut self, is_weirs: bool, name: &'static str, value: Value<'_>) {
        if !self.written.contains(&(is_weirs, name)) {
            self.written.push((is_weirs, name));
            self.style.field(&mut self.out, is_weirs, name, value);
        }
    }

    /// The whole line, with its end.
    pub(super) fn end(mut self, head: &Head<'_>) -> String {
        if !self.has_message {
            self.message(format_args!(""));
        }
        self.style.end(&mut self.out, head);
        self.out
    }
}

/// Writes an event's fields into a line.
impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            MESSAGE => self.message(format_args!("{value:?}")),
            name if Bridged::NAMES.contains(&name) => {}
            name => self.field(self.is_weirs, name, Value::Text(format_args!("{value:?}"))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", with_causes(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record(field, Value::Float(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record(field, Value::Signed(value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record(field, Value::Unsigned(value.into()));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.record(field, Value::Signed(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.record(field, Value::Unsigned(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.record(field, Value::Flag(value));
    }
}

impl Line<'_> {
    fn record(&mut self, field: &Field, value: Value<'_>) {
        match field.name() {
            MESSAGE => self.message(format_args!("{value}")),
            name if Bridged::NAMES.contains(&name) => {}
            name => self.field(self.is_weirs, name, value),
        }
    }
}

/// What a span says, kept for the lines in it, as one text: each task has a span, most of which no line is ever in.
#[derive(Default)]
pub(super) struct Fields {
    text: String,
    /// Each name, and where the text of its value ends.
    ends: Vec<(&'static str, usize)>,
}

impl Fields {
    /// Of a span that names so many.
    pub(super) fn with_room_for(fields: usize) -> Self {
        Fields { text: String::with_capacity(fields * USUAL_BYTES), ends: Vec::with_capacity(fields) }
    }

    /// Adds it all to a line.
    pub(super) fn write(&self, of: &Metadata<'_>, line: &mut Line<'_>) {
        let is_weirs = is_weirs(of.target());
        for (name, text) in self.iter() {
            line.field(is_weirs, name, Value::Text(format_args!("{text}")));
        }
    }

    /// Adds what was recorded later, in place of what there was of the same names.
    pub(super) fn merge(&mut self, later: Fields) {
        if self.ends.is_empty() {
            *self = later;
            return;
        }
        let mut merged = Fields::default();
        let kept = self.iter().filter(|(name, _)| later.get(name).is_none());
        for (name, text) in kept.chain(later.iter()) {
            merged.text.push_str(text);
            merged.ends_here(name);
        }
        *self = merged;
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, text)| text)
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.ends.iter().scan(0, |begin, (name, end)| {
            let text = &self.text[*begin..*end];
            *begin = *end;
            Some((*name, text))
        })
    }

    fn ends_here(&mut self, name: &'static str) {
        self.ends.push((name, self.text.len()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A `Debug` that fails leaves what came before.
        let _ = write!(self.text, "{value:?}");
        self.ends_here(field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text.push_str(value);
        self.ends_here(field.name());
    }
}

/// The sentence of an event, as far as it has one.
#[derive(Default)]
pub(super) struct Message(pub(super) String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            value.clone_into(&mut self.0);
        }
    }
}

/// Where a line of the crate `log` comes from: its bridge says so in fields.
#[derive(Default)]
pub(super) struct Bridged {
    pub(super) target: Option<String>,
}

impl Bridged {
    /// The target of events that come over the bridge.
    pub(super) const TARGET: &str = "log";

    /// The fields of its own in which it tells of the place: that is in the head of a line.
    const NAMES: [&str; 4] = ["log.target", "log.module_path", "log.file", "log.line"];
}

impl Visit for Bridged {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = Some(value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(of: &[(&'static str, &str)]) -> Fields {
        let mut fields = Fields::with_room_for(of.len());
        for (name, text) in of {
            fields.text.push_str(text);
            fields.ends_here(name);
        }
        fields
    }

    #[test]
    fn what_is_recorded_later_takes_the_place_of_what_there_was() {
        let mut span = fields(&[("task", "t-1"), ("run", ""), ("tenant", "acme")]);
        span.merge(fields(&[("run", "r-1"), ("task", "t-22"), ("integration", "ä")]));
        let all: Vec<_> = span.iter().collect();
        assert_eq!(all, [("tenant", "acme"), ("run", "r-1"), ("task", "t-22"), ("integration", "ä")]);
        assert_eq!((span.get("task"), span.get("trace")), (Some("t-22"), None));
    }
}
