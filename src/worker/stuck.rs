//! The loop that names runs which should have stopped and have not, for as long as that lasts.
//!
//! It finds them by the clock, so it also finds one that blocks its thread and so keeps from running what would answer
//! for it. It ends nothing: a run keeps its place until it has really stopped.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::roster::{Entry, Roster};
use crate::task::Task;
use crate::telemetry::Telemetry;
use crate::telemetry::notice::Notice;

const LOOKED_FOR_EVERY: Duration = Duration::from_secs(1);

/// A run is named when it is so late, and again each time that so much more has passed.
const NAMED_AFTER: Duration = Duration::from_secs(5);
const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// So many are named, those that should have stopped first; the others are counted.
const MOST_NAMED: usize = 10;

/// Has the age of the oldest in the metrics.
pub(super) fn register(roster: &Arc<Roster>, telemetry: &Telemetry) {
    let roster = Arc::downgrade(roster);
    telemetry.register(|| {
        metrics::describe_gauge!(
            "weir_tasks_overdue_oldest_seconds",
            "How long ago the oldest task that has not stopped should have; 0 when there is none."
        );
    });
    telemetry.before_scrape(move || {
        let now = Instant::now();
        let oldest = roster.upgrade().and_then(|roster| roster.overdue(now, 1).1.pop());
        let since = oldest.and_then(|entry| entry.overdue_since(now));
        let age = since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        metrics::gauge!("weir_tasks_overdue_oldest_seconds").set(age);
    });
}

/// Names them until the token is cancelled.
pub(super) async fn watch(roster: Arc<Roster>, token: CancellationToken) {
    let unnamed = Notice::every(NAMED_AGAIN_AFTER);
    let mut ticks = interval(LOOKED_FOR_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while token.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = Instant::now();
        let Some(late) = now.checked_sub(NAMED_AFTER) else { continue };
        let (count, oldest) = roster.overdue(late, MOST_NAMED);
        oldest.iter().filter(|entry| entry.is_to_be_named(now, NAMED_AGAIN_AFTER)).for_each(|entry| name(entry, now));
        if count > oldest.len() && unnamed.due().is_some() {
            tracing::warn!(tasks = count, "many tasks have not stopped and keep their places; the oldest are named");
        }
    }
}

fn name(entry: &Entry, now: Instant) {
    let Task { id: task, integration, .. } = &entry.task;
    let late_seconds = entry.overdue_since(now).map_or(0, |since| now.saturating_duration_since(since).as_secs());
    let age_seconds = now.saturating_duration_since(entry.started).as_secs();
    let why = entry.why();
    tracing::warn!(%task, %integration, late_seconds, age_seconds, "a task has not stopped and keeps its place: {why}");
}
