//! The account of payloads, in every snapshot of a run that mixes overload, a store that is away, a store that is slow,
//! a stop and a sudden death; and what is in the store in the end.

use rustix::process::Signal;

use crate::support::processes::{LONG, wait_for};
use crate::support::site::Site;

/// Far less than comes in at once.
const SMALL: &str = "queue_items = 20\nencoder_threads = 1";

/// Tasks of a phase.
const TASKS: usize = 150;

#[test]
fn the_ledger_balances_in_every_snapshot_of_overload_outage_slow_store_and_restarts() {
    let mut site = Site::with_payloads(SMALL);
    let (mut worker, mut s3) = (site.worker(), site.s3());
    let watch = worker.watch();
    let run = |site: &Site, worker: &_, phase: &str| {
        let mut submit = site.submit(worker, phase, TASKS);
        assert_eq!(submit.exit_code(LONG), Some(0), "tasks do not notice: {}", submit.log());
    };

    // More than the encoder can do.
    run(&site, &worker, "overload");
    assert!(worker.count("weir_payloads_dropped_total") > 0, "it was too much");

    // A store that stands still again and again.
    let mut slow = site.submit(&worker, "slow", TASKS);
    for _ in 0..3 {
        let before = worker.count("weir_payloads_offered_total");
        s3.signal(Signal::STOP);
        let comes_in = || worker.count("weir_payloads_offered_total") > before || slow.lines_out() == TASKS;
        wait_for("payloads come in", LONG, || comes_in().then_some(()));
        s3.signal(Signal::CONT);
    }
    assert_eq!(slow.exit_code(LONG), Some(0), "tasks do not notice");

    s3.signal(Signal::KILL);
    s3.exit_code(LONG);
    run(&site, &worker, "away");
    wait_for("some lie in the spool", LONG, || (worker.count("weir_payloads_spooled") > 0).then_some(()));

    // A stop while it is away: its account is exact.
    let first = worker.stop();
    let seen = watch.end();
    assert!(first.are_balanced() && first.pending == 0 && first.offered == 3 * TASKS, "{first:?}");
    assert_eq!((site.spooled(), site.stored()), (first.spooled, first.stored));
    assert!(seen.snapshots > 10 && seen.unbalanced.is_empty() && seen.max_pending <= 20, "{seen:?}");

    // A sudden death while it is away: only what was in memory is lost.
    let mut worker = site.worker();
    let watch = worker.watch();
    let submit = site.submit(&worker, "killed", TASKS);
    wait_for("some more lie in the spool", LONG, || {
        (worker.count("weir_payloads_spooled") > first.spooled + 3).then_some(())
    });
    worker.process.signal(Signal::KILL);
    worker.process.exit_code(LONG);
    drop(submit);
    let (killed, left) = (watch.end(), site.spooled());
    assert!(killed.unbalanced.is_empty() && killed.last.recovered == first.spooled, "{killed:?}");
    assert!(left >= killed.last.spooled && site.stored() == first.stored, "{left}: {killed:?}");

    let (mut worker, mut s3) = (site.worker(), site.s3());
    let watch = worker.watch();
    worker.until_delivered();
    let last = worker.stop();
    assert_eq!((last.recovered, last.stored, last.dropped), (left, left, 0));
    assert_eq!((site.stored(), site.spooled()), (first.stored + left, 0));
    assert_eq!(watch.end().unbalanced, vec![]);
    s3.stop();
}
