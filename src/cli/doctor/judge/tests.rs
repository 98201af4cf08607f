//! The rules against observations: each file in `tests/doctor` is one, and says what must come first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Parser as _;
use serde::Deserialize;

use super::super::observe;
use super::super::show;
use super::super::track::Track;
use super::*;
use crate::cli::scrape::parse;

/// A file in `tests/doctor`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// The findings in their order, all of them: cause, integration, and the bounds of the score.
    #[serde(default)]
    findings: Vec<Expected>,
    verdict: Expectation,
    observation: Observation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    cause: Cause,
    integration: Option<String>,
    score: [f64; 2],
    /// What its line, its evidence and its advice must have in them.
    #[serde(default)]
    says: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Expectation {
    Findings,
    Healthy,
    TooLittleTraffic,
}

fn cases() -> Vec<(String, Case)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doctor");
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let case = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("readable");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let case = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, case)
    };
    let mut cases: Vec<_> = entries.map(case).collect();
    cases.sort_by(|(one, _), (other, _)| one.cmp(other));
    cases
}

#[test]
fn each_observation_has_the_findings_that_its_file_says() {
    for (name, case) in cases() {
        let findings = judge(&case.observation);
        let text = show::text(Verdict::Findings, &findings, std::slice::from_ref(&case.observation));
        let found: Vec<_> = findings.iter().map(|it| (it.cause, it.integration.as_deref(), it.score)).collect();
        assert_eq!(found.len(), case.findings.len(), "{name}: {found:?}");
        for (finding, expected) in findings.iter().zip(&case.findings) {
            let is = (finding.cause, &finding.integration);
            assert_eq!(is, (expected.cause, &expected.integration), "{name}: {found:?}");
            let [least, most] = expected.score;
            assert!((least..=most).contains(&finding.score), "{name}: {found:?}");
            expected
                .says
                .iter()
                .for_each(|part| assert!(text.contains(part), "{name}: {part:?} is missing in\n{text}"));
        }
        let verdict = match verdict(&findings, std::slice::from_ref(&case.observation)) {
            Verdict::Findings => Expectation::Findings,
            Verdict::Healthy => Expectation::Healthy,
            Verdict::TooLittleTraffic => Expectation::TooLittleTraffic,
        };
        assert_eq!(verdict, case.verdict, "{name}");
    }
}

/// Those of weir that change something or read payloads are whole, at the end of their line.
#[test]
fn each_command_that_is_advised_parses() {
    let mut advised = 0;
    for (name, case) in cases() {
        for line in judge(&case.observation).into_iter().flat_map(|finding| finding.change) {
            let command = ["weir settings ", "weir payload "].iter().find_map(|start| line.find(start));
            if let Some(command) = command.map(|at| &line[at..]) {
                // What is quoted is one word.
                let parts = command.split('\'').enumerate();
                let words = parts.flat_map(|(index, part)| match index % 2 {
                    0 => part.split_whitespace().map(str::to_owned).collect(),
                    _ => vec![part.to_owned()],
                });
                let words: Vec<_> = words.collect();
                crate::cli::Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{name}: {words:?}: {error}"));
                advised += 1;
            }
        }
    }
    assert!(advised > 8, "{advised}");
}

#[test]
fn each_cause_comes_first_in_some_case() {
    let cases = cases();
    let first: BTreeSet<_> = cases.iter().filter_map(|(_, case)| Some(case.findings.first()?.cause)).collect();
    let missing: Vec<_> = RULES.iter().map(|rule| rule.cause).filter(|cause| !first.contains(cause)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn causes_come_before_what_they_explain() {
    for (index, rule) in RULES.iter().enumerate() {
        assert!(rule.nothing < rule.sure, "{:?}", rule.cause);
        for (cause, weight) in rule.explained_by {
            let is_before = RULES[..index].iter().any(|earlier| earlier.cause == *cause);
            assert!(is_before && (0.0..=1.0).contains(weight), "{:?} by {cause:?}", rule.cause);
        }
    }
    assert!(RULES.is_sorted_by_key(|rule| rule.cause), "of two that are as likely, the cause comes first");
}

#[test]
fn the_page_has_the_rules_as_they_are() {
    let name = |cause: &Cause| serde_json::to_string(cause).expect("a name").trim_matches('"').to_owned();
    let mut table = "| cause | what is measured | nothing | sure | explained by |\n|---|---|---|---|---|\n".to_owned();
    for rule in &RULES {
        let by = rule.explained_by.iter().map(|(cause, weight)| format!("`{}` {weight}", name(cause)));
        let by = by.collect::<Vec<_>>().join(", ");
        let (cause, Rule { measures, nothing, sure, .. }) = (name(&rule.cause), rule);
        table.push_str(&format!("| `{cause}` | {measures} | {nothing} | {sure} | {by} |\n"));
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
    let page = std::fs::read_to_string(page).expect("readable");
    let (_, rest) = page.split_once("a test compares it -->\n").expect("the table's start");
    let (shown, _) = rest.split_once("<!-- /rules -->").expect("the table's end");
    assert!(shown == table, "put this table into docs/doctor.md:\n{table}");
}

#[test]
fn no_number_breaks_a_rule() {
    for wild in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 1e300] {
        for rule in &RULES {
            assert!((0.0..=1.0).contains(&rule.strength(wild)), "{:?} of {wild}", rule.cause);
        }
        for (name, case) in cases() {
            let mut seen = case.observation;
            seen.seconds = wild;
            (seen.runtime.threads, seen.memory.limit, seen.gate.target) = (wild, wild, wild);
            let findings = judge(&seen);
            assert!(findings.iter().all(|finding| (0.0..=1.0).contains(&finding.score)), "{name} with {wild}");
            show::text(Verdict::Findings, &findings, &[seen]);
        }
    }
}

#[test]
fn the_same_on_several_workers_is_one_finding_with_the_numbers_of_the_worst() {
    let of = |instance: &str, blocked: f64| {
        let slow = super::super::observation::Integration {
            blocked_seconds: blocked,
            blocked_times: 1.0,
            ..Default::default()
        };
        let integrations = BTreeMap::from([("bank".to_owned(), slow)]);
        Observation { instance: instance.into(), seconds: 10.0, integrations, ..Observation::default() }
    };
    let seen = [of("a:1", 1.0), of("b:1", 2.0), of("c:1", 0.0)];
    let findings = merge(seen.iter().map(judge).collect());
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].instances, ["b:1", "a:1"]);
    let text = show::text(Verdict::Findings, &findings, &seen);
    assert!(text.contains("2 of 3 workers: b:1, a:1; the numbers are of b:1"), "{text}");
}

/// What a container with a CPU quota shows: no cgroup can be made where the tests run.
const THROTTLED: &str = r#"
weir_pool_info{pool="parallel",role="worker"} 1
weir_gate_in_flight 30
weir_gate_target 30
weir_gate_slots_held{priority="batch"} 30
weir_gate_slots_held{priority="interactive"} 0
weir_binding_constraint{constraint="cpu_quota"} 1
weir_binding_constraint{constraint="slots"} 0
weir_runtime_threads 2
weir_runtime_busy_seconds $busy
process_cpu_seconds_total $cpu
process_resident_memory_bytes 60000000
process_start_time_seconds 1700000000.0
weir_overload_throttled_ratio 0.82
weir_overload_lag_seconds 0.071
weir_tasks_total{integration="bank",outcome="ok"} $ended
weir_task_duration_seconds_sum{pool="parallel",integration="bank",parallelism="16-50"} $took
weir_task_duration_seconds_count{pool="parallel",integration="bank",parallelism="16-50"} $ended
"#;

#[test]
fn a_container_at_its_cpu_quota_is_named_from_its_readings() {
    let mut track = Track::new();
    for second in 0..=10 {
        let at = f64::from(second);
        let value = |each: f64, before: f64| (before + each * at).to_string();
        // Before, a task took 0.5 s; now it takes one.
        let text = THROTTLED.replace("$busy", &value(1.9, 100.0)).replace("$cpu", &value(0.5, 40.0));
        let text = text.replace("$ended", &value(30.0, 1000.0)).replace("$took", &value(30.0, 500.0));
        track.add(parse(&text, observe::is_read), at);
    }
    let seen = Observation::of(&track, "10.0.0.7:9401", "parallel");
    assert_eq!((seen.readings, seen.seconds), (11, 10.0));
    assert!((seen.throttled_ratio - 0.82).abs() < 1e-9, "{}", seen.throttled_ratio);
    let findings = judge(&seen);
    assert_eq!((findings[0].cause, findings[0].score), (Cause::CpuThrottled, 1.0), "{findings:#?}");
    let text = show::text(Verdict::Findings, &findings, &[seen]);
    let first =
        "1. the CPU quota is used up: the kernel stops all of the worker's threads until the next period (score 1.00)";
    assert_eq!(text.lines().next(), Some(first));
    assert!(text.contains("in 82% of the periods") && text.contains("0.50 processors over 10s"), "{text}");
    assert_eq!(findings.len(), 1, "that tasks take twice as long follows from it: {findings:#?}");
}

/// A worker that idles, of which somebody takes a profile; $ is what changes.
const PROFILED: &str = r#"
weir_pool_info{pool="parallel",role="worker"} 1
weir_gate_in_flight 0
weir_gate_target 30
weir_runtime_threads 2
process_cpu_seconds_total $cpu
process_resident_memory_bytes $resident
process_start_time_seconds 1700000000
weir_allocator_allocated_bytes $resident
weir_overload_lag_seconds $lag
weir_profile_sampling $sampling
weir_profiles_total{outcome="taken"} $taken
"#;

#[test]
fn what_a_profile_costs_is_no_leak_and_no_want_of_processors() {
    let judged = |is_counted: bool| {
        let mut track = Track::new();
        for second in 0..=10_u32 {
            // It samples in the seconds 3 to 6, and looks up names in the two that follow.
            let (resident, cpu) = match second {
                0..=2 => (60_000_000, 0.0),
                3..=6 => (90_000_000, 1.5),
                7 => (150_000_000, 3.5),
                _ => (200_000_000, 5.0),
            };
            let lag = if (7..=8).contains(&second) { 0.4 } else { 0.0 };
            let (sampling, taken) = ((3..=6).contains(&second) && is_counted, second >= 8 && is_counted);
            let values = [
                ("$cpu", cpu.to_string()),
                ("$resident", resident.to_string()),
                ("$lag", lag.to_string()),
                ("$sampling", u8::from(sampling).to_string()),
                ("$taken", u8::from(taken).to_string()),
            ];
            let text = values.iter().fold(PROFILED.to_owned(), |text, (name, value)| text.replace(name, value));
            track.add(parse(&text, observe::is_read), second.into());
        }
        let seen = Observation::of_process(track, None, "10.0.0.7:9401", "parallel").expect("one process");
        (judge(&seen), seen)
    };
    let (unknown, _) = judged(false);
    assert!(unknown.iter().any(|finding| finding.cause == Cause::MemoryGrowth), "the case has teeth: {unknown:#?}");
    let (findings, seen) = judged(true);
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!((seen.profiles, seen.runtime.processors, seen.memory.resident.last), (1.0, 0.0, 200_000_000.0));
    let text = show::text(verdict(&findings, std::slice::from_ref(&seen)), &findings, &[seen]);
    assert!(text.contains("; 1 profile taken meanwhile, whose memory and processor time"), "{text}");
}

/// A worker that is killed and started anew; its counters begin anew, and so does its memory.
const LIFE: &str = r#"
weir_gate_in_flight 5
weir_runtime_threads 2
process_resident_memory_bytes $resident
process_start_time_seconds $start
weir_last_exit{how="first"} $first
weir_last_exit{how="killed"} $killed
weir_tasks_total{integration="bank",outcome="ok"} $ended
weir_task_duration_seconds_sum{integration="bank"} $ended
weir_task_duration_seconds_count{integration="bank"} $ended
"#;

fn life(readings: &[(u32, u32, u32)], began: Option<f64>) -> anyhow::Result<Observation> {
    let mut track = Track::new();
    for (at, (start, resident, ended)) in (0..).map(f64::from).zip(readings) {
        let is_first = start == &readings[0].0;
        let values = [
            ("$start", start.to_string()),
            ("$resident", (resident * 1_000_000).to_string()),
            ("$ended", ended.to_string()),
            ("$first", u8::from(is_first).to_string()),
            ("$killed", u8::from(!is_first).to_string()),
        ];
        let text = values.iter().fold(LIFE.to_owned(), |text, (name, value)| text.replace(name, value));
        track.add(parse(&text, observe::is_read), at);
    }
    Observation::of_process(track, began, "10.0.0.7:9401", "parallel")
}

#[test]
fn a_restart_is_named_and_each_life_judged_by_itself() {
    let readings =
        [(100, 600, 5000), (100, 600, 5010), (1002, 60, 0), (1002, 300, 12), (1002, 300, 20), (1002, 300, 28)];
    let seen = life(&readings, Some(1000.0)).expect("one process");
    assert_eq!((seen.restarts, seen.last_exit.as_deref(), seen.readings, seen.seconds), (1, Some("killed"), 4, 3.0));
    let bank = &seen.integrations["bank"];
    assert_eq!((bank.took.count, bank.before.count), (28.0, 5010.0));
    let findings = judge(&seen);
    assert_eq!(findings[0].cause, Cause::Ended, "{findings:#?}");
    assert!(findings[0].says.ends_with("it ended by: killed (weir_last_exit)"), "{}", findings[0].says);
}

#[test]
fn an_address_of_several_processes_is_refused() {
    let error = life(&[(100, 60, 5), (130, 60, 9000), (100, 60, 6), (130, 60, 9001)], Some(1000.0)).expect_err("two");
    let says = "10.0.0.7:9401 leads to 2 processes in turn, as behind a load balancer: give the address of one worker";
    assert_eq!(error.to_string(), says);
}

/// A bank that refused for long, when tasks failed at once, was slow for a night, and is slow again.
const HISTORY: &str = r#"
weir_gate_in_flight 5
weir_runtime_threads 2
weir_tasks_total{integration="bank",outcome="ok"} $ok
weir_tasks_total{integration="bank",outcome="integration_error"} 100000
weir_task_failed_seconds{integration="bank"} 100.5
weir_task_duration_seconds_bucket{integration="bank",parallelism="2-15",le="0.25"} 100000
weir_task_duration_seconds_bucket{integration="bank",parallelism="2-15",le="1"} 109000
weir_task_duration_seconds_bucket{integration="bank",parallelism="2-15",le="5"} $all
weir_task_duration_seconds_bucket{integration="bank",parallelism="2-15",le="60"} $all
weir_task_duration_seconds_bucket{integration="bank",parallelism="2-15",le="+Inf"} $all
weir_task_duration_seconds_sum{integration="bank",parallelism="2-15"} $seconds
weir_task_duration_seconds_count{integration="bank",parallelism="2-15"} $all
"#;

#[test]
fn an_incident_since_the_start_does_not_hide_the_next_one() {
    let mut track = Track::new();
    for second in 0..=10_u32 {
        // 9,000 runs of 1 s, 1,000 of 50 s; and now each takes 4 s.
        let (ok, seconds) = (10_000 + 3 * second, 100.5 + 59_000.0 + 12.0 * f64::from(second));
        let text = HISTORY.replace("$ok", &ok.to_string()).replace("$all", &(100_000 + ok).to_string());
        track.add(parse(&text.replace("$seconds", &seconds.to_string()), observe::is_read), second.into());
    }
    let seen = Observation::of(&track, "10.0.0.7:9401", "parallel");
    let bank = &seen.integrations["bank"];
    assert_eq!((bank.before.ok().count, bank.before.ok().seconds, bank.took.ok().count), (10_000.0, 59_000.0, 30.0));
    let spread = bank.spread.expect("there are buckets");
    assert_eq!((spread.half_within, spread.most_within, spread.above_half), (1.0, 5.0, 1.0));
    let findings = judge(&seen);
    let (cause, measured) = (findings[0].cause, findings[0].measured);
    assert!(cause == Cause::SlowUpstream && (measured - 4.0).abs() < 1e-6, "{findings:#?}");
}
