//! The programs as separate processes: signals, exit codes, a whole day's work in half a minute, and a sudden death.
//!
//! The three runs of 10,000 tasks belong to the full lane (`tests/run --full`), which gives them a release build. Each
//! prints its numbers.

mod outage;
mod seen;
mod soak;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::fleet::{Answers, Fleet, Plan, Server};
use crate::support::processes::{LONG, Process, example, get, metric, try_get, wait_for, weir};

/// Tasks of a long run.
const TASKS: usize = 10_000;

/// N of each of its two workers.
const PARALLELISM: u32 = 100;

/// What may be under way at the same time in a long run: twice what the workers take, so that the router's queue works.
const CONCURRENCY: usize = 400;

/// How long one of them may take; half a minute is usual.
const RUN_WITHIN: Duration = Duration::from_secs(300);

/// How soon a dead worker is out of the router's view.
const OUT_OF_VIEW_WITHIN: Duration = Duration::from_secs(6);

fn pull(number: usize) -> Value {
    json!({"integration": "bank", "input": {"customer": format!("c{number}")}})
}

#[test]
fn a_stop_in_the_middle_loses_nothing() {
    let mut fleet = Plan { latency: "400ms", ..Plan::default() }.start();
    let submit = fleet.submit(50, 50, pull);
    wait_for("all tasks are at the bank", LONG, || (fleet.bank().clients.get("w1")?.in_flight == 50).then_some(()));
    fleet.router.process.signal(Signal::TERM);
    fleet.workers[0].process.signal(Signal::TERM);
    let answers = Answers::of(submit, LONG);
    assert_eq!((answers.ok.len(), answers.code), (50, Some(0)), "{}", answers.summary);
    for server in [&mut fleet.router, &mut fleet.workers[0]] {
        assert_eq!(server.process.exit_code(LONG), Some(0));
        assert_eq!(server.process.warned(), Vec::<String>::new());
    }
    assert_eq!(fleet.stored().count(), 50, "the stop waits for the payloads");
    assert!(fleet.bank().clients["w1"].max_in_flight <= 50);
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut fleet = Plan::default().start();
    let submit = fleet.submit(1, 1, |_| json!({"integration": "synthetic", "input": {"do": "sleep", "ms": 60_000}}));
    let admin = fleet.workers[0].admin;
    let running = || metric(&get(admin, "/metrics"), "weir_gate_in_flight", "");
    wait_for("the task runs", LONG, || (running() == 1.0).then_some(()));
    let worker = &mut fleet.workers[0].process;
    worker.signal(Signal::TERM);
    worker.wait_for_log("draining");
    worker.signal(Signal::INT);
    let signalled = Instant::now();
    assert_eq!(worker.exit_code(LONG), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
    assert!(worker.log().contains("a second signal"), "{}", worker.log());

    let answers = Answers::of(submit, LONG);
    assert_eq!(answers.code, Some(1));
    assert_eq!(answers.others, BTreeMap::from([("OUTCOME_UNKNOWN".to_owned(), 1)]), "{}", answers.summary);
}

#[test]
fn redis_may_come_last() {
    let mut fleet = Plan { redis_away: true, ..Plan::default() }.start();
    assert!(try_get(fleet.workers[0].admin, "/ready").is_some(), "a worker serves without Redis");
    assert!(try_get(fleet.router.admin, "/live").is_some());
    assert!(try_get(fleet.router.admin, "/ready").is_none(), "a router that has never heard of a worker cannot");
    let submit = fleet.submit(5, 5, pull);
    wait_for("the tasks wait", LONG, || {
        (metric(&get(fleet.router.admin, "/metrics"), "weir_router_queue_tasks", "batch") == 5.0).then_some(())
    });
    fleet.redis.start_again();
    let answers = Answers::of(submit, LONG);
    assert_eq!((answers.ok.len(), answers.code), (5, Some(0)), "{}", answers.summary);
    assert!(try_get(fleet.router.admin, "/ready").is_some());
    fleet.stop();
}

#[test]
fn two_workers_of_one_id_both_say_where_the_other_lives() {
    let fleet = Plan::default().start();
    let mut newcomer = fleet.one_more("newcomer", "w1");
    let [first, second] = [&fleet.workers[0], &newcomer].map(|worker| format!("http://{}", worker.listen));
    let said = |process: &Process, what: &str| process.log().contains(what).then_some(());
    let says = format!("another worker of the id w1 lives at {first}: routers see this one alone from now on");
    wait_for("the newcomer says it", LONG, || said(&newcomer.process, &says));
    let says = format!("another one of the id w1 lives at {second}, and routers see that one alone");
    wait_for("the first one says it", LONG, || said(&fleet.workers[0].process, &says));
    assert_eq!(fleet.known_workers(), 1);
    newcomer.process.stop();
    let says = "the other worker of this id is gone: routers see this one";
    wait_for("the first one is announced again", LONG, || said(&fleet.workers[0].process, says));
    fleet.stop();
}

#[test]
fn the_example_of_an_own_integration_runs() {
    let fleet = Plan { latency: "5ms", ..Plan::default() }.start();
    let directory = tempfile::tempdir().expect("a directory");
    let program = example("own_integration", "WEIR_TEST_OWN_INTEGRATION");
    let bank = format!("http://{}", fleet.sandbox.listen);
    let flags = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let variables = [("BANK_URL", bank.as_str()), ("WEIR_LOG__FORMAT", "json"), ("WEIR_PAYLOADS__STORE", "directory")];
    // Nothing is configured: what it serves is its own.
    let check = ["check", "--role", "worker"];
    let mut check = Process::start("check", directory.path(), &program, &check, &variables);
    assert_eq!(check.exit_code(LONG), Some(0), "{}", check.out());
    let mut worker = Process::start("own", directory.path(), &program, &flags, &variables);
    let line = worker.wait_for_log("the worker serves");
    let to = format!("http://{}", line["listen"].as_str().expect("an address"));
    let submit = |input: &str| {
        let flags = ["submit", "--to", &to, "--integration", "spending", "--input", input];
        let mut submit = Process::start("submit", directory.path(), &weir(), &flags, &[]);
        let code = submit.exit_code(LONG);
        (code, serde_json::from_str::<Value>(&submit.out()).expect("a JSON line"))
    };

    let (code, answer) = submit(r#"{"customer":"c1"}"#);
    assert_eq!(code, Some(0), "{answer}");
    let report = &answer["output"];
    let spent = report["spent"].as_array().expect("a list");
    assert!(!spent.is_empty() && spent.is_sorted_by_key(|it| -it["cents"].as_i64().expect("cents")), "{report}");

    let (code, answer) = submit(r#"{"customer":1}"#);
    let message = answer["failure"]["message"].as_str().expect("a message");
    assert!(code == Some(1) && message.contains("expected a string"), "{answer}");

    worker.stop();
    fleet.stop();

    // Without bank and secret, what the worker has stored is run again by the same program.
    let stored = stored(&directory.path().join("payloads"));
    assert_eq!(stored.len(), 2, "{stored:?}");
    for payload in stored {
        let payload = payload.to_str().expect("a path");
        let flags = ["payload", "replay", payload, "--json"];
        let mut replay = Process::start("replay", directory.path(), &program, &flags, &[]);
        let (code, out) = (replay.exit_code(LONG), replay.out());
        let replayed: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{}", replay.log()));
        assert_eq!((code, &replayed["same"]), (Some(0), &Value::from(true)), "{replayed}");
        let requests = replayed["requests"].as_array().expect("a list");
        assert!(requests.iter().all(|request| request["change"] == "same"), "{replayed}");
    }
}

/// The files below a directory.
fn stored(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { stored(&path) } else { vec![path] }).collect()
}

#[test]
#[ignore = "10,000 tasks: the full lane, tests/run --full"]
fn ten_thousand_tasks() {
    let fleet = long_run();
    let answers = Answers::of(fleet.submit(TASKS, CONCURRENCY, pull), RUN_WITHIN);
    println!("clean: {}", answers.summary);
    assert_eq!((answers.ok.len(), answers.code), (TASKS, Some(0)), "{:?}", answers.others);
    for worker in &fleet.workers {
        check_ledger_at_rest(worker, &answers);
    }
    let bank = check_parallelism(&fleet);
    assert_eq!((bank.in_flight, bank.total), (0, 2 * TASKS as u64), "each task asks twice, and only once");

    let stored = check_payloads(&fleet);
    assert_eq!(stored.tasks, answers.ok, "one payload per task");
    assert_eq!(stored.by_worker, answers.by_worker);
    for process in [&fleet.router.process, &fleet.workers[0].process, &fleet.workers[1].process] {
        assert_eq!(process.warned(), Vec::<String>::new());
    }
    fleet.stop();
}

#[test]
#[ignore = "10,000 tasks: the full lane, tests/run --full"]
fn ten_thousand_tasks_and_a_worker_is_killed() {
    let mut fleet = long_run();
    let submit = fleet.submit(TASKS, CONCURRENCY, pull);
    half_way(&submit);
    let mut killed = fleet.workers.remove(1);
    killed.process.signal(Signal::KILL);
    let at = Instant::now();
    let left = || (fleet.known_workers() == 1).then(|| at.elapsed());
    let out_of_view = wait_for("the killed worker leaves the view", OUT_OF_VIEW_WITHIN, left);
    assert_eq!(killed.process.exit_code(LONG), None, "ended by the signal");

    let answers = Answers::of(submit, RUN_WITHIN);
    let unknown = answers.others.get("OUTCOME_UNKNOWN").copied().unwrap_or_default();
    println!("one worker killed: {}; out of the view after {out_of_view:?}", answers.summary);
    assert_eq!(answers.others.keys().collect::<Vec<_>>(), ["OUTCOME_UNKNOWN"], "{:?}", answers.others);
    assert!((1..=PARALLELISM as usize).contains(&unknown), "{unknown} calls were in flight");
    assert_eq!(answers.ok.len() + unknown, TASKS);
    check_ledger_at_rest(&fleet.workers[0], &answers);
    check_parallelism(&fleet);

    let stored = check_payloads(&fleet);
    assert_eq!(stored.by_worker["w1"], answers.by_worker["w1"]);
    // A run may have ended and left its payload in the moment when its answer was lost.
    let most = answers.by_worker["w2"] + unknown;
    assert!(stored.by_worker["w2"] <= most, "{} stored, {most} ran", stored.by_worker["w2"]);
    println!("one worker killed: {} of its payloads died with it", most - stored.by_worker["w2"]);
    fleet.stop();
}

#[test]
#[ignore = "10,000 tasks: the full lane, tests/run --full"]
fn ten_thousand_tasks_and_a_worker_is_stopped() {
    let mut fleet = long_run();
    let submit = fleet.submit(TASKS, CONCURRENCY, pull);
    half_way(&submit);
    let mut stopped = fleet.workers.remove(1).process;
    let at = Instant::now();
    stopped.stop();
    let took = at.elapsed();
    let answers = Answers::of(submit, RUN_WITHIN);
    println!("one worker stopped: {}; it took {took:?} to stop", answers.summary);
    assert_eq!((answers.ok.len(), answers.code), (TASKS, Some(0)), "{:?}", answers.others);
    let ledger = stopped.logged(&["INFO"]).into_iter().find(|line| line.contains("payloads: ")).expect("its ledger");
    let by_it = answers.by_worker["w2"];
    assert!(ledger.contains(&format!("{by_it} offered, {by_it} stored, 0 dropped, 0 pending")), "{by_it}: {ledger}");
    check_ledger_at_rest(&fleet.workers[0], &answers);
    check_parallelism(&fleet);

    let stored = check_payloads(&fleet);
    assert_eq!(stored.tasks, answers.ok, "one payload per task");
    assert_eq!(stored.by_worker, answers.by_worker);
    for process in [&fleet.router.process, &fleet.workers[0].process, &stopped] {
        assert_eq!(process.warned(), Vec::<String>::new());
    }
    fleet.stop();
}

fn long_run() -> Fleet {
    Plan { workers: 2, max_parallelism: PARALLELISM, latency: "250ms", s3: true, ..Plan::default() }.start()
}

fn half_way(submit: &Process) {
    wait_for("half of the tasks are done", RUN_WITHIN, || (submit.lines_out() >= TASKS / 2).then_some(()));
}

/// Each payload of a worker is stored, as its own numbers say and as the callers' answers say.
fn check_ledger_at_rest(worker: &Server, answers: &Answers) {
    let column = |name: &str| metric(&get(worker.admin, "/metrics"), name, "") as usize;
    wait_for("no payload is pending", LONG, || (column("weir_payloads_pending") == 0).then_some(()));
    let names = ["weir_payloads_offered_total", "weir_payloads_stored_total", "weir_payloads_dropped_total"];
    let [offered, stored, dropped] = names.map(column);
    println!("a worker's ledger: {offered} offered, {stored} stored, {dropped} dropped, 0 pending");
    assert_eq!((offered, dropped), (stored, 0));
    assert!(answers.by_worker.values().any(|answered| *answered == offered), "{offered}: {:?}", answers.by_worker);
}

/// The bank never saw more of a worker than its N.
fn check_parallelism(fleet: &Fleet) -> weir::sandbox::Counts {
    let bank = fleet.bank();
    for (client, counts) in &bank.clients {
        println!("at the bank, {client}: {} at the most, {} in all", counts.max_in_flight, counts.total);
        assert!(counts.max_in_flight <= u64::from(PARALLELISM), "{client}: {counts:?}");
    }
    assert_eq!(bank.clients.len(), 2);
    bank.all
}

#[derive(Default)]
struct StoredPayloads {
    tasks: BTreeSet<String>,
    by_worker: BTreeMap<String, usize>,
}

/// Every stored payload decodes, is what its name says, is whole, and holds no token.
fn check_payloads(fleet: &Fleet) -> StoredPayloads {
    let mut stored = StoredPayloads::default();
    for (id, text) in fleet.stored() {
        assert!(!text.contains("sandbox.w"), "a token is in the payload of {id}");
        let payload: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(payload["task"]["id"], *id);
        let entries = payload["transcript"]["log"]["entries"].as_array().expect("exchanges");
        let statuses: Vec<_> = entries.iter().map(|entry| entry["response"]["status"].as_u64()).collect();
        assert_eq!(statuses, [Some(200); 2], "{id}");
        let worker = payload["outcome"]["worker"].as_str().expect("a worker").to_owned();
        *stored.by_worker.entry(worker).or_default() += 1;
        assert!(stored.tasks.insert(id), "one payload per task");
    }
    println!("payloads in S3, all decoded: {}", stored.tasks.len());
    stored
}
