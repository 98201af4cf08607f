//! From an event to its line: whether it is written, what it says, and on its way to the writer.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::line::{Bridged, Fields, Head, Line, Message, Style, Value};
use super::writer::Buffer;
use crate::telemetry::repeats::{LeftOut, Repeats, Verdict, WINDOW};

/// The levels, each with its label in metrics.
pub(super) const LEVELS: [(Level, &str); 5] = [
    (Level::ERROR, "error"),
    (Level::WARN, "warn"),
    (Level::INFO, "info"),
    (Level::DEBUG, "debug"),
    (Level::TRACE, "trace"),
];

/// The field by which the lines of a place are told apart.
const INTEGRATION: &str = "integration";

/// Makes lines. Clones make the same ones.
#[derive(Clone)]
pub(super) struct Lines {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) buffer: Arc<Buffer>,
    pub(super) node: OnceLock<String>,
    pub(super) counts: Counts,
    style: Box<dyn Style>,
    repeats: Repeats<Place, Example>,
    hasher: RandomState,
}

/// What counts as the same: a place in the code, and a number for whose line it is there.
type Place = (Option<Identifier>, u64);

/// A line that stands for those that were left out, which the line about them quotes.
struct Example {
    level: Level,
    logger: String,
    file: Option<&'static str>,
    line: Option<u32>,
    message: String,
    integration: Option<String>,
}

/// Lines by level, in the order of [`LEVELS`].
#[derive(Default)]
pub(super) struct Counts {
    /// Handed to the writer.
    pub(super) said: [AtomicU64; LEVELS.len()],
    /// Left out, for their like was said too often.
    pub(super) left_out: [AtomicU64; LEVELS.len()],
}

impl Lines {
    /// In this style, at most so many of one place in each window.
    pub(super) fn new(style: Box<dyn Style>, repeats: u32) -> Self {
        let (buffer, node, counts) = (Arc::default(), OnceLock::new(), Counts::default());
        let (repeats, hasher) = (Repeats::new(repeats), RandomState::new());
        Lines { shared: Arc::new(Shared { buffer, node, counts, style, repeats, hasher }) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    /// Says what was left out in windows that are over.
    pub(super) fn tell_left_out(&self) {
        self.repeats.over(Instant::now()).into_iter().for_each(|left_out| self.tell(left_out));
    }

    /// Says what was left out and not told yet.
    pub(super) fn tell_rest(&self) {
        self.repeats.rest().into_iter().for_each(|left_out| self.tell(left_out));
    }

    fn tell(&self, LeftOut { example, lines }: LeftOut<Example>) {
        let Example { level, logger, file, line, message, integration } = example;
        let head = Head { level: &level, logger: &logger, file, line, node: self.node() };
        let mut told = Line::begin(&*self.style, &head);
        told.message(format_args!("{lines} more like this within {} s were left out: {message}", WINDOW.as_secs()));
        told.field(true, "left_out", Value::Unsigned(lines.into()));
        if let Some(integration) = integration {
            told.field(true, INTEGRATION, Value::Text(format_args!("{integration}")));
        }
        self.say(&level, &told.end(&head));
    }

    fn say(&self, level: &Level, line: &str) {
        self.counts.said[index(level)].fetch_add(1, Ordering::Relaxed);
        self.buffer.offer(line);
    }

    fn node(&self) -> Option<&str> {
        self.node.get().map(String::as_str)
    }
}

fn index(level: &Level) -> usize {
    LEVELS.iter().position(|(known, _)| known == level).unwrap_or_default()
}

/// What `take` makes of the integration that a line's spans name.
fn of_integration<S, T>(spans: &[SpanRef<'_, S>], take: impl Fn(&str) -> T) -> Option<T>
where
    S: for<'a> LookupSpan<'a>,
{
    let named = |span: &SpanRef<'_, S>| {
        let extensions = span.extensions();
        extensions.get::<Fields>().and_then(|fields| fields.get(INTEGRATION)).map(&take)
    };
    spans.iter().find_map(named)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::with_room_for(attributes.metadata().fields().len());
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        // Before the span's lock is taken: what is formatted here may log itself.
        let mut recorded = Fields::default();
        record.record(&mut recorded);
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            fields.merge(recorded);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (shared, metadata) = (&*self.shared, event.metadata());
        let mut bridged = Bridged::default();
        if metadata.target() == Bridged::TARGET {
            event.record(&mut bridged);
        }
        let logger = bridged.target.as_deref().unwrap_or(metadata.target());
        // Each step to a parent looks it up: once.
        let spans: Vec<_> = context.event_scope(event).into_iter().flatten().collect();
        let integration = of_integration(&spans, |name| shared.hasher.hash_one(name));
        let part = shared.hasher.hash_one((integration, &bridged.target));
        let (verdict, before) = shared.repeats.count((Some(metadata.callsite()), part), Instant::now(), || {
            let mut message = Message::default();
            event.record(&mut message);
            let (level, logger) = (*metadata.level(), logger.to_owned());
            let (file, line) = (metadata.file(), metadata.line());
            let integration = of_integration(&spans, str::to_owned);
            Example { level, logger, file, line, message: message.0, integration }
        });
        if let Some(left_out) = before {
            shared.tell(left_out);
        }
        if verdict == Verdict::LeaveOut {
            shared.counts.left_out[index(metadata.level())].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (file, line) = (metadata.file(), metadata.line());
        let head = Head { level: metadata.level(), logger, file, line, node: shared.node() };
        let mut line = Line::begin(&*shared.style, &head);
        event.record(&mut line);
        for span in &spans {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.write(span.metadata(), &mut line);
            }
        }
        shared.say(metadata.level(), &line.end(&head));
    }
}
