//! Ten times the load: what becomes of the people in front of their screens, and of the work that is done at all.
//!
//! ```text
//! cargo bench --bench overload
//! cargo bench --bench overload -- --seconds 5 --only overload
//! ```
//!
//! Real processes: redis-server, a router, two workers of N = 50, and the sandbox bank, which takes about 250 ms for each of
//! a task's two requests (p99 350 ms: after one that is exact, tasks that once ended together do so for good, and slots
//! become free in bursts). So 100 tasks run at once, for half a second each, and the capacity is about 200 tasks/s: slots,
//! not processors. The load is open-loop: tasks arrive at their times, whatever becomes of those before them, and latency
//! counts from the time at which a task should have arrived. Callers do not try again.
//!
//! Overload: a tenth of the tasks is interactive, and a twentieth at ten times the capacity. An interactive task has 2 s,
//! a batch task 5 s; an outcome within that time is goodput. In the end a load of half the capacity comes at once after
//! the heaviest: recovered is from when on no second of it was slower than twice the unloaded median, or lost a task.
//!
//! Greedy tenant: 20 tenants send half of their share of the capacity each, and then one of them 20 times its share. All
//! of it is batch work, and all of it has 10 s.
//!
//! Workers shed nothing for want of processors here: all processes and the callers are on one machine.

#[expect(dead_code, reason = "other benches ask for more")]
#[path = "support/cores.rs"]
mod cores;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/fleet.rs"]
mod fleet;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/redis.rs"]
mod redis;
#[expect(dead_code, reason = "the tests start it in their own way")]
#[path = "../tests/it/support/s3.rs"]
mod s3;
#[path = "support/spread.rs"]
mod spread;
#[path = "../tests/it/support/waiting.rs"]
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use cores::processor_time;
use fleet::{Fleet, Plan};
use parking_lot::Mutex;
use spread::Spread;
use tokio::time::{Instant, sleep, sleep_until};
use weir::client::{Client, Options, Submission};
use weir::lifecycle::Lifecycle;
use weir::task::{Json, Priority};

const WORKERS: usize = 2;
const SLOTS_PER_WORKER: u32 = 50;
const TASK_SECONDS: f64 = 0.5;

/// Tasks per second.
const CAPACITY: f64 = (WORKERS as u32 * SLOTS_PER_WORKER) as f64 / TASK_SECONDS;

/// Times the capacity, and the share of it that is interactive.
const LOADS: [(f64, f64); 5] = [(0.5, 0.1), (1.0, 0.1), (2.0, 0.1), (4.0, 0.1), (10.0, 0.05)];

const INTERACTIVE_WITHIN: Duration = Duration::from_secs(2);
const BATCH_WITHIN: Duration = Duration::from_secs(5);

/// Connections of the callers: one takes no more than some thousand calls at once.
const CONNECTIONS: usize = 8;

/// The first seconds of a load are not counted.
const WARM_UP: Duration = Duration::from_secs(2);

const TENANTS: usize = 20;
const TENANT_WITHIN: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(about = "What becomes of tasks under more load than there is room for")]
struct Arguments {
    /// How long each load is measured, after a warm-up.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only this one.
    #[arg(long)]
    only: Option<Only>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Overload,
    Greedy,
}

/// A task to arrive.
#[derive(Clone)]
struct Arrival {
    tenant: usize,
    priority: Priority,
    within: Duration,
}

/// What came of one.
struct Came {
    at: Instant,
    took: Duration,
    arrival: Arrival,
    end: String,
}

/// All that arrived, in the order of their ends.
type Ledger = Arc<Mutex<Vec<Came>>>;

/// What sends tasks to the router.
struct Callers {
    clients: Vec<Client>,
    lifecycle: Lifecycle,
    ledger: Ledger,
}

/// Of some of the tasks.
#[derive(Default)]
struct Seen {
    arrived: usize,
    good: usize,
    took: Spread,
    ends: BTreeMap<String, usize>,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let plan = || Plan {
        workers: WORKERS,
        max_parallelism: SLOTS_PER_WORKER,
        latency: "250ms",
        latency_p99: Some("350ms"),
        ..Plan::default()
    };
    if arguments.only != Some(Only::Greedy) {
        let fleet = plan().start();
        runtime.block_on(overload(&fleet, &arguments));
        fleet.stop();
    }
    if arguments.only != Some(Only::Overload) {
        let fleet = plan().start();
        runtime.block_on(greedy(&fleet, &arguments));
        fleet.stop();
    }
}

async fn overload(fleet: &Fleet, arguments: &Arguments) {
    println!(
        "{:>5}{:>10}{:>10}{:>9}  {:<34}{:<26}{:>9}{:>9}  others",
        "load",
        "arrived/s",
        "goodput/s",
        "of peak",
        "interactive: ok, p50, p99, × unld",
        "batch: ok, p50, p99",
        "workers",
        "router"
    );
    let callers = Callers::new(fleet);
    let (mut peak, mut unloaded, mut recovered) = (0.0_f64, None, String::new());
    for (load, interactive) in LOADS {
        let seconds = Duration::from_secs(arguments.seconds);
        let before = used(fleet);
        let from = Instant::now() + WARM_UP;
        callers.send(load * CAPACITY, WARM_UP + seconds, |number| mixed(number, interactive)).await;
        let after = used(fleet);
        if load == LOADS[LOADS.len() - 1].0 {
            recovered = recovery(&callers).await;
        }
        callers.settle().await;
        let within = |came: &Came| (from..from + seconds).contains(&came.at);
        let mut people = callers.seen(|came| within(came) && came.arrival.priority == Priority::Interactive);
        let mut batch = callers.seen(|came| within(came) && came.arrival.priority == Priority::Batch);
        let goodput = (people.good + batch.good) as f64 / seconds.as_secs_f64();
        peak = peak.max(goodput);
        let p99 = people.took.quantile(0.99).as_secs_f64();
        let unloaded_p99 = *unloaded.get_or_insert(p99);
        let share = |before: Duration, after: Duration| {
            format!("{:.2}", (after - before).as_secs_f64() / (WARM_UP + seconds).as_secs_f64())
        };
        println!(
            "{:>5}{:>10.0}{:>10.1}{:>8.1}%  {:<34}{:<26}{:>9}{:>9}  {}",
            format!("{load}×"),
            (people.arrived + batch.arrived) as f64 / seconds.as_secs_f64(),
            goodput,
            100.0 * goodput / peak,
            format!("{}, {:.2}×", people.summary(), p99 / unloaded_p99),
            batch.summary(),
            share(before.0, after.0),
            share(before.1, after.1),
            others(&[&people, &batch]),
        );
    }
    println!("recovered after {recovered}");
    println!(
        "(targets: goodput 90% of peak or more; interactive ok 99.9% or more, p99 1.5 × unloaded or less; recovered within 5 s)"
    );
    callers.settle().await;
}

/// Half the capacity comes, straight after the heaviest load.
async fn recovery(callers: &Callers) -> String {
    const SECONDS: u64 = 15;
    let from = Instant::now();
    callers.send(0.5 * CAPACITY, Duration::from_secs(SECONDS), |number| mixed(number, 0.1)).await;
    callers.settle().await;
    let mut recovered_at = None;
    for second in 0..SECONDS {
        let start = from + Duration::from_secs(second);
        let mut seen = callers.seen(|came| (start..start + Duration::from_secs(1)).contains(&came.at));
        let is_well = seen.good == seen.arrived && seen.took.quantile(0.5).as_secs_f64() <= 2.0 * TASK_SECONDS;
        recovered_at = if is_well { recovered_at.or(Some(second)) } else { None };
    }
    recovered_at.map_or("never".to_owned(), |second| format!("{second} s"))
}

async fn greedy(fleet: &Fleet, arguments: &Arguments) {
    let callers = Callers::new(fleet);
    let (seconds, share) = (Duration::from_secs(arguments.seconds), CAPACITY / TENANTS as f64);
    let task = |tenant| Arrival { tenant, priority: Priority::Batch, within: TENANT_WITHIN };
    let modest = |number: usize| task(1 + number % (TENANTS - 1));
    println!("\n{:<24}{:>10}  {:<30}{:<30}", "", "arrived/s", "the others: ok, p50, p99", "the greedy one");
    let mut p99 = Vec::new();
    for (name, greedy) in [("all send half a share", 0.5), ("one sends 20 shares", 20.0)] {
        let from = Instant::now() + WARM_UP;
        let others = callers.send(0.5 * share * (TENANTS - 1) as f64, WARM_UP + seconds, modest);
        tokio::join!(others, callers.send(greedy * share, WARM_UP + seconds, |_| task(0)));
        callers.settle().await;
        let within = |came: &Came| (from..from + seconds).contains(&came.at);
        let mut others = callers.seen(|came| within(came) && came.arrival.tenant != 0);
        let mut one = callers.seen(|came| within(came) && came.arrival.tenant == 0);
        let arrived = (others.arrived + one.arrived) as f64 / seconds.as_secs_f64();
        println!("{name:<24}{arrived:>10.0}  {:<30}{:<30}", others.summary(), one.summary());
        p99.push(others.took.quantile(0.99).as_secs_f64());
    }
    println!("p99 of the others: {:.2} × before (target: 1.5 or less)", p99[1] / p99[0]);
}

/// One in so many is interactive.
fn mixed(number: usize, interactive: f64) -> Arrival {
    let tenant = number % TENANTS;
    match number.is_multiple_of((1.0 / interactive).round() as usize) {
        true => Arrival { tenant, priority: Priority::Interactive, within: INTERACTIVE_WITHIN },
        false => Arrival { tenant, priority: Priority::Batch, within: BATCH_WITHIN },
    }
}

/// The processor time of the workers together, and of the router.
fn used(fleet: &Fleet) -> (Duration, Duration) {
    let workers = fleet.workers.iter().map(|worker| processor_time(worker.process.id())).sum();
    (workers, processor_time(fleet.router.process.id()))
}

fn others(all: &[&Seen]) -> String {
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for (end, count) in all.iter().flat_map(|seen| &seen.ends).filter(|(end, _)| *end != "ok") {
        *ends.entry(end).or_default() += count;
    }
    ends.iter().map(|(end, count)| format!("{end} {count}")).collect::<Vec<_>>().join(", ")
}

impl Callers {
    fn new(fleet: &Fleet) -> Self {
        let router = format!("http://{}", fleet.router.listen);
        let once = || Options { backoff: None, ..Options::default() };
        let client = || Client::with_options(&router, once()).expect("an address");
        let clients = (0..CONNECTIONS).map(|_| client()).collect();
        Callers { clients, lifecycle: Lifecycle::new(), ledger: Ledger::default() }
    }

    /// Tasks arrive at a rate, evenly, for a time.
    async fn send(&self, per_second: f64, time: Duration, arrival: impl Fn(usize) -> Arrival) {
        let start = Instant::now();
        for number in 0..(per_second * time.as_secs_f64()) as usize {
            let at = start + Duration::from_secs_f64(number as f64 / per_second);
            sleep_until(at).await;
            self.submit(number, at, arrival(number));
        }
    }

    fn submit(&self, number: usize, at: Instant, arrival: Arrival) {
        let (client, ledger) = (self.clients[number % CONNECTIONS].clone(), self.ledger.clone());
        let input = Json::of(&BTreeMap::from([("customer", format!("c{}", number % 1_000))])).expect("an object");
        let (id, integration) = (format!("t-{number}").parse().expect("an id"), "bank".parse().expect("a name"));
        let mut task = Submission::new(id, integration, input);
        task.tenant = format!("tenant-{}", arrival.tenant).parse().expect("a tenant");
        (task.priority, task.timeout) = (arrival.priority, arrival.within);
        self.lifecycle.spawn("caller", async move {
            let end = match client.submit(&task).await {
                Ok(outcome) => outcome.label().to_owned(),
                Err(error) => error.reason().to_owned(),
            };
            ledger.lock().push(Came { at, took: at.elapsed(), arrival, end });
        });
    }

    /// Waits until each task has its end, and a moment.
    async fn settle(&self) {
        self.lifecycle.wait(Duration::from_secs(60)).await.expect("each task ends within its time");
        sleep(Duration::from_secs(1)).await;
    }

    fn seen(&self, which: impl Fn(&Came) -> bool) -> Seen {
        let mut seen = Seen::default();
        for came in self.ledger.lock().iter().filter(|came| which(came)) {
            seen.arrived += 1;
            *seen.ends.entry(came.end.clone()).or_default() += 1;
            if came.end == "ok" && came.took <= came.arrival.within {
                seen.good += 1;
                seen.took.add(came.took);
            }
        }
        seen
    }
}

impl Seen {
    fn summary(&mut self) -> String {
        let ok = 100.0 * self.good as f64 / self.arrived.max(1) as f64;
        let [p50, p99] = [0.5, 0.99].map(|share| self.took.quantile(share).as_secs_f64());
        format!("{ok:.2}%, {p50:.3} s, {p99:.3} s")
    }
}
