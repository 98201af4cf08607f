//! What a router adds to a task: no-op tasks that go through it beside ones that go straight to the worker.
//!
//! ```text
//! cargo bench --bench routed
//! cargo bench --bench routed -- --rounds 3 --load 0.5
//! ```
//!
//! Real processes: redis-server, a router and one worker; this program is the callers. First, how many tasks a second go
//! through the router when 64 callers send one after the other; then tasks arrive open-loop at a share of that, straight
//! and through the router by turns. Latency counts from the moment of sending. All of it shares
//! the machine: with two cores a part of what is added is waiting for one.

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

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use fleet::Plan;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use spread::Spread;
use tokio::time::{Instant, sleep_until};
use weir::client::{Client, Submission};
use weir::lifecycle::Lifecycle;
use weir::task::Json;

const CALLERS: usize = 64;

#[derive(Parser)]
#[command(about = "What a router adds to a task")]
struct Arguments {
    /// How often each way is measured.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long each time.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The share of the tasks a second that the router can take.
    #[arg(long, default_value_t = 0.2)]
    load: f64,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The quantiles of one run, in milliseconds.
#[derive(Default)]
struct Runs {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // The limit is not what is measured, and payloads are not either.
    let configuration = "[settings]\npayload_sampling = 0\n".to_owned();
    let fleet = Plan { max_parallelism: 2_000, configuration, ..Plan::default() }.start();
    let _inside = runtime.enter();
    let client = |address| Client::new(&format!("http://{address}")).expect("an address");
    let (direct, routed) = (client(fleet.workers[0].listen), client(fleet.router.listen));

    let capacity = runtime.block_on(capacity(&routed));
    let rate = capacity * arguments.load;
    println!("{capacity:.0} tasks/s through the router; measured at {rate:.0} tasks/s");
    let (mut straight, mut through) = (Runs::default(), Runs::default());
    for round in 0..arguments.rounds {
        // By turns which is the first.
        for by_router in [round % 2 == 0, round % 2 == 1] {
            let (client, runs) = if by_router { (&routed, &mut through) } else { (&direct, &mut straight) };
            let mut spread = runtime.block_on(arrive(client, rate, Duration::from_secs(arguments.seconds)));
            runs.p50.push(spread.quantile(0.5).as_secs_f64() * 1e3);
            runs.p99.push(spread.quantile(0.99).as_secs_f64() * 1e3);
        }
    }
    fleet.stop();

    println!("{:<24}{:>24}{:>24}", "ms", "p50", "p99");
    println!("{:<24}{:>24}{:>24}", "straight to the worker", around(&straight.p50), around(&straight.p99));
    println!("{:<24}{:>24}{:>24}", "through the router", around(&through.p50), around(&through.p99));
    let added = |through: &[f64], straight: &[f64]| {
        around(&through.iter().zip(straight).map(|(through, straight)| through - straight).collect::<Vec<_>>())
    };
    println!("{:<24}{:>24}{:>24}", "added", added(&through.p50, &straight.p50), added(&through.p99, &straight.p99));
    println!("\nmedians of the runs, and their 10th and 90th percentiles (targets for what is added: 0.3 and 2)");
}

/// Tasks a second when callers send one after the other.
async fn capacity(client: &Client) -> f64 {
    const TIME: Duration = Duration::from_secs(3);
    let until = Instant::now() + TIME;
    let caller = |number: usize| async move {
        let mut sent = 0;
        while Instant::now() < until {
            submit(client, number).await;
            sent += 1;
        }
        sent
    };
    let callers: FuturesUnordered<_> = (0..CALLERS).map(caller).collect();
    callers.collect::<Vec<i32>>().await.into_iter().sum::<i32>() as f64 / TIME.as_secs_f64()
}

/// Tasks that arrive evenly at a rate.
async fn arrive(client: &Client, rate: f64, time: Duration) -> Spread {
    let (lifecycle, spread) = (Lifecycle::new(), Arc::new(Mutex::new(Spread::default())));
    let start = Instant::now();
    for number in 0..(rate * time.as_secs_f64()) as usize {
        let at = start + Duration::from_secs_f64(number as f64 / rate);
        // The clock's step is a millisecond: those that are due by then are sent together, and late by less than that.
        sleep_until(at).await;
        let (client, spread, sent) = (client.clone(), spread.clone(), Instant::now());
        lifecycle.spawn("caller", async move {
            submit(&client, number).await;
            spread.lock().add(sent.elapsed());
        });
    }
    lifecycle.wait(Duration::from_secs(60)).await.expect("each is answered");
    std::mem::take(&mut *spread.lock())
}

async fn submit(client: &Client, number: usize) {
    let (id, synthetic) = (format!("t-{number}").parse().expect("an id"), "synthetic".parse().expect("a name"));
    let task = Submission::new(id, synthetic, Json::parse(r#"{"do":"noop"}"#.into()).expect("JSON"));
    client.submit(&task).await.expect("an outcome");
}

/// The median, and the 10th and the 90th percentile.
fn around(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let [low, middle, high] = [0.1, 0.5, 0.9].map(|share| sorted[((sorted.len() - 1) as f64 * share).round() as usize]);
    format!("{middle:.3} ({low:.3} to {high:.3})")
}
