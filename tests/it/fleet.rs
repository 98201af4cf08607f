//! `weir fleet`, as a process: a table, JSON lines, a live screen.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::cli::{assert_failed, assert_ok, lines, run, stderr, stdout, weir};
use crate::support::house::{House, LONG, Plan, answer, held};
use crate::support::processes::{self};

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
