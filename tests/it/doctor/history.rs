//! A time that has passed, from a Prometheus that scraped several workers.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{FINDINGS, LOAD, Load, Stage, WORKER, doctor};
use crate::cli::{assert_failed, lines, stderr, stdout};
use crate::support::processes::{LONG, wait_for};
use crate::support::prometheus::{Prometheus, Target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_is_read_from_a_prometheus_and_a_worker_is_compared_with_the_others() {
    static FAST: Load = LOAD;
    static SLOW: Load = Load { input: r#"{"do": "sleep", "ms": 700}"#, callers: 8, ..LOAD };
    if !Path::new("/usr/bin/prometheus").exists() {
        return eprintln!("skipped: there is no prometheus here");
    }
    let configuration = format!("worker.pool = \"parallel\"\n{WORKER}");
    let mut stages: Vec<_> = (0..3).map(|_| Stage::start(&configuration, 1024, true)).collect();
    for (stage, load) in stages.iter_mut().zip([&FAST, &SLOW, &FAST]) {
        stage.submit(load);
    }
    let target = |stage: &Stage| Target { job: "weir", instance: stage.admin.to_string(), address: stage.admin };
    let prometheus = Prometheus::start(stages[0].directory.path(), &stages.iter().map(target).collect::<Vec<_>>());
    let url = format!("http://{}", prometheus.address);
    let read = || {
        let samples = prometheus.ask("query", &[("query", "count_over_time(weir_gate_in_flight[1m])")]);
        let all = samples["result"].as_array().expect("a list");
        let is_read = |of: &Value| of["value"][1].as_str().and_then(|count| count.parse().ok()) >= Some(12);
        (all.len() == 3 && all.iter().all(is_read)).then_some(())
    };
    tokio::task::block_in_place(|| wait_for("each is read often", LONG, read));

    let output = doctor(&["--prometheus", &url, "--pool", "parallel", "--range", "10s", "--json"]).await;
    let diagnosis = &lines(&output)[0];
    let (slow, fast) = (stages[1].admin.to_string(), stages[0].admin.to_string());
    let finding = &diagnosis["findings"][0];
    assert_eq!((&finding["cause"], &finding["instances"]), (&json!("slow_upstream"), &json!([slow])), "{diagnosis}");
    assert_eq!(output.status.code(), FINDINGS);
    assert_eq!(diagnosis["observations"].as_array().map(Vec::len), Some(3));
    let output = doctor(&["--prometheus", &url, "--range", "10s"]).await;
    let text = stdout(&output);
    assert!(text.starts_with("1. the upstream of integration other is slow: "), "{text}");
    assert!(text.contains(&format!("1 of 3 workers: {slow}")) && text.contains(" as on the other workers"), "{text}");
    let alone = doctor(&["--prometheus", &url, "--instance", &fast, "--range", "10s", "--json"]).await;
    assert_eq!(lines(&alone)[0]["observations"][0]["instance"], fast, "{}", stderr(&alone));

    let of = |flags: &'static [&'static str]| {
        let url = url.clone();
        async move { doctor(&[&["--prometheus", url.as_str()], flags].concat()).await }
    };
    assert_failed(&of(&["--instance", "10.0.0.7:9401"]).await, &["knows no worker 10.0.0.7:9401: it has ", &fast]);
    assert_failed(
        &of(&["--pool", "single"]).await,
        &["knows no such worker in pool single: its workers are in parallel"],
    );
    assert_failed(&of(&["--from", "2020-01-01T00:00:00Z"]).await, &["knows no worker of weir in 10m"]);

    stages[2].process.signal(Signal::KILL);
    let killed = stages[2].admin.to_string();
    let in_vain = format!("count_over_time((up{{instance=\"{killed}\"}} == 0)[20s:100ms])");
    let is_unread = || {
        let samples = prometheus.ask("query", &[("query", &in_vain)]);
        let count = samples["result"][0]["value"][1].as_str().and_then(|count| count.parse::<u32>().ok());
        (count >= Some(50)).then_some(())
    };
    tokio::task::block_in_place(|| wait_for("it is asked in vain", LONG, is_unread));
    let text = stdout(&of(&["--range", "20s"]).await);
    let gone = text.find("the worker went away, or answers nobody").unwrap_or_else(|| panic!("{text}"));
    assert!(text[gone..].lines().take(6).any(|line| line.contains(&killed)), "{text}");
    prometheus.stop();
}
