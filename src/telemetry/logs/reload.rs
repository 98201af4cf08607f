//! The levels as a layer that can be exchanged while the program runs.
//!
//! tracing-subscriber's own takes a lock whenever a span is made, entered, left or closed, though its filter has nothing to
//! do then: with a span for each run that is several times in each poll of a task, by all threads on the same lock. This one
//! is asked once for each place in the code, and again when the levels change.

use std::sync::Arc;

use parking_lot::RwLock;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::Context;

use super::level::Levels;

/// Lets through what the levels let through.
pub(super) struct Layer(Arc<RwLock<Levels>>);

/// Exchanges the levels.
#[derive(Clone)]
pub(super) struct Handle(Arc<RwLock<Levels>>);

impl Layer {
    /// With these levels, until the handle brings others.
    pub(super) fn new(levels: Levels) -> (Self, Handle) {
        let levels = Arc::new(RwLock::new(levels));
        (Layer(levels.clone()), Handle(levels))
    }
}

impl Handle {
    /// These levels from now on.
    pub(super) fn reload(&self, levels: Levels) {
        *self.0.write() = levels;
        // Each place in the code remembers whether it is let through.
        tracing::callsite::rebuild_interest_cache();
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Layer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.read().lets_through(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.read().lets_through(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.read().most_detailed()
    }
}
