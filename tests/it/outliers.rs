//! Workers that cannot be reached, or that take tasks and fail them at once: both always seem to have room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weir::integration::{Context, Error, Integration, Integrations};
use weir::registry::{self, Incarnation, Presence, Registry, State};
use weir::router::outlier;
use weir::task::{Json, PoolName, WorkerId};
use weir::telemetry::Telemetry;

use crate::cli::{run, stdout, weir};
use crate::support::house::{House, Plan, submission, submit_all, synthetic};

/// Works for a moment, or for ten times that, or fails at once.
#[derive(Clone, Default)]
struct Moody {
    is_broken: Arc<AtomicBool>,
    is_slow: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
}

#[async_trait]
impl Integration for Moody {
    async fn run(&self, _: &Context) -> Result<Json, Error> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(Error::permanent("a certificate is missing on this machine"));
        }
        let is_slow = self.is_slow.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(if is_slow { 200 } else { 20 })).await;
        Ok(Json::null())
    }
}

/// Submits so many, eight at a time; returns how many went well, and how many the worker of that id took.
async fn submit(house: &House, prefix: &str, tasks: usize, worker: &WorkerId) -> (usize, usize) {
    let submit = |n: usize| async move {
        let task = submission(&format!("{prefix}-{n}"), "moody", json!(null));
        house.client.submit(&task).await.unwrap_or_else(|error| panic!("{prefix}-{n} was lost: {error}"))
    };
    let outcomes: Vec<_> = stream::iter(0..tasks).map(submit).buffer_unordered(8).collect().await;
    let well = outcomes.iter().filter(|outcome| outcome.result.is_ok()).count();
    (well, outcomes.iter().filter(|outcome| outcome.worker == *worker).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_at_once_is_ejected_and_comes_back_when_it_is_mended() {
    let moods = [Moody::default(), Moody::default()];
    moods[0].is_broken.store(true, Ordering::Relaxed);
    // So that failing is much quicker on a busy machine, too.
    moods[1].is_slow.store(true, Ordering::Relaxed);
    let own = moods.clone();
    let own =
        Arc::new(move |index: usize| Integrations::new().with("moody".parse().expect("a name"), own[index].clone()));
    let (base_time, max_time) = (Duration::from_secs(2), Duration::from_secs(4));
    let outlier = outlier::Config { base_time, max_time, ..outlier::Config::default() };
    let house = Plan { workers: 2, own, outlier, ..Plan::default() }.start().await;
    let broken = house.worker(0).id().clone();
    let ejections = || house.router_metric("weir_router_ejections_total{reason=\"failing\"}");
    let is_out = || house.router_metric("weir_router_workers{state=\"ejected\"}") == 1.0;

    let (mut submitted, mut well, mut before) = (0, 0, 1.0);
    loop {
        well += submit(&house, &format!("before-{submitted}"), 20, &broken).await.0;
        submitted += 20;
        // What was submitted with the last ones may have come after it.
        if ejections() > 0.0 {
            break;
        }
        before = well as f64 / submitted as f64;
    }
    assert!(before < 0.5, "it draws most to itself: {before}");
    moods[1].is_slow.store(false, Ordering::Relaxed);

    // It comes back for a try again and again; between those all goes well.
    let at = house.router_address().to_string();
    let (after, seen) = loop {
        assert!(submitted < 100_000, "it is never out for as long as forty tasks take");
        let (times, was_out) = (ejections(), is_out());
        let (well, taken) = submit(&house, &format!("out-{submitted}"), 40, &broken).await;
        submitted += 40;
        let seen = stdout(&run(weir().args(["describe", &at]), "").await);
        if was_out && is_out() && ejections() == times {
            assert_eq!(taken, 0, "it is left alone");
            break (well as f64 / 40.0, seen);
        }
    };
    println!("of its tasks the pool did {before:.3} before, {after:.3} after; {submitted} submitted");
    assert_eq!(after, 1.0);
    assert!(seen.contains(", 1 ejected; ") && seen.contains("of its last tasks failed, and 0%"), "{seen}");

    moods[0].is_broken.store(false, Ordering::Relaxed);
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "it never comes back");
        let (well, taken) = submit(&house, &format!("mended-{submitted}"), 40, &broken).await;
        submitted += 40;
        if taken >= 10 {
            assert_eq!(well, 40);
            break;
        }
    }
    assert_eq!(house.router_metric("weir_router_workers{state=\"ejected\"}"), 0.0);
    let runs: usize = moods.iter().map(|mood| mood.runs.load(Ordering::Relaxed)).sum();
    assert_eq!(runs, submitted, "each task ran once");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_is_down_ejects_nobody() {
    let moods = [Moody::default(), Moody::default()];
    moods.iter().for_each(|mood| mood.is_broken.store(true, Ordering::Relaxed));
    let own =
        Arc::new(move |index: usize| Integrations::new().with("moody".parse().expect("a name"), moods[index].clone()));
    let house = Plan { workers: 2, own, ..Plan::default() }.start().await;
    let began = Instant::now();
    let mut number = 0;
    // The pool is looked at every second.
    while began.elapsed() < Duration::from_millis(2_500) {
        let (well, _) = submit(&house, &format!("t-{number}"), 100, house.worker(0).id()).await;
        assert_eq!(well, 0);
        number += 1;
    }
    for reason in ["failing", "success_rate", "consecutive_errors"] {
        let series = format!("weir_router_ejections_total{{reason=\"{reason}\"}}");
        assert_eq!(house.router_metric(&series), 0.0, "{reason}");
    }
    house.close().await;
}

/// Announces a worker that nobody can connect to.
async fn announce(house: &House, port: u16) {
    let config = registry::Config { url: Some(house.redis.url().as_str().into()), ..registry::Config::default() };
    let (pool, telemetry) = (PoolName::default(), Telemetry::new().expect("metrics"));
    let registry: Arc<dyn Registry> = registry::open(&config, &pool, &telemetry).expect("a registry");
    let presence = Presence {
        worker: "unreachable".parse().expect("an id"),
        address: format!("http://127.0.0.1:{port}"),
        incarnation: Incarnation::mint(),
        pool,
        target: 1_000,
        in_flight: 0,
        reserved: 0,
        state: State::Open,
        integrations: vec!["synthetic".parse().expect("a name")],
        full: vec![],
        broken: vec![],
        half_open: vec![],
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    };
    registry.announce(&presence, true).await.expect("Redis is there");
    house.until_known(2).await;
}

/// A port that refuses connections, or one that swallows what is sent to it: its queue of connections is full.
async fn closed_door(swallows: bool) -> (u16, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    let connect = || tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address));
    while swallows && let Ok(connected) = connect().await {
        waiting.push(connected.expect("it is taken"));
    }
    (address.port(), listener, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connect_suspects_a_worker_at_once_and_its_tasks_go_elsewhere() {
    for swallows in [false, true] {
        let house = Plan { max_parallelism: 100, ..Plan::default() }.start().await;
        let (port, listener, waiting) = closed_door(swallows).await;
        let listener = Some(listener).filter(|_| swallows);
        announce(&house, port).await;

        let (began, mut submitted) = (Instant::now(), 50);
        let noop = |n: usize| synthetic(&format!("t-{n}"), json!({"do": "noop"}));
        let failures = || house.router_metric("weir_router_connect_failures_total");
        if swallows {
            let answers = submit_all(&house.client, (0..50).map(noop).collect()).await;
            for answer in answers {
                assert_eq!(&answer.expect("an outcome").worker, house.worker(0).id());
            }
            assert!((1.0..=2.0).contains(&failures()), "those that waited shared one attempt: {}", failures());
            assert!(began.elapsed() < Duration::from_secs(10), "nobody waited for more: {:?}", began.elapsed());
        } else {
            while failures() == 0.0 {
                house.client.submit(&noop(submitted)).await.expect("an outcome");
                submitted += 1;
            }
        }

        // It is tried again now and then, by one task at a time.
        for answer in join_all((0..200).map(|n| house.submit(noop(submitted + n)))).await {
            answer.expect("no panic").expect("not aborted").expect("an outcome");
        }
        let tries = began.elapsed().as_secs_f64() / 0.1 + 2.0;
        assert!(failures() <= tries, "{} in {:?}", failures(), began.elapsed());
        let unsent = house.router_metric("weir_router_attempts_total{result=\"unsent\"}");
        println!("{unsent} tasks were sent to the closed door first, in {:?}", began.elapsed());
        assert!(unsent < 50.0 + tries, "{unsent}");
        drop((listener, waiting));
        house.close().await;
    }
}
