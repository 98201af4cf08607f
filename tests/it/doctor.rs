//! `weir doctor` against real workers: each cause is provoked, and the first line must name it.
//!
//! Bounds are wide, for the machine may be a busy one. A CPU quota cannot be made here: its case is in `tests/doctor`, as
//! readings.

mod ends;
mod history;

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use weir::client::{Client, Submission};
use weir::config;
use weir::lifecycle::Lifecycle;
use weir::sandbox::{Behaviour, Latency, Sandbox};
use weir::task::Json;

use crate::cli::{assert_failed, lines, run, stderr, stdout};
use crate::support::processes::{LONG, Process, get, metric, try_get, wait_for, weir};
use crate::support::site::free_address;

/// Exit codes.
const HEALTHY: Option<i32> = Some(0);
const FINDINGS: Option<i32> = Some(3);
const TOO_LITTLE_TRAFFIC: Option<i32> = Some(4);

/// What a cause is provoked with.
struct Case {
    /// More of the worker's configuration, in which `$bank` is the sandbox.
    configuration: &'static str,
    /// More of its section `[payloads]`.
    payloads: &'static str,
    /// What the worker runs.
    loads: &'static [Load],
    /// How long the bank takes for an answer.
    latency: Duration,
    /// What must have been seen before the doctor comes: a metric, and the least that it is.
    until: (&'static str, f64),
    /// What the bank does from then on.
    then: fn(&mut Behaviour),
    /// Idle connections to the worker, and the descriptors that it may have.
    connections: usize,
    descriptors: u32,
    /// Whether its log is read, or only a line now and then.
    log_is_read: bool,
    seconds: &'static str,
    /// How the first line begins, and what must be in the rest.
    first: &'static str,
    says: &'static [&'static str],
}

/// Tasks of one kind.
struct Load {
    integration: &'static str,
    input: &'static str,
    /// So many callers, each of which submits the next task when the one before has ended.
    callers: u32,
    /// How much later each begins than the one before.
    apart: Duration,
    timeout: Duration,
    /// How many tasks each submits.
    times: usize,
}

const LOAD: Load = Load {
    integration: "other",
    input: r#"{"do": "sleep", "ms": 100}"#,
    callers: 4,
    apart: Duration::ZERO,
    timeout: LONG,
    times: usize::MAX,
};

const CASE: Case = Case {
    configuration: "",
    payloads: "",
    loads: &[LOAD],
    latency: Duration::from_millis(30),
    until: ("weir_tasks_total", 20.0),
    then: |_| {},
    connections: 0,
    descriptors: 1024,
    log_is_read: true,
    seconds: "5",
    first: "",
    says: &[],
};

/// A worker, and what comes at it.
struct Stage {
    process: Process,
    listen: String,
    admin: std::net::SocketAddr,
    /// Ends what submits when it is dropped.
    _runs: Vec<tokio::task::JoinHandle<Option<()>>>,
    lifecycle: Lifecycle,
    directory: TempDir,
}

impl Stage {
    fn start(configuration: &str, descriptors: u32, log_is_read: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        write("weir.toml", configuration);
        write("token", "sandbox.me");
        let program = weir().to_string_lossy().into_owned();
        let (listen, admin) = (free_address(), free_address());
        let worker = format!("ulimit -n {descriptors} && exec \"$0\" worker --listen {listen} --admin {admin}");
        let worker = match log_is_read {
            true => worker,
            false => format!("({worker}) 2>&1 | while read -r line; do sleep 1; done"),
        };
        let names =
            weir::overload::Signal::ALL.map(|s| format!("WEIR_OVERLOAD__{}__ENABLED", s.as_str().to_uppercase()));
        let mut variables: Vec<_> = names.iter().map(|name| (name.as_str(), "false")).collect();
        // As many threads as on a machine with two cores.
        variables.push(("TOKIO_WORKER_THREADS", "2"));
        let arguments = ["-c", &worker, &program];
        let process = Process::start("worker", directory.path(), Path::new("/bin/sh"), &arguments, &variables);
        let admin = admin.parse().expect("an address");
        wait_for("the worker serves", LONG, || try_get(admin, "/ready"));
        Stage { process, listen, admin, _runs: Vec::new(), lifecycle: Lifecycle::new(), directory }
    }

    fn submit(&mut self, load: &'static Load) {
        let client = Client::new(&format!("http://{}", self.listen)).expect("an address");
        for caller in 0..load.callers {
            let client = client.clone();
            let run = self.lifecycle.spawn("caller", async move {
                tokio::time::sleep(load.apart * caller).await;
                for turn in 0..load.times {
                    let id = format!("{}-{caller}-{turn}", load.integration).parse().expect("an id");
                    let integration = load.integration.parse().expect("a name");
                    let input = Json::parse(load.input.into()).expect("JSON");
                    let submission = Submission { timeout: load.timeout, ..Submission::new(id, integration, input) };
                    // What is refused is part of some cases.
                    if client.submit(&submission).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
            self._runs.push(run);
        }
    }

    fn metric(&self, name: &str) -> f64 {
        metric(&get(self.admin, "/metrics"), name, "")
    }

    async fn doctor(&self, flags: &[&str]) -> Output {
        doctor(&[&[self.listen.as_str()], flags].concat()).await
    }
}

async fn doctor(flags: &[&str]) -> Output {
    run(crate::cli::weir().arg("doctor").args(flags), "").await
}

fn first_line(output: &Output) -> String {
    stdout(output).lines().next().unwrap_or_default().to_owned()
}

async fn bank(latency: Duration, lifecycle: &Lifecycle) -> Sandbox {
    let mut config = config::from_text("[sandbox]\nlisten = \"127.0.0.1:0\"").expect("valid").sandbox;
    config.latency = Latency::Fixed(latency);
    Sandbox::start(config, lifecycle).await.expect("a sandbox")
}

async fn provoke(case: &'static Case) {
    let upstream = Lifecycle::new();
    let bank = bank(case.latency, &upstream).await;
    let configuration = [case.configuration, WORKER, case.payloads].concat();
    let configuration = configuration.replace("$bank", &format!("http://{}", bank.local_addr));
    let mut stage = Stage::start(&configuration, case.descriptors, case.log_is_read);
    case.loads.iter().for_each(|load| stage.submit(load));
    let mut connections = Vec::new();
    for _ in 0..case.connections {
        connections.push(TcpStream::connect(&stage.listen).await.expect("it listens"));
    }
    let (name, least) = case.until;
    let seen = || (stage.metric(name) >= least).then_some(());
    tokio::task::block_in_place(|| wait_for(name, LONG, seen));
    let mut behaviour = Behaviour::default();
    (case.then)(&mut behaviour);
    bank.set_behaviour(behaviour).expect("valid");

    let output = stage.doctor(&["--seconds", case.seconds]).await;
    let text = stdout(&output);
    assert!(text.starts_with(case.first), "{text}{}", stderr(&output));
    assert_eq!(output.status.code(), FINDINGS, "{text}");
    case.says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    println!("{text}");
}

/// A test of each case.
macro_rules! cases {
    ($($name:ident: $case:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            static CASE_OF_TEST: Case = $case;
            provoke(&CASE_OF_TEST).await;
        }
    )+};
}

cases! {
    the_integration_that_blocks_async_threads_comes_before_slots_that_are_full_of_what_waits: Case {
        configuration: "settings.max_parallelism = 10\n",
        loads: &[
            Load { integration: "blocker", input: r#"{"do": "block", "ms": 400}"#, callers: 1, ..LOAD },
            // As many slots as callers: none is kept out.
            Load { callers: 9, ..LOAD },
        ],
        first: "1. integration blocker blocks async threads",
        says: &["weir_integration_blocked_seconds", "of 2 async threads were blocked", "Context::blocking"],
        ..CASE
    };
    an_integration_that_still_blocks_an_async_thread_is_named: Case {
        loads: &[
            Load { integration: "blocker", input: r#"{"do": "block", "ms": 60000}"#, callers: 1, times: 1, ..LOAD },
            LOAD,
        ],
        until: ("weir_blocked_threads", 1.0),
        first: "1. integration blocker blocks async threads, and has not let go of one since",
        says: &["of 2 async threads were blocked", "used of overload.memory.limit_bytes"],
        ..CASE
    };
    slots_that_are_full_while_idle: Case {
        configuration: "settings.max_parallelism = 4\n",
        // As many callers as slots: one that was refused would wait for a while.
        loads: &[Load { input: r#"{"do": "sleep", "ms": 1000}"#, ..LOAD }],
        until: ("weir_tasks_total", 4.0),
        first: "1. all 4 slots are held by work that waits, and the processors are idle: N can be larger",
        says: &["weir settings raise max_parallelism --to 8 --pool default", "slots were held on average", "weir_binding_constraint"],
        ..CASE
    };
    a_socket_pool_that_waits_comes_before_slots_that_are_full_of_it: Case {
        configuration: SOCKETS,
        latency: Duration::from_millis(200),
        loads: &[Load { integration: "bank", input: "{}", callers: 20, ..LOAD }],
        until: ("weir_tasks_total", 4.0),
        first: "1. requests of integration bank wait for a socket",
        says: &["raise integrations.bank.max_connections_per_host (it is 2)", "a request waited"],
        ..CASE
    };
    encoding_that_is_behind: Case {
        payloads: ENCODING,
        loads: &[Load { input: r#"{"do": "sleep", "ms": 400, "transcript_bytes": 400000}"#, callers: 12, ..LOAD }],
        until: ("weir_payloads_dropped_total", 3.0),
        first: "1. encoding is behind",
        says: &["were lost because the queue was full", "payloads.encoder_threads", "payload_sampling"],
        ..CASE
    };
    memory_that_the_tasks_in_flight_hold: Case {
        configuration: "settings.max_parallelism = 100\n",
        loads: &[Load {
            input: r#"{"do": "allocate", "bytes": 6000000, "ms": 60000}"#,
            callers: 60,
            apart: Duration::from_millis(200),
            ..LOAD
        }],
        until: ("weir_gate_in_flight", 2.0),
        first: "1. memory grows: the tasks in flight hold it",
        says: &["process_resident_memory_bytes", "integration_weights", "the limit of 4.0 GiB is reached in"],
        ..CASE
    };
    an_upstream_that_has_become_slow_comes_before_slots_that_are_full_of_it: Case {
        configuration: SLOW,
        loads: &[Load { integration: "bank", input: "{}", callers: 12, ..LOAD }],
        until: ("weir_tasks_total", 100.0),
        then: |behaviour| behaviour.latency = Some(Latency::Fixed(Duration::from_millis(800))),
        seconds: "8",
        first: "1. the upstream of integration bank is slow",
        says: &["times as slow as before", "integration_caps"],
        ..CASE
    };
    an_upstream_that_fails: Case {
        configuration: SLOW,
        loads: &[Load { integration: "bank", input: "{}", callers: 4, ..LOAD }],
        then: |behaviour| behaviour.errors = serde_json::from_str(r#"{"share": 1.0, "status": 500}"#).ok(),
        first: "1. tasks of integration bank fail",
        says: &["HTTP exchanges: ", "5xx", "weir payload list --integration bank --outcome failed"],
        ..CASE
    };
    descriptors_that_are_nearly_used_up: Case {
        configuration: "settings.max_parallelism = 10\n",
        payloads: "uploads = 8\n",
        connections: 168,
        descriptors: 200,
        first: "1. descriptors run out",
        says: &["of 200 were open at the most", "LimitNOFILE"],
        ..CASE
    };
    blocking_threads_that_are_waited_for: Case {
        configuration: "worker.environment.blocking_threads = 2\n",
        loads: &[Load { input: r#"{"do": "ignore_cancellation", "ms": 300}"#, callers: 12, ..LOAD }],
        until: ("weir_tasks_total", 4.0),
        first: "1. closures of integrations wait for a blocking thread",
        says: &["of 2 ran, on average (weir_blocking_waiting)", "worker.environment.blocking_threads"],
        ..CASE
    };
    tasks_that_do_not_stop: Case {
        loads: &[
            Load {
                integration: "stubborn",
                input: r#"{"do": "ignore_cancellation", "ms": 120000}"#,
                callers: 2,
                timeout: Duration::from_millis(300),
                times: 1,
                ..LOAD
            },
            Load { callers: 2, ..LOAD },
        ],
        until: ("weir_tasks_overdue", 2.0),
        first: "1. tasks do not stop",
        says: &["the oldest should have stopped", "OVERDUE"],
        ..CASE
    };
    logging_that_nobody_reads_as_fast: Case {
        // Without a limit of repeats, what nobody reads is full in a moment.
        configuration: "log.level = \"trace\"\nlog.repeats = 0\n",
        loads: &[Load { input: r#"{"do": "noop"}"#, callers: 2, ..LOAD }],
        log_is_read: false,
        until: ("weir_log_lines_dropped_total", 1.0),
        first: "1. more is logged than whoever reads stderr takes",
        says: &["weir_log_lines_dropped_total", "the setting log_level is trace", "weir settings set log_level=info"],
        ..CASE
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_worker_that_is_well_nothing_stands_out() {
    static STEADY: Load = LOAD;
    let mut stage = Stage::start(&format!("settings.max_parallelism = 30\n{WORKER}"), 1024, true);
    stage.submit(&STEADY);
    let output = stage.doctor(&["--seconds", "5", "--json"]).await;
    let diagnosis = &lines(&output)[0];
    // Whatever else runs on the machine may make it late, and that is all that may stand out.
    let findings = diagnosis["findings"].as_array().expect("a list");
    assert!(findings.iter().all(|finding| finding["cause"] == "runtime_lag"), "{diagnosis}");
    let verdict = if findings.is_empty() { "healthy" } else { "findings" };
    assert_eq!(diagnosis["verdict"], verdict);
    assert_eq!(output.status.code(), if findings.is_empty() { HEALTHY } else { FINDINGS });
    let seen = &diagnosis["observations"][0];
    assert_eq!((&seen["pool"], &seen["instance"]), (&json!("default"), &json!(stage.admin.to_string())));
    assert!(seen["seconds"].as_f64() >= Some(2.0) && seen["readings"].as_u64() >= Some(3), "{seen}");
    assert!(seen["integrations"]["other"]["outcomes"]["ok"].as_f64() >= Some(10.0), "{seen}");
    assert_eq!(seen["gate"]["target"], 30.0);
    let text = stdout(&stage.doctor(&["--seconds", "3"]).await);
    for part in
        ["watched: worker ", "in pool default", "   tasks ", " ended, ", " of 30 held on average", "   payloads "]
    {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    stage.process.signal(rustix::process::Signal::TERM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tasks_there_is_not_enough_to_judge() {
    let stage = Stage::start(WORKER, 1024, true);
    let output = stage.doctor(&["--seconds", "3"]).await;
    let first = first_line(&output);
    let is_late = first.starts_with("1. the async threads are late");
    let is_idle =
        first.starts_with("not enough traffic to judge: 0 tasks in ") && output.status.code() == TOO_LITTLE_TRAFFIC;
    assert!(is_idle || is_late, "{first}{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_worker_is_named_with_what_would_be_right() {
    let upstream = Lifecycle::new();
    let bank = bank(Duration::ZERO, &upstream).await.local_addr.to_string();
    let stage = Stage::start(WORKER, 1024, true);
    let admin = stage.admin.to_string();
    assert_failed(&doctor(&["127.0.0.1:9"]).await, &["cannot reach http://127.0.0.1:9"]);
    assert_failed(&doctor(&[&admin]).await, &[&admin, "as a worker or router of weir does", "worker.listen"]);
    let no_metrics = ["has no metrics of a worker of weir", "worker.admin.listen"];
    assert_failed(&stage.doctor(&["--admin", &bank]).await, &no_metrics);
    assert_failed(
        &stage.doctor(&["--admin", "127.0.0.1:9"]).await,
        &["the worker's metrics cannot be read", "127.0.0.1:9"],
    );
    let prometheus = ["--prometheus", "prometheus"];
    assert_failed(&doctor(&prometheus).await, &["use a form such as \"http://127.0.0.1:9090\""]);
    let bank = format!("http://{bank}");
    assert_failed(&doctor(&["--prometheus", &bank]).await, &["status 404"]);
    assert_failed(&doctor(&["--prometheus", &bank, "--range", "1s"]).await, &["--range 1s is not 10s to 31 days"]);

    let directory = tempfile::tempdir().expect("a directory");
    let flags = ["router", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let variables = [("WEIR_REGISTRY__URL", "redis://127.0.0.1:9"), ("WEIR_LOG__FORMAT", "json")];
    let mut router = Process::start("router", directory.path(), &weir(), &flags, &variables);
    let line = router.wait_for_log("the router serves");
    let address = |field: &str| line[field].as_str().expect("an address").to_owned();
    assert_failed(&doctor(&[&address("listen")]).await, &["is a router, and the doctor looks at workers"]);
    let of_router = ["has the metrics of a router"];
    assert_failed(&stage.doctor(&["--admin", &address("admin")]).await, &of_router);
    router.stop();
}

const WORKER: &str = r#"
[overload.memory]
limit_bytes = 4294967296

[integrations.blocker]
kind = "synthetic"

[integrations.other]
kind = "synthetic"

[integrations.stubborn]
kind = "synthetic"

[payloads]
store = "directory"
directory.path = "payloads"
"#;

const SOCKETS: &str = r#"
settings.max_parallelism = 20
[integrations.bank]
kind = "http"
base_url = "$bank"
token = { file = "token" }
max_connections_per_host = 2
steps = [{ name = "accounts", path = "/accounts", query = { customer = "c1" } }]
"#;

const SLOW: &str = r#"
settings.max_parallelism = 12
[integrations.bank]
kind = "http"
base_url = "$bank"
token = { file = "token" }
steps = [{ name = "accounts", path = "/accounts", query = { customer = "c1" } }]
"#;

const ENCODING: &str = "queue_items = 20\nlevel = 9\nencoder_threads = 1\n";
