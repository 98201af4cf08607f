//! How long a change of the settings takes to be in force on a hundred workers.
//!
//! ```text
//! cargo bench --bench settings
//! cargo bench --bench settings -- --workers 300 --rounds 10
//! ```
//!
//! Whole workers in this process, each with ports, a lifecycle and connections to a real redis-server of its own; one key
//! of that holds the settings. Time counts from before the write until a worker's gate admits by the new N, which is looked
//! at every millisecond. They share the machine, so the last ones also wait for a core.

#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/redis.rs"]
mod redis;
#[path = "support/spread.rs"]
mod spread;
#[path = "../tests/it/support/waiting.rs"]
mod waiting;

use std::time::Duration;

use clap::Parser;
use futures_util::future::join_all;
use redis::RedisServer;
use spread::Spread;
use tokio::time::{Instant, sleep};
use weir::config::{self, Config};
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::overload;
use weir::registry;
use weir::settings::store::{self, Edit, Store};
use weir::settings::{Source, flagd};
use weir::telemetry::Telemetry;
use weir::telemetry::logs::Level;
use weir::worker::{Parts, Worker};

/// The target, on all workers.
const WITHIN: Duration = Duration::from_secs(1);

const CONFIGURATION: &str = r#"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[payloads]
store = "none"
[integrations.synthetic]
kind = "synthetic"
"#;

#[derive(Parser)]
#[command(about = "How long a change of the settings takes to be in force everywhere")]
struct Arguments {
    #[arg(long, default_value_t = 100)]
    workers: usize,
    /// How many changes are measured.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(&arguments));
}

async fn measure(arguments: &Arguments) {
    let redis = RedisServer::start();
    let mut config = config::from_text(CONFIGURATION).expect("valid");
    config.registry.url = Some(redis.url().into());
    (config.settings.source, config.settings.redis) = (Source::Redis, config.registry.clone());
    let mut workers = Vec::new();
    for _ in 0..arguments.workers {
        workers.push(start(&config).await);
    }
    let lifecycle = Lifecycle::new();
    let store = store::open(&config.settings, &lifecycle).expect("valid").expect("a store");
    let mut before = None;
    // The first is for the connections.
    change(&*store, &mut before, 31, &workers).await;

    let (mut each, mut last) = (Spread::default(), Spread::default());
    for round in 0..arguments.rounds {
        let took = change(&*store, &mut before, 100 + round, &workers).await;
        last.add(took.iter().copied().max().unwrap_or_default());
        took.into_iter().for_each(|took| each.add(took));
    }
    let ms = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1e3);
    println!("{} workers, {} changes", arguments.workers, arguments.rounds);
    println!("{:<28}{:>10}{:>10}{:>10}{:>10}", "ms until it is in force", "p50", "p90", "p99", "max");
    for (name, spread) in [("on a worker", &mut each), ("on all of them", &mut last)] {
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| ms(spread.quantile(share)));
        println!("{name:<28}{p50:>10}{p90:>10}{p99:>10}{max:>10}");
    }
    println!("target on all of them: {} ms at most", WITHIN.as_millis());
    join_all(workers.into_iter().map(Worker::drain)).await;
    lifecycle.stop(WITHIN).await.expect("nothing is left");
}

async fn start(config: &Config) -> Worker {
    let (config, telemetry) = (config.clone(), Telemetry::new().expect("a recorder"));
    let parts = Parts {
        integrations: Integrations::from_config(&config.integrations, &telemetry).expect("integrations"),
        registry: registry::open(&config.registry, &config.worker.pool, &telemetry).expect("a registry"),
        store: None,
        payloads: config.payloads,
        overload: overload::Config::watch_only(),
        settings: config.settings,
        log_level: Level::fixed(),
    };
    Worker::start(config.worker, parts, telemetry).await.expect("a worker")
}

/// Sets N, and returns how long each worker took.
async fn change(store: &dyn Store, before: &mut Option<String>, value: u32, workers: &[Worker]) -> Vec<Duration> {
    let document = flagd::document(&[("max_parallelism", value.into())]);
    let edit = Edit { document: document.clone(), who: "bench".into(), why: format!("N = {value}") };
    let began = Instant::now();
    store.write(before.as_deref().map(str::as_bytes), &edit).await.expect("written");
    *before = Some(document);
    let applied = |worker: &Worker| worker.load().target == value;
    let mut took: Vec<Option<Duration>> = vec![None; workers.len()];
    while took.iter().any(Option::is_none) {
        for (worker, took) in workers.iter().zip(&mut took) {
            if took.is_none() && applied(worker) {
                *took = Some(began.elapsed());
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    took.into_iter().flatten().collect()
}
