//! What the payload path promises with a spool: while the store is away or slow, at a stop, and for the next start.

use super::*;

pub(super) fn with_spool(directory: &std::path::Path) -> Config {
    let spool = spool::Config { path: Some(directory.into()), ..Default::default() };
    Config { spool, ..Config::default() }
}

#[tokio::test]
async fn what_a_store_that_is_away_does_not_take_arrives_when_it_is_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Faulty::new(|_| Deed::Fail);
    let (payloads, telemetry, lifecycle) = start(with_spool(directory.path()), store.clone());
    offer(&payloads, 0..100);
    eventually("all of it is in the spool", || payloads.ledger().spooled == 100).await;
    assert!(shows(&telemetry, "weir_payload_store_away 1"));
    assert!(payloads.degraded()[0].starts_with("the store has been away for "));
    assert!(telemetry.render().contains("weir_payloads_spooled 100"));
    store.becomes(|_| Deed::Keep);
    eventually("all of it is stored", || payloads.ledger().stored == 100).await;
    let ledger = payloads.flush(LONG).await;
    assert!(ledger.balanced() && ledger.dropped_in_all() == 0 && ledger.spooled == 0, "{ledger}");
    assert!(store.kept() == 100 && store.kept.lock().values().all(|(_, puts)| *puts == 1));
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn without_a_spool_payloads_wait_in_memory_for_a_store_that_is_away() {
    let store = Faulty::new(|_| Deed::Fail);
    let (payloads, telemetry, lifecycle) = start(Config { uploads: 8, ..Config::default() }, store.clone());
    offer(&payloads, 0..100);
    eventually("it counts as away", || shows(&telemetry, "weir_payload_store_away 1")).await;
    let degraded = payloads.degraded();
    assert!(degraded[0].contains("payloads wait in memory, for there is no spool"), "{degraded:?}");
    assert_eq!((payloads.ledger().pending, payloads.ledger().dropped_in_all()), (100, 0));
    store.becomes(|_| Deed::Keep);
    // Nothing more is offered: what waits finds out.
    eventually("all of it is stored", || payloads.ledger().stored == 100).await;
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn without_a_spool_an_outage_costs_what_has_no_room_in_the_queue_and_a_stop_does_not_wait_for_its_end() {
    let config = Config { uploads: 2, queue_items: 10, ..Config::default() };
    let (payloads, telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::Fail));
    offer(&payloads, 0..5);
    eventually("it counts as away", || shows(&telemetry, "weir_payload_store_away 1")).await;
    offer(&payloads, 5..50);
    let ledger = payloads.ledger();
    assert_eq!((ledger.pending, ledger.dropped(Reason::QueueItems)), (10, 40), "{ledger}");
    let started = Instant::now();
    let ledger = payloads.flush(LONG).await;
    assert!(started.elapsed() < LONG / 2, "the store is not waited for");
    assert_eq!((ledger.dropped(Reason::Store), ledger.pending), (10, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn without_a_spool_payloads_that_the_store_never_takes_do_not_keep_the_slots() {
    let store = Faulty::refusing("t-bad");
    let (payloads, telemetry, lifecycle) = start(Config { uploads: 2, ..Config::default() }, store.clone());
    for n in 0..2 {
        payloads.offer(record(&format!("t-bad-{n}")), Value::Ordinary);
    }
    eventually("they count for an outage", || payloads.degraded().len() == 1 || payloads.ledger().pending == 0).await;
    offer(&payloads, 0..20);
    eventually("the others are stored", || payloads.ledger().stored == 20).await;
    eventually("they are given up", || payloads.ledger().pending == 0).await;
    assert_eq!(payloads.ledger().dropped(Reason::Store), 2);
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn without_a_spool_a_stop_asks_a_store_that_is_away_once_more() {
    let store = Faulty::new(|_| Deed::Fail);
    let (payloads, telemetry, lifecycle) = start(Config::default(), store.clone());
    offer(&payloads, 0..100);
    eventually("it counts as away", || shows(&telemetry, "weir_payload_store_away 1")).await;
    store.becomes(|_| Deed::Keep);
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.stored, ledger.dropped_in_all()), (100, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn without_a_spool_a_payload_that_the_store_never_takes_is_given_up() {
    // The first payload's puts and those of the others take turns.
    let store = Faulty::new(|n| if n % 2 == 0 { Deed::Fail } else { Deed::Keep });
    let (payloads, telemetry, lifecycle) = start(Config::default(), store.clone());
    offer(&payloads, [0]);
    for n in 1..6 {
        eventually("it was tried", || store.puts.load(Ordering::Relaxed) == 2 * n - 1).await;
        offer(&payloads, [n]);
        eventually("the other one is stored", || payloads.ledger().stored == n).await;
    }
    eventually("it is given up", || payloads.ledger().pending == 0).await;
    assert_eq!(payloads.ledger().dropped(Reason::Store), 1);
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn what_a_flush_cannot_store_is_delivered_by_the_next_life() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 2, ..with_spool(directory.path()) };
    let (payloads, _telemetry, lifecycle) = start(config.clone(), Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..20);
    let ledger = payloads.flush(Duration::from_secs(1)).await;
    assert_eq!((ledger.spooled, ledger.pending, ledger.dropped_in_all()), (20, 0, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("no thread hangs");

    let store = Faulty::new(|_| Deed::Keep);
    let (payloads, telemetry, lifecycle) = start(config, store.clone());
    eventually("all of it is stored", || payloads.ledger().stored == 20).await;
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.offered, ledger.recovered, ledger.stored, ledger.spooled), (0, 20, 20, 0));
    assert!(ledger.balanced() && store.kept() == 20);
    assert!(telemetry.render().contains("weir_payloads_recovered_total 20"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

/// Beside the tasks encoders hold back; at a stop nothing is left to hold back for, and payloads are lost at its deadline.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_flush_encodes_at_the_normal_priority() {
    let priority = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).expect("a priority");
    let (phase, seen) = (AtomicU64::new(0), Arc::new(Mutex::new([Vec::new(), Vec::new()])));
    let priorities = seen.clone();
    let normal = priority();
    // Encoders ask for the lag while they encode. The flush is at work when one of normal priority asks.
    let lag: Lag = Arc::new(move || {
        if priority() == normal {
            phase.store(1, Ordering::SeqCst);
        }
        priorities.lock()[phase.load(Ordering::SeqCst) as usize].push(priority());
        Duration::from_secs(1)
    });
    let directory = tempfile::tempdir().expect("a directory");
    let (payloads, _telemetry, lifecycle) = start_under(with_spool(directory.path()), Faulty::new(|_| Deed::Fail), lag);
    offer(&payloads, 0..200);
    eventually("some are encoded", || payloads.ledger().spooled > 0).await;
    assert!(payloads.ledger().pending > 100, "most still wait, for encoders pause");
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.spooled, ledger.pending, ledger.dropped_in_all()), (200, 0, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("both crews end");
    let [before, at_the_flush] = &*seen.lock();
    assert!(normal >= 10 || before.iter().all(|priority| *priority == 10), "{before:?}");
    let lowered = at_the_flush.iter().filter(|priority| **priority != normal).count();
    assert!(lowered < 20 && at_the_flush.len() > 200, "only what was in hand: {lowered} of {}", at_the_flush.len());
}

#[tokio::test]
async fn a_store_that_is_too_slow_is_relieved_by_the_spool() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 1, queue_items: 10, ..with_spool(directory.path()) };
    let store = Faulty::new(|_| Deed::Hang);
    let (payloads, _telemetry, lifecycle) = start(config, store.clone());
    for n in 0..60 {
        offer(&payloads, [n]);
        eventually("there is room", || payloads.ledger().pending < 8).await;
    }
    let ledger = payloads.ledger();
    assert!(ledger.dropped_in_all() == 0 && ledger.spooled > 40 && ledger.balanced(), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_payload_that_the_store_never_takes_does_not_hold_up_the_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Faulty::new(|_| Deed::Fail);
    let (payloads, _telemetry, lifecycle) = start(with_spool(directory.path()), store.clone());
    offer(&payloads, 0..10);
    eventually("all of it is in the spool", || payloads.ledger().spooled == 10).await;
    // Every other put fails, whichever it is.
    store.becomes(|n| if n % 2 == 0 { Deed::Fail } else { Deed::Keep });
    eventually("all of it is stored", || payloads.ledger().stored == 10).await;
    assert!(payloads.ledger().balanced());
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_payload_that_the_store_always_refuses_rests_and_is_no_outage() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Faulty::refusing("t-bad");
    let (payloads, telemetry, lifecycle) = start(with_spool(directory.path()), store.clone());
    (0..3).for_each(|n| payloads.offer(record(&format!("t-bad-{n}")), Value::Ordinary));
    eventually("they count for an outage", || shows(&telemetry, "weir_payload_store_away 1")).await;
    for n in 0..20 {
        offer(&payloads, [n]);
        eventually("the others are stored", || payloads.ledger().stored == n + 1).await;
    }
    eventually("they rest", || payloads.ledger().spooled == 3).await;
    let puts = || store.puts.load(Ordering::Relaxed);
    let before = puts();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(puts() - before <= 10, "{} in a second", puts() - before);
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.stored, ledger.spooled, ledger.dropped_in_all()), (20, 3, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_damaged_file_in_the_spool_is_a_counted_loss() {
    let directory = tempfile::tempdir().expect("a directory");
    let (payloads, _telemetry, lifecycle) = start(with_spool(directory.path()), Faulty::new(|_| Deed::Fail));
    offer(&payloads, 0..5);
    eventually("all of it is in the spool", || payloads.ledger().spooled == 5).await;
    payloads.flush(LONG).await;
    lifecycle.stop(LONG).await.expect("all of it ends");
    let files = std::fs::read_dir(directory.path().join("berth-0")).expect("a berth");
    let mut files = files.map(|entry| entry.expect("an entry").path());
    let damaged = files.find(|path| path.to_string_lossy().ends_with(".payload")).expect("a payload");
    std::fs::write(&damaged, b"weir.spool.v1 what is left after a power failure").expect("written");

    let store = Faulty::new(|_| Deed::Keep);
    let (payloads, _telemetry, lifecycle) = start(with_spool(directory.path()), store.clone());
    eventually("it is settled", || payloads.ledger().spooled + payloads.ledger().pending == 0).await;
    let ledger = payloads.ledger();
    assert_eq!((ledger.recovered, ledger.stored, ledger.dropped(Reason::SpoolCorrupt)), (5, 4, 1));
    assert!(ledger.balanced() && !damaged.exists());
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_disk_that_does_not_take_payloads_is_a_counted_loss_and_a_state() {
    let directory = tempfile::NamedTempFile::new().expect("a file in the directory's place");
    let (payloads, telemetry, lifecycle) = start(with_spool(directory.path()), Faulty::new(|_| Deed::Fail));
    offer(&payloads, 0..10);
    eventually("it is settled", || payloads.ledger().pending == 0).await;
    assert_eq!(payloads.ledger().dropped(Reason::SpoolDisk), 10);
    let degraded = payloads.degraded();
    assert!(degraded[0].ends_with("s: payloads are lost, for the spool does not take them"), "{degraded:?}");
    assert!(shows(&telemetry, "weir_payload_spool_writable 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_restarts_and_overload_leave_the_ledger_balanced_in_every_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = spool::Config { path: Some(directory.path().into()), max_bytes: 100_000, ..Default::default() };
    let config = Config { queue_items: 40, uploads: 3, encoder_threads: 2, spool, ..Config::default() };
    let store = Faulty::new(|n| match (n / 40) % 4 {
        0 => Deed::Keep,
        1 => Deed::Fail,
        2 if n % 7 == 0 => Deed::Hang,
        _ => Deed::Dawdle,
    });
    let (mut left, mut in_all) = (0, 0);
    for life in 0..4 {
        let (payloads, _telemetry, lifecycle) = start(config.clone(), store.clone());
        assert_eq!(payloads.ledger().recovered, left);
        for n in 0..300 {
            let value = if n % 10 == 0 { Value::Failure } else { Value::Ordinary };
            payloads.offer(record(&format!("t-{life}-{n}")), value);
            let ledger = payloads.ledger();
            assert!(ledger.balanced() && ledger.pending <= 40, "{ledger}");
            tokio::task::yield_now().await;
        }
        let ledger = payloads.flush(Duration::from_millis(200)).await;
        assert!(ledger.balanced() && ledger.pending == 0, "{ledger}");
        lifecycle.stop(LONG).await.expect("all of it ends");
        (left, in_all) = (ledger.spooled, in_all + ledger.stored);
    }
    assert!(in_all > 0 && store.kept() as u64 >= in_all);
}
