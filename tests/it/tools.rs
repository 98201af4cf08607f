//! The tools that operators use, as processes: describe, drain, completion.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use weir::client::operations::{Operations, OperationsError};
use weir::gate;

use crate::cli::{assert_failed, assert_ok, lines, run, stderr, stdout, weir};
use crate::support::fleet::{Answers, Plan as Processes};
use crate::support::house::{House, Plan, answer, eventually, held, submission, synthetic};
use crate::support::processes::{self, Process, wait_for};

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
    let gate = json!({"state": "open", "in_flight": 2, "slots_target": 4, "slots_held_by_interactive": 0,
        "slots_held_by_batch": 2, "slots_reserved": 0, "full_tenants": []});
    assert_eq!(worker["gate"], gate);
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
    for part in [
        "in pool default",
        "open, 2 of 4 slots held, 2 in flight",
        "running: the 1 oldest of 2 tasks",
        "hangs",
        "2 stored",
    ] {
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
    let batch = &router["queues"][1];
    assert_eq!((&batch["priority"], &batch["waiting"], &batch["capacity"]), (&json!("batch"), &json!(1), &json!(1000)));
    assert_eq!((&batch["bytes"], &router["channels"]), (&json!(4), &json!(1)));
    let tenant = json!({"name": "default", "pool": "default", "priority": "batch", "waiting": 1, "running": 1,
        "at_cap": false});
    assert_eq!(router["tenants"], json!([tenant]));
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
    assert_eq!(worker.warned(), Vec::<String>::new());
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

// ── completion

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(weir().args(["completion", shell]), "").await;
        assert_ok(&output);
        let script = stdout(&output);
        for command in ["worker", "router", "submit", "fleet", "describe", "explain", "drain", "check", "completion"] {
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
