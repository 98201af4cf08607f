//! What dashboards and documents ask for is there: each metric and label, as a real worker and a real router show them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::documents::{path, read, run_checker};
use crate::support::processes::{LONG, Process, get, weir};
use crate::support::redis::RedisServer;

const DASHBOARD: &str = "dashboards/weir.json";

/// The payload of the one task is stored a moment after its answer; what is still missing then is missing.
const ALL_THERE_WITHIN: Duration = Duration::from_secs(20);

/// Labels that Prometheus adds to what it scrapes.
const ADDED: [&str; 2] = ["instance", "job"];

// ── what the dashboard says

struct Query {
    panel: String,
    expression: String,
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON")
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// Everything but the rows.
fn panels(dashboard: &Value) -> Vec<Value> {
    let all = dashboard["panels"].as_array().expect("it has panels");
    all.iter().filter(|panel| panel["type"] != "row").cloned().collect()
}

/// The expressions of panels and annotations, with Grafana's variables filled in.
fn queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().expect("it has queries") {
            queries.push(Query { panel: text(&panel, "title"), expression: filled_in(&text(target, "expr")) });
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("it has annotations") {
        if let Some(expression) = annotation["expr"].as_str() {
            queries.push(Query { panel: text(annotation, "name"), expression: filled_in(expression) });
        }
    }
    queries
}

fn filled_in(expression: &str) -> String {
    let values = [
        ("$__rate_interval", "1m"),
        ("$__range", "30m"),
        ("$baseline_pool", "default"),
        ("$baseline", "1"),
        ("$pool", ".*"),
        ("$integration", ".*"),
        ("$instance", ".*"),
    ];
    values.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[test]
fn each_panel_asks_a_question_and_says_what_good_looks_like() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = text(&panel, "title");
        assert!(title.ends_with('?'), "{title:?} is no question");
        assert!(text(&panel, "description").contains("Good: "), "{title} does not say what good looks like");
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title} has no unit");
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title} has another panel's id");
        let targets = panel["targets"].as_array().expect("queries").iter();
        for source in targets.map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            assert_eq!(source, &json!({"type": "prometheus", "uid": "${datasource}"}), "{title}");
        }
    }
}

#[test]
fn each_variable_that_a_query_uses_is_defined() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("it has variables");
    let names: Vec<_> = variables.iter().map(|variable| text(variable, "name")).collect();
    assert!(["datasource", "pool", "integration", "instance"].iter().all(|name| names.contains(&(*name).to_owned())));
    for Query { panel, expression } in queries(&dashboard) {
        assert!(!expression.contains('$'), "{panel}: {expression}");
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        assert_eq!(variable["query"]["query"], variable["definition"], "{}", text(variable, "name"));
    }
}

#[test]
fn prometheus_parses_each_query() {
    let rule = |(index, query): (usize, &Query)| json!({"record": format!("panel:{index}"), "expr": query.expression});
    let queries = queries(&dashboard());
    assert!(queries.len() > 50, "all queries are found");
    let rules: Vec<_> = queries.iter().enumerate().map(rule).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rules.json");
    // JSON is YAML.
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(&file, rules.to_string()).expect("written");
    run_checker("promtool", &["check", "rules", &file.to_string_lossy()]);
}

// ── what a worker and a router say

/// Label names by the names of samples and of metrics.
type Metrics = BTreeMap<String, BTreeSet<String>>;

#[test]
fn each_metric_and_label_that_a_dashboard_or_document_names_exists() {
    let mut running = Running::start();
    let wanted: Vec<_> = queries(&dashboard());
    let named: BTreeSet<_> = ["README.md", "deploy/README.md", "deploy/weir.example.toml"]
        .iter()
        .flat_map(|document| names_in(&read(document)))
        .collect();
    let start = Instant::now();
    loop {
        let metrics = running.metrics();
        let mut missing: Vec<_> = wanted.iter().filter_map(|query| missing(query, &metrics)).collect();
        missing
            .extend(named.iter().filter(|name| !metrics.contains_key(*name)).map(|name| format!("document: {name}")));
        if missing.is_empty() {
            break;
        }
        assert!(start.elapsed() < ALL_THERE_WITHIN, "{missing:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    running.stop();
}

/// Names of weir's metrics in a text.
fn names_in(document: &str) -> BTreeSet<String> {
    let words = document.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let prefix = |word: &&str| word.starts_with("weir_") || word.starts_with("process_");
    // A regular expression names beginnings.
    words.filter(prefix).filter(|word| !word.ends_with('_')).map(str::to_owned).collect()
}

/// What a query asks for and the metrics do not have.
fn missing(query: &Query, metrics: &Metrics) -> Option<String> {
    let mut all_labels: BTreeSet<&str> = ADDED.into();
    let asked = Asked::of(&query.expression);
    let without_allocator = !cfg!(feature = "jemalloc");
    for (metric, labels) in &asked.selectors {
        if without_allocator && metric.starts_with("weir_allocator_") {
            continue;
        }
        let Some(known) = metrics.get(metric) else {
            return Some(format!("{}: there is no metric {metric}", query.panel));
        };
        if let Some(label) = labels.iter().find(|label| !known.contains(*label) && !ADDED.contains(&label.as_str())) {
            return Some(format!("{}: {metric} has no label {label}", query.panel));
        }
        all_labels.extend(known.iter().map(String::as_str));
    }
    let grouped = asked.grouped.iter().find(|label| !all_labels.contains(label.as_str()));
    grouped.map(|label| format!("{}: no metric of the query has the label {label}", query.panel))
}

/// The names in an expression.
#[derive(Default)]
struct Asked {
    selectors: Vec<(String, Vec<String>)>,
    grouped: Vec<String>,
}

impl Asked {
    fn of(expression: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (mut asked, mut rest) = (Asked::default(), expression);
        while let Some(start) = rest.find(is_name) {
            let name = &rest[start..];
            let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
            rest = rest[start + name.len()..].trim_start();
            let inside = |close: char| rest[1..].split(close).next().unwrap_or_default();
            if rest.starts_with('{') {
                let matchers = inside('}');
                asked.selectors.push((name.to_owned(), labels(matchers)));
                rest = &rest[matchers.len() + 2..];
            } else if ["by", "without", "ignoring", "on"].contains(&name) {
                asked.grouped.extend(inside(')').split(',').map(|label| label.trim().to_owned()));
                rest = &rest[inside(')').len() + 2..];
            } else if name.starts_with("weir_") || name.starts_with("process_") {
                asked.selectors.push((name.to_owned(), Vec::new()));
            }
        }
        asked
    }
}

/// The label names of `name="…", name=~"…"`; no value holds a comma or a brace.
fn labels(matchers: &str) -> Vec<String> {
    matchers.split(',').filter_map(|matcher| Some(matcher.split_once(['=', '!'])?.0.trim().to_owned())).collect()
}

#[test]
fn names_are_found_in_an_expression() {
    let asked = Asked::of(r#"sum by (le, a) (rate(weir_x_bucket{b!="1", c=~".*"}[1m])) / (process_y > 0.5)"#);
    let expected =
        [("weir_x_bucket".to_owned(), vec!["b".to_owned(), "c".to_owned()]), ("process_y".to_owned(), vec![])];
    assert_eq!(asked.selectors, expected);
    assert_eq!(asked.grouped, ["le", "a"]);
}

/// A router, a worker and a Redis as processes, after one task.
struct Running {
    roles: Vec<Role>,
    _redis: RedisServer,
    _directory: TempDir,
}

struct Role {
    process: Process,
    listen: String,
    admin: SocketAddr,
}

impl Running {
    fn start() -> Self {
        let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
        std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");
        std::fs::copy(path("deploy/settings.example.json"), directory.path().join("settings.json")).expect("copied");
        let url = redis.url();
        let start = |name, arguments: &[&str]| {
            Process::start(name, directory.path(), &weir(), arguments, &[("WEIR_REGISTRY__URL", &url)])
        };
        let roles: Vec<_> = ["worker", "router"].map(|name| Role::of(start(name, &[name]), name)).into();
        let to = format!("http://{}", roles[1].listen);
        let task = ["--integration", "synthetic", "--input", r#"{"do": "noop"}"#];
        let mut submit = start("submit", &[&["submit", "--to", &to], &task[..]].concat());
        assert_eq!(submit.exit_code(LONG), Some(0), "{}", submit.out());
        Running { roles, _redis: redis, _directory: directory }
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::new();
        for role in &self.roles {
            for line in get(role.admin, "/metrics").lines() {
                // `# TYPE name kind` has no labels, `name{label="value"} 1` has.
                if let Some(metric) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
                    metrics.entry(metric.to_owned()).or_default();
                } else if !line.starts_with('#')
                    && let Some((series, _)) = line.rsplit_once(' ')
                {
                    let (name, rest) = series.split_once('{').unwrap_or((series, ""));
                    metrics.entry(name.to_owned()).or_default().extend(labels(rest));
                }
            }
        }
        metrics
    }

    fn stop(&mut self) {
        self.roles.iter_mut().rev().for_each(|role| role.process.stop());
    }
}

impl Role {
    fn of(mut process: Process, name: &str) -> Self {
        let serves = process.wait_for_log(&format!("the {name} serves"));
        let admin = text(&serves, "admin").parse().expect("an address");
        Role { process, listen: text(&serves, "listen"), admin }
    }
}

const CONFIGURATION: &str = r#"
log.format = "json"
settings.file = "settings.json"

[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[router]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[payloads]
store = "directory"

[integrations.synthetic]
kind = "synthetic"

[integrations.bank]
kind = "http"
base_url = "http://127.0.0.1:1"
steps = [{ name = "accounts", path = "/accounts" }]
"#;
