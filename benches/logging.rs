//! What logging costs a worker: its processor time at 1,000 tasks a second with the level at `info`, over the same at `off`.
//!
//! ```text
//! cargo bench --bench logging
//! cargo bench --bench logging -- --rounds 3 --only pull
//! ```
//!
//! Real processes: workers whose log is a file of JSON lines, and a sandbox bank; this program is the callers, who send a
//! task each millisecond whatever comes of the others. Each task logs one line at `info`, as an integration of a team's own
//! would, and the level changes by the setting: the same process is measured with it on and off by turns, by its own
//! processor time (user and system, to the nanosecond). A pair's ratio is one value.
//!
//! | row | a task | lines |
//! |---|---|---|
//! | `pull` | one request of an `http` integration for 16 KB of JSON; its payload is not kept | all written |
//! | `pull, as shipped` | the same | as many as `log.repeats` lets through; the others are counted |
//! | `nothing` | returns at once: gRPC, the gate and the run are all there is, the least that a task can cost | all written |
//! | `nothing, as shipped` | the same | as many as `log.repeats` lets through |
//!
//! Target: 1.03 at most for tasks that do something.

#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use futures_util::stream::{FuturesUnordered, StreamExt};
use processes::{LONG, Process, get, metric, wait_for, weir};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until};
use weir::client::{Client, Submission};
use weir::config;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::settings::flagd;
use weir::task::{IntegrationName, Json};
use weir::telemetry::Telemetry;

/// Set, this program is a worker. Not with the prefix of keys of the configuration.
const SERVES: &str = "LOGGING_BENCH_SERVES";

const TARGET: f64 = 1.03;

/// Of the integrations and of the workers.
const CONFIGURATION: &str = r#"
[log]
format = "json"
[settings]
max_parallelism = 2000
[payloads]
store = "none"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
"#;

const PULL: &str = r#"
[integrations.pull]
kind = "http"
base_url = "$bank"
max_connections_per_host = 2000
steps = [{ name = "transactions", path = "/accounts/acc-{{ input }}/transactions", headers = { authorization = "Bearer sandbox.bench" } }]
result = "{{ steps.transactions.account }}"
"#;

/// What a row runs, and whether all of its lines are written.
const ROWS: [(&str, &str, bool); 4] = [
    ("pull", "pull", true),
    ("pull, as shipped", "pull", false),
    ("nothing", "nothing", true),
    ("nothing, as shipped", "nothing", false),
];

#[derive(Parser)]
#[command(about = "What logging costs a worker")]
struct Arguments {
    /// How many pairs of each row are measured.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// How long each half of a pair, after a second to warm up.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 1000)]
    tasks_per_second: u32,
    /// Only rows of these tasks: pull, nothing.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Logs a line, and does what another one does.
struct Talks(Option<Arc<dyn Integration>>);

#[async_trait]
impl Integration for Talks {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        tracing::info!(accounts = 3, since = "2026-11-01", "pulling what is new");
        match &self.0 {
            Some(integration) => integration.run(context).await,
            None => Ok(Json::null()),
        }
    }
}

/// The processor time of the process.
struct Spent;

#[async_trait]
impl Integration for Spent {
    async fn run(&self, _: &Context) -> Result<Json, Error> {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Json::of(&(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)).map_err(|error| Error::permanent(error.to_string()))
    }
}

fn main() -> std::process::ExitCode {
    if let Ok(bank) = std::env::var(SERVES) {
        return serve(&bank);
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure_all(&arguments));
    std::process::ExitCode::SUCCESS
}

fn serve(bank: &str) -> std::process::ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (name, telemetry): (IntegrationName, _) =
        ("pull".parse().expect("a name"), Telemetry::new().expect("a recorder"));
    let configured = config::from_text(&PULL.replace("$bank", bank)).expect("valid").integrations;
    let pull = configured[&name].build(&name, &telemetry).expect("valid");
    let own = Integrations::new()
        .with(name, Talks(Some(pull)))
        .with("nothing".parse().expect("a name"), Talks(None))
        .with("spent".parse().expect("a name"), Spent);
    weir::cli::serve_worker(own)
}

/// A worker's process.
struct Worker {
    process: Process,
    client: Client,
    admin: std::net::SocketAddr,
    settings: std::path::PathBuf,
    level: RefCell<String>,
}

impl Worker {
    fn start(directory: &Path, bank: &str, writes_all: bool) -> Self {
        let name = if writes_all { "all" } else { "shipped" };
        let directory = directory.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        std::fs::write(directory.join("weir.toml"), CONFIGURATION).expect("written");
        let settings = directory.join("settings.json");
        let this = std::env::current_exe().expect("this program");
        let file = settings.to_string_lossy().into_owned();
        let mut variables = vec![(SERVES, bank), ("WEIR_SETTINGS__FILE", &file)];
        variables.extend(writes_all.then_some(("WEIR_LOG__REPEATS", "0")));
        let mut process = Process::start(name, &directory, &this, &[], &variables);
        let line = process.wait_for_log("the worker serves");
        let address = |field: &str| line[field].as_str().expect("an address").to_owned();
        let client = Client::new(&format!("http://{}", address("listen"))).expect("an address");
        Worker {
            process,
            client,
            admin: address("admin").parse().expect("an address"),
            settings,
            level: RefCell::default(),
        }
    }

    /// Changes the level, and waits until it is in force.
    fn set_level(&self, level: &str) {
        if self.level.replace(level.to_owned()) == level {
            return;
        }
        let version = || metric(&get(self.admin, "/metrics"), "weir_settings_version", "");
        let before = version();
        let document = flagd::document(&[("log_level", level.into())]);
        weir::settings::file::write_file(&self.settings, &document).expect("written");
        wait_for("the level is in force", LONG, || (version() != before).then_some(()));
    }

    fn lines(&self) -> f64 {
        metric(&get(self.admin, "/metrics"), "weir_log_lines_total", "")
    }

    async fn spent(&self) -> f64 {
        let spent = Submission::new("spent".parse().expect("an id"), "spent".parse().expect("a name"), Json::null());
        let output = self.client.submit(&spent).await.expect("an outcome").result.expect("an output");
        output.read().expect("a number")
    }
}

/// The pairs of one row.
#[derive(Default)]
struct Pairs {
    ratios: Vec<f64>,
    off: Vec<f64>,
    on: Vec<f64>,
    lines: Vec<f64>,
}

async fn measure_all(arguments: &Arguments) {
    let directory = tempfile::tempdir().expect("a directory");
    let flags = ["sandbox", "--listen", "127.0.0.1:0", "--latency", "20ms", "--response-bytes", "16000"];
    let log = [("WEIR_LOG__FORMAT", "json"), ("WEIR_LOG__LEVEL", "warn,weir::cli=info")];
    let mut bank = Process::start("bank", directory.path(), &weir(), &flags, &log);
    let line = bank.wait_for_log("the sandbox bank answers");
    let url = format!("http://{}", line["listen"].as_str().expect("an address"));
    let workers = BTreeMap::from([true, false].map(|all| (all, Worker::start(directory.path(), &url, all))));
    let rows: Vec<_> = ROWS
        .into_iter()
        .filter(|(_, does, _)| arguments.only.is_empty() || arguments.only.iter().any(|only| only == does))
        .collect();
    let mut measured: BTreeMap<&str, Pairs> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for (name, does, all) in &rows {
            let worker = &workers[all];
            let (mut spent, mut lines) = ([0.0; 2], 0.0);
            // By turns which is the first.
            for on in [round % 2 == 0, round % 2 == 1] {
                worker.set_level(if on { "info" } else { "off" });
                load(worker, does, Duration::from_secs(1), arguments).await;
                let before = (worker.lines(), worker.spent().await);
                load(worker, does, Duration::from_secs(arguments.seconds), arguments).await;
                let after = (worker.spent().await, worker.lines());
                spent[usize::from(on)] = (after.0 - before.1) / arguments.seconds as f64;
                if on {
                    lines = (after.1 - before.0) / arguments.seconds as f64;
                }
            }
            let pairs = measured.entry(*name).or_default();
            let [off, on] = spent;
            pairs.ratios.push(on / off);
            pairs.off.push(off * 1e3);
            pairs.on.push(on * 1e3);
            pairs.lines.push(lines);
        }
        eprintln!("round {} of {}", round + 1, arguments.rounds);
    }
    for (_, mut worker) in workers {
        worker.process.stop();
    }
    bank.stop();
    print(&rows, &measured, arguments);
}

/// Sends tasks for so long, one after the other whatever comes of them, and waits for all.
async fn load(worker: &Worker, does: &str, lasts: Duration, arguments: &Arguments) {
    let (count, began) = (lasts.as_millis() as u64 * u64::from(arguments.tasks_per_second) / 1000, Instant::now());
    let mut under_way = FuturesUnordered::new();
    for number in 0..count {
        let due = began + lasts.mul_f64(number as f64 / count as f64);
        let due = sleep_until(due);
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => break,
                Some(ended) = under_way.next(), if !under_way.is_empty() => check(ended),
            }
        }
        let id = format!("t-{number}").parse().expect("an id");
        let input = Json::of(&format!("{number:016x}")).expect("a text");
        let (task, client) = (Submission::new(id, does.parse().expect("a name"), input), worker.client.clone());
        under_way.push(async move { client.submit(&task).await.map(|outcome| outcome.result.map(drop)) });
    }
    while let Some(ended) = under_way.next().await {
        check(ended);
    }
}

fn check<E: std::fmt::Debug, F: std::fmt::Debug>(ended: Result<Result<(), F>, E>) {
    if !matches!(ended, Ok(Ok(()))) {
        eprintln!("a task failed: {ended:?}");
    }
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn print(rows: &[(&str, &str, bool)], measured: &BTreeMap<&str, Pairs>, arguments: &Arguments) {
    println!(
        "\n{} tasks a second, {} pairs of {} s each",
        arguments.tasks_per_second, arguments.rounds, arguments.seconds
    );
    println!(
        "{:<22}{:>10}{:>24}{:>14}{:>14}{:>14}",
        "a task does", "lines/s", "ratio", "off, ms/s", "on, ms/s", "µs per task"
    );
    for (name, ..) in rows {
        let Pairs { ratios, off, on, lines } = &measured[name];
        let [low, middle, high] = [0.1, 0.5, 0.9].map(|share| quantile(ratios, share));
        let costs: Vec<_> = on.iter().zip(off).map(|(on, off)| (on - off) * 1e3).collect();
        println!(
            "{name:<22}{:>10.0}{:>24}{:>14.1}{:>14.1}{:>14.2}",
            quantile(lines, 0.5),
            format!("{middle:.3} ({low:.3}–{high:.3})"),
            quantile(off, 0.5),
            quantile(on, 0.5),
            quantile(&costs, 0.5) / f64::from(arguments.tasks_per_second),
        );
    }
    println!("\nprocessor time of the worker, medians; of the ratios, the 10th and the 90th percentile, too");
    println!("target for tasks that do something: {TARGET} at most");
}
