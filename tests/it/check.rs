//! `weir check`, as a process: what it finds in a configuration, and what it reaches.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::json;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::task::Json;
use weir::telemetry::Telemetry;

use crate::cli::{assert_failed, assert_ok, run, stderr, stdout, weir};
use crate::documents::path;
use crate::support::house::House;
use crate::support::lone;
use crate::support::redis::RedisServer;
use crate::support::s3::{ACCESS_KEY, SECRET_KEY};

async fn check(text: &str, flags: &[&str], variables: &[(&str, &str)]) -> Output {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let variables = variables.iter().copied();
    run(weir().arg("check").args(flags).arg("--config").arg(file.path()).envs(variables), "").await
}

/// The findings of one verdict.
fn found(output: &Output, verdict: &str) -> Vec<String> {
    let of_verdict = |line: &str| line.strip_prefix(verdict).map(|rest| rest.trim_start().to_owned());
    stdout(output).lines().filter_map(of_verdict).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_configuration_is_good() {
    let example = path("deploy/weir.example.toml");
    let output = run(weir().arg("check").arg("--config").arg(&example).env("BANK_TOKEN", "sandbox.me"), "").await;
    assert_ok(&output);
    let text = stdout(&output);
    for part in ["ok     integrations.bank: ", "ok     worker: ", "ok     router: ", "all is well"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let output = run(weir().arg("check").arg("--config").arg(&example), "").await;
    assert_eq!(output.status.code(), Some(1));
    let problem = "integrations.bank.token.env: the environment has no \"BANK_TOKEN\": set it to the token";
    assert_eq!(found(&output, "wrong"), [problem]);
    let output = run(weir().args(["check", "--role", "router", "--config"]).arg(&example), "").await;
    assert_ok(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_mistakes_are_found_at_once() {
    let flags = tempfile::NamedTempFile::new().expect("a file");
    let flag = |value: f64| json!({"state": "ENABLED", "variants": {"a": value}, "defaultVariant": "a"});
    let document = json!({"flags": {"max_paralelism": flag(1.0), "payload_sampling": flag(7.0)}});
    std::fs::write(flags.path(), document.to_string()).expect("written");
    let text = MISTAKES.replace("$flags", &flags.path().to_string_lossy());
    let output = check(&text, &[], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let found = found(&output, "wrong");
    let expected = [
        "worker.listen: \"nowhere\"",
        "wroker: unknown field",
        "router.default_timeout: 2h must be",
        "router.queue.tasks: 0 would",
        "registry.url: not valid",
        "payloads.s3.bucket: \"\"; name",
        "sandbox.response_bytes: 99999999999",
        "integrations.kind.kind: there is no \"smtp\": use one of \"http\"",
        "integrations.url.base_url: \"ftp://x\"",
        "integrations.template.steps[0].path: ",
        "integrations.token.token.env: the environment has no \"NOPE\"",
        "overload.memory.limit_bytes: 1000 leaves no room beside what a worker itself takes, ",
        "settings.file: ",
        "settings.file: ",
    ];
    for part in expected {
        assert!(found.iter().any(|line| line.starts_with(part)), "{part:?} is missing in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    let all = stdout(&output);
    assert!(all.contains("ok     integrations.good: ") && all.contains("max_paralelism"), "{all}");
    assert!(!all.contains("hunter2") && all.ends_with("14 problems\n"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_integration_is_one_problem_and_its_secret_is_not_shown() {
    let text = "[integrations.x]\nkind = \"http\"\ntoken = \"abc-S3CRET\"\n";
    let output = check(text, &["--role", "worker"], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let expected = "integrations.x.token: a secret does not belong in the configuration: use { env = \"NAME\" } or \
                    { file = \"PATH\" }";
    assert_eq!(found(&output, "wrong"), [expected]);
    let all = format!("{}{}", stdout(&output), stderr(&output));
    assert!(all.contains("1 problem\n") && !all.contains("S3CRET"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_an_integration_that_there_is_not_are_wrong_and_those_for_a_broken_one_are_not() {
    let output = check(UPSTREAM, &["--role", "worker"], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let expected = [
        "integrations.broken.kind: there is no \"smtp\"",
        "worker.upstream.integrations.goood: there is no integration of this name; \"good\" is near",
    ];
    let found = found(&output, "wrong");
    let as_expected = found.iter().zip(expected).all(|(line, expected)| line.starts_with(expected));
    assert!(as_expected && found.len() == expected.len(), "{found:#?}");
    // And so a worker does not start.
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), UPSTREAM.replace("smtp", "synthetic")).expect("written");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let output = run(weir().arg("worker").args(ports).arg("--config").arg(file.path()), "").await;
    assert_failed(&output, &["worker.upstream.integrations.goood: there is no integration of this name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_could_not_use_on_this_machine_is_found() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let unusable = format!("{UNUSABLE}{REGISTRY_WITHOUT_CERTIFICATES}").replace("$file", &path);
    let output = check(&unusable, &["--role", "worker"], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let unknown = "there is no integration of this name; \"good\" is near";
    let hint = "; what a program brings of its own, only that program's check knows (PROGRAM check)";
    let is_file = format!("{path} is a file: name a directory, which is made where it is missing");
    let expected = [
        format!("payloads.redaction.paths.goood: {unknown}{hint}"),
        format!("worker.state_dir: {path}/state: {is_file}"),
        format!("payloads.spool.path: {path}: {is_file}"),
        format!("payloads.s3.ca_file: \"{path}\"; name a file of certificates in PEM"),
        format!(
            "registry.tls.ca: {path:?} is no PEM file with a CERTIFICATE: it holds none; use one with -----BEGIN \
             CERTIFICATE-----"
        ),
    ];
    assert_eq!(found(&output, "wrong"), expected);

    // And so a worker does not start.
    let configuration = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(configuration.path(), UNUSABLE.replace("$file", &path).replace("\"s3\"", "\"none\""))
        .expect("written");
    let ports = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let output = run(weir().arg("worker").args(ports).arg("--config").arg(configuration.path()), "").await;
    assert_failed(&output, &[&format!("payloads.redaction.paths.goood: {unknown}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_redaction_paths_for_integrations_of_its_own() {
    let config = weir::config::from_text(OWN).expect("valid");
    let own = Integrations::new().with("own".parse().expect("a name"), Nothing);
    let (worker, _client) = lone::start(config, own, Telemetry::new().expect("a recorder")).await;
    worker.drain().await;
}

/// An integration that is not configured.
struct Nothing;

#[async_trait::async_trait]
impl Integration for Nothing {
    async fn run(&self, _: &Context) -> Result<Json, Error> {
        Ok(Json::null())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_its_own_needs() {
    let nothing_runs = ["integrations: none is configured", "registry.url: not set: a router needs"];
    for (text, role, expected) in [
        ("", "all", nothing_runs.as_slice()),
        ("", "worker", &nothing_runs[..1]),
        ("", "router", &nothing_runs[1..]),
        ("", "sandbox", &[]),
        (
            "[worker]\nlisten = \"0.0.0.0:7401\"\n[integrations.a]\nkind = \"synthetic\"",
            "worker",
            &["worker.advertise: "],
        ),
        ("[integrations.a]\nkind = \"synthetic\"", "worker", &[]),
        ("[worker", "all", &["configuration: cannot read the configuration file"]),
    ] {
        let output = check(text, &["--role", role], &[]).await;
        let found = found(&output, "wrong");
        let as_expected = found.iter().zip(expected).all(|(line, expected)| line.starts_with(expected));
        assert!(as_expected && found.len() == expected.len(), "{text:?} as {role}: {found:#?}");
        assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_only_one_role_is_told_how_to_ask_for_it() {
    for (text, hint) in [
        ("[integrations.a]\nkind = \"synthetic\"", "; for a worker alone: weir check --role worker"),
        ("[registry]\nurl = \"redis://127.0.0.1:6379\"", "; for a router alone: weir check --role router"),
    ] {
        let found = found(&check(text, &[], &[]).await, "wrong");
        assert!(found.len() == 1 && found[0].ends_with(hint), "{found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redaction_that_leaves_nothing_is_noted() {
    let paths = r#""*" = ["$", "$.a"]
        a = ["$..*", "$[*]", "$..[*]", "$.*.a", "$..b", "$[0]"]"#;
    let text = format!("[integrations.a]\nkind = \"synthetic\"\n[payloads.redaction.paths]\n{paths}");
    let output = check(&text, &["--role", "worker"], &[]).await;
    assert_ok(&output);
    let notes = found(&output, "note").into_iter().filter(|note| note.contains(" takes out all there is in "));
    let of: Vec<_> = notes.filter_map(|note| note.split(" takes").next().map(str::to_owned)).collect();
    let key = "payloads.redaction.paths";
    let expected = [("*", "$"), ("a", "$..*"), ("a", "$[*]"), ("a", "$..[*]")];
    assert_eq!(of, expected.map(|(integration, path)| format!("{key}.{integration}: {path:?}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_names_is_reached_on_request() {
    let house = House::start().await;
    let text = |bank: &str, redis: &str| {
        let text = REACHABLE.replace("$bank", bank).replace("$redis", redis);
        text.replace("$s3", &house.s3.endpoint())
    };
    let bank = format!("http://{}", house.sandbox.local_addr);
    let variables = |secret| [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", secret)];
    let redis = house.redis.url();

    let output = check(&text(&bank, &redis), &["--connect"], &variables(SECRET_KEY)).await;
    assert_ok(&output);
    let fine = found(&output, "ok").join("\n");
    for part in [
        format!("integrations.bank: {bank} takes connections, "),
        format!("registry: redis 7.0.15 at {}, ", redis.replace("redis://", ""))
            .replace("7.0.15", &version(&house.redis)),
        "1 worker in pool default".to_owned(),
        "payloads: stored s3://weir/payloads/weir-check, ".to_owned(),
        "worker.listen: 127.0.0.1:0 is free".to_owned(),
        "settings.max_parallelism: this process may open ".to_owned(),
    ] {
        assert!(fine.contains(&part), "{part:?} is missing in {fine}");
    }
    assert!(house.bucket().join("payloads/weir-check").exists());
    assert_eq!(house.sandbox.stats().all.total, 0, "nothing was asked of the bank");

    let output = check(&text("https://127.0.0.1:9", "redis://127.0.0.1:9"), &["--connect"], &variables("wrong")).await;
    assert_eq!(output.status.code(), Some(1));
    let wrong = found(&output, "wrong").join("\n");
    for part in [
        "integrations.bank: https://127.0.0.1:9: no connection: ",
        "registry: the registry at 127.0.0.1:9 cannot be reached: ",
        "payloads: could not store s3://weir/payloads/weir-check",
        "check key, secret and clock",
    ] {
        assert!(wrong.contains(part), "{part:?} is missing in {wrong}");
    }
    let listen = async |taken: SocketAddr| {
        check(&format!("[worker]\nlisten = \"{taken}\""), &["--role", "worker", "--connect"], &[]).await
    };
    let worker = house.worker(0).address();
    let runs = found(&listen(worker).await, "note").join("\n");
    assert!(runs.contains(&format!("worker.listen: {worker} is taken: a worker runs there already")), "{runs}");
    let taken = house.sandbox.local_addr;
    let wrong = found(&listen(taken).await, "wrong").join("\n");
    assert!(wrong.contains(&format!("worker.listen: cannot listen on {taken}")), "{wrong}");
    house.close().await;
}

fn version(redis: &RedisServer) -> String {
    let info = redis.ask("INFO server");
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    version.expect("it says").trim().to_owned()
}

const MISTAKES: &str = r#"
[worker]
listen = "nowhere"
[router]
queue.tasks = 0
default_timeout = "2h"
[settings]
file = "$flags"
[wroker]
x = 1
[registry]
url = "http://u:hunter2@x"
[payloads]
store = "s3"
[overload.memory]
limit_bytes = 1000
[sandbox]
response_bytes = 99999999999
[integrations.kind]
kind = "smtp"
[integrations.url]
kind = "http"
base_url = "ftp://x"
steps = [{ name = "a", path = "/x" }]
[integrations.template]
kind = "http"
base_url = "http://127.0.0.1:9"
steps = [{ name = "a", path = "/x/{{ nope( }}" }]
[integrations.token]
kind = "http"
base_url = "http://127.0.0.1:9"
token = { env = "NOPE" }
steps = [{ name = "a", path = "/x" }]
[integrations.good]
kind = "synthetic"
"#;

const UNUSABLE: &str = r#"
[worker]
state_dir = "$file/state"
[payloads]
store = "s3"
s3.bucket = "weir"
s3.ca_file = "$file"
spool.path = "$file"
redaction.paths = { goood = ["$.a"], good = ["$.a"], "*" = ["$.a"] }
[integrations.good]
kind = "synthetic"
"#;

const REGISTRY_WITHOUT_CERTIFICATES: &str = r#"
[registry]
url = "rediss://127.0.0.1:1"
tls.ca = "$file"
"#;

const OWN: &str = r#"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[payloads.redaction]
paths = { own = ["$.a"] }
"#;

const UPSTREAM: &str = r#"
[integrations.good]
kind = "synthetic"
[integrations.broken]
kind = "smtp"
[worker.upstream.integrations.goood]
breaker = { probes = 1 }
[worker.upstream.integrations.good]
breaker = { probes = 1 }
[worker.upstream.integrations.broken]
breaker = { probes = 1 }
"#;

const REACHABLE: &str = r#"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[router]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[sandbox]
listen = "127.0.0.1:0"
[registry]
url = "$redis"
[payloads]
store = "s3"
[payloads.s3]
bucket = "weir"
path_style = true
endpoint = "$s3"
[integrations.bank]
kind = "http"
base_url = "$bank"
connect_timeout = "5s"
steps = [{ name = "accounts", path = "/accounts" }]
"#;

#[cfg(not(feature = "launchdarkly"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_weir_without_launchdarkly_says_so() {
    let output = check("[settings]\nsource = \"launchdarkly\"", &["--role", "worker"], &[]).await;
    let said = "settings.source: this weir was built without LaunchDarkly: build it with --features launchdarkly";
    assert!(found(&output, "wrong").iter().any(|line| line.starts_with(said)), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_of_a_section_is_shown_and_a_wrong_log_level_once() {
    let text = "log.level = \"loud\"\n[settings]\nmax_jump = 0\nredis_key = \"x\"\n[registry]\nurl = \"http://x\"\n\
                connect_timeout = \"1h\"\n[router]\nlisten = 7\ndefault_timeout = \"soon\"\nqueue.tasks = 0\n";
    let output = check(text, &["--role", "router"], &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let found = found(&output, "wrong");
    let expected = [
        "log.level: ",
        "settings.max_jump: ",
        "settings.redis_key: ",
        "registry.url: ",
        "registry.connect_timeout: ",
        "router.listen: ",
        "router.default_timeout: ",
        "router.queue.tasks: ",
    ];
    for part in expected {
        let lines = found.iter().filter(|line| line.starts_with(part)).count();
        assert_eq!(lines, 1, "{part:?} in {found:#?}");
    }
    assert!(!stdout(&output).contains("log_level"), "{}", stdout(&output));
}
