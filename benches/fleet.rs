//! A large fleet, as Redis and the routers see it: many workers announce themselves, several routers follow them.
//!
//! ```text
//! cargo bench --bench fleet
//! cargo bench --bench fleet -- --workers 1000,4000 --routers 4 --seconds 10
//! cargo bench --bench fleet -- --pick-only
//! ```
//!
//! redis-server and the routers are real processes; the workers are simulated in this one, but what they write is what
//! workers write, by the same code: a heartbeat every 1.5 s ± 20%, and of one worker in ten two changes a second between
//! full and open. `heard` is how long after its writing began a change was read by a follower in this process, which reads
//! as routers do; a worker may first hold it back for up to 50 ms. Processor times are shares of one core.
//!
//! Before that, on one thread of this process: how long a router takes to find a worker for a task, and to take note of the
//! end of the call, each with the lock, the queue and all; with room at all workers, at one in ten, in a hundred, in a
//! thousand, and nowhere. Then nothing is found, and the task goes to the queue and leaves it again.

#[expect(dead_code, reason = "other benches ask for more")]
#[path = "support/cores.rs"]
mod cores;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/redis.rs"]
mod redis;
#[path = "support/spread.rs"]
mod spread;
#[path = "../tests/it/support/waiting.rs"]
mod waiting;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use cores::{processor_time, resident_bytes};
use parking_lot::Mutex;
use processes::{LONG, Process, get, metric, wait_for, weir};
use rand::RngExt;
use redis::RedisServer;
use spread::Spread;
use tokio::time::{Instant, sleep, sleep_until};
use weir::lifecycle::Lifecycle;
use weir::registry::{self, Change, HEARTBEAT, HEARTBEAT_JITTER, Incarnation, Presence, Registry, State};
use weir::router::measured::Dispatch;
use weir::task::{Json, PoolName, Priority, Task, WorkerId};
use weir::telemetry::Telemetry;

const SLOTS: u32 = 30;

const INTEGRATIONS: usize = 10;

/// How often a worker is looked for.
const PICKS: usize = 200_000;

/// Of the workers that change: how often.
const CHANGE: Duration = Duration::from_millis(500);

/// One in so many changes.
const CHANGING: usize = 10;

/// As many connections write for the workers; a real fleet has one for each.
const WRITERS: usize = 64;

#[derive(Parser)]
#[command(about = "What a large fleet costs Redis and the routers")]
struct Arguments {
    /// How many workers, one measurement each.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 4_000])]
    workers: Vec<usize>,
    #[arg(long, default_value_t = 4)]
    routers: usize,
    /// How long each is measured, after all are known to all.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Measures nothing but how long it takes to find a worker.
    #[arg(long)]
    pick_only: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A router's process.
struct Router {
    process: Process,
    admin: SocketAddr,
}

/// What the simulated workers and the follower share.
#[derive(Default)]
struct Board {
    /// When the change of a worker that is on its way was begun.
    begun: Mutex<HashMap<WorkerId, Instant>>,
    heard: Mutex<Spread>,
    writes: AtomicU64,
    failed: AtomicU64,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // Who finds nothing waits by the runtime's clock.
    let in_runtime = runtime.enter();
    println!("{:>8}{:>14}{:>22}{:>22}", "workers", "with room", "found p50, p99", "ended p50, p99");
    for workers in &arguments.workers {
        [1, 10, 100, 1_000, usize::MAX].into_iter().for_each(|one_in| pick(*workers, one_in));
    }
    println!("(target at 4,000 workers: found within 5 µs)\n");
    if arguments.pick_only {
        return;
    }
    drop(in_runtime);
    println!(
        "{:>8}{:>9}{:>10}{:>9}{:>10}{:>13}{:>12}{:>14}{:>13}{:>13}{:>8}",
        "workers",
        "routers",
        "writes/s",
        "Redis",
        "its RSS",
        "each router",
        "its RSS",
        "view age, s",
        "heard p50",
        "heard p99",
        "failed"
    );
    for workers in &arguments.workers {
        let directory = tempfile::tempdir().expect("a directory");
        let redis = RedisServer::start();
        let routers: Vec<_> = (0..arguments.routers).map(|number| router(number, directory.path(), &redis)).collect();
        runtime.block_on(measure(&redis, &routers, *workers, &arguments));
        routers.into_iter().for_each(|mut router| router.process.stop());
    }
    println!(
        "(targets at 4,000 workers and 4 routers: Redis 0.20 cores or less; heard, with the 50 ms, within 100 ms)"
    );
}

/// How long it takes to find a worker, where one in so many has room.
fn pick(workers: usize, one_in: usize) {
    let has_room = |number: usize| number.is_multiple_of(one_in) && one_in < usize::MAX;
    let of = |number: usize| match has_room(number) {
        true => presence(number, PoolName::default()),
        false => Presence { state: State::Full, in_flight: SLOTS, ..presence(number, PoolName::default()) },
    };
    let dispatch = Dispatch::new((0..workers).map(of).collect());
    let is_found = (0..workers).any(has_room);
    let (mut found, mut ended) = (Spread::default(), Spread::default());
    for number in 0..PICKS {
        let task = Task {
            id: format!("task-{number}").parse().expect("an id"),
            integration: format!("bank-{}", number % INTEGRATIONS).parse().expect("a name"),
            tenant: format!("tenant-{}", number % 100).parse().expect("a name"),
            priority: Priority::ALL[number % 2],
            input: Json::null(),
            deadline: Instant::now() + Duration::from_secs(60),
        };
        let began = std::time::Instant::now();
        let call = dispatch.find(&task);
        found.add(began.elapsed());
        assert_eq!(call.is_some(), is_found);
        let began = std::time::Instant::now();
        drop(call);
        ended.add(began.elapsed());
    }
    let with_room = (0..workers).filter(|number| has_room(*number)).count();
    let times = |mut spread: Spread| [0.5, 0.99].map(|share| spread.quantile(share).as_secs_f64() * 1e6);
    let ([found, found_p99], [ended, ended_p99]) = (times(found), times(ended));
    println!("{workers:>8}{with_room:>14}{found:>10.2} {found_p99:>8.2} µs{ended:>10.2} {ended_p99:>8.2} µs");
}

fn router(number: usize, directory: &Path, redis: &RedisServer) -> Router {
    let flags = ["router", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let variables = [("WEIR_REGISTRY__URL", redis.url()), ("WEIR_LOG__FORMAT", "json".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut process = Process::start(&format!("router-{number}"), directory, &weir(), &flags, &variables);
    let line = process.wait_for_log("the router serves");
    let admin = line["admin"].as_str().and_then(|address| address.parse().ok()).expect("an address");
    Router { process, admin }
}

async fn measure(redis: &RedisServer, routers: &[Router], workers: usize, arguments: &Arguments) {
    let (lifecycle, board) = (Lifecycle::new(), Arc::new(Board::default()));
    let config = serde_json::from_value(serde_json::json!({ "url": redis.url() })).expect("a configuration");
    let (pool, telemetry) = (PoolName::default(), Telemetry::new().expect("metrics"));
    let open = || registry::open(&config, &pool, &telemetry).expect("a registry");
    let writers: Vec<_> = (0..WRITERS).map(|_| open()).collect();
    let until = lifecycle.token();
    lifecycle.spawn("follower", until.clone().run_until_cancelled_owned(follow(open(), board.clone())));
    for number in 0..workers {
        let writer = writers[number % WRITERS].clone();
        let worker = simulate(number, pool.clone(), writer, board.clone());
        lifecycle.spawn("worker", until.clone().run_until_cancelled_owned(worker));
    }
    tokio::task::block_in_place(|| {
        wait_for("each router knows each worker", LONG, || {
            routers.iter().all(|it| it.known() == workers).then_some(())
        });
    });
    sleep(HEARTBEAT * 2).await;

    *board.heard.lock() = Spread::default();
    let (writes, began) = (board.writes.load(Ordering::Relaxed), Instant::now());
    let count = || {
        let used: Vec<_> = routers.iter().map(|router| processor_time(router.process.id())).collect();
        (processor_time(redis.id()), used)
    };
    let (redis_before, routers_before) = count();
    sleep(Duration::from_secs(arguments.seconds)).await;
    let (redis_after, routers_after) = count();
    let seconds = began.elapsed().as_secs_f64();

    let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / seconds;
    let of_routers = routers_before.iter().zip(&routers_after).map(|(before, after)| share(*before, *after));
    let mib = |process| resident_bytes(process) as f64 / f64::from(1 << 20);
    let age = tokio::task::block_in_place(|| routers.iter().map(Router::view_age).fold(0.0, f64::max));
    let mut heard = std::mem::take(&mut *board.heard.lock());
    let [p50, p99] = [0.5, 0.99].map(|share| heard.quantile(share).as_secs_f64() * 1e3);
    println!(
        "{workers:>8}{:>9}{:>10.0}{:>9.3}{:>6.0} MiB{:>13.3}{:>8.0} MiB{age:>14.2}{p50:>10.1} ms{p99:>10.1} ms{:>8}",
        routers.len(),
        (board.writes.load(Ordering::Relaxed) - writes) as f64 / seconds,
        share(redis_before, redis_after),
        mib(redis.id()),
        of_routers.sum::<f64>() / routers.len() as f64,
        mib(routers[0].process.id()),
        board.failed.load(Ordering::Relaxed),
    );
    lifecycle.stop(Duration::from_secs(5)).await.expect("all end at the token");
}

/// One worker: its heartbeats, and its changes if it is one of those that change.
async fn simulate(number: usize, pool: PoolName, registry: Arc<dyn Registry>, board: Arc<Board>) {
    let changing = number.is_multiple_of(CHANGING);
    let mut presence = presence(number, pool);
    // Not all in the same moment.
    let first = HEARTBEAT.mul_f64(rand::rng().random());
    sleep(first).await;
    let mut changed = true;
    loop {
        if changed {
            board.begun.lock().insert(presence.worker.clone(), Instant::now());
        }
        let next = if changing { CHANGE } else { HEARTBEAT };
        let next =
            Instant::now() + next.mul_f64(rand::rng().random_range(1.0 - HEARTBEAT_JITTER..1.0 + HEARTBEAT_JITTER));
        match registry.announce(&presence, changed).await {
            Ok(()) => board.writes.fetch_add(1, Ordering::Relaxed),
            Err(_) => board.failed.fetch_add(1, Ordering::Relaxed),
        };
        sleep_until(next).await;
        changed = changing;
        if changing {
            let (state, in_flight) =
                if presence.state == State::Open { (State::Full, SLOTS) } else { (State::Open, SLOTS - 1) };
            (presence.state, presence.in_flight) = (state, in_flight);
        }
    }
}

/// A worker with half of its slots held.
fn presence(number: usize, pool: PoolName) -> Presence {
    Presence {
        worker: format!("worker-{number}").parse().expect("an id"),
        address: format!("http://10.{}.{}.1:7500", number / 250, number % 250),
        incarnation: Incarnation::mint(),
        pool,
        target: SLOTS,
        in_flight: SLOTS / 2,
        reserved: 0,
        state: State::Open,
        integrations: (0..INTEGRATIONS).map(|n| format!("bank-{n}").parse().expect("a name")).collect(),
        full: Vec::new(),
        broken: Vec::new(),
        half_open: Vec::new(),
        settings_version: "1".to_owned(),
        settings_rejected: None,
        jump_limit: None,
    }
}

/// Reads as routers do, and notes when it heard of each change.
async fn follow(registry: Arc<dyn Registry>, board: Arc<Board>) {
    let mut cursor = None;
    loop {
        let Some(after) = &cursor else {
            cursor = registry.snapshot().await.ok().map(|snapshot| snapshot.cursor);
            continue;
        };
        match registry.changes(after).await {
            Ok(read) => {
                for change in read.changes {
                    let Change::Present(presence) = change else { continue };
                    if let Some(begun) = board.begun.lock().remove(&presence.worker) {
                        board.heard.lock().add(begun.elapsed());
                    }
                }
                cursor = Some(read.cursor);
            }
            Err(_) => cursor = None,
        }
    }
}

impl Router {
    fn known(&self) -> usize {
        metric(&get(self.admin, "/metrics"), "weir_router_workers", r#"state="known""#) as usize
    }

    fn view_age(&self) -> f64 {
        metric(&get(self.admin, "/metrics"), "weir_router_view_age_seconds", "")
    }
}
