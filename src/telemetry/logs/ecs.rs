//! A line as JSON, its fields named as the Elastic Common Schema names them.
//!
//! <https://www.elastic.co/docs/reference/ecs>. Names are written with dots, as Elastic's own loggers write them, and each
//! only once in a line: Elasticsearch refuses a document that has one twice. A field that ECS has no name for is under
//! `weir.` where weir writes it, with the types of [`FIELDS`], and under `labels.`, as text, where other code does: so no
//! line's field has another type in the index than the same one of another line.

use std::fmt::{self, Write};

use tracing::Level;

use super::line::{Head, Style, Value};

/// The version of the schema that the names are from.
const VERSION: &str = "8.17.0";

/// The part of a text that is kept.
const MOST_BYTES: usize = 8 << 10;

/// Names that begin so are taken as they are only where weir's own head of a line has none of them.
const OF_HEAD: [&str; 7] = ["@timestamp", "log", "ecs", "service", "process", "host", "labels"];

/// Each field that a line can have, with its type in Elasticsearch and what it says: of the head, of runs and calls, and
/// of single lines.
pub const FIELDS: &[(&str, &str, &str)] = &[
    ("@timestamp", "date", "when, in UTC, to the microsecond"),
    ("log.level", "keyword", "`error`, `warn`, `info`, `debug` or `trace`"),
    ("message", "text", "a sentence that reads alone"),
    ("log.logger", "keyword", "the target: the module that says it, or the one that it names itself"),
    ("log.origin.file.name", "keyword", "the source file"),
    ("log.origin.file.line", "long", "the line in it"),
    ("ecs.version", "keyword", "the version of the schema"),
    ("service.name", "keyword", "`weir-worker`, `weir-router`, `weir-sandbox`, or `log.service`"),
    ("service.version", "keyword", "weir's version"),
    ("service.node.name", "keyword", "the worker's id; of a router, host and port"),
    ("process.pid", "long", "the process"),
    ("host.hostname", "keyword", "the host"),
    ("trace.id", "keyword", "of a call whose caller sent `traceparent`: the trace's id"),
    ("event.outcome", "keyword", "of a task that has ended: `success` or `failure`"),
    ("event.duration", "long", "of a task that has ended: nanoseconds in the integration"),
    ("error.type", "keyword", "of a task that has failed: the failure's code"),
    ("error.message", "text", "what the error says"),
    ("weir.task", "keyword", "the task's id"),
    ("weir.run", "keyword", "the run's id: one admission of the task"),
    ("weir.integration", "keyword", "the integration's name"),
    ("weir.tenant", "keyword", "the task's tenant"),
    ("weir.left_out", "long", "lines like this one that were left out"),
    ("weir.admin", "keyword", "where the admin port listens"),
    ("weir.advertise", "keyword", "where routers reach the worker"),
    ("weir.age_seconds", "float", "since the task's run began"),
    ("weir.at_most_seconds", "float", "how long the drain may take"),
    ("weir.attempt", "long", "which call to a worker it was, for the task"),
    ("weir.away_seconds", "float", "for how long the store was away"),
    ("weir.caller", "keyword", "who asked, an address"),
    ("weir.directory", "keyword", "a directory"),
    ("weir.file", "keyword", "a file"),
    ("weir.foreign", "long", "files that are not weir's"),
    ("weir.host", "keyword", "the host that an integration asks"),
    ("weir.in_flight", "long", "tasks that hold a permit"),
    ("weir.late", "float", "how late a run stopped, in seconds"),
    ("weir.late_seconds", "float", "since the run should have stopped"),
    ("weir.lease", "long", "by which token a worker has the lease to profile itself"),
    ("weir.listen", "keyword", "where gRPC is served, or the sandbox"),
    ("weir.location", "keyword", "where something is stored"),
    ("weir.log_level", "keyword", "the setting"),
    ("weir.lost", "long", "payloads that were lost"),
    ("weir.max_connections_per_host", "long", "the configuration's limit"),
    ("weir.max_parallelism", "long", "N"),
    ("weir.note", "keyword", "the file with the note of a worker's end"),
    ("weir.path", "keyword", "a path"),
    ("weir.payload_sampling", "float", "the setting, for the integrations that it does not name"),
    ("weir.pid", "long", "a process of an `exec` integration"),
    ("weir.place", "keyword", "where in the code a panic was"),
    ("weir.places", "long", "tasks that processes can have at a time"),
    ("weir.pool", "keyword", "the pool"),
    ("weir.pools", "keyword", "the pools that a router sends to"),
    ("weir.process", "long", "the process of the worker before this one"),
    ("weir.processes", "long", "processes of an `exec` integration"),
    ("weir.profiling", "keyword", "the setting"),
    ("weir.queued_seconds", "float", "of a task that has ended: the wait in the router"),
    ("weir.reason", "keyword", "why, in a word"),
    ("weir.rejected", "long", "settings that did not take effect"),
    ("weir.remedy", "keyword", "what may help a task that has failed: `none`, `retry` or `user_action`"),
    ("weir.resident", "long", "bytes of memory of a process"),
    ("weir.samples", "long", "how many samples a profile has"),
    ("weir.seconds", "float", "how long something took or takes"),
    ("weir.signal", "keyword", "what sheds load"),
    ("weir.source", "keyword", "where settings come from"),
    ("weir.spool", "keyword", "the spool's directory"),
    ("weir.spooled", "long", "payloads that went to the spool since it was last empty"),
    ("weir.started", "keyword", "when the worker before this one started"),
    ("weir.stderr", "text", "the last line of a process that never had a task"),
    ("weir.tasks", "long", "tasks"),
    ("weir.times", "long", "how often since the last line of this kind"),
    ("weir.tries", "long", "how often it was tried"),
    ("weir.under_way", "long", "tasks that have not ended"),
    ("weir.uploads", "long", "the configuration's limit"),
    ("weir.version", "keyword", "the version of the settings"),
    ("weir.work", "keyword", "the part of weir that panicked"),
    ("weir.worker", "keyword", "a worker's id"),
];

/// What all lines of a process say of it, ready to be copied.
pub(super) struct Ecs {
    process: String,
}

impl Ecs {
    /// For a service on this host.
    pub(super) fn new(service: &str) -> Self {
        let mut process = String::new();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for (name, value) in
            [("ecs.version", VERSION), ("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))]
        {
            text(&mut process, name, value);
        }
        text(&mut process, "host.hostname", &host);
        let _ = write!(process, "\"process.pid\":{},", std::process::id());
        Ecs { process }
    }
}

impl Style for Ecs {
    fn begin(&self, out: &mut String, head: &Head<'_>) {
        let level = match *head.level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        out.push_str("{\"@timestamp\":\"");
        head.now(out);
        let _ = write!(out, "\",\"log.level\":\"{level}\",");
    }

    fn message(&self, out: &mut String, message: fmt::Arguments<'_>) {
        out.push_str("\"message\":");
        quoted(out, message);
        out.push(',');
    }

    fn field(&self, out: &mut String, is_weirs: bool, name: &'static str, value: Value<'_>) {
        let prefix = prefix(is_weirs, name);
        out.push('"');
        out.push_str(prefix);
        match (prefix, name) {
            ("", "error") => out.push_str("error.message"),
            // A dot would make an object of it, which labels have none of.
            (LABELS, name) => out.extend(name.chars().map(|c| if c == '.' { '_' } else { c })),
            (_, name) => out.push_str(name),
        }
        out.push_str("\":");
        match value {
            Value::Text(text) => quoted(out, text),
            value if prefix == LABELS => quoted(out, format_args!("{value}")),
            Value::Float(number) if !number.is_finite() => out.push_str("null"),
            // As JSON has it: 1.0, not 1, which would be another type.
            Value::Float(number) => drop(write!(out, "{number:?}")),
            value => drop(write!(out, "{value}")),
        }
        out.push(',');
    }

    fn end(&self, out: &mut String, head: &Head<'_>) {
        text(out, "log.logger", head.logger);
        if let Some(file) = head.file {
            // The whole path of a library's is that of the machine that built it.
            text(out, "log.origin.file.name", file.rsplit('/').next().unwrap_or(file));
        }
        if let Some(line) = head.line {
            let _ = write!(out, "\"log.origin.file.line\":{line},");
        }
        if let Some(node) = head.node {
            text(out, "service.node.name", node);
        }
        out.push_str(&self.process);
        // The last comma.
        out.pop();
        out.push_str("}\n");
    }
}

const LABELS: &str = "labels.";

/// What is put before a field's name.
fn prefix(is_weirs: bool, name: &str) -> &'static str {
    let first = name.split('.').next().unwrap_or_default();
    match name {
        "error" => "",
        name if name.contains('.') && first != "weir" && !OF_HEAD.contains(&first) => "",
        _ if is_weirs => "weir.",
        _ => LABELS,
    }
}

fn text(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "\"{name}\":");
    quoted(out, format_args!("{value}"));
    out.push(',');
}

/// A JSON string, cut off where it is too long.
fn quoted(out: &mut String, text: fmt::Arguments<'_>) {
    out.push('"');
    let mut escaped = Escaped { out, left: MOST_BYTES };
    match text.as_str() {
        Some(text) => drop(escaped.write_str(text)),
        // An error here is the end of what is kept, or a `Display` that fails: the line has what came before.
        None => drop(escaped.write_fmt(text)),
    }
    out.push('"');
}

struct Escaped<'a> {
    out: &'a mut String,
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let kept = &text[..text.floor_char_boundary(self.left)];
        let mut plain = 0;
        for (at, byte) in kept.bytes().enumerate() {
            if byte >= b' ' && byte != b'"' && byte != b'\\' {
                continue;
            }
            self.out.push_str(&kept[plain..at]);
            plain = at + 1;
            match byte {
                b'"' => self.out.push_str("\\\""),
                b'\\' => self.out.push_str("\\\\"),
                b'\n' => self.out.push_str("\\n"),
                b'\r' => self.out.push_str("\\r"),
                b'\t' => self.out.push_str("\\t"),
                _ => drop(write!(self.out, "\\u{byte:04x}")),
            }
        }
        self.out.push_str(&kept[plain..]);
        self.left -= kept.len();
        if kept.len() < text.len() {
            self.out.push('…');
            return Err(fmt::Error);
        }
        Ok(())
    }
}
