//! What operators copy works: the example configuration and the deploy files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use weir::cli::Cli;
use weir::config::{self, Config};
use weir::integration::{self, Integrations};
use weir::settings::{self, flagd};
use weir::telemetry::Telemetry;

pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

// ── deploy/weir.example.toml

const EXAMPLE: &str = "deploy/weir.example.toml";

/// A key of the example file, with the comment above it.
struct Key {
    path: String,
    is_commented: bool,
    comment: String,
}

/// A line `#key = value` is a key at its default, and `#[section]` one that is not in use; all other lines with # are
/// prose.
fn commented_key(line: &str) -> Option<&str> {
    line.strip_prefix('#').filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '['))
}

/// With every key in use but those that begin so: a Redis has Sentinels or is a Cluster.
fn uncommented(text: &str, without: &str) -> String {
    let lines = text.lines().map(|line| commented_key(line).filter(|key| !key.starts_with(without)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

const SENTINEL: &str = "sentinel.";
const CLUSTER: &str = "cluster.";

fn keys_of_example() -> Vec<Key> {
    let (mut section, mut comment, mut keys) = (String::new(), String::new(), Vec::new());
    for line in read(EXAMPLE).lines() {
        let key = commented_key(line).unwrap_or(line).split_once(" = ").map(|(key, _)| key);
        let content = commented_key(line).unwrap_or(line);
        if let Some(header) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = header.to_owned();
            comment.clear();
        } else if let Some(key) = key.filter(|key| key.starts_with(|first: char| first.is_ascii_lowercase())) {
            let is_commented = line.starts_with('#');
            keys.push(Key { path: format!("{section}.{key}"), is_commented, comment: std::mem::take(&mut comment) });
        } else if let Some(prose) = line.strip_prefix("# ") {
            comment.push_str(prose);
            comment.push(' ');
        } else if line.is_empty() {
            comment.clear();
        }
    }
    keys
}

/// Each value of a configuration by its dotted path. Tables that users fill in are values as a whole.
fn values(config: &Config) -> BTreeMap<String, Value> {
    fn walk(path: String, value: &Value, values: &mut BTreeMap<String, Value>) {
        let ends = [
            ".auth",
            "_caps",
            "_weights",
            ".headers",
            ".latency",
            ".paths",
            ".result",
            ".tags",
            ".token",
            ".variables",
        ];
        let is_value = ends.iter().any(|end| path.ends_with(end))
            || path.starts_with("sandbox.behaviour.")
            || ["sandbox.clients", "settings.pools", "settings.pool_overflow", "worker.upstream.integrations"]
                .contains(&path.as_str());
        match value {
            Value::Object(table) if !is_value => {
                for (key, value) in table {
                    walk(if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, values);
                }
            }
            value => {
                values.insert(path, value.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(String::new(), &serde_json::to_value(config).expect("it serializes"), &mut found);
    found
}

/// The defaults, with one http and one exec integration among them.
fn defaults() -> Config {
    let mut config = config::from_text("").expect("the defaults are valid");
    let name = "bank".parse().expect("a name");
    config.integrations.insert(name, integration::Config::Http(Box::default()));
    let name = "program".parse().expect("a name");
    config.integrations.insert(name, integration::Config::Exec(Box::default()));
    config
}

/// The variables that they come from are not set here.
pub fn without_credentials(config: &mut Config) {
    for integration in config.integrations.values_mut() {
        if let integration::Config::Http(http) = integration {
            // The variables and files that it names are not here.
            (http.token, http.auth, http.tls) = (None, None, Default::default());
        }
    }
}

#[test]
fn the_example_configuration_is_valid_as_it_stands_and_with_every_key_in_use() {
    let example = read(EXAMPLE);
    for text in [example.clone(), uncommented(&example, SENTINEL), uncommented(&example, CLUSTER)] {
        let mut config = config::from_text(&text).unwrap_or_else(|error| panic!("{error}"));
        without_credentials(&mut config);
        let telemetry = Telemetry::new().expect("a recorder");
        Integrations::from_config(&config.integrations, &telemetry).expect("its integrations compile");
    }
}

#[test]
fn the_worked_configurations_are_valid() {
    for name in ["examples/uk_open_banking.toml", "examples/fdx.toml"] {
        let mut config = config::from_text(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        without_credentials(&mut config);
        let telemetry = Telemetry::new().expect("a recorder");
        Integrations::from_config(&config.integrations, &telemetry).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_example_configuration_has_every_key() {
    let expected: BTreeSet<_> = values(&defaults()).into_keys().collect();
    let listed: BTreeSet<_> = keys_of_example().into_iter().map(|key| key.path).collect();
    let missing: Vec<_> = expected.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&expected).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:?}; no such key: {unknown:?}");
}

#[test]
fn the_example_configuration_states_the_defaults_of_the_code() {
    let defaults = values(&defaults());
    let used = |without: &str| values(&config::from_text(&uncommented(&read(EXAMPLE), without)).expect("valid"));
    let mut all = used(CLUSTER);
    all.extend(used(SENTINEL).into_iter().filter(|(path, _)| path.starts_with("registry.cluster.")));
    let mut wrong = Vec::new();
    for Key { path, is_commented, comment } in keys_of_example() {
        let (default, stated) = (&defaults[&path], &all[&path]);
        let has_none = matches!(default, Value::Null)
            || [Value::from(""), Value::from(Vec::<Value>::new())].contains(default)
            || default.as_object().is_some_and(|table| table.is_empty())
            || path.ends_with(".kind");
        if comment.is_empty() {
            wrong.push(format!("{path}: say what it is"));
        } else if has_none {
            wrong.extend((!comment.contains("No default")).then(|| format!("{path}: say that it has no default")));
        } else if is_commented && !comment.contains("not fixed") && default != stated {
            wrong.push(format!("{path}: the default is {default}, the file says {stated}"));
        } else if !is_commented && !comment.contains(&format!("Default: {default}.")) {
            wrong.push(format!("{path}: it is in use, so say \"Default: {default}.\""));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_example_settings_take_effect_as_a_whole() {
    let flags = flagd::evaluate(read("deploy/settings.example.json").as_bytes(), &settings::Context::default())
        .expect("flag definitions");
    let start = settings::Config::default().start();
    let (after, rejections) = settings::apply(&flags, &start, &start, "example".into(), 1.0);
    assert!(rejections.is_empty(), "{rejections:?}");
    let missing: Vec<_> =
        settings::TABLE.iter().filter(|spec| !flags.contains_key(spec.key)).map(|spec| spec.key).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(settings::Settings { version: start.version.clone(), ..after }, start, "they are the defaults");
}

// ── deploy/systemd

/// What a unit file sets a key to.
fn unit_value(unit: &str, key: &str) -> String {
    let text = read(unit);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{unit} sets no {key}")).to_owned()
}

const UNITS: [&str; 2] = ["deploy/systemd/weir-worker.service", "deploy/systemd/weir-router.service"];

#[test]
fn the_units_start_commands_that_there_are() {
    for unit in UNITS {
        let command = unit_value(unit, "ExecStart");
        Cli::try_parse_from(command.split(' ')).unwrap_or_else(|error| panic!("{unit}: {error}"));
    }
}

#[test]
fn the_units_wait_longer_than_a_drain_takes() {
    let config = config::from_text(&read(EXAMPLE)).expect("valid");
    let stops = [config.worker.stops_within(config.payloads.flush_within), config.router.stops_within()];
    for (unit, stops_within) in UNITS.into_iter().zip(stops) {
        let seconds = unit_value(unit, "TimeoutStopSec").parse().expect("a number of seconds");
        let margin = Duration::from_secs(5);
        assert!(Duration::from_secs(seconds) >= stops_within + margin, "{unit}: a drain takes up to {stops_within:?}");
        assert_eq!(unit_value(unit, "KillSignal"), "SIGTERM");
        // The comment explains the number.
        let stated = format!("at most {} s", stops_within.as_secs_f64().ceil());
        assert!(read(unit).replace("\n# ", " ").contains(&stated), "{unit}: say that it takes {stated}");
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let directory = tempfile::tempdir().expect("a directory");
    for unit in UNITS {
        let installed = read(unit).replace("/usr/local/bin/weir", env!("CARGO_BIN_EXE_weir"));
        let copy = directory.path().join(Path::new(unit).file_name().expect("a name"));
        std::fs::write(&copy, installed).expect("written");
        run_checker("systemd-analyze", &["verify", &copy.to_string_lossy()]);
    }
}

// ── deploy/prometheus.yml

#[test]
fn prometheus_takes_its_configuration() {
    run_checker("promtool", &["check", "config", &path("deploy/prometheus.yml").to_string_lossy()]);
}

#[test]
fn prometheus_scrapes_the_ports_of_the_default_configuration() {
    let (text, config) = (read("deploy/prometheus.yml"), Config::default());
    for address in [config.worker.admin.listen, config.router.admin.listen] {
        assert!(text.contains(&format!("targets: [\"{address}\"]")), "{address}");
    }
}

/// Runs a program that checks a file, where the machine has it.
pub fn run_checker(program: &str, arguments: &[&str]) {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&said));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => eprintln!("skipped: there is no {program} here"),
        Err(error) => panic!("{program}: {error}"),
    }
}
