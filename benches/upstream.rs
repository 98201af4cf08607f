//! What a task pays for what is learned of its integration: the time of `Upstreams::ask` and of `Asked::ended`, together.
//!
//! ```text
//! cargo bench --bench upstream
//! ```
//!
//! Breaker, deadlines at the door and, in all rows but one, an adaptive limit, for 20 integrations of which enough is known
//! that every task is judged; 100 tasks run beside. Tasks said to have run for about a second all succeed, since a refusal
//! costs less. Contended: four threads at one integration, or spread over 20, as fast as they can, which no worker is.
//! Beside them what a clock costs that is read twice, for it is in all of the numbers. Target: p99 of 1 µs or less,
//! uncontended.

#[path = "support/spread.rs"]
mod spread;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use spread::Spread;
use weir::task::{IntegrationName, Json, Outcome, RunId, Timings};
use weir::telemetry::Telemetry;
use weir::upstream::adaptive::Mode;
use weir::upstream::{Asked, Config, Upstreams};

const ROUNDS: usize = 200_000;
const INTEGRATIONS: usize = 20;

/// Runs that are known of each integration before it is measured.
const KNOWN: usize = 1_000;

/// Tasks that run all the time.
const RUNNING: usize = 100;

/// What remains to a task.
const REMAINING: Duration = Duration::from_secs(60);

/// Different runs, taken in turn.
const RUNS: usize = 256;

fn main() {
    println!("{:<42}{:>10}{:>10}{:>10}", "ask + ended, µs", "p50", "p99", "p99.9");
    row("the clock alone", clock());
    for (name, threads, integrations, mode) in [
        ("breaker and door, 1 thread", 1, INTEGRATIONS, Mode::Off),
        ("and adaptive limit, 1 thread", 1, INTEGRATIONS, Mode::On),
        ("and adaptive limit, 4 threads", 4, INTEGRATIONS, Mode::On),
        ("and adaptive limit, 4 threads at one", 4, 1, Mode::On),
    ] {
        row(name, measure(threads, integrations, mode));
    }
    println!("\n(target: p99 of 1 µs or less, uncontended)");
}

fn row(name: &str, mut spread: Spread) {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| spread.quantile(share).as_secs_f64() * 1e6);
    println!("{name:<42}{p50:>10.3}{p99:>10.3}{p999:>10.3}");
}

fn clock() -> Spread {
    let mut spread = Spread::default();
    (0..ROUNDS).for_each(|_| spread.add(black_box(Instant::now()).elapsed()));
    spread
}

fn measure(threads: usize, integrations: usize, mode: Mode) -> Spread {
    let names: Vec<IntegrationName> = (0..integrations).map(|n| format!("bank-{n}").parse().expect("a name")).collect();
    let mut config = Config::default();
    config.adaptive.mode = mode;
    let telemetry = Telemetry::new().expect("a recorder");
    let upstreams = Upstreams::new(&config, names.iter(), &telemetry).expect("valid");
    let outcomes: Vec<Outcome> = (0..RUNS).map(outcome).collect();
    let ask = |n: usize| upstreams.ask(&names[n % integrations], REMAINING).expect("it is well");
    (0..KNOWN * integrations).for_each(|n| ask(n).ended(&outcomes[n % RUNS]));
    let _running: Vec<Asked> = (0..RUNNING).map(ask).collect();
    let begin = Barrier::new(threads);
    let rounds = |thread: usize| {
        let (ask, outcomes, begin) = (&ask, &outcomes, &begin);
        move || {
            let mut took = Vec::with_capacity(ROUNDS);
            begin.wait();
            for n in 0..ROUNDS {
                let outcome = &outcomes[n % RUNS];
                let started = Instant::now();
                ask(thread + n).ended(outcome);
                took.push(started.elapsed());
            }
            took
        }
    };
    let ended: Vec<Vec<Duration>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(rounds(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).collect()
    });
    let mut spread = Spread::default();
    ended.into_iter().flatten().for_each(|took| spread.add(took));
    spread
}

/// One that succeeded after one to two seconds.
fn outcome(n: usize) -> Outcome {
    let ran = Duration::from_millis(1_000 + (n as u64 * 37) % 1_000);
    Outcome {
        task: "t-1".parse().expect("an id"),
        run: RunId::mint(),
        result: Ok(Json::null()),
        worker: "worker-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings { queued: Duration::ZERO, ran },
    }
}
