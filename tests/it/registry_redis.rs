//! The registry on a real Redis: what followers hear, and that it heals from whatever happens to the server.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use weir::registry::redis::RedisRegistry;
use weir::registry::{CHANGES_WAIT, Change, Config, Cursor, HEARTBEAT, Presence, Registry, RegistryError, State, TTL};
use weir::telemetry::Telemetry;

use crate::support::redis::{self, RedisServer};

fn registry_at(url: &str) -> (RedisRegistry, Telemetry) {
    let config = Config { url: Some(url.into()), ..Config::default() };
    let telemetry = Telemetry::new().expect("recorder");
    let pool = "parallel".parse().expect("a pool");
    (RedisRegistry::new(&config, &pool, &telemetry).expect("a valid config"), telemetry)
}

fn registry(server: &RedisServer) -> RedisRegistry {
    registry_at(&server.url()).0
}

fn presence(worker: &str) -> Presence {
    redis::presence(worker, "parallel")
}

fn present(presence: &Presence) -> Change {
    Change::Present(presence.clone())
}

fn gone(presence: &Presence) -> Change {
    Change::Gone(presence.worker.clone(), presence.incarnation)
}

/// Follows until something happens, at most for `within`.
async fn next_changes(registry: &RedisRegistry, cursor: &mut Cursor, within: Duration) -> Vec<Change> {
    let start = Instant::now();
    while start.elapsed() < within {
        let read = registry.changes(cursor).await.expect("changes");
        *cursor = read.cursor;
        if !read.changes.is_empty() {
            return read.changes;
        }
    }
    panic!("nothing happened within {within:?}");
}

/// Follows until the stream is found to be another one.
async fn until_lagged(registry: &RedisRegistry, mut cursor: Cursor) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        match registry.changes(&cursor).await {
            Ok(read) => cursor = read.cursor,
            Err(RegistryError::Lagged) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the follower was not told");
}

#[tokio::test]
async fn followers_hear_of_changes_and_not_of_heartbeats() {
    let server = RedisServer::start();
    let (worker_side, router_side) = (registry(&server), registry(&server));
    let mut worker = presence("w1");
    worker_side.announce(&worker, true).await.expect("announced");
    let snapshot = router_side.snapshot().await.expect("snapshot");
    assert_eq!(snapshot.workers, [worker.clone()]);
    let mut cursor = snapshot.cursor;

    worker.in_flight = 1;
    worker_side.announce(&worker, false).await.expect("a heartbeat");
    worker.state = State::Full;
    worker_side.announce(&worker, true).await.expect("full");
    assert_eq!(next_changes(&router_side, &mut cursor, CHANGES_WAIT).await, [present(&worker)]);
    assert_eq!(server.ask("ZCARD weir:{parallel}:open"), ":0\r\n");
    assert_eq!(server.ask("ZCARD weir:{parallel}:members"), ":1\r\n");

    worker_side.withdraw(&worker.worker, worker.incarnation).await.expect("withdrawn");
    assert_eq!(next_changes(&router_side, &mut cursor, CHANGES_WAIT).await, [gone(&worker)]);
    assert!(router_side.snapshot().await.expect("snapshot").workers.is_empty());
}

#[tokio::test]
async fn a_look_finds_the_last_heartbeat_of_those_it_asks_for() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let [one, other] = ["w1", "w2"].map(presence);
    for presence in [&one, &other] {
        registry.announce(presence, true).await.expect("announced");
    }
    let heartbeat = Presence { in_flight: one.in_flight + 1, ..one.clone() };
    registry.announce(&heartbeat, false).await.expect("announced");
    let absent = "w9".parse().expect("a worker id");
    assert_eq!(registry.look(&[one.worker.clone(), absent]).await, Ok(vec![heartbeat]));
    assert_eq!(registry.look(&[]).await, Ok(vec![]));
    let found = registry.probe().await.expect("it answers");
    assert!(found.starts_with("redis ") && found.contains(&server.url().replace("redis://", "")), "{found}");
}

#[tokio::test]
async fn a_change_reaches_a_waiting_follower_at_once() {
    let server = RedisServer::start();
    let (worker_side, router_side) = (registry(&server), registry(&server));
    let worker = presence("w1");
    worker_side.announce(&worker, true).await.expect("announced");
    let mut cursor = router_side.snapshot().await.expect("snapshot").cursor;
    let announced = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        worker_side.announce(&worker, true).await.expect("announced");
        Instant::now()
    };
    let (written, heard) = tokio::join!(announced, async {
        next_changes(&router_side, &mut cursor, CHANGES_WAIT).await;
        Instant::now()
    });
    assert!(heard.saturating_duration_since(written) < Duration::from_millis(250), "five times what is due");
}

#[tokio::test]
async fn a_silent_worker_is_gone_without_any_other_workers_help() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    let announced = Instant::now();
    let mut cursor = registry.snapshot().await.expect("snapshot").cursor;
    let changes = next_changes(&registry, &mut cursor, TTL * 2).await;
    assert_eq!(changes, [gone(&worker)]);
    assert!(announced.elapsed() >= TTL - Duration::from_millis(100), "not before its time");
    assert!(announced.elapsed() < Duration::from_secs(6), "{:?}", announced.elapsed());
    assert_eq!(server.ask("ZCARD weir:{parallel}:open"), ":0\r\n");
}

#[tokio::test]
async fn an_older_incarnation_neither_overwrites_nor_removes_a_newer_one() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let (old, new) = (presence("w1"), presence("w1"));
    registry.announce(&old, true).await.expect("the first life");
    let mut cursor = registry.snapshot().await.expect("snapshot").cursor;
    registry.announce(&new, false).await.expect("the second life");
    assert_eq!(next_changes(&registry, &mut cursor, CHANGES_WAIT).await, [present(&new)]);

    let error = registry.announce(&old, true).await.expect_err("superseded");
    assert_eq!(error, RegistryError::Superseded { worker: old.worker.clone() });
    registry.withdraw(&old.worker, old.incarnation).await.expect("nothing to do");
    assert_eq!(registry.snapshot().await.expect("snapshot").workers, [new]);
    assert_eq!(server.ask("ZCARD weir:{parallel}:members"), ":1\r\n");
}

#[tokio::test]
async fn an_emptied_server_heals_with_the_next_heartbeat() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    let before = registry.snapshot().await.expect("snapshot").cursor;

    server.flush();
    until_lagged(&registry, before).await;
    let snapshot = registry.snapshot().await.expect("snapshot");
    assert!(snapshot.workers.is_empty());
    registry.announce(&worker, false).await.expect("a heartbeat");
    let mut cursor = snapshot.cursor;
    assert_eq!(next_changes(&registry, &mut cursor, CHANGES_WAIT).await, [present(&worker)]);
}

#[tokio::test]
async fn a_server_that_was_emptied_and_filled_again_is_not_mistaken_for_the_one_before() {
    let server = RedisServer::start();
    let registry = registry(&server);
    registry.announce(&presence("w1"), true).await.expect("announced");
    let before = registry.snapshot().await.expect("snapshot").cursor;
    server.flush();
    registry.announce(&presence("w2"), true).await.expect("announced");
    until_lagged(&registry, before).await;
}

#[tokio::test]
async fn a_restarted_server_heals() {
    let mut server = RedisServer::start();
    let (registry, telemetry) = registry_at(&server.url());
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    server.kill();
    for _ in 0..2 {
        let error = registry.announce(&worker, false).await.expect_err("away");
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    }
    assert!(telemetry.render().contains("weir_registry_connected 0"));
    server.start_again();
    registry.announce(&worker, false).await.expect("the next call connects");
    assert_eq!(registry.snapshot().await.expect("snapshot").workers, [worker]);
    let metrics = telemetry.render();
    assert!(metrics.contains("weir_registry_connected 1"), "{metrics}");
    assert!(metrics.contains("weir_registry_reconnects_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_hung_server_costs_a_timeout_and_heals() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    let cursor = registry.snapshot().await.expect("snapshot").cursor;
    registry.changes(&cursor).await.expect("both connections are up");

    server.pause();
    let start = Instant::now();
    let (announced, changes) = tokio::join!(registry.announce(&worker, false), registry.changes(&cursor));
    assert!(matches!(announced, Err(RegistryError::Unavailable { .. })), "{announced:?}");
    assert!(matches!(changes, Err(RegistryError::Unavailable { .. })), "{changes:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    server.resume();

    let start = Instant::now();
    while registry.announce(&worker, false).await.is_err() {
        assert!(start.elapsed() < HEARTBEAT, "it answers again");
    }
    assert_eq!(registry.snapshot().await.expect("snapshot").workers, [worker]);
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left() {
    let server = RedisServer::start();
    let (registry, telemetry) = registry_at(&server.url());
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    server.ask("REPLICAOF 127.0.0.1 1");
    let error = registry.announce(&worker, true).await.expect_err("read-only");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    server.ask("REPLICAOF NO ONE");
    registry.announce(&worker, true).await.expect("a primary again");
    assert!(telemetry.render().contains("weir_registry_reconnects_total 1"));
}

#[tokio::test]
async fn a_dropped_call_loses_no_change() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    let mut cursor = registry.snapshot().await.expect("snapshot").cursor;
    for _ in 0..20 {
        let dropped = tokio::time::timeout(Duration::from_millis(20), registry.changes(&cursor)).await;
        assert!(dropped.is_err(), "nothing has happened");
    }
    registry.announce(&worker, true).await.expect("announced");
    assert_eq!(next_changes(&registry, &mut cursor, CHANGES_WAIT).await, [present(&worker)]);
}

#[tokio::test]
async fn a_follower_that_missed_too_much_is_told_so() {
    let server = RedisServer::start();
    let registry = registry(&server);
    let worker = presence("w1");
    registry.announce(&worker, true).await.expect("announced");
    let before = registry.snapshot().await.expect("snapshot").cursor;
    registry.announce(&worker, true).await.expect("announced");
    server.ask("XTRIM weir:{parallel}:changes MAXLEN 1");
    until_lagged(&registry, before).await;
}

#[tokio::test]
async fn a_large_pool_is_read_whole_and_an_odd_entry_is_skipped() {
    let server = RedisServer::start();
    let (registry, telemetry) = registry_at(&server.url());
    for number in 0..1_201 {
        registry.announce(&presence(&format!("w{number}")), true).await.expect("announced");
    }
    server.ask("SET weir:{parallel}:presence:w7 nonsense");
    assert_eq!(registry.snapshot().await.expect("snapshot").workers.len(), 1_200);
    assert!(telemetry.render().contains("weir_registry_unreadable_total 1"));
}

#[tokio::test]
async fn a_wrong_password_is_a_clear_error_that_does_not_show_it() {
    let server = RedisServer::start_with_password("right");
    let url = server.url().replace("redis://", "redis://:hunter2@");
    let error = registry_at(&url).0.snapshot().await.expect_err("wrong");
    assert!(matches!(error, RegistryError::Login { .. }), "{error:?}");
    assert!(error.to_string().contains("registry.url") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    let error = registry(&server).snapshot().await.expect_err("none");
    assert!(matches!(error, RegistryError::Login { .. }), "{error:?}");
    registry_at(&url.replace("hunter2", "right")).0.snapshot().await.expect("the right one");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_a_clear_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    let old = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut received = vec![0; 4096];
        loop {
            let bytes = stream.read(&mut received).await.expect("a request");
            for line in String::from_utf8_lossy(&received[..bytes]).lines() {
                let answer = match line {
                    "HELLO" => "%1\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n",
                    "CLIENT" => "+OK\r\n",
                    _ => continue,
                };
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        }
    };
    let (registry, _) = registry_at(&url);
    let error = tokio::select! {
        snapshot = registry.snapshot() => snapshot.expect_err("too old"),
        () = old => unreachable!("it serves for ever"),
    };
    assert!(error.to_string().contains("is version 6.2.14; Redis 7.0 or later is needed"), "{error}");
}
