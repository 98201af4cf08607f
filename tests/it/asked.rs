//! A worker that is asked for its metrics and what it does all the time, while its gate opens and shuts for every reason.
//!
//! What is looked up must not stand in the way of what changes: a reader that held a part of the gate's standing while it
//! asked for the next part once waited for a change that waited for the reader, and the worker stood still for good.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tonic::transport::Channel;
use weir::client::operations::Operations;
use weir::lifecycle::Lifecycle;
use weir::settings::{file, flagd};
use weir::wire::Reason;
use weir::wire::proto::{description::Role, tasks_client::TasksClient};

use crate::support::calls::{message, plain_client, typed};
use crate::support::processes::{LONG, Process, metric, try_get, wait_for, weir};

/// How often the askers ask at least, all of them together.
const TIMES: usize = 400;

/// Callers beside a gate with fewer places, so that nearly each task takes the last one.
const CALLERS: usize = 8;

/// A process of its own: where all of it stands still, the test does not.
struct Worker {
    process: Process,
    admin: std::net::SocketAddr,
    url: String,
    directory: TempDir,
}

impl Worker {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");
        let variables = [("WEIR_OVERLOAD__BLOCKED_THREAD__ENABLED", "true"), ("TOKIO_WORKER_THREADS", "4")];
        let mut process = Process::start("worker", directory.path(), &weir(), &["worker"], &variables);
        let serves = process.wait_for_log("the worker serves");
        let address = |field: &str| serves[field].as_str().expect("an address").to_owned();
        let (admin, url) = (address("admin").parse().expect("an address"), format!("http://{}", address("listen")));
        Worker { process, admin, url, directory }
    }
}

/// Submits such tasks, one after the other, until it is told to end.
async fn submit(mut client: TasksClient<Channel>, caller: usize, input: String, pause: Duration) {
    for n in 0.. {
        if let Err(status) = client.submit(message(&format!("t-{caller}-{n}"), "synthetic", &input)).await {
            let reason = typed(&status).reason;
            assert!(matches!(reason, Reason::WorkerFull | Reason::Overloaded | Reason::IntegrationFull), "{status:?}");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Changes the settings until it is told to end.
async fn change(settings: &Path) {
    for n in 1.. {
        let flags = [("max_parallelism", json!(n % 3 + 1)), ("integration_caps", json!({"synthetic": n % 2 + 1}))];
        file::write_file(settings, &flagd::document(&flags)).expect("written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_gate_opens_and_shuts_all_the_time_answers_all_who_ask() {
    let mut worker = Worker::start();
    let (asking, changing) = (Lifecycle::new(), Lifecycle::new());
    let token = changing.token();
    let until_ended = |name, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let token = token.clone();
        changing.spawn(name, async move { token.run_until_cancelled(work).await });
    };
    for caller in 0..CALLERS {
        let (client, input) = (plain_client(&worker.url).await, json!({"do": "noop"}).to_string());
        until_ended("caller", Box::pin(submit(client, caller, input, Duration::ZERO)));
    }
    // Long enough to be seen, and short enough that there are many of them.
    let (client, input) = (plain_client(&worker.url).await, json!({"do": "block", "ms": 60}).to_string());
    until_ended("blocker", Box::pin(submit(client, CALLERS, input, Duration::from_millis(1))));
    let settings = worker.directory.path().join("settings.json");
    until_ended("operator", Box::pin(async move { change(&settings).await }));

    let (is_over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let (admin, over, count) = (worker.admin, is_over.clone(), asked.clone());
        let scrape = move |_| {
            while !over.load(Ordering::Relaxed) {
                try_get(admin, "/metrics").expect("it answers scrapers");
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        asking.thread("scraper", scrape).expect("a thread");
        let (operations, over) = (Operations::new(&worker.url).expect("an address"), is_over.clone());
        let count = asked.clone();
        asking.spawn("describer", async move {
            while !over.load(Ordering::Relaxed) {
                let description = operations.describe(0).await.expect("it answers describers");
                assert!(matches!(description.role, Some(Role::Worker(worker)) if !worker.limited_by.is_empty()));
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // As long as it takes that all of it has really happened.
    let happened = || {
        let metrics = try_get(worker.admin, "/metrics").expect("it answers");
        let enough = |(name, label, least)| metric(&metrics, name, label) >= least;
        let many = [
            ("weir_gate_admitted_total", "", 500.0),
            ("weir_gate_refused_total", r#"reason="full""#, 50.0),
            ("weir_overload_sheds_total", "blocked_thread", 2.0),
        ];
        let has_asked = asked.load(Ordering::Relaxed) >= TIMES;
        has_asked && many.into_iter().all(enough) && worker.process.log().matches("settings applied").count() >= 3
    };
    tokio::task::block_in_place(|| wait_for("all of it happens", LONG, || happened().then_some(())));
    is_over.store(true, Ordering::Relaxed);
    asking.wait(LONG).await.expect("all were answered");
    assert_eq!(asking.failed(), None);
    changing.stop(LONG).await.expect("they end");
    assert_eq!(changing.failed(), None);
    worker.process.stop();
}

const CONFIGURATION: &str = r#"
log.format = "json"

[settings]
max_parallelism = 2
file = "settings.json"

[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[integrations.synthetic]
kind = "synthetic"

[overload]
hold = "100ms"
blocked_thread.after = "20ms"
"#;
