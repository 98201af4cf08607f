//! Separate processes under random faults: workers and the router die, Redis restarts or swallows every byte, a worker
//! stands still, callers go away. What must hold, holds for each task:
//!
//! - it ends in one outcome or one typed error, in its time;
//! - it is run at most once: the bank counts the requests of each, and a run makes one;
//! - an ok outcome was run, and what is said not to have started was not;
//! - no worker runs more than N: for a moment the bank may not yet know of a caller that has gone, and so sees one more.
//!
//! `WEIR_SOAK_SECONDS` makes it longer.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpListener;
use weir::client::{Client, SubmitError};
use weir::lifecycle::Lifecycle;
use weir::task::Priority;
use weir::wire::Started;

use crate::support::fleet::{Fleet, Plan};
use crate::support::house::submission;
use crate::support::processes::{LONG, wait_for};

const WORKERS: usize = 3;
const PARALLELISM: u32 = 8;

/// More than all workers take, so that the router's queue works.
const CALLERS: usize = 40;

/// A task's time, and how much later a busy machine may bring its answer.
const TIMEOUT: Duration = Duration::from_secs(4);
const MARGIN: Duration = Duration::from_secs(10);

/// How long a worker may seem to run more than N: until the bank hears that a caller has gone. What really ran over N would
/// stay there, for there is always more to do.
const HEARS_WITHIN: Duration = Duration::from_secs(2);

/// The longest that the bank takes.
const BANK_MS: u64 = 300;

const CONFIGURATION: &str = r#"
[integrations.counted]
kind = "http"
base_url = "http://$counting"
token = { env = "BANK_TOKEN" }
max_connections_per_host = 256
retries.attempts = 1
steps = [{ name = "run", path = "/{{ input }}" }]
"#;

/// A bank that knows how often each task asked it, and how many of a worker do at once.
#[derive(Default)]
struct Bank {
    asked: Mutex<HashMap<String, u32>>,
    /// By worker.
    now: Mutex<HashMap<String, AtOnce>>,
    answered: AtomicU64,
}

/// What one worker asks for at once.
#[derive(Default)]
struct AtOnce {
    running: u32,
    most: u32,
    over_since: Option<Instant>,
    longest_over: Duration,
}

/// A request that is being answered. Dropped also when its caller has gone.
struct Asking {
    bank: Arc<Bank>,
    worker: String,
}

/// What a caller was told.
#[derive(Debug)]
enum Told {
    /// An outcome: `ok`, or the failure's code.
    Outcome(&'static str),
    Error(SubmitError),
    /// The caller went away.
    Nothing,
}

#[derive(Default)]
struct Tally {
    told: HashMap<String, Told>,
    late: Vec<String>,
}

/// The callers' side.
struct Soak {
    client: Client,
    tally: Mutex<Tally>,
    is_over: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a minute, or WEIR_SOAK_SECONDS: the full lane, tests/run --full"]
async fn no_task_is_lost_or_doubled_while_processes_die() {
    let seconds =
        std::env::var("WEIR_SOAK_SECONDS").map_or(60, |text| text.parse().expect("WEIR_SOAK_SECONDS is a number"));
    let (servers, bank) = (Lifecycle::new(), Arc::new(Bank::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let configuration = CONFIGURATION.replace("$counting", &listener.local_addr().expect("bound").to_string());
    let token = servers.token();
    servers.spawn("bank", token.run_until_cancelled_owned(serve(listener, bank.clone(), servers.clone())));
    let plan = Plan { workers: WORKERS, max_parallelism: PARALLELISM, configuration, ..Plan::default() };
    let mut fleet = tokio::task::block_in_place(|| plan.start());

    let client = Client::new(&format!("http://{}", fleet.router.listen)).expect("an address");
    let soak = Arc::new(Soak { client, tally: Mutex::default(), is_over: AtomicBool::new(false) });
    let callers = Lifecycle::new();
    for caller in 0..CALLERS {
        callers.spawn("caller", soak.clone().call(caller));
    }
    let faults = tokio::task::block_in_place(|| torment(&mut fleet, Duration::from_secs(seconds)));
    soak.is_over.store(true, Ordering::Relaxed);
    callers.wait(LONG).await.expect("each caller has its answer");

    // What ran on for nobody ends, and then all is as it was.
    tokio::task::block_in_place(|| {
        let in_flight = || bank.now.lock().values().map(|it| it.running).sum::<u32>();
        wait_for("the bank has answered all", LONG, || (in_flight() == 0).then_some(()));
        wait_for("the router knows all workers", LONG, || (fleet.known_workers() == WORKERS).then_some(()));
    });
    soak.one("last".to_owned(), Priority::Batch, None).await;
    let tally = std::mem::take(&mut *soak.tally.lock());
    let wrong = bank.judge(&tally);
    println!(
        "{} tasks in {seconds} s, {} runs at the bank; faults {faults:?}; lost or doubled {}, late {}",
        tally.told.len(),
        bank.answered.load(Ordering::Relaxed),
        wrong.len(),
        tally.late.len(),
    );
    println!("  {:?}", tally.count());
    let at_once = std::mem::take(&mut *bank.now.lock());
    let most = at_once.values().map(|it| it.most).max().unwrap_or_default();
    let over = at_once.values().map(|it| it.longest_over).max().unwrap_or_default();
    println!("  most at once by one worker {most} (N is {PARALLELISM}); over N for {over:?} at most");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tally.late.is_empty(), "{:#?}", tally.late);
    assert!(over < HEARS_WITHIN, "a worker ran {most} at once, and more than N for {over:?}");
    assert!(matches!(tally.told["last"], Told::Outcome("ok")), "{:?}", tally.told["last"]);

    tokio::task::block_in_place(|| fleet.stop());
    servers.stop(LONG).await.expect("the bank ends");
}

/// One fault after the other, with time to heal between some and not between others.
fn torment(fleet: &mut Fleet, time: Duration) -> BTreeMap<&'static str, usize> {
    let (until, mut random) = (Instant::now() + time, SmallRng::seed_from_u64(6));
    let mut faults = BTreeMap::new();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(100..2_500)));
        let worker = random.random_range(0..WORKERS);
        let while_ = Duration::from_millis(random.random_range(200..6_000));
        let fault = match random.random_range(0..6) {
            0 | 1 => {
                fleet.replace_worker(worker);
                "worker killed"
            }
            2 => {
                fleet.replace_router();
                "router killed"
            }
            3 => {
                fleet.redis.kill();
                std::thread::sleep(while_);
                fleet.redis.start_again();
                "redis restarted"
            }
            4 => {
                fleet.redis.pause();
                std::thread::sleep(while_);
                fleet.redis.resume();
                "redis silent"
            }
            _ => {
                fleet.workers[worker].process.signal(Signal::STOP);
                std::thread::sleep(while_);
                fleet.workers[worker].process.signal(Signal::CONT);
                "worker stood still"
            }
        };
        *faults.entry(fault).or_default() += 1;
    }
    faults
}

impl Soak {
    async fn call(self: Arc<Self>, caller: usize) {
        let mut random = SmallRng::seed_from_u64(caller as u64);
        let mut round = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            round += 1;
            let priority = if random.random_bool(0.2) { Priority::Interactive } else { Priority::Batch };
            let leaves_after = random.random_bool(0.1).then(|| Duration::from_millis(random.random_range(0..500)));
            self.one(format!("t-{caller}-{round}"), priority, leaves_after).await;
        }
    }

    async fn one(&self, id: String, priority: Priority, leaves_after: Option<Duration>) {
        let mut task = submission(&id, "counted", json!(id));
        (task.priority, task.timeout) = (priority, TIMEOUT);
        let began = Instant::now();
        let submitted = self.client.submit(&task);
        let answer = match leaves_after {
            Some(after) => tokio::time::timeout(after, submitted).await.ok(),
            None => Some(submitted.await),
        };
        let told = match answer {
            Some(Ok(outcome)) => Told::Outcome(outcome.label()),
            Some(Err(error)) => Told::Error(error),
            None => Told::Nothing,
        };
        let mut tally = self.tally.lock();
        if began.elapsed() > TIMEOUT + MARGIN {
            tally.late.push(format!("{id} after {:?}: {told:?}", began.elapsed()));
        }
        tally.told.insert(id, told);
    }
}

impl Tally {
    fn count(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for told in self.told.values() {
            let what = match told {
                Told::Outcome(label) => (*label).to_owned(),
                Told::Error(error) => error.reason().to_owned(),
                Told::Nothing => "the caller left".to_owned(),
            };
            *count.entry(what).or_default() += 1;
        }
        count
    }
}

impl Bank {
    /// What must not be: a run more than there may be, or one fewer.
    fn judge(&self, tally: &Tally) -> Vec<String> {
        let asked = self.asked.lock();
        let may_run = |told: &Told| match told {
            Told::Outcome("ok") => 1..=1,
            Told::Error(error) if error.started() == Started::No => 0..=0,
            Told::Outcome(_) | Told::Error(_) | Told::Nothing => 0..=1,
        };
        let judge = |(id, told): (&String, &Told)| {
            let runs = asked.get(id).copied().unwrap_or_default();
            (!may_run(told).contains(&runs)).then(|| format!("{id} ran {runs} times: {told:?}"))
        };
        let unasked =
            asked.keys().filter(|id| !tally.told.contains_key(*id)).map(|id| format!("{id} was never asked for"));
        tally.told.iter().filter_map(judge).chain(unasked).collect()
    }

    fn ask(self: &Arc<Self>, worker: String, task: String) -> Asking {
        *self.asked.lock().entry(task).or_default() += 1;
        self.now.lock().entry(worker.clone()).or_default().begin();
        Asking { bank: self.clone(), worker }
    }
}

impl AtOnce {
    fn begin(&mut self) {
        self.running += 1;
        self.most = self.most.max(self.running);
        if self.running > PARALLELISM {
            self.over_since.get_or_insert_with(Instant::now);
        }
    }

    fn end(&mut self) {
        self.running -= 1;
        if self.running <= PARALLELISM
            && let Some(since) = self.over_since.take()
        {
            self.longest_over = self.longest_over.max(since.elapsed());
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(at_once) = self.bank.now.lock().get_mut(&self.worker) {
            at_once.end();
        }
    }
}

async fn serve(listener: TcpListener, bank: Arc<Bank>, lifecycle: Lifecycle) {
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await.expect("a connection");
        let bank = bank.clone();
        let service = service_fn(move |request| answer(bank.clone(), request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // Its end is a caller's, in whatever way.
        lifecycle.spawn("connection", lifecycle.token().run_until_cancelled_owned(async { drop(connection.await) }));
    }
}

async fn answer(
    bank: Arc<Bank>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let worker = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asking = bank.ask(worker.to_owned(), request.uri().path().trim_start_matches('/').to_owned());
    let pause = rand::rng().random_range(10..BANK_MS);
    tokio::time::sleep(Duration::from_millis(pause)).await;
    drop(asking);
    bank.answered.fetch_add(1, Ordering::Relaxed);
    Ok(Response::new(Full::new(Bytes::from_static(b"{}"))))
}
