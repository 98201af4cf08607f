//! The account of payloads, in every snapshot of a run that mixes quiet times, overload, payloads that are too large, a
//! store that is away, a store that is slow, a spool that overflows, a stop and a sudden death; and what is in the store
//! in the end.

use rustix::process::Signal;

use crate::support::processes::{LONG, wait_for};
use crate::support::site::{Batch, Site, Worker};

/// Far less than comes in at once, and a spool for a few payloads.
const SMALL: &str = "queue_items = 20\nqueue_bytes = 1000000\nencoder_threads = 1\nspool.max_bytes = 150000";

/// No more than the queue takes, even if nothing leaves it.
const QUIET: Batch = Batch { count: 20, concurrency: 2, transcript_bytes: 2_000 };

/// More at once than the encoder can do.
const MANY: Batch = Batch { count: 80, concurrency: 20, transcript_bytes: 20_000 };

/// Each larger than the queue.
const TOO_LARGE: Batch = Batch { count: 2, concurrency: 1, transcript_bytes: 1_500_000 };

/// Each fits into the queue, and a few into the spool.
const LARGE: Batch = Batch { count: 6, concurrency: 1, transcript_bytes: 400_000 };

fn run(site: &Site, worker: &Worker, phase: &str, batch: Batch) {
    let mut submit = site.submit_batch(worker, phase, batch);
    assert_eq!(submit.exit_code(LONG), Some(0), "tasks do not notice: {}", submit.log());
}

#[test]
fn the_ledger_balances_in_every_snapshot_of_overload_outage_slow_store_and_restarts() {
    let mut site = Site::with_payloads(SMALL);
    let (mut worker, mut s3) = (site.worker(), site.s3());
    let watch = worker.watch();

    run(&site, &worker, "quiet", QUIET);
    worker.until_delivered();
    assert_eq!((worker.count("weir_payloads_stored_total"), worker.count("weir_payloads_dropped_total")), (20, 0));

    run(&site, &worker, "overload", MANY);
    assert!(worker.dropped("queue_items") > 0, "it was too much");
    worker.until_settled();
    run(&site, &worker, "too-large", TOO_LARGE);
    assert_eq!(worker.dropped("queue_bytes"), TOO_LARGE.count);

    // A store that stands still again and again.
    let mut slow = site.submit_batch(&worker, "slow", MANY);
    for _ in 0..3 {
        let before = worker.count("weir_payloads_offered_total");
        s3.signal(Signal::STOP);
        let comes_in = || worker.count("weir_payloads_offered_total") > before || slow.lines_out() == MANY.count;
        wait_for("payloads come in", LONG, || comes_in().then_some(()));
        s3.signal(Signal::CONT);
    }
    assert_eq!(slow.exit_code(LONG), Some(0), "tasks do not notice");
    worker.until_delivered();

    s3.signal(Signal::KILL);
    s3.exit_code(LONG);
    let dropped = worker.count("weir_payloads_dropped_total");
    run(&site, &worker, "away", QUIET);
    worker.until_settled();
    assert_eq!((worker.count("weir_payloads_spooled"), worker.count("weir_payloads_dropped_total")), (20, dropped));
    run(&site, &worker, "overload-away", MANY);
    worker.until_settled();
    run(&site, &worker, "overflow", LARGE);
    worker.until_settled();
    assert!(worker.dropped("spool_full") > 0 && worker.count("weir_payloads_spooled") > 0);

    // A stop while it is away: its account is exact.
    let first = worker.stop();
    let seen = watch.end();
    let offered = 2 * QUIET.count + 3 * MANY.count + TOO_LARGE.count + LARGE.count;
    println!("the first life: {first:?}, {} snapshots", seen.snapshots);
    assert!(first.are_balanced() && first.pending == 0 && first.offered == offered, "{first:?}");
    assert_eq!((site.spooled(), site.stored()), (first.spooled, first.stored));
    assert!(seen.snapshots > 10 && seen.unbalanced.is_empty() && seen.max_pending <= 20, "{seen:?}");

    // A sudden death while it is away: only what was in memory is lost.
    let mut worker = site.worker();
    let watch = worker.watch();
    assert_eq!(worker.count("weir_payloads_recovered_total"), first.spooled);
    let submit = site.submit(&worker, "killed", MANY.count);
    let has_spooled = || worker.count("weir_payloads_spooled") > first.spooled + 3 || worker.dropped("spool_full") > 3;
    wait_for("some more lie in the spool", LONG, || has_spooled().then_some(()));
    worker.process.signal(Signal::KILL);
    worker.process.exit_code(LONG);
    drop(submit);
    let (killed, left) = (watch.end(), site.spooled());
    println!("the second, killed: {:?}, {} snapshots; {left} in the spool", killed.last, killed.snapshots);
    assert!(killed.unbalanced.is_empty() && killed.last.recovered == first.spooled && left > 0, "{killed:?}");
    assert_eq!(site.stored(), first.stored);

    let (mut worker, mut s3) = (site.worker(), site.s3());
    let watch = worker.watch();
    worker.until_delivered();
    let last = worker.stop();
    println!("the third: {last:?}");
    assert_eq!((last.recovered, last.stored, last.dropped), (left, left, 0));
    assert_eq!((site.stored(), site.spooled()), (first.stored + left, 0));
    assert_eq!(watch.end().unbalanced, vec![]);
    s3.stop();
}
