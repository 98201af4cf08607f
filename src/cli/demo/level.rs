//! One parallelism: load it, measure it, and put it into a row.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::house::House;
use crate::cli::submit::quantile;
use crate::client::Submission;
use crate::payload::Ledger;
use crate::task::{Json, Priority};

/// Tasks that run before the measuring starts, so that connections are open and the level is filled.
const WARM_UP: Duration = Duration::from_secs(1);

/// How often memory is sampled.
const SAMPLE: Duration = Duration::from_millis(50);

/// How long payloads may take to be stored after the last task of a level.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

/// Whose data is pulled, over and over: few enough that each level, the first too, pulls for all of them. The bank
/// answers each as it did before, so the levels differ in nothing but their parallelism.
const CUSTOMERS: u64 = 12;

/// One in so many tasks is interactive.
const INTERACTIVE: u64 = 10;

#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) parallelism: u32,
    pub(super) lasts: Duration,
}

/// What a level came to.
pub(super) struct Measured {
    parallelism: u32,
    per_second: f64,
    p50: Duration,
    peak_memory_bytes: u64,
    stored: u64,
    dropped: u64,
    pub(super) failed: u64,
}

impl Level {
    pub(super) async fn measure(self, house: &House, bar: &ProgressBar) -> anyhow::Result<Measured> {
        house.set_parallelism(self.parallelism).await?;
        let before = house.ledger();
        let (stop, failed, next) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let from = Instant::now() + WARM_UP;
        let until = from + self.lasts;

        // A quarter more callers than places, so that the next task always waits in the router.
        let callers: FuturesUnordered<_> = (0..self.parallelism + self.parallelism / 4 + 1)
            .map(|_| async {
                let mut ran = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match house.client.submit(&task(next.fetch_add(1, Ordering::Relaxed))?).await {
                        Ok(outcome) if outcome.result.is_ok() => {
                            let ended = Instant::now();
                            ran.extend((from..until).contains(&ended).then_some(outcome.timings.ran));
                        }
                        ended => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            tracing::warn!("a task failed: {ended:?}");
                        }
                    }
                }
                anyhow::Ok(ran)
            })
            .collect();
        let watch = async {
            let mut peak = 0;
            while Instant::now() < until {
                peak = peak.max(resident_bytes());
                let done = Instant::now().saturating_duration_since(from);
                bar.set_position(done.as_millis() as u64);
                tokio::time::sleep(SAMPLE).await;
            }
            stop.store(true, Ordering::Relaxed);
            peak
        };
        let (ran, peak_memory_bytes) = tokio::join!(callers.collect::<Vec<_>>(), watch);
        let mut ran: Vec<Duration> = ran.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        ran.sort_unstable();
        let after = settled(house).await;
        Ok(Measured {
            parallelism: self.parallelism,
            per_second: ran.len() as f64 / self.lasts.as_secs_f64(),
            p50: quantile(&ran, 0.5).unwrap_or_default(),
            peak_memory_bytes,
            stored: after.stored - before.stored,
            dropped: after.dropped_in_all() - before.dropped_in_all(),
            failed: failed.into_inner(),
        })
    }
}

/// The same tasks in the same order at each level.
fn task(number: u64) -> anyhow::Result<Submission> {
    let input = Json::of(&serde_json::json!({"customer": format!("c{}", number % CUSTOMERS)}))?;
    let id = uuid::Uuid::now_v7().to_string();
    let mut submission = Submission::new(id.parse()?, "refresh".parse()?, input);
    if number.is_multiple_of(INTERACTIVE) {
        submission.priority = Priority::Interactive;
    }
    Ok(submission)
}

/// The ledger once nothing is pending, or as it is when that takes too long.
async fn settled(house: &House) -> Ledger {
    let until = Instant::now() + SETTLE_WITHIN;
    while house.ledger().pending > 0 && Instant::now() < until {
        tokio::time::sleep(SAMPLE).await;
    }
    house.ledger()
}

/// Physical memory of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or_default() * rustix::param::page_size() as u64
}

/// A table for people.
pub(super) fn table(levels: &[Measured]) -> String {
    let mut table =
        "parallelism   tasks/s    gain       p50   p50 ratio   peak memory   payloads stored   dropped   failed\n"
            .to_owned();
    let Some(first) = levels.first() else { return table };
    for level in levels {
        let gain = level.per_second / first.per_second;
        let ratio = level.p50.as_secs_f64() / first.p50.as_secs_f64();
        let memory = level.peak_memory_bytes as f64 / f64::from(1 << 20);
        let Measured { parallelism, per_second, stored, dropped, failed, .. } = level;
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{parallelism:>11} {per_second:>9.1} {gain:>6.1}× {p50:>7.3} s {ratio:>11.3} {memory:>9.0} MiB {stored:>17} \
             {dropped:>9} {failed:>8}",
            p50 = level.p50.as_secs_f64(),
        );
    }
    table
}
