//! A worker that must not take more, though it has room: each signal, in a process of its own, until it has recovered.

use std::net::TcpStream;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::select_all;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Response, Status};
use weir::lifecycle::Lifecycle;
use weir::overload::Signal;
use weir::wire::proto::{self, tasks_client::TasksClient};
use weir::wire::{Reason, Retry, Started, TaskError};

use crate::support::calls::{message, plain_client, typed};
use crate::support::fleet;
use crate::support::processes::{LONG, Process, get, metric, wait_for, weir};

/// How long the blocking task of the tests blocks.
const BLOCK: Duration = Duration::from_secs(2);

/// What is said of it when it has ended.
const SAYS: &str = "an integration blocked an async thread: work that computes or waits belongs into Context::blocking";

/// One that is answered in a moment, unless it waits for something that it should not wait for.
const NOOP: &str = r#"{"do": "noop"}"#;

struct Worker {
    process: Process,
    admin: std::net::SocketAddr,
    url: String,
    _directory: TempDir,
}

type Submitted = Pin<Box<dyn Future<Output = Result<Response<proto::Outcome>, Status>> + Send>>;

impl Worker {
    /// With the signal that the test is about, and the others off: the machine that runs the tests may be a busy one.
    fn start(signal: &str, more: &str, descriptors: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let configuration = format!("{CONFIGURATION}{more}\n");
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
        let program = weir();
        let shell = format!("ulimit -n {descriptors} && exec \"$0\" worker");
        let arguments = ["-c", &shell, &program.to_string_lossy()];
        let name = |known: Signal| format!("WEIR_OVERLOAD__{}__ENABLED", known.as_str().to_uppercase());
        let names = Signal::ALL.map(name);
        let enabled = Signal::ALL.map(|known| if known.as_str() == signal { "true" } else { "false" });
        let mut variables: Vec<_> = names.iter().map(String::as_str).zip(enabled).collect();
        // As many threads as on a machine with two cores.
        variables.push(("TOKIO_WORKER_THREADS", "2"));
        let mut process = Process::start("worker", directory.path(), Path::new("/bin/sh"), &arguments, &variables);
        let serves = process.wait_for_log("the worker serves");
        let address = |field: &str| serves[field].as_str().expect("an address").to_owned();
        let (admin, url) = (address("admin").parse().expect("an address"), format!("http://{}", address("listen")));
        Worker { process, admin, url, _directory: directory }
    }

    async fn client(&self) -> TasksClient<Channel> {
        plain_client(&self.url).await
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        metric(&get(self.admin, "/metrics"), name, label)
    }

    /// Waits for a line of its log.
    fn line(&self, what: &str, is_it: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        wait_for(what, LONG, || self.process.lines_logged().into_iter().find(&is_it))
    }

    /// Waits until it takes tasks again.
    async fn recovers(&self) {
        let (mut client, started) = (self.client().await, Instant::now());
        while let Err(status) = client.submit(message("again", "other", NOOP)).await {
            assert_eq!(typed(&status).reason, Reason::Overloaded, "{status:?}");
            assert!(started.elapsed() < LONG, "it never recovers: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn submit(client: &TasksClient<Channel>, id: &str, integration: &str, input: &serde_json::Value) -> Submitted {
    let (mut client, task) = (client.clone(), message(id, integration, &input.to_string()));
    Box::pin(async move { client.submit(task).await })
}

/// Checks what each refusal must say, and returns it.
fn shed(status: &Status) -> TaskError {
    let error = typed(status);
    assert_eq!(
        (error.reason, error.started, error.retry),
        (Reason::Overloaded, Started::No, Retry::Elsewhere),
        "{error}"
    );
    assert!(error.retry_after.is_some(), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_integration_is_named_the_worker_sheds_while_it_lasts_and_others_are_unharmed() {
    let mut worker = Worker::start("blocked_thread", "", 1024);
    let client = worker.client().await;
    let callers = Lifecycle::new();
    // A task of the test's own for each call: what follows here waits for the worker's metrics without being async.
    let call = |id: &str, integration: &str, input: serde_json::Value| {
        let call = submit(&client, id, integration, &input);
        callers.spawn("caller", async move { call.await.map(|outcome| (outcome.into_inner(), Instant::now())) })
    };
    let others: Vec<_> =
        (0..20).map(|n| call(&format!("o-{n}"), "other", json!({"do": "sleep", "ms": 1_000}))).collect();
    let in_flight = |tasks: f64| (worker.metric("weir_gate_in_flight", "") == tasks).then_some(());
    wait_for("the others have their places", LONG, || in_flight(20.0));
    let blocks = call("blocks", "blocker", json!({"do": "block", "ms": BLOCK.as_millis() as u64}));
    wait_for("the gauge shows it", LONG, || (worker.metric("weir_blocked_threads", "") == 1.0).then_some(()));
    let seen = Instant::now();
    assert_eq!(worker.metric("weir_overload_pressure", "blocked_thread"), 1.0);
    assert_eq!(worker.metric("weir_gate_open", ""), 0.0);
    let refused = submit(&client, "refused", "other", &json!({"do": "noop"})).await.expect_err("it sheds");
    assert!(seen.elapsed() < BLOCK / 2, "the refusal waited for the thread: {:?}", seen.elapsed());
    let error = shed(&refused);
    assert!(error.message.contains("integration blocker has blocked an async thread for"), "{error}");

    let joined = |answer: Option<Result<_, Status>>| answer.expect("it did not panic").expect("an outcome");
    let (_, ended) = joined(blocks.await.expect("it was not aborted"));
    let line = worker.process.wait_for_log(SAYS);
    assert!(ended.elapsed() < Duration::from_secs(1), "named only after {:?}", ended.elapsed());
    for other in others {
        let (ran, at) = joined(other.await.expect("it was not aborted"));
        assert!(at < ended, "a task of 1 s ended only after the one that blocked: {ran:?}");
    }
    assert_eq!((line["integration"].as_str(), line["task"].as_str()), (Some("blocker"), Some("blocks")));
    let seconds = line["seconds"].as_f64().expect("a number");
    assert!((2.0..4.0).contains(&seconds), "{line}");
    worker.recovers().await;
    assert_eq!(worker.process.log().matches(SAYS).count(), 1, "it is said once");
    assert_eq!(worker.metric("weir_integration_blocked_total", r#"integration="blocker""#), 1.0);
    assert!(worker.metric("weir_integration_blocked_seconds", r#"integration="blocker""#) >= 2.0);
    assert_eq!(worker.metric("weir_overload_sheds_total", "blocked_thread"), 1.0);
    assert_eq!(worker.metric("weir_blocked_threads", ""), 0.0);
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_block_and_each_panic_is_named_with_its_task() {
    // The signal is another one, so that a block refuses nobody.
    let mut worker = Worker::start("descriptors", "", 1024);
    let client = worker.client().await;
    let run = async |id: &str, what: serde_json::Value| {
        submit(&client, id, "blocker", &what).await.expect("an outcome").into_inner()
    };
    for id in ["first", "second", "third"] {
        run(id, json!({"do": "block", "ms": 400})).await;
        let line = worker.line("its end is named", |line| line["message"] == SAYS && line["task"] == id);
        assert_eq!(line["integration"], "blocker");
        assert!(line["seconds"].as_f64() >= Some(0.3), "{line}");
    }
    let panicked = run("panics", json!({"do": "panic"})).await;
    let says = "an integration panicked, and its task fails: a synthetic task was told to panic";
    let line = worker.process.wait_for_log(says);
    let whose = ["task", "run", "integration", "tenant", "log.level"].map(|field| line[field].as_str());
    let expected = ["panics", &panicked.run_id, "blocker", "default", "error"];
    assert_eq!(whose, expected.map(Some));
    assert!(line["place"].as_str().is_some_and(|place| place.starts_with("src/integration/synthetic.rs:")), "{line}");
    assert_eq!(worker.process.logged(&["ERROR"]).len(), 1, "{}", worker.process.log());
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_block_brings_after_its_deadline_is_no_output() {
    let mut worker = Worker::start("descriptors", "", 1024);
    let timeout = Some(Duration::from_millis(200).try_into().expect("in range"));
    let blocks = message("late", "blocker", r#"{"do": "block", "ms": 600}"#);
    let answer = worker.client().await.submit(proto::Task { timeout, ..blocks }).await;
    let ended = |outcome: &str| worker.metric("weir_tasks_total", &format!("outcome=\"{outcome}\""));
    wait_for("its end is counted", LONG, || (ended("deadline") == 1.0).then_some(()));
    assert_eq!(ended("ok"), 0.0);
    assert!(!format!("{answer:?}").contains("Output("), "{answer:?}");
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_binds_is_a_cap_that_is_felt_or_the_blocking_pool_when_it_is_full() {
    let mut worker = Worker::start("descriptors", "\n[worker.environment]\nblocking_threads = 1", 1024);
    let client = worker.client().await;
    let binds = |label: &str| worker.metric("weir_binding_constraint", &format!("constraint=\"{label}\"")) == 1.0;
    assert!(binds("nothing"), "an integration is shut, and all others have room");
    let refused = submit(&client, "refused", "shut", &json!({"do": "noop"})).await.expect_err("it is shut");
    assert_eq!(typed(&refused).reason, Reason::IntegrationFull);
    assert!(binds("integration_cap"), "it has just refused a task");
    let task = |id: &str| submit(&client, id, "other", &json!({"do": "ignore_cancellation", "ms": 3_000}));
    let callers = Lifecycle::new();
    for call in ["runs", "waits"].map(task) {
        callers.spawn("caller", call);
    }
    wait_for("one waits for the other's thread", LONG, || binds("blocking_pool").then_some(()));
    callers.wait(LONG).await.expect("they end");
    assert!(!binds("blocking_pool"));
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_refused_before_the_limit_and_taken_again_when_it_is_free() {
    const LIMIT: f64 = (512 << 20) as f64;
    const EACH: u64 = 32 << 20;
    const EACH_OF_LIMIT: usize = 16;
    let mut worker = Worker::start("memory", "memory.limit_bytes = 536870912", 1024);
    let client = worker.client().await;
    let used = || worker.metric("weir_overload_memory_bytes", "");
    assert_eq!(worker.metric("weir_overload_memory_limit_bytes", ""), LIMIT);
    let (mut held, before) = (Vec::new(), used());
    let refused = loop {
        assert!(held.len() < EACH_OF_LIMIT, "more was taken than there is");
        let input = json!({"do": "allocate", "bytes": EACH, "ms": 600_000});
        let mut next = submit(&client, &format!("m-{}", held.len()), "other", &input);
        // Until it has what it wants, or is refused.
        let expected = before + EACH as f64 * (held.len() as f64 + 0.75);
        let refused = loop {
            match tokio::time::timeout(Duration::from_millis(50), &mut next).await {
                Ok(answer) => break Some(answer.expect_err("it lasts for minutes")),
                Err(_) if used() >= expected => break None,
                Err(_) => {}
            }
        };
        match refused {
            Some(status) => break status,
            None => held.push(next),
        }
    };
    let error = shed(&refused);
    assert!(error.message.contains(" of 512 MiB of memory "), "{error}");
    assert!(held.len() >= 8, "refused too early: {}", held.len());
    assert!(used() < LIMIT, "{}", used());
    assert_eq!(worker.metric("weir_overload_sheds_total", "memory"), 1.0);
    // Their callers go away, and they end.
    drop(held);
    worker.recovers().await;
    worker.process.stop();
}

/// In sizes that the allocator would keep for the next who asks.
#[cfg(feature = "jemalloc")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_grows_fast_is_refused_ahead_of_the_threshold_and_what_is_freed_counts_at_once() {
    const MOST: f64 = 0.9 * 256.0;
    let mut worker = Worker::start("memory", "memory.limit_bytes = 268435456", 1024);
    let client = worker.client().await;
    // 200 MiB a second.
    let mut held = FuturesUnordered::new();
    let refused = loop {
        let input = json!({"do": "allocate", "bytes": 4 << 20, "ms": 600_000});
        held.push(submit(&client, &format!("m-{}", held.len()), "other", &input));
        if let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(20), held.next()).await {
            break answer.expect_err("it lasts for minutes");
        }
    };
    let error = shed(&refused);
    let (before, _) = error.message.split_once(" MiB of 256 MiB of memory").expect("why");
    let used: f64 = before.rsplit(' ').next().and_then(|used| used.parse().ok()).expect("how much");
    assert!((64.0..MOST).contains(&used), "{error}");
    worker.recovers().await;

    // Slowly, until it is really so full that it sheds for what is used.
    let used = || worker.metric("weir_overload_memory_bytes", "") / f64::from(1 << 20);
    let full = loop {
        let input = json!({"do": "allocate", "bytes": 4 << 20, "ms": 600_000});
        held.push(submit(&client, &format!("s-{}", held.len()), "other", &input));
        match tokio::time::timeout(Duration::from_millis(100), held.next()).await {
            Ok(Some(answer)) => drop(shed(&answer.expect_err("it lasts for minutes"))),
            _ => continue,
        }
        // It was nearly full and settles, or was about to be.
        match used() {
            used if used >= 0.8 * 256.0 => break used,
            _ => worker.recovers().await,
        }
    };
    drop(held);
    // The allocator by itself keeps it for more than ten seconds.
    wait_for("what was freed is given back", Duration::from_secs(4), || (used() < full * 0.4).then_some(()));
    worker.recovers().await;
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_lags_sheds_until_it_does_not() {
    let mut worker = Worker::start("lag", "blocked_thread.after = \"1m\"", 1024);
    let client = worker.client().await;
    let block = |id: usize| submit(&client, &format!("b-{id}"), "other", &json!({"do": "block", "ms": 100}));
    // Each thread has always four of them before it, which is 400 ms.
    let spinning = (0..8).map(|lane| async move {
        for turn in 0..200 {
            if let Err(status) = block(lane * 1_000 + turn).await {
                return Some(status);
            }
        }
        None
    });
    let (refused, _, _) = select_all(spinning.map(Box::pin)).await;
    let error = shed(&refused.expect("it sheds at some time"));
    // It may be over when the refusal is written.
    assert!(error.message.contains("ms late") || error.message.contains("just shed"), "{error}");
    worker.recovers().await;
    assert!(worker.metric("weir_overload_sheds_total", r#"signal="lag""#) >= 1.0);
    assert_eq!(worker.metric("weir_overload_sheds_total", "blocked_thread"), 0.0);
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_kept_for_what_runs() {
    let mut worker = Worker::start("descriptors", "", 200);
    let mut client = worker.client().await;
    assert_eq!(worker.metric("weir_overload_descriptors_limit", ""), 200.0);
    let address = worker.url.trim_start_matches("http://").to_owned();
    let mut sockets = Vec::new();
    let started = Instant::now();
    let refused = loop {
        if sockets.len() < 175 {
            sockets.push(TcpStream::connect(&address).expect("it listens"));
        }
        match client.submit(message("d", "other", NOOP)).await {
            Err(status) => break status,
            Ok(_) => {
                assert!(started.elapsed() < LONG, "{} descriptors", worker.metric("weir_overload_descriptors", ""))
            }
        }
    };
    let error = shed(&refused);
    assert!(error.message.contains("of 200 descriptors are open"), "{error}");
    drop(sockets);
    worker.recovers().await;
    assert_eq!(worker.metric("weir_overload_sheds_total", "descriptors"), 1.0);
    worker.process.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_sheds_leaves_the_open_index_and_the_other_takes_its_tasks() {
    let fleet = fleet::Plan { workers: 2, sheds: true, ..Default::default() }.start();
    let url = format!("http://{}", fleet.workers[0].listen);
    let client = plain_client(&url).await;
    let blocks = submit(&client, "blocks", "synthetic", &json!({"do": "block", "ms": 4_000}));
    let callers = Lifecycle::new();
    let blocks = callers.spawn("caller", blocks);
    let open = |expected: &str| {
        wait_for(expected, LONG, || (fleet.redis.ask("ZCARD weir:{default}:open") == expected).then_some(()));
    };
    open(":1\r\n");
    let submit = fleet.submit(20, 4, |_| json!({"integration": "synthetic", "input": {"do": "noop"}}));
    let answers = fleet::Answers::of(submit, LONG);
    assert_eq!(answers.ok.len(), 20, "{:?}", answers.others);
    blocks.await.expect("it was not aborted").expect("it did not panic").expect("an outcome");
    open(":2\r\n");
    fleet.stop();
}

const CONFIGURATION: &str = r#"
log.format = "json"

[settings]
max_parallelism = 60
integration_caps = { shut = 0 }

[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[integrations.blocker]
kind = "synthetic"

[integrations.other]
kind = "synthetic"

[integrations.shut]
kind = "synthetic"

[overload]
hold = "500ms"
"#;
