//! What a worker adds to its tasks, with payloads and without: a task's duration − the time that its bank was told to take.
//!
//! ```text
//! cargo bench --bench overhead
//! cargo bench --bench overhead -- --rounds 3 --only 400
//! WEIR_PAYLOADS__LEVEL=1 cargo bench --bench overhead -- --only 400      # any key, for the workers
//! ```
//!
//! Real processes: a worker as it is shipped, the sandbox bank, an S3 server, and this program, which is the callers. A
//! task is one request of an `http` integration, answered with 200 KB of JSON after 1 s, so 400 in flight are 400 tasks
//! and 80 MB a second. With 400 in flight the worker has one core, and all the others share the rest. At 1, 30, 300 and
//! 1,000 it has two, which on a machine with only two are those of the bank, the store and the callers too.
//!
//! Payloads are on in one worker and off (`payload_sampling` 0) in another, under load by turns. The durations are the
//! worker's own, from its outcomes: the callers share their core with the bank, so their clock would show that core.
//! `bank late` is what the bank itself says it was later than told, on average; it is a part of the overhead. What is
//! not stored within the measured seconds is not in the share that is stored, also when it only waits.

#[path = "support/cores.rs"]
mod cores;
#[path = "support/house.rs"]
mod house;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;
#[expect(dead_code, reason = "the tests start it in their own way")]
#[path = "../tests/it/support/s3.rs"]
mod s3;
#[path = "support/spread.rs"]
mod spread;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::stream::{FuturesUnordered, StreamExt};
use house::{Answer, Counted, House};
use spread::Spread;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};
use weir::client::{Client, Submission};
use weir::lifecycle::Lifecycle;
use weir::task::Json;

/// In flight, and the worker's cores.
const CASES: [(usize, usize); 5] = [(400, 1), (1, 2), (30, 2), (300, 2), (1_000, 2)];

#[derive(Parser)]
#[command(about = "What a worker adds to its tasks, with payloads and without")]
struct Arguments {
    /// How often each case is measured, with payloads and without.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How long each time, after a warm-up.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Only these: 1, 30, 300, 400, 1000. Without 1 there is nothing to compare the p50 with.
    #[arg(long, value_delimiter = ',')]
    only: Vec<usize>,
    /// How long the bank takes.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    latency: Duration,
    /// How large its answers are.
    #[arg(long, default_value_t = 200_000)]
    answer_bytes: usize,
    #[arg(long, hide = true)]
    serve_s3: Option<PathBuf>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One run of one case.
struct Run {
    /// The tasks' durations by the worker's clock, and by their callers'.
    ran: Vec<Duration>,
    seen: Vec<Duration>,
    failed: u64,
    before: Counted,
    after: Counted,
}

/// All runs of one case, with payloads or without: a value for each run, unless it is said to be of all together.
#[derive(Default)]
struct Row {
    overhead_ms: Samples,
    callers_overhead_ms: Samples,
    bank_late_ms: Samples,
    p50_s: Samples,
    stored_percent: Samples,
    cores_used: Samples,
    resident_mib: Samples,
    /// All together.
    ran: Spread,
    dropped: BTreeMap<String, f64>,
    failed: u64,
}

/// One value, measured several times.
#[derive(Default, Clone)]
struct Samples(Vec<f64>);

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match &arguments.serve_s3 {
        Some(directory) => runtime.block_on(serve_s3(directory)),
        None => measure_all(&arguments, &runtime),
    }
}

/// The store, as a process of its own.
async fn serve_s3(directory: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("http://{}", listener.local_addr().expect("it is bound"));
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("s3 server", s3::serve(listener, s3::service(directory), None, lifecycle.clone()));
    let terminate = tokio::signal::unix::SignalKind::terminate();
    tokio::signal::unix::signal(terminate).expect("a handler").recv().await;
    lifecycle.stop(Duration::from_secs(5)).await.expect("the server ends");
}

fn measure_all(arguments: &Arguments, runtime: &tokio::runtime::Runtime) {
    let cases: Vec<_> =
        CASES.into_iter().filter(|(it, _)| arguments.only.is_empty() || arguments.only.contains(it)).collect();
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let answer = Answer { latency: arguments.latency, bytes: arguments.answer_bytes };
    let houses: BTreeMap<usize, Arc<House>> = [1, 2]
        .into_iter()
        .filter(|cores| cases.iter().any(|(_, of)| of == cores))
        .map(|cores| {
            let directory = directory.path().join(cores.to_string());
            std::fs::create_dir(&directory).expect("a directory");
            (cores, Arc::new(House::open(&directory, cores, answer)))
        })
        .collect();
    let mut rows: BTreeMap<(usize, bool), Row> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for (in_flight, cores) in &cases {
            let house = &houses[cores];
            house.callers.bind();
            // By turns which is the first.
            for payloads in [round % 2 == 1, round % 2 == 0] {
                let run = runtime.block_on(measure(house, payloads, *in_flight, arguments));
                house.settle();
                rows.entry((*in_flight, payloads)).or_default().add(&run, arguments);
            }
        }
        eprintln!("round {} of {}", round + 1, arguments.rounds);
    }
    houses.into_values().filter_map(Arc::into_inner).for_each(House::close);
    print(&cases, &mut rows);
}

async fn measure(house: &Arc<House>, payloads: bool, in_flight: usize, arguments: &Arguments) -> Run {
    let (lifecycle, latency) = (Lifecycle::new(), arguments.latency);
    let client = Client::new(&format!("http://{}", house.worker(payloads).listen)).expect("an address");
    let began = Instant::now();
    // Long enough for each caller's first task, which makes connections, and for another.
    let from = began + latency * 3 + Duration::from_millis(500);
    let until = from + Duration::from_secs(arguments.seconds);
    let caller = |number: usize| {
        let client = client.clone();
        async move {
            let (mut ran, mut seen, mut failed) = (Vec::new(), Vec::new(), 0);
            // Spread over the time of one task.
            sleep_until(began + latency.mul_f64(number as f64 / in_flight as f64)).await;
            let mut round = 0;
            while Instant::now() < until {
                let started = Instant::now();
                let answer = client.submit(&task(number, round)).await;
                round += 1;
                match answer {
                    Ok(outcome) if outcome.result.is_ok() => {
                        if (from..until).contains(&Instant::now()) {
                            ran.push(outcome.timings.ran);
                            seen.push(started.elapsed());
                        }
                    }
                    other => {
                        failed += 1;
                        eprintln!("a task failed: {other:?}");
                    }
                }
            }
            (ran, seen, failed)
        }
    };
    let count = || {
        let house = house.clone();
        lifecycle.blocking("count", move || house.count(payloads))
    };
    let counted = async {
        sleep_until(from).await;
        let before = count().await.expect("counted");
        sleep_until(until).await;
        (before, count().await.expect("counted"))
    };
    let callers: FuturesUnordered<_> = (0..in_flight).map(caller).collect();
    let (ended, (before, after)) = tokio::join!(callers.collect::<Vec<_>>(), counted);
    let mut run = Run { ran: Vec::new(), seen: Vec::new(), failed: 0, before, after };
    for (ran, seen, failed) in ended {
        run.ran.extend(ran);
        run.seen.extend(seen);
        run.failed += failed;
    }
    run
}

/// A pull of an account of its own.
fn task(caller: usize, round: u64) -> Submission {
    let account = Json::of(&format!("{:016x}", (caller as u64) << 32 | round)).expect("a text");
    let id = format!("t-{caller}-{round}").parse().expect("an id");
    Submission::new(id, "bank".parse().expect("a name"), account)
}

impl Row {
    fn add(&mut self, run: &Run, arguments: &Arguments) {
        let Run { ran, seen, failed, before, after } = run;
        let grew = |of: fn(&Counted) -> f64| of(after) - of(before);
        self.overhead_ms.add((mean_seconds(ran) - arguments.latency.as_secs_f64()) * 1e3);
        self.callers_overhead_ms.add((mean_seconds(seen) - arguments.latency.as_secs_f64()) * 1e3);
        self.bank_late_ms.add(grew(|it| it.bank_late.as_secs_f64() * 1e3) / grew(|it| it.bank_requests));
        let mut spread = Spread::default();
        for duration in ran {
            spread.add(*duration);
            self.ran.add(*duration);
        }
        self.p50_s.add(spread.quantile(0.5).as_secs_f64());
        self.stored_percent.add(100.0 * grew(|it| it.stored) / grew(|it| it.offered));
        self.cores_used.add(grew(|it| it.processor_time.as_secs_f64()) / arguments.seconds as f64);
        self.resident_mib.add(after.resident_bytes as f64 / f64::from(1 << 20));
        for (reason, count) in &after.dropped {
            *self.dropped.entry(reason.clone()).or_default() += count - before.dropped[reason];
        }
        self.failed += failed;
    }
}

fn mean_seconds(durations: &[Duration]) -> f64 {
    durations.iter().map(Duration::as_secs_f64).sum::<f64>() / durations.len() as f64
}

impl Samples {
    fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median, and the 10th and the 90th percentile.
    fn around(&self, decimals: usize) -> String {
        let [low, middle, high] = [0.1, 0.5, 0.9].map(|share| self.quantile(share));
        format!("{middle:.decimals$} ({low:.decimals$}–{high:.decimals$})")
    }

    /// Run by run, as a share of what is the same run of another.
    fn ratio_to(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect())
    }
}

fn print(cases: &[(usize, usize)], rows: &mut BTreeMap<(usize, bool), Row>) {
    println!(
        "\n{:>9} {:>5} {:>8}  {:<22}{:<18}{:<22}{:>9}  {:<18}{:<16}{:>8}  {:<20}{:>7}",
        "in flight",
        "cores",
        "payloads",
        "overhead, ms",
        "bank late, ms",
        "p50 ratio to one",
        "p99, s",
        "stored, %",
        "worker, cores",
        "RSS, MiB",
        "callers see, ms",
        "failed"
    );
    for (in_flight, cores) in cases {
        for payloads in [false, true] {
            let alone = rows.get(&(1, payloads)).map(|row| row.p50_s.clone());
            let Some(row) = rows.get_mut(&(*in_flight, payloads)) else { continue };
            // One in flight is measured on two cores.
            let ratio =
                alone.filter(|_| *cores == 2 && *in_flight > 1).map(|alone| row.p50_s.ratio_to(&alone).around(3));
            let stored = if payloads { row.stored_percent.around(1) } else { "-".to_owned() };
            println!(
                "{in_flight:>9} {cores:>5} {:>8}  {:<22}{:<18}{:<22}{:>9.3}  {stored:<18}{:<16}{:>8.0}  {:<20}{:>7}",
                if payloads { "on" } else { "off" },
                row.overhead_ms.around(1),
                row.bank_late_ms.around(1),
                ratio.as_deref().unwrap_or("-"),
                row.ran.quantile(0.99).as_secs_f64(),
                row.cores_used.around(2),
                row.resident_mib.median(),
                row.callers_overhead_ms.around(1),
                row.failed,
            );
            for (reason, count) in row.dropped.iter().filter(|(_, count)| **count > 0.0) {
                println!("{:>26}dropped, {reason}: {count}", "");
            }
        }
    }
    println!("\nmedians of the runs, and their 10th and 90th percentiles; p99 is of all tasks together");
    println!(
        "targets: 400 in flight, payloads on: overhead of 50 ms at most; p50 ratio at 30 and 300: 1.02, at 1,000: 1.05"
    );
}
