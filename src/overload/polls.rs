//! Which integration keeps an async thread: each poll of an integration's future leaves a note while it lasts.
//!
//! A note is two words in a slot of the thread that polls: which run, and since when. Writing it takes two looks at the
//! clock and no lock, 60 to 100 ns together; the watchdog reads all slots every 20 ms. What lasts for longer than
//! `overload.blocked_thread.after` counts as blocking. The poll itself finds that out when it ends, so it is counted and
//! logged with its whole length even when the watchdog had no processor to look from.
//!
//! A thread that waits for a processor blocks nobody. When the watchdog first sees a poll it notes how long its thread has
//! waited so far (`schedstat`, <https://docs.kernel.org/scheduler/sched-stats.html>), and what is added to that until the
//! poll ends does not count. Where the kernel does not say it, time is what the clock says.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;

use crate::task::{IntegrationName, TaskId};
use crate::telemetry::Telemetry;
use crate::telemetry::repeats::{LeftOut, Repeats, Verdict};

/// Threads with a slot of their own. What a thread beyond them polls is counted when it ends, and not seen before.
const SLOTS: usize = 256;

/// A poll that lasts for so long is looked at more closely.
const NOTED_AFTER_NANOSECONDS: u64 = 5_000_000;

/// The lines of one integration in a window, one for each time that it has blocked. Those beyond are counted in one more.
const MOST_LINES: u32 = 20;

/// All polls of a worker's runs that are under way.
pub struct Polls {
    start: Instant,
    after: Duration,
    slots: Box<[Slot]>,
    runs: Mutex<BTreeMap<u64, Arc<Run>>>,
    next_run: AtomicU64,
    by_integration: BTreeMap<IntegrationName, OfIntegration>,
    lines: Repeats<Option<IntegrationName>, IntegrationName>,
}

/// What one thread polls. A cache line of its own: threads write theirs all the time.
#[repr(align(64))]
#[derive(Default)]
struct Slot {
    /// The run; 0 while there is none.
    run: AtomicU64,
    /// Nanoseconds after the start; 0 while there is none.
    since: AtomicU64,
    /// The kernel's id of the thread; 0 before its first poll.
    thread: AtomicI32,
    /// The poll, by its `since`, of which the watchdog knows how long its thread had waited for a processor when it began.
    noted: AtomicU64,
    /// So long, in nanoseconds.
    waited: AtomicU64,
}

impl Slot {
    /// How much of a poll, as far as it is known, its thread has waited for a processor.
    fn waited_since(&self, since: u64) -> u64 {
        if self.noted.load(Ordering::Acquire) != since {
            return 0;
        }
        let before = self.waited.load(Ordering::Acquire);
        waited(self.thread.load(Ordering::Relaxed)).map_or(0, |now| now.saturating_sub(before))
    }

    /// Notes it, once for each poll.
    fn note_waited(&self, since: u64) {
        if self.noted.load(Ordering::Acquire) != since
            && let Some(waited) = waited(self.thread.load(Ordering::Relaxed))
        {
            self.waited.store(waited, Ordering::Release);
            self.noted.store(since, Ordering::Release);
        }
    }
}

/// How long a thread of this process has waited for a processor so far, in nanoseconds.
fn waited(thread: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// Whose polls they are.
struct Run {
    key: u64,
    integration: IntegrationName,
    task: TaskId,
}

struct OfIntegration {
    blocked: Counter,
    seconds: Gauge,
}

/// A poll that blocks its thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocking {
    /// Tells this poll from others of the same run.
    pub(super) poll: (u64, u64),
    pub(super) integration: IntegrationName,
    pub(super) task: TaskId,
    pub(super) lasts: Duration,
}

impl Polls {
    pub(super) fn new(after: Duration, integrations: &[IntegrationName], telemetry: &Telemetry) -> Arc<Self> {
        let by_integration = telemetry.register(|| {
            describe_counter!(
                "weir_integration_blocked_total",
                "How often an integration has kept an async thread for longer than overload.blocked_thread.after."
            );
            describe_gauge!(
                "weir_integration_blocked_seconds",
                "How long an integration has blocked async threads, since the start and in all."
            );
            let of = |name: &IntegrationName| (name.clone(), OfIntegration::new(name));
            integrations.iter().map(of).collect()
        });
        Arc::new(Polls {
            start: Instant::now(),
            after,
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            runs: Mutex::default(),
            next_run: AtomicU64::new(1),
            by_integration,
            lines: Repeats::new(MOST_LINES),
        })
    }

    /// The same future, watched while it is polled and while it is dropped.
    pub fn watch<F: Future>(self: &Arc<Self>, future: F, integration: &IntegrationName, task: &TaskId) -> Watched<F> {
        let key = self.next_run.fetch_add(1, Ordering::Relaxed);
        let run = Arc::new(Run { key, integration: integration.clone(), task: task.clone() });
        self.runs.lock().insert(key, run.clone());
        Watched { polls: self.clone(), run, future: Some(Box::pin(future)) }
    }

    /// The polls that block a thread now, the longest first.
    pub(super) fn blocking(&self) -> Vec<Blocking> {
        let now = self.nanoseconds();
        let after = u64::try_from(self.after.as_nanos()).unwrap_or(u64::MAX);
        let mut blocking: Vec<_> = self.slots.iter().filter_map(|slot| self.in_slot(slot, now, after)).collect();
        blocking.sort_by_key(|poll| std::cmp::Reverse(poll.lasts));
        blocking
    }

    fn in_slot(&self, slot: &Slot, now: u64, after: u64) -> Option<Blocking> {
        let since = slot.since.load(Ordering::Acquire);
        let lasts = now.saturating_sub(since);
        if since == 0 || lasts < NOTED_AFTER_NANOSECONDS {
            return None;
        }
        slot.note_waited(since);
        let lasts = lasts.saturating_sub(slot.waited_since(since));
        if lasts < after {
            return None;
        }
        let key = slot.run.load(Ordering::Acquire);
        // It may have ended meanwhile, and the next one begun.
        if slot.since.load(Ordering::Acquire) != since {
            return None;
        }
        let run = self.runs.lock().get(&key)?.clone();
        let (integration, task) = (run.integration.clone(), run.task.clone());
        Some(Blocking { poll: (key, since), integration, task, lasts: Duration::from_nanos(lasts) })
    }

    fn begin<'a>(&'a self, run: &'a Run) -> Polling<'a> {
        let slot = &self.slots[thread_number() % SLOTS];
        // Taken: a poll inside a poll, which counts for the outer one; or by another thread, where there are very many.
        let is_free = slot.run.compare_exchange(0, run.key, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let since = self.nanoseconds();
        let slot = is_free.then_some(slot);
        if let Some(slot) = slot {
            if slot.thread.load(Ordering::Relaxed) == 0 {
                slot.thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::Relaxed);
            }
            slot.since.store(since, Ordering::Release);
        }
        Polling { polls: self, run, slot, since }
    }

    fn ended(&self, run: &Run, lasted: Duration) {
        let Some(known) = self.by_integration.get(&run.integration) else { return };
        known.blocked.increment(1);
        known.seconds.increment(lasted.as_secs_f64());
        let Run { integration, task, .. } = run;
        let (verdict, before) = self.lines.count(Some(integration.clone()), Instant::now(), || integration.clone());
        before.into_iter().for_each(tell);
        if verdict == Verdict::Write {
            tracing::warn!(
                %integration, %task, seconds = lasted.as_secs_f64(),
                "an integration blocked an async thread: work that computes or waits belongs into Context::blocking"
            );
        }
    }

    /// Says how often integrations have blocked without a line of its own, where the time for that is over.
    pub(super) fn tell_left_out(&self, now: Instant) {
        self.lines.over(now).into_iter().for_each(tell);
    }

    /// The same at the end, when nobody will come back to it.
    pub(super) fn tell_all_left_out(&self) {
        self.lines.rest().into_iter().for_each(tell);
    }

    /// More than 0.
    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

impl OfIntegration {
    fn new(name: &IntegrationName) -> Self {
        OfIntegration {
            blocked: counter!("weir_integration_blocked_total", "integration" => name.to_string()),
            seconds: gauge!("weir_integration_blocked_seconds", "integration" => name.to_string()),
        }
    }
}

fn tell(LeftOut { example: integration, lines: times }: LeftOut<IntegrationName>) {
    tracing::warn!(
        %integration, times,
        "an integration blocked async threads so often that these times have no lines of their own"
    );
}

/// Numbers threads as they come.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// The note of one poll; dropping it takes the note away, after a panic too.
struct Polling<'a> {
    polls: &'a Polls,
    run: &'a Run,
    slot: Option<&'a Slot>,
    since: u64,
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        let lasted = Duration::from_nanos(self.polls.nanoseconds() - self.since);
        let is_long = lasted >= self.polls.after;
        let waited = self.slot.filter(|_| is_long).map_or(0, |slot| slot.waited_since(self.since));
        if let Some(slot) = self.slot {
            slot.since.store(0, Ordering::Release);
            slot.run.store(0, Ordering::Release);
        }
        let lasted = lasted.saturating_sub(Duration::from_nanos(waited));
        if lasted >= self.polls.after {
            self.polls.ended(self.run, lasted);
        }
    }
}

/// A future whose polls are watched, and its end as well: destructors can block too.
pub struct Watched<F> {
    polls: Arc<Polls>,
    run: Arc<Run>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Watched { polls, run, future } = self.get_mut();
        let _polling = polls.begin(run);
        future.as_mut().expect("only the drop takes it").as_mut().poll(context)
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        let polling = self.polls.begin(&self.run);
        drop(self.future.take());
        drop(polling);
        self.polls.runs.lock().remove(&self.run.key);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;
    use crate::telemetry::logs::testing::Heard;
    use crate::telemetry::repeats::WINDOW;

    const AFTER: Duration = Duration::from_millis(50);

    fn polls(after: Duration) -> (Arc<Polls>, Telemetry) {
        let telemetry = Telemetry::new().expect("a recorder");
        (Polls::new(after, &[name()], &telemetry), telemetry)
    }

    fn name() -> IntegrationName {
        "slow".parse().expect("a name")
    }

    fn task() -> TaskId {
        "t-1".parse().expect("an id")
    }

    async fn blocks(time: Duration) {
        std::thread::sleep(time);
    }

    #[test]
    fn a_poll_that_blocks_is_seen_while_it_lasts_and_counted_when_it_ends() {
        let (polls, telemetry) = polls(AFTER);
        let (release, released) = mpsc::channel::<()>();
        let watched = polls.watch(async move { released.recv() }, &name(), &task());
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || watched.now_or_never()).expect("a thread");
            let blocking = loop {
                if let Some(blocking) = polls.blocking().pop() {
                    break blocking;
                }
                std::thread::yield_now();
            };
            assert_eq!((blocking.integration, blocking.task), (name(), task()));
            assert!(blocking.lasts >= AFTER);
            drop(release);
            thread.join().expect("it ends");
        });
        assert!(polls.blocking().is_empty() && polls.runs.lock().is_empty());
        let metrics = telemetry.render();
        assert!(metrics.contains("weir_integration_blocked_total{integration=\"slow\"} 1"), "{metrics}");
        assert!(metrics.contains("weir_integration_blocked_seconds{integration=\"slow\"} 0."), "{metrics}");
    }

    #[test]
    fn a_destructor_that_blocks_counts_and_a_poll_that_panics_leaves_no_note() {
        let (polls, telemetry) = polls(AFTER);
        struct Slow;
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(AFTER);
            }
        }
        let slow = Slow;
        let holds = async move {
            let _slow = slow;
            std::future::pending::<()>().await;
        };
        let mut watched = polls.watch(holds, &name(), &task());
        assert!((&mut watched).now_or_never().is_none());
        drop(watched);
        assert!(telemetry.render().contains("weir_integration_blocked_total{integration=\"slow\"} 1"));

        let panics = AssertUnwindSafe(polls.watch(async { panic!("on purpose") }, &name(), &task()));
        assert!(panics.catch_unwind().now_or_never().expect("ready").is_err());
        assert!(polls.slots.iter().all(|slot| slot.run.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_poll_inside_a_poll_counts_for_the_outer_one() {
        let (polls, _telemetry) = polls(Duration::from_secs(3600));
        let inner = polls.watch(async {}, &name(), &task());
        let outer = polls.watch(
            async {
                inner.now_or_never();
                polls.slots.iter().filter(|slot| slot.since.load(Ordering::Relaxed) > 0).count()
            },
            &name(),
            &task(),
        );
        assert_eq!(outer.now_or_never(), Some(1));
    }

    #[test]
    fn each_block_has_its_line_and_what_is_left_out_of_many_is_counted_by_itself() {
        let heard = Heard::listen();
        let (polls, _telemetry) = polls(Duration::ZERO);
        let (started, most) = (Instant::now(), u64::from(MOST_LINES));
        let many = 2 * most;
        for n in 0..many {
            let task = format!("t-{n}").parse().expect("an id");
            // Two blocks each: the poll, and the end of the future.
            polls.watch(async {}, &name(), &task).now_or_never();
        }
        assert!(started.elapsed() < WINDOW, "the machine stood still");
        let lines = heard.lines("an integration blocked an async thread:");
        let tasks: Vec<_> = lines.iter().map(|line| line["task"].as_str().expect("a task")).collect();
        let named: Vec<_> = (0..many).map(|n| format!("t-{}", n / 2)).take(tasks.len()).collect();
        assert_eq!((tasks.len() as u64, tasks), (most, named.iter().map(String::as_str).collect()));
        assert!(lines.iter().all(|line| line["integration"] == "slow" && line["seconds"].is_number()), "{lines:?}");

        let counted = "these times have no lines of their own";
        polls.tell_left_out(started);
        assert!(heard.lines(counted).is_empty(), "more may follow");
        polls.tell_left_out(Instant::now() + WINDOW);
        polls.tell_all_left_out();
        let lines = heard.lines(counted);
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0]["times"].as_u64(), &lines[0]["integration"]), (Some(2 * many - most), &"slow".into()));
    }

    #[test]
    fn short_polls_are_no_news() {
        let (polls, telemetry) = polls(Duration::from_secs(3600));
        polls.watch(blocks(Duration::from_millis(1)), &name(), &task()).now_or_never();
        assert!(telemetry.render().contains("weir_integration_blocked_total{integration=\"slow\"} 0"));
    }
}
