//! The tools that operators use, as processes: fleet, describe, drain, check, completion.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use weir::client::operations::{Operations, OperationsError};
use weir::gate;

use crate::cli::{lines, run, stderr, weir};
use crate::documents::path;
use crate::support::fleet::{Answers, Plan as Processes};
use crate::support::house::{House, LONG, Plan, answer, eventually, held, submission, synthetic};
use crate::support::processes::{self, Process, wait_for};
use crate::support::redis::RedisServer;
use crate::support::s3::{ACCESS_KEY, SECRET_KEY};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
}

/// The error of a command that must fail.
fn assert_failed(output: &Output, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
}

// ── fleet

fn fleet(url: &str, flags: &[&str]) -> Command {
    let mut command = weir();
    command.arg("fleet").args(flags).env("WEIR_REGISTRY__URL", url);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_a_table_or_json_lines() {
    let house = Plan { workers: 2, max_parallelism: 1, ..Plan::default() }.start().await;
    let caller = house.submit_to_worker(1, held("t-1"));
    house.until_in_flight(1, 1).await;
    let (one, two) = (house.worker(0).id().to_string(), house.worker(1).id().to_string());

    let heard = |workers: &[Value]| workers.iter().any(|it| it["worker"] == two.as_str() && it["state"] == "full");
    let mut workers = Vec::new();
    while !heard(&workers) {
        let output = run(&mut fleet(&house.redis.url(), &["--json"]), "").await;
        assert_ok(&output);
        workers = lines(&output);
    }
    let mut ids: Vec<_> = workers.iter().map(|worker| worker["worker"].to_string()).collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.is_sorted() && ids.pop() != ids.pop());
    let full = workers.iter().find(|worker| worker["state"] == "full").expect("it is");
    assert_eq!((&full["in_flight"], &full["target"]), (&json!(1), &json!(1)));
    assert_eq!((&full["address"], &full["pool"]), (&json!(house.worker_url(1)), &json!("default")));
    assert_eq!((&full["settings_version"], full["integrations"].as_array().map(Vec::len)), (&json!("start"), Some(4)));

    // Standard output is no terminal here.
    for flags in [["--once"].as_slice(), &[]] {
        let output = run(&mut fleet(&house.redis.url(), flags), "").await;
        assert_ok(&output);
        let table = stdout(&output);
        assert!(table.starts_with("pool default: 2 workers, 1 open, 1 full; 1 of 2 slots held\n"), "{table}");
        let row = |id: &str| table.lines().find(|line| line.starts_with(id)).expect("a row").to_owned();
        assert!(row(&one).contains("open") && row(&one).contains("0/1"), "{table}");
        assert!(row(&two).contains("full") && row(&two).contains("1/1"), "{table}");
        assert!(!table.contains('\u{1b}'), "no escapes but on a terminal");
    }
    let output = run(&mut fleet(&house.redis.url(), &["--pool", "nobody"]), "").await;
    assert_ok(&output);
    assert_eq!(stdout(&output), "pool nobody: no workers\n");
    house.valve.open();
    answer(caller).await.expect("an outcome");
    house.close().await;
}

/// A command that goes on, and what it prints.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Follower {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let errors = BufReader::new(child.stderr.take().expect("piped")).lines();
        Follower { child, lines, errors }
    }

    /// The next line for people must say this.
    async fn error(&mut self, says: &str) {
        let line = tokio::time::timeout(LONG, self.errors.next_line()).await.expect("it says something");
        let line = line.expect("readable").expect("it goes on");
        assert!(line.contains(says), "{line}");
    }

    /// The next line that is as it should be.
    async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let line = self.lines.next_line().await.expect("readable").expect("it goes on");
                let line: Value = serde_json::from_str(&line).expect("a JSON line");
                if is(&line) {
                    return line;
                }
            }
        };
        tokio::time::timeout(LONG, found).await.unwrap_or_else(|_| panic!("it never came: {what}"))
    }

    async fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().expect("it runs") as i32).expect("a process");
        kill_process(pid, Signal::INT).expect("it runs");
        let status = tokio::time::timeout(LONG, self.child.wait()).await.expect("it ends").expect("waited");
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_fleet_come_as_lines_until_the_command_is_interrupted() {
    let mut house = Plan { workers: 2, max_parallelism: 1, ..Plan::default() }.start().await;
    let ids = [0, 1].map(|index| house.worker(index).id().to_string());
    let mut follower = Follower::start(&mut fleet(&house.redis.url(), &["--json", "--follow"]));
    for _ in &ids {
        let line = follower.until("everyone", |line| line["change"] == "present").await;
        assert!(ids.iter().any(|id| line["worker"] == id.as_str()), "{line}");
    }
    let caller = house.submit_to_worker(0, held("t-1"));
    follower.until("it is full", |line| line["worker"] == ids[0].as_str() && line["state"] == "full").await;
    house.valve.open();
    answer(caller).await.expect("an outcome");
    follower.until("it is open again", |line| line["worker"] == ids[0].as_str() && line["state"] == "open").await;
    house.stop_worker(1).await;
    let gone = follower.until("it has gone", |line| line["change"] == "gone").await;
    assert_eq!(gone["worker"], ids[1].as_str());
    assert_eq!(gone["incarnation"].as_str().map(str::len), Some(36));
    // A server that lost its memory: of the worker that lives there is nothing to say.
    house.redis.kill();
    follower.error("the last view stays").await;
    house.redis.start_again();
    follower.error("the registry answers again").await;
    let is_back = async || !lines(&run(&mut fleet(&house.redis.url(), &["--json"]), "").await).is_empty();
    while !is_back().await {}
    house.stop_worker(0).await;
    let next = follower.until("any line", |_| true).await;
    assert!(next["change"] == "gone" || next["state"] == "draining", "{next}");
    follower.end().await;
    house.close().await;
}

/// On a terminal that the program `script` makes.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_the_fleet_live_and_is_left_as_it_was() {
    let house = House::start().await;
    let program = format!("'{}' fleet; stty -a", processes::weir().display());
    let mut script = Command::new("script");
    script.args(["-qec", &program, "/dev/null"]).env("WEIR_REGISTRY__URL", house.redis.url()).env("TERM", "xterm");
    let started = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn();
    let Ok(mut child) = started else {
        eprintln!("skipped: there is no script here");
        return drop(house.close().await);
    };
    let (mut keys, mut shown) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut seen = String::new();
    let session = async {
        let mut buffer = [0; 4096];
        let mut asked = false;
        loop {
            let count = shown.read(&mut buffer).await.expect("readable");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if !asked && seen.contains("1 worker, 1 open") {
                keys.write_all(b"q").await.expect("it listens");
                asked = true;
            }
            if count == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, session).await.unwrap_or_else(|_| panic!("it did not end: {seen}"));
    let (table, after) = seen.split_once("\u{1b}[?1049l").expect("the second screen is left");
    assert!(table.contains("\u{1b}[?1049h") && table.contains(house.worker(0).id().as_str()), "{table}");
    assert!(after.contains(" icanon") && after.contains(" echo "), "{after}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_cannot_be_read_is_an_error_that_says_why() {
    for flags in [["--once"].as_slice(), &["--json"]] {
        let output = run(&mut fleet("redis://:hunter2@127.0.0.1:9", flags), "").await;
        assert_failed(&output, &["the registry at 127.0.0.1:9 cannot be reached"]);
        assert!(output.stdout.is_empty() && !stderr(&output).contains("hunter2"));
    }
    let output = run(weir().arg("fleet"), "").await;
    assert_failed(&output, &["registry.url", "WEIR_REGISTRY__URL"]);
    let output = run(weir().args(["fleet", "--follow"]), "").await;
    assert_eq!(output.status.code(), Some(2), "--follow needs --json");
}

// ── describe

async fn describe(address: &str, flags: &[&str]) -> Output {
    run(weir().args(["describe", address]).args(flags), "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_what_runs_and_what_hangs() {
    let house = House::start().await;
    let mut stubborn = submission("hangs", "stubborn", Value::Null);
    stubborn.timeout = Duration::from_millis(200);
    let hanging = house.submit_to_worker(0, stubborn);
    house.until_in_flight(0, 1).await;
    let running = house.submit_to_worker(0, held("runs"));
    house.until_in_flight(0, 2).await;
    let outcome = answer(hanging).await.expect("an outcome");
    assert!(outcome.result.is_err(), "it ran into its deadline");
    house.client.submit(&synthetic("done", json!({"do": "noop"}))).await.expect("an outcome");
    // A payload leaves when its task was answered, whatever still hangs.
    eventually("payloads are stored", || house.ledger(0).stored == 2).await;

    let address = house.worker(0).address().to_string();
    let output = describe(&address, &["--json"]).await;
    assert_ok(&output);
    let description = &lines(&output)[0];
    assert_eq!((&description["draining"], &description["in_flight"]), (&json!(false), &json!(2)));
    assert_eq!((&description["pool"], &description["listen"]), (&json!("default"), &json!(address)));
    assert_eq!(description["admin"], house.worker(0).admin_address().to_string());
    assert!(description["uptime_seconds"].as_f64() > Some(0.0));
    let worker = &description["role"]["worker"];
    assert_eq!(worker["id"], house.worker(0).id().as_str());
    assert_eq!(worker["address"], house.worker_url(0));
    assert_eq!(worker["gate"], json!({"state": "open", "in_flight": 2, "target": 4}));
    assert_eq!(worker["settings"]["values"]["max_parallelism"], "4");
    assert_eq!(worker["payloads"]["stored"], 2);
    let in_flight = |name: &str| {
        let all = worker["integrations"].as_array().expect("a list");
        all.iter().find(|integration| integration["name"] == name).expect("served")["in_flight"].clone()
    };
    assert_eq!([in_flight("stubborn"), in_flight("held"), in_flight("bank")], [1, 1, 0].map(|it| json!(it)));
    let runs = worker["running"].as_array().expect("a list");
    assert_eq!([&runs[0]["task_id"], &runs[1]["task_id"]], ["hangs", "runs"], "oldest first");
    assert!(runs[0]["overdue_seconds"].is_number() && runs[1]["overdue_seconds"].is_null(), "{runs:?}");
    assert_eq!((&runs[0]["remaining_seconds"], &runs[0]["tenant"]), (&json!(0.0), &json!("default")));
    assert!(runs[1]["remaining_seconds"].as_f64() > Some(1.0));

    let output = describe(&format!("http://{address}"), &["--tasks", "1"]).await;
    assert_ok(&output);
    let text = stdout(&output);
    for part in ["in pool default", "open, 2 of 4 in flight", "running: the 1 oldest of 2 tasks", "hangs", "2 stored"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert!(!text.contains("  runs "), "{text}");

    house.valve.open();
    answer(running).await.expect("an outcome");
    house.until_in_flight(0, 0).await;
    let text = stdout(&describe(&address, &[]).await);
    assert!(text.contains("nothing runs"), "{text}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_says_whom_it_knows_and_who_waits() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let callers = ["runs", "waits"].map(|id| house.submit(held(id)));
    house.until_waiting("batch", 1).await;
    let address = house.router_url();
    let output = describe(&address, &["--json"]).await;
    assert_ok(&output);
    let description = &lines(&output)[0];
    assert_eq!(description["in_flight"], 2);
    let router = &description["role"]["router"];
    assert_eq!((&router["view"]["workers"], &router["view"]["slots"]), (&json!(1), &json!(1)));
    assert_eq!((&router["view"]["slots_held"], &router["view"]["stale"]), (&json!(1), &json!(false)));
    let batch = json!({"priority": "batch", "waiting": 1, "capacity": 1000});
    assert_eq!((&router["queues"][1], &router["channels"]), (&batch, &json!(1)));
    let text = stdout(&describe(&address, &[]).await);
    for part in ["router in pool default", "2 tasks, 1 channel to workers", "1 of 1 held", "CAPACITY"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    house.valve.open();
    for caller in callers {
        answer(caller).await.expect("an outcome");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_no_weirs_is_named_with_what_would_be_right() {
    let house = House::start().await;
    let admin = house.worker(0).admin_address().to_string();
    let redis = house.redis.url().replace("redis://", "");
    for not_weir in [admin, redis, house.sandbox.local_addr.to_string()] {
        assert_failed(
            &describe(&not_weir, &[]).await,
            &[&not_weir, "as a worker or router of weir does", "worker.listen"],
        );
    }
    assert_failed(&describe("127.0.0.1:9", &[]).await, &["cannot reach http://127.0.0.1:9", "refused"]);
    assert_failed(&describe("worker-1", &[]).await, &["\"worker-1\"", "http://127.0.0.1:7400"]);
    house.close().await;
}

// ── drain

/// Runs a command of a synchronous test.
fn run_to_end(directory: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut process = Process::start(flags[0], directory, &processes::weir(), flags, &[]);
    let code = process.exit_code(processes::LONG);
    (code, process.out(), process.log())
}

#[test]
fn a_drained_worker_finishes_what_runs_and_ends_as_after_a_signal() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut fleet = Processes::default().start();
    let submit = fleet.submit(1, 1, |_| json!({"integration": "synthetic", "input": {"do": "sleep", "ms": 2_000}}));
    let address = fleet.workers[0].listen.to_string();
    wait_for("the task runs", processes::LONG, || {
        let (_, json, _) = run_to_end(directory.path(), &["describe", &address, "--json"]);
        json.contains(r#""in_flight":1"#).then_some(())
    });
    let (code, said, log) = run_to_end(directory.path(), &["drain", &address]);
    assert_eq!(code, Some(0), "{log}");
    assert!(said.contains("drains: 1 task in flight, at most 94 s"), "{said}");
    let (code, said, log) = run_to_end(directory.path(), &["drain", &address, "--wait"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(said.contains("was draining already") && said.contains("no longer serves, after "), "{said}");

    let answers = Answers::of(submit, processes::LONG);
    assert_eq!((answers.ok.len(), answers.code), (1, Some(0)), "{}", answers.summary);
    let worker = &mut fleet.workers[0].process;
    assert_eq!(worker.exit_code(processes::LONG), Some(0));
    worker.wait_for_log("asked to drain");
    assert_eq!(worker.logged(&["WARN", "ERROR"]), Vec::<String>::new());
    assert_eq!(fleet.redis.ask("ZCARD weir:{default}:members"), ":0\r\n");
    assert_eq!(fleet.stored().count(), 1, "the drain waits for the payloads");

    let address = fleet.router.listen.to_string();
    let (code, said, log) = run_to_end(directory.path(), &["drain", &address, "--wait"]);
    assert_eq!(code, Some(0), "{said}{log}");
    assert_eq!(fleet.router.process.exit_code(processes::LONG), Some(0));
    let (code, _, log) = run_to_end(directory.path(), &["drain", &address]);
    assert_eq!(code, Some(1));
    assert!(log.contains(&format!("cannot reach http://{address}")), "{log}");
}

#[test]
fn a_drain_is_refused_where_the_configuration_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let variables = [
        ("WEIR_ROUTER__DRAIN_FROM", "nowhere"),
        ("WEIR_REGISTRY__URL", "redis://127.0.0.1:9"),
        ("WEIR_LOG__FORMAT", "json"),
    ];
    let flags = ["router", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut router = Process::start("router", directory.path(), &processes::weir(), &flags, &variables);
    let line = router.wait_for_log("the router serves");
    let address = line["listen"].as_str().expect("an address");
    let (code, said, log) = run_to_end(directory.path(), &["drain", address, "--wait"]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    for part in ["refuses: nobody may drain", "SIGTERM", "router.drain_from = \"anywhere\""] {
        assert!(log.contains(part), "{part:?} is missing in {log}");
    }
    let (code, text, _) = run_to_end(directory.path(), &["describe", address]);
    assert_eq!(code, Some(0));
    assert!(text.contains("never heard") && text.contains("STALE") && !text.contains("DRAINING"), "{text}");
    router.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_its_own_is_asked_and_a_second_request_is_harmless() {
    let mut house = House::start().await;
    let server = Operations::new(&house.worker_url(0)).expect("an address");
    let asking = async { tokio::join!(server.drain(), server.drain()) };
    let (replies, ledger) = tokio::join!(asking, async {
        house.worker(0).asked_to_drain().await;
        assert_eq!(house.load(0).state, gate::State::Open, "the request alone changes nothing");
        house.stop_worker(0).await
    });
    let (first, second) = (replies.0.expect("a reply"), replies.1.expect("a reply"));
    assert!(first.at_most_seconds > 0.0 && first.at_most_seconds == second.at_most_seconds);
    assert!(ledger.balanced());
    let error = server.describe(0).await.expect_err("it has ended");
    assert!(matches!(error, OperationsError::Unreachable { .. }), "{error}");
    house.close().await;
}

// ── check

async fn check(text: &str, flags: &[&str], variables: &[(&str, &str)]) -> Output {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let variables = variables.iter().copied();
    run(weir().arg("check").args(flags).arg("--config").arg(file.path()).envs(variables), "").await
}

/// The findings of one verdict.
fn found(output: &Output, verdict: &str) -> Vec<String> {
    let of_verdict = |line: &str| line.strip_prefix(verdict).map(|rest| rest.trim_start().to_owned());
    stdout(output).lines().filter_map(of_verdict).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_configuration_is_good() {
    let example = path("deploy/weir.example.toml");
    let output = run(weir().arg("check").arg("--config").arg(&example).env("BANK_TOKEN", "sandbox.me"), "").await;
    assert_ok(&output);
    let text = stdout(&output);
    for part in ["ok     integrations.bank: ", "ok     worker: ", "ok     router: ", "all is well"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let output = run(weir().arg("check").arg("--config").arg(&example), "").await;
    assert_eq!(output.status.code(), Some(1));
    let problem = "integrations.bank.token.env: the environment has no \"BANK_TOKEN\": set it to the token";
    assert_eq!(found(&output, "wrong"), [problem]);
    let output = run(weir().args(["check", "--role", "router", "--config"]).arg(&example), "").await;
    assert_ok(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_mistakes_are_found_at_once() {
    let flags = tempfile::NamedTempFile::new().expect("a file");
    let flag = |value: f64| json!({"state": "ENABLED", "variants": {"a": value}, "defaultVariant": "a"});
    let document = json!({"flags": {"max_paralelism": flag(1.0), "payload_sampling": flag(7.0)}});
    std::fs::write(flags.path(), document.to_string()).expect("written");
    let text = MISTAKES.replace("$flags", &flags.path().to_string_lossy());
    let output = check(&text, &[], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let found = found(&output, "wrong");
    let expected = [
        "worker.listen: \"nowhere\"",
        "wroker: unknown field",
        "router.default_timeout: 2h must be",
        "router.queue_tasks: 0 would",
        "registry.url: not valid",
        "payloads.s3.bucket: \"\"; name",
        "sandbox.response_bytes: 99999999999",
        "integrations.kind.kind: there is no \"smtp\": use one of \"http\"",
        "integrations.url.base_url: \"ftp://x\"",
        "integrations.template.steps[0].path: ",
        "integrations.token.token.env: the environment has no \"NOPE\"",
        "settings.file: ",
        "settings.file: ",
    ];
    for part in expected {
        assert!(found.iter().any(|line| line.starts_with(part)), "{part:?} is missing in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    let all = stdout(&output);
    assert!(all.contains("ok     integrations.good: ") && all.contains("max_paralelism"), "{all}");
    assert!(!all.contains("hunter2") && all.ends_with("13 problems\n"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_integration_is_one_problem_and_its_secret_is_not_shown() {
    let text = "[integrations.x]\nkind = \"http\"\ntoken = \"abc-S3CRET\"\n";
    let output = check(text, &["--role", "worker"], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let expected = "integrations.x.token: a secret does not belong in the configuration: use { env = \"NAME\" } or \
                    { file = \"PATH\" }";
    assert_eq!(found(&output, "wrong"), [expected]);
    let all = format!("{}{}", stdout(&output), stderr(&output));
    assert!(all.contains("1 problem\n") && !all.contains("S3CRET"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_its_own_needs() {
    let nothing_runs = ["integrations: none is configured", "registry.url: not set: a router needs"];
    for (text, role, expected) in [
        ("", "all", nothing_runs.as_slice()),
        ("", "worker", &nothing_runs[..1]),
        ("", "router", &nothing_runs[1..]),
        ("", "sandbox", &[]),
        (
            "[worker]\nlisten = \"0.0.0.0:7401\"\n[integrations.a]\nkind = \"synthetic\"",
            "worker",
            &["worker.advertise: "],
        ),
        ("[integrations.a]\nkind = \"synthetic\"", "worker", &[]),
        ("[worker", "all", &["configuration: cannot read the configuration file"]),
    ] {
        let output = check(text, &["--role", role], &[]).await;
        let found = found(&output, "wrong");
        let as_expected = found.iter().zip(expected).all(|(line, expected)| line.starts_with(expected));
        assert!(as_expected && found.len() == expected.len(), "{text:?} as {role}: {found:#?}");
        assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_names_is_reached_on_request() {
    let house = House::start().await;
    let text = |bank: &str, redis: &str| {
        let text = REACHABLE.replace("$bank", bank).replace("$redis", redis);
        text.replace("$s3", &house.s3.endpoint())
    };
    let bank = format!("http://{}", house.sandbox.local_addr);
    let variables = |secret| [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", secret)];
    let redis = house.redis.url();

    let output = check(&text(&bank, &redis), &["--connect"], &variables(SECRET_KEY)).await;
    assert_ok(&output);
    let fine = found(&output, "ok").join("\n");
    for part in [
        format!("integrations.bank: {bank} takes connections, "),
        format!("registry: redis 7.0.15 at {}, ", redis.replace("redis://", ""))
            .replace("7.0.15", &version(&house.redis)),
        "1 worker in pool default".to_owned(),
        "payloads: stored s3://weir/payloads/weir-check, ".to_owned(),
        "worker.listen: 127.0.0.1:0 is free".to_owned(),
        "settings.max_parallelism: this process may open ".to_owned(),
    ] {
        assert!(fine.contains(&part), "{part:?} is missing in {fine}");
    }
    assert!(house.bucket().join("payloads/weir-check").exists());
    assert_eq!(house.sandbox.stats().all.total, 0, "nothing was asked of the bank");

    let output = check(&text("https://127.0.0.1:9", "redis://127.0.0.1:9"), &["--connect"], &variables("wrong")).await;
    assert_eq!(output.status.code(), Some(1));
    let wrong = found(&output, "wrong").join("\n");
    for part in [
        "integrations.bank: https://127.0.0.1:9: no connection: ",
        "registry: the registry at 127.0.0.1:9 cannot be reached: ",
        "payloads: could not store s3://weir/payloads/weir-check",
        "check key, secret and clock",
    ] {
        assert!(wrong.contains(part), "{part:?} is missing in {wrong}");
    }
    let taken = house.worker(0).address();
    let output = check(&format!("[worker]\nlisten = \"{taken}\""), &["--role", "worker", "--connect"], &[]).await;
    assert!(found(&output, "wrong").join("\n").contains(&format!("worker.listen: cannot listen on {taken}")));
    house.close().await;
}

fn version(redis: &RedisServer) -> String {
    let info = redis.ask("INFO server");
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    version.expect("it says").trim().to_owned()
}

// ── completion

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(weir().args(["completion", shell]), "").await;
        assert_ok(&output);
        let script = stdout(&output);
        for command in ["worker", "router", "submit", "fleet", "describe", "drain", "check", "completion"] {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
    let script = stdout(&run(weir().args(["completion", "bash"]), "").await);
    let mut bash = Command::new("bash");
    let output = run(
        bash.arg("-c").arg(format!("{script}\nCOMP_WORDS=(weir dr) COMP_CWORD=1; _weir weir dr weir; echo $COMPREPLY")),
        "",
    )
    .await;
    assert_eq!(stdout(&output), "drain\n", "{}", stderr(&output));
}

const MISTAKES: &str = r#"
[worker]
listen = "nowhere"
[router]
queue_tasks = 0
default_timeout = "2h"
[settings]
file = "$flags"
[wroker]
x = 1
[registry]
url = "http://u:hunter2@x"
[payloads]
store = "s3"
[sandbox]
response_bytes = 99999999999
[integrations.kind]
kind = "smtp"
[integrations.url]
kind = "http"
base_url = "ftp://x"
steps = [{ name = "a", path = "/x" }]
[integrations.template]
kind = "http"
base_url = "http://127.0.0.1:9"
steps = [{ name = "a", path = "/x/{{ nope( }}" }]
[integrations.token]
kind = "http"
base_url = "http://127.0.0.1:9"
token = { env = "NOPE" }
steps = [{ name = "a", path = "/x" }]
[integrations.good]
kind = "synthetic"
"#;

const REACHABLE: &str = r#"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[router]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[sandbox]
listen = "127.0.0.1:0"
[registry]
url = "$redis"
[payloads]
store = "s3"
[payloads.s3]
bucket = "weir"
path_style = true
endpoint = "$s3"
[integrations.bank]
kind = "http"
base_url = "$bank"
connect_timeout = "5s"
steps = [{ name = "accounts", path = "/accounts" }]
"#;
