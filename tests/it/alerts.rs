//! Each alert has a runbook and tests, and Prometheus takes the rules.

use std::collections::BTreeSet;

use crate::documents::{path, read, run_checker};
use crate::support::promql::Asked;

const RULES: &str = "deploy/prometheus/rules.yml";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
const TESTS: &str = "deploy/prometheus/tests.yml";
const RUNBOOKS: &str = "docs/runbooks.md";

/// The blocks that begin with `- KEY: NAME`, each with its lines joined.
fn blocks(file: &str, key: &str) -> Vec<(String, String)> {
    let (text, beginning) = (read(file), format!("- {key}: "));
    let blocks = text.split(&beginning).skip(1).map(|block| {
        let block = block.split("\n  - name:").next().unwrap_or_default();
        let words: Vec<_> = block.split_whitespace().collect();
        (words[0].to_owned(), words[1..].join(" "))
    });
    blocks.collect()
}

#[test]
fn prometheus_takes_the_rules_and_their_tests_pass() {
    for file in [RULES, ALERTS] {
        run_checker("promtool", &["check", "rules", &path(file).to_string_lossy()]);
    }
    run_checker("promtool", &["test", "rules", &path(TESTS).to_string_lossy()]);
}

#[test]
fn each_alert_has_a_runbook_that_says_what_to_do() {
    let page = read(RUNBOOKS);
    let paragraphs: Vec<_> = page.split("\n## ").skip(1).filter_map(|text| text.split_once('\n')).collect();
    let alerts = blocks(ALERTS, "alert");
    let [names, headings] = [
        alerts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        paragraphs.iter().map(|(heading, _)| *heading).collect(),
    ];
    assert_eq!(names, headings, "the page has the alerts in their order");
    for (name, block) in &alerts {
        let runbook = format!("runbook: {RUNBOOKS}#{}", name.to_lowercase());
        assert!(block.contains(&runbook), "{name} names no {runbook}");
        assert!(block.contains("severity: page") || block.contains("severity: ticket"), "{name} has no severity");
        assert!(block.contains("summary: "), "{name} has no summary");
    }
    for (alert, text) in paragraphs {
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("the runbook of {alert} has no {part}"));
        assert!(at("**Means:**") < at("**Look at:**") && at("**Look at:**") < at("**Do:**"), "{alert}");
    }
}

#[test]
fn each_alert_has_a_test_in_which_it_fires_and_does_not() {
    let tests = read(TESTS);
    for (alert, _) in blocks(ALERTS, "alert") {
        let test = tests.split("- name: ").find(|test| test.trim_start_matches('"').starts_with(&format!("{alert}: ")));
        let test = test.unwrap_or_else(|| panic!("there is no test of {alert}"));
        let fires = test.matches(&format!("alertname=\"{alert}\"")).count();
        assert!(
            fires == 1 && test.matches("exp_samples: []").count() >= 2,
            "{alert} is quiet, fires, and is quiet again"
        );
    }
}

#[test]
fn each_recorded_series_that_is_asked_for_is_recorded() {
    let recorded: BTreeSet<_> = blocks(RULES, "record").into_iter().map(|(name, _)| name).collect();
    let asked: Vec<_> =
        [(RULES, "record"), (ALERTS, "alert")].iter().flat_map(|(file, key)| blocks(file, key)).collect();
    for (name, block) in asked {
        let expression = block.split_once("expr:").map_or("", |(_, rest)| rest);
        let series = Asked::of(expression).selectors.into_iter().map(|(series, _)| series);
        for series in series.filter(|series| series.trim_end_matches(':').contains(':')) {
            assert!(recorded.contains(&series), "{name} asks for {series}");
        }
    }
}
