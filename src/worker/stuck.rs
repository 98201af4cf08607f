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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::lifecycle::Lifecycle;
    use crate::task::RunId;
    use crate::task::testing::task;
    use crate::telemetry::logs::testing::Heard;
    use crate::worker::roster::Listed;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A roster that is watched, from half a second after the first look on: so no age is at the edge of a second.
    struct Bench {
        heard: Heard,
        roster: Arc<Roster>,
        telemetry: Telemetry,
        watching: Lifecycle,
    }

    impl Bench {
        async fn start() -> Self {
            let (roster, telemetry) = (Arc::new(Roster::default()), Telemetry::new().expect("a recorder"));
            register(&roster, &telemetry);
            let watching = Lifecycle::new();
            watching.spawn("stuck", watch(roster.clone(), watching.token()));
            tokio::time::sleep(Duration::from_millis(500)).await;
            Bench { heard: Heard::listen(), roster, telemetry, watching }
        }

        /// A run that should stop in a minute.
        fn run(&self, id: &str) -> Listed {
            let task = Task { deadline: Instant::now() + MINUTE, ..task(id) };
            self.roster.enter(Entry::new(RunId::mint(), task, 1, Instant::now()))
        }

        /// To the nearest second: timers have a granularity of a millisecond.
        fn oldest_seconds(&self) -> f64 {
            let text = self.telemetry.render();
            let value = text.lines().find_map(|line| line.strip_prefix("weir_tasks_overdue_oldest_seconds "));
            value.expect("it is there").parse::<f64>().expect("a number").round()
        }

        async fn stop(self) {
            self.watching.stop(MINUTE).await.expect("it ends");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_hangs_is_named_at_a_bounded_rate_with_its_growing_age_until_it_stops() {
        let bench = Bench::start().await;
        let hangs = bench.run("hangs");
        tokio::time::sleep(MINUTE + Duration::from_secs(4)).await;
        assert!(bench.heard.lines("").is_empty(), "it may still stop by itself");
        assert_eq!(bench.oldest_seconds(), 4.0);

        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!(bench.oldest_seconds(), 124.0);
        let lines = bench.heard.lines("a task has not stopped and keeps its place: its code has not returned");
        let field = |name: &str| lines.iter().map(|line| line[name].as_u64().expect("a number")).collect::<Vec<_>>();
        assert_eq!(field("late_seconds"), [5, 35, 65, 95]);
        assert_eq!(field("age_seconds"), [65, 95, 125, 155]);
        assert!(lines.iter().all(|line| line["task"] == "hangs" && line["integration"] == "bank"), "{lines:?}");

        drop(hangs);
        assert_eq!(bench.oldest_seconds(), 0.0);
        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!((bench.oldest_seconds(), bench.heard.lines("").len()), (0.0, 4), "nothing is left to be said");
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_hang_the_first_are_named_and_the_others_counted() {
        let bench = Bench::start().await;
        let mut hang = Vec::new();
        for n in 0..50 {
            hang.push(bench.run(&format!("t-{n}")));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // To be said at 5, 35, 65 and 95 seconds after their deadlines.
        tokio::time::sleep(MINUTE * 3 - Duration::from_secs(20)).await;
        let named = bench.heard.lines("a task has not stopped");
        assert_eq!(named.len(), MOST_NAMED * 4);
        let is_among_the_first = |line: &Value| (0..MOST_NAMED).any(|n| line["task"] == format!("t-{n}"));
        assert!(named.iter().all(is_among_the_first), "{named:?}");
        let counted = bench.heard.lines("many tasks have not stopped");
        assert!(counted.len() == 4 && counted.iter().all(|line| line["tasks"] == 50), "{counted:?}");
        drop(hang);
        bench.stop().await;
    }
}
