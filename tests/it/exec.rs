//! Programs in Node and in Python behind `exec`: a worker as a process of its own, with the files of `sdk`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir::payload::key::SUFFIX;

use crate::documents::{path, read};
use crate::support::processes::{LONG, Process, get, metric, wait_for, weir};

const TASKS: usize = 1_000;
const IN_FLIGHT: &str = "100";

/// N of the worker: a task that hangs is answered for at its deadline, and keeps its place until its process is ended.
const MAX_PARALLELISM: &str = "101";

/// Tasks that one process has at a time, as both programs announce.
const CONCURRENCY: usize = 40;

struct Setup {
    worker: Process,
    listen: SocketAddr,
    admin: SocketAddr,
    sandbox: Process,
    directory: TempDir,
}

/// What a task came to, as `weir submit` says it.
type Answers = BTreeMap<String, Value>;

impl Setup {
    /// A worker with one integration, `program`, of this command.
    fn start(command: &[&str], latency: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let variables = [("WEIR_LOG__FORMAT", "json"), ("WEIR_LOG__LEVEL", "info,weir::integration::exec=debug")];
        std::fs::write(directory.path().join("weir.toml"), "[sandbox]\nresponse_bytes = 2000").expect("written");
        let flags = ["sandbox", "--listen", "127.0.0.1:0", "--latency", latency];
        let mut sandbox = Process::start("sandbox", directory.path(), &weir(), &flags, &variables);
        let bank = sandbox.wait_for_log("the sandbox bank answers")["listen"].as_str().expect("an address").to_owned();
        let configuration =
            CONFIGURATION.replace("$command", &json!(command).to_string()).replace("$bank", &format!("http://{bank}"));
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
        let flags =
            ["worker", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--max-parallelism", MAX_PARALLELISM];
        // A secret of the worker's, which no program may see.
        let variables = [&variables[..], &[("AWS_SECRET_ACCESS_KEY", "CANARY")]].concat();
        let mut worker = Process::start("worker", directory.path(), &weir(), &flags, &variables);
        let line = worker.wait_for_log("the worker serves");
        let address = |field: &str| line[field].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Setup { listen: address("listen"), admin: address("admin"), worker, sandbox, directory }
    }

    fn submit(&self, tasks: &[Value]) -> Process {
        let lines: String = tasks.iter().map(|task| format!("{task}\n")).collect();
        std::fs::write(self.directory.path().join("tasks.jsonl"), lines).expect("written");
        let to = format!("http://{}", self.listen);
        let flags = ["submit", "tasks.jsonl", "--to", &to, "--concurrency", IN_FLIGHT, "--integration", "program"];
        Process::start("submit", self.directory.path(), &weir(), &flags, &[])
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        metric(&get(self.admin, "/metrics"), name, label)
    }

    /// The processes that were ready, in that order.
    fn pids(&self) -> Vec<i32> {
        let lines = self.worker.lines_logged().into_iter();
        let ready = lines.filter(|line| line["message"] == "a process is ready");
        ready.map(|line| line["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a pid")).collect()
    }

    fn payloads(&self) -> BTreeMap<String, Value> {
        let (mut folders, mut payloads) = (vec![self.directory.path().join("payloads")], BTreeMap::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    folder if folder.is_dir() => folders.push(folder),
                    file if file.to_string_lossy().ends_with(SUFFIX) => {
                        let (id, payload) = payload(&file);
                        payloads.insert(id, payload);
                    }
                    _ => {}
                }
            }
        }
        payloads
    }

    /// Stops everything in order; no process of a program may be left.
    fn stop(mut self) -> BTreeMap<String, Value> {
        let pids = self.pids();
        assert!(!pids.is_empty());
        // On a slow machine they take longer than a stop waits for them.
        wait_for("all payloads are stored", LONG, || (self.metric("weir_payloads_pending", "") == 0.0).then_some(()));
        self.worker.stop();
        for pid in pids {
            assert!(test_kill_process(Pid::from_raw(pid).expect("a pid")).is_err(), "process {pid} is left");
        }
        self.sandbox.stop();
        self.payloads()
    }
}

fn payload(file: &Path) -> (String, Value) {
    let text = weir::payload::decode(&std::fs::read(file).expect("readable"), Default::default()).expect("it decodes");
    assert!(!text.contains("sandbox.tests"), "a token is in {}", file.display());
    let payload: Value = serde_json::from_str(&text).expect("JSON");
    (payload["task"]["id"].as_str().expect("an id").to_owned(), payload)
}

fn answers(mut submit: Process) -> Answers {
    submit.exit_code(3 * LONG);
    let lines = submit.out();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"));
    lines.map(|line| (line["task_id"].as_str().expect("an id").to_owned(), line)).collect()
}

/// `ok`, the failure's reason, or its code where it has none.
fn came_to(answer: &Value) -> &str {
    match answer["ok"] == true {
        true => "ok",
        false => {
            let failure = &answer["failure"];
            failure["reason"].as_str().or(failure["code"].as_str()).unwrap_or_else(|| panic!("an outcome: {answer}"))
        }
    }
}

/// The process that a task ran in, as far as it came to say so.
fn pid_of(payload: &Value) -> Option<i32> {
    let notes = payload["transcript"]["log"]["_notes"].as_array()?;
    notes.iter().find_map(|note| note["text"].as_str()?.strip_prefix("pid ")?.parse().ok())
}

fn statuses(payload: &Value) -> Vec<u64> {
    let entries = payload["transcript"]["log"]["entries"].as_array().expect("entries");
    entries.iter().filter_map(|entry| entry["response"]["status"].as_u64()).collect()
}

/// 1,000 tasks at 100 in flight; in the middle of them one process is killed, and another hangs.
fn a_thousand_tasks(program: &[&str]) {
    let setup = Setup::start(program, "20ms");
    let task = |n: usize| match n {
        300 => json!({"id": "killed", "input": {"do": "die"}, "timeout": "50s"}),
        700 => json!({"id": "hung", "input": {"do": "hang"}, "timeout": "3s"}),
        n => json!({"id": format!("t-{n}"), "input": {"customer": format!("c{}", n % 7)}, "timeout": "50s"}),
    };
    let answers = answers(setup.submit(&(0..TASKS).map(task).collect::<Vec<_>>()));

    assert_eq!(answers.len(), TASKS);
    let mut counts = BTreeMap::<&str, usize>::new();
    answers.values().for_each(|answer| *counts.entry(came_to(answer)).or_default() += 1);
    println!("{program:?}: {counts:?}");
    let count = |word: &str| counts.get(word).copied().unwrap_or_default();
    assert_eq!(came_to(&answers["hung"]), "deadline");
    assert_eq!(answers["killed"]["failure"]["message"], "the process was ended by signal 9");
    assert_eq!(count("deadline"), 1, "{counts:?}");
    assert!((1..=CONCURRENCY).contains(&count("process_crashed")), "{counts:?}");
    assert!(count("process_stopped") < CONCURRENCY, "{counts:?}");
    let fair = count("ok") + count("deadline") + count("process_crashed") + count("process_stopped");
    assert_eq!(fair, TASKS, "{counts:?}");
    for answer in answers.values().filter(|answer| came_to(answer).starts_with("process_")) {
        let failure = &answer["failure"];
        assert_eq!((&failure["code"], &failure["remedy"]), (&json!("integration_error"), &json!("retry")), "{answer}");
    }
    let idle = || setup.metric("weir_exec_busy", "") == 0.0 && setup.metric("weir_gate_in_flight", "") == 0.0;
    wait_for("all places are free", LONG, || idle().then_some(()));
    assert_eq!(setup.metric("weir_exec_restarts_total", r#"cause="crashed""#), 1.0);
    assert_eq!(setup.metric("weir_exec_restarts_total", r#"cause="hung""#), 1.0);

    let payloads = setup.stop();
    assert_eq!(payloads.len(), TASKS);
    let [killed, hung] = ["killed", "hung"].map(|id| pid_of(&payloads[id]));
    let may_be = |pid: Option<i32>, of: Option<i32>| pid.is_none() || of.is_none() || pid == of;
    for (id, answer) in &answers {
        let payload = &payloads[id];
        match came_to(answer) {
            "ok" => assert_eq!(statuses(payload), [200, 200], "{id}"),
            // On a slow machine a task may end before its program has begun it: then it has no pid.
            "process_crashed" => assert!(may_be(pid_of(payload), killed), "{id}"),
            _ => assert!(may_be(pid_of(payload), hung), "{id}"),
        }
    }
}

fn program(name: &str) -> String {
    path(&format!("tests/it/exec/{name}")).to_string_lossy().into_owned()
}

#[test]
fn a_thousand_tasks_in_node_and_the_faults_of_a_process_stay_in_it() {
    a_thousand_tasks(&["node", &program("program.mjs")]);
}

#[test]
fn a_thousand_tasks_in_python_and_the_faults_of_a_process_stay_in_it() {
    a_thousand_tasks(&["python3", &program("program.py")]);
}

/// At the deadline each program is told to stop, does so, and its process goes on.
#[test]
fn deadlines_reach_what_waits_for_the_network_or_sleeps() {
    let (node, python) = (program("program.mjs"), program("program.py"));
    for command in [&["node", &node][..], &["python3", &python], &["python3", &python, "async"]] {
        let setup = Setup::start(command, "60s");
        wait_for("processes are ready", LONG, || (setup.pids().len() == 3).then_some(()));
        let task = |n| json!({"id": format!("t-{n}"), "input": {"do": "wait", "customer": "c1"}, "timeout": "2s"});
        let answers = answers(setup.submit(&(0..10).map(task).collect::<Vec<_>>()));
        assert!(answers.values().all(|answer| came_to(answer) == "deadline"), "{answers:?}");
        wait_for("all have stopped", LONG, || (setup.metric("weir_exec_busy", "") == 0.0).then_some(()));
        assert_eq!(setup.metric("weir_exec_restarts_total", ""), 0.0, "{command:?}: nobody was ended for it");
        assert_eq!(setup.pids().len(), 3);
        setup.stop();
    }
}

#[test]
fn what_nobody_waits_for_fails_the_task_that_lost_it() {
    let setup = Setup::start(&["node", &program("program.mjs")], "5ms");
    let tasks = [
        json!({"id": "loses", "input": {"do": "lose"}, "timeout": "50s"}),
        json!({"id": "other", "input": {"customer": "c1"}, "timeout": "50s"}),
    ];
    let answers = answers(setup.submit(&tasks));
    assert_eq!(answers["loses"]["failure"]["message"], "nobody waits for this");
    assert_eq!(came_to(&answers["other"]), "ok");
    setup.stop();
}

/// A second signal ends the worker at once: what it has started ends with it, whatever that does with its stdin.
#[test]
fn a_second_signal_leaves_no_program() {
    let mut setup = Setup::start(&["node", &program("program.mjs")], "5ms");
    wait_for("processes are ready", LONG, || (setup.pids().len() == 3).then_some(()));
    let pids = setup.pids();
    let mut submit = setup.submit(&[json!({"id": "hung", "input": {"do": "hang"}, "timeout": "50s"})]);
    wait_for("it runs", LONG, || (setup.metric("weir_exec_busy", "") == 1.0).then_some(()));
    setup.worker.signal(Signal::TERM);
    setup.worker.wait_for_log("draining");
    setup.worker.signal(Signal::TERM);
    assert_eq!(setup.worker.exit_code(LONG), Some(130));
    wait_for("no process is left", LONG, || pids.iter().all(|pid| !runs(*pid)).then_some(()));
    submit.exit_code(LONG);
    setup.sandbox.stop();
}

/// Whoever reaps the orphans of this machine may be late: a zombie has ended.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|fields| !fields.is_empty() && !fields.trim_start().starts_with('Z'))
}

/// The examples as their configuration starts them, except for where the bank is.
#[test]
fn the_examples_run_as_they_are_configured() {
    let configured = weir::config::from_text(&read("examples/exec/weir.toml")).expect("valid");
    let mut commands = BTreeSet::new();
    for integration in configured.integrations.values() {
        let weir::integration::Config::Exec(exec) = integration else { panic!("only exec is in it") };
        let [program, file] = &exec.command[..] else { panic!("a program and a file") };
        commands.insert([program.clone(), path(file).to_string_lossy().into_owned()]);
    }
    assert_eq!(commands.len(), 2);
    for [program, file] in &commands {
        let setup = Setup::start(&[program, file], "5ms");
        let tasks = [json!({"id": "good", "input": {"customer": "c1"}}), json!({"id": "bad", "input": 5})];
        let answers = answers(setup.submit(&tasks));
        assert!(answers["good"]["output"]["transactions"].as_u64().is_some_and(|count| count > 0), "{answers:?}");
        assert_eq!(answers["bad"]["failure"]["message"], "the input needs a \"customer\"");
        let payloads = setup.stop();
        assert_eq!(statuses(&payloads["good"]), [200, 200]);
        let notes = payloads["good"]["transcript"]["log"]["_notes"].to_string();
        assert!(notes.contains(" transactions"), "{notes}");
    }
}

/// Files that programs copy: whoever reads docs/exec.md finds them where it says.
#[test]
fn the_protocol_page_names_files_that_exist() {
    let page = read("docs/exec.md");
    for file in ["sdk/node/weir.mjs", "sdk/python/weir.py", "examples/exec/weir.toml"] {
        assert!(page.contains(file) && path(file).exists(), "{file}");
    }
}

const CONFIGURATION: &str = r#"
[integrations.program]
kind = "exec"
command = $command
variables = { BANK_URL = "$bank", BANK_TOKEN = "sandbox.tests" }
processes = 3
cancel_grace = "1s"
start_timeout = "1m"

[payloads]
store = "directory"
"#;
