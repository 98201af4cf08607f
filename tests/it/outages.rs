//! What weir stands on goes away: Redis is a hint, and the store never holds up a task.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::json;
use weir::client::{Client, SubmitError};
use weir::integration::{Context, Error, Integration, Integrations};
use weir::payload::Reason as Loss;
use weir::registry;
use weir::task::Json;
use weir::wire::Reason;

use crate::support::cable::Cable;
use crate::support::calls::http_get;
use crate::support::house::{House, LONG, Plan, eventually, pull, submission, submit_all, synthetic};
use crate::support::redis::{RedisServer, Watched};

/// Submits tasks and does something in the middle of it. No task may be lost or fail.
async fn under_load(house: &mut House, tasks: usize, disturb: impl AsyncFnOnce(&mut House, &AtomicUsize)) {
    let (client, done) = (house.client.clone(), AtomicUsize::new(0));
    let load = stream::iter(0..tasks)
        .map(|n| {
            let (client, done) = (&client, &done);
            async move {
                let sleeps = synthetic(&format!("t-{n}"), json!({"do": "sleep", "ms": 30}));
                let outcome = client.submit(&sleeps).await.unwrap_or_else(|error| panic!("t-{n} was lost: {error}"));
                outcome.result.unwrap_or_else(|failure| panic!("t-{n} failed: {failure}"));
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
        .buffer_unordered(12)
        .for_each(|()| async {});
    tokio::join!(load, disturb(house, &done));
    assert_eq!(done.load(Ordering::Relaxed), tasks);
}

async fn until_done(done: &AtomicUsize, tasks: usize) {
    eventually("the load goes on", || done.load(Ordering::Relaxed) >= tasks).await;
}

/// Waits until the router follows the registry again, and the workers are in it.
async fn until_healed(house: &House, workers: usize) {
    eventually("the view is fresh", || house.router_metric("weir_router_view_stale") == 0.0).await;
    house.until_known(workers).await;
    let members = format!(":{workers}\r\n");
    eventually("the workers are announced", || house.redis.ask("ZCARD weir:{default}:members") == members).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_and_serves_without_redis_and_the_router_heals_when_it_is_there() {
    let mut house = Plan { redis_at_start: false, ..Plan::default() }.start().await;
    assert_eq!(http_get(house.worker(0).admin_address(), "/ready").await.status, 200);
    let direct = Client::new(&house.worker_url(0)).expect("an address");
    let outcome = direct.submit(&pull("direct")).await.expect("an outcome");
    assert!(outcome.result.is_ok());

    let ready = http_get(house.router_admin(), "/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("registry"), "{}", ready.body);
    assert_eq!(http_get(house.router_admin(), "/live").await.status, 200);
    let mut hurried = pull("hurried");
    hurried.timeout = Duration::from_millis(300);
    match house.client.submit(&hurried).await {
        Err(SubmitError::NotStarted(error)) => assert_eq!(error.reason, Reason::NoWorkers, "{error}"),
        other => panic!("nobody can have run it: {other:?}"),
    }

    // A caller that waits is served as soon as the registry is there.
    let patient = house.submit(pull("patient"));
    house.redis.start_again();
    let outcome = crate::support::house::answer(patient).await.expect("an outcome");
    assert!(outcome.result.is_ok());
    until_healed(&house, 1).await;
    assert_eq!(http_get(house.router_admin(), "/ready").await.status, 200);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_redis_dies_under_load_and_comes_back_empty() {
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    under_load(&mut house, 1_500, async |house, done| {
        until_done(done, 100).await;
        house.redis.kill();
        eventually("the router notices", || house.router_metric("weir_router_view_stale") == 1.0).await;
        until_done(done, done.load(Ordering::Relaxed) + 300).await;
        assert_eq!(house.router_metric("weir_router_workers{state=\"known\"}"), 2.0);
        for address in [house.router_admin(), house.worker(0).admin_address()] {
            assert_eq!(http_get(address, "/ready").await.status, 200);
        }
        house.redis.start_again();
    })
    .await;
    until_healed(&house, 2).await;
    house.client.submit(&pull("after")).await.expect("an outcome");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_loses_its_weight_while_redis_is_away_has_its_workers_when_it_is_named_again() {
    let mut house = Plan::default().start().await;
    house.until_known(1).await;
    house.redis.kill();
    eventually("the router notices", || house.router_metric("weir_router_view_stale") == 1.0).await;
    house.set_router(&[("pools", json!({"other": 1}))]).await;
    let mut elsewhere = pull("elsewhere");
    elsewhere.timeout = Duration::from_millis(300);
    assert!(house.client.submit(&elsewhere).await.is_err(), "there is nobody");
    house.set_router(&[("pools", json!({"default": 1}))]).await;
    house.client.submit(&pull("back")).await.expect("an outcome");

    house.redis.start_again();
    // Of the other pool, too.
    until_healed(&house, 1).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_redis_is_emptied_under_load() {
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    under_load(&mut house, 600, async |house, done| {
        for round in 1..=3 {
            until_done(done, round * 100).await;
            house.redis.flush();
        }
    })
    .await;
    until_healed(&house, 2).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_redis_hangs_under_load() {
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    under_load(&mut house, 2_000, async |house, done| {
        until_done(done, 100).await;
        house.redis.pause();
        eventually("the router notices", || house.router_metric("weir_router_view_stale") == 1.0).await;
        until_done(done, done.load(Ordering::Relaxed) + 300).await;
        house.redis.resume();
    })
    .await;
    until_healed(&house, 2).await;
    house.close().await;
}

/// Runs `disturb` on the registry that `config` leads to, while tasks run at two workers.
pub async fn through_a_fault(config: registry::Config, disturb: impl AsyncFnOnce(&House)) {
    let peaks = Peaks::default();
    let own = peaks.clone();
    let own = Arc::new(move |index: usize| {
        Integrations::new().with("counted".parse().expect("a name"), Counted { peaks: own.clone(), worker: index })
    });
    let plan = Plan { workers: 2, max_parallelism: 8, registry: Some(config), own, ..Plan::default() };
    let house = plan.start().await;
    let (ended, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let submitted = AtomicUsize::new(0);
    let load = stream::iter(0..)
        .take_while(|_| std::future::ready(!is_over.load(Ordering::Relaxed)))
        .map(|n| {
            let (client, ended) = (&house.client, &ended);
            submitted.fetch_add(1, Ordering::Relaxed);
            async move {
                let task = submission(&format!("t-{n}"), "counted", json!(null));
                let outcome = client.submit(&task).await.unwrap_or_else(|error| panic!("t-{n} was lost: {error}"));
                outcome.result.unwrap_or_else(|failure| panic!("t-{n} failed: {failure}"));
                ended.fetch_add(1, Ordering::Relaxed);
            }
        })
        // More than there is room for: the workers are full all the time.
        .buffer_unordered(24)
        .for_each(|()| async {});
    let fault = async {
        until_done(&ended, 100).await;
        disturb(&house).await;
        eventually("the view is fresh", || house.router_metric("weir_router_view_stale") == 0.0).await;
        house.until_known(2).await;
        until_done(&ended, ended.load(Ordering::Relaxed) + 100).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, fault);
    assert_eq!(ended.load(Ordering::Relaxed), submitted.load(Ordering::Relaxed), "each task has one outcome");
    let peaks = *peaks.0.lock();
    assert!(peaks.iter().all(|&(now, most)| now == 0 && most <= 8), "over-admitted: {peaks:?}");
    house.close().await;
}

pub async fn until_stale(house: &House) {
    eventually("the router notices", || house.router_metric("weir_router_view_stale") == 1.0).await;
}

/// How many tasks each worker runs, and the most that it ever ran.
#[derive(Clone, Default)]
struct Peaks(Arc<Mutex<[(usize, usize); 2]>>);

/// Counts who is inside, whatever the gate believes.
struct Counted {
    peaks: Peaks,
    worker: usize,
}

#[async_trait]
impl Integration for Counted {
    async fn run(&self, _: &Context) -> Result<Json, Error> {
        {
            let (now, most) = &mut self.peaks.0.lock()[self.worker];
            *now += 1;
            *most = (*most).max(*now);
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.peaks.0.lock()[self.worker].0 -= 1;
        Ok(Json::of(&()).expect("JSON"))
    }
}

/// From the end of a failover to a registry that is whole again: a backoff and a heartbeat, five times over.
pub const HEALED_WITHIN: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_the_primary_is_killed_and_sentinel_makes_another_one() {
    let mut watched = Watched::start().await;
    through_a_fault(watched.config(), async |house| {
        watched.servers[0].kill();
        until_stale(house).await;
        watched.until_primary(1).await;
        let began = Instant::now();
        let members = || watched.servers[1].ask("ZCARD weir:{default}:members") == ":2\r\n";
        let fresh = || house.router_metric("weir_router_view_stale") == 0.0;
        eventually("both workers are at the new primary", || members() && fresh()).await;
        assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "over 10 s: a Sentinel tells the old primary only at its next round"]
async fn a_primary_that_is_demoted_under_load_is_left_for_the_new_one() {
    let watched = Watched::start().await;
    through_a_fault(watched.config(), async |house| {
        assert_eq!(watched.sentinel.ask("SENTINEL FAILOVER weir"), "+OK\r\n");
        watched.until_primary(1).await;
        let demoted = || watched.servers[0].try_ask("INFO replication").is_ok_and(|it| it.contains("role:slave"));
        eventually("the old primary is told", demoted).await;
        let began = Instant::now();
        // Only clients of the new primary count there: the old one stays reachable, as a replica.
        let ours = || watched.servers[1].ask("CLIENT LIST TYPE normal").matches("cmd=evalsha").count() >= 3;
        let fresh = || house.router_metric("weir_router_view_stale") == 0.0;
        eventually("router and workers are at the new primary", || ours() && fresh()).await;
        assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_the_network_swallows_what_is_sent_to_redis() {
    let redis = RedisServer::start();
    let mut cable = Cable::to(([127, 0, 0, 1], redis.port()).into()).await;
    let url = format!("redis://127.0.0.1:{}", cable.port());
    let config = registry::Config { url: Some(url.as_str().into()), ..registry::Config::default() };
    through_a_fault(config, async |house| {
        cable.swallow(true);
        until_stale(house).await;
        // Redis itself is well, and nobody reaches it for so long that all of the workers' time is over.
        until_all_have_expired(&redis).await;
        cable.swallow(false);
    })
    .await;
    cable.unplug().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_while_redis_is_out_of_memory() {
    let redis = RedisServer::start();
    let config = registry::Config { url: Some(redis.url().as_str().into()), ..registry::Config::default() };
    through_a_fault(config, async |house| {
        assert_eq!(redis.ask("CONFIG SET maxmemory 1"), "+OK\r\n");
        until_stale(house).await;
        until_all_have_expired(&redis).await;
        assert_eq!(house.router_metric("weir_router_view_empty"), 0.0, "they are known still");
        assert_eq!(redis.ask("CONFIG SET maxmemory 0"), "+OK\r\n");
    })
    .await;
}

/// Waits until each worker's announcement has lost its time.
async fn until_all_have_expired(redis: &RedisServer) {
    let expired = || redis.ask("KEYS weir:{default}:presence:*") == "*0\r\n";
    eventually("all of the workers' time is over", expired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_while_somebody_elses_script_keeps_redis_busy() {
    let redis = RedisServer::start_as(&["--busy-reply-threshold", "100"]);
    let config = registry::Config { url: Some(redis.url().as_str().into()), ..registry::Config::default() };
    through_a_fault(config, async |house| {
        let mut script = redis.send("EVAL \"while true do end\" 0");
        until_stale(house).await;
        let killed = redis.ask("SCRIPT KILL");
        assert_eq!(killed, "+OK\r\n");
        let mut answer = [0; 1];
        script.read_exact(&mut answer).expect("the script has ended");
        assert_eq!(&answer, b"-");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_while_redis_hangs_stops_all_the_same() {
    let mut house = Plan { workers: 2, ..Plan::default() }.start().await;
    house.redis.pause();
    let began = Instant::now();
    house.stop_worker(0).await;
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    house.redis.resume();
    let outcome = house.client.submit(&pull("after")).await.expect("an outcome");
    assert_eq!(&outcome.worker, house.worker(1).id());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_do_not_notice_that_the_store_is_away_and_each_loss_is_counted() {
    const TASKS: u64 = 40;
    let mut house = Plan { max_parallelism: 8, ..Plan::default() }.start().await;
    house.s3.stop().await;
    let began = Instant::now();
    let answers = submit_all(&house.client, (0..TASKS).map(|n| pull(&format!("t-{n}"))).collect()).await;
    assert!(answers.into_iter().all(|answer| answer.is_ok_and(|outcome| outcome.result.is_ok())));
    assert!(began.elapsed() < Duration::from_secs(10), "the tasks waited for the store: {:?}", began.elapsed());
    eventually("the store counts as away", || house.worker_metric(0, "weir_payload_store_away") == 1.0).await;
    assert_eq!(http_get(house.worker(0).admin_address(), "/ready").await.status, 200);
    let ledger = house.ledger(0);
    assert_eq!((ledger.pending, ledger.dropped_in_all()), (TASKS, 0), "there is room for them: {ledger}");
    let ledger = house.stop_worker(0).await;
    assert_eq!((ledger.stored, ledger.dropped(Loss::Store)), (0, TASKS), "{ledger}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_for_the_store_is_a_counted_loss() {
    let mut house = Plan { s3_secret: "not-the-secret", ..Plan::default() }.start().await;
    let answers = submit_all(&house.client, (0..5).map(|n| pull(&format!("t-{n}"))).collect()).await;
    assert!(answers.into_iter().all(|answer| answer.is_ok_and(|outcome| outcome.result.is_ok())));
    eventually("the store counts as away", || house.worker_metric(0, "weir_payload_store_away") == 1.0).await;
    assert_eq!(house.ledger(0).pending, 5, "they wait: the secret may be put right");
    assert!(house.stored_keys().is_empty());
    let ledger = house.stop_worker(0).await;
    assert_eq!((ledger.dropped(Loss::Store), ledger.pending), (5, 0));
    house.close().await;
}
