//! The dashboards are what their sources say, and each panel says what a person needs. That what they ask for is there,
//! `metrics_page` tests, and on a real Prometheus `processes/seen`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::documents::{path, read, run_checker};
use crate::support::promql::{USUAL, dashboards, filled_in, panels, queries, text};

/// The whole width of a dashboard, in Grafana's units.
const WIDTH: u64 = 24;

#[test]
fn the_dashboards_are_what_their_sources_say() {
    run_checker("python3", &[&path("dashboards/build.py").to_string_lossy(), "--check"]);
    let names: Vec<_> = dashboards().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["payloads.json", "rollout.json", "router.json", "worker.json"]);
}

#[test]
fn each_panel_asks_a_question_and_says_what_good_looks_like() {
    for (file, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        assert!(text(&dashboard, "uid").starts_with("weir-") && text(&dashboard, "description").contains("question"));
        for panel in panels(&dashboard) {
            let title = format!("{file}: {}", text(panel, "title"));
            assert!(title.ends_with('?'), "{title:?} is no question");
            let description = text(panel, "description");
            let (about, good) = description.split_once(" Good: ").unwrap_or_default();
            assert!(about.len() > 10 && good.ends_with('.'), "{title} does not say what good looks like");
            assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title} has no unit");
            assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title} has another panel's id");
            let targets = panel["targets"].as_array().expect("queries").iter();
            for source in targets.map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
                assert_eq!(source, &json!({"type": "prometheus", "uid": "${datasource}"}), "{title}");
            }
        }
    }
}

#[test]
fn no_panel_lies_on_another_one() {
    for (file, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().expect("it has panels") {
            let edge = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
            let (x, y, width, height) = (edge("x"), edge("y"), edge("w"), edge("h"));
            assert!(x + width <= WIDTH, "{file}: {} is too wide", text(panel, "title"));
            for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{file}: {} lies on another panel", text(panel, "title"));
            }
        }
    }
}

#[test]
fn each_variable_that_a_query_uses_is_defined() {
    let mut by_integration = 0;
    for (file, dashboard) in dashboards() {
        let variables = dashboard["templating"]["list"].as_array().expect("it has variables");
        let names: BTreeSet<_> = variables.iter().map(|variable| text(variable, "name")).collect();
        assert!(["datasource", "pool", "instance"].iter().all(|name| names.contains(*name)), "{file}: {names:?}");
        by_integration += usize::from(names.contains("integration"));
        let all = dashboard.to_string();
        for (variable, _) in USUAL.iter().filter(|(variable, _)| !variable.starts_with("$__")) {
            // `$baseline` is the beginning of `$baseline_pool`.
            let is_used =
                all.replace("$baseline_pool", "").contains(variable) || all.contains(&format!("{variable}\\\""));
            assert!(!is_used || names.contains(&variable[1..]), "{file} uses {variable}");
        }
    }
    assert_eq!(by_integration, 2, "rollout and worker");
    for query in queries() {
        let expression = filled_in(&query.expression, &USUAL);
        assert!(!expression.contains('$'), "{}: {expression}", query.place);
    }
}

#[test]
fn prometheus_parses_each_query() {
    let rule = |(index, expression): (usize, String)| json!({"record": format!("panel:{index}"), "expr": expression});
    let queries: Vec<_> = queries().iter().map(|query| filled_in(&query.expression, &USUAL)).collect();
    assert!(queries.len() > 100, "all queries are found");
    let rules: Vec<Value> = queries.into_iter().enumerate().map(rule).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rules.json");
    // JSON is YAML.
    let rules = json!({"groups": [{"name": "dashboards", "rules": rules}]});
    std::fs::write(&file, rules.to_string()).expect("written");
    run_checker("promtool", &["check", "rules", &file.to_string_lossy()]);
}

#[test]
fn grafana_is_provisioned_with_what_there_is() {
    let (sources, provider) = (read("deploy/grafana/datasources/weir.yml"), read("deploy/grafana/dashboards/weir.yml"));
    assert!(read("deploy/prometheus.yml").contains("--web.listen-address 127.0.0.1:9090"));
    assert!(sources.contains("url: http://127.0.0.1:9090"));
    // A rate needs four scrapes at least, which Grafana works out from this.
    let interval = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key).map(str::to_owned));
        line.unwrap_or_else(|| panic!("there is no {key}"))
    };
    assert_eq!(interval(&sources, "timeInterval:"), interval(&read("deploy/prometheus.yml"), "scrape_interval:"));
    let folder = interval(&provider, "path:");
    assert!(read("deploy/README.md").contains(folder.trim()), "deploy/README.md puts the dashboards into{folder}");
}
