//! What probes and scrapers see of both roles.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::calls::{http_get, metric};
use crate::support::house::{House, pull, synthetic};

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_by_both_roles() {
    let house = House::start().await;
    for address in [house.router_admin(), house.worker(0).admin_address()] {
        for path in ["/live", "/ready"] {
            assert_eq!(http_get(address, path).await.status, 200, "{path}");
        }
        let nothing = http_get(address, "/nothing").await;
        assert_eq!(nothing.status, 404);
        assert!(nothing.body.contains("/metrics"), "{}", nothing.body);
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_both_roles_are_in_the_text_format_and_each_says_what_it_is() {
    let house = House::start().await;
    house.client.submit(&pull("t-1")).await.expect("an outcome");
    house.client.submit(&synthetic("t-2", json!({"do": "panic"}))).await.expect("an outcome");
    house.until_payloads_ended(0, 2).await;
    let addresses = [("router", house.router_admin()), ("worker", house.worker(0).admin_address())];
    for (role, address) in addresses {
        let response = http_get(address, "/metrics").await;
        assert!(response.head.contains("text/plain; version=0.0.4"), "{}", response.head);
        let families = families(&response.body);
        let undescribed: Vec<_> = families.iter().filter(|(_, family)| family.help.is_empty()).collect();
        assert!(undescribed.is_empty(), "{role}: these metrics have no help text: {undescribed:#?}");
        for (name, family) in &families {
            assert!(name.starts_with("weir_") || name.starts_with("process_"), "{role}: {name}");
            let counts = family.kind == "counter";
            assert_eq!(counts, name.ends_with("_total"), "{role}: {name} is a {}", family.kind);
            assert_ne!(family.kind, "summary", "{role}: {name} has no buckets");
        }
        let expected: &[&str] = match role {
            "router" => &["weir_router_attempts_total", "weir_router_queue_tasks", "weir_registry_requests_total"],
            _ => &["weir_gate_in_flight", "weir_task_duration_seconds", "weir_payloads_offered_total"],
        };
        for name in expected.iter().chain(&["process_resident_memory_bytes", "process_open_fds"]) {
            assert!(families.contains_key(*name), "{role}: {name} is missing");
        }
    }
    let text = http_get(house.worker(0).admin_address(), "/metrics").await.body;
    assert_eq!(metric(&text, "weir_tasks_total{integration=\"bank\",outcome=\"ok\"}"), 1.0);
    assert_eq!(metric(&text, "weir_tasks_total{integration=\"synthetic\",outcome=\"panic\"}"), 1.0);
    assert_eq!(metric(&text, "weir_payloads_stored_total"), 2.0);
    assert!(!text.contains("t-1") && !text.contains(house.worker(0).id().as_str()), "ids are no labels");
    house.close().await;
}

#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
}

/// Reads the text format line by line and panics at the first line that is not in it.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut series = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.is_empty()) {
        let wrong = || panic!("not in the text format: {line:?}");
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap_or_else(wrong);
            families.entry(name.into()).or_default().help = help.into();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or_else(wrong);
            let family = families.entry(name.into()).or_default();
            assert!(family.kind.is_empty(), "{name} has two types");
            family.kind = kind.into();
        } else {
            let (labelled, value) = line.rsplit_once(' ').unwrap_or_else(wrong);
            value.parse::<f64>().unwrap_or_else(|_| panic!("not a value: {line:?}"));
            assert!(series.insert(labelled), "twice: {line:?}");
            let name = labelled.split('{').next().unwrap_or_default();
            assert!(labels_are_valid(&labelled[name.len()..]), "not labels: {line:?}");
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let family = families.get(name).or_else(|| families.get(of_histogram?));
            assert!(family.is_some_and(|family| !family.kind.is_empty()), "no type before {line:?}");
        }
    }
    families
}

/// `{name="value",…}` or nothing.
fn labels_are_valid(labels: &str) -> bool {
    let Some(inner) = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}')) else {
        return labels.is_empty();
    };
    inner.split("\",").all(|label| {
        label
            .split_once("=\"")
            .is_some_and(|(name, _)| name.chars().all(|character| character.is_ascii_lowercase() || character == '_'))
    })
}
