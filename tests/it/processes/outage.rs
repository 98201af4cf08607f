//! A worker whose store is away for a minute, under steady load: tasks do not notice, memory stays in its bounds, and all
//! that was spooled arrives. Then a stop in the middle of it, and sudden deaths at any point.
//!
//! They belong to the full lane (`tests/run --full`). Each prints its numbers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;
use weir::client::Client;
use weir::lifecycle::Lifecycle;

use crate::support::house::synthetic;
use crate::support::processes::{LONG, wait_for};
use crate::support::site::{Batch, Site, Worker, files};
use crate::support::watch::{Numbers, Seen};

/// How many tasks are in flight all the time.
const IN_FLIGHT: usize = 100;

/// How long each takes, and how much it writes down: a hundred payloads of 100 KB a second, or, in a build that is not
/// optimized and encodes about twenty times slower, of 4 KB.
const TASK: Duration = Duration::from_secs(1);
const TRANSCRIPT_BYTES: usize = if cfg!(debug_assertions) { 4_000 } else { 100_000 };

/// How many tasks end while the store hangs, before a stop: half of what a machine with ten times too much to do encodes in
/// the time of a flush. In half of that time it would not.
const HUNG_TASKS: usize = if cfg!(debug_assertions) { 500 } else { 4_800 };

const QUEUE_BYTES: usize = 64 << 20;

/// Beside what pending payloads hold: a payload in the encoder's hands, in and out, and what the allocator keeps.
const WORKING_BYTES: usize = 48 << 20;

/// Before the outage: how it is when all is well.
const BEFORE: Duration = Duration::from_secs(8);

fn site() -> Site {
    Site::with_payloads(&format!("queue_bytes = {QUEUE_BYTES}"))
}

/// Steady load, and how long each task took.
struct Load {
    runtime: Runtime,
    lifecycle: Lifecycle,
    took: Arc<Mutex<Vec<Duration>>>,
}

impl Load {
    fn start(worker: &Worker, prefix: &'static str) -> Self {
        let load =
            Load { runtime: Runtime::new().expect("a runtime"), lifecycle: Lifecycle::new(), took: Arc::default() };
        let _runtime = load.runtime.enter();
        let client = Client::new(&format!("http://{}", worker.listen)).expect("an address");
        let number = Arc::new(AtomicUsize::new(0));
        for caller in 0..IN_FLIGHT {
            let (client, number, took) = (client.clone(), number.clone(), load.took.clone());
            let token = load.lifecycle.token();
            load.lifecycle.spawn("caller", async move {
                // They do not all come at once.
                let mut next = TASK / IN_FLIGHT as u32 * caller as u32;
                while token.run_until_cancelled(tokio::time::sleep(std::mem::take(&mut next))).await.is_some() {
                    let id = format!("{prefix}-{}", number.fetch_add(1, Ordering::Relaxed));
                    let input =
                        json!({"do": "sleep", "ms": TASK.as_millis() as u64, "transcript_bytes": TRANSCRIPT_BYTES});
                    let (task, started) = (synthetic(&id, input), Instant::now());
                    let Some(answer) = token.run_until_cancelled(client.submit(&task)).await else { return };
                    assert!(answer.expect("an outcome").result.is_ok());
                    took.lock().push(started.elapsed());
                }
            });
        }
        load
    }

    /// Lets time pass, and says how long the tasks took that ended in it: how many, the median and the 99th percentile.
    fn run_for(&self, time: Duration) -> Times {
        self.took.lock().clear();
        std::thread::sleep(time);
        let mut took = std::mem::take(&mut *self.took.lock());
        assert!(self.lifecycle.failed().is_none() && took.len() > 10, "tasks end");
        took.sort_unstable();
        Times { count: took.len(), p50: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
    }

    fn end(self) {
        self.runtime.block_on(self.lifecycle.stop(LONG)).expect("all callers end");
        assert!(self.lifecycle.failed().is_none(), "each task has its outcome");
    }
}

#[derive(Debug)]
struct Times {
    count: usize,
    p50: Duration,
    p99: Duration,
}

impl Times {
    /// Tasks do not notice: the bounds are far above what is usual.
    fn assert_like(&self, before: &Times) {
        let more = |usual: Duration| usual + TASK / 4;
        assert!(self.count > IN_FLIGHT, "they go on: {self:?}");
        assert!(self.p50 < more(before.p50) && self.p99 < 2 * more(before.p99), "{before:?}, then {self:?}");
    }
}

fn megabytes(bytes: usize) -> usize {
    bytes >> 20
}

/// Memory within the queue's bytes, a quarter of them more that waits to be freed, and what the work itself needs.
fn assert_bounded(name: &str, before: &Seen, during: &Seen) {
    let bound = before.max_resident_bytes + QUEUE_BYTES / 4 * 5 + WORKING_BYTES;
    println!(
        "{name}: memory {} MiB before, {} MiB at the most (bound {} MiB); pending {} payloads, {} MiB at the most; spool {} MiB",
        megabytes(before.max_resident_bytes),
        megabytes(during.max_resident_bytes),
        megabytes(bound),
        during.max_pending,
        megabytes(during.max_pending_bytes),
        megabytes(during.max_spool_bytes),
    );
    assert!(during.max_resident_bytes <= bound && during.max_pending_bytes <= QUEUE_BYTES);
    for seen in [before, during] {
        assert!(seen.snapshots > 20 && seen.unbalanced.is_empty(), "{seen:?}");
    }
}

/// An outage under load, and the time after it.
fn outage(name: &str, lasts: Duration, away: impl FnOnce(&mut Site), back: impl FnOnce(&mut Site)) {
    let mut site = site();
    site.start_s3();
    let mut worker = site.worker();
    let (watch, load) = (worker.watch(), Load::start(&worker, "t"));
    load.run_for(2 * TASK);
    let before = load.run_for(BEFORE);
    let seen_before = watch.take();
    away(&mut site);
    let during = load.run_for(lasts);
    let spooled = worker.count("weir_payloads_spooled");
    back(&mut site);
    let after = load.run_for(BEFORE);
    load.end();
    let since = Instant::now();
    worker.until_delivered();
    println!("{name}: tasks before {before:?}, during {during:?}, after {after:?}");
    println!(
        "{name}: {spooled} in the spool when the store came back; all delivered {:?} after the load",
        since.elapsed()
    );
    let ledger = worker.stop();
    let seen = watch.end();
    assert_bounded(name, &seen_before, &seen);
    println!("{name}: {ledger:?}, {} snapshots balanced", seen_before.snapshots + seen.snapshots);
    assert!(spooled > IN_FLIGHT && ledger.are_balanced(), "{spooled}: {ledger:?}");
    assert_eq!((ledger.dropped, ledger.spooled, ledger.pending), (0, 0, 0));
    assert_eq!((site.stored(), site.spooled()), (ledger.offered, 0));
    for times in [during, after] {
        times.assert_like(&before);
    }
    site.stop_s3();
}

#[test]
#[ignore = "a minute's outage: the full lane, tests/run --full"]
fn a_store_that_refuses_connections_for_a_minute() {
    outage("refused for 60 s", Duration::from_secs(60), Site::kill_s3, Site::start_s3);
}

#[test]
#[ignore = "a minute's outage: the full lane, tests/run --full"]
fn a_store_that_hangs() {
    let freeze = |site: &mut Site| site.signal_s3(Signal::STOP);
    outage("hangs for 20 s", Duration::from_secs(20), freeze, |site| site.signal_s3(Signal::CONT));
}

#[test]
#[ignore = "a minute's outage: the full lane, tests/run --full"]
fn a_stop_in_the_middle_of_an_outage() {
    for is_frozen in [false, true] {
        let name = if is_frozen { "stopped while it hangs" } else { "stopped while it is refused" };
        let mut site = site();
        site.start_s3();
        let mut worker = site.worker();
        let (watch, load) = (worker.watch(), Load::start(&worker, "first"));
        load.run_for(3 * TASK);
        if is_frozen {
            site.signal_s3(Signal::STOP)
        } else {
            site.kill_s3()
        }
        load.run_for(8 * TASK);
        worker.process.signal(Signal::TERM);
        let asked = Instant::now();
        load.end();
        assert_eq!(worker.process.exit_code(LONG), Some(0), "{}", worker.process.log());
        let (took, first) = (asked.elapsed(), Numbers::of_log(&worker.process.log()));
        println!("{name}: it took {took:?} to stop; {first:?}");
        // 5 s to flush, a second for the last tasks, and what the steps before may take.
        assert!(took < Duration::from_secs(25) && first.are_balanced() && watch.end().unbalanced.is_empty());
        assert_eq!((first.pending, first.dropped, site.spooled()), (0, 0, first.spooled));
        assert!(first.spooled > IN_FLIGHT, "{first:?}");

        if is_frozen {
            site.signal_s3(Signal::CONT)
        } else {
            site.start_s3()
        }
        let mut worker = site.worker();
        let (watch, load) = (worker.watch(), Load::start(&worker, "second"));
        load.run_for(2 * TASK);
        load.end();
        worker.until_delivered();
        let second = worker.stop();
        println!("{name}: the next life: {second:?}; in the store: {}", site.stored());
        assert_eq!((second.recovered, second.dropped, second.spooled), (first.spooled, 0, 0));
        assert_eq!(site.stored(), first.offered + second.offered, "all of both lives");
        assert_eq!((site.spooled(), watch.end().unbalanced), (0, vec![]));
        site.stop_s3();
    }
}

/// The queue is less than half full, so nothing of it has been spooled yet, and the store hangs since a moment ago.
#[test]
#[ignore = "a long queue: the full lane, tests/run --full"]
fn a_stop_with_a_long_queue_and_a_store_that_has_just_begun_to_hang() {
    let mut site = Site::with_payloads("queue_bytes = 1073741824");
    site.start_s3();
    let mut worker = site.worker();
    let watch = worker.watch();
    site.signal_s3(Signal::STOP);
    let batch = Batch { count: HUNG_TASKS, concurrency: IN_FLIGHT, transcript_bytes: TRANSCRIPT_BYTES.min(20_000) };
    let mut submit = site.submit_batch(&worker, "t", batch);
    assert_eq!(submit.exit_code(LONG), Some(0), "tasks do not notice: {}", submit.log());
    let (pending, spooled) = (worker.count("weir_payloads_pending"), worker.count("weir_payloads_spooled"));
    let asked = Instant::now();
    worker.process.signal(Signal::TERM);
    assert_eq!(worker.process.exit_code(LONG), Some(0), "{}", worker.process.log());
    let (took, numbers) = (asked.elapsed(), Numbers::of_log(&worker.process.log()));
    println!("a long queue: {pending} pending and {spooled} spooled at the signal; it took {took:?}; {numbers:?}");
    assert_eq!((numbers.offered, numbers.dropped, numbers.pending), (HUNG_TASKS, 0, 0));
    assert_eq!((site.spooled(), watch.end().unbalanced), (numbers.spooled, vec![]));
    assert!(numbers.stored + numbers.spooled == HUNG_TASKS && numbers.spooled > HUNG_TASKS / 2, "{numbers:?}");
    site.signal_s3(Signal::CONT);
    site.stop_s3();
}

/// How a life of the worker goes before it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// The store is away all the time: until so many more lie in the spool.
    Away(usize),
    /// It comes back when so many more lie in the spool: until so many are stored.
    Back(usize, usize),
    /// It is there all the time: until so many are stored, those that an earlier life has left among them.
    There(usize),
    /// It is away: until so many payloads have come in, wherever they then are.
    Early(usize),
}

#[test]
#[ignore = "twenty lives: the full lane, tests/run --full"]
fn sudden_deaths_at_any_point() {
    const LIVES: usize = 20;
    const TASKS: usize = 400;
    let mut site = Site::with_payloads("queue_items = 100");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |most: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (random >> 33) as usize % most
    };
    let (mut left, mut ever_spooled, mut deaths, mut in_spool) = (0, BTreeSet::new(), Vec::new(), 0);
    for number in 0..LIVES {
        let life = match number % 5 {
            0 | 3 => Life::Away(next(40)),
            1 => Life::Back(20 + next(20), next(15)),
            2 => Life::There(next(15)),
            _ => Life::Early(next(350)),
        };
        // A store that is away refuses, or hangs.
        let hangs = number % 2 == 1;
        let is_there = matches!(life, Life::There(_));
        if hangs || is_there {
            site.start_s3();
        }
        if hangs && !is_there {
            site.signal_s3(Signal::STOP);
        }
        let mut worker = site.worker();
        let watch = worker.watch();
        let submit = site.submit(&worker, &format!("life{number}"), TASKS);
        let until = |name: &str, least: usize| {
            wait_for("it is in the middle of it", LONG, || (worker.count(name) >= least).then_some(()));
        };
        match life {
            Life::Away(more) => until("weir_payloads_spooled", left + more),
            Life::Back(more, stored) => {
                until("weir_payloads_spooled", left + more);
                if hangs {
                    site.signal_s3(Signal::CONT)
                } else {
                    site.start_s3()
                }
                until("weir_payloads_stored_total", stored);
            }
            Life::There(stored) => until("weir_payloads_stored_total", stored),
            Life::Early(offered) => until("weir_payloads_offered_total", offered),
        }
        worker.process.signal(Signal::KILL);
        worker.process.exit_code(LONG);
        drop(submit);
        let seen = watch.end();
        assert!(seen.unbalanced.is_empty(), "{seen:?}");
        assert_eq!(seen.last.recovered, left, "life {number} finds all that the one before has left");
        site.kill_s3_if_there();
        ever_spooled.extend(site.spooled_tasks());
        left = site.spooled();
        in_spool += usize::from(left > 0);
        deaths.push((life, left));
    }
    site.start_s3();
    let mut worker = site.worker();
    worker.until_delivered();
    let last = worker.stop();
    let stored = site.stored_tasks();
    println!(
        "{LIVES} sudden deaths, each with what then lay in the spool: {deaths:?}; {in_spool} left something; at the \
         end {last:?}, in the store: {}, of {} that ever were in the spool at a death",
        stored.len(),
        ever_spooled.len(),
    );
    assert!(in_spool >= LIVES * 3 / 4, "the deaths come in the middle of it");
    assert_eq!((last.recovered, last.stored, last.dropped), (left, left, 0), "none is corrupt");
    let lost: Vec<_> = ever_spooled.difference(&stored).collect();
    assert!(lost.is_empty() && stored.len() <= LIVES * TASKS, "what has been in the spool arrives: {lost:?}");
    let rest: Vec<_> = files(&site.spool).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert!(rest.is_empty(), "{rest:?}");
    site.stop_s3();
}
