//! The reference page of the metrics is what a worker, a router and a sandbox show; their names keep Prometheus'
//! conventions, their labels are closed, and their number has a bound. What dashboards, rules and documents ask for is
//! among them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::documents::{path, read};
use crate::support::observed::Observed;
use crate::support::processes::{Process, get, weir};
use crate::support::promql::{Asked, USUAL, filled_in, names_in, queries};
use crate::support::site::free_address;

const PAGE: &str = "docs/metrics.md";

/// Set, it has the test write the page instead of comparing it.
const WRITE: &str = "WEIR_WRITE_PAGES";

/// Some metrics are there a moment after the start: a router must have heard of Redis first.
const ALL_THERE_WITHIN: Duration = Duration::from_secs(20);

/// Labels of which a configuration, and not the code, has the values.
const OPEN_LABELS: [&str; 3] = ["integration", "pool", "version"];

/// Labels that Prometheus adds to what it scrapes, or that a rule adds.
const ADDED: [&str; 4] = ["instance", "job", "side", "alertname"];

/// Series that one worker may have at 100 integrations.
const MOST_SERIES: usize = 10_000;

struct Metric {
    kind: String,
    help: String,
    roles: BTreeSet<&'static str>,
    labels: BTreeMap<String, BTreeSet<String>>,
}

type Metrics = BTreeMap<String, Metric>;

/// Adds what a role shows. `# HELP name text` and `# TYPE name kind` come before the series of a metric.
fn read_exposition(text: &str, role: &'static str, metrics: &mut Metrics) {
    let (mut help, mut name) = ("", "");
    for line in text.lines() {
        if let Some((_, rest)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = rest;
        } else if let Some((of, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            name = of;
            let new = || Metric { kind: kind.into(), help: help.into(), roles: [].into(), labels: [].into() };
            let metric = metrics.entry(name.to_owned()).or_insert_with(new);
            assert_eq!((metric.kind.as_str(), metric.help.as_str()), (kind, help), "{name} differs between roles");
            metric.roles.insert(role);
            help = "";
        } else if let Some((series, _)) = line.rsplit_once(' ') {
            let labels = series.split_once('{').map_or("", |(_, rest)| rest.trim_end_matches('}'));
            let metric = metrics.get_mut(name).expect("the type comes first");
            // No value holds a comma.
            for (label, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                if label != "le" {
                    metric.labels.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
}

fn shown_by(observed: &Observed) -> Metrics {
    let pool = &observed.pools[0];
    let mut metrics = Metrics::new();
    let roles = [("worker", pool.worker_admin), ("router", pool.router_admin), ("sandbox", observed.sandbox)];
    for (role, address) in roles {
        read_exposition(&get(address, "/metrics"), role, &mut metrics);
    }
    metrics
}

/// What the last part of a name says.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") if name.ends_with("_timestamp_seconds") || name.ends_with("start_time_seconds") => {
            "Unix time, s"
        }
        Some("seconds") => "s",
        Some("bytes") => "bytes",
        Some("ratio") => "0 to 1",
        _ => "",
    }
}

fn table(metrics: &Metrics) -> String {
    let mut table = "| metric | type | unit | of | labels | what it says |\n|---|---|---|---|---|---|\n".to_owned();
    for (name, Metric { kind, help, roles, labels }) in metrics {
        let label = |(label, values): (&String, &BTreeSet<String>)| {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            let is_open = OPEN_LABELS.contains(&label.as_str());
            if is_open { format!("`{label}`") } else { format!("`{label}`: {}", values.join(", ")) }
        };
        let labels: Vec<_> = labels.iter().map(label).collect();
        let roles: Vec<_> = roles.iter().copied().collect();
        let (unit, roles, labels) = (unit(name), roles.join(", "), labels.join("; "));
        table.push_str(&format!("| `{name}` | {kind} | {unit} | {roles} | {labels} | {help} |\n"));
    }
    table
}

#[test]
fn the_page_is_what_the_roles_show_and_what_is_asked_for_is_there() {
    let observed = Observed::start(&["default"]);
    let (page, start) = (read(PAGE), Instant::now());
    let (head, rest) = page.split_once("a test compares it -->\n").expect("the table's start");
    let (on_page, tail) = rest.split_once("<!-- /metrics -->").expect("the table's end");
    let write = std::env::var_os(WRITE).is_some();
    loop {
        let metrics = shown_by(&observed);
        let shown = table(&metrics);
        let missing = missing(&metrics);
        // Without the feature there is no allocator to ask.
        let allocator = |line: &&str| cfg!(feature = "jemalloc") || !line.contains("weir_allocator_");
        let wanted: Vec<_> = on_page.lines().filter(allocator).collect();
        let is_current = write || shown.lines().eq(wanted.iter().copied());
        if is_current && missing.is_empty() {
            check_conventions(&metrics);
            if write {
                let text = format!("{head}a test compares it -->\n{shown}<!-- /metrics -->{tail}");
                std::fs::write(path(PAGE), text).expect("written");
            }
            break;
        }
        let differing: Vec<_> = shown.lines().filter(|line| !wanted.contains(line)).collect();
        assert!(
            start.elapsed() < ALL_THERE_WITHIN,
            "missing: {missing:#?}\n{PAGE} is not what the roles show; {WRITE}=1 has this test write it. New: {differing:#?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    observed.stop();
}

fn check_conventions(metrics: &Metrics) {
    for (name, metric) in metrics {
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(plain && (name.starts_with("weir_") || name.starts_with("process_")), "{name}");
        // "Prometheus: metric and label naming": counters end in total, and nothing else does.
        assert_eq!(name.ends_with("_total"), metric.kind == "counter", "{name} is a {}", metric.kind);
        for foreign in ["_milliseconds", "_ms", "_micros", "_minutes", "_kb", "_mb", "_kilobytes", "_percent"] {
            assert!(!name.trim_end_matches("_total").ends_with(foreign), "{name} has no base unit");
        }
        assert!(metric.help.len() > 10 && metric.help.ends_with('.'), "{name} has no help: {:?}", metric.help);
        for (label, values) in &metric.labels {
            let is_closed = OPEN_LABELS.contains(&label.as_str()) || values.len() <= 20;
            assert!(is_closed, "{name}: the label {label} has {} values", values.len());
            assert!(
                !["worker", "task", "tenant", "url", "host", "customer"].contains(&label.as_str()),
                "{name}: {label}"
            );
        }
    }
}

/// What dashboards, rules and documents ask for and the roles do not show.
fn missing(metrics: &Metrics) -> Vec<String> {
    let documents = std::fs::read_dir(path("docs")).expect("a directory").map(|entry| entry.expect("an entry").path());
    let documents = documents.filter(|file| file.extension().is_some_and(|it| it == "md"));
    let mut texts: Vec<_> = documents.map(|file| file.to_string_lossy().into_owned()).collect();
    let others = ["README.md", "deploy/README.md", "deploy/weir.example.toml"];
    texts.extend(others.map(str::to_owned));
    texts.extend(["rules", "alerts", "tests"].map(|name| format!("deploy/prometheus/{name}.yml")));
    let mut missing = Vec::new();
    for text in texts {
        let named = names_in(&read(&text)).into_iter();
        missing.extend(named.filter(|name| metric_of(name, metrics).is_none()).map(|name| format!("{text}: {name}")));
    }
    missing.extend(queries().iter().filter_map(|query| {
        let problem = missing_in(&filled_in(&query.expression, &USUAL), metrics)?;
        Some(format!("{}: {problem}", query.place))
    }));
    missing
}

/// The metric that a series belongs to.
fn metric_of<'a>(series: &str, metrics: &'a Metrics) -> Option<&'a Metric> {
    static ALLOCATOR: Metric =
        Metric { kind: String::new(), help: String::new(), roles: BTreeSet::new(), labels: BTreeMap::new() };
    if !cfg!(feature = "jemalloc") && series.starts_with("weir_allocator_") {
        return Some(&ALLOCATOR);
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| series.strip_suffix(part));
    let histogram = of_histogram.and_then(|name| metrics.get(name)).filter(|metric| metric.kind == "histogram");
    metrics.get(series).or(histogram)
}

fn missing_in(expression: &str, metrics: &Metrics) -> Option<String> {
    let asked = Asked::of(expression);
    let mut all_labels: BTreeSet<&str> = ADDED.into_iter().chain(["le"]).collect();
    for (series, labels) in &asked.selectors {
        let Some(metric) = metric_of(series, metrics) else { return Some(format!("there is no {series}")) };
        let has = |label: &String| metric.labels.contains_key(label) || ADDED.contains(&label.as_str());
        if let Some(label) = labels.iter().find(|label| !has(label)) {
            return Some(format!("{series} has no label {label}"));
        }
        all_labels.extend(metric.labels.keys().map(String::as_str));
    }
    let grouped = asked.grouped.iter().find(|label| !all_labels.contains(label.as_str()));
    grouped.map(|label| format!("no metric of the query has the label {label}"))
}

#[test]
fn each_metric_that_the_code_names_is_on_the_page() {
    let (page, mut missing) = (read(PAGE), BTreeSet::new());
    let mut folders = vec![path("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a directory") {
            let file = entry.expect("an entry").path();
            let name = file.to_string_lossy().into_owned();
            if file.is_dir() {
                folders.push(file);
            } else if !name.ends_with("tests.rs") && !name.contains("/tests/") {
                let text = read(&name);
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let literals = code.split('"').filter(|literal| literal.starts_with("weir_") && !literal.contains(' '));
                let plain = literals.filter(|literal| literal.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
                missing.extend(plain.filter(|name| !page.contains(&format!("| `{name}` |"))).map(str::to_owned));
            }
        }
    }
    assert!(missing.is_empty(), "not in {PAGE}: {missing:#?}");
}

#[test]
fn a_worker_with_a_hundred_integrations_keeps_within_the_budget_of_series() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut configuration = BUDGET_CONFIGURATION.to_owned();
    for number in 0..100 {
        configuration.push_str(&BUDGET_INTEGRATION.replace("$name", &format!("bank_{number}")));
    }
    std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
    let admin: SocketAddr = free_address().parse().expect("an address");
    let flags = ["worker", "--listen", "127.0.0.1:0", "--admin", &admin.to_string()];
    let variables = [("WEIR_LOG__FORMAT", "json"), ("BANK_SECRET", "secret")];
    let mut worker = Process::start("worker", directory.path(), &weir(), &flags, &variables);
    worker.wait_for_log("the worker serves");
    // Each label has all of its values from the start on, so that a rate misses no first time: this is the most.
    let series = get(admin, "/metrics").lines().filter(|line| !line.starts_with('#')).count();
    println!("{series} series at 100 integrations");
    assert!((5_000..=MOST_SERIES).contains(&series), "{series}");
    worker.stop();
}

const BUDGET_CONFIGURATION: &str = r#"
registry.url = "redis://127.0.0.1:1"
payloads = { store = "directory", spool.path = "spool" }
worker.upstream.adaptive.mode = "on"
"#;

/// The kind with the most metrics.
const BUDGET_INTEGRATION: &str = r#"
[integrations.$name]
kind = "http"
base_url = "http://127.0.0.1:1"
auth = { kind = "oauth2", token_url = "http://127.0.0.1:1/token", client_id = "weir", client_secret = { env = "BANK_SECRET" } }
steps = [{ name = "accounts", path = "/accounts" }]
"#;
