//! What a worker says at its start of the one before it: real processes that end in every way.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::processes::{LONG, Process, get, metric, weir};

const CONFIGURATION: &str = "
[integrations.idle]
kind = \"synthetic\"
[payloads]
store = \"none\"
";

/// A worker that has started, what it said of the one before, and its metrics.
fn start(directory: &Path) -> (Process, Value, String) {
    let flags = ["worker", "--id", "w1", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut worker = Process::start("worker", directory, &weir(), &flags, &[("WEIR_LOG__FORMAT", "json")]);
    let admin = worker.wait_for_log("the worker serves")["admin"].as_str().expect("an address").to_owned();
    let said = || {
        let mut lines = worker.lines_logged().into_iter();
        lines.find(|line| line["message"].as_str().is_some_and(|text| text.contains("before this one")))
    };
    let said = crate::support::processes::wait_for("what it says of the one before", LONG, said);
    let metrics = get(admin.parse().expect("an address"), "/metrics");
    (worker, said, metrics)
}

fn how(metrics: &str) -> Vec<&str> {
    let series = metrics.lines().filter(|line| line.starts_with("weir_last_exit{") && line.ends_with(" 1"));
    series.filter_map(|line| line.split('"').nth(1)).collect()
}

#[test]
fn a_worker_says_how_the_one_before_it_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");

    let (mut first, said, metrics) = start(directory.path());
    assert_eq!((how(&metrics), said["log.level"].as_str()), (vec!["first"], Some("info")));
    assert_eq!(metric(&metrics, "weir_last_exit", ""), 1.0, "one of them");
    first.stop();

    let (second, said, metrics) = start(directory.path());
    assert_eq!((how(&metrics), said["log.level"].as_str()), (vec!["clean"], Some("info")));
    let process = second.id();
    second.signal(Signal::KILL);
    drop(second);

    let (mut third, said, metrics) = start(directory.path());
    // Elsewhere on this host somebody may have run out of memory meanwhile, and this process may have no group to count in.
    assert!(["killed", "out_of_memory"].contains(&how(&metrics)[0]), "{:?}", how(&metrics));
    assert_eq!((said["log.level"].as_str(), said["process"].as_u64()), (Some("warn"), Some(u64::from(process))));
    assert!(said["started"].as_str().is_some_and(|at| at.starts_with("20")), "{said}");
    third.signal(Signal::TERM);
    third.wait_for_log("draining");
    third.signal(Signal::TERM);
    assert_eq!(third.exit_code(LONG), Some(130));

    let (mut fourth, _, metrics) = start(directory.path());
    assert_eq!(how(&metrics), ["second_signal"]);
    fourth.stop();

    // What cannot be read says nothing of a process or of a time.
    let note = directory.path().join("w1.json");
    std::fs::write(&note, "{").expect("written");
    let (mut fifth, said, metrics) = start(directory.path());
    assert_eq!((how(&metrics), said["log.level"].as_str()), (vec!["unknown"], Some("warn")));
    assert_eq!(said["message"], "the worker before this one: what it noted cannot be read, and is replaced");
    assert_eq!(said["note"].as_str(), note.to_str());
    assert!(said["process"].is_null() && said["started"].is_null(), "{said}");
    fifth.stop();
}
