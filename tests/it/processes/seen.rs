//! What one sees in production, seen on a real Prometheus: two pools, a rollout in one of them, and a fault of each kind,
//! scraped every second; then every query of every panel, mark, variable, rule and alert is asked.
//!
//! It belongs to the full lane. With WEIR_PICTURES=DIRECTORY it also draws each dashboard from what it has scraped, with
//! the Python of WEIR_PICTURES_PYTHON, or python3: `dashboards/pictures` does both.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir::client::{Client, Options, Submission};
use weir::lifecycle::Lifecycle;
use weir::task::{Json, Priority};

use crate::documents::path;
use crate::support::observed::Observed;
use crate::support::processes::{LONG, put, wait_for};
use crate::support::prometheus::{Prometheus, Target};
use crate::support::promql::{Asked, dashboards, filled_in, queries, text};

/// The pool that goes on as it was, and the one whose N is raised.
const POOLS: [&str; 2] = ["single", "parallel"];

/// Callers of each, who have one task under way each, all the time.
const CALLERS: [usize; 2] = [4, 110];

/// Queries that may find nothing in this run, by the panel's title, and why.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    ("Do encoders stand aside for the tasks?", "the runtime need not lag"),
    ("Was something too much for redaction?", "nothing here is"),
];

/// Alerts of which a series cannot be made here, and why.
const MAY_LACK: &[(&str, &str)] = &[];

#[test]
#[ignore = "two minutes of load and faults: the full lane, tests/run --full"]
fn every_query_is_answered_by_a_real_prometheus() {
    let mut observed = Observed::start(&POOLS);
    let prometheus = Prometheus::start(observed.directory.path(), &targets(&observed));
    wait_for("all are scraped", LONG, || prometheus.scrapes_all().then_some(()));
    let began = Moment::now();
    let load = Load::start(&observed);
    rollout(&observed);
    faults(&mut observed, &load);
    let window = Window { start: began.seconds, end: Moment::now().seconds };
    load.stop();

    let mut problems = Vec::new();
    ask_panels(&prometheus, &window, &mut problems);
    ask_variables(&prometheus, &window, &mut problems);
    ask_rules(&prometheus, &window, &mut problems);
    if let Some(directory) = std::env::var_os("WEIR_PICTURES") {
        draw(&prometheus, &window, Path::new(&directory));
    }
    prometheus.stop();
    observed.stop();
    assert!(problems.is_empty(), "{problems:#?}");
}

fn targets(observed: &Observed) -> Vec<Target> {
    let mut targets = vec![Target { job: "weir-sandbox", instance: "bank".into(), address: observed.sandbox }];
    for pool in &observed.pools {
        let (worker, router) = (format!("worker-{}", pool.name), format!("router-{}", pool.name));
        targets.push(Target { job: "weir-worker", instance: worker, address: pool.worker_admin });
        targets.push(Target { job: "weir-router", instance: router, address: pool.router_admin });
    }
    targets
}

// ── what happens

/// N is raised in one pool, on a bank that works on 40 requests at a time: beyond that only the waiting grows.
fn rollout(observed: &Observed) {
    let [single, parallel] = &observed.pools[..] else { panic!("there are two pools") };
    put(observed.sandbox, "/behaviour/parallel", &json!({"concurrency": {"limit": 40, "beyond": "wait"}}));
    single.set_parallelism(&json!(4));
    for parallelism in [1, 10, 30, 100] {
        parallel.set_parallelism(&json!(parallelism));
        pause(16);
    }
    parallel.set_parallelism(&json!(30));
    pause(6);
}

/// One fault of each kind that a panel or an alert is about.
fn faults(observed: &mut Observed, load: &Load) {
    let parallel = json!({"errors": {"share": 0.3}, "resets": 0.05, "rate_limit": {"per_second": 40.0, "burst": 10}});
    put(observed.sandbox, "/behaviour/parallel", &parallel);
    for (integration, input, timeout) in [
        ("synthetic", json!({"do": "panic"}), 5_000),
        ("synthetic", json!({"do": "fail"}), 5_000),
        ("synthetic", json!({"do": "block", "ms": 3_000}), 5_000),
        ("synthetic", json!({"do": "ignore_cancellation", "ms": 6_000}), 1_000),
        ("synthetic", json!({"do": "noop", "output_bytes": 4_000_000}), 5_000),
        ("synthetic", json!({"do": "spin", "ms": 2_000}), 5_000),
        ("nobody", json!({}), 5_000),
        ("bank", json!({"customer": "c1"}), 30),
    ] {
        for pool in 0..POOLS.len() {
            load.submit(pool, integration, &input, Duration::from_millis(timeout));
        }
    }
    pause(8);
    put(observed.sandbox, "/behaviour/parallel", &json!({}));
    observed.pools[1].set_parallelism(&json!("many"));
    pause(3);
    observed.pools[1].set_parallelism(&json!(30));
    observed.kill_s3();
    pause(12);
    observed.start_s3();
    put(observed.sandbox, "/behaviour/open", &json!({"errors": {"share": 1.0, "status": 503}}));
    pause(8);
    put(observed.sandbox, "/behaviour/open", &json!({}));
    observed.redis.pause();
    observed.pools[1].set_parallelism(&json!(5));
    pause(4);
    // A router knows from each answer that there is no room; whoever does not ask it is refused by the gate.
    (0..20).for_each(|_| load.submit_past_the_router(&json!({"do": "sleep", "ms": 1_000})));
    pause(4);
    observed.redis.resume();
    observed.pools[1].set_parallelism(&json!(30));
    pause(4);
    observed.pools[0].replace_worker();
    pause(12);
}

fn pause(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

/// Callers who submit one task after the other.
struct Load {
    runtime: Runtime,
    lifecycle: Lifecycle,
    clients: Vec<Client>,
    worker: Client,
    number: Arc<AtomicUsize>,
}

impl Load {
    fn start(observed: &Observed) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let _entered = runtime.enter();
        // What is refused is refused: callers do not hide it by trying again.
        let options = || Options { backoff: None, ..Options::default() };
        let client = |address| Client::with_options(&format!("http://{address}"), options()).expect("an address");
        let clients: Vec<_> = observed.pools.iter().map(|pool| client(pool.router)).collect();
        let worker = client(observed.pools[1].worker);
        let (lifecycle, number) = (Lifecycle::new(), Arc::new(AtomicUsize::new(0)));
        for (client, callers) in clients.iter().zip(CALLERS) {
            for _ in 0..callers {
                let (client, number, token) = (client.clone(), number.clone(), lifecycle.token());
                lifecycle.spawn("caller", async move {
                    let submitting = async {
                        loop {
                            let answer = client.submit(&usual(number.fetch_add(1, Ordering::Relaxed))).await;
                            if answer.is_err() {
                                tokio::time::sleep(Duration::from_millis(250)).await;
                            }
                        }
                    };
                    token.run_until_cancelled(submitting).await;
                });
            }
        }
        drop(_entered);
        Load { runtime, lifecycle, clients, worker, number }
    }

    /// One task more, whatever becomes of it.
    fn submit(&self, pool: usize, integration: &str, input: &Value, timeout: Duration) {
        self.submit_to(&self.clients[pool], integration, input, timeout);
    }

    /// One task more at the worker of the pool whose N is raised.
    fn submit_past_the_router(&self, input: &Value) {
        self.submit_to(&self.worker, "synthetic", input, Duration::from_secs(5));
    }

    fn submit_to(&self, client: &Client, integration: &str, input: &Value, timeout: Duration) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let task = Submission { timeout, ..submission(number, integration, input) };
        let client = client.clone();
        let _entered = self.runtime.enter();
        self.lifecycle.spawn("caller of one", async move {
            let _ = client.submit(&task).await;
        });
    }

    fn stop(self) {
        self.runtime.block_on(self.lifecycle.stop(LONG)).expect("callers end");
    }
}

fn submission(number: usize, integration: &str, input: &Value) -> Submission {
    let (id, name) = (format!("t-{number}"), integration.parse().expect("a name"));
    Submission::new(id.parse().expect("an id"), name, Json::of(input).expect("JSON"))
}

/// The usual work: mostly one bank, a second one with OAuth2, programs, and now and then something that fails.
fn usual(number: usize) -> Submission {
    let customer = json!({"customer": format!("c{}", number % 50)});
    let (integration, input) = match number % 80 {
        0 | 1 => ("synthetic", json!({"do": "sleep", "ms": 200, "transcript_bytes": 20_000})),
        2 => ("broken_program", customer),
        3..7 => ("program", customer),
        7..20 => ("open_bank", customer),
        _ => ("bank", customer),
    };
    let priority = if number.is_multiple_of(5) { Priority::Interactive } else { Priority::Batch };
    let tenant = format!("tenant-{}", number % 3).parse().expect("a tenant");
    let timeout = Duration::from_secs(20);
    Submission { priority, tenant, timeout, ..submission(number, integration, &input) }
}

// ── what is asked

struct Moment {
    seconds: f64,
}

impl Moment {
    fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Moment { seconds: since.as_secs_f64() }
    }
}

/// The time of the run.
struct Window {
    start: f64,
    end: f64,
}

impl Window {
    /// What Grafana would put in place of the variables.
    fn filled_in(&self, expression: &str) -> String {
        let range = format!("{}s", (self.end - self.start).round());
        let values = [
            ("$__rate_interval", "10s"),
            ("$__range", range.as_str()),
            ("$baseline_pool", POOLS[0]),
            ("$baseline", "1"),
            ("$pool", ".*"),
            ("$integration", ".*"),
            ("$instance", ".*"),
        ];
        filled_in(expression, &values)
    }

    /// How many series an expression has in this time.
    fn series(&self, prometheus: &Prometheus, expression: &str, instant: bool) -> usize {
        let [start, end] = [self.start, self.end].map(|at| at.to_string());
        let data = if instant {
            prometheus.ask("query", &[("query", expression), ("time", &end)])
        } else {
            let range = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
            prometheus.ask("query_range", &range)
        };
        data["result"].as_array().expect("a list").len()
    }
}

fn ask_panels(prometheus: &Prometheus, window: &Window, problems: &mut Vec<String>) {
    let (all, mut asked) = (queries(), 0);
    for query in &all {
        let series = window.series(prometheus, &window.filled_in(&query.expression), query.instant);
        let is_excused = MAY_BE_EMPTY.iter().any(|(title, _)| query.place.contains(title));
        if series == 0 && !is_excused {
            problems.push(format!("nothing: {}: {}", query.place, query.expression));
        }
        asked += 1;
    }
    println!("{asked} queries of panels and marks");
    let excused = MAY_BE_EMPTY.iter().filter(|(title, _)| !all.iter().any(|query| query.place.contains(title)));
    problems.extend(excused.map(|(title, _)| format!("no panel is called {title:?}")));
}

/// The values that one may choose: `label_values(SERIES, LABEL)`.
fn ask_variables(prometheus: &Prometheus, window: &Window, problems: &mut Vec<String>) {
    for (file, dashboard) in dashboards() {
        let variables = dashboard["templating"]["list"].as_array().expect("a list");
        for variable in variables.iter().filter(|variable| variable["type"] == "query") {
            let query = text(&variable["query"], "query");
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect("a series and a label");
            let values = prometheus.ask(&format!("label/{label}/values"), &[("match[]", &window.filled_in(series))]);
            if values.as_array().is_none_or(Vec::is_empty) {
                problems.push(format!("{file}: the variable {} has no value: {query}", text(variable, "name")));
            }
        }
    }
}

fn ask_rules(prometheus: &Prometheus, window: &Window, problems: &mut Vec<String>) {
    let data = prometheus.ask("rules", &[]);
    let groups = data["groups"].as_array().expect("a list");
    let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().expect("a list")).collect();
    let (mut recorded, mut alerts) = (0, 0);
    for rule in &rules {
        let (name, expression) = (text(rule, "name"), text(rule, "query"));
        if rule["health"] != "ok" {
            problems.push(format!("the rule {name} is {}: {}", rule["health"], rule["lastError"]));
        }
        if rule["type"] == "recording" {
            recorded += 1;
            if window.series(prometheus, &name, false) == 0 {
                problems.push(format!("nothing is recorded as {name}"));
            }
            continue;
        }
        alerts += 1;
        // It need not fire: but what it looks at must be there, with the labels that it is selected by.
        window.series(prometheus, &expression, false);
        let excused: BTreeSet<_> = MAY_LACK.iter().map(|(series, _)| *series).collect();
        for series in Asked::of(&expression).selectors.into_iter().map(|(series, _)| series) {
            if !excused.contains(series.as_str()) && window.series(prometheus, &series, false) == 0 {
                problems.push(format!("{name} looks at {series}, and there is none"));
            }
        }
    }
    println!("{recorded} recorded series, {alerts} alerts");
    assert!(recorded > 10 && alerts > 20, "all rules are loaded");
}

fn draw(prometheus: &Prometheus, window: &Window, directory: &Path) {
    let python = std::env::var_os("WEIR_PICTURES_PYTHON").unwrap_or_else(|| "python3".into());
    let started = Instant::now();
    let mut command = Command::new(python);
    command.arg(path("dashboards/draw.py")).arg("--to").arg(directory);
    command.args(["--prometheus", &format!("http://{}", prometheus.address), "--rate", "10s"]);
    command.args(["--baseline-pool", POOLS[0], "--end", &window.end.to_string()]);
    command.args(["--minutes", &((window.end - window.start) / 60.0).to_string()]);
    let status = command.status().expect("Python starts");
    assert!(status.success(), "the pictures are drawn");
    println!("drawn in {:?}", started.elapsed());
}
