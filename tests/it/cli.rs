//! The program itself, as a shell runs it: what it prints where, and how it exits.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::fs::{FileType, Mode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::support::house::{House, LONG, pull};

pub fn weir() -> Command {
    let binary = std::env::var_os("WEIR_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_weir").into());
    let mut command = Command::new(PathBuf::from(binary));
    // Neither the machine's settings nor a weir.toml in the working directory count here.
    command.env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true).stdin(Stdio::null());
    command
}

pub async fn run(command: &mut Command, stdin: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    // The program may end without reading all of it.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await;
    output.expect("the program ends in time").expect("it ran")
}

pub fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
}

/// The error of a command that must fail.
pub fn assert_failed(output: &Output, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_tasks_comes_back_as_outcomes() {
    let house = House::start().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let tasks = [
        json!({"id": "t-1", "integration": "bank", "input": {"customer": "c1"}}),
        json!({"id": "t-2", "integration": "synthetic", "input": {"do": "noop"}, "priority": "interactive"}),
    ];
    std::fs::write(file.path(), format!("{}\n\n{}\n", tasks[0], tasks[1])).expect("written");
    let output = run(weir().args(["submit", "--to", &house.router_url()]).arg(file.path()), "").await;
    assert!(output.status.success(), "{}", stderr(&output));
    let mut outcomes = lines(&output);
    outcomes.sort_by_key(|outcome| outcome["task_id"].to_string());
    assert_eq!(outcomes.len(), 2);
    for (outcome, id) in outcomes.iter().zip(["t-1", "t-2"]) {
        assert_eq!((&outcome["task_id"], &outcome["ok"]), (&json!(id), &json!(true)), "{outcome}");
        assert_eq!(outcome["worker"], house.worker(0).id().as_str());
        assert_eq!(outcome["run_id"].as_str().map(str::len), Some(36));
        assert!(outcome["ran_seconds"].as_f64() <= outcome["took_seconds"].as_f64());
    }
    assert!(outcomes[0]["output"]["transactions"].is_array());
    assert!(stderr(&output).contains("2 tasks in") && stderr(&output).contains("2 ok"), "{}", stderr(&output));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_with_a_name_is_read_as_a_file_is() {
    let house = House::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("tasks");
    let (kind, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a pipe");
    let task = json!({"integration": "synthetic", "input": {"do": "noop"}});
    let write = r#"printf '%s\n' "$1" "$1" "$1" > "$0""#;
    let mut writer = Command::new("sh").args(["-c", write]).arg(&pipe).arg(task.to_string()).spawn().expect("a shell");
    let output = run(weir().args(["submit", "--to", &house.router_url()]).arg(&pipe), "").await;
    assert_ok(&output);
    assert_eq!(lines(&output).len(), 3);
    assert!(stderr(&output).contains("3 tasks in"), "{}", stderr(&output));
    assert!(writer.wait().await.expect("it ends").success());
    let output = run(weir().args(["submit", "--to", &house.router_url()]).arg(directory.path()), "").await;
    assert_failed(&output, &[&format!("cannot read {}: it is a directory", directory.path().display())]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_and_what_could_not_be_read_shows_in_lines_summary_and_exit_code() {
    let house = House::start().await;
    let stdin = r#"{"id":"good","integration":"synthetic","input":{"do":"noop"}}
not a task
{"id":"fails","integration":"synthetic","input":{"do":"fail"}}
{"id":"unknown","integration":"nobody-has-this"}
"#;
    let output = run(weir().args(["submit", "-", "--to", &house.router_url()]), stdin).await;
    assert_eq!(output.status.code(), Some(1));
    let outcomes = lines(&output);
    assert_eq!(outcomes.len(), 4);
    let of = |id: &str| outcomes.iter().find(|outcome| outcome["task_id"] == id).expect("answered");
    assert_eq!(of("good")["ok"], true);
    assert_eq!(of("fails")["failure"]["code"], "integration_error");
    let error = &of("unknown")["error"];
    assert_eq!((&error["reason"], &error["started"]), (&json!("UNKNOWN_INTEGRATION"), &json!("no")));
    let unreadable = outcomes.iter().find(|outcome| outcome["line"] == 2).expect("the line is named");
    assert!(unreadable["error"]["message"].as_str().is_some_and(|text| text.starts_with("not a task")));
    let summary = stderr(&output);
    for part in ["4 tasks", "1 ok", "1 failed (integration_error 1)", "2 without outcome", "unreadable line 1"] {
        assert!(summary.contains(part), "{part:?} is missing in {summary}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_no_text_are_answered_with_their_numbers_and_the_others_go_on() {
    let house = House::start().await;
    let task = br#"{"id":"ID","integration":"synthetic","input":{"do":"noop"}}"#;
    let task = |id: &str| String::from_utf8_lossy(task).replace("ID", id).into_bytes();
    let long = vec![b'x'; 9 << 20];
    let text = [&task("a")[..], b"\n\xff\xfe\n", &long, b"\n", &task("b")].concat();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let output = run(weir().args(["submit", "--to", &house.router_url()]).arg(file.path()), "").await;
    assert_eq!(output.status.code(), Some(1));
    let outcomes = lines(&output);
    assert_eq!(outcomes.iter().filter(|outcome| outcome["ok"] == true).count(), 2, "{outcomes:?}");
    for (number, says) in [(2, "not UTF-8"), (3, "over 8388608 bytes")] {
        let error = &outcomes.iter().find(|outcome| outcome["line"] == number).expect("it is answered")["error"];
        assert_eq!((&error["reason"], &error["started"]), (&json!("INVALID_TASK"), &json!("no")));
        assert!(error["message"].as_str().is_some_and(|text| text.contains(says)), "{error}");
    }
    assert!(stderr(&output).contains("4 tasks") && stderr(&output).contains("2 ok"), "{}", stderr(&output));
    house.close().await;
}

#[tokio::test]
async fn flags_that_cannot_be_are_refused_in_the_words_of_the_flag() {
    let flags = ["submit", "--to", "http://127.0.0.1:9", "--integration", "bank", "--input"];
    let output = run(weir().args(flags).arg("["), "").await;
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("--input is not JSON") && text.contains("column 1"), "{text}");
    let output = run(weir().args(flags).args(["{}", "--timeout", "-5s"]), "").await;
    let text = stderr(&output);
    assert!(text.contains("invalid value '-5s' for '--timeout <DURATION>'"), "{text}");
}

#[tokio::test]
async fn a_payload_to_get_is_named_by_a_key_or_by_its_task() {
    let output = run(weir().args(["payload", "get"]), "").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("<KEY|FILE|--task <ID>>"), "{}", stderr(&output));
    let output = run(weir().args(["payload", "get", "x", "--task", "t"]), "").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot be used with"), "{}", stderr(&output));
}

/// Runs a command whose stderr nobody reads.
async fn run_unheard(command: &mut Command, stdin: &str) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::from(writer));
    let mut child = command.spawn().expect("the program starts");
    // The command has a copy of its own.
    command.stderr(Stdio::null());
    let mut input = child.stdin.take().expect("piped");
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    tokio::time::timeout(LONG, child.wait_with_output()).await.expect("it ends in time").expect("it ran")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_hears_changes_neither_result_nor_exit_code() {
    let house = House::start().await;
    let flags = ["submit", "-", "--to", &house.router_url(), "--integration", "bank"];
    let output = run_unheard(weir().args(flags), "{\"input\":{\"customer\":\"c1\"}}\n").await;
    assert_eq!((output.status.code(), lines(&output).len()), (Some(0), 1));
    let output = run_unheard(weir().args(["describe", "127.0.0.1:9"]), "").await;
    assert_eq!(output.status.code(), Some(1));

    house.until_payloads_ended(0, 1).await;
    let bucket = house.bucket().display().to_string();
    let payload = |arguments: &[&str]| {
        let mut command = weir();
        command.arg("payload").args(arguments);
        command.env("WEIR_PAYLOADS__STORE", "directory").env("WEIR_PAYLOADS__DIRECTORY__PATH", &bucket);
        command
    };
    let listed = run_unheard(&mut payload(&["list", "--json"]), "").await;
    let task = lines(&listed)[0]["task"].as_str().expect("a task").to_owned();
    for (arguments, has_result) in [(&["get", "--task", &task][..], true), (&["list", "--task", "none"], false)] {
        let output = run_unheard(&mut payload(arguments), "").await;
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(0), !has_result), "{arguments:?}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_variable_that_names_the_configuration_makes_its_flag_no_part_of_the_usage() {
    let output = run(weir().args(["payload", "replay"]).env("WEIR_CONFIG", "/no/such.toml"), "").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: weir payload replay [OPTIONS] <KEY|FILE>"), "{}", stderr(&output));
    let output = run(weir().arg("check").env("WEIR_CONFIG", "/no/such.toml"), "").await;
    assert!(stdout(&output).contains("/no/such.toml"), "it is read all the same: {}", stdout(&output));
    let output = run(weir().arg("--help").env("WEIR_CONFIG", "/no/such.toml"), "").await;
    let help = stdout(&output);
    assert!(help.starts_with("Runs slow, network-bound integrations") && help.contains("[env: WEIR_CONFIG]"), "{help}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_task_can_be_given_in_flags() {
    let house = House::start().await;
    let url = house.router_url();
    let flags = ["submit", "--to", &url, "--integration", "bank", "--input", r#"{"customer":"c1"}"#];
    let output = run(weir().args(flags).args(["--priority", "interactive", "--timeout", "20s"]), "").await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(lines(&output)[0]["output"]["accounts"].is_array());
    assert_eq!(house.router_metric("weir_router_outcomes_total{priority=\"interactive\"}"), 1.0);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_cannot_be_reached_is_named() {
    let flags = ["submit", "--to", "http://127.0.0.1:9", "--integration", "bank", "--input", "{}", "--timeout", "1s"];
    let output = run(weir().args(flags), "").await;
    assert_eq!(output.status.code(), Some(1));
    let error = &lines(&output)[0]["error"];
    assert_eq!((&error["reason"], &error["started"]), (&json!("UNREACHABLE"), &json!("no")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("http://127.0.0.1:9")), "{error}");

    let output = run(weir().args(["submit", "-", "--to", "localhost:7400"]), "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("use a form such as \"http://127.0.0.1:7400\""), "{}", stderr(&output));
    let output = run(weir().args(["submit", "/no/such/file.jsonl"]), "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/no/such/file.jsonl"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_is_printed_back_and_a_bad_file_is_an_error() {
    let house = House::start().await;
    house.client.submit(&pull("t-1")).await.expect("an outcome");
    house.until_payloads_ended(0, 1).await;
    let file = house.bucket().join(&house.stored_keys()[0]);
    for raw in [None, Some("--raw")] {
        let output = run(weir().args(["payload", "get"]).arg(&file).args(raw), "").await;
        assert!(output.status.success(), "{}", stderr(&output));
        let payload: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(payload["task"]["id"], "t-1");
    }
    let stored = std::fs::read(&file).expect("readable");
    let bad = tempfile::NamedTempFile::new().expect("a file");
    for (bytes, says) in [
        (b"".as_slice(), "empty"),
        (b"hello!!".as_slice(), "not base64"),
        (&stored[..stored.len() / 2], "the payload is"),
        (b"aGVsbG8gd29ybGQ=".as_slice(), "not zlib"),
    ] {
        std::fs::write(bad.path(), bytes).expect("written");
        let output = run(weir().args(["payload", "get"]).arg(bad.path()), "").await;
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty() && stderr(&output).contains(says), "{says}: {}", stderr(&output));
    }
    let output = run(weir().args(["payload", "get", "no/such/key"]), "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("payloads.store"), "{}", stderr(&output));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_has_help_with_an_example() {
    let output = run(weir().arg("--help"), "").await;
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let listed = help.split("Commands:").nth(1).expect("a list of commands");
    let commands: Vec<_> = listed
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        let words = if command == "payload" { vec!["payload", "get"] } else { vec![command] };
        let output = run(weir().args(&words).arg("--help"), "").await;
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let examples = help.split("Example").nth(1).unwrap_or_else(|| panic!("{command} has no example: {help}"));
        assert!(examples.contains(&format!("weir {command}")), "{help}");
    }
    let output = run(&mut weir(), "").await;
    assert_eq!(output.status.code(), Some(2), "no command at all is a mistake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_key() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    for (text, says) in [
        ("[worker]\nlisten_on = \"127.0.0.1:1\"\n", "listen_on"),
        ("[wroker]\n", "wroker"),
        ("[worker]\nlisten = \"nowhere\"\n", "worker.listen"),
        ("[settings]\nmax_parallelism = 1000000\n", "max_parallelism"),
        ("[worker\n", ".toml"),
    ] {
        std::fs::write(file.path(), text).expect("written");
        for command in ["worker", "router"] {
            let output = run(weir().arg(command).arg("--config").arg(file.path()), "").await;
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(stderr(&output).contains(says), "{says}: {}", stderr(&output));
        }
    }
    let output = run(weir().arg("worker").env("WEIR_WORKER__LISTEN_ON", "127.0.0.1:1"), "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("listen_on"), "{}", stderr(&output));
    let output = run(weir().args(["worker", "--config", "/no/such/weir.toml"]), "").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/no/such/weir.toml"), "{}", stderr(&output));
}

/// A router that serves, with nobody in its registry: no reason not to start, and none not to stop.
async fn serving_router(mut command: Command) -> (Child, Pid) {
    command.args(["router", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).stderr(Stdio::piped());
    command.env("WEIR_REGISTRY__URL", "redis://127.0.0.1:9");
    let mut child = command.spawn().expect("the program starts");
    let mut log = tokio::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    let serves = async {
        while !line.contains("the router serves") {
            line.clear();
            let read = tokio::io::AsyncBufReadExt::read_line(&mut log, &mut line).await.expect("readable");
            assert!(read > 0, "it ended before it served");
        }
    };
    tokio::time::timeout(LONG, serves).await.expect("it serves");
    let pid = Pid::from_raw(child.id().expect("it runs") as i32).expect("a process");
    (child, pid)
}

async fn ends_well(mut child: Child) {
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("it ends").expect("waited");
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_stops_in_order_at_the_first_signal() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (child, pid) = serving_router(weir()).await;
        kill_process(pid, signal).expect("it runs");
        ends_well(child).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_to_outlive_its_terminal_does() {
    // As nohup does: what the shell ignores, the program that takes its place ignores, too.
    let mut shell = Command::new("/bin/sh");
    let program = weir().as_std().get_program().to_owned();
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(program);
    shell.env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true).stdin(Stdio::null());
    let (child, pid) = serving_router(shell).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).expect("it runs");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("the kernel says it").trim();
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    assert_eq!(ignored & 1, 1, "it ignores SIGHUP: {ignored:x}");
    kill_process(pid, Signal::TERM).expect("it runs");
    ends_well(child).await;
}
