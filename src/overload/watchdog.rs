//! The thread that looks, judges and tells. It never waits for the runtime, and nothing here is async.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::judge::{Judge, Sample, Verdict};
use super::meters::Meters;
use super::metrics::Metrics;
use super::polls::{Blocking, Polls};
use super::relief::Relief;
use super::{Found, Lag, Pressure, Shared, Signal};

/// How often it looks at the lag, at the threads and at the memory in use, which takes one file of the kernel's.
const TICK: Duration = Duration::from_millis(20);

/// How often it reads the kernel's other numbers: some 50 µs each time.
const READ_EVERY: Duration = Duration::from_millis(100);

/// What goes on shedding is logged once in this time.
const STILL_SHEDDING_EVERY: Duration = Duration::from_secs(60);

/// What goes on blocking is logged once in this time.
const STILL_EVERY: Duration = Duration::from_secs(10);

/// The watchdog's thread.
pub(super) struct Watchdog {
    pub(super) judge: Judge,
    pub(super) meters: Meters,
    pub(super) relief: Relief,
    pub(super) lag: Lag,
    pub(super) polls: Arc<Polls>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Metrics,
    pub(super) tell: Box<dyn Fn(Pressure) + Send>,
}

/// What it remembers from one look to the next.
#[derive(Default)]
pub(super) struct Seen {
    sample: Sample,
    read_at: Option<Instant>,
    shedding: Option<Shedding>,
    /// Polls that block for long, and the time of the line about each that is due next.
    still: Vec<((u64, u64), Duration)>,
}

/// Since when load is shed, and the last line about it.
#[derive(Clone, Copy)]
struct Shedding {
    since: Instant,
    said: Instant,
}

impl Watchdog {
    /// Until the token is cancelled.
    pub(super) fn run(mut self, mut seen: Seen, token: &CancellationToken) {
        while !token.is_cancelled() {
            self.look(&mut seen, Instant::now());
            std::thread::sleep(TICK);
        }
        self.polls.tell_all_left_out();
        self.relief.set(false);
    }

    /// One look, and all that follows from it.
    pub(super) fn look(&mut self, seen: &mut Seen, now: Instant) {
        if seen.read_at.is_none_or(|at| now.saturating_duration_since(at) >= READ_EVERY) {
            seen.read_at = Some(now);
            self.meters.refresh();
            seen.sample.periods = self.meters.periods();
            seen.sample.descriptors = self.meters.descriptors();
        }
        seen.sample.memory = self.meters.memory();
        let blocking = self.polls.blocking();
        still_blocking(&mut seen.still, &blocking);
        self.polls.tell_left_out(now);
        seen.sample.lag = (self.lag)();
        seen.sample.blocked_threads = u32::try_from(blocking.len()).unwrap_or(u32::MAX);
        seen.sample.blocked_by = blocking.into_iter().next().map(|poll| (poll.integration, poll.lasts));
        let verdict = self.judge.feed(seen.sample.clone(), now);
        verdict.risen.iter().for_each(|signal| self.metrics.risen(*signal));
        let is_short_of_memory = verdict.high.contains(&Signal::Memory);
        self.publish(verdict, &mut seen.shedding, now);
        // After those who act on it were told: what an allocator gives back takes a moment.
        self.relief.set(is_short_of_memory);
    }

    /// Tells of a change, first those who act on it.
    fn publish(&self, verdict: Verdict, shedding: &mut Option<Shedding>, now: Instant) {
        let Verdict { readings, pressure, why, high, .. } = verdict;
        let before = *self.shared.pressure.borrow();
        *self.shared.found.lock() = Found { readings, high, why: why.clone() };
        if before != pressure {
            (self.tell)(pressure);
            self.shared.pressure.send_replace(pressure);
        }
        match why {
            Some(why) => {
                let signal = why.signal;
                let known = shedding.get_or_insert(Shedding { since: now, said: now });
                if before != pressure {
                    tracing::warn!(%signal, "shedding load: {why}");
                } else if now.saturating_duration_since(known.said) >= STILL_SHEDDING_EVERY {
                    let seconds = (now - known.since).as_secs_f64();
                    tracing::warn!(%signal, seconds, "still shedding load: {why}");
                } else {
                    return;
                }
                known.said = now;
            }
            None => {
                if let Some(Shedding { since, .. }) = shedding.take() {
                    let seconds = (now - since).as_secs_f64();
                    tracing::info!(seconds, "no longer shedding load");
                }
            }
        }
    }
}

/// Says of polls that go on blocking that they do; of one that ends the poll itself says so.
fn still_blocking(known: &mut Vec<((u64, u64), Duration)>, blocking: &[Blocking]) {
    known.retain(|(poll, _)| blocking.iter().any(|blocking| blocking.poll == *poll));
    for Blocking { poll, integration, task, lasts } in blocking {
        let index = known.iter().position(|(known, _)| known == poll).unwrap_or_else(|| {
            known.push((*poll, STILL_EVERY));
            known.len() - 1
        });
        let (_, due) = &mut known[index];
        if lasts >= due {
            *due = *lasts + STILL_EVERY;
            tracing::warn!(%integration, %task, seconds = lasts.as_secs_f64(), "an integration still blocks an async thread");
        }
    }
}
