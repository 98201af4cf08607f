//! What the payload path promises of a store that hangs, and of a stop meanwhile, where there is a spool.

use super::outages::with_spool;
use super::*;

/// A store that is silent for so long counts as away.
const STALLED_AFTER: Duration = Duration::from_millis(200);

fn soon_stalled(directory: &std::path::Path) -> Config {
    let mut config = Config { store: store::Kind::S3, ..with_spool(directory) };
    config.s3.bucket = "weir".into();
    config.s3.attempt_timeout = STALLED_AFTER;
    config
}

#[tokio::test]
async fn a_store_that_hangs_counts_as_away_and_is_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    // The first hangs for ever, as on a socket that leads nowhere any more.
    let store = Faulty::new(|n| if n == 0 { Deed::Hang } else { Deed::Keep });
    let mut config = Config { uploads: 8, ..soon_stalled(directory.path()) };
    // Longer than a feed waits for its probe's result: the one that hangs on must not count anew before.
    config.s3.attempt_timeout = Duration::from_secs(3);
    let (payloads, telemetry, lifecycle) = start(config, store);
    offer(&payloads, [0]);
    eventually("it counts as away", || shows(&telemetry, "weir_payload_store_away 1")).await;
    let degraded = payloads.degraded();
    assert!(degraded.len() == 1 && degraded[0].ends_with("s: payloads go to the spool"), "{degraded:?}");
    offer(&payloads, 1..20);
    eventually("the others are stored", || payloads.ledger().stored == 19).await;
    let ledger = payloads.ledger();
    assert_eq!((ledger.pending, ledger.spooled, ledger.dropped_in_all()), (1, 0, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_store_that_hangs_costs_nothing_where_there_is_no_spool_and_room_in_the_queue() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 2, spool: Default::default(), ..soon_stalled(directory.path()) };
    let (payloads, telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..10);
    tokio::time::sleep(STALLED_AFTER * 6).await;
    assert_eq!((payloads.ledger().pending, payloads.ledger().dropped_in_all()), (10, 0));
    assert!(shows(&telemetry, "weir_payload_store_away 0"));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_stop_spools_at_once_what_a_store_that_is_away_does_not_take() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 2, ..soon_stalled(directory.path()) };
    let (payloads, telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..2);
    eventually("it counts as away", || shows(&telemetry, "weir_payload_store_away 1")).await;
    offer(&payloads, 2..100);
    let started = Instant::now();
    let ledger = payloads.flush(LONG * 2).await;
    assert!(started.elapsed() < LONG, "nobody waited for half of the time");
    assert_eq!((ledger.spooled, ledger.pending, ledger.dropped_in_all()), (100, 0, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_stop_spools_what_waits_when_the_store_is_silent_for_a_second() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 2, ..with_spool(directory.path()) };
    let (payloads, _telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..200);
    let flush = payloads.flush(LONG * 2);
    let all_but_those_under_way = eventually("the rest is spooled", || payloads.ledger().spooled == 198);
    tokio::select! {
        ledger = flush => panic!("two uploads are worth waiting for: {ledger}"),
        () = all_but_those_under_way => {}
    }
    assert!(payloads.ledger().balanced());
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_store_that_is_too_slow() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 1, ..with_spool(directory.path()) };
    let (payloads, _telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::TakeLong));
    offer(&payloads, 0..2_000);
    let started = Instant::now();
    let ledger = payloads.flush(LONG * 2).await;
    assert!(started.elapsed() < LONG, "it would have taken a minute and a half");
    assert!(ledger.dropped_in_all() == 0 && ledger.stored > 5 && ledger.spooled > 1_000, "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_stop_leaves_what_the_store_takes_in_time_to_the_store() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { uploads: 2, ..with_spool(directory.path()) };
    let (payloads, _telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::TakeLong));
    offer(&payloads, 0..60);
    let ledger = payloads.flush(LONG * 2).await;
    assert_eq!((ledger.stored, ledger.spooled, ledger.dropped_in_all()), (60, 0, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

/// Where the disk takes nothing, to give up on the store would lose everything at once.
#[tokio::test]
async fn a_stop_gives_a_silent_store_its_time_where_the_spool_is_of_no_use() {
    let file = tempfile::NamedTempFile::new().expect("a file in the directory's place");
    let config = Config { uploads: 1, ..with_spool(file.path()) };
    let store = Faulty::new(|n| if n == 0 { Deed::TakeLonger } else { Deed::Keep });
    let (payloads, _telemetry, lifecycle) = start(config, store);
    offer(&payloads, 0..10);
    let ledger = payloads.flush(LONG * 2).await;
    assert_eq!((ledger.stored, ledger.dropped_in_all()), (10, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_could_not_be_opened_is_tried_again_though_no_payload_needs_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("spool");
    std::fs::write(&path, "a file in its place").expect("written");
    let (payloads, telemetry, lifecycle) = start(with_spool(&path), Faulty::new(|_| Deed::Keep));
    assert!(shows(&telemetry, "weir_payload_spool_writable 0"));
    let degraded = payloads.degraded();
    assert!(degraded.len() == 1 && degraded[0].ends_with("could not be opened, and is tried again"), "{degraded:?}");
    std::fs::remove_file(&path).expect("removed");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(shows(&telemetry, "weir_payload_spool_writable 1"));
    assert_eq!(payloads.degraded(), Vec::<String>::new());
    tokio::time::resume();
    lifecycle.stop(LONG).await.expect("all of it ends");
}
