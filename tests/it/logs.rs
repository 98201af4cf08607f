//! Logs as a collector gets them: their fields are those of the page and of the schema, lines of a run name it, the level
//! changes while a worker runs, and a reader that is gone or has stopped keeps nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::Request;
use weir::settings::flagd;
use weir::telemetry::logs::FIELDS;
use weir::wire::proto::Task;
use weir::wire::proto::tasks_client::TasksClient;

use crate::documents::{path, read};
use crate::support::fleet::Plan;
use crate::support::processes::{LONG, Process, get, metric, try_get, wait_for, weir};
use crate::support::site::free_address;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

// ── the page

#[test]
fn the_page_has_the_fields_that_the_code_has() {
    let page = read("docs/logs.md");
    let (_, rest) = page.split_once("a test compares it -->\n").expect("the table's start");
    let table = rest.split_once("<!-- /fields -->").expect("the table's end").0;
    let mut expected = "| field | type | what it says |\n|---|---|---|\n".to_owned();
    for (name, kind, says) in FIELDS {
        expected.push_str(&format!("| `{name}` | {kind} | {says} |\n"));
    }
    assert!(table == expected, "put this table into docs/logs.md:\n{expected}");
    let names: BTreeSet<_> = FIELDS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), FIELDS.len(), "one of them is there twice");
    let example = page.split("```json\n").nth(1).and_then(|rest| rest.lines().next()).expect("an example");
    let example: BTreeMap<String, Value> = serde_json::from_str(example).expect("JSON");
    let unknown: Vec<_> = example.keys().filter(|name| !names.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "the example has {unknown:?}");
}

#[test]
fn each_field_of_a_line_in_the_code_is_in_the_table() {
    let mut used = BTreeSet::new();
    for file in sources(&path("src")) {
        let text = std::fs::read_to_string(&file).expect("readable");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let is_test = file.ends_with("tests.rs");
        for (at, _) in code.match_indices("tracing::").filter(|_| !is_test) {
            let rest = &code[at + "tracing::".len()..];
            let macros = ["error!(", "warn!(", "info!(", "debug!(", "trace!(", "error_span!(", "record_all!("];
            if let Some(name) = macros.iter().find(|name| rest.starts_with(**name)) {
                used.extend(arguments(&rest[name.len()..]).iter().filter_map(|argument| field(argument)));
            }
        }
    }
    assert!(used.len() > 30 && used.contains("weir.integration"), "{used:?}");
    let known: BTreeSet<_> = FIELDS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let missing: Vec<_> = used.difference(&known).collect();
    assert!(missing.is_empty(), "put them into FIELDS of src/telemetry/logs/ecs.rs: {missing:?}");
    let of_head = |name: &str| {
        ["log.", "ecs.", "service.", "process.", "host.", "@", "message"].iter().any(|head| name.starts_with(head))
    };
    let unused: Vec<_> = known.difference(&used).filter(|name| !of_head(name) && *name != "weir.left_out").collect();
    assert!(unused.is_empty(), "no line has them: {unused:?}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a directory").map(|entry| entry.expect("an entry").path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// What is between commas up to the closing parenthesis of a macro's call.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut in_text, mut escaped, mut arguments) = (0, false, false, vec![String::new()]);
    for character in text.chars() {
        let is_escaped = std::mem::take(&mut escaped);
        match character {
            '\\' if in_text && !is_escaped => escaped = true,
            '"' if !is_escaped => in_text = !in_text,
            '(' | '[' | '{' if !in_text => depth += 1,
            ')' if !in_text && depth == 0 => break,
            ')' | ']' | '}' if !in_text => depth -= 1,
            ',' if !in_text && depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().expect("there is one").push(character);
    }
    arguments.iter().map(|argument| argument.trim().to_owned()).collect()
}

/// The field that an argument names, as a line has it; none of a sentence, of what is filled into it, or of a target.
fn field(argument: &str) -> Option<String> {
    let (name, is_assigned) = match argument.split_once(" = ") {
        Some((name, _)) => (name.trim_matches('"'), true),
        None => (argument.trim_start_matches(['%', '?']), false),
    };
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
    match name {
        _ if !is_name || !is_assigned && name.contains('.') => None,
        "error" => Some("error.message".into()),
        name if name.contains('.') => Some(name.to_owned()),
        name => Some(format!("weir.{name}")),
    }
}

// ── lines of real processes

fn lines(log: &str) -> Vec<BTreeMap<String, Value>> {
    let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(read).collect()
}

#[test]
fn lines_of_a_run_name_it_and_its_trace_from_the_router_to_the_worker() {
    let configuration = "log.level = \"info,weir::worker::outcomes=debug\"\n".to_owned();
    let fleet = Plan { configuration, ..Plan::default() }.start();
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let url = format!("http://{}", fleet.router.listen);
        let mut client = TasksClient::connect(url).await.expect("the router");
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let mut one = Request::new(task("one", &json!({"do": "noop"})));
        one.metadata_mut().insert("traceparent", parent.parse().expect("ascii"));
        client.submit(one).await.expect("an outcome");
        let many = ["two", "three"].map(|id| task(id, &json!({"do": "password=hunter2"})));
        let mut many = Request::new(futures_util::stream::iter(many));
        many.metadata_mut().insert("traceparent", parent.parse().expect("ascii"));
        let mut replies = client.submit_many(many).await.expect("a stream").into_inner();
        while replies.message().await.expect("a reply").is_some() {}
        client.submit(task("four", &json!({"do": "noop"}))).await.expect("an outcome");
    });
    let worker = &fleet.workers[0].process;
    let ended = |id: &str| {
        let lines = lines(&worker.log());
        lines.into_iter().find(|line| line.get("weir.task").is_some_and(|task| task == id))
    };
    let [one, two, three, four] =
        ["one", "two", "three", "four"].map(|id| wait_for("the line of a task's outcome", LONG, || ended(id)));
    for line in [&one, &two, &three, &four] {
        assert_eq!([&line["weir.integration"], &line["weir.tenant"]], ["synthetic", "acme"]);
        assert!(line["weir.run"].as_str().is_some_and(|run| run.len() == 36), "{line:?}");
        assert!(line["event.duration"].is_u64() && line["service.node.name"] == "w1", "{line:?}");
    }
    assert_eq!((&one["event.outcome"], &one["log.level"]), (&json!("success"), &json!("debug")));
    assert_eq!((&two["event.outcome"], &two["log.level"]), (&json!("failure"), &json!("info")));
    assert_eq!(two["error.type"], "integration_error");
    assert!(!two.contains_key("error.message") && !worker.log().contains("hunter2"), "{two:?}");
    assert!([&one, &two, &three].iter().all(|line| line["trace.id"] == TRACE), "{one:?}{two:?}{three:?}");
    assert!(!four.contains_key("trace.id"), "{four:?}");

    let known: BTreeSet<_> = FIELDS.iter().map(|(name, ..)| *name).collect();
    for process in [worker, &fleet.router.process, &fleet.sandbox.process] {
        for line in lines(&process.log()) {
            let unknown: Vec<_> = line.keys().filter(|name| !known.contains(name.as_str())).collect();
            assert!(unknown.is_empty(), "{unknown:?} in {line:?}");
            assert!(["@timestamp", "log.level", "message", "ecs.version"].iter().all(|name| line.contains_key(*name)));
        }
    }
    let name = |process: &Process| lines(&process.log())[0]["service.name"].clone();
    assert_eq!([name(&fleet.router.process), name(worker)], ["weir-router", "weir-worker"]);
    fleet.stop();
}

// ── a reader that is slow, has stopped, or is gone

/// A worker by itself, whose log goes where the test says.
struct Lone {
    child: Child,
    listen: String,
    admin: SocketAddr,
    settings: PathBuf,
    _directory: TempDir,
}

impl Lone {
    fn start(stderr: impl Into<Stdio>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = directory.path().join("settings.json");
        let [listen, admin] = [(); 2].map(|()| free_address());
        let configuration = format!(
            "[log]\nformat = \"json\"\nrepeats = 0\n[settings]\nfile = {settings:?}\n[payloads]\nstore = \"none\"\n\
             [worker]\nid = \"lone\"\nlisten = \"{listen}\"\nadmin.listen = \"{admin}\"\n\
             [overload]\nlag.enabled = false\nblocked_thread.enabled = false\n\
             [integrations.synthetic]\nkind = \"synthetic\"\n"
        );
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
        let mut command = Command::new(weir());
        command.arg("worker").env_clear().env("STATE_DIRECTORY", directory.path()).current_dir(directory.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
        let admin = admin.parse().expect("an address");
        wait_for("the worker serves", LONG, || try_get(admin, "/ready").map(drop));
        Lone { child, listen, admin, settings, _directory: directory }
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        metric(&get(self.admin, "/metrics"), name, label)
    }

    /// Changes the level, as an operator would.
    fn set_level(&self, level: &str) {
        let document = flagd::document(&[("log_level", level.into())]);
        weir::settings::file::write_file(&self.settings, &document).expect("written");
    }

    /// Runs so many tasks, each of which must have an outcome.
    fn run(&self, tasks: usize, act: &Value) {
        let task = |number| Task { id: format!("t-{number}"), ..task("", act) };
        let tasks: Vec<_> = (0..tasks).map(task).collect();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut client = TasksClient::connect(format!("http://{}", self.listen)).await.expect("the worker");
            for task in tasks {
                client.submit(task).await.expect("an outcome");
            }
        });
    }

    fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_for("its end", LONG, || self.child.try_wait().expect("its state")).code()
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn task(id: &str, act: &Value) -> Task {
    let (integration, tenant) = ("synthetic".to_owned(), "acme".to_owned());
    Task { id: id.to_owned(), integration, tenant, input: act.to_string(), ..Task::default() }
}

#[test]
fn a_reader_that_has_stopped_keeps_no_task_and_not_the_end() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut worker = Lone::start(writer);
    // Everything that the libraries say of each byte: more than the pipe and the buffer hold, and nobody reads it.
    worker.set_level("trace");
    wait_for("lines are lost", LONG, || {
        worker.run(200, &json!({"do": "noop"}));
        (worker.metric("weir_log_lines_dropped_total", "behind") > 0.0).then_some(())
    });
    worker.run(50, &json!({"do": "noop"}));
    assert_eq!(worker.metric("weir_log_lines_dropped_total", "failed"), 0.0);
    worker.signal();
    assert_eq!(worker.exit_code(), Some(0));
    drop(reader);
}

#[test]
fn a_second_signal_ends_at_once_though_nobody_reads_the_log() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut worker = Lone::start(writer);
    worker.set_level("trace");
    wait_for("the pipe is full", LONG, || {
        worker.run(200, &json!({"do": "noop"}));
        (worker.metric("weir_log_lines_dropped_total", "behind") > 0.0).then_some(())
    });
    let runtime = Runtime::new().expect("a runtime");
    let url = format!("http://{}", worker.listen);
    let mut client = runtime.block_on(TasksClient::connect(url)).expect("the worker");
    let long = task("long", &json!({"do": "sleep", "ms": 60_000}));
    let call = runtime.spawn(async move { client.submit(long).await.map(drop) });
    let runs = || (worker.metric("weir_gate_in_flight", "") == 1.0).then_some(());
    wait_for("the task runs", LONG, runs);
    worker.signal();
    wait_for("the drain has begun", LONG, || try_get(worker.admin, "/ready").is_none().then_some(()));
    worker.signal();
    assert_eq!(worker.exit_code(), Some(130));
    assert!(runtime.block_on(call).expect("no panic").is_err());
    drop(reader);
}

#[test]
fn a_reader_that_is_gone_costs_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut worker = Lone::start(writer);
    drop(reader);
    worker.set_level("debug");
    wait_for("lines are lost", LONG, || {
        worker.run(20, &json!({"do": "fail"}));
        (worker.metric("weir_log_lines_dropped_total", "failed") > 0.0).then_some(())
    });
    worker.signal();
    assert_eq!(worker.exit_code(), Some(0));
}

#[test]
fn the_level_follows_the_setting_by_target_and_a_bad_one_keeps_the_last_good() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let mut worker = Lone::start(File::create(&log).expect("a file"));
    let said = |what: &dyn Fn(&BTreeMap<String, Value>) -> bool| {
        lines(&std::fs::read_to_string(&log).expect("the log")).iter().filter(|line| what(line)).count()
    };
    let outputs = || said(&|line| line["message"] == "a task has an output");
    worker.run(3, &json!({"do": "noop"}));
    worker.set_level("info,weir::worker::outcomes=debug");
    wait_for("outputs are logged", LONG, || {
        worker.run(1, &json!({"do": "noop"}));
        (outputs() > 0).then_some(())
    });
    let debug = |line: &BTreeMap<String, Value>| line["log.level"] == "debug";
    assert_eq!(said(&|line| debug(line) && line["log.logger"] != "weir::worker::outcomes"), 0, "only that target");

    worker.set_level("info,weir::rooter=debug");
    let rejected = || (worker.metric("weir_settings_rejected_total", r#"key="log_level""#) > 0.0).then_some(());
    wait_for("it is refused", LONG, rejected);
    let says_so = |line: &BTreeMap<String, Value>| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("setting rejected: ") && message.contains("did you mean \"weir::router\"?")
    };
    wait_for("the log says what would be right", LONG, || (said(&says_so) == 1).then_some(()));
    let before = outputs();
    worker.run(2, &json!({"do": "noop"}));
    wait_for("outputs are still logged", LONG, || (outputs() == before + 2).then_some(()));
    worker.signal();
    assert_eq!(worker.exit_code(), Some(0));
    assert_eq!(said(&|line| line["message"] == "the worker has stopped"), 1, "the last line is written");
}
